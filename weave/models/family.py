"""The description of a family: all that sets it apart, except the code that calls its pipeline."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from msgspec import Struct

from weave.models.components import Component
from weave.models.schedulers import SCHEDULERS
from weave.models.sizes import Sizes
from weave.protocol.bounds import Bounds, FloatRange, Range
from weave.protocol.features import TEXT_TO_IMAGE
from weave.protocol.parameters import Defaults


class Family(Struct, frozen=True, kw_only=True):
    """A family: what clients may ask of its models, what their folders hold, and how diffusers runs them.

    Sources: the pipelines' own defaults in diffusers, and the resolutions that the models were trained at.
    """

    name: str
    # Unless the config says otherwise for a model.
    bounds: Bounds
    defaults: Defaults
    # By our names (schedulers.py): offered to clients, and allowed as a model's own.
    schedulers: tuple[str, ...]
    tasks: tuple[str, ...] = (TEXT_TO_IMAGE,)
    # The class in diffusers, and those of other tasks whose models have the same components.
    pipeline: str
    sibling_pipelines: tuple[str, ...]
    # By folder. Those in `optional` may be missing from a model, all together.
    components: Mapping[str, Component]
    optional: frozenset[str] = frozenset()
    # Yields the sizes that the components must share.
    sizes: Sizes
    # What the pipeline's class is given: flags of model_index.json, and what is the same for every model.
    settings: frozenset[str] = frozenset()
    fixed: Mapping[str, Any] = MappingProxyType({})
    # How many tokens T5 gets, by the pipeline's own default; None without T5.
    t5_tokens: int | None = None
    # The module in weave/gpu_worker/pipelines/ whose Adapter calls the pipeline.
    adapter: str = "base"

    @property
    def own_schedulers(self) -> tuple[str, ...]:
        """The classes that a model's own scheduler_config.json may name."""
        return tuple(SCHEDULERS[name].class_name for name in self.schedulers)

    @property
    def encoders(self) -> int:
        """How many text encoders take a prompt of their own."""
        return sum(part.startswith("text_encoder") for part in self.components)


def bounds(*, largest_side: int, multiple: int, prompt_characters: int) -> Bounds:
    """A family's bounds, of which the others are the same for all. Sides are in pixels."""
    return Bounds(
        width=Range(64, largest_side, multiple),
        height=Range(64, largest_side, multiple),
        steps=Range(1, 100),
        cfg_scale=FloatRange(0.0, 20.0),
        images=Range(1, 8),
        pixels=Range(64 * 64, 8 * 1024 * 1024),
        prompt_bytes=Range(1, 4 * prompt_characters),
        prompt_characters=Range(1, prompt_characters),
    )


def defaults(*, side: int, steps: int, cfg_scale: float, scheduler: str) -> Defaults:
    """A family's defaults; `side` is width and height, in pixels."""
    return Defaults(width=side, height=side, steps=steps, cfg_scale=cfg_scale, scheduler=scheduler)
