"""The checker itself: good histories pass, and each bad one is bad for one reason."""

import itertools

import pytest

from tests.crash.linearizability import GatewayModel, Operation, is_linearizable

NOTHING: frozenset[object] = frozenset()


def op(
    worker: str, action: tuple[object, ...], result: tuple[object, ...] | None, *at: int | None
) -> Operation:
    """`at`: when it was called, and when it returned."""
    called_ns, returned_ns = at
    assert called_ns is not None
    return Operation(worker, action, result, called_ns, returned_ns)


def opened(worker: str, epoch: int, at: int, *held: tuple[str, str, int]) -> Operation:
    return op(worker, ("open",), ("granted", epoch, frozenset(held)), at, at + 1)


def granted(worker: str, epoch: int, holder: str, binding: int, *at: int) -> Operation:
    return op(worker, ("claim", epoch, "1", holder), ("granted", binding, holder), at[0], (*at, at[0] + 1)[1])


def held(worker: str, epoch: int, holder: str, at: int) -> Operation:
    """Refused, because Ann has it by binding 7."""
    return op(worker, ("claim", epoch, "1", holder), ("held", 7, "ann"), at, at + 1)


def released(worker: str, epoch: int, binding: int, at: int) -> Operation:
    return op(worker, ("release", epoch, binding), ("taken",), at, at + 1)


def renewed(worker: str, epoch: int, at: int, result: str = "renewed") -> Operation:
    return op(worker, ("renew", epoch), (result,), at, at + 1)


GOOD = {
    "one after the other": [
        opened("a", 1, 0),
        granted("a", 1, "ann", 7, 10),
        held("a", 1, "bob", 20),
        released("a", 1, 7, 30),
        granted("a", 1, "bob", 8, 40),
    ],
    "at the same time, either way round": [
        opened("a", 1, 0),
        granted("a", 1, "ann", 7, 10, 30),
        op("a", ("claim", 1, "1", "bob"), ("held", 7, "ann"), 5, 40),
    ],
    "a claim nobody heard of, met by another": [
        opened("a", 1, 0),
        op("a", ("claim", 1, "1", "ann"), None, 10, None),
        held("a", 1, "bob", 20),
        granted("a", 1, "ann", 7, 30),
    ],
    "a claim nobody heard of, which never was": [
        opened("a", 1, 0),
        op("a", ("claim", 1, "1", "ann"), None, 10, None),
        granted("a", 1, "bob", 7, 20),
    ],
    "a take-over": [
        opened("a", 1, 0),
        granted("a", 1, "ann", 7, 10),
        opened("b", 2, 20, ("1", "ann", 7)),
        renewed("a", 1, 30, "over"),
        op("a", ("claim", 1, "1", "bob"), ("stale-epoch",), 40, 41),
        released("a", 1, 7, 50),
        held("b", 2, "bob", 60),
    ],
    "a session nobody heard of": [opened("a", 1, 0), op("b", ("open",), None, 10, None), opened("a", 3, 20)],
    "denied while another has it": [opened("a", 1, 0), op("b", ("open",), ("denied", "a"), 10, 11)],
}
BAD = {
    "two holders": [opened("a", 1, 0), granted("a", 1, "ann", 7, 10), granted("a", 1, "bob", 8, 20)],
    "two bindings of one holder": [
        opened("a", 1, 0),
        granted("a", 1, "ann", 7, 10),
        granted("a", 1, "ann", 8, 20),
    ],
    "refused for a holder who was gone": [
        opened("a", 1, 0),
        granted("a", 1, "ann", 7, 10),
        released("a", 1, 7, 20),
        held("a", 1, "bob", 30),
    ],
    "refused before anybody held": [
        opened("a", 1, 0),
        held("a", 1, "bob", 10),
        granted("a", 1, "ann", 7, 20),
    ],
    "an acknowledged grant is forgotten": [
        opened("a", 1, 0),
        granted("a", 1, "ann", 7, 10),
        opened("a", 2, 20),
        granted("a", 2, "bob", 7, 30),
    ],
    "one epoch twice": [opened("a", 1, 0), opened("b", 1, 10)],
    "an epoch left out": [opened("a", 1, 0), opened("a", 3, 10)],
    "an old epoch's claim is granted": [opened("a", 1, 0), opened("b", 2, 10), granted("a", 1, "ann", 7, 20)],
    "an old epoch is renewed": [opened("a", 1, 0), opened("b", 2, 10), renewed("a", 1, 20)],
    "the one that has it is told that it is over": [opened("a", 1, 0), renewed("a", 1, 10, "over")],
    "somebody taken over still releases": [
        opened("a", 1, 0),
        granted("a", 1, "ann", 7, 10),
        opened("b", 2, 20, ("1", "ann", 7)),
        released("a", 1, 7, 30),
        granted("b", 2, "bob", 8, 40),
    ],
    "denied in the name of somebody who has it not": [
        opened("a", 1, 0),
        op("b", ("open",), ("denied", "c"), 10, 11),
    ],
    "granted to another than who asked": [
        opened("a", 1, 0),
        op("a", ("claim", 1, "1", "ann"), ("granted", 7, "bob"), 10, 11),
    ],
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_history_passes(name: str) -> None:
    assert is_linearizable(GOOD[name], GatewayModel())


@pytest.mark.parametrize("name", BAD)
def test_a_bad_history_does_not(name: str) -> None:
    assert not is_linearizable(BAD[name], GatewayModel())


def test_it_finds_the_one_order_among_all_and_knows_that_there_is_none() -> None:
    claims = [granted("a", 1, "ann", 7, at, 100) for at in range(10, 18)]
    assert is_linearizable([opened("a", 1, 0), *claims], GatewayModel())
    wrong = granted("a", 1, "bob", 8, 18, 100)
    assert not is_linearizable([opened("a", 1, 0), *claims, wrong], GatewayModel())


def test_the_order_in_which_a_history_is_written_down_is_no_matter() -> None:
    for order in itertools.permutations(GOOD["one after the other"]):
        assert is_linearizable(order, GatewayModel())
    for order in itertools.permutations(BAD["two holders"]):
        assert not is_linearizable(order, GatewayModel())
