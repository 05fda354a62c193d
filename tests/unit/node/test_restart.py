"""Restart policy and back-off."""

from __future__ import annotations

import pytest

from node.restart import RestartBackoff, restarts


@pytest.mark.parametrize(
    ("policy", "exit_code", "again"),
    [("Always", 0, True), ("Always", 1, True), ("OnFailure", 0, False), ("OnFailure", 2, True), ("Never", 1, False)],
)
def test_the_policy_decides(policy: str, exit_code: int, again: bool) -> None:
    assert restarts(policy, exit_code) is again


def test_the_first_restart_is_at_once_then_pauses_double_to_five_minutes() -> None:
    backoff = RestartBackoff()
    pauses = [backoff.after_run(0.1) for _ in range(12)]
    assert pauses == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]


def test_a_run_of_ten_minutes_forgives() -> None:
    backoff = RestartBackoff()
    for _ in range(5):
        backoff.after_run(1.0)
    assert backoff.after_run(599.0) == 16.0
    assert backoff.after_run(600.0) == 0.0
