"""Leadership by a leased key: who writes ``/quarterdeck/leader`` first, leads for as long as the key is its own.

Owns the campaign and the news of its outcome. Must not know what leading means. As on our own store the key's mod
revision fences every write of the reign, so that a process that has lost the key without noticing writes nothing; the
lease only decides how soon another may begin.

Terms are counted in ``/quarterdeck/term``, a key without a lease, in the transaction that takes the leader key: they
grow by one with each reign, whoever reigns.
"""

from __future__ import annotations

import logging
from typing import Final

from controlplane.base.clock import Clock
from controlplane.base.errors import Code, StatusError
from controlplane.client.fenced import LEADER_KEY
from controlplane.external import metrics
from controlplane.external.connection import RETRIED
from controlplane.external.roster import Leader, Roster, leader_of_key, leader_value
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.raft.types import LeadershipListener
from controlplane.store.kv import KVStore

__all__ = ["TERM_KEY", "Election"]

_log = logging.getLogger("quarterdeck.store")

TERM_KEY: Final = b"/quarterdeck/term"
_RETRY_S: Final = 0.1


class Election:
    """See the module."""

    def __init__(self, kv: KVStore, roster: Roster, *, name: str, clock: Clock) -> None:
        self._kv = kv
        self._roster = roster
        self._name = name
        self._clock = clock
        self._listeners: list[LeadershipListener] = []
        #: What this process holds; None: it does not lead.
        self.held: Leader | None = None

    def on_leadership(self, listener: LeadershipListener) -> None:
        """Called with (term, True) when this process has won, and with (term, False) as soon as it leads no more."""
        self._listeners.append(listener)
        if self.held is not None:
            listener(self.held.term, True)

    async def stand(self, lease: int) -> None:
        """Campaign whenever nobody leads, and lead when it is won, until cancelled or the lease is found gone.

        Raises:
            StatusError: the store refuses, which waiting does not mend.
        """
        while True:
            if not self._roster.revision or (self._roster.leader is not None and self._roster.leader.lease != lease):
                await self._roster.change()
                continue
            try:
                won = await self._campaign(lease)
            except StatusError as error:
                if error.code is Code.NOT_FOUND:
                    return  # the lease
                if error.code not in RETRIED:
                    raise
                _log.warning("event=campaign-failed reason=%s", error.message)
                await self._clock.sleep(_RETRY_S)
                continue
            if won is None:
                await self._clock.sleep(_RETRY_S)  # another was faster; the roster will say so in a moment
                continue
            await self._reign(won)

    async def _campaign(self, lease: int) -> Leader | None:
        """One attempt; None: somebody else holds the key, or came between."""
        read = await self._kv.txn(e.TxnRequest(success=[_get(LEADER_KEY), _get(TERM_KEY)]))
        leaders, terms = (answer.response_range.kvs for answer in read.responses)
        if leaders:
            found = leader_of_key(leaders[0])
            return found if found.lease == lease else None  # ours: an earlier attempt, of which no answer came
        counted = terms[0].version if terms else 0
        term = counted + 1
        written = await self._kv.txn(
            e.TxnRequest(
                compare=[
                    e.Compare(key=LEADER_KEY, target=e.Compare.CREATE, result=e.Compare.EQUAL, create_revision=0),
                    e.Compare(key=TERM_KEY, target=e.Compare.VERSION, result=e.Compare.EQUAL, version=counted),
                ],
                success=[
                    _put(LEADER_KEY, leader_value(self._name, term), lease),
                    _put(TERM_KEY, str(term).encode(), 0),
                ],
            )
        )
        return Leader(self._name, term, written.header.revision, lease) if written.succeeded else None

    async def _reign(self, won: Leader) -> None:
        """Until the key is seen to be another's, or nobody's, or this is cancelled."""
        _log.info("event=elected name=%s term=%d fence=%d", self._name, won.term, won.mod_revision)
        self.held = won
        metrics.LEADING.set(1)
        self._announce(won.term, leading=True)
        try:
            # Until the roster has come to our own write it says nothing about it.
            while self._roster.revision < won.mod_revision or self._holds(won):
                await self._roster.change()
        finally:
            _log.info("event=deposed name=%s term=%d", self._name, won.term)
            self.held = None
            metrics.LEADING.set(0)
            self._announce(won.term, leading=False)

    def _holds(self, won: Leader) -> bool:
        leader = self._roster.leader
        return leader is not None and leader.mod_revision == won.mod_revision

    def _announce(self, term: int, *, leading: bool) -> None:
        for listener in self._listeners:
            listener(term, leading)


def _get(key: bytes) -> e.RequestOp:
    return e.RequestOp(request_range=e.RangeRequest(key=key))


def _put(key: bytes, value: bytes, lease: int) -> e.RequestOp:
    return e.RequestOp(request_put=e.PutRequest(key=key, value=value, lease=lease))
