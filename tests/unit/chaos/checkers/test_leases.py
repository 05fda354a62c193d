"""Leases and locks: early, late, in pieces, and two holders are caught; honest ones pass, under a new leader too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from chaos.records import Hold
from tests.unit.chaos.checkers.contests import BASE, Contest, broken, findings

EARLY = "leases: none ends early"
LATE = "leases: none outlives its time"
ONCE = "leases: all keys go in one revision"
LOCK = "locks: one holder at a time, by fencing token"


def leased(*, lives_s: float = 2.3, renew: bool = True, new_term: bool = False, together: bool = True) -> Contest:
    made = Contest()
    made.lease_op("grant", 7)
    for key in ("l1", "l2"):
        made.put(key, key, part="lease", lease=7)
    if renew:
        made.wait(1.0)
        made.lease_op("keepalive", 7)
    if new_term:
        made.term += 1
        made.put("other", "x")
    made.wait(lives_s)
    if together:
        made.expire("l1", "l2")
    else:
        made.expire("l1")
        made.expire("l2")
    made.wait(1.0)
    made.progress()
    return made


def test_a_lease_that_ends_in_its_time_passes() -> None:
    found = findings(leased().history())
    assert broken(leased().history()) == set()
    assert [found[rule].checked for rule in (EARLY, LATE, ONCE)] == [2, 2, 1]


def test_an_early_end_is_caught() -> None:
    assert broken(leased(lives_s=1.8).history()) == {EARLY}


def test_a_renewal_counts_from_when_it_was_sent() -> None:
    made = leased(lives_s=1.97)
    assert broken(made.history()) == {EARLY}
    made = leased(lives_s=1.999)
    assert broken(made.history()) == set()


def test_a_renewal_whose_answer_came_after_the_end_promised_nothing_before() -> None:
    made = leased(lives_s=2.3, renew=False)
    answered_late = made.ops[0].call_ns + int(2.2e9)
    made.ops.append(
        replace(made.ops[0], id=99, kind="keepalive", call_ns=answered_late, return_ns=answered_late + int(9e9))
    )
    assert EARLY not in broken(made.history())


def test_a_lease_cut_short_by_a_change_of_leader_is_caught() -> None:
    assert broken(leased(lives_s=1.5, new_term=True).history()) == {EARLY}
    found = findings(leased(lives_s=2.3, new_term=True).history())
    assert found[EARLY].note == "2 over a change of leader"


def test_a_late_end_is_caught() -> None:
    assert broken(leased(lives_s=8.0).history()) == {LATE}


def test_a_change_of_leader_or_an_outage_lets_it_begin_anew() -> None:
    assert broken(leased(lives_s=6.9, new_term=True).history()) == set()
    made = leased(lives_s=8.0)
    made.wait(1.0)
    made.put("other", "x")  # the first acknowledged write since the lease was attached: nothing worked meanwhile
    assert broken(made.history()) == set()


def test_a_lease_that_never_ends_is_caught() -> None:
    made = Contest()
    made.lease_op("grant", 7)
    made.put("l1", "l1", part="lease", lease=7)
    for _ in range(20):
        made.wait(0.5)
        made.put("other", f"{len(made.ops)}")
    assert broken(made.history()) == {LATE}


def test_a_lease_still_in_its_time_at_the_end_is_not_judged() -> None:
    made = Contest()
    made.lease_op("grant", 7)
    made.put("l1", "l1", part="lease", lease=7)
    made.wait(1.0)
    assert broken(made.history()) == set()


def test_keys_that_go_one_after_the_other_are_caught() -> None:
    assert broken(leased(together=False).history()) == {ONCE}


def test_a_revoked_lease_may_end_at_once() -> None:
    made = leased(lives_s=0.1)
    revoked = next(op for op in made.ops if op.kind == "keepalive")
    made.ops.append(replace(revoked, id=99, kind="revoke", call_ns=revoked.return_ns + 1))
    assert broken(made.history()) == set()


# -- locks ------------------------------------------------------------------------------------------------------------


def take(made: Contest, who: str) -> int:
    op = made.txn([("lock", "create", 0)], [("put", "lock", who, "7")], part="lock")
    return op.revision if op.succeeded else 0


def write(made: Contest, token: int, value: str, **more: Any) -> bool | None:
    return made.txn([("lock", "create", token)], [("put", "res", value)], part="lock", **more).succeeded


def locked() -> tuple[Contest, int, int]:
    """One holder after the other; the first's lease ran out while it was stalled."""
    made = Contest()
    first = take(made, "k1")
    assert write(made, first, "1:a")
    assert take(made, "k2") == 0
    made.expire("lock")
    second = take(made, "k2")
    assert write(made, second, "2:a")
    assert write(made, first, "1:b") is False
    assert write(made, second, "2:b")
    made.holds = [
        Hold("k1", f"{BASE}lock", first, 7, 100, 900), Hold("k2", f"{BASE}lock", second, 8, 500, 1000),
    ]  # fmt: skip
    return made, first, second


def test_a_stalled_holder_that_is_refused_is_no_fault_and_is_counted() -> None:
    made, *_ = locked()
    assert broken(made.history()) == set()
    assert findings(made.history())[LOCK].note == "1 times two believed to hold it, 1 late writes refused"


def test_a_write_of_a_holder_that_has_lost_the_lock_is_caught() -> None:
    made, *_ = locked()
    history = made.history()
    late = next(op for op in history.ops if op.then and op.then[0][2] == "1:b")
    history.ops = [replace(op, succeeded=True, results=(None,)) if op.id == late.id else op for op in history.ops]
    assert LOCK in broken(history)


def test_two_holders_at_once_are_caught() -> None:
    made, first, _ = locked()
    made._apply({f"{BASE}res": "1:c"})
    made._done(
        "txn", "res", "ok", "lock", succeeded=True, compares=[(f"{BASE}lock", "create", first)],
        then=[("put", f"{BASE}res", "1:c")], results=[None],
    )  # fmt: skip
    assert LOCK in broken(made.history())


def test_a_lock_taken_while_another_holds_it_is_caught() -> None:
    made, *_ = locked()
    made._apply({f"{BASE}lock": "k3"})
    made._done(
        "txn", "lock", "ok", "lock", succeeded=True, compares=[(f"{BASE}lock", "create", 0)],
        then=[("put", f"{BASE}lock", "k3", "7")], results=[None],
    )  # fmt: skip
    assert "shared keys: compares are judged by the state they met" in broken(made.history())
