"""Which endpoint the next connection goes to: round robin over the ready ones, or the same one for the same client,
whichever agent of the host takes the connection.

Owns the turn and the affinity table of one frontend; time is handed in. Opens nothing. A failed endpoint is set aside
for a moment, so that not every connection has to find out anew; when all are set aside, all are tried.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator

__all__ = ["Balancer"]

_CLIENTS_MAX = 65_536
_ASIDE_S = 1.0

Endpoint = tuple[str, int]


class Balancer:
    """The endpoints of one frontend.

    Args:
        offset: where the round starts: agents that share a VIP start at different places.
    """

    def __init__(self, offset: int = 0) -> None:
        self._endpoints: tuple[Endpoint, ...] = ()
        self._turn = offset
        self._affinity_s = 0
        self._clients: OrderedDict[str, tuple[Endpoint, float]] = OrderedDict()
        self._aside: dict[Endpoint, float] = {}

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """The endpoints connections may go to."""
        return self._endpoints

    def update(self, endpoints: tuple[Endpoint, ...], affinity_s: int) -> frozenset[Endpoint]:
        """Use these from now on; return those that left."""
        gone = frozenset(self._endpoints) - frozenset(endpoints)
        self._endpoints = endpoints
        self._affinity_s = affinity_s
        self._aside = {e: until for e, until in self._aside.items() if e in endpoints}
        for client in [c for c, (endpoint, _) in self._clients.items() if endpoint in gone or not affinity_s]:
            del self._clients[client]
        return gone

    def candidates(self, client_ip: str, now_s: float) -> Iterator[Endpoint]:
        """Endpoints for one connection, best first, each once: the client's own, then the others."""
        own = self._own(client_ip, now_s)
        if own is not None:
            yield own
        in_turn = self._ranked(client_ip) if self._affinity_s else self._next_turn()
        aside = {endpoint for endpoint, until in self._aside.items() if until > now_s}
        for endpoint in (*(e for e in in_turn if e not in aside), *(e for e in in_turn if e in aside)):
            if endpoint != own:
                yield endpoint

    def connected(self, client_ip: str, endpoint: Endpoint, now_s: float) -> None:
        """A connection of that client was made: remember it under affinity, forget that the endpoint had failed."""
        self._aside.pop(endpoint, None)
        if self._affinity_s and endpoint in self._endpoints:
            self._clients[client_ip] = (endpoint, now_s + self._affinity_s)
            self._clients.move_to_end(client_ip)
            if len(self._clients) > _CLIENTS_MAX:
                self._clients.popitem(last=False)

    def failed(self, endpoint: Endpoint, now_s: float) -> None:
        """A connect failed: try others first for a moment."""
        self._aside[endpoint] = now_s + _ASIDE_S

    def _next_turn(self) -> list[Endpoint]:
        count = len(self._endpoints)
        start = self._turn
        self._turn += 1
        return [self._endpoints[(start + i) % count] for i in range(count)]

    def _ranked(self, client_ip: str) -> list[Endpoint]:
        """The endpoints in an order of the client's own, the same in every agent (rendezvous hashing): the kernel gives
        a client's connections now to one agent, now to another, and they do not know each other's tables."""

        def weight(endpoint: Endpoint) -> bytes:
            return hashlib.blake2b(f"{client_ip} {endpoint[0]}:{endpoint[1]}".encode(), digest_size=8).digest()

        return sorted(self._endpoints, key=weight)

    def _own(self, client_ip: str, now_s: float) -> Endpoint | None:
        kept = self._clients.get(client_ip)
        if kept is None:
            return None
        endpoint, until = kept
        if until <= now_s or self._aside.get(endpoint, 0.0) > now_s:
            del self._clients[client_ip]
            return None
        return endpoint
