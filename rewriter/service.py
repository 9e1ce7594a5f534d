"""The worker's loop: packets, answers and time into the machine, its effects out to kernel and tracker.

Rule 1: one thread; an effect is carried out before the next is asked for. Rule 2: whatever the kernel refuses
is either answered by the machine (an installation) or ends the worker: a gateway whose kernel says no is
better left as it is, with its calls in it, than guessed about. Rule 3: asked to end, it says what it has to
say and waits a little for the tracker to have heard it; what is unheard then stays in the outbox.

Longer than other modules because it is one loop: each part of it acts on the same worker, in this order.
"""

import logging
import socket
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from itertools import chain
from pathlib import Path

import zmq
from prometheus_client.core import Metric

from eventlog.note import KeyUnusable
from rewriter import kernel, metrics, packet, probing, queues
from rewriter.claims import TRACKER_SILENT_NS
from rewriter.command import KernelRefused
from rewriter.configuration import (
    QUEUES_BY_EPOCH,
    GatewayFile,
    GatewaySection,
    changed_settings,
    is_live,
    kernel_services,
    ruleset_for,
    with_live_settings,
)
from rewriter.effects import (
    Adopt,
    CheckPeers,
    Effect,
    EndLease,
    Install,
    Offer,
    Purge,
    Refuse,
    RemoveStray,
    Renew,
    Restore,
    Send,
    Settle,
    Stop,
    Submit,
    Verdict,
    Withdraw,
)
from rewriter.gateway import Gateway, Settings
from rewriter.kernel import GatewayKernel
from rewriter.queues import QueueBusy
from rewriter.upcalls import Upcalls, is_hairpinned
from rewriter.vocabulary import Ruleset
from tracker.client import Credentials, Keeper, OutboxFull, TrackerClient
from tracker.clock import read_clock
from tracker.configuration import ConfigurationError
from tracker.events import Ending
from tracker.exposition import Exposition
from tracker.journal import about
from tracker.messages import ClaimPort, CloseSession
from tracker.supervision import Supervision

log = logging.getLogger("porthold.rewriter")

LOOK_EVERY_NS = 500_000_000
"""How often kernel and state are compared; what somebody flushes is to be back within a second."""
LOOK_TAKES_NS = 500_000_000
"""A look that took longer is none; shorter than EXPIRY_SLACK_NS, which allows for it."""
SAY_EVERY_NS = 10_000_000_000
STOPPED_NS = 3_000_000_000
"""A look so late means that the process was stopped: what it knows may be over."""
LAST_WORDS_NS = 2_000_000_000
"""So long an ending worker waits for the tracker to hear it."""
OPEN_EPOCH = 0
"""The epoch of a table that no tracker has granted: it refuses every claim."""


class WorkerStopped(Exception):
    """The worker can't go on, and says why."""


class TakenOver(WorkerStopped):
    """The gateway is another worker's now: calls go on under that one's word, or end with our lease."""


Reread = Callable[[], GatewayFile]
"""The configuration as it is in the file now; ConfigurationError."""


def serve(file: GatewayFile, supervision: Supervision, reread: Reread, *, take_over: bool = False) -> None:
    """Work until it is told to end; raises WorkerStopped when that is not possible, MetricsUnusable.

    A standby that is taken over stands by again. It begins anew: whatever it knew may be over.
    """
    exposition = Exposition()
    with exposition.served(None if file.gateway is None else file.gateway.metrics):
        while True:
            try:
                Worker(file, take_over=take_over).run(supervision, reread, exposition)
            except TakenOver as over:
                if file.gateway is None or not file.gateway.standby:
                    raise
                log.warning("%s; standing by", over)
                take_over = False
            else:
                return


def _credentials(section: GatewaySection) -> Credentials | None:
    """What a tracker by TCP is shown. WorkerStopped: the key is not this worker's, or can't be used."""
    if section.key is None or section.tracker_key is None:
        return None
    try:
        credentials = Credentials.read(section.key, section.tracker_key, "worker")
    except KeyUnusable as error:
        raise WorkerStopped(str(error)) from error
    worker = section.worker or section.name
    if credentials.own.name != worker:
        raise WorkerStopped(
            f"{section.key} is the key of {credentials.own.name}, and this worker is called {worker};"
            f" make it one of its own (porthold keys worker FILE --name {worker}), or set gateway.worker"
        )
    return credentials


class Worker:
    """One gateway's rewriter process."""

    def __init__(self, file: GatewayFile, *, take_over: bool = False) -> None:
        section = file.gateway
        if section is None:
            raise ValueError("no [gateway] in the configuration")
        self._file, self._section = file, section
        self._native_queue = probing.has_native_queue()
        if not self._native_queue and (said := probing.has_iptables_queue()) is not None:
            raise WorkerStopped(
                f"this kernel has neither nft's queue nor iptables-nft's NFQUEUE target ({said});"
                " load nfnetlink_queue and xt_NFQUEUE (modprobe), or use a kernel that has them"
            )
        self._rewrites_in_kernel, self._datapath = choose_datapath(section.datapath)
        self._most_speakers = probing.most_speakers()
        settings = Settings(
            gateway=section.name,
            worker=section.worker or section.name,
            host=host_identity(),
            services=kernel_services(file),
            definitions=file.service_definitions(),
            claim_timeout_s=section.claim_timeout_s,
            take_over=take_over,
            standby=section.standby,
            fence=section.on_tracker_loss == "fence",
            more_public=tuple(map(IPv4Address, section.public_addresses[1:])),
        )
        self._files = {settings.revision: file}
        self._gateway = Gateway(settings, public_address(section))
        self._kernel = GatewayKernel(self._rules, read_clock)
        self._look_ns = 0
        self._say_ns = 0
        self._room = True
        self._opened = False
        self._said: dict[str, int] = {}
        self._denied: str | None = None
        self._began_ns = read_clock().monotonic_ns
        self._said_silent = False
        self._restored: Counter[str] = Counter()
        self._lost: dict[str, int] = {}
        self._poller = zmq.Poller()
        self._upcalls = Upcalls(
            self._poller, self._gateway.translate, rewrites_in_kernel=self._rewrites_in_kernel
        )
        self._client = TrackerClient.open(
            section.tracker or file.tracker.endpoint,
            worker=section.worker or section.name,
            credentials=_credentials(section),
            outbox=section.state_directory / f"{section.worker or section.name}.outbox",
            now=read_clock(),
            limit=section.outbox_messages,
            keeper=Keeper(
                section.state_directory / f"{section.worker or section.name}.checkpoint",
                file.tracker.verifying_keys,
            ),
        )
        self._poller.register(self._client.socket, zmq.POLLIN)

    def _rules(self, epoch: int) -> Ruleset:
        return self._rules_of(self._files[self._gateway.settings.revision], epoch)

    def _rules_of(self, file: GatewayFile, epoch: int) -> Ruleset:
        return ruleset_for(
            file,
            epoch,
            native_queue=self._native_queue,
            most_speakers=self._most_speakers,
            rewrites_in_kernel=self._rewrites_in_kernel,
        )

    def _public_address(self) -> IPv4Address | None:
        section = self._files[self._gateway.settings.revision].gateway
        return None if section is None else public_address(section)

    # --- the loop ----------------------------------------------------------------------------------------

    def run(self, supervision: Supervision, reread: Reread, exposition: Exposition) -> None:
        """Work until it is told to end; raises WorkerStopped when it can't go on."""
        self._poller.register(supervision.fileno(), zmq.POLLIN)
        try:
            self._stand_in()
            log.info(
                "gateway %s: datapath %s, queue by %s, tracker %s",
                self._section.name,
                self._datapath,
                "nft" if self._native_queue else "iptables-nft NFQUEUE",
                self._section.tracker or self._file.tracker.endpoint,
            )
            supervision.ready(self._summary())  # without a tracker, too: calls in progress are served
            while not supervision.stopping:
                if supervision.fileno() in self._round() and supervision.hear():
                    supervision.reloading()
                    self._reload(reread)
                    supervision.ready(self._summary())
                now = read_clock()
                supervision.turned(now.monotonic_ns, self._summary())
                exposition.tell(now, self._families)
            supervision.end("saying the last words")
        finally:
            self._close()

    def _summary(self) -> str:
        """For `systemctl status`."""
        gateway = self._gateway
        if gateway.epoch is None:
            return f"gateway {self._section.name}: waiting for the tracker; calls in progress go on"
        return f"gateway {self._section.name}: epoch {gateway.epoch}, {len(gateway.elements())} bindings"

    def _families(self) -> Iterator[Metric]:
        gateway, lengths = self._gateway, queues.queue_lengths()
        heard_ns = gateway.last_answer_ns
        standing = metrics.Standing(
            epoch=gateway.epoch,
            bindings=len(gateway.elements()),
            outbox=self._client.pending,
            silence_s=None if heard_ns is None else (read_clock().monotonic_ns - heard_ns) / 1e9,
            events=dict(gateway.counters),
            restored=dict(self._restored),
            upcalls=dict(self._upcalls.counted),
            waiting={name: lengths.get(number, 0) for name, number in self._upcalls.queues.items()},
            dropped=dict(self._lost),
        )
        return metrics.families(standing)

    def _reload(self, reread: Reread) -> None:
        try:
            wanted = reread()
        except ConfigurationError as error:
            for problem in error.problems:
                log.error(
                    "not reloaded, the old configuration stays: %s", problem, extra=about("reload-refused")
                )
            return
        changed = changed_settings(self._file, wanted)
        kept = ", ".join(key for key in changed if not is_live(key))
        if kept:
            log.warning(
                "changed, but only a restart brings it (calls go on meanwhile): %s",
                kept,
                extra=about("restart-needed", settings=kept),
            )
        taken = ", ".join(filter(is_live, changed))
        log.info(
            "configuration read again: %s",
            taken or "nothing to be taken" if changed else "nothing has changed",
            extra=about("reloaded", settings=taken),
        )
        if taken:
            self._take(with_live_settings(self._file, wanted))

    def _take(self, file: GatewayFile) -> None:
        """Go by the file: what the tracker need not hear of, now; the rest when it has answered."""
        revision = max(self._files)
        if self._rules_of(file, OPEN_EPOCH) != self._rules_of(self._file, OPEN_EPOCH):
            revision += 1
        self._file = file
        before = self._gateway.settings
        # What is older than what is in force is over; younger ones may still be asked for.
        self._files = {number: it for number, it in self._files.items() if number >= before.revision}
        self._files[revision] = file
        wanted = replace(
            before,
            services=kernel_services(file),
            definitions=file.service_definitions(),
            claim_timeout_s=(file.gateway or self._section).claim_timeout_s,
            revision=revision,
        )
        self._carry_out(self._gateway.reconfigure(wanted))

    def _round(self) -> Container[object]:
        """One turn; what was ready."""
        ready = dict(self._poller.poll(self._timeout_ms()))
        now = read_clock()
        for answer in self._client.receive(now):
            answered = self._gateway.receive_answer(
                answer.request, answer.reply, now, inherited=answer.inherited
            )
            self._carry_out(answered)
        self._see_outbox()
        # OpenContinues first: a hang-up that waits here frees the port for the claim behind it.
        for name in ("talks", "claims"):
            if self._upcalls.descriptor(name) in ready:
                self._receive(name)
        now = read_clock()
        self._client.tick(now)
        self._carry_out(self._gateway.handle_timer(now))
        if now.monotonic_ns >= self._look_ns:
            was_stopped = now.monotonic_ns - self._look_ns > STOPPED_NS and self._look_ns > 0
            self._look_ns = now.monotonic_ns + LOOK_EVERY_NS
            self._say_silence(now.monotonic_ns)
            self._say_counters(now.monotonic_ns)
            if not was_stopped:  # else somebody may have taken over: hear the tracker first
                self._look_at_kernel()
        return ready

    def _see_outbox(self) -> None:
        """Opens the session when there is room to ask for it, and says when there is none for claims."""
        room = self._client.room_for_claims
        if room != self._room:
            self._room = room
            log.warning(
                "the outbox has room again: claims are asked"
                if room
                else "the outbox is full: claims are refused until the tracker has answered what is in it"
            )
        if room and not self._opened:
            self._opened = True
            self._carry_out(self._gateway.open_session(read_clock()))
        drained = self._client.is_drained
        self._carry_out(self._gateway.see_outbox(read_clock(), room=room, drained=drained))

    def _say_silence(self, now_ns: int) -> None:
        """That the tracker does not answer, once, with what may be the reason; and that it does again."""
        heard_ns = self._gateway.last_answer_ns
        silent = now_ns - (self._began_ns if heard_ns is None else heard_ns) > TRACKER_SILENT_NS
        if silent == self._said_silent:
            return
        self._said_silent = silent
        tracker = self._section.tracker or self._file.tracker.endpoint
        if not silent:
            log.info("the tracker at %s answers again", tracker, extra=about("tracker-answers"))
            return
        by_key = (
            "; is our key authorised there, and is gateway.tracker_key its key?" if self._section.key else "?"
        )
        log.warning(
            "the tracker at %s does not answer: claims are refused. Does it run, can it be reached%s",
            tracker,
            by_key,
            extra=about("tracker-silent", tracker=tracker),
        )

    def _say_counters(self, now_ns: int) -> None:
        """What was counted since the last time and what the tracker has against us, once in ten seconds."""
        if now_ns < self._say_ns:
            return
        if self._client.denied != self._denied:
            self._denied, self._say_ns = self._client.denied, now_ns + SAY_EVERY_NS
            log.warning(
                "the tracker takes %s",
                "our word again" if self._denied is None else f"nothing of us: {self._denied}",
            )
        if self._gateway.counters == self._said:
            return
        self._say_ns = now_ns + SAY_EVERY_NS
        changed = {
            name: value for name, value in self._gateway.counters.items() if value != self._said.get(name)
        }
        self._said = dict(self._gateway.counters)
        log.info("counted: %s", ", ".join(f"{name} {value}" for name, value in sorted(changed.items())))

    def _timeout_ms(self) -> int:
        now_ns = read_clock().monotonic_ns
        deadlines = [self._gateway.next_deadline_ns(), self._look_ns]
        resend_ns = self._client.next_deadline()
        if resend_ns is not None:
            deadlines.append(resend_ns)
        return max(0, (min(deadlines) - now_ns + 999_999) // 1_000_000)

    def _look_at_kernel(self) -> None:
        if self._kernel.epoch is None:
            return
        try:
            if self._upcalls.queues:
                self._kernel.keep_alive()
        except KernelRefused as refusal:
            # The table is gone, or another epoch's: the view below says which, and what to do.
            log.debug("alive: %s", refusal)
        while True:
            now = read_clock()  # before the look: what it finds must be true then at the latest
            view = self._kernel.view(self._public_address())
            if read_clock().monotonic_ns - now.monotonic_ns <= LOOK_TAKES_NS:
                break  # else this process was stopped between two listings, which don't belong together
        self._lost = view.dropped
        self._carry_out(self._gateway.observe(view, now))

    # --- packets -----------------------------------------------------------------------------------------

    def _receive(self, name: str) -> None:
        arrived = self._upcalls.receive(name)
        if name == "claims" and arrived:
            # A holder that has just expired in the kernel must be seen as gone before somebody else's claim.
            self._look_at_kernel()
        for queued in arrived:
            number = self._upcalls.keep(queued)
            raw = queued.get_payload()
            now = read_clock()
            if name == "claims":
                flow, hardware = packet.parse_flow(raw), queued.get_hw()
                effects = (
                    self._gateway.receive_unreadable(number, packet.source_of(raw), now)
                    if flow is None
                    else self._gateway.receive_claim(
                        number,
                        flow,
                        hardware[:6] if hardware else None,
                        now,
                        room=self._client.room_for_claims,
                    )
                )
            else:
                hairpinned = is_hairpinned(queued, self._kernel.rules)
                effects = self._gateway.receive_talk(number, packet.parse(raw), now, hairpinned=hairpinned)
            self._carry_out(effects)

    # --- effects -----------------------------------------------------------------------------------------

    def _carry_out(self, effects: Iterable[Effect]) -> None:
        """All effects in their order; what an effect brings about comes right behind it."""
        waiting: deque[Iterable[Effect]] = deque([effects])
        while waiting:
            follow = [self._carry_out_one(effect) for effect in waiting.popleft()]
            waiting.extendleft(reversed(follow))

    def _carry_out_one(self, effect: Effect) -> Iterable[Effect]:
        """What the effect brings about; a table that was just flushed is restored before."""
        try:
            return self._attempt(effect)
        except KernelRefused as refusal:
            if not isinstance(effect, Adopt):
                self._stop_if_taken_over(refusal)
            if self._kernel.is_flushed():
                # Now, not behind what is waiting: when that is done, something else may be held.
                restored = self._change_kernel(Restore("table", self._gateway.elements()))
                return chain(restored, self._carry_out_one(effect))
            if isinstance(effect, Install):
                log.warning("binding %d not installed: %s", effect.binding, refusal)
                return self._gateway.install_failed(effect.binding, read_clock())
            raise

    def _stop_if_taken_over(self, refusal: KernelRefused) -> None:
        """Whether that is why the kernel refused: a batch of an epoch that is over fails as a whole."""
        standing = self._kernel.tables.epoch()
        if standing not in (None, self._kernel.epoch):
            ours = self._kernel.epoch
            raise TakenOver(
                f"the kernel's table is of epoch {standing}, ours is {ours}: taken over"
            ) from refusal

    def _stop_if_succeeded(self) -> None:
        """Whether the table that is missing is a newer worker's: it lives, so it will restore it.

        We may have been stopped while it took over, and then the table was flushed: nothing in it says so.
        """
        ours = self._kernel.epoch
        if ours is None or not self._kernel.is_flushed():
            return
        own = self._upcalls.queues.values()
        # Farther on the numbers have come round: a reader there may be an older one, still stopped.
        newer = self._kernel.other_reader(range(ours + 1, ours + QUEUES_BY_EPOCH // 2), own)
        if newer is not None:
            raise TakenOver(f"epoch {newer} is served by another worker, ours is {ours}: taken over")

    def _attempt(self, effect: Effect) -> Iterable[Effect]:
        match effect:
            case Verdict():
                self._upcalls.give(effect, self._kernel.rules)
            case Submit():
                try:
                    self._client.submit(effect.message, read_clock())
                except OutboxFull as full:
                    if isinstance(effect.message, ClaimPort):
                        return self._gateway.not_submitted(effect.message)
                    if isinstance(effect.message, CloseSession):
                        return ()  # then the tracker misses us when the lease is over
                    # Events are never dropped: better no worker, with the calls going on in the kernel.
                    raise WorkerStopped(f"the outbox is full: {full}") from full
            case Send():
                self._client.send(effect.message, read_clock())
            case Stop():
                raise TakenOver(effect.reason)
            case Install() | Withdraw() | CheckPeers() | Adopt() | Restore():
                return self._change_kernel(effect)
            case _:
                self._tell_kernel(effect)
        return ()

    def _tell_kernel(self, effect: Refuse | Settle | RemoveStray | Purge | Offer | Renew | EndLease) -> None:
        """What has no outcome."""
        match effect:
            case Refuse():
                self._kernel.refuse(effect.service, effect.host)
            case Settle():
                self._kernel.settle(effect.service, effect.host)
            case RemoveStray():
                self._kernel.remove_stray(effect.service, effect.holder, effect.public)
            case Purge():
                self._kernel.purge(effect.element)
            case Offer():
                self._kernel.offer(effect.nonce, effect.lease_ms)
            case Renew():
                self._kernel.renew(effect.nonce, effect.lease_ms)
            case EndLease():
                self._kernel.end_lease()

    def _change_kernel(self, effect: Install | Withdraw | CheckPeers | Adopt | Restore) -> Iterable[Effect]:
        """What the machine must hear the outcome of."""
        gateway = self._gateway
        match effect:
            case Install(binding, element):
                began = read_clock()  # if we are stopped now, its idle time runs in the kernel meanwhile
                self._kernel.install(element)
                said = about(
                    "installed", binding=binding, service=element.service, holder=str(element.holder)
                )
                log.info("%s holds %s", element.holder, element.service, extra=said)
                return gateway.installed(binding, began)
            case Withdraw(binding, element, reason):
                carried = self._kernel.withdraw(element, taken_over=reason is Ending.TAKE_OVER)
                said = about("withdrawn", binding=binding, service=element.service, reason=reason.value)
                log.info("%s no longer holds %s: %s", element.holder, element.service, reason, extra=said)
                return gateway.withdrawn(binding, read_clock(), carried)
            case CheckPeers(binding, element):
                return gateway.peers_seen(binding, self._kernel.live_peers(element))
            case Adopt():
                return self._adopt(effect)
            case Restore(what, elements):
                self._stop_if_succeeded()
                self._kernel.restore(elements)
                self._restored[what] += 1
                log.warning("somebody removed our %s: restored", what, extra=about("restored", what=what))
                return gateway.restored(what, read_clock())

    # --- epochs ------------------------------------------------------------------------------------------

    def _stand_in(self) -> None:
        """Before the tracker has answered: refuse claims, translate the calls in progress.

        A table that stands there keeps its epoch; where there is none, one is loaded that holds nothing, so
        that nobody's service packets leave unseen. When another worker reads its queues, it is left alone;
        so is the place of one that is missing: that worker restores it, and would end if it found ours.
        """
        standing = self._kernel.tables.epoch()
        if standing is None and self._kernel.other_reader(range(QUEUES_BY_EPOCH)) is not None:
            log.warning(
                "another worker's table is missing here, which it restores; waiting for the tracker's word"
            )
            return
        if standing is None:
            self._kernel.adopt(OPEN_EPOCH, ())
            self._upcalls.listen(self._rules(OPEN_EPOCH))
            return
        try:
            self._upcalls.listen(self._rules(standing))
            self._kernel.stand_in(standing)
            self._look_at_kernel()  # before the first OpenContinue: whose calls are in progress
        except QueueBusy as busy:
            log.warning(
                "epoch %d is served by another worker (%s); waiting for the tracker's word", standing, busy
            )

    def _adopt(self, effect: Adopt) -> Iterable[Effect]:
        self._upcalls.listen(self._rules(effect.epoch))  # before the table sends anything there
        kept, before = self._kernel.adopt(effect.epoch, effect.bindings, effect.moved_epoch)
        said = about("session-opened", epoch=effect.epoch, bindings=len(kept))
        log.info(
            "epoch %d: %d of %d bindings adopted", effect.epoch, len(kept), len(effect.bindings), extra=said
        )
        self._upcalls.leave_former()
        return self._gateway.adopted(effect.epoch, kept, read_clock(), before=before)

    def _close(self) -> None:
        """Calls go on in the kernel without us; the tracker hears that we stopped on purpose."""
        self._receive("talks")
        self._carry_out(self._gateway.close_session())
        # At once: without a reader the kernel lets OpenContinues pass, and drops claims.
        self._upcalls.close()
        try:
            self._say_last_words()
        finally:
            self._client.close()

    def _say_last_words(self) -> None:
        poller = zmq.Poller()
        poller.register(self._client.socket, zmq.POLLIN)
        now = read_clock()
        until_ns = now.monotonic_ns + LAST_WORDS_NS
        while self._client.pending and now.monotonic_ns < until_ns:
            poller.poll(min(100, max(1, (until_ns - now.monotonic_ns) // 1_000_000)))
            now = read_clock()
            for answer in self._client.receive(now):
                # A grant that comes now has nobody waiting for it: it is given back in the same breath. What
                # answers a heartbeat comes too late: it must not lengthen a lease that we have given up.
                if answer.request is not None:
                    effects = self._gateway.receive_answer(
                        answer.request, answer.reply, now, inherited=answer.inherited
                    )
                    self._carry_out(effects)
        if self._client.pending:
            log.warning(
                "the tracker has not heard %d messages; they wait in the outbox for the next start",
                self._client.pending,
                extra=about("outbox-left", messages=self._client.pending),
            )


def choose_datapath(wanted: str) -> tuple[bool, str]:
    """Whether the kernel rewrites packets, and that in words, with the reason; WorkerStopped if it can't."""
    if wanted == "queue":
        return False, "queue (as configured)"
    said = probing.refused_rewriting()
    if said is None:
        return True, "kernel"
    if wanted == "kernel":
        raise WorkerStopped(
            f"this kernel does not rewrite payload ({said}): 5.16 and nft 1.0.1 do;"
            ' or set gateway.datapath = "auto", and it is done here, for fewer packets a second'
        )
    return False, f"queue (the kernel does not rewrite payload: {said})"


def public_address(section: GatewaySection) -> IPv4Address | None:
    """The address that callers know: as configured, or the WAN interface's own."""
    configured = section.public_address or next(iter(section.public_addresses), None)
    return kernel.address_of(section.wan) if configured is None else IPv4Address(configured)


def host_identity() -> str:
    """Machine, boot and network namespace: says whether two workers share a kernel's tables."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()}/{boot}/{Path('/proc/self/ns/net').stat().st_ino}"
