"""What the zygote leaves out of its imports. Each test runs in a process of its own."""

import importlib.metadata
import subprocess
import sys

import pytest

from weave.gpu_worker.lean_imports import TESTED

IMPORT = """
import sys
from weave.gpu_worker import environment, lean_imports, libraries
environment.apply()
assert libraries.lacking_for_all() == []
import torch
"""
IMPORT_FAMILIES = """
from weave.gpu_worker.classes import import_family
from weave.models.families import FAMILIES
for family in FAMILIES:
    import_family(family, FAMILIES[family].task_pipelines)
"""


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, text=True, stdout=-1).stdout.strip()


@pytest.mark.parametrize("library", TESTED)
def test_the_installed_version_is_a_tested_one(library: str) -> None:
    assert importlib.metadata.version(library).startswith(f"{TESTED[library]}.")


def test_the_modules_are_left_out() -> None:
    # Each has been imported by a library, and none was executed; so a name that no longer exists is found here too.
    code = "print([name for name in lean_imports.DEFERRED if type(sys.modules.get(name)).__name__ != '_Deferred'])"
    assert (
        run(IMPORT + "from weave.gpu_worker.classes import import_family\nimport_family('sd1', ['control'])\n" + code)
        == "[]"
    )


def test_all_families_leave_most_of_them_out() -> None:
    """Some pipelines import a model from the package of all models."""
    code = """
found = ("torch._dynamo.config", "torch._refs", "torch.ao.quantization", "torch.distributed.tensor", "torch.optim.adam",
         "torch.export.decomp_utils", "sympy", "diffusers.models.unets.unet_1d")
print([name for name in found if name in sys.modules])
"""
    assert run(IMPORT + IMPORT_FAMILIES + code) == "[]"


def test_its_decorators_return_the_function_unchanged() -> None:
    code = """
def function(): pass
same = [torch.compiler.disable(function), torch.compiler.disable(recursive=False)(function)]
same += [torch._dynamo.allow_in_graph(function), torch._dynamo.assume_constant_result(function)]
print([found is function for found in same], torch._dynamo.is_compiling(), "torch._dynamo.config" in sys.modules)
"""
    assert run(IMPORT + code) == "[True, True, True, True] False False"


def test_another_name_of_the_compiler_is_the_real_one() -> None:
    code = """
compiler = torch._dynamo
assert not hasattr(compiler, "no_such_name")
print(compiler is torch._dynamo, compiler.config.__name__, compiler.disable.__module__)
"""
    assert run(IMPORT + code) == "True torch._dynamo.config torch._dynamo.decorators"


def test_a_name_of_a_module_that_was_left_out_is_found() -> None:
    code = """
import importlib
modules = [importlib.import_module(name) for name in lean_imports.DEFERRED]
names = [len(vars(module)) for module in modules]
assert not any(hasattr(module, "no_such_name") for module in modules)
print(all(len(vars(module)) > before for module, before in zip(modules, names)), {type(module) for module in modules})
print(all(module.__spec__.loader is module.__loader__ for module in modules))
"""
    assert run(IMPORT + code) == "True {<class 'module'>}\nTrue"


def test_other_versions_are_imported_whole() -> None:
    code = """
from weave.gpu_worker import lean_imports
lean_imports.TESTED = dict.fromkeys(lean_imports.TESTED, "0.0")
"""
    found = "print([name for name in ('torch._refs', 'torch.optim.adam') if name in sys.modules])"
    assert run(code + IMPORT + found) == "['torch._refs', 'torch.optim.adam']"
