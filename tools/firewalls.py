"""Other firewalls of the gateway: which of them would drop a call, and what to add so that it passes.

Rule 1: pure: from nft's listing to chains and commands. Nothing of theirs is ever changed by porthold.
Rule 2: whether a rule of theirs lets a call pass can't be told from outside; a chain that ends in a drop is
named, with what has to stand in it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewriter.ruleset import TABLE
from rewriter.vocabulary import Ports


@dataclass(frozen=True, slots=True)
class Guard:
    """A chain that drops what it does not know; `mend`: the commands of whatever wrote it."""

    chain: str
    mend: str


def guards(
    listing: Sequence[Mapping[str, Any]], *, lan: Sequence[str], wan: str, ports: Iterable[Ports]
) -> Iterator[Guard]:
    """The chains of others at the forward hook that end in a drop or a refusal.

    `listing`: the items of `nft --json list ruleset` (libnftables-json(5)).
    """
    chains = [item["chain"] for item in listing if "chain" in item]
    rules = [item["rule"] for item in listing if "rule" in item]
    for chain in chains:
        place = (chain["family"], chain["table"], chain["name"])
        if chain.get("hook") != "forward" or chain["family"] == "ip6" or place[:2] == ("ip", TABLE):
            continue
        inside = [rule["expr"] for rule in rules if (rule["family"], rule["table"], rule["chain"]) == place]
        if chain.get("policy") == "drop" or (inside and _ends_everything(inside[-1])):
            names = {other["name"] for other in chains if other["table"] == chain["table"]}
            yield Guard(" ".join(place), _mend(chain["table"], names, lan, wan, tuple(ports)))


def _ends_everything(expressions: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a rule drops or refuses every packet that reaches it."""
    conditions = {"match", "xt", "limit", "vmap"}
    return any("drop" in it or "reject" in it for it in expressions) and not any(
        conditions & it.keys() for it in expressions
    )


def _mend(table: str, chains: set[str], lan: Sequence[str], wan: str, ports: tuple[Ports, ...]) -> str:
    if "ufw-user-forward" in chains:
        return "; ".join(_ufw(lan, wan, ports))
    if "DOCKER-USER" in chains:
        return "; ".join(_docker(lan, wan))
    if table == "firewalld":
        return (
            "firewall-cmd --permanent --new-policy lan-out; then for that policy --add-ingress-zone of "
            f"{' and '.join(lan)}, --add-egress-zone of {wan}, --set-target ACCEPT; firewall-cmd --reload"
        )
    return "let pass there: what the LAN sends, `ct status dnat`, `ct state established,related`"


def _ufw(lan: Sequence[str], wan: str, ports: tuple[Ports, ...]) -> Iterator[str]:
    for interface in lan:
        yield f"ufw route allow in on {interface} out on {wan}"
        for span in ports:
            last = "" if span.last == span.first else f":{span.last}"
            to = f"to any port {span.first}{last} proto {span.protocol}"
            yield f"ufw route allow in on {wan} out on {interface} {to}"


def _docker(lan: Sequence[str], wan: str) -> Iterator[str]:
    """Its daemon leaves this one chain to others, and keeps it over restarts."""
    for interface in lan:
        yield f"iptables -I DOCKER-USER -i {interface} -o {wan} -j ACCEPT"
        states = "--ctstate DNAT,ESTABLISHED,RELATED"
        yield f"iptables -I DOCKER-USER -i {wan} -o {interface} -m conntrack {states} -j ACCEPT"
