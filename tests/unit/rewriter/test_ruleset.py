"""The table as text: facts that need no kernel, and one test that loads it into several."""

import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from itertools import pairwise, product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewriter import ruleset
from rewriter.probing import has_native_queue, most_speakers
from rewriter.vocabulary import (
    MARK_BITS,
    MOST_SERVICES,
    OPENED_INSIDE,
    OPENED_OUTSIDE,
    Element,
    Ports,
    Refusal,
    Ruleset,
    Service,
    numbered,
)

HOLDER = IPv4Address("192.168.1.10")
OTHER = IPv4Address("192.168.1.11")
PUBLIC = IPv4Address("203.0.113.1")
CUSEEME = Service(
    name="cuseeme",
    number=1,
    control=(Ports("udp", 7648, 7648),),
    forward=(Ports("udp", 7648, 7649), Ports("tcp", 7648, 7649), Ports("udp", 24032, 24032)),
    idle_s=300.0,
    rewrites=True,
)
WHITE_PINE = Service("white-pine", 2, (Ports("tcp", 1720, 1720),), (Ports("tcp", 1720, 1729),), 60.5, False)
RULES = Ruleset(
    lan=("br0",),
    wan=("eth0",),
    services=(CUSEEME,),
    mark_mask=0x3F000000,
    claim_queue=17648,
    talk_queue=17649,
    native_queue=False,
)
HELD = Element("cuseeme", HOLDER, PUBLIC)
masks = st.integers(0, 32 - MARK_BITS).map(lambda shift: ((1 << MARK_BITS) - 1) << shift)


def batches(rules: Ruleset, epoch: int) -> dict[str, str]:
    """Everything after the first batch."""
    service = rules.services[0]
    held = Element(service.name, HOLDER, PUBLIC)
    name = service.label
    standing = [
        (f"{name}_holders", str(HOLDER)),
        (f"{name}_outbound", str(HOLDER)),
        (f"{name}_inbound", str(PUBLIC)),
    ]
    return {
        "install": ruleset.install(rules, epoch, held),
        "withdraw": ruleset.withdraw(epoch, service, standing),
        "refuse": ruleset.refuse(epoch, service, OTHER),
        "settle": ruleset.settle(epoch, service, OTHER),
        "keep_alive": ruleset.keep_alive(epoch),
    }


def fenced_batches(epoch: int) -> dict[str, str]:
    """Those that need a lease to be told about."""
    return {
        "offer": ruleset.offer(epoch, 5, 10_000),
        "renew": ruleset.renew(epoch, 5, 10_000),
        "end_lease": ruleset.end_lease(epoch),
    }


# --- text -------------------------------------------------------------------------------------------------


def test_the_same_input_renders_the_same_text() -> None:
    other = replace(HELD, service="white-pine", holder=OTHER, left_s=1.5)
    both = replace(RULES, services=(CUSEEME, WHITE_PINE))
    again = Ruleset(
        both.lan,
        both.wan,
        (replace(CUSEEME), replace(WHITE_PINE)),
        both.mark_mask,
        17648,
        17649,
        native_queue=False,
    )
    first = ruleset.render(both, 7, [HELD, other], replaces=6)
    assert ruleset.render(again, 7, [replace(HELD), replace(other)], replaces=6) == first


@pytest.mark.parametrize("batch", [*batches(RULES, 7).values(), *fenced_batches(7).values()])
def test_every_batch_begins_with_its_own_epoch(batch: str) -> None:
    lines = batch.splitlines()
    assert lines[:2] == ["delete element ip porthold epoch { 7 }", "add element ip porthold epoch { 7 }"]
    assert len(lines) > 2


def test_a_table_is_replaced_only_where_the_epoch_is_the_one_that_was_seen() -> None:
    lines = ruleset.render(RULES, 7, [], replaces=4).splitlines()
    assert lines[0] == "delete element ip porthold epoch { 4 }"
    assert lines[2] == "delete table ip porthold"
    assert "set epoch { type mark; elements = { 7 }; }" in "\n".join(lines)


def test_a_first_table_is_created_so_that_a_standing_one_refuses_it() -> None:
    assert ruleset.render(RULES, 1, [], replaces=None).startswith("create table ip porthold\n")


@given(mask=masks, services=st.integers(1, MOST_SERVICES))
def test_all_marks_lie_within_the_mask(mask: int, services: int) -> None:
    made = tuple(
        Service(f"s{n}", n, (Ports("udp", n, n),), (Ports("udp", 100 + n, 100 + n),), 1.0, n % 2 == 0)
        for n in range(1, services + 1)
    )
    rules = replace(RULES, services=made, mark_mask=mask, native_queue=True)
    text = ruleset.render(rules, 1, [], replaces=None)
    for kind, operation, number in re.findall(r"(meta|ct) mark set \1 mark ([|&]) (0x[0-9a-f]+)", text):
        value = int(number, 16)
        own = value if operation == "|" else ~value & 0xFFFFFFFF
        assert own, f"{kind} mark {operation} {number}"
        assert own & ~mask == 0, f"{kind} mark {operation} {number}"
    for kept, added in re.findall(r"ct mark set ct mark & (0x[0-9a-f]+) \| (0x[0-9a-f]+)", text):
        assert int(kept, 16) == ~mask & 0xFFFFFFFF
        assert int(added, 16) & ~mask == 0
    for compared in re.findall(r"mark & (0x[0-9a-f]+) (?:==|!=|vmap|\{)", text):
        assert int(compared, 16) & ~mask == 0


@given(mask=masks)
def test_each_service_and_side_has_a_connection_mark_of_its_own(mask: int) -> None:
    rules = replace(RULES, mark_mask=mask)
    marks = [
        rules.connection_mark(replace(CUSEEME, number=number), opened)
        for number in range(1, MOST_SERVICES + 1)
        for opened in (OPENED_INSIDE, OPENED_OUTSIDE)
    ]
    assert len({*marks, 0}) == 2 * MOST_SERVICES + 1


port_ranges = st.builds(
    lambda protocol, first, length: Ports(protocol, first, min(65535, first + length)),
    st.sampled_from(["udp", "tcp"]),
    st.integers(1, 400),
    st.integers(0, 30),
)


@given(control=st.lists(port_ranges, max_size=5), forward=st.lists(port_ranges, max_size=8))
def test_ports_are_merged_into_ranges_that_neither_touch_nor_change(
    control: list[Ports], forward: list[Ports]
) -> None:
    def spread(ranges: list[Ports]) -> set[tuple[str, int]]:
        return {(one.protocol, port) for one in ranges for port in range(one.first, one.last + 1)}

    merged = list(replace(CUSEEME, control=tuple(control), forward=tuple(forward)).ports())
    assert spread(merged) == spread([*control, *forward])
    for one, next_one in pairwise(merged):
        assert one.protocol != next_one.protocol or one.last + 1 < next_one.first


def test_a_name_with_hyphens_makes_identifiers_without() -> None:
    rules = replace(RULES, services=(WHITE_PINE,))
    text = ruleset.render(rules, 1, [], replaces=None) + "".join(batches(rules, 1).values())
    assert "white_pine_holders" in text
    assert "white-pine" not in text


def test_without_the_kernels_own_queue_statement_there_is_none() -> None:
    queue = re.compile(r"\bqueue (num|flags)")
    assert not queue.search(ruleset.render(RULES, 1, [], replaces=None))
    assert queue.search(ruleset.render(replace(RULES, native_queue=True), 1, [], replaces=None))


def test_only_the_open_continue_queue_is_bypassed_when_nobody_reads_it() -> None:
    text = ruleset.render(replace(RULES, native_queue=True), 1, [], replaces=None)
    assert re.findall(r"queue .*", text) == ["queue num 17648", "queue flags bypass to 17649"]


def test_a_service_without_payloads_of_its_own_is_not_rewritten() -> None:
    text = ruleset.render(replace(RULES, services=(WHITE_PINE,)), 1, [], replaces=None)
    assert "vmap" not in text
    assert "goto talk" not in text


@pytest.mark.parametrize(
    ("left_s", "expires"),
    [(None, None), (12.5, "12500ms"), (0.0, "1ms"), (-3.0, "1ms"), (9_999.0, "300000ms")],
)
def test_an_adopted_binding_keeps_the_silence_it_had(left_s: float | None, expires: str | None) -> None:
    text = ruleset.render(RULES, 1, [replace(HELD, left_s=left_s)], replaces=None)
    (element,) = re.findall(rf"cuseeme_holders .*elements = \{{ {HOLDER}([^,}}]*)\}}", text)
    assert element.strip() == ("" if expires is None else f"timeout 300000ms expires {expires}")


def test_without_rewriting_in_the_kernel_nothing_asks_for_what_older_kernels_lack() -> None:
    rules = replace(RULES, rewrites_in_kernel=False)
    text = ruleset.render(rules, 1, [HELD], replaces=None) + "".join(batches(rules, 1).values())
    assert "@ih" not in text
    assert "vmap" not in text
    assert "@ih" in ruleset.render(RULES, 1, [HELD], replaces=None)


def test_without_rewriting_in_the_kernel_no_packet_passes_the_worker_by() -> None:
    text = ruleset.render(replace(RULES, rewrites_in_kernel=False), 1, [], replaces=None)
    (talk,) = re.findall(r"chain talk \{(.*?)\}\n", text, re.DOTALL)
    assert talk.split("\n")[-2].strip() == "counter name never_queued drop"
    (verdict,) = re.findall(r"chain verdict \{(.*?)\n  \}", text, re.DOTALL)
    assert verdict.count("counter name never_queued drop") == 2
    assert "add @talk_rate" not in text
    assert "add @callers_talk_rate" not in text


def test_only_a_fenced_table_knows_of_leases() -> None:
    text = ruleset.render(RULES, 1, [HELD], replaces=None)
    assert "lease" not in text
    fenced = ruleset.render(replace(RULES, fenced=True), 1, [HELD], replaces=None)
    assert fenced.count("@lease") == 4  # a claim, a caller, what is connected, what the holder opens
    assert "elements" not in next(line for line in fenced.splitlines() if " set lease " in line)


@given(st.integers(100, 86_400_000))
def test_offer_and_lease_together_end_before_the_trackers_lease(lease_ms: int) -> None:
    times = [
        int(found)
        for batch in (ruleset.offer(1, 5, lease_ms), ruleset.renew(1, 5, lease_ms))
        for found in re.findall(r"timeout (\d+)ms", batch)
    ]
    slowest, fastest = 1 - 500e-6, 1 + 500e-6  # our kernel's clock and the tracker's, as adjtimex allows
    assert (max(times) + times[0]) / slowest + 2 * ruleset.TIMER_SLACK_MS <= lease_ms / fastest


def test_an_unknown_service_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        ruleset.install(RULES, 1, replace(HELD, service="nothing"))


# --- a real kernel ----------------------------------------------------------------------------------------


def configurations() -> Iterator[Ruleset]:
    speakers = most_speakers()
    natives = [False, True] if has_native_queue() else [False]
    many = tuple(
        Service(
            f"s-{n}", n, (Ports("udp", n, n + 1),), (Ports("tcp", 100 * n, 100 * n + 9),), 60.0, n % 3 == 0
        )
        for n in range(1, MOST_SERVICES + 1)
    )
    refusals: list[Refusal] = ["icmp", "drop", "pass"]
    for refusal, native, services in product(refusals, natives, [(CUSEEME,), (WHITE_PINE, CUSEEME), many]):
        yield replace(RULES, refusal=refusal, native_queue=native, services=services, most_speakers=speakers)
        yield replace(
            RULES, refusal=refusal, native_queue=native, services=services, rewrites_in_kernel=False
        )
    yield replace(RULES, services=(WHITE_PINE, CUSEEME), most_speakers=speakers, fenced=True)
    yield replace(RULES, lan=("br0", "eth1.10", "wlan0"), mark_mask=0x3F, most_speakers=0)
    yield replace(RULES, mark_mask=0x3F << 26, refused_s=0.1, most_speakers=speakers)


def load_all(directory: Path, texts: list[str]) -> None:
    """All of them, one transaction each, into the empty tables of one throw-away namespace."""
    files = []
    for number, text in enumerate(texts):
        files.append(directory / f"{number:03}.nft")
        files[-1].write_text(text)
    script = 'for file; do nft -f "$file" || { echo "$file" >&2; exit 1; }; done'
    words = ["unshare", "-n", "sh", "-c", script, "sh", *map(str, files)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_kernel_takes_the_table_and_every_batch_for_all_kinds_of_configuration(tmp_path: Path) -> None:
    texts: list[str] = []
    for epoch, rules in enumerate(configurations(), start=1):
        held = [
            Element(
                service.name, IPv4Address(f"192.168.1.{service.number}"), PUBLIC, left_s=0.05 * service.number
            )
            for service in rules.services[1:]
        ]
        texts.append(ruleset.render(rules, epoch, held, replaces=epoch - 1 if texts else None))
        texts += batches(rules, epoch).values()
        texts += fenced_batches(epoch).values() if rules.fenced else ()
    load_all(tmp_path, texts)


@pytest.mark.parametrize("name", batches(RULES, 7))
def test_a_kernel_refuses_the_batch_of_another_epoch_whole(name: str, tmp_path: Path) -> None:
    first = ruleset.render(RULES, 8, [HELD], replaces=None)
    load_all(tmp_path, [first])
    with pytest.raises(AssertionError, match="epoch"):
        load_all(tmp_path, [first, batches(RULES, 7)[name]])


@pytest.mark.parametrize("name", fenced_batches(7))
def test_a_kernel_refuses_the_lease_of_another_epoch_whole(name: str, tmp_path: Path) -> None:
    fenced = replace(RULES, fenced=True)
    first = [ruleset.render(fenced, 8, [HELD], replaces=None), ruleset.offer(8, 5, 10_000)]
    load_all(tmp_path, first)
    with pytest.raises(AssertionError, match="epoch"):
        load_all(tmp_path, [*first, fenced_batches(7)[name]])


@pytest.mark.parametrize("again", [5, 6], ids=["twice", "never offered"])
def test_a_kernel_takes_an_acknowledgement_only_once_and_only_for_an_offer(
    again: int, tmp_path: Path
) -> None:
    fenced = replace(RULES, fenced=True)
    first = [ruleset.render(fenced, 8, [HELD], replaces=None), *list(fenced_batches(8).values())[:2]]
    load_all(tmp_path, first)
    with pytest.raises(AssertionError, match="No such file"):
        load_all(tmp_path, [*first, ruleset.renew(8, again, 10_000)])


@pytest.mark.parametrize("replaces", [None, 7], ids=["creates", "replaces"])
def test_a_kernel_refuses_the_table_of_a_worker_that_did_not_see_the_standing_one(
    replaces: int | None, tmp_path: Path
) -> None:
    first = ruleset.render(RULES, 8, [HELD], replaces=None)
    with pytest.raises(AssertionError):
        load_all(tmp_path, [first, ruleset.render(RULES, 9, [], replaces=replaces)])


def test_services_keep_the_numbers_that_connections_carry_and_new_ones_get_free_ones() -> None:
    found = [replace(CUSEEME, name=name, number=number) for number, name in enumerate("abcd", start=1)]
    assert [it.number for it in numbered(found, {})] == [1, 2, 3, 4]
    assert [it.number for it in numbered(found, {"c": 1, "b": 3, "gone": 2})] == [2, 3, 1, 4]


def test_as_many_services_as_there_are_numbers_find_one_each() -> None:
    found = [replace(CUSEEME, name=f"s{n}", number=n) for n in range(1, MOST_SERVICES + 1)]
    numbers = {it.number for it in numbered(reversed(found), {"s1": MOST_SERVICES, "s2": 7})}
    assert numbers == set(range(1, MOST_SERVICES + 1))
