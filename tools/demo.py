"""`porthold demo`: a real call through a real gateway, on this machine, and then: who held the port?

Rule 1: nothing is faked. Tracker and rewriter are the processes that users run, the network is the kernel's.
Rule 2: each sentence with a check mark was checked just before it was printed; the first that does not hold
ends the demo with exit code 1.
Rule 3: nothing is left behind, however it ends: see `tools/lab.py`.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click
from rich.console import Console

from rewriter.cuseeme import Header, encode_video
from tools.lab import Actor, Lab, LabError, packets_seen, wait_until
from tools.namespaces import NAMESPACES
from tools.narrator import FactFailed, Narrator
from tools.stage import GATEWAY, IDLE_S, OUTSIDE, PORT, REFLECTOR, Stage

MEDIA: Final = {"video": "video 40 20", "audio": "audio 30 15"}
MEDIA_PACKETS: Final = {"video": 44, "audio": 30}
"""What MEDIA comes to: each tenth frame of video is two packets, the first of them larger than the MTU."""
ON_ITS_WAY_S: Final = 0.1
"""So long a packet may still be on its way before it counts as one that does not come."""
WRONG: Final = ("dropped", "wrong_entry", "wrong_speaker", "wrong_checksum", "ignored")
"""Counters of what may never happen: wrong addresses, wrong checksums, packets that belong to no call."""
HELD_PORT: Final = f"{GATEWAY}:{PORT}"

PICTURE: Final = """\
Ann 192.168.1.10 ─┐                                  ┌─ reflector 203.0.113.10 (a conference)
                  ├─ 192.168.1.1  gateway  192.0.2.2 ┼─ Olga 198.18.0.5
Ben 192.168.1.11 ─┘                                  └─ Zoe 198.51.100.20"""


def without_porthold(stage: Stage) -> None:
    """The reflector refuses who is only masqueraded."""
    tell = stage.narrator
    tell.step(
        "Without porthold",
        "CU-SeeMe writes its address into every packet. Masquerading changes the packet's own address, not",
        "that one. Ann calls the reflector, which compares the two, as many real ones did.",
    )
    ann = stage.lab.client("workstation-1", "Ann", "--ephemeral")
    ann.command(f"call {REFLECTOR}")
    refused = stage.reflector.wait_for("refused", header=ann.udp)
    lost = ann.wait_for("dropped", kind="text")
    tell.fact(
        f"the reflector refuses her: her packet comes from {refused['udp']}, and says {refused['header']}",
        holds=refused["udp"].startswith(f"{GATEWAY}:") and not stage.reflector.seen("login", name="Ann"),
    )
    tell.fact(
        f"she is not even told: its answer is addressed to {lost['addressed_to']}, so her program drops it",
        holds=lost["addressed_to"] == GATEWAY and not ann.seen("refused"),
    )
    ann.process.kill()
    ann.process.wait()


def start_porthold(stage: Stage) -> None:
    """Tracker and rewriter, each a process."""
    tell = stage.narrator
    tell.step(
        "Tracker and rewriter start",
        "The tracker decides who holds a port, and keeps the log. The rewriter tells the gateway's kernel.",
    )
    tell.command("$ porthold tracker --config porthold.toml &")
    stage.start("tracker", None)
    tell.command("gateway$ porthold rewriter --config porthold.toml &")
    stage.start("rewriter", "gateway")
    listing = ["nft", "list", "table", "ip", "porthold"]
    wait_until(
        lambda: stage.lab.run("gateway", listing, check=False).returncode == 0,
        "the rewriter's rules are in the gateway's kernel",
        timeout_s=15,
    )
    tell.fact("its rules are in the gateway's kernel; nobody holds the port", holds=not stage.bindings())
    stage.ann = stage.lab.client("workstation-1", "Ann", "--answer")
    stage.ben = stage.lab.client("workstation-2", "Ben", "--answer")
    stage.remember("before anyone calls", None)


def ann_calls(stage: Stage) -> None:
    """The first to call holds the port."""
    tell = stage.narrator
    tell.step(
        "Ann calls the reflector",
        "Her first packet waits in the gateway until the log says that the port is hers. Olga is there.",
    )
    stage.ann.command(f"call {REFLECTOR}")
    login = stage.reflector.wait_for("login", name="Ann")
    stage.ann.wait_for("login", peer=f"{REFLECTOR}:{PORT}")
    watched = [stage.ann.wait_for("watched", name="Olga"), stage.olga.wait_for("watched", name="Ann")]
    [binding] = stage.bindings()
    earlier_ms = (login["at"] - binding.since_s) * 1e3
    tell.fact(
        f"the reflector lets her in: the packet comes from {login['udp']}, and says {login['header']}",
        holds=login["udp"] == login["header"] == HELD_PORT,
    )
    tell.fact(
        f"{earlier_ms:.0f} ms before, the log had it: {binding.holder} holds the port",
        holds=earlier_ms >= 0 and binding.holder == stage.ann.address and binding.until_s is None,
    )
    tell.fact("Ann and Olga are each told that the other one watches", holds=len(watched) == 2)


def media_cross(stage: Stage) -> None:
    """Video and sound, both ways; none of it leaves the kernel."""
    tell, ann, olga = stage.narrator, stage.ann, stage.olga
    tell.step("They see and hear each other", "Video and sound for two seconds, both ways at once.")
    before, upcalls = _counts(ann), stage.upcalls()
    with packets_seen(stage.lab, "reflector", "eth0") as packets:
        arrived = _exchange_media(ann, olga)
    upcalls = stage.upcalls() - upcalls
    time.sleep(ON_ITS_WAY_S)
    after = _counts(ann)
    talk = sum(after[kind] - before[kind] for kind in after if kind.endswith("_open_continue"))
    fragments = sum(1 for packet in packets if int.from_bytes(packet[6:8], "big") & 0x3FFF)
    tell.fact(
        f"all {arrived} packets of video and sound arrived; large ones as IP fragments ({fragments} seen)",
        holds=arrived == 2 * sum(MEDIA_PACKETS.values()) and fragments > 0,
    )
    tell.fact(
        f"the kernel asked the rewriter {upcalls} times, for the call's {talk} keep-alives; for media never",
        holds=upcalls <= talk,
    )
    tell.fact(
        "every packet named the right addresses, and every checksum was right",
        holds=_wrongs(ann, olga, stage.reflector) == 0,
    )


def ben_is_refused(stage: Stage) -> None:
    """The second to call is told so by ICMP."""
    tell = stage.narrator
    tell.step("Ben calls too", "There is only one port 7648 at 192.0.2.2, and Ann holds it.")
    members = len(stage.reflector.seen("login"))
    answer = stage.ben.wait_for("icmp", since=stage.ben.command(f"call {REFLECTOR}"))
    stage.ben.wait_for("abandoned", since=stage.ben.command("abandon"))
    tell.fact(
        f"the gateway ({answer['from']}) answers with ICMP: {answer['text']}",
        holds=answer["type"] == 3 and answer["code"] in {9, 10, 13} and answer["from"] == "192.168.1.1",
    )
    tell.fact(
        "the reflector hears nothing of Ben, and Ann's call goes on",
        holds=len(stage.reflector.seen("login")) == members and not stage.reflector.seen("left"),
    )
    stage.remember("while Ann was in her call", stage.ann.address)


def zoe_calls(stage: Stage) -> Actor:
    """A caller from outside, from another port, reaches the holder."""
    tell = stage.narrator
    zoe = stage.lab.client("zoe", "Zoe", "--ephemeral", "--address-peer")
    tell.step(
        "Zoe calls from outside", f"She knows only {GATEWAY}, and she calls from {zoe.udp}, not from 7648."
    )
    zoe.command(f"call {GATEWAY}")
    call = stage.ann.wait_for("called", name="Zoe")
    zoe.wait_for("connected", peer=HELD_PORT)
    tell.fact(
        f"the call of {call['peer']} reaches Ann, who holds the port; she answers",
        holds=call["peer"] == zoe.udp and not stage.ben.seen("called"),
    )
    _exchange_media(stage.ann, zoe)
    stage.ann.wait_for("media", kind="video", name="Zoe")
    tell.fact(
        "they see and hear each other; again each packet names the right addresses",
        holds=_wrongs(stage.ann, zoe, stage.olga, stage.reflector) == 0
        and bool(zoe.seen("media", name="Ann")),
    )
    return zoe


def ann_hangs_up(stage: Stage, zoe: Actor) -> float:
    """Hanging up frees the port; returns when she did, as wall time."""
    tell = stage.narrator
    tell.step("Ann hangs up", "Her program says goodbye to the reflector and to Zoe, and ends.")
    goodbye = stage.ann.wait_for("hung_up", since=stage.ann.command("hangup"))
    heard = [
        stage.reflector.wait_for("left", name="Ann", cause="hang-up"),
        stage.olga.wait_for("peer_hung_up", name="Ann"),
        zoe.wait_for("peer_hung_up", name="Ann"),
    ]
    tell.fact("the reflector, Olga and Zoe have heard it", holds=len(heard) == 3)
    wait_until(lambda: stage.bindings()[0].until_s is not None, "the port is free")
    [binding] = stage.bindings()
    freed_ms = ((binding.until_s or 0) - goodbye["at"]) * 1e3
    tell.fact(
        f"{freed_ms:.0f} ms later the log says that the port is free; the reason: {binding.reason}",
        holds=freed_ms >= 0 and binding.reason == "hang-up",
    )
    late = encode_video(Header(port=PORT), bytes(100)).hex()
    with packets_seen(stage.lab, "workstation-1", "eth0") as packets:
        for _ in range(20):
            zoe.command(f"send {HELD_PORT} {late}")
        zoe.counters()
        time.sleep(ON_ITS_WAY_S)
    tell.fact("Zoe sends 20 packets more: not one reaches Ann's machine", holds=not packets)
    return float(goodbye["at"])


def ben_gets_it(stage: Stage, goodbye_s: float) -> None:
    """The second gets the port at once, for the same peer."""
    tell = stage.narrator
    tell.step("Ben tries again", "The same reflector, the same port.")
    stage.ben.command(f"call {REFLECTOR}")
    login = stage.reflector.wait_for("login", name="Ben")
    stage.ben.wait_for("watched", name="Olga")
    *_, binding = stage.bindings()
    tell.fact(
        f"he is in: the packet comes from {login['udp']}, and says {login['header']}",
        holds=login["udp"] == login["header"] == HELD_PORT,
    )
    tell.fact(
        f"{binding.holder} holds the port, {binding.since_s - goodbye_s:.1f} s after Ann's goodbye",
        holds=binding.holder == stage.ben.address and binding.until_s is None,
    )
    stage.remember("while Ben was in his call", stage.ben.address)


def ben_falls_silent(stage: Stage) -> None:
    """A holder that sends nothing loses the port, by the kernel's own timer."""
    tell = stage.narrator
    tell.step(
        "Ben's machine crashes",
        f"No goodbye. When he has sent nothing for {IDLE_S:.0f} s (usually: 5 minutes), he loses the port.",
    )
    stage.ben.wait_for("silent", since=stage.ben.command("silence"))
    last_packet_s = stage.ben.counters()["last_sent_at"]
    wait_until(lambda: stage.bindings()[-1].until_s is not None, "Ben loses the port", timeout_s=IDLE_S + 5)
    *_, binding = stage.bindings()
    idle_s = (binding.until_s or 0) - last_packet_s
    tell.fact(
        f"it is free {idle_s:.1f} s after his last packet; the reason: {binding.reason}",
        holds=IDLE_S <= idle_s <= IDLE_S + 2 and binding.reason == "idle",
    )


def ask_the_log(stage: Stage) -> None:
    """Who held it, and when: from the log alone, after tracker and rewriter have ended."""
    tell = stage.narrator
    tell.step("Who held the port?", "Rewriter and tracker are told to end. What they knew is in the log.")
    codes = [stage.stop("rewriter"), stage.stop("tracker")]
    tell.fact("both have ended in good order", holds=codes == [0, 0])
    show_bindings(stage)
    for moment in stage.moments:
        at = datetime.fromtimestamp(moment.at_s, UTC).isoformat(timespec="milliseconds")
        question = ("--at", at.replace("+00:00", "Z"), "--port", str(PORT))
        tell.command(f"$ porthold who {' '.join(question)}")
        tell.verbatim(stage.porthold("who", *question).stdout)
        [finding] = stage.ask("who", *question)["findings"]
        holder = finding["holding"]["holder"] if finding["answer"] == "held" else finding["answer"]
        expected = moment.holder or "nobody"
        tell.fact(f"{moment.what}: {expected}", holds=holder == expected)
    tell.command("$ porthold verify")
    verified = stage.porthold("verify")
    tell.verbatim(verified.stdout)
    tell.fact("the log is whole", holds=verified.returncode == 0)


def show_bindings(stage: Stage) -> None:
    """The bindings in a few words; `porthold holds` has more columns."""
    lines = [("binding", "holder", "user", "from (UTC)", "until", "ended by")]
    lines += [
        (
            str(binding.number),
            binding.holder,
            binding.user or "-",
            _clock(binding.since_s),
            _clock(binding.until_s),
            binding.reason or "-",
        )
        for binding in stage.bindings()
    ]
    stage.narrator.verbatim("\n".join("{:<9}{:<14}{:<6}{:<14}{:<14}{}".format(*line) for line in lines))
    stage.narrator.fact("two bindings, one after the other", holds=_is_one_after_the_other(stage))


def _is_one_after_the_other(stage: Stage) -> bool:
    first, second = stage.bindings()
    return first.until_s is not None and first.until_s <= second.since_s and second.until_s is not None


def _clock(wall_s: float | None) -> str:
    return "-" if wall_s is None else f"{datetime.fromtimestamp(wall_s, UTC):%H:%M:%S.%f}"[:-3]


def play(stage: Stage) -> None:
    """The whole piece."""
    stage.reflector = stage.lab.reflector()
    stage.olga = stage.lab.client("olga", "Olga")
    stage.olga.command(f"call {REFLECTOR}")
    stage.olga.wait_for("login")
    without_porthold(stage)
    start_porthold(stage)
    ann_calls(stage)
    media_cross(stage)
    ben_is_refused(stage)
    zoe = zoe_calls(stage)
    ben_gets_it(stage, ann_hangs_up(stage, zoe))
    ben_falls_silent(stage)
    ask_the_log(stage)


def _counts(actor: Actor) -> dict[str, int]:
    """How many packets of each kind an actor has sent and received."""
    counters = actor.counters()
    ways = [f"{way}_{kind}" for way in ("sent", "received") for kind in ("video", "audio", "open_continue")]
    return {name: counters.get(name, 0) for name in ways}


def _exchange_media(one: Actor, other: Actor) -> int:
    """Let both send, and wait until all of it has arrived; how many packets those were."""
    before = {actor.place: _counts(actor) for actor in (one, other)}
    marks = [(actor, kind, actor.command(words)) for actor in (one, other) for kind, words in MEDIA.items()]
    for actor, kind, mark in marks:
        actor.wait_for("sent", since=mark, kind=kind)

    def received() -> list[int]:
        return [
            _counts(actor)[f"received_{kind}"] - before[actor.place][f"received_{kind}"]
            for actor in (one, other)
            for kind in MEDIA
        ]

    sent = [MEDIA_PACKETS[kind] for _ in (one, other) for kind in MEDIA]
    wait_until(lambda: received() == sent, f"{one.place} and {other.place} receive all of each other's media")
    return sum(received())


def _wrongs(*actors: Actor) -> int:
    return sum(actor.counters().get(name, 0) for actor in actors for name in WRONG)


@contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="porthold-demo-") as name:
            yield Path(name)
        return
    keep.mkdir(parents=True, exist_ok=True)
    if any(keep.iterdir()):
        raise click.UsageError(f"{keep} is not empty")
    yield keep.absolute()


def run(console: Console, keep: Path | None) -> int:
    """Play it; the exit code."""
    began_s = time.monotonic()
    narrator = Narrator(console)
    with _directory(keep) as directory:
        console.print("[bold]A CU-SeeMe call through a masquerading gateway[/bold]\n")
        narrator.verbatim(PICTURE)
        narrator.say("Each is a network namespace of this machine, and so is the Internet between them.")
        with Lab(outside=OUTSIDE) as lab:
            stage = Stage(lab, directory, narrator)
            try:
                play(stage)
            except (FactFailed, LabError, subprocess.SubprocessError) as failure:
                narrator.failure(str(failure))
                for name in stage.daemons:
                    narrator.say(f"The last words of {name}:")
                    narrator.verbatim(stage.last_words(name))
                return 1
        narrator.step("The end")
        left = list(NAMESPACES.glob(f"{lab.namespace('')}*"))
        running = [name for name, process in stage.daemons.items() if process.poll() is None]
        narrator.fact(
            "nothing is left: no namespace, and so no table; no process", holds=not left and not running
        )
    console.print(
        f"\n[bold green]{narrator.facts} facts, and all of them held[/bold green] "
        f"({time.monotonic() - began_s:.0f} s)"
    )
    return 0


@click.command("demo")
@click.option(
    "--keep",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep the log, the configuration and what the daemons print in this directory (empty or new).",
)
def command(keep: Path | None) -> None:
    """Play a real call through a real gateway on this machine, and ask the log who held the port.

    Exit code 0: every fact that was printed held. 1: one did not. 2: this machine can't show it.
    """
    console = Console(highlight=False)
    try:
        sys.exit(run(console, keep))
    except LabError as error:
        click.echo(f"porthold demo: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("\nStopped. Nothing is left.")
        sys.exit(130)
