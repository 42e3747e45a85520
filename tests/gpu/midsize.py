"""A model of SDXL's real shape with random weights, and the plain diffusers call with it, each in a separate process.
`python -m tests.gpu.midsize make DEVICE FOLDER` writes the model; on the CPU a tiny one stands in for it. `python -m
tests.gpu.midsize serve DEVICE FOLDER` loads it as users do, then generates as many images as each line of its standard
input asks for: each line of its output is JSON, the pixels are in FOLDER.npy."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tests.gpu.report import ROOT
from tests.support.daemon import DEMO_MODEL
from tests.support.processes import start
from tests.support.published import PUBLISHED
from tests.support.reference import Reference, arguments, make_small_model, write_index

PROMPT, SEED, SCALE = "a red circle", 11, 5.0
# Of the weights, as the models' own initialisations have it. With more, halves overflow; with less, images are grey.
_STD = 0.02


class Shape(NamedTuple):
    """The parameters of the requests: pixels a side, and steps."""

    side: int
    steps: int
    dtype: str


def shape(device: str) -> Shape:
    return Shape(1024, 20, "float16") if device == "cuda" else Shape(64, 4, "float32")


def make(device: str, folder: Path) -> None:
    if device == "cuda":
        make_sdxl(folder, device)
    else:
        make_small_model("sdxl", folder)
    write_index("sdxl", folder, force_zeros_for_empty_prompt=True)


def make_sdxl(folder: Path, device: str) -> None:
    """In halves from the start: what is made in float32 first takes twice the memory."""
    import diffusers
    import transformers

    _, files = PUBLISHED["SDXL"]
    classes = {
        "text_encoder": transformers.CLIPTextModel,
        "text_encoder_2": transformers.CLIPTextModelWithProjection,
        "unet": diffusers.UNet2DConditionModel,
        "vae": diffusers.AutoencoderKL,
    }
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    for part, model_class in classes.items():
        config = {name: value for name, value in files[f"{part}/config.json"].items() if not name.startswith("_")}
        with torch.device(device), torch.inference_mode():
            if "encoder" in part:
                model = model_class(transformers.CLIPTextConfig(**config))
            else:
                model = model_class.from_config(config)
            for parameter in model.parameters():
                if parameter.ndim > 1:  # norms stay ones, biases as they are
                    parameter.normal_(0, _STD)
        model.half().save_pretrained(folder / part, max_shard_size="100GB")
        del model
    for part in ("tokenizer", "tokenizer_2"):
        shutil.copytree(DEMO_MODEL / "tokenizer", folder / part)
    scheduler = diffusers.EulerDiscreteScheduler.from_config(files["scheduler/scheduler_config.json"])
    scheduler.save_pretrained(folder / "scheduler")


class PlainCalls:
    """The process that serves plain calls, to the end of the `with` statement. `loading` is in seconds."""

    def __init__(self, device: str, folder: Path) -> None:
        command = (sys.executable, "-m", "tests.gpu.midsize", "serve", device, str(folder))
        self._process = start(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._pixels = folder.with_suffix(".npy")

    def __enter__(self) -> "PlainCalls":
        self.loading: dict[str, float] = self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def seconds(self, images: int) -> list[float]:
        """What each of so many images took."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{images}\n")
        self._process.stdin.flush()
        found: list[float] = self._answer()
        return found

    def pixels(self) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = np.load(self._pixels)
        return found

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the plain calls' process ended"
        return json.loads(line)


def serve(device: str, folder: Path) -> None:
    side, steps, dtype = shape(device)
    if device == "cpu":
        torch.set_num_threads(1)  # as the daemon
    before = time.monotonic()
    torch.zeros(1, device=device)
    started = time.monotonic()
    plain = Reference("sdxl", folder, dtype)
    plain.pipeline.to(device)
    _finish(device)
    loading = {"start of CUDA": started - before, "from_pretrained and to(device)": time.monotonic() - started}
    print(json.dumps({name: round(seconds, 2) for name, seconds in loading.items()}), flush=True)
    given = arguments("sdxl", None, steps=steps, scale=SCALE, side=side)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            started = time.monotonic()
            generator = torch.Generator("cpu").manual_seed(SEED)
            pixels = plain.generate(PROMPT, plain.scheduler("euler"), generator, **given)
            seconds.append(round(time.monotonic() - started, 3))
        np.save(folder.with_suffix(".npy"), pixels)
        print(json.dumps(seconds), flush=True)


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    {"make": make, "serve": serve}[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
