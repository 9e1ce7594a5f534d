"""What the kernel is told: one table `ip porthold`, as nft text, from the configuration.

Rule 1: everything here and in the modules named below is a pure function from settings and bindings to text;
  nobody else writes nft.
Rule 2: the ruleset decides nothing about ownership. It knows who holds (elements), and what follows from it.
Rule 3: every batch after the first begins by taking its own epoch element away and putting it back. A worker
  that was stopped and wakes up after a take-over has its batch refused whole (compare-and-set in the kernel).

A packet's way, by hook and priority (sets, maps and counters: `sets.py`):

| hook, priority | chain | module | what happens |
|---|---|---|---|
| prerouting -140 | passing | forwarding | connections of a host that carries the public address itself |
| prerouting -110 | arriving | header_chains | the payload's dest_port is compared with the public UDP port |
| prerouting -101 | nat_arriving | forwarding | a caller to a held port: marked, then destination NAT |
| forward -160 | select | selection | claims and OpenContinues are marked for the queues |
| forward -150 | (queue) | selection | nft's `queue`, or iptables-nft's NFQUEUE in mangle FORWARD |
| forward -140 | verdict | selection | refused: ICMP; never queued: a claim is dropped, a talk goes on |
| postrouting 97 | leaving | forwarding | the last fence: nothing to or from a host that is no holder |
| postrouting 99 | nat_leaving | forwarding | source NAT of what the holder opens, source port kept |
| postrouting 149 | idle | forwarding | what really leaves starts the holder's idle time again |
| postrouting 150 | rewrite | header_chains | the packet's own addresses, after all NAT, go into its header |

With `fenced` (on_tracker_loss = "fence") the table does nothing without the element `lease`: no claim is
asked, no caller forwarded, nothing of the service's leaves. Each heartbeat has an element `offered`; only
while that is there its acknowledgement becomes a lease. Both last half of what the tracker grants: so the
kernel's lease ends before the tracker's, however long the worker is stopped between any two steps
(tests/model/lease.pml). A pause of the whole machine stops its timers too, and is not covered.

A kernel before 5.16 has no `@ih`. There (`rewrites_in_kernel` False: datapath "queue") every UDP packet of
the service that has a header goes through the OpenContinue queue, and the worker translates it; all else is
the same. What finds no worker there is dropped, not passed: with the private address in it an OpenContinue
would be another login at the reflector. So in this datapath a call stands still while its worker is dead or
stopped, and goes on when it is back: peers wait for 60 s, and the port is held for the idle time. Callers
that nobody has answered yet reach it at a bounded rate, all together; the holder itself could flood it.
"""

from collections.abc import Iterable, Sequence

from rewriter.forwarding import fence_chain, idle_chain, nat_chains, passing_chain
from rewriter.header_chains import rewriting_chains, unmarking_chain
from rewriter.phrases import address_pair
from rewriter.selection import queue_chains, select_chains
from rewriter.sets import Remembered, left, service_sets, shared_sets
from rewriter.vocabulary import Element, Key, Ruleset, Service, key_text

TABLE = "porthold"
HOOKED_CHAINS = (
    "arriving",
    "nat_arriving",
    "arrived",
    "select",
    "verdict",
    "leaving",
    "nat_leaving",
    "idle",
    "rewrite",
)
LEASED = "icmp, tcp, udp"
"""The lease has an element for each protocol: `meta l4proto` is what any packet can be looked up by."""
TIMER_SLACK_MS = 20
"""Kernel timers end up to a tick late, twice (rounded up, and looked at), and a tick is up to 10 ms."""
CLOCKS_APART = 2000
"""One in so many: our clock can be so slow, and the tracker's so fast (adjtimex allows 500 ppm)."""


def table(
    rules: Ruleset,
    epoch: int,
    bindings: Sequence[Element],
    nat: Iterable[str],
    remembered: Remembered | None = None,
) -> str:
    """The table's body with the given NAT chains."""
    sets = [*shared_sets(rules, epoch, bindings)]
    for service in rules.services:
        sets += service_sets(rules, service, bindings, remembered or Remembered())
    parts = [
        "\n".join(f"  {line}" for line in sets),
        *passing_chain(rules),
        *select_chains(rules),
        *queue_chains(rules),
        fence_chain(rules),
        *nat,
        idle_chain(rules),
        rewriting_chains(rules) if rules.rewrites_in_kernel else unmarking_chain(rules),
    ]
    return f"table ip {TABLE} {{\n" + "\n".join(parts) + "\n}\n"


def fence(epoch: int, new_epoch: int | None = None) -> str:
    """The compare-and-set that opens every batch: it fails whole when another epoch stands in the kernel."""
    new = epoch if new_epoch is None else new_epoch
    return f"delete element ip {TABLE} epoch {{ {epoch} }}\nadd element ip {TABLE} epoch {{ {new} }}\n"


def render(
    rules: Ruleset,
    epoch: int,
    bindings: Sequence[Element],
    *,
    replaces: int | None,
    remembered: Remembered | None = None,
) -> str:
    """The first batch of an epoch: the whole table, with the bindings that are adopted.

    `replaces` is the epoch of the table that stands there now, None when there is none. Both ways it fails
    whole when the kernel holds something else: nobody replaces a newer worker's table.
    """
    body = table(rules, epoch, bindings, nat_chains(rules), remembered)
    if replaces is None:
        return f"create table ip {TABLE}\n{body}"
    return f"{fence(replaces)}delete table ip {TABLE}\n{body}"


def install(rules: Ruleset, epoch: int, binding: Element) -> str:
    """Give the port: holder, both directions of NAT. Nothing in it depends on a set that others can fill."""
    service = rules.service(binding.service)
    name, timing = service.label, left(service, binding)
    held_by, held_at = key_text(binding.held_by), key_text(binding.held_at)
    forget = f"flush set ip {TABLE} {name}_contacted\n" if service.callers == "contacted" else ""
    return (
        fence(epoch)
        + forget
        + f"add element ip {TABLE} {name}_holders {{ {held_by}{timing} }}\n"
        + f"add element ip {TABLE} {name}_outbound {{ {held_by} : {binding.public} }}\n"
        + f"add element ip {TABLE} {name}_inbound {{ {held_at}{timing} : {binding.holder} }}\n"
        + f"add element ip {TABLE} own_address {{ {address_pair(binding.holder)} }}\n"
        + f"add element ip {TABLE} own_address {{ {address_pair(binding.public)} }}\n"
    )


def withdraw(
    epoch: int, service: Service, remove: Iterable[tuple[str, str]], *, to_anybody: bool = False
) -> str:
    """Take the port: `remove` has (set, key) pairs that the kernel was seen to hold; it refuses others.

    `to_anybody`: nobody took it over, so that whoever goes on with an older call may have it.
    """
    lines = [f"delete element ip {TABLE} {name} {{ {key} }}\n" for name, key in remove]
    flushes = [f"{service.label}_refused"]
    if service.policy == "last" and to_anybody:
        flushes.append(f"{service.label}_called")
    return fence(epoch) + "".join(lines) + "".join(f"flush set ip {TABLE} {name}\n" for name in flushes)


def refuse(epoch: int, service: Service, host: Key) -> str:
    """Answer a host from the kernel for a while, without another upcall."""
    name = service.label
    return (
        fence(epoch)
        + f"add element ip {TABLE} {name}_refused {{ {key_text(host)} }}\n"
        + f"delete element ip {TABLE} {name}_refused {{ {key_text(host)} }}\n"
        + f"add element ip {TABLE} {name}_refused {{ {key_text(host)} }}\n"
        + settled(service, host)
    )


def settle(epoch: int, service: Service, host: Key) -> str:
    """A claim that is over: the host may ask again at once."""
    return fence(epoch) + settled(service, host)


def settled(service: Service, host: Key) -> str:
    name, key = f"{service.label}_pending", key_text(host)
    return f"add element ip {TABLE} {name} {{ {key} }}\ndelete element ip {TABLE} {name} {{ {key} }}\n"


def offer(epoch: int, nonce: int, lease_ms: int) -> str:
    """Before the heartbeat `nonce` leaves: its acknowledgement is worth something for half a lease."""
    return fence(epoch) + f"add element ip {TABLE} offered {{ {nonce} timeout {half_ms(lease_ms)}ms }}\n"


def renew(epoch: int, nonce: int, lease_ms: int) -> str:
    """The heartbeat `nonce` was acknowledged. Fails whole, as it must, when its offer has run out."""
    lasting = ", ".join(f"{protocol} timeout {half_ms(lease_ms)}ms" for protocol in LEASED.split(", "))
    return (
        fence(epoch)
        + f"delete element ip {TABLE} offered {{ {nonce} }}\n"
        # A timeout is only new with a new element; between two batches no packet sees it missing.
        + f"add element ip {TABLE} lease {{ {LEASED} }}\ndelete element ip {TABLE} lease {{ {LEASED} }}\n"
        + f"add element ip {TABLE} lease {{ {lasting} }}\n"
    )


def half_ms(lease_ms: int) -> int:
    """How long an offer lasts, and how long a lease, of the tracker's `lease_ms`."""
    return max(1, lease_ms // 2 - lease_ms // CLOCKS_APART - 1 - TIMER_SLACK_MS)


def end_lease(epoch: int) -> str:
    """Forward nothing any more, and take no acknowledgement that is still under way."""
    return fence(epoch) + f"flush set ip {TABLE} lease\nflush set ip {TABLE} offered\n"


def keep_alive(epoch: int) -> str:
    """Say that a worker reads the OpenContinue queue; to be repeated each second."""
    return (
        fence(epoch)
        + f"add element ip {TABLE} alive {{ udp }}\ndelete element ip {TABLE} alive {{ udp }}\n"
        + f"add element ip {TABLE} alive {{ udp }}\n"
    )
