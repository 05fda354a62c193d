"""What the engine depends on inside pysyncobj, name by name: a library upgrade that moves one fails here first."""

from __future__ import annotations

import inspect
from typing import Any

import pysyncobj
import pysyncobj.syncobj as library
import pytest
from pysyncobj.version import VERSION

from controlplane.base.clock import ManualClock
from controlplane.base.errors import CorruptStateError
from controlplane.base.rand import SeededRand
from controlplane.raft.config import RaftConfig
from controlplane.raft.engine import Engine
from controlplane.raft.engine_seams import configuration
from tests.unit.raft.memory import memory_journal

CLOCK = ManualClock()


def engine(peers: tuple[int, ...] = (2, 3)) -> Engine:
    return Engine(
        config=RaftConfig(),
        member_id=1,
        peer_ids=peers,
        journal=memory_journal(),
        clock=CLOCK,
        rand=SeededRand(1),
        apply=lambda index, term, data: None,
        applied_index=0,
    )


def test_the_library_is_the_version_that_was_read() -> None:
    assert VERSION == "0.3.17"
    assert pysyncobj.SyncObj is library.SyncObj


@pytest.mark.parametrize(
    "name", ["monotonicTime", "random", "createJournal", "createPoller", "pickle", "PIPE_NOTIFIER_ENABLED"]
)
def test_module_name_is_looked_up_in_the_module(name: str) -> None:
    assert hasattr(library, name)
    assert name in inspect.getsource(library.SyncObj)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("_SyncObj__raftState", int),
        ("_SyncObj__raftCurrentTerm", int),
        ("_SyncObj__raftCommitIndex", int),
        ("_SyncObj__raftLastApplied", int),
        ("_SyncObj__raftElectionDeadline", float),
        ("_SyncObj__newAppendEntriesTime", (int, float)),
        ("_SyncObj__raftNextIndex", dict),
        ("_SyncObj__raftMatchIndex", dict),
        ("_SyncObj__lastResponseTime", dict),
        ("_SyncObj__connectedNodes", set),
        ("_SyncObj__otherNodes", set),
        ("_SyncObj__readonlyNodes", set),
        ("_SyncObj__transferInProgress", bool),
    ],
)
def test_private_name_exists_with_its_type(name: str, kind: Any) -> None:
    assert isinstance(getattr(engine()._library.sync, name), kind)


@pytest.mark.parametrize("name", ["_SyncObj__raftLeader", "_SyncObj__serializer"])
def test_private_name_exists(name: str) -> None:
    assert hasattr(engine()._library.sync, name)


def test_roles_are_numbered_as_expected() -> None:
    states = library._RAFT_STATE
    assert (states.FOLLOWER, states.CANDIDATE, states.LEADER) == (0, 1, 2)


def test_command_types_are_numbered_as_expected() -> None:
    types = library._COMMAND_TYPE
    assert (types.REGULAR, types.NO_OP) == (0, 1)


@pytest.mark.parametrize(
    "method",
    [
        "doTick",
        "_applyCommand",
        "transferLeadership",
        "_SyncObj__doApplyCommand",
        "_SyncObj__setCurrentTerm",
        "_SyncObj__setState",
    ],
)
def test_method_exists(method: str) -> None:
    assert callable(getattr(library.SyncObj, method))


def test_readonly_nodes_get_the_log_and_are_not_counted() -> None:
    source = inspect.getsource(library.SyncObj)
    assert "for node in self.__otherNodes | self.__readonlyNodes:" in source, "fed, both when sending and when elected"
    assert source.count("> (len(self.__otherNodes) + 1) / 2") == 2, "votes: of the others, and our own"
    assert source.count("<= (len(self.__otherNodes) + 1) / 2") == 2, "commits and the answers that keep a leader"


def test_an_election_is_held_when_the_deadline_has_passed_and_somebody_is_connected() -> None:
    source = inspect.getsource(library.SyncObj._onTick)
    assert "self.__raftElectionDeadline < monotonicTime() and self.__connectedToAnyone()" in source


def test_a_command_of_our_membership_kind_is_left_alone() -> None:
    assert library._COMMAND_TYPE.MEMBERSHIP == 2
    assert configuration(RaftConfig()).dynamicMembershipChange is False


def test_applying_goes_through_the_method_that_is_overridden() -> None:
    assert "self.__doApplyCommand(entry[0])" in inspect.getsource(library.SyncObj)


def test_every_field_of_the_configuration_is_set_explicitly() -> None:
    ours = set(inspect.getsource(configuration).replace("=", " = ").split())
    missing = [name for name in vars(library.SyncObjConf()) if name not in ours]
    assert missing == []


def test_the_library_cannot_reach_pickle_while_we_call_it() -> None:
    engine()
    with pytest.raises(CorruptStateError, match="pickle"):
        library.pickle.loads(b"cos\nsystem\n(S'true'\ntR.")


def test_an_engine_opens_no_pipe_and_starts_no_thread() -> None:
    import threading

    before = threading.active_count()
    assert not hasattr(engine()._library.sync, "_SyncObj__pipeNotifier")
    assert threading.active_count() == before
