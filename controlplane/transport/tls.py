"""TLS between all parts: contexts and credentials from three files, and their renewal without a restart.

Both sides always show a certificate of the cluster's authority; who does not is cut off in the handshake, before a
byte of what it sent is looked at. TLS 1.2 is the oldest version spoken. Sessions are not resumed: every connection
proves its certificate anew, so one that has expired is of no more use.

A :class:`Reloader` owns one process's files. What it hands out stays good over a renewal: a server context made by
:meth:`Reloader.server` does each new handshake with the newest files, certificate authority included; a client asks
:attr:`Reloader.client` or :meth:`Reloader.channel_credentials` at every dial. Files that do not fit together (a
renewal half written, a damaged one) leave the old ones in use, loudly, and are tried again.

Every server's context shows a caller's certificate the way grpcio does, in ``context.auth_context()``: a mapping from
the keys ``transport_security_type``, ``x509_common_name``, ``x509_subject_alternative_name`` and ``x509_pem_cert`` to
sequences of bytes, empty without TLS. :func:`auth_context_of` makes it from an SSL object, ``callers.py`` reads it.

Knows nothing of what is served.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import grpc

from controlplane.base.clock import Clock, SystemClock
from controlplane.base.errors import ConfigError
from controlplane.base.identity import Identity, IdentityError, IdentityKind
from controlplane.transport import tls_metrics as metrics

if TYPE_CHECKING:
    from controlplane.base.pki import Certificate

__all__ = [
    "GRPC_PROTOCOL",
    "Identity",
    "IdentityError",
    "IdentityKind",
    "Reloader",
    "TlsFiles",
    "auth_context_of",
    "client_context",
    "identity_of",
    "server_context",
]

_log = logging.getLogger("quarterdeck.tls")

#: What gRPC calls itself in the handshake (RFC 9113, section 3.2).
GRPC_PROTOCOL: Final = "h2"
#: Changed files are noticed within this time.
_CHECK_PERIOD_S: Final = 2.0
#: Said again and again in the log when a certificate in use has no more than this left.
_EXPIRES_SOON_S: Final = 7 * 86_400.0
_SAY_AGAIN_S: Final = 3_600.0


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """A process's certificate authority, own certificate and own key: PEM files."""

    ca: Path
    cert: Path
    key: Path

    @classmethod
    def of(cls, ca: Path | None, cert: Path | None, key: Path | None) -> TlsFiles | None:
        """From three options: all of them, or none for no TLS. Raises ConfigError: some are missing."""
        if ca is None and cert is None and key is None:
            return None
        if ca is None or cert is None or key is None:
            raise ConfigError("TLS wants three files: the certificate authority, the certificate and its key")
        return cls(ca, cert, key)

    def absolute(self) -> TlsFiles:
        """The same files for a process with another working directory."""
        return TlsFiles(self.ca.absolute(), self.cert.absolute(), self.key.absolute())


def server_context(files: TlsFiles, *, protocols: Sequence[str] = (GRPC_PROTOCOL,)) -> ssl.SSLContext:
    """For a port whose callers must show a certificate. ``protocols`` is what ALPN offers.

    Raises:
        ConfigError: a file is missing or damaged, or they do not fit together.
    """
    return _context(ssl.PROTOCOL_TLS_SERVER, files, protocols)


def client_context(files: TlsFiles, *, protocols: Sequence[str] = ()) -> ssl.SSLContext:
    """For dialling: the server's certificate must be the authority's, and name the host or address dialled.

    Raises:
        ConfigError: a file is missing or damaged, or they do not fit together.
    """
    return _context(ssl.PROTOCOL_TLS_CLIENT, files, protocols)


def _context(side: Any, files: TlsFiles, protocols: Sequence[str]) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    if side is ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    if protocols:
        context.set_alpn_protocols(list(protocols))
    try:
        context.load_verify_locations(cafile=files.ca)
        context.load_cert_chain(files.cert, files.key)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(
            f"TLS files {files.ca}, {files.cert}, {files.key}: {error.strerror or error}; "
            "`qd certs show` looks at them, `qd certs renew` makes them anew"
        ) from error
    return context


def _read_certificate(certificate: bytes) -> Certificate:
    from controlplane.base.pki import read_certificate  # cryptography: who speaks plainly starts without it

    return read_certificate(certificate)


def identity_of(certificate: bytes) -> Identity:
    """Who a certificate (PEM or DER) that passed a handshake speaks for.

    Raises:
        IdentityError: nobody.
    """
    try:
        return _read_certificate(certificate).identity
    except ConfigError as error:
        raise IdentityError(str(error)) from error


def auth_context_of(ssl_object: ssl.SSLObject | ssl.SSLSocket | None) -> Mapping[str, Sequence[bytes]]:
    """The caller's certificate in the shape of grpcio's ``auth_context()``; empty without TLS."""
    der = ssl_object.getpeercert(binary_form=True) if ssl_object is not None else None
    if der is None:
        return {}
    found = _read_certificate(der)
    return {
        "transport_security_type": [b"ssl"],
        "x509_common_name": [found.common_name.encode()],
        "x509_subject_alternative_name": [name.encode() for name in found.names],
        "x509_pem_cert": [ssl.DER_cert_to_PEM_cert(der).encode()],
    }


@dataclass(frozen=True, slots=True)
class _Loaded:
    """One reading of the three files that was found good."""

    stamp: object
    ca: bytes
    cert: bytes
    key: bytes
    leaf: Certificate
    authority: Certificate
    identity: Identity
    client: ssl.SSLContext


class Reloader:
    """The TLS files of one process, kept fresh. One per process; :meth:`run` beside everything, or nothing: then
    :attr:`client` and :meth:`channel_credentials` still see new files, since they look at every call.

    Raises (constructor):
        ConfigError: a file is missing or damaged, they do not fit together, or the certificate is nobody's.
    """

    def __init__(self, files: TlsFiles, *, clock: Clock | None = None) -> None:
        self.files = files
        self._clock = clock or SystemClock()
        self._servers: dict[tuple[str, ...], ssl.SSLContext] = {}
        self._refused: object = None
        self._warned_s = float("-inf")
        self._channel: tuple[_Loaded, grpc.ChannelCredentials] | None = None
        self._now = self._load()
        self._note()

    @property
    def identity(self) -> Identity:
        """Whom this process's own certificate speaks for."""
        return self._now.identity

    @property
    def certificate(self) -> Certificate:
        """This process's own certificate."""
        return self._now.leaf

    @property
    def client(self) -> ssl.SSLContext:
        """To dial with, now: ask again at every dial."""
        self.check()
        return self._now.client

    def server(self, *protocols: str) -> ssl.SSLContext:
        """A context for a listening port; its handshakes are always made with the newest files."""
        context = server_context(self.files, protocols=protocols)
        self._servers[protocols] = context
        # OpenSSL asks at every handshake, whether or not the client names a host, for the context to go on with.
        listening = server_context(self.files, protocols=protocols)
        listening.sni_callback = lambda connection, _name, _context: self._newest(connection, protocols)
        return listening

    def _newest(self, connection: ssl.SSLObject | ssl.SSLSocket, protocols: tuple[str, ...]) -> None:
        connection.context = self._servers[protocols]

    def server_credentials(self) -> grpc.ServerCredentials:
        """The same for a grpcio server."""
        shown = self._now

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            # Called by grpcio before every handshake, on a thread of its own: reads one attribute, changes nothing.
            nonlocal shown
            if self._now is shown:
                return None
            shown = self._now
            return _grpc_server_configuration(shown)

        return grpc.dynamic_ssl_server_credentials(
            _grpc_server_configuration(shown),
            cast(Any, fetch),  # typed as if None ("no change") were not allowed
            require_client_authentication=True,
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """To dial with, now: the same object until the files change."""
        self.check()
        if self._channel is None or self._channel[0] is not self._now:
            made = grpc.ssl_channel_credentials(self._now.ca, self._now.key, self._now.cert)
            self._channel = (self._now, made)
        return self._channel[1]

    async def run(self) -> None:
        """Look at the files every few seconds, until cancelled."""
        while True:
            await self._clock.sleep(_CHECK_PERIOD_S)
            self.check()
            self._warn()

    def check(self) -> bool:
        """Take the files if they have changed and are good; True if they were taken. Never raises: bad ones are
        logged, and the old stay in use."""
        stamp = _stamp(self.files)
        if stamp == self._now.stamp:
            return False
        try:
            loaded = self._load()
            servers = {p: server_context(self.files, protocols=p) for p in self._servers}
        except (ConfigError, IdentityError) as error:
            if stamp != self._refused:  # once per change: this is asked every few seconds
                self._refused = stamp
                metrics.RELOADS.labels("refused").inc()
                _log.error(
                    "event=certificate_refused file=%s error=%r; the old one stays in use", self.files.cert, error
                )
            return False
        self._now, self._servers, self._refused = loaded, servers, None
        metrics.RELOADS.labels("taken").inc()
        self._note()
        return True

    def _load(self) -> _Loaded:
        stamp = _stamp(self.files)
        client = client_context(self.files)  # first: OpenSSL says whether the three fit together
        try:
            ca, cert, key = (path.read_bytes() for path in (self.files.ca, self.files.cert, self.files.key))
        except OSError as error:
            raise ConfigError(f"TLS files: cannot read {error.filename}: {error.strerror}") from error
        leaf, authority = _read_certificate(cert), _read_certificate(ca)
        if not leaf.not_before_s <= self._clock.wall_ms() / 1000 < leaf.not_after_s:
            raise ConfigError(f"{self.files.cert}: expired, or not valid yet; `qd certs renew` makes it anew")
        return _Loaded(stamp, ca, cert, key, leaf, authority, leaf.identity, client)

    def _note(self) -> None:
        now = self._now
        metrics.EXPIRY_SECONDS.labels("leaf").set(now.leaf.not_after_s)
        metrics.EXPIRY_SECONDS.labels("ca").set(now.authority.not_after_s)
        _log.info(
            "event=certificate_loaded identity=%r serial=%x days_left=%.1f file=%s",
            str(now.identity), now.leaf.serial, self._seconds_left() / 86_400, self.files.cert,
        )  # fmt: skip

    def _seconds_left(self) -> float:
        return min(self._now.leaf.not_after_s, self._now.authority.not_after_s) - self._clock.wall_ms() / 1000

    def _warn(self) -> None:
        left_s = self._seconds_left()
        if left_s < _EXPIRES_SOON_S and self._clock.monotonic() - self._warned_s > _SAY_AGAIN_S:
            self._warned_s = self._clock.monotonic()
            _log.warning(
                "event=certificate_expires_soon hours_left=%.1f file=%s; renew it with: qd certs renew",
                left_s / 3600, self.files.cert,
            )  # fmt: skip


def _grpc_server_configuration(loaded: _Loaded) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(loaded.key, loaded.cert)], root_certificates=loaded.ca)


def _stamp(files: TlsFiles) -> object:
    """Changes when a file does."""
    found = []
    for path in (files.ca, files.cert, files.key):
        try:
            state = path.stat()
        except OSError as error:
            found.append((0, 0, error.errno or 0))
        else:
            found.append((state.st_mtime_ns, state.st_ino, state.st_size))
    return tuple(found)
