"""Who imports whom: layers are what import-linter checks (pyproject.toml); this is that there is no way back."""

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
