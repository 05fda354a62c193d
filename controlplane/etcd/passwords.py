"""Password hashes: made and checked off the loop, because both are slow on purpose.

scrypt (RFC 7914) from the standard library, with the parameters in the hash itself, so that they can be raised later:
``scrypt$<log2 of N>$<r>$<p>$<salt>$<hash>``, base64. One helper thread, which touches no state: a flood of logins makes
logins slow, and nothing else. Passwords are never logged, and never leave the replica that received them.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Final

from controlplane.base.errors import Code, StatusError
from controlplane.base.rand import Rand

__all__ = ["LOG2_COST", "Passwords"]

#: N = 2^14, r = 8: 16 MiB and about 50 ms of one core for each hash.
LOG2_COST: Final = 14
_BLOCK_SIZE: Final = 8
_PARALLEL: Final = 1
_SALT_BYTES: Final = 16
_HASH_BYTES: Final = 32
#: Passwords waiting for the helper thread; more are refused.
_WAITING_MAX: Final = 64
_PASSWORD_BYTES_MAX: Final = 1_024


class Passwords:
    """Hashes and checks passwords.

    Args:
        rand: where salts come from; the system's, outside tests.
        log2_cost: of new hashes.
        executor: where the work is done; None: a thread of its own.
    """

    def __init__(self, rand: Rand, *, log2_cost: int = LOG2_COST, executor: Executor | None = None) -> None:
        self._rand = rand
        self._log2_cost = log2_cost
        self._executor = executor or ThreadPoolExecutor(1, thread_name_prefix="password")
        self._waiting = 0
        # What an unknown user's password is compared with, so that the answer takes as long as for a known one.
        self._nobody = _text(log2_cost, b"\0" * _SALT_BYTES, b"\0" * _HASH_BYTES)

    async def hash(self, password: str) -> str:
        """The text to store for a password.

        Raises:
            StatusError: ResourceExhausted, too many are waiting; InvalidArgument, it is too long.
        """
        salt = self._rand.token(_SALT_BYTES)
        return _text(self._log2_cost, salt, await self._work(password, self._log2_cost, _BLOCK_SIZE, _PARALLEL, salt))

    async def matches(self, password: str, password_hash: str) -> bool:
        """Whether the hash is this password's; never of an empty hash, which takes as long to find out.

        Raises:
            StatusError: as :meth:`hash`.
        """
        _, log2_cost, block_size, parallel, salt, expected = (password_hash or self._nobody).split("$")
        found = await self._work(password, int(log2_cost), int(block_size), int(parallel), base64.b64decode(salt))
        return hmac.compare_digest(found, base64.b64decode(expected)) and bool(password_hash)

    async def _work(self, password: str, log2_cost: int, block_size: int, parallel: int, salt: bytes) -> bytes:
        data = password.encode()
        if len(data) > _PASSWORD_BYTES_MAX:
            raise StatusError(
                Code.INVALID_ARGUMENT, f"quarterdeck: the password is longer than {_PASSWORD_BYTES_MAX} bytes"
            )
        if self._waiting >= _WAITING_MAX:
            raise StatusError(Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._executor, _scrypt, data, log2_cost, block_size, parallel, salt
            )
        finally:
            self._waiting -= 1


def _scrypt(data: bytes, log2_cost: int, block_size: int, parallel: int, salt: bytes) -> bytes:
    cost = 1 << log2_cost
    memory_bytes = 128 * block_size * (cost + parallel + 2)
    return hashlib.scrypt(data, salt=salt, n=cost, r=block_size, p=parallel, maxmem=memory_bytes, dklen=_HASH_BYTES)


def _text(log2_cost: int, salt: bytes, hashed: bytes) -> str:
    encoded = "$".join(base64.b64encode(part).decode() for part in (salt, hashed))
    return f"scrypt${log2_cost}${_BLOCK_SIZE}${_PARALLEL}${encoded}"
