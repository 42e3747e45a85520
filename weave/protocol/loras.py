"""LoRAs on offer, and the LoRAs that a request names. A client names them by ID; files are the config's business."""

from typing import TypeAlias

from msgspec import Struct

from weave.protocol.bounds import Range, check_range
from weave.protocol.errors import ErrorCode, RequestError
from weave.protocol.text import ModelId, Name, Title

MAX_LORAS = 8  # in one request


class LoraOffer(Struct, frozen=True, kw_only=True):
    """A LoRA for the models of one family. A request may use it with weights from -max_weight to max_weight."""

    id: ModelId
    family: Name
    title: Title
    max_weight: float


LoraOffers: TypeAlias = tuple[LoraOffer, ...]


class RequestedLora(Struct, frozen=True, forbid_unknown_fields=True):
    """`weight` scales what the LoRA changes: 1 as it was trained, 0 not at all."""

    id: str
    weight: float = 1.0


def loras_for(family: str, offers: LoraOffers) -> LoraOffers:
    """Those that fit the models of this family."""
    return tuple(offer for offer in offers if offer.family == family)


def check_loras(field: str, requested: tuple[RequestedLora, ...], offers: LoraOffers) -> None:
    """`offers` are those for the model's family. Raises RequestError (out_of_bounds, invalid_request)."""
    check_range(field, len(requested), Range(0, MAX_LORAS))
    largest = {offer.id: offer.max_weight for offer in offers}
    for number, lora in enumerate(requested):
        if lora.id not in largest:
            text = f"{field} names one that this model's family does not have; list_models returns those on offer"
            raise RequestError(ErrorCode.OUT_OF_BOUNDS, text, field=field, value=lora.id[:64])
        if any(other.id == lora.id for other in requested[:number]):
            raise RequestError(ErrorCode.INVALID_REQUEST, f"{field} names one twice", field=field, value=lora.id)
        bound = largest[lora.id]
        if not -bound <= lora.weight <= bound:
            text = f"{field}: the weight of {lora.id} is {lora.weight}; it must be from {-bound} to {bound}"
            raise RequestError(
                ErrorCode.OUT_OF_BOUNDS, text, field=field, value=lora.weight, minimum=-bound, maximum=bound
            )
