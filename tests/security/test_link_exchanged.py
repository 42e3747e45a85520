"""A model's files are exchanged for links to elsewhere after the worker has checked them, and before it reads them."""

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.builds import daemon_of
from tests.support.daemon import DEMO_MODEL, Daemon, wait_for
from tests.support.generation import generate, images
from tests.support.seams import Seams, before, replaced
from tests.support.system import MODEL
from weave.client import Client, WeaveError
from weave.protocol.client_messages import LoadModel
from weave.protocol.errors import ErrorCode

FILE = Path("unet/diffusion_pytorch_model.safetensors")
# After the checks, the worker waits until the folder has a file of this name.
EXCHANGED = "exchanged"
WAITING: Seams = (
    before(
        "gpu_worker/tensors.py",
        "read_tensors",
        f"""
        if part == "unet":
            import time
            from weave import log
            log.write("worker", "has_checked")
            while not (weights.files[0].parents[1] / "{EXCHANGED}").exists():
                time.sleep(0.01)
        """,
    ),
)
WITHOUT_LANDLOCK: Seams = (replaced("sandbox/landlock.py", "restrict", "return 'landlock-0'"),)


class Exchange(NamedTuple):
    """`daemon` has a model `own` in the folder `model`; `elsewhere` has the same files, and is not in the config."""

    daemon: Daemon
    model: Path
    elsewhere: Path

    def has_failed(self, count: int) -> bool:
        """Whether the log has so many failures."""
        return len(self.daemon.events("job_failed")) == count

    def load(self, client: Client, name: Path) -> None:
        """Loads `own`. Meanwhile the file or folder `name` in it becomes a link to the one elsewhere."""
        count = len(self.daemon.events("has_checked"))
        (self.model / EXCHANGED).unlink(missing_ok=True)
        loading = client.send(LoadModel(model="own"))
        wait_for(lambda: len(self.daemon.events("has_checked")) > count)
        (self.model / name).rename(self.model / "kept")
        (self.model / name).symlink_to(self.elsewhere / name)
        (self.model / EXCHANGED).touch()
        try:
            list(client.answers(loading))
        finally:
            (self.model / name).unlink()
            (self.model / "kept").rename(self.model / name)


@pytest.fixture
def exchange(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Exchange]:
    model, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    for folder in (model, elsewhere):
        shutil.copytree(DEMO_MODEL, folder)
    config = MODEL.replace("[models.shapes]", "[models.own]").replace(str(DEMO_MODEL), str(model))
    daemon = daemon_of((*WAITING, *request.param), config)
    yield Exchange(daemon, model, elsewhere)
    assert daemon.stop() == 0


@pytest.mark.parametrize("exchange", [()], indirect=True, ids=["as it is"])
def test_a_link_made_after_the_check_leads_nowhere(exchange: Exchange) -> None:
    with exchange.daemon.client() as client:
        for count, name in enumerate((FILE, FILE.parent), 1):
            with pytest.raises(WeaveError) as refused:
                exchange.load(client, name)
            assert refused.value.code is ErrorCode.WORKER_FAILED
            # The log may be written after the client's answer.
            wait_for(partial(exchange.has_failed, count))
            assert all("Permission denied" in line["detail"] for line in exchange.daemon.events("job_failed"))
        (exchange.model / EXCHANGED).touch()
        assert images(generate(client, model="own"))


@pytest.mark.parametrize("exchange", [WITHOUT_LANDLOCK], indirect=True, ids=["without Landlock"])
def test_without_landlock_it_leads_to_any_file(exchange: Exchange) -> None:
    with exchange.daemon.client() as client:
        exchange.load(client, FILE)
        assert client.status().model == "own"
