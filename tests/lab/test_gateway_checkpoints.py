"""A real rewriter keeps the tracker's last checkpoint, and with it a log that was put back is found out."""

import signal
import subprocess
from pathlib import Path

from eventlog.checkpoint import parse_checkpoint
from eventlog.note import SigningKey, write_key_file
from eventlog.verify import verify
from tests.lab.conftest import SiteMaker
from tests.lab.gateway_site import ANN, Site
from tools.lab import wait_until
from tracker.keeper import EVIDENCE
from tracker.projections import PROJECTIONS


def kept_by(site: Site) -> Path:
    return site.directory / "gateway-1.checkpoint"


def sign(site: Site) -> int:
    """An operator's order; over how many records the checkpoint is."""
    note = site.directory / "ordered"
    words: list[str | Path] = [site.program, "checkpoint", "--config", site.configuration, "-o", note]
    subprocess.run(words, check=True, capture_output=True)
    return parse_checkpoint(note.read_bytes()).size


def put_back(site: Site, copy: bytes) -> None:
    """The tracker's owner brings back an older copy of the log."""
    site.signal("tracker", signal.SIGTERM)
    site.daemon("tracker").wait(20)
    for path in site.directory.glob("log.sqlite*"):
        path.unlink()
    (site.directory / "log.sqlite").write_bytes(copy)
    site.start_tracker()


def test_the_rewriter_keeps_the_last_checkpoint_and_finds_out_a_log_that_was_put_back(
    new_site: SiteMaker, tmp_path: Path
) -> None:
    key = SigningKey.generate("log.example/gateway-1")
    write_key_file(tmp_path / "log.key", key)
    public = [str(key.verifying_key)]
    site = new_site(tracker={"signing_key": str(tmp_path / "log.key"), "verifying_keys": public})
    site.start()
    size = sign(site)
    wait_until(lambda: kept_by(site).exists(), "the first checkpoint at the worker")
    assert parse_checkpoint(kept_by(site).read_bytes()).size == size
    site.signal("tracker", signal.SIGTERM)
    site.daemon("tracker").wait(20)
    old = (site.directory / "log.sqlite").read_bytes()
    site.start_tracker()
    site.lab.client("workstation-1", "Ann").command("call 203.0.113.10")
    site.await_holders(ANN)
    size = sign(site)
    wait_until(lambda: parse_checkpoint(kept_by(site).read_bytes()).size == size, "the next checkpoint")
    assert "evidence" not in site.said("rewriter")
    with site.reader() as log:
        assert verify(log, PROJECTIONS, keys=[key.verifying_key]).clean
    put_back(site, old)
    wait_until(lambda: "this is evidence against that log" in site.said("rewriter"), "the worker's protest")
    kept = kept_by(site).read_bytes()
    assert parse_checkpoint(kept).size >= size
    wait_until(kept_by(site).with_name(kept_by(site).name + EVIDENCE).exists, "the evidence kept")
    assert site.holders() == [ANN]
    with site.reader() as log:
        report = verify(log, PROJECTIONS, keys=[key.verifying_key], against=[kept])
    assert report.first is not None
    assert "cut off, or put back" in report.first.detail
