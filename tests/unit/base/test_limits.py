"""Bounds that rest on each other: what one part may send, the next must take."""

from __future__ import annotations

from controlplane.base import limits
from controlplane.transport.server import ServerOptions


def test_a_request_of_the_largest_size_reaches_the_log() -> None:
    assert limits.OBJECT_BYTES_MAX < limits.REQUEST_BYTES_MAX < limits.GRPC_RECV_BYTES_MAX
    assert limits.REQUEST_BYTES_MAX < limits.BATCH_BYTES_MAX < limits.FRAME_BYTES_MAX


def test_a_frame_fits_its_queue_several_times() -> None:
    assert limits.FRAME_BYTES_MAX * 2 <= limits.PEER_QUEUE_BYTES_MAX


def test_retries_of_all_waiting_writes_are_remembered() -> None:
    assert limits.PROPOSALS_PENDING_MAX < limits.DEDUP_ENTRIES_MAX
    assert limits.BATCH_PROPOSALS_MAX < limits.PROPOSALS_PENDING_MAX


def test_servers_take_what_the_limits_say() -> None:
    assert ServerOptions().recv_bytes_max == limits.GRPC_RECV_BYTES_MAX


def test_every_limit_is_positive() -> None:
    assert all(getattr(limits, name) > 0 for name in limits.__all__)
