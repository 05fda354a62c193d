"""The hand-written encoding is the protobuf library's, byte for byte: it is hashed, and compared between releases."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.pb.etcd import kv_pb2
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Reply
from controlplane.store.wire import frame_kv, put_reply, put_reply_with, varint, version_frame, without_value

EDGES = (1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152, 2**31, 2**63 - 1)
NUMBERS = st.one_of(st.sampled_from(EDGES), st.integers(1, 2**63 - 1))


def _frame(kv: kv_pb2.KeyValue) -> bytes:
    return e.RangeResponse(kvs=[kv]).SerializeToString()


@pytest.mark.parametrize("number", [0, *EDGES])
def test_a_varint_is_the_librarys(number: int) -> None:
    assert b"\x18" + varint(number) == (e.ResponseHeader(revision=number).SerializeToString() or b"\x18\x00")


def test_a_negative_number_takes_ten_bytes() -> None:
    assert b"\x18" + varint(-2) == e.ResponseHeader(revision=-2).SerializeToString()


@settings(deadline=None)
@given(
    key=st.binary(min_size=1, max_size=300),
    value=st.one_of(st.binary(max_size=300), st.sampled_from([b"v" * 16_300, b"v" * 16_384])),
    mod=NUMBERS,
    create=NUMBERS,
    version=NUMBERS,
    lease=st.one_of(st.just(0), st.just(-1), NUMBERS),
)
def test_a_version_is_framed_as_the_library_would(
    key: bytes, value: bytes, mod: int, create: int, version: int, lease: int
) -> None:
    kv = kv_pb2.KeyValue(key=key, value=value, mod_revision=mod, create_revision=create, version=version, lease=lease)
    assert version_frame(key, value, mod, create, version, lease) == _frame(kv)
    assert frame_kv(kv.SerializeToString()) == _frame(kv)
    kv.ClearField("value")
    assert without_value(version_frame(key, value, mod, create, version, lease)) == _frame(kv)


def test_a_version_of_the_largest_value_is_framed_as_the_library_would() -> None:
    kv = kv_pb2.KeyValue(key=b"k", value=b"v" * 2_100_000, mod_revision=9, create_revision=9, version=1)
    assert version_frame(b"k", kv.value, 9, 9, 1, 0) == _frame(kv)


@pytest.mark.parametrize("revision", EDGES)
def test_a_tombstone_is_framed_as_the_library_would(revision: int) -> None:
    assert version_frame(b"k", b"", revision, 0, 0, 0) == _frame(kv_pb2.KeyValue(key=b"k", mod_revision=revision))


@pytest.mark.parametrize("revision", EDGES)
@pytest.mark.parametrize("value", [None, b"", b"v" * 200, b"v" * 20_000])
def test_the_reply_to_a_put_is_the_librarys(revision: int, value: bytes | None) -> None:
    reply = Reply(put=e.PutResponse(header=e.ResponseHeader(revision=revision)))
    if value is None:
        assert put_reply(revision) == reply.SerializeToString()
        return
    reply.put.prev_kv.CopyFrom(kv_pb2.KeyValue(key=b"k", value=value, mod_revision=7, create_revision=6, version=2))
    assert put_reply_with(revision, version_frame(b"k", value, 7, 6, 2, 0)) == reply.SerializeToString()
