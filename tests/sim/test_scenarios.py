"""The catalogue of consensus bugs that others had, each as a scenario: what happened to them must not happen here.

Where a build can be broken in the way the bug was, the same scenario is run on that build too, and must fail.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from controlplane.base.errors import CorruptStateError, StatusError, StorageError
from controlplane.pb.etcd.rpc_pb2 import LeaseGrantRequest, LeaseKeepAliveRequest, PutRequest, RangeRequest
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Reply
from controlplane.pb.quarterdeck.internal.v1.raft_pb2 import RaftMessage
from controlplane.raft.storage import open_storage
from controlplane.raft.types import AddMember, Applied, Member, MemberChange, RemoveMember
from controlplane.raft.wal import Identity
from controlplane.store.store import Store
from tests.sim import test_broken_builds as broken
from tests.sim.checks import ViolationError
from tests.sim.node import CLUSTER_ID, Breakage, SimNode
from tests.sim.stage import Stage

_SHORT: dict[str, Any] = {"snapshot_entries": 10, "catch_up_entries": 1}
_READ = RangeRequest(key=b"k0")
_SLOW: dict[str, Any] = {"sync_min_s": 0.01, "sync_max_s": 0.03}


def _inside(on_start: Callable[[SimNode], None]) -> Breakage:
    return Breakage(on_start=on_start)


def _recovered(node: SimNode) -> Any:
    """The log as it would come back if the machine stopped now."""
    return open_storage(node.disk.durable_copy(), Identity(CLUSTER_ID, node.me.id)).journal


# -- 1 to 3: what is durable before what is said ---------------------------------------------------------------------


def vote_is_durable(breakage: Breakage | None = None) -> None:
    seen = 0
    with Stage(breakage=breakage, **_SLOW) as stage:
        by_name = {node.name: node for node in stage.nodes}

        def tap(sender: str, _: str, message: RaftMessage) -> None:
            nonlocal seen
            if message.WhichOneof("body") == "vote":
                seen += 1
                journal = _recovered(by_name[sender])
                if (journal.getCurrentTerm(), bool(journal.getVotedForNodeId())) != (message.term, True):
                    raise ViolationError(f"{sender} votes in term {message.term}, which its disk does not know")

        stage.net.tap = tap
        for _ in range(3):
            leader = stage.leader()
            leader.crash(power=True)
            stage.leader(but=leader)
            leader.start()
    assert seen >= 2


def test_01_vote_is_durable_before_the_reply() -> None:
    """A vote that leaves is on the disk: whoever restarts cannot vote twice in a term."""
    vote_is_durable()


def test_01_fails_when_votes_are_not_waited_for() -> None:
    with pytest.raises(ViolationError, match="does not know"):
        vote_is_durable(Breakage(send_before_sync=True))


def term_survives(breakage: Breakage | None = None) -> None:
    with Stage(breakage=breakage) as stage:
        said: dict[str, int] = {}

        def tap(sender: str, _: str, message: RaftMessage) -> None:
            if message.WhichOneof("body") != "append_entries":
                said[sender] = max(said.get(sender, 0), message.term)

        stage.net.tap = tap
        for _ in range(4):
            stage.put(stage.leader())
            stage.stop_and_start(stage.nodes)
            stage.until(lambda: all(node.serving for node in stage.nodes))
            for node in stage.nodes:
                if node.core.engine.term < said.get(node.name, 0):
                    raise ViolationError(f"{node.name} said term {said[node.name]}, now it is {node.core.engine.term}")
            stage.leader()
        stage.converge()


def test_02_term_never_goes_back_over_power_loss() -> None:
    """Term and vote are synced, not just written."""
    term_survives()


def test_02_fails_when_nothing_is_synced() -> None:
    with pytest.raises((ViolationError, CorruptStateError, AssertionError)):
        term_survives(_inside(broken.syncs_do_nothing))


def acks_are_durable(breakage: Breakage | None = None) -> None:
    with Stage(breakage=breakage, **_SLOW) as stage:
        for n in range(12):
            value = b"mark %d" % n
            stage.ask(stage.leader(), stage.putting(value=value))
            holders = [node for node in stage.nodes if any(value in command for command, _, _ in _recovered(node)[0:])]
            if 2 * len(holders) <= len(stage.nodes):
                raise ViolationError(f"acknowledged, and durable on {len(holders)} of {len(stage.nodes)}")
        stage.stop_and_start(stage.nodes)
        stage.leader()
        stage.converge()


def test_03_an_acknowledged_write_is_durable_on_a_majority() -> None:
    """At the moment of the answer, a majority of disks would give the write back after a power loss."""
    acks_are_durable()


def test_03_fails_when_the_log_is_not_waited_for() -> None:
    with pytest.raises(ViolationError, match="durable on"):
        acks_are_durable(Breakage(send_before_sync=True))


# -- 4 to 10: the log -------------------------------------------------------------------------------------------------


def compaction_under_kills(breakage: Breakage | None = None) -> None:
    with Stage(breakage=breakage, **_SHORT) as stage:
        for n in range(12):
            victim = stage.nodes[n % 3]
            victim.on_power_loss = lambda node: None
            victim.disk.stop_at = len(victim.disk.operations) + 11 + 7 * n
            for _ in range(14):
                if not victim.alive:
                    break
                stage.write(value=b"%900d" % n)
            victim.crash(power=False)
            victim.start()
            stage.until(lambda victim=victim: victim.serving)  # type: ignore[misc]
        stage.converge()


def test_04_compaction_loses_nothing_when_killed_anywhere() -> None:
    """Compaction never rewrites the log in place: a kill in its middle costs nothing acknowledged."""
    compaction_under_kills()


def test_04_fails_when_the_log_goes_before_the_snapshot_is_there() -> None:
    def hasty(node: SimNode) -> None:
        storage: Any = node.replica._storage
        compact = storage.wal.compact_to

        def compact_to(index: int) -> None:
            compact(index)
            for name in node.disk.list("snapshots"):
                node.disk.remove(f"snapshots/{name}")

        storage.wal.compact_to = compact_to

    with pytest.raises((CorruptStateError, StorageError, ViolationError)):
        compaction_under_kills(_inside(hasty))


def old_appends_come_again(breakage: Breakage | None = None) -> None:
    with Stage(breakage=breakage, slow_share=0.3) as stage:
        last: dict[str, tuple[int, int | None]] = {}
        stage.net.duplicate_share = 0.5
        for n in range(60):
            stage.put(stage.leader(), b"k%d" % (n % 3))
            if n % 7 == 0:
                stage.net.break_link(stage.leader().name, stage.others(stage.leader())[0].name)
            for node in stage.nodes:
                engine = node.core.engine
                index, term = last.get(node.name, (0, None))
                if engine.last_index < index and engine.term == term:
                    raise ViolationError(f"the log of {node.name} shrank from {index} to {engine.last_index}")
                last[node.name] = (engine.last_index, engine.term)
        stage.converge()


def test_05_a_repeated_append_never_shortens_the_log() -> None:
    """Entries are cut off only where terms contradict each other."""
    old_appends_come_again()


def _stale_tail(stage: Stage) -> SimNode:
    """A leader that is cut off with writes nobody else has; another one has committed others meanwhile."""
    old = stage.leader()
    stage.split([old], stage.others(old))
    for n in range(3):
        stage.start(old, stage.putting(value=b"lost %d" % n))
        stage.run(0.05)
    stage.fill(5, stage.leader(but=old))
    return old


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_06_a_stale_tail_is_never_committed(seed: int) -> None:
    """What follows the verified prefix is not applied, whatever commit index a heartbeat names."""
    with Stage(seed=seed) as stage:
        old = _stale_tail(stage)
        stage.net.duplicate_share = 0.5
        stage.heal()
        for _ in range(10):
            stage.run(0.03)
            stage.net.break_link(stage.leader(but=old).name, old.name)
        stage.converge()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_07_a_vote_that_comes_twice_counts_once(seed: int) -> None:
    """Half of all frames come twice, five replicas, elections without end: never two leaders in a term. (The build
    that counts twice is among the broken builds.)"""
    with Stage(seed=seed, size=5, delay_max_s=0.03) as stage:
        stage.net.duplicate_share = 0.5
        for _ in range(4):
            leader = stage.leader()
            leader.crash(power=False)
            stage.leader(but=leader)
            leader.start()
        stage.converge()
        assert stage.checks.terms >= 4


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_08_entries_of_earlier_terms_are_not_committed_by_counting(seed: int) -> None:
    """Figure 8 of the Raft paper: leaders that reach one follower and die, again and again."""
    with Stage(seed=seed, size=5) as stage:
        for n in range(4):
            leader = stage.leader()
            friend = stage.others(leader)[n % 4]
            stage.split([leader, friend], stage.others(leader, friend))
            stage.start(leader, stage.putting(value=b"half %d" % n))
            stage.run(0.02)
            leader.crash(power=True)
            stage.heal()
            stage.run(0.2)
            leader.start()
        stage.leader()
        stage.converge()


def monotonic(breakage: Breakage | None = None) -> None:
    with Stage(breakage=breakage, slow_share=0.2) as stage:
        stage.net.duplicate_share = 0.5
        for n in range(30):
            stage.put(stage.leader())
            stage.net.break_link(*stage.net.pairs[n % len(stage.net.pairs)])
        stage.converge()


def test_09_commit_and_match_indexes_never_go_back() -> None:
    """Checked after every step of every replica, in every run; here with late and repeated answers."""
    monotonic()


def test_09_fails_when_a_commit_index_goes_back() -> None:
    def forgetful(node: SimNode) -> None:
        core: Any = node.core
        step = core.step

        def back() -> Any:
            turn = step()
            if core.engine.commit_index > 10:
                core.engine._library.set_commit(5)
                node._checks.stepped(node.name, node.boot, core.engine)
            return turn

        core.step = back

    with pytest.raises(ViolationError, match="back from"):
        monotonic(_inside(forgetful))


def test_10_a_divergent_follower_behind_a_snapshot_catches_up_in_bounded_messages() -> None:
    """No endless rewinding and no endless snapshots."""
    with Stage(**_SHORT) as stage:
        old = _stale_tail(stage)
        for other in stage.others(old):
            stage.net.break_link(other.name, old.name)  # what was on its way is gone
        stage.fill(40, stage.leader(but=old))
        sent: list[str] = []
        stage.net.tap = lambda sender, to, message: sent.append(str(message.WhichOneof("body")))
        installs = stage.checks.installs
        stage.heal()
        stage.converge()
        assert stage.checks.installs == installs + 1
        assert len(sent) < 400


# -- 11 to 14: reads and leases ---------------------------------------------------------------------------------------


def test_11_a_new_leader_reads_what_the_old_one_acknowledged() -> None:
    """No read before an entry of the own term is committed. (The build that does not wait is among the broken
    builds.)"""
    for seed in range(1, 9):
        with Stage(seed=seed, **_SLOW) as stage:
            value = b"last"
            stage.write(value=value)
            stage.stop_and_start(stage.nodes)
            stage.until(lambda: any(n.leads for n in stage.nodes))
            node = next(n for n in stage.nodes if n.leads)
            told = stage.start(node, lambda kv: kv.range(_READ, timeout_ms=500))
            stage.until(lambda told=told: bool(told))  # type: ignore[misc]
            if not isinstance(told[0], StatusError) and (not told[0].kvs or told[0].kvs[0].value != value):
                raise ViolationError(f"stale read after a fail-over, seed {seed}")


def deposed_leader_reads(breakage: Breakage | None = None) -> None:
    with Stage(breakage=breakage) as stage:
        old = stage.leader()
        stage.put(old, value=b"old")
        stage.split([old], stage.others(old))
        stage.put(stage.leader(but=old), value=b"new")
        told = stage.start(old, lambda kv: kv.range(_READ, timeout_ms=500))
        stage.until(lambda: bool(told))
        if not isinstance(told[0], StatusError) and told[0].kvs[0].value != b"new":
            raise ViolationError("a deposed leader served a stale read")


def test_12_an_isolated_leader_serves_no_stale_read() -> None:
    """A read is confirmed by a majority, or is refused."""
    deposed_leader_reads()


def test_12_fails_when_reads_are_local() -> None:
    with pytest.raises(ViolationError, match="stale"):
        deposed_leader_reads(Breakage(read_locally=True))


def _reads_under_a_lease(node: SimNode) -> None:
    """A leader that trusts its clock: it led a moment ago, so nobody else can lead yet."""
    replica: Any = node.replica
    barrier = replica.read_barrier
    led_at = float("-inf")

    async def leased(*, timeout_ms: int) -> int:
        nonlocal led_at
        if node.monotonic() - led_at < 5.0:
            return node.machine.applied_index
        index = int(await barrier(timeout_ms=timeout_ms))
        if node.core.engine.is_leader:
            led_at = node.monotonic()
        return index

    replica.read_barrier = leased


def paused_leader_reads(breakage: Breakage | None = None) -> None:
    with Stage(breakage=breakage) as stage:
        old = stage.leader()
        stage.put(old, value=b"old")
        assert stage.get(old) == b"old"
        old.pause(3.0)
        stage.split([old], stage.others(old))
        stage.run(2.6)
        stage.put(stage.leader(but=old), value=b"new")
        told = stage.start(old, lambda kv: kv.range(_READ, timeout_ms=500))
        stage.until(lambda: bool(told))
        if not isinstance(told[0], StatusError) and told[0].kvs[0].value != b"new":
            raise ViolationError("a leader that was paused served a stale read")


def test_13_the_first_read_after_a_pause_is_not_stale() -> None:
    """Time that a stopped process did not see is no proof of anything. The wall clock plays no part in it."""
    paused_leader_reads()


def test_13_fails_when_a_leader_trusts_its_clock() -> None:
    with pytest.raises(ViolationError, match="stale"):
        paused_leader_reads(_inside(_reads_under_a_lease))


def renewed_elsewhere(breakage: Breakage | None = None) -> None:
    with Stage(breakage=breakage) as stage:
        old = stage.leader()
        lease, sent_at = 77, stage.now
        granted = stage.ask(old, lambda kv: kv.lease_grant(LeaseGrantRequest(ID=lease, TTL=2), timeout_ms=500))
        leases = stage.checks.leases
        leases.granted(lease, granted.TTL, sent_at, stage.now)
        stage.ask(old, lambda kv: kv.put(PutRequest(key=b"kl", value=b"1", lease=lease), timeout_ms=500))
        # Between two ticks of its lease timers, which then wake up first of all.
        old.pause(3.5)
        stage.leader(but=old)
        end = stage.now + 4.5
        while stage.now < end:
            node = stage.others(old)[0]
            sent_at = stage.now
            leases.renewal_sent(lease, stage.now + 2)
            told = stage.start(node, lambda kv: kv.lease_keep_alive(LeaseKeepAliveRequest(ID=lease), timeout_ms=500))
            stage.until(lambda told=told: bool(told))  # type: ignore[misc]
            if not isinstance(told[0], StatusError):
                leases.renewal_answered(lease, told[0].TTL, sent_at)
            stage.run(0.2)
        assert leases.renewed > 5
        assert leases.alive == 1


def test_14_a_leader_that_was_paused_revokes_no_lease() -> None:
    """Its timers are overdue when it wakes, and its successor has renewed the lease: what it proposes is ignored."""
    renewed_elsewhere()


def test_14_fails_when_any_leaders_word_counts() -> None:
    def obedient(node: SimNode) -> None:
        store: Any = node.machine.store
        store._lease_expire = lambda command: store._lease_revoke(command.lease_expire.id)
        lessor: Any = node.kv.lessor
        lessor._abdicate = lambda: None

    with pytest.raises((ViolationError, AssertionError)):
        renewed_elsewhere(_inside(obedient))


# -- 15 to 20: members, partitions, snapshots -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
def test_15_members_come_and_go_under_leader_kills(seed: int) -> None:
    """One change at a time, through the log; two majorities that do not meet never both commit."""
    with Stage(seed=seed) as stage:
        for n in (4, 5):
            name = f"r{n}"
            stage.fill(3)
            members = _change(stage, AddMember(peer_address=f"{name}:1", learner=False, name=name))
            me = next(m for m in members if m.peer_address == f"{name}:1")
            new = stage.world.add_node(Member(me.id, name, f"{name}:1", name), list(members))
            stage.world.faults.mind(new)
            new.start()
            stage.until(lambda new=new: new.serving)  # type: ignore[misc]
            leader = stage.leader()
            leader.crash(power=True)
            stage.fill(2, stage.leader(but=leader))
            leader.start()
            stage.until(lambda leader=leader: leader.serving)  # type: ignore[misc]
            gone = next(node for node in stage.nodes if node.serving and not node.leads and node is not new)
            _change(stage, RemoveMember(gone.me.id))
            gone.on_stop = lambda node, error: None
            gone.retired = True
            gone.crash(power=False)
            stage.fill(3)
        stage.converge()
        assert len(stage.world.core) == 3


def test_15_a_replica_that_was_away_while_the_leader_became_a_member_hears_of_it_from_the_leader() -> None:
    """It has never heard of the one that leads: if it does not listen to it, nobody else will bring it the log."""
    with Stage(size=5) as stage:
        stage.fill(3)
        away = stage.others(stage.leader())[0]
        # Gone, and not yet known to be: no member is added while another is known to be away.
        stage.split([away], stage.others(away))
        members = _change(stage, AddMember(peer_address="r6:1", learner=False, name="r6"))
        away.crash(power=False)
        me = next(m for m in members if m.peer_address == "r6:1")
        new = stage.world.add_node(Member(me.id, "r6", "r6:1", "r6"), list(members))
        stage.world.faults.mind(new)
        new.start()
        leader = stage.leader()
        stage.until(lambda: new.serving and new.core.engine.applied_index == leader.core.engine.last_index)
        stage.ask(leader, lambda _: leader.replica.transfer_leadership(new.me.id, timeout_ms=500))
        assert stage.leader() is new
        lease = stage.ask(new, lambda kv: kv.lease_grant(LeaseGrantRequest(TTL=60), timeout_ms=500)).ID
        stage.heal()
        away.start()
        stage.until(lambda: away.serving and away.core.engine.leader == new.me.id, step_s=0.0002)
        assert new.me.id not in {m.id for m in away.core.members}, "it has a leader that it does not know"
        renewal = LeaseKeepAliveRequest(ID=lease)
        assert stage.ask(away, lambda kv: kv.lease_keep_alive(renewal, timeout_ms=500)).TTL == 60
        stage.until(lambda: away.serving and away.core.ready)
        assert stage.leader() is new, "so it is from the one that it did not know that it has heard"
        assert new.me.id in {m.id for m in away.core.members}
        stage.fill(3)
        stage.converge()


async def _asking(leader: SimNode, change: MemberChange, _: object) -> tuple[Member, ...]:
    return await leader.replica.change_members(change, timeout_ms=500)


def _change(stage: Stage, change: MemberChange) -> tuple[Member, ...]:
    """Once: a change whose fate is unknown is looked up, not repeated."""
    for _ in range(100):
        leader = stage.leader()
        told = stage.start(leader, partial(_asking, leader, change))
        stage.until(lambda told=told: bool(told))  # type: ignore[misc]
        if isinstance(told[0], tuple):
            return told[0]
        members = stage.leader().core.members
        if isinstance(change, AddMember) and any(m.peer_address == change.peer_address for m in members):
            return members
        if isinstance(change, RemoveMember) and all(m.id != change.member_id for m in members):
            return members
        stage.run(0.1)
    raise AssertionError(f"{change}: the last of a hundred answers was {told[0]!r}")


def chain(breakage: Breakage | None = None) -> None:
    with Stage(breakage=breakage) as stage:
        middle = stage.others(stage.leader())[0]
        ends = stage.others(middle)
        for a, b in ((ends[0], ends[1]), (ends[1], ends[0])):
            stage.net.cut(a.name, b.name)
        before, longest, last = stage.checks.terms, 0.0, stage.now
        end = stage.now + 20.0
        while stage.now < end:
            told = stage.start(middle, stage.putting())
            stage.until(lambda told=told: bool(told))  # type: ignore[misc]
            if not isinstance(told[0], StatusError):
                longest, last = max(longest, stage.now - last), stage.now
            stage.run(0.1)
        if stage.checks.terms - before > 1:
            raise ViolationError(f"{stage.checks.terms - before} leaders in a chain partition")
        assert longest < 2.0
        stage.heal()
        stage.converge()


def test_16_a_chain_partition_costs_one_election_at_most() -> None:
    """A - B - C, where A and C do not hear each other: whoever cannot hear the leader does not depose it."""
    chain()


def test_16_fails_without_pre_vote() -> None:
    def hasty(node: SimNode) -> None:
        engine: Any = node.core.engine
        engine._elections._pre_votes.won = lambda *_, **__: True

    with pytest.raises((ViolationError, AssertionError)):
        chain(_inside(hasty))


@pytest.mark.parametrize("first", [0, 1, 2, 3, 4])
def test_17_a_kill_at_every_step_around_a_snapshot(first: int) -> None:
    """Saving, renaming, compacting, installing: stopped before every disk operation, the replica comes back."""
    with Stage(seed=7, **_SHORT) as stage:
        follower = stage.others(stage.leader())[0]
        for step in range(first, 60, 5):
            if follower.leads:
                break
            behind = step % 2 == 0
            if behind:
                stage.split([follower], stage.others(follower))
                stage.fill(14)
                stage.heal()
            follower.disk.stop_at = len(follower.disk.operations) + step
            for _ in range(16):
                if not follower.alive:
                    break
                stage.write()
            follower.crash(power=step % 3 == 0)
            follower.start()
            stage.until(lambda: follower.serving)
        stage.converge()


def test_18_a_damaged_snapshot_is_refused_not_served() -> None:
    """One flipped bit: the replica falls back to what is whole, or does not start. It never begins empty."""
    with Stage(**_SHORT) as stage:
        stage.fill(40)
        node = stage.others(stage.leader())[0]
        refused = served = 0
        for n in range(12):
            stage.until(lambda: node.serving)
            before = node.machine.applied_index
            node.crash(power=False)
            disk = node.disk
            copy = disk.copy()
            names = [f"snapshots/{name}" for name in disk.list("snapshots")]
            name = names[n % len(names)]
            disk.flip_bit(name, (37 * n + 11) % disk.size(name), n % 8)
            node.on_stop = lambda node, error: None
            node.start()
            stage.run(0.2)
            if node.alive:
                served += 1
                assert node.machine.applied_index >= before - 40
                node.crash(power=False)
            else:
                refused += 1
                assert isinstance(node.stopped, CorruptStateError)
            node.disk = copy
            node.start()
        stage.until(lambda: node.serving)
        stage.converge()
        assert served + refused == 12


def test_19_a_torn_tail_is_repaired_and_a_damaged_middle_refused() -> None:
    """A crash can only cut the end. Anything else is damage, and the replica asks to be replaced."""
    with Stage(size=3) as stage:
        stage.fill(5)
        node = stage.others(stage.leader())[0]
        identity = Identity(CLUSTER_ID, node.me.id)
        disk = node.disk
        name = [f"wal/{name}" for name in disk.list("wal")][-1]
        whole = disk.durable_copy()
        expected = open_storage(disk.durable_copy(), identity).journal.last_index
        size = whole.size(name)
        for cut in range(1, 40):
            torn = whole.copy()
            torn.replace(name, torn.read(name)[: size - cut])
            assert open_storage(torn, identity).journal.last_index in (expected, expected - 1, expected - 2)
        for offset in range(40, size - 80, max(1, size // 50)):
            rotten = whole.copy()
            rotten.flip_bit(name, offset, offset % 8)
            with pytest.raises(CorruptStateError):
                open_storage(rotten, identity)


def killed_while_applying(breakage: Breakage | None = None) -> None:
    with Stage(breakage=breakage, **_SHORT) as stage:
        for n in range(14):
            stage.fill(4)
            victim = stage.nodes[n % 3]
            stage.start(stage.leader(), stage.putting())
            stage.run(0.003 * (n % 4))
            victim.crash(power=n % 2 == 0)
            victim.start()
            stage.until(lambda victim=victim: victim.serving)  # type: ignore[misc]
        stage.converge()


def test_20_state_and_applied_index_are_one() -> None:
    """Killed anywhere between apply and snapshot, a replica's state is that of its index: hashes are compared."""
    killed_while_applying()


def test_20_fails_when_a_snapshot_lacks_state() -> None:
    def late(node: SimNode) -> None:
        machine: Any = node.machine
        empty = Store(cluster_id=1)
        machine.snapshot = empty.snapshot

    with pytest.raises((ViolationError, CorruptStateError)):
        killed_while_applying(_inside(late))


# -- 21 to 24: commands and disks -------------------------------------------------------------------------------------


_MALFORMED = [b"", b"\xff", b"\x0a", b"\x52\x00", b"\x52\x05hello", b"\xfa\x01\x03abc", bytes(64)]


def poison(breakage: Breakage | None = None) -> None:
    with Stage(breakage=breakage) as stage:
        for n, payload in enumerate(_MALFORMED):
            leader = stage.leader()
            outcome = stage.ask(
                leader,
                lambda kv, n=n, payload=payload, leader=leader: leader.replica.propose(  # type: ignore[misc]
                    payload, request_id=b"poison %9d" % n, timeout_ms=500
                ),
            )
            assert isinstance(outcome, Applied)
            assert Reply.FromString(outcome.reply).HasField("rejection"), payload
        stage.put(stage.leader())
        stage.converge()


def test_21_a_malformed_command_is_answered_and_stops_nobody() -> None:
    """Apply is total: every replica answers the same rejection and goes on."""
    poison()


def test_21_fails_when_apply_raises() -> None:
    def fragile(node: SimNode) -> None:
        store: Any = node.machine.store
        apply = store.apply

        def strict(index: int, term: int, proposals: Any) -> list[bytes]:
            replies: list[bytes] = apply(index, term, proposals)
            if any(Reply.FromString(reply).HasField("rejection") for reply in replies):
                raise ValueError("cannot apply")
            return replies

        store.apply = strict

    with pytest.raises(ValueError, match="cannot apply"):
        poison(_inside(fragile))


def counted(breakage: Breakage | None = None) -> None:
    with Stage(breakage=breakage, sync_max_s=0.01) as stage:
        count = 25
        for n in range(count):
            request_id = b"increment %6d" % n
            for attempt in range(40):
                nodes = [node for node in stage.nodes if node.serving]
                told = stage.start(nodes[attempt % len(nodes)], stage.putting(b"k9", b"%d" % n, request_id))
                if n % 3 == 0 and attempt == 0:
                    leader = stage.leader()
                    stage.run(0.004)
                    leader.crash(power=False)
                    stage.until(lambda told=told: bool(told))  # type: ignore[misc]
                    leader.start()
                stage.until(lambda told=told: bool(told))  # type: ignore[misc]
                if not isinstance(told[0], StatusError):
                    break
                stage.run(0.05)
        stage.converge()
        counter = stage.checks.model.at(b"k9")
        if counter is None or counter.version != count:
            raise ViolationError(f"{count} increments, the counter says {counter}")


def test_22_retried_increments_count_once_each() -> None:
    """The leader dies under increments that are retried under their id: the sum is the number of ids."""
    counted()


def test_22_fails_when_retries_are_new() -> None:
    with pytest.raises(ViolationError):
        counted(_inside(broken.every_request_is_new))


def disk_refuses(breakage: Breakage | None = None, *, full: bool) -> None:
    with Stage(breakage=breakage) as stage:
        leader = stage.leader()
        stopped: list[BaseException] = []
        leader.on_stop = lambda node, error: stopped.append(error)
        stage.fill(3)
        if full:
            leader.disk.capacity_bytes = leader.disk.used_bytes + 10
        else:
            leader.disk.sync_failures = 1
        told = stage.start(leader, stage.putting(value=b"x" * 2_000))
        stage.until(lambda: bool(told))
        stage.fill(3, stage.leader(but=leader))
        if not stopped:
            raise ViolationError("a replica went on after its disk had refused")
        assert isinstance(stopped[0], StorageError)
        stage.stop_and_start(stage.others(leader))
        leader.disk.capacity_bytes = 1 << 40
        leader.start()
        stage.until(lambda: leader.serving)
        stage.converge()


@pytest.mark.parametrize("full", [True, False])
def test_23_a_disk_that_refuses_stops_one_replica_and_costs_nothing(full: bool) -> None:
    """ENOSPC and EIO: the replica takes nothing more, the others go on; with space it comes back whole."""
    disk_refuses(full=full)


def test_23_fails_when_a_failed_sync_is_ignored() -> None:
    def careless(node: SimNode) -> None:
        node.disk.hides_failures = True

    with pytest.raises((ViolationError, StatusError)):
        disk_refuses(_inside(careless), full=False)


def slow_disk_over_a_term_change(breakage: Breakage | None = None) -> None:
    for seed in range(1, 6):
        with Stage(seed=seed, breakage=breakage) as stage:
            for _ in range(3):
                leader = stage.leader()
                for node in stage.others(leader):
                    node.sync_s = (0.1, 0.4)
                stage.start(leader, stage.putting())
                stage.run(0.02)
                leader.crash(power=True)
                stage.until(lambda: any(node.leads for node in stage.nodes))
                stage.start(next(n for n in stage.nodes if n.leads), stage.putting())
                stage.run(0.05)
                for node in stage.nodes:
                    node.crash(power=True)
                    node.sync_s = (0.0002, 0.004)
                    node.start()
                stage.leader()
            stage.converge()


def test_24_a_disk_that_finishes_late_says_nothing_about_another_term() -> None:
    """A sync that ends after the leader changed acknowledges what it wrote, not what stands there now."""
    slow_disk_over_a_term_change()
