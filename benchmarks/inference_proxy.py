"""`cloister proxy`'s application in a process of its own, in front of a private service.

    python -m benchmarks.inference_proxy URL

Prints its port, and serves until its standard input ends.
"""

from __future__ import annotations

import asyncio
import sys

from benchmarks.inference_plain import serve
from cloister.enclave.policy import EnclavePolicy
from cloister.inference.client import AsyncPrivateClient
from cloister.inference.client.proxy import Proxy

POLICY = EnclavePolicy(kinds=("tpm",), allow_software_tee=True, allow_self_reported=True)


async def proxied(url: str) -> None:
    """Serve in front of a service until standard input ends."""
    async with Proxy(AsyncPrivateClient(url, POLICY)) as proxy:
        await serve(proxy)


def main() -> None:
    """Serve in front of the service that was named."""
    asyncio.run(proxied(sys.argv[1]))


if __name__ == "__main__":
    main()
