"""The configs and tokenizers that single files get: those of the published models."""

import json

import pytest
import torch
import transformers

from tests.support.published import on_meta
from weave.gpu_worker.loading import predicts_velocity
from weave.models.assets import SHIPPED
from weave.models.components import ModelClass
from weave.models.families import FAMILIES
from weave.models.faults import collect
from weave.models.layouts import folder_checks, part_folders

# The models' published numbers of parameters.
PARAMETERS = {
    ("sd1", "unet"): 859_520_964,
    ("sd1", "vae"): 83_653_863,
    ("sd1", "text_encoder"): 123_060_480,
    ("sd2", "unet"): 865_910_724,
    ("sd2", "text_encoder"): 340_387_840,
    ("sdxl", "unet"): 2_567_463_684,
    ("sdxl", "text_encoder_2"): 694_659_840,
    ("flux", "transformer"): 11_901_408_320,
    ("flux", "text_encoder_2"): 4_762_310_656,
    ("sd3", "transformer"): 2_028_328_000,
    ("chroma", "transformer"): 8_899_983_424,
}
# The others' files need a layout.
WITH_FILES = [name for name, family in FAMILIES.items() if family.single_file and not family.single_file.layouts]


@pytest.mark.parametrize("name", WITH_FILES)
def test_the_shipped_configs_are_of_their_family(name: str) -> None:
    single = FAMILIES[name].single_file
    assert single is not None
    tokenizers = {part: SHIPPED / tokenizer.folder for part, tokenizer in single.tokenizers.items()}
    folders = part_folders(name, SHIPPED / name) | tokenizers
    faults, checked = collect(folder_checks(name, SHIPPED / name, folders, {}))
    assert faults == []
    assert checked.configs.keys() == {"scheduler", *folders} - tokenizers.keys()


@pytest.mark.parametrize(("family", "part"), PARAMETERS)
def test_a_shipped_config_makes_a_model_of_the_published_size(family: str, part: str) -> None:
    component = FAMILIES[family].components[part]
    assert isinstance(component, ModelClass)
    found = json.loads((SHIPPED / family / part / "config.json").read_text())
    parameters = on_meta(component, found).parameters()
    assert sum(parameter.numel() for parameter in parameters) == PARAMETERS[family, part]


def test_the_tokenizers_give_the_published_tokens() -> None:
    clip = transformers.CLIPTokenizer.from_pretrained(str(SHIPPED / "clip_tokenizer"))
    assert clip("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    padded = transformers.CLIPTokenizer.from_pretrained(str(SHIPPED / "clip_tokenizer"), pad_token="!")
    ids = padded("hi!", padding="max_length", max_length=6).input_ids
    assert ids == [49406, 1883, 0, 49407, 0, 0]
    t5 = transformers.T5TokenizerFast.from_pretrained(str(SHIPPED / "t5_tokenizer"))
    assert t5("Hello world").input_ids == [8774, 296, 1]


def test_a_biass_spread_tells_whether_velocity_is_predicted() -> None:
    assert predicts_velocity(torch.tensor([0.2, -0.2]))
    assert not predicts_velocity(torch.tensor([0.5, 0.6]))
