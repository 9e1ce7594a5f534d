"""Is a history linearizable? Wing and Gong's search, with Lowe's memory of what was tried.

Rule: nothing of the tracker's code is used here; what a tracker should do is `GatewayModel`, written from the
design alone. (Nobody keeps such a checker for Python: Porcupine is Go, Knossos Clojure.)

J. M. Wing, C. Gong: Testing and verifying concurrent objects (1993). G. Lowe: Testing for linearizability
(2017).
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

S = TypeVar("S", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Operation:
    """`action` with its `result`, None if nobody heard one: then it may have happened, at any time, or never.

    `called_ns`, `returned_ns`: one clock's, for all.
    """

    worker: str
    action: tuple[object, ...]
    result: tuple[object, ...] | None
    called_ns: int
    returned_ns: int | None


class Model(Protocol[S]):
    """A sequential object."""

    initial: S

    def step(self, state: S, operation: Operation) -> Iterable[S]:
        """The states that the operation, with its result, may lead to: none if it can't be so here."""


def is_linearizable(history: Sequence[Operation], model: Model[S]) -> bool:
    """Whether some order of the operations, true to their times, is a run of the model."""
    operations = sorted(history, key=lambda it: it.called_ns)
    known = [it.result is not None for it in operations]
    pending = sum(1 << index for index, needed in enumerate(known) if needed)
    everything = (1 << len(operations)) - 1
    tried: set[tuple[int, Hashable]] = set()
    stack: list[tuple[int, S]] = [(everything, model.initial)]
    while stack:
        left, state = stack.pop()
        if not left & pending:
            return True
        if (left, state) in tried:
            continue
        tried.add((left, state))
        for index in candidates(operations, left):
            rest = left & ~(1 << index)
            stack.extend((rest, following) for following in model.step(state, operations[index]))
    return False


def candidates(operations: Sequence[Operation], left: int) -> list[int]:
    """Of those that are left: whichever can come next, because none of the others ended before it began."""
    found: list[int] = []
    first_return_ns: int | None = None
    while left:
        index = (left & -left).bit_length() - 1
        left &= left - 1
        operation = operations[index]
        if first_return_ns is not None and operation.called_ns > first_return_ns:
            break  # in the order of their calls: nor can any later one
        found.append(index)
        returned_ns = operation.returned_ns
        if returned_ns is not None and (first_return_ns is None or returned_ns < first_return_ns):
            first_return_ns = returned_ns
    return found


# --- a gateway at the tracker -----------------------------------------------------------------------------


UNKNOWN = -1
"""The number of a binding that was made, if it was, for somebody who did not hear of it."""


@dataclass(frozen=True, slots=True)
class GatewayState:
    """`trusted`: the first epoch since another worker had one; `held`: (port, holder, binding)."""

    epoch: int = 0
    worker: str | None = None
    trusted: int = 0
    held: frozenset[tuple[str, str, int]] = frozenset()

    def with_held(self, port: str, holder: str, binding: int) -> "GatewayState":
        """The same, where it is certain that this is held."""
        others = frozenset(it for it in self.held if it[0] != port)
        return replace(self, held=others | {(port, holder, binding)})

    def of(self, port: str) -> tuple[str, int] | None:
        return next(((holder, binding) for name, holder, binding in self.held if name == port), None)


class GatewayModel:
    """One gateway: sessions with rising epochs, ports that one holder has at a time.

    Actions and results:
      ("open",)                    ("granted", epoch, held) · ("denied", worker)
      ("renew", epoch)             ("renewed",) · ("over",)
      ("claim", epoch, port, who)  ("granted", binding, holder) · ("held", binding, holder) · ("stale-epoch",)
      ("release", epoch, binding)  ("taken",)
    """

    initial = GatewayState()

    def step(self, state: GatewayState, operation: Operation) -> Iterable[GatewayState]:
        match operation.action:
            case ("open",):
                return self._open(state, operation)
            case ("renew", epoch):
                speaks = operation.result == ("renewed",)
                return [state] if speaks == self._speaks(state, operation.worker, epoch) else []
            case ("claim", epoch, str(port), str(holder)):
                return self._claim(
                    state, operation, self._speaks(state, operation.worker, epoch), port, holder
                )
            case ("release", int(epoch), int(binding)):
                if state.worker == operation.worker and state.trusted <= epoch <= state.epoch:
                    left = frozenset(it for it in state.held if it[2] != binding)
                    return [replace(state, held=left)]
                return [state]
            case _:
                raise ValueError(operation)

    @staticmethod
    def _speaks(state: GatewayState, worker: str, epoch: object) -> bool:
        return (state.worker, state.epoch) == (worker, epoch)

    @staticmethod
    def _open(state: GatewayState, operation: Operation) -> Iterable[GatewayState]:
        match operation.result:
            case ("denied", other):
                return [state] if other == state.worker != operation.worker else []
            case ("granted", int(epoch), frozenset() as held):
                told = {port: (holder, binding) for port, holder, binding in held}
                known = {port for port, _, _ in state.held}
                if epoch != state.epoch + 1 or told.keys() != known:
                    return []
                if not all(matches(state.of(port), *it) for port, it in told.items()):
                    return []
                state = replace(state, held=held)
            case None:
                epoch = state.epoch + 1
            case _:
                return []
        trusted = state.trusted if state.worker == operation.worker else epoch
        return [replace(state, epoch=epoch, worker=operation.worker, trusted=trusted)]

    @staticmethod
    def _claim(
        state: GatewayState, operation: Operation, speaks: bool, port: str, holder: str
    ) -> Iterable[GatewayState]:
        found = state.of(port)
        match operation.result:
            case None:
                # Whoever meets it later says which binding it was.
                free = speaks and found is None
                return [replace(state, held=state.held | {(port, holder, UNKNOWN)})] if free else []
            case ("granted", int(binding), str(granted)):
                if not speaks or granted != holder:
                    return []
                return (
                    [state.with_held(port, holder, binding)]
                    if matches(found, holder, binding, free=True)
                    else []
                )
            case ("held", int(binding), str(other)):
                met = speaks and other != holder and matches(found, other, binding)
                return [state.with_held(port, other, binding)] if met else []
            case ("stale-epoch",):
                return [] if speaks else [state]
            case _:
                return []


def matches(found: tuple[str, int] | None, holder: str, binding: int, *, free: bool = False) -> bool:
    """Whether a port's holder and binding are those that somebody was told; `free`: or nobody holds it."""
    if found is None:
        return free
    return found[0] == holder and found[1] in (binding, UNKNOWN)
