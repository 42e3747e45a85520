"""A model's bounds, and the check of one value against one of them."""

import math

from msgspec import Struct

from weave.protocol.errors import ErrorCode, Number, RequestError

MAX_SEED = 2**64 - 1


class Range(Struct, frozen=True):
    """Both ends are included; the value must be divisible by `multiple`."""

    min: int
    max: int
    multiple: int = 1


class FloatRange(Struct, frozen=True):
    """Both ends are included."""

    min: float
    max: float


class Bounds(Struct, frozen=True, kw_only=True):
    """What one model accepts. `pixels` bounds width * height * images, `inpainting_pixels` width * height with a mask,
    `input_pixels` each image that a client sends, `references` the number of reference images, `controls` that of
    ControlNets, `control_start` and `control_end` the fractions of the steps between which they are applied, `batch`
    the images of one pass. The lengths of the prompt and of the negative prompt are bounded in UTF-8 bytes and in
    characters."""

    width: Range
    height: Range
    steps: Range
    cfg_scale: FloatRange
    images: Range
    pixels: Range
    prompt_bytes: Range
    prompt_characters: Range
    # An older daemon, which does not list these, takes no images and generates each image alone.
    inpainting_pixels: Range = Range(0, 0)
    input_pixels: Range = Range(0, 0)
    references: Range = Range(0, 0)
    controls: Range = Range(0, 0)
    control_start: FloatRange = FloatRange(0.0, 0.0)
    control_end: FloatRange = FloatRange(0.0, 0.0)
    batch: Range = Range(1, 1)


def check_range(field: str, value: Number, bound: Range | FloatRange) -> None:
    """Raise RequestError (out_of_bounds; invalid_request if `value` is not finite) unless `value` is within `bound`."""
    if isinstance(value, float) and not math.isfinite(value):
        raise RequestError(ErrorCode.INVALID_REQUEST, f"{field} is not finite", field=field)
    if not bound.min <= value <= bound.max:
        raise _out_of_bounds(field, value, bound, f"it must be from {bound.min} to {bound.max}")
    if isinstance(bound, Range) and value % bound.multiple:
        rule = f"it must be a multiple of {bound.multiple}, from {bound.min} to {bound.max}"
        raise _out_of_bounds(field, value, bound, rule)


def _out_of_bounds(field: str, value: Number, bound: Range | FloatRange, rule: str) -> RequestError:
    # JSON integers may have thousands of digits: Python refuses to convert the longest to decimal, and the echoed value
    # must fit the clients' 64 bits.
    fits = isinstance(value, float) or -(2**63) <= value <= MAX_SEED
    shown = str(value) if fits else _decimal(value)
    return RequestError(
        ErrorCode.OUT_OF_BOUNDS,
        f"{field} is {shown[:40]}; {rule}",
        field=field,
        value=value if fits else shown[:40],
        minimum=bound.min,
        maximum=bound.max,
    )


def _decimal(value: Number) -> str:
    """Exact up to 40 digits; longer ones are never shown whole."""
    return str(value) if abs(value) < 10**40 else f"{'-' if value < 0 else ''}{hex(int(abs(value)))}"
