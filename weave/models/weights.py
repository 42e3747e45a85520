"""Which files hold a component's weights: one file, or several with an index, of the variant closest to the dtype.

Names: save_pretrained of diffusers and transformers, with and without `variant`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weave.models.configs import read_object
from weave.models.files import ModelFilesRefused, find_file

# By the dtype that the model is loaded in. A cast between the two halves costs precision or range: it comes last.
_VARIANTS = {"float16": ("fp16", "", "bf16"), "bfloat16": ("bf16", "", "fp16")}
_NO_PREFERENCE = ("", "fp16", "bf16")


def choose_weights(model: Path, part: str, stem: str, dtype: str) -> tuple[str, ...]:
    """The files, relative to the model's folder. `part` is empty if they are in that folder itself; `stem` is a file's
    name without suffix, `dtype` a name in torch.

    Their headers are not checked. Raises ModelFilesRefused.
    """
    for variant in _VARIANTS.get(dtype, _NO_PREFERENCE):
        single, index = _names(part, stem, variant)
        if _exists(model / single):
            return (single,)
        if _exists(model / index):
            return _shards(model, part, index)
    find_file(model, _names(part, stem, "")[0])  # says why there is none
    raise ModelFilesRefused(f"{part}: its weights have just been removed")


def _names(part: str, stem: str, variant: str) -> tuple[str, str]:
    folder, dotted = f"{part}/" if part else "", f".{variant}" if variant else ""
    return f"{folder}{stem}{dotted}.safetensors", f"{folder}{stem}.safetensors.index{dotted}.json"


def _exists(path: Path) -> bool:
    """Also a link to nothing: the name says that there should be a file."""
    return path.is_symlink() or path.exists()


def _shards(model: Path, part: str, index: str) -> tuple[str, ...]:
    found = read_object(model, index).get("weight_map")
    names: list[Any] = list(found.values()) if isinstance(found, Mapping) else [None]
    if not all(isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors") for name in names):
        raise ModelFilesRefused(f"{index}: weight_map must give a .safetensors file of this folder for each key")
    return tuple(f"{part}/{name}" if part else name for name in sorted(set(names)))
