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


# Every rule there is has one of these shapes. What is not foreseen is what no reader has thought about.
SHAPES = (
    r"include (if exists )?<[\w/-]+>",
    r"(/|@\{)\S* [rwkmc]+,",
    r"change_profile (@\{weave_python\} )?-> weave-compute//&weave-compute-(supervisor|broker|worker),",
    r"capability (kill|setgid|setuid|setpcap),",
    r"signal \((send|receive|send, receive)\)( set=\(kill\))? peer=(unconfined|weave-compute//&weave-compute-\S+),",
    r"network unix (stream|seqpacket|dgram),",
    r"unix \([a-z, ]+\) type=(stream|seqpacket|dgram),",
    r'unix \(bind, listen\) type=seqpacket addr="@cuda-uvmfd-\[0-9a-f\]\*",',
    r"deny network inet6 stream,",
)
HARMFUL = (
    *(
        "network,",
        "file,",
        "unix,",
        "ptrace,",
        "capability,",
        "capability sys_admin,",
        "network inet stream,",
        "mount,",
    ),
    *("/usr/bin/x ix,", "audit /usr/bin/x ix,", "/usr/bin/true Px -> x,", "change_profile -> unconfined,", "userns,"),
)


def unforeseen(rules: str) -> list[str]:
    lines = (line.strip() for line in rules.splitlines())
    return [line for line in lines if line and not any(re.fullmatch(shape, line) for shape in SHAPES)]


def test_every_rule_is_of_a_kind_that_is_foreseen() -> None:
    """No network but unix, nothing to execute, no capability beside the supervisor's, no way out."""
    common = re.sub(r"#.*", "", (PROFILES / "abstractions" / "weave-compute").read_text())
    assert unforeseen("\n".join([common, *profiles().values()])) == []


@pytest.mark.parametrize("rule", HARMFUL)
def test_a_harmful_rule_would_be_found(rule: str) -> None:
    assert unforeseen(profiles()["weave-compute-broker"] + rule) == [rule]


def test_the_broker_and_the_worker_send_to_no_address() -> None:
    """They talk on what they are connected to."""
    for name in ("abstractions/weave-compute", "weave-compute-broker", "weave-compute-worker"):
        rules = profiles().get(name) or (PROFILES / name).read_text()
        assert "dgram" not in rules
