"""Encryption of files to public keys: the age format, version 1, with X25519 recipients (C2SP: age.md).

Files made here open with the `age` tool, and its files open here. Owns the format; keys' files are ``keys``. The
primitives are `cryptography`'s. A file is::

    age-encryption.org/v1
    -> X25519 <ephemeral share>           one stanza a recipient: the file key, wrapped for it
    <wrapped file key>
    --- <HMAC of the header>
    16 bytes nonce, then chunks of 64 KiB, each sealed with ChaCha20-Poly1305 under its number and "last" flag

so that a chunk that is altered, missing, moved or appended, and a header that is altered, are found. Two chunks are in
memory, whatever the size of the file.
"""

from __future__ import annotations

import binascii
import hmac
from base64 import b64decode, b64encode
from collections.abc import Sequence
from hashlib import sha256
from typing import BinaryIO, Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from controlplane.base.errors import ConfigError, CorruptStateError
from controlplane.base.rand import SystemRand

__all__ = ["MAGIC", "Encryptor", "Writable", "decrypt", "encrypt", "is_encrypted"]

MAGIC: Final = b"age-encryption.org/v1\n"
_OTHER_MAGIC: Final = b"age-encryption.org/"
_LABEL: Final = b"age-encryption.org/v1/X25519"
_CHUNK_BYTES: Final = 64 * 1024
_COPY_BYTES: Final = 1 << 20
_TAG_BYTES: Final = 16
_FILE_KEY_BYTES: Final = 16
_NONCE_BYTES: Final = 16
#: A header has a line or two a recipient; more is no header of ours.
_HEADER_BYTES_MAX: Final = 64 * 1024
_ZERO_NONCE: Final = b"\0" * 12


def is_encrypted(head: bytes) -> bool:
    """Whether a file that begins so is encrypted (by any version of age)."""
    return head.startswith(_OTHER_MAGIC)


class Writable(Protocol):
    """What bytes can be written to."""

    def write(self, data: bytes, /) -> int: ...


class Encryptor:
    """Encrypts what is written to it into ``target``: :meth:`write` everything, then :meth:`finish`."""

    def __init__(self, target: Writable, recipients: Sequence[X25519PublicKey]) -> None:
        """Raises ConfigError: no recipient."""
        if not recipients:
            raise ConfigError("encryption needs at least one recipient")
        rand = SystemRand()  # keys: no other source will do
        file_key = rand.token(_FILE_KEY_BYTES)
        nonce = rand.token(_NONCE_BYTES)
        head = MAGIC + b"".join(_wrap(file_key, recipient) for recipient in recipients) + b"---"
        self._target = target
        self._target.write(head + b" " + _b64(_mac(file_key, head)) + b"\n" + nonce)
        self._cipher = ChaCha20Poly1305(_derive(file_key, nonce, b"payload"))
        self._number = 0
        self._waiting = bytearray()

    def write(self, data: bytes) -> int:
        """Take more of the plain text."""
        self._waiting += data
        # A full chunk waits too: it may be the last one, which is marked.
        while len(self._waiting) > _CHUNK_BYTES:
            self._seal(bytes(self._waiting[:_CHUNK_BYTES]), last=False)
            del self._waiting[:_CHUNK_BYTES]
        return len(data)

    def finish(self) -> None:
        """Seal the last chunk. Without it the file is refused as cut short."""
        self._seal(bytes(self._waiting), last=True)

    def _seal(self, chunk: bytes, *, last: bool) -> None:
        self._target.write(self._cipher.encrypt(_chunk_nonce(self._number, last), chunk, None))
        self._number += 1


def encrypt(source: BinaryIO, target: Writable, recipients: Sequence[X25519PublicKey]) -> None:
    """Encrypt a whole file to recipients; without any it is copied as it is."""
    sealing = Encryptor(target, recipients) if recipients else None
    while part := source.read(_COPY_BYTES):
        (sealing or target).write(part)
    if sealing is not None:
        sealing.finish()


def decrypt(source: BinaryIO, target: BinaryIO, identities: Sequence[X25519PrivateKey], where: str) -> None:
    """Decrypt a whole file. What was written to ``target`` counts only once this has returned.

    Raises:
        ConfigError: none of the keys opens it, or it is of another version of the format.
        CorruptStateError: it is damaged, cut short or was tampered with.
    """
    file_key = _open_header(source, identities, where)
    nonce = source.read(_NONCE_BYTES)
    if len(nonce) < _NONCE_BYTES:
        raise CorruptStateError(f"{where} is cut short")
    cipher = ChaCha20Poly1305(_derive(file_key, nonce, b"payload"))
    number = 0
    sealed = source.read(_CHUNK_BYTES + _TAG_BYTES)
    while True:
        following = source.read(_CHUNK_BYTES + _TAG_BYTES)
        last = not following
        try:
            chunk = cipher.decrypt(_chunk_nonce(number, last), sealed, None)
        except (InvalidTag, ValueError) as error:
            raise CorruptStateError(f"{where} is damaged or cut short: chunk {number} does not authenticate") from error
        if last and not chunk and number > 0:
            raise CorruptStateError(f"{where} ends with an empty chunk")
        target.write(chunk)
        if last:
            return
        sealed = following
        number += 1


def _wrap(file_key: bytes, recipient: X25519PublicKey) -> bytes:
    ephemeral = X25519PrivateKey.generate()
    share = ephemeral.public_key().public_bytes_raw()
    key = _wrap_key(ephemeral.exchange(recipient), share, recipient)
    body = ChaCha20Poly1305(key).encrypt(_ZERO_NONCE, file_key, None)
    return b"-> X25519 " + _b64(share) + b"\n" + _b64(body) + b"\n"


def _wrap_key(shared: bytes, share: bytes, recipient: X25519PublicKey) -> bytes:
    return _derive(shared, share + recipient.public_bytes_raw(), _LABEL)


def _open_header(source: BinaryIO, identities: Sequence[X25519PrivateKey], where: str) -> bytes:
    """Read up to the end of the header; the file key."""
    first = source.readline(len(MAGIC) + 32)
    if first != MAGIC:
        if is_encrypted(first):
            raise ConfigError(f"{where} is encrypted in a format this version does not read: {first[:40]!r}")
        raise CorruptStateError(f"{where} is not an encrypted file, or its beginning is damaged")
    head = bytearray(first)
    stanzas: list[tuple[bytes, bytes]] = []
    share = body = None
    while True:
        line = source.readline(_HEADER_BYTES_MAX)
        if not line.endswith(b"\n") or len(head) + len(line) > _HEADER_BYTES_MAX:
            raise CorruptStateError(f"{where} has a damaged header")
        if line.startswith(b"--- "):
            break
        head += line
        if line.startswith(b"-> "):
            words = line.split()
            share = words[2] if len(words) == 3 and words[1] == b"X25519" else None
            body = b""
        elif share is not None and body is not None:
            body += line.rstrip(b"\n")
            if len(line) <= 64:  # a full line of 64 letters goes on in the next
                stanzas.append((share, body))
                share = None
    mac = _un64(line[4:].rstrip(b"\n"), where)
    for share, body in stanzas:
        for identity in identities:
            file_key = _unwrap(_un64(share, where), _un64(body, where), identity)
            if file_key is None:
                continue
            if not hmac.compare_digest(mac, _mac(file_key, bytes(head) + b"---")):
                raise CorruptStateError(f"{where} has a header that was altered")
            return file_key
    raise ConfigError(f"{where}: wrong key: it was encrypted to {len(stanzas)} recipients, none of them this key's")


def _unwrap(share: bytes, body: bytes, identity: X25519PrivateKey) -> bytes | None:
    if len(share) != 32 or len(body) != _FILE_KEY_BYTES + _TAG_BYTES:
        return None
    try:
        shared = identity.exchange(X25519PublicKey.from_public_bytes(share))
        key = _wrap_key(shared, share, identity.public_key())
        return ChaCha20Poly1305(key).decrypt(_ZERO_NONCE, body, None)
    except (InvalidTag, ValueError):  # ValueError: a share of low order
        return None


def _derive(secret: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(secret)


def _mac(file_key: bytes, head: bytes) -> bytes:
    return hmac.digest(_derive(file_key, b"", b"header"), head, sha256)


def _chunk_nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + (b"\1" if last else b"\0")


def _b64(data: bytes) -> bytes:
    return b64encode(data).rstrip(b"=")


def _un64(text: bytes, where: str) -> bytes:
    try:
        data = b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise CorruptStateError(f"{where} has a damaged header") from error
    if _b64(data) != text:
        raise CorruptStateError(f"{where} has a damaged header")
    return data
