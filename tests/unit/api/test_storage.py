"""Stored bytes: Kubernetes' envelope, and answers put together without parsing."""

from __future__ import annotations

import pytest

from controlplane.api import storage
from controlplane.api.errors import ApiError
from controlplane.api.registry import KINDS, kind_of_resource
from controlplane.pb.k8s.runtime_pb2 import Unknown
from controlplane.pb.quarterdeck.v1 import api_pb2
from tests.unit.api.support import pod

PODS = kind_of_resource("pods")


def test_keys_are_where_kubernetes_keeps_objects() -> None:
    assert storage.key_of(PODS, "default", "a") == b"/registry/pods/default/a"
    assert storage.key_of(kind_of_resource("nodes"), "", "n") == b"/registry/nodes/n"
    prefix = storage.prefix_of(PODS, "default")
    assert (prefix, storage.prefix_end(prefix)) == (b"/registry/pods/default/", b"/registry/pods/default0")
    assert storage.name_in_key(PODS, b"/registry/pods/default/a") == ("default", "a")
    assert storage.name_in_key(kind_of_resource("nodes"), b"/registry/nodes/n") == ("", "n")


def test_the_envelope_is_kubernetes_own() -> None:
    made = pod("a")
    made.metadata.resourceVersion = "7"
    value, raw = storage.encode(PODS, made)
    assert value.startswith(b"k8s\0")
    unknown = Unknown.FromString(value[4:])
    assert (unknown.typeMeta.apiVersion, unknown.typeMeta.kind) == ("v1", "Pod")
    assert unknown.raw == raw == storage.raw_message(PODS, b"k", value)
    assert not storage.decode(PODS, raw, 9).metadata.HasField("selfLink")
    assert storage.decode(PODS, raw, 9).metadata.resourceVersion == "9"


def test_another_writers_envelope_is_read_too() -> None:
    raw = pod("a").SerializeToString()
    unknown = Unknown(raw=raw, contentType="x")
    unknown.typeMeta.kind = "Pod"
    assert storage.raw_message(PODS, b"k", b"k8s\0" + unknown.SerializeToString()) == raw


@pytest.mark.parametrize("damage", ["cut", "kind", "magic"])
def test_a_damaged_value_is_an_error_that_names_its_key(damage: str) -> None:
    value, _ = storage.encode(PODS, pod("a"))
    if damage == "cut":
        value = value[:-20]
    elif damage == "kind":
        value = value.replace(b"\x03Pod", b"\x03Pot")
    else:
        value = b"x" + value
    with pytest.raises(ApiError, match="the value stored at /k is no Pod"):
        storage.raw_message(PODS, b"/k", value)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.resource)
def test_answers_are_assembled_as_protobuf_would_write_them(kind: object) -> None:
    assert kind in KINDS
    row = next(row for row in KINDS if row is kind)
    obj = row.message()
    obj.metadata.name = "a" * 200
    obj.metadata.labels["k"] = "v"
    _, raw = storage.encode(row, obj)
    obj.metadata.resourceVersion = "123456789"
    item = storage.object_bytes(row, raw, 123456789)
    wrapped = api_pb2.Object()
    getattr(wrapped, row.field).CopyFrom(obj)
    assert api_pb2.Object.FromString(item) == wrapped
    listed = api_pb2.ListResponse.FromString(storage.list_response_bytes([item, item], 5, "token", 3))
    assert list(listed.items) == [wrapped, wrapped]
    assert (listed.resource_version, listed.continue_token, listed.remaining_item_count) == ("5", "token", 3)
    event = api_pb2.WatchEvent.FromString(storage.watch_event_bytes(api_pb2.WatchEvent.DELETED, item, 77))
    assert (event.type, event.object, event.resource_version) == (api_pb2.WatchEvent.DELETED, wrapped, "77")
