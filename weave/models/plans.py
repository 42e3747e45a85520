"""How much device memory a job needs in each plan, and which plan it gets. Everything is an estimate, made before
anything is loaded."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

from msgspec import structs

from weave.models.assets import Assets
from weave.models.components import ModelClass
from weave.models.family import Family
from weave.models.kept import may_keep
from weave.models.memory import Size, size_of
from weave.protocol.defaults import plainest, with_defaults
from weave.protocol.parameters import Parameters
from weave.protocol.worker_messages import PlanName

# card: all weights stay on the device. stages: only the component in use is there, the others are offloaded to main
# memory. streamed: as stages, and the denoiser, and text encoders that do not fit, are offloaded block by block.
Placement: TypeAlias = Literal["card", "stages", "streamed"]
Setting: TypeAlias = Literal["auto", "card", "stages", "streamed"]
PLACEMENTS: tuple[Placement, ...] = ("card", "stages", "streamed")
# Common sizes of GPU memory, in bytes, by their usual names.
CARDS = {f"{size} GB": size * 2**30 for size in (8, 12, 16, 24)}
# For the workspace of operations such as convolutions, and for losses in torch's allocator: a guess.
_MARGIN = 1.25
# How much GPU memory CUDA's context takes: a guess.
CONTEXT = 600_000_000
# References are reduced to this many pixels, whatever their size.
_REFERENCE_PIXELS = 1024 * 1024
# The size of a ControlNet's activations, as a fraction of the denoiser's.
_CONTROL = 0.5
# Bytes per pixel of an image that is assembled from tiles, in 16 bits.
_IMAGE = 24


class Plan(NamedTuple):
    """Where the weights are, and whether the VAE decodes in tiles."""

    placement: Placement
    tiled: bool = False

    @property
    def name(self) -> PlanName:
        """As clients see it."""
        return f"{self.placement}+tiled" if self.tiled else self.placement  # type: ignore[return-value]


class Work(NamedTuple):
    """How many pixels the denoiser works on at once, of how many images, and how many the VAE."""

    denoised: int
    images: int
    coded: int


class Estimate(NamedTuple):
    """Bytes on the device. `denoiser` includes the ControlNets. `denoising` and `decoding` are the sizes of the
    activations in these stages, `tiled` their size when the VAE decodes in tiles."""

    encoders: Mapping[str, Size]
    denoiser: Size
    vae: int
    denoising: int
    decoding: int
    tiled: int

    def needed(self, plan: Plan) -> int:
        """The most that the job needs at any time."""
        decoding = self.tiled if plan.tiled else self.decoding
        if plan.placement == "card":
            weights = sum(size.whole for size in self.encoders.values()) + self.denoiser.whole + self.vae
            return weights + max(self.denoising, decoding)
        streamed = plan.placement == "streamed"
        encoder = max((size.streamed if streamed else size.whole for size in self.encoders.values()), default=0)
        denoiser = self.denoiser.streamed if streamed else self.denoiser.whole
        return max(encoder, denoiser + self.denoising, self.vae + decoding)


def work_of(parameters: Parameters, least_reference: int = 0) -> Work:
    """What a job computes at once. `least_reference` is that of the family's Activations."""
    batch = min(parameters.batch, parameters.images)
    pixels = parameters.width * parameters.height
    references = [
        max(min(image.width * image.height, _REFERENCE_PIXELS), least_reference) for image in parameters.references
    ]
    coded = max(pixels * (batch if parameters.image else 1), *references, 0)
    if parameters.enlarge is not None:
        width, height = parameters.output_size
        coded = max(coded, width * height)
    denoised = max(pixels * batch, coded if parameters.enlarge else 0)
    return Work(denoised + sum(references), batch, coded)


class Needs(NamedTuple):
    """What a model's jobs need. `sizes` are those of its components in `dtype`, a name in torch; `tile` is the side of
    its VAE's tiles, in pixels."""

    family: Family
    dtype: str
    sizes: Mapping[str, Size]
    tile: int

    def estimate(self, work: Work, controls: Sequence[Size] = ()) -> Estimate:
        """What a job needs. `controls` are the sizes of its ControlNets."""
        activations, sizes = self.family.activations, self.sizes
        wide = 2 if self.dtype == "float32" else 1
        upcast = 2 if self.dtype == "float16" and activations.decodes_in_float32 else 1
        denoiser = sizes[self.family.denoiser]
        for control in controls:
            denoiser = denoiser.plus(control)
        each = activations.denoiser * work.denoised + activations.text * work.images
        denoising = _MARGIN * each * wide * (1 + _CONTROL * len(controls))
        decoding = activations.vae * work.coded
        tiled = min(work.coded, self.tile**2) * activations.vae + work.coded * _IMAGE
        return Estimate(
            encoders={name: size for name, size in sizes.items() if name not in (self.family.denoiser, "vae")},
            denoiser=denoiser,
            vae=sizes["vae"].whole * upcast,
            denoising=int(denoising),
            decoding=int(_MARGIN * decoding * wide * upcast),
            tiled=int(_MARGIN * min(decoding, tiled) * wide * upcast),
        )


def needs_of(family: Family, assets: Assets, dtype: str, *, full: bool = False) -> Needs:
    """From the headers of the model's files. `full`: no weights stay quantised. Raises ModelFilesRefused."""
    sizes = {}
    for part, weights in assets.weights.items():
        component = family.components[part]
        assert isinstance(component, ModelClass)
        sizes[part] = size_of(component, weights, dtype, keeps=not full and may_keep(part, component))
    tile = assets.checked.configs["vae"].get("sample_size", family.activations.tile)
    return Needs(family, dtype, sizes, tile)


def default_work(family: Family) -> Work:
    """The work for one image of the family's default size."""
    parameters = with_defaults(plainest(family.bounds), family.defaults, family.bounds, seed=0)
    return work_of(parameters, family.activations.least_reference)


def choose(found: Estimate, available: int | None, setting: Setting = "auto") -> Plan | None:
    """The first plan that fits; None if none does. Tiles change pixels slightly, so the VAE decodes in tiles only if
    it could not decode otherwise. `available` is None for a device without a limit, `setting` that of the config."""
    placements = PLACEMENTS if setting == "auto" else (setting,)
    if available is None:
        return Plan(placements[0])
    tiled = found.vae + found.decoding > available and found.tiled < found.decoding
    plans = (Plan(placement, tiled) for placement in placements)
    return next((plan for plan in plans if found.needed(plan) <= available), None)


def smallest(found: Estimate, setting: Setting = "auto") -> int:
    """What the job needs in the plan that needs the least."""
    placements = PLACEMENTS if setting == "auto" else (setting,)
    return min(found.needed(Plan(placement, True)) for placement in placements)


def after(plan: Plan, found: Estimate, *, has_budget: bool) -> Plan | None:
    """The plan for a second attempt after running out of memory in `plan`: after card it is stages, else streamed, with
    tiles if they save memory. Without a budget, as on the CPU, offloading saves none, so only tiles help."""
    tiled = plan.tiled or found.tiled < found.decoding
    following = Plan("streamed", tiled)
    if not has_budget:
        following = Plan(plan.placement, tiled)
    elif plan.placement == "card":
        following = Plan("stages", plan.tiled)
    return following if following != plan else None


def fitting_size(parameters: Parameters, multiple: int, fits: Callable[[Parameters], bool]) -> tuple[int, int] | None:
    """The largest width and height of about the same ratio for which the job `fits`."""
    scale = 1.0
    while True:
        scale *= 0.95
        width, height = (int(side * scale) // multiple * multiple for side in (parameters.width, parameters.height))
        if min(width, height) < 64:
            return None
        if fits(structs.replace(parameters, width=width, height=height)):
            return width, height
