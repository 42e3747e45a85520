"""Record mode allows most system calls. What its own Landlock layer still denies, shown from inside a worker, with the
layer and without it."""

import errno
import json
import re

import pytest

from tests.security.hostile.recorded import ATTACKS
from tests.security.test_hostile_processes import HOSTILE, WORKER, Hostile
from tests.support.daemon import wait_for
from tests.support.generation import generate
from tests.support.seams import Seams, replaced
from tests.support.system import MODEL
from weave.client import WeaveError
from weave.sandbox import landlock

WITHOUT_THE_LAYER = (replaced("sandbox/landlock.py", "restrict_all_but_opening", "return 'landlock-recording'"),)
# Landlock's ABI that can deny it, and the error. Scopes fail with EPERM.
TCP, SCOPES = 4, 6
DENIED = dict.fromkeys(ATTACKS, (1, errno.EACCES)) | {
    "connect by TCP": (TCP, errno.EACCES),
    "bind a TCP port": (TCP, errno.EACCES),
    "signal another process": (SCOPES, errno.EPERM),
}


def outcomes(seams: Seams = ()) -> dict[str, int]:
    """The error of each attack from a worker in record mode; 0 where it succeeded."""
    hostile = Hostile(
        (*WORKER, *seams), {"gpu_worker/hostile.py": HOSTILE / "recorded.py"}, MODEL, options=("--record",)
    )
    place = hostile.daemon.socket.parent
    for name in ("victim", "other victim"):
        (place / name).touch()
    try:
        with hostile.daemon.client() as client:
            client.unload()
            hostile.arm(str(place))
            with pytest.raises(WeaveError):
                generate(client)
        # The worker's line has the traceback too.
        reported = wait_for(lambda: re.search(r'outcomes: (\{"[^}]*\})', str(hostile.daemon.events("job_failed"))))
    finally:
        hostile.daemon.stop()
    found: dict[str, int] = json.loads(reported[1])
    assert found.keys() == ATTACKS.keys()
    return found


def test_a_recorded_worker_can_only_open_files() -> None:
    found = outcomes()
    supported = {name: error for name, (abi, error) in DENIED.items() if landlock.abi() >= abi}
    assert {name: found[name] for name in supported} == supported


def test_without_its_landlock_layer_every_attack_succeeds() -> None:
    found = outcomes(WITHOUT_THE_LAYER)
    refused_by_no_listener = {"connect by TCP": errno.ECONNREFUSED}
    assert found == dict.fromkeys(ATTACKS, 0) | refused_by_no_listener
