"""The parameters of a generation, each declared once.

A field of RequestedParameters declares one: its annotation holds the type, which msgspec checks, and a `Parameter` with
the rest. The check in the broker and in the worker, weavectl's options and its manual page, the text in a PNG and the
table in docs/protocol.md are derived from these declarations. CONTRIBUTING.md says how to add one.
"""

from types import UnionType
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

import msgspec
from msgspec import Struct, structs

from weave.protocol.bounds import MAX_SEED, FloatRange, Range
from weave.protocol.declaration import (
    Enlarged,
    InputSize,
    OfferedCache,
    OfferedControls,
    OfferedEmbeddings,
    OfferedLoras,
    OfferedScheduler,
    OfModel,
    Parameter,
    PromptLength,
    UpTo,
)
from weave.protocol.inputs import InputImage, RequestedControl
from weave.protocol.loras import RequestedLora
from weave.protocol.text import Name

ImageFormat: TypeAlias = Literal["png", "raw"]
Delivery: TypeAlias = Literal["inline", "fd"]
# How a denoiser skips blocks at some steps; see diffusers' documentation.
StepCache: TypeAlias = Literal["none", "first_block", "taylorseer", "magcache"]


class Enlarge(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A second pass on the image, `scale` times as wide and high. `strength` is how much that pass may change."""

    scale: float = 2.0
    strength: float = 0.5


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
    cache: Annotated[
        StepCache | None,
        Parameter(
            "one of the model's step caches, which reuse results of earlier steps: faster, but pixels differ",
            OfferedCache(),
            option="--cache",
            since="0.2.0",
            feature="step-caches",
        ),
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
    image: Annotated[
        InputImage | None,
        Parameter(
            "image to start from",
            InputSize(),
            default="none",
            option="--image FILE",
            since="0.2.0",
            feature="input-images",
        ),
    ] = None
    strength: Annotated[
        float,
        Parameter(
            "how much of the image to change: the fraction of the steps that run",
            FloatRange(0.0, 1.0),
            option="--strength X",
            since="0.2.0",
            feature="input-images",
        ),
    ] = 0.75
    mask: Annotated[
        InputImage | None,
        Parameter(
            "what to repaint of the image: white is repainted, black is kept exactly",
            InputSize(),
            default="none",
            option="--mask FILE",
            since="0.2.0",
            feature="input-images",
        ),
    ] = None
    mask_padding: Annotated[
        int | None,
        Parameter(
            "repaint at full resolution only the masked part, with this margin around it",
            Range(0, 1024),
            default="the whole image",
            unit="pixels",
            option="--mask-padding N",
            since="0.2.0",
            feature="input-images",
        ),
    ] = None
    control: Annotated[
        tuple[RequestedControl, ...],
        Parameter(
            "ControlNets to apply, each with the image that it sees",
            OfferedControls(),
            default="none",
            option="--control ID[:SCALE]=FILE",
            since="0.2.0",
            feature="control",
        ),
    ] = ()
    references: Annotated[
        tuple[InputImage, ...],
        Parameter(
            "images that the prompt refers to",
            InputSize(),
            default="none",
            option="--reference FILE",
            since="0.2.0",
            feature="references",
        ),
    ] = ()
    enlarge: Annotated[
        Enlarge | None,
        Parameter(
            "enlarge the image by SCALE and refine it in a second pass",
            Enlarged(),
            default="none",
            option="--enlarge SCALE[:STRENGTH]",
            since="0.2.0",
            feature="enlarge",
        ),
    ] = None
    images: Annotated[
        int,
        Parameter("number of images", OfModel("images"), option="--images N", in_png=False),
    ] = 1
    batch: Annotated[
        int,
        Parameter(
            "number of images that one pass generates together: faster, but pixels may differ slightly",
            OfModel("batch"),
            option="--batch N",
            since="0.2.0",
            feature="batch",
        ),
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


# The sides of enlarged images are multiples of this, which suits every family.
_MULTIPLE = 16


class Defaults(Struct, frozen=True, kw_only=True):
    """A model's defaults, for what a request leaves out. width and height are in pixels."""

    width: int
    height: int
    steps: int
    cfg_scale: float
    scheduler: Name
    cache: StepCache = "none"


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
    cache: StepCache = "none"
    loras: tuple[RequestedLora, ...] = ()
    embeddings: tuple[str, ...] = ()
    image: InputImage | None = None
    strength: float = 0.75
    mask: InputImage | None = None
    mask_padding: int | None = None
    control: tuple[RequestedControl, ...] = ()
    references: tuple[InputImage, ...] = ()
    enlarge: Enlarge | None = None
    images: int
    batch: int = 1
    format: ImageFormat
    preview_every: int
    # If not empty: one prompt for each text encoder, in their order. Version 1 only.
    encoder_prompts: tuple[str, ...] = ()

    @property
    def output_size(self) -> tuple[int, int]:
        """The width and height of the finished images, in pixels. Where only the masked part is repainted, they are
        those of the whole image."""
        if self.image is not None and self.mask_padding is not None:
            return self.image.width, self.image.height
        if self.enlarge is not None:
            width, height = (int(side * self.enlarge.scale) for side in (self.width, self.height))
            return width // _MULTIPLE * _MULTIPLE, height // _MULTIPLE * _MULTIPLE
        return self.width, self.height


_DECLARED = {field.name: get_args(field.type) for field in structs.fields(RequestedParameters)}
PARAMETERS: dict[str, Parameter] = {name: parameter for name, (_, parameter) in _DECLARED.items()}
_NOTHING_REQUESTED = RequestedParameters(prompt="")


def type_of(name: str) -> Any:
    """The type of a parameter's value, without None: a class, or a Literal."""
    declared = _DECLARED[name][0]
    return get_args(declared)[0] if get_origin(declared) in (Union, UnionType) else declared


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


def png_text(parameters: Parameters, *, model: str, seed: int) -> dict[str, str]:
    """What a PNG carries so that its image can be generated again. `seed` is this image's."""
    values = structs.asdict(parameters) | {"model": model, "seed": seed}
    shown = {name: values[name] for name, parameter in PARAMETERS.items() if parameter.in_png}
    return {name: _text(value) for name, value in shown.items() if value is not None}


def _text(value: Any) -> str:
    """A value as itself, or as in a request."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
