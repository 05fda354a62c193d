"""Which certificate may call what, over a real server on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from controlplane.api.node_access import check_node_request, check_node_session
from controlplane.base.errors import Code, StatusError
from controlplane.base.identity import ADMINS, Identity, member, node, user
from controlplane.pb.etcd import rpc_pb2, rpc_pb2_grpc
from controlplane.pb.k8s.core_v1_pb2 import Event, Pod
from controlplane.pb.quarterdeck.v1 import api_pb2
from controlplane.transport.authorization import AuthorizationInterceptor, authorize
from controlplane.transport.channel import new_channel
from controlplane.transport.server import listen, new_server
from controlplane.transport.tls import Reloader
from tests.fakes.pki import TestPki

ADMIN, ALICE, R1, NODE = user("admin", (ADMINS,)), user("alice", ("dev",)), member("r1"), node("node-1")
PUT = "/etcdserverpb.KV/Put"


def allowed(who: Identity | None, method: str) -> bool:
    try:
        authorize(who, method)
    except StatusError as error:
        assert error.code is (Code.UNAUTHENTICATED if who is None else Code.PERMISSION_DENIED)  # noqa: PT017
        return False
    return True


@pytest.mark.parametrize(
    ("method", "who"),
    [
        (PUT, {ADMIN, ALICE}),
        ("/etcdserverpb.Maintenance/Snapshot", {ADMIN, ALICE}),
        ("/quarterdeck.v1.Operator/Restore", {ADMIN}),
        ("/quarterdeck.v1.Operator/Snapshot", {ADMIN}),
        ("/quarterdeck.v1.Operator/CutSnapshot", {ADMIN}),
        ("/quarterdeck.v1.Operator/Status", {ADMIN, ALICE}),
        ("/etcdserverpb.Cluster/MemberList", {ADMIN, ALICE, R1}),
        ("/etcdserverpb.Cluster/MemberAdd", {ADMIN, ALICE}),
        ("/grpc.health.v1.Health/Check", {ADMIN, ALICE, R1, NODE}),
        ("/quarterdeck.v1.Nodes/Session", {ADMIN, NODE}),
        ("/quarterdeck.v1.Resources/Get", {ADMIN, ALICE, NODE}),
        ("/quarterdeck.v1.Resources/Delete", {ADMIN, ALICE}),
        ("/quarterdeck.v1.Resources/UpdateStatus", {ADMIN, ALICE}),
        ("/quarterdeck.v1.Resources/Bind", {ADMIN, ALICE}),
        ("/quarterdeck.v1.Resources/Logs", {ADMIN, ALICE}),
        ("/quarterdeck.internal.v1.Peers/Call", {ADMIN, R1}),
    ],
)
def test_who_may_call_what(method: str, who: set[Identity]) -> None:
    assert {caller for caller in (ADMIN, ALICE, R1, NODE, None) if allowed(caller, method)} == who


def node_may(request: object, who: Identity | None = NODE) -> bool:
    try:
        check_node_request(who, "GET", request)
    except StatusError as error:
        assert error.code is Code.PERMISSION_DENIED  # noqa: PT017
        return False
    return True


def test_a_node_reads_what_agents_read_and_writes_its_own_events() -> None:
    assert node_may(api_pb2.GetRequest(resource="configmaps"))
    assert node_may(api_pb2.WatchRequest(resource="endpointslices"))
    assert not node_may(api_pb2.GetRequest(resource="secrets"))
    assert not node_may(api_pb2.ListRequest(resource="pods"))
    mine, other = Event(), Event()
    mine.source.host, other.source.host = "node-1", "node-2"
    assert node_may(api_pb2.CreateRequest(object=api_pb2.Object(event=mine)))
    assert not node_may(api_pb2.CreateRequest(object=api_pb2.Object(event=other)))
    assert not node_may(api_pb2.CreateRequest(object=api_pb2.Object(pod=Pod())))
    assert node_may(api_pb2.CreateRequest(object=api_pb2.Object(pod=Pod())), ALICE)
    assert node_may(api_pb2.CreateRequest(object=api_pb2.Object(pod=Pod())), None)


def test_a_session_is_its_own_nodes() -> None:
    check_node_session(NODE, "node-1")
    check_node_session(ADMIN, "node-1")
    check_node_session(None, "node-1")  # TLS is off
    for who in (node("node-2"), ALICE, member("node-1"), user("node-1")):
        with pytest.raises(StatusError) as refused:
            check_node_session(who, "node-1")
        assert refused.value.code is Code.PERMISSION_DENIED


class _Kv(rpc_pb2_grpc.KVServicer):
    """Counts what reaches it."""

    puts = 0

    async def Put(self, request: rpc_pb2.PutRequest, context: object) -> rpc_pb2.PutResponse:
        self.puts += 1
        return rpc_pb2.PutResponse()


class _Watch(rpc_pb2_grpc.WatchServicer):
    """Answers once."""

    async def Watch(self, request_iterator: Any, context: object) -> AsyncIterator[rpc_pb2.WatchResponse]:
        yield rpc_pb2.WatchResponse(watch_id=7)


async def test_a_refused_call_reaches_no_handler(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pki, kv = TestPki(tmp_path), _Kv()  # type: ignore[abstract]
    server = new_server(interceptors=[AuthorizationInterceptor()])
    rpc_pb2_grpc.add_KVServicer_to_server(kv, server)
    rpc_pb2_grpc.add_WatchServicer_to_server(_Watch(), server)
    live = Reloader(pki.files(R1))
    port = listen(server, "127.0.0.1:0", live)
    await server.start()
    try:
        for who, code in ((NODE, "PERMISSION_DENIED"), (R1, "PERMISSION_DENIED"), (ALICE, "OK")):
            async with new_channel(f"127.0.0.1:{port}", credentials=Reloader(pki.files(who))) as channel:
                assert await _code(rpc_pb2_grpc.KVStub(channel).Put(rpc_pb2.PutRequest(key=b"k"))) == code
                stub: Any = rpc_pb2_grpc.WatchStub(channel)
                # Nothing is written: grpc.aio calls it INTERNAL when a call ends while it writes the first message.
                assert await _code(_first(stub.Watch())) == code
    finally:
        await server.stop(None)
    assert kv.puts == 1
    assert "caller='node node-1' method=/etcdserverpb.KV/Put" in caplog.text


async def _first(call: Any) -> None:
    async for answer in call:
        assert answer.watch_id == 7


async def _code(call: Any) -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"
