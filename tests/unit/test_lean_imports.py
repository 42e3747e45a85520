"""What the zygote leaves out of its imports. Each test runs in a process of its own."""

import subprocess
import sys

PREPARED = """
import sys
from weave.gpu_worker import environment, libraries
environment.apply()
assert libraries.lacking_for_all() == []
import torch
"""


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", PREPARED + code], check=True, text=True, stdout=-1).stdout.strip()


def test_all_families_leave_the_compiler_out() -> None:
    code = """
from weave.gpu_worker.classes import import_family
from weave.models.families import FAMILIES
for family in FAMILIES:
    import_family(family, FAMILIES[family].task_pipelines)
print([name for name in ("torch._dynamo.config", "torch.distributed.tensor") if name in sys.modules])
"""
    assert run(code) == "[]"


def test_its_decorators_return_the_function_unchanged() -> None:
    code = """
def function(): pass
same = [torch.compiler.disable(function), torch.compiler.disable(recursive=False)(function)]
same += [torch._dynamo.allow_in_graph(function), torch._dynamo.assume_constant_result(function)]
print([found is function for found in same], torch._dynamo.is_compiling(), "torch._dynamo.config" in sys.modules)
"""
    assert run(code) == "[True, True, True, True] False False"


def test_another_name_of_the_compiler_is_the_real_one() -> None:
    code = """
compiler = torch._dynamo
assert not hasattr(compiler, "no_such_name")
print(compiler is torch._dynamo, compiler.config.__name__, compiler.disable.__module__)
"""
    assert run(code) == "True torch._dynamo.config torch._dynamo.decorators"
