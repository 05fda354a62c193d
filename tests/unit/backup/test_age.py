"""The age format: what is sealed opens with the right key only, and nothing of it can be changed unseen."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from base64 import b64decode
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from controlplane.backup import age, keys
from controlplane.backup.bech32 import bech32_decode, bech32_encode
from controlplane.base.errors import ConfigError, CorruptStateError

#: Sizes around the chunks of 64 KiB.
SIZES = (0, 1, 65_535, 65_536, 65_537, 131_072, 150_000)
#: Made by age 1.1.1 for the identity below.
THEIR_IDENTITY = "AGE-SECRET-KEY-1KW0XUUL8FYGNGL49DXXGPP88L60C52YCQVCCNQJAL2096ZT7CF3Q5M58FV"
THEIR_FILE = (
    "YWdlLWVuY3J5cHRpb24ub3JnL3YxCi0+IFgyNTUxOSBHQVUyallEQlNwc2VSaXFubkpvMkVyOSt4TzZqYWFockhVdWJQUXlWSkF3CjJvMzZZZDF5"
    "TEp2MUV5M2FOTC85UjAvK2Q1TllrSDVkV0JyTGtKVjZMRG8KLS0tIEZNbmRJQ3pMSHlBVjAwRGhYK1BsclpZWVJVcHZXNWw5NlBIZHE1Q2UwSGsK"
    "u9I0bLNdv2FvgzgdP8ec4ByQD1qnlMteL7GgVidUCOJf7R231x/J"
)


@pytest.fixture
def identity() -> X25519PrivateKey:
    return X25519PrivateKey.generate()


def seal(data: bytes, *identities: X25519PrivateKey) -> bytes:
    sealed = io.BytesIO()
    age.encrypt(io.BytesIO(data), sealed, [one.public_key() for one in identities])
    return sealed.getvalue()


def opened(data: bytes, *identities: X25519PrivateKey) -> bytes:
    plain = io.BytesIO()
    age.decrypt(io.BytesIO(data), plain, identities, "the file")
    return plain.getvalue()


@pytest.mark.parametrize("size", SIZES)
def test_what_is_sealed_opens_again(size: int, identity: X25519PrivateKey) -> None:
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    sealed = seal(data, identity)
    assert age.is_encrypted(sealed)
    assert opened(sealed, identity) == data


def test_any_recipient_opens_and_nobody_else(identity: X25519PrivateKey) -> None:
    other, stranger = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    sealed = seal(b"state", identity, other)
    assert opened(sealed, other) == opened(sealed, stranger, identity) == b"state"
    with pytest.raises(ConfigError, match="the file: wrong key: it was encrypted to 2 recipients"):
        opened(sealed, stranger)


def test_without_recipients_it_is_a_copy() -> None:
    assert seal(b"state") == b"state"


def test_no_bit_can_be_changed_unseen(identity: X25519PrivateKey) -> None:
    sealed = seal(b"state" * 3, identity)
    for position in range(len(sealed)):
        altered = bytearray(sealed)
        altered[position] ^= 1
        with pytest.raises((CorruptStateError, ConfigError)):
            opened(bytes(altered), identity)


def test_nothing_can_be_cut_off_moved_or_appended(identity: X25519PrivateKey) -> None:
    chunk = 65_536 + 16
    sealed = seal(bytes(3 * 65_536), identity)
    head, chunks = sealed[: -3 * chunk], [sealed[-n * chunk :][:chunk] for n in (3, 2, 1)]
    assert b"".join([head, *chunks]) == sealed
    for length in (len(head), len(sealed) - chunk, len(sealed) - 1, 10, 0):
        with pytest.raises(CorruptStateError):
            opened(sealed[:length], identity)
    for order in ((1, 0, 2), (0, 2), (0, 1, 2, 2)):
        with pytest.raises(CorruptStateError):
            opened(b"".join([head, *(chunks[n] for n in order)]), identity)


def test_a_newer_format_is_said() -> None:
    with pytest.raises(ConfigError, match="a format this version does not read"):
        opened(b"age-encryption.org/v2\n", X25519PrivateKey.generate())


def test_a_key_file_is_for_its_owner_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key"
    recipient = keys.generate_key_file(path)
    assert re.fullmatch("age1[a-z0-9]{58}", recipient)
    assert path.stat().st_mode & 0o777 == 0o600
    (identity,) = keys.read_identities(path)
    assert keys.parse_recipient(recipient).public_bytes_raw() == identity.public_key().public_bytes_raw()
    assert keys.read_recipients(path)[0].public_bytes_raw() == identity.public_key().public_bytes_raw()
    with pytest.raises(ConfigError, match="exists"):
        keys.generate_key_file(path)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        keys.read_identities(path)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "no secret key in it"),
        (f"{THEIR_IDENTITY[:-1]}W", "line 1: its checksum does not match"),
        ("hush hush", "line 1: it is no key"),
        ("Age-Secret-key-1abc", "line 1: upper and lower case are mixed"),
        (bech32_encode("age-secret-key-", b"short").upper(), "line 1: a key of 5 bytes"),
        (bech32_encode("age", b"k" * 32), "line 1: no secret key"),
    ],
)
def test_a_bad_key_file_is_named_without_what_is_in_it(text: str, error: str, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=error) as caught:
        keys.read_identities(path)
    assert str(path) in str(caught.value)
    assert not text or text not in str(caught.value)


@pytest.mark.parametrize("text", ["age1abc", THEIR_IDENTITY, "ssh-ed25519 AAAA", bech32_encode("age", b"k")])
def test_a_bad_recipient_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="recipient") as caught:
        keys.parse_recipient(text)
    assert THEIR_IDENTITY not in str(caught.value)


def test_bech32_is_that_of_bip_173() -> None:
    assert bech32_decode("A12UEL5L") == ("a", b"")
    kind, data = bech32_decode("abcdef1qpzry9x8gf2tvdw0s3jn54khce6mua7lmqqqxw")
    assert bech32_encode(kind, data) == "abcdef1qpzry9x8gf2tvdw0s3jn54khce6mua7lmqqqxw"


def test_a_file_of_the_age_tool_opens(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(f"# created: 2026-11-29T17:09:52Z\n{THEIR_IDENTITY}\n")
    path.chmod(0o600)
    assert opened(b64decode(THEIR_FILE), *keys.read_identities(path)) == b"a state"


@pytest.mark.needs("age", "age")
@pytest.mark.slow
def test_the_age_tool_opens_ours_and_we_open_its(tmp_path: Path) -> None:
    tool = shutil.which("age")
    assert tool is not None
    recipient = keys.generate_key_file(tmp_path / "key")
    identities = keys.read_identities(tmp_path / "key")
    for size in SIZES:
        data = b"y" * size
        ours = seal(data, *identities)
        theirs = subprocess.run([tool, "-r", recipient], input=data, capture_output=True, check=True, timeout=20).stdout
        decrypt = [tool, "-d", "-i", str(tmp_path / "key")]
        assert subprocess.run(decrypt, input=ours, capture_output=True, check=True, timeout=20).stdout == data
        assert opened(theirs, *identities) == data
