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
from weave.client.images import Control
from weave.client.pixels import Pixels
from weave.client.synchronous import Client
from weave.protocol.inputs import InputImage
from weave.protocol.loras import RequestedLora
from weave.protocol.parameters import Enlarge

__all__ = [
    "Answer",
    "AsyncClient",
    "Client",
    "Control",
    "Enlarge",
    "InputImage",
    "InvalidRequest",
    "NotRunning",
    "Pixels",
    "ProtocolError",
    "RequestedLora",
    "WeaveError",
    "default_socket_path",
]
