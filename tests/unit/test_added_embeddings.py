"""added() leaves the pipeline as it was, whatever failed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.embeddings import made
from tests.support.reference import make_small_model
from weave.config.child_configs import WorkerEmbedding, WorkerModel
from weave.gpu_worker.embeddings import EmbeddingRefused, added
from weave.gpu_worker.loading import load_pipeline
from weave.gpu_worker.placement import Placement
from weave.models.assets import Source
from weave.models.families import FAMILIES
from weave.protocol.client_messages import ModelOffer
from weave.protocol.embeddings import EmbeddingOffer

CPU = torch.device("cpu")
PAIR = ("clip_l", "clip_g")
FILES = {
    "one": made(*PAIR, shape=(1, 32)),
    "two": made(*PAIR, shape=(2, 32)),
    # float16 ends at 65504.
    "large": made(*PAIR, shape=(2, 32), scale=1e6),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, WorkerModel]:
    folder = tmp_path_factory.mktemp("model")
    path = make_small_model("sdxl", folder / "sdxl")
    pipeline = load_pipeline("sdxl", Source(path), CPU, torch.float16)
    files = []
    for name, file in FILES.items():
        offer = EmbeddingOffer(id=name, family="sdxl", title="")
        files.append(WorkerEmbedding(offer=offer, path=str(file.write(folder / f"{name}.safetensors")), sha256=None))
    known = FAMILIES["sdxl"]
    offered = ModelOffer(
        id="m", family="sdxl", title="", bounds=known.bounds, defaults=known.defaults, schedulers=known.schedulers
    )
    return pipeline, WorkerModel(
        offer=offered, path=str(path), layout=None, parts={}, sha256={}, embeddings=tuple(files)
    )


def state(pipeline: Any) -> list[tuple[int, str, int, bytes]]:
    """Of both encoders: which tokenizer it is and what is in it, which table and its bits."""
    found = []
    for suffix in ("", "_2"):
        tokenizer = getattr(pipeline, f"tokenizer{suffix}")
        table = getattr(pipeline, f"text_encoder{suffix}").get_input_embeddings().weight
        bits = table.detach().view(torch.uint8).numpy().tobytes()
        found.append((id(tokenizer), tokenizer.backend_tokenizer.to_str(), id(table), bits))
    return found


def test_tokenizers_and_tables_are_put_back(model: Any) -> None:
    pipeline, offered = model
    before, length = state(pipeline), len(pipeline.tokenizer)
    with added(pipeline, offered, ("two", "one"), Placement(CPU)) as expand:
        assert expand("Two, one two.") == "<two:0> <two:1>, <one:0> <two:0> <two:1>."
        for suffix, key in (("", "clip_l"), ("_2", "clip_g")):
            table = getattr(pipeline, f"text_encoder{suffix}").get_input_embeddings().weight
            rows = torch.cat([FILES["two"].tensors[key], FILES["one"].tensors[key]]).half()
            assert torch.equal(table[length:], rows)
    assert state(pipeline) == before


def test_an_error_in_the_job_reaches_the_caller(model: Any) -> None:
    pipeline, offered = model
    before = state(pipeline)
    with pytest.raises(RuntimeError, match="the job"), added(pipeline, offered, ("two",), Placement(CPU)):
        raise RuntimeError("the job")
    assert state(pipeline) == before


def fails_at(call: int, original: Callable[..., None]) -> Callable[..., None]:
    calls = iter(range(call))

    def parameter(*arguments: Any) -> None:
        if next(calls, None) is None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(*arguments)

    return parameter


@pytest.mark.parametrize("call", range(len(PAIR)))
def test_running_out_of_memory_changes_nothing(model: Any, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    pipeline, offered = model
    before = state(pipeline)
    monkeypatch.setattr(torch.nn, "Parameter", fails_at(call, torch.nn.Parameter))
    with pytest.raises(torch.OutOfMemoryError), added(pipeline, offered, ("one",), Placement(CPU)):
        raise AssertionError("it was added")
    assert state(pipeline) == before


def test_what_the_models_dtype_cannot_hold_is_refused(model: Any) -> None:
    pipeline, offered = model
    before = state(pipeline)
    message = "large: 'clip_l' is not finite in float16"
    with pytest.raises(EmbeddingRefused, match=message), added(pipeline, offered, ("one", "large"), Placement(CPU)):
        raise AssertionError("it was added")
    assert state(pipeline) == before


def test_one_bad_file_of_two_changes_nothing(model: Any) -> None:
    pipeline, offered = model
    before = state(pipeline)
    Path(offered.embeddings[1].path).write_bytes(b"")
    message = r"two: two\.safetensors: header of 0 bytes"
    with pytest.raises(EmbeddingRefused, match=message), added(pipeline, offered, ("one", "two"), Placement(CPU)):
        raise AssertionError("it was added")
    assert state(pipeline) == before
