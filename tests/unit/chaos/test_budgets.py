"""Budgets as an experiment writes them."""

from __future__ import annotations

import pytest

from chaos.budgets import Budgets, budgets_of_act
from controlplane.base.errors import ConfigError


def test_what_is_not_said_has_its_default_and_null_is_not_judged() -> None:
    found = Budgets.of({"leader_s": 2, "write_gap_s": None})
    assert (found.leader_s, found.write_gap_s, found.requests_failed, found.replaced_s) == (2, None, 0, None)


def test_where_downtime_is_expected_only_what_is_given_is_judged() -> None:
    found = Budgets.of({"downtime": True, "operations_failed": 3})
    assert (found.write_gap_s, found.operations_failed, found.operations_unknown) == (None, 3, None)
    assert found.requests_failed == 0


@pytest.mark.parametrize(
    ("given", "complaint"),
    [({"gap": 1}, "'gap' is unknown"), ({"leader_s": "soon"}, "leader_s"), ({"leader_s": -1}, "leader_s"),
     ({"write_gap_s": float("nan")}, "write_gap_s"),
     ({"downtime": 1}, "downtime"), ({"pods_restarted": True}, "pods_restarted")],
)  # fmt: skip
def test_a_budget_that_is_none_is_refused_by_name(given: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Budgets.of(given)


def test_histories_from_before_budgets_keep_theirs() -> None:
    assert budgets_of_act("disaster").write_gap_s == 15.0
    assert budgets_of_act("node-kill").replaced_s == 10.0
    assert budgets_of_act("anything") == Budgets()
