"""What a model is asked to do, with nothing left open: what a request of either version becomes before it is queued,
and what the worker's Run is made from."""

from typing import TypeAlias

from msgspec import Struct

from weave.protocol.bounds import Bounds, Parameters, check_parameters, check_preview_every
from weave.protocol.client_messages import Delivery, ImageFormat


class TextToImage(Struct, frozen=True, kw_only=True):
    """Images from a prompt. `preview_every` is in steps; 0 asks for none. `deliver` is for the client's connection: the
    worker does not hear of it."""

    parameters: Parameters
    format: ImageFormat = "png"
    preview_every: int = 0
    deliver: Delivery = "inline"


# A second kind makes this a union; each place that must tell them apart then fails its type check.
Task: TypeAlias = TextToImage


def check_task(task: Task, bounds: Bounds, schedulers: tuple[str, ...]) -> None:
    """Raise RequestError (out_of_bounds, invalid_request) that names the first field outside its bounds."""
    check_parameters(task.parameters, bounds, schedulers)
    check_preview_every(task.preview_every, bounds)
