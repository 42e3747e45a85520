"""Tasks: fully specified requests, of either version of the protocol, as they are queued."""

from msgspec import Struct

from weave.protocol.parameters import Delivery, Parameters


class Task(Struct, frozen=True, kw_only=True):
    """Images from a prompt, and from the images that came with the request. `deliver` concerns the client's connection
    alone: the worker does not see it."""

    parameters: Parameters
    deliver: Delivery = "inline"
