"""What our code asks of torch, diffusers and the others: names and keyword parameters, not versions.

The zygote checks it once it has them, so that what another version lacks is in the log by name, before anybody's job
could fail of it. What a family needs comes from the families' own tables. Not checked is what is seen at a call only:
what a function does with `**kwargs`, and attributes that an object gets when it is made.
"""

import errno
import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

# By package: the distribution that it is from. torch first: without it the others have stand-ins for their classes.
LIBRARIES = {
    "torch": "torch",
    "safetensors": "safetensors",
    "PIL": "pillow",
    "transformers": "transformers",
    "diffusers": "diffusers",
}

_OF_THE_SYSTEM = (errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM)

# By name: the keyword parameters that we pass.
Needs = dict[str, tuple[str, ...]]

_DIFFUSERS_MODEL = ("_fix_state_dict_keys_on_load", "_keep_in_fp32_modules")
_NAMES = {
    "torch": (
        *("OutOfMemoryError", "Tensor", "bfloat16", "device", "dtype", "float16", "float32", "inference_mode", "uint8"),
        *("cat", "empty", "frombuffer", "manual_seed", "randn", "set_num_threads", "set_rng_state", "tensor", "zeros"),
        *("Generator.get_state", "Generator.manual_seed", "Generator.set_state"),
    ),
    "torch.cuda": (
        *("device_count", "empty_cache", "init", "is_available", "is_bf16_supported", "mem_get_info", "synchronize"),
    ),
    "torch.nn": ("Module.register_parameter", "Parameter"),
    "torch.nn.functional": ("conv2d", "scaled_dot_product_attention"),
    "safetensors": ("SafetensorError",),
    "PIL.Image": ("Image", "preinit"),
    "PIL.PngImagePlugin": ("PngInfo.add_itxt",),
    "transformers": ("PreTrainedModel._keep_in_fp32_modules", "PreTrainedTokenizerBase.get_vocab"),
    "diffusers": (
        *(f"ModelMixin.{name}" for name in _DIFFUSERS_MODEL),
        # FlowHeun is made of these two.
        *("FlowMatchEulerDiscreteScheduler.from_config", "FlowMatchHeunDiscreteScheduler.from_config"),
    ),
}
_PARAMETERS: Needs = {
    "torch.nn.Module.load_state_dict": ("assign",),
    "torch.nn.Module.named_buffers": ("recurse",),
    "safetensors.safe_open": ("framework",),
    "transformers.PreTrainedModel.from_pretrained": (
        *("attn_implementation", "config", "dtype", "ignore_mismatched_sizes", "local_files_only"),
        *("output_loading_info", "state_dict"),
    ),
    "transformers.PreTrainedTokenizerBase.from_pretrained": ("local_files_only",),
    "transformers.PreTrainedTokenizerBase.__call__": ("max_length", "truncation"),
    "diffusers.AutoencoderKL.decode": ("return_dict",),
    "diffusers.image_processor.VaeImageProcessor.postprocess": ("output_type",),
    "diffusers.FlowMatchEulerDiscreteScheduler.set_timesteps": ("device", "mu"),
}
# What every pipeline is called with, beside what call_arguments() gives (generation.py).
PIPELINE_CALL = (
    *("callback_on_step_end", "generator", "height", "num_inference_steps", "output_type", "width"),
)  # fmt: skip


class Lacking(NamedTuple):
    """A library that cannot be used, for the log: its version, where it lies, and what it lacks."""

    library: str
    version: str
    path: str
    missing: str


def lacking(families: Iterable[str]) -> list[Lacking]:
    """Imports the libraries; which of them lack something that these families, or all of them, need. Raises where it is
    the system that lacks something, which another zygote may get: memory, descriptors."""
    for library in LIBRARIES:
        if error := _import_error(library):
            return [_lacking(library, [error])]
    found = list(check(_static()))
    # Our own modules have some of these names at their top, so that they cannot be imported without them.
    found = found or list(check(needs_of(families)))
    return [
        _lacking(library, [what for name, what in found if name.split(".")[0] == library])
        for library in LIBRARIES
        if any(name.split(".")[0] == library for name, _ in found)
    ]


def needs_of(families: Iterable[str]) -> Needs:
    """What is in the families' descriptions and adapters: classes, how they are made, and what is called of them."""
    from weave.gpu_worker.pipelines import adapter_of
    from weave.models.families import FAMILIES

    needs: Needs = {}
    for name in families:
        family = FAMILIES[name]
        pipeline = f"diffusers.{family.pipeline}"
        needs[f"{pipeline}.__init__"] = (*family.components, "scheduler", *family.fixed, *family.settings)
        adapter = adapter_of(name)
        needs[f"{pipeline}.__call__"] = (*adapter.call_arguments(("a",), "b", 1.0), *PIPELINE_CALL)
        methods = ("num_timesteps", "set_progress_bar_config", "to", *adapter.needs)
        needs |= {f"{pipeline}.{method}": () for method in methods}
        for component in family.components.values():
            needs[f"{component.library}.{component.class_name}"] = ()
        for scheduler in (f"diffusers.{scheduler}" for scheduler in family.own_schedulers):
            methods = ("from_config", "order", "register_to_config", "set_timesteps")
            needs |= {f"{scheduler}.{method}": () for method in methods}
            needs[f"{scheduler}.step"] = ("return_dict",)
    return needs


def check(needs: Needs) -> Iterator[tuple[str, str]]:
    """Each name that is not there, or lacks a parameter, and what to say of it."""
    for name, parameters in needs.items():
        try:
            found = pkgutil.resolve_name(name)
        except AttributeError:
            yield name, name
        except Exception as error:  # what is imported when first asked for fails in many ways
            if _is_of_the_system(error):
                raise
            yield name, f"{name} ({_shown(error)})"
        else:
            taken = _parameters(found)
            lacks = [parameter for parameter in parameters if taken is not None and parameter not in taken]
            if lacks:
                yield name, f"{name}({', '.join(f'{parameter}=' for parameter in lacks)})"


def _static() -> Needs:
    return {f"{module}.{name}": () for module, names in _NAMES.items() for name in names} | _PARAMETERS


def _parameters(function: Any) -> set[str] | None:
    """None: any, or it does not say."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    return set(parameters)


def _import_error(library: str) -> str | None:
    try:
        importlib.import_module(library)
    except Exception as error:
        if _is_of_the_system(error):
            raise
        return _shown(error)
    return None


def _is_of_the_system(error: BaseException | None) -> bool:
    """Or what it comes from is."""
    if error is None:
        return False
    number = error.errno if isinstance(error, OSError) else None
    return isinstance(error, MemoryError) or number in _OF_THE_SYSTEM or _is_of_the_system(error.__cause__)


def _shown(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


def _lacking(library: str, missing: list[str]) -> Lacking:
    try:
        version = importlib.metadata.version(LIBRARIES[library])
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    try:
        spec = importlib.util.find_spec(library)
    except (ImportError, ValueError):
        spec = None
    path = str(Path(spec.origin).parent) if spec is not None and spec.origin is not None else "not installed"
    return Lacking(library, version, path, ", ".join(missing))
