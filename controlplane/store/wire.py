"""The two messages every write makes, as bytes: a version's KeyValue, and the reply to a Put.

Owns the hand-written encoding, which is exactly what the protobuf library serializes (tests/unit/store/test_wire.py):
replies and versions are hashed, so replicas of different releases must agree on every byte. Building the messages with
the library takes two to three times as long, on every replica, for every write.
"""

from __future__ import annotations

from typing import Final

__all__ = ["frame_kv", "put_reply", "put_reply_with", "varint", "version_frame", "without_value"]

#: One and two byte varints, by value.
_SHORT: Final = tuple(bytes((n,)) if n < 0x80 else bytes((n & 0x7F | 0x80, n >> 7)) for n in range(0x4000))
#: Tags of create_revision, mod_revision and version.
_NUMBERS: Final = b"\x10\x18\x20"
_U64: Final = 0xFFFF_FFFF_FFFF_FFFF


def varint(number: int) -> bytes:
    """A protobuf varint; a negative int64 takes ten bytes."""
    if 0 <= number < 0x4000:
        return _SHORT[number]
    number &= _U64
    if number < 0x20_0000:
        return bytes((number & 0x7F | 0x80, number >> 7 & 0x7F | 0x80, number >> 14))
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def frame_kv(kv: bytes) -> bytes:
    """Serialized KeyValue -> protobuf field 2 holding it."""
    return b"\x12" + varint(len(kv)) + kv


def version_frame(key: bytes, value: bytes, mod: int, create: int, version: int, lease: int) -> bytes:
    """The KeyValue of a version as protobuf field 2. A tombstone has ``create`` and ``version`` 0, and no value."""
    mod_bytes = varint(mod)
    if create:
        create_bytes = mod_bytes if create == mod else varint(create)
        head = b"\x0a%b%b\x10%b\x18%b\x20%b" % (varint(len(key)), key, create_bytes, mod_bytes, varint(version))
    else:
        head = b"\x0a%b%b\x18%b" % (varint(len(key)), key, mod_bytes)
    if value:
        head += b"\x2a" + varint(len(value))
    tail = b"\x30" + varint(lease) if lease else b""
    return b"".join((b"\x12", varint(len(head) + len(value) + len(tail)), head, value, tail))


def put_reply(revision: int) -> bytes:
    """Reply(put=PutResponse(header=ResponseHeader(revision=revision)))."""
    number = varint(revision)
    size = len(number)
    return b"\x52%c\x0a%c\x18%b" % (size + 3, size + 1, number)


def put_reply_with(revision: int, previous: bytes) -> bytes:
    """The same, with a version's frame as ``prev_kv``."""
    number = varint(revision)
    header = b"\x0a%c\x18%b" % (len(number) + 1, number)
    return b"".join((b"\x52", varint(len(header) + len(previous)), header, previous))


def without_value(frame: bytes) -> bytes:
    """A version's frame, its KeyValue without the value."""
    at = 1
    while frame[at] & 0x80:
        at += 1
    at += 2  # the length's last byte, and the tag of the key
    fields_at, size = _read_varint(frame, at)
    fields_at += size
    key_and_numbers = fields_at
    end = len(frame)
    while key_and_numbers < end and frame[key_and_numbers] in _NUMBERS:
        key_and_numbers, _ = _read_varint(frame, key_and_numbers + 1)
    value_end = key_and_numbers
    if value_end < end and frame[value_end] == 0x2A:
        value_end, size = _read_varint(frame, value_end + 1)
        value_end += size
    head = frame[at - 1 : key_and_numbers]
    tail = frame[value_end:]
    return b"".join((b"\x12", varint(len(head) + len(tail)), head, tail))


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Where it ends, and its value."""
    number = shift = 0
    while data[at] & 0x80:
        number |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
    return at + 1, number | data[at] << shift
