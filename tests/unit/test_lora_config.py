"""[loras] in the config: what is refused, and who gets what."""

from pathlib import Path
from typing import Any

import pytest

from weave.config.load import load
from weave.config.schema import Config, ConfigError
from weave.config.split import worker_config

MODELS = '[models.one]\npath = "m"\nfamily = "sd1"\n[models.two]\npath = "m"\nfamily = "sdxl"\n'
LORA: dict[str, Any] = {"path": "files/a.safetensors", "family": "sd1"}


def config(folder: Path, lora_id: str = "detail", more: str = "", **fields: Any) -> Config:
    values = {name: f'"{it}"' if isinstance(it, str) else it for name, it in (LORA | fields).items() if it is not None}
    table = "".join(f"{name} = {value}\n" for name, value in values.items())
    file = folder / "weave.toml"
    file.write_text(f'{MODELS}[loras."{lora_id}"]\n{table}{more}')
    return load(file)


def test_a_path_is_relative_to_the_config_and_links_are_resolved(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.safetensors").symlink_to(tmp_path / "blob")
    found = config(tmp_path).loras["detail"]
    assert (found.path, found.max_weight, found.sha256) == (str(tmp_path / "blob"), 2.0, None)


def test_a_worker_gets_the_loras_of_its_family_only(tmp_path: Path) -> None:
    other = '[loras.other]\npath = "b"\nfamily = "sdxl"\n'
    one, two = worker_config(config(tmp_path, more=other)).models
    assert [it.offer.id for it in one.loras] == ["detail"] and [it.offer.id for it in two.loras] == ["other"]
    assert one.paths() == (str(tmp_path / "m"), str(tmp_path / "files" / "a.safetensors"))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "family": ({"family": "sd9"}, "loras.detail.family is 'sd9'; it must be one of sd1"),
    "no path": ({"path": None}, "missing required field `path`"),
    "no family": ({"family": None}, "missing required field `family`"),
    "ID": ({"lora_id": "A B"}, "loras.A B: an ID is up to 64 of a-z"),
    "title": ({"title": "a\\u202eb"}, "loras.detail.title holds U.202E"),
    "long title": ({"title": "x" * 257}, "loras.detail.title has 257 characters; it must have at most 256"),
    "weight 0": ({"max_weight": 0.0}, "Expected `float` > 0.0 - at `$.loras"),
    "weight 101": ({"max_weight": 101.0}, "Expected `float` <= 100.0 - at `$.loras"),
    "digest": ({"sha256": "0" * 63}, "at `$.loras"),
    "digest with a newline": ({"sha256": "0" * 64 + "\\n"}, "at `$.loras"),
    "unknown field": ({"weight": 1.0}, "unknown field `weight`"),
    "a NUL": ({"path": "a\\u0000"}, "the path of a model, LoRA, embedding or ControlNet cannot be resolved"),
}


@pytest.mark.parametrize("fields, message", REFUSED.values(), ids=REFUSED)
def test_a_bad_table_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config(tmp_path, **fields)
    assert message.replace("U.", "U+") in str(refused.value)


def test_nan_as_the_largest_weight_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_weight"):
        config(tmp_path, more="max_weight = nan\n")


def test_more_than_a_message_can_list_is_refused(tmp_path: Path) -> None:
    many = "".join(f'[loras.a{n}]\npath = "b"\nfamily = "sd1"\ntitle = "{"x" * 250}"\n' for n in range(250))
    with pytest.raises(
        ConfigError,
        match=r"the list of all models, LoRAs, embeddings and ControlNets has \d+ bytes; it must have at most 65280",
    ):
        config(tmp_path, more=many)
