"""What the declaration of a parameter (parameters.py) consists of: the kinds of bounds, and the rest."""

from typing import TypeAlias

from msgspec import Struct

from weave.protocol.bounds import FloatRange, Range


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


class OfferedCache(Struct, frozen=True):
    """`none`, or one of the model's step caches."""


class OfferedLoras(Struct, frozen=True):
    """At most MAX_LORAS of those for the model's family, each once and within its largest weight."""


class OfferedEmbeddings(Struct, frozen=True):
    """At most MAX_EMBEDDINGS of those for the model's family, each once and in one of the prompts."""


class InputSize(Struct, frozen=True):
    """Each image within the model's input_pixels."""


class OfferedControls(Struct, frozen=True):
    """At most MAX_CONTROLS of those for the model's family, each once."""


class Enlarged(Struct, frozen=True):
    """A scale for which the larger image is within the model's bounds."""


Bound: TypeAlias = (
    Range
    | FloatRange
    | OfModel
    | UpTo
    | PromptLength
    | OfferedScheduler
    | OfferedCache
    | OfferedLoras
    | OfferedEmbeddings
    | InputSize
    | OfferedControls
    | Enlarged
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
