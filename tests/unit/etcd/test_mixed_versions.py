"""In the middle of an upgrade nothing enters the log that a member's older version would apply otherwise."""

from __future__ import annotations

import pytest

from controlplane.base.errors import Code, StatusError
from controlplane.etcd.local import LocalKV
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Command
from controlplane.store.check import peer_revision_of
from tests.unit.etcd.fakes import Replica, put


async def test_what_an_old_member_does_not_know_is_refused_until_it_runs_the_new_version() -> None:
    replica = Replica()
    replica.raft.revisions = {"r2": 0, "r3": 1}
    with pytest.raises(StatusError) as caught:
        await replica.kv.alarm(e.AlarmRequest.ACTIVATE, 1, e.CORRUPT)
    assert caught.value.code is Code.FAILED_PRECONDITION
    assert caught.value.message == (
        "quarterdeck: r2 runs an older version that does not know this request; upgrade first"
    )
    assert replica.raft.proposals == []
    await put(replica.kv, b"k")
    await replica.kv.compact(e.CompactionRequest(revision=2))
    replica.raft.revisions = {"r2": 1, "r3": 1}
    await replica.kv.alarm(e.AlarmRequest.ACTIVATE, 1, e.CORRUPT)


async def test_a_full_store_says_so_though_its_alarm_must_wait_for_the_upgrade() -> None:
    replica = Replica()
    replica.raft.revisions = {"r2": 0}
    kv = LocalKV(replica.raft, replica.store, clock=replica.clock, rand=replica.rand, quota_bytes=1)
    with pytest.raises(StatusError, match="database space exceeded"):
        await put(kv, b"k")
    assert not replica.store.alarms
    replica.raft.revisions = {"r2": 1}
    with pytest.raises(StatusError, match="database space exceeded"):
        await put(kv, b"k")
    assert replica.store.alarms.no_space


def test_only_what_version_0_1_knows_goes_to_it() -> None:
    op = Command.DESCRIPTOR.oneofs_by_name["op"]
    known = {field.name for field in op.fields if peer_revision_of(_of(field.name)) == 0}
    assert known == {
        "put", "delete_range", "txn", "compact", "lease_grant", "lease_revoke", "lease_checkpoint", "lease_expire",
    }  # fmt: skip


def _of(kind: str) -> Command:
    command = Command()
    getattr(command, kind).SetInParent()
    return command
