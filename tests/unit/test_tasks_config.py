"""`references` in the config of a model, and the tasks that follow from it and from the family."""

from pathlib import Path

import pytest

from weave.config.load import load
from weave.config.offers import offers
from weave.config.schema import ConfigError
from weave.models.families import FAMILIES
from weave.protocol.inputs import REFERENCES, TEXT_TO_IMAGE


def tasks(folder: Path, family: str, more: str = "") -> tuple[str, ...]:
    file = folder / "weave.toml"
    file.write_text(f'[models.one]\npath = "m"\nfamily = "{family}"\n{more}')
    return offers(load(file))[0].tasks


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_has_its_familys_tasks(tmp_path: Path, family: str) -> None:
    assert tasks(tmp_path, family) == FAMILIES[family].tasks
    if family in ("qwen-image-edit", "qwen-image-edit-plus"):
        assert FAMILIES[family].tasks == (REFERENCES,)
    else:
        assert FAMILIES[family].tasks[0] == TEXT_TO_IMAGE
        assert (REFERENCES in FAMILIES[family].tasks) is (family == "flux2-klein")


def test_the_config_says_whether_references_are_taken(tmp_path: Path) -> None:
    for family in ("flux", "flux2-klein"):
        assert REFERENCES in tasks(tmp_path, family, "references = true\n")
        assert REFERENCES not in tasks(tmp_path, family, "references = false\n")


def test_a_model_that_needs_references_takes_them(tmp_path: Path) -> None:
    assert tasks(tmp_path, "qwen-image-edit", "references = true\n") == (REFERENCES,)
    with pytest.raises(ConfigError, match="references: models of family 'qwen-image-edit' can do nothing without them"):
        tasks(tmp_path, "qwen-image-edit", "references = false\n")
    with pytest.raises(ConfigError, match=r"bounds\.references must be within 1 and 1, the family's"):
        tasks(tmp_path, "qwen-image-edit", "bounds = { references = { min = 0 } }\n")


@pytest.mark.parametrize("value", ["true", "false"])
def test_references_are_for_families_with_their_class(tmp_path: Path, value: str) -> None:
    with pytest.raises(
        ConfigError, match=r"models.one.references: .*'sd1'; reference images are for flux, flux2-klein"
    ):
        tasks(tmp_path, "sd1", f"references = {value}\n")
