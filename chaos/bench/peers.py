"""The two systems under test, driven alike: three replicas of ours, and a three-member etcd.

Owns their processes (through :class:`LocalCluster`), who leads, and what a process weighs. A command that is run is
ended when the benchmark is. Both run on loopback with
their defaults, fsync on, without TLS, as `etcdctl check perf` is usually run.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import shutil
import signal
import ssl
import subprocess
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import psutil

from chaos.bench.h2client import CallFailedError, connect
from chaos.bench.looplag import LoopLag
from controlplane.client import OperatorClient
from controlplane.local import etcd
from controlplane.local.cluster import FOLDER, LocalCluster
from controlplane.local.hosts import Hosts
from controlplane.local.restore import restore_replicas
from controlplane.local.spec import ClusterSpec, plan
from controlplane.pb.etcd import rpc_pb2

__all__ = ["OURS", "PEER", "PUT", "RANGE", "Peer", "etcdctl", "started"]

OURS: Final = "quarterdeck"
PEER: Final = "etcd"
PUT: Final = "/etcdserverpb.KV/Put"
RANGE: Final = "/etcdserverpb.KV/Range"
STATUS: Final = "/etcdserverpb.Maintenance/Status"

#: A member may have a million keys to read first.
_SERVING_S: Final = 300.0


class Peer:
    """One cluster of three. ``kind`` is :data:`OURS` or :data:`PEER`; with ``hosts``, each member on its own. ``tls``:
    ours only, on every link."""

    def __init__(
        self,
        kind: str,
        folder: Path,
        port_base: int,
        hosts: Hosts | None = None,
        replica_args: tuple[str, ...] = (),
        *,
        tls: bool = False,
    ) -> None:
        self.kind = kind
        replicas = 3 if kind == OURS else 1  # a plan has at least one; etcd's is never started
        store = "embedded" if kind == OURS else "etcd"
        spec = plan(replicas=replicas, nodes=0, port_base=port_base, store=store, tls=tls and kind == OURS)
        spec = dataclasses.replace(spec, extra_replica_args=replica_args)
        if hosts is not None:
            spec = _on_hosts(spec, hosts)
        self.cluster = LocalCluster.create(folder / kind / FOLDER, spec)
        if hosts is not None:
            self.cluster.enter = hosts.enter
        members = spec.replicas if kind == OURS else spec.store
        #: name -> client endpoint
        self.endpoints: dict[str, str] = {member.name: member.client for member in members}

    @property
    def clients(self) -> list[str]:
        """Every member's client endpoint."""
        return list(self.endpoints.values())

    def client_tls(self) -> ssl.SSLContext | None:
        """How its clients connect."""
        credentials = self.cluster.credentials()
        if credentials is None:
            return None
        context = credentials.client
        context.set_alpn_protocols(["h2"])
        return context

    # -- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> float:
        """Start what does not run; seconds until a write was acknowledged."""
        begin = time.monotonic()
        for name in self.endpoints:
            await asyncio.to_thread(self._start, name)
        await self.serving()
        return time.monotonic() - begin

    async def serving(self, *, via: str | None = None) -> None:
        """Return once a write is acknowledged (through member ``via``, or any)."""
        end = time.monotonic() + _SERVING_S
        message = rpc_pb2.PutRequest(key=b"bench/serving").SerializeToString()
        names = [via] if via is not None else list(self.endpoints)
        while time.monotonic() < end:
            self.cluster.check_alive(names)
            for name in names:
                with contextlib.suppress(OSError, CallFailedError, TimeoutError):
                    async with asyncio.timeout(2.0):
                        client = await connect(self.endpoints[name], self.client_tls())
                        try:
                            await client.unary(PUT, message)
                        finally:
                            client.close()
                    return
            await asyncio.sleep(0.005)
        tail = self.cluster.processes.log_tail(names[0])
        raise RuntimeError(f"{self.kind} does not serve after {_SERVING_S:g} s; the last that {names[0]} said:\n{tail}")

    async def whole(self) -> None:
        """Return once every member serves: the first write needs two of them only."""
        for name in self.endpoints:
            await self.serving(via=name)

    async def stop(self) -> None:
        await asyncio.to_thread(self.cluster.down)
        self.cluster.destroy()

    # -- members -------------------------------------------------------------------------------------------------

    async def leader(self) -> str:
        """Name of the member that leads."""
        for endpoint in self.endpoints.values():
            with contextlib.suppress(OSError, CallFailedError):
                client = await connect(endpoint, self.client_tls())
                try:
                    status = rpc_pb2.StatusResponse.FromString(await client.unary(STATUS, b""))
                finally:
                    client.close()
                if status.leader == 0:
                    continue
                for name, other in self.endpoints.items():
                    if await self._member_id(other) == status.leader:
                        return name
        raise RuntimeError(f"{self.kind} has no leader")

    async def _member_id(self, endpoint: str) -> int:
        with contextlib.suppress(OSError, CallFailedError):
            client = await connect(endpoint, self.client_tls())
            try:
                return rpc_pb2.StatusResponse.FromString(await client.unary(STATUS, b"")).header.member_id
            finally:
                client.close()
        return 0

    def signal(self, name: str, signum: signal.Signals) -> None:
        self.cluster.processes.signal(name, signum)

    async def gone(self, name: str) -> None:
        await asyncio.to_thread(self.cluster.processes.wait_gone, name, timeout_s=30.0)

    async def restart(self, name: str) -> None:
        """Start one member again and wait until it serves."""
        await asyncio.to_thread(self._start, name)
        await self.serving(via=name)

    def _start(self, name: str) -> None:
        """Start one member. etcd with its own defaults: a local cluster's store is tuned, its peer in a benchmark is
        not."""
        if self.kind == OURS:
            self.cluster.start(name)
            return
        member = next(m for m in self.cluster.spec.store if m.name == name)
        argv = etcd.member_argv(member, self.cluster.spec, self.cluster.store_dir(name).resolve())
        for flag in ("--heartbeat-interval", "--election-timeout", "--snapshot-count"):
            at = argv.index(flag)
            del argv[at : at + 2]
        self.cluster.processes.start(
            name, [*self.cluster.enter(name), *argv], env=etcd.environment(), cwd=self.cluster.root
        )

    # -- snapshots -----------------------------------------------------------------------------------------------

    async def save_snapshot(self, file: Path) -> None:
        """The whole state, into a file."""
        if self.kind == PEER:
            await etcdctl("snapshot", "save", str(file), endpoints=self.clients[:1])
            return
        async with OperatorClient(self.clients[0]) as client:
            with file.open("wb") as out:
                async for chunk in client.snapshot():
                    out.write(chunk.data)

    async def restore_snapshot(self, file: Path) -> None:
        """Make every member's directory from the file: all members are stopped and have lost theirs."""
        if self.kind == OURS:
            await asyncio.to_thread(restore_replicas, self.cluster, file)
            return
        spec = self.cluster.spec
        commands = [
            [
                "snapshot", "restore", str(file), "--name", m.name, "--data-dir", str(self.cluster.store_dir(m.name)),
                "--initial-cluster", etcd.initial_cluster(spec), "--initial-cluster-token", "restored",
                "--initial-advertise-peer-urls", f"http://{m.peer}",
            ]
            for m in spec.store
        ]  # fmt: skip
        await asyncio.gather(*(etcdctl(*command, endpoints=[]) for command in commands))

    # -- what it costs -------------------------------------------------------------------------------------------

    async def loop_lag(self) -> dict[str, LoopLag]:
        """How late the loops of our replicas were, by name."""
        found = {}
        for replica in self.cluster.spec.replicas:
            url = f"http://{replica.metrics}/metrics"
            found[replica.name] = LoopLag.parse(await asyncio.to_thread(_get, url))
        return found

    def memory_bytes(self) -> int:
        """Resident memory of all members."""
        return sum(psutil.Process(pid).memory_info().rss for name in self.endpoints if (pid := self.pid(name)))

    def cpu_s(self) -> float:
        """Processor time of all members until now."""
        times = [psutil.Process(pid).cpu_times() for name in self.endpoints if (pid := self.pid(name))]
        return sum(t.user + t.system for t in times)

    def pid(self, name: str) -> int | None:
        return self.cluster.processes.pid(name)

    def wipe(self, name: str) -> None:
        """Lose a stopped member's disk."""
        directory = self.cluster.replica_dir(name) if self.kind == OURS else self.cluster.store_dir(name)
        shutil.rmtree(directory, ignore_errors=True)


@asynccontextmanager
async def started(
    kind: str, folder: Path, port_base: int, hosts: Hosts | None = None, replica_args: tuple[str, ...] = ()
) -> AsyncIterator[Peer]:
    """A fresh cluster, every member serving; gone afterwards."""
    peer = Peer(kind, folder, port_base, hosts, replica_args)
    try:
        await peer.start()
        await peer.whole()
        yield peer
    finally:
        await peer.stop()


def _on_hosts(spec: ClusterSpec, hosts: Hosts) -> ClusterSpec:
    """The same plan with every member at its host's address."""

    def moved(address: str, name: str) -> str:
        return f"{hosts.address(name)}:{address.rpartition(':')[2]}"

    return dataclasses.replace(
        spec,
        replicas=tuple(
            dataclasses.replace(
                r, client=moved(r.client, r.name), metrics=moved(r.metrics, r.name), peer=moved(r.peer, r.name)
            )
            for r in spec.replicas
            if r.name in hosts.names
        )
        or spec.replicas,
        store=tuple(
            dataclasses.replace(m, client=moved(m.client, m.name), peer=moved(m.peer, m.name)) for m in spec.store
        ),
    )


async def etcdctl(*arguments: str, endpoints: list[str], check: bool = True) -> str:
    """Run this machine's etcdctl against these endpoints; what it said, errors included.

    Raises:
        RuntimeError: it failed, and ``check`` is on.
    """
    process = await asyncio.create_subprocess_exec(
        etcd.program("etcdctl"), *(["--endpoints", ",".join(endpoints)] if endpoints else []), *arguments,
        env={**etcd.environment(), "ETCDCTL_API": "3"}, stdin=subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        said = (await process.communicate())[0].decode(errors="replace")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if check and process.returncode != 0:
        raise RuntimeError(f"etcdctl {' '.join(arguments[:2])} ended {process.returncode}: {said[-500:]}")
    return said


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 - a loopback address of our own
        text: bytes = response.read()
    return text.decode()
