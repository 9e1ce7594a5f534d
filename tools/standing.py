"""What stands in this machine's kernel of a gateway: its epoch, the datapath and the queue in use, and why.

Rule: it is read from the kernel's own listing, as any operator could, and changes nothing; where there is no
table, no nft, or no right to look, there is nothing to say.
"""

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from rewriter.configuration import GatewayFile
from rewriter.ruleset import TABLE

_PATIENCE_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Standing:
    """`why` is the reason for the datapath, as far as the configuration says it."""

    epoch: int
    datapath: str
    why: str
    queue: str


def standing(file: GatewayFile) -> Standing | None:
    """What stands in this network namespace; None where nothing does, or it can't be seen."""
    if file.gateway is None or shutil.which("nft") is None:
        return None
    words = ["nft", "--json", "list", "table", "ip", TABLE]
    done = subprocess.run(words, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    if done.returncode != 0:
        return None
    return standing_in(json.loads(done.stdout)["nftables"], file.gateway.datapath)


def standing_in(items: Sequence[dict[str, Any]], wanted: str) -> Standing | None:
    """The same from nft's listing; `wanted` is gateway.datapath."""
    chains = {item["chain"]["name"] for item in items if "chain" in item}
    epochs = [item["set"].get("elem", []) for item in items if item.get("set", {}).get("name") == "epoch"]
    if not epochs or not epochs[0]:
        return None
    in_kernel = "in_header" in chains  # the chains that rewrite; see rewriting_chains
    why = "the kernel rewrites payload" if in_kernel else "the kernel does not rewrite payload"
    return Standing(
        epoch=int(epochs[0][0]),
        datapath="kernel" if in_kernel else "queue",
        why="as configured" if wanted != "auto" else why,
        queue="nft's queue" if "queueing" in chains else "iptables-nft's NFQUEUE",
    )
