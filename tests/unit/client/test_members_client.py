"""MembersClient, by what a cluster answers: promoting a learner that is not ready yet."""

from __future__ import annotations

import pytest

from controlplane.api.errors import ApiError, UnavailableError
from controlplane.base.clock import ManualClock
from controlplane.base.errors import Code
from controlplane.client.members_client import MembersClient

BEHIND = "etcdserver: can only promote a learner member which is in sync with leader"
UNSTARTED = "etcdserver: re-configuration failed due to not enough started members"
NO_LEARNER = "etcdserver: can only promote a learner member"


class Asked(MembersClient):
    """Its cluster answers a promotion with these, one after the other: a refusal, or None for done."""

    def __init__(self, *answers: ApiError | None) -> None:
        super().__init__([])
        self.answers = list(answers)

    async def promote(self, member_id: int) -> None:
        assert member_id == 7
        if (answer := self.answers.pop(0)) is not None:
            raise answer


class Impatient(ManualClock):
    """Whoever sleeps has slept."""

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)


def refused(text: str, code: Code = Code.FAILED_PRECONDITION) -> ApiError:
    return ApiError(code, text)


async def test_a_learner_is_promoted_once_it_has_started_and_caught_up() -> None:
    client = Asked(
        refused(UNSTARTED), UnavailableError(Code.UNAVAILABLE, "etcdserver: unhealthy cluster"), refused(BEHIND), None
    )
    clock = Impatient()
    await client.promote_within(7, 60.0, clock)
    assert client.answers == []
    assert 0 < clock.monotonic() - 1_000.0 < 60


async def test_when_the_time_is_over_the_last_refusal_is_told() -> None:
    clock = Impatient()
    with pytest.raises(ApiError, match="in sync"):
        await Asked(*(refused(BEHIND) for _ in range(100))).promote_within(7, 10.0, clock)
    assert 10 <= clock.monotonic() - 1_000.0 < 11


async def test_without_time_it_is_asked_once() -> None:
    client = Asked(refused(BEHIND), None)
    with pytest.raises(ApiError, match="in sync"):
        await client.promote_within(7, 0, Impatient())
    assert client.answers == [None]


async def test_what_waiting_does_not_change_is_told_at_once() -> None:
    for refusal in (refused("etcdserver: member not found", Code.NOT_FOUND), refused(NO_LEARNER)):
        client = Asked(refusal, None)
        with pytest.raises(ApiError, match=refusal.message):
            await client.promote_within(7, 60.0, Impatient())
        assert client.answers == [None]


async def test_a_promotion_of_unknown_fate_that_was_done_is_done() -> None:
    lost = UnavailableError(Code.UNAVAILABLE, "etcdserver: request timed out", unknown_outcome=True)
    await Asked(lost, refused(NO_LEARNER)).promote_within(7, 60.0, Impatient())
