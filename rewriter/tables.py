"""Our table in nftables: batches in, and what it holds, read back.

Rule 1: a batch is one transaction: it is taken whole, or raises `KernelRefused` with the kernel's words.
Rule 2: how nft lists a thing is known here only; whoever asks gets addresses and seconds.

libnftables in the process takes a tenth of the time that the nft command needs (kernel-datapath.md).
"""

import json
import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address
from typing import Any

import nftables

from rewriter.command import KernelRefused
from rewriter.ruleset import TABLE
from rewriter.vocabulary import Key, Service, key_of

TIMED_ELEMENT = re.compile(
    r"([\w.]+(?: \. [\w.]+)*)(?: limit rate \S+ burst \d+ packets)?(?: timeout \S+)? expires (\w+)"
)
SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


class Tables:
    """nftables through libnftables, in the network namespace of the process that made it."""

    def __init__(self) -> None:
        self._nft = nftables.Nftables()
        self._nft.set_json_output(True)
        self._nft.set_numeric_proto_output(False)

    def apply(self, batch: str) -> None:
        """One atomic transaction; raises KernelRefused."""
        code, _, error = self._nft.cmd(batch)
        if code != 0:
            raise KernelRefused(first_lines(error))

    def elements(self, kind: str, name: str) -> list[Any]:
        """The elements of a set or map, as nft's JSON has them; raises KernelRefused if it isn't there."""
        code, output, error = self._nft.cmd(f"list {kind} ip {TABLE} {name}")
        if code != 0:
            raise KernelRefused(first_lines(error))
        for item in json.loads(output)["nftables"]:
            if kind in item:
                found: list[Any] = item[kind].get("elem", [])
                return found
        return []

    def counters(self) -> dict[str, tuple[int, int]]:
        """Our named counters: (packets, octets)."""
        code, output, error = self._nft.cmd(f"list counters table ip {TABLE}")
        if code != 0:
            raise KernelRefused(first_lines(error))
        found: dict[str, tuple[int, int]] = {}
        for item in json.loads(output)["nftables"]:
            if "counter" in item and item["counter"]["table"] == TABLE:
                counter = item["counter"]
                found[counter["name"]] = (counter["packets"], counter["bytes"])
        return found

    def reset_counter(self, name: str) -> None:
        """Let it begin at 0 again."""
        code, _, error = self._nft.cmd(f"reset counter ip {TABLE} {name}")
        if code != 0:
            raise KernelRefused(first_lines(error))

    def epoch(self) -> int | None:
        """The epoch of the table that stands there; None when there is none."""
        try:
            found = self.elements("set", "epoch")
        except KernelRefused:
            return None
        return int(found[0]) if found else None

    def numbers(self, services: Iterable[Service]) -> dict[str, int]:
        """The numbers by label, of those services that the table which stands there has."""
        found: dict[str, int] = {}
        for service in services:
            try:
                (found[service.label],) = map(int, self.elements("set", f"{service.label}_number"))
            except KernelRefused:
                continue
        return found

    def _text(self, kind: str, name: str) -> str:
        self._nft.set_json_output(False)
        code, output, error = self._nft.cmd(f"list {kind} ip {TABLE} {name}")
        self._nft.set_json_output(True)
        if code != 0:
            raise KernelRefused(first_lines(error))
        return str(output)

    def chain(self, name: str) -> str | None:
        """A chain of ours as text; None when it isn't there."""
        try:
            return self._text("chain", name)
        except KernelRefused:
            return None

    def remaining(self, name: str) -> dict[str, float]:
        """A set with timeouts: element → seconds left. Listed as text: JSON has whole seconds only."""
        return {key: seconds(left) for key, left in TIMED_ELEMENT.findall(self._text("set", name))}

    def timed(self, name: str) -> dict[Key, float]:
        """A set of addresses with timeouts: address → seconds left."""
        return {to_key(key.split(" . ")): left_s for key, left_s in self.remaining(name).items()}

    def pairs(self, name: str) -> set[IPv4Address]:
        """The addresses that stand in a set of equal pairs."""
        return {
            IPv4Address(element["concat"][0])
            for element in self.elements("set", name)
            if isinstance(element, dict) and "concat" in element
        }

    def mapped(self, name: str) -> dict[Key, IPv4Address]:
        """A map of addresses, with timeouts or without."""
        return {to_key(key_words(key)): IPv4Address(value) for key, value in self.elements("map", name)}


def seconds(text: str) -> float:
    """A time as nft writes it, like 4m59s956ms."""
    return sum(int(number) * SECONDS[unit] for number, unit in re.findall(r"(\d+)(ms|[dhms])", text))


def first_lines(text: str) -> str:
    return "; ".join(text.strip().splitlines()[:3]) or "refused without a word"


def key_words(element: object) -> list[str]:
    """The key of an element in nft's JSON, which wraps those that have a timeout."""
    if isinstance(element, dict) and "elem" in element:
        return key_words(element["elem"]["val"])
    return element["concat"] if isinstance(element, dict) else [str(element)]


def to_key(words: Sequence[str]) -> Key:
    address, *peer = map(IPv4Address, words)
    return key_of(address, peer[0] if peer else None)
