"""The AppArmor profiles as their compiler sees them. What they hold back is for tests/vm, where they are enforced."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

PROFILES = Path(__file__).resolve().parents[2] / "apparmor" / "profiles"
NAMES = {"weave-compute", *(f"weave-compute-{process}" for process in ("supervisor", "broker", "worker"))}

pytestmark = pytest.mark.skipif(shutil.which("apparmor_parser") is None, reason="needs the package apparmor")


def parser(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Nothing is loaded into the kernel."""
    command = ["apparmor_parser", "--skip-kernel-load", "--skip-cache", "-I", str(folder), "-I", "/etc/apparmor.d"]
    return subprocess.run(
        [*command, *options, str(folder / "weave-compute")], check=False, capture_output=True, text=True
    )


def profiles() -> dict[str, str]:
    """Each profile's rules, without its comments."""
    text = re.sub(r"#.*", "", (PROFILES / "weave-compute").read_text())
    return dict(re.findall(r"^profile (\S+) .*?\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL))


def test_they_compile_and_are_the_four_that_the_daemon_names(tmp_path: Path) -> None:
    assert parser(PROFILES).returncode == 0, parser(PROFILES).stderr
    assert set(parser(PROFILES, "--names").stdout.split()) == NAMES
    shutil.copytree(PROFILES, tmp_path / "harmed")
    with open(tmp_path / "harmed" / "weave-compute", "a") as file:
        file.write("profile harmed { /etc/passwd rr w }\n")
    assert parser(tmp_path / "harmed").returncode != 0


@pytest.mark.parametrize("own", sorted(NAMES - {"weave-compute"}))
def test_the_outer_wall_has_every_rule_of_a_process_s_own(own: str) -> None:
    """Both must allow what a process does: a rule that only its own has would never take effect."""
    outer = {line.strip() for line in profiles()["weave-compute"].splitlines()}
    missing = {line.strip() for line in profiles()[own].splitlines()} - outer
    # What the outer wall has in a wider form.
    wider = {"@{PROC}/@{pid}/attr/apparmor/exec w,", "/dev/dri/ r,"}
    assert missing <= wider


def test_only_the_worker_has_devices_and_models_and_only_the_supervisor_capabilities_and_config() -> None:
    for name, rules in profiles().items():
        holds = {word for word in ("nvidia", "kfd", "weave_models", "capability", "/etc/weave") if word in rules}
        assert (
            holds
            == {
                "weave-compute": {"nvidia", "kfd", "weave_models", "capability", "/etc/weave"},
                "weave-compute-supervisor": {"capability", "/etc/weave"},
                "weave-compute-broker": set(),
                "weave-compute-worker": {"nvidia", "kfd", "weave_models"},
            }[name]
        )


def test_none_has_a_network_but_unix_and_none_executes() -> None:
    text = "\n".join([*profiles().values(), (PROFILES / "abstractions" / "weave-compute").read_text()])
    networks = re.findall(r"^\s*network (.*),", text, re.MULTILINE)
    assert set(networks) == {"unix stream", "unix seqpacket", "unix dgram"}
    assert re.findall(r"^\s*[/@]\S* \S*x\S*,", text, re.MULTILINE) == []
