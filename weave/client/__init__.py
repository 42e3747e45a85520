"""The Python client: `Client` for synchronous code, `AsyncClient` for asyncio. See docs/protocol.md."""

from weave.client.asynchronous import AsyncClient
from weave.client.codec import (
    Answer,
    InvalidRequest,
    NotRunning,
    ProtocolError,
    WeaveError,
    default_socket_path,
)
from weave.client.synchronous import Client

__all__ = [
    "Answer",
    "AsyncClient",
    "Client",
    "InvalidRequest",
    "NotRunning",
    "ProtocolError",
    "WeaveError",
    "default_socket_path",
]
