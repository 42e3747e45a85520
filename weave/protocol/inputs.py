"""Images that a client sends with a request, as raw pixels: nothing in the daemon decodes a file format.

The request announces each by its size. Its bytes follow in one image frame for each, in the order of inputs_of().
"""

from typing import Literal, Protocol, TypeAlias

from msgspec import Struct

from weave.protocol.bounds import Bounds, FloatRange, Range, check_range
from weave.protocol.errors import ErrorCode, RequestError
from weave.protocol.text import ModelId, Name, Title

TEXT_TO_IMAGE = "text-to-image"
IMAGE_TO_IMAGE = "image-to-image"
INPAINTING = "inpainting"
CONTROL = "control"
REFERENCES = "references"

MAX_CONTROLS = 4  # in one request
MAX_REFERENCES = 4
# An image, a mask, controls and references.
MAX_INPUTS = 2 + MAX_CONTROLS + MAX_REFERENCES
MAX_INPUT_SIDE = 16384
# The largest bound that a config can set; a frame may not be longer than such an image.
MAX_INPUT_PIXELS = 64 * 1024 * 1024
_SIDE = Range(1, MAX_INPUT_SIDE)
# Pipelines refuse smaller or thinner ones.
_REFERENCE_SIDE = Range(64, MAX_INPUT_SIDE)
_REFERENCE_RATIO = 8
_SCALE = FloatRange(0.0, 2.0)


class InputImage(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The size of an image: RGB (3 channels) or grey (1), 8 bits a channel, rows from the top without padding."""

    width: int
    height: int
    channels: Literal[1, 3] = 3

    @property
    def size(self) -> int:
        """In bytes."""
        return self.width * self.height * self.channels


class ControlOffer(Struct, frozen=True, kw_only=True):
    """A ControlNet for the models of one family."""

    id: ModelId
    family: Name
    title: Title


ControlOffers: TypeAlias = tuple[ControlOffer, ...]


class RequestedControl(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`image` is what the ControlNet sees, such as edges or a pose. `scale` is the weight of what it adds to the model,
    from the fraction `start` of the steps to the fraction `end`."""

    id: str
    image: InputImage
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0


class WithInputs(Protocol):
    """A request or a task's parameters."""

    @property
    def image(self) -> InputImage | None:
        """The image to start from."""

    @property
    def mask(self) -> InputImage | None:
        """What to repaint."""

    @property
    def control(self) -> tuple[RequestedControl, ...]:
        """ControlNets."""

    @property
    def references(self) -> tuple[InputImage, ...]:
        """Images that the prompt refers to."""


def inputs_of(request: WithInputs) -> tuple[InputImage, ...]:
    """All images that come with the request, in the order of their frames."""
    controls = (control.image for control in request.control)
    return tuple(image for image in (request.image, request.mask, *controls, *request.references) if image)


def task_of(request: WithInputs) -> str:
    """The task's name: what the model must be able to do, besides applying ControlNets."""
    if request.references:
        return REFERENCES
    if request.image is None:
        return TEXT_TO_IMAGE
    return INPAINTING if request.mask is not None else IMAGE_TO_IMAGE


def control_task(task: str) -> str:
    """The name of `task` with ControlNets: a model may support only one of the two."""
    return CONTROL if task == TEXT_TO_IMAGE else f"{CONTROL}+{task}"


def as_requested(task: str, request: WithInputs) -> str:
    """The name of `task` with the request's ControlNets, if it has any."""
    return control_task(task) if request.control else task


def controls_for(family: str, offers: ControlOffers) -> ControlOffers:
    """The ControlNets for models of this family."""
    return tuple(offer for offer in offers if offer.family == family)


def check_input(field: str, image: InputImage, pixels: Range) -> None:
    """`pixels` is the model's bound. Raises RequestError (out_of_bounds)."""
    for name, side in (("width", image.width), ("height", image.height)):
        check_range(f"{field}.{name}", side, _SIDE)
    check_range(f"{field}.pixels", image.width * image.height, pixels)


def check_references(field: str, images: tuple[InputImage, ...], number: Range, pixels: Range) -> None:
    """`number` and `pixels` are the model's bounds. Raises RequestError (out_of_bounds)."""
    check_range(field, len(images), number)
    for image in images:
        check_input(field, image, pixels)
        for name, side in (("width", image.width), ("height", image.height)):
            check_range(f"{field}.{name}", side, _REFERENCE_SIDE)
        if max(image.width, image.height) > _REFERENCE_RATIO * min(image.width, image.height):
            text = f"{field} has one of {image.width}x{image.height}; a side may be {_REFERENCE_RATIO} times the other"
            raise RequestError(ErrorCode.OUT_OF_BOUNDS, text, field=field)


def check_controls(field: str, requested: tuple[RequestedControl, ...], offers: ControlOffers, bounds: Bounds) -> None:
    """`offers` are those for the model's family. Raises RequestError (out_of_bounds, invalid_request)."""
    check_range(field, len(requested), bounds.controls)
    offered = {offer.id for offer in offers}
    for number, control in enumerate(requested):
        if control.id not in offered:
            text = f"{field} names one that this model's family does not have; list_models returns those on offer"
            raise RequestError(ErrorCode.OUT_OF_BOUNDS, text, field=field, value=control.id[:64])
        if any(other.id == control.id for other in requested[:number]):
            raise RequestError(ErrorCode.INVALID_REQUEST, f"{field} names one twice", field=field, value=control.id)
        check_range(f"{field}.scale", control.scale, _SCALE)
        check_range(f"{field}.start", control.start, bounds.control_start)
        check_range(f"{field}.end", control.end, bounds.control_end)
        if control.start >= control.end:
            text = f"{field}.start is {control.start}; it must be less than {field}.end, which is {control.end}"
            raise RequestError(ErrorCode.OUT_OF_BOUNDS, text, field=f"{field}.start", value=control.start)
        check_input(f"{field}.image", control.image, bounds.input_pixels)
