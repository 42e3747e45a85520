"""The images of diffusers itself on the same device, for test_d_families.py. A separate process, so that its VRAM is
free before the daemon's part. `python -m tests.gpu.plain_calls DEVICE MODELS OUTPUT.npz`."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.gpu.models import FAMILIES
from tests.support.reference import Reference, arguments, fitting

DTYPES = ("float32", "bfloat16", "float16")
STEPS, SEED, SCALE = 3, 5, 4.0
PROMPT = "a red circle"
NEGATIVES = (None, "blurred, blue")


def key(dtype: str, family: str, scheduler: str, negative: str | None) -> str:
    return f"{dtype} {family} {scheduler}{'' if negative is None else ' with a negative prompt'}"


def main(device: str, folder: Path, output: Path) -> None:
    torch.set_num_threads(1)  # as the daemon's on the CPU
    generated: dict[str, Any] = {}
    for dtype in DTYPES:
        for family in FAMILIES:
            plain = Reference(family, folder / family, dtype)
            plain.pipeline.to(device)
            for scheduler in fitting(family):
                for negative in NEGATIVES:
                    generator = torch.Generator("cpu").manual_seed(SEED)
                    generated[key(dtype, family, scheduler, negative)] = plain.generate(
                        PROMPT,
                        plain.scheduler(scheduler),
                        generator,
                        **arguments(family, negative, steps=STEPS, scale=SCALE),
                    )
    np.savez(output, **generated)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
