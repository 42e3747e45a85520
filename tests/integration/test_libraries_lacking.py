"""Libraries that lack what the daemon needs: it logs them by name and checks again after a reload."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec import UNSET

from tests.support import tiny_models
from tests.support.builds import daemon_of
from tests.support.daemon import Daemon, wait_for
from tests.support.from_images import mask, noise
from tests.support.generation import generate, images
from tests.support.seams import Seams, before, constant
from tests.support.system import MODEL
from weave.client import WeaveError
from weave.protocol.errors import ErrorCode
from weave.weavectl.doctor import EXIT_PROBLEM

WEAVECTL = Path(sys.executable).with_name("weavectl")

# The change that stands in for another version, and what the log must name.
OTHERS = {
    "a name": ("import torch; del torch.OutOfMemoryError", "torch", "torch.OutOfMemoryError"),
    "a private name": (
        "import diffusers; del diffusers.ModelMixin._fix_state_dict_keys_on_load",
        "diffusers",
        "diffusers.ModelMixin._fix_state_dict_keys_on_load",
    ),
    "a parameter": (
        "import diffusers; diffusers.StableDiffusionPipeline.__call__ = lambda self, prompt: None",
        "diffusers",
        "diffusers.StableDiffusionPipeline.__call__(guidance_scale=, negative_prompt=",
    ),
}
# Runs first in each process: a torch whose own library is missing.
BROKEN_TORCH = """
import pathlib, sys
if pathlib.Path({flag!r}).exists():
    sys.path.insert(0, {folder!r})
"""


def refused(daemon: Daemon) -> WeaveError:
    with daemon.client() as client, pytest.raises(WeaveError) as error:
        generate(client)
    assert error.value.code is ErrorCode.WORKER_FAILED and "libraries lack" in str(error.value)
    return error.value


@pytest.mark.parametrize("name", OTHERS)
def test_missing_library_names_are_logged_and_jobs_fail(name: str) -> None:
    code, library, missing = OTHERS[name]
    daemon = daemon_of((before("gpu_worker/__main__.py", "Zygote.import_libraries", code),))
    try:
        with daemon.client() as client, pytest.raises(WeaveError):
            client.load_model("shapes")
        told = refused(daemon)
        (line,) = daemon.events("libraries_lack")
        assert line["library"] == library and line["version"][0].isdigit() and Path(line["path"]).is_dir()
        assert missing in line["missing"]
        assert "/" not in str(told) and missing not in str(told)
        # It is still the first zygote: none is started again and again.
        assert not daemon.events("zygote_ended")
        ended = subprocess.run([WEAVECTL, "-s", daemon.socket, "doctor"], capture_output=True, text=True, check=False)
        assert ended.returncode == EXIT_PROBLEM and "fail  libraries: " in ended.stdout
    finally:
        daemon.stop()


MISSING = "libcudart.so.13: cannot open shared object file: No such file or directory"


def daemon_of_broken_torch(folder: Path, seams: Seams) -> tuple[Daemon, Path]:
    """torch is broken while the file exists."""
    flag, package = folder / "broken", folder / "torch"
    package.mkdir()
    flag.touch()
    (package / "__init__.py").write_text(f"raise OSError({MISSING!r})\n")
    return daemon_of(seams, everywhere=BROKEN_TORCH.format(flag=str(flag), folder=str(folder))), flag


def test_libraries_are_checked_again_after_a_minute(tmp_path: Path) -> None:
    daemon, flag = daemon_of_broken_torch(
        tmp_path, (constant("supervisor/children/zygote.py", "_UNFIT_SECONDS", "0.0"),)
    )
    try:
        refused(daemon)
        wait_for(lambda: len(daemon.events("libraries_lack")) == 2, 300)
        flag.unlink()
        refused(daemon)
        with daemon.client() as client:
            assert images(generate(client))
        # Jobs without a worker are not logged separately.
        assert not daemon.events("worker_gone") and not daemon.events("job_failed")
    finally:
        daemon.stop()


def test_a_reload_checks_a_broken_library_again(tmp_path: Path) -> None:
    daemon, flag = daemon_of_broken_torch(tmp_path, ())
    try:
        refused(daemon)
        (line,) = daemon.events("libraries_lack")
        with daemon.client() as client:
            assert client.status().libraries_lack is True
        package = tmp_path / "torch"
        assert (line["library"], line["path"], line["missing"]) == ("torch", str(package), f"OSError: {MISSING}")
        daemon.process.send_signal(signal.SIGHUP)
        wait_for(lambda: len(daemon.events("libraries_lack")) == 2, 300)
        refused(daemon)
        flag.unlink()
        daemon.process.send_signal(signal.SIGHUP)
        wait_for(lambda: daemon.events("imported"), 300)
        with daemon.client() as client:
            assert images(generate(client))
            wait_for(lambda: client.status().libraries_lack is UNSET)
    finally:
        daemon.stop()


def daemon_without_flux(folder: Path, seams: Seams) -> tuple[Daemon, Path]:
    """It has a model of sd1 and one of flux, whose pipeline is another version's while the file exists."""
    flag = folder / "other-version"
    flag.touch()
    code = f"""
        import diffusers, pathlib
        if pathlib.Path({str(flag)!r}).exists():
            diffusers.FluxPipeline.__call__ = lambda self, prompt: None
    """
    model = tiny_models.make("flux", folder / "flux")
    config = f'{MODEL}\n[models.flux]\npath = "{model}"\nfamily = "flux"\n'
    return daemon_of((*seams, before("gpu_worker/__main__.py", "Zygote.import_libraries", code)), config), flag


def test_only_a_task_that_lacks_something_is_refused() -> None:
    code = "import diffusers; diffusers.StableDiffusionImg2ImgPipeline.__call__ = lambda self, prompt: None"
    daemon = daemon_of((before("gpu_worker/__main__.py", "Zygote.import_libraries", code),))
    try:
        image, where = noise(64, 64), mask(64, 64)
        with daemon.client() as client:
            assert images(generate(client, width=64, height=64))
            with pytest.raises(WeaveError) as failed:
                generate(client, image=image)
            assert failed.value.code is ErrorCode.WORKER_FAILED and "libraries lack" in str(failed.value)
            assert images(generate(client, image=image, mask=where))
            assert client.status().libraries_lack is UNSET
        (line,) = daemon.events("libraries_lack")
        assert (line["family"], line["task"]) == ("sd1", "image-to-image")
        assert "diffusers.StableDiffusionImg2ImgPipeline.__call__(guidance_scale=" in line["missing"]
        assert "strength=" in line["missing"]
    finally:
        daemon.stop()


def loads(daemon: Daemon, model: str) -> bool:
    with daemon.client() as client:
        try:
            client.load_model(model)
        except WeaveError:
            return False
    return True


@pytest.mark.parametrize("recheck", ["after a reload", "after a minute"])
def test_only_a_family_that_lacks_something_is_refused(tmp_path: Path, recheck: str) -> None:
    soon = (constant("gpu_worker/__main__.py", "_RECHECK_SECONDS", "0.0"),)
    daemon, flag = daemon_without_flux(tmp_path, soon if recheck == "after a minute" else ())
    try:
        with daemon.client() as client:
            assert images(generate(client, model="shapes"))
            with pytest.raises(WeaveError) as failed:
                client.load_model("flux")
            assert failed.value.code is ErrorCode.WORKER_FAILED and "libraries lack" in str(failed.value)
            assert client.status().libraries_lack is UNSET
        line = daemon.events("libraries_lack")[0]
        assert (line["library"], line["family"]) == ("diffusers", "flux")
        assert "diffusers.FluxPipeline.__call__(guidance_scale=" in line["missing"]
        if recheck == "after a reload":
            assert len(daemon.events("libraries_lack")) == 1 and not daemon.events("zygote_ended")
            daemon.process.send_signal(signal.SIGHUP)
        wait_for(lambda: len(daemon.events("libraries_lack")) == 2, 300)
        assert not loads(daemon, "flux")
        flag.unlink()
        daemon.process.send_signal(signal.SIGHUP)
        wait_for(lambda: loads(daemon, "flux"), 300)
        with daemon.client() as client:
            assert images(generate(client, model="shapes"))
    finally:
        daemon.stop()
