"""SessionTable: what the leader knows of every node's contact with the cluster. Evidence, no verdicts.

Owns last-seen times on this process's own monotonic clock, built from the replicas' session reports. Pure: time is an
argument, and no time of another machine is ever compared, only how long something lasted there. Knows neither Node
objects nor what follows from silence (``controllers.nodelifecycle_decide`` does).

Every replica keeps a table, but only the one that leads hears reports; ``arm`` starts its evidence afresh, so silence
is only ever counted from when this process began to listen. Evidence about a node dies with its source: while a
replica is silent, the silence of its nodes is the replica's.
"""

from __future__ import annotations

from dataclasses import dataclass

from controlplane.pb.quarterdeck.internal.v1 import sessions_pb2

__all__ = ["Contact", "SessionTable"]


@dataclass(frozen=True, slots=True)
class Contact:
    """What is known of one node. Times are seconds of the table's clock; None: has not happened since ``arm``."""

    #: Silence is counted from here at the earliest: when this table was armed, or first asked about the node.
    known_since_s: float
    #: A replica heard from it.
    last_seen_s: float | None = None
    #: It has a session, as far as its replica last said.
    open: bool = False
    #: Last report of the replica that holds its session, or held it last.
    source_heard_s: float | None = None
    #: Its session was closed and it has none since.
    broken_since_s: float | None = None
    #: It said goodbye before that.
    departed: bool = False
    #: ... and that nothing is left running on it.
    drained: bool = False


@dataclass(slots=True)
class _Replica:
    boot_id: str
    sequence: int
    heard_s: float
    sessions: dict[str, str]  # node -> boot id


@dataclass(slots=True)
class _Node:
    known_since_s: float
    last_seen_s: float | None = None
    holder: str = ""  # replica with its newest session
    boot_id: str = ""  # of that session
    broken_since_s: float | None = None
    departed: bool = False
    drained: bool = False


class SessionTable:
    """See the module."""

    def __init__(self) -> None:
        self._replicas: dict[str, _Replica] = {}
        self._nodes: dict[str, _Node] = {}
        self._armed_s = 0.0

    def arm(self, now_s: float) -> None:
        """Forget everything and listen from now on: this replica has just won, or has not been running for a while."""
        self._replicas.clear()
        self._nodes.clear()
        self._armed_s = now_s

    def expect(self, node: str, now_s: float) -> None:
        """There is such a node: count its silence from now, if it is not known already."""
        self._nodes.setdefault(node, _Node(now_s))

    def forget(self, node: str) -> None:
        """The node's object is gone; drop what is known unless it still has a session."""
        if not self._holders(node):
            self._nodes.pop(node, None)

    def report(self, report: sessions_pb2.SessionReport, now_s: float) -> None:
        """Take in one replica's report, received at ``now_s``."""
        before = self._replicas.get(report.replica)
        if before is not None and before.boot_id == report.replica_boot_id and report.sequence <= before.sequence:
            return
        sessions = {session.node_name: session.boot_id for session in report.sessions}
        self._replicas[report.replica] = _Replica(report.replica_boot_id, report.sequence, now_s, sessions)
        for session in report.sessions:
            self._note_open(session, report.replica, now_s)
        # A replica that was started again knows nothing of its former sessions: their end is not the nodes' doing.
        if before is not None and before.boot_id == report.replica_boot_id:
            for name in before.sessions:
                if name not in sessions and not self._holders(name):
                    self._nodes[name].broken_since_s = now_s
        for departure in report.departures:
            self._note_departure(departure, now_s)

    def contact(self, node: str) -> Contact | None:
        """What is known of a node; None when it was never expected nor heard of."""
        state = self._nodes.get(node)
        if state is None:
            return None
        source = self._replicas.get(state.holder)
        return Contact(
            known_since_s=max(state.known_since_s, self._armed_s),
            last_seen_s=state.last_seen_s,
            open=bool(self._holders(node)),
            source_heard_s=source.heard_s if source is not None else None,
            broken_since_s=state.broken_since_s,
            departed=state.departed,
            drained=state.drained,
        )

    def _note_open(self, session: sessions_pb2.OpenSession, replica: str, now_s: float) -> None:
        state = self._nodes.setdefault(session.node_name, _Node(now_s))
        seen_s = max(now_s - session.idle_ms / 1000, self._armed_s)
        if state.last_seen_s is None or seen_s >= state.last_seen_s:
            state.last_seen_s = seen_s
            state.holder = replica
            state.boot_id = session.boot_id
            # A replica that died still counts this session as its own; one that lives will say so again.
            for name, other in self._replicas.items():
                if name != replica:
                    other.sessions.pop(session.node_name, None)
        state.broken_since_s = None
        state.departed = state.drained = False

    def _note_departure(self, departure: sessions_pb2.Departure, now_s: float) -> None:
        state = self._nodes.setdefault(departure.node_name, _Node(now_s))
        of_last_session = state.boot_id in ("", departure.boot_id)
        if of_last_session and not self._holders(departure.node_name):
            if state.broken_since_s is None:
                state.broken_since_s = now_s
            state.departed = True
            state.drained = departure.drained

    def _holders(self, node: str) -> list[str]:
        return [name for name, replica in self._replicas.items() if node in replica.sessions]
