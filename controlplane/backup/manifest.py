"""A snapshot's manifest: a small JSON object beside the file, written last, which publishes it.

Owns its format, version 1. It says what the file's own header says, so that `list` and `inspect` need not read the file
(nor have the key of an encrypted one), and the checksum of the file's bytes as they lie there.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Final

from controlplane.base.errors import ConfigError, CorruptStateError

__all__ = ["FORMAT_VERSION", "Manifest"]

FORMAT_VERSION: Final = 1
_KIND: Final = "quarterdeck-snapshot"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a published snapshot says of itself.

    Attributes:
        file: name of the object beside this one.
        cluster_id: 16 hex digits.
        members: names of the cluster's members at that time.
        file_bytes, sha256: of the file as it lies there, encrypted or not.
        state_hash: hex digest of the state, as `qd status` shows it at that revision.
        saved_by: the replica, or the command, that saved it.
    """

    file: str
    cluster_id: str
    members: tuple[str, ...]
    revision: int
    index: int
    term: int
    created_at_ms: int
    file_bytes: int
    sha256: str
    state_hash: str
    encrypted: bool
    saved_by: str
    format_version: int = FORMAT_VERSION

    def encode(self) -> bytes:
        return (json.dumps({"kind": _KIND, **asdict(self)}, indent=1) + "\n").encode()

    @classmethod
    def decode(cls, data: bytes, where: str) -> Manifest:
        """Raises CorruptStateError (unreadable) or ConfigError (a newer version wrote it)."""
        try:
            raw = json.loads(data)
            if raw.pop("kind") != _KIND:
                raise CorruptStateError(f"{where} is not the manifest of a snapshot")
            version = int(raw["format_version"])
            if version > FORMAT_VERSION:
                raise ConfigError(f"manifest {where} has format {version}, this version reads up to {FORMAT_VERSION}")
            raw["members"] = tuple(raw["members"])
            return cls(**raw)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptStateError(f"manifest {where} is damaged: {error}") from error
