"""Alarms as replicated state: which members have said that something is wrong with them.

Owns the table, what an alarm forbids, and its listeners. Must not know how an alarm comes about: a proposer raises it
(a quota that is full, a hash that differs), an operator clears it, both through the log.

* NOSPACE, of any member: whatever makes the state bigger is refused in apply, on every replica alike. Reads, deletes,
  compaction, and leases running out go on, so that an operator can make room.
* CORRUPT, raised by a client for any member: whatever reads or changes the state is refused, on every replica alike,
  until it is cleared. Nobody stops for it: what a client says is no finding.
* A verdict (``condemn``) is a finding of the replicas' own (``etcd.integrity``): one member's state is not what the log
  says. Apply goes on, for the state of everybody else is right; the condemned member must not serve, and stops. It is
  listed as the member's CORRUPT alarm, and cleared as one.

Source of the rules: etcd server/etcdserver/apply (the "capped" and the "corrupt" applier). Listeners are called
synchronously, after the change, in apply; they must not write to the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Command

__all__ = ["AlarmListener", "Alarms", "grows", "touches"]

AlarmListener = Callable[[], None]

_T = TypeVar("_T", int, tuple[int, e.AlarmType.ValueType])

#: What etcd refuses while a CORRUPT alarm is raised; a lease that ran out is revoked when it is cleared.
_TOUCHES: Final = frozenset(("put", "delete_range", "txn", "compact", "lease_grant", "lease_revoke", "lease_expire"))


class Alarms:
    """(member id, alarm type) pairs, and the ids of condemned members; both ordered."""

    def __init__(self) -> None:
        self._declared: tuple[tuple[int, e.AlarmType.ValueType], ...] = ()
        self._condemned: tuple[int, ...] = ()
        self._listeners: list[AlarmListener] = []

    def __bool__(self) -> bool:
        return bool(self._declared or self._condemned)

    @property
    def raised(self) -> list[e.AlarmMember]:
        """Every alarm that is raised, verdicts among them."""
        verdicts = ((member_id, e.CORRUPT) for member_id in self._condemned)
        return _members(_in_order((*verdicts, *self._declared)))

    @property
    def declared(self) -> list[e.AlarmMember]:
        """Alarms that are no verdicts."""
        return _members(self._declared)

    @property
    def condemned(self) -> tuple[int, ...]:
        """Members that must not serve, and stop."""
        return self._condemned

    @property
    def no_space(self) -> bool:
        """Whether anything that makes the state bigger is refused."""
        return any(kind == e.NOSPACE for _, kind in self._declared)

    @property
    def corrupt(self) -> bool:
        """Whether a client has declared the cluster corrupt: nothing is read or changed, by anybody."""
        return any(kind == e.CORRUPT for _, kind in self._declared)

    def has(self, member_id: int, kind: e.AlarmType.ValueType) -> bool:
        """Whether this very alarm is raised, and not as a verdict."""
        return (member_id, kind) in self._declared

    def listen(self, listener: AlarmListener) -> Callable[[], None]:
        """Call ``listener`` on every change from now on; the returned function ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def change(self, request: e.AlarmRequest) -> list[e.AlarmMember]:
        """Raise or clear one; what was changed, or, as in etcd, is raised already. Clearing what is not raised does
        nothing."""
        member_id, kind = alarm = (request.memberID, request.alarm)
        if request.action == e.AlarmRequest.ACTIVATE:
            self._set((*self._declared, alarm), self._condemned)
        else:
            others = [other for other in self._condemned if kind != e.CORRUPT or other != member_id]
            if not self._set((other for other in self._declared if other != alarm), others):
                return []
        return [e.AlarmMember(memberID=member_id, alarm=kind)]

    def condemn(self, member_id: int) -> list[e.AlarmMember]:
        """A verdict on a member's state: it must not serve any more. The alarm as which it is listed."""
        self._set(self._declared, (*self._condemned, member_id))
        return [e.AlarmMember(memberID=member_id, alarm=e.CORRUPT)]

    def replace(self, alarms: Iterable[e.AlarmMember], condemned: Iterable[int]) -> None:
        """Take the tables of a restored snapshot; listeners stay."""
        self._set([(alarm.memberID, alarm.alarm) for alarm in alarms], condemned)

    def _set(self, declared: Iterable[tuple[int, e.AlarmType.ValueType]], condemned: Iterable[int]) -> bool:
        """Whether that is a change, of which listeners are told."""
        before = (self._declared, self._condemned)
        self._declared, self._condemned = _in_order(declared), _in_order(condemned)
        if (self._declared, self._condemned) == before:
            return False
        for listener in tuple(self._listeners):
            listener()
        return True


def _in_order(items: Iterable[_T]) -> tuple[_T, ...]:
    return tuple(sorted(dict.fromkeys(items)))


def _members(alarms: Iterable[tuple[int, e.AlarmType.ValueType]]) -> list[e.AlarmMember]:
    return [e.AlarmMember(memberID=member_id, alarm=kind) for member_id, kind in alarms]


def grows(command: Command) -> bool:
    """Whether a command may make the state bigger: it is refused while there is no space."""
    match command.WhichOneof("op"):
        case "put" | "lease_grant":
            return True
        case "txn":
            return _puts(command.txn)
    return False


def touches(command: Command) -> bool:
    """Whether a command reads or changes keys or leases: it is refused while the cluster is declared corrupt."""
    return command.WhichOneof("op") in _TOUCHES


def _puts(request: e.TxnRequest) -> bool:
    return any(
        op.HasField("request_put") or (op.HasField("request_txn") and _puts(op.request_txn))
        for op in (*request.success, *request.failure)
    )
