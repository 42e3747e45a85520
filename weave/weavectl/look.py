"""Describes a model, embedding or ControlNet before it is served: its parts, its sizes, and everything that is wrong
with it."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from weave.config.devices import device_names, is_cpu
from weave.config.schema import DeviceConfig
from weave.models.assets import Assets, all_checks
from weave.models.components import ModelClass
from weave.models.control_files import check_files
from weave.models.detect import Detected, takes_references
from weave.models.embedding_keys import Embedding
from weave.models.families import FAMILIES
from weave.models.family import Family
from weave.models.faults import collect
from weave.models.files import ModelFilesRefused
from weave.models.layouts import unread_files
from weave.models.memory import Part, measure
from weave.models.plans import CONTEXT, Plan, default_work, needs_of

_LICENCES = ("license", "licence", "copying")


class Look(NamedTuple):
    """`memory` is in bytes by dtype, for each that the model may be loaded in: the weights, and the additional
    memory for one image of the family's default size and the GPU's context. Sizes on disk are in bytes too.
    `scheduler` is the model's default, where the family's does not fit it. `references`: the model takes reference
    images, unlike others of its family."""

    detected: Detected
    parts: dict[str, Part]
    memory: dict[str, tuple[int, int]]
    size: int
    unread: list[str]
    unread_size: int
    licences: list[str]
    faults: list[str]
    scheduler: str | None
    references: bool

    def lines(self) -> Iterator[str]:
        """For people."""
        family, *others = self.detected.families
        yield f"path        {self.detected.source.path}"
        yield f"family      {family}" + (f" (its files fit {', '.join(others)} as well)" if others else "")
        for name, component in FAMILIES[family].components.items():
            yield f"part        {name}: {component.class_name}{_described(self.parts.get(name))}"
        unread = f", of which {shown_bytes(self.unread_size)} are never read" if self.unread else ""
        yield f"disk        {shown_bytes(self.size)}{unread}"
        for dtype, (weights, image) in self.memory.items():
            needed = f"about {shown_bytes(weights + image)}: {shown_bytes(weights)} of weights in {dtype}"
            yield f"memory      {needed}, and {shown_bytes(image)} (an estimate) to generate an image"
        yield f"licence     {', '.join(self.licences) or 'no file with one; its author names it'}"
        yield from (f"never read  {file}" for file in self.unread)
        yield from (f"fault       {fault}" for fault in self.faults)

    def fields(self) -> dict[str, Any]:
        """For scripts."""
        family, *others = self.detected.families
        parts = {name: part._asdict() for name, part in self.parts.items()}
        rest = {name: getattr(self, name) for name in ("size", "unread", "unread_size", "licences", "faults")}
        memory = {dtype: {"weights": weights, "image": image} for dtype, (weights, image) in self.memory.items()}
        return {
            "path": str(self.detected.source.path),
            "family": family,
            "fits": others,
            "parts": parts,
            "memory": memory,
            **rest,
        }


class EmbeddingLook(NamedTuple):
    """`size` is in bytes. What detect() takes for an embedding has no fault that shows without a model."""

    detected: Detected
    embedding: Embedding
    size: int
    faults: tuple[str, ...] = ()
    scheduler: None = None
    references: bool = False

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"path        {self.detected.source.path}"
        yield f"family      {self.detected.families[0]}"
        widths = " and ".join(map(str, self.embedding.widths))
        yield f"vectors     {self.embedding.vectors}, of {widths} numbers"
        yield f"disk        {shown_bytes(self.size)}"

    def fields(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "path": str(self.detected.source.path),
            "family": self.detected.families[0],
            "vectors": self.embedding.vectors,
            "widths": self.embedding.widths,
            "size": self.size,
            "faults": self.faults,
        }


def look_at_embedding(detected: Detected, embedding: Embedding) -> EmbeddingLook:
    """Raises OSError."""
    return EmbeddingLook(detected, embedding, detected.source.path.stat().st_size)


class ControlLook(NamedTuple):
    """`size` is in bytes. Faults that only show with a model are not included."""

    detected: Detected
    part: Part | None
    size: int
    faults: list[str]
    scheduler: None = None
    references: bool = False

    def lines(self) -> Iterator[str]:
        """For people."""
        family, *others = self.detected.families
        yield f"path        {self.detected.source.path}"
        yield f"family      {family}" + (f" (its files fit {', '.join(others)} as well)" if others else "")
        yield f"part        {self._class_name}{_described(self.part)}"
        yield f"disk        {shown_bytes(self.size)}"
        yield from (f"fault       {fault}" for fault in self.faults)

    def fields(self) -> dict[str, Any]:
        """For scripts."""
        family, *others = self.detected.families
        return {
            "path": str(self.detected.source.path),
            "family": family,
            "fits": others,
            "class": self._class_name,
            "part": self.part._asdict() if self.part else None,
            "size": self.size,
            "faults": self.faults,
        }

    @property
    def _class_name(self) -> str:
        nets = FAMILIES[self.detected.families[0]].control_nets
        return nets.model.class_name if nets else ""


def look_at_control(detected: Detected) -> ControlLook:
    """Raises OSError."""
    family, path = detected.families[0], detected.source.path
    faults, weights = collect(check_files(path, family, {}))
    nets, part = FAMILIES[family].control_nets, None
    if weights is not None and nets is not None:
        with contextlib.suppress(ModelFilesRefused):  # it is among the faults
            part = measure(weights)
    return ControlLook(detected, part, _size(_all_files(path)), faults)


def look_at(detected: Detected, device: DeviceConfig) -> Look:
    """Raises OSError."""
    family, source, path = FAMILIES[detected.families[0]], detected.source, detected.source.path
    faults, assets = collect(all_checks(family.name, source, device.dtype, {}))
    weights = assets.weights if assets else {}
    parts = {}
    for name, component in family.components.items():
        if isinstance(component, ModelClass) and name in weights:
            with contextlib.suppress(ModelFilesRefused):  # it is among the faults
                parts[name] = measure(weights[name])
    scheduler = family.default_scheduler(assets.checked.configs["scheduler"]) if assets and not faults else None
    folder = path if path.is_dir() else path.parent
    unread = unread_files(family.name, path, assets.files() if assets else [])
    return Look(
        detected=detected,
        parts=parts,
        memory={} if faults or not assets else {dtype: _memory(family, assets, dtype) for dtype in dtypes(device)},
        size=_size(file for given in (path, *source.parts.values()) for file in _all_files(given)),
        unread=unread,
        unread_size=_size(path / file for file in unread),
        licences=sorted(file.name for file in folder.iterdir() if file.name.lower().startswith(_LICENCES)),
        faults=faults,
        scheduler=scheduler if scheduler != family.defaults.scheduler else None,
        references=takes_references(path, family),
    )


def _memory(family: Family, assets: Assets, dtype: str) -> tuple[int, int]:
    found = needs_of(family, assets, dtype)
    weights = sum(size.whole for size in found.sizes.values())
    return weights, found.estimate(default_work(family)).needed(Plan("card")) - weights + CONTEXT


def _all_files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    yield from (Path(folder, file) for folder, _, files in os.walk(path) for file in files)


def shown_bytes(size: int) -> str:
    """In the unit that people compare sizes in."""
    return f"{size / 1e9:.1f} GB" if size >= 10**8 else f"{size / 1e6:.1f} MB"


def _described(part: Part | None) -> str:
    return f", {part.numbers / 1e6:.1f} million parameters in {', '.join(part.dtypes)}" if part else ""


def dtypes(device: DeviceConfig) -> tuple[str, ...]:
    """Those that a model may be loaded in. `auto` is bfloat16 on most GPUs, and float32 on the CPU."""
    if device.dtype != "auto":
        return (device.dtype,)
    names = device_names(device)
    on_gpus = ("bfloat16",) if "auto" in names or not all(map(is_cpu, names)) else ()
    on_cpus = ("float32",) if "auto" in names or any(map(is_cpu, names)) else ()
    return on_gpus + on_cpus


def _size(files: Iterable[Path]) -> int:
    """Of the files that exist, each counted once: links in the Hub's cache may lead to the same one."""
    found = {}
    for file in files:
        with contextlib.suppress(OSError):
            state = file.stat()
            found[state.st_dev, state.st_ino] = state.st_size
    return sum(found.values())
