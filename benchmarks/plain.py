"""The same diffusers call without the daemon: each line on standard input generates an image and prints its time."""

import sys
import time
from pathlib import Path

from weave.gpu_worker import environment

environment.apply()

import diffusers  # noqa: E402
import torch  # noqa: E402

pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
    str(Path(sys.argv[1])), torch_dtype=torch.float32, safety_checker=None, local_files_only=True
)
pipeline.set_progress_bar_config(disable=True)
for _ in sys.stdin:
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        result = pipeline(
            "a red circle on a blue background", num_inference_steps=20, guidance_scale=3.0, generator=generator
        )
    result.images[0].tobytes()
    print(time.perf_counter() - started, flush=True)
