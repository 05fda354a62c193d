"""Addresses as text: ``host:port``. Owns their form; opens nothing."""

from __future__ import annotations

from controlplane.base.errors import ConfigError

__all__ = ["split_address"]


def split_address(address: str) -> tuple[str, int]:
    """``"127.0.0.1:7401"`` -> ``("127.0.0.1", 7401)``.

    Raises:
        ConfigError: it is not ``host:port`` with a port of 0..65535.
    """
    host, separator, port = address.rpartition(":")
    if not separator or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ConfigError(f"address {address!r}: want HOST:PORT with a port of 0..65535, such as 127.0.0.1:7401")
    return host.strip("[]"), int(port)
