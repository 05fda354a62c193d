"""Replicas whose disk refuses: the others acknowledge everything, and each comes back by itself, in its own process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from controlplane.base.failpoints import VARIABLE
from controlplane.pb.etcd import rpc_pb2, rpc_pb2_grpc
from tests.integration.etcd_rig import free_port
from tests.integration.test_crash_points import patience

REPOSITORY = Path(__file__).resolve().parents[2]
_DISK_MB = 100


@contextmanager
def small_disk(path: Path) -> Iterator[None]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_MB}m", "tmpfs", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


class Process:
    """One replica as a user runs it."""

    def __init__(self, name: str, folder: Path, cluster: str, *, client: str, http: str, failpoints: str = "") -> None:
        self.client = client
        self._http = http
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "controlplane", "--name", name, "--data-dir", str(folder / name),
                    "--initial-cluster", cluster, "--snapshot-entries", "100",
                ],
                cwd=REPOSITORY, env={**os.environ, VARIABLE: failpoints}, stdout=log, stderr=log,
            )  # fmt: skip

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{self._http}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    async def until(self, ready: bool, says: str = "") -> str:
        """Wait for what /readyz says."""
        for _ in patience(f"{self._http}/readyz to be {ready} and say {says!r}"):
            status, text = await asyncio.to_thread(self.get, "/readyz")
            if status == (200 if ready else 503) and says in text:
                return text
            await asyncio.sleep(0.05)
        raise AssertionError

    def metric(self, name: str) -> float:
        lines = self.get("/metrics")[1].splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Writes:
    """Writes one after another at one replica; every one must be acknowledged."""

    def __init__(self, client: str) -> None:
        self._client = client
        self.done: dict[bytes, bytes] = {}

    @asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        async with grpc.aio.insecure_channel(self._client) as channel:
            writer = asyncio.create_task(self._write(rpc_pb2_grpc.KVStub(channel)))
            try:
                yield
            finally:
                writer.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await writer  # a write that was not acknowledged comes out here

    async def _write(self, kv: Any) -> None:
        while True:
            key = b"key-%d" % len(self.done)
            value = os.urandom(1500)
            await kv.Put(rpc_pb2.PutRequest(key=key, value=value), timeout=10)
            self.done[key] = value

    async def all_at(self, client: str) -> None:
        """They are all there, read at one replica only."""
        async with grpc.aio.insecure_channel(client) as channel:
            kv: Any = rpc_pb2_grpc.KVStub(channel)
            for _ in patience("the replica to have caught up"):
                request = rpc_pb2.RangeRequest(key=b"key-", range_end=b"key.", limit=100_000, serializable=True)
                found = {found.key: found.value for found in (await kv.Range(request, timeout=10)).kvs}
                if self.done.items() <= found.items():
                    return
                await asyncio.sleep(0.1)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk: needs root")
async def test_a_replica_whose_disk_refuses_comes_back_when_it_does_not(tmp_path: Path) -> None:
    names = ("r1", "r2", "r3")
    ports = {name: [f"127.0.0.1:{free_port()}" for _ in range(3)] for name in names}
    cluster = ",".join(f"{name}={'@'.join(ports[name])}" for name in names)
    with small_disk(tmp_path / "r1"):
        r1, r2, r3 = replicas = [
            Process(
                name,
                tmp_path,
                cluster,
                client=client,
                http=http,
                failpoints="wal.sync.before=error:EIO@60" if name == "r3" else "",
            )
            for name, (_, client, http) in ports.items()
        ]
        writes = Writes(r2.client)
        try:
            for replica in replicas:
                await replica.until(ready=True)
            # A sync fails once.
            async with writes.going_on():
                await r3.until(ready=False, says="closed, its disk refused: failpoint wal.sync.before")
                await r3.until(ready=True)
            assert r3.metric("quarterdeck_disk_failures_total") == 1
            await writes.all_at(r3.client)
            # The disk is full, for as long as somebody leaves it so.
            hog = tmp_path / "r1" / "hog"
            before = len(writes.done)
            async with writes.going_on():
                with hog.open("wb") as file:
                    for _ in range(16 * _DISK_MB):
                        try:
                            file.write(bytes(1 << 16))
                            file.flush()
                        except OSError:
                            break
                await r1.until(ready=False, says="its disk is full: ")
                assert r1.get("/livez")[0] == 200, "nobody shall restart it for that"
                assert r1.metric("quarterdeck_disk_failed") == 1
                during = len(writes.done)
                for _ in patience("writes at the others"):
                    if len(writes.done) > during + 20:
                        break
                    await asyncio.sleep(0.05)
                hog.unlink()
                await r1.until(ready=True)
            assert len(writes.done) > before + 20
            for replica in replicas:
                await writes.all_at(replica.client)
            assert [replica.process.poll() for replica in replicas] == [None] * 3, "a process ended"
        finally:
            for replica in replicas:
                replica.stop()
