"""`porthold doctor`: would a rewriter run here? What is there, what is missing, and how to mend it.

Rule 1: nothing of the machine is changed: rules are tried in network namespaces that end at once.
Rule 2: `fail` keeps a rewriter from running or a call from passing; `warn` may surprise later.
Rule 3: what can't be tried, because something before it failed, is a `warn` that says so.
"""

import importlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import click

from rewriter import probing
from rewriter.command import KernelRefused, run
from rewriter.configuration import GatewayFile, GatewaySection, kernel_services, ruleset_for
from rewriter.probing import CAP_NET_ADMIN, CAP_SYS_ADMIN
from rewriter.ruleset import render
from rewriter.vocabulary import MOST_SPEAKERS
from tools.firewalls import guards
from tools.options import DEFAULT_CONFIG, config_option, json_option
from tools.output import print_json, print_line
from tracker.configuration import ConfigurationError, load

KERNEL_WANTED: Final = (5, 16)
KERNEL_NEEDED: Final = (5, 6)  # ranges in concatenated sets; below KERNEL_WANTED with datapath "queue"
NFT_NEEDED: Final = (0, 9, 4)
CONNECTIONS_NEARLY_ALL: Final = 0.9
STRICT: Final = 1  # rp_filter, Documentation/networking/ip-sysctl.rst
READS_A_QUEUE: Final = "from rewriter.queues import Queue; Queue(17648).close()"
STYLES: Final = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the answer. `mend`: what to do; empty where all is well."""

    state: Literal["ok", "warn", "fail"]
    what: str
    found: str
    mend: str = ""


@click.command("doctor")
@config_option
@json_option
def command(config: Path | None, *, as_json: bool) -> None:
    """Would a rewriter run here: rights, kernel, nft, queues, configuration, forwarding.

    Ends with 0 if it would (warnings or not), with 1 if something fails. Run it as the rewriter will run: as
    root, and within the gateway's network namespace.
    """
    found = list(examine(config or DEFAULT_CONFIG))
    would_run = not any(check.state == "fail" for check in found)
    if as_json:
        print_json({"would_run": would_run, "checks": found})
    else:
        for check in found:
            print_line((f"{check.state:<5}", STYLES[check.state]), f"{check.what}: {check.found}")
            if check.mend:
                print_line(f"      {check.mend}")
        print_line(("A rewriter would run here." if would_run else "A rewriter would not run here.", "bold"))
    sys.exit(0 if would_run else 1)


def examine(config: Path) -> Iterator[Check]:
    """All checks, in the order in which things depend on each other."""
    rights = list(check_rights(os.geteuid(), Path("/proc/self/status").read_text()))
    yield from rights
    yield check_kernel_version(os.uname().release)
    yield from check_tools()
    libraries = check_libraries()
    yield libraries
    file, problems = read_file(config)
    if any(check.state == "fail" for check in (*rights, libraries)):
        yield Check("warn", "kernel", "rewriting and queues not tried, because of the above")
    else:
        yield from check_kernel(file)
    yield from problems
    yield from check_forwarding(Path("/proc/sys/net/ipv4"))
    yield from check_connection_table(Path("/proc/sys/net/netfilter"))
    if file is not None and file.gateway is not None:
        yield from check_gateway(file, file.gateway)
        yield from check_firewalls(file, file.gateway)


# --- rights, tools, libraries -------------------------------------------------------------------------------


def check_rights(user: int, status: str) -> Iterator[Check]:
    """`status`: /proc/self/status."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    capabilities = int(found[1], 16) if found else 0
    wanted = {"CAP_NET_ADMIN": CAP_NET_ADMIN, "CAP_SYS_ADMIN": CAP_SYS_ADMIN}
    missing = [name for name, bit in wanted.items() if not capabilities >> bit & 1]
    if user != 0:
        yield Check("fail", "rights", f"user {user} is not root", "run it with sudo, or as a system service")
    elif missing:
        mend = "give the container these capabilities, or run it on the machine itself"
        yield Check("fail", "rights", f"root, but without {' and '.join(missing)}", mend)
    else:
        yield Check("ok", "rights", "root, with CAP_NET_ADMIN and CAP_SYS_ADMIN")


def check_kernel_version(release: str) -> Check:
    if version_in(release) >= KERNEL_WANTED:
        return Check("ok", "kernel version", release)
    mend = "install a kernel of 5.16 or newer (Debian 12 has 6.1): older ones can't rewrite payload"
    state: Literal["warn", "fail"] = "warn" if version_in(release) >= KERNEL_NEEDED else "fail"
    return Check(state, "kernel version", release, mend)


def version_in(text: str) -> tuple[int, ...]:
    """The first number with dots in a text, as a tuple; empty if there is none."""
    found = re.search(r"\d+(?:\.\d+)+", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def check_tools() -> Iterator[Check]:
    yield check_tool("nft", "nftables", NFT_NEEDED)
    yield check_tool("conntrack", "conntrack")
    yield check_tool("unshare", "util-linux")


def check_tool(tool: str, package: str, wanted: tuple[int, ...] = ()) -> Check:
    if shutil.which(tool) is None:
        return Check("fail", tool, "is not installed", f"apt-get install {package}")
    said = output_of([tool, "--version"]).strip()
    if not said:
        return Check("fail", tool, "does not run", f"apt-get install --reinstall {package}")
    if version_in(said) < wanted:
        least = ".".join(map(str, wanted))
        return Check("fail", tool, f"{said}; {least} is needed", f"install {package} {least} or newer")
    return Check("ok", tool, said)


def output_of(argv: list[str]) -> str:
    """What a tool says on stdout, empty if it fails."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    return done.stdout if done.returncode == 0 else ""


def check_libraries() -> Check:
    """Those that the rewriter's modules load; nothing else of doctor needs them."""
    try:
        importlib.import_module("rewriter.queues")
        importlib.import_module("rewriter.tables").Tables()
    except (ImportError, OSError) as error:
        mend = "apt-get install libnftables1 libnetfilter-queue1; then the set-up again (tools/demo)"
        return Check("fail", "libraries", str(error), mend)
    return Check("ok", "libraries", "libnftables and netfilterqueue can be loaded")


# --- what the kernel can ------------------------------------------------------------------------------------


def check_kernel(file: GatewayFile | None) -> Iterator[Check]:
    wanted = "auto" if file is None or file.gateway is None else file.gateway.datapath
    in_kernel, datapath = check_datapath(wanted, probing.refused_rewriting())
    yield datapath
    native = probing.has_native_queue()
    queues = list(check_queues(native=native))
    yield from queues
    speakers = probing.most_speakers()
    if in_kernel and speakers < MOST_SPEAKERS:
        found = f"{speakers} speaker addresses of an audio packet are translated, of {MOST_SPEAKERS} possible"
        yield Check("warn", "speakers", found, "a newer kernel reaches all; calls work all the same")
    else:
        yield Check("ok", "speakers", f"all {MOST_SPEAKERS} speaker addresses are translated")
    yield check_connections()
    if file is not None and file.gateway is not None and file.services:
        rules = ruleset_for(
            file, 1, native_queue=native, most_speakers=speakers, rewrites_in_kernel=in_kernel
        )
        said = probing.try_in_vain(render(rules, 1, (), replaces=None))
        if said is None:
            yield Check("ok", "ruleset", "the kernel takes the rules of this configuration")
        else:
            mend = "a kernel with CONFIG_NFT_NAT and CONFIG_NFT_CT; Debian's own has them"
            yield Check("fail", "ruleset", f"the kernel refuses the rules: {said}", mend)


def check_datapath(wanted: str, refused: str | None) -> tuple[bool, Check]:
    """Whether the kernel is to rewrite packets, and what is to be said of it; `refused`: why it can't."""
    mend = "kernel 5.16 with CONFIG_NF_TABLES, CONFIG_NF_TABLES_IPV4; nft 1.0.1: Debian 12 has all of it"
    cannot = f"the kernel refuses @ih … set …: {refused}"
    if wanted == "queue":
        return False, Check("ok", "datapath", 'queue, as configured: gateway.datapath = "queue"')
    if refused is None:
        return True, Check("ok", "datapath", "kernel: it rewrites payload (@ih … set …)")
    if wanted == "kernel":
        return True, Check("fail", "datapath", cannot, f'{mend}; or gateway.datapath = "auto"')
    said = f"queue: {cannot}; the worker does it, for fewer packets a second, and calls wait for it"
    return False, Check("warn", "datapath", said, mend)


def check_queues(*, native: bool) -> Iterator[Check]:
    refused = None if native else probing.has_iptables_queue()
    if refused is not None:
        mend = "apt-get install iptables; modprobe -a nfnetlink_queue xt_NFQUEUE; or CONFIG_NFT_QUEUE"
        yield Check("fail", "queue", f"neither nft's queue nor iptables-nft's NFQUEUE: {refused}", mend)
        return
    kind = "nft's queue" if native else "iptables-nft's NFQUEUE (this kernel has no nft queue)"
    yield Check("ok", "queue", kind)
    said = refusal([sys.executable, "-c", READS_A_QUEUE])
    if said is not None:
        yield Check("fail", "queue reader", f"no queue can be read: {said}", "modprobe nfnetlink_queue")


def check_connections() -> Check:
    said = refusal(["conntrack", "-L"])
    if said is None:
        return Check("ok", "connections", "conntrack lists them")
    return Check("fail", "connections", f"conntrack can't list them: {said}", "modprobe nf_conntrack_netlink")


def refusal(argv: list[str]) -> str | None:
    """What a command says against running in a network namespace of its own; None if it runs."""
    try:
        run(["unshare", "--net", *argv])
    except KernelRefused as refused:
        return str(refused).strip().splitlines()[-1]
    return None


# --- configuration and this machine's network ---------------------------------------------------------------


def read_file(config: Path) -> tuple[GatewayFile | None, list[Check]]:
    """The configuration, if it can be loaded, and what is to be said of it."""
    try:
        file = load(config, GatewayFile)
    except ConfigurationError as error:
        there = os.access(config, os.F_OK)
        mend = "write it as README.md says" if there else "write it, or say where it is with --config FILE"
        return None, [Check("fail", "configuration", str(problem), mend) for problem in error.problems]
    try:
        found = list(file.worker_problems())
    except PermissionError as error:  # a state directory that only root may look into
        return file, [Check("fail", "configuration", f"{config}: {error}", "try again with sudo")]
    problems = [Check("fail", "configuration", f"{config}: {key}: {reason}") for key, reason in found]
    return file, problems or [Check("ok", "configuration", str(config))]


def check_forwarding(ipv4: Path) -> Iterator[Check]:
    """`ipv4`: /proc/sys/net/ipv4."""
    if (ipv4 / "ip_forward").read_text().strip() == "1":
        yield Check("ok", "forwarding", "net.ipv4.ip_forward is 1")
    else:
        mend = "sysctl -w net.ipv4.ip_forward=1, and the same in /etc/sysctl.d"
        yield Check("fail", "forwarding", "this machine forwards no packets (net.ipv4.ip_forward is 0)", mend)


def check_connection_table(netfilter: Path) -> Iterator[Check]:
    """`netfilter`: /proc/sys/net/netfilter; nothing where connections are not tracked yet."""
    if not (netfilter / "nf_conntrack_max").exists():
        return
    most = int((netfilter / "nf_conntrack_max").read_text())
    count = int((netfilter / "nf_conntrack_count").read_text())
    found = f"{count} of at most {most} connections"
    if count > most * CONNECTIONS_NEARLY_ALL:
        mend = f"sysctl -w net.netfilter.nf_conntrack_max={2 * most}, and the same in /etc/sysctl.d"
        yield Check("warn", "connection table", f"{found}: with a full table no new call gets through", mend)
    else:
        yield Check("ok", "connection table", found)


def check_gateway(file: GatewayFile, gateway: GatewaySection) -> Iterator[Check]:
    present = {name for _, name in socket.if_nameindex()}
    lans = [(f"gateway.lan[{number}]", name) for number, name in enumerate(gateway.lan)]
    passing = any(service.passthrough for service in file.services.values())
    for key, name in (*lans, ("gateway.wan", gateway.wan)):
        yield check_interface(key, name, there=name in present)
        if name in present:
            needed = passing and name in gateway.lan
            yield from check_reverse_path(name, Path("/proc/sys/net/ipv4/conf"), passing=needed)
    if gateway.public_address is not None and gateway.public_address not in addresses_of(gateway.wan):
        found = f"gateway.public_address {gateway.public_address} is not an address of {gateway.wan}"
        yield Check("warn", "public address", found, "give it to the interface, or leave the setting out")
    yield check_log_directory(file.tracker.log.parent)


def check_interface(key: str, name: str, *, there: bool) -> Check:
    if not there:
        mend = "write its name as `ip link` has it, or bring it up first"
        return Check("fail", "interface", f"{key}: there is no {name!r}", mend)
    addresses = addresses_of(name)
    if not addresses:
        mend = f"ip address add ADDRESS/PREFIX dev {name}, or wait for DHCP: without one nothing is bound"
        return Check("warn", "interface", f"{key}: {name} has no IPv4 address", mend)
    return Check("ok", "interface", f"{key}: {name} has {', '.join(addresses)}")


def addresses_of(interface: str) -> list[str]:
    """The IPv4 addresses that `ip` lists for an interface."""
    listed = output_of(["ip", "-4", "-json", "address", "show", "dev", interface])
    entries = json.loads(listed) if listed.strip() else []
    return [found["local"] for entry in entries for found in entry.get("addr_info", ())]


def check_reverse_path(interface: str, conf: Path, *, passing: bool = False) -> Iterator[Check]:
    """The stricter of the interface's own setting and that for all counts (ip-sysctl.rst).

    `passing`: a workstation behind it carries the public address, whose way back is not this interface.
    """
    strictest = max(int((conf / name / "rp_filter").read_text()) for name in ("all", interface))
    if strictest == STRICT and passing:
        found = f"{interface}: strict (rp_filter is 1), so nothing of the passthrough workstation gets in"
        mend = f"sysctl -w net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.{interface}.rp_filter=2"
        yield Check("fail", "reverse path", found, mend)
    elif strictest == STRICT:
        found = f"{interface}: strict (rp_filter is 1); what comes another way than it goes is dropped"
        mend = f"only with several ways to the Internet: sysctl -w net.ipv4.conf.{interface}.rp_filter=2"
        yield Check("warn", "reverse path", found, mend)


def check_log_directory(directory: Path) -> Check:
    """Only a warning: the tracker needs it, and may run as another user, or elsewhere."""
    if not os.access(directory, os.F_OK):
        return Check("warn", "log", f"there is no directory {directory}", f"install -d -m 0700 {directory}")
    if not os.access(directory, os.W_OK | os.X_OK):
        mend = f"chown it to the user that runs the tracker: ls -ld {directory}"
        return Check("warn", "log", f"{directory} is not writable for this user", mend)
    return Check("ok", "log", f"{directory} is writable")


def check_firewalls(file: GatewayFile, gateway: GatewaySection) -> Iterator[Check]:
    """Other tables whose forward chains drop what no rule of theirs accepts."""
    listed = output_of(["nft", "--json", "list", "ruleset"]) if shutil.which("nft") else ""
    ports = [span for service in kernel_services(file) for span in service.ports()]
    items = json.loads(listed)["nftables"] if listed else ()
    for guard in guards(items, lan=gateway.lan, wan=gateway.wan, ports=ports):
        found = f"the chain {guard.chain} drops what no rule of its own accepts; a call needs one"
        yield Check("warn", "firewall", found, guard.mend)
