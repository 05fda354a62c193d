"""TCP ports of this machine: whether one is free, and one that is. Knows nothing of clusters."""

from __future__ import annotations

import socket

from controlplane.base.addresses import split_address

__all__ = ["free_port", "is_free"]


def is_free(address: str) -> bool:
    """Whether a program could listen on ``host:port`` now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(split_address(address))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port of the loopback that nobody listens on at this moment; nothing keeps it so."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
