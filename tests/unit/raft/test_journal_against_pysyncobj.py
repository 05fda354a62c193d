"""What the journal takes for granted about pysyncobj 0.3.17, each as a test that an upgrade would break loudly.

The library runs for real here, on our journal and a transport that only notes what is sent. What the engine module
relies on beyond the log is in ``test_engine_contract.py``.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

import pysyncobj.journal
import pysyncobj.syncobj as library
import pytest
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from controlplane.raft import journal as ours
from controlplane.raft.journal import RaftJournal
from controlplane.raft.wal import Wal
from tests.sim.disk import SimDisk
from tests.unit.raft.storage_kit import ME

NO_OP = b"\x01"


class Notes(Transport):  # type: ignore[misc]
    """A transport that goes nowhere."""

    def __init__(self) -> None:
        super().__init__(None, None, [])
        self.sent: list[dict[str, Any]] = []

    def send(self, node: Node, message: dict[str, Any]) -> bool:
        self.sent.append(message)
        return True


class Spied:
    """One real SyncObj on a given journal, with two peers."""

    def __init__(self, journal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.journal = journal
        self.notes = Notes()
        self.peer = Node("b")
        monkeypatch.setattr(library, "createJournal", lambda _path: journal)
        monkeypatch.setattr(library, "PIPE_NOTIFIER_ENABLED", False)
        conf = library.SyncObjConf(
            autoTick=False,
            appendEntriesUseBatch=False,
            useFork=False,
            raftMinTimeout=1e9,
            raftMaxTimeout=2e9,
            connectionTimeout=3e9,
        )
        self.sync = library.SyncObj(Node("a"), [self.peer, Node("c")], conf, nodeClass=Node, transport=self.notes)

    def append_entries(self, prev: tuple[int, int], entries: list[tuple[bytes, int, int]], commit: int = 1) -> None:
        self.receive(
            type="append_entries", commit_index=commit, prevLogIdx=prev[0], prevLogTerm=prev[1], entries=entries
        )

    def receive(self, *, term: int = 1, **message: Any) -> None:
        self.notes._onMessageReceived(self.peer, {"term": term, **message})

    @property
    def commit_index(self) -> int:
        return int(self.sync._SyncObj__raftCommitIndex)


def our_journal() -> RaftJournal:
    return RaftJournal(Wal.create(SimDisk(), ME))


@pytest.fixture
def follower(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spied]:
    """A follower on our journal that holds entries 1 to 6 of term 1, committed up to 4."""
    spied = Spied(our_journal(), monkeypatch)
    spied.append_entries((1, 0), [noop(i) for i in range(2, 7)], commit=4)
    spied.journal.handler_ended()
    yield spied
    spied.sync._doDestroy()


def noop(index: int, term: int = 1) -> tuple[bytes, int, int]:
    return NO_OP, index, term


def source(name: str) -> str:
    return textwrap.dedent(inspect.getsource(getattr(library.SyncObj, f"_SyncObj__{name}")))


def test_it_is_the_release_whose_source_was_read() -> None:
    assert importlib.metadata.version("pysyncobj") == "0.3.17"


def test_the_journal_protocol_is_the_one_we_implement() -> None:
    theirs = pysyncobj.journal.Journal
    names = {name for name, value in vars(theirs).items() if inspect.isfunction(value)}
    assert names == {
        "add",
        "clear",
        "deleteEntriesFrom",
        "deleteEntriesTo",
        "__getitem__",
        "__len__",
        "_destroy",
        "setRaftCommitIndex",
        "getRaftCommitIndex",
        "setCurrentTerm",
        "getCurrentTerm",
        "getVotedForNodeId",
        "onOneSecondTimer",
    }
    for name in names - {"__getitem__"}:
        assert list(inspect.signature(getattr(RaftJournal, name)).parameters) == list(
            inspect.signature(getattr(theirs, name)).parameters
        ), name


def test_an_empty_journal_answers_as_the_librarys_own() -> None:
    theirs, mine = pysyncobj.journal.MemoryJournal(), our_journal()
    assert mine.getRaftCommitIndex() == theirs.getRaftCommitIndex() == ours._FIRST_COMMIT_INDEX
    assert (mine.getCurrentTerm(), mine.getVotedForNodeId()) == (theirs.getCurrentTerm(), theirs.getVotedForNodeId())
    assert len(mine) == len(theirs) == 0


def test_our_no_op_is_the_librarys() -> None:
    assert library._bchr(library._COMMAND_TYPE.NO_OP) == ours._NO_OP == NO_OP


def test_the_journal_comes_from_create_journal_and_gets_a_first_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    spied = Spied(our_journal(), monkeypatch)
    assert spied.sync._SyncObj__raftLog is spied.journal
    assert spied.journal[0:2] == [(NO_OP, 1, 0)]
    spied.sync._doDestroy()


def test_term_vote_and_commit_index_are_taken_from_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    journal = our_journal()
    for index in range(1, 4):
        journal.add(*noop(index))
    journal.setCurrentTerm(7, "c")
    journal.setRaftCommitIndex(3)
    spied = Spied(journal, monkeypatch)
    assert spied.sync._SyncObj__raftCurrentTerm == 7
    assert spied.sync._SyncObj__votedForNodeId == "c"
    assert spied.commit_index == 3
    spied.sync._doDestroy()


def test_the_plain_library_still_cuts_matching_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason for our journal. If this fails, the library was mended: read its new code before simplifying ours."""
    spied = Spied(pysyncobj.journal.MemoryJournal(), monkeypatch)
    spied.append_entries((1, 0), [noop(i) for i in range(2, 7)])
    spied.append_entries((1, 0), [noop(2)])
    assert len(spied.journal) == 2
    spied.sync._doDestroy()


def test_on_our_journal_a_resent_prefix_cuts_nothing(follower: Spied) -> None:
    follower.append_entries((1, 0), [noop(2)])
    assert follower.journal.last_index == 2
    follower.journal.handler_ended()
    assert follower.journal.last_index == 6


def test_the_library_cuts_by_position_and_adds_in_order(follower: Spied) -> None:
    follower.append_entries((3, 1), [noop(4), noop(5, 2)], commit=4)
    follower.journal.handler_ended()
    assert [e[1:] for e in follower.journal[2:]] == [(3, 1), (4, 1), (5, 2)]


def test_the_library_lowers_its_commit_index_to_the_hidden_logs_end(follower: Spied) -> None:
    assert follower.commit_index == 4
    follower.append_entries((1, 0), [noop(2)], commit=1)
    assert follower.commit_index == 2
    follower.journal.handler_ended()
    assert follower.journal.commit_index == 4


def test_the_library_commits_up_to_the_last_entry_it_sees_so_the_tail_must_stay_hidden(follower: Spied) -> None:
    follower.append_entries((4, 1), [], commit=100)
    assert follower.commit_index == 4
    follower.journal.handler_ended()
    assert follower.journal.last_index == 6
    assert follower.journal.commit_index == 4


def test_a_vote_is_recorded_before_it_is_sent(follower: Spied) -> None:
    follower.notes.sent.clear()
    follower.receive(type="request_vote", term=5, last_log_index=6, last_log_term=1)
    assert [m["type"] for m in follower.notes.sent] == ["response_vote"]
    assert (follower.journal.getCurrentTerm(), follower.journal.getVotedForNodeId()) == (5, "b")


def test_a_second_candidate_of_the_term_gets_no_vote(follower: Spied) -> None:
    follower.receive(type="request_vote", term=5, last_log_index=6, last_log_term=1)
    follower.notes.sent.clear()
    follower.receive(type="request_vote", term=5, last_log_index=6, last_log_term=1)
    assert not follower.notes.sent


def test_the_entry_at_position_0_is_never_sent() -> None:
    assert "if nextNodeIndex > self.__raftLog[0][1]:" in source("sendAppendEntries")


def test_only_loading_a_dump_clears_the_log() -> None:
    users = [
        name
        for name, value in vars(library.SyncObj).items()
        if inspect.isfunction(value) and "__raftLog.clear" in inspect.getsource(value)
    ]
    assert users == ["_SyncObj__loadDumpFile"]


def test_the_log_is_reached_only_through_the_methods_we_know() -> None:
    used = set()
    for line in inspect.getsource(library.SyncObj).splitlines():
        _, found, rest = line.partition("self.__raftLog")
        if found and not rest.startswith((" ", "[", ")")):
            used.add(rest.lstrip(".").split("(")[0])
    assert used == {
        "_destroy",
        "add",
        "clear",
        "deleteEntriesFrom",
        "deleteEntriesTo",
        "getCurrentTerm",
        "getRaftCommitIndex",
        "getVotedForNodeId",
        "onOneSecondTimer",
        "setCurrentTerm",
        "setRaftCommitIndex",
    }
