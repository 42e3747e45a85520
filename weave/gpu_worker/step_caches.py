"""Step caches: diffusers' hooks on the denoiser, which at some steps reuse or extrapolate what blocks returned before.

A cache is on for one pass, so that no job sees another job's results.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from weave.protocol.parameters import StepCache


@contextlib.contextmanager
def step_cache(denoiser: Any, name: StepCache, steps: int) -> Iterator[None]:
    """In this context the denoiser has the cache. `steps` are those of the pass."""
    if name == "none":
        yield
        return
    denoiser.enable_cache(_config(name, denoiser.dtype, steps))
    try:
        yield  # pipelines for text-to-image mark the calls for the negative prompt
    finally:
        denoiser.disable_cache()


def _config(name: StepCache, dtype: Any, steps: int) -> Any:
    """The cache's config, with diffusers' defaults. classes.py imports the hooks for families that have caches."""
    from diffusers import hooks
    from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS

    if name == "first_block":
        return hooks.FirstBlockCacheConfig()
    if name == "taylorseer":
        return hooks.TaylorSeerCacheConfig(taylor_factors_dtype=dtype)
    return hooks.MagCacheConfig(num_inference_steps=steps, mag_ratios=FLUX_MAG_RATIOS)
