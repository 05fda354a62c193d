"""A cluster reached by endpoints only, broken through the chaos agents of its machines.

Stands where a local cluster stands, for faults, probes and the runner: the same names and verbs, each an order to the
agent that has the process. What has no order cannot be done, and says so. Every order has a deadline, renewed while
this program lives; when it does not, agents heal by themselves.

Calls block for a round trip, as a local cluster's do for a system call.
"""

from __future__ import annotations

import secrets
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc

from chaos.fault import FaultError
from controlplane.base.errors import ConfigError
from controlplane.client.tls import Reloader
from controlplane.local.cluster import LocalCluster
from controlplane.local.processes import ProcessError
from controlplane.local.spec import ClusterSpec, NodeSpec, ReplicaSpec
from controlplane.pb.quarterdeck.v1 import chaos_pb2 as pb
from controlplane.pb.quarterdeck.v1.chaos_pb2_grpc import ChaosAgentStub

__all__ = ["RemoteCluster"]

_TIMEOUT_S: Final = 40.0
_DEADLINE_MS: Final = 60_000
_RENEW_S: Final = 15.0
_FRESH_S: Final = 0.1
#: Faults whose every step is an order -> the act, beside kill, start and the API's, that they cannot do without.
_POSSIBLE: Final[Mapping[str, str]] = {
    "kill": "", "stop": "", "pause": "", "node-death": "", "zone-loss": "", "compact": "", "scale": "", "rollout": "",
    "drain": "", "rolling-restart": "", "cpu-throttle": "throttle", "disk-error": "", "disk-full": "",
    "lose-unsynced": "", "tear": "", "pod-add": "", "snapshot-cut": "", "move-leader": "",
    "flip": "flip", "memory-pressure": "memory",
}  # fmt: skip
#: Why there is no order for the others.
_LINKS: Final = "agents touch no links, which are not their machine's alone"
_START: Final = "an agent starts a process with the command of its own file, not with another environment or arguments"
_IMPOSSIBLE: Final[Mapping[str, str]] = {
    **dict.fromkeys(("partition", "loss", "latency", "bandwidth", "reset", "slow-close", "flapping"), _LINKS),
    **dict.fromkeys(
        ("clock-step", "clock-skew", "monotonic-jump", "member-replace", "member-remove", "member-add", "node-add"),
        _START,
    ),
    "lose-control-plane": "agents destroy no data",
}  # fmt: skip

T = TypeVar("T")


class RemoteProcesses:
    """What the agents say of their processes, in the words of ``controlplane.local.processes``."""

    def __init__(self, look: Callable[[], Mapping[str, pb.ChaosProcess]]) -> None:
        self._look = look

    def pid(self, name: str) -> int | None:
        """On its own machine; None: it does not run."""
        found = self._look().get(name)
        return found.pid or None if found is not None else None

    def log_path(self, name: str) -> Path:
        """Logs stay where they are."""
        return Path(f"(the log of {name} is on its machine)")

    def log_tail(self, name: str, lines: int = 8, bytes_max: int = 0) -> str:
        """Nothing: agents hand out no logs."""
        return f"(the log of {name} is on its machine)"


class RemoteCluster(LocalCluster):
    """See the module. Close it when done.

    Args:
        root: a folder of this machine, for what runs leave: histories, reports, the undo list.
        agents: ``host:port`` of every chaos agent.
        credentials: an administrator's.

    Raises:
        ConfigError: an agent does not answer, or refuses; two have one process.
    """

    remote = True

    def __init__(self, root: Path, agents: Sequence[str], credentials: Reloader) -> None:
        self._credentials = credentials
        self._channels = [grpc.secure_channel(agent, credentials.channel_credentials()) for agent in agents]
        self._agents = dict(zip(agents, (ChaosAgentStub(channel) for channel in self._channels), strict=True))
        self._seen: tuple[float, dict[str, pb.ChaosProcess]] = (0.0, {})
        self._of: dict[str, str] = {}
        #: Act -> why an agent cannot do it on its machine.
        self._cannot: dict[str, str] = {}
        #: Orders in force by us: id -> the order.
        self._orders: dict[str, pb.ChaosOrder] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        try:
            found = self._look(fresh=True)
        except FaultError as error:
            self.close()
            raise ConfigError(str(error)) from error
        super().__init__(root, _spec(found))
        self.processes = RemoteProcesses(self._look)  # type: ignore[assignment]  # what faults use of it
        root.mkdir(parents=True, exist_ok=True)
        self._renewing = threading.Thread(target=self._renew, name="chaos-renew", daemon=True)
        self._renewing.start()

    def close(self) -> None:
        """Orders in force are healed by their agents, at their deadlines at the latest."""
        self._closed.set()
        for channel in self._channels:
            channel.close()

    def impossible(self, fault: str) -> str | None:
        """Why a fault cannot be made through agents; None: it can."""
        if fault in _POSSIBLE:
            return self._cannot.get(_POSSIBLE[fault])
        why = _IMPOSSIBLE.get(fault, "agents have no order for it")
        return f"{why}: run it where the cluster is local"

    def machines(self) -> list[str]:
        """One process of every agent."""
        return [
            next(name for name, its in self._of.items() if its == agent) for agent in dict.fromkeys(self._of.values())
        ]

    # -- in the words of a local cluster ------------------------------------------------------------------------------

    def credentials(self) -> Reloader | None:
        return self._credentials

    def running(self) -> list[str]:
        return [name for name, process in self._look().items() if process.pid]

    def state(self, name: str) -> str:
        found = self._look(fresh=True).get(name)
        return found.state if found is not None and found.state else "gone"

    def pods_by_node(self) -> Mapping[str, Mapping[str, Sequence[int]]]:
        """Node -> uid of each of its pods that has processes -> its process groups, on its own machine."""
        return {
            process.name: {uid: list(groups.groups) for uid, groups in process.pods.items()}
            for process in self._look().values()
            if process.kind == "node"
        }

    def check_alive(self, names: Sequence[str]) -> None:
        running = self.running()
        for name in names:
            if name not in running:
                raise ProcessError(f"{name} ended, its agent says; its log is on its machine")

    def check_ports(self) -> None:
        """They are other machines'."""

    def prepare(self) -> None:
        """Nothing to be made here."""

    def start(self, name: str) -> int:
        self._heal(name, {"kill", "stop", "kill-with-pods"})
        if self.processes.pid(name) is None:
            self._strike(name, "start")
        return self.processes.pid(name) or 0

    def stop(self, name: str) -> bool:
        self._heal(name, {"pause"})
        return bool(self._strike(name, "stop")) if name in self.running() else False

    def kill(self, name: str, signum: signal.Signals = signal.SIGKILL) -> bool:
        self._check_name(name)
        acts = {signal.SIGKILL: "kill", signal.SIGTERM: "stop", signal.SIGSTOP: "pause"}
        if signum == signal.SIGCONT:
            return self._heal(name, {"pause"}) > 0
        if self.processes.pid(name) is None:
            return False
        self._strike(name, acts[signum])
        return True

    def kill_node(self, name: str) -> int:
        return self._strike(self.node(name).name, "kill-with-pods")

    def arm(self, name: str, spec: str) -> bool:
        self._heal(name, {"failpoints"})
        if spec:
            self._strike(name, "failpoints", failpoints=spec)
        return True

    def throttle(self, token: str, names: Sequence[str], percent: int) -> None:
        for name in names:
            self._strike(name, "throttle", order_id=f"{token}-{name}", percent=percent)

    def unthrottle(self, token: str, names: Sequence[str]) -> int:
        """Returns how many periods ended too early."""
        return sum(self._heal_order(f"{token}-{name}", name) for name in names)

    def cut_tail(self, name: str, keep: float) -> int:
        return self._strike(name, "cut-tail", keep=keep)

    def flip(self, name: str, where: str, place: int, bit: int) -> int:
        """Turn a bit of what a stopped replica has synced; returns its byte's offset. The agent notes the byte."""
        return self._strike(name, "flip", where=where, place=place, bit=bit)

    def flip_back(self, name: str) -> None:
        """The byte as it was, and the replica started."""
        self._heal(name, {"flip"})

    def take_memory(self, token: str, name: str, mib: int) -> None:
        """Of the machine that the process is on."""
        self._strike(name, "memory", order_id=f"{token}-{name}", mib=mib)

    def free_memory(self, token: str, name: str) -> int:
        """Returns how many MiB were held; 0: none any more."""
        return self._heal_order(f"{token}-{name}", name)

    # -- orders ----------------------------------------------------------------------------------------------------

    def _strike(self, name: str, act: str, *, order_id: str = "", **fields: Any) -> int:
        order = pb.ChaosOrder(
            id=order_id or f"{act}-{name}-{secrets.token_hex(4)}", process=name, act=act, deadline_ms=_DEADLINE_MS,
            **fields,
        )  # fmt: skip
        agent = self._agent(name)
        if act not in {"start", "cut-tail"}:
            with self._lock:
                self._orders[order.id] = order
        struck: pb.ChaosStruck = self._call(agent, lambda stub: stub.Strike(order, timeout=_TIMEOUT_S))
        self._seen = (0.0, {})
        return int(struck.count)

    def _heal(self, name: str, acts: set[str]) -> int:
        """Every order of these kinds on the process that is in force, also another program's."""
        agent = self._agent(name)
        described = self._call(agent, lambda stub: stub.Describe(pb.ChaosDescribeRequest(), timeout=_TIMEOUT_S))
        found = [order.id for order in described.orders if order.process == name and order.act in acts]
        for order_id in found:
            self._heal_order(order_id, name)
        return len(found)

    def _heal_order(self, order_id: str, name: str) -> int:
        with self._lock:
            self._orders.pop(order_id, None)
        request = pb.ChaosHealRequest(id=order_id)
        answer = self._call(self._agent(name), lambda stub: stub.Heal(request, timeout=_TIMEOUT_S))
        self._seen = (0.0, {})
        return int(answer.count)

    def _renew(self) -> None:
        """On a thread of its own: the loop may be busy, and a deadline is not."""
        while not self._closed.wait(_RENEW_S):
            with self._lock:
                orders = list(self._orders.values())
            for order in orders:
                # Marked, so that one that was healed since, by us or by its agent, is not done again.
                again = pb.ChaosOrder()
                again.CopyFrom(order)
                again.renew = True
                try:
                    self._agents[self._of[order.process]].Strike(again, timeout=_TIMEOUT_S)
                except grpc.RpcError:
                    pass  # healed, or its agent is not reached: it heals by itself, and the next order to it says so

    def _look(self, *, fresh: bool = False) -> dict[str, pb.ChaosProcess]:
        at_s, seen = self._seen
        if not fresh and time.monotonic() - at_s < _FRESH_S:
            return seen
        found: dict[str, pb.ChaosProcess] = {}
        for address in self._agents:
            described = self._call(address, lambda stub: stub.Describe(pb.ChaosDescribeRequest(), timeout=_TIMEOUT_S))
            self._cannot |= {act: f"{described.machine}: {why}" for act, why in described.impossible.items()}
            for process in described.processes:
                if self._of.setdefault(process.name, address) != address:
                    raise FaultError(f"{process.name} is a process of {address} and of {self._of[process.name]}")
                found[process.name] = process
        self._seen = (time.monotonic(), found)
        return found

    def _agent(self, name: str) -> str:
        if name not in self._of:
            raise ConfigError(f"no agent has a process {name!r}; there are: {', '.join(self._of)}")
        return self._of[name]

    def _call(self, address: str, call: Callable[[Any], T]) -> T:
        try:
            return call(self._agents[address])
        except grpc.RpcError as error:
            details = getattr(error, "details", lambda: "no answer")()
            raise FaultError(f"chaos agent {address}: {details}") from error


def _spec(found: Mapping[str, pb.ChaosProcess]) -> ClusterSpec:
    replicas = sorted((p.name, p.endpoint) for p in found.values() if p.kind == "replica")
    if not replicas:
        raise ConfigError("no chaos agent names a replica in its configuration")
    return ClusterSpec(
        port_base=0, token="", service_cidr="", cluster_cidr="", tls=True,
        replicas=tuple(ReplicaSpec(name, endpoint, endpoint, endpoint) for name, endpoint in replicas),
        nodes=tuple(NodeSpec(name, "", "") for name in sorted(p.name for p in found.values() if p.kind == "node")),
    )  # fmt: skip
