"""Who gets a port: claims, as `ownership.decide` has them decided.

Rule 1: a free resource is bound to whoever claims it first, unless an operator's word is against it
(`restrictions`); one that is held, never: where the last claimant is to have it, the one before goes first.
Rule 2: a flood of claims, by any number of hosts, fills neither the log nor the memory.
"""

from dataclasses import replace
from typing import Final

from tracker import restrictions, sessions
from tracker.events import ClaimDenied, Ending, Policy, PortBound, PortRefused, Resource, Restraint, Sharing
from tracker.instant import Instant
from tracker.messages import (
    BINDINGS_LIMIT,
    ClaimGranted,
    ClaimPort,
    ClaimRefusal,
    ClaimRefused,
    WithdrawBinding,
)
from tracker.transitions import MILLISECOND_NS, Binding, Decision, RefusalCounted, State

REFUSED_HOSTS_LIMIT: Final = 1024
"""So many hosts are told apart whose claims are refused for one reason; the others count as one."""
OTHER_HOSTS: Final = bytes(4)
TAKE_OVER_PAUSE_NS: Final = 1_000 * MILLISECOND_NS
"""So long the last one's binding is left alone: two that want it must not fight for it packet by packet."""


def claim(state: State, worker: str, body: ClaimPort, age_ms: int, now: Instant) -> Decision:
    """The worker's host gets the port, or has it already; else why not. `age_ms`: of the claim."""
    refusal = _unfit(state, worker, body, age_ms)
    if refusal is not None:
        return Decision(reply=ClaimRefused(refusal, None, None))
    resource = _wanted(state, body)
    number = state.held.get(resource)
    if number is None:
        return _denied(state, body) or _bind(state, body, resource, now)
    return _claim_held(state, body, number, now)


def _wanted(state: State, body: ClaimPort) -> Resource:
    """What it is about: per peer, another public address where another host has the peer at the first one."""
    resource = Resource(body.gateway, body.public_address, body.service, body.peer)
    session = state.gateways[body.gateway].session
    if body.peer is None or session is None:
        return resource
    others = (replace(resource, public_address=address) for address in session.public_addresses)
    places = list(dict.fromkeys((resource, *others)))
    for place in places:
        number = state.held.get(place)
        if number is not None and state.bindings[number].bound.holder == body.holder:
            return place
    return next((place for place in places if place not in state.held), resource)


def _claim_held(state: State, body: ClaimPort, number: int, now: Instant) -> Decision:
    binding = state.bindings[number]
    if binding.bound.holder == body.holder:
        if binding.ordered is not None:
            return Decision(reply=ClaimRefused(ClaimRefusal.ENDING, None, None))
        return Decision(reply=ClaimGranted(binding.view()))
    if _may_take_over(state, body, binding, now):
        # Not bound yet: the worker takes the old one from the kernel, says so, and claims again behind it.
        return _denied(state, body) or Decision(reply=WithdrawBinding(body.gateway, number, Ending.TAKE_OVER))
    reply = ClaimRefused(ClaimRefusal.HELD, binding.bound.holder, number)
    # Nor do claims from any number of addresses, which on a LAN can be anything.
    is_known = body.holder in binding.refusals or len(binding.refusals) < REFUSED_HOSTS_LIMIT
    claimant, mac = (body.holder, body.mac) if is_known else (OTHER_HOSTS, None)
    if claimant in binding.refusals:
        # A flood of claims fills no log: the first is a record, the rest a count.
        return Decision(unlogged=(RefusalCounted(number, claimant, now.wall_ns),), reply=reply)
    refused = PortRefused(
        number,
        claimant,
        mac,
        body.protocol,
        body.source_port,
        body.destination,
        body.destination_port,
    )
    return Decision((refused,), reply=reply)


def _may_take_over(state: State, body: ClaimPort, binding: Binding, now: Instant) -> bool:
    if state.gateways[body.gateway].services[body.service].policy is not Policy.LAST:
        return False
    return not 0 <= now.wall_ns - binding.since_ns < TAKE_OVER_PAUSE_NS


def _denied(state: State, body: ClaimPort) -> Decision | None:
    """The refusal of a free resource by an operator's word; None: nothing is said against it."""
    gateway, service, host = body.gateway, body.service, body.holder
    found = restrictions.denying(state.restrictions, gateway, service, host)
    if found is None:
        return None
    because = found.scope.restraint
    reply = ClaimRefused(_REFUSALS[because], None, None)
    mac = body.mac
    if (gateway, service, host) not in found.denied and len(found.denied) >= REFUSED_HOSTS_LIMIT:
        host, mac = OTHER_HOSTS, None
    if (gateway, service, host) in found.denied:
        return Decision(reply=reply)
    packet = (body.protocol, body.source_port, body.destination, body.destination_port)
    return Decision((ClaimDenied(gateway, service, host, because, mac, *packet),), reply=reply)


_REFUSALS: Final = {
    Restraint.REVOKED: ClaimRefusal.REVOKED,
    Restraint.RESERVED: ClaimRefusal.RESERVED,
    Restraint.FROZEN: ClaimRefusal.FROZEN,
}


def _unfit(  # noqa: PLR0911 (one return for each reason, in the order of their precedence)
    state: State, worker: str, body: ClaimPort, age_ms: int
) -> ClaimRefusal | None:
    if age_ms > body.claim_timeout_ms:
        return ClaimRefusal.STALE
    session = sessions.session_of(state, worker, body.gateway, body.epoch)
    if session is None:
        return ClaimRefusal.STALE_EPOCH
    if body.public_address not in session.public_addresses:
        return ClaimRefusal.UNKNOWN_ADDRESS
    gateway = state.gateways[body.gateway]
    service = gateway.services.get(body.service)
    if service is None:
        return ClaimRefusal.UNKNOWN_SERVICE
    if (service.sharing is Sharing.PER_PEER) != (body.peer is not None):
        return ClaimRefusal.WRONG_SHARING
    if service.policy is Policy.FIXED and service.holder != body.holder:
        return ClaimRefusal.FIXED
    return None


def _bind(state: State, body: ClaimPort, resource: Resource, now: Instant) -> Decision:
    if len(state.gateways[body.gateway].bindings) >= BINDINGS_LIMIT:
        return Decision(reply=ClaimRefused(ClaimRefusal.FULL, None, None))
    bound = PortBound(
        state.next_binding,
        resource,
        body.holder,
        body.mac,
        body.epoch,
        body.protocol,
        body.source_port,
        body.destination,
        body.destination_port,
    )
    return Decision((bound,), reply=ClaimGranted(Binding(bound, now.wall_ns).view()))
