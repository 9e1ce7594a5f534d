"""What the laboratory's tests share: sites, each a gateway with its own tracker, rewriter and namespaces."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
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
    wanted: dict[str, dict[str, object]] = {"gateway": {"public_address": PUBLIC}}
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


@pytest.fixture
def site(new_site: SiteMaker) -> Site:
    """A site with the usual settings, running."""
    made = new_site()
    made.start()
    return made
