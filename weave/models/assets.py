"""Where each component of a model comes from: folders in diffusers layout, single files, or both."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from weave.models.components import ModelClass
from weave.models.families import FAMILIES
from weave.models.family import Family
from weave.models.faults import Checks, apart, fault_of, refuse_first
from weave.models.files import Header, ModelFilesRefused, check_safetensors_header, find_file
from weave.models.gguf import check_header, is_gguf
from weave.models.layouts import Checked, folder_checks, part_folders
from weave.models.pins import check_pins, pinned
from weave.models.single_files import DENOISERS, FilePart, SingleFile, StoredValue, tensors_of, values_of
from weave.models.weights import choose_weights

# The configs of the published models and their tokenizers, which single files lack.
SHIPPED = Path(__file__).parent / "shipped"
_NONE = SingleFile(parts={}, is_of=lambda header: False, tokenizers={})


class Source(NamedTuple):
    """Where the config says that a model is. `path` is a folder in diffusers layout, or a .safetensors file: then
    `layout` is a folder with configs and tokenizers; without one, those of the published model are used. `parts` are
    files or folders of single components, which replace those of `path`."""

    path: Path
    layout: Path | None = None
    parts: Mapping[str, Path] = {}

    def check_pin(self, name: str, digest: str) -> None:
        """As pinned(), for one pin and without anything to read."""
        folder, file = self._place(name)
        check_pins(folder, {file: digest})

    @contextlib.contextmanager
    def as_pinned(self, pins: Mapping[str, str]) -> Iterator[None]:
        """As pins.pinned(). A name in `pins` is a file's path within the folder `path`; for single files `path`, or
        `parts.` and the component."""
        with contextlib.ExitStack() as stack:
            for name, digest in pins.items():
                folder, file = self._place(name)
                stack.enter_context(pinned(folder, {file: digest}))
            yield

    def _place(self, name: str) -> tuple[Path, str]:
        files = {f"parts.{part}": path for part, path in self.parts.items()}
        if self.path.is_file():
            files["path"] = self.path
        file = files.get(name, self.path / name)
        folder = file.parent if name in files else self.path
        return folder, str(file.relative_to(folder))


def source_of(path: str, layout: str | None, parts: Mapping[str, str]) -> Source:
    """From the values in a config."""
    return Source(Path(path), Path(layout) if layout else None, {part: Path(name) for part, name in parts.items()})


class Weights(NamedTuple):
    """The files of a component. In a single file its tensors are those in `names`, by their names without prefix."""

    files: tuple[Path, ...]
    part: FilePart | None = None
    names: Mapping[str, str] | None = None


class Assets(NamedTuple):
    """By component. `tokenizers` are folders; `padding` are tokens to pad with instead of the tokenizer's own.
    `velocity_bias` is as in SingleFile, if no config says what the model predicts. `values` are those of SingleFile
    that the file has."""

    checked: Checked
    weights: dict[str, Weights]
    tokenizers: dict[str, Path]
    padding: dict[str, str]
    velocity_bias: str | None
    values: dict[str, StoredValue]

    def files(self) -> list[Path]:
        """All that have weights."""
        return [file for weights in self.weights.values() for file in weights.files]


def find_assets(name: str, source: Source, dtype: str) -> Assets:
    """Those of a model of the family `name`. `dtype` is what its weights are loaded in, by its name in torch; "auto"
    has no preference among variants. Raises ModelFilesRefused."""
    return refuse_first(_asset_checks(FAMILIES[name], source, dtype))


def all_checks(name: str, source: Source, dtype: str, pins: Mapping[str, str]) -> Checks[Assets | None]:
    """As find_assets(), and of the digests `pins`: every fault that shows before a library loads the model."""
    assets = yield from apart(_asset_checks(FAMILIES[name], source, dtype))
    for file, digest in pins.items():
        yield from fault_of(source.check_pin, file, digest)
    return assets


def family_of(path: Path, header: Header) -> str:
    """The family of a single file with a UNet or transformer. Raises ModelFilesRefused."""
    for name, family in FAMILIES.items():
        if family.single_file and family.single_file.is_of(header):
            return name
    raise ModelFilesRefused(f"{path.name}: has no UNet or transformer of a family that is known in single files")


def read_header(path: Path, *, may_be_gguf: bool = False) -> Header:
    """Of a single file. Raises ModelFilesRefused."""
    known = (".safetensors", ".gguf") if may_be_gguf else (".safetensors",)
    if path.suffix not in (*known, ""):  # the Hub's cache names files by their digest
        detail = f"not a {' or '.join(known)} file; other formats can run code and are never read"
        raise ModelFilesRefused(f"{path.name}: {detail}")
    check = check_header if may_be_gguf else check_safetensors_header
    return check(find_file(path.parent, path.name), path.name)


def _asset_checks(family: Family, source: Source, dtype: str) -> Checks[Assets]:
    if not source.path.exists():
        raise ModelFilesRefused(f"{source.path.name}: no such model")
    single = _of_single_files(family, source)
    header = None if source.path.is_dir() else _header_of(family, single, source.path)
    if header is not None and single.layouts and not source.layout:
        raise ModelFilesRefused(f"{source.path.name}: {_layout_needed(family, single)}")
    weights = dict(_in_files(single, source, header))
    base, folders = _find_folders(family, single, source, weights)
    derived = {} if header is None else single.derive(header)
    values = {} if header is None else values_of(single, header)
    if source.layout:  # which says how large the model is
        derived = {part: config for part, config in derived.items() if part not in DENOISERS}
    checked = yield from folder_checks(family.name, base, folders, derived)
    for part, component in family.components.items():
        if not isinstance(component, ModelClass) or part in weights or part not in folders:
            continue
        if header is not None and part not in source.parts:
            usual = f", such as {single.usual_files[part]}" if part in single.usual_files else ""
            yield f"{part}: {source.path.name} does not have it; give its file as parts.{part}{usual}"
        elif (chosen := (yield from apart(_in_folder(folders[part], component, dtype)))) is not None:
            weights[part] = chosen
    tokenizers = {part: folders[part] for part in folders if not isinstance(family.components[part], ModelClass)}
    padding = {
        part: tokenizer.pad_token
        for part, tokenizer in single.tokenizers.items()
        if tokenizer.pad_token and tokenizers.get(part) == SHIPPED / tokenizer.folder
    }
    velocity_bias = None if header is None or source.layout else single.velocity_bias
    return Assets(checked, weights, tokenizers, padding, velocity_bias, values)


def _of_single_files(family: Family, source: Source) -> SingleFile:
    files = [path for path in (source.path, *source.parts.values()) if path.is_file()]
    if files and family.single_file is None:
        raise ModelFilesRefused(f"{files[0].name}: models of family {family.name} must be folders in diffusers layout")
    return family.single_file or _NONE


def _header_of(family: Family, single: SingleFile, path: Path) -> Header:
    header = read_header(path, may_be_gguf=True)
    if not single.is_of(header):
        raise ModelFilesRefused(f"{path.name}: a model of family {family_of(path, header)}, not of {family.name}")
    return header


def _layout_needed(family: Family, single: SingleFile) -> str:
    repository = single.layouts[0]
    folder = repository.rpartition("/")[2]
    return (
        f"a single file of family {family.name} needs a layout: a folder with model_index.json, scheduler/, tokenizer/ "
        f"and the config.json of {', '.join(single.parts)}. {' or '.join(single.layouts)} has them; without weights: "
        f"hf download {repository} --local-dir {folder} --exclude '*.safetensors'; "
        f"then give {folder} as layout (weavectl add: --layout {folder})"
    )


def _in_files(single: SingleFile, source: Source, header: Header | None) -> Iterator[tuple[str, Weights]]:
    """Of the components in single files."""
    for part, kind in single.parts.items():
        path = source.parts.get(part)
        if path is None and header is not None:
            if names := tensors_of(kind, header, alone=part in DENOISERS):
                _check_format(single, part, source.path)
                yield part, Weights((source.path,), kind, names)
        elif path is not None and path.is_file():
            names = tensors_of(kind, read_header(path, may_be_gguf=True), alone=True)
            _check_format(single, part, path)
            yield part, Weights((path,), kind, names)


def _check_format(single: SingleFile, part: str, path: Path) -> None:
    if is_gguf(path) and part not in single.in_gguf:
        what = f"only {' and '.join(single.in_gguf)} may be one" if single.in_gguf else "its family's may not be one"
        raise ModelFilesRefused(f"{part}: {path.name} is a GGUF file: {what}")


def _in_folder(folder: Path, component: ModelClass, dtype: str) -> Checks[Weights]:
    files = choose_weights(folder.parent, folder.name, component.weights, dtype)
    for file in files:
        yield from fault_of(_check_header, folder.parent, file)
    return Weights(tuple(folder.parent / file for file in files))


def _check_header(folder: Path, file: str) -> None:
    check_safetensors_header(find_file(folder, file), file)


def _find_folders(
    family: Family, single: SingleFile, source: Source, weights: Mapping[str, Weights]
) -> tuple[Path, dict[str, Path]]:
    """The folder of the scheduler's config, and each component's folder with its config or the tokenizer's files."""
    given = {part: path for part, path in source.parts.items() if path.is_dir()}
    if source.path.is_dir() or source.layout:
        base = source.layout or source.path
        return base, part_folders(family.name, base) | given
    base = SHIPPED / family.name
    tokenizers = {part: SHIPPED / tokenizer.folder for part, tokenizer in single.tokenizers.items()}
    folders = part_folders(family.name, base) | tokenizers | given
    absent = {part for part in family.optional if part.replace("tokenizer", "text_encoder") not in weights}
    return base, {part: folder for part, folder in folders.items() if part not in absent}
