"""Adapters for the differences between pipelines of diffusers: base.py fits Stable Diffusion, the others one family."""

import functools
from importlib import import_module

from weave.gpu_worker.pipelines.base import Adapter
from weave.models.families import FAMILIES


@functools.cache
def adapter_of(name: str) -> Adapter:
    """The adapter of the family `name`: the class Adapter in the module that Family.adapter names."""
    family = FAMILIES[name]
    adapter: Adapter = import_module(f"{__name__}.{family.adapter}").Adapter(family)
    return adapter
