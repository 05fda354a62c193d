"""What every lease must obey: never early, never for ever.

Owns when each lease was granted, renewed, asked to be revoked, and when it went; all in virtual time, which no replica
sees. A promise begins when the request that obtained it was *sent*: whoever was told TTL seconds counts from there.
That all its keys go in one revision, with it, is the model's business.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.sim.violation import ViolationError

__all__ = ["LeaseChecks"]

#: Replicas' clocks run up to so much faster than time.
_CLOCK_RATE = 0.0011
#: From its end to the entry that says so: a tick, a lost proposal and its repetition, a commit.
_SLACK_S = 4.0


@dataclass(slots=True)
class _Life:
    ttl_s: float
    promised_from: float
    #: The last moment at which anybody may have renewed it.
    renewed_until: float
    gone_at: float | None = None
    asked_for: bool = False


class LeaseChecks:
    """The leases of a run."""

    def __init__(self) -> None:
        self._lives: dict[int, _Life] = {}
        #: Leases that went before their client heard of them.
        self._gone_early: dict[int, float] = {}
        self._led_since = 0.0
        self._replaced_at = -1.0
        self.expired = 0
        self.renewed = 0

    def leader_began(self, now: float) -> None:
        """A leader arms every lease anew."""
        self._led_since = max(self._led_since, now)

    def granted(self, lease: int, ttl_s: int, sent_at: float, now: float, *, there: bool = True) -> None:
        """Its client has heard of it. ``there``: the state has it now; a restore may have come between."""
        self._lives[lease] = life = _Life(ttl_s, sent_at, now, gone_at=self._gone_early.pop(lease, None))
        if not there and life.gone_at is None and sent_at <= self._replaced_at:
            life.gone_at, life.asked_for = self._replaced_at, True
        self._never_early(lease, life)

    def renewal_sent(self, lease: int, may_act_until: float) -> None:
        """A renewal is on its way, and may be acted on until then at the latest."""
        life = self._lives[lease]
        life.renewed_until = max(life.renewed_until, may_act_until)

    def renewal_answered(self, lease: int, ttl_s: int, sent_at: float) -> None:
        life = self._lives[lease]
        if ttl_s:
            self.renewed += 1
            life.promised_from = max(life.promised_from, sent_at)
            self._never_early(lease, life)
        elif life.gone_at is None:
            raise ViolationError(f"lease {lease:x} was said to be gone and is not")

    def gone(self, lease: int, now: float, *, asked_for: bool) -> None:
        """Its revocation has been applied."""
        life = self._lives.get(lease)
        if life is None:
            self._gone_early[lease] = now
            return
        life.gone_at, life.asked_for = now, asked_for
        self.expired += not asked_for
        self._never_early(lease, life)

    def replaced(self, leases: dict[int, int], now: float) -> None:
        """A restore has put these (id -> TTL) in the place of all there were: each begins anew, with its full TTL."""
        self._replaced_at = now
        for lease, life in self._lives.items():
            if lease not in leases and life.gone_at is None:
                life.gone_at, life.asked_for = now, True
        for lease, ttl_s in leases.items():
            self._lives[lease] = _Life(ttl_s, now, now)

    def _never_early(self, lease: int, life: _Life) -> None:
        due = life.promised_from + life.ttl_s * (1 - _CLOCK_RATE)
        if life.gone_at is not None and not life.asked_for and life.gone_at < due:
            raise ViolationError(
                f"lease {lease:x} went at {life.gone_at:.3f} s; promised at {life.promised_from:.3f} s for "
                f"{life.ttl_s} s, so not before {due:.3f} s"
            )

    def overdue(self, now: float) -> list[int]:
        """Leases that should have gone by now."""
        return [
            lease
            for lease, life in self._lives.items()
            if life.gone_at is None
            and now > max(life.renewed_until, self._led_since) + life.ttl_s * (1 + _CLOCK_RATE) + _SLACK_S
        ]

    @property
    def alive(self) -> int:
        return sum(1 for life in self._lives.values() if life.gone_at is None)
