"""Plain JSON values ⇄ Kubernetes' protobuf messages, driven by descriptors. Pure.

Owns Kubernetes' irregularities (quantities, times, int-or-string, inlined members, base64) and nothing of kinds:
``apiVersion`` and ``kind`` are ``api.codec``'s. Reading is strict: an unknown field names its path and the nearest
known field; a wrong type names its path and what is allowed. Writing leaves out what is unset and empty strings.

Reading collects every fault it can find in a document, up to :data:`FAULTS_MAX`, in one pass. Work is bounded by
:data:`VALUES_MAX` values, so that a YAML alias bomb costs little.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from controlplane.api.documents import DEPTH_MAX
from controlplane.api.errors import FieldCause
from controlplane.api.quantity import QuantityError, canonical

__all__ = ["FAULTS_MAX", "VALUES_MAX", "Reader", "to_json"]

FAULTS_MAX: Final = 20
VALUES_MAX: Final = 200_000

_META: Final = "k8s.io.apimachinery.pkg.apis.meta.v1."
_CORE: Final = "k8s.io.api.core.v1."
_QUANTITY: Final = "k8s.io.apimachinery.pkg.api.resource.Quantity"
_INT_OR_STRING: Final = "k8s.io.apimachinery.pkg.util.intstr.IntOrString"

#: Members whose fields stand in their parent's JSON object.
_INLINED: Final = {
    f"{_CORE}Volume.volumeSource",
    f"{_CORE}Probe.handler",
    f"{_CORE}EphemeralContainer.ephemeralContainerCommon",
    *(
        f"{_CORE}{message}.localObjectReference"
        for message in (
            "ConfigMapEnvSource", "SecretEnvSource", "ConfigMapKeySelector", "SecretKeySelector",
            "ConfigMapProjection", "SecretProjection", "ConfigMapVolumeSource",
        )
    ),
}  # fmt: skip
_INTEGERS: Final = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_RFC3339: Final = re.compile(
    r"(?a)(\d{4}-\d{2}-\d{2})[Tt](\d{2}:\d{2}:\d{2})(?:\.(\d{1,9}))?([Zz]|[+-]\d{2}:\d{2})"
)  # fmt: skip


class _WrongValueError(Exception):
    """A value does not fit its field; the text says what would."""


# -- values that are not plain messages -----------------------------------------------------------------------------


def _time_from(value: Any, message: Any, *, micro: bool) -> None:
    match = _RFC3339.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise _WrongValueError(f"must be an RFC 3339 time such as 2006-01-02T15:04:05Z, not {_shown(value)}")
    day, clock, fraction, zone = match.groups()
    try:
        at = datetime.fromisoformat(f"{day}T{clock}{'+00:00' if zone in 'Zz' else zone}")
    except ValueError as error:
        raise _WrongValueError(f"is no such time: {value} ({error})") from error
    message.seconds = (at - _EPOCH) // timedelta(seconds=1)
    if micro:
        message.nanos = int((fraction or "0").ljust(9, "0")) // 1000 * 1000


def _time_to(message: Any, *, micro: bool) -> str | None:
    if not message.seconds and not message.nanos:
        return None
    try:
        at = _EPOCH + timedelta(seconds=message.seconds)
    except OverflowError:  # a time no calendar has: shown as unset, as Kubernetes shows the zero time
        return None
    text = at.isoformat()[:19]
    return f"{text}.{message.nanos // 1000:06d}Z" if micro else f"{text}Z"


def _quantity_from(value: Any, message: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _WrongValueError(f"must be a quantity such as 100m or 1Gi, not {_shown(value)}")
    try:
        message.string = canonical(str(value))
    except QuantityError as error:
        raise _WrongValueError(str(error)) from error


def _int_or_string_from(value: Any, message: Any) -> None:
    if isinstance(value, str):
        message.type, message.strVal = 1, value
    elif isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 31:
        message.type, message.intVal = 0, value
    else:
        raise _WrongValueError(f"must be an integer or a string, not {_shown(value)}")


@dataclass(frozen=True, slots=True)
class _Special:
    read: Callable[[Any, Any], None]
    write: Callable[[Any], Any]


_SPECIAL: Final[dict[str, _Special]] = {
    _QUANTITY: _Special(_quantity_from, lambda m: m.string or "0"),
    _INT_OR_STRING: _Special(_int_or_string_from, lambda m: m.strVal if m.type else m.intVal),
    f"{_META}Time": _Special(lambda v, m: _time_from(v, m, micro=False), lambda m: _time_to(m, micro=False)),
    f"{_META}MicroTime": _Special(lambda v, m: _time_from(v, m, micro=True), lambda m: _time_to(m, micro=True)),
}
_FIELDS_V1: Final = f"{_META}FieldsV1"


# -- descriptors, looked up once ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Field:
    """One JSON field: its descriptor and, when it is inlined, the member of the parent that holds it."""

    name: str
    descriptor: FieldDescriptor
    holder: str
    is_map: bool
    is_repeated: bool
    message: Descriptor | None
    special: _Special | None


@cache
def _fields(descriptor: Descriptor) -> dict[str, _Field]:
    found: dict[str, _Field] = {}
    for d in descriptor.fields:
        if d.full_name in _INLINED:
            assert d.message_type is not None
            for name, inner in _fields(d.message_type).items():
                found[name] = _Field(
                    name, inner.descriptor, d.name, inner.is_map, inner.is_repeated, inner.message, inner.special
                )
            continue
        message = d.message_type
        is_map = message is not None and bool(message.GetOptions().map_entry)
        if is_map:
            assert message is not None
            message = message.fields_by_name["value"].message_type
        special = _SPECIAL.get(message.full_name) if message is not None else None
        found[d.name] = _Field(d.name, d, "", is_map, bool(d.is_repeated) and not is_map, message, special)
    return found


# -- reading --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Reader:
    """Reads plain values into messages, collecting faults and the paths of fields in ``ignored``.

    Attributes:
        ignored: message full name → field → default; a field present with another value than its default is reported
            in ``warnings``. None as default: any value is.
        faults: what is wrong, with paths.
        warnings: paths (without list indexes' repetition) of fields that are kept but not acted on.
    """

    ignored: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    faults: list[FieldCause] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    _values_left: int = VALUES_MAX

    def read(self, values: Any, message: Message, path: str = "", depth: int = 0) -> None:
        """Fill ``message`` from a mapping. Faults go to ``self.faults``; nothing is raised."""
        if not isinstance(values, Mapping):
            self._fault(path, f"must be a mapping, not {_shown(values)}")
            return
        if depth > DEPTH_MAX:
            self._fault(path, f"nested deeper than {DEPTH_MAX} levels")
            return
        fields = _fields(message.DESCRIPTOR)
        for name, value in values.items():
            if len(self.faults) >= FAULTS_MAX:
                return
            at = f"{path}.{name}" if path else str(name)
            known = fields.get(name)
            if known is None:
                self._fault(at, _unknown(str(name), fields), "FieldValueUnknown")
                continue
            self._values_left -= 1
            if self._values_left < 0:
                self._fault(at, f"the document has more than {VALUES_MAX} values")
                return
            if value is None:
                continue
            owner = known.descriptor.containing_type
            ignored = self.ignored.get(owner.full_name, {}) if owner is not None else {}
            if name in ignored and value != ignored[name] and value not in ({}, []):
                self.warnings.append(at)
            holder: Any = message
            if known.holder:
                holder = getattr(message, known.holder)
                holder.SetInParent()
            self._member(known, value, holder, at, depth + 1)

    def _member(self, known: _Field, value: Any, holder: Any, at: str, depth: int) -> None:
        try:
            if known.is_map:
                self._map(known, value, holder, at, depth)
            elif known.is_repeated:
                self._list(known, value, holder, at, depth)
            elif known.message is None:
                setattr(holder, known.name, _scalar(known.descriptor, value))
            else:
                self._message(known, value, getattr(holder, known.name), at, depth)
        except _WrongValueError as error:
            self._fault(at, str(error))

    def _message(self, known: _Field, value: Any, message: Any, at: str, depth: int) -> None:
        assert known.message is not None
        if known.special is not None:
            message.SetInParent()
            known.special.read(value, message)
        elif known.message.full_name == _FIELDS_V1:
            message.Raw = _compact_json(value)
        else:
            message.SetInParent()
            self.read(value, message, at, depth)

    def _list(self, known: _Field, value: Any, holder: Any, at: str, depth: int) -> None:
        if not isinstance(value, list):
            raise _WrongValueError(f"must be a list, not {_shown(value)}")
        target = getattr(holder, known.name)
        for index, item in enumerate(value):
            where = f"{at}[{index}]"
            self._values_left -= 1
            if self._values_left < 0 or len(self.faults) >= FAULTS_MAX:
                raise _WrongValueError(f"the document has more than {VALUES_MAX} values or {FAULTS_MAX} faults")
            if known.message is not None:
                self._message(known, item, target.add(), where, depth)
                continue
            try:
                target.append(_scalar(known.descriptor, item))
            except _WrongValueError as error:
                self._fault(where, str(error))

    def _map(self, known: _Field, value: Any, holder: Any, at: str, depth: int) -> None:
        if not isinstance(value, Mapping):
            raise _WrongValueError(f"must be a mapping, not {_shown(value)}")
        target = getattr(holder, known.name)
        entry = known.descriptor.message_type
        assert entry is not None
        of_value = entry.fields_by_name["value"]
        for key, item in value.items():
            where = f"{at}.{key}"
            self._values_left -= 1
            if self._values_left < 0:
                raise _WrongValueError(f"the document has more than {VALUES_MAX} values")
            if not isinstance(key, str):
                self._fault(where, f"a key must be a string, not {_shown(key)}")
                continue
            try:
                if known.message is not None:
                    self._message(known, item, target[key], where, depth)
                else:
                    target[key] = _scalar(of_value, "" if item is None else item)
            except _WrongValueError as error:
                self._fault(where, str(error))

    def _fault(self, at: str, message: str, reason: str = "FieldValueTypeInvalid") -> None:
        if len(self.faults) < FAULTS_MAX:
            self.faults.append(FieldCause(at or "(document)", message, reason))


def _unknown(name: str, fields: Mapping[str, _Field]) -> str:
    by_lower = {known.lower(): known for known in fields}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    if near:
        return f'unknown field; did you mean "{by_lower[near[0]]}"?'
    return f"unknown field; known here: {', '.join(sorted(fields)) or 'none'}"


def _scalar(descriptor: FieldDescriptor, value: Any) -> Any:
    cpp_type = descriptor.cpp_type
    if descriptor.type == FieldDescriptor.TYPE_BYTES:
        if not isinstance(value, str):
            raise _WrongValueError(f"must be base64 text, not {_shown(value)}")
        try:
            return base64.b64decode("".join(value.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise _WrongValueError(f"must be base64 text: {error}") from error
    if cpp_type == FieldDescriptor.CPPTYPE_STRING:
        if not isinstance(value, str):
            hint = " (quote it)" if isinstance(value, bool | int | float) else ""
            raise _WrongValueError(f"must be a string{hint}, not {_shown(value)}")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise _WrongValueError(f"must be valid Unicode: {error.reason}") from error
        return value
    if cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        if not isinstance(value, bool):
            raise _WrongValueError(f"must be true or false, not {_shown(value)}")
        return value
    low, high = _INTEGERS[cpp_type]
    if isinstance(value, bool) or not isinstance(value, int):
        raise _WrongValueError(f"must be an integer, not {_shown(value)}")
    if not low <= value <= high:
        raise _WrongValueError(f"must be an integer from {low} to {high}, not {value}")
    return value


def _compact_json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _shown(value: Any) -> str:
    """The value with its type, as a user of YAML names them."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the string {value if len(value) <= 40 else value[:37] + '...'!r}"
    return "a list" if isinstance(value, list) else "a mapping"


# -- writing --------------------------------------------------------------------------------------------------------


def to_json(message: Message) -> dict[str, Any]:
    """The message as plain values, fields in the order of their numbers."""
    written: dict[str, Any] = {}
    _write(message, written)
    return written


def _write(message: Any, into: dict[str, Any]) -> None:
    fields = _fields(message.DESCRIPTOR)
    for descriptor, value in message.ListFields():
        if descriptor.full_name in _INLINED:
            _write(value, into)
            continue
        known = fields[descriptor.name]
        if known.is_map:
            into[known.name] = {key: _written(known, value[key]) for key in sorted(value)}
        elif known.is_repeated:
            into[known.name] = [_written(known, item) for item in value]
        elif value != "" or known.message is not None:
            plain = _written(known, value)
            if plain is not None:
                into[known.name] = plain


def _written(known: _Field, value: Any) -> Any:
    if known.special is not None:
        return known.special.write(value)
    if known.message is None:
        return base64.b64encode(value).decode() if isinstance(value, bytes) else value
    if known.message.full_name == _FIELDS_V1:
        return json.loads(value.Raw or b"{}")
    return to_json(value)
