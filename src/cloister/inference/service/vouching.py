"""Evidence for a service's key set, made outside the worker, for the machine speaks for all that runs on it.

What evidence commits to is written here and nowhere else: the purpose, the asker's nonce, and the digest of
the key set that the worker has just named. Making it takes a TPM long, so one thread makes one piece after
another, and of those who wait there is a bounded number.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from cloister.enclave.broker import Attests
from cloister.errors import CloisterError, StorageError
from cloister.inference.exchange import KeySet, Published, keys_report_data

__all__ = ["Vouching"]


class Vouching:
    """Makes what a service publishes.

    Args:
        attester: makes evidence of this machine.
        most: how many may wait.
        say: tells the operator a line, where evidence cannot be made.
    """

    def __init__(self, attester: Attests, most: int, say: Callable[[str], None]) -> None:
        self._attester, self._most, self._say = attester, most, say
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cloister-attest")
        self._waiting = 0

    async def publish(self, nonce: bytes, key_set: bytes) -> bytes:
        """Return the JSON of `Published`.

        Args:
            nonce: the asker's, 32 bytes.
            key_set: canonical bytes, as the worker named them.

        Raises:
            StorageError: too many wait already, or no evidence can be made now.
        """
        if self._waiting >= self._most:
            raise StorageError("too many wait for evidence")
        data = keys_report_data(nonce, KeySet.from_bytes(key_set))
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            evidence = await loop.run_in_executor(self._thread, self._attester.attest, data)
        except CloisterError as error:
            self._say(f"No evidence could be made: {error}")
            raise StorageError("no evidence could be made") from error
        finally:
            self._waiting -= 1
        return Published(key_set, evidence.to_json()).to_json()

    def close(self) -> None:
        """Let go of the thread; what it has begun it ends."""
        self._thread.shutdown(wait=False, cancel_futures=True)
