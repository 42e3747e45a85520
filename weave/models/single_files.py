"""Models as single files: which family a file belongs to, and which of its tensors belong to which component.

Only names and shapes of tensors are looked at here. gpu_worker/converters.py gives the tensors the names of the
libraries' classes.
"""

import re
from collections.abc import Callable, Mapping
from math import prod
from types import MappingProxyType
from typing import Any, NamedTuple

from msgspec import Struct

from weave.models.files import Header, ModelFilesRefused

DENOISERS = ("unet", "transformer")
# Before the names of their tensors, in files with several components.
DENOISER = "model.diffusion_model."


class FilePart(Struct, frozen=True):
    """A component's tensors in a file. `prefixes` come before their names in a file with several components, and maybe
    in one of its own. Names that begin with `own` are those of the component's class; the others are for `converter`, a
    name in gpu_worker/converters.py."""

    prefixes: tuple[str, ...]
    converter: str | None = None
    own: tuple[str, ...] = ()


class ShippedTokenizer(Struct, frozen=True):
    """A tokenizer that comes with the daemon, since single files have none. `folder` is in shipped/; `pad_token`
    replaces its own."""

    folder: str
    pad_token: str | None = None


class StoredValue(NamedTuple):
    """A tensor of so many `numbers`, of a kind in configs.KINDS, that are a value of a config: `key` in that of the
    component `part`, or of "scheduler". Several are a list there."""

    part: str
    key: str
    kind: str
    numbers: int = 1


class SingleFile(Struct, frozen=True, kw_only=True):
    """How a family's models come as single files. `is_of` tells whether a file with the UNet or transformer is of the
    family; `derive` tells from such a file, by component, the values of the configs that differ between its models.
    `velocity_bias` is a parameter of the UNet whose standard deviation tells whether the model predicts velocity, where
    nothing else does; `values` are tensors, by name, whose numbers the worker reads. `usual_files` says where people
    get components that files lack.

    The parts `in_gguf` may be GGUF files.

    Where `layouts` names repositories on the Hub, a model needs a layout: their configs and their tokenizer, which the
    daemon does not have."""

    parts: Mapping[str, FilePart]
    is_of: Callable[[Header], bool]
    derive: Callable[[Header], Mapping[str, dict[str, Any]]] = lambda header: {}
    tokenizers: Mapping[str, ShippedTokenizer] = MappingProxyType({})
    layouts: tuple[str, ...] = ()
    in_gguf: tuple[str, ...] = ()
    velocity_bias: str | None = None
    values: Mapping[str, StoredValue] = MappingProxyType({})
    usual_files: Mapping[str, str] = MappingProxyType({})


CLIP = ShippedTokenizer("clip_tokenizer")
OPEN_CLIP = ShippedTokenizer("clip_tokenizer", "!")
T5 = ShippedTokenizer("t5_tokenizer")

UNET = FilePart((DENOISER,), "unet", ("down_blocks.", "up_blocks.", "mid_block.", "time_embedding."))


def of_vae(converter: str) -> FilePart:
    """A VAE's tensors."""
    return FilePart(("first_stage_model.", "vae."), converter, ("encoder.down_blocks.", "decoder.up_blocks."))


VAE = of_vae("vae")


def of_transformer(converter: str, *own: str) -> FilePart:
    """A transformer's tensors."""
    return FilePart((DENOISER,), converter, own or ("transformer_blocks.", "single_transformer_blocks."))


def of_prefix(*prefixes: str) -> FilePart:
    """Tensors with the names of their class."""
    return FilePart(prefixes)


def tensors_of(part: FilePart, header: Header, *, alone: bool) -> dict[str, str]:
    """The names of the part's tensors in the file, by their names without prefix; none if the file lacks the part.
    `alone` is whether a file without its prefixes has nothing else."""
    for prefix in part.prefixes:
        if found := {name.removeprefix(prefix): name for name in header if name.startswith(prefix)}:
            return found
    return {name: name for name in header} if alone else {}


def values_of(file: SingleFile, header: Header) -> dict[str, StoredValue]:
    """Those of `file.values` that a file has. Raises ModelFilesRefused."""
    found = {name: value for name, value in file.values.items() if name in header}
    for name, value in found.items():
        if prod(shape := header[name].shape) != value.numbers:
            raise ModelFilesRefused(f"{name}: its shape is {list(shape)}, expected one of {value.numbers} numbers")
    return found


def denoiser_of(header: Header) -> Header:
    """The UNet's or transformer's tensors, without prefix."""
    with_prefix = {name.removeprefix(DENOISER): tensor for name, tensor in header.items() if name.startswith(DENOISER)}
    return with_prefix or header


def blocks(header: Header, name: str, tensor: str = "") -> list[int]:
    """The numbers of the blocks `name` that have any tensors, or one whose name begins with `tensor`."""
    pattern = re.compile(rf"{re.escape(name)}\.([0-9]{{1,4}})\.{re.escape(tensor)}")
    return sorted({int(found[1]) for found in map(pattern.match, header) if found})


def context_width(header: Header) -> int | None:
    """The width of the text embeddings that a UNet takes."""
    shapes = (tensor.shape for name, tensor in header.items() if name.endswith(".attn2.to_k.weight"))
    return next((shape[1] for shape in shapes if len(shape) > 1), None)
