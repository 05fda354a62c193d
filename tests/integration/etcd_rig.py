"""Servers that speak the etcd API, for tests: ours in this process, and the real etcd as a process of its own."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from controlplane.base.http import ObservabilityServer
from controlplane.base.rand import SystemRand
from controlplane.etcd.local import LocalKV
from controlplane.etcd.passwords import Passwords
from controlplane.etcd.service import SERVICE_NAMES, add_services
from controlplane.pb.etcd import rpc_pb2, rpc_pb2_grpc
from controlplane.store.store import Store
from controlplane.transport.channel import new_channel
from controlplane.transport.server import Health, add_reflection, listen, new_server
from tests.conftest import find_program
from tests.fakes.raft import FakeRaft

__all__ = ["Ours", "free_port", "ours", "real_etcd"]

#: Passwords of tests are hashed with little effort: many log in.
_CHEAP_LOG2_COST = 1
_CHEAP_BCRYPT_COST = 4


@dataclass
class Ours:
    """Our etcd API over a FakeRaft, listening."""

    endpoint: str
    raft: FakeRaft
    store: Store
    kv: LocalKV


@asynccontextmanager
async def ours() -> AsyncIterator[Ours]:
    """One replica of ours."""
    store = Store(cluster_id=FakeRaft.CLUSTER_ID)
    raft = FakeRaft(store)
    kv = LocalKV(raft, store)
    kv.start()
    http = ObservabilityServer("127.0.0.1:0", {})
    await http.start()
    server = new_server(http1=http.connection)
    add_services(server, kv, raft, store, passwords=Passwords(SystemRand(), log2_cost=_CHEAP_LOG2_COST))
    health = Health(server, SERVICE_NAMES)
    add_reflection(server, SERVICE_NAMES)
    port = listen(server, "127.0.0.1:0")
    await server.start()
    await health.set_serving(True)
    try:
        yield Ours(f"127.0.0.1:{port}", raft, store, kv)
    finally:
        await server.stop(None)
        await http.stop()
        await kv.stop()


def free_port() -> int:
    """A port that was free a moment ago, for programs that cannot pick one themselves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def real_etcd(data_dir: Path) -> AsyncIterator[str]:
    """A single-member etcd on loopback; yields its client endpoint."""
    program = find_program("etcd")
    assert program is not None
    client, peer = free_port(), free_port()
    command = [
        program,
        "--name=solo",
        f"--data-dir={data_dir}",
        f"--listen-client-urls=http://127.0.0.1:{client}",
        f"--advertise-client-urls=http://127.0.0.1:{client}",
        f"--listen-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-cluster=solo=http://127.0.0.1:{peer}",
        "--log-level=error",
        f"--bcrypt-cost={_CHEAP_BCRYPT_COST}",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD")}
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        endpoint = f"127.0.0.1:{client}"
        await _answers(endpoint, process)
        yield endpoint
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _answers(endpoint: str, process: asyncio.subprocess.Process) -> None:
    async with new_channel(endpoint) as channel:
        stub = rpc_pb2_grpc.KVStub(channel)
        while True:
            assert process.returncode is None, "etcd ended at once"
            try:
                await stub.Range(rpc_pb2.RangeRequest(key=b"x"), timeout=10, wait_for_ready=True)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.05)
            else:
                return
