/* The lease-and-epoch protocol: who may give a port, and what the kernel is told of it.

Rule 1: each transition names the code it stands for: <package: name>, or <file Rule n>. test_lease_model.py looks
  whether that is there.
Rule 2: what is bounded is the world (claims, take-overs, crashes), never an answer to it: where something gets
  stuck, it is not for a bound.
Rule 3: a process is stopped (SIGSTOP) by taking no step, and killed by end_process; both can happen between any two
  d_steps, for as long as it likes. So a d_step is nothing more than one message, one batch of the kernel, one look
  at it, or what a process does in its own memory.
Rule 4: what is left out is said, and why.

One resource (gateway, address, service); hosts 1 and 2 of the LAN want it. Two workers, A (0) and B (1).
  KEEP (default)  both on one gateway's kernel, on_tracker_loss = "keep". No clock: a lease may end at any time.
  -DFENCE         each on a gateway of its own, sharing the address, on_tracker_loss = "fence". Time is in ticks.

The wire has no buffer. Worker to tracker: whatever is unanswered in an outbox may arrive now, later, or again,
and the tracker takes it in order, once: that is loss, delay, duplication and reordering, resent until answered.
A copy that comes after its answer finds its sequence taken (<tracker: _repeat>): nothing happens.
Tracker to worker: an answer that was sent may arrive now, later, before an earlier one, or not before it is
asked for again.

Left out: ResendFrom (the tracker's order is here, not how it is asked for), BindingInstalled and HolderNamed (records
without consequences), SessionDenied (the Open waits for its time instead of asking again), clocks that run at
different rates, conntrack and queues (the simulation has them). And one thing that no batch can hold off: a worker
that saw no table, asked, and was stopped until another had made one and somebody had flushed that too, wakes up and
makes its own (found with -DFLUSHES=2). The next look or heartbeat ends it.

Properties
  one_target     a kernel never forwards to two hosts; FENCE: nor do two kernels forward at once
  contained      what a kernel forwards is bound in the log, on the disk, to the same host
  newest_writes  an epoch's batch never changes a kernel that a newer epoch owns
  ends           the port becomes free again and again (ltl; -DENDS), under weak fairness, disturbances being finite

-DBUG_… plants a fault: test_lease_model.py has the list, and which property each breaks. */

#ifndef CLAIMS
#define CLAIMS 2 /* claims that hosts make */
#endif
#ifndef TAKE_OVERS
#define TAKE_OVERS 2 /* sessions that end because another worker gets one */
#endif
#ifndef CRASHES
#define CRASHES 1 /* kill -9 of a worker; it is started again */
#endif
#ifndef CLOSES
#define CLOSES 1 /* clean ends of a worker; it is started again */
#endif
#ifndef FLUSHES
#define FLUSHES 0 /* `nft flush ruleset` by somebody else, which takes the epoch too */
#endif
#ifndef OUTAGES
#define OUTAGES 255 /* kill -9 of the tracker; 255: as many as there may be */
#endif
#ifndef HALF
#define HALF 1 /* half a lease, in ticks */
#endif
#define LEASE (2 * HALF)
#define SLOTS 3

#define CLAIM 1
#define WITHDRAWN 2
#define OPEN 3
#define CLOSE 4

#define NOTHING 0
#define REFUSED 1
#define ACKNOWLEDGED 2
#define GRANTED 3

#define SENT 1
#define HEARD 2 /* decided, not appended */
#define ACKED 3

/* ---- state --------------------------------------------------------------------------------------------------- */

typedef Answer {
  unsigned kind : 2;
  unsigned epoch : 4; /* of the session granted */
  unsigned binding : 2; /* granted, or the session's; 0: none */
  unsigned holder : 2
}

typedef Message {
  unsigned kind : 3;
  unsigned epoch : 4; /* the worker's when it was submitted */
  unsigned about : 2; /* the host that claims, or the binding that was withdrawn */
  bit inherited; /* from the process before: its answer means nothing to this one */
  bit taken; /* the tracker's disk has it, and `answer`, which may arrive from now on */
#ifdef BUG_REPLY_FIRST
  bit early; /* `answer` may arrive already */
#endif
  Answer answer
}

typedef Outbox { /* <tracker/outbox.py Rule 1>: on the worker's disk */
  unsigned used : 2;
  Message slot[SLOTS]
}

typedef Ledger { /* <tracker: Gateway>: what decisions depend on */
  unsigned session : 2; /* the worker (1, 2) whose session is open, of `epoch`; 0: none is */
  unsigned worker : 2; /* the last one that was given an epoch */
  unsigned epoch : 4;
  unsigned trusted : 4;
  bit lost;
  unsigned binding : 2; /* that has the resource; 0: it is free */
  unsigned holder : 2;
  unsigned next : 3
}

typedef Kernel {
  unsigned epoch : 4; /* 0: there is no table */
  unsigned newest : 4; /* the highest that ever was: for newest_writes only */
  unsigned holders : 2; /* set: host 1 is bit 0, host 2 bit 1 */
  unsigned lease : 3; /* FENCE: ticks left of the element the DNAT rules need */
  unsigned offered : 3 /* FENCE: ticks left of the element a renewal needs */
}

typedef Worker { /* <rewriter: Gateway>, in the process's memory */
  unsigned epoch : 4; /* 0: none yet */
  unsigned binding : 2; /* that it has installed; 0: none */
  unsigned holder : 2;
  unsigned over : 4 /* bindings it has ended, <rewriter: withdrawn> */
}

Worker worker[2];
Outbox box[2];
Kernel kernel[2]; /* KEEP: the first is both workers' */
Ledger memory, disk; /* the tracker's state, and what a replay of its log gives */
Answer staged; /* decided, not appended */
unsigned staging : 2; /* whose message that is (1, 2); 3: the tracker's own event; 0: nothing is decided */
unsigned claims_left : 3 = CLAIMS;
unsigned take_overs_left : 3 = TAKE_OVERS;
unsigned crashes_left : 3 = CRASHES;
unsigned closes_left : 3 = CLOSES;
unsigned flushes_left : 3 = FLUSHES;
byte outages_left = OUTAGES;
#ifdef FENCE
unsigned deadline : 4; /* ticks left of the lease, by the tracker's clock: in memory only */
byte heartbeat[2]; /* of each worker's epoch, the last one sent: on its way, or its acknowledgement is */
#ifdef BUG_RENEWAL_BY_CLOCK
byte age[2]; /* ticks since it was sent */
#endif
#endif

#ifdef FENCE
#define SITE(w) (w)
#else
#define SITE(w) 0
#endif

/* ---- what must hold ------------------------------------------------------------------------------------------ */

#define bit_of(host) (1 << ((host) - 1))
#define one_target(k) (kernel[k].holders != 3)
#if defined(FENCE) && !defined(BUG_NO_FENCE)
#define forwards(k) (kernel[k].lease > 0 && kernel[k].holders != 0)
#else
#define forwards(k) (kernel[k].holders != 0)
#endif
#define contained(k) (!forwards(k) || (disk.binding != 0 && kernel[k].holders == bit_of(disk.holder)))

/* After each step that changes a kernel or the disk. */
inline check() {
  assert(one_target(0) && one_target(1));
  assert(!forwards(0) || !forwards(1));
  assert(contained(0) && contained(1))
}

#ifdef ENDS
ltl ends { [] <> (disk.binding == 0) }
#endif

/* ---- the kernel ---------------------------------------------------------------------------------------------- */

/* Every batch begins with its compare-and-set: <rewriter: fence>, Rule 3 there. */
#ifdef BUG_KERNEL_UNFENCED
#define passes(w, e) true
#else
#define passes(w, e) (kernel[SITE(w)].epoch == (e))
#endif

/* newest_writes: asserted where a batch has passed. */
#define newest_writes(w, e) assert((e) >= kernel[SITE(w)].newest)

inline flush(k) {
  kernel[k].epoch = 0;
  kernel[k].holders = 0;
  kernel[k].lease = 0;
  kernel[k].offered = 0
}

proctype Gateway(byte k) { /* <rewriter: idle_chain>: an element runs out while nobody looks */
end: do
  :: d_step { kernel[k].holders != 0 -> kernel[k].holders = 0 }
  :: d_step { flushes_left > 0 && kernel[k].epoch != 0 -> flushes_left--; flush(k) }
  od
}

/* ---- the outbox: <tracker/conversation.py Rule 1> ------------------------------------------------------------- */

#define room(w) (box[w].used < SLOTS)
#define slot_is(w, i, what) (box[w].used > i && box[w].slot[i].kind == what && !box[w].slot[i].inherited)
#define opening(w) (slot_is(w, 0, OPEN) || slot_is(w, 1, OPEN) || slot_is(w, 2, OPEN))

inline submit(w, topic, asked, subject) { /* in d_step; the caller has looked for room */
  assert(room(w));
  box[w].slot[box[w].used].kind = topic;
  box[w].slot[box[w].used].epoch = asked;
  box[w].slot[box[w].used].about = subject;
  box[w].used++
}

inline move(w, to, from) { /* Promela can't assign a whole structure */
  box[w].slot[to].kind = box[w].slot[from].kind;
  box[w].slot[to].epoch = box[w].slot[from].epoch;
  box[w].slot[to].about = box[w].slot[from].about;
  box[w].slot[to].inherited = box[w].slot[from].inherited;
  box[w].slot[to].taken = box[w].slot[from].taken;
#ifdef BUG_REPLY_FIRST
  box[w].slot[to].early = box[w].slot[from].early;
#endif
  box[w].slot[to].answer.kind = box[w].slot[from].answer.kind;
  box[w].slot[to].answer.epoch = box[w].slot[from].answer.epoch;
  box[w].slot[to].answer.binding = box[w].slot[from].answer.binding;
  box[w].slot[to].answer.holder = box[w].slot[from].answer.holder
}

inline clear(w, i) {
  box[w].slot[i].kind = 0;
  box[w].slot[i].epoch = 0;
  box[w].slot[i].about = 0;
  box[w].slot[i].inherited = 0;
  box[w].slot[i].taken = 0;
#ifdef BUG_REPLY_FIRST
  box[w].slot[i].early = 0;
#endif
  box[w].slot[i].answer.kind = 0;
  box[w].slot[i].answer.epoch = 0;
  box[w].slot[i].answer.binding = 0;
  box[w].slot[i].answer.holder = 0
}

inline remove(w, i) { /* in d_step */
#ifdef BUG_REPLY_FIRST
  if
  :: !box[w].slot[i].taken && staging == w + 1 -> staging = 3 /* it is still to be appended */
  :: else
  fi;
#endif
  if
  :: (i) == 0 -> move(w, 0, 1)
  :: else
  fi;
  if
  :: (i) <= 1 -> move(w, 1, 2)
  :: else
  fi;
  clear(w, 2);
  box[w].used--
}

#ifdef BUG_REPLY_FIRST
#define answered(w, i) (box[w].slot[i].taken || box[w].slot[i].early)
#else
#define answered(w, i) box[w].slot[i].taken
#endif
#define arrives(w, i) (box[w].used > i && answered(w, i))

/* ---- the tracker --------------------------------------------------------------------------------------------- */

/* The message of w that is due: sequences are taken in order, <tracker: _durable>. */
#define taken_of(w) (box[w].slot[0].taken + box[w].slot[1].taken + box[w].slot[2].taken)
#define due(w) (staging == 0 && box[w].used > taken_of(w))
#define DUE(w) box[w].slot[taken_of(w)]

/* <tracker: session_of>: an epoch commands only while its session is open. */
#define commands(w, e) (memory.session == (w) + 1 && memory.epoch == (e))

inline stage(w, what) { /* in d_step: decided in memory, <tracker/machine.py Rule 2> */
  staging = (w) + 1;
  staged.kind = what
}

inline decide_claim(w) { /* <tracker: claim>, <tracker: _bind> */
  if
#ifndef BUG_CLAIM_UNCHECKED
  :: !commands(w, DUE(w).epoch) -> stage(w, REFUSED) /* STALE_EPOCH, <tracker: _unfit> */
#endif
  :: else ->
    if
    :: memory.binding == 0 ->
      memory.binding = memory.next;
      memory.holder = DUE(w).about;
      memory.next++
    :: else
    fi;
    if
    :: memory.holder == DUE(w).about ->
      stage(w, GRANTED);
      staged.binding = memory.binding;
      staged.holder = memory.holder
    :: else -> stage(w, REFUSED)
    fi
  fi
}

#ifdef BUG_REPORT_UNCHECKED
#define speaks_for(w, e) true
#else
#define speaks_for(w, e) (memory.worker == (w) + 1 && memory.trusted <= (e) && (e) <= memory.epoch)
#endif

inline decide_withdrawn(w) { /* <tracker: _report>, Rule 4 there */
  if
  :: memory.binding == DUE(w).about && speaks_for(w, DUE(w).epoch) ->
    memory.binding = 0;
    memory.holder = 0
  :: else
  fi;
  stage(w, ACKNOWLEDGED)
}

/* <tracker: open_session>, <tracker: _may_replace>: when another worker's session may be replaced. KEEP: its lease
   has ended (at any time, there is no clock), or the operator says --take-over. FENCE: --take-over on another host
   waits for the lease too (<tracker/sessions.py Rule 3>), because no batch of ours reaches the other kernel. Whoever
   waits so keeps the lease from being renewed and others from opening, <tracker: _taker>: here that is heartbeats
   that are not answered and an Open that does not arrive, both of which happen anyway. */
#ifdef FENCE
#if defined(BUG_TAKE_OVER_AT_ONCE) || defined(BUG_NO_FENCE)
#define ended true
#else
#define ended (memory.lost || deadline == 0)
#endif
#else
#define ended true
#endif
#define own(w) (memory.session == w + 1)
#ifdef BUG_REPLY_FIRST
#define sane (memory.epoch < 5) /* epochs that are forgotten are given again, for ever */
#else
#define sane true
#endif
#define may_open(w) (sane && (own(w) || memory.session == 0 || (take_overs_left > 0 && ended)))

inline decide_open(w) { /* <tracker: _apply_opened> */
  if
  :: own(w) || memory.session == 0 /* REOPENED: the outbox's lock says that its old process is gone */
  :: else -> take_overs_left--
  fi;
  assert(memory.epoch < 15);
  memory.epoch++;
  if
  :: memory.worker != w + 1 -> memory.trusted = memory.epoch
  :: else
  fi;
  memory.worker = w + 1;
  memory.session = w + 1;
  memory.lost = 0;
  stage(w, GRANTED);
  staged.epoch = memory.epoch;
  staged.binding = memory.binding;
  staged.holder = memory.holder;
  renew()
}

inline decide_close(w) { /* <tracker: close_session> */
  if
  :: commands(w, DUE(w).epoch) -> memory.session = 0
  :: else
  fi;
  stage(w, ACKNOWLEDGED)
}

inline renew() { /* <tracker: _renewed> */
#ifdef FENCE
  deadline = LEASE
#else
  skip
#endif
}

#ifdef BUG_NO_DEDUPLICATION
unsigned copied : 2; /* a claim that is still on the wire: whose */
unsigned copied_epoch : 4;
unsigned copied_host : 2;

inline copy(w) {
  if
  :: DUE(w).kind == CLAIM ->
    copied = w + 1;
    copied_epoch = DUE(w).epoch;
    copied_host = DUE(w).about
  :: else
  fi
}

inline decide_copy() { /* its answer finds nobody who waits */
  if
  :: commands(copied - 1, copied_epoch) && memory.binding == 0 ->
    memory.binding = memory.next;
    memory.holder = copied_host;
    memory.next++;
    staging = 3
  :: else
  fi;
  copied = 0;
  copied_epoch = 0;
  copied_host = 0
}
#endif

inline unstage() {
  staging = 0;
  staged.kind = 0;
  staged.epoch = 0;
  staged.binding = 0;
  staged.holder = 0
}

inline restore() { /* memory from the disk */
  memory.session = disk.session;
  memory.worker = disk.worker;
  memory.epoch = disk.epoch;
  memory.trusted = disk.trusted;
  memory.lost = disk.lost;
  memory.binding = disk.binding;
  memory.holder = disk.holder;
  memory.next = disk.next
}

inline append_ledger() {
  disk.session = memory.session;
  disk.worker = memory.worker;
  disk.epoch = memory.epoch;
  disk.trusted = memory.trusted;
  disk.lost = memory.lost;
  disk.binding = memory.binding;
  disk.holder = memory.holder;
  disk.next = memory.next
}

inline keep_answer(w) {
  DUE(w).answer.kind = staged.kind;
  DUE(w).answer.epoch = staged.epoch;
  DUE(w).answer.binding = staged.binding;
  DUE(w).answer.holder = staged.holder
}

/* <tracker: _commit>: records and answer in one transaction, and only then the frame. Answers that a
   worker does nothing about are not kept here: taking the message out of the outbox is all that follows. Sending has
   no step of its own: a tracker killed before it is one whose frame is slow, or asked for again. */
inline append_message(w) {
#ifdef BUG_NO_DEDUPLICATION
  copy(w);
#endif
  append_ledger();
  if
  :: staged.kind == GRANTED && !DUE(w).inherited ->
    keep_answer(w);
    DUE(w).taken = 1
  :: else -> staging = 0; remove(w, taken_of(w))
  fi;
  unstage();
  check()
}

#ifdef FENCE
#define VOLATILE true /* the leases */
inline hear(w) { /* <tracker: heartbeat> */
  if
  :: !commands(w, worker[w].epoch) -> heartbeat[w] = 0 /* SessionOver */
  :: else ->
    renew();
    if
    :: memory.lost -> /* WorkerReturned */
      memory.lost = 0;
      staging = 3;
#ifdef BUG_RETURN_ACKNOWLEDGED_FIRST
      heartbeat[w] = ACKED
#else
      heartbeat[w] = HEARD
#endif
    :: else -> heartbeat[w] = ACKED
    fi
  fi
}

inline acknowledge(w) {
  if
  :: heartbeat[w] == HEARD -> heartbeat[w] = ACKED
  :: else
  fi
}

inline forget_heard(w) {
  if
  :: heartbeat[w] == HEARD -> heartbeat[w] = 0
  :: else
  fi
}
#else
#define VOLATILE false
inline acknowledge(w) { skip }
inline forget_heard(w) { skip }
#endif

#define something_due(w) (due(w) && (DUE(w).kind != OPEN || may_open(w)))

inline decide(w) {
  if
  :: DUE(w).kind == CLAIM -> decide_claim(w)
  :: DUE(w).kind == WITHDRAWN -> decide_withdrawn(w)
  :: DUE(w).kind == OPEN -> decide_open(w)
  :: DUE(w).kind == CLOSE -> decide_close(w)
  fi;
#ifdef BUG_REPLY_FIRST
  if
  :: staged.kind == GRANTED && !DUE(w).inherited ->
    keep_answer(w);
    DUE(w).early = 1
  :: else
  fi
#endif
}

proctype Tracker() {
end: do
  :: d_step { something_due(0) -> decide(0) }
  :: d_step { something_due(1) -> decide(1) }
  :: d_step { staging == 1 -> append_message(0) }
  :: d_step { staging == 2 -> append_message(1) }
#ifdef BUG_NO_DEDUPLICATION
  :: d_step { staging == 0 && copied != 0 -> decide_copy() }
#endif
  :: d_step { staging == 3 -> append_ledger(); acknowledge(0); acknowledge(1); unstage(); check() }
#ifdef FENCE
  :: d_step { /* <tracker: lost_workers> */
      staging == 0 && memory.session != 0 && !memory.lost && deadline == 0 -> memory.lost = 1; staging = 3
    }
  :: d_step { staging == 0 && heartbeat[0] == SENT -> hear(0) }
  :: d_step { staging == 0 && heartbeat[1] == SENT -> hear(1) }
#endif
  :: d_step { /* kill -9, and <tracker: _start>: everybody who is not lost has a full lease again */
      outages_left > 0 && (staging != 0 || VOLATILE) ->
      if
      :: outages_left < 255 -> outages_left--
      :: else
      fi;
      restore();
      unstage();
      forget_heard(0);
      forget_heard(1);
#ifdef FENCE
#ifdef BUG_GRACE_FORGOTTEN
      deadline = 0
#else
      deadline = LEASE
#endif
#endif
    }
  od
}

/* ---- a worker ------------------------------------------------------------------------------------------------ */

#define W worker[w]
#define K kernel[SITE(w)]

/* What the worker is about to do to its kernel: <rewriter/service.py Rule 1>. It can be stopped before and after. */
#define INSTALL 1
#define WITHDRAW 2
#define REPORT 3
#define LOOK 4
#define ADOPT 5
#define RENEW 6
#define HAND_OVER 7
#define ASK 8

#define idle (effect == 0)
#define over_in_tracker(w) !(disk.session == w + 1 && disk.epoch == W.epoch)

/* On one kernel whoever adopts keeps what runs there; on another host all is made anew, <tracker: moved_epoch>.
   (So it is here with each adoption under FENCE, also of a worker that comes back to its own kernel.) */
#ifdef FENCE
#define keeps(host) ((host) != 0)
#else
#define keeps(host) ((host) != 0 && (found & bit_of(host)) != 0)
#endif

inline inherit(i) { /* an answer that is here already goes with the process */
  if
  :: arrives(w, i) -> remove(w, i)
  :: box[w].used > i && !arrives(w, i) -> box[w].slot[i].inherited = 1
  :: else
  fi
}

inline finish() {
  effect = 0;
  granted_epoch = 0;
  binding = 0;
  holder = 0;
  before = 0;
  found = 0
}

/* The process ends and is started again: what it knew is gone, its outbox is not, <tracker: open>. */
inline end_process() {
  W.epoch = 0;
  W.binding = 0;
  W.holder = 0;
  W.over = 0;
  inherit(2);
  inherit(1);
  inherit(0);
#ifdef FENCE
  heartbeat[w] = 0;
#endif
  finish()
}

#define may_claim(host) (claims_left > 0 && ((host) == 1 || claims_left < CLAIMS)) /* the first is called host 1 */

inline claim(host) { /* <rewriter: receive_claim> */
  idle && W.epoch != 0 && may_claim(host) && W.holder != host && box[w].used < SLOTS - 1 ->
  claims_left--;
#ifdef BUG_INSTALL_EARLY
  K.holders = K.holders | bit_of(host);
  check();
#endif
  submit(w, CLAIM, W.epoch, host)
}

inline take_grant(i) {
  binding = box[w].slot[i].answer.binding;
  holder = box[w].slot[i].answer.holder
}

inline receive(i) { /* <rewriter: receive_answer> */
  idle && arrives(w, i) ->
  if
  :: box[w].slot[i].kind == OPEN -> /* <rewriter: _session_granted> */
    take_grant(i);
    granted_epoch = box[w].slot[i].answer.epoch;
    effect = LOOK
  :: else -> /* <rewriter: _granted> */
    if
    :: box[w].slot[i].answer.binding == W.binding -> skip /* a second claim of the holder's */
#ifndef BUG_GRANT_OF_ENDED
    :: W.over & (1 << box[w].slot[i].answer.binding) -> skip
#endif
#ifndef BUG_GRANT_OF_OLD_EPOCH
    :: box[w].slot[i].epoch != W.epoch -> skip /* what is left of an earlier session came with its grant */
#endif
    :: else ->
      take_grant(i);
      effect = INSTALL
    fi
  fi;
  remove(w, i)
}

inline install() { /* <rewriter: install> */
  effect == INSTALL ->
  if
  :: passes(w, W.epoch) ->
    newest_writes(w, W.epoch);
    K.holders = K.holders | bit_of(holder);
    W.binding = binding;
    W.holder = holder;
    check();
    finish()
  :: else -> end_process()
  fi
}

inline withdraw(next) { /* <rewriter: withdraw> */
  if
  :: passes(w, W.epoch) ->
    newest_writes(w, W.epoch);
    K.holders = K.holders & ~bit_of(holder);
    check();
    effect = next
  :: else -> end_process()
  fi
}

inline report() { /* <rewriter: withdrawn>, Rule 3 there */
  submit(w, WITHDRAWN, W.epoch, binding);
  W.over = W.over | (1 << binding);
  W.binding = 0;
  W.holder = 0
}

inline look() { /* <rewriter: adopt> reads */
  effect == LOOK ->
  before = K.epoch;
  found = K.holders;
  effect = (before == 0 -> ASK : ADOPT)
}

/* <rewriter: observe>: our table was flushed. With it went the epoch, which would have stopped us had we
   been superseded: where no table stands the tracker is asked (a heartbeat) before one is made, adopting or not.
   The code asks like this only for the lease: under FENCE what it restores forwards nothing before a heartbeat was
   offered in it and acknowledged. The table itself it restores at once, and after it was stopped for long at its next
   look (<rewriter: _round>): the tracker's word is usually there before, and nothing makes sure of it. */
inline see_flushed() {
  idle && W.epoch != 0 && K.epoch == 0 ->
  granted_epoch = W.epoch;
  binding = W.binding;
  holder = W.holder;
  found = (holder != 0 -> bit_of(holder) : 0);
  effect = ASK
}

#ifdef BUG_RESTORE_UNASKED
#define confirmed(w, e) true
#else
#define confirmed(w, e) (disk.session == (w) + 1 && disk.epoch == (e))
#endif
inline ask() {
  effect == ASK ->
  if
  :: confirmed(w, granted_epoch) -> effect = ADOPT
  :: else -> end_process()
  fi
}

/* <rewriter: adopt> writes: <rewriter: render>, <rewriter: adopted>. A grant that was
   superseded while the worker was stopped must not win over the newer epoch it finds. */
#ifdef BUG_ADOPT_OVER_NEWER
#define supersedes true
#else
#define supersedes (before < granted_epoch)
#endif
inline adopt() {
  effect == ADOPT ->
  if
  :: passes(w, before) && supersedes ->
    newest_writes(w, granted_epoch);
    K.epoch = granted_epoch;
    K.newest = granted_epoch;
    K.lease = 0;
    K.offered = 0;
    K.holders = (keeps(holder) -> bit_of(holder) : 0);
    check();
#ifndef BUG_GRANT_OF_OLD_EPOCH
    W.over = (W.epoch == granted_epoch -> W.over : 0); /* their grants are known by the earlier epoch */
#endif
    W.epoch = granted_epoch;
    W.binding = (keeps(holder) -> binding : 0);
    W.holder = (keeps(holder) -> holder : 0);
#ifdef FENCE
    heartbeat[w] = 0;
#endif
    if
    :: binding != 0 && W.binding == 0 -> submit(w, WITHDRAWN, W.epoch, binding)
    :: else
    fi;
    finish()
  :: else -> end_process()
  fi
}

#ifdef FENCE
/* <rewriter/gateway.py Rule 6>, <rewriter: offer>, <rewriter: renew>. The kernel's lease: the element `offered` is put in before the heartbeat leaves; with the
   acknowledgement a batch that takes it out, and so fails when it ran out, puts `lease` in; each lasts half a lease.
   So lease ends at most a whole one after the heartbeat was sent, however long the worker is stopped between any
   two steps. (The rest of the lease, computed by the worker, does not do it: BUG_RENEWAL_BY_CLOCK.) The code's halves
   are shorter by the slack of the kernel's timers, <rewriter: half_ms>, and it has an offer for each heartbeat: one
   that is older than the last can still be taken, and ends sooner. */
inline send_heartbeat() { /* <rewriter: _heartbeat> */
  idle && W.epoch != 0 && passes(w, W.epoch) ->
  K.offered = HALF;
#ifdef BUG_RENEWAL_BY_CLOCK
  age[w] = 0;
#endif
#ifdef BUG_ANY_ACKNOWLEDGEMENT
  if
  :: heartbeat[w] == 0 -> heartbeat[w] = SENT
  :: else /* the one before is still under way, and its acknowledgement will be taken for this one's */
  fi
#else
  heartbeat[w] = SENT
#endif
}

inline receive_acknowledgement() {
  idle && heartbeat[w] == ACKED ->
  heartbeat[w] = 0;
#ifdef BUG_RENEWAL_BY_CLOCK
  before = (age[w] < LEASE -> LEASE - age[w] : 0);
  age[w] = 0;
#endif
#ifdef BUG_LEASE_FROM_RECEIPT
  K.lease = (passes(w, W.epoch) -> LEASE : K.lease);
  check()
#else
  effect = RENEW
#endif
}

inline renew_kernel() { /* <rewriter: renew> */
  effect == RENEW ->
  if
  :: !passes(w, W.epoch) -> end_process()
#ifdef BUG_RENEWAL_BY_CLOCK
  :: else -> K.lease = before; check(); finish()
#else
  :: passes(w, W.epoch) && K.offered > 0 ->
    newest_writes(w, W.epoch);
    K.offered = 0;
    K.lease = HALF;
    check();
    finish()
  :: else -> finish()
#endif
  fi
}

#define anything_runs (deadline + kernel[0].lease + kernel[0].offered + kernel[1].lease + kernel[1].offered > 0)
#define one_less(ticks) ticks = (ticks > 0 -> ticks - 1 : 0)

proctype Clock() {
end: do
  :: d_step {
      anything_runs ->
      one_less(deadline);
      one_less(kernel[0].lease);
      one_less(kernel[0].offered);
      one_less(kernel[1].lease);
      one_less(kernel[1].offered);
#ifdef BUG_RENEWAL_BY_CLOCK
      age[0] = (heartbeat[0] != 0 && age[0] < LEASE -> age[0] + 1 : age[0]);
      age[1] = (heartbeat[1] != 0 && age[1] < LEASE -> age[1] + 1 : age[1])
#endif
    }
  od
}
#endif

/* <rewriter: close_session>, <rewriter: end_lease>. FENCE: a closed session holds nobody off, so its lease goes
   first. */
inline hand_over() {
  effect == HAND_OVER ->
#ifdef FENCE
#ifndef BUG_CLOSE_KEEPS_LEASE
  if
  :: passes(w, W.epoch) -> K.lease = 0; K.offered = 0
  :: else
  fi;
#endif
#endif
  submit(w, CLOSE, W.epoch, 0);
  end_process()
}

proctype Rewriter(bit w) {
  unsigned effect : 4;
  unsigned granted_epoch : 4;
  unsigned binding : 2;
  unsigned holder : 2;
  unsigned before : 4; /* what adoption saw in the kernel */
  unsigned found : 2;

end: do
  :: d_step { claim(1) }
  :: d_step { claim(2) }
  :: d_step { receive(0) }
  :: d_step { receive(1) }
  :: d_step { receive(2) }
  :: d_step { install() }
  :: d_step { effect == INSTALL -> effect = WITHDRAW } /* nobody waits for it any more, <rewriter: _granted> */
  :: d_step { /* idle, hang-up, release, revoke: <rewriter: _withdraw> */
      idle && W.binding != 0 && room(w) ->
      effect = WITHDRAW;
      binding = W.binding;
      holder = W.holder
    }
#ifdef BUG_WITHDRAW_REPORTED_EARLY
  :: d_step { effect == WITHDRAW -> report(); effect = REPORT }
  :: d_step { effect == REPORT -> withdraw(0); finish() }
#else
  :: d_step { effect == WITHDRAW -> withdraw(REPORT) }
  :: d_step { effect == REPORT -> report(); finish() }
#endif
  :: d_step { /* the first session, or SessionOver: <rewriter: _open> */
      idle && !opening(w) && room(w) && (W.epoch == 0 || over_in_tracker(w)) -> submit(w, OPEN, 0, 0)
    }
  :: d_step { look() }
  :: d_step { see_flushed() }
  :: d_step { ask() }
  :: d_step { adopt() }
  :: d_step { /* taken over: <rewriter: observe> */
      idle && W.epoch != 0 && K.epoch != 0 && !passes(w, W.epoch) -> end_process()
    }
  :: d_step { idle && closes_left > 0 && W.epoch != 0 && room(w) -> closes_left--; effect = HAND_OVER }
  :: d_step { hand_over() }
#ifdef FENCE
  :: d_step { send_heartbeat() }
  :: d_step { receive_acknowledgement() }
  :: d_step { renew_kernel() }
#endif
  :: d_step { crashes_left > 0 && (W.epoch != 0 || effect != 0) -> crashes_left--; end_process() }
  od
}

init {
  d_step { /* A has the session and the kernel; B stands by */
    memory.session = 1;
    memory.worker = 1;
    memory.epoch = 1;
    memory.trusted = 1;
    memory.next = 1;
    append_ledger();
    worker[0].epoch = 1;
    kernel[0].epoch = 1;
    kernel[0].newest = 1;
    renew()
  }
  atomic {
    run Tracker();
    run Rewriter(0);
    run Rewriter(1);
#ifdef FENCE
    run Clock();
    run Gateway(1);
#endif
    run Gateway(0)
  }
}
