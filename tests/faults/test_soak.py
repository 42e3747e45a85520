"""A short soak, which shows that the long one (make soak) works."""

from tests.faults.soak import run


def test_a_short_soak_leaves_nothing_behind() -> None:
    soak = run(15, seed=3)
    assert soak.wrong == []
    assert soak.found["generate"] and soak.found["upload"] and any(name.startswith("harm") for name in soak.found)
