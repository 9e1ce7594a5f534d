"""The simulated kernel's tables: what nft's batches do to sets and maps, timeouts and the epoch included.

Rule 1: what is told here is the text that `rewriter/ruleset.py` renders, nothing else. Rule 2: a batch
happens whole or not at all. Rule 3: what is not understood is an error of the simulation, never passed
over. Chains are not interpreted: what they do to packets is in `netfilter.py`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from rewriter.ruleset import TABLE
from tools.simulation.world import MILLISECOND_NS

_SET: Final = re.compile(r"^  (set|map) (\w+) \{(.*)\}$", re.MULTILINE)
_ELEMENTS: Final = re.compile(r"elements = \{ (.*?) \}")
_TIMEOUT: Final = re.compile(r"[ ;]timeout (\d+)(ms|s);")
_COUNTER: Final = re.compile(r"^  counter (\w+) \{(?: packets (\d+) bytes (\d+))? \}$", re.MULTILINE)
_QUEUE: Final = re.compile(r"queue (?:num|flags bypass to) (\d+)")
_COMMAND: Final = re.compile(
    r"^(?:(create|delete|flush|list) (table) ip (\w+)|(add|delete) element ip (\w+) (\w+) \{ (.*) \}"
    r"|(flush) set ip (\w+) (\w+))$"
)
UNITS_NS: Final = {"ms": MILLISECOND_NS, "s": 1000 * MILLISECOND_NS}


class BatchRefused(Exception):
    """The kernel's words; nothing of the batch took effect."""


@dataclass(slots=True)
class Element:
    """`expires_ns` None: it stays; `ghost`: a packet brought it back after it had been deleted."""

    value: str | None
    expires_ns: int | None
    timeout_ns: int | None
    ghost: bool = False


@dataclass(slots=True)
class Set:
    """A set, or a map. Elements that have run out are as good as gone, and vanish when looked at."""

    kind: str
    timeout_ns: int | None
    elements: dict[str, Element] = field(default_factory=dict)

    def live(self, key: str, now_ns: int) -> Element | None:
        found = self.elements.get(key)
        if found is not None and found.expires_ns is not None and found.expires_ns <= now_ns:
            del self.elements[key]
            return None
        return found

    def living(self, now_ns: int) -> dict[str, Element]:
        for key in list(self.elements):
            self.live(key, now_ns)
        return self.elements

    def copy(self) -> "Set":
        return Set(self.kind, self.timeout_ns, dict(self.elements))

    def put(self, key: str, value: str | None, now_ns: int) -> Element:
        """A new element with the set's own timeout."""
        expires_ns = None if self.timeout_ns is None else now_ns + self.timeout_ns
        element = self.elements[key] = Element(value, expires_ns, self.timeout_ns)
        return element


@dataclass(slots=True)
class Table:
    """`queues`: the numbers that its own `queue` rules send to, claims first; empty without nft's queue."""

    sets: dict[str, Set]
    counters: dict[str, list[int]]
    queues: tuple[int, ...]
    refusal: str
    chains: bool = True

    def find(self, name: str, key: str, now_ns: int) -> Element | None:
        return self.sets[name].live(key, now_ns)

    def epoch(self) -> int | None:
        return next((int(key) for key in self.sets["epoch"].elements), None)

    def is_leased(self, now_ns: int) -> bool:
        """Whether it does anything: under fence only while its lease lasts."""
        return "lease" not in self.sets or self.find("lease", "udp", now_ns) is not None


class Tables:
    """All tables of a network namespace: ours, if it is there.

    `lasting_ns`: how long a timer of this kernel runs that is to run so long.
    """

    def __init__(self, clock: Callable[[], int], lasting_ns: Callable[[int], int] = lambda it: it) -> None:
        self.clock = clock
        self._lasting_ns = lasting_ns
        self.table: Table | None = None
        self.applied: Callable[[], object] = lambda: None
        self.changed: Callable[[bool], object] = lambda _whole: None

    # --- batches -----------------------------------------------------------------------------------------

    def apply(self, batch: str) -> None:
        """One transaction. BatchRefused."""
        head, found, body = batch.partition(f"\ntable ip {TABLE} {{\n")
        draft = _Draft(self.table, self.clock(), self._lasting_ns)
        if not found and head.startswith(f"table ip {TABLE} {{"):
            raise ValueError("a table that is neither created nor replaced")
        for line in head.splitlines():
            draft.carry_out(line)
        self.table = _read_table(body, self.clock(), self._lasting_ns) if found else draft.result()
        self.applied()
        self.changed(bool(found))

    def flush(self) -> None:
        """`nft flush ruleset`, by somebody."""
        self.table = None

    def flush_rules(self) -> None:
        """`nft flush table ip porthold`, by somebody: the sets stay, no rule does anything any more."""
        if self.table is not None:
            self.table.chains = False

    def find(self, name: str) -> Set:
        """A set or map of the table. BatchRefused when there is none."""
        if self.table is None or name not in self.table.sets:
            raise BatchRefused("Error: No such file or directory")
        return self.table.sets[name]


class _Draft:
    """A batch half-way: the sets it has touched are its own."""

    def __init__(self, table: Table | None, now_ns: int, lasting_ns: Callable[[int], int]) -> None:
        self._before = table
        self._now_ns = now_ns
        self._lasting_ns = lasting_ns
        self._sets: dict[str, Set] = {}
        self._deleted = table is None
        self._created = False

    def result(self) -> Table | None:
        if self._deleted or self._before is None:
            return None
        self._before.sets.update(self._sets)
        return self._before

    def carry_out(self, line: str) -> None:
        verb, table, name, change, _, element_set, text, flush, _, flushed = _command(line)
        if table:
            self._whole_table(verb, name)
        elif flush:
            self._set(flushed).elements.clear()
        elif change == "add":
            for part in text.split(", "):
                self._add(self._set(element_set), part)
        else:
            for part in text.split(", "):
                self._delete(self._set(element_set), part)

    def _whole_table(self, verb: str, name: str) -> None:
        if name != TABLE:
            raise ValueError(f"not our table: {name}")
        if verb == "create" and not self._deleted:
            raise BatchRefused("Error: Could not process rule: File exists")
        if verb == "delete":
            if self._deleted:
                raise BatchRefused("Error: Could not process rule: No such file or directory")
            self._deleted = True

    def _set(self, name: str) -> Set:
        if self._deleted or self._before is None or name not in self._before.sets:
            raise BatchRefused("Error: No such file or directory")
        if name not in self._sets:
            self._sets[name] = self._before.sets[name].copy()
        return self._sets[name]

    def _add(self, into: Set, text: str) -> None:
        key, value, lasts_ns = _parse(text)
        standing = into.live(key, self._now_ns)
        if standing is not None:
            if standing.value != value:
                raise BatchRefused("Error: Could not process rule: File exists")
            if lasts_ns is not None:
                # Newer kernels (6.18) take the new time, older ones leave the old: nobody may depend on it.
                raise ValueError(f"an element that is there is given another time: {text}")
            return
        element = into.put(key, value, self._now_ns)
        if lasts_ns is not None:
            element.expires_ns = self._now_ns + self._lasting_ns(lasts_ns)

    def _delete(self, out_of: Set, text: str) -> None:
        key, _, _ = _parse(text)
        if out_of.live(key, self._now_ns) is None:
            raise BatchRefused("Error: Could not process rule: No such file or directory")
        del out_of.elements[key]


@lru_cache(maxsize=4096)
def _parse(text: str) -> tuple[str, str | None, int | None]:
    """Key, value, and how long it is to last, of `KEY [timeout T expires T] [: VALUE]`."""
    words, _, value = text.partition(" : ")
    key, _, times = words.partition(" timeout ")
    lasts_ns = None
    if times:
        _, _, left = times.partition(" expires ")
        lasts_ns = _duration_ns(left or times)
    return key.strip(), value.strip() or None, lasts_ns


@lru_cache(maxsize=4096)
def _command(line: str) -> tuple[str, ...]:
    found = _COMMAND.match(line)
    if found is None:
        raise ValueError(f"not understood: {line!r}")
    return found.groups()


def _duration_ns(text: str) -> int:
    found = re.fullmatch(r"(\d+)(ms|s)", text.strip())
    if found is None:
        raise ValueError(f"no duration: {text!r}")
    return int(found[1]) * UNITS_NS[found[2]]


def _read_table(body: str, now_ns: int, lasting_ns: Callable[[int], int]) -> Table:
    sets: dict[str, Set] = {}
    for kind, name, inside in _SET.findall(body):
        timeout = _TIMEOUT.search(inside)
        made = Set(kind, None if timeout is None else lasting_ns(int(timeout[1]) * UNITS_NS[timeout[2]]))
        listed = _ELEMENTS.search(inside)
        for text in listed[1].split(", ") if listed else ():
            key, value, lasts_ns = _parse(text)
            element = made.put(key, value, now_ns)
            if lasts_ns is not None:
                element.expires_ns = now_ns + lasting_ns(lasts_ns)
        sets[name] = made
    refusal = "icmp" if "reject with icmp" in body else "drop"
    queues = tuple(int(number) for number in _QUEUE.findall(body))
    counters = {
        name: [int(packets or 0), int(octets or 0)] for name, packets, octets in _COUNTER.findall(body)
    }
    return Table(sets, counters, queues, refusal)
