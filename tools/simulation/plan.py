"""What happens in a run: its setting, and its steps in time, all from one seed.

Rule 1: a plan is data; a step stands for itself, so that any of them can be left out and the rest still runs.
Of two machines with one address it may name the worker that is "active" or "standby" when its time comes.
Rule 2: when the last fault is over, the same comes in all plans: rest, and the proof that every gateway still
serves.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from tools.simulation.people import CALLERS, CHAT, CUSEEME, PEERS
from tools.simulation.site import ACTIVE, STANDBY, Setting, places_of
from tools.simulation.world import MILLISECOND_NS, SECOND_NS

CALLS_NS: Final = 11 * SECOND_NS
"""Until then something new may happen."""
HOSTS: Final = 3
FENCED: Final = 0.15
"""Of all gateways; drawn apart, so that the other plans are what they were."""
SHARED: Final = 0.15
"""Of all plans: one gateway on two machines, each with a kernel of its own, under fence."""
FASTEST_PPM: Final = 500
"""By so much adjtimex lets a clock be run faster or slower."""


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
    chance = random.Random(f"{seed}/plan")  # noqa: S311 - a simulation's chance
    setting = replace(_setting(chance), fenced=_apart(seed, "fenced").random() < FENCED)
    apart = _apart(seed, "shared")
    if apart.random() < SHARED:
        setting = _shared(apart, setting)
    steps = [_traffic(chance, setting) for _ in range(chance.randint(5, 14))]
    weights = SHARED_FAULTS if setting.shared else FAULTS
    kinds = [kind for kind, weight in weights.items() for _ in range(weight)]
    favourite = chance.choice(kinds)
    for _ in range(chance.choice((2, 3, 4, 6, 9) if setting.shared else (0, 1, 2, 3, 4, 6, 9))):
        kind = favourite if chance.random() < 0.4 else chance.choice(kinds)
        fault = _fault(chance, setting, kind)
        steps += [fault, *_bait(chance, fault)]
    return Plan(seed, setting, tuple(sorted(steps, key=lambda step: step.at_ns)))


def _apart(seed: int, use: str) -> random.Random:
    return random.Random(f"{seed}/{use}")  # noqa: S311 - a simulation's chance


def _shared(chance: random.Random, setting: Setting) -> Setting:
    rates = tuple(chance.choice((-FASTEST_PPM, 0, FASTEST_PPM)) for _ in range(3))
    offsets = tuple(chance.choice((-3_600, -7, 0, 1, 90)) for _ in range(3))
    return replace(
        setting,
        gateways=1,
        standbys=True,
        far_tracker=True,
        fenced=True,
        shared=True,
        lease_s=chance.choice((1.5, 2.0, 3.0)),
        rates_ppm=(rates[0], rates[1], rates[2]),
        offsets_s=(offsets[0], offsets[1], offsets[2]),
        late_ms=chance.choice((0, 4, 8, 20)),
    )


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
SHARED_FAULTS: Final = {
    "stop": 8,
    "cut off": 6,
    "take over": 6,
    "kill": 4,
    "terminate": 4,
    "ambush": 3,
    "lead": 3,
    "log slow": 2,
    "order": 2,
    "power": 2,
    **dict.fromkeys(("cut", "reset", "duplicates", "clock", "address", "linger", "stray"), 1),
    **dict.fromkeys(("flush", "flush rules", "flush queues", "outbox lost", "outbox full", "log full"), 1),
}
ORDERS: Final = ("release", "release", "revoke", "bar", "lift", "reserve", "freeze", "freeze all")
LASTING: Final = (
    *("kill", "stop", "ambush", "power", "cut", "cut off", "duplicates", "linger"),
    *("log full", "log busy", "log slow", "outbox lost", "outbox full"),
)


def _fault(  # noqa: C901, PLR0911, PLR0912 - one branch for each kind
    chance: random.Random, setting: Setting, kind: str
) -> Step:
    gateway, at_ns = _gateway(chance, setting), _time(chance, first_ns=SECOND_NS // 2)
    some_ns = chance.randrange(50, 5_000) * MILLISECOND_NS
    if setting.shared and chance.random() < 0.5:
        some_ns += round(setting.lease_s * SECOND_NS)
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
            worker = f"{gateway}-{STANDBY}" if setting.shared else _worker(chance, setting)
            return Step(at_ns, kind, (worker,))
        case "terminate":
            return Step(at_ns, kind, (_process(chance, setting),))
        case "power":
            return Step(at_ns, kind, (_host(chance, setting, gateway), some_ns))
        case "cut off":
            return Step(at_ns, kind, (_place(chance, setting, gateway), some_ns))
        case "lead":
            return Step(at_ns, kind, (gateway, chance.randrange(2), chance.randrange(2)))
        case "cut" | "log full" | "log busy" | "log slow" | "duplicates":
            return Step(at_ns, kind, (some_ns,))
        case "reset":
            return Step(at_ns, kind, ())
        case "flush" | "flush rules" | "flush queues":
            return Step(at_ns, kind, (_place(chance, setting, gateway),))
        case "outbox lost" | "outbox full":
            return Step(at_ns, kind, (_worker(chance, setting), some_ns))
        case "clock":
            step_ns = chance.choice((-86_400, -30, -5, -2, 2, 30, 86_400)) * SECOND_NS
            return Step(at_ns, kind, (_host(chance, setting, gateway), step_ns))
        case "address":
            return Step(at_ns, kind, (gateway, chance.choice((2, 2, 3, 0)), chance.random() < 0.5))
        case "stray":
            return Step(at_ns, kind, (_place(chance, setting, gateway), chance.randrange(HOSTS)))
        case "linger":
            return Step(at_ns, kind, (_place(chance, setting, gateway), SECOND_NS + some_ns))
        case "order":
            return Step(at_ns, kind, (chance.choice(ORDERS), gateway, chance.randrange(HOSTS)))
        case _:
            raise ValueError(kind)


def _bait(chance: random.Random, fault: Step) -> Iterator[Step]:
    """A call that runs into a fault which shows only then."""
    if fault.what not in ("ambush", "linger"):
        return
    gateway = str(fault.words[0]).partition("-")[0].rstrip("x")
    brief = fault.what == "linger"
    at_ns = fault.at_ns + chance.randrange(50, 1_500) * MILLISECOND_NS
    for_ns = chance.randrange(20, 300 if brief else 6_000) * MILLISECOND_NS
    words = (gateway, chance.randrange(HOSTS), chance.choice(PEERS), CUSEEME, for_ns, brief)
    yield Step(at_ns, "call", words)


def _place(chance: random.Random, setting: Setting, gateway: str) -> str:
    places = places_of(setting, gateway)
    return chance.choice(places) if len(places) > 1 else gateway


def _host(chance: random.Random, setting: Setting, gateway: str) -> str:
    return chance.choice(("hub", *places_of(setting, gateway))) if setting.far_tracker else "hub"


def _worker(chance: random.Random, setting: Setting) -> str:
    if setting.shared:
        return f"{_gateway(chance, setting)}-{chance.choice((ACTIVE, ACTIVE, STANDBY))}"
    return f"{_gateway(chance, setting)}-{chance.choice('ab') if setting.standbys else 'a'}"


def _process(chance: random.Random, setting: Setting) -> str:
    return "tracker" if chance.random() < 0.45 else _worker(chance, setting)
