"""The tensors of one component, memory-mapped from its files, with the names that its class gives them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from weave.gpu_worker.converters import Tensors, convert
from weave.gpu_worker.gguf_blocks import rows_of
from weave.gpu_worker.kept import Kept
from weave.models.assets import Weights
from weave.models.configs import KINDS, shown
from weave.models.files import ModelFilesRefused
from weave.models.gguf import BLOCKS, UNPACKED, is_gguf, read_gguf_header
from weave.models.single_files import StoredValue

_SHOWN_KEYS = 5
# Buffers of whole numbers: CLIP's positions, and how often a batch normalisation was trained.
_COUNTS = ("_ids", "num_batches_tracked")
# A scale that a module's weight in 8 bits is to be multiplied by, and what describes or only speeds up such weights:
# names of ComfyUI and of those who make files for it.
_SCALES = (".scale_weight", ".weight_scale")
_QUANTISATION, _FORMATS = ".comfy_quant", ("float8_e4m3fn", "float8_e5m2")
_NOT_NEEDED = (".scale_input", ".input_scale")
_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
# The types in GGUF files that are not quantised.
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_KINDS = tuple(BLOCKS)


class Read(NamedTuple):
    """A component's tensors. Those in `kept` stay quantised."""

    tensors: Tensors
    kept: dict[str, Kept]


def read_tensors(
    part: str, weights: Weights, config: Mapping[str, Any], dtype: torch.dtype, *, keep: bool = False
) -> Read:
    """`config` is the component's. Matrices in fp8 or in GGUF blocks stay quantised if `keep` is true. Other weights
    with a scale are multiplied by it and converted to `dtype`. Raises ModelFilesRefused."""
    tensors: Tensors = {}
    kinds: Tensors = {}
    for path in weights.files:
        found = _read_gguf(part, path, weights.names, kinds) if is_gguf(path) else _read(part, path, weights.names)
        refuse_keys(part, "tensors in two files", found.keys() & tensors.keys())
        tensors |= found
    scales: Tensors = {}
    if weights.part is not None:
        tensors, scales = _scales(part, tensors)
    columns = kinds | _columns(tensors, scales) if keep else kinds
    tensors |= {name: _scaled(tensors[name], scales[name], dtype) for name in scales.keys() - columns.keys()}
    tensors, columns = _converted(part, weights, tensors, columns, config)
    kept = {name: _kept(tensors.pop(name), column) for name, column in columns.items()}
    others = {key for key, tensor in tensors.items() if not tensor.is_floating_point() and not key.endswith(_COUNTS)}
    refuse_keys(part, "tensors not of floating-point numbers", others)
    return Read(tensors, kept)


def _kept(data: torch.Tensor, column: torch.Tensor) -> Kept:
    return Kept(data, column) if data.dtype in _FP8 else Kept(data, None, _KINDS[int(column[0])])


def read_value(path: Path, name: str, stored: StoredValue) -> float | list[float]:
    """The value in the tensor `name` of a single file. Raises ModelFilesRefused."""
    numbers: list[float] = _read(stored.part, path, {name: name})[name].double().flatten().tolist()
    kind = KINDS[stored.kind]
    for number in numbers:
        if not kind.fits(number):
            raise ModelFilesRefused(f"{path.name}: {name} has {shown(number)}, expected {kind.words}")
    return numbers if len(numbers) > 1 else numbers[0]


def is_zero(path: Path, name: str) -> bool:
    """Whether the tensor `name` of a single file has no other number. Raises ModelFilesRefused."""
    return not bool(_read(path.stem, path, {name: name})[name].float().any())  # fp8 has no any()


def refuse_keys(part: str, fault: str, keys: Iterable[str]) -> None:
    """Raises ModelFilesRefused if there are any `keys`."""
    if found := sorted(keys):
        first = ", ".join(shown(key) for key in found[:_SHOWN_KEYS])
        raise ModelFilesRefused(f"{part}: {len(found)} {fault}: {first}{', ...' * (len(found) > _SHOWN_KEYS)}")


def _read(part: str, path: Path, names: Mapping[str, str] | None) -> Tensors:
    """All tensors of the file, or those in `names` by the names there."""
    try:
        open(path, "rb").close()  # safe_open says of every failure that there is no such file
        with safe_open(path, framework="pt") as file:
            chosen = names or {name: name for name in file.keys()}  # noqa: SIM118 - not a mapping
            return {name: file.get_tensor(stored) for name, stored in chosen.items()}
    except OSError as error:
        raise ModelFilesRefused(f"{part}/{path.name}: {error.strerror or error}") from None
    except SafetensorError as error:
        raise ModelFilesRefused(f"{part}/{path.name}: {error}") from None


def _read_gguf(part: str, path: Path, names: Mapping[str, str] | None, kinds: Tensors) -> Tensors:
    """As _read(). Quantised matrices are returned as the bytes of their rows; for each, `kinds` gets a column with the
    index of its type in _KINDS. Other quantised tensors are dequantised."""
    placed = read_gguf_header(path, f"{part}/{path.name}")
    try:
        data = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
    except (OSError, RuntimeError) as error:
        raise ModelFilesRefused(f"{part}/{path.name}: {getattr(error, 'strerror', None) or error}") from None
    found = {}
    for name, stored in (names or {name: name for name in placed}).items():
        (kind, shape), begin, size = placed[stored]
        tensor = data[begin : begin + size]
        if kind in UNPACKED:
            found[name] = tensor.view(_PLAIN[kind]).reshape(shape)
            continue
        block = BLOCKS[kind]
        found[name] = tensor.view(-1, shape[-1] // block.numbers * block.bytes)
        if len(shape) == 2:
            kinds[name] = torch.full((shape[0], 1), float(_KINDS.index(kind)))
        else:
            found[name] = rows_of(kind, found[name]).reshape(shape)
    return found


def _scales(part: str, tensors: Tensors) -> tuple[Tensors, Tensors]:
    """The tensors without what describes others, and the scales by the names of the weights that are to be multiplied
    by them: libraries drop scales, and such models generate noise."""
    plain = {}
    scales = {}
    for name, tensor in tensors.items():
        if (suffix := next((suffix for suffix in _SCALES if name.endswith(suffix)), None)) is not None:
            scales[name.removesuffix(suffix) + ".weight"] = tensor
        elif name.endswith(_QUANTISATION):
            _check_format(part, name, tensor)
        elif name != "scaled_fp8" and not name.endswith(_NOT_NEEDED):
            plain[name] = tensor
    refuse_keys(part, "scales of missing weights", scales.keys() - plain.keys())
    for name, scale in scales.items():
        weight = plain[name]
        if weight.dtype not in _FP8 or scale.numel() not in (1, weight.shape[0]):
            detail = f"scale of shape {list(scale.shape)} for a weight of {weight.dtype}, {list(weight.shape)}"
            raise ModelFilesRefused(f"{part}: {shown(name)}: {detail}: not supported")
    return plain, scales


def _scaled(weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    by_row = scale.float().reshape(-1, *[1] * (weight.dim() - 1))
    return (weight.float() * by_row).to(dtype)


def _columns(tensors: Tensors, scales: Tensors) -> Tensors:
    """For each fp8 matrix, a column with the scales of its rows."""
    found = {}
    for name, tensor in tensors.items():
        if tensor.dtype in _FP8 and tensor.dim() == 2:
            scale = scales.get(name, torch.ones(1)).float().reshape(-1, 1)
            found[name] = scale.expand(len(tensor), 1).contiguous()
    return found


def _converted(
    part: str, weights: Weights, tensors: Tensors, columns: Tensors, config: Mapping[str, Any]
) -> tuple[Tensors, Tensors]:
    """The tensors and columns with the names of the component's class. Converters only rename tensors and select rows,
    so they work on the columns too."""
    known = weights.part
    if known is None or not known.converter or any(name.startswith(known.own) for name in tensors):
        return tensors, columns
    converted, unknown = convert(known.converter, tensors, config)
    refuse_keys(part, "unexpected tensors", unknown)
    if not columns:
        return converted, {}
    beside, _ = convert(known.converter, {**tensors, **columns}, config)
    return converted, {name: it for name, it in beside.items() if it.dtype != converted[name].dtype}


def _check_format(part: str, name: str, tensor: torch.Tensor) -> None:
    try:
        found = json.loads(bytes(tensor.tolist())).get("format")
    except (ValueError, TypeError, AttributeError):
        found = None
    if found not in _FORMATS:
        raise ModelFilesRefused(
            f"{part}: {shown(name)}: format is {shown(found)}, expected one of {', '.join(_FORMATS)}"
        )
