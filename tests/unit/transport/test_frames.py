"""Frames: what is refused before anything acts on it."""

from __future__ import annotations

import pickle

import pytest

from controlplane.base.limits import FRAME_BYTES_MAX
from controlplane.pb.quarterdeck.internal.v1 import raft_pb2
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Proposal
from controlplane.pb.quarterdeck.internal.v1.raft_pb2 import Frame, RaftMessage
from controlplane.transport.frames import HEADER_BYTES, FrameError, decode, encode, frame_length


def append(*entries: tuple[int, int], prev: tuple[int, int] = (5, 2), term: int = 3) -> bytes:
    message = raft_pb2.AppendEntries(
        prev_index=prev[0], prev_term=prev[1], entries=[raft_pb2.Entry(index=i, term=t) for i, t in entries]
    )
    frame = raft_pb2.Frame(raft=raft_pb2.RaftMessage(term=term, append_entries=message))
    return frame.SerializeToString()


def test_a_frame_survives_the_wire() -> None:
    frame = raft_pb2.Frame(ping=raft_pb2.Ping(seq=7))
    data = encode(frame)
    assert frame_length(data[:HEADER_BYTES]) == len(data) - HEADER_BYTES
    assert decode(data[HEADER_BYTES:]) == frame


@pytest.mark.parametrize("length", [0, FRAME_BYTES_MAX + 1, (1 << 31) - 1, (1 << 32) - 1])
def test_a_length_outside_the_cap_is_refused_before_a_byte_is_kept(length: int) -> None:
    with pytest.raises(FrameError, match="frame length"):
        frame_length(length.to_bytes(4, "big"))


def test_a_frame_over_the_cap_is_not_sent() -> None:
    frame = raft_pb2.Frame(call_request=raft_pb2.CallRequest(payload=b"x" * (FRAME_BYTES_MAX + 1)))
    with pytest.raises(FrameError, match="FRAME_BYTES_MAX"):
        encode(frame)


@pytest.mark.parametrize(
    "data",
    [b"\xff\xff\xff", b"", pickle.dumps({"type": "append_entries"}), Frame(raft=RaftMessage()).SerializeToString()],
    ids=["garbage", "nothing", "pickle", "raft without a body"],
)
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    with pytest.raises(FrameError):
        decode(data)


def test_consecutive_entries_are_accepted() -> None:
    assert len(decode(append((6, 2), (7, 3))).raft.append_entries.entries) == 2


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (append((7, 3)), "entry 7 where 6 belongs"),
        (append((6, 3), (6, 3)), "entry 6 where 7 belongs"),
        (append((6, 4)), "has term 4"),
        (append((6, 1)), "has term 1"),
        (append((1, 1), prev=(0, 0)), "prev_index"),
    ],
)
def test_entries_that_no_leader_would_send_are_refused(data: bytes, why: str) -> None:
    with pytest.raises(FrameError, match=why):
        decode(data)


def test_an_unknown_kind_of_entry_is_refused() -> None:
    entry = raft_pb2.Entry(index=6, term=3)
    entry.kind = 9  # type: ignore[assignment]
    message = raft_pb2.AppendEntries(prev_index=5, prev_term=2, entries=[entry])
    frame = raft_pb2.Frame(raft=raft_pb2.RaftMessage(term=3, append_entries=message))
    with pytest.raises(FrameError, match="unknown kind"):
        decode(frame.SerializeToString())


@pytest.mark.parametrize("request_id", [b"", b"x" * 65])
def test_a_forwarded_write_needs_an_id_of_sane_length(request_id: bytes) -> None:
    forward = raft_pb2.Forward(proposals=[Proposal(request_id=request_id, payload=b"p")])
    with pytest.raises(FrameError, match="request id"):
        decode(raft_pb2.Frame(raft=raft_pb2.RaftMessage(term=1, forward=forward)).SerializeToString())


def test_a_snapshot_piece_beyond_its_total_is_refused() -> None:
    chunk = raft_pb2.SnapshotChunk(index=5, total_bytes=10, offset=8, data=b"abc")
    with pytest.raises(FrameError, match="exceeds its total"):
        decode(raft_pb2.Frame(raft=raft_pb2.RaftMessage(term=1, snapshot_chunk=chunk)).SerializeToString())
