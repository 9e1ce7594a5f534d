"""The kernel's side of the laboratory: network namespaces, their names, and what is set in them.

Rule 1: a namespace's name says who owns it, by pid and start time; anyone may remove what the dead left.
Rule 2: the caller's own namespace is never changed: whoever has to be inside is a thread or a process.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

NAMESPACES: Final = Path("/run/netns")
PREFIX: Final = "ph-"

_CLONE_NEWNET: Final = 0x40000000
_SIOCETHTOOL: Final = 0x8946
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1
_ETHTOOL_STXCSUM: Final = 0x17
_TOOLS: Final = {"ip": "iproute2", "nft": "nftables", "setpriv": "util-linux"}
_numbers = count(1)


class LabError(Exception):
    """The laboratory cannot be built (says what is missing), or what was awaited in it did not come."""


def new_prefix() -> str:
    """What the names of a new lab's namespaces begin with: unique on this machine until it boots again."""
    return f"{PREFIX}{os.getpid()}-{_start_of(os.getpid())}-{next(_numbers)}-"


def remove_stale() -> list[str]:
    """Remove the namespaces whose owner is dead, with what still runs in them; returns their names."""
    stale = [path.name for path in NAMESPACES.glob(f"{PREFIX}*") if not _is_owned(path.name)]
    remove(stale)
    return stale


def _is_owned(name: str) -> bool:
    pid, start = name.split("-")[1:3]
    try:
        return _start_of(int(pid)) == int(start)
    except (ProcessLookupError, FileNotFoundError):
        return False
    except ValueError:
        return True  # not a name of ours


def _start_of(pid: int) -> int:
    """When a process was started, in ticks since boot (proc(5), field 22): with the pid, never used twice."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[19])


def remove(names: list[str]) -> None:
    for name in names:
        pids = subprocess.run(
            ["ip", "netns", "pids", name], capture_output=True, text=True, check=False, start_new_session=True
        )
        for pid in pids.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    if names:
        # -force goes on after a name that another lab has removed meanwhile.
        subprocess.run(
            ["ip", "-force", "-batch", "-"],
            input="".join(f"netns delete {name}\n" for name in names),
            text=True,
            capture_output=True,
            check=False,
            start_new_session=True,
        )


def check_machine() -> None:
    missing = {tool: package for tool, package in _TOOLS.items() if shutil.which(tool) is None}
    if missing:
        tools, packages = ", ".join(missing), " ".join(sorted(set(missing.values())))
        raise LabError(f"not found: {tools}. Debian and Ubuntu have them: apt-get install {packages}")
    if os.geteuid() != 0:
        raise LabError("network namespaces are made by root: run this with sudo")


def carry_out(namespace: str | None, commands: list[str]) -> None:
    """Carry out commands of `ip` in a namespace (None: the machine's own); LabError if one fails."""
    words = ["ip", *([] if namespace is None else ["-netns", namespace]), "-batch", "-"]
    done = subprocess.run(
        words, input="\n".join(commands), text=True, capture_output=True, check=False, start_new_session=True
    )
    if done.returncode:
        raise LabError(
            f"{' '.join(words)}: {done.stderr.strip()}. A laboratory needs network namespaces, veth and "
            "bridge in the kernel, and root with CAP_NET_ADMIN and CAP_SYS_ADMIN (a container: --privileged)."
        )


def await_links(names: Iterable[str], timeout_s: float = 20.0) -> None:
    """Wait until every link in these namespaces carries packets; LabError naming one that never does.

    A link's other end makes it ready in the kernel's own time (net/core/link_watch.c): on a loaded machine
    that is seconds, and until then a first packet is dropped without a word.
    """
    deadline_s = time.monotonic() + timeout_s
    for name in names:
        while unready := [link for link in _links(name) if not _is_ready(link)]:
            if time.monotonic() > deadline_s:
                raise LabError(f"{unready[0]['ifname']} in {name} is not ready after {timeout_s} s")
            time.sleep(0.02)


def _links(name: str) -> list[dict[str, Any]]:
    words = ["ip", "-netns", name, "-json", "-details", "link"]
    listed = subprocess.run(words, capture_output=True, text=True, check=True, start_new_session=True)
    found: list[dict[str, Any]] = json.loads(listed.stdout)
    return [link for link in found if link["ifname"] != "lo"]


def _is_ready(link: dict[str, Any]) -> bool:
    port = link.get("linkinfo", {}).get("info_slave_data", {}).get("state", "forwarding")
    return (link["operstate"], port) == ("UP", "forwarding") and link["qdisc"] != "noop"


def within(namespace: str, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function in a thread that is in a namespace: sockets that it makes belong there."""
    results: list[R] = []
    errors: list[BaseException] = []

    def enter_and_call() -> None:
        try:
            with (NAMESPACES / namespace).open() as file:
                if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
            results.append(function(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            errors.append(error)

    # A namespace belongs to the thread, and ends with it: the caller's own is never changed.
    thread = threading.Thread(target=enter_and_call)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def set_namespace_up() -> None:
    """What a usual home gateway has set; IPv6 off keeps its chatter out of the captures."""
    root = Path("/proc/sys/net")
    (root / "ipv4/ip_forward").write_text("1")
    for where in ("all", "default"):
        (root / f"ipv4/conf/{where}/rp_filter").write_text("2")
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            (root / f"ipv6/conf/{where}/disable_ipv6").write_text("1")
    with contextlib.suppress(FileNotFoundError):  # no br_netfilter, so bridged frames pass no iptables
        (root / "bridge/bridge-nf-call-iptables").write_text("0")
    _switch_up("lo")


def _switch_up(interface: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14x", interface.encode(), 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(control, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", interface.encode(), flags | _IFF_UP))


def switch_offload_off() -> None:
    for _, interface in socket.if_nameindex():
        if interface != "lo":
            _switch_checksum_offload_off(interface)


def _switch_checksum_offload_off(interface: str) -> None:
    """`ethtool -K INTERFACE tx off`, without ethtool (struct ifreq, struct ethtool_value)."""
    value = ctypes.create_string_buffer(struct.pack("=II", _ETHTOOL_STXCSUM, 0))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sP16x", interface.encode(), ctypes.addressof(value))
        fcntl.ioctl(control, _SIOCETHTOOL, request)
