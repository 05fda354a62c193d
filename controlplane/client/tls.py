"""TLS for those who stand outside and see the control plane through its client: agents, chaos, commands.

Names of ``controlplane.transport``, handed on; nothing of its own.
"""

from __future__ import annotations

from controlplane.transport.callers import caller_of
from controlplane.transport.channel import Credentials, credentials_now
from controlplane.transport.tls import Identity, IdentityKind, Reloader, TlsFiles

__all__ = ["Credentials", "Identity", "IdentityKind", "Reloader", "TlsFiles", "caller_of", "credentials_now"]
