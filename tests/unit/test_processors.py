"""Processors: what does not fit the encoder, whose sight it prepares, is refused before a model is served."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image

from tests.support import tiny_models
from tests.support.reference import qwen_processor
from tests.support.single_files import make_single_file
from weave.gpu_worker.loading import load_pipeline
from weave.models.assets import Source, all_checks
from weave.models.detect import detect
from weave.models.families import FAMILIES
from weave.models.faults import collect
from weave.models.files import ModelFilesRefused
from weave.models.qwen import QWEN2_5_VL
from weave.models.qwen_vision import QWEN_PROCESSOR

FAMILY, OWN, ENCODER = "qwen-image-edit", "processor/preprocessor_config.json", "text_encoder/config.json"
SIGHT = f"{ENCODER}: vision_config"
# A file, the key and its value, and the refusal.
MISFITS: dict[str, tuple[str, str, Any, str]] = {
    "patches": (OWN, "patch_size", 4, f"processor: patch_size is 4, expected 2 ({SIGHT}: patch_size)"),
    "frames": (OWN, "temporal_patch_size", 1, "processor: temporal_patch_size is 1, expected 2"),
    "merged": (OWN, "merge_size", 4, f"processor: merge_size is 4, expected 2 ({SIGHT}: spatial_merge_size)"),
    "its default": (OWN, "patch_size", None, "processor: patch_size is 14, expected 2"),
    "no resizing": (OWN, "do_resize", False, "processor: do_resize is false, expected true"),
    "a mean of two": (OWN, "image_mean", [0.5, 0.5], "processor: image_mean has 2 values, expected 3"),
    "no deviation": (OWN, "image_std", [0.0] * 3, f"{OWN}: image_std is [0.0, 0.0, 0.0], expected a number from 1e-06"),
    "a filter": (OWN, "resample", 6, f"{OWN}: resample is 6, expected a whole number from 0 to 5"),
    "many tokens": (OWN, "max_pixels", 1 << 26, "processor: an image would become 65536 tokens, expected at most 2600"),
    "small ones": (
        OWN,
        "min_pixels",
        1 << 20,
        "processor: size: shortest_edge is 1048576, expected at most",
    ),
    "no size": (OWN, "size", [1024, 64], f"{OWN}: size is [1024, 64], expected an object or null"),
    "its width": (ENCODER, "out_hidden_size", 64, f"{SIGHT}: out_hidden_size is 64, expected 32"),
    "colours": (ENCODER, "in_channels", 4, f"{SIGHT}: in_channels is 4, expected 3"),
    "its patches": (
        ENCODER,
        "patch_size",
        [2, 2],
        f"processor: patch_size is 2, expected [2, 2] ({SIGHT}: patch_size)",
    ),
    "windows": (ENCODER, "window_size", 3, f"{SIGHT}: window_size is 3, expected at least patch_size times"),
    "heads": (ENCODER, "num_heads", 3, f"{SIGHT}: hidden_size is 16, expected a multiple of 4 times num_heads"),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.make(FAMILY, tmp_path_factory.mktemp("models") / FAMILY)


@pytest.fixture
def model(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "model"))


def loaded(model: Path) -> Any:
    return load_pipeline(FAMILY, Source(model), torch.device("cpu"), torch.float32)


def change(model: Path, name: str, key: str, value: Any) -> None:
    file = model / name
    config = json.loads(file.read_text())
    (config["vision_config"] if name == ENCODER else config)[key] = value
    file.write_text(json.dumps(config))


@pytest.mark.parametrize("case", MISFITS)
def test_a_processor_that_does_not_fit_is_refused_by_name(model: Path, case: str) -> None:
    name, key, value, message = MISFITS[case]
    change(model, name, key, value)
    with pytest.raises(ModelFilesRefused, match=f"^{re.escape(message)}"):
        loaded(model)


SEEN = {
    OWN: QWEN_PROCESSOR.config.keys,
    ENCODER: QWEN2_5_VL.config.objects["vision_config"].keys,
}


@pytest.mark.parametrize("name", SEEN)
def test_a_model_that_loads_also_sees(model: Path, name: str) -> None:
    """Each key of the two configs that prepare and see images, with values that it may not have."""
    before = (model / name).read_bytes()
    image = Image.linear_gradient("L").resize((90, 60)).convert("RGB")
    for key, rule in SEEN[name].items():
        for value in (None, [], "no-such-name", -1, 0, 1, 3, 1 << 62):
            change(model, name, key, value)
            try:
                pipeline = loaded(model)
            except ModelFilesRefused as error:
                assert str(error).startswith(("processor", "text_encoder")), error
            else:
                assert rule.fits(value), (key, value)
                with torch.inference_mode():
                    embeddings, _ = pipeline.encode_prompt(prompt="a", image=image)
                assert embeddings.isfinite().all(), (key, value)
            (model / name).write_bytes(before)


def test_a_size_without_an_edge_is_refused(model: Path) -> None:
    for key in ("min_pixels", "max_pixels"):
        change(model, OWN, key, None)
    change(model, OWN, "size", {"longest_edge": 1024})
    with pytest.raises(ModelFilesRefused, match=r"^processor: size has no shortest_edge or no longest_edge"):
        loaded(model)


@pytest.mark.parametrize("file", ["preprocessor_config.json", "tokenizer.json", ""])
def test_an_incomplete_processor_is_refused(model: Path, file: str) -> None:
    lacking = model / "processor" / file
    shutil.rmtree(lacking) if lacking.is_dir() else lacking.unlink()
    with pytest.raises(ModelFilesRefused, match=f"^processor[/:].*{re.escape(file)}"):
        loaded(model)


@pytest.mark.parametrize("key", ["image_token_id", "vision_start_token_id", "vision_end_token_id"])
def test_marks_that_are_other_tokens_are_refused(model: Path, key: str) -> None:
    file = model / ENCODER
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: 7}))
    with pytest.raises(ModelFilesRefused, match=rf"^processor: <\|\w+\|> is \[\d+\], expected \[7\] .* {key}\)$"):
        loaded(model)


def test_a_tokenizer_without_the_marks_is_refused(model: Path) -> None:
    shutil.rmtree(model / "tokenizer")
    other = tiny_models.make("qwen-image", model.parent / "other")
    shutil.copytree(other / "tokenizer", model / "tokenizer")
    shutil.copytree(other / "tokenizer", model / "processor", dirs_exist_ok=True)
    with pytest.raises(ModelFilesRefused, match=r"^processor: <\|image_pad\|> is \[.*, expected \[261\]"):
        loaded(model)


def test_the_processor_gives_what_that_of_transformers_gives(sound: Path) -> None:
    """The same in the file that transformers 5 writes, with the values of another one in the older file."""
    text, image = ["a <|vision_start|><|image_pad|><|vision_end|>"], Image.linear_gradient("L").resize((100, 50))
    given = {"text": text, "images": [image.convert("RGB")], "padding": True, "return_tensors": "pt"}
    expected = qwen_processor(sound / "processor")(**given)
    made = loaded(sound).processor(**given)
    assert made.keys() == expected.keys()
    assert all(torch.equal(made[key], expected[key]) for key in expected)


def test_the_newer_files_config_comes_first(model: Path) -> None:
    own = json.loads((model / OWN).read_text())
    whole = {"image_processor": own | {"image_mean": [0.1, 0.2, 0.3]}, "processor_class": "Qwen2VLProcessor"}
    (model / "processor/processor_config.json").write_text(json.dumps(whole | {"video_processor": {"evil": 1}}))
    assert loaded(model).processor.image_processor.image_mean == (0.1, 0.2, 0.3)
    assert qwen_processor(model / "processor").image_processor.image_mean == (0.1, 0.2, 0.3)


def test_the_text_around_a_prompt_is_the_pipelines(sound: Path) -> None:
    parts = loaded(sound).components
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    for name in ("qwen-image-edit", "qwen-image-edit-plus"):
        made = getattr(diffusers, FAMILIES[name].pipeline)(**parts)
        assert made.prompt_template_encode.replace(image, "") == FAMILIES[name].prompt_template
        assert made.prompt_template_encode_start_idx == FAMILIES[name].free_tokens


def test_an_index_tells_the_families_apart(model: Path) -> None:
    assert detect(model).families == ("qwen-image-edit", "qwen-image-edit-plus")
    for name in ("qwen-image-edit", "qwen-image-edit-plus"):
        (model / "model_index.json").write_text(json.dumps({"_class_name": FAMILIES[name].pipeline}))
        assert detect(model).families == (name,)


def test_a_layout_tells_the_family_of_a_single_file(model: Path, tmp_path: Path) -> None:
    file = make_single_file(FAMILY, model, tmp_path / "edit.safetensors")
    assert detect(file, model).families == ("qwen-image",)  # without an index
    for name in ("qwen-image-edit", "qwen-image-edit-plus"):
        (model / "model_index.json").write_text(json.dumps({"_class_name": FAMILIES[name].pipeline}))
        assert detect(file, model).families == (name,)
        faults, assets = collect(all_checks(name, Source(file, model), "auto", {}))
        assert faults == [] and assets and assets.files() == [file] * 3
