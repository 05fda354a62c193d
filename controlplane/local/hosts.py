"""Hosts of their own for processes of one machine: a network namespace each, cables to one switch, and links to cut.

Owns the namespaces, the switch (a bridge in a namespace of its own) and its packet filter, made and removed through
``ip`` and ``nft``. A process is started "on" a host by putting :meth:`Hosts.enter` before its command; the root
namespace is one more host, :data:`OUTSIDE`: clients and observers stay there and reach every host. Needs root;
:func:`missing` says what is not there.

Addresses are of 198.18.0.0/15, which is set apart for tests of networks (RFC 2544) and used by nothing else; pods get
theirs from 240.0.0.0/4, which no network routes. A host answers for the addresses that its agent makes local.

What a link loses is dropped where it leaves the switch, silently, as a dead cable does: neither side is told. What is
diverted is dropped inside, and whoever diverts it reads it where it enters and sends it on where it leaves
(``chaos.shaper``). Every rule carries the name of the fault it belongs to, and the kernel holds nothing else about it,
so any process finds, counts and removes what another one set up. IP packets only: neighbours go on finding each other
(ARP), or a cut of one direction would soon become one of both.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from controlplane.base.errors import ConfigError, QuarterdeckError

__all__ = ["NETWORK_MAX", "OUTSIDE", "Hosts", "HostsError", "Link", "divert_text", "lose_text", "missing"]

#: One direction between two hosts: (who sends, who receives).
Link = tuple[str, str]

#: The root namespace, where clients are.
OUTSIDE: Final = "outside"
NETWORK_MAX: Final = 511
_TABLE: Final = "quarterdeck"
_HOSTS_MAX: Final = 250
_NAMESPACES: Final = Path("/run/netns")
#: A fault of callers that have only one at a time.
_MAIN: Final = "main"


class HostsError(QuarterdeckError):
    """The machine refused; the text has the command and its words."""


def missing() -> str | None:
    """What keeps this machine from having hosts, for people; None if nothing does."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    absent = [f"{program} (package {package})" for program, package in (("ip", "iproute2"), ("nft", "nftables"))
              if shutil.which(program) is None]  # fmt: skip
    return f"not installed: {', '.join(absent)}" if absent else None


class Hosts:
    """Named hosts on one switch. As a context manager: entering makes them anew, leaving ends them; processes in them
    are the caller's to end before.

    Args:
        names: of the hosts, numbered from 1 in that order; or name -> number, 1 to 250.
        network: 0 to 511, the third octet and the half of 198.18.0.0/15; two sets of hosts need two.
        owner: whose they are, for whoever wants the same network; at most 200 characters of it are kept.
        pods: the range that all pods' addresses are of; None: there are none.
    """

    def __init__(
        self, names: Iterable[str] | Mapping[str, int], *, network: int, owner: str = "", pods: str | None = None
    ) -> None:
        self._numbers = dict(names) if isinstance(names, Mapping) else {n: i for i, n in enumerate(names, 1)}
        if not all(1 <= number <= _HOSTS_MAX for number in self._numbers.values()) or not 0 <= network <= NETWORK_MAX:
            raise ValueError(f"want hosts numbered 1 to {_HOSTS_MAX} and a network of 0 to {NETWORK_MAX}")
        self.names = tuple(self._numbers)
        self._tag = f"qd{network}"
        self._network = network
        self._prefix = f"198.{18 + network // 256}.{network % 256}"
        self._owner = owner[-200:]
        self._pods = pods

    def address(self, name: str) -> str:
        """A host's IPv4 address."""
        return f"{self._prefix}.{254 if name == OUTSIDE else self._numbers[name]}"

    def enter(self, name: str) -> list[str]:
        """What to put before a command that shall run on a host. The process keeps its pid."""
        return [] if name == OUTSIDE else ["ip", "netns", "exec", self._namespace(name)]

    def enter_switch(self) -> list[str]:
        """The same for the switch, where every cable ends."""
        return ["ip", "netns", "exec", self._switch]

    def port(self, name: str) -> str:
        """The end of a host's cable in the switch: a network device there."""
        return f"p{0 if name == OUTSIDE else self._numbers[name]}"

    def mac(self, name: str) -> str:
        """The hardware address of a host's end of the cable."""
        number = 0 if name == OUTSIDE else self._numbers[name]
        return f"02:71:64:{self._network // 256:02x}:{self._network % 256:02x}:{number:02x}"

    # -- life ----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.remove()  # what a killed run of ours left behind
        try:
            self.ensure()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def ensure(self) -> None:
        """Make what is not there: everything, after a reboot; one host, after it was added.

        Raises:
            ConfigError: the network is in use by another owner, whose processes run in it.
            HostsError: the machine refused.
        """
        if _exists(self._switch):
            owner = self._found_owner()
            if owner != self._owner:
                if self._inhabited():
                    raise ConfigError(
                        f"network {self._network} is in use by {owner or 'somebody'}: stop that cluster, or choose "
                        "another PORT_BASE, at least 250 away"
                    )
                self.remove()
        if not _exists(self._switch):
            self.remove()
            self._make_switch()
        present = self._ports()
        for name in self.names:
            # Its port comes up last: a host without one was not finished.
            if self.port(name) not in present:
                self._make_host(name)

    def _make_switch(self) -> None:
        _run("ip", "netns", "add", self._switch)
        self._in_switch("link", "add", "switch0", "type", "bridge", "mcast_snooping", "0")
        self._in_switch("link", "set", "switch0", "up")
        outside = f"{self._tag}out"
        _run("ip", "link", "add", outside, "type", "veth", "peer", "name", "p0", "netns", self._switch)
        _run("ip", "link", "set", outside, "address", self.mac(OUTSIDE))
        _run("ip", "address", "add", f"{self.address(OUTSIDE)}/24", "dev", outside)
        _run("ip", "link", "set", outside, "up")
        if self._pods is not None:
            _run("ip", "route", "add", self._pods, "dev", outside)
        self._in_switch("link", "set", "p0", "master", "switch0", "up")
        _run(*self.enter_switch(), "nft", "-f", "-", text=_TABLES + _chain("p0"))
        if self._owner:
            self._in_switch("link", "set", "switch0", "alias", self._owner)

    def _make_host(self, name: str) -> None:
        namespace, port = self._namespace(name), self.port(name)
        if _exists(namespace):
            _run("ip", "netns", "delete", namespace)
        _run("ip", "netns", "add", namespace)
        self._in_switch("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        commands = [
            ("link", "set", "lo", "up"),
            ("link", "set", "eth0", "address", self.mac(name)),
            ("address", "add", f"{self.address(name)}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
        ]
        if self._pods is not None:
            commands.append(("route", "add", self._pods, "dev", "eth0"))
        for command in commands:
            _run("ip", "-n", namespace, *command)
        _run(*self.enter_switch(), "nft", "-f", "-", text=_chain(port))
        self._in_switch("link", "set", port, "master", "switch0", "up")

    def remove(self) -> None:
        """End every host of this set that there is, also those whose names are forgotten. Safe to repeat."""
        # First the switch, and with it every cable: a process that outlives its run keeps its namespace.
        if _exists(self._switch):
            for port in self._ports():
                self._in_switch("link", "delete", port)
            _run("ip", "netns", "delete", self._switch)
        for namespace in self._namespaces():
            _run("ip", "netns", "delete", namespace)

    def present(self) -> bool:
        """Whether the switch and every host are there."""
        if not _exists(self._switch):
            return False
        ports = self._ports()
        return all(self.port(name) in ports for name in self.names)

    def mine(self) -> bool:
        """Whether nobody else has this network now: another owner may have taken it while it was deserted."""
        return not _exists(self._switch) or self._found_owner() == self._owner

    def _namespaces(self) -> list[str]:
        if not _NAMESPACES.is_dir():
            return []
        return sorted(path.name for path in _NAMESPACES.iterdir() if path.name.startswith(f"{self._tag}-"))

    def _inhabited(self) -> bool:
        return any(_run("ip", "netns", "pids", name).stdout.strip() for name in self._namespaces())

    def _found_owner(self) -> str:
        shown = json.loads(_run("ip", "-n", self._switch, "-j", "link", "show", "switch0").stdout or "[]")
        return str(shown[0].get("ifalias", "")) if shown else ""

    def _ports(self) -> set[str]:
        shown = json.loads(_run("ip", "-n", self._switch, "-j", "link", "show", "type", "veth").stdout or "[]")
        # One that is not on the bridge belongs to a host that was not finished.
        ports = {str(link["ifname"]): link.get("master") for link in shown if "ifname" in link}
        for port in [port for port, master in ports.items() if master is None]:
            self._in_switch("link", "delete", port)
        return {port for port, master in ports.items() if master is not None}

    # -- faults --------------------------------------------------------------------------------------------------

    def lose(self, fault: str, links: Iterable[Link], percent: int = 100) -> None:
        """``percent`` of what is sent on these links gets lost from now on, besides what is lost already.

        Args:
            fault: under this name it is counted, and healed.
        """
        rules = lose_text(fault, [(self.mac(source), self.port(target)) for source, target in links], percent)
        _run(*self.enter_switch(), "nft", "-f", "-", text=rules)

    def divert(self, fault: str, links: Iterable[Link], *, ends_only: bool = False) -> None:
        """What is sent on these links stops in the switch, for somebody to send on. ``ends_only``: only packets that
        end a TCP stream (FIN)."""
        rules = divert_text(fault, [(self.port(source), self.port(target)) for source, target in links], ends_only)
        _run(*self.enter_switch(), "nft", "-f", "-", text=rules)

    def heal(self, fault: str | None = None) -> None:
        """What that fault swallows passes again; None: what any does. Safe to repeat."""
        rules = [rule for rule in self._rules() if fault is None or rule.get("comment") == fault]
        if rules:
            text = "".join(
                f"delete rule {rule['family']} {_TABLE} {rule['chain']} handle {rule['handle']}\n" for rule in rules
            )
            _run(*self.enter_switch(), "nft", "-f", "-", text=text)

    def lost(self, fault: str) -> int:
        """Packets that a fault has swallowed, or diverted, so far."""
        return _counted(rule for rule in self._rules() if rule.get("comment") == fault)

    def faults(self) -> set[str]:
        """Names of the faults there are."""
        return {str(rule["comment"]) for rule in self._rules() if "comment" in rule}

    def reset(self, links: Iterable[Link]) -> int:
        """Every TCP connection between these hosts is torn down: both ends are told by a reset. Returns how many
        ends."""
        killed = 0
        for source, target in links:
            done = _run(*self.enter(source), "ss", "-K", "-H", "-t", "-n", "dst", self.address(target))
            killed += len(done.stdout.splitlines())
        return killed

    # -- the same for whoever has one fault at a time ---------------------------------------------------------------

    def cut(self, source: str, target: str) -> None:
        """What ``source`` sends to ``target`` gets lost from now on; the other way stays open."""
        self.lose(_MAIN, [(source, target)])

    def part(self, some: Sequence[str], others: Sequence[str]) -> None:
        """Nothing passes between the two groups, either way."""
        self.lose(_MAIN, [link for a in some for b in others for link in ((a, b), (b, a))])

    def isolate(self, name: str) -> None:
        """A host reaches no other, and none reaches it. Clients outside still do: only its links to hosts are dead."""
        self.part([name], [other for other in self.names if other != name])

    def lossy(self, name: str, percent: int) -> None:
        """``percent`` of what the host sends to other hosts gets lost."""
        self.lose(_MAIN, [(name, other) for other in self.names if other != name], percent)

    def dropped(self, name: str) -> int:
        """Packets of the host that its links have swallowed since they were last healed."""
        return _counted(rule for rule in self._rules() if _source(rule) == self.mac(name))

    def _rules(self) -> list[dict[str, Any]]:
        if not _exists(self._switch):
            return []
        listed = json.loads(_run(*self.enter_switch(), "nft", "-j", "list", "ruleset").stdout)
        return [item["rule"] for item in listed["nftables"] if "rule" in item]

    @property
    def _switch(self) -> str:
        return f"{self._tag}-switch"

    def _namespace(self, name: str) -> str:
        return f"{self._tag}-{name}"

    def _in_switch(self, *command: str) -> None:
        _run("ip", "-n", self._switch, *command)


_TABLES: Final = (
    f"table netdev {_TABLE} {{\n}}\n"
    f"table bridge {_TABLE} {{\nchain links {{\ntype filter hook forward priority 0;\n}}\n}}\n"
)


def _chain(port: str) -> str:
    return f"table netdev {_TABLE} {{\nchain to_{port} {{\ntype filter hook egress device {port} priority 0;\n}}\n}}\n"


def lose_text(fault: str, links: Iterable[tuple[str, str]], percent: int = 100) -> str:
    """Rules that drop and count ``percent`` of the IP packets that come from a hardware address and leave the switch by
    a port, for ``nft -f``, which takes all of them or none."""
    if not 0 < percent <= 100:
        raise ValueError(f"{percent} percent of packets: want 1 to 100")
    some = "" if percent == 100 else f"numgen random mod 100 < {percent} "
    return "".join(
        f'add rule netdev {_TABLE} to_{port} ether saddr {mac} ether type ip {some}counter drop comment "{fault}"\n'
        for mac, port in links
    )


def divert_text(fault: str, links: Iterable[tuple[str, str]], ends_only: bool = False) -> str:
    """Rules that stop the IP packets from one port of the switch to another."""
    which = "ip protocol tcp tcp flags & (fin) == fin " if ends_only else ""
    return "".join(
        f"add rule bridge {_TABLE} links iifname {source} oifname {target} ether type ip {which}counter drop "
        f'comment "{fault}"\n'
        for source, target in links
    )


def _counted(rules: Iterable[dict[str, Any]]) -> int:
    return sum(int(part["counter"]["packets"]) for rule in rules for part in rule["expr"] if "counter" in part)


def _source(rule: dict[str, Any]) -> str | None:
    for part in rule["expr"]:
        match = part.get("match", {})
        if match.get("left") == {"payload": {"protocol": "ether", "field": "saddr"}}:
            return str(match["right"])
    return None


def _exists(namespace: str) -> bool:
    return (_NAMESPACES / namespace).exists()


def _run(*command: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Raises:
    HostsError: the command failed.
    """
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise HostsError(f"{' '.join(command)}: {done.stderr.strip() or f'exit {done.returncode}'}")
    return done
