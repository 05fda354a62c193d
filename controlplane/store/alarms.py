"""Alarms as replicated state: which members have said that something is wrong with them.

Owns the table, what an alarm forbids, and its listeners. Must not know how an alarm comes about: a proposer raises it
(a quota that is full, a hash that differs), an operator clears it, both through the log.

* NOSPACE, of any member: whatever makes the state bigger is refused in apply, on every replica alike. Reads, deletes,
  compaction, and leases running out go on, so that an operator can make room.
* CORRUPT names the member whose state is not what the log says (0: all of them). Apply goes on, for the state of
  everybody else is right; it is the named member that must not serve (``etcd.integrity``).

Source of the rules: etcd server/etcdserver/apply (the "capped" applier). Listeners are called synchronously, after the
change, in apply; they must not write to the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Command

__all__ = ["AlarmListener", "Alarms", "grows"]

AlarmListener = Callable[[], None]


class Alarms:
    """(member id, alarm type) pairs, ordered."""

    def __init__(self) -> None:
        self._raised: tuple[tuple[int, e.AlarmType.ValueType], ...] = ()
        self._listeners: list[AlarmListener] = []

    def __bool__(self) -> bool:
        return bool(self._raised)

    @property
    def raised(self) -> list[e.AlarmMember]:
        """Every alarm that is raised."""
        return [e.AlarmMember(memberID=member_id, alarm=kind) for member_id, kind in self._raised]

    @property
    def no_space(self) -> bool:
        """Whether anything that makes the state bigger is refused."""
        return any(kind == e.NOSPACE for _, kind in self._raised)

    def has(self, member_id: int, kind: e.AlarmType.ValueType) -> bool:
        """Whether this very alarm is raised."""
        return (member_id, kind) in self._raised

    def corrupt(self, member_id: int) -> bool:
        """Whether this member must not serve."""
        return any(kind == e.CORRUPT and who in (member_id, 0) for who, kind in self._raised)

    def listen(self, listener: AlarmListener) -> Callable[[], None]:
        """Call ``listener`` on every change from now on; the returned function ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def change(self, request: e.AlarmRequest) -> list[e.AlarmMember]:
        """Raise or clear one; what was changed, or, as in etcd, is raised already. Clearing what is not raised does
        nothing."""
        alarm = (request.memberID, request.alarm)
        if request.action == e.AlarmRequest.ACTIVATE:
            if alarm not in self._raised:
                self._set((*self._raised, alarm))
        elif alarm in self._raised:
            self._set(other for other in self._raised if other != alarm)
        else:
            return []
        return [e.AlarmMember(memberID=request.memberID, alarm=request.alarm)]

    def replace(self, alarms: Iterable[e.AlarmMember]) -> None:
        """Take the table of a restored snapshot; listeners stay."""
        self._set((alarm.memberID, alarm.alarm) for alarm in alarms)

    def _set(self, raised: Iterable[tuple[int, e.AlarmType.ValueType]]) -> None:
        self._raised = tuple(sorted(raised))
        for listener in tuple(self._listeners):
            listener()


def grows(command: Command) -> bool:
    """Whether a command may make the state bigger: it is refused while there is no space."""
    match command.WhichOneof("op"):
        case "put" | "lease_grant":
            return True
        case "txn":
            return _puts(command.txn)
    return False


def _puts(request: e.TxnRequest) -> bool:
    return any(
        op.HasField("request_put") or (op.HasField("request_txn") and _puts(op.request_txn))
        for op in (*request.success, *request.failure)
    )
