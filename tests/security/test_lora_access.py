"""Which files of LoRAs, embeddings and ControlNets a worker can open, and what the broker knows of them."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from PIL import Image

from tests.support.builds import build
from tests.support.daemon import Daemon, wait_for
from tests.support.generation import generate, images
from tests.support.seams import before, replaced
from tests.support.system import MODEL
from weave.client import Control, RequestedLora, WeaveError
from weave.config.child_configs import Access
from weave.config.load import load
from weave.config.split import broker_config
from weave.protocol.errors import ErrorCode

# A compromised worker opens the file that its prompt names.
OPENS = before("gpu_worker/generation.py", "generate", "open(generation.run.parameters.prompt, 'rb').close()")
NO_BOUNDS_IN_THE_BROKER = replaced("broker/front/requests.py", "check_bounds", "pass")


def files(folder: Path) -> str:
    """Config for the demo model; a LoRA, an embedding and a ControlNet of its family, and of another."""
    tables = ""
    for name, family in (("own", "sd1"), ("foreign", "sdxl")):
        for kind in ("loras", "embeddings", "controls"):
            file = folder / f"{name}-{kind}.safetensors"
            file.write_bytes(b"x")
            tables += f'[{kind}.{name}]\npath = "{file}"\nfamily = "{family}"\n'
    return f"{MODEL}\n{tables}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loras")


@pytest.fixture(scope="module")
def compromised(folder: Path) -> Iterator[Daemon]:
    started = Daemon(files(folder), command=build((OPENS,)))
    yield started.wait_until_serving()
    assert started.stop() == 0


def test_a_worker_can_open_its_familys_files_only(compromised: Daemon, folder: Path) -> None:
    with compromised.client() as client:
        for own in ("loras", "embeddings", "controls"):
            assert images(generate(client, str(folder / f"own-{own}.safetensors")))
        others = [f"foreign-{other}.safetensors" for other in ("loras", "embeddings", "controls")]
        for other in (*others, "."):
            with pytest.raises(WeaveError) as refused:
                generate(client, str(folder / other))
            assert refused.value.code is ErrorCode.INTERNAL
        assert wait_for(
            lambda: [it for it in compromised.events("job_failed") if "Permission denied" in it["detail"]][3:]
        )


def test_without_the_brokers_check_the_worker_refuses_them(folder: Path) -> None:
    daemon = Daemon(files(folder), command=build((NO_BOUNDS_IN_THE_BROKER,))).wait_until_serving()
    try:
        with daemon.client() as client:
            for name in ("none", "foreign", str(folder / "own-loras.safetensors")):
                control = Control(id=name, image=Image.new("RGB", (8, 8)))
                for more in ({"loras": (RequestedLora(name),)}, {"embeddings": (name,)}, {"control": (control,)}):
                    with pytest.raises(WeaveError) as refused:
                        generate(client, **more)
                    assert refused.value.code is ErrorCode.WORKER_FAILED
            for kind in ("loras", "embeddings", "control"):
                reason = f"{kind} names one that this"
                wait_for(lambda: [it for it in daemon.events("job_failed") if reason in it["detail"]][2:])  # noqa: B023
            assert images(generate(client))
    finally:
        daemon.stop()


def test_the_broker_gets_no_path_of_them(folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "weave.toml"
    config.write_text(files(folder))
    told = msgspec.msgpack.encode(broker_config(load(config), mode="user", access=Access(uids=(0,))))
    assert b"own" in told and b"foreign" in told
    assert str(folder).encode() not in told and b"safetensors" not in told
