"""Keeps diffusers and transformers from importing what never runs here: torch's compiler and distributed tensors.

They are a quarter of the processor time that a zygote takes to start. Both libraries import them for decorators and
type checks only, though environment.py switches the compiler off and there is no process group.
"""

import functools
import importlib.metadata
import importlib.util
import sys
import types
from typing import Any

_COMPILER = "torch._dynamo"


class _Deferred(types.ModuleType):
    """A module that is executed when an attribute is read that it does not have yet."""

    def __getattr__(self, name: str) -> Any:
        self.__class__ = types.ModuleType  # type: ignore[assignment]
        assert self.__spec__ and self.__spec__.loader
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


class _CompiledModule:
    """Has no instances: nothing is compiled here."""


def apply() -> None:
    """Call it after torch is imported, before diffusers and transformers are."""
    import torch.distributed

    torch.distributed.is_available = lambda: False  # as in a torch built without it
    # diffusers and transformers both read the metadata of every installed package.
    importlib.metadata.packages_distributions = functools.cache(importlib.metadata.packages_distributions)
    if _COMPILER not in sys.modules:
        _defer_compiler()


def _defer_compiler() -> None:
    """Its decorators return the function as it is, as they would in effect with TORCHDYNAMO_DISABLE; diffusers asks of
    each component whether it is a compiled module, and Qwen-Image's transformer whether it is being compiled."""
    spec = importlib.util.find_spec(_COMPILER)
    if spec is None:
        return
    module = importlib.util.module_from_spec(spec)
    module.__class__ = _Deferred
    module.allow_in_graph = module.assume_constant_result = lambda function: function  # type: ignore[attr-defined]
    module.disable = _disable  # type: ignore[attr-defined]
    module.is_compiling = lambda: False  # type: ignore[attr-defined]
    module.eval_frame = types.SimpleNamespace(OptimizedModule=_CompiledModule)  # type: ignore[attr-defined]
    sys.modules[_COMPILER] = module


def _disable(function: Any = None, recursive: bool = True, **options: Any) -> Any:
    """torch._dynamo.disable is a decorator with and without arguments."""
    return (lambda decorated: decorated) if function is None else function
