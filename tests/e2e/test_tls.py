"""A real cluster with certificates: who gets in, who does not, and a renewal under its feet."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from controlplane.base.clock import SystemClock
from controlplane.base.identity import member, node, user
from controlplane.base.pki import Authority, read_certificate
from controlplane.client.tls import Reloader, TlsFiles
from controlplane.local.pki import Pki
from controlplane.pb.etcd import rpc_pb2, rpc_pb2_grpc
from controlplane.pb.quarterdeck.v1 import node_pb2
from controlplane.pb.quarterdeck.v1.node_pb2_grpc import NodesStub
from controlplane.transport import tls
from controlplane.transport.channel import new_channel
from tests.e2e.support import Qd, wait_until

PORT_BASE = 29_250
CLIENT, GATEWAY, PEER = (f"127.0.0.1:{PORT_BASE + 10 + n}" for n in range(3))


@pytest.fixture(scope="module")
def qd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Qd]:
    made = Qd(tmp_path_factory.mktemp("tls"))
    try:
        made.ok("local", "up", "--replicas", "1", "--nodes", "1", "--port-base", str(PORT_BASE))
        yield made
    finally:
        made.clean_up()


@pytest.fixture
def pki(qd: Qd) -> Pki:
    return Pki(qd.root / "pki")


def client_context(files: TlsFiles) -> ssl.SSLContext:
    return tls.client_context(files, protocols=("h2", "http/1.1"))


def shake(address: str, context: ssl.SSLContext) -> int:
    """Shake hands and hear whether the other side keeps the connection; the serial number of its certificate."""
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=5) as raw,
        context.wrap_socket(raw, server_hostname=host) as connection,
    ):
        certificate = connection.getpeercert(binary_form=True)
        assert certificate is not None
        connection.settimeout(0.3)
        try:
            if connection.recv(1) == b"":  # TLS 1.3 tells a client of its refusal here, or just closes
                raise ConnectionResetError("reset: closed after the handshake")
        except TimeoutError:
            pass
        return read_certificate(certificate).serial


def refused(address: str, context: ssl.SSLContext) -> None:
    with pytest.raises(OSError, match=r"(?i)alert|reset|unsupported|version|EOF"):
        shake(address, context)


async def put(files: TlsFiles | None) -> str:
    async with new_channel(CLIENT, credentials=Reloader(files) if files else None) as channel:
        try:
            await rpc_pb2_grpc.KVStub(channel).Put(rpc_pb2.PutRequest(key=b"tls", value=b"1"), timeout=5)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"


async def session(files: TlsFiles, name: str) -> str:
    async with new_channel(CLIENT, credentials=Reloader(files)) as channel:
        call = NodesStub(channel).Session(timeout=5)
        try:
            # A refusal may be here before the hello leaves.
            await call.write(node_pb2.AgentMessage(hello=node_pb2.Hello(node_name=name, protocol_version=1)))
            await call.read()
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"


@pytest.mark.parametrize("address", [CLIENT, GATEWAY, PEER])
def test_no_port_speaks_tls_with_a_stranger(pki: Pki, tmp_path: Path, address: str) -> None:
    now_ms = SystemClock().wall_ms()
    shake(address, client_context(pki.files(member("r1"))) if address == PEER else client_context(pki.admin))
    refused(address, ssl.create_default_context(cafile=pki.ca))
    cert, key = tmp_path / "x.crt", tmp_path / "x.key"
    Authority.create("quarterdeck-ca", now_ms=now_ms).issue(member("r1"), names=["r1"], now_ms=now_ms).save(cert, key)
    refused(address, client_context(TlsFiles(pki.ca, cert, key)))
    own = Authority.load(pki.ca, pki.ca.with_suffix(".key"))
    own.issue(member("r1"), names=["r1"], now_ms=now_ms - 2 * 86_400_000, days=1).save(cert, key)
    refused(address, client_context(TlsFiles(pki.ca, cert, key)))
    for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        old = client_context(pki.admin)
        old.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="deprecated"):
            old.minimum_version = version
        with pytest.warns(DeprecationWarning, match="deprecated"):
            old.maximum_version = version
        refused(address, old)


async def test_each_certificate_opens_its_own_doors(pki: Pki) -> None:
    pki.issue(user("alice", ("dev",)))
    pki.issue(node("node-9"), ["node-9"])
    assert await put(pki.admin) == "OK"
    assert await put(pki.files(user("alice"))) == "OK"
    assert await put(pki.files(member("r1"))) == "PERMISSION_DENIED"
    assert await put(pki.files(node("node-1"))) == "PERMISSION_DENIED"
    assert await put(None) == "UNAVAILABLE"
    # A client that is still writing when it is refused may call it INTERNAL.
    assert await session(pki.files(node("node-9")), "node-8") in {"PERMISSION_DENIED", "INTERNAL"}
    assert await session(pki.files(user("alice")), "node-8") in {"PERMISSION_DENIED", "INTERNAL"}


def test_a_nodes_certificate_does_not_speak_raft(pki: Pki) -> None:
    host, _, port = PEER.rpartition(":")
    for files in (pki.files(node("node-1")), pki.admin):
        with (
            socket.create_connection((host, int(port)), timeout=5) as raw,
            client_context(files).wrap_socket(raw, server_hostname=host) as connection,
        ):
            try:
                assert connection.recv(1) == b""
            except OSError:
                pass  # reset


def test_the_gateway_asks_for_a_certificate_too(qd: Qd) -> None:
    request = (
        b"POST /v3/kv/range HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\nConnection: close\r\n\r\n" + b'{"key":"dGxz"}'
    )
    host, _, port = GATEWAY.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5) as plain:
        plain.sendall(request)
        assert b" 401 " in plain.recv(4096)
    context = client_context(Pki(qd.root / "pki").admin)
    with (
        socket.create_connection((host, int(port)), timeout=5) as raw,
        context.wrap_socket(raw, server_hostname=host) as secure,
    ):
        secure.sendall(request)
        assert b" 200 " in secure.recv(4096)


def test_a_renewal_is_taken_up_without_a_restart(qd: Qd, pki: Pki) -> None:
    pids = {replica["name"]: replica["pid"] for replica in qd.status()["replicas"]}
    before = {address: shake(address, client_context(pki.admin)) for address in (CLIENT, GATEWAY)}
    qd.ok("certs", "renew")
    wait_until(lambda: all(shake(a, client_context(pki.admin)) != s for a, s in before.items()), 10)
    renewed = read_certificate(pki.files(member("r1")).cert.read_bytes()).serial
    assert {shake(address, client_context(pki.admin)) for address in (CLIENT, GATEWAY)} == {renewed}
    agent_log = qd.root / "logs" / "node-1.log"
    wait_until(lambda: agent_log.read_text().count("event=certificate_loaded") == 2, 10)
    status = qd.status()
    assert {replica["name"]: replica["pid"] for replica in status["replicas"]} == pids
    assert [n["ready"] for n in status["nodes"]] == [True]
