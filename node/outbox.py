"""Pod statuses on their way to the control plane. Pure: no clock, no network.

Owns what was said last about each pod and what of it is known to be stored. Reports are coalesced per pod: only the
newest counts. A batch that is not acknowledged is said again, and after a reconnect everything is: another replica, or
a control plane restored from a snapshot, may not know what its predecessor acknowledged.
"""

from __future__ import annotations

from typing import Final

from controlplane.pb.quarterdeck.v1.node_pb2 import PodStatusReport, StatusBatch

__all__ = ["BATCH_REPORTS_MAX", "StatusOutbox"]

#: Reports in one message: about 1 MB at the size of an ordinary status.
BATCH_REPORTS_MAX: Final = 500


class StatusOutbox:
    """The newest report of every pod of this node."""

    def __init__(self) -> None:
        self._reports: dict[str, PodStatusReport] = {}
        # Insertion order is sending order.
        self._unsent: dict[str, None] = {}
        self._in_flight: dict[str, PodStatusReport] = {}
        self._sequence = 0

    @property
    def settled(self) -> bool:
        """Everything said is stored."""
        return not self._unsent and not self._in_flight

    @property
    def in_flight(self) -> bool:
        return bool(self._in_flight)

    def put(self, report: PodStatusReport) -> bool:
        """Say this of a pod from now on; False if it was said already."""
        if self._reports.get(report.uid) == report:
            return False
        self._reports[report.uid] = report
        self._unsent[report.uid] = None
        return True

    def drop(self, uid: str) -> None:
        """The pod's object is gone: say no more about it."""
        self._reports.pop(uid, None)
        self._unsent.pop(uid, None)

    def next_batch(self) -> StatusBatch | None:
        """What to send now; None while a batch is in flight or there is nothing to say."""
        if self._in_flight or not self._unsent:
            return None
        uids = list(self._unsent)[:BATCH_REPORTS_MAX]
        for uid in uids:
            del self._unsent[uid]
            self._in_flight[uid] = self._reports[uid]
        self._sequence += 1
        return StatusBatch(sequence=self._sequence, reports=self._in_flight.values())

    def ack(self, sequence: int) -> bool:
        """The batch of that number is stored; False if it is not the one in flight (an old answer)."""
        if sequence != self._sequence or not self._in_flight:
            return False
        for uid, report in self._in_flight.items():
            if report.terminated and self._reports.get(uid) is report:
                del self._reports[uid]
        self._in_flight = {}
        return True

    def resend_all(self) -> None:
        """A new session: everything is to be said again."""
        self._in_flight = {}
        self._unsent = dict.fromkeys(self._reports)
