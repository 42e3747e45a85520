"""A model's JSON files that try to choose code, through the real loader: each key is refused and named."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2VLImageProcessorPil

from tests.support import tiny_models
from tests.support.reference import generated
from weave.gpu_worker.loading import load_pipeline
from weave.models.assets import Source
from weave.models.configs import shown
from weave.models.families import FAMILIES
from weave.models.files import ModelFilesRefused


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        tiny_models.make(family, folder / family)
    return folder


def copy_of(model: Path, folder: Path) -> Path:
    return Path(shutil.copytree(model, folder, dirs_exist_ok=True))


def load_on_cpu(family: str, model: Path) -> Any:
    return load_pipeline(family, Source(model), torch.device("cpu"), torch.float32)


OF_TRANSFORMERS = (
    "quantization_config", "auto_map", "attn_implementation", "_attn_implementation", "_attn_implementation_internal",
    "experts_implementation", "configuration_files", "transformers_weights", "fusion_config", "kernel_config",
    "use_kernels", "distributed_config", "per_layer_config", "text_config", "trust_remote_code", "custom_pipelines",
    "compression_config", "base_model_tp_plan", "extra_files", "generation_config", "adapter_kwargs", "gguf_file",
    "name_or_path", "rope_parameters", "__class__",
)  # fmt: skip
OF_DIFFUSERS = (
    "quantization_config", "auto_map", "trust_remote_code", "attn_processor", "_fn_module", "use_flashpack",
    "parallel_config", "_keep_in_fp32_modules", "dtype", "config", "kwargs", "self",
)  # fmt: skip
OF_TOKENIZERS = (
    "auto_map", "vocab_file", "merges_file", "vocab", "merges", "tokenizer_object", "fast_tokenizer_files", "gguf_file",
    "from_slow", "__slow_tokenizer", "init_inputs", "trust_remote_code", "slow_tokenizer_class",
    "model_specific_special_tokens", "config", "evil_token",
)  # fmt: skip
OF_PROCESSORS = (
    "auto_map", "trust_remote_code", "image_processor", "video_processor", "chat_template", "audio_tokenizer",
    "tokenizer", "image_processor_class", "use_fast", "backend", "attributes", "_processor_class", "self", "kwargs",
)  # fmt: skip
ATTACKS = [
    *(("sd1", f"{part}/config.json", key) for part in ("unet", "vae") for key in OF_DIFFUSERS),
    *(("sd3", "transformer/config.json", key) for key in OF_DIFFUSERS),
    *(("flux", "transformer/config.json", key) for key in OF_DIFFUSERS),
    *(("flux", f"{part}/config.json", key) for part in ("text_encoder", "text_encoder_2") for key in OF_TRANSFORMERS),
    *(("z-image", "text_encoder/config.json", key) for key in OF_TRANSFORMERS if key != "rope_parameters"),
    *(("sdxl", "text_encoder_2/config.json", key) for key in OF_TRANSFORMERS),
    *(("flux", f"{part}/tokenizer_config.json", key) for part in ("tokenizer", "tokenizer_2") for key in OF_TOKENIZERS),
    *(("qwen-image-edit", "processor/preprocessor_config.json", key) for key in OF_PROCESSORS),
    *(("qwen-image-edit", "processor/tokenizer_config.json", key) for key in OF_TOKENIZERS),
    *(("sd1", "tokenizer/special_tokens_map.json", key) for key in OF_TOKENIZERS),
    *(("sd1", "scheduler/scheduler_config.json", key) for key in OF_DIFFUSERS),
]


@pytest.mark.parametrize("family, file, key", ATTACKS)
def test_a_key_that_could_choose_code_is_refused_by_name(
    models: Path, tmp_path: Path, family: str, file: str, key: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(models / family, model, copy_function=os.link)
    changed = model / file
    config = json.loads(changed.read_text()) if changed.exists() else {}
    changed.unlink(missing_ok=True)
    for value in ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "evil/code", "sdpa", 1, True):
        changed.write_text(json.dumps(config | {key: value}))
        with pytest.raises(ModelFilesRefused, match=rf"^{file}: '{key}' is not a known key; remove it$"):
            load_on_cpu(family, model)


CLASSES = {
    "processor_class": "expected Qwen2VLProcessor",
    "image_processor_type": "expected Qwen2VLImageProcessorPil",
}


@pytest.mark.parametrize("key", CLASSES)
@pytest.mark.parametrize("nested", [False, True])
def test_a_processor_cannot_name_its_classes(models: Path, tmp_path: Path, key: str, nested: bool) -> None:
    """Its image processor's config is in a file of its own, or in that of the whole processor."""
    model = copy_of(models / "qwen-image-edit", tmp_path)
    own = model / "processor/preprocessor_config.json"
    sound = json.loads(own.read_text())
    file, where = own, "processor/preprocessor_config.json"
    if nested:
        own.unlink()
        file, where = own.with_name("processor_config.json"), "processor/processor_config.json: image_processor"

    def refused(config: Any) -> str:
        file.write_text(json.dumps({"image_processor": config} if nested else config))
        with pytest.raises(ModelFilesRefused) as refusal:
            load_on_cpu("qwen-image-edit", model)
        return str(refusal.value)

    for name in ("AutoProcessor", "evil.Processor", ["Qwen2VLProcessor"], {}, 1, True, ""):
        assert refused(sound | {key: name}) == f"{where}: {key} is {shown(name)}, {CLASSES[key]}"
    assert refused(sound | {"auto_map": {}}) == f"{where}: 'auto_map' is not a known key; remove it"
    if nested:
        assert refused(["evil"]).startswith(f"{where} is ['evil'], expected an object")
        file.write_text(json.dumps({"image_processor": sound, "auto_map": {"AutoProcessor": "evil.Processor"}}))
        with pytest.raises(ModelFilesRefused, match=r"^processor/processor_config.json: 'auto_map' is not a known key"):
            load_on_cpu("qwen-image-edit", model)
    file.write_text(json.dumps({"image_processor": sound} if nested else sound))
    assert type(load_on_cpu("qwen-image-edit", model).processor.image_processor) is Qwen2VLImageProcessorPil


def test_files_that_refer_to_another_model_are_not_read(models: Path, tmp_path: Path) -> None:
    model = copy_of(models / "flux", tmp_path)
    for part in ("text_encoder", "text_encoder_2", "transformer", "vae"):
        for file in ("adapter_config.json", "generation_config.json", "quantize_config.json", "processor_config.json"):
            (model / part / file).write_text(json.dumps({"base_model_name_or_path": "evil/code", "auto_map": {}}))
    assert np.array_equal(
        generated(load_on_cpu("flux", model), "flux"), generated(load_on_cpu("flux", models / "flux"), "flux")
    )


@pytest.mark.parametrize("family", [name for name in FAMILIES if FAMILIES[name].prompt_template != "{}"])
def test_a_chat_template_in_the_files_is_never_run(models: Path, tmp_path: Path, family: str) -> None:
    model = copy_of(models / family, tmp_path)
    evil = "{{ raise_exception('run') }}"
    for part in (name for name in ("tokenizer", "processor") if name in FAMILIES[family].components):
        (model / part / "chat_template.jinja").write_text(evil)
        file = model / part / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": evil}))
    loaded = load_on_cpu(family, model)
    assert loaded.tokenizer.chat_template == evil
    assert np.array_equal(generated(loaded, family), generated(load_on_cpu(family, models / family), family))
    (model / "tokenizer/additional_chat_templates").mkdir()
    with pytest.raises(ModelFilesRefused, match=r"^tokenizer/additional_chat_templates: not supported; remove it$"):
        load_on_cpu(family, model)


def test_tokens_beyond_the_encoders_vocabulary_are_refused(models: Path, tmp_path: Path) -> None:
    model = copy_of(models / "sd1", tmp_path)
    size = json.loads((model / "text_encoder" / "config.json").read_text())["vocab_size"]
    added = {str(size - 1): {"content": "<|endoftext|>"}, str(size): {"content": "<new>"}}
    file = model / "tokenizer" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"added_tokens_decoder": added}))
    with pytest.raises(ModelFilesRefused, match=f"its largest token is {size}, the encoder's vocab_size {size}"):
        load_on_cpu("sd1", model)


def test_a_prompt_is_cut_at_the_encoders_length_by_default(models: Path, tmp_path: Path) -> None:
    model = copy_of(models / "sd1", tmp_path)
    (model / "tokenizer" / "tokenizer_config.json").unlink()
    assert load_on_cpu("sd1", model).tokenizer.model_max_length == 32
