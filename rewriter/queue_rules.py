"""Where the kernel lacks nft's own `queue`: one tagged NFQUEUE rule per queue, by iptables-nft.

Rule 1: the table they stand in (mangle FORWARD) is everybody's: only rules with our comment are ever touched.
Rule 2: they stand in front: an earlier ACCEPT of somebody else's would keep packets from the queue.
"""

import re
from collections.abc import Iterable

from rewriter.command import KernelRefused, run
from rewriter.vocabulary import CLAIM, TALK, Ruleset

QUEUE_COMMENT = "porthold"


def queue_rule(rules: Ruleset, number: int) -> list[str]:
    """The rule's words. Mangle is between our chains and before the host's own filter rules, so a packet
    accepted here is still judged by those.
    """
    bits = CLAIM if number == rules.claim_queue else TALK
    mark = f"{rules.packet_mark(bits):#x}"
    bypass = ["--queue-bypass"] if bits == TALK else []
    comment = ["-m", "comment", "--comment", f"{QUEUE_COMMENT}-{number}"]
    return [
        "-m",
        "mark",
        "--mark",
        f"{mark}/{mark}",
        *comment,
        "-j",
        "NFQUEUE",
        "--queue-num",
        str(number),
        *bypass,
    ]


def iptables(*arguments: str) -> str:
    return run(["iptables-nft", "-w", "-t", "mangle", *arguments])


def queue_rules_present() -> set[int]:
    """The numbers of our queues that have a rule."""
    try:
        listed = iptables("-S", "FORWARD")
    except KernelRefused:
        return set()
    return {int(number) for number in re.findall(rf"--comment \"?{QUEUE_COMMENT}-(\d+)", listed)}


def add_queue_rules(rules: Ruleset) -> None:
    """Put both rules in front: an earlier ACCEPT of somebody else's would keep packets from the queue."""
    present = queue_rules_present()
    for number in (rules.claim_queue, rules.talk_queue):
        if number not in present:
            iptables("-I", "FORWARD", *queue_rule(rules, number))


def remove_queue_rules(keep: Iterable[int] = ()) -> None:
    """Take our rules out, but for those of the queues in `keep`."""
    keeping = {f"{QUEUE_COMMENT}-{number}" for number in keep}
    try:
        listed = iptables("-S", "FORWARD").splitlines()
    except KernelRefused:
        return
    for line in listed:
        comment = re.search(rf"--comment \"?({QUEUE_COMMENT}-\d+)", line)
        if comment and comment[1] not in keeping:
            iptables("-D", *line.replace('"', "").split()[1:])
