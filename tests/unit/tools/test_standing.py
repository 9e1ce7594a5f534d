"""What a kernel's listing says of the datapath that stands there."""

import json
import subprocess
from dataclasses import replace

import pytest

from rewriter.configuration import GatewayFile, ruleset_for
from rewriter.ruleset import render
from rewriter.vocabulary import Ruleset
from tools.standing import Standing, standing, standing_in

FILE = GatewayFile.model_validate(
    {
        "gateway": {"name": "g", "lan": ("lan0",), "wan": "wan0"},
        "services": {"cuseeme": {"profile": "cuseeme"}},
    }
)
RULES = ruleset_for(FILE, 7, native_queue=False, most_speakers=10)
NFQUEUE = "iptables-nft's NFQUEUE"


@pytest.mark.parametrize(
    ("rules", "wanted", "expected"),
    [
        (RULES, "auto", Standing(7, "kernel", "the kernel rewrites payload", NFQUEUE)),
        (RULES, "kernel", Standing(7, "kernel", "as configured", NFQUEUE)),
        (
            replace(RULES, rewrites_in_kernel=False),
            "auto",
            Standing(7, "queue", "the kernel does not rewrite payload", NFQUEUE),
        ),
    ],
)
def test_the_table_itself_says_which_datapath_it_is(rules: Ruleset, wanted: str, expected: Standing) -> None:
    script = "nft -f - && nft --json list table ip porthold"
    words = ["unshare", "--net", "sh", "-c", script]
    done = subprocess.run(
        words, input=render(rules, 7, (), replaces=None), capture_output=True, text=True, check=True
    )
    assert standing_in(json.loads(done.stdout)["nftables"], wanted) == expected


def test_where_no_table_stands_nothing_is_said() -> None:
    assert standing_in([], "auto") is None
    assert standing(FILE.model_copy(update={"gateway": None})) is None
