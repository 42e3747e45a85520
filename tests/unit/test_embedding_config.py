"""[embeddings] in the config: what is refused, and who gets what."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from weave.config.child_configs import Access
from weave.config.load import load
from weave.config.schema import Config, ConfigError
from weave.config.split import broker_config, worker_config

MODELS = '[models.one]\npath = "m"\nfamily = "sd1"\n[models.two]\npath = "m"\nfamily = "sdxl"\n'
EMBEDDING: dict[str, Any] = {"path": "files/a.safetensors", "family": "sd1"}


def config(folder: Path, name: str = "bad-hands", more: str = "", **fields: Any) -> Config:
    values = {field: f'"{value}"' for field, value in (EMBEDDING | fields).items() if value is not None}
    table = "".join(f"{field} = {value}\n" for field, value in values.items())
    file = folder / "weave.toml"
    file.write_text(f'{MODELS}[embeddings."{name}"]\n{table}{more}')
    return load(file)


def test_a_path_is_relative_to_the_config_and_links_are_resolved(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.safetensors").symlink_to(tmp_path / "blob")
    found = config(tmp_path).embeddings["bad-hands"]
    assert (found.path, found.title, found.sha256) == (str(tmp_path / "blob"), "", None)


def test_a_worker_gets_its_familys_paths_the_broker_none(tmp_path: Path) -> None:
    found = config(tmp_path, more='[embeddings.other]\npath = "b"\nfamily = "sdxl"\n')
    one, two = worker_config(found).models
    assert [[it.offer.id for it in model.embeddings] for model in (one, two)] == [["bad-hands"], ["other"]]
    assert one.paths() == (str(tmp_path / "m"), str(tmp_path / "files" / "a.safetensors"))
    told = msgspec.msgpack.encode(broker_config(found, mode="user", access=Access(uids=(0,))))
    assert b"bad-hands" in told and b"safetensors" not in told and str(tmp_path).encode() not in told


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "family": ({"family": "sd9"}, "embeddings.bad-hands.family is 'sd9'; it must be one of sd1"),
    "a family without": ({"family": "flux"}, "family is 'flux'; embeddings are for sd1, sd2, sdxl"),
    "no path": ({"path": None}, "missing required field `path`"),
    "ID": ({"name": "A B"}, "embeddings.A B: an ID is up to 64 of a-z"),
    "title": ({"title": "a\\u202eb"}, "embeddings.bad-hands.title holds U+202E"),
    "digest": ({"sha256": "0" * 63}, "at `$.embeddings"),
    "unknown field": ({"max_weight": "1"}, "unknown field `max_weight`"),
    "a NUL": ({"path": "a\\u0000"}, "the path of a model, LoRA, embedding or ControlNet cannot be resolved"),
}


@pytest.mark.parametrize("fields, message", REFUSED.values(), ids=REFUSED)
def test_a_bad_table_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config(tmp_path, **fields)
    assert message in str(refused.value)


def test_embeddings_count_for_the_length_of_the_list(tmp_path: Path) -> None:
    many = "".join(f'[embeddings.a{n}]\npath = "b"\nfamily = "sd1"\ntitle = "{"x" * 250}"\n' for n in range(250))
    with pytest.raises(ConfigError, match=r"the list of all models, LoRAs, embeddings and ControlNets has \d+ bytes"):
        config(tmp_path, more=many)
