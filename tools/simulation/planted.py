# ruff: noqa: ANN401 - what is replaced knows its own types; a mistake has none
"""Bugs to be planted: does the simulation find what it is there to find?

Rule 1: each changes the real code by replacing one function of it for the time of a run; nothing in the real
code knows of it. Rule 2: each is a mistake that somebody could make, in one line or two.

Longer than other modules because it is a list.
"""

import re
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import Any, Final

import tracker.server
from rewriter import ruleset, service
from rewriter.effects import EndLease, RemoveStray, Submit, Verdict, Withdraw
from rewriter.gateway import Gateway
from rewriter.holding import Held
from rewriter.kernel import GatewayKernel
from rewriter.vocabulary import Element, Service
from tools.simulation.syscalls import replaced
from tracker import claims, ownership, restrictions, sessions, transitions
from tracker.client import TrackerClient
from tracker.conversation import Conversation
from tracker.events import ClockStepped
from tracker.instant import Instant
from tracker.machine import Batch, Machine, Seen
from tracker.messages import BindingView, ClaimPort, HeartbeatAcknowledged
from tracker.outbox import Outbox
from tracker.transitions import Decision

Change = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, slots=True)
class Bug:
    """`story`: the mistake, in a sentence; `caught_by`: a seed that shows it, tried first."""

    story: str
    change: Change
    caught_by: int


BUGS: Final[dict[str, Bug]] = {}


def bug(
    owner: object, name: str, caught_by: int, story: str
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers `make(original)`, named after the bug, that gives what stands for `owner.name`."""

    def register(make: Callable[..., Any]) -> Callable[..., Any]:
        def change() -> AbstractContextManager[object]:
            return replaced(owner, {name: make(vars(owner)[name])})

        BUGS[make.__name__.replace("_", "-")] = Bug(story, change, caught_by)
        return make

    return register


# --- the tracker ------------------------------------------------------------------------------------------


@bug(tracker.server.Server, "_append", 0, "The tracker answers, then appends.")
def reply_before_append(original: Callable[..., Any]) -> Callable[..., Any]:
    def append(self: Any, batch: Batch, *rest: object) -> None:
        self._send(batch)
        batch.frames.clear()
        original(self, batch, *rest)

    return append


@bug(tracker.server.Server, "_append", 182, "Records and answers are appended one after the other.")
def two_transactions(original: Callable[..., Any]) -> Callable[..., Any]:
    def append(self: Any, batch: Batch, *rest: object) -> None:
        if batch.answers and batch.records:
            original(self, Batch(records=batch.records), *rest)
            batch = replace(batch, records=[])
        original(self, batch, *rest)

    return append


@bug(Machine, "_repeat", 2, "A repeated message is decided again.")
def no_deduplication(_original: Callable[..., Any]) -> Callable[..., Any]:
    def repeat(self: Any, peer: object, request: Any) -> None:
        self._take(peer, request, [], self._now)

    return repeat


@bug(Machine, "__init__", 16, "After a restart a repeat gets just any answer.")
def answers_forgotten_at_restart(original: Callable[..., Any]) -> Callable[..., Any]:
    def initialise(self: Any, *words: Any, **rest: Any) -> None:
        rest["stored_answer"] = lambda *_: None
        original(self, *words, **rest)

    return initialise


@bug(Machine, "_take", 17, "Answers are forgotten when they are sent, not when they were seen.")
def answers_forgotten_too_early(original: Callable[..., Any]) -> Callable[..., Any]:
    def take(self: Any, peer: object, request: Any, *rest: object) -> None:
        original(self, peer, request, *rest)
        seen = Seen(request.worker, request.incarnation, request.sequence)
        self._batch.seen[request.worker] = seen

    return take


@bug(Machine, "recover", 3, "After a restart the tracker does not know how far it had heard each worker.")
def sequences_forgotten_at_restart(original: Callable[..., Any]) -> Callable[..., Any]:
    def recover(self: Any, records: object, _latest: object, *rest: object) -> object:
        return original(self, records, (), *rest)

    return recover


@bug(Machine, "_take", 14, "What can never come any more is not recorded.")
def hole_unreported(original: Callable[..., Any]) -> Callable[..., Any]:
    def take(self: Any, peer: object, request: object, _missed: object, now: Instant) -> None:
        original(self, peer, request, [], now)

    return take


@bug(Machine, "was_away", 2, "A tracker that did not listen lets leases end.")
def away_time_counted(_original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *_: None


@bug(ownership, "_start", 3, "After a restart leases go on as if the tracker had listened.")
def grace_forgotten(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *words: replace(original(*words), unlogged=())


@bug(sessions, "session_of", 52, "The tracker takes commands of any epoch.")
def epoch_unchecked_in_tracker(_original: Callable[..., Any]) -> Callable[..., Any]:
    def session(state: Any, _worker: str, gateway: str, _epoch: int) -> object:
        found = state.gateways.get(gateway)
        return None if found is None else found.session

    return session


@bug(claims, "_unfit", 22, "The tracker grants what was asked for long ago.")
def stale_claims_granted(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda state, worker, body, _age_ms: original(state, worker, body, 0)


@bug(ownership, "_look_at_clock", 32, "A clock that was put back is not recorded.")
def clock_step_unnoticed(_original: Callable[..., Any]) -> Callable[..., Any]:
    def look(_state: object, _now: Instant) -> tuple[tuple[ClockStepped, ...], tuple[()]]:
        return (), ()

    return look


@bug(claims, "claim", 0, "A resource that is held is given to whoever asks.")
def holder_unchecked(original: Callable[..., Any]) -> Callable[..., Any]:
    def claim(state: Any, worker: str, body: ClaimPort, *rest: Any) -> Decision:
        held, state.held = state.held, {}
        try:
            decision: Decision = original(state, worker, body, *rest)
        finally:
            state.held = held
        return decision

    return claim


@bug(restrictions, "denying", 51, "What an operator forbids is granted all the same.")
def forbidden_claims_granted(_original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *_words: None


@bug(sessions, "_withdrawals", 176, "An order that got lost on its way to the worker is not given again.")
def orders_given_once(_original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *_words: iter(())


# --- outbox and talk --------------------------------------------------------------------------------------


@bug(Outbox, "messages", 17, "A worker that starts does not look into its outbox.")
def outbox_forgotten_at_crash(_original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda _self: []


@bug(TrackerClient, "_send_due", 49, "A message leaves the outbox when it is sent, not when it is answered.")
def outbox_cleared_when_sent(original: Callable[..., Any]) -> Callable[..., Any]:
    def send_due(self: Any, now: Instant) -> None:
        original(self, now)
        kept = [sequence for sequence, _, _ in self._outbox.messages()]
        waiting = self._conversation._pending  # noqa: SLF001 - the mistake would be made in there
        sent = [number for number, it in waiting.items() if it.sent_ns]
        if gone := [number for number in kept if number in sent]:
            self._outbox.remove(gone)

    return send_due


@bug(Conversation, "due", 0, "What was not answered is not sent again.")
def never_sent_again(original: Callable[..., Any]) -> Callable[..., Any]:
    def due(self: Any, now: Instant) -> Iterator[tuple[int, bytes]]:
        messages: Iterator[tuple[int, bytes]] = original(self, Instant(now.wall_ns, 0))
        return messages

    return due


# --- the worker -------------------------------------------------------------------------------------------


@bug(service.Worker, "_attempt", 0, "The port is given when it is asked for, before the record.")
def install_before_record(original: Callable[..., Any]) -> Callable[..., Any]:
    def attempt(self: Any, effect: object) -> Iterable[object]:
        match effect:
            case Submit(ClaimPort() as claim) if claim.public_address is not None:
                holder, public = map(IPv4Address, (claim.holder, claim.public_address))
                self._kernel.tables.apply(
                    ruleset.install(
                        self._kernel.rules, self._kernel.epoch, Element(claim.service, holder, public)
                    )
                )
            case _:
                pass
        brought_about: Iterable[object] = original(self, effect)
        return brought_about

    return attempt


@bug(service.Worker, "_change_kernel", 0, "The worker says that a binding is gone, then removes it.")
def withdrawn_too_early(original: Callable[..., Any]) -> Callable[..., Any]:
    def change(self: Any, effect: object) -> Iterable[object]:
        match effect:
            case Withdraw(binding, element):
                now = vars(service)["read_clock"]()
                self._carry_out(self._gateway.withdrawn(binding, now))
                self._kernel.withdraw(element)
                return ()
            case _:
                brought_about: Iterable[object] = original(self, effect)
                return brought_about

    return change


@bug(Gateway, "_granted", 91, "A grant that nobody waits for any more is ignored.")
def late_grant_ignored(original: Callable[..., Any]) -> Callable[..., Any]:
    def granted(self: Any, request: ClaimPort, view: BindingView, now: Instant) -> Iterable[object]:
        key = (request.service, IPv4Address(request.holder))
        return original(self, request, view, now) if key in self._claims else ()

    return granted


@bug(Gateway, "_refused", 0, "A refused claim keeps the holder's time from running out.")
def refused_claims_keep_the_holder(original: Callable[..., Any]) -> Callable[..., Any]:
    def refused(self: Any, request: ClaimPort, **rest: object) -> Iterator[object]:
        for held in self._held.values():
            if held.expires_ns is not None:
                held.expires_ns += held.idle_ns
        yield from original(self, request, **rest)

    return refused


@bug(Gateway, "_refused", 1, "The packet of a refused claim gets no verdict.")
def verdict_forgotten(original: Callable[..., Any]) -> Callable[..., Any]:
    def refused(self: Any, request: ClaimPort, **rest: object) -> Iterator[object]:
        yield from (it for it in original(self, request, **rest) if not isinstance(it, Verdict))

    return refused


@bug(Gateway, "_compare", 102, "Elements without a binding are left in the kernel.")
def strays_kept(original: Callable[..., Any]) -> Callable[..., Any]:
    def compare(self: Any, *words: object) -> Generator[object, None, object]:
        effects = original(self, *words)
        while True:
            try:
                effect = next(effects)
            except StopIteration as end:
                return end.value
            if not isinstance(effect, RemoveStray):
                yield effect

    return compare


@bug(Gateway, "restored", 11, "What somebody flushed is restored, and nobody hears of it.")
def restored_in_silence(original: Callable[..., Any]) -> Callable[..., Any]:
    def restored(self: Any, *words: object) -> Iterator[object]:
        list(original(self, *words))
        yield from ()

    return restored


@bug(Gateway, "withdrawn", 632, "Connections are deleted once, not a second time.")
def second_purge_left_out(original: Callable[..., Any]) -> Callable[..., Any]:
    def withdrawn(self: Any, *words: object, **rest: object) -> Iterator[object]:
        yield from original(self, *words, **rest)
        self._purges.clear()

    return withdrawn


@bug(Gateway, "_ordered", 19, "The worker does not listen to an operator's orders.")
def orders_ignored(_original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *_words: ()


@bug(Gateway, "_leave_old_addresses", 157, "Bindings of an address that the gateway lost go on.")
def old_address_kept(_original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda _self: ()


@bug(Held, "is_over", 2, "Hanging up on one peer ends the calls with all.")
def hang_up_ends_all(_original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda _self, _answering: True


# --- the kernel -------------------------------------------------------------------------------------------


@bug(ruleset, "fence", 52, "The kernel takes batches of any epoch.")
def epoch_unchecked_in_kernel(_original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *_words, **_rest: ""


@bug(GatewayKernel, "_forget", 0, "Connections are left when a binding ends.")
def conntrack_left(_original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *_: None


@bug(GatewayKernel, "_forget_claimed_tuples", 0, "Connections to nobody keep a new holder's tuples.")
def claimed_tuples_left(_original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *_: None


@bug(GatewayKernel, "_left_s", 107, "A worker that starts adopts nothing of what the kernel holds.")
def nothing_adopted(_original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *_: None


@bug(GatewayKernel, "_left_s", 96, "Whoever is adopted may be silent for the whole idle time again.")
def adoption_lengthens_silence(original: Callable[..., Any]) -> Callable[..., Any]:
    def left_s(self: Any, element: Element, service: Service) -> float | None:
        return None if original(self, element, service) is None else 1e6

    return left_s


@bug(ruleset, "keep_alive", 86, "The element that says that a worker lives is made once, for an hour.")
def alive_for_ever(original: Callable[..., Any]) -> Callable[..., Any]:
    def keep_alive(epoch: int) -> str:
        batch: str = original(epoch)
        return batch.replace("{ udp }", "{ udp timeout 3600s }")

    return keep_alive


@bug(
    ruleset, "half_ms", 153, "A fenced kernel's lease is as long as the tracker's, from when its answer came."
)
def whole_lease_in_kernel(_original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda lease_ms: lease_ms


@bug(ruleset, "offer", 354, "An acknowledgement counts, however late it comes.")
def offer_without_end(original: Callable[..., Any]) -> Callable[..., Any]:
    def offer(epoch: int, nonce: int, lease_ms: int) -> str:
        batch: str = original(epoch, nonce, lease_ms)
        return re.sub(r"timeout \d+ms", "timeout 3600s", batch)

    return offer


# --- two machines with one address ------------------------------------------------------------------------


@bug(sessions, "_may_replace", 0, "A take-over on another machine does not wait for the lease.")
def taken_over_at_once(_original: Callable[..., Any]) -> Callable[..., Any]:
    def may_replace(session: Any, worker: str, body: Any) -> bool:
        return bool(body.take_over or session.worker == worker)

    return may_replace


@bug(transitions, "moved_epoch", 0, "Bindings that move to another machine are taken to be there.")
def move_unnoticed(_original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *_words: 0


@bug(GatewayKernel, "adopt", 126, "A machine that comes back goes by what its old table holds.")
def old_table_believed(original: Callable[..., Any]) -> Callable[..., Any]:
    def adopt(self: Any, epoch: int, wanted: object, moved_epoch: int = 0) -> object:
        return original(self, epoch, wanted, 0 if self.tables.epoch() else moved_epoch)

    return adopt


@bug(Gateway, "close_session", 0, "A session is closed, and its kernel's lease runs on.")
def lease_left_behind(original: Callable[..., Any]) -> Callable[..., Any]:
    def close_session(self: Any) -> Iterator[object]:
        yield from (it for it in original(self) if not isinstance(it, EndLease))

    return close_session


@bug(ruleset, "render", 0, "A new table forwards before its first heartbeat was acknowledged.")
def born_with_a_lease(original: Callable[..., Any]) -> Callable[..., Any]:
    def render(*words: Any, **rest: Any) -> str:
        batch: str = original(*words, **rest)
        lasting = ", ".join(f"{protocol} timeout 1s" for protocol in ruleset.LEASED.split(", "))
        return batch.replace("set lease { type inet_proto;", f"set lease {{ elements = {{ {lasting} }};")

    return render


@bug(ruleset, "renew", 137, "An acknowledgement makes a lease, also when its offer has run out.")
def late_acknowledgement_taken(original: Callable[..., Any]) -> Callable[..., Any]:
    def renew(epoch: int, nonce: int, lease_ms: int) -> str:
        batch: str = original(epoch, nonce, lease_ms)
        return re.sub(r"delete element ip porthold offered .*\n", "", batch)

    return renew


@bug(Gateway, "receive_answer", 137, "An acknowledgement counts for the last heartbeat, whichever it is for.")
def any_acknowledgement_taken(original: Callable[..., Any]) -> Callable[..., Any]:
    def receive(self: Any, request: object, reply: Any, *rest: Any, **more: Any) -> Iterator[object]:
        if isinstance(reply, HeartbeatAcknowledged):
            reply = replace(reply, nonce=self._nonce)
        brought_about: Iterator[object] = original(self, request, reply, *rest, **more)
        return brought_about

    return receive
