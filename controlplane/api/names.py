"""The syntax of names, label keys and values, and ports' names. Pure.

Each check returns what is wrong as a sentence that says what is allowed, or None. Sources: RFC 1123, RFC 6335, and
"Object Names and IDs" and "Labels and Selectors" of the Kubernetes documentation.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = [
    "GENERATED_SUFFIX_CHARS",
    "check_env_name",
    "check_label_key",
    "check_label_value",
    "check_name_label",
    "check_name_service",
    "check_name_subdomain",
    "check_path_segment",
    "check_port_name",
]

#: Length of the random part of a generated name.
GENERATED_SUFFIX_CHARS: Final = 5

_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_LABEL_1035: Final = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_QUALIFIED: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_ENV: Final = re.compile(r"[^=\x00-\x1f\x7f-\U0010ffff]+")


def check_name_label(name: str) -> str | None:
    """An RFC 1123 label: namespaces, containers, volumes."""
    if len(name) > 63:
        return "must be no more than 63 characters"
    if not _LABEL.fullmatch(name):
        return (
            "a lowercase RFC 1123 label must consist of lower case letters, digits and '-', and must start and end "
            "with a letter or digit (e.g. 'my-name' or '123-abc')"
        )
    return None


def check_name_service(name: str) -> str | None:
    """An RFC 1035 label: services, whose names are DNS labels."""
    if len(name) > 63:
        return "must be no more than 63 characters"
    if not _LABEL_1035.fullmatch(name):
        return (
            "a DNS-1035 label must consist of lower case letters, digits and '-', start with a letter, and end with a "
            "letter or digit (e.g. 'my-name' or 'abc-123')"
        )
    return None


def check_name_subdomain(name: str) -> str | None:
    """An RFC 1123 subdomain: most objects."""
    if len(name) > 253:
        return "must be no more than 253 characters"
    if not _SUBDOMAIN.fullmatch(name):
        return (
            "a lowercase RFC 1123 subdomain must consist of lower case letters, digits, '-' or '.', and must start and "
            "end with a letter or digit (e.g. 'example.com')"
        )
    return None


def check_path_segment(name: str) -> str | None:
    """What may stand between two slashes of a storage key: every name, whatever its kind."""
    if not name or name in (".", "..") or "/" in name or "%" in name or "\0" in name:
        return "may not be empty, '.' or '..', or contain '/', '%' or NUL"
    return None


def check_label_key(key: str) -> str | None:
    """``name`` or ``prefix/name``: keys of labels, annotations, taints, and names of finalizers."""
    prefix, slash, name = key.rpartition("/")
    if slash and (problem := check_name_subdomain(prefix)):
        return f"prefix part {problem}"
    if not name or len(name) > 63 or not _QUALIFIED.fullmatch(name):
        return (
            "name part must be 1 to 63 letters, digits, '-', '_' or '.', starting and ending with a letter or digit "
            "(e.g. 'my.name'), with an optional DNS subdomain prefix and '/' (e.g. 'example.com/my-name')"
        )
    return None


def check_label_value(value: str) -> str | None:
    """The empty string or up to 63 characters."""
    if value and (len(value) > 63 or not _QUALIFIED.fullmatch(value)):
        return (
            "a valid label value is empty, or 1 to 63 letters, digits, '-', '_' or '.', starting and ending with a "
            "letter or digit (e.g. 'MyValue' or '12345')"
        )
    return None


def check_port_name(name: str) -> str | None:
    """An IANA service name (RFC 6335), 15 characters: ports of containers."""
    if not (
        1 <= len(name) <= 15 and _LABEL.fullmatch(name) and re.search(r"[a-z]", name) is not None and "--" not in name
    ):
        return (
            "must be 1 to 15 lower case letters, digits and '-', with at least one letter, no '--', and '-' neither "
            "first nor last"
        )
    return None


def check_env_name(name: str) -> str | None:
    """Printable ASCII without '='."""
    if not _ENV.fullmatch(name):
        return "a valid environment variable name consists of printable ASCII characters other than '='"
    return None
