"""What each family of models accepts and defaults to, where the config does not say otherwise.

Sources: the pipelines' own defaults in diffusers, and the resolutions the models were trained at. The classes
behind the names are in weave/gpu_worker/families.py; a test holds the two tables together.
"""

from msgspec import Struct

from weave.protocol.bounds import Bounds, FloatRange, Range
from weave.protocol.client_messages import Defaults
from weave.protocol.features import TEXT_TO_IMAGE

# Schedulers for models that predict noise or velocity, and for those trained by flow matching.
DIFFUSION_SCHEDULERS = ("ddim", "euler", "euler_a", "dpmpp_2m", "unipc", "pndm")
FLOW_SCHEDULERS = ("flow_euler", "flow_heun")


class FamilyDefaults(Struct, frozen=True):
    """A family's bounds, the parameters a client may leave out, its schedulers and its tasks."""

    bounds: Bounds
    defaults: Defaults
    schedulers: tuple[str, ...]
    tasks: tuple[str, ...] = (TEXT_TO_IMAGE,)


def _bounds(largest_side: int, multiple: int, prompt_characters: int) -> Bounds:
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


def _defaults(side: int, steps: int, cfg_scale: float, scheduler: str) -> Defaults:
    return Defaults(width=side, height=side, steps=steps, cfg_scale=cfg_scale, scheduler=scheduler)


FAMILIES: dict[str, FamilyDefaults] = {
    "sd1": FamilyDefaults(_bounds(1024, 8, 2048), _defaults(512, 25, 7.5, "dpmpp_2m"), DIFFUSION_SCHEDULERS),
    "sd2": FamilyDefaults(_bounds(1536, 8, 2048), _defaults(768, 25, 7.5, "dpmpp_2m"), DIFFUSION_SCHEDULERS),
    "sdxl": FamilyDefaults(_bounds(2048, 8, 2048), _defaults(1024, 30, 5.0, "euler"), DIFFUSION_SCHEDULERS),
    "sd3": FamilyDefaults(_bounds(2048, 16, 4000), _defaults(1024, 28, 4.5, "flow_euler"), FLOW_SCHEDULERS),
    "flux": FamilyDefaults(_bounds(2048, 16, 4000), _defaults(1024, 28, 3.5, "flow_euler"), ("flow_euler",)),
}
