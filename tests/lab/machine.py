"""A machine of its own on a laboratory's gateway: systemd as PID 1, in namespaces, on a copy of our files.

Rule 1: what it writes goes into memory and is gone with it; of this machine it changes nothing: /sys and
/proc/sys (but for the network's) are read-only there, clock, modules and reboot out of its reach. Rule 2: it
dies with the laboratory. Rule 3: this checkout is there under its own path.
"""

import os
import subprocess
from functools import partial
from pathlib import Path
from typing import Final, Self

from tools.lab import Lab, wait_until

_ROOT: Final = Path(__file__).resolve().parents[2]
_INIT: Final = "/lib/systemd/systemd"
_MASKED: Final = (
    *("systemd-udevd", "systemd-sysctl", "systemd-modules-load", "systemd-timesyncd", "systemd-networkd"),
    *("systemd-resolved", "systemd-logind", "systemd-random-seed", "networking", "ifupdown-pre", "dbus"),
)
_CGROUPS: Final = (
    *(Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/systemd"), Path("/sys/fs/cgroup/unified")),
    *(Path("/sys/fs/cgroup") / name for name in ("memory", "pids", "devices")),
)
"""Of the kernel's one hierarchy, or of the older ones: those that systemd makes groups in."""
_TARGET: Final = "porthold-lab.target"
_BOOT: Final = """
mount -t tmpfs -o mode=755 memory "$1"
mkdir -p "$1/upper/etc/systemd/system" "$1/work" "$1/root"
for unit in $3; do ln -s /dev/null "$1/upper/etc/systemd/system/$unit.service"; done
: >"$1/upper/etc/fstab"
printf '[Unit]\\nWants=systemd-journald.service\\n' >"$1/upper/etc/systemd/system/$4"
mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
cd "$1/root"
mkdir -p "$1/root$2"
mount --rbind "$2" "$1/root$2"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,ro,bind proc/sys
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=755 tmpfs dev
for node in null zero full random urandom tty; do
    : >"dev/$node"
    mount --bind "/dev/$node" "dev/$node"
done
mkdir dev/shm dev/pts
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mkdir .old
pivot_root . .old
umount -l .old
exec env -i container=unshare PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
    setpriv --bounding-set -sys_time,-sys_module,-sys_boot,-syslog \\
    INIT --system --show-status=0 --log-target=journal --unit="$4"
""".replace("INIT", _INIT)


class Machine:
    """Booted on the gateway of `lab`, for as long as the block; `directory`: where its memory is mounted."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self._cgroups = [it / f"porthold-{os.getpid()}" for it in _CGROUPS if (it / "cgroup.procs").exists()]
        for cgroup in self._cgroups:
            cgroup.mkdir()
        enter = "".join(f"echo $$ >{cgroup}/cgroup.procs; " for cgroup in self._cgroups)
        unshare = (
            "unshare --mount --pid --cgroup --uts --ipc --fork --kill-child=SIGKILL --propagation private"
        )
        words = ["sh", "-euc", _BOOT, "sh", str(directory), str(_ROOT), " ".join(_MASKED), _TARGET]
        within = ["ip", "netns", "exec", lab.namespace("gateway"), *unshare.split(), *words]
        self._process = lab.start(None, ["sh", "-euc", f'{enter}exec "$@"', "sh", *within])

    def __enter__(self) -> Self:
        wait_until(lambda: self._init() is not None, "systemd as process 1", 20)
        wait_until(lambda: "running" in self.run("systemctl is-system-running", check=False), "a machine", 60)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for cgroup in self._cgroups:
            wait_until(partial(_is_empty, cgroup), f"nobody in {cgroup}", 20)
            for place in [it[0] for it in os.walk(cgroup, topdown=False)]:
                Path(place).rmdir()

    def _init(self) -> int | None:
        """The PID 1 of the machine, by its number here."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        for child in children.read_text().split():
            if Path(f"/proc/{child}/cmdline").read_text().startswith(_INIT):
                return int(child)
        return None

    def run(self, script: str, *, check: bool = True) -> str:
        """What a root's shell there prints."""
        init = self._init()
        enter = f"nsenter --target {init} --mount --pid --net --cgroup --uts --ipc env -i".split()
        words = [*enter, "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "sh", "-euc", script]
        done = subprocess.run(words, text=True, capture_output=True, check=False)
        assert done.returncode == 0 or not check, f"{script}: {done.stdout}{done.stderr}"
        return done.stdout

    def property(self, unit: str, name: str) -> str:
        return self.run(f"systemctl show --property={name} --value {unit}").strip()

    def said(self, unit: str) -> str:
        return self.run(f"journalctl --unit={unit} --output=cat --no-pager")

    def process(self, unit: str) -> dict[str, str]:
        """/proc/PID/status of its main process."""
        number = self.property(unit, "MainPID")
        lines = self.run(f"cat /proc/{number}/status").splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _is_empty(cgroup: Path) -> bool:
    """Whether nobody is in it, nor below."""
    return not any((Path(place) / "cgroup.procs").read_text() for place, _, _ in os.walk(cgroup))
