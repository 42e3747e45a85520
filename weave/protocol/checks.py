"""Checks the parameters of a generation against what a model offers. The broker does so before it queues a job, and the
worker before it runs one."""

from typing import assert_never

from msgspec import Struct

from weave.protocol.bounds import Bounds, FloatRange, Range, check_range
from weave.protocol.declaration import (
    Bound,
    Enlarged,
    InputSize,
    OfferedCache,
    OfferedControls,
    OfferedEmbeddings,
    OfferedLoras,
    OfferedScheduler,
    OfModel,
    PromptLength,
    UpTo,
)
from weave.protocol.embeddings import EmbeddingOffers, check_embeddings
from weave.protocol.errors import ErrorCode, RequestError
from weave.protocol.inputs import (
    IMAGE_TO_IMAGE,
    INPAINTING,
    REFERENCES,
    TEXT_TO_IMAGE,
    ControlOffers,
    as_requested,
    check_controls,
    check_input,
    check_references,
    task_of,
)
from weave.protocol.loras import LoraOffers, check_loras
from weave.protocol.parameters import PARAMETERS, Enlarge, Parameters


class Offered(Struct, frozen=True, kw_only=True):
    """What one model's requests may use. `loras`, `embeddings` and `controls` are those for its family."""

    bounds: Bounds
    schedulers: tuple[str, ...]
    caches: tuple[str, ...] = ()
    tasks: tuple[str, ...] = (TEXT_TO_IMAGE,)
    loras: LoraOffers = ()
    embeddings: EmbeddingOffers = ()
    controls: ControlOffers = ()


def check_parameters(parameters: Parameters, offered: Offered) -> None:
    """Broker and worker both call it: neither trusts the other.

    Raises RequestError (out_of_bounds, invalid_request) with the first field outside its bound, its value and the
    bound.
    """
    for name, parameter in PARAMETERS.items():
        if parameter.bound is not None:
            _check(name, parameters, parameter.bound, offered)
    for prompt in parameters.encoder_prompts:
        _check_text("prompt", prompt, offered.bounds)
    _check_tasks(parameters, offered.tasks)
    _check_region(parameters, offered.bounds)
    _check_steps(parameters)
    pixels, (width, height) = offered.bounds.pixels, parameters.output_size
    check_range("pixels", parameters.width * parameters.height * parameters.images, pixels)
    check_range("pixels", width * height * parameters.images, Range(1, pixels.max))  # may be that of a small image


def _check(field: str, parameters: Parameters, bound: Bound, offered: Offered) -> None:  # noqa: PLR0912 - a table
    value, bounds = getattr(parameters, field), offered.bounds
    match bound:
        case Range() | FloatRange():
            if value is not None:
                check_range(field, value, bound)
        case OfModel():
            check_range(field, value, getattr(bounds, bound.name))
        case UpTo():
            check_range(field, value, Range(0, getattr(bounds, bound.name).max))
        case PromptLength():
            if value or not bound.may_be_empty:
                _check_text(field, value, bounds)
        case OfferedScheduler():
            _check_scheduler(value, offered.schedulers)
        case OfferedCache():
            _check_cache(value, parameters, offered.caches)
        case OfferedLoras():
            check_loras(field, value, offered.loras)
        case OfferedEmbeddings():
            check_embeddings(field, value, offered.embeddings, (parameters.prompt, parameters.negative_prompt))
        case InputSize():
            if isinstance(value, tuple):
                check_references(field, value, bounds.references, bounds.input_pixels)
            elif value is not None:
                check_input(field, value, bounds.input_pixels)
        case OfferedControls():
            check_controls(field, value, offered.controls, bounds)
        case Enlarged():
            if value is not None:
                _check_enlarged(field, value, parameters, bounds)
        case _:
            assert_never(bound)


def _check_enlarged(field: str, enlarge: Enlarge, parameters: Parameters, bounds: Bounds) -> None:
    check_range(f"{field}.scale", enlarge.scale, FloatRange(1.0, 4.0))
    check_range(f"{field}.strength", enlarge.strength, FloatRange(0.0, 1.0))
    width, height = parameters.output_size
    for name, side, bound in (("width", width, bounds.width), ("height", height, bounds.height)):
        check_range(f"{field}.{name}", side, Range(bound.min, bound.max))


def _check_tasks(parameters: Parameters, tasks: tuple[str, ...]) -> None:
    """What a request needs of the model, and which fields need or exclude others."""
    for field, needed, task in (
        ("mask", parameters.mask and not parameters.control, INPAINTING),
        ("image", parameters.image and not parameters.mask and not parameters.control, IMAGE_TO_IMAGE),
        ("control", parameters.control, as_requested(task_of(parameters), parameters)),
        ("references", parameters.references, REFERENCES),
        ("enlarge", parameters.enlarge, as_requested(IMAGE_TO_IMAGE, parameters)),
    ):
        if needed and task not in tasks:
            text = f"{field} is for models whose tasks include {task}; this model's are {', '.join(tasks)}"
            raise RequestError(ErrorCode.OUT_OF_BOUNDS, text, field=field)
    if task_of(parameters) == TEXT_TO_IMAGE and not parameters.control and TEXT_TO_IMAGE not in tasks:
        text = f"a prompt alone is for models whose tasks include {TEXT_TO_IMAGE}; this model's are {', '.join(tasks)}"
        raise RequestError(ErrorCode.OUT_OF_BOUNDS, text, field="references")
    for other in ("mask", "references"):
        if parameters.enlarge and getattr(parameters, other):
            raise RequestError(ErrorCode.INVALID_REQUEST, f"enlarge is not for requests with {other}", field="enlarge")
    for field, value, needs in (
        ("mask", parameters.mask, "image"),
        ("mask_padding", parameters.mask_padding is not None, "mask"),
    ):
        if value and getattr(parameters, needs) is None:
            raise RequestError(ErrorCode.INVALID_REQUEST, f"{field} is only for requests with {needs}", field=field)
    if parameters.references and parameters.image:
        text = "references and image exclude each other: a model that takes references starts from noise"
        raise RequestError(ErrorCode.INVALID_REQUEST, text, field="references")
    if parameters.mask and parameters.image:
        theirs, ours = (
            (parameters.mask.width, parameters.mask.height),
            (parameters.image.width, parameters.image.height),
        )
        if theirs != ours:
            text = f"mask is {theirs[0]}x{theirs[1]}; it must have the size of image, which is {ours[0]}x{ours[1]}"
            raise RequestError(ErrorCode.INVALID_REQUEST, text, field="mask")


def _check_region(parameters: Parameters, bounds: Bounds) -> None:
    """What is repainted, and with `mask_padding` the enlarged part, has pixels in both directions."""
    image, width, height = parameters.image, parameters.width, parameters.height
    if image is None or parameters.mask is None:
        return
    check_range("inpainting_pixels", width * height, bounds.inpainting_pixels)
    is_thin = image.width * height < image.height or image.height * width < image.width
    if parameters.mask_padding is not None and is_thin:
        text = f"image is {image.width}x{image.height}, too thin for mask_padding with {width}x{height}"
        raise RequestError(ErrorCode.OUT_OF_BOUNDS, text, field="image")


def _check_steps(parameters: Parameters) -> None:
    """At least one step must run; as in diffusers, int(steps * strength) do."""
    strengths = {"strength": parameters.strength} if parameters.image else {}
    strengths |= {"enlarge.strength": parameters.enlarge.strength} if parameters.enlarge else {}
    for field, strength in strengths.items():
        if int(parameters.steps * strength) < 1:
            least = 1 / parameters.steps
            text = (
                f"{field} is {strength}; with steps {parameters.steps} it must be at least {least:g} for a step to run"
            )
            raise RequestError(ErrorCode.OUT_OF_BOUNDS, text, field=field, value=strength, minimum=least, maximum=1.0)


def _check_text(field: str, text: str, bounds: Bounds) -> None:
    # A lone surrogate can be written in JSON as \ud800, but it is no character and no tokenizer takes it.
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        raise RequestError(ErrorCode.INVALID_REQUEST, f"{field} is not valid Unicode", field=field) from None
    check_range(f"{field}_bytes", len(encoded), bounds.prompt_bytes)
    check_range(f"{field}_characters", len(text), bounds.prompt_characters)


def _check_cache(cache: str, parameters: Parameters, caches: tuple[str, ...]) -> None:
    if cache not in ("none", *caches):
        raise RequestError(
            ErrorCode.OUT_OF_BOUNDS,
            f"cache is not one of {', '.join(('none', *caches))}",
            field="cache",
            value=cache,
        )
    for other in ("image", "control", "references"):
        if cache != "none" and getattr(parameters, other):
            raise RequestError(ErrorCode.INVALID_REQUEST, f"cache is not for requests with {other}", field="cache")


def _check_scheduler(scheduler: str, schedulers: tuple[str, ...]) -> None:
    if scheduler not in schedulers:
        raise RequestError(
            ErrorCode.OUT_OF_BOUNDS,
            f"scheduler is not one of {', '.join(schedulers)}",
            field="scheduler",
            value=scheduler[:64],
        )
