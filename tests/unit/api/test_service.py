"""The gRPC service: the same answers over the wire, and errors with details any client can read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from prometheus_client import REGISTRY

from controlplane.api.service import add_services
from controlplane.base.errors import Code
from controlplane.client.status import to_api_error
from controlplane.pb.k8s.core_v1_pb2 import Node, Pod
from controlplane.pb.quarterdeck.v1 import api_pb2
from controlplane.pb.quarterdeck.v1.api_pb2_grpc import ResourcesStub
from controlplane.transport.server import listen, new_server
from tests.unit.api.support import Cluster, config_map, node, pod


class Wire:
    """A cluster behind a real port."""

    def __init__(self, cluster: Cluster, stub: Any) -> None:
        self.cluster = cluster
        self.stub = stub

    async def refused(self, call: Any) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        return caught.value


class FakeLogs:
    """A log source that says what it was asked."""

    async def logs(self, request: api_pb2.LogsRequest, pod: Pod, node: Node) -> AsyncIterator[api_pb2.LogChunk]:
        yield api_pb2.LogChunk(data=f"{pod.metadata.name}/{request.container}@{node.metadata.name}".encode())


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    cluster = await Cluster(logs=FakeLogs()).start()
    server = new_server()
    add_services(server, cluster.api, log_index=lambda: 41)
    port = listen(server, "127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Wire(cluster, ResourcesStub(channel))
    await server.stop(None)


async def test_a_write_is_told_where_the_log_is_before_it_is_proposed(wire: Wire) -> None:
    options = api_pb2.WriteOptions(request_id=b"0123456789abcdef")
    call = wire.stub.Create(api_pb2.CreateRequest(object=api_pb2.Object(config_map=config_map("a")), options=options))
    before = dict(await call.initial_metadata())
    await call
    assert before["qd-log-index"] == "41"


async def test_what_is_written_is_read_listed_and_watched(wire: Wire) -> None:
    made = await wire.stub.Create(api_pb2.CreateRequest(object=api_pb2.Object(config_map=config_map("a", k="v"))))
    got = await wire.stub.Get(api_pb2.GetRequest(resource="configmaps", namespace="default", name="a"))
    listed = await wire.stub.List(api_pb2.ListRequest(resource="configmaps"))
    assert got == made == listed.items[0]
    watch = wire.stub.Watch(api_pb2.WatchRequest(resource="configmaps"))
    first, bookmark = await watch.read(), await watch.read()
    assert (first.object, bookmark.type) == (made, api_pb2.WatchEvent.BOOKMARK)
    await wire.stub.Delete(api_pb2.DeleteRequest(resource="configmaps", namespace="default", name="a"))
    assert (await asyncio.wait_for(watch.read(), 5)).type == api_pb2.WatchEvent.DELETED
    watch.cancel()


async def test_an_open_watch_says_so_before_its_first_event(wire: Wire) -> None:
    watch = wire.stub.Watch(api_pb2.WatchRequest(resource="pods", resource_version=str(wire.cluster.kv.revision)))
    await asyncio.wait_for(watch.initial_metadata(), 5)
    watch.cancel()


async def test_an_error_carries_its_reason_and_fields(wire: Wire) -> None:
    bad = pod("a")
    bad.spec.restartPolicy = "Sometimes"
    bad.spec.containers[0].ports.add(containerPort=0)
    error = await wire.refused(wire.stub.Create(api_pb2.CreateRequest(object=api_pb2.Object(pod=bad))))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert 'supported values: "Always", "OnFailure", "Never"' in (error.details() or "")
    trailers = dict(error.trailing_metadata() or ())
    details = status_pb2.Status.FromString(trailers["grpc-status-details-bin"]).details
    info, violations = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert details[1].Unpack(info)
    assert details[2].Unpack(violations)
    assert info.reason == "Invalid"
    fields = [violation.field for violation in violations.field_violations]
    assert fields == ["spec.restartPolicy", "spec.containers[0].ports[0].containerPort"]
    seen = to_api_error(error, write=True)
    assert (seen.reason, [cause.field for cause in seen.causes]) == ("Invalid", fields)
    assert not seen.unknown_outcome


async def test_an_error_with_very_much_to_say_still_arrives(wire: Wire) -> None:
    bad = pod("a")
    bad.metadata.labels.update({f"{'x' * 200}é{i}": "y" for i in range(200)})
    error = await wire.refused(wire.stub.Create(api_pb2.CreateRequest(object=api_pb2.Object(pod=bad))))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert to_api_error(error, write=True).causes


async def test_a_lost_write_is_of_unknown_outcome(wire: Wire) -> None:
    wire.cluster.raft.lose_next(applied=True)
    error = await wire.refused(
        wire.stub.Create(api_pb2.CreateRequest(object=api_pb2.Object(config_map=config_map("a"))))
    )
    seen = to_api_error(error, write=True)
    assert (seen.code, seen.unknown_outcome) == (Code.UNAVAILABLE, True)


async def test_an_expired_watch_ends_with_out_of_range(wire: Wire) -> None:
    from controlplane.pb.etcd import rpc_pb2 as etcd

    start = wire.cluster.kv.revision
    for name in "abc":
        await wire.cluster.create(config_map(name))
    await wire.cluster.kv.compact(etcd.CompactionRequest(revision=wire.cluster.kv.revision))
    watch = wire.stub.Watch(api_pb2.WatchRequest(resource="configmaps", resource_version=str(start)))
    error = await wire.refused(watch.read())
    assert (error.code(), to_api_error(error, write=False).reason) == (grpc.StatusCode.OUT_OF_RANGE, "Expired")


async def test_logs_come_from_the_pods_node(wire: Wire) -> None:
    await wire.cluster.create(node("n1"))
    await wire.cluster.create(pod("a", node="n1"))
    request = api_pb2.LogsRequest(namespace="default", pod="a")
    assert [chunk.data async for chunk in wire.stub.Logs(request)] == [b"a/main@n1"]
    await wire.cluster.create(pod("b"))
    for asked, said in (
        (api_pb2.LogsRequest(namespace="default", pod="b"), "does not have a host assigned yet"),
        (api_pb2.LogsRequest(namespace="default", pod="a", container="x"), "container x is not valid for pod a"),
        (api_pb2.LogsRequest(namespace="default", pod="c"), 'pods "c" not found'),
    ):
        error = await wire.refused(wire.stub.Logs(asked).read())
        assert said in (error.details() or "")


async def test_requests_are_counted_with_known_names_only(wire: Wire) -> None:
    def count(resource: str, code: str) -> float:
        return sum(
            sample.value
            for metric in REGISTRY.collect()
            if metric.name == "apiserver_request"
            for sample in metric.samples
            if sample.name.endswith("_total")
            and (sample.labels["resource"], sample.labels["code"], sample.labels["verb"]) == (resource, code, "GET")
        )

    missed, invented = count("pods", "404"), count("", "404")
    await wire.refused(wire.stub.Get(api_pb2.GetRequest(resource="pods", namespace="default", name="x")))
    await wire.refused(wire.stub.Get(api_pb2.GetRequest(resource="made-up", namespace="default", name="x")))
    assert count("pods", "404") == missed + 1
    assert count("", "404") == invented + 1
