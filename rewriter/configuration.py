"""The [gateway] section of the configuration file, and what the ruleset takes from it.

Rule 1: what could be wrong is found before the first packet is touched: a ConfigurationError, a line each.
"""

import os
import re
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from rewriter.vocabulary import MARK_BITS, MOST_SERVICES, Ports, Refusal, Ruleset, Service
from tracker import configuration
from tracker.configuration import (
    PROTOCOLS,
    AbsolutePath,
    CurveKey,
    Listen,
    Seconds,
    Section,
    TrackerEndpoint,
    TrackerFile,
)
from tracker.events import PortRange, Sharing

QUEUES_BY_EPOCH: Final = 16
"""So many epochs have queue numbers of their own before they come round again; two workers can overlap."""
REWRITTEN_PORTS_LIMIT: Final = 1024
NEVER_S: Final = 365 * 86_400.0
"""The idle time of a fixed holder: when it is over after all, he is given the port anew."""
FENCED_LEASE_LEAST_S: Final = 1.0
"""A kernel's lease is half as long, and a heartbeat must be there and back within it."""


def _interface(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.:@-]{0,14}", name):
        raise ValueError(f"{name!r} is no name of a network interface")
    return name


def _mark_mask(mask: int) -> int:
    lowest = mask & -mask
    if mask <= 0 or mask >> 32 or mask != lowest * ((1 << MARK_BITS) - 1):
        raise ValueError(f"must be {MARK_BITS} neighbouring bits of 32, like 0x3f000000")
    return mask


def _host_address(text: str) -> str:
    address = IPv4Address(text)
    if address.is_multicast or address.is_unspecified or address.is_loopback:
        raise ValueError(f"{text} is no address that a gateway can have")
    return text


Interface = Annotated[str, AfterValidator(_interface)]
Interfaces = Annotated[tuple[Interface, ...], Field(min_length=1, max_length=32)]


class GatewaySection(Section):
    """[gateway]: whose packets, through which interfaces, by which tracker's word.

    `public_address` unset means the first address of the WAN interface, followed when it changes;
    `public_addresses` instead: several, so that the same peer can be called by as many hosts at once.
    `standby`: wait while another worker has the gateway, and take it when that one's lease has ended.
    `on_tracker_loss`: without the tracker calls go on (keep), or end with the lease (fence), so that another
    host may take over.
    `hairpin`: a holder is reached at the public address from inside, too. `keep_source_ports`: what any host
    sends to these ports leaves from the port that it was sent from, or is refused.
    A tracker by TCP has to prove `tracker_key`, its public key; `key` is the file of the worker's own.
    `outbox_messages`: so many wait for the tracker's answer at most; a tenth of them is kept for reports.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    lan: Interfaces
    wan: Interface
    public_address: Annotated[str, AfterValidator(_host_address)] | None = None
    public_addresses: tuple[Annotated[str, AfterValidator(_host_address)], ...] = ()
    worker: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")] | None = None
    tracker: TrackerEndpoint | None = None
    tracker_key: CurveKey | None = None
    key: AbsolutePath | None = None
    metrics: Listen | None = None
    state_directory: AbsolutePath = Path("/var/lib/porthold")
    claim_timeout_s: Annotated[float, Field(strict=True, ge=0.05, le=10)] = 1.0
    outbox_messages: Annotated[int, Field(strict=True, ge=100, le=10**7)] = 10_000
    refusal: Refusal = "icmp"
    refused_s: Seconds = 2.0
    hairpin: Annotated[bool, Field(strict=True)] = True
    keep_source_ports: tuple[configuration.Ports, ...] = ()
    on_tracker_loss: Literal["keep", "fence"] = "keep"
    standby: Annotated[bool, Field(strict=True)] = False
    datapath: Literal["auto", "kernel", "queue"] = "auto"
    mark_mask: Annotated[int, Field(strict=True), AfterValidator(_mark_mask)] = 0x3F000000
    queue_base: Annotated[int, Field(strict=True, ge=1, le=65535 - 2 * QUEUES_BY_EPOCH)] = 17648


LIVE_SETTINGS: Final = frozenset(
    {
        *("lan", "wan", "claim_timeout_s"),
        *("refusal", "refused_s", "hairpin", "keep_source_ports"),
    }
)
"""What takes effect in a running worker, as all of [services] does; the rest needs a restart."""


class GatewayFile(TrackerFile):
    """The whole file, as every command reads it; only the rewriter needs [gateway]."""

    gateway: GatewaySection | None = None

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if len(self.services) > MOST_SERVICES:
            yield (
                "services",
                f"{len(self.services)} are too many, the connection mark has room for {MOST_SERVICES}",
            )
        for name, section in self.services.items():
            ports = sum(
                span.last - span.first + 1
                for span in section.definition(name).forward
                if span.protocol == PROTOCOLS["udp"]
            )
            if section.profile == "cuseeme" and ports > REWRITTEN_PORTS_LIMIT:
                yield (
                    f"services.{name}.forward",
                    f"{ports} rewritten ports are more than {REWRITTEN_PORTS_LIMIT}",
                )
        if self.gateway is not None:
            if self.gateway.metrics is not None and self.gateway.metrics == self.tracker.metrics:
                yield "gateway.metrics", "is the same as tracker.metrics: each daemon listens for itself"
            yield from _gateway_settings(self.gateway, self.tracker.lease_s)

    def worker_problems(self) -> Iterator[tuple[str, str]]:
        """(key, reason) of what only a rewriter stumbles over."""
        if self.gateway is None:
            yield "gateway", "is missing; a rewriter needs at least name, lan and wan"
            return
        if not self.services and not self.gateway.keep_source_ports:
            yield "services", 'none is defined; [services.cuseeme] with profile = "cuseeme" is the usual one'
        directory = self.gateway.state_directory
        if not directory.is_dir():
            yield (
                "gateway.state_directory",
                f"there is no directory '{directory}'; make it: install -d -m 0700 {directory}",
            )
        elif not os.access(directory, os.W_OK | os.X_OK):
            yield "gateway.state_directory", f"'{directory}' is not writable for this user"


def _gateway_settings(gateway: GatewaySection, lease_s: float) -> Iterator[tuple[str, str]]:
    if gateway.wan in gateway.lan:
        yield "gateway.wan", f"{gateway.wan!r} is also in gateway.lan"
    if gateway.public_addresses and len(set(gateway.public_addresses)) < 2:
        yield "gateway.public_addresses", "has an effect from two addresses on; one is public_address"
    if gateway.public_addresses and gateway.public_address is not None:
        yield "gateway.public_addresses", "and public_address exclude each other"
    if gateway.on_tracker_loss == "fence" and lease_s < FENCED_LEASE_LEAST_S:
        yield "tracker.lease_s", f"is too short for a fenced gateway: at least {FENCED_LEASE_LEAST_S} s"
    by_tcp = gateway.tracker is not None and gateway.tracker.startswith("tcp:")
    for name, mend in (
        ("key", "make one: porthold keys worker FILE"),
        ("tracker_key", "it is what `porthold keys server` prints where the tracker runs"),
    ):
        there = getattr(gateway, name) is not None
        if by_tcp and not there:
            yield f"gateway.{name}", f"is missing, and TCP is always encrypted; {mend}"
        elif there and not by_tcp:
            yield f"gateway.{name}", "has no effect without a gateway.tracker by TCP"


def changed_settings(before: GatewayFile, after: GatewayFile) -> list[str]:
    """The keys of what a worker goes by and what is not the same in both."""
    names = before.services.keys() | after.services.keys()
    changed = [f"services.{it}" for it in names if before.services.get(it) != after.services.get(it)]
    pairs = (("gateway", before.gateway, after.gateway), ("tracker", before.tracker, after.tracker))
    for section, old, new in pairs:
        fields = GatewaySection.model_fields if section == "gateway" else ("endpoint", "verifying_keys")
        changed += [f"{section}.{it}" for it in fields if getattr(old, it, None) != getattr(new, it, None)]
    return sorted(changed)


def is_live(key: str) -> bool:
    """Whether a setting takes effect without a restart."""
    section, _, name = key.partition(".")
    return section == "services" or (section == "gateway" and name in LIVE_SETTINGS)


def with_live_settings(before: GatewayFile, after: GatewayFile) -> GatewayFile:
    """The configuration as it was, but for what of another one takes effect in a running worker.

    ValueError for a file without a [gateway].
    """
    old, new = before.gateway, after.gateway
    if old is None or new is None:
        raise ValueError("no [gateway] in the configuration")
    live = {name: getattr(new, name) for name in LIVE_SETTINGS}
    return before.model_copy(
        update={"services": after.services, "gateway": old.model_copy(update=live)},
    )


def to_ports(ports: PortRange) -> Ports:
    return Ports("udp" if ports.protocol == PROTOCOLS["udp"] else "tcp", ports.first, ports.last)


def kernel_services(file: GatewayFile) -> tuple[Service, ...]:
    """The services as the ruleset has them, numbered in the order of the file."""
    return tuple(
        Service(
            name=name,
            number=number,
            control=tuple(to_ports(ports) for ports in section.definition(name).control),
            forward=tuple(to_ports(ports) for ports in section.definition(name).forward),
            idle_s=section.idle_s if section.holder is None else NEVER_S,
            rewrites=section.profile == "cuseeme" and not section.passthrough,
            passthrough=section.passthrough,
            policy=section.policy.value,
            per_peer=section.sharing is Sharing.PER_PEER,
            fixed_holder=None if section.holder is None else IPv4Address(section.holder),
            unsolicited=section.unsolicited,
            callers=section.callers,
            new_callers_per_minute=section.new_callers_per_minute,
        )
        for number, (name, section) in enumerate(file.services.items(), start=1)
    )


def ruleset_for(
    file: GatewayFile,
    epoch: int,
    *,
    native_queue: bool,
    most_speakers: int,
    rewrites_in_kernel: bool = True,
) -> Ruleset:
    """The rules of one epoch; ValueError for a file without a [gateway].

    The three last are what this kernel can (see `probing.py`), and what was chosen of it.
    """
    gateway = file.gateway
    if gateway is None:
        raise ValueError("no [gateway] in the configuration")
    first_queue = gateway.queue_base + 2 * (epoch % QUEUES_BY_EPOCH)
    return Ruleset(
        lan=gateway.lan,
        wan=(gateway.wan,),
        services=kernel_services(file),
        mark_mask=gateway.mark_mask,
        claim_queue=first_queue,
        talk_queue=first_queue + 1,
        native_queue=native_queue,
        refusal=gateway.refusal,
        refused_s=gateway.refused_s,
        most_speakers=most_speakers,
        rewrites_in_kernel=rewrites_in_kernel,
        fenced=gateway.on_tracker_loss == "fence",
        hairpin=gateway.hairpin,
        keep_source_ports=tuple(to_ports(ports) for ports in gateway.keep_source_ports),
    )
