"""Where the external etcd is and how to be let in: frozen, checked once. Holds secrets, which its ``repr`` hides.

Secrets come from a file or the environment, never from the command line, which every process of the machine can read.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc

from controlplane.base.errors import ConfigError
from controlplane.client.endpoints import parse_endpoints

__all__ = ["PASSWORD_VARIABLE", "SCHEME", "StoreConfig", "read_password"]

SCHEME: Final = "etcd://"
#: The environment variable with the password of ``--store-user``.
PASSWORD_VARIABLE: Final = "QD_STORE_PASSWORD"  # noqa: S105 - a name, not a secret


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """An etcd cluster as a store.

    Attributes:
        endpoints: ``host:port`` of its members.
        ca, cert, key: PEM files; ``ca`` turns TLS on, the other two are this client's own, both or neither.
        user, password: etcd's own authentication; empty: none.
        lease_ttl_s: how long a control-plane process that died keeps its leadership. Shorter than etcd's own
            fail-over, and a new etcd leader costs the control plane its leader too.
    """

    endpoints: tuple[str, ...]
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    user: str = ""
    password: str = field(default="", repr=False)
    lease_ttl_s: int = 3

    @classmethod
    def parse(
        cls,
        address: str,
        *,
        ca: Path | None = None,
        cert: Path | None = None,
        key: Path | None = None,
        user: str = "",
        password: str = "",
        lease_ttl_s: int = 3,
    ) -> StoreConfig:
        """``etcd://host:2379,host2:2379`` and what belongs to it.

        Raises:
            ConfigError: naming what is wrong; a password in the address is not repeated.
        """
        if not address.startswith(SCHEME):
            raise ConfigError(f"--store {address.partition('@')[2] or address!r}: want {SCHEME}HOST:PORT,HOST:PORT")
        hosts = address.removeprefix(SCHEME).rstrip("/")
        if "@" in hosts:
            raise ConfigError(
                "--store: no user or password in the address, which every process of the machine can read: "
                f"use --store-user, and --store-password-file or the variable {PASSWORD_VARIABLE}"
            )
        config = cls(tuple(parse_endpoints(hosts)), ca, cert, key, user, password, lease_ttl_s)
        config.validate()
        return config

    def validate(self) -> None:
        """Check the relations between the fields.

        Raises:
            ConfigError: naming the setting and what is allowed.
        """
        if (self.cert is None) != (self.key is None):
            raise ConfigError("--store-cert and --store-key: give both or neither")
        if self.cert is not None and self.ca is None:
            raise ConfigError("--store-cert without --store-ca: a server that is not checked is shown no certificate")
        if bool(self.user) != bool(self.password):
            raise ConfigError(
                f"--store-user needs a password, and a password a user: --store-password-file or {PASSWORD_VARIABLE}"
            )
        if not 1 <= self.lease_ttl_s <= 60:
            raise ConfigError(f"--store-lease-s {self.lease_ttl_s}: want 1 to 60")

    def credentials(self) -> grpc.ChannelCredentials | None:
        """What channels are made with; None without TLS.

        Raises:
            ConfigError: a file cannot be read.
        """
        if self.ca is None:
            return None
        return grpc.ssl_channel_credentials(
            root_certificates=_read(self.ca, "--store-ca"),
            private_key=_read(self.key, "--store-key") if self.key is not None else None,
            certificate_chain=_read(self.cert, "--store-cert") if self.cert is not None else None,
        )


def read_password(path: Path | None) -> str:
    """The password, of a file (its first line) or of the environment; empty if there is neither.

    Raises:
        ConfigError: the file cannot be read.
    """
    if path is None:
        return os.environ.get(PASSWORD_VARIABLE, "")
    return _read(path, "--store-password-file").decode().partition("\n")[0].strip()


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{option} {path}: {error.strerror or error}") from error
