"""`cloister proxy`'s application in a process of its own, in front of a private service.

    python -m benchmarks.inference_proxy URL

Prints its port, and serves until its standard input ends.
"""

from __future__ import annotations

import asyncio
import sys

import uvicorn

from cloister.enclave.policy import EnclavePolicy
from cloister.inference.client import AsyncPrivateClient
from cloister.inference.client.proxy import Proxy

POLICY = EnclavePolicy(kinds=("tpm",), allow_software_tee=True, allow_self_reported=True)


async def serve(url: str) -> None:
    """Serve until standard input ends."""
    async with Proxy(AsyncPrivateClient(url, POLICY)) as proxy:
        config = uvicorn.Config(
            proxy,  # type: ignore[arg-type]
            port=0,
            http="h11",
            access_log=False,
            log_level="error",
            lifespan="off",
        )
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        print(server.servers[0].sockets[0].getsockname()[1], flush=True)
        await asyncio.to_thread(sys.stdin.read)
        server.should_exit = True
        await task


def main() -> None:
    """Serve in front of the service that was named."""
    asyncio.run(serve(sys.argv[1]))


if __name__ == "__main__":
    main()
