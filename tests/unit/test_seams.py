"""Seams (tests/support/seams.py) find their place by name, or say which name is missing."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.seams import Seam, SeamMissing, after, applied, before, constant, replaced, without

SOURCE = '''
import math as maths

LIMIT: int = 2
DOUBLE = LIMIT * 2


def area(side: int, *more: int, times: int = 1, **others: int) -> int:
    """A function with every kind of parameter."""
    return (side * side + sum(more) + sum(others.values())) * times


async def answer(question: str) -> str:
    return question + "!"


class Worker:
    def load(self, name: str) -> str:
        return self.prefix() + name

    def prefix(self) -> str:
        return "loaded "

    @property
    def is_well(self) -> bool:
        return True
'''


def module_of(*seams: Seam) -> dict[str, Any]:
    source = SOURCE
    for seam in seams:
        source = seam.edit(source)
    names: dict[str, Any] = {}
    exec(source, names)  # the source above
    return names


def test_a_replaced_function_sees_parameters_and_original() -> None:
    body = "return original(side + LIMIT, *more, times=times, **others)"
    assert module_of(replaced("m.py", "area", body))["area"](1, 5, times=2, a=4) == (9 + 5 + 4) * 2


def test_without_makes_a_function_do_nothing() -> None:
    assert module_of(without("m.py", "area"))["area"](3) is None


def test_before_may_change_parameters_or_return() -> None:
    area: Callable[[int], int] = module_of(before("m.py", "area", "if side < 0:\n    return -1\nside += 1"))["area"]
    assert (area(-5), area(1)) == (-1, 4)


def test_after_may_change_the_result() -> None:
    assert module_of(after("m.py", "area", "result = result, side"))["area"](3) == (9, 3)


def test_seams_of_one_function_apply_one_around_the_other() -> None:
    twice = (after("m.py", "area", "result += 1"), after("m.py", "area", "result *= 10"))
    assert module_of(*twice)["area"](2) == 50


def test_code_may_be_an_indented_block() -> None:
    code = """
        if side > 2:
            side = 2
    """
    seams = (before("m.py", "area", code), after("m.py", "area", code + "    result += side"))
    assert module_of(*seams)["area"](9) == 6


def test_code_that_does_not_compile_is_reported_by_module() -> None:
    with pytest.raises(SyntaxError, match=r"hardening\.py"):
        applied((before("sandbox/hardening.py", "harden", "if"),))


def test_an_async_function_stays_one() -> None:
    names = module_of(before("m.py", "answer", "question = question.upper()"))
    assert asyncio.run(names["answer"]("why")) == "WHY!"


def test_a_method_is_found_by_its_class() -> None:
    worker = module_of(
        after("m.py", "Worker.load", "result += ' twice'"), replaced("m.py", "Worker.prefix", "return ''")
    )
    assert worker["Worker"]().load("x") == "x twice"


def test_a_constant_changes_later_uses_and_may_use_its_value() -> None:
    names = module_of(constant("m.py", "LIMIT", "LIMIT + 1"), constant("m.py", "maths", "None"))
    assert (names["LIMIT"], names["DOUBLE"], names["maths"]) == (3, 6, None)


@pytest.mark.parametrize(
    "seam",
    [
        without("m.py", "volume"),
        without("m.py", "Worker.unload"),
        without("m.py", "Broker.load"),
        without("m.py", "load"),
        without("m.py", "Worker.is_well"),
        constant("m.py", "area", "1"),
        constant("m.py", "self", "1"),
    ],
)
def test_a_missing_seam_is_named(seam: Seam) -> None:
    with pytest.raises(SeamMissing, match=r"weave/m\.py has no (function|global) "):
        seam.edit(SOURCE)


def test_seams_of_the_product_apply_by_module() -> None:
    changed = applied((without("sandbox/hardening.py", "harden"), constant("sandbox/hardening.py", "prctl", "None")))
    assert list(changed) == ["sandbox/hardening.py"] and "\nprctl = None\n" in changed["sandbox/hardening.py"]
