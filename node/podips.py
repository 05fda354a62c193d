"""Addresses of pods, from the node's own range. Owns who has which, and that none comes back soon.

Addresses are given in rising order and the count wraps, so an address that was freed is the last to be given again:
a connection meant for a dead pod does not reach a new one. What was given last is kept on disk, as are the ranges.
Loopback addresses (127/8) need no set-up on Linux: a process simply binds them.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path

from controlplane.base.errors import QuarterdeckError
from node.layout import read_json, write_json

__all__ = ["NoAddressError", "PodIPs"]


class NoAddressError(QuarterdeckError):
    """The range is used up, or the node was not told its range yet."""


class PodIPs:
    """The allocator of one node.

    Args:
        path: where the range and the last address given are kept.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: dict[str, str] = {}
        saved = read_json(path) or {}
        self._cidr = str(saved.get("cidr", ""))
        self._last = str(saved.get("last", ""))

    @property
    def cidr(self) -> str:
        """The range, empty before the first Welcome of this node's life."""
        return self._cidr

    def set_cidr(self, cidr: str) -> None:
        """Give from this range from now on; addresses held stay as they are. Raises ValueError, OSError."""
        ipaddress.IPv4Network(cidr)
        if cidr != self._cidr:
            self._cidr, self._last = cidr, ""
            self._save()

    def hold(self, uid: str, ip: str) -> None:
        """An adopted pod has this address."""
        self._held[uid] = ip

    def allocate(self, uid: str) -> str:
        """The pod's address, a new one if it has none.

        Raises:
            NoAddressError: none is free.
            OSError: it could not be noted.
        """
        if uid in self._held:
            return self._held[uid]
        if not self._cidr:
            raise NoAddressError("no pod range yet: the control plane has not welcomed this node")
        network = ipaddress.IPv4Network(self._cidr)
        # The first host address is kept for the node itself, as bridges do elsewhere.
        first, count = int(network.network_address) + 2, network.num_addresses - 3
        taken = set(self._held.values())
        begin = int(ipaddress.IPv4Address(self._last)) + 1 - first if self._last else 0
        for step in range(max(count, 0)):
            ip = str(ipaddress.IPv4Address(first + (begin + step) % count))
            if ip not in taken:
                self._held[uid] = self._last = ip
                self._save()
                return ip
        raise NoAddressError(f"all {max(count, 0)} addresses of {self._cidr} are in use")

    def release(self, uid: str) -> None:
        """The pod is gone."""
        self._held.pop(uid, None)

    def _save(self) -> None:
        write_json(self._path, {"cidr": self._cidr, "last": self._last})
