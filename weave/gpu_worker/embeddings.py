"""A job's embeddings: for the job its tokenizers are copies with a token for each vector, and the text encoders' tables
have a row for each. The model's own tokenizers and tables are not changed.
"""

import contextlib
import copy
import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from transformers import AddedToken

from weave.config.child_configs import WorkerEmbedding, WorkerModel
from weave.gpu_worker.placement import Placement
from weave.models.configs import shown
from weave.models.embedding_keys import read_embedding
from weave.models.families import FAMILIES
from weave.models.family import Family
from weave.models.files import ModelFilesRefused
from weave.models.pins import pin_of, pinned
from weave.protocol.embeddings import words

# Replaces the IDs in a prompt by the tokens of their vectors.
Expand: TypeAlias = Callable[[str], str]


class EmbeddingRefused(Exception):
    """An embedding cannot be used with the model. The message has its ID and the reason."""


class _Encoder(NamedTuple):
    """A text encoder's table of tokens, and where its tokenizer is."""

    name: str
    tokenizer: str
    module: torch.nn.Embedding
    table: torch.Tensor


@contextlib.contextmanager
def added(pipeline: Any, model: WorkerModel, requested: tuple[str, ...], placement: Placement) -> Iterator[Expand]:
    """In this context the pipeline knows the embeddings' tokens. Raises EmbeddingRefused, and what running out of
    memory raises; the pipeline is then unchanged."""
    if not requested:
        yield str
        return
    encoders = _encoders(pipeline, FAMILIES[model.offer.family], placement)
    vectors = _read_all(encoders, model, requested)
    # No prompt can have such a token in it: the ID would be replaced.
    tokens = {name: [f"<{name}:{row}>" for row in range(len(of[0]))] for name, of in vectors.items()}
    with contextlib.ExitStack() as stack:
        for number, encoder in enumerate(encoders):
            rows = torch.cat([of[number] for of in vectors.values()])
            table = _extend(pipeline, encoder, [*itertools.chain.from_iterable(tokens.values())], rows, stack)
            stack.enter_context(placement.replaced(encoder.module, table))
        yield _expander(tokens)


def _encoders(pipeline: Any, family: Family, placement: Placement) -> list[_Encoder]:
    found = []
    for part in family.components:
        if part.startswith("text_encoder"):
            module = getattr(pipeline, part).get_input_embeddings()
            found.append(_Encoder(part, part.replace("text_encoder", "tokenizer"), module, placement.stored(module)))
    return found


def _read_all(
    encoders: list[_Encoder], model: WorkerModel, requested: tuple[str, ...]
) -> dict[str, list[torch.Tensor]]:
    """The vectors by ID: for each encoder a matrix, as its table is."""
    files = {embedding.offer.id: embedding for embedding in model.embeddings}
    found = {}
    for name in requested:
        try:
            found[name] = _read(encoders, model.offer.family, files[name])
        except (ModelFilesRefused, OSError, SafetensorError) as error:
            raise EmbeddingRefused(f"{name}: {error}") from None
    return found


def _read(encoders: list[_Encoder], family: str, embedding: WorkerEmbedding) -> list[torch.Tensor]:
    """Raises ModelFilesRefused, OSError, SafetensorError."""
    path = Path(embedding.path)
    with pinned(path.parent, pin_of(path, embedding.sha256)):
        header = read_embedding(path, FAMILIES[family])
        found = []
        with safe_open(path, framework="pt") as file:
            for encoder, key, width in zip(encoders, header.keys, header.widths, strict=True):
                own = encoder.table
                if width != own.shape[1]:
                    detail = f"has vectors of {width} numbers, {encoder.name} takes {own.shape[1]}"
                    raise ModelFilesRefused(f"{shown(key)} {detail}: of another family")
                # A copy, since a mapped file may change later.
                vectors = file.get_tensor(key).reshape(-1, width).to(own.device, own.dtype, copy=True)
                if not vectors.isfinite().all():
                    raise ModelFilesRefused(f"{shown(key)} is not finite in {str(own.dtype).removeprefix('torch.')}")
                found.append(vectors)
    return found


def _extend(
    pipeline: Any, encoder: _Encoder, tokens: list[str], rows: torch.Tensor, stack: contextlib.ExitStack
) -> torch.Tensor:
    """Replace the tokenizer until `stack` unwinds. Returns the table for it."""
    tokenizer, weight = getattr(pipeline, encoder.tokenizer), encoder.table
    extended = copy.deepcopy(tokenizer)
    # Normalised, they would be found in upper case too.
    extended.add_tokens([AddedToken(token, normalized=False) for token in tokens])
    numbers = extended.convert_tokens_to_ids(tokens)
    table = weight.new_zeros(max(len(weight), *(number + 1 for number in numbers)), weight.shape[1])
    table[: len(weight)] = weight
    table[numbers] = rows
    stack.callback(setattr, pipeline, encoder.tokenizer, tokenizer)
    setattr(pipeline, encoder.tokenizer, extended)
    return table


def _expander(tokens: dict[str, list[str]]) -> Expand:
    def replacement(found: re.Match[str]) -> str:
        return " ".join(tokens[found[0].lower()])

    return lambda prompt: words(tuple(tokens)).sub(replacement, prompt)
