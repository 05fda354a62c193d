"""Key files: an identity (secret) as `age-keygen` writes it, and recipients (public), one a line.

The secret key stays in its file, mode 0600; it is passed around as a path and shown nowhere.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from controlplane.backup.bech32 import bech32_decode, bech32_encode
from controlplane.base.clock import SystemClock
from controlplane.base.errors import ConfigError

__all__ = ["generate_key_file", "parse_recipient", "read_identities", "read_recipients"]

_IDENTITY_KIND: Final = "age-secret-key-"
_RECIPIENT_KIND: Final = "age"
_KEY_BYTES: Final = 32
_FILE_BYTES_MAX: Final = 1 << 20


def generate_key_file(path: Path, *, now: datetime | None = None) -> str:
    """Make a new identity in a new file of mode 0600; return its recipient.

    Raises:
        ConfigError: the file exists already, or cannot be written.
    """
    identity = X25519PrivateKey.generate()
    secret = bech32_encode(_IDENTITY_KIND, identity.private_bytes_raw()).upper()
    recipient = _recipient_text(identity.public_key())
    created = (now or datetime.fromtimestamp(SystemClock().wall_ms() / 1000, UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"# created: {created}\n# public key: {recipient}\n{secret}\n")
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError as error:
        raise ConfigError(f"{path} exists; a key that is overwritten opens nothing any more. Choose another") from error
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
    return recipient


def read_identities(path: Path) -> list[X25519PrivateKey]:
    """The secret keys of a key file.

    Raises:
        ConfigError: it cannot be read, others may read it, or there is no key in it.
    """
    mode = _mode(path)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"{path} has mode {mode & 0o777:o}: others can read the key. chmod 600 it")
    keys = []
    for number, line in _lines(path):
        kind, data = _decode(line, path, number)
        if kind != _IDENTITY_KIND:
            raise ConfigError(f"{path}, line {number}: no secret key (a line AGE-SECRET-KEY-1…)")
        keys.append(X25519PrivateKey.from_private_bytes(data))
    if not keys:
        raise ConfigError(f"{path}: no secret key in it (a line AGE-SECRET-KEY-1…)")
    return keys


def read_recipients(path: Path) -> list[X25519PublicKey]:
    """The public keys of a file: recipients one a line, or those of the identities in a key file.

    Raises:
        ConfigError: it cannot be read, or has no key.
    """
    keys = []
    for number, line in _lines(path):
        kind, data = _decode(line, path, number)
        if kind == _RECIPIENT_KIND:
            keys.append(X25519PublicKey.from_public_bytes(data))
        elif kind == _IDENTITY_KIND:
            keys.append(X25519PrivateKey.from_private_bytes(data).public_key())
        else:
            raise ConfigError(f"{path}, line {number}: no key of age's X25519 kind")
    if not keys:
        raise ConfigError(f"{path}: no recipient in it (a line age1…)")
    return keys


def parse_recipient(text: str) -> X25519PublicKey:
    """Raises ConfigError."""
    try:
        kind, data = bech32_decode(text.strip())
    except ValueError as error:
        raise ConfigError(f"recipient {text!r}: {error}") from error
    if kind != _RECIPIENT_KIND or len(data) != _KEY_BYTES:
        raise ConfigError(f"recipient {text[:12]!r}…: want age1…, as `qd snapshot keygen` prints it")
    return X25519PublicKey.from_public_bytes(data)


def _recipient_text(key: X25519PublicKey) -> str:
    return bech32_encode(_RECIPIENT_KIND, key.public_bytes_raw())


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except OSError as error:
        raise ConfigError(f"key file {path} cannot be read: {error.strerror}") from error


def _lines(path: Path) -> Sequence[tuple[int, str]]:
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_BYTES_MAX)
        text = data.decode("ascii")
    except OSError as error:
        raise ConfigError(f"key file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a key file") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    return [(number, line) for number, line in lines if line and not line.startswith("#")]


def _decode(line: str, path: Path, number: int) -> tuple[str, bytes]:
    # What is wrong is said without the line: it may be a secret.
    try:
        kind, data = bech32_decode(line)
    except ValueError as error:
        raise ConfigError(f"{path}, line {number}: {error}") from error
    if len(data) != _KEY_BYTES:
        raise ConfigError(f"{path}, line {number}: a key of {len(data)} bytes, want {_KEY_BYTES}")
    return kind, data
