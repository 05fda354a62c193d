"""What is done to a local cluster, and how each of it is undone.

Every fault notes its undoing before it strikes, so that a run that is stopped half-way leaves a whole cluster
(:meth:`Faults.heal`). Signals and files are other threads' work here: the loop carries the load, and a fault must not
hold it up.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from controlplane.client import ApiClient, EtcdClient, NotFoundError
from controlplane.local.cluster import LocalCluster
from controlplane.local.etcd_restore import restore_store
from controlplane.local.restore import Restored, contents, restore_replicas
from controlplane.pb.etcd import kv_pb2, rpc_pb2
from controlplane.pb.k8s.apps_v1_pb2 import Deployment
from controlplane.pb.k8s.core_v1_pb2 import Node

__all__ = ["Faults", "digest", "digest_of_snapshot", "read_everything"]

P = ParamSpec("P")
T = TypeVar("T")

_PAGE: Final = 2_000


class Faults:
    """Faults on one cluster, and the list of what is still to be undone.

    Args:
        deployment: (namespace, name) of the Deployment that is scaled.
    """

    def __init__(self, cluster: LocalCluster, client: ApiClient, deployment: tuple[str, str]) -> None:
        self.cluster = cluster
        self._client = client
        self._namespace, self._deployment = deployment
        self._undo: dict[str, Callable[[], Awaitable[object]]] = {}

    @property
    def undone_by(self) -> list[str]:
        """What :meth:`heal` would do: undo what is not undone, the newest first, then start what does not run (it was
        started again, and ended)."""
        running = self.cluster.running()
        dead = [
            f"start {name}" for name in self.cluster.names if name not in running and f"remove {name}" not in self._undo
        ]
        return list(dict.fromkeys([*reversed(self._undo), *dead]))

    async def heal(self) -> None:
        """Do that. What fails stays on the list and is raised."""
        for what in self.undone_by:
            if what in self._undo:
                await self._undo[what]()
                self._undo.pop(what, None)
            else:
                await self.start(what.removeprefix("start "))

    # -- processes -------------------------------------------------------------------------------------------------

    async def kill_replica(self, name: str) -> None:
        """kill -9."""
        self._undo[f"start {name}"] = lambda: self.start(name)
        await _aside(self.cluster.kill, name)

    async def kill_node(self, name: str) -> int:
        """A machine dies: kill -9 of the agent and of all its pods' processes. Returns how many pods had one."""
        self._undo[f"start {name}"] = lambda: self.start(name)
        return await _aside(self.cluster.kill_node, name)

    async def start(self, name: str) -> None:
        """Start it again; not waited for until it serves."""
        await _aside(self.cluster.start, name)
        self._undo.pop(f"start {name}", None)

    async def add_node(self) -> str:
        """One more agent; returns its name."""
        node = await _aside(self.cluster.add_node)
        self._undo[f"remove {node.name}"] = lambda: self.remove_node(node.name)
        return node.name

    async def remove_node(self, name: str) -> None:
        """Stop an agent with its pods and forget the node."""
        await _aside(self.cluster.remove_node, name)
        try:
            await self._client.delete(Node, name)
        except NotFoundError:
            pass  # it was stopped before it had joined
        self._undo.pop(f"remove {name}", None)

    # -- objects ---------------------------------------------------------------------------------------------------

    async def replicas_wanted(self) -> int:
        """How many pods the Deployment asks for."""
        return (await self._client.get(Deployment, self._deployment, namespace=self._namespace)).spec.replicas

    async def scale(self, replicas: int) -> None:
        """Ask for that many pods; undone by asking for as many as before the first time."""
        before = await self.replicas_wanted()
        what = f"scale {self._deployment} back"
        if what not in self._undo:
            self._undo[what] = lambda: self._ask(before)
        await self._ask(replicas)

    async def _ask(self, replicas: int) -> None:
        patch = {"spec": {"replicas": replicas}}
        await self._client.patch(Deployment, self._deployment, patch, namespace=self._namespace)

    # -- disaster --------------------------------------------------------------------------------------------------

    async def lose_control_plane(self, snapshot: Path) -> None:
        """kill -9 of every replica, and of every member of a store apart, and their data directories destroyed.
        ``snapshot`` is what undoes it."""
        names = [replica.name for replica in self.cluster.spec.replicas]
        store = [member.name for member in self.cluster.spec.store]
        self._undo["restore the control plane"] = lambda: self.restore(snapshot)

        def lose() -> None:
            for name in (*names, *store):
                self.cluster.kill(name)
            for name in names:
                self.cluster.destroy_replica_data(name)
            for name in store:
                self.cluster.destroy_store_data(name)

        await _aside(lose)

    async def restore(self, snapshot: Path) -> Restored:
        """A new control plane from the snapshot; not waited for until it serves."""

        def kill_and_restore() -> Restored:
            # Nothing runs, unless this is undoing a loss that was stopped half-way.
            spec = self.cluster.spec
            for name in (*(replica.name for replica in spec.replicas), *(member.name for member in spec.store)):
                self.cluster.kill(name)
            if self.cluster.spec.store:
                return restore_store(self.cluster, snapshot)
            return restore_replicas(self.cluster, snapshot)

        restored = await _aside(kill_and_restore)
        self._undo.pop("restore the control plane", None)
        return restored


async def _aside(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run it in a thread, and to its end even if the caller is cancelled: nobody undoes what is still being done."""
    work = asyncio.create_task(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise


def digest(kvs: Iterable[kv_pb2.KeyValue]) -> str:
    """SHA-256 over keys, values, revisions, versions and leases, in the order given."""
    hasher = hashlib.sha256()
    for kv in kvs:
        hasher.update(kv.SerializeToString(deterministic=True))
        hasher.update(b"\0" * 8)
    return hasher.hexdigest()


async def digest_of_snapshot(path: Path) -> str:
    """The digest of every key in a snapshot file."""
    return await _aside(lambda: digest(contents(path)))


async def read_everything(client: EtcdClient, revision: int) -> list[kv_pb2.KeyValue]:
    """Every key of the store as of a revision, in key order. Raises ApiError."""
    key = b"\0"
    kvs: list[kv_pb2.KeyValue] = []
    while True:
        page = await client.range(rpc_pb2.RangeRequest(key=key, range_end=b"\0", revision=revision, limit=_PAGE))
        kvs += page.kvs
        if not page.more:
            return kvs
        key = page.kvs[-1].key + b"\0"
