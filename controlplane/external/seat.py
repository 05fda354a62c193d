"""Seat: the lease of one control-plane process, which everything it says about itself in the store hangs on.

Owns the granting, renewing and giving up of that lease. Must not know what is attached to it.

Invariant: on this process's own monotonic clock the seat is given up *before* the store can have let it expire: time is
counted from when the renewal that was answered was sent, and a tenth of the TTL is kept back.
"""

from __future__ import annotations

import logging
from typing import Final

from controlplane.base.clock import Clock
from controlplane.base.errors import StatusError
from controlplane.external.connection import RETRIED
from controlplane.pb.etcd import rpc_pb2
from controlplane.store.kv import KVStore

__all__ = ["Seat"]

_log = logging.getLogger("quarterdeck.store")

_RENEWALS_PER_TTL: Final = 3
_KEPT_BACK: Final = 0.1
_RETRY_S: Final = 0.2
_REVOKE_TIMEOUT_MS: Final = 1_000


class Seat:
    """See the module: :meth:`take`, then :meth:`keep`, then :meth:`leave`, as often as need be."""

    def __init__(self, kv: KVStore, *, ttl_s: int, clock: Clock) -> None:
        self._kv = kv
        self._ttl_s = ttl_s
        self._clock = clock
        self._until_s = 0.0
        #: The lease's id; 0: none is held.
        self.lease = 0

    async def take(self) -> None:
        """Be granted a lease, however long that takes.

        Raises:
            StatusError: the store refuses, which waiting does not mend.
        """
        while not self.lease:
            sent_s = self._clock.monotonic()
            try:
                granted = await self._kv.lease_grant(rpc_pb2.LeaseGrantRequest(TTL=self._ttl_s))
            except StatusError as error:
                if error.code not in RETRIED:
                    raise
                _log.warning("event=no-lease reason=%s", error.message)
                await self._clock.sleep(_RETRY_S)
            else:
                self.lease = granted.ID
                self._held(sent_s, granted.TTL)

    async def keep(self) -> str:
        """Renew until the lease is gone, or cannot be said to be there; return why."""
        while True:
            left_s = self._until_s - self._clock.monotonic()
            await self._clock.sleep(min(self._ttl_s / _RENEWALS_PER_TTL, max(0.0, left_s)))
            sent_s = self._clock.monotonic()
            left_ms = int((self._until_s - sent_s) * 1000)
            if left_ms <= 0:
                return "not renewed in time"
            try:
                answer = await self._kv.lease_keep_alive(
                    rpc_pb2.LeaseKeepAliveRequest(ID=self.lease), timeout_ms=left_ms
                )
            except StatusError as error:
                return error.message
            if answer.TTL <= 0:
                return "the lease expired"
            self._held(sent_s, answer.TTL)

    async def leave(self) -> None:
        """Give the lease back, so that others need not wait for it; a store out of reach lets it expire."""
        lease, self.lease = self.lease, 0
        if not lease:
            return
        try:
            await self._kv.lease_revoke(rpc_pb2.LeaseRevokeRequest(ID=lease), timeout_ms=_REVOKE_TIMEOUT_MS)
        except StatusError as error:
            _log.info("event=lease-left-to-expire reason=%s", error.message)

    def _held(self, sent_s: float, ttl_s: int) -> None:
        self._until_s = sent_s + ttl_s * (1 - _KEPT_BACK)
