"""There are no import cycles, and a process imports only what it needs. import-linter checks the layers."""

import subprocess
import sys
from graphlib import CycleError, TopologicalSorter

import grimp
import pytest


def order(graph: grimp.ImportGraph) -> list[str]:
    """Each module after those that it imports. Raises CycleError."""
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    return list(TopologicalSorter(imports).static_order())


def test_there_are_no_import_cycles_not_even_for_types() -> None:
    graph = grimp.build_graph("weave", exclude_type_checking_imports=False, cache_dir=None)
    assert "weave.broker.server" in order(graph)


def test_an_import_cycle_would_be_found() -> None:
    graph = grimp.build_graph("weave", cache_dir=None)
    graph.add_import(importer="weave.protocol.frames", imported="weave.broker.server")
    with pytest.raises(CycleError):
        order(graph)


def test_importing_every_family_leaves_one_thread_and_no_cuda() -> None:
    code = (
        "import os; from weave.gpu_worker.environment import OFFLINE_ENVIRONMENT as e; os.environ.update(e);"
        "from weave.gpu_worker.classes import import_family; from weave.models.families import FAMILIES;"
        "[import_family(name, FAMILIES[name].task_pipelines) for name in FAMILIES];"
        "import torch; print(len(os.listdir('/proc/self/task')), torch.cuda.is_initialized())"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["1", "False"]


@pytest.mark.parametrize(
    "module, families", [("broker.__main__", False), ("supervisor.main", True), ("weavectl.doctor", True)]
)
def test_only_the_worker_imports_torch_and_families(module: str, families: bool) -> None:
    code = f"import weave.{module}, sys; print('torch' in sys.modules, 'weave.models' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["False", str(families)]
