"""Named places in the daemon's source, and what a test-only build (builds.py) puts there.

A seam is found by its module and name, so code that moves or changes around it breaks no test. Where the name no longer
exists, the build fails and names it.
"""

import ast
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeAlias

import weave

PACKAGE = Path(weave.__file__).parent
Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


class SeamMissing(LookupError):
    """A module has no function or global of that name."""


class Seam(NamedTuple):
    """`module` is a file within weave/. `edit` takes its source and returns it with the change."""

    module: str
    edit: Callable[[str], str]


Seams: TypeAlias = tuple[Seam, ...]


def replaced(module: str, function: str, body: str) -> Seam:
    """Another body for a function, or for a class's method ("Worker.load"). It sees the parameters and the module's
    globals, and can call `original` with the same parameters."""
    return Seam(module, lambda source: _with_body(source, module, function, lambda _: _dedented(body)))


def without(module: str, function: str) -> Seam:
    """The function does nothing and returns None."""
    return replaced(module, function, "pass")


def before(module: str, function: str, code: str) -> Seam:
    """`code` runs first. It may change the parameters, or return."""
    return Seam(
        module, lambda source: _with_body(source, module, function, lambda call: f"{_dedented(code)}\nreturn {call}")
    )


def after(module: str, function: str, code: str) -> Seam:
    """`code` runs last, unless the function raises. It may change `result`, which is returned."""
    body = "result = {}\n{}\nreturn result"
    return Seam(
        module, lambda source: _with_body(source, module, function, lambda call: body.format(call, _dedented(code)))
    )


def constant(module: str, name: str, value: str) -> Seam:
    """Another value for a module's global, assigned or imported. The expression may use the global's own value."""
    return Seam(module, lambda source: _with_value(source, module, name, value))


def applied(seams: Seams) -> dict[str, str]:
    """The new source of each module, by its file within weave/. Seams of one function apply one around the other."""
    changed: dict[str, str] = {}
    for seam in seams:
        source = changed.get(seam.module) or (PACKAGE / seam.module).read_text()
        changed[seam.module] = seam.edit(source)
        compile(changed[seam.module], seam.module, "exec")  # not first in a daemon that then does not start
    return changed


def _with_body(source: str, module: str, name: str, body_of: Callable[[str], str]) -> str:
    """`body_of` makes the new body from the call of the original function, which keeps its code under another name."""
    node = _function(source, module, name)
    hidden = next(free for n in range(99) if f"def {(free := f'_{node.name}_{n}')}(" not in source)
    lines = source.splitlines(keepends=True)
    lines[node.lineno - 1] = lines[node.lineno - 1].replace(f"def {node.name}(", f"def {hidden}(", 1)
    is_async = isinstance(node, ast.AsyncFunctionDef)
    body = body_of(f"{'await ' if is_async else ''}original({_forwarded(node.args)})")
    original = ".".join([*name.split(".")[:-1], hidden])
    new = f"{'async ' if is_async else ''}def {node.name}({ast.unparse(node.args)}):\n" + textwrap.indent(
        f"original = {original}\n{body}\n", "    "
    )
    lines.insert(node.end_lineno or node.lineno, textwrap.indent(new, " " * node.col_offset))
    return "".join(lines)


def _with_value(source: str, module: str, name: str, value: str) -> str:
    for node in ast.parse(source).body:
        if name in _bound(node):
            lines = source.splitlines(keepends=True)
            lines.insert(node.end_lineno or node.lineno, f"{name} = {value}\n")
            return "".join(lines)
    raise SeamMissing(f"weave/{module} has no global {name}")


def _function(source: str, module: str, name: str) -> Function:
    *classes, last = name.split(".")
    body = ast.parse(source).body
    for wanted in classes:
        body = next((node.body for node in body if isinstance(node, ast.ClassDef) and node.name == wanted), [])
    for node in body:
        if isinstance(node, Function) and node.name == last and not node.decorator_list:
            return node
    raise SeamMissing(f"weave/{module} has no function {name} (without a decorator)")


def _bound(statement: ast.stmt) -> set[str]:
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name for alias in statement.names}
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    if isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _forwarded(parameters: ast.arguments) -> str:
    """The arguments of a call that passes all parameters on."""
    given = [parameter.arg for parameter in (*parameters.posonlyargs, *parameters.args)]
    given += [f"*{parameters.vararg.arg}"] if parameters.vararg else []
    given += [f"{parameter.arg}={parameter.arg}" for parameter in parameters.kwonlyargs]
    given += [f"**{parameters.kwarg.arg}"] if parameters.kwarg else []
    return ", ".join(given)


def _dedented(code: str) -> str:
    return textwrap.dedent(code).strip("\n")
