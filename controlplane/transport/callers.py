"""Who makes a call: the identity of the certificate behind a gRPC context.

Works for every server of ours: grpcio's, the HTTP/2 front's and the JSON gateway's contexts show the certificate the
same way (``tls.py`` says how). Parsing a certificate costs more than many a call, so identities are remembered.
"""

from __future__ import annotations

import functools
from typing import Any, Protocol

from controlplane.base.errors import Code, StatusError
from controlplane.transport.tls import Identity, IdentityError, identity_of

__all__ = ["HasAuthContext", "caller_of"]

#: Certificates remembered; each is about a kilobyte.
_REMEMBERED_MAX = 4_096


class HasAuthContext(Protocol):
    """The part of a gRPC context that is read here."""

    def auth_context(self) -> Any:
        """A mapping from names such as ``x509_pem_cert`` to sequences of bytes."""
        ...


def caller_of(context: HasAuthContext) -> Identity | None:
    """Who calls; None when the caller showed no certificate (TLS is off, or the call was made in this process).

    Raises:
        StatusError: Unauthenticated, a certificate that speaks for nobody.
    """
    certificates = context.auth_context().get("x509_pem_cert")
    if not certificates:
        return None
    found = _identity(bytes(certificates[0]))
    if isinstance(found, str):
        raise StatusError(Code.UNAUTHENTICATED, found)
    return found


@functools.lru_cache(maxsize=_REMEMBERED_MAX)
def _identity(pem: bytes) -> Identity | str:
    try:
        return identity_of(pem)
    except IdentityError as error:
        return str(error)
