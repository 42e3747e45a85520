"""The contents of the project's wheel."""

import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Made from a copy, since setuptools builds within the source."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "weave", source / "weave", ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools import build_meta; build_meta.build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (made,) = source.glob("*.whl")
    return zipfile.ZipFile(made)


def test_the_wheel_has_every_module_and_py_typed(wheel: zipfile.ZipFile) -> None:
    files = [*(ROOT / "weave").rglob("*.py"), *(p for p in (ROOT / "weave/models/shipped").rglob("*") if p.is_file())]
    modules = {str(path.relative_to(ROOT)) for path in files}
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == {*modules, "weave/py.typed"}


def test_the_wheel_has_the_licence(wheel: zipfile.ZipFile) -> None:
    (text,) = [name for name in wheel.namelist() if name.endswith("/licenses/LICENSE")]
    assert wheel.read(text) == (ROOT / "LICENSE").read_bytes()
    (metadata,) = [name for name in wheel.namelist() if name.endswith("/METADATA")]
    assert Parser().parsestr(wheel.read(metadata).decode())["License-Expression"] == "MIT"
