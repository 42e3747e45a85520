"""[controls] in the config: what is refused, and who gets what."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from weave.config.child_configs import Access
from weave.config.load import load
from weave.config.schema import Config, ConfigError
from weave.config.split import broker_config, worker_config

MODELS = '[models.one]\npath = "m"\nfamily = "sd1"\n[models.two]\npath = "m"\nfamily = "sdxl"\n'
CONTROL: dict[str, Any] = {"path": '"nets/canny"', "family": '"sd1"'}


def config(folder: Path, name: str = "canny", more: str = "", **fields: str | None) -> Config:
    table = "".join(f"{field} = {value}\n" for field, value in (CONTROL | fields).items() if value is not None)
    file = folder / "weave.toml"
    file.write_text(f'{MODELS}[controls."{name}"]\n{table}{more}')
    return load(file)


def test_a_path_is_relative_to_the_config_and_links_are_resolved(tmp_path: Path) -> None:
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "canny").symlink_to(tmp_path / "snapshot")
    found = config(tmp_path, sha256=f'{{ "config.json" = "{"0" * 64}" }}').controls["canny"]
    assert (found.path, found.title) == (str(tmp_path / "snapshot"), "")
    assert found.sha256 == {"config.json": "0" * 64}


def test_a_worker_gets_its_familys_paths_the_broker_none(tmp_path: Path) -> None:
    found = config(tmp_path, more='[controls.other]\npath = "b"\nfamily = "sdxl"\n')
    one, two = worker_config(found).models
    assert [[it.offer.id for it in model.controls] for model in (one, two)] == [["canny"], ["other"]]
    assert one.paths() == (str(tmp_path / "m"), str(tmp_path / "nets" / "canny"))
    told = msgspec.msgpack.encode(broker_config(found, mode="user", access=Access(uids=(0,))))
    assert b"canny" in told and b"nets" not in told and str(tmp_path).encode() not in told


def test_tasks_do_not_depend_on_the_config(tmp_path: Path) -> None:
    """`controls` in `models` says which there are."""
    (tmp_path / "weave.toml").write_text(MODELS)
    (one, *_) = worker_config(load(tmp_path / "weave.toml")).models
    assert "control" in one.offer.tasks and one.controls == ()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "family": ({"family": '"sd9"'}, "controls.canny.family is 'sd9'; it must be one of sd1"),
    "a family without": ({"family": '"chroma"'}, "family is 'chroma'; ControlNets are for sd1, sd2, sdxl, sd3, flux"),
    "no path": ({"path": None}, "missing required field `path`"),
    "ID": ({"name": "A B"}, "controls.A B: an ID is up to 64 of a-z"),
    "title": ({"title": '"a\\u202eb"'}, "controls.canny.title holds U+202E"),
    "digest": ({"sha256": f'{{ "a" = "{"0" * 63}" }}'}, "at `$.controls"),
    "unknown field": ({"scale": "1"}, "unknown field `scale`"),
    "a NUL": ({"path": '"a\\u0000"'}, "the path of a model, LoRA, embedding or ControlNet cannot be resolved"),
}


@pytest.mark.parametrize("fields, message", REFUSED.values(), ids=REFUSED)
def test_a_bad_table_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config(tmp_path, **fields)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "bound, message",
    [
        ("controls = { max = 2 }", "models.one.bounds.controls must be within 0 and 1, the family's"),
        ("control_start = { max = 1 }", "models.one.bounds.control_start must be within 0.0 and 0.0, the family's"),
        ("control_end = { min = 0.5 }", "models.one.bounds.control_end must be within 1.0 and 1.0, the family's"),
        ("controls = { max = 5 }", "Expected `int` <= 4"),
    ],
)
def test_bounds_are_never_wider_than_the_classes_allow(tmp_path: Path, bound: str, message: str) -> None:
    (tmp_path / "weave.toml").write_text(f'[models.one]\npath = "m"\nfamily = "z-image"\nbounds = {{ {bound} }}\n')
    with pytest.raises(ConfigError) as refused:
        load(tmp_path / "weave.toml")
    assert message in str(refused.value)


def test_controls_count_toward_the_length_of_the_list(tmp_path: Path) -> None:
    many = "".join(f'[controls.a{n}]\npath = "b"\nfamily = "sd1"\ntitle = "{"x" * 250}"\n' for n in range(250))
    with pytest.raises(ConfigError, match=r"LoRAs, embeddings and ControlNets has \d+ bytes"):
        config(tmp_path, more=many)
