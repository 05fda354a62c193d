"""A ground made of fakes: a cluster that remembers what was asked of it, and no network."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any, cast

from chaos.ground import Ground
from chaos.observe import PodView
from chaos.targets import Seen
from chaos.undo import UndoList
from controlplane.base.clock import ManualClock
from controlplane.base.rand import SeededRand
from controlplane.local.spec import ClusterSpec, plan

PODS = tuple(PodView(f"u{n}", f"web-{n}", f"node-{1 + n % 3}", 0, True, False) for n in range(6))


class FakeProcesses:
    """Nobody has a pid."""

    def pid(self, name: str) -> int | None:
        return None


class FakeCluster:
    """Remembers what was asked of it, in order. ``refuse``: names whose signals do not arrive."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.spec: ClusterSpec = plan(replicas=3, nodes=3, port_base=15_000)
        self.calls: list[str] = []
        self.refuse: set[str] = set()
        self.processes = FakeProcesses()
        self.remote = False

    @property
    def names(self) -> list[str]:
        spec = self.spec
        return [*(m.name for m in spec.store), *(r.name for r in spec.replicas), *(n.name for n in spec.nodes)]

    def state(self, name: str) -> str:
        return "gone"

    def node_dir(self, name: str) -> Path:
        return self.root / "nodes" / name

    def replica_dir(self, name: str) -> Path:
        return self.root / "replicas" / name

    def arm(self, name: str, spec: str) -> None:
        self.calls.append(f"arm {name} {spec}".rstrip())

    def running(self) -> list[str]:
        return self.names

    def kill(self, name: str, signum: signal.Signals = signal.SIGKILL) -> bool:
        self.calls.append(f"{signum.name} {name}")
        return name not in self.refuse

    def stop(self, name: str) -> bool:
        self.calls.append(f"stop {name}")
        return name in self.refuse

    def kill_node(self, name: str) -> int:
        self.calls.append(f"kill node {name}")
        return 2

    def start(self, name: str) -> int:
        self.calls.append(f"start {name}")
        return 1

    def add_node(self) -> Any:
        self.spec, node = self.spec.with_node()
        self.calls.append(f"add {node.name}")
        return node

    def remove_node(self, name: str) -> None:
        self.spec = self.spec.without_node(name)
        self.calls.append(f"remove {name}")

    def destroy_replica_data(self, name: str) -> None:
        self.calls.append(f"destroy {name}")


class FakePods:
    """Six pods on three nodes."""

    def views(self) -> list[PodView]:
        return list(PODS)

    def ready(self) -> list[PodView]:
        return list(PODS)


def ground(root: Path, *, client: Any = None, **seen: Any) -> tuple[Ground, FakeCluster]:
    """A ground where r2 leads, and its cluster."""
    cluster = FakeCluster(root)
    names = tuple(r.name for r in cluster.spec.replicas), tuple(n.name for n in cluster.spec.nodes)
    found = Ground(
        cluster=cast(Any, cluster), client=client, kv=cast(Any, None), replicas=cast(Any, None),
        pods=cast(Any, FakePods()), links=None, clock=ManualClock(), rand=SeededRand(1), say=lambda _: None,
        undo=UndoList(root / "chaos"), seen=Seen(*names, **{"leader": "r2", "term": 4, "pods": PODS, **seen}),
    )  # fmt: skip
    return found, cluster
