"""RemoteKV and an etcd that wants to know who calls: TLS both ways, users, permissions, tokens that expire."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from controlplane.base.clock import SystemClock
from controlplane.base.errors import Code, StatusError
from controlplane.base.identity import member
from controlplane.base.pki import Authority
from controlplane.base.rand import SystemRand
from controlplane.external.config import StoreConfig
from controlplane.external.connection import Connection
from controlplane.external.kv import RemoteKV
from controlplane.pb.etcd import rpc_pb2 as e
from tests.conftest import find_program
from tests.integration.etcd_rig import free_port

pytestmark = [pytest.mark.needs("etcd", "etcd-server"), pytest.mark.needs("etcdctl", "etcd-client")]

PASSWORD = "correct horse"


class Guarded:
    """One etcd member that speaks TLS only, to clients with a certificate of its authority only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        now_ms = SystemClock().wall_ms()
        authority = Authority.create("test", now_ms=now_ms)
        authority.pair.save(folder / "ca.pem", folder / "ca.key")
        Authority.create("other", now_ms=now_ms).pair.save(folder / "other.pem", folder / "other.key")
        who = member("solo")
        authority.issue(who, names=["127.0.0.1"], now_ms=now_ms).save(folder / "member.pem", folder / "member.key")
        self.endpoint = f"127.0.0.1:{free_port()}"
        peer = f"http://127.0.0.1:{free_port()}"
        program = find_program("etcd")
        assert program is not None
        self.process = subprocess.Popen(
            [
                program, "--name", "solo", "--data-dir", str(folder / "data"), "--log-level", "error",
                "--listen-client-urls", f"https://{self.endpoint}",
                "--advertise-client-urls", f"https://{self.endpoint}",
                "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"solo={peer}",
                "--cert-file", str(folder / "member.pem"), "--key-file", str(folder / "member.key"),
                "--trusted-ca-file", str(folder / "ca.pem"), "--client-cert-auth", "--auth-token-ttl", "1",
            ],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def etcdctl(self, *arguments: str, user: str = "") -> None:
        """As an administrator would."""
        program = find_program("etcdctl")
        assert program is not None
        tls = {"--cacert": "ca.pem", "--cert": "member.pem", "--key": "member.key"}
        flags = [word for flag, name in tls.items() for word in (flag, str(self.folder / name))]
        as_user = ["--user", user] if user else []
        environment = {**os.environ, "ETCDCTL_API": "3"}
        subprocess.run(
            [program, "--endpoints", f"https://{self.endpoint}", *flags, *as_user, *arguments],
            check=True, capture_output=True, env=environment,
        )  # fmt: skip

    def config(
        self, *, ca: str = "ca.pem", certificate: bool = True, user: str = "", password: str = ""
    ) -> StoreConfig:
        cert, key = (self.folder / "member.pem", self.folder / "member.key") if certificate else (None, None)
        return StoreConfig((self.endpoint,), self.folder / ca, cert, key, user, password)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    made = Guarded(tmp_path_factory.mktemp("guarded"))
    try:
        end = time.monotonic() + 20
        while True:
            try:
                made.etcdctl("endpoint", "health")
                break
            except subprocess.CalledProcessError:
                assert time.monotonic() < end
        made.etcdctl("user", "add", f"root:{PASSWORD}")
        made.etcdctl("user", "add", f"qd:{PASSWORD}")
        made.etcdctl("role", "add", "qd")
        made.etcdctl("role", "grant-permission", "--prefix=true", "qd", "readwrite", "/quarterdeck/")
        made.etcdctl("user", "grant-role", "qd", "qd")
        made.etcdctl("user", "add", f"control:{PASSWORD}")
        made.etcdctl("role", "add", "control")
        for prefix in ("/quarterdeck/", "/registry/"):
            made.etcdctl("role", "grant-permission", "--prefix=true", "control", "readwrite", prefix)
        made.etcdctl("user", "grant-role", "control", "control")
        made.etcdctl("user", "grant-role", "root", "root")
        made.etcdctl("auth", "enable")
        yield made
    finally:
        made.close()


@asynccontextmanager
async def connected(config: StoreConfig) -> AsyncIterator[RemoteKV]:
    connection = Connection(config, clock=SystemClock(), rand=SystemRand())
    try:
        yield RemoteKV(connection, clock=SystemClock(), rand=SystemRand(), default_timeout_ms=3_000)
    finally:
        await connection.close()


async def test_a_user_does_what_it_may_and_no_more(guarded: Guarded) -> None:
    async with connected(guarded.config(user="qd", password=PASSWORD)) as kv:
        done = await kv.put(e.PutRequest(key=b"/quarterdeck/k", value=b"v"), request_id=b"p" * 16)
        request = e.WatchCreateRequest(key=b"/quarterdeck/k", start_revision=done.header.revision)
        async with asyncio.timeout(10), kv.watch(request) as responses:
            assert (await anext(responses)).events[0].kv.value == b"v"
        with pytest.raises(StatusError) as refused:
            await kv.put(e.PutRequest(key=b"/registry/k", value=b"v"))
        assert refused.value.code is Code.PERMISSION_DENIED
        assert not refused.value.unknown_outcome
        async with kv.watch(e.WatchCreateRequest(key=b"/registry/k")) as responses:
            async with asyncio.timeout(10):
                assert (await anext(responses)).canceled


async def test_a_token_that_expired_is_replaced_unnoticed(guarded: Guarded) -> None:
    async with connected(guarded.config(user="qd", password=PASSWORD)) as kv:
        await kv.put(e.PutRequest(key=b"/quarterdeck/k", value=b"1"))
        await asyncio.sleep(2.5)  # etcd drops tokens that were idle for a second, and looks once a second
        await kv.put(e.PutRequest(key=b"/quarterdeck/k", value=b"2"))
        async with asyncio.timeout(10), kv.watch(e.WatchCreateRequest(key=b"/quarterdeck/k")) as responses:
            told = asyncio.ensure_future(anext(responses))
            while not told.done():
                await kv.put(e.PutRequest(key=b"/quarterdeck/k", value=b"3"))
                await asyncio.sleep(0.05)
            assert (await told).events


async def test_nobody_gets_in_without_a_user(guarded: Guarded) -> None:
    async with connected(guarded.config()) as kv:
        # etcd takes the certificate's CN for the user then, and nobody of that name may do anything.
        with pytest.raises(StatusError) as refused:
            await kv.put(e.PutRequest(key=b"/quarterdeck/k"))
        assert refused.value.code is Code.PERMISSION_DENIED
    async with connected(guarded.config(user="qd", password="wrong")) as kv:
        with pytest.raises(StatusError, match="authentication failed") as refused:
            await kv.put(e.PutRequest(key=b"/quarterdeck/k"))
        assert not refused.value.unknown_outcome


@pytest.mark.parametrize("wrong", [{"ca": "other.pem"}, {"certificate": False}])
async def test_nobody_gets_in_without_the_right_certificates(guarded: Guarded, wrong: dict[str, str]) -> None:
    async with connected(guarded.config(user="qd", password=PASSWORD, **wrong)) as kv:  # type: ignore[arg-type]
        with pytest.raises(StatusError) as refused:
            await kv.range(e.RangeRequest(key=b"/quarterdeck/k"), timeout_ms=1_000)
        assert refused.value.code is Code.UNAVAILABLE


@pytest.mark.slow
@pytest.mark.parametrize("user", ["root", "control"])
def test_a_replica_on_a_guarded_etcd_becomes_ready(guarded: Guarded, tmp_path: Path, user: str) -> None:
    """``control`` may do what docs/operations.md says is needed, and no more."""
    peer, client, metrics = (f"127.0.0.1:{free_port()}" for _ in range(3))
    folder = guarded.folder
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "controlplane", "--name", "r1",
                "--initial-cluster", f"r1={peer}@{client}@{metrics}",
                "--cluster-token", user, "--store", f"etcd://{guarded.endpoint}", "--store-ca", str(folder / "ca.pem"),
                "--store-cert", str(folder / "member.pem"), "--store-key", str(folder / "member.key"),
                "--store-user", user,
            ],
            env={**os.environ, "QD_STORE_PASSWORD": PASSWORD}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=log,
        )  # fmt: skip
    try:
        end = time.monotonic() + 60
        said = ""
        while not _ready(metrics):
            said = (tmp_path / "log").read_text()
            assert process.poll() is None, said
            assert time.monotonic() < end, said
            time.sleep(0.1)
    finally:
        process.terminate()
        process.wait()


def _ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
