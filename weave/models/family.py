"""The description of a family: everything specific to it, except the code that calls its pipeline."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from msgspec import Struct

from weave.models.components import Component
from weave.models.configs import Rules, rules
from weave.models.control_nets import ControlNets
from weave.models.original_names import OriginalNames, no_names
from weave.models.schedulers import RELATED, SCHEDULERS, misfit, name_of
from weave.models.single_files import DENOISERS, SingleFile
from weave.models.sizes import Sizes
from weave.protocol.bounds import Bounds, FloatRange, Range
from weave.protocol.inputs import MAX_CONTROLS, MAX_REFERENCES, TEXT_TO_IMAGE, control_task
from weave.protocol.parameters import Defaults

_PIXELS = 8 * 1024 * 1024


class Activations(Struct, frozen=True, kw_only=True):
    """The size of activations (intermediate results) on the device, in bytes with 16-bit dtypes: for each pixel of the
    image that the `denoiser` works on, with guidance, or the `vae` decodes, and for the prompt's `text`. Computed for
    the published models with tensors on the meta device (tests/support/activations.py); not measured on a GPU. `tile`
    is the side of the VAE's tiles in pixels if its config has no sample_size, and `published_tile` that of the
    published models. References are enlarged to `least_reference` pixels."""

    denoiser: int
    text: int
    vae: int
    tile: int = 32
    least_reference: int = 0
    published_tile: int = 1024
    # The VAE decodes in float32 even if the model is loaded in float16.
    decodes_in_float32: bool = False


class Family(Struct, frozen=True, kw_only=True):
    """A family: what clients may request of its models, what a model's folder holds, and how diffusers runs it.

    Sources: the pipelines' own defaults in diffusers, and the resolutions that the models were trained at.
    """

    name: str
    # The config may override these for a model.
    bounds: Bounds
    defaults: Defaults
    # Names from schedulers.py: offered to clients, and allowed as a model's own.
    schedulers: tuple[str, ...]
    # The step caches that the denoiser's class in diffusers supports: names in protocol/parameters.py.
    caches: tuple[str, ...] = ()
    # The class in diffusers for text-to-image, and those for other tasks with the same components, by the task. Models
    # that need references have no text-to-image: then it is the class for those. A model's model_index.json may name
    # any of them.
    pipeline: str
    pipelines: Mapping[str, str] = MappingProxyType({})
    # The tasks in `pipelines` that a model can do only if its config says so.
    of_some_models: frozenset[str] = frozenset()
    # By folder. A model has all of the `optional` ones or none.
    components: Mapping[str, Component]
    optional: frozenset[str] = frozenset()
    # Yields the values that the components must agree on.
    sizes: Sizes
    # Arguments of the pipeline's class: keys of model_index.json, and values that are the same for every model.
    settings: Rules = rules()
    fixed: Mapping[str, Any] = MappingProxyType({})
    activations: Activations
    # None: models of this family are loaded from folders only.
    single_file: SingleFile | None = None
    # The names of the denoiser's layers in the code of the model's authors, which LoRAs may use.
    original_names: OriginalNames = no_names
    # How many numbers a vector of an embedding has, for each text encoder of the published models. Empty: embeddings
    # are not supported.
    embedding_widths: tuple[int, ...] = ()
    # None: ControlNets are not supported.
    control_nets: ControlNets | None = None
    # How many tokens T5 or Qwen may get, the pipeline's own default; None where there is CLIP only.
    max_sequence_length: int | None = None
    # The text around a prompt, as that encoder gets it, and how many of its tokens the limit does not count.
    prompt_template: str = "{}"
    free_tokens: int = 0
    # The module in weave/gpu_worker/pipelines/ whose Adapter calls the pipeline.
    adapter: str = "base"

    @property
    def tasks(self) -> tuple[str, ...]:
        """What all models can do, by the names in the protocol. Includes ControlNets even if the config has none."""
        others = (task for task in self.task_pipelines if task not in self.of_some_models)
        return (*(() if self.bounds.references.min else (TEXT_TO_IMAGE,)), *others)

    @property
    def task_pipelines(self) -> dict[str, str]:
        """The class in diffusers for each task but text-to-image."""
        controlled = self.control_nets.pipelines if self.control_nets else {}
        return {**self.pipelines, **{control_task(task): name for task, name in controlled.items()}}

    @property
    def all_pipelines(self) -> tuple[str, ...]:
        """The classes that a model's model_index.json may name."""
        return tuple(dict.fromkeys((self.pipeline, *self.pipelines.values())))

    @property
    def own_schedulers(self) -> tuple[str, ...]:
        """The classes of `schedulers`, one of which is made from a model's own scheduler_config.json."""
        return tuple(dict.fromkeys(SCHEDULERS[name].class_name for name in self.schedulers))

    @property
    def related_schedulers(self) -> tuple[str, ...]:
        """The classes that a model's own scheduler_config.json may also name: the default class gets its numbers."""
        return RELATED[SCHEDULERS[self.defaults.scheduler].kind]

    def own_scheduler(self, class_name: object) -> str | None:
        """The class to make from a scheduler_config.json that names `class_name`; None if that one is not known."""
        if class_name in self.related_schedulers:
            return SCHEDULERS[self.defaults.scheduler].class_name
        return str(class_name) if class_name in self.own_schedulers else None

    def default_scheduler(self, config: Mapping[str, Any]) -> str:
        """Of a model with this scheduler config: the family's default or, where that does not fit, the model's own."""
        own = config["_class_name"]
        return name_of(own) if misfit(self.defaults.scheduler, own, config) else self.defaults.scheduler

    @property
    def denoiser(self) -> str:
        """The folder of the component that is called at each step."""
        return next(part for part in self.components if part in DENOISERS)

    @property
    def encoders(self) -> int:
        """The number of text encoders; each can take its own prompt."""
        return sum(part.startswith("text_encoder") for part in self.components)


def bounds(
    *,
    largest_side: int,
    multiple: int,
    prompt_characters: int,
    inpainting_pixels: int = _PIXELS,
    least_references: int = 0,
    references: int = MAX_REFERENCES,
    controls: int = MAX_CONTROLS,
    control_in_part: bool = True,
) -> Bounds:
    """A family's bounds; those without a parameter are the same for all families. Sides are in pixels.
    `control_in_part`: a ControlNet may be applied to some steps only."""
    return Bounds(
        width=Range(64, largest_side, multiple),
        height=Range(64, largest_side, multiple),
        steps=Range(1, 100),
        cfg_scale=FloatRange(0.0, 20.0),
        images=Range(1, 8),
        pixels=Range(64 * 64, _PIXELS),
        prompt_bytes=Range(1, 4 * prompt_characters),
        prompt_characters=Range(1, prompt_characters),
        inpainting_pixels=Range(64 * 64, inpainting_pixels),
        input_pixels=Range(1, 16 * 1024 * 1024),
        references=Range(least_references, references),
        controls=Range(0, controls),
        control_start=FloatRange(0.0, 1.0 if control_in_part else 0.0),
        control_end=FloatRange(0.0 if control_in_part else 1.0, 1.0),
        batch=Range(1, 8),
    )


def defaults(*, side: int, steps: int, cfg_scale: float, scheduler: str) -> Defaults:
    """A family's defaults. `side` is both width and height, in pixels."""
    return Defaults(width=side, height=side, steps=steps, cfg_scale=cfg_scale, scheduler=scheduler)
