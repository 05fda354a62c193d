"""The settings of consensus, and who its members are. Frozen; every relation between fields is checked at start.

Owns the numbers and their bounds; knows no clock, no engine and no file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from controlplane.base.errors import ConfigError
from controlplane.base.limits import BATCH_BYTES_MAX, FRAME_BYTES_MAX, MIB, REQUEST_BYTES_MAX
from controlplane.raft.types import Member

__all__ = ["RaftConfig", "cluster_id_of", "make_members", "member_id_of"]

#: Room for what surrounds a batch in a log entry and entries in a frame.
_ENVELOPE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class RaftConfig:
    """Timers and sizes of one replica's Raft.

    Attributes:
        heartbeat_ms: how often a leader speaks when it has nothing to say.
        election_min_ms, election_max_ms: a follower that hears nothing waits a random time between them, then stands.
        step_down_ms: a leader without answers from a majority for so long gives up; less than ``election_min_ms``, so
            that the old leader is gone before a new one can be elected.
        hasten_min_ms, hasten_max_ms: the same random wait when the leader's process is known to be dead.
        hastened_retry_min_ms, hastened_retry_max_ms: the wait after a split vote in such an election.
        append_bytes: log entries per AppendEntries, bytes. More than one entry, or the engine would cut entries up.
        inflight_entries_max: entries appended and not yet committed; batches grow instead of pipelines.
        pace_ms: pause between two turns while writes queue up, so that the next batch is worth its sync.
        snapshot_entries, snapshot_log_bytes: a snapshot is cut after so many entries or bytes of log.
        catch_up_entries: log kept behind a snapshot, so that a follower that was away for a moment needs none.
        snapshot_chunk_bytes: one piece of a snapshot on a peer link.
        catch_up_bytes_per_s: what a leader sends of snapshots, to all followers together. Writes and heartbeats share
            its links and its loop with them: too high and they are late, too low and a lost disk is long in replacing.
        wal_segment_bytes: a file of the log past this size is closed and the next one begun.
        resend_ms: a forwarded write or read without news is sent again after so long (under its request id).
    """

    heartbeat_ms: int = 50
    election_min_ms: int = 500
    election_max_ms: int = 1000
    step_down_ms: int = 450
    hasten_min_ms: int = 5
    hasten_max_ms: int = 35
    hastened_retry_min_ms: int = 40
    hastened_retry_max_ms: int = 120
    append_bytes: int = 8 * MIB
    inflight_entries_max: int = 2
    pace_ms: float = 2.0
    snapshot_entries: int = 10_000
    snapshot_log_bytes: int = 64 * MIB
    catch_up_entries: int = 2_000
    snapshot_chunk_bytes: int = MIB
    catch_up_bytes_per_s: int = 64 * MIB
    wal_segment_bytes: int = 16 * MIB
    resend_ms: int = 1_000

    @classmethod
    def of(cls, *, heartbeat_ms: int, election_min_ms: int, election_max_ms: int, snapshot_entries: int) -> RaftConfig:
        """The configuration that follows from the settings a user may change."""
        return cls(
            heartbeat_ms=heartbeat_ms,
            election_min_ms=election_min_ms,
            election_max_ms=election_max_ms,
            step_down_ms=max(heartbeat_ms + 1, election_min_ms * 9 // 10),
            hasten_min_ms=max(1, min(5, election_min_ms // 100)),
            hasten_max_ms=max(2, min(35, election_min_ms * 7 // 100)),
            hastened_retry_min_ms=max(1, min(40, election_min_ms * 8 // 100)),
            hastened_retry_max_ms=max(3, min(120, election_min_ms * 24 // 100)),
            snapshot_entries=snapshot_entries,
            catch_up_entries=max(16, min(2_000, snapshot_entries // 5)),
            resend_ms=election_max_ms,
        )

    def validate(self) -> None:
        """Check the relations that consensus depends on.

        Raises:
            ConfigError: naming the setting, its value and what is allowed.
        """

        def need(ok: bool, text: str) -> None:
            if not ok:
                raise ConfigError(text)

        need(self.heartbeat_ms > 0, f"heartbeat {self.heartbeat_ms} ms: want more than 0")
        need(
            self.heartbeat_ms * 3 < self.election_min_ms,
            f"election minimum {self.election_min_ms} ms: want more than three heartbeats ({3 * self.heartbeat_ms} ms)",
        )
        need(
            self.election_min_ms < self.election_max_ms,
            f"election maximum {self.election_max_ms} ms: want more than the minimum ({self.election_min_ms} ms)",
        )
        need(
            self.heartbeat_ms < self.step_down_ms < self.election_min_ms,
            f"step-down {self.step_down_ms} ms: want more than a heartbeat ({self.heartbeat_ms} ms) and less than the "
            f"election minimum ({self.election_min_ms} ms), or two leaders overlap",
        )
        need(
            0 < self.hasten_min_ms < self.hasten_max_ms < self.election_min_ms,
            f"hastened election {self.hasten_min_ms}-{self.hasten_max_ms} ms: want a range below the election minimum",
        )
        need(
            0 < self.hastened_retry_min_ms < self.hastened_retry_max_ms < self.election_min_ms,
            f"hastened retry {self.hastened_retry_min_ms}-{self.hastened_retry_max_ms} ms: "
            f"want a range below the election minimum",
        )
        entry = BATCH_BYTES_MAX + REQUEST_BYTES_MAX + _ENVELOPE_BYTES
        need(
            self.append_bytes > entry,
            f"append size {self.append_bytes} bytes: want more than the largest log entry ({entry} bytes)",
        )
        need(
            self.append_bytes + entry <= FRAME_BYTES_MAX,
            f"append size {self.append_bytes} bytes: with the largest entry it must fit a frame ({FRAME_BYTES_MAX})",
        )
        need(self.inflight_entries_max >= 1, f"entries in flight {self.inflight_entries_max}: want at least 1")
        need(self.pace_ms >= 0, f"pace {self.pace_ms} ms: want 0 or more")
        need(
            1 <= self.catch_up_entries < self.snapshot_entries,
            f"catch-up entries {self.catch_up_entries}: want 1 to snapshot entries ({self.snapshot_entries})",
        )
        need(
            0 < self.snapshot_chunk_bytes <= FRAME_BYTES_MAX // 2,
            f"snapshot chunk {self.snapshot_chunk_bytes} bytes: want 1 to {FRAME_BYTES_MAX // 2}",
        )
        need(
            self.catch_up_bytes_per_s > 0,
            f"catch-up rate {self.catch_up_bytes_per_s} bytes per second: want more than 0",
        )
        need(self.resend_ms > self.heartbeat_ms, f"resend {self.resend_ms} ms: want more than a heartbeat")


def cluster_id_of(token: str, names: Iterable[str]) -> int:
    """63-bit id of a cluster: who founded it, under which token."""
    return _id("cluster", token, *sorted(names))


def member_id_of(cluster_id: int, name: str) -> int:
    """63-bit id of a member of a cluster."""
    return _id("member", str(cluster_id), name)


def make_members(token: str, members: Iterable[tuple[str, str, str, str]]) -> tuple[int, tuple[Member, ...]]:
    """Cluster id and members, sorted by id, of (name, peer address, client endpoint, metrics endpoint).

    Raises:
        ConfigError: no member, or a name twice.
    """
    rows = list(members)
    names = [row[0] for row in rows]
    if not rows:
        raise ConfigError("initial cluster: want at least one member")
    if len(set(names)) != len(names):
        raise ConfigError(f"initial cluster: a name appears twice in {', '.join(names)}")
    cluster_id = cluster_id_of(token, names)
    made = [Member(member_id_of(cluster_id, name), name, peer, client, metrics) for name, peer, client, metrics in rows]
    return cluster_id, tuple(sorted(made, key=lambda m: m.id))


def _id(*parts: str) -> int:
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    # 63 bits, never 0: some etcd clients print ids as signed numbers, and 0 means "none" in Raft.
    return (int.from_bytes(digest[:8], "big") >> 1) or 1
