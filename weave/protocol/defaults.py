"""Fills in what a request leaves out."""

from msgspec import structs

from weave.protocol.bounds import Bounds
from weave.protocol.inputs import MAX_INPUT_SIDE, InputImage
from weave.protocol.parameters import Defaults, Parameters, RequestedParameters


def plainest(bounds: Bounds) -> RequestedParameters:
    """A request without parameters, and with as few references as may be."""
    return RequestedParameters(prompt="", references=(InputImage(width=64, height=64),) * bounds.references.min)


def with_defaults(request: RequestedParameters, defaults: Defaults, bounds: Bounds, *, seed: int) -> Parameters:
    """All parameters: `seed` and the model's defaults replace what the request leaves out. Where the whole image is
    generated again, a missing side is that of the image, or follows from the given side, rounded down to the bound's
    multiple."""
    requested = {name: value for name, value in structs.asdict(request).items() if value is not None}
    values = structs.asdict(defaults) | {"seed": seed} | _sides_of_image(request, bounds) | requested
    if request.cache is None and (request.image or request.control or request.references):
        values["cache"] = "none"  # step caches are for text-to-image
    return Parameters(**{name: values[name] for name in Parameters.__struct_fields__ if name in values})


def _sides_of_image(request: RequestedParameters, bounds: Bounds) -> dict[str, int]:
    image = request.image
    if image is None or request.mask_padding is not None:
        return {}
    # Other sizes are refused later. Sides may have thousands of digits: do not multiply them.
    if not all(1 <= side <= MAX_INPUT_SIDE for side in (image.width, image.height)):
        return {}
    width, height = image.width, image.height
    if request.width is not None and request.height is None:
        height = height * request.width // width
    elif request.height is not None and request.width is None:
        width = width * request.height // height
    multiple = bounds.width.multiple, bounds.height.multiple
    return {"width": width // multiple[0] * multiple[0], "height": height // multiple[1] * multiple[1]}
