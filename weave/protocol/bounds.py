"""A model's bounds, and the one check of a request against them.

The broker checks before it queues a job, and the worker checks again before it runs one: neither trusts the other.
"""

import math

from msgspec import Struct

from weave.protocol.errors import ErrorCode, Number, RequestError

MAX_SEED = 2**64 - 1


class Range(Struct, frozen=True):
    """Both ends are included; `multiple` is what the value must be divisible by."""

    min: int
    max: int
    multiple: int = 1


class FloatRange(Struct, frozen=True):
    """Both ends are included."""

    min: float
    max: float


class Bounds(Struct, frozen=True, kw_only=True):
    """What one model accepts. `pixels` bounds width * height * images; prompts are counted in UTF-8 bytes
    and in characters, the negative prompt likewise."""

    width: Range
    height: Range
    steps: Range
    cfg_scale: FloatRange
    images: Range
    pixels: Range
    prompt_bytes: Range
    prompt_characters: Range


class Parameters(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A generation with nothing left open: what the worker runs and what a picture carries with it.

    width and height are in pixels; image number i of `images` is drawn from seed (seed + i) mod 2**64.
    """

    prompt: str
    negative_prompt: str
    width: int
    height: int
    steps: int
    cfg_scale: float
    seed: int
    scheduler: str
    images: int
    # Where they differ: one prompt for each text encoder, in their order. Version 1 only.
    encoder_prompts: tuple[str, ...] = ()


def check_parameters(parameters: Parameters, bounds: Bounds, schedulers: tuple[str, ...]) -> None:
    """Raise RequestError (out_of_bounds) that names the first field outside its bounds, its value and the bound."""
    for prompt in (parameters.prompt, *parameters.encoder_prompts):
        _check_text("prompt", prompt, bounds)
    if parameters.negative_prompt:
        _check_text("negative_prompt", parameters.negative_prompt, bounds)
    check_range("width", parameters.width, bounds.width)
    check_range("height", parameters.height, bounds.height)
    check_range("steps", parameters.steps, bounds.steps)
    check_cfg_scale(parameters.cfg_scale, bounds.cfg_scale)
    check_range("seed", parameters.seed, Range(0, MAX_SEED))
    check_range("images", parameters.images, bounds.images)
    check_range("pixels", parameters.width * parameters.height * parameters.images, bounds.pixels)
    if parameters.scheduler not in schedulers:
        raise RequestError(
            ErrorCode.OUT_OF_BOUNDS,
            f"scheduler is not one of {', '.join(schedulers)}",
            field="scheduler",
            value=parameters.scheduler[:64],
        )


def check_preview_every(steps: int, bounds: Bounds) -> None:
    """Raise RequestError (out_of_bounds) unless a preview after every `steps` steps can be asked for; 0 is none."""
    check_range("preview_every", steps, Range(0, bounds.steps.max))


def _check_text(field: str, text: str, bounds: Bounds) -> None:
    # A lone surrogate can be written in JSON as \ud800, but it is no character and no tokenizer takes it.
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        raise RequestError(ErrorCode.INVALID_REQUEST, f"{field} is not valid Unicode", field=field) from None
    check_range(f"{field}_bytes", len(encoded), bounds.prompt_bytes)
    check_range(f"{field}_characters", len(text), bounds.prompt_characters)


def check_range(field: str, value: int, bound: Range) -> None:
    """Raise RequestError (out_of_bounds) unless `value` is within `bound`."""
    if not bound.min <= value <= bound.max:
        raise _out_of_bounds(field, value, bound.min, bound.max, f"it must be from {bound.min} to {bound.max}")
    if value % bound.multiple:
        rule = f"it must be a multiple of {bound.multiple}, from {bound.min} to {bound.max}"
        raise _out_of_bounds(field, value, bound.min, bound.max, rule)


def check_cfg_scale(value: float, bound: FloatRange) -> None:
    """Raise RequestError (invalid_request, out_of_bounds) unless `value` is a number within `bound`."""
    if not math.isfinite(value):
        raise RequestError(ErrorCode.INVALID_REQUEST, "cfg_scale is not finite", field="cfg_scale")
    if not bound.min <= value <= bound.max:
        raise _out_of_bounds("cfg_scale", value, bound.min, bound.max, f"it must be from {bound.min} to {bound.max}")


def _out_of_bounds(field: str, value: Number, minimum: Number, maximum: Number, rule: str) -> RequestError:
    return RequestError(
        ErrorCode.OUT_OF_BOUNDS,
        f"{field} is {str(value)[:40]}; {rule}",
        field=field,
        # JSON integers have no size, but what is echoed must fit the clients' 64 bits.
        value=value if -(2**63) <= value <= MAX_SEED else str(value)[:40],
        minimum=minimum,
        maximum=maximum,
    )
