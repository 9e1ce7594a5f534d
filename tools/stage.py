"""Where the demo plays: the laboratory, the actors in it, and porthold's own processes and commands.

Rule: porthold is used here only as its users use it: one configuration file, the command line, the log.
"""

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from tools.lab import Actor, Lab
from tools.narrator import FactFailed, Narrator

IDLE_S: Final = 4.0
PORT: Final = 7648
REFLECTOR: Final = "203.0.113.10"
GATEWAY: Final = "192.0.2.2"
OUTSIDE: Final = {"reflector": REFLECTOR, "olga": "198.18.0.5", "zoe": "198.51.100.20"}
STOPPING_S: Final = 10.0

CONFIGURATION: Final = """\
[tracker]
endpoint = "ipc://{directory}/tracker.ipc"
reader_endpoint = "ipc://{directory}/reader.ipc"
operator_endpoint = "ipc://{directory}/operator.ipc"
log = "{directory}/log.sqlite"

[gateway]
name = "gateway-1"
lan = ["lan0"]
wan = "wan0"
public_address = "{gateway}"
state_directory = "{directory}"

[services.cuseeme]
profile = "cuseeme"
idle_s = {idle_s}  # usually 300; nobody wants to wait that long in a demo
"""


@dataclass(frozen=True, slots=True)
class Binding:
    """What `porthold holds` says of one binding, as far as the demo asks; times are wall time in seconds."""

    number: int
    holder: str
    user: str | None
    since_s: float
    until_s: float | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Moment:
    """A wall time worth asking about, and what `porthold who` has to answer."""

    at_s: float
    what: str
    holder: str | None


@dataclass
class Stage:
    """The place and the cast; Ann and Ben come in when the gateway is ready for them."""

    lab: Lab
    directory: Path
    narrator: Narrator
    reflector: Actor = field(init=False)
    olga: Actor = field(init=False)
    ann: Actor = field(init=False)
    ben: Actor = field(init=False)
    daemons: dict[str, subprocess.Popen[Any]] = field(default_factory=dict)
    moments: list[Moment] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.configuration.write_text(
            CONFIGURATION.format(directory=self.directory, gateway=GATEWAY, idle_s=IDLE_S)
        )

    @property
    def configuration(self) -> Path:
        """The one file that all commands read."""
        return self.directory / "porthold.toml"

    def remember(self, what: str, holder: str | None) -> None:
        """Keep this moment for the questions at the end."""
        self.moments.append(Moment(time.time(), what, holder))

    def start(self, name: str, place: str | None) -> None:
        """Start `porthold tracker` or `porthold rewriter`; what it prints goes into a file."""
        with self._output(name).open("wb") as output:
            self.daemons[name] = self.lab.start(
                place, self._argv(name), stdout=output, stderr=subprocess.STDOUT
            )

    def stop(self, name: str) -> int:
        """Ask a daemon to end, as `systemctl stop` does; its exit code."""
        process = self.daemons[name]
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(STOPPING_S)
        except subprocess.TimeoutExpired:
            raise FactFailed(f"{name} ends when it is told to") from None

    def last_words(self, name: str) -> str:
        """The end of what a daemon has printed."""
        return "\n".join(self._output(name).read_text(errors="replace").splitlines()[-15:])

    def porthold(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a reading command to its end."""
        return subprocess.run(
            self._argv(name, *arguments), capture_output=True, text=True, check=False, start_new_session=True
        )

    def ask(self, name: str, *arguments: str) -> Any:  # noqa: ANN401 - whatever JSON says
        """What a reading command answers with `--json`; its exit code 1 is an answer too (nobody, none)."""
        done = self.porthold(name, *arguments, "--json")
        try:
            return json.loads(done.stdout)
        except json.JSONDecodeError:
            raise FactFailed(f"`porthold {name} --json` answers (it said: {done.stderr.strip()})") from None

    def bindings(self) -> list[Binding]:
        """All bindings in the log, oldest first."""
        return [
            Binding(
                number=binding["binding"],
                holder=binding["holder"],
                user=binding["user_name"],
                since_s=_seconds(binding["since"]),
                until_s=None if binding["until"] is None else _seconds(binding["until"]),
                reason=binding["reason"],
            )
            for binding in reversed(self.ask("holds"))
        ]

    def upcalls(self) -> int:
        """How many packets the gateway's kernel has handed to the rewriter so far, by its own count."""
        queues = self.lab.run("gateway", ["cat", "/proc/net/netfilter/nfnetlink_queue"]).stdout
        return sum(int(line.split()[7]) for line in queues.splitlines())

    def _output(self, name: str) -> Path:
        return self.directory / f"{name}.output"

    def _argv(self, name: str, *arguments: str) -> list[str]:
        executable = Path(sys.executable).with_name("porthold")
        return [str(executable), name, "--config", str(self.configuration), *arguments]


def _seconds(moment: str) -> float:
    """Seconds since 1970, to the microsecond, of a time as `--json` has it."""
    whole, _, fraction = moment.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{whole}.{fraction[:6]}+00:00").timestamp()
