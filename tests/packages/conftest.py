import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packages.tree import BUILT, ROOT, Tree, debian, run


def built(pattern: str) -> Path:
    found = list(BUILT.glob(pattern))
    assert len(found) == 1, f"packages/{pattern}: {found}; `make packages` first, in an empty folder"
    return found[0]


def names() -> tuple[str, str, str]:
    """Of the packages; torch's is named after its build."""
    torch = built("weave-compute-torch-*.deb").name.split("_")[0]
    return "weave-compute", torch, "weave-compute-model-shapes"


def clone(folder: Path) -> Path:
    run("git", "clone", "--quiet", ROOT, folder)
    return folder


def build(folder: Path, *packages: str, **variables: str) -> Path:
    """These packages, from that clone; where they are."""
    run(sys.executable, "scripts/packages.py", *packages, cwd=folder, env=os.environ | variables)
    return folder / "packages"


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    """With the dependencies of the daemon's .deb, except torch. Tests that install into it copy it."""
    if os.geteuid() != 0:
        pytest.skip("only root can install packages")
    depends = run("dpkg-deb", "--field", built("weave-compute_*.deb"), "Depends")
    others = [name for name in depends.strip().split(", ") if not name.startswith("weave-compute-torch")]
    path = tmp_path_factory.mktemp("trees") / "debian"
    yield debian(path, ", ".join(others))
    shutil.rmtree(path.parent)


@pytest.fixture(scope="session")
def bare(tree: Tree) -> dict[str, str]:
    return tree.files()


@pytest.fixture(scope="session")
def later(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the daemon's next release, which sets another default."""
    folder = clone(tmp_path_factory.mktemp("later") / "clone")
    with (folder / "conf/system.toml").open("a") as config:
        config.write('socket_mode = "0660"\n')
    yield build(folder, "weave-compute", PACKAGE_RELEASE="2")
    shutil.rmtree(folder)
