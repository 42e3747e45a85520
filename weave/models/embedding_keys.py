"""The tensors of an embedding's file (textual inversion), as the web UI of AUTOMATIC1111 and diffusers write them: one
for each text encoder, whose rows are vectors that take the place of tokens.
"""

from math import prod
from pathlib import Path
from typing import NamedTuple

from weave.models.assets import read_header
from weave.models.configs import shown
from weave.models.families import FAMILIES
from weave.models.family import Family
from weave.models.files import Header, ModelFilesRefused
from weave.models.pins import check_pins, pin_of

# CLIP takes 77 tokens, of which two are for start and end.
MAX_VECTORS = 75
# For two text encoders, in their order. For one the only key may be any: emb_params, or the token that was trained.
_PAIRS = (("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1"))
_DTYPES = ("F16", "BF16", "F32", "F64")


class Embedding(NamedTuple):
    """`keys` are those of the tensors, and `widths` how many numbers a vector of each has, in the encoders' order."""

    keys: tuple[str, ...]
    widths: tuple[int, ...]
    vectors: int


def embedding_of(header: Header) -> Embedding:
    """What the file of an embedding holds, for whatever model. Raises ModelFilesRefused, with the key."""
    pairs = [pair for pair in _PAIRS if header.keys() == set(pair)]
    keys = pairs[0] if pairs else tuple(header)
    if len(keys) != 1 and not pairs:
        pair = " and ".join(_PAIRS[0])
        raise ModelFilesRefused(f"has {len(header)} tensors, expected those of an embedding: one, or {pair}")
    shapes = []
    for key in keys:
        dtype, shape = header[key]
        if dtype not in _DTYPES:
            raise ModelFilesRefused(f"{shown(key)} is of {dtype}, expected one of {', '.join(_DTYPES)}")
        if len(shape) not in (1, 2) or not prod(shape):
            raise ModelFilesRefused(f"{shown(key)} is of shape {list(shape)}, expected [vectors, width]")
        rows = shape[0] if len(shape) == 2 else 1
        if rows > MAX_VECTORS:
            raise ModelFilesRefused(f"{shown(key)} has {rows} vectors; at most {MAX_VECTORS} fit into a prompt")
        shapes.append((rows, shape[-1]))
    vectors = {rows for rows, _ in shapes}
    if len(vectors) > 1:
        raise ModelFilesRefused(f"{' and '.join(map(shown, keys))} have {shapes[0][0]} and {shapes[1][0]} vectors")
    return Embedding(keys, tuple(width for _, width in shapes), shapes[0][0])


def read_embedding(path: Path, family: Family) -> Embedding:
    """From the header of a file, for a model of that family. Raises ModelFilesRefused, with the file's name."""
    header = read_header(path)
    try:
        found = embedding_of(header)
    except ModelFilesRefused as error:
        raise ModelFilesRefused(f"{path.name}: {error}") from None
    needed = len(family.embedding_widths)
    if len(found.keys) != needed:
        detail = f"is for {len(found.keys)} text encoders, those of family {family.name} have {needed}"
        raise ModelFilesRefused(f"{path.name}: {detail}: of another family")
    return found


def families_of(embedding: Embedding) -> tuple[str, ...]:
    """Those whose published models have text encoders of these widths."""
    return tuple(name for name, family in FAMILIES.items() if family.embedding_widths == embedding.widths)


def check_file(path: Path, family: str, sha256: str | None) -> None:
    """Without a model: whether it is the file of an embedding. Raises ModelFilesRefused."""
    check_pins(path.parent, pin_of(path, sha256))
    read_embedding(path, FAMILIES[family])
