"""The kit's stand-in for python-prctl has the same effect on a process."""

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import prctl
import pytest

from gpu_kit import prctl as stand_in

LINES = ("NoNewPrivs", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
NOBODY = 65534
ROOT = Path(__file__).parents[2]
# libc.prctl(...) in a test, and linux/prctl.h
NOT_OURS = {("h", "")}
ALL_KEPT = (prctl.CAP_KILL, prctl.CAP_SETGID, prctl.CAP_SETUID)
Step = Callable[[ModuleType], Any]
STEPS: dict[str, Step] = {
    "no_new_privs": lambda module: module.set_no_new_privs(1),
    "no dump": lambda module: module.set_dumpable(0),
    "dump": lambda module: module.set_dumpable(1),
    "ends with its parent": lambda module: module.set_pdeathsig(signal.SIGKILL),
    "outlives its parent": lambda module: module.set_pdeathsig(0),
    "inheritable": lambda module: module.cap_inheritable.limit(),
    "has setpcap": lambda module: bool(module.cap_effective.setpcap),
    "bounding but for some": lambda module: module.capbset.limit(*ALL_KEPT),
    "permitted before effective": lambda module: module.cap_permitted.limit(),
    "effective but for some": lambda module: module.cap_effective.limit(*ALL_KEPT),
    "permitted but for some": lambda module: module.cap_permitted.limit(*ALL_KEPT),
    "some again": lambda module: module.cap_effective.limit(prctl.CAP_KILL),
    "bounding, without setpcap": lambda module: module.capbset.limit(),
    "has no setpcap": lambda module: bool(module.cap_effective.setpcap),
    "effective": lambda module: module.cap_effective.limit(),
    "permitted": lambda module: module.cap_permitted.limit(),
}


def state() -> dict[str, str]:
    """This process's state in /proc, or from prctl(2) where /proc does not have it."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    found = {name: lines[name].strip() for name in LINES}
    return found | {"dumpable": str(prctl.get_dumpable()), "pdeathsig": str(prctl.get_pdeathsig())}


def outcome(module: ModuleType, step: Step) -> Any:
    try:
        return step(module)
    except OSError as error:
        return error.errno


def after_each_step(module: ModuleType, uid: int) -> list[list[Any]]:
    """In a child process: the step, its outcome, and the resulting state."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if uid != os.geteuid():
                os.setresuid(uid, uid, uid)
            said = [["start", None, state()]]
            for name, step in STEPS.items():
                said.append([name, outcome(module, step), state()])
            os.write(writing, json.dumps(said).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = json.loads(pipe.read())
    os.waitpid(pid, 0)
    return said


@pytest.mark.parametrize("uid", sorted({os.geteuid(), NOBODY if os.geteuid() == 0 else os.geteuid()}))
def test_each_call_of_the_stand_in_has_the_same_effect(uid: int) -> None:
    real = after_each_step(prctl, uid)
    assert after_each_step(stand_in, uid) == real
    start, end = real[0][2], real[-1][2]
    assert (start["NoNewPrivs"], end["NoNewPrivs"]) == ("0", "1")
    assert int(end["CapPrm"], 16) == int(end["CapEff"], 16) == 0
    if uid == 0:  # and there was something to lose
        assert int(start["CapEff"], 16) != 0
        assert int(end["CapBnd"], 16) == sum(1 << capability for capability in ALL_KEPT)


def test_the_stand_in_has_every_function_in_use() -> None:
    """fuzz/, benchmarks/ and the stand-in's own test are not in the kit."""
    files = [
        file
        for folder in ("weave", "tests")
        for file in (ROOT / folder).rglob("*.py")
        if file.name != Path(__file__).name
    ]
    used = set(re.findall(r"\bprctl\.([a-zA-Z_]+)(?:\.([a-z]+))?", "".join(file.read_text() for file in files)))
    assert len(used) > 5
    for name, attribute in used - NOT_OURS:
        assert hasattr(stand_in, name), name
        assert not attribute or hasattr(getattr(stand_in, name), attribute), f"{name}.{attribute}"


def test_the_stand_ins_constants_and_getters_match() -> None:
    for name in ("CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP"):
        assert getattr(stand_in, name) == getattr(prctl, name)
    for name in ("get_no_new_privs", "get_dumpable", "get_pdeathsig"):
        assert getattr(stand_in, name)() == getattr(prctl, name)()
