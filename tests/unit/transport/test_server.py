"""The gRPC server factory: what a client sees of errors, limits, health and reflection, and what metrics see."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import REGISTRY

from controlplane.base.clock import SystemClock
from controlplane.base.errors import Code, ConfigError, StatusError, StoppedError
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.transport.channel import ChannelOptions, new_channel
from controlplane.transport.interceptors import OUTCOME_DEFINITE, OUTCOME_KEY, OUTCOME_UNKNOWN
from controlplane.transport.server import FRONTS, Front, Health, ServerOptions, add_reflection, listen, new_server

Context = grpc.aio.ServicerContext[Any, Any]
Unary = Callable[[e.PutRequest, Context], Awaitable[e.PutResponse]]
Watch = Callable[[e.PutRequest, Context], AsyncIterator[e.PutResponse]]


class Rig:
    """A server with one unary method ``/t.T/Put`` and one stream ``/t.T/Watch``, and a channel to it."""

    def __init__(self, options: ServerOptions | None = None) -> None:
        self.put: Unary = self._echo
        self.watch: Watch
        self.server = new_server(options, clock=SystemClock())
        self.health = Health(self.server, ["t.T"])
        add_reflection(self.server, ["etcdserverpb.KV"])
        self.server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    "t.T",
                    {
                        "Put": grpc.unary_unary_rpc_method_handler(
                            lambda request, context: self.put(request, context),
                            request_deserializer=e.PutRequest.FromString,
                            response_serializer=e.PutResponse.SerializeToString,
                        ),
                        "Watch": grpc.unary_stream_rpc_method_handler(
                            lambda request, context: self.watch(request, context),
                            request_deserializer=e.PutRequest.FromString,
                            response_serializer=e.PutResponse.SerializeToString,
                        ),
                    },
                ),
            )
        )
        self.port = listen(self.server, "127.0.0.1:0")
        self.channel = new_channel(f"127.0.0.1:{self.port}")
        self.call_put = self.channel.unary_unary(
            "/t.T/Put",
            request_serializer=e.PutRequest.SerializeToString,
            response_deserializer=e.PutResponse.FromString,
        )
        self.call_watch = self.channel.unary_stream(
            "/t.T/Watch",
            request_serializer=e.PutRequest.SerializeToString,
            response_deserializer=e.PutResponse.FromString,
        )

    async def _echo(self, request: e.PutRequest, context: Context) -> e.PutResponse:
        return e.PutResponse(header=e.ResponseHeader(revision=len(request.value)))

    def raising(self, error: BaseException) -> None:
        async def put(request: e.PutRequest, context: Context) -> e.PutResponse:
            raise error

        self.put = put


@pytest.fixture(params=FRONTS)
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    rig = Rig(ServerOptions(front=request.param))
    await rig.server.start()
    yield rig
    await rig.channel.close()
    await rig.server.stop(None)


def handled(method: str, kind: str, code: str) -> float:
    labels = {"grpc_service": "t.T", "grpc_method": method, "grpc_type": kind, "grpc_code": code}
    return REGISTRY.get_sample_value("grpc_server_handled_total", labels) or 0.0


def started(method: str, kind: str) -> float:
    labels = {"grpc_service": "t.T", "grpc_method": method, "grpc_type": kind}
    return REGISTRY.get_sample_value("grpc_server_started_total", labels) or 0.0


async def failure(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_a_call_is_answered_and_counted(rig: Rig) -> None:
    before = (started("Put", "unary"), handled("Put", "unary", "OK"))
    response = await rig.call_put(e.PutRequest(value=b"abc"))
    assert response.header.revision == 3
    assert (started("Put", "unary"), handled("Put", "unary", "OK")) == (before[0] + 1, before[1] + 1)


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK])
async def test_a_status_error_arrives_with_its_code_and_exact_text(rig: Rig, code: Code) -> None:
    rig.raising(StatusError(code, "etcdserver: a text clients match on"))
    error = await failure(rig.call_put(e.PutRequest()))
    assert error.code().value[0] == int(code)
    assert error.details() == "etcdserver: a text clients match on"


async def test_an_unknown_outcome_is_told_in_the_trailers(rig: Rig) -> None:
    rig.raising(StatusError(Code.UNAVAILABLE, "etcdserver: request timed out", unknown_outcome=True))
    error = await failure(rig.call_put(e.PutRequest()))
    assert (OUTCOME_KEY, OUTCOME_UNKNOWN) in tuple(error.trailing_metadata())


async def test_a_known_failure_is_told_to_be_definite(rig: Rig) -> None:
    rig.raising(StatusError(Code.NOT_FOUND, "etcdserver: requested lease not found"))
    error = await failure(rig.call_put(e.PutRequest()))
    assert (OUTCOME_KEY, OUTCOME_DEFINITE) in tuple(error.trailing_metadata())


async def test_failures_are_counted_under_their_code(rig: Rig) -> None:
    before = handled("Put", "unary", "OutOfRange")
    rig.raising(StatusError(Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted"))
    await failure(rig.call_put(e.PutRequest()))
    assert handled("Put", "unary", "OutOfRange") == before + 1


async def test_a_bug_becomes_internal_and_only_the_log_sees_its_text(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.raising(RuntimeError("secret path /var/x"))
    with caplog.at_level(logging.ERROR, "quarterdeck.grpc"):
        error = await failure(rig.call_put(e.PutRequest()))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in (error.details() or "")
    assert "/t.T/Put" in caplog.text
    assert "secret path" in caplog.text


async def test_a_stopped_component_is_unavailable(rig: Rig) -> None:
    rig.raising(StoppedError("raft is stopped"))
    error = await failure(rig.call_put(e.PutRequest()))
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "etcdserver: server stopped")


async def test_an_abort_of_the_handler_passes_through(rig: Rig) -> None:
    async def put(request: e.PutRequest, context: Context) -> e.PutResponse:
        await context.abort(grpc.StatusCode.DATA_LOSS, "my own")
        raise AssertionError

    rig.put = put
    before = handled("Put", "unary", "DataLoss")
    error = await failure(rig.call_put(e.PutRequest()))
    assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, "my own")
    await rig.server.stop(None)  # the client may hear of an abort before its handler has returned
    assert handled("Put", "unary", "DataLoss") == before + 1


async def test_a_cancelled_call_is_counted_as_cancelled(rig: Rig) -> None:
    entered, left = asyncio.Event(), asyncio.Event()

    async def put(request: e.PutRequest, context: Context) -> e.PutResponse:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()
        raise AssertionError

    rig.put = put
    before = handled("Put", "unary", "Canceled")
    call = rig.call_put(e.PutRequest())
    waiting = asyncio.ensure_future(failure(call))
    await entered.wait()
    call.cancel()
    await left.wait()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert handled("Put", "unary", "Canceled") == before + 1


async def test_a_stream_delivers_then_fails_with_its_status(rig: Rig) -> None:
    async def watch(request: e.PutRequest, context: Context) -> AsyncIterator[e.PutResponse]:
        yield e.PutResponse(header=e.ResponseHeader(revision=1))
        yield e.PutResponse(header=e.ResponseHeader(revision=2))
        raise StatusError(Code.UNAVAILABLE, "etcdserver: no leader")

    rig.watch = watch
    before = handled("Watch", "server_stream", "Unavailable")
    call: Any = rig.call_watch(e.PutRequest())
    assert [(await call.read()).header.revision for _ in range(2)] == [1, 2]
    error = await failure(call.read())
    assert error.details() == "etcdserver: no leader"
    assert handled("Watch", "server_stream", "Unavailable") == before + 1


async def test_an_unknown_method_is_unimplemented_and_makes_no_metric(rig: Rig) -> None:
    call: Any = rig.channel.unary_unary("/t.T/Nope")
    error = await failure(call(b""))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert started("Nope", "unary") == 0.0


@pytest.mark.parametrize(("size", "code"), [(900, None), (2048, grpc.StatusCode.RESOURCE_EXHAUSTED)])
@pytest.mark.parametrize("front", FRONTS)
async def test_a_request_over_the_limit_is_refused(front: Front, size: int, code: grpc.StatusCode | None) -> None:
    rig = Rig(ServerOptions(front=front, recv_bytes_max=1024))
    await rig.server.start()
    try:
        if code is None:
            assert (await rig.call_put(e.PutRequest(value=b"x" * size))).header.revision == size
        else:
            assert (await failure(rig.call_put(e.PutRequest(value=b"x" * size)))).code() is code
    finally:
        await rig.channel.close()
        await rig.server.stop(None)


async def test_a_port_in_use_is_a_config_error_that_names_it(rig: Rig) -> None:
    with pytest.raises(ConfigError, match=f"127.0.0.1:{rig.port}"):
        listen(new_server(), f"127.0.0.1:{rig.port}")


async def test_health_follows_set_serving(rig: Rig) -> None:
    stub: Any = health_pb2_grpc.HealthStub(rig.channel)
    request = health_pb2.HealthCheckRequest(service="t.T")
    await rig.health.set_serving(False)
    assert (await stub.Check(request)).status == health_pb2.HealthCheckResponse.NOT_SERVING
    await rig.health.set_serving(True)
    assert (await stub.Check(request)).status == health_pb2.HealthCheckResponse.SERVING


async def test_reflection_lists_the_services(rig: Rig) -> None:
    make_stub: Any = reflection_pb2_grpc.ServerReflectionStub
    call = make_stub(rig.channel).ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    names = {service.name async for answer in call for service in answer.list_services_response.service}
    assert {"etcdserverpb.KV", "grpc.health.v1.Health"} <= names


def test_every_option_reaches_grpc() -> None:
    args = dict(ServerOptions(keepalive_min_time_ms=1, concurrent_streams_max=2, recv_bytes_max=3).channel_args())
    assert args["grpc.http2.min_ping_interval_without_data_ms"] == 1
    assert args["grpc.max_concurrent_streams"] == 2
    assert args["grpc.max_receive_message_length"] == 3
    assert args["grpc.so_reuseport"] == 0


def test_our_clients_never_ping_more_often_than_our_servers_allow() -> None:
    assert ChannelOptions().keepalive_time_ms >= ServerOptions().keepalive_min_time_ms


def test_channels_leave_retries_to_us() -> None:
    assert dict(ChannelOptions().channel_args())["grpc.enable_retries"] == 0
