"""A certificate authority for tests, in a folder: who it issues to, and under which files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from controlplane.base.clock import SystemClock
from controlplane.base.identity import ADMINS, Identity, user
from controlplane.base.pki import Authority, KeyPair
from controlplane.transport.tls import TlsFiles

__all__ = ["TestPki"]

NAMES = ("127.0.0.1", "localhost")
_DAY_MS = 86_400_000


class TestPki:
    """One authority under ``folder``; every identity gets files of its own there."""

    __test__ = False

    def __init__(self, folder: Path, name: str = "test-ca") -> None:
        self.folder = folder
        self.authority = Authority.create(name, now_ms=SystemClock().wall_ms())
        self.ca = folder / f"{name}.crt"
        self.authority.pair.save(self.ca, folder / f"{name}.key")

    def issue(self, identity: Identity, *, days_ago: int = 0, days: int = 30) -> KeyPair:
        """A certificate that begins ``days_ago``."""
        names = () if identity.name in {"admin", "alice"} else NAMES
        now_ms = SystemClock().wall_ms() - days_ago * _DAY_MS
        return self.authority.issue(identity, names=names, now_ms=now_ms, days=days)

    def files(self, identity: Identity, *, days_ago: int = 0, days: int = 30) -> TlsFiles:
        """The same, saved; a second call replaces it."""
        certificate = self.folder / f"{identity.kind}-{identity.name}.crt"
        key = certificate.with_suffix(".key")
        self.issue(identity, days_ago=days_ago, days=days).save(certificate, key)
        return TlsFiles(self.ca, certificate, key)

    def admin(self) -> TlsFiles:
        """The administrator's."""
        return self.files(user("admin", (ADMINS,)))

    def foreign(self, other: TestPki, identity: Identity) -> TlsFiles:
        """A certificate of ``other``, whose holder trusts this authority."""
        return dataclasses.replace(other.files(identity), ca=self.ca)
