"""The systemd units, as systemd-analyze judges them."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "conf/systemd"
# What `systemd-analyze security` counts against the service, and the word by which a comment in it gives the reason.
REASONS = {
    "CapabilityBoundingSet_CAP_KILL": "with these three",
    "CapabilityBoundingSet_CAP_SET_UID_GID_PCAP": "SETPCAP is for",
    "DeviceAllow": "all the devices there are",
    "MemoryDenyWriteExecute": "MemoryDenyWriteExecute= is not set",
    "PrivateDevices": "PrivateDevices= is not set",
    "PrivateUsers": "PrivateUsers= is not set",
    "ProcSubset": "ProcSubset= is not set",
    "RestrictAddressFamilies_AF_UNIX": "AF_UNIX is how",
    "RootDirectoryOrRootImage": "RootDirectory= is not set",
    "SystemCallFilter_privileged": "@privileged has too",
    "UserOrDynamicUser": "User= is not set",
}

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


def version() -> str:
    """Versions of systemd differ a little."""
    return analyze("--version").stdout.split()[1] if shutil.which("systemd-analyze") else ""


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)


judged_by_252 = pytest.mark.skipif(version() != "252", reason="the figures and names are those of systemd 252")


@judged_by_252
def test_the_exposure_of_the_system_service_is_at_most_1_5() -> None:
    done = analyze("security", "--offline=true", "--threshold=15", UNITS / "system/weave-compute.service")
    assert done.returncode == 0, done.stdout


@judged_by_252
def test_each_loose_directive_has_its_reason() -> None:
    service = UNITS / "system/weave-compute.service"
    judged = json.loads(analyze("security", "--offline=true", "--json=short", service).stdout)
    loose = {item["json_field"] for item in judged if item["exposure"]}
    assert loose <= REASONS.keys()
    comments = [line.removeprefix("# ") for line in service.read_text().splitlines() if line.startswith("#")]
    assert [REASONS[name] for name in loose if REASONS[name] not in " ".join(comments)] == []


@pytest.mark.parametrize("manager", ["system", "user"])
def test_systemd_accepts_the_units(manager: str, tmp_path: Path) -> None:
    for unit in (UNITS / manager).iterdir():
        # The program is not installed here.
        (tmp_path / unit.name).write_text(unit.read_text().replace("/usr/bin/weave-compute", "/bin/true"))
    command = ["systemd-analyze", f"--{manager}", "--man=no", "--recursive-errors=no", "verify"]
    done = subprocess.run(
        [*command, *tmp_path.iterdir()],
        env=os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
