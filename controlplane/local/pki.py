"""The certificates of a cluster in a folder: what ``qd certs`` and a local cluster keep them in.

Layout::

    pki/                    0700
      ca.crt ca.key         the certificate authority; whoever has the key is the cluster's master
      admin.crt admin.key   the administrator (group system:masters)
      members/NAME.crt .key
      nodes/NAME.crt .key
      users/NAME.crt .key

Owns the layout and renewal: a renewed certificate has a new key, and the subject and names of the old one. Running
processes notice by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from controlplane.base.clock import Clock, SystemClock
from controlplane.base.errors import ConfigError
from controlplane.base.identity import ADMINS, Identity, IdentityKind, user
from controlplane.base.pki import CA_DAYS, LEAF_DAYS, Authority, Certificate, read_certificate
from controlplane.transport.tls import TlsFiles

__all__ = ["ADMIN", "FOLDER", "Issued", "Pki"]

#: Its name under a cluster's folder.
FOLDER = "pki"
ADMIN = user("admin", (ADMINS,))
_GROUPS = {IdentityKind.MEMBER: "members", IdentityKind.NODE: "nodes", IdentityKind.USER: "users"}


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and the file it is in."""

    path: Path
    certificate: Certificate


class Pki:
    """The certificates under ``folder``, which has an authority."""

    def __init__(self, folder: Path, clock: Clock | None = None) -> None:
        self.folder = folder
        self.ca = folder / "ca.crt"
        self._ca_key = folder / "ca.key"
        self._clock = clock or SystemClock()

    @classmethod
    def create(cls, folder: Path, *, days: int = CA_DAYS, force: bool = False, clock: Clock | None = None) -> Pki:
        """A new authority, and the administrator's certificate.

        Raises:
            ConfigError: there is one already (unless ``force``), or the folder cannot be written.
        """
        made = cls(folder, clock)
        if made.exists and not force:
            raise ConfigError(
                f"{made.ca} exists: a new authority would lock out everybody with a certificate of the old one. "
                "If that is what you want: --force, then renew all certificates"
            )
        if days < 1:
            raise ConfigError(f"validity of {days} days: want at least 1")
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.chmod(0o700)
        except OSError as error:
            raise ConfigError(f"cannot write {folder}: {error.strerror or error}") from error
        authority = Authority.create("quarterdeck-ca", now_ms=made._clock.wall_ms(), days=days)
        authority.pair.save(made.ca, made._ca_key)
        made.issue(ADMIN)
        return made

    @property
    def exists(self) -> bool:
        """Whether there is an authority."""
        return self.ca.is_file()

    @property
    def admin(self) -> TlsFiles:
        """The administrator's files."""
        return self.files(ADMIN)

    def files(self, identity: Identity) -> TlsFiles:
        """Where the certificate of ``identity`` is, or would be."""
        folder = self.folder if identity == ADMIN else self.folder / _GROUPS[identity.kind]
        return TlsFiles(self.ca, folder / f"{identity.name}.crt", folder / f"{identity.name}.key")

    def issue(self, identity: Identity, names: Sequence[str] = (), *, days: int = LEAF_DAYS) -> Issued:
        """A certificate for ``identity``, in place of one it may have.

        Raises:
            ConfigError: there is no authority here, or what it is asked for is no good.
        """
        if not self.exists:
            raise ConfigError(f"no certificate authority in {self.folder}; make one with: qd certs init")
        pair = Authority.load(self.ca, self._ca_key).issue(
            identity, names=names, now_ms=self._clock.wall_ms(), days=days
        )
        files = self.files(identity)
        pair.save(files.cert, files.key)
        return Issued(files.cert, read_certificate(pair.certificate))

    def ensure(self, identity: Identity, names: Sequence[str], *, left_days: int = 30) -> TlsFiles:
        """The files of ``identity``, made or renewed if they are missing or end within ``left_days``."""
        files = self.files(identity)
        if not (files.cert.is_file() and files.key.is_file()) or self.left_s(files.cert) < left_days * 86_400:
            self.issue(identity, names)
        return files

    def left_s(self, path: Path) -> float:
        """Seconds until a certificate ends; negative if it has."""
        return self._read(path).not_after_s - self._clock.wall_ms() / 1000

    def renew(self, path: Path, *, days: int = LEAF_DAYS) -> Issued:
        """A certificate like the one in the file, in its place. Raises ConfigError."""
        old = self._read(path)
        return self.issue(old.identity, old.names, days=days)

    def all(self) -> list[Issued]:
        """Every certificate, the authority's first."""
        parts = [self.ca, self.admin.cert]
        parts += [path for group in _GROUPS.values() for path in sorted((self.folder / group).glob("*.crt"))]
        return [Issued(path, self._read(path)) for path in parts if path.is_file()]

    def _read(self, path: Path) -> Certificate:
        try:
            return read_certificate(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
