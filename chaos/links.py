"""What breaks links: the switch of hosts, or the relay of a loopback, behind one face.

A link is one direction between two processes, named as the cluster names them; ``outside`` is where clients are. Each
break has a token; whoever knows the token counts it and takes it back, in any process. Everything here blocks for
milliseconds: call it aside.

=============  =====================  ===================
kind           hosts (``netns``)      relay (``links``)
=============  =====================  ===================
cut            packets dropped        bytes held
loss           packets dropped        no: no packets
latency        packets held           bytes held
bandwidth      packets held           bytes held
reset          sockets destroyed      connections reset
slow-close     FIN packets held       ends held
=============  =====================  ===================
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from chaos.fault import FaultError
from controlplane.local.cluster import LocalCluster
from controlplane.local.hosts import OUTSIDE, Hosts, HostsError, Link
from controlplane.local.hosts import missing as hosts_missing
from controlplane.local.processes import Processes
from controlplane.local.relay import STATS_S, RelayFiles
from controlplane.local.spec import RELAY

__all__ = ["FIGURES", "OUTSIDE", "Link", "Links", "links_of"]

#: Kind of break -> its figures.
FIGURES: Final = {
    "cut": (),
    "loss": ("percent",),
    "latency": ("delay_ms", "jitter_ms"),
    "bandwidth": ("rate_bytes_s",),
    "reset": ("every_ms",),
    "slow-close": ("delay_ms",),
}
_TAKEN_UP_S: Final = 5.0
_POLL_S: Final = 0.01
_REPOSITORY: Final = Path(__file__).resolve().parents[1]


class Links(Protocol):
    """The links of one cluster."""

    def missing(self, kind: str) -> str | None:
        """Why links cannot be broken so; None: they can."""
        ...

    def exists(self, link: Link) -> bool:
        """Whether there is such a link to break."""
        ...

    def strike(self, token: str, kind: str, links: Sequence[Link], figures: dict[str, float]) -> None:
        """Break these links. In force when this returns. Raises FaultError."""
        ...

    def proof(self, token: str) -> dict[str, Any]:
        """What it has done so far: ``bit``, and figures."""
        ...

    def heal(self, token: str) -> None:
        """Take it back. Repeatable. Raises FaultError."""
        ...


def links_of(cluster: LocalCluster) -> Links | None:
    """What breaks this cluster's links; None: nothing does."""
    if cluster.remote:
        return None
    if cluster.spec.hosts == "netns":
        return HostLinks(cluster)
    return RelayLinks(cluster) if cluster.spec.hosts == "links" else None


class HostLinks:
    """Links between hosts of their own: every packet is seen."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster
        self._folder = cluster.root / "chaos" / "links"
        self._shapers = Processes(self._folder, cluster.root / "logs")

    @property
    def _hosts(self) -> Hosts:
        return self._cluster.hosts  # anew: the cluster may have grown

    def missing(self, kind: str) -> str | None:
        if (why := hosts_missing()) is not None:
            return why
        if kind == "reset" and shutil.which("ss") is None:
            return "not installed: ss (package iproute2)"
        return None

    def exists(self, link: Link) -> bool:
        there = {*self._hosts.names, OUTSIDE}
        return link[0] != link[1] and set(link) <= there

    def strike(self, token: str, kind: str, links: Sequence[Link], figures: dict[str, float]) -> None:
        try:
            if kind in {"cut", "loss"}:
                self._hosts.lose(token, links, int(figures.get("percent", 100)))
            elif kind == "reset":
                count = self._hosts.reset({*links, *((target, source) for source, target in links)})
                told = int(self._read(token).get("connections", 0))
                self._write(token, {"connections": told + count})
            else:
                self._shape(token, kind, links, figures)
        except HostsError as error:
            raise FaultError(str(error)) from error

    def _shape(self, token: str, kind: str, links: Sequence[Link], figures: dict[str, float]) -> None:
        hosts = self._hosts
        ends_only = kind == "slow-close"
        order = {
            "links": [[hosts.port(a), hosts.port(b), hosts.mac(b)] for a, b in links],
            "stats": str(self._stats(token).resolve()), "ends_only": ends_only, "seed": int(token[-8:], 16), **figures,
        }  # fmt: skip
        self._folder.mkdir(parents=True, exist_ok=True)
        argv = [*hosts.enter_switch(), self._cluster.python, "-m", "chaos.shaper", json.dumps(order)]
        self._shapers.start(token, argv, env=dict(os.environ), cwd=_REPOSITORY)
        deadline_s = time.monotonic() + _TAKEN_UP_S
        # First who sends on, then what stops: the other way round packets would be lost between.
        while not self._stats(token).exists():
            if self._shapers.pid(token) is None or time.monotonic() > deadline_s:
                raise FaultError(f"the shaper does not run: {self._shapers.log_tail(token)}")
            time.sleep(_POLL_S)
        hosts.divert(token, links, ends_only=ends_only)

    def proof(self, token: str) -> dict[str, Any]:
        done = self._read(token)
        if not done:  # dropped in the kernel, and counted there
            lost = self._hosts.lost(token)
            return {"bit": lost > 0, "packets_dropped": lost}
        return {"bit": bool(done.get("packets") or done.get("connections")), **done}

    def heal(self, token: str) -> None:
        try:
            self._hosts.heal(token)
        except HostsError as error:
            raise FaultError(str(error)) from error
        self._shapers.stop([token])
        for path in (self._stats(token), self._cluster.root / "logs" / f"{token}.log"):
            path.unlink(missing_ok=True)

    def _stats(self, token: str) -> Path:
        return self._folder / f"{token}.stats"

    def _read(self, token: str) -> dict[str, Any]:
        try:
            return dict(json.loads(self._stats(token).read_text()))
        except FileNotFoundError:
            return {}

    def _write(self, token: str, value: dict[str, Any]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._stats(token).write_text(json.dumps(value))


class RelayLinks:
    """Links through the relay: streams of bytes, between replicas, and between agents and replicas."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster

    @property
    def _relay(self) -> RelayFiles:
        return self._cluster.relay

    def missing(self, kind: str) -> str | None:
        if kind == "loss":
            return "a relay sees streams, no packets: single packets are lost with HOSTS=netns (root)"
        return None

    def exists(self, link: Link) -> bool:
        relayed = self._cluster.spec.relayed
        names = {*self._cluster.names}
        return set(link) <= names and (link in relayed or (link[1], link[0]) in relayed)

    def strike(self, token: str, kind: str, links: Sequence[Link], figures: dict[str, float]) -> None:
        if self._cluster.processes.pid(RELAY) is None:
            raise FaultError("the relay does not run: qd local start relay")
        self._relay.add(token, kind, links, **figures)
        deadline_s = time.monotonic() + _TAKEN_UP_S
        while token not in self._relay.stats():
            if time.monotonic() > deadline_s:
                raise FaultError(f"the relay does not take it up; see {self._cluster.processes.log_path(RELAY)}")
            time.sleep(_POLL_S)

    def proof(self, token: str) -> dict[str, Any]:
        time.sleep(2 * STATS_S)  # what it tells is as old as that
        done = self._relay.stats().get(token, {})
        return {"bit": bool(done.get("bytes") or done.get("connections")), **done}

    def heal(self, token: str) -> None:
        self._relay.remove(token)


def directed(some: Iterable[str], others: Iterable[str], direction: str) -> list[Link]:
    """The links between two groups: what ``some`` send (``to``), what they get (``from``), or ``both``."""
    pairs = [(a, b) for a in some for b in others if a != b]
    out = pairs if direction in {"to", "both"} else []
    back = [(b, a) for a, b in pairs] if direction in {"from", "both"} else []
    return list(dict.fromkeys([*out, *back]))
