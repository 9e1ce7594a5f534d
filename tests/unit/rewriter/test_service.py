"""What the worker decides before it touches a packet: which datapath, and why."""

import os
import shutil
from pathlib import Path

import pytest

from rewriter import probing
from rewriter.service import WorkerStopped, choose_datapath

OLD_NFT = """#!/bin/sh
rules=$(cat)
case "$rules" in *@ih*) echo "Error: syntax error, unexpected string, expecting nh or th" >&2; exit 1;; esac
echo "$rules" | exec {nft} "$@"
"""


@pytest.fixture
def old_nft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An nft that knows no `@ih`, as before 1.0.1."""
    nft = tmp_path / "nft"
    nft.write_text(OLD_NFT.format(nft=shutil.which("nft")))
    nft.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


def test_a_kernel_that_rewrites_is_let_do_it() -> None:
    assert probing.refused_rewriting() is None
    assert choose_datapath("auto") == choose_datapath("kernel") == (True, "kernel")


def test_the_queue_can_be_chosen_where_the_kernel_could() -> None:
    assert choose_datapath("queue") == (False, "queue (as configured)")


@pytest.mark.usefixtures("old_nft")
def test_without_ih_the_worker_rewrites_and_says_why() -> None:
    in_kernel, said = choose_datapath("auto")
    assert not in_kernel
    assert said.startswith("queue (the kernel does not rewrite payload:")
    assert "expecting nh or th" in said


@pytest.mark.usefixtures("old_nft")
def test_without_ih_a_worker_that_is_told_to_use_the_kernel_ends_with_what_to_do() -> None:
    with pytest.raises(WorkerStopped, match=r'gateway\.datapath = "auto"'):
        choose_datapath("kernel")
