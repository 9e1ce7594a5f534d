"""What happens in a run: its setting, and its steps in time, all from one seed.

Rule 1: a plan is data; a step stands for itself, so that any of them can be left out and the rest still runs.
Rule 2: when the last fault is over, the same comes in all plans: rest, and the proof that every gateway still
serves.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from tools.simulation.people import CALLERS, CHAT, CUSEEME, PEERS
from tools.simulation.site import Setting
from tools.simulation.world import MILLISECOND_NS, SECOND_NS

CALLS_NS: Final = 11 * SECOND_NS
"""Until then something new may happen."""
HOSTS: Final = 3
FENCED: Final = 0.15
"""Of all gateways; drawn apart, so that the other plans are what they were."""


@dataclass(frozen=True, slots=True)
class Step:
    """At `at_ns`: what, on what, and how; times among the arguments are nanoseconds."""

    at_ns: int
    what: str
    words: tuple[str | int | bool, ...]

    @property
    def over_ns(self) -> int:
        """When it is over: of what lasts, the last word says how long."""
        last = self.words[-1] if self.what in LASTING else 0
        return self.at_ns + (last if isinstance(last, int) else 0)

    def __str__(self) -> str:
        return f"{self.at_ns / SECOND_NS:9.3f} s  {self.what} {' '.join(map(_word, self.words))}"


def _word(word: str | int | bool) -> str:
    return f"{word / SECOND_NS:.3f}s" if type(word) is int and abs(word) > MILLISECOND_NS else str(word)


@dataclass(frozen=True, slots=True)
class Plan:
    """A run: the same plan always runs the same."""

    seed: int
    setting: Setting
    steps: tuple[Step, ...]

    @property
    def rest_ns(self) -> int:
        """From then on everything is in order again, and nobody calls."""
        return max((step.over_ns for step in self.steps), default=0) + SECOND_NS


def plan_of(seed: int) -> Plan:
    """The plan that a seed stands for."""
    chance = random.Random(f"{seed}/plan")  # noqa: S311 (a simulation's chance)
    fenced = random.Random(f"{seed}/fenced").random() < FENCED  # noqa: S311 (a simulation's chance)
    setting = replace(_setting(chance), fenced=fenced)
    steps = [_traffic(chance, setting) for _ in range(chance.randint(5, 14))]
    kinds = [kind for kind, weight in FAULTS.items() for _ in range(weight)]
    favourite = chance.choice(kinds)
    for _ in range(chance.choice((0, 1, 2, 3, 4, 6, 9))):
        kind = favourite if chance.random() < 0.4 else chance.choice(kinds)
        fault = _fault(chance, setting, kind)
        steps += [fault, *_bait(chance, fault)]
    return Plan(seed, setting, tuple(sorted(steps, key=lambda step: step.at_ns)))


def _setting(chance: random.Random) -> Setting:
    return Setting(
        gateways=2 if chance.random() < 0.15 else 1,
        standbys=chance.random() < 0.25,
        far_tracker=chance.random() < 0.5,
        native_queue=chance.random() < 0.6,
        two_services=chance.random() < 0.2,
        lease_s=chance.choice((2.0, 3.0, 4.0)),
        idle_s=chance.choice((2.0, 3.0, 4.0)),
        outbox_limit=10_000,
        verified=chance.random() < 0.2,
        refusal=chance.choice(("icmp", "icmp", "drop")),
    )


def _gateway(chance: random.Random, setting: Setting) -> str:
    return f"gw{chance.randint(1, setting.gateways)}"


def _time(chance: random.Random, *, first_ns: int = 0) -> int:
    return chance.randrange(first_ns, CALLS_NS)


def _traffic(chance: random.Random, setting: Setting) -> Step:
    gateway, host = _gateway(chance, setting), chance.randrange(HOSTS)
    at_ns = _time(chance)
    match chance.choice(("call", "call", "call", "call", "ring", "flood")):
        case "call":
            port = CHAT if setting.two_services and chance.random() < 0.4 else CUSEEME
            for_ns = chance.choice((0, 1, 2, 4, 7)) * SECOND_NS + chance.randrange(20, 1_000) * MILLISECOND_NS
            hang_up = chance.random() < 0.6
            return Step(at_ns, "call", (gateway, host, chance.choice(PEERS), port, for_ns, hang_up))
        case "ring":
            sport = chance.choice((CUSEEME, 1024 + chance.randrange(40_000)))
            return Step(
                at_ns, "ring", (gateway, chance.choice((*CALLERS, *PEERS)), sport, chance.randint(1, 20))
            )
        case _:
            return Step(at_ns, "flood", (gateway, host, chance.choice(PEERS), chance.randint(3, 120)))


FAULTS: Final = {
    "kill": 6,
    "stop": 5,
    "ambush": 5,
    "terminate": 2,
    "take over": 1,
    "power": 2,
    "cut": 3,
    "reset": 3,
    "duplicates": 1,
    "flush": 2,
    "flush rules": 1,
    "flush queues": 1,
    "log full": 1,
    "log busy": 1,
    "log slow": 2,
    "outbox lost": 2,
    "outbox full": 1,
    "clock": 2,
    "address": 2,
    "linger": 3,
    "stray": 1,
    "order": 4,
}
ORDERS: Final = ("release", "release", "revoke", "bar", "lift", "reserve", "freeze", "freeze all")
LASTING: Final = (
    *("kill", "stop", "ambush", "power", "cut", "duplicates", "linger"),
    *("log full", "log busy", "log slow", "outbox lost", "outbox full"),
)


def _fault(  # noqa: C901, PLR0911, PLR0912 (one branch for each kind)
    chance: random.Random, setting: Setting, kind: str
) -> Step:
    gateway, at_ns = _gateway(chance, setting), _time(chance, first_ns=SECOND_NS // 2)
    some_ns = chance.randrange(50, 5_000) * MILLISECOND_NS
    match kind:
        case "kill":
            calls = chance.choice((0, 0, 1, 2, 3, 5, 8, 13, 21, 34))
            return Step(at_ns, kind, (_process(chance, setting), calls, chance.choice((0, some_ns))))
        case "stop":
            calls = chance.choice((0, 0, 1, 2, 3, 5, 8, 13, 21, 34))
            return Step(at_ns, kind, (_process(chance, setting), calls, some_ns))
        case "ambush":
            # Long enough for another worker to take over, if there is one; 0: it is killed.
            for_ns = chance.choice((0, chance.randrange(1_000, 9_000) * MILLISECOND_NS))
            at_ns = min(at_ns, CALLS_NS * 2 // 3)
            return Step(at_ns, kind, (_worker(chance, setting), chance.randint(1, 40), for_ns))
        case "take over":
            return Step(at_ns, kind, (_worker(chance, setting),))
        case "terminate":
            return Step(at_ns, kind, (_process(chance, setting),))
        case "power":
            host = chance.choice(("hub", gateway)) if setting.far_tracker else "hub"
            return Step(at_ns, kind, (host, some_ns))
        case "cut" | "log full" | "log busy" | "log slow" | "duplicates":
            return Step(at_ns, kind, (some_ns,))
        case "reset":
            return Step(at_ns, kind, ())
        case "flush" | "flush rules" | "flush queues":
            return Step(at_ns, kind, (gateway,))
        case "outbox lost" | "outbox full":
            return Step(at_ns, kind, (_worker(chance, setting), some_ns))
        case "clock":
            step_ns = chance.choice((-86_400, -30, -5, -2, 2, 30, 86_400)) * SECOND_NS
            return Step(
                at_ns, kind, (chance.choice(("hub", gateway)) if setting.far_tracker else "hub", step_ns)
            )
        case "address":
            return Step(at_ns, kind, (gateway, chance.choice((2, 2, 3, 0)), chance.random() < 0.5))
        case "stray":
            return Step(at_ns, kind, (gateway, chance.randrange(HOSTS)))
        case "linger":
            return Step(at_ns, kind, (gateway, SECOND_NS + some_ns))
        case "order":
            return Step(at_ns, kind, (chance.choice(ORDERS), gateway, chance.randrange(HOSTS)))
        case _:
            raise ValueError(kind)


def _bait(chance: random.Random, fault: Step) -> Iterator[Step]:
    """A call that runs into a fault which shows only then."""
    if fault.what not in ("ambush", "linger"):
        return
    gateway = str(fault.words[0]).partition("-")[0]
    brief = fault.what == "linger"
    at_ns = fault.at_ns + chance.randrange(50, 1_500) * MILLISECOND_NS
    for_ns = chance.randrange(20, 300 if brief else 6_000) * MILLISECOND_NS
    words = (gateway, chance.randrange(HOSTS), chance.choice(PEERS), CUSEEME, for_ns, brief)
    yield Step(at_ns, "call", words)


def _worker(chance: random.Random, setting: Setting) -> str:
    return f"{_gateway(chance, setting)}-{chance.choice('ab') if setting.standbys else 'a'}"


def _process(chance: random.Random, setting: Setting) -> str:
    return "tracker" if chance.random() < 0.45 else _worker(chance, setting)
