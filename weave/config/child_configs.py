"""The part of the config that each child gets, in a sealed memfd: the broker never sees a path, the worker
never sees who may connect."""

from typing import Literal, TypeVar

import msgspec
from msgspec import Struct

from weave.config.schema import DeviceConfig, Limits
from weave.protocol.channel import read_sealed_memfd, sealed_memfd
from weave.protocol.client_messages import ModelOffer

Part = TypeVar("Part")


class Access(Struct, frozen=True, forbid_unknown_fields=True):
    """Who may connect: these UIDs, and whoever is in one of these groups. `members` are the UIDs that the group
    database lists for them: what counts for a peer whose supplementary groups the kernel does not tell. `known` are
    all UIDs that have limits of their own; the others share theirs (broker/admission/principal.py). `unmapped` is the
    UID that the kernel shows for everybody whom it has no number for: nobody, whatever the groups."""

    uids: tuple[int, ...]
    gids: tuple[int, ...] = ()
    members: tuple[int, ...] = ()
    known: frozenset[int] = frozenset()
    unmapped: int = 65534


class BrokerConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Model IDs with their bounds, the limits, and who may connect. `isolate_users`: no worker serves two UIDs."""

    mode: Literal["user", "system", "attached"]
    models: tuple[ModelOffer, ...]
    default_model: str | None
    limits: Limits
    access: Access
    audit_prompts: bool
    deliver_fds: bool
    isolate_users: bool = False


class WorkerModel(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One model's files, and its bounds to check again."""

    offer: ModelOffer
    path: str
    layout: str | None
    sha256: dict[str, str]


class WorkerConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the zygote gets. A worker forked from it forgets all models but its own."""

    device: DeviceConfig
    models: tuple[WorkerModel, ...]


def to_memfd(part: BrokerConfig | WorkerConfig) -> int:
    """A sealed memfd for a child to inherit or receive."""
    return sealed_memfd("weave-config", msgspec.msgpack.encode(part))


def from_memfd(descriptor: int, part: type[Part]) -> Part:
    """The other end of to_memfd; `descriptor` is closed. Raises ChannelViolation, msgspec.ValidationError."""
    return msgspec.msgpack.decode(read_sealed_memfd(descriptor), type=part)
