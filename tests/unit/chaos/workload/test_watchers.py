"""How far a watch has come: what was changed, and what it was only told about."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from chaos.history import Recorder
from chaos.records import Header
from chaos.workload.watchers import Follower, Kind
from controlplane.base.clock import ManualClock
from controlplane.pb.etcd import kv_pb2, rpc_pb2


def test_a_deletion_is_a_change_and_progress_is_none(tmp_path: Path) -> None:
    with Recorder(tmp_path / "h.jsonl", Header("t", "/t/", "now", []), ManualClock()) as recorder:
        follower = Follower(Kind("all", "/t/", progress=True), cast(Any, None), recorder, ManualClock())
        note = cast(Any, follower)._watch._note
        header = rpc_pb2.ResponseHeader(revision=7)
        gone = kv_pb2.Event(type=kv_pb2.Event.DELETE, kv=kv_pb2.KeyValue(key=b"/t/a", mod_revision=7))
        note(rpc_pb2.WatchResponse(header=header, events=[gone]), 1)
        note(rpc_pb2.WatchResponse(header=rpc_pb2.ResponseHeader(revision=9)), 1)
        assert follower.changed == 7
