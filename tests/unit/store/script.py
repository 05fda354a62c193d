"""The language of the text scripts in ``data/``: a command, a line of dashes, what the store shows.

Steps are separated by blank lines. To accept what the store shows now: ``REWRITE=1 pytest tests/unit/store``.
"""

from __future__ import annotations

import shlex

from controlplane.base.errors import StatusError
from controlplane.pb.etcd import kv_pb2
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Command, Reply
from controlplane.store.errors import CompactedError
from controlplane.store.watch import Watcher
from tests.unit.store.support import Driver

__all__ = ["Script", "run_script"]

_TARGETS = {
    "version": (e.Compare.VERSION, "version"),
    "create": (e.Compare.CREATE, "create_revision"),
    "mod": (e.Compare.MOD, "mod_revision"),
    "lease": (e.Compare.LEASE, "lease"),
}
_RESULTS = {"=": e.Compare.EQUAL, "!=": e.Compare.NOT_EQUAL, "<": e.Compare.LESS, ">": e.Compare.GREATER}
_SORTS = e.RangeRequest.SortTarget


def run_script(text: str) -> str:
    """The script with every answer as the store gives it."""
    script = Script()
    steps = [step for step in text.strip().split("\n\n") if step.strip()]
    shown = []
    for step in steps:
        command = step.split("\n----")[0]
        lines = [line for line in command.splitlines() if not line.startswith("#")]
        shown.append(f"{command}\n----\n{script.step(lines)}" if lines else command)
    return "\n\n".join(shown) + "\n"


class Script:
    """One store under a script."""

    def __init__(self) -> None:
        self.driver = Driver()
        self.watchers: dict[str, Watcher] = {}
        self.woken: list[str] = []

    def step(self, lines: list[str]) -> str:
        self.woken = []
        name, *words = shlex.split(lines[0])
        try:
            shown = self._txn(lines[1:]) if name == "txn" else str(getattr(self, f"do_{name}")(*words))
        except StatusError as error:
            shown = f"{error.code.name}: {error.message}"
        except CompactedError as error:
            shown = f"compacted at {error.compact_revision}"
        return "\n".join([shown, *(f"wake {name}" for name in self.woken)])

    # -- commands

    def do_put(self, *words: str) -> str:
        return self._run(Command(put=_put(words)))

    def do_delete(self, *words: str) -> str:
        return self._run(Command(delete_range=_delete(words)))

    def do_get(self, *words: str) -> str:
        return _show_range(self.driver.store.range(_range(words)))

    def do_compact(self, revision: str) -> str:
        return self._run(Command(compact=e.CompactionRequest(revision=int(revision))))

    def do_grant(self, id: str, ttl_s: str) -> str:
        return self._run(Command(lease_grant=e.LeaseGrantRequest(ID=int(id), TTL=int(ttl_s))))

    def do_revoke(self, id: str) -> str:
        return self._run(Command(lease_revoke=e.LeaseRevokeRequest(ID=int(id))))

    def do_lease(self, id: str) -> str:
        lease = self.driver.store.leases.get(int(id))
        if lease is None:
            return "none"
        return f"ttl={lease.ttl_s} keys={b' '.join(lease.keys).decode()}"

    def do_watch(self, name: str, *words: str) -> str:
        keys, flags = _flags(words)
        filters = [
            e.WatchCreateRequest.FilterType.Value(flag.upper()) for flag in ("noput", "nodelete") if flag in flags
        ]
        self.watchers[name] = self.driver.store.watches.create(
            keys[0].encode(),
            _end(keys),
            int(flags.get("start", "0")),
            filters=filters,
            prev_kv="prev" in flags,
            wake=lambda: self.woken.append(name),
        )
        return "synced" if self.watchers[name].synced else "behind"

    def do_poll(self, name: str, max_events: str = "100") -> str:
        watcher = self.watchers[name]
        lines = []
        for revision, events in watcher.poll(int(max_events)):
            lines += [f"{revision}: {_show_event(event)}" for event in events]
        return "\n".join([*lines, f"{'synced' if watcher.synced else 'behind'} progress={watcher.progress}"])

    def do_cancel(self, name: str) -> str:
        self.watchers.pop(name).cancel()
        return f"watchers={len(self.driver.store.watches)}"

    def do_restart(self) -> str:
        """Through a snapshot into a new store; watchers do not survive."""
        before = self.driver.snapshot()
        self.driver = Driver()
        self.driver.store.restore([before])
        self.driver.index = self.driver.store.applied_index
        assert self.driver.snapshot() == before
        return f"rev={self.driver.store.revision}"

    def _run(self, command: Command) -> str:
        return _show_reply(self.driver.run(command))

    def _txn(self, lines: list[str]) -> str:
        request = e.TxnRequest()
        for line in lines:
            part, *words = shlex.split(line)
            if part == "if":
                request.compare.append(_compare(words))
            else:
                (request.success if part == "then" else request.failure).append(_op(words))
        return self._run(Command(txn=request))


def _flags(words: tuple[str, ...] | list[str]) -> tuple[list[str], dict[str, str]]:
    known = {"lease", "prev", "ignore_value", "ignore_lease", "start", "noput", "nodelete", "rev", "limit", "sort"}
    known |= {"desc", "asc", "keys_only", "count_only", "min_mod", "max_mod", "min_create", "max_create"}
    flags = {word.partition("=")[0]: word.partition("=")[2] for word in words if word.partition("=")[0] in known}
    return [word for word in words if word.partition("=")[0] not in known], flags


def _end(keys: list[str]) -> bytes:
    return b"" if len(keys) < 2 else b"\0" if keys[1] == "END" else keys[1].encode()


def _put(words: tuple[str, ...] | list[str]) -> e.PutRequest:
    keys, flags = _flags(words)
    return e.PutRequest(
        key=keys[0].encode(),
        value=keys[1].encode() if len(keys) > 1 else b"",
        lease=int(flags.get("lease", "0")),
        prev_kv="prev" in flags,
        ignore_value="ignore_value" in flags,
        ignore_lease="ignore_lease" in flags,
    )


def _delete(words: tuple[str, ...] | list[str]) -> e.DeleteRangeRequest:
    keys, flags = _flags(words)
    return e.DeleteRangeRequest(key=keys[0].encode(), range_end=_end(keys), prev_kv="prev" in flags)


def _range(words: tuple[str, ...] | list[str]) -> e.RangeRequest:
    keys, flags = _flags(words)
    order = e.RangeRequest.NONE
    if "desc" in flags or "asc" in flags:
        order = e.RangeRequest.DESCEND if "desc" in flags else e.RangeRequest.ASCEND
    return e.RangeRequest(
        key=keys[0].encode(),
        range_end=_end(keys),
        revision=int(flags.get("rev", "0")),
        limit=int(flags.get("limit", "0")),
        sort_order=order,
        sort_target=_SORTS.Value(flags.get("sort", "key").upper()),
        keys_only="keys_only" in flags,
        count_only="count_only" in flags,
        min_mod_revision=int(flags.get("min_mod", "0")),
        max_mod_revision=int(flags.get("max_mod", "0")),
        min_create_revision=int(flags.get("min_create", "0")),
        max_create_revision=int(flags.get("max_create", "0")),
    )


def _compare(words: list[str]) -> e.Compare:
    """``<target> <key> [<range end>] <result> <operand>``."""
    target, key, *end, result, operand = words
    compare = e.Compare(key=key.encode(), range_end=_end([key, *end]), result=_RESULTS[result])
    if target == "value":
        compare.target, compare.value = e.Compare.VALUE, operand.encode()
    else:
        compare.target, field = _TARGETS[target]
        setattr(compare, field, int(operand))
    return compare


def _op(words: list[str]) -> e.RequestOp:
    """An operation, or a nested transaction: ``txn (<compare>) (<then op>) (<else op>)`` with quoted parts."""
    match words[0]:
        case "put":
            return e.RequestOp(request_put=_put(words[1:]))
        case "delete":
            return e.RequestOp(request_delete_range=_delete(words[1:]))
        case "get":
            return e.RequestOp(request_range=_range(words[1:]))
    _, compare, then, otherwise = words
    nested = e.TxnRequest(
        compare=[_compare(shlex.split(compare))],
        success=[_op(shlex.split(then))],
        failure=[_op(shlex.split(otherwise))],
    )
    return e.RequestOp(request_txn=nested)


def _show_kv(kv: kv_pb2.KeyValue) -> str:
    lease = f" lease={kv.lease}" if kv.lease else ""
    return f"{kv.key.decode()}={kv.value.decode()} c{kv.create_revision} m{kv.mod_revision} v{kv.version}{lease}"


def _show_event(event: kv_pb2.Event) -> str:
    previous = f" (was {_show_kv(event.prev_kv)})" if event.HasField("prev_kv") else ""
    return f"{kv_pb2.Event.EventType.Name(event.type)} {_show_kv(event.kv)}{previous}"


def _show_range(response: e.RangeResponse) -> str:
    more = " more" if response.more else ""
    return "\n".join([f"rev={response.header.revision} count={response.count}{more}", *map(_show_kv, response.kvs)])


def _show_op(response: e.ResponseOp) -> str:
    kind = response.WhichOneof("response")
    if kind == "response_range":
        return _show_range(response.response_range)
    if kind == "response_txn":
        return _show_txn(response.response_txn)
    if kind == "response_put":
        return _show_put(response.response_put)
    return _show_delete(response.response_delete_range)


def _show_put(response: e.PutResponse) -> str:
    was = f" (was {_show_kv(response.prev_kv)})" if response.HasField("prev_kv") else ""
    return f"put rev={response.header.revision}{was}"


def _show_delete(response: e.DeleteRangeResponse) -> str:
    was = "".join(f"\n(was {_show_kv(kv)})" for kv in response.prev_kvs)
    return f"deleted={response.deleted} rev={response.header.revision}{was}"


def _show_txn(response: e.TxnResponse) -> str:
    head = f"{'then' if response.succeeded else 'else'} rev={response.header.revision}"
    inner = "\n".join(map(_show_op, response.responses))
    return "\n".join([head, *(f"  {line}" for line in inner.splitlines())])


def _show_reply(reply: Reply) -> str:
    match reply.WhichOneof("result"):
        case "rejection":
            return f"rejected {reply.rejection.code}: {reply.rejection.message}"
        case "put":
            return _show_put(reply.put)
        case "delete_range":
            return _show_delete(reply.delete_range)
        case "txn":
            return _show_txn(reply.txn)
        case kind:
            return f"ok rev={getattr(reply, str(kind)).header.revision}"
