"""Three stores behind one protocol, for the contract suite: the simulator's replicas, ours as processes, and etcd.

Owns their making and unmaking. A :class:`Rig` is all the suite sees: a KVStore, a second way to the same store, how
time passes, and how the whole store stops answering for a while.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from controlplane.base.clock import SystemClock
from controlplane.base.errors import StatusError
from controlplane.base.rand import SeededRand, SystemRand
from controlplane.etcd.local import LocalKV
from controlplane.external.config import StoreConfig
from controlplane.external.connection import Connection
from controlplane.external.kv import RemoteKV
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.raft.types import LeadershipListener, Outcome, PeerHandler, RaftStatus
from controlplane.store.kv import KVStore
from tests.conftest import find_program
from tests.fakes.raft import FakeRaft
from tests.sim.node import SimNode
from tests.sim.scheduler import Scheduler
from tests.sim.world import World

__all__ = ["Members", "Rig", "etcd_members", "remote", "replica_members", "simulator"]

T = TypeVar("T")

_HOST = "127.0.0.1"
_START_TIMEOUT_S = 30.0


@dataclass
class Rig:
    """A store under test.

    Attributes:
        kv: the way to it; ``other``: another one, through another member.
        sleep: seconds of the store's time.
        freeze, thaw: no member runs in between; what was sent waits.
        bookmarks: an idle watch that asked for progress gets it within a second.
    """

    kv: KVStore
    other: KVStore
    sleep: Callable[[float], Awaitable[None]]
    freeze: Callable[[], None]
    thaw: Callable[[], None]
    bookmarks: bool = False


# -- the simulator -------------------------------------------------------------------------------------------------


class _SimClock:
    """Virtual time for who waits in asyncio."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def monotonic(self) -> float:
        return self._scheduler.now

    def wall_ms(self) -> int:
        return 1_700_000_000_000 + int(self._scheduler.now * 1000)

    async def sleep(self, seconds: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._scheduler.after(seconds, lambda: None if woken.done() else woken.set_result(None))
        await woken


class _SimRaft(FakeRaft):
    """Raft's handle on a simulated replica: proposals and reads go through its core, its disk and the network. Peers'
    calls do not: they are another link's business, which the simulator does not have."""

    def __init__(self, node: SimNode, peers: dict[str, _SimRaft]) -> None:
        self._node = node
        self._peers = peers
        peers[node.me.name] = self
        self._heard: list[LeadershipListener] = []
        self._channels: dict[str, PeerHandler] = {}
        self._led: int | None = None

    async def propose(self, payload: bytes, *, request_id: bytes, timeout_ms: int) -> Outcome:
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        deadline = self._node.monotonic() + timeout_ms / 1000
        self._node.core.propose(payload, request_id=request_id, deadline=deadline, done=_into(done))
        self._node.kick()
        return await done

    async def read_barrier(self, *, timeout_ms: int) -> int:
        done: asyncio.Future[int | StatusError] = asyncio.get_running_loop().create_future()
        self._node.core.read(deadline=self._node.monotonic() + timeout_ms / 1000, done=_into(done))
        self._node.kick()
        result = await done
        if isinstance(result, StatusError):
            raise result
        return result

    def status(self) -> RaftStatus:
        engine = self._node.core.engine
        return RaftStatus(
            name=self._node.me.name,
            member_id=self._node.me.id,
            cluster_id=1,
            role="leader" if engine.is_leader else "follower",
            leader=next((name for name, peer in self._peers.items() if peer._node.core.engine.is_leader), None),
            term=engine.term,
            commit_index=engine.commit_index,
            applied_index=engine.applied_index,
            last_index=engine.last_index,
            snapshot_index=0,
            members=(),
            ready=self._node.core.ready,
            pending=self._node.core.pending,
        )

    def on_leadership(self, listener: LeadershipListener) -> None:
        self._heard.append(listener)

    def serve(self, channel: str, handler: PeerHandler) -> None:
        self._channels[channel] = handler

    async def call(self, peer: str, channel: str, payload: bytes, *, timeout_ms: int) -> bytes:
        return await self._peers[peer]._channels[channel](self._node.me.name, payload)

    def look(self) -> None:
        """Tell the listeners what has changed."""
        engine = self._node.core.engine
        leads = engine.term if engine.is_leader and self._node.core.ready else None
        if leads == self._led:
            return
        before, self._led = self._led, leads
        for listener in self._heard:
            if before is not None:
                listener(before, False)
            if leads is not None:
                listener(leads, True)


def _into(done: asyncio.Future[T]) -> Callable[[T], None]:
    return lambda result: None if done.done() else done.set_result(result)


@asynccontextmanager
async def simulator(seed: int = 7) -> AsyncIterator[Rig]:
    """Three replicas in virtual time, over a network and disks that are slow and lose nothing."""
    world = World(seed, size=3)
    scheduler = world.scheduler
    for node in world.nodes:
        node.start()
    peers: dict[str, _SimRaft] = {}
    rafts = [_SimRaft(node, peers) for node in world.nodes]
    clock = _SimClock(scheduler)
    stores = [
        LocalKV(raft, node.machine.store, clock=clock, rand=SeededRand(node.me.id), progress_every_s=0.5)
        for raft, node in zip(rafts, world.nodes, strict=True)
    ]
    for kv in stores:
        kv.start()

    async def run() -> None:
        while True:
            scheduler.run_until(scheduler.now + 0.005)
            for raft in rafts:
                raft.look()
            for _ in range(5):  # whoever was woken runs before time goes on
                await asyncio.sleep(0)

    def freeze() -> None:
        for node in world.nodes:
            node.pause(2.0)

    running = asyncio.create_task(run())
    try:
        await _serving(stores[0])
        yield Rig(stores[0], stores[1], clock.sleep, freeze, lambda: None, bookmarks=True)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        for kv in stores:
            await kv.stop()


# -- processes -----------------------------------------------------------------------------------------------------


class Members:
    """The processes of one cluster, by client endpoint."""

    def __init__(self, commands: dict[str, list[str]], log: Path) -> None:
        self._commands = commands
        self._log = log
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        for endpoint in commands:
            self.start(endpoint)

    @property
    def endpoints(self) -> Sequence[str]:
        return tuple(self._commands)

    def start(self, endpoint: str) -> None:
        """Start a member, for the first time or again."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD")}
        with self._log.open("ab") as log:
            self._processes[endpoint] = subprocess.Popen(
                self._commands[endpoint], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def kill(self, endpoint: str) -> None:
        """kill -9."""
        process = self._processes[endpoint]
        process.kill()
        process.wait()

    def signal(self, signum: signal.Signals) -> None:
        """To every one that runs."""
        for process in self._processes.values():
            if process.poll() is None:
                process.send_signal(signum)

    def close(self) -> None:
        """End all at once, and wait for them."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()


def replica_members(folder: Path) -> Members:
    """Three replicas of ours, as processes."""
    ports = [[_free_port() for _ in range(3)] for _ in range(3)]
    at = [[f"{_HOST}:{port}" for port in row] for row in ports]
    initial = ",".join(f"r{n}={peer}@{client}@{metrics}" for n, (peer, client, metrics) in enumerate(at, 1))
    return Members(
            {
                client: [
                    sys.executable, "-m", "controlplane", "--name", f"r{n}", "--data-dir", str(folder / f"r{n}"),
                    "--initial-cluster", initial,
                ]
                for n, (_, client, _) in enumerate(at, 1)
            },
            folder / "log",
    )  # fmt: skip


def etcd_members(folder: Path) -> Members:
    """Three members of the machine's etcd."""
    program = find_program("etcd")
    assert program is not None
    at = [(f"{_HOST}:{_free_port()}", f"{_HOST}:{_free_port()}") for _ in range(3)]
    initial = ",".join(f"m{n}=http://{peer}" for n, (_, peer) in enumerate(at, 1))
    return Members(
            {
                client: [
                    program, "--name", f"m{n}", "--data-dir", str(folder / f"m{n}"),
                    "--listen-client-urls", f"http://{client}", "--advertise-client-urls", f"http://{client}",
                    "--listen-peer-urls", f"http://{peer}", "--initial-advertise-peer-urls", f"http://{peer}",
                    "--initial-cluster", initial, "--heartbeat-interval", "50", "--election-timeout", "500",
                    "--log-level", "error",
                ]
                for n, (client, peer) in enumerate(at, 1)
            },
            folder / "log",
    )  # fmt: skip


@asynccontextmanager
async def remote(members: Members) -> AsyncIterator[Rig]:
    """A rig on processes, through two clients."""
    clock, rand = SystemClock(), SystemRand()
    async with AsyncExitStack() as stack:
        stores = []
        for endpoints in (members.endpoints, members.endpoints[::-1]):
            connection = Connection(StoreConfig(tuple(endpoints)), clock=clock, rand=rand)
            stack.push_async_callback(connection.close)
            stores.append(RemoteKV(connection, clock=clock, rand=rand, progress_every_s=0.3))
        await _serving(stores[0])
        sound = await stores[0].progress_is_sound(members.endpoints[0])
        yield Rig(
            stores[0],
            stores[1],
            asyncio.sleep,
            lambda: members.signal(signal.SIGSTOP),
            lambda: members.signal(signal.SIGCONT),
            bookmarks=sound,
        )


async def _serving(kv: KVStore) -> None:
    """Until it answers, with an empty slate for the test."""
    end = time.monotonic() + _START_TIMEOUT_S
    while True:
        with suppress(StatusError):
            await kv.range(e.RangeRequest(key=b"contract"), timeout_ms=1_000)
            break
        assert time.monotonic() < end, "the store does not answer"
        await asyncio.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port
