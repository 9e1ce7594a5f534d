"""What the operator's commands share: whom an order is about, giving it, waiting for its effect, saying so.

Rule 1: a binding is ended by its number: what a port or a host names is looked up once, so that an order that
has to be given again never ends the next holder's call. Rule 2: an order is given until it is answered: twice
it is carried out once. Rule 3: done means that the kernel has let go and the log says so; anything less ends
with 1 and says what will happen.
"""

import getpass
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import click

from tools.options import WrongUse, calling, config_option, json_option, read_configuration
from tools.output import octets_text, plain, print_json, print_line, protocol_text, time_text
from tools.status import print_silence, why_silent
from tools.writing import REASON
from tracker.client import Line
from tracker.configuration import PROTOCOLS, address_from_text
from tracker.events import Ending
from tracker.messages import (
    BindingView,
    FindPort,
    NotAllowed,
    PortFound,
    Reply,
    ReplyBody,
    Volatile,
)
from tracker.orders import (
    OrderRefused,
    OrderTaken,
    ReleaseBinding,
    RevokeBinding,
    Withdrawing,
    Withdrawn,
)
from tracker.roles import Role
from tracker.shapes import ProtocolError

ANYTHING: Final = FindPort(None, None, None, None, None, None)
AGAIN_S: Final = 1.0
"""So long without an answer, and an order is given again."""
_UNITS_MS: Final = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_LONGEST_MS: Final = 45 * _UNITS_MS["d"]
Function = TypeVar("Function", bound=Callable[..., Any])


class TargetType(click.ParamType[FindPort]):
    """A binding's number, a port like 7648/udp, or the address of a host; its value asks for them."""

    name = "binding|port|host"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> FindPort:
        text = str(value).lower()
        if text.isdecimal() and 0 < int(text) < 2**63:
            return replace(ANYTHING, binding=int(text))
        port = port_from_text(text)
        if port is not None:
            return port
        try:
            return replace(ANYTHING, holder=address_from_text(text))
        except ValueError:
            self.fail(
                f"{value!r} is no binding like 17, no port like 7648/udp, and no host like 192.168.1.10",
                param,
                ctx,
            )


class PlaceType(click.ParamType[FindPort]):
    """A port like 7648/udp, or the name of a service; its value asks for it."""

    name = "port|service"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> FindPort:
        text = str(value)
        if text.isdecimal():
            self.fail(f"a port is written with its protocol, like {text}/udp", param, ctx)
        if not 0 < len(text) <= 64:
            self.fail(f"{text!r} is no service", param, ctx)
        return port_from_text(text.lower()) or replace(ANYTHING, service=text)


class DurationType(click.ParamType[int]):
    """A time like 90s, 15m, 1h or 2d; its value is in milliseconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"(\d{1,9})\s*([smhd])", str(value).strip().lower())
        duration_ms = 0 if found is None else int(found[1]) * _UNITS_MS[found[2]]
        if not 0 < duration_ms <= _LONGEST_MS:
            self.fail(f"{value!r} is no time like 90s, 15m, 1h or 2d, of 45 days at most", param, ctx)
        return duration_ms


def port_from_text(text: str) -> FindPort | None:
    """`7648/udp` or `udp/7648`; None: it is no port."""
    found = re.fullmatch(r"(?:(udp|tcp)/)?(\d{1,5})(?:/(udp|tcp))?", text)
    if found is None or bool(found[1]) == bool(found[3]) or not 1 <= int(found[2]) <= 0xFFFF:
        return None
    return replace(ANYTHING, protocol=PROTOCOLS[found[1] or found[3]], port=int(found[2]))


def order_options(function: Function) -> Function:
    """`--reason`, `--gateway`, `--timeout`, `--config`, `--json`."""
    for option in (
        json_option,
        click.option(
            "--timeout", "timeout_s", type=click.FloatRange(0.1, 600), default=10.0, show_default=True
        ),
        config_option,
        click.option("--gateway", help="At this gateway; needed where several have the port."),
        click.option(
            "--reason", "why", type=REASON, required=True, help="Why: it is logged, with your name."
        ),
    ):
        function = option(function)
    return function


@dataclass(frozen=True, slots=True)
class Result:
    """What became of an order that ends a binding.

    `outcome`: withdrawn (the kernel has let go), over (it had before), waiting (the worker is told), lost
    (the worker is not there to be told), silent (the tracker has not answered).
    """

    binding: int
    outcome: str = "silent"
    holder: bytes | None = None
    gateway: str | None = None
    service: str | None = None
    worker: str | None = None
    ending: Ending | None = None
    withdrawn_ns: int | None = None

    @property
    def done(self) -> bool:
        return self.outcome in ("withdrawn", "over")


class Operator:
    """A line to the tracker, for as long as the command has."""

    def __init__(self, line: Line, endpoint: str, timeout_s: float, *, as_json: bool) -> None:
        self._line = line
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._deadline_s = time.monotonic() + timeout_s
        self._as_json = as_json
        self._asked = 0

    def ask(self, body: Volatile) -> ReplyBody:
        """The answer; without one, or where the tracker refuses, the command ends with 1."""
        self._asked += 1  # an answer to a question before, that was asked again, is none to this one
        asked_s = -AGAIN_S
        while (now_s := time.monotonic()) < self._deadline_s:
            if now_s - asked_s >= AGAIN_S:
                asked_s = now_s
                self._line.say(body, self._asked)
            answer = self._hear(min(asked_s + AGAIN_S, self._deadline_s) - now_s)
            if answer is not None and answer.incarnation == self._asked:
                if isinstance(answer.body, NotAllowed | OrderRefused):
                    self._refused(answer.body.reason)
                return answer.body
        return self._silent(why_silent(self._endpoint, self._timeout_s))

    def find(self, targets: Sequence[FindPort], gateway: str | None) -> list[BindingView]:
        """The bindings that are meant, each once. WrongUse: a port is held at several gateways."""
        found: dict[int, BindingView] = {}
        for target in targets:
            answer = self.ask(replace(target, gateway=gateway))
            views = answer.bindings if isinstance(answer, PortFound) else ()
            gateways = sorted({view.resource.gateway for view in views})
            if target.port is not None and len(gateways) > 1:
                raise WrongUse(
                    f"{target_text(target)} is held at {', '.join(gateways)}; choose one with --gateway."
                )
            found.update((view.binding, view) for view in views)
        return list(found.values())

    def place(self, wanted: FindPort, gateway: str | None) -> tuple[str, str]:
        """Gateway and name of the service that is meant. WrongUse: there is none, or several."""
        answer = self.ask(replace(wanted, gateway=gateway))
        places = answer.places if isinstance(answer, PortFound) else ()
        if len(places) == 1:
            return places[0].gateway, places[0].service
        if not places:
            where = "any gateway that the tracker knows" if gateway is None else f"a gateway {gateway}"
            raise WrongUse(f"{target_text(wanted)} belongs to no service of {where}.")
        listed = ", ".join(f"{place.service} of {place.gateway}" for place in places)
        raise WrongUse(f"{target_text(wanted)} belongs to {listed}; choose one with --gateway.")

    def change(self, body: Volatile) -> bool:
        """Give an order that is carried out at once; whether it was news. A refused one ends the command."""
        answer = self.ask(body)
        return isinstance(answer, OrderTaken) and answer.news

    def end_bindings(
        self, views: Sequence[BindingView], order: Callable[[int], ReleaseBinding | RevokeBinding]
    ) -> list[Result]:
        """Order their end, and wait for each that its worker has let go."""
        results = {view.binding: _result(view) for view in views}
        waiting = set(results)
        given_s = 0.0
        while waiting and time.monotonic() < self._deadline_s:
            if time.monotonic() - given_s >= AGAIN_S:
                given_s = time.monotonic()
                for binding in sorted(waiting):
                    self._line.say(order(binding))
            answer = self._hear(min(given_s + AGAIN_S, self._deadline_s) - time.monotonic())
            match answer:
                case Reply(body=NotAllowed(reason)):
                    self._refused(reason)
                case Reply(body=Withdrawing() | Withdrawn() as body) if body.binding in waiting:
                    results[body.binding] = _heard(results[body.binding], body)
                    if results[body.binding].outcome != "waiting":
                        waiting.discard(body.binding)
                case _:
                    pass
        return list(results.values())

    def _hear(self, timeout_s: float) -> Reply | None:
        try:
            return self._line.hear(max(0.0, timeout_s))
        except ProtocolError as error:
            return self._silent(f"what answers is no tracker of this version ({error})")

    def _silent(self, why: str) -> NoReturn:
        print_silence(self._endpoint, why, as_json=self._as_json)
        sys.exit(1)

    @staticmethod
    def _refused(why: str) -> NoReturn:
        print(f"Not done: {why}.", file=sys.stderr)
        sys.exit(1)


@contextmanager
def operator(config: Path | None, timeout_s: float, *, as_json: bool) -> Iterator[Operator]:
    """The tracker of the configuration, to be ordered about."""
    endpoint, credentials = calling(read_configuration(config), Role.OPERATOR)
    with Line.open(endpoint, operator_name(), credentials) as line:
        yield Operator(line, endpoint, timeout_s, as_json=as_json)


def target_text(wanted: FindPort) -> str:
    """As people write it."""
    if wanted.binding is not None:
        return f"binding {wanted.binding}"
    if wanted.port is not None and wanted.protocol is not None:
        return f"{wanted.port}/{protocol_text(wanted.protocol)}"
    return octets_text(wanted.holder) if wanted.holder is not None else f"the service {wanted.service!r}"


def _result(view: BindingView) -> Result:
    resource = view.resource
    return Result(view.binding, holder=view.holder, gateway=resource.gateway, service=resource.service)


def _heard(result: Result, answer: Withdrawing | Withdrawn) -> Result:
    match answer:
        case Withdrawing(_, worker, lost):
            return replace(result, outcome="lost" if lost else "waiting", worker=worker)
        case Withdrawn(_, None):
            return replace(result, outcome="over")
        case Withdrawn(_, ending, withdrawn_ns):
            return replace(result, outcome="withdrawn", ending=ending, withdrawn_ns=withdrawn_ns)


def print_results(results: Sequence[Result]) -> None:
    """A line for each binding, for people."""
    for result in results:
        holder = "" if result.holder is None else octets_text(result.holder)
        name = f"binding {result.binding} ({result.service} at {result.gateway}, {holder}): "
        print_line(name, _outcome_text(result))


def _outcome_text(result: Result) -> tuple[str, str] | str:
    match result.outcome:
        case "withdrawn":
            when = "" if result.withdrawn_ns is None else f" at {time_text(result.withdrawn_ns)}"
            return f"over ({result.ending}), the kernel has let go{when}", "green"
        case "over":
            return "was over already"
        case "waiting":
            return (
                f"logged, and worker {result.worker} is told; it has not yet said that it is done",
                "yellow",
            )
        case "lost":
            who = "no worker has the gateway" if result.worker is None else f"worker {result.worker} is gone"
            return (
                f"logged, but {who}: its kernel goes on forwarding, until idle or until a worker comes,"
                " which then carries it out"
            ), "yellow"
        case _:
            return "the tracker has not answered; porthold status shows whether it was taken", "red"


def report(
    results: Sequence[Result], *, as_json: bool, facts: dict[str, Any] | None = None, done: bool = True
) -> NoReturn:
    """Print what became of it all; ends with 0 if all of it is done (and `done`), else with 1."""
    if as_json:
        print_json({**(facts or {}), "bindings": [plain(result) for result in results]})
    else:
        print_results(results)
    sys.exit(0 if done and all(result.done for result in results) else 1)


def operator_name() -> str:
    """Who gives the order, as the log is to say: whoever called sudo, or the user."""
    return (os.environ.get("SUDO_USER") or getpass.getuser())[:64]
