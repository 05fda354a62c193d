"""Certificates: a certificate authority, what it issues, and what a certificate says. The adapter of ``cryptography``.

Keys are ECDSA P-256. A private key is readable by its owner alone, from the moment its file exists, and both files of
a pair appear whole or not at all. Knows the subjects of ``identity.py``, no folder layout and no TLS context. Key
material and serial numbers come from the machine's generator, never from an injected one: they must not repeat.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from controlplane.base.errors import ConfigError
from controlplane.base.identity import Identity, IdentityError, IdentityKind, identity_of_subject

__all__ = ["CA_DAYS", "LEAF_DAYS", "Authority", "Certificate", "KeyPair", "read_certificate", "write_private"]

#: How long they are valid unless told otherwise, days.
CA_DAYS: Final = 3650
LEAF_DAYS: Final = 365
#: A certificate is valid from this long before it was made: clocks of machines differ.
_BACKDATE: Final = dt.timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes

    def save(self, certificate: Path, key: Path) -> None:
        """Write both files, each atomically, the key first (mode 0600) and never older than its certificate.

        Raises:
            ConfigError: a folder cannot be written.
        """
        write_private(key, self.key)
        _write(certificate, self.certificate, 0o644)


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a certificate says. Times are seconds since 1970; ``names`` are its SANs, DNS names and addresses."""

    common_name: str
    organizations: tuple[str, ...]
    serial: int
    not_before_s: float
    not_after_s: float
    names: tuple[str, ...]
    is_authority: bool
    issuer: str

    @property
    def identity(self) -> Identity:
        """Who it speaks for. Raises IdentityError if nobody."""
        if self.is_authority:
            raise IdentityError(f"{self.common_name} is a certificate authority's, and speaks for nobody")
        return identity_of_subject(self.common_name, self.organizations)


class Authority:
    """A certificate authority: its certificate and the key that signs."""

    def __init__(self, pair: KeyPair) -> None:
        """Raises ConfigError: the pair is damaged, does not fit together, or is no authority's."""
        self.pair = pair
        try:
            self._certificate = x509.load_pem_x509_certificate(pair.certificate)
            key = serialization.load_pem_private_key(pair.key, password=None)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"the certificate authority's certificate or key is damaged: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != self._certificate.public_key():
            raise ConfigError("the certificate authority's key is not that of its certificate")
        if not _is_authority(self._certificate):
            raise ConfigError("the certificate is not a certificate authority's")
        self._key = key

    @classmethod
    def create(cls, common_name: str, *, now_ms: int, days: int = CA_DAYS) -> Authority:
        """A new authority, signed by itself."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        usage = _key_usage(signs_certificates=True)
        certificate = (
            _builder(name, name, key.public_key(), now_ms, days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(_pair(certificate, key))

    @classmethod
    def load(cls, certificate: Path, key: Path) -> Authority:
        """Read one. Raises ConfigError: a file is missing or damaged."""
        return cls(KeyPair(_read(certificate), _read(key)))

    def issue(self, identity: Identity, *, names: Sequence[str] = (), now_ms: int, days: int = LEAF_DAYS) -> KeyPair:
        """A certificate for ``identity``, with a new key. Members and nodes serve and call, users only call.

        Args:
            names: DNS names and addresses it serves under; users have none.
            days: its validity, cut to the authority's own.

        Raises:
            ConfigError: the identity is no good, it serves under no name, or the authority has expired.
        """
        serves = identity.kind is not IdentityKind.USER
        if serves and not names:
            raise ConfigError(f"{identity}: want at least one address or name it is reached under")
        if days < 1:
            raise ConfigError(f"validity of {days} days: want at least 1")
        identity_of_subject(identity.common_name, identity.organizations)
        if _utc(now_ms) >= self._certificate.not_valid_after_utc:
            raise ConfigError("the certificate authority has expired; make a new one with: qd certs init --force")
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name(
            [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in identity.organizations]
            + [x509.NameAttribute(NameOID.COMMON_NAME, identity.common_name)]
        )
        purposes = [ExtendedKeyUsageOID.CLIENT_AUTH] + ([ExtendedKeyUsageOID.SERVER_AUTH] if serves else [])
        builder = (
            _builder(subject, self._certificate.subject, key.public_key(), now_ms, days,
                     until=self._certificate.not_valid_after_utc)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
        )  # fmt: skip
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName([_san(name) for name in names]), critical=False)
        return _pair(builder.sign(self._key, hashes.SHA256()), key)

    def issued(self, certificate: bytes) -> bool:
        """Whether this authority signed that certificate (PEM)."""
        try:
            x509.load_pem_x509_certificate(certificate).verify_directly_issued_by(self._certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True


def read_certificate(data: bytes) -> Certificate:
    """What a certificate (PEM or DER) says.

    Raises:
        ConfigError: it is no certificate, or its subject has several common names.
    """
    try:
        if data.lstrip().startswith(b"-----BEGIN"):
            found = x509.load_pem_x509_certificate(data)
        else:
            found = x509.load_der_x509_certificate(data)
        subject = found.subject
        names = _names(found)
        authority = _is_authority(found)
    except ValueError as error:
        raise ConfigError(f"not a certificate: {error}") from error
    common = [str(attribute.value) for attribute in subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if len(common) != 1:
        raise ConfigError(f"a certificate with {len(common)} common names: want one")
    groups = subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return Certificate(
        common_name=common[0],
        organizations=tuple(str(attribute.value) for attribute in groups),
        serial=found.serial_number,
        not_before_s=found.not_valid_before_utc.timestamp(),
        not_after_s=found.not_valid_after_utc.timestamp(),
        names=names,
        is_authority=authority,
        issuer=found.issuer.rfc4514_string(),
    )


def write_private(path: Path, data: bytes) -> None:
    """Write a file that its owner alone may read, atomically. Raises ConfigError: the folder cannot be written."""
    _write(path, data, 0o600)


def _write(path: Path, data: bytes, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary.unlink(missing_ok=True)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> KeyPair:
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return KeyPair(certificate.public_bytes(pem), secret)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    now_ms: int,
    days: int,
    *,
    until: dt.datetime | None = None,
) -> x509.CertificateBuilder:
    now = _utc(now_ms)
    end = now + dt.timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(min(end, until) if until is not None else end)
    )


def _utc(now_ms: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(now_ms // 1000, dt.UTC)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _san(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        try:
            return x509.DNSName(name)
        except ValueError as error:
            raise ConfigError(f"{name!r} is neither an address nor a DNS name: {error}") from error


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    addresses = [str(address) for address in found.get_values_for_type(x509.IPAddress)]
    return (*found.get_values_for_type(x509.DNSName), *addresses)


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False
