"""A restore into the running store: staged beside it, swapped in by one entry, and never half."""

from __future__ import annotations

import pytest

from controlplane.base.errors import Code
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.pb.etcd.kv_pb2 import KeyValue
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import (
    AuthEnable,
    Command,
    Reply,
    RestoreAbort,
    RestoreBegin,
    RestoreChunk,
    RestoreCommit,
)
from controlplane.pb.quarterdeck.internal.v1.snapshot_pb2 import SnapshotHeader
from controlplane.store import mvcc, staging
from controlplane.store import store as store_module
from controlplane.store.errors import CompactedError
from controlplane.store.leases import Change, LeaseChange
from controlplane.store.records import SUB_BYTES, record
from controlplane.store.snapshot import load
from controlplane.store.staging import NO_DIGEST, chained, pieces_of
from controlplane.store.store import Store
from tests.unit.store.support import Driver

ID = b"restore-id-01234"
BUMP = 1_000
EVERYTHING = e.RangeRequest(key=b"\0", range_end=b"\0")


class Restore:
    """A snapshot of a store, on its way into another (or the same) one."""

    def __init__(self, of: Store, id: bytes = ID, *, force: bool = False) -> None:
        loaded = load(of.snapshot())
        self.pieces = list(pieces_of(loaded.keyspace, loaded.auth, loaded.leases.values()))
        self.digest = NO_DIGEST
        for piece in self.pieces:
            self.digest = chained(self.digest, piece)
        self.id = id
        header = SnapshotHeader(cluster_id=1, revision=of.revision)
        self.begin = RestoreBegin(id=id, snapshot=header, total_bytes=sum(map(len, self.pieces)), force=force)

    def commands(self) -> list[Command]:
        chunks = [RestoreChunk(id=self.id, number=n, records=piece) for n, piece in enumerate(self.pieces)]
        return [
            Command(restore_begin=self.begin),
            *(Command(restore_chunk=chunk) for chunk in chunks),
            self.commit(),
        ]

    def commit(self, digest: bytes | None = None) -> Command:
        return Command(
            restore_commit=RestoreCommit(
                id=self.id, digest=self.digest if digest is None else digest, revision_bump=BUMP, token_key=b"new-key"
            )
        )


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "PIECE_BYTES", 400)


def filled() -> Driver:
    driver = Driver(Store(cluster_id=1))
    driver.grant(7, 30)
    for n in range(40):
        driver.put(b"key%03d" % n, b"value %d" % n, lease=7 if n % 5 == 0 else 0)
    driver.delete(b"key003")
    return driver


def later(driver: Driver) -> None:
    driver.checkpoint(7, 3)
    driver.put(b"key000", b"changed")
    driver.put(b"new", b"unknown to the snapshot", lease=7)
    driver.delete(b"key010", b"key020")
    driver.grant(8, 5)


def kvs(store: Store) -> dict[bytes, tuple[bytes, int, int, int, int]]:
    return {
        kv.key: (kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)
        for kv in store.range(EVERYTHING).kvs
    }


def ok(reply: Reply) -> Reply:
    assert reply.WhichOneof("result") != "rejection", reply
    return reply


def refusal(reply: Reply) -> str:
    assert reply.WhichOneof("result") == "rejection", reply
    return reply.rejection.message


def test_the_state_is_the_snapshots_at_a_higher_revision_and_older_history_is_compacted() -> None:
    driver = filled()
    wanted, restore = kvs(driver.store), Restore(driver.store)
    later(driver)
    before = driver.store.revision
    replies = [ok(driver.apply(command)) for command in restore.commands()]
    assert len(restore.pieces) > 3
    assert replies[-2].restore_chunk.digest == restore.digest
    store = driver.store
    assert kvs(store) == wanted
    assert store.revision == store.compact_revision == before + BUMP == replies[-1].restore_commit.header.revision
    assert store.restoring is None
    assert driver.put(b"after") == before + BUMP + 1
    lease = store.leases.get(7)
    assert lease is not None
    assert (lease.ttl_s, lease.remaining_ttl_s, lease.key_count) == (30, 0, 8)
    assert store.leases.get(8) is None


def test_nothing_shows_before_the_commit_and_writes_go_on() -> None:
    driver = filled()
    restore = Restore(driver.store)
    later(driver)
    shown, revision = kvs(driver.store), driver.store.revision
    for n, command in enumerate(restore.commands()[:-1]):
        ok(driver.apply(command))
        assert (kvs(driver.store), driver.store.revision, driver.store.key_count) == (shown, revision + n, len(shown))
        driver.put(b"meanwhile")
        shown = kvs(driver.store)


def test_watchers_are_told_of_the_compaction() -> None:
    driver = filled()
    restore = Restore(driver.store)
    woken: list[int] = []
    synced = driver.store.watches.create(b"key", b"kez", 0, wake=lambda: woken.append(1))
    behind = driver.store.watches.create(b"key", b"kez", 5, wake=lambda: woken.append(2))
    for command in restore.commands():
        ok(driver.apply(command))
    assert set(woken) == {1, 2}
    for watcher in (synced, behind):
        with pytest.raises(CompactedError) as told:
            watcher.poll(100)
        assert told.value.compact_revision == driver.store.revision
    fresh = driver.store.watches.create(b"key", b"kez", driver.store.revision + 1, wake=lambda: None)
    driver.put(b"key1", b"v")
    assert [revision for revision, _ in fresh.poll(10)] == [driver.store.revision]


def test_replicas_that_restart_or_are_caught_up_by_a_snapshot_in_the_middle_end_equal() -> None:
    driver = filled()
    restore = Restore(driver.store)
    later(driver)
    commands = restore.commands()
    for at in range(len(commands)):
        ok(driver.apply(commands[at]))
        driver.put(b"between", b"%d" % at)
        other = Store()
        other.restore([driver.snapshot()])
        assert driver.snapshot() == b"".join(other.snapshot())
        follower = Driver(other)
        for command in commands[at + 1 :]:
            ok(follower.apply(command))
        if at < len(commands) - 1:
            assert other.restoring is None
            assert other.key_count == len(kvs(filled().store))


def test_a_snapshot_being_cut_while_the_stage_grows_and_is_swapped_in_shows_it_as_it_was() -> None:
    driver = filled()
    restore = Restore(driver.store)
    commands = restore.commands()
    for command in commands[:3]:
        ok(driver.apply(command))
    as_it_was = driver.snapshot()
    cut = driver.store.snapshot()
    head = next(cut, b"")
    for command in commands[3:]:
        ok(driver.apply(command))
    for n in range(40):
        driver.put(b"key%03d" % n, b"overwritten")
    driver.compact(driver.store.revision)
    driver.store.sweep(10_000)
    assert head + b"".join(cut) == as_it_was


def test_a_piece_that_is_not_next_is_refused_and_one_that_is_there_changes_nothing() -> None:
    driver = filled()
    restore = Restore(driver.store)
    begin, first, second, *rest = restore.commands()
    ok(driver.apply(begin))
    assert driver.apply(second).rejection.code == Code.OUT_OF_RANGE
    assert ok(driver.apply(first)).restore_chunk.next == 1
    assert ok(driver.apply(first)).restore_chunk.next == 1
    assert ok(driver.apply(begin)).restore_begin.next == 1, "begin again says where to go on"
    for command in (second, *rest):
        ok(driver.apply(command))


def test_damaged_or_missing_pieces_are_refused_and_nothing_changed() -> None:
    for spoil in ("records", "order", "digest", "short", "more", "newer"):
        driver = filled()
        restore = Restore(driver.store)
        later(driver)
        before = kvs(driver.store)
        commands = restore.commands()
        if spoil == "records":
            commands[1].restore_chunk.records = commands[1].restore_chunk.records[:-3]
        elif spoil == "order":
            commands[2].restore_chunk.records, commands[3].restore_chunk.records = (
                commands[3].restore_chunk.records,
                commands[2].restore_chunk.records,
            )
        elif spoil == "digest":
            commands[-1] = restore.commit(bytes(32))
        elif spoil == "short":
            del commands[-2]
        elif spoil == "more":
            commands[0].restore_begin.total_bytes -= 1
        else:
            commands[0].restore_begin.snapshot.revision = 5
        replies = [driver.apply(command) for command in commands]
        assert replies[-1].WhichOneof("result") == "rejection", spoil
        assert kvs(driver.store) == before, spoil
        assert driver.store.restoring is None, spoil


def test_numbers_that_no_store_can_have_are_refused_and_stop_no_replica() -> None:
    driver = filled()
    restore = Restore(driver.store)
    commands = restore.commands()
    commands[0].restore_begin.snapshot.revision = (1 << 63) - 1
    assert "has a snapshot of a revision" in refusal(driver.apply(commands[0]))
    never_made = KeyValue(key=b"k", mod_revision=5, version=2).SerializeToString()
    piece = record(b"K", bytes(SUB_BYTES) + never_made)
    commands = restore.commands()
    ok(driver.apply(commands[0]))
    chunk = RestoreChunk(id=ID, number=0, records=piece)
    assert "nothing was changed" in refusal(driver.apply(Command(restore_chunk=chunk)))
    assert driver.store.restoring is None


def test_one_restore_at_a_time_and_an_aborted_one_leaves_room_for_the_next() -> None:
    driver = filled()
    one, two = Restore(driver.store), Restore(driver.store, b"restore-id-56789")
    ok(driver.apply(one.commands()[0]))
    assert "is under way" in refusal(driver.apply(two.commands()[0]))
    assert "given up" in refusal(driver.apply(Command(restore_abort=RestoreAbort(id=two.id))))
    ok(driver.apply(Command(restore_abort=RestoreAbort(id=one.id))))
    assert "given up" in refusal(driver.apply(one.commands()[1]))
    for command in two.commands():
        ok(driver.apply(command))


def test_what_a_leader_decided_about_leases_before_the_swap_is_void_after_it() -> None:
    driver = filled()
    restore = Restore(driver.store)
    changes: list[LeaseChange] = []
    driver.store.leases.listen(changes.append)
    for command in restore.commands():
        ok(driver.apply(command))
    assert [change.kind for change in changes] == [Change.RESTORED]
    refusal(driver.expire(7, driver.term))
    late = e.LeaseCheckpointRequest(checkpoints=[e.LeaseCheckpoint(ID=7, remaining_TTL=1)])
    refusal(driver.apply(Command(leader_term=driver.term, lease_checkpoint=late)))
    epoch = driver.store.leases.epoch
    assert epoch == driver.index - 2
    ok(driver.apply(Command(leader_term=driver.term, lease_epoch=epoch, lease_checkpoint=late)))


def test_a_write_from_before_is_still_applied_once_after_the_swap() -> None:
    driver = filled()
    restore = Restore(driver.store)
    driver.put(b"counted", b"once")
    sent = driver.proposals[-1]
    for command in restore.commands():
        ok(driver.apply(command))
    driver.propose(sent)
    assert driver.get(b"counted") is None, "it was applied, answered, and undone: not applied again"


def test_tokens_from_before_are_void_and_authentication_is_not_switched_by_accident() -> None:
    driver = filled()
    before_users = Restore(driver.store)
    for command in (
        Command(auth_user_add=e.AuthUserAddRequest(name="root", hashedPassword="hash")),
        Command(auth_role_add=e.AuthRoleAddRequest(name="root")),
        Command(auth_user_grant_role=e.AuthUserGrantRoleRequest(user="root", role="root")),
        Command(auth_enable=AuthEnable(token_key=b"old-key")),
    ):
        ok(driver.apply(command))
    with_users = Restore(driver.store)
    replies = [driver.apply(command) for command in before_users.commands()]
    assert "would turn authentication off" in refusal(replies[-1])
    assert driver.store.auth.enabled

    revision = driver.store.auth.revision
    for command in with_users.commands():
        ok(driver.apply(command))
    auth = driver.store.auth
    assert (auth.enabled, auth.token_key, auth.revision) == (True, b"new-key", revision + 1)

    before_users.begin.force = True
    for command in before_users.commands():
        ok(driver.apply(command))
    assert not driver.store.auth.enabled
    assert driver.store.auth.users == []


def test_equal_logs_give_equal_hashes_at_every_entry() -> None:
    driver = filled()
    restore = Restore(driver.store)
    later(driver)
    for command in restore.commands():
        ok(driver.apply(command))
    driver.put(b"after")
    replay = Store(cluster_id=1)
    for index, proposal in enumerate(driver.proposals, start=1):
        replay.apply(index, driver.term, [proposal])
        assert replay.hash_at(index) == driver.store.hash_at(index)
    assert replay.state_hash() == driver.store.state_hash() != ""


def test_what_was_replaced_is_freed_a_little_at_a_time() -> None:
    driver = filled()
    restore = Restore(driver.store)
    for n in range(2_000):
        driver.put(b"more%05d" % n)
    keyspace = driver.store._keyspace
    for command in restore.commands():
        ok(driver.apply(command))
    assert dict.__len__(keyspace._live) > 1_000
    for _ in range(8):
        driver.put(b"x")
    assert dict.__len__(keyspace._live) == 0
    assert driver.store._replaced == []


def test_giving_memory_back_goes_on_when_a_restore_has_replaced_the_state_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Defragment gives the loop turns between two tables, and the old ones are being taken apart when it comes back."""
    monkeypatch.setattr(mvcc, "_outgrown", lambda table: True)
    monkeypatch.setattr(store_module, "_DISMANTLE_KEYS_PER_ENTRY", 10)
    driver = filled()
    steps = driver.store.rebuild()
    next(steps)
    for command in Restore(driver.store).commands():
        ok(driver.apply(command))
    wanted = kvs(driver.store)
    assert len(list(steps)) == 1
    assert kvs(driver.store) == wanted
