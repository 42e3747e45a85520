"""Processes that take VRAM: `python -m tests.gpu.vram hold|fill|look DEVICE LEAVE_MIB`, by torch's allocator and so by
cudaMalloc. Each takes all but LEAVE_MIB. On the CPU a little memory stands for it.

`hold` keeps it until standard input ends. `fill` writes a pattern into it and waits to be killed. `look` tells how much
of the pattern is in memory that it has not written to.
"""

import json
import subprocess
import sys
from typing import Any

import torch

from tests.gpu.report import ROOT
from tests.support.processes import start

_MIB = 1024 * 1024
_STANDS_FOR_A_CARD_MIB = 64
_PATTERN = 0x5EC2E7A5
_LARGEST_MIB, _SMALLEST_MIB = 1024, 4


class Holder:
    """A process of `hold` or `fill`, from when it has its memory to the end of the `with` statement."""

    def __init__(self, what: str, device: str, leave_mib: int) -> None:
        self.process = _start(what, device, leave_mib)

    def __enter__(self) -> "Holder":
        assert self.process.stdout is not None
        told = self.process.stdout.readline()
        assert told, "it could not take the card's memory"
        self.mib = int(told)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def look(device: str, leave_mib: int) -> dict[str, Any]:
    """`bytes` looked at, 32-bit words of the `pattern` found, words that are `not zero`; and `control`: how many words
    of the pattern are found after one was written."""
    told, _ = _start("look", device, leave_mib).communicate(timeout=200)
    found: dict[str, Any] = json.loads(told)
    return found


def _start(what: str, device: str, leave_mib: int) -> "subprocess.Popen[str]":
    command = (sys.executable, "-m", "tests.gpu.vram", what, device, str(leave_mib))
    return start(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _take(device: str, leave_mib: int) -> list[torch.Tensor]:
    taken: list[torch.Tensor] = []
    size = _LARGEST_MIB
    while size >= _SMALLEST_MIB:
        if _free_mib(device, taken) - size < leave_mib:
            size //= 2
            continue
        try:
            taken.append(torch.empty(size * _MIB // 4, dtype=torch.int32, device=device))
        except torch.OutOfMemoryError:  # what is free is in smaller pieces
            size //= 2
    return taken


def _free_mib(device: str, taken: list[torch.Tensor]) -> int:
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0]) // _MIB
    return _STANDS_FOR_A_CARD_MIB - sum(int(chunk.nbytes) for chunk in taken) // _MIB


def main(what: str, device: str, leave_mib: int) -> None:
    torch.zeros(1, device=device)  # the context's own memory comes first
    taken = _take(device, leave_mib)
    size = sum(chunk.nbytes for chunk in taken)
    if what == "look":
        found, not_zero = (sum(int(count(chunk)) for chunk in taken) for count in (_patterns, torch.count_nonzero))
        taken[0][0] = _PATTERN
        control = sum(int(_patterns(chunk)) for chunk in taken)
        print(json.dumps({"bytes": size, "pattern": found, "not zero": not_zero, "control": control}))
        return
    if what == "fill":
        for chunk in taken:
            chunk.fill_(_PATTERN)
        assert int(_patterns(taken[-1])) == taken[-1].numel()  # and so it is written
    print(size // _MIB, flush=True)
    sys.stdin.read()


def _patterns(chunk: torch.Tensor) -> torch.Tensor:
    return (chunk == _PATTERN).sum()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
