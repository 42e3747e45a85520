"""A test's name states the behaviour. Longer than this it is a paragraph."""

import ast
from pathlib import Path

TESTS = Path(__file__).parents[1]
LONGEST = 60


def test_no_test_name_is_longer_than_the_limit() -> None:
    names = [
        node.name
        for path in TESTS.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    ]
    assert len(names) > 500 and [name for name in names if len(name) > LONGEST] == []
