"""What the laboratory's tests share: sites, each a gateway with its own tracker, rewriter and namespaces."""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.lab.gateway_site import PUBLIC, Site
from tools.lab import Lab

SiteMaker = Callable[..., Site]


def make_site(stack: ExitStack, *, lab: dict[str, Any] | None = None, **settings: dict[str, object]) -> Site:
    """A site that ends with the stack; a setting of None leaves the default."""
    # Not pytest's tmp_path: its names are long, and a unix socket's path has 108 octets.
    directory = Path(stack.enter_context(TemporaryDirectory(prefix="porthold-")))
    # A claim may take longer than the usual second: whatever else runs here wants the machine too.
    wanted: dict[str, dict[str, object]] = {"gateway": {"public_address": PUBLIC, "claim_timeout_s": 5.0}}
    for section, values in settings.items():
        wanted[section] = {**wanted.get(section, {}), **values}
        wanted[section] = {key: value for key, value in wanted[section].items() if value is not None}
    made = Site(stack.enter_context(Lab(**(lab or {}))), directory, wanted)
    stack.enter_context(made.open_until_end)
    return made


@pytest.fixture
def new_site() -> Iterator[SiteMaker]:
    """Makes sites that end with the test: `new_site(service={"idle_s": 3.0}, gateway={...}, lab={...})`."""
    with ExitStack() as stack:
        yield lambda **words: make_site(stack, **words)


class SharedSites:
    """Sites that serve all tests of a module one after another; a start costs as much as most tests."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._sites: dict[float, Site] = {}

    @contextmanager
    def one(self, idle_s: float) -> Iterator[Site]:
        """A site that is as if just started."""
        site = self._sites.get(idle_s)
        if site is None:
            site = make_site(self._stack, service={"idle_s": idle_s})
            site.start()
        site.begin_test()
        try:
            yield site
        finally:
            self._sites.pop(idle_s, None)
            if site.end_test():
                self._sites[idle_s] = site


@pytest.fixture(scope="module")
def shared_sites() -> Iterator[SharedSites]:
    """The sites of a module."""
    with ExitStack() as stack:
        yield SharedSites(stack)


@pytest.fixture
def site(shared_sites: SharedSites) -> Iterator[Site]:
    """A site with the usual settings, running."""
    with shared_sites.one(300.0) as made:
        yield made


@pytest.fixture
def impatient_site(shared_sites: SharedSites) -> Iterator[Site]:
    """A site whose holders may be silent for a second only."""
    with shared_sites.one(1.0) as made:
        yield made


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Randomness whose seed a failing test shows; PORTHOLD_SEED runs the same again."""
    seed = int(os.environ.get("PORTHOLD_SEED", random.randrange(2**32)))
    request.node.add_report_section("call", "seed", f"PORTHOLD_SEED={seed}")
    return random.Random(seed)
