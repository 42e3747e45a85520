"""The part of the config that each child gets, in a sealed memfd: the broker's has no paths, the worker's does not say
who may connect."""

from typing import Literal, TypeVar

import msgspec
from msgspec import Struct

from weave.config.schema import DeviceConfig, Form, Limits
from weave.protocol.channel import read_sealed_memfd, sealed_memfd
from weave.protocol.client_messages import ModelOffer
from weave.protocol.embeddings import EmbeddingOffer, EmbeddingOffers
from weave.protocol.inputs import ControlOffer, ControlOffers
from weave.protocol.loras import LoraOffer, LoraOffers

ChildConfig = TypeVar("ChildConfig")


class Access(Struct, frozen=True, forbid_unknown_fields=True):
    """Who may connect: `uids`, and members of `gids`. `members` are the UIDs that the group database lists for `gids`;
    they count for a peer whose supplementary groups the kernel does not report. Each UID in `known` has its own limits;
    all others share one set (broker/admission/principal.py). `unmapped` is the UID that the kernel reports for a peer
    outside our user namespace; it is always refused."""

    uids: tuple[int, ...]
    gids: tuple[int, ...] = ()
    members: tuple[int, ...] = ()
    known: frozenset[int] = frozenset()
    unmapped: int = 65534


class BrokerConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`devices` are the names of devices.py. `isolate_users`: no worker serves two UIDs."""

    mode: Literal["user", "system", "attached"]
    devices: tuple[str, ...] = ("auto",)
    models: tuple[ModelOffer, ...]
    default_model: str | None
    loras: LoraOffers = ()
    embeddings: EmbeddingOffers = ()
    controls: ControlOffers = ()
    limits: Limits
    access: Access
    audit_prompts: bool
    deliver_fds: bool
    isolate_users: bool = False


class WorkerLora(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One LoRA's file, and the offer, whose bound the worker checks again."""

    offer: LoraOffer
    path: str
    sha256: str | None


class WorkerEmbedding(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One embedding's file, and the offer."""

    offer: EmbeddingOffer
    path: str
    sha256: str | None


class WorkerControl(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One ControlNet's folder or file, and the offer."""

    offer: ControlOffer
    path: str
    sha256: dict[str, str]


class WorkerModel(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One model's files, and the offer, whose bounds the worker checks again. `loras`, `embeddings` and `controls` are
    those of its family. `memory` is as in ModelConfig."""

    offer: ModelOffer
    path: str
    layout: str | None
    parts: dict[str, str]
    sha256: dict[str, str]
    memory: Literal["auto", "card", "stages", "streamed"] = "auto"
    weights: Form = "kept"
    loras: tuple[WorkerLora, ...] = ()
    embeddings: tuple[WorkerEmbedding, ...] = ()
    controls: tuple[WorkerControl, ...] = ()

    def paths(self) -> tuple[str, ...]:
        """All that the worker must be able to read."""
        layout = [self.layout] if self.layout else []
        added = [*(lora.path for lora in self.loras), *(embedding.path for embedding in self.embeddings)]
        added += [control.path for control in self.controls]
        return (self.path, *layout, *self.parts.values(), *added)


class WorkerConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The zygote's. A worker uses one of the models."""

    device: DeviceConfig
    models: tuple[WorkerModel, ...]


def to_memfd(config: BrokerConfig | WorkerConfig) -> int:
    """A sealed memfd, which the caller owns, for a child to inherit or receive."""
    return sealed_memfd("weave-config", msgspec.msgpack.encode(config))


def from_memfd(descriptor: int, config: type[ChildConfig]) -> ChildConfig:
    """In the child. Closes `descriptor`. Raises ChannelViolation, msgspec.ValidationError."""
    return msgspec.msgpack.decode(read_sealed_memfd(descriptor), type=config)
