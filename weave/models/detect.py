"""What a path holds: the folder or file that a config would name, and the family of the model, embedding or ControlNet
in it."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from weave.models.assets import Source, family_of, read_header
from weave.models.configs import read_object, shown
from weave.models.control_files import families_of_control
from weave.models.embedding_keys import Embedding, embedding_of, families_of
from weave.models.families import FAMILIES
from weave.models.family import Family
from weave.models.faults import apart, collect
from weave.models.files import Header, ModelFilesRefused, find_file
from weave.models.layouts import layout_checks
from weave.models.lora_keys import LoraHeader, is_lora
from weave.protocol.inputs import REFERENCES

_LONGEST_NAME = 255  # of a folder


class Detected(NamedTuple):
    """`source` is for the config. `families` are those that its files fit best: one, unless they fit several alike.
    `embedding` is None for all else."""

    source: Source
    name: str
    families: tuple[str, ...]
    embedding: Embedding | None = None
    is_control: bool = False

    @property
    def table(self) -> str:
        """The table of the config that it belongs in."""
        return "controls" if self.is_control else "models" if self.embedding is None else "embeddings"


def detect(given: Path, layout: Path | None = None, parts: Mapping[str, Path] = MappingProxyType({})) -> Detected:
    """What `given` is: a folder in diffusers layout, a snapshot in the Hub's cache, the cache's folder of one model, a
    single file, an embedding, or a ControlNet's folder or file. `layout` and `parts` are as in Source. Raises
    ModelFilesRefused if it is nothing that can be served, OSError.
    """
    path = _folder(Path(os.path.abspath(given)))
    if not path.exists():
        raise ModelFilesRefused(f"{given}: no such file or folder")
    absolute = {part: Path(os.path.abspath(file)) for part, file in parts.items()}
    source = Source(path, layout and Path(os.path.abspath(layout)), absolute)
    alone = not (layout or parts)
    if path.is_dir():
        if alone and (families := _families_of_control(path)):
            return Detected(source, _name(path), families, is_control=True)
        return Detected(source, _name(path), _families(path))
    header = read_header(path, may_be_gguf=True)
    if alone and (families := families_of_control(path, header)):
        return Detected(source, path.stem, families, is_control=True)
    try:
        return Detected(source, path.stem, _families_by_layout(layout, header) or (family_of(path, header),))
    except ModelFilesRefused:
        if is_lora(LoraHeader(header)):
            raise ModelFilesRefused(f"{path.name}: a LoRA, not a model; give it a [loras.ID] in the config") from None
        if alone and (embedding := _embedding(header)):
            return Detected(source, path.stem, families_of(embedding), embedding)
        raise


def _families_by_layout(layout: Path | None, header: Header) -> tuple[str, ...]:
    """Of a single file whose tensors have the same names in several families: those of the layout's model."""
    with contextlib.suppress(ModelFilesRefused):  # the layout's checks report it
        named = _named_by_index(layout) if layout else []
        return tuple(family.name for family in named if family.single_file and family.single_file.is_of(header))
    return ()


def _families_of_control(path: Path) -> tuple[str, ...]:
    """Empty also if the folder has no config of its own, as a model's folder."""
    try:
        return families_of_control(path)
    except ModelFilesRefused:
        return ()


def takes_references(path: Path, family: Family) -> bool:
    """Whether the folder's model_index.json says that the model can do what others of its family cannot."""
    if REFERENCES not in family.of_some_models:
        return False
    with contextlib.suppress(ModelFilesRefused):  # the layout's checks report it where it is a fault
        return read_object(path, "model_index.json").get("_class_name") == family.pipelines[REFERENCES]
    return False


def _embedding(header: Header) -> Embedding | None:
    """None also where the vectors have the width of no family."""
    try:
        found = embedding_of(header)
    except ModelFilesRefused:
        return None
    return found if families_of(found) else None


def _folder(path: Path) -> Path:
    """In the Hub's cache models--AUTHOR--NAME holds snapshots/REVISION, and in refs/main the revision of `main`."""
    snapshots = path / "snapshots"
    if not (path.name.startswith("models--") and snapshots.is_dir()):
        return path
    revision = b""
    with contextlib.suppress(ModelFilesRefused), open(find_file(path, "refs/main"), "rb") as file:
        revision = file.read(_LONGEST_NAME).strip()
    found = {folder.name: folder for folder in snapshots.iterdir() if folder.is_dir()}
    if not found:
        raise ModelFilesRefused(f"{path.name}: has no snapshot; the download is incomplete")
    return found.get(os.fsdecode(revision)) or max(found.values(), key=lambda folder: folder.stat().st_mtime)


def _name(path: Path) -> str:
    """AUTHOR/NAME in the Hub's cache, else the folder's own name."""
    store = path.parent.parent.name
    is_snapshot = path.parent.name == "snapshots" and store.startswith("models--")
    return store.removeprefix("models--").replace("--", "/", 1) if is_snapshot else path.name


def _families(path: Path) -> tuple[str, ...]:
    """Those that misfit least, among those whose pipeline model_index.json names; without it, among all."""
    candidates = _named_by_index(path) or list(FAMILIES.values())
    present = {part for family in FAMILIES.values() for part in family.components if (path / part).is_dir()}
    if not present:
        raise ModelFilesRefused(f"{path.name}: not a model in diffusers layout: it has none of the folders of one")
    misfits = {family.name: _misfits(family, path, present) for family in candidates}
    return tuple(name for name in misfits if misfits[name] == min(misfits.values()))


def _misfits(family: Family, path: Path, present: set[str]) -> int:
    """The number of faults, and of components that only other families have."""
    faults, _ = collect(apart(layout_checks(family.name, path)))
    return len(faults) + len(present - family.components.keys())


def _named_by_index(path: Path) -> list[Family]:
    try:
        class_name = read_object(path, "model_index.json").get("_class_name")
    except ModelFilesRefused:  # the checks of the layout say why, where that is a fault
        return []
    found = [family for family in FAMILIES.values() if class_name in family.all_pipelines]
    if not found:
        known = ", ".join(dict.fromkeys(family.pipeline for family in FAMILIES.values()))
        raise ModelFilesRefused(f"model_index.json: _class_name is {shown(class_name)}, expected one of {known}")
    return found
