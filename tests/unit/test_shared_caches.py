"""Trees that several test processes share: one builds, the others wait."""

import multiprocessing
import time
from pathlib import Path

import pytest

from tests.packages.tree import cached


def make(file: str, log: str, started: "multiprocessing.synchronize.Barrier") -> None:
    def slowly(part: Path) -> None:
        with open(log, "a") as lines:
            lines.write("made\n")
        part.write_text("ha")
        time.sleep(0.3)
        with part.open("a") as more:
            more.write("lf")

    started.wait(60)
    assert cached(Path(file), slowly).read_text() == "half"


def test_concurrent_requests_build_a_cached_tree_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    file, log, started = tmp_path / "cache" / "tree.tar", tmp_path / "log", context.Barrier(4)
    makers = [context.Process(target=make, args=(str(file), str(log), started)) for _ in range(4)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join(60)
    assert [maker.exitcode for maker in makers] == [0] * 4
    assert log.read_text() == "made\n"
    assert [found.name for found in file.parent.iterdir()] == ["tree.tar"]


def test_an_abandoned_build_is_made_again(tmp_path: Path) -> None:
    def gives_up(part: Path) -> None:
        part.write_text("half")
        raise RuntimeError("the mirror is down")

    file = tmp_path / "tree.tar"
    with pytest.raises(RuntimeError, match="the mirror is down"):
        cached(file, gives_up)
    assert list(tmp_path.iterdir()) == []
    assert cached(file, lambda part: part.write_text("whole")).read_text() == "whole"
