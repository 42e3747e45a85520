"""What this package needs from torch, diffusers and the other libraries: names and keyword parameters, not versions.

The zygote checks this right after their import, so that the log names what another version lacks before a job can
fail because of it. A family's needs come from its description and its adapter. What only a call can show is not
checked: how a function treats `**kwargs`, and attributes that are set on an object when it is created.
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

from weave.gpu_worker import lean_imports
from weave.protocol.inputs import IMAGE_TO_IMAGE, INPAINTING, REFERENCES, TEXT_TO_IMAGE

# Each package's distribution. torch is first: without it the others replace their classes by placeholders.
LIBRARIES = {
    "torch": "torch",
    "safetensors": "safetensors",
    "PIL": "pillow",
    "transformers": "transformers",
    "diffusers": "diffusers",
}

_SHORTAGES = (errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM)

# The keyword parameters that are passed, by the name of the function; none for other names.
Needs = dict[str, tuple[str, ...]]

_DIFFUSERS_MODEL = ("_fix_state_dict_keys_on_load", "_keep_in_fp32_modules")
_NAMES = {
    "torch": (
        *("AcceleratorError", "OutOfMemoryError", "Tensor", "bfloat16", "device", "dtype", "float16", "float32"),
        *("inference_mode", "uint8"),
        *("arange", "cat", "empty", "eye", "float8_e4m3fn", "float8_e5m2", "from_file", "frombuffer", "full", "int8"),
        *("get_num_threads", "manual_seed", "no_grad", "ones", "randn", "set_num_threads", "set_rng_state", "tensor"),
        *("zeros", "_scaled_mm"),
        *("Generator.get_state", "Generator.manual_seed", "Generator.set_state"),
    ),
    "torch.cuda": (
        *(
            "Event",
            "Stream",
            "cudart",
            "current_stream",
            "device_count",
            "empty_cache",
            "get_device_capability",
            "init",
        ),
        *("is_available", "is_bf16_supported", "mem_get_info", "memory_reserved", "set_per_process_memory_fraction"),
        *("stream", "synchronize"),
    ),
    "torch.distributed": ("is_available",),
    "diffusers.loaders.single_file_utils": (
        *(
            "DIFFUSERS_TO_LDM_MAPPING",
            "convert_controlnet_checkpoint",
            "convert_ldm_unet_checkpoint",
            "convert_ldm_vae_checkpoint",
        ),
        "convert_open_clip_checkpoint",
    ),
    "torch.nn": (
        *("Conv2d", "Embedding", "Linear", "Module.set_submodule", "ModuleList", "Parameter"),
        *(f"Module.register_{what}" for what in ("forward_hook", "forward_pre_hook", "parameter")),
    ),
    "torch.nn.functional": ("conv2d", "linear", "scaled_dot_product_attention"),
    "safetensors": ("SafetensorError",),
    "PIL.Image": ("Image", "Image.getbbox", "Resampling.LANCZOS", "frombytes", "new", "preinit"),
    "PIL.PngImagePlugin": ("PngInfo.add_itxt", "PngInfo.add_text"),
    "transformers": (
        *("AddedToken", "PreTrainedModel._keep_in_fp32_modules", "PreTrainedModel.get_input_embeddings"),
        *(f"PreTrainedTokenizerBase.{name}" for name in ("add_tokens", "convert_tokens_to_ids", "get_vocab")),
    ),
    "diffusers": (
        *(f"ModelMixin.{name}" for name in _DIFFUSERS_MODEL),
        "ConfigMixin.register_to_config",
        *(f"AutoencoderKL.{turn}_{what}" for turn in ("enable", "disable") for what in ("slicing", "tiling")),
        # FlowHeun is built on these two.
        *("FlowMatchEulerDiscreteScheduler.from_config", "FlowMatchHeunDiscreteScheduler.from_config"),
    ),
}
_PARAMETERS: Needs = {
    "torch.nn.Module.load_state_dict": ("assign",),
    "torch.nn.Module.named_buffers": ("recurse",),
    "torch.nn.Module.named_parameters": ("remove_duplicate",),
    "safetensors.safe_open": ("framework",),
    "transformers.PreTrainedModel.from_pretrained": (
        *("attn_implementation", "config", "dtype", "ignore_mismatched_sizes", "local_files_only"),
        *("output_loading_info", "state_dict"),
    ),
    "transformers.PreTrainedTokenizerBase.from_pretrained": ("local_files_only",),
    "transformers.PreTrainedTokenizerBase.__call__": ("max_length", "return_offsets_mapping", "truncation"),
    "diffusers.AutoencoderKL.decode": ("return_dict",),
    "diffusers.image_processor.VaeImageProcessor.apply_overlay": (),
    "diffusers.image_processor.VaeImageProcessor.get_crop_region": ("pad",),
    "diffusers.image_processor.VaeImageProcessor.postprocess": ("output_type",),
    "diffusers.image_processor.VaeImageProcessor.resize": ("resize_mode",),
    "diffusers.FlowMatchEulerDiscreteScheduler.set_timesteps": ("device", "mu"),
}
# By step cache.
_CACHES: dict[str, Needs] = {
    "first_block": {"diffusers.hooks.FirstBlockCacheConfig": ()},
    "taylorseer": {"diffusers.hooks.TaylorSeerCacheConfig": ("taylor_factors_dtype",)},
    "magcache": {
        "diffusers.hooks.MagCacheConfig": ("mag_ratios", "num_inference_steps"),
        "diffusers.hooks.mag_cache.FLUX_MAG_RATIOS": (),
    },
}
# The arguments of every pipeline's call in generation.py; call_arguments() adds the others.
PIPELINE_CALL = (
    *("callback_on_step_end", "generator", "height", "num_inference_steps", "output_type", "width"),
)  # fmt: skip
# The arguments of the call of a task's class; some classes take the size from the image.
_TASK_CALLS = {
    IMAGE_TO_IMAGE: ("image", "strength"),
    INPAINTING: ("image", "mask_image", "strength"),
    REFERENCES: ("height", "width"),
}
_CONTROL_CALL = ("controlnet_conditioning_scale", "height", "width")
_CONTROL_IN_PART = ("control_guidance_end", "control_guidance_start")
_COMMON_CALL = tuple(name for name in PIPELINE_CALL if name not in ("height", "width"))


class Lacking(NamedTuple):
    """A library that lacks something, for the log."""

    library: str
    version: str
    path: str
    missing: str


def lacking_for_all() -> list[Lacking]:
    """Import the libraries. Returns those that lack something that every family needs.

    Raises when the system ran out of memory or descriptors: another zygote may succeed.
    """
    lean_imports.apply()
    for library in LIBRARIES:
        if error := _import_error(library):
            return [_lacking(library, [error])]
        if library == "torch":
            lean_imports.complete()
    return _by_library(check(common_needs()))


def lacking_for(name: str) -> Iterator[tuple[str, list[Lacking]]]:
    """For each task of the family, what the libraries lack. If they lack something for text-to-image, only that is
    yielded: without it a model cannot be loaded. Requires that lacking_for_all() found nothing: the adapters' modules
    cannot be imported without some of those names. Raises as it does."""
    from weave.models.families import FAMILIES

    lacking = _by_library(check(needs_of([name])))
    yield TEXT_TO_IMAGE, lacking
    for task in () if lacking else FAMILIES[name].task_pipelines:
        yield task, _by_library(check(needs_for_task(name, task)))


def needs_of(families: Iterable[str]) -> Needs:
    """What the families' descriptions and adapters name: classes, the parameters of their constructors and calls."""
    from weave.gpu_worker.pipelines import adapter_of
    from weave.models.components import class_names
    from weave.models.families import FAMILIES

    needs: Needs = {}
    for name in families:
        family = FAMILIES[name]
        pipeline = f"diffusers.{family.pipeline}"
        needs[f"{pipeline}.__init__"] = (*family.components, "scheduler", *family.fixed, *family.settings.keys)
        adapter = adapter_of(name)
        needs[f"{pipeline}.__call__"] = (*sorted(adapter.call_names()), *PIPELINE_CALL)
        methods = ("encode_prompt", "num_timesteps", "set_progress_bar_config", "to", *adapter.needs)
        needs |= {f"{pipeline}.{method}": () for method in methods}
        for component in family.components.values():
            needs |= {f"{component.library}.{class_name}": () for class_name in class_names(component)}
        if family.caches:
            denoiser = family.components[family.denoiser].class_name
            methods = ("enable_cache", "disable_cache", "cache_context")
            needs |= {f"diffusers.{denoiser}.{method}": () for method in methods}
            needs |= {name: parameters for cache in family.caches for name, parameters in _CACHES[cache].items()}
        for scheduler in (f"diffusers.{scheduler}" for scheduler in family.own_schedulers):
            methods = ("_get_compatibles", "from_config", "order", "register_to_config", "set_timesteps")
            needs |= {f"{scheduler}.{method}": () for method in methods}
            needs[f"{scheduler}.step"] = ("return_dict",)
    return needs


def needs_for_task(name: str, task: str) -> Needs:
    """What the class for `task` of the family `name` must have."""
    from weave.gpu_worker.pipelines import adapter_of
    from weave.models.families import FAMILIES

    family, adapter = FAMILIES[name], adapter_of(name)
    pipeline = f"diffusers.{family.task_pipelines[task]}"
    if family.control_nets is not None and task not in family.pipelines:
        # The adapters omit other arguments that these classes do not take.
        needs: Needs = {f"diffusers.{family.control_nets.model.class_name}": ()}
        in_part = _CONTROL_IN_PART if family.bounds.control_start.max else ()
        call = (*_COMMON_CALL, *_CONTROL_CALL, *in_part)
        needs |= {f"{pipeline}.__init__": ("controlnet",), f"{pipeline}.__call__": call}
        return needs | {f"{pipeline}.{method}": () for method in ("num_timesteps", "set_progress_bar_config")}
    call = (*sorted(adapter.call_names()), *_COMMON_CALL, *_TASK_CALLS[task])
    call += adapter.reference_names if task == REFERENCES else ()
    needs = {f"{pipeline}.__init__": (*family.components, "scheduler"), f"{pipeline}.__call__": call}
    methods = ("num_timesteps", "set_progress_bar_config", *adapter.needs, *adapter.task_needs.get(task, ()))
    return needs | {f"{pipeline}.{method}": () for method in methods}


def check(needs: Needs) -> Iterator[tuple[str, str]]:
    """Yields each name that does not exist or lacks a parameter, with its description for the log."""
    for name, parameters in needs.items():
        try:
            found = pkgutil.resolve_name(name)
        except AttributeError:
            yield name, name
        except Exception as error:  # a lazy import can fail in any way
            if _is_shortage(error):
                raise
            yield name, f"{name} ({_one_line(error)})"
        else:
            accepted = _parameters(found)
            lacks = [parameter for parameter in parameters if accepted is not None and parameter not in accepted]
            if lacks:
                yield name, f"{name}({', '.join(f'{parameter}=' for parameter in lacks)})"


def common_needs() -> Needs:
    """What every family needs."""
    return {f"{module}.{name}": () for module, names in _NAMES.items() for name in names} | _PARAMETERS


def _parameters(function: Any) -> set[str] | None:
    """None if the function accepts any, or has no signature."""
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
        if _is_shortage(error):
            raise
        return _one_line(error)
    return None


def _is_shortage(error: BaseException | None) -> bool:
    """Whether the error, or one of its causes, is that the system ran out of memory or descriptors."""
    if error is None:
        return False
    number = error.errno if isinstance(error, OSError) else None
    return isinstance(error, MemoryError) or number in _SHORTAGES or _is_shortage(error.__cause__)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


def _by_library(found: Iterable[tuple[str, str]]) -> list[Lacking]:
    missing: dict[str, list[str]] = {}
    for name, description in found:
        missing.setdefault(name.split(".")[0], []).append(description)
    return [_lacking(library, missing[library]) for library in LIBRARIES if library in missing]


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
