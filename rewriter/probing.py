"""What this kernel, its tools and this process can: tried, not guessed from version numbers.

Rule 1: nothing is left of a probe: it ends in a namespace of its own, is only checked, or is a chain that
  nobody jumps to, taken away at once.
Rule 2: needs no library of netfilter's, so that `porthold doctor` can say which one is missing.
"""

import re
from pathlib import Path

from rewriter.command import KernelRefused, run
from rewriter.header_chains import SPEAKERS_AT
from rewriter.queue_rules import iptables
from rewriter.vocabulary import MOST_SPEAKERS

CAP_NET_ADMIN, CAP_SYS_ADMIN = 12, 21  # include/uapi/linux/capability.h
PROBE_CHAIN = "porthold-probe"


def has_capability(bit: int) -> bool:
    """Whether this process has a capability in effect."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> bit & 1)


def try_in_vain(batch: str) -> str | None:
    """Load a ruleset where it ends at once; None if the kernel took it, else its words.

    A namespace needs CAP_SYS_ADMIN. Without it the kernel is given the batch here, and told to forget it.
    """
    words = ["unshare", "--net", "nft"] if has_capability(CAP_SYS_ADMIN) else ["nft", "--check"]
    try:
        run([*words, "-f", "-"], stdin=batch)
    except KernelRefused as refusal:
        return str(refusal)
    return None


def probe(hook: str, rule: str) -> str:
    """A table with this one rule, for `try_in_vain`."""
    return f"table ip probe {{\n chain c {{\n type filter hook {hook} priority 150\n {rule}\n }}\n}}\n"


def has_native_queue() -> bool:
    """Whether this kernel and nft know `queue` (CONFIG_NFT_QUEUE)."""
    return try_in_vain(probe("forward", "queue num 1")) is None


def has_iptables_queue() -> str | None:
    """None when iptables-nft's NFQUEUE target works here; else what it says."""
    rule = ["-m", "mark", "--mark", "0x1/0x1", "-m", "comment", "--comment", "probe", "-j", "NFQUEUE"]
    words = [*rule, "--queue-num", "1"]
    try:
        if has_capability(CAP_SYS_ADMIN):
            run(["unshare", "--net", "iptables-nft", "-t", "mangle", "-A", "FORWARD", *words])
            return None
        iptables("-N", PROBE_CHAIN)  # nobody ever jumps there
        try:
            iptables("-A", PROBE_CHAIN, *words)
        finally:
            iptables("-F", PROBE_CHAIN)
            iptables("-X", PROBE_CHAIN)
    except KernelRefused as refusal:
        return str(refusal)
    return None


def refused_rewriting() -> str | None:
    """None when this kernel and nft rewrite payload (`@ih … set …`: 5.16, 1.0.1); else what they say."""
    return try_in_vain(probe("postrouting", "udp dport 7648 @ih,96,32 set @nh,96,32"))


def most_speakers() -> int:
    """How many speaker addresses the kernel reaches: some stop at a payload offset of 255 bytes."""
    far = f"@ih,{(SPEAKERS_AT + 4 * (MOST_SPEAKERS - 1)) * 8},32"
    refused = try_in_vain(probe("postrouting", f"{far} set @nh,96,32"))
    return MOST_SPEAKERS if refused is None else (255 - SPEAKERS_AT) // 4
