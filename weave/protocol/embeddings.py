"""Embeddings on offer, and those that a request names. In its prompts the ID of one stands for its vectors."""

import re
from typing import TypeAlias

from msgspec import Struct

from weave.protocol.bounds import Range, check_range
from weave.protocol.errors import ErrorCode, RequestError
from weave.protocol.text import ModelId, Name, Title

MAX_EMBEDDINGS = 8  # in one request


class EmbeddingOffer(Struct, frozen=True, kw_only=True):
    """An embedding for the models of one family."""

    id: ModelId
    family: Name
    title: Title


EmbeddingOffers: TypeAlias = tuple[EmbeddingOffer, ...]


def embeddings_for(family: str, offers: EmbeddingOffers) -> EmbeddingOffers:
    """Those that fit the models of this family."""
    return tuple(offer for offer in offers if offer.family == family)


def words(ids: tuple[str, ...]) -> re.Pattern[str]:
    """Finds the IDs in a prompt, in lower or upper case, where no letter, digit, '_' or '-' is next to them. `ids` is
    not empty."""
    longest_first = sorted(ids, key=len, reverse=True)  # "a.b" is not "a"
    # ASCII inside only: elsewhere the long s, too, is an s, but its lower case is not.
    return re.compile(rf"(?<![\w-])(?ai:{'|'.join(map(re.escape, longest_first))})(?![\w-])")


def check_embeddings(field: str, requested: tuple[str, ...], offers: EmbeddingOffers, prompts: tuple[str, ...]) -> None:
    """`offers` are those for the model's family. Each ID must be in one of the `prompts`. Raises RequestError
    (out_of_bounds, invalid_request)."""
    check_range(field, len(requested), Range(0, MAX_EMBEDDINGS))
    offered = {offer.id for offer in offers}
    for number, name in enumerate(requested):
        if name not in offered:
            text = f"{field} names one that this model's family does not have; list_models returns those on offer"
            raise RequestError(ErrorCode.OUT_OF_BOUNDS, text, field=field, value=name[:64])
        if name in requested[:number]:
            raise RequestError(ErrorCode.INVALID_REQUEST, f"{field} names one twice", field=field, value=name)
    used = {found.lower() for prompt in prompts for found in words(requested).findall(prompt)} if requested else set()
    for name in requested:
        if name not in used:
            text = f"{field} names {name}, which neither the prompt nor the negative prompt has as a word"
            raise RequestError(ErrorCode.INVALID_REQUEST, text, field=field, value=name)
