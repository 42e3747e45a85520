"""The parameters of a generation, each declared once.

A field of RequestedParameters declares one: its annotation holds the type, which msgspec checks, and a `Parameter` with
the rest. The check in the broker and in the worker, weavectl's options and its manual page, the text in a PNG and the
table in docs/protocol.md are derived from these declarations. CONTRIBUTING.md says how to add one.
"""

from types import UnionType
from typing import Annotated, Any, Literal, TypeAlias, assert_never, get_args, get_origin

import msgspec
from msgspec import Struct, structs

from weave.protocol.bounds import MAX_SEED, Bounds, FloatRange, Range, check_range
from weave.protocol.embeddings import EmbeddingOffers, check_embeddings
from weave.protocol.errors import ErrorCode, RequestError
from weave.protocol.loras import LoraOffers, RequestedLora, check_loras
from weave.protocol.text import Name

ImageFormat: TypeAlias = Literal["png", "raw"]
Delivery: TypeAlias = Literal["inline", "fd"]


class OfModel(Struct, frozen=True):
    """The model's bound of this name (Bounds)."""

    name: str


class UpTo(Struct, frozen=True):
    """From 0 to the upper end of the model's bound of this name."""

    name: str


class PromptLength(Struct, frozen=True):
    """The model's prompt_bytes and prompt_characters."""

    may_be_empty: bool = False


class OfferedScheduler(Struct, frozen=True):
    """One of the model's schedulers."""


class OfferedLoras(Struct, frozen=True):
    """At most MAX_LORAS of those for the model's family, each once and within its largest weight."""


class OfferedEmbeddings(Struct, frozen=True):
    """At most MAX_EMBEDDINGS of those for the model's family, each once and in one of the prompts."""


Bound: TypeAlias = (
    Range | FloatRange | OfModel | UpTo | PromptLength | OfferedScheduler | OfferedLoras | OfferedEmbeddings
)


class Parameter(Struct, frozen=True):
    """What a declaration says besides the type. `help` is one line, without a full stop."""

    help: str
    # None: the type says it all, or, for `model`, the list of models does.
    bound: Bound | None = None
    # In words, where neither the field's own default nor Defaults says it.
    default: str = ""
    unit: str = ""
    # weavectl's option and what stands for its value; "" has none.
    option: str = ""
    # The version of weave-compute that had it first. Clients can rely on it where `status` names `feature`; without
    # one it belongs to the base of version 2.
    since: str = "0.1.0"
    feature: str | None = None
    version_1: bool = False
    in_png: bool = True


class RequestedParameters(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a client may ask for. None takes the default."""

    prompt: Annotated[str, Parameter("what to generate", PromptLength(), default="required", version_1=True)]
    negative_prompt: Annotated[
        str,
        Parameter(
            "what the image should not show",
            PromptLength(may_be_empty=True),
            default="none",
            option="--negative-prompt PROMPT",
        ),
    ] = ""
    model: Annotated[
        str | None,
        Parameter(
            "ID of the model", default="the loaded model, else the default model", option="--model ID", version_1=True
        ),
    ] = None
    width: Annotated[
        int | None,
        Parameter("width of the image", OfModel("width"), unit="pixels", option="--width N", version_1=True),
    ] = None
    height: Annotated[
        int | None,
        Parameter("height of the image", OfModel("height"), unit="pixels", option="--height N", version_1=True),
    ] = None
    steps: Annotated[
        int | None,
        Parameter("number of denoising steps", OfModel("steps"), option="--steps N", version_1=True),
    ] = None
    cfg_scale: Annotated[
        float | None,
        Parameter("how closely to follow the prompt", OfModel("cfg_scale"), option="--cfg-scale X", version_1=True),
    ] = None
    seed: Annotated[
        int | None,
        Parameter(
            "seed of the first image; image i (from 0) has seed + i mod 2^64",
            Range(0, MAX_SEED),
            default="random, below 2^32",
            option="--seed N",
            version_1=True,
        ),
    ] = None
    scheduler: Annotated[
        str | None,
        Parameter("one of the model's schedulers", OfferedScheduler(), option="--scheduler NAME"),
    ] = None
    loras: Annotated[
        tuple[RequestedLora, ...],
        Parameter(
            "LoRAs to apply, each with its weight (1 if left out)",
            OfferedLoras(),
            default="none",
            option="--lora ID[:WEIGHT]",
            since="0.2.0",
            feature="loras",
        ),
    ] = ()
    embeddings: Annotated[
        tuple[str, ...],
        Parameter(
            "embeddings to use, whose IDs stand in the prompts as words",
            OfferedEmbeddings(),
            default="none",
            option="--embedding ID",
            since="0.2.0",
            feature="embeddings",
        ),
    ] = ()
    images: Annotated[
        int,
        Parameter("number of images", OfModel("images"), option="--images N", in_png=False),
    ] = 1
    format: Annotated[
        ImageFormat,
        Parameter(
            "a PNG, or the pixels alone: RGB, 8 bits a channel, rows from the top",
            option="--format",
            feature="raw",
            in_png=False,
        ),
    ] = "png"
    preview_every: Annotated[
        int,
        Parameter(
            "an unfinished image after every N steps; 0 is never",
            UpTo("steps"),
            option="--preview N",
            feature="previews",
            in_png=False,
        ),
    ] = 0
    deliver: Annotated[
        Delivery,
        Parameter("an image frame, or a sealed memfd if the daemon allows it", feature="fd-delivery", in_png=False),
    ] = "inline"


class Defaults(Struct, frozen=True, kw_only=True):
    """A model's defaults, for what a request leaves out. width and height are in pixels."""

    width: int
    height: int
    steps: int
    cfg_scale: float
    scheduler: Name


class Parameters(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The fully specified parameters of a generation, which the worker runs.

    width and height are in pixels; image number i of `images` is generated from seed (seed + i) mod 2**64.
    """

    prompt: str
    negative_prompt: str
    width: int
    height: int
    steps: int
    cfg_scale: float
    seed: int
    scheduler: str
    loras: tuple[RequestedLora, ...] = ()
    embeddings: tuple[str, ...] = ()
    images: int
    format: ImageFormat
    preview_every: int
    # If not empty: one prompt for each text encoder, in their order. Version 1 only.
    encoder_prompts: tuple[str, ...] = ()


_DECLARED = {field.name: get_args(field.type) for field in structs.fields(RequestedParameters)}
PARAMETERS: dict[str, Parameter] = {name: parameter for name, (_, parameter) in _DECLARED.items()}
_NOTHING_REQUESTED = RequestedParameters(prompt="")


def type_of(name: str) -> Any:
    """The type of a parameter's value, without None: a class, or a Literal."""
    declared = _DECLARED[name][0]
    return declared.__args__[0] if isinstance(declared, UnionType) else declared


def choices_of(name: str) -> tuple[str, ...]:
    """The values that a parameter may have, if its type is a Literal; else none."""
    kind = type_of(name)
    return get_args(kind) if get_origin(kind) is Literal else ()


def default_of(name: str) -> str:
    """A parameter's default, in words."""
    if name in Defaults.__struct_fields__:
        return "the model's"
    return PARAMETERS[name].default or str(getattr(_NOTHING_REQUESTED, name))


def summary(name: str) -> str:
    """One line for weavectl's help and manual page."""
    parameter = PARAMETERS[name]
    unit = f", in {parameter.unit}" if parameter.unit else ""
    return f"{parameter.help}{unit} (default: {default_of(name)})"


def with_defaults(request: RequestedParameters, defaults: Defaults, *, seed: int) -> Parameters:
    """All parameters: `seed` and the model's defaults replace what the request leaves out."""
    requested = {name: value for name, value in structs.asdict(request).items() if value is not None}
    values = structs.asdict(defaults) | {"seed": seed} | requested
    return Parameters(**{name: values[name] for name in Parameters.__struct_fields__ if name in values})


def check_parameters(
    parameters: Parameters,
    bounds: Bounds,
    schedulers: tuple[str, ...],
    loras: LoraOffers = (),
    embeddings: EmbeddingOffers = (),
) -> None:
    """The check against a model's bounds, in the broker before it queues a job, and in the worker before it runs one:
    neither trusts the other. `loras` and `embeddings` are those for the model's family.

    Raises RequestError (out_of_bounds, invalid_request) with the first field outside its bound, its value and the
    bound.
    """
    for name, parameter in PARAMETERS.items():
        if parameter.bound is not None:
            _check(name, parameters, parameter.bound, bounds, schedulers, loras, embeddings)
    for prompt in parameters.encoder_prompts:
        _check_text("prompt", prompt, bounds)
    check_range("pixels", parameters.width * parameters.height * parameters.images, bounds.pixels)


def png_text(parameters: Parameters, *, model: str, seed: int) -> dict[str, str]:
    """What a PNG carries so that its image can be generated again. `seed` is this image's."""
    values = structs.asdict(parameters) | {"model": model, "seed": seed}
    return {name: _text(values[name]) for name, parameter in PARAMETERS.items() if parameter.in_png}


def _text(value: Any) -> str:
    """A value as itself, or as in a request."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _check(
    field: str,
    parameters: Parameters,
    bound: Bound,
    bounds: Bounds,
    schedulers: tuple[str, ...],
    loras: LoraOffers,
    embeddings: EmbeddingOffers,
) -> None:
    value = getattr(parameters, field)
    match bound:
        case Range() | FloatRange():
            check_range(field, value, bound)
        case OfModel():
            check_range(field, value, getattr(bounds, bound.name))
        case UpTo():
            check_range(field, value, Range(0, getattr(bounds, bound.name).max))
        case PromptLength():
            if value or not bound.may_be_empty:
                _check_text(field, value, bounds)
        case OfferedScheduler():
            _check_scheduler(value, schedulers)
        case OfferedLoras():
            check_loras(field, value, loras)
        case OfferedEmbeddings():
            check_embeddings(field, value, embeddings, (parameters.prompt, parameters.negative_prompt))
        case _:
            assert_never(bound)


def _check_text(field: str, text: str, bounds: Bounds) -> None:
    # A lone surrogate can be written in JSON as \ud800, but it is no character and no tokenizer takes it.
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        raise RequestError(ErrorCode.INVALID_REQUEST, f"{field} is not valid Unicode", field=field) from None
    check_range(f"{field}_bytes", len(encoded), bounds.prompt_bytes)
    check_range(f"{field}_characters", len(text), bounds.prompt_characters)


def _check_scheduler(scheduler: str, schedulers: tuple[str, ...]) -> None:
    if scheduler not in schedulers:
        raise RequestError(
            ErrorCode.OUT_OF_BOUNDS,
            f"scheduler is not one of {', '.join(schedulers)}",
            field="scheduler",
            value=scheduler[:64],
        )
