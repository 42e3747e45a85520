"""Tasks: fully specified requests, of either version of the protocol, as they are queued."""

from typing import TypeAlias

from msgspec import Struct

from weave.protocol.parameters import Delivery, Parameters


class TextToImage(Struct, frozen=True, kw_only=True):
    """Images from a prompt. `deliver` concerns the client's connection alone: the worker does not see it."""

    parameters: Parameters
    deliver: Delivery = "inline"


# A second kind makes this a union; each place that must distinguish them then fails its type check.
Task: TypeAlias = TextToImage
