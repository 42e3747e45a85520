"""What a path holds, by the files that models were published with."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.support.published import PUBLISHED, write
from weave.models.assets import Source
from weave.models.detect import detect
from weave.models.files import ModelFilesRefused


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("index", [True, False], ids=["with model_index.json", "without"])
def test_a_published_models_family_is_detected(tmp_path: Path, name: str, index: bool) -> None:
    family, files = PUBLISHED[name]
    write({path: file for path, file in files.items() if index or path != "model_index.json"}, tmp_path)
    # Without an index the two families of Edit models are alike, until a flag says that one is new.
    alike = () if index or family != "qwen-image-edit" else ("qwen-image-edit-plus",)
    assert detect(tmp_path).families == (family, *alike)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("part", ["scheduler", "text_encoder", "vae"])
def test_a_part_that_lacks_does_not_change_the_family(tmp_path: Path, name: str, part: str) -> None:
    family, files = PUBLISHED[name]
    write({path: file for path, file in files.items() if not path.startswith(f"{part}/")}, tmp_path)
    assert family in detect(tmp_path).families


def snapshots(store: Path, *names: str) -> None:
    for age, name in enumerate(names):
        (store / "snapshots" / name / "unet").mkdir(parents=True)
        os.utime(store / "snapshots" / name, (age, age))


def test_the_hubs_cache_leads_to_its_main_or_newest_snapshot(tmp_path: Path) -> None:
    store = tmp_path / "models--author--a--b"
    (store / "snapshots").mkdir(parents=True)
    with pytest.raises(ModelFilesRefused, match="the download is incomplete"):
        detect(store)
    snapshots(store, "aaaa", "bbbb")
    assert detect(store)[:2] == (Source(store / "snapshots/bbbb"), "author/a--b")
    (store / "refs").mkdir()
    for content, found in {"aaaa\n": "aaaa", "cccc": "bbbb", "../../..": "bbbb", "": "bbbb", "\xff": "bbbb"}.items():
        (store / "refs/main").write_text(content)
        assert detect(store).source.path.name == found
    (store / "refs/main").unlink()
    os.mkfifo(store / "refs/main")  # nothing writes to it
    assert detect(store).source.path.name == "bbbb"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["lora_unet_conv_in.lora_down.weight", "lora_unet_conv_in.lora_up.weight"], r"a LoRA, .* \[loras\.ID\]"),
        (["encoder.conv_in.weight"], "has no UNet or transformer of a family"),
    ],
)
def test_a_file_that_is_no_model_is_refused_as_what_it_is(tmp_path: Path, keys: list[str], message: str) -> None:
    file = tmp_path / "file.safetensors"
    save_file({key: torch.zeros(2, 2) for key in keys}, file)
    with pytest.raises(ModelFilesRefused, match=message):
        detect(file)
