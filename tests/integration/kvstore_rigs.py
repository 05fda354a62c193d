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
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from controlplane.base.clock import SystemClock
from controlplane.base.errors import StatusError
from controlplane.base.rand import SystemRand
from controlplane.external.config import StoreConfig
from controlplane.external.connection import Connection
from controlplane.external.kv import RemoteKV
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.store.kv import KVStore
from tests.conftest import find_program
from tests.sim.node import SimNode
from tests.sim.options import Options
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
        freeze, thaw: there is no majority in between; what was sent waits.
        bookmarks: an idle watch that asked for progress gets it within a second.
    """

    kv: KVStore
    other: KVStore
    sleep: Callable[[float], Awaitable[None]]
    freeze: Callable[[], None]
    thaw: Callable[[], None]
    bookmarks: bool = False


# -- the simulator -------------------------------------------------------------------------------------------------


class _InSimulator:
    """A KVStore of a simulated replica, whose loop runs in virtual time, for who waits on the test's own loop."""

    def __init__(self, node: SimNode, running: asyncio.Task[None]) -> None:
        self._node = node
        self._running = running

    @property
    def revision(self) -> int:
        return self._node.kv.revision

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        return lambda *args, **options: self._there(lambda: getattr(self._node.kv, name)(*args, **options))

    @asynccontextmanager
    async def watch(self, request: e.WatchCreateRequest) -> AsyncIterator[AsyncIterator[e.WatchResponse]]:
        watch = self._node.kv.watch(request)
        responses = await self._there(lambda: watch.__aenter__())
        try:
            yield self._told(responses)
        finally:
            await self._there(lambda: watch.__aexit__(None, None, None))

    async def _told(self, responses: AsyncIterator[e.WatchResponse]) -> AsyncIterator[e.WatchResponse]:
        async def one() -> e.WatchResponse | None:
            return await anext(responses, None)

        while (response := await self._there(one)) is not None:
            yield response

    async def _there(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        async def run() -> None:
            try:
                result = await call()
            except Exception as error:  # noqa: BLE001 - handed to who asked
                if not done.done():
                    done.set_exception(error)
            else:
                if not done.done():
                    done.set_result(result)

        task: list[asyncio.Task[None]] = []
        self._node.loop.call_soon(lambda: task.append(self._node.loop.create_task(run())))
        try:
            return await _unless_ended(done, self._running)
        except asyncio.CancelledError:
            self._node.loop.call_soon(lambda: [t.cancel() for t in task])
            raise


async def _unless_ended(done: asyncio.Future[T], running: asyncio.Task[None]) -> T:
    """What is waited for; or, if the simulation has ended, what ended it."""
    waited: set[asyncio.Future[Any]] = {done, running}
    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        running.result()
    return await done


@asynccontextmanager
async def simulator(seed: int = 7) -> AsyncIterator[Rig]:
    """Three replicas in virtual time, over a network and disks that are slow and lose nothing."""
    world = World(seed, size=3, options=Options(size=3))
    scheduler = world.scheduler
    # The simulator's model knows what its own clients write, not what this suite does. That replicas which have applied
    # the same entries are equal is still checked.
    world.checks.applied = lambda *_: None  # type: ignore[method-assign]
    for node in world.nodes:
        node.start()

    async def run() -> None:
        while True:
            scheduler.run_until(scheduler.now + 0.005)
            for _ in range(5):  # whoever was woken runs before time goes on
                await asyncio.sleep(0)

    async def sleep(seconds: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        scheduler.after(seconds, lambda: None if woken.done() else woken.set_result(None))
        await _unless_ended(woken, running)

    def freeze() -> None:
        # All but the one that is asked: its own time must go on for it to give up.
        for node in world.nodes[1:]:
            node.pause(2.0)

    running = asyncio.create_task(run())
    try:
        while not all(node.serving for node in world.nodes):
            assert not running.done(), running.result()
            await asyncio.sleep(0)
        stores = [cast(KVStore, _InSimulator(node, running)) for node in world.nodes]
        await _serving(stores[0])
        yield Rig(stores[0], stores[1], sleep, freeze, lambda: None, bookmarks=True)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        world.close()


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
