"""Hosts of their own for processes of one machine: a network namespace each, joined by a bridge, and links to cut.

Owns the namespaces, the bridge and the packet filters in them, made and removed through ``ip`` and ``nft``. A process
is started "on" a host by putting :meth:`Hosts.enter` before its command; the root namespace reaches every host
through the bridge, so clients and observers stay outside. Needs root; :func:`missing` says what is not there.

Addresses are of 198.18.0.0/15, which is set apart for tests of networks (RFC 2544) and used by nothing else. Links are
cut by dropping packets in the sender's namespace, silently, as a dead switch does: neither side is told.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from typing import Final, Self

__all__ = ["Hosts", "HostsError", "filter_text", "missing"]

_TABLE: Final = "quarterdeck"
_HOSTS_MAX: Final = 250


class HostsError(Exception):
    """The machine refused; the text has the command and its words."""


def missing() -> str | None:
    """What keeps this machine from having hosts, for people; None if nothing does."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    absent = [f"{program} (package {package})" for program, package in (("ip", "iproute2"), ("nft", "nftables"))
              if shutil.which(program) is None]  # fmt: skip
    return f"not installed: {', '.join(absent)}" if absent else None


class Hosts:
    """Named hosts on one bridge. A context manager: leaving it ends them; processes in them are the caller's to end
    before.

    Args:
        names: of the hosts.
        network: 0 to 511, the third octet and the half of 198.18.0.0/15; two sets of hosts need two.
    """

    def __init__(self, names: Iterable[str], *, network: int) -> None:
        self.names = tuple(names)
        if len(self.names) > _HOSTS_MAX or not 0 <= network < 512:
            raise ValueError(f"want at most {_HOSTS_MAX} hosts and a network of 0 to 511")
        self._tag = f"qd{network}"
        self._prefix = f"198.{18 + network // 256}.{network % 256}"
        self._cut: dict[str, set[str]] = {name: set() for name in self.names}

    def address(self, name: str) -> str:
        """A host's IPv4 address."""
        return f"{self._prefix}.{self.names.index(name) + 1}"

    def enter(self, name: str) -> list[str]:
        """What to put before a command that shall run on a host. The process keeps its pid."""
        return ["ip", "netns", "exec", self._namespace(name)]

    # -- life ----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.remove()  # what a killed run of ours left behind
        try:
            self._make()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _make(self) -> None:
        bridge = f"{self._tag}br"
        _run("ip", "link", "add", bridge, "type", "bridge")
        _run("ip", "address", "add", f"{self._prefix}.254/24", "dev", bridge)
        _run("ip", "link", "set", bridge, "up")
        for number, name in enumerate(self.names, 1):
            namespace, outside = self._namespace(name), f"{self._tag}v{number}"
            _run("ip", "netns", "add", namespace)
            _run("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", namespace)
            _run("ip", "link", "set", outside, "master", bridge, "up")
            for command in (
                ("link", "set", "lo", "up"),
                ("address", "add", f"{self.address(name)}/24", "dev", "eth0"),
                ("link", "set", "eth0", "up"),
            ):
                _run("ip", "-n", namespace, *command)

    def remove(self) -> None:
        """End every host of this set that there is. Safe to repeat."""
        present = _run("ip", "-o", "link", "show").stdout
        for number, name in enumerate(self.names, 1):
            # First the cable: a process that outlives its run keeps its namespace, and would keep it too.
            if f" {self._tag}v{number}@" in present:
                _run("ip", "link", "delete", f"{self._tag}v{number}")
            if os.path.exists(f"/run/netns/{self._namespace(name)}"):
                _run("ip", "netns", "delete", self._namespace(name))
        if f" {self._tag}br:" in present:
            _run("ip", "link", "delete", f"{self._tag}br")

    # -- faults --------------------------------------------------------------------------------------------------

    def cut(self, source: str, target: str) -> None:
        """What ``source`` sends to ``target`` gets lost from now on; the other way stays open."""
        self._cut[source].add(target)
        self._filter(source)

    def part(self, some: Sequence[str], others: Sequence[str]) -> None:
        """Nothing passes between the two groups, either way."""
        for one, other in ((a, b) for a in some for b in others):
            self._cut[one].add(other)
            self._cut[other].add(one)
        for name in (*some, *others):
            self._filter(name)

    def isolate(self, name: str) -> None:
        """A host reaches no other, and none reaches it. Clients outside still do: only its links to hosts are dead."""
        self.part([name], [other for other in self.names if other != name])

    def lossy(self, name: str, percent: int) -> None:
        """``percent`` of what the host sends to other hosts gets lost."""
        self._filter(name, loss_percent=percent)

    def heal(self) -> None:
        """Everything passes again."""
        for name in self.names:
            self._cut[name].clear()
            self._filter(name)

    def dropped(self, name: str) -> int:
        """Packets of the host that its links have swallowed since they were last cut, made lossy or healed."""
        listed = json.loads(_run(*self.enter(name), "nft", "-j", "list", "table", "ip", _TABLE).stdout)
        rules = (item["rule"] for item in listed["nftables"] if "rule" in item)
        return sum(int(part["counter"]["packets"]) for rule in rules for part in rule["expr"] if "counter" in part)

    def _filter(self, name: str, *, loss_percent: int = 0) -> None:
        """Replace the host's filter by what is cut now: one transaction, no moment in between."""
        others = [self.address(other) for other in self.names if other != name]
        text = filter_text([self.address(target) for target in sorted(self._cut[name])], others, loss_percent)
        _run(*self.enter(name), "nft", "-f", "-", text=text)

    def _namespace(self, name: str) -> str:
        return f"{self._tag}-{name}"


def filter_text(cut: Sequence[str], others: Sequence[str], loss_percent: int = 0) -> str:
    """A sender's whole packet filter, for ``nft -f``: it replaces the one before in one transaction. Drops and counts
    what goes to the addresses in ``cut``, and ``loss_percent`` of what goes to ``others``."""
    rules = []
    if cut:
        rules.append(f"ip daddr {{ {', '.join(cut)} }} counter drop")
    if loss_percent and others:
        rules.append(f"ip daddr {{ {', '.join(others)} }} numgen random mod 100 < {loss_percent} counter drop")
    body = "\n".join(rules)
    return (
        f"table ip {_TABLE} {{}}\ndelete table ip {_TABLE}\n"
        f"table ip {_TABLE} {{ chain out {{ type filter hook output priority 0;\n{body}\n}}\n}}\n"
    )


def _run(*command: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Raises:
    HostsError: the command failed.
    """
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise HostsError(f"{' '.join(command)}: {done.stderr.strip() or f'exit {done.returncode}'}")
    return done
