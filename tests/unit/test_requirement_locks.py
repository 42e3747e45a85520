"""Exactly the files of requirements*.lock are installed, by hash."""

import hashlib
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_locks_have_every_requirement_with_hashes() -> None:
    run = subprocess.run(
        [sys.executable, "scripts/lock.py", "--check"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_a_lock_missing_a_dependency_or_a_hash_is_detected(tmp_path: Path) -> None:
    for name in ("pyproject.toml", *(lock.name for lock in ROOT.glob("requirements*.lock"))):
        (tmp_path / name).write_text((ROOT / name).read_text())
    build = tmp_path / "requirements-build.lock"
    build.write_text(re.sub(r"(?m)^setuptools==.*(\n    .*)*", "setuptools==1.0", build.read_text()))
    check = [sys.executable, ROOT / "scripts/lock.py", "--check"]
    run = subprocess.run(check, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.splitlines()[0] == "requirements-build.lock: setuptools has no hash"
    assert "setuptools>=77 is locked as 1.0: make lock" in run.stderr


def test_pip_installs_nothing_without_a_hash_from_the_locks() -> None:
    for file in ("Makefile", "scripts/packages.py"):
        text = (ROOT / file).read_text()
        assert "--no-build-isolation" in text and "requirements-build.lock" in text
    installs = re.findall(r"pip install (.*)", (ROOT / "Makefile").read_text())
    assert len(installs) == 3
    assert all("--require-hashes" in line or "--no-deps --no-build-isolation --editable ." in line for line in installs)


class Torch:
    """A wheel of that name in the only folder that pip searches, and an environment without one."""

    def __init__(self, folder: Path) -> None:
        self.wheels = folder / "wheels"
        self.wheels.mkdir()
        self._lock = folder / "requirements-torch.lock"
        name = "torch-2.13.0+other"
        wheel = self.wheels / f"{name}-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as file:
            file.writestr("torch.py", "")
            info = f"{name}.dist-info"
            file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0+other\n")
            file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            file.writestr(f"{info}/RECORD", f"torch.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
        self.digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        self._python = folder / "venv/bin/python"

    def install(self, digest: str, **variables: str) -> tuple[int, str]:
        """The exit status and the output."""
        self._lock.write_text(f"torch==2.13.0 \\\n    --hash=sha256:{digest}\n")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")} | variables
        environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels), "PIP_CONFIG_FILE": os.devnull}
        command = [sys.executable, "scripts/install_torch.py", "--python", self._python, "--lock", self._lock]
        run = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
        return run.returncode, run.stderr

    def is_there(self) -> bool:
        return subprocess.run([self._python, "-c", "import torch"], check=False, capture_output=True).returncode == 0


@pytest.fixture
def torch(tmp_path: Path) -> Torch:
    return Torch(tmp_path)


def test_an_unlisted_torch_build_is_installed_only_on_request(torch: Torch) -> None:
    status, said = torch.install("0" * 64)
    assert status == 1 and "no hash of this build of torch:\n  torch 2.13.0+other from file:///" in said
    assert not torch.is_there()
    assert torch.install("0" * 64, UNLISTED_TORCH="1")[0] == 0
    assert torch.is_there()


def test_a_listed_torch_build_is_installed(torch: Torch) -> None:
    assert torch.install(torch.digest) == (0, "")
    assert torch.is_there()
