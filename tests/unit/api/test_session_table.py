"""SessionTable: evidence from reports, whatever their order and whoever sends them."""

from __future__ import annotations

import pytest

from controlplane.api.session_table import Contact, SessionTable
from controlplane.pb.quarterdeck.internal.v1 import sessions_pb2

Session = tuple[str, str, int]  # node, boot id, idle ms


class Reports:
    """A table, and replicas that report to it."""

    def __init__(self) -> None:
        self.table = SessionTable()
        self.table.arm(0.0)
        self._sequences: dict[str, int] = {}

    def send(
        self,
        replica: str,
        now_s: float,
        *sessions: Session,
        departed: tuple[str, str, bool] | None = None,
        boot: str = "",
        sequence: int | None = None,
    ) -> None:
        self._sequences[replica] = self._sequences.get(replica, 0) + 1
        report = sessions_pb2.SessionReport(
            replica=replica,
            replica_boot_id=boot or replica,
            sequence=self._sequences[replica] if sequence is None else sequence,
            sessions=[sessions_pb2.OpenSession(node_name=n, boot_id=b, idle_ms=i) for n, b, i in sessions],
        )
        if departed is not None:
            report.departures.add(node_name=departed[0], boot_id=departed[1], drained=departed[2])
        self.table.report(report, now_s)

    def contact(self, node: str = "n1") -> Contact:
        contact = self.table.contact(node)
        assert contact is not None
        return contact


@pytest.fixture
def reports() -> Reports:
    return Reports()


def test_last_seen_is_the_reports_time_less_the_silence_before_it(reports: Reports) -> None:
    reports.send("r1", 10.0, ("n1", "b", 300))
    assert reports.contact().last_seen_s == pytest.approx(9.7)
    assert reports.contact().open


def test_no_silence_is_counted_from_before_this_table_listened(reports: Reports) -> None:
    reports.table.arm(100.0)
    reports.send("r1", 101.0, ("n1", "b", 60_000))
    assert reports.contact().last_seen_s == 100.0


def test_a_session_missing_from_the_next_report_is_broken(reports: Reports) -> None:
    reports.send("r1", 10.0, ("n1", "b", 0))
    reports.send("r1", 10.5)
    assert (reports.contact().open, reports.contact().broken_since_s) == (False, 10.5)
    reports.send("r1", 11.0)
    assert reports.contact().broken_since_s == 10.5


def test_a_session_opened_elsewhere_first_is_not_broken(reports: Reports) -> None:
    reports.send("r1", 10.0, ("n1", "b", 0))
    reports.send("r2", 10.2, ("n1", "b", 0))
    reports.send("r1", 10.5)
    assert (reports.contact().open, reports.contact().broken_since_s) == (True, None)


def test_a_session_opened_again_is_not_broken_any_more(reports: Reports) -> None:
    reports.send("r1", 10.0, ("n1", "b", 0))
    reports.send("r1", 10.5)
    reports.send("r2", 10.6, ("n1", "b", 0))
    assert (reports.contact().open, reports.contact().broken_since_s) == (True, None)


def test_a_dead_replicas_claim_does_not_hide_that_the_newer_session_broke(reports: Reports) -> None:
    reports.send("r1", 10.0, ("n1", "b", 0))  # and dies
    reports.send("r2", 11.0, ("n1", "b", 0))
    reports.send("r2", 12.0)
    assert (reports.contact().open, reports.contact().broken_since_s) == (False, 12.0)


def test_a_half_open_session_does_not_make_the_node_look_silent(reports: Reports) -> None:
    reports.send("r1", 10.0, ("n1", "b", 0))
    reports.send("r2", 12.0, ("n1", "b", 0))
    reports.send("r1", 12.1, ("n1", "b", 2_100))  # has not noticed yet
    assert reports.contact().last_seen_s == 12.0
    assert reports.contact().source_heard_s == 12.0


def test_sessions_of_a_replica_that_started_again_are_not_broken_by_it(reports: Reports) -> None:
    reports.send("r1", 10.0, ("n1", "b", 0))
    reports.send("r1", 12.0, boot="another", sequence=1)
    assert (reports.contact().open, reports.contact().broken_since_s) == (False, None)


def test_an_overtaken_report_is_ignored(reports: Reports) -> None:
    reports.send("r1", 10.0, ("n1", "b", 0), sequence=5)
    reports.send("r1", 10.1, sequence=4)
    assert reports.contact().open


def test_a_goodbye_is_kept_apart_from_a_break(reports: Reports) -> None:
    reports.send("r1", 10.0, ("n1", "b", 0))
    reports.send("r1", 10.5, departed=("n1", "b", True))
    contact = reports.contact()
    assert (contact.broken_since_s, contact.departed, contact.drained) == (10.5, True, True)


def test_a_repeated_goodbye_of_a_former_start_does_not_excuse_a_later_break(reports: Reports) -> None:
    reports.send("r1", 10.0, ("n1", "b", 0))
    reports.send("r1", 10.5, departed=("n1", "b", False))
    reports.send("r2", 11.0, ("n1", "b2", 0))
    reports.send("r2", 11.5)
    reports.send("r1", 11.6, departed=("n1", "b", False))
    assert (reports.contact().departed, reports.contact().broken_since_s) == (False, 11.5)


def test_arming_forgets_everything(reports: Reports) -> None:
    reports.send("r1", 10.0, ("n1", "b", 0))
    reports.table.arm(20.0)
    assert reports.table.contact("n1") is None
    reports.table.expect("n1", 20.5)
    assert reports.contact() == Contact(known_since_s=20.5)


def test_expecting_a_node_changes_nothing_that_is_known(reports: Reports) -> None:
    reports.send("r1", 10.0, ("n1", "b", 0))
    before = reports.contact()
    reports.table.expect("n1", 30.0)
    assert reports.contact() == before


def test_a_forgotten_node_stays_while_it_has_a_session(reports: Reports) -> None:
    reports.send("r1", 10.0, ("n1", "b", 0))
    reports.table.forget("n1")
    assert reports.contact().open
    reports.send("r1", 11.0)
    reports.table.forget("n1")
    assert reports.table.contact("n1") is None
    reports.send("r1", 12.0)
