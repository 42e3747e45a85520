"""Keeps torch, diffusers and transformers from importing what never runs here: torch's compiler and exporter,
distributed tensors, and models of no family.

They take a third of the processor time of a zygote's start. The libraries import them for decorators and type checks,
or together with other modules of a package. A deferred module is executed when a name is read that it does not have
yet, so code that does run finds the real module.
"""

import importlib.metadata
import sys
import types
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

# The versions whose modules can be deferred. Other versions import all: they may rely on another order.
TESTED = {"torch": "2.13", "diffusers": "0.42"}


class _CompiledModule:
    """Has no instances: nothing is compiled here."""


def _disable(function: Any = None, recursive: bool = True, **options: Any) -> Any:
    """torch._dynamo.disable is a decorator with and without arguments."""
    return (lambda decorated: decorated) if function is None else function


# What the compiler has before it is executed. Its decorators return the function as it is, as they would in effect with
# TORCHDYNAMO_DISABLE; diffusers asks of each component whether it is a compiled module, and Qwen-Image's transformer
# whether it is being compiled.
_COMPILER = {
    "allow_in_graph": lambda function: function,
    "assume_constant_result": lambda function: function,
    "disable": _disable,
    "is_compiling": lambda: False,
    "eval_frame": types.SimpleNamespace(OptimizedModule=_CompiledModule),
}
# By module, what it has before it is executed.
DEFERRED: dict[str, dict[str, Any]] = {
    "torch._dynamo": _COMPILER,
    # The shape of each operation's result, in Python: for the compiler, and for the few operations on the meta device
    # that have none in C++.
    "torch._meta_registrations": {},
    "torch.distributed._meta_registrations": {},
    "torch.export": {},
    # Quantised modules for training and mobile devices, and their older names.
    "torch.ao": {},
    "torch.nn.intrinsic": {},
    "torch.nn.qat": {},
    "torch.nn.quantizable": {},
    "torch.nn.quantized": {},
    "torch.quantization": {},
    "torch.masked": {},
    "torch.optim": {},
    # These packages import every model that diffusers has. A family's are imported by their own modules' names.
    "diffusers.models.autoencoders": {},
    "diffusers.models.controlnets": {},
    "diffusers.models.transformers": {},
    "diffusers.models.unets": {},
}


class _Deferred(types.ModuleType):
    """A module that is executed when an attribute is read that it does not have yet."""

    def __getattr__(self, name: str) -> Any:
        if name == "__path__":  # importlib asks of every module whether it is a package
            raise AttributeError(name)
        _execute(self)
        return getattr(self, name)


def _execute(wanted: _Deferred) -> None:
    """torch's modules rely on those that torch imports before them, so these are executed first."""
    for name, module in list(sys.modules.items()):  # in the order of their import
        needed = name.startswith("torch.") and wanted.__name__.startswith("torch.")
        if type(module) is _Deferred and (needed or module is wanted):
            module.__class__ = types.ModuleType  # type: ignore[assignment]
            module.__loader__.exec_module(module)  # type: ignore[union-attr]
        if module is wanted:
            return


class _Deferring(Loader):
    """Leaves the execution of a module to _Deferred."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> types.ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        assert module.__spec__
        module.__loader__ = module.__spec__.loader = self._loader
        module.__dict__.update(DEFERRED[module.__name__])
        module.__class__ = _Deferred


class _Finder(MetaPathFinder):
    def __init__(self, names: Sequence[str]) -> None:
        self._names = frozenset(names)

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname not in self._names:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Deferring(spec.loader)
        return spec


def apply() -> None:
    """Call it before torch is imported."""
    tested = {library for library, version in TESTED.items() if _version(library).startswith(f"{version}.")}
    sys.meta_path.insert(0, _Finder([name for name in DEFERRED if name.split(".")[0] in tested]))
    # It reads the list of files of every distribution, and diffusers calls it. Without it, the libraries miss only
    # optional packages whose distribution has another name.
    importlib.metadata.packages_distributions = dict


def complete() -> None:
    """Call it after torch is imported, before diffusers and transformers are."""
    import torch.distributed

    torch.distributed.is_available = lambda: False  # as in a torch built without it
    if isinstance(sys.modules["torch._meta_registrations"], _Deferred):
        # One of the modules that it would import (torch/_prims/rng_prims.py) makes generators usable.
        from torch._opaque_base import OpaqueBaseMeta

        torch._C._set_generator_metaclass(OpaqueBaseMeta)


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return ""
