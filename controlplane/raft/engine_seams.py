"""What stands between the engine and pysyncobj: our journal, links, apply, clock and chance in place of the library's.

Owns the stand-ins and the library's configuration. With ``engine.py``, the only code that knows pysyncobj's inside.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, overload

import pysyncobj.syncobj as library
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from controlplane.base.clock import Clock
from controlplane.base.errors import CorruptStateError
from controlplane.base.rand import Rand
from controlplane.raft.config import RaftConfig

__all__ = ["Consensus", "EngineJournal", "Links", "LogEntry", "NoSerializer", "Peer", "bind", "make_consensus"]

#: (command, index, term): the library's shape of a log entry. ``command`` is one type byte and the data.
LogEntry = tuple[bytes, int, int]

_NEVER_S: Final = 1e18

# It warns of truncation below what is applied, on every resend; our journal truncates nothing that matches.
logging.getLogger(library.__name__).addFilter(lambda record: "truncating already-applied" not in record.msg)


class EngineJournal(Protocol):
    """What the engine needs of the log: the library's journal protocol, and the two corrections.

    Positions count from the first entry kept, as the library has it; ``install`` and entries use Raft indexes.
    """

    def add(self, command: bytes, idx: int, term: int) -> None: ...
    def clear(self) -> None: ...
    def deleteEntriesFrom(self, entryFrom: int) -> None: ...  # noqa: N802, N803
    def deleteEntriesTo(self, entryTo: int) -> None: ...  # noqa: N802, N803
    @overload
    def __getitem__(self, item: int) -> LogEntry: ...
    @overload
    def __getitem__(self, item: slice) -> Sequence[LogEntry]: ...
    def __len__(self) -> int: ...
    def setRaftCommitIndex(self, raftCommitIndex: int) -> None: ...  # noqa: N802, N803
    def getRaftCommitIndex(self) -> int: ...  # noqa: N802
    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None: ...  # noqa: N802, N803
    def getCurrentTerm(self) -> int: ...  # noqa: N802
    def getVotedForNodeId(self) -> str | None: ...  # noqa: N802
    def onOneSecondTimer(self) -> None: ...  # noqa: N802
    def handler_ended(self) -> None:
        """A message has been handled: what was cut and not contradicted comes back."""
        ...


class NoPoller:
    """The library polls sockets of its own; it has none."""

    def poll(self, timeout: float) -> None: ...


class NoPickle:
    """Stands where the library would reach for pickle."""

    def __getattr__(self, name: str) -> Any:
        raise CorruptStateError(f"the engine reached for pickle.{name}: nothing here may be pickled")


class NoSerializer:
    """Stands in place of the library's dumps: it never makes one, and when one should be sent it tells the engine."""

    def __init__(self, peer_is_behind: Callable[[Peer], None]) -> None:
        self._peer_is_behind = peer_is_behind

    def checkSerializing(self) -> tuple[int, None]:  # noqa: N802
        return 0, None

    def getTransmissionData(self, node: Peer) -> None:  # noqa: N802
        self._peer_is_behind(node)

    def cancelTransmisstion(self, _node: Peer) -> None:  # noqa: N802
        return None


class Peer(Node):  # type: ignore[misc]
    """A member, with a hash that is the same in every process: the library keeps peers in sets."""

    def __init__(self, member_id: int) -> None:
        super().__init__(f"{member_id:016x}", member_id=member_id)

    def __hash__(self) -> int:
        return hash(self.member_id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Peer) and self.member_id == other.member_id


class Links(Transport):  # type: ignore[misc]
    """The library's transport: everything it sends goes to the engine."""

    def __init__(self, send: Callable[[Peer, dict[str, Any]], None]) -> None:
        super().__init__(None, None, [])
        self._send = send

    def send(self, node: Peer, message: dict[str, Any]) -> bool:
        self._send(node, message)
        return True


class Consensus(library.SyncObj):  # type: ignore[misc]
    """The library's object, with our way to apply an entry."""

    def __init__(self, me: Peer, peers: list[Peer], conf: Any, links: Links, apply: Callable[[bytes], None]) -> None:
        self._quarterdeck_apply = apply
        super().__init__(me, peers, conf, nodeClass=Peer, transport=links)

    def _SyncObj__doApplyCommand(self, command: bytes) -> None:  # noqa: N802
        self._quarterdeck_apply(command)


def configuration(c: RaftConfig) -> Any:
    """The library's configuration, every field of it: a default that changes in an upgrade changes nothing here."""
    return library.SyncObjConf(
        password=None,
        autoTick=False,
        autoTickPeriod=c.heartbeat_ms / 1000,
        commandsQueueSize=16,
        raftMinTimeout=c.election_min_ms / 1000,
        raftMaxTimeout=c.election_max_ms / 1000,
        appendEntriesPeriod=c.heartbeat_ms / 1000,
        connectionTimeout=_NEVER_S,
        connectionRetryTime=_NEVER_S,
        leaderFallbackTimeout=c.step_down_ms / 1000,
        appendEntriesUseBatch=False,
        appendEntriesBatchSizeBytes=c.append_bytes,
        bindAddress=None,
        preferredAddrType="ipv4",
        sendBufferSize=1,
        recvBufferSize=1,
        dnsCacheTime=0,
        dnsFailCacheTime=0,
        logCompactionMinEntries=1 << 62,
        logCompactionMinTime=_NEVER_S,
        logCompactionSplit=False,
        logCompactionBatchSize=1,
        commandsWaitLeader=False,
        fullDumpFile=None,
        journalFile=None,
        bindRetryTime=1.0,
        maxBindRetries=1,
        onReady=None,
        onStateChanged=None,
        dynamicMembershipChange=False,
        pollerType="auto",
        useFork=False,
        serializer=None,
        serializeChecker=None,
        deserializer=None,
        onCodeVersionChanged=None,
        tcp_keepalive=None,
    )


_NO_PICKLE: Final = NoPickle()


def bind(clock: Clock, rand: Rand) -> None:
    """The library looks its clock, chance and pickle up in its module: they are ours while we call it. Call it before
    every call of the library, as another engine may live in the same process (tests, the simulator)."""
    library.monotonicTime = clock.monotonic
    library.random = rand
    library.pickle = _NO_PICKLE


def make_consensus(
    config: RaftConfig,
    me: Peer,
    peers: list[Peer],
    journal: EngineJournal,
    links: Links,
    apply: Callable[[bytes], None],
    peer_is_behind: Callable[[Peer], None],
) -> Any:
    """The library's object with everything of ours in it. Typed Any: what is done to it reaches into its privates."""
    library.createJournal = lambda _file: journal
    library.createPoller = lambda _type: NoPoller()
    library.PIPE_NOTIFIER_ENABLED = False
    made: Any = Consensus(me, peers, configuration(config), links, apply)
    made._SyncObj__serializer = NoSerializer(peer_is_behind)
    return made
