"""A follower that has much to catch up with: it gets its bytes at a rate, and nobody else notices."""

from __future__ import annotations

from controlplane.base.rand import SeededRand
from controlplane.pb.quarterdeck.internal.v1.raft_pb2 import RaftMessage
from tests.sim.stage import Stage

_RATE = 100_000
_PIECE = 4_096
_WINDOW_S = 0.25
_KEYS, _VALUE_BYTES = 120, 1_000
#: A write in this cluster takes 10 to 30 ms; this is what nobody would call late.
_PATIENCE_S = 0.15


def _catch_up(rate: int) -> tuple[float, float, float]:
    """Lose one follower, write much, bring it back under a steady writer. The most bytes of snapshots that left in a
    window of time, the slowest write meanwhile, and how long it took."""
    with Stage(
        snapshot_entries=10, catch_up_entries=1, snapshot_chunk_bytes=_PIECE, catch_up_bytes_per_s=rate
    ) as stage:
        rand = SeededRand(3)
        leader = stage.leader()
        slow = stage.others(leader)[0]
        slow.crash(power=False)
        for n in range(_KEYS):
            stage.put(leader, b"k%d" % n, rand.token(_VALUE_BYTES))
        sent: list[tuple[float, int]] = []

        def tap(sender: str, to: str, message: RaftMessage) -> None:
            if message.snapshot_chunk.data:
                sent.append((stage.now, len(message.snapshot_chunk.data)))

        stage.net.tap = tap
        slow.start()
        began = stage.now
        slowest = 0.0
        while not (
            slow.serving and slow.core.ready and slow.core.engine.applied_index > leader.core.engine.last_index - 9
        ):
            asked = stage.now
            stage.put(leader)
            slowest = max(slowest, stage.now - asked)
            assert stage.now - began < 30
        took = stage.now - began
        assert stage.leader() is leader, "somebody was elected for want of heartbeats"
        stage.converge()
    most = max(sum(size for when, size in sent if at <= when < at + _WINDOW_S) for at, _ in sent)
    return most, slowest, took


def test_a_follower_is_caught_up_at_a_rate_while_writes_go_on() -> None:
    most, slowest, took = _catch_up(_RATE)
    assert most <= _RATE * (_WINDOW_S + 0.05) + _PIECE
    assert slowest < _PATIENCE_S
    assert took > (_KEYS * _VALUE_BYTES) / _RATE - 0.1


def test_without_the_rate_it_all_leaves_at_once() -> None:
    most, _, took = _catch_up(1 << 30)
    assert most > _RATE * (_WINDOW_S + 0.05) + _PIECE
    assert took < 1.0
