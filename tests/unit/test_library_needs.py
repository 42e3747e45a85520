"""The zygote's table of required names (libraries.py) has every name of torch and the others that the code uses."""

import ast
import errno
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import weave
from weave.gpu_worker import libraries
from weave.models.families import FAMILIES
from weave.protocol.inputs import TEXT_TO_IMAGE

TASKS = [(name, task) for name, family in FAMILIES.items() for task in family.task_pipelines]
NEEDS = libraries.needs_of(FAMILIES) | libraries.common_needs()
for name, task in TASKS:
    NEEDS |= libraries.needs_for_task(name, task)
ROOM = Path(weave.__file__).parent / "gpu_worker"
# lean_imports.py uses what is private to tested versions, and nothing of others.
CHECKED = [path for path in sorted(ROOM.rglob("*.py")) if path.name != "lean_imports.py"]
SOURCES = {str(path.relative_to(ROOM)): ast.parse(path.read_text()) for path in CHECKED}
# Calls whose keywords are checked, by the function's name; `call` is that of a family's pipeline.
CALLED = (
    *("call", "decode", "from_pretrained", "load_state_dict", "named_buffers", "postprocess", "safe_open"),
    *("set_timesteps", "step", "tokenizer"),
)


def imported(tree: ast.Module) -> dict[str, str]:
    """The dotted library name of each imported name."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            names |= {alias.asname or alias.name: module + alias.name for alias in node.names}
    return {name: dotted for name, dotted in names.items() if dotted.split(".")[0] in libraries.LIBRARIES}


def used(tree: ast.Module) -> Iterator[str]:
    names = imported(tree)
    yield from names.values()
    for node in ast.walk(tree):
        chain: list[str] = []
        inner: ast.expr | ast.AST = node
        while isinstance(inner, ast.Attribute):
            chain.insert(0, inner.attr)
            inner = inner.value
        if chain and isinstance(inner, ast.Name) and inner.id in names:
            yield ".".join([names[inner.id], *chain])


def private(tree: ast.Module) -> Iterator[str]:
    """Private attributes of objects of the libraries: a job's pipeline, a model, a class."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__"):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if owner not in ("self", "os") and node.attr not in ("_asdict", "_replace"):
                yield node.attr


def keywords(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            if name in CALLED and not (isinstance(function, ast.Name) and name in ("decode", "step")):
                yield from ((name, keyword.arg) for keyword in node.keywords if keyword.arg is not None)


@pytest.mark.parametrize("source", SOURCES)
def test_every_name_the_code_uses_is_checked(source: str) -> None:
    names = set(used(SOURCES[source]))
    assert {name for name in names if not any(f"{need}.".startswith(f"{name}.") for need in NEEDS)} == set()


@pytest.mark.parametrize("source", SOURCES)
def test_every_private_attribute_the_code_uses_is_checked(source: str) -> None:
    assert set(private(SOURCES[source])) <= {need.rpartition(".")[2] for need in NEEDS}


def test_every_keyword_the_code_passes_is_checked() -> None:
    called = {"call": "__call__", "tokenizer": "__call__"}
    found = {pair for tree in SOURCES.values() for pair in keywords(tree)}
    assert {name for name, _ in found} == set(CALLED)
    asked = {(need.rpartition(".")[2], parameter) for need, parameters in NEEDS.items() for parameter in parameters}
    assert {pair for pair in found if (called.get(pair[0], pair[0]), pair[1]) not in asked} == set()


def test_the_locked_libraries_have_everything() -> None:
    assert libraries.lacking_for_all() == []
    found = [(name, *found) for name in FAMILIES for found in libraries.lacking_for(name)]
    assert found == [(name, task, []) for name in FAMILIES for task in (TEXT_TO_IMAGE, *FAMILIES[name].task_pipelines)]
    for need in NEEDS:
        assert list(libraries.check({f"{need}_gone": ()})) == [(f"{need}_gone", f"{need}_gone")]


def test_a_missing_parameter_is_named() -> None:
    name = "diffusers.AutoencoderKL.decode"
    assert list(libraries.check({name: ("return_dict", "a", "b")})) == [(name, f"{name}(a=, b=)")]


def test_an_import_error_is_reported_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise RuntimeError("libx.so.1: cannot open\nshared object file") from causes[-1]

    causes: list[Exception] = [ImportError()]
    monkeypatch.setattr("pkgutil.resolve_name", fail)
    ((_, told),) = libraries.check({"diffusers.X": ()})
    assert told == "diffusers.X (RuntimeError: libx.so.1: cannot open shared object file)"
    # That another zygote may have enough of.
    for cause in (OSError(errno.EMFILE, "Too many open files"), MemoryError()):
        causes.append(cause)
        with pytest.raises(RuntimeError):
            list(libraries.check({"diffusers.X": ()}))


def test_the_checked_names_are_known_without_the_libraries() -> None:
    code = "import sys, weave.gpu_worker.libraries as it; print(set(it.LIBRARIES) & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "set()\n"
