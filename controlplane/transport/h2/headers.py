"""Header blocks: HPACK (RFC 7541), decoding with a memory of what was seen, encoding without any state.

We announce a dynamic table of zero bytes. From then on a block means the same whenever it is sent and on whatever
connection, so a steady client's block is one look-up, and a new one costs only its fields not seen before. Until the
peer has taken note (its first blocks may use the default table) the hpack library decodes with its table.

Owns no meaning: names and values are bytes here. Invariant: what the memory returns is what decoding would return.
"""

from __future__ import annotations

from typing import Final

from hpack import Decoder
from hpack.exceptions import HPACKError, OversizedHeaderListError

from controlplane.transport.h2.frames import ErrorCode, H2Error

__all__ = ["BLOCK_BYTES_MAX", "LIST_BYTES_MAX", "FieldMemory", "HeaderReader", "literal", "status_field"]

#: Names and values of one request together, 32 bytes more for each (as SETTINGS_MAX_HEADER_LIST_SIZE counts).
LIST_BYTES_MAX: Final = 16 * 1024
#: An encoded block, all its frames together.
BLOCK_BYTES_MAX: Final = 32 * 1024
#: Fields and blocks kept in memory, and the longest field that is worth it.
_MEMORY_FIELDS_MAX: Final = 4_096
_FIELD_BYTES_MAX: Final = 256
_STATIC_FIELDS: Final = 61
_ENTRY_OVERHEAD_BYTES: Final = 32

Field = tuple[bytes, bytes]


class FieldMemory:
    """Encoded fields seen before, shared by the connections of a server. Forgets everything when it is full."""

    def __init__(self) -> None:
        self.fields: dict[bytes, Field] = {}
        self._decoder = Decoder(LIST_BYTES_MAX)
        self._decoder.max_allowed_table_size = 0
        self._decoder.header_table_size = 0

    def decode(self, block: bytes) -> list[Field]:
        """A block of a peer that uses no dynamic table.

        Raises:
            H2Error: COMPRESSION_ERROR, it is not one, or uses the table after all.
        """
        fields: list[Field] = []
        known = self.fields
        at, end, size_bytes = 0, len(block), 0
        while at < end:
            begin, at = at, _field_end(block, at, end)
            if block[begin] & 0xE0 == 0x20:  # a table size: only zero, only before the first field
                if block[begin] != 0x20 or fields:
                    raise _broken("dynamic table size update")
                continue
            span = block[begin:at]
            field = known.get(span)
            if field is None:
                field = self._learn(span)
            size_bytes += len(field[0]) + len(field[1]) + _ENTRY_OVERHEAD_BYTES
            fields.append(field)
        if size_bytes > LIST_BYTES_MAX:
            raise _oversized()
        return fields

    def _learn(self, span: bytes) -> Field:
        try:
            ((name, value),) = self._decoder.decode(span, raw=True)
        except OversizedHeaderListError as error:
            raise _oversized() from error
        except (HPACKError, ValueError, IndexError) as error:
            raise _broken(str(error)) from error
        field = (bytes(name), bytes(value))
        if len(span) <= _FIELD_BYTES_MAX:
            if len(self.fields) >= _MEMORY_FIELDS_MAX:
                self.fields.clear()
            self.fields[span] = field
        return field


class HeaderReader:
    """The decoding side of one connection."""

    __slots__ = ("_decoder", "_memory", "stateless")

    def __init__(self, memory: FieldMemory) -> None:
        self._memory = memory
        self._decoder: Decoder | None = Decoder(LIST_BYTES_MAX)
        #: From now on equal blocks mean equal headers.
        self.stateless = False

    def table_is_zero(self) -> None:
        """The peer acknowledged our SETTINGS: it must say so in its next block, and use no dynamic table from it on."""
        if self._decoder is not None:
            self._decoder.max_allowed_table_size = 0

    def read(self, block: bytes) -> list[Field]:
        """Fields in order.

        Raises:
            H2Error: COMPRESSION_ERROR for a block that cannot be decoded, ENHANCE_YOUR_CALM for one that is too large.
        """
        decoder = self._decoder
        if decoder is None:
            return self._memory.decode(block)
        try:
            fields = [(bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True)]
        except OversizedHeaderListError as error:
            raise _oversized() from error
        except (HPACKError, ValueError, IndexError) as error:
            raise _broken(str(error)) from error
        if decoder.max_allowed_table_size == 0:
            self._decoder, self.stateless = None, True
        return fields


def _field_end(block: bytes, at: int, end: int) -> int:
    """Where the field that begins at ``at`` ends; its content is checked by who decodes it."""
    first = block[at]
    at += 1
    if first & 0x80:
        if not 1 <= first & 0x7F <= _STATIC_FIELDS:
            raise _broken("index outside the static table")
        return at
    if first & 0xE0 == 0x20:
        return at
    if first & 0x40:
        name_index = first & 0x3F
    else:
        name_index = first & 0x0F
        if name_index == 0x0F:
            name_index, at = _integer(block, at, end, 0x0F)
    if name_index > _STATIC_FIELDS:
        raise _broken("index outside the static table")
    for _ in range(1 if name_index else 2):
        if at >= end:
            raise _broken("truncated field")
        length = block[at] & 0x7F
        at += 1
        if length == 0x7F:
            length, at = _integer(block, at, end, 0x7F)
        at += length
        if at > end:
            raise _broken("truncated string")
    return at


def _integer(block: bytes, at: int, end: int, value: int) -> tuple[int, int]:
    """The rest of an integer whose prefix was all ones (RFC 7541, section 5.1); no more than four bytes of it."""
    for shift in (0, 7, 14, 21):
        if at >= end:
            break
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _broken("integer")


def _broken(what: str) -> H2Error:
    return H2Error(ErrorCode.COMPRESSION_ERROR, f"header block: {what}")


def _oversized() -> H2Error:
    return H2Error(ErrorCode.ENHANCE_YOUR_CALM, f"header list of more than {LIST_BYTES_MAX} bytes")


# -- encoding --------------------------------------------------------------------------------------------------------


def literal(name: bytes, value: bytes) -> bytes:
    """One field, not indexed, not compressed: costs the peer no state."""
    return b"\x00" + _string(name) + _string(value)


def status_field(status: int) -> bytes:
    """The ``:status`` pseudo-header."""
    return b"\x88" if status == 200 else b"\x08" + _string(str(status).encode())


def _string(text: bytes) -> bytes:
    length = len(text)
    if length < 0x7F:
        return bytes((length,)) + text
    encoded, rest = bytearray((0x7F,)), length - 0x7F
    while rest >= 0x80:
        encoded.append(rest & 0x7F | 0x80)
        rest >>= 7
    encoded.append(rest)
    return bytes(encoded) + text
