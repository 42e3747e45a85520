"""Which encodings of prompts a worker caches."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from weave.config.child_configs import WorkerLora
from weave.gpu_worker.prompts import KeptPrompts
from weave.protocol.loras import LoraOffer, RequestedLora


class Pipeline:
    """Counts its calls, and writes to what it got, as a pipeline may."""

    def __init__(self) -> None:
        self.calls = 0

    def encode_prompt(self, prompt: Any, **_: Any) -> tuple[torch.Tensor, None, list[torch.Tensor]]:
        self.calls += 1
        return torch.full((256,), float(len(str(prompt)))), None, [torch.zeros(256)]


def encoded(
    kept: KeptPrompts, pipeline: Pipeline, prompt: Any, offered: tuple[Any, ...] = (), used: tuple[Any, ...] = ()
) -> float:
    model: Any = SimpleNamespace(loras=offered, embeddings=())
    parameters: Any = SimpleNamespace(loras=used, embeddings=())
    with kept.encoding(model, parameters)(pipeline):
        result = pipeline.encode_prompt(prompt, device=torch.device("cpu"))
    value = float(result[0][0])
    result[0].zero_()
    result[2][0].fill_(1)
    return value


def test_the_least_recently_used_are_dropped() -> None:
    kept, pipeline = KeptPrompts(most_bytes=2 * 2 * 256 * 4), Pipeline()
    for prompt in ("a", "bb", "a", "ccc", "a"):
        assert encoded(kept, pipeline, prompt) == len(prompt)
    assert pipeline.calls == 3
    encoded(kept, pipeline, "bb")
    assert pipeline.calls == 4


def test_one_that_is_larger_than_the_bound_is_kept_alone() -> None:
    kept, pipeline = KeptPrompts(most_bytes=1), Pipeline()
    assert [encoded(kept, pipeline, prompt) for prompt in ("a", "a", "bb", "a")] == [1, 1, 2, 1]
    assert pipeline.calls == 3


def test_an_encoding_that_depends_on_an_image_is_not_kept() -> None:
    kept, pipeline = KeptPrompts(), Pipeline()
    for _ in range(2):
        encoded(kept, pipeline, [torch.zeros(1)])
    assert pipeline.calls == 2
    assert "encode_prompt" not in vars(pipeline)


def test_another_weight_or_file_of_a_lora_is_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    path.write_bytes(b"one")
    lora = WorkerLora(offer=LoraOffer(id="ink", family="sd1", title="ink", max_weight=1.0), path=str(path), sha256=None)
    kept, pipeline = KeptPrompts(), Pipeline()
    for weight in (1.0, 1.0, 0.5):
        encoded(kept, pipeline, "a", (lora,), (RequestedLora("ink", weight),))
    assert pipeline.calls == 2
    path.unlink()
    path.write_bytes(b"two")
    encoded(kept, pipeline, "a", (lora,), (RequestedLora("ink", 0.5),))
    assert pipeline.calls == 3
