"""The AppArmor profiles as their compiler sees them. tests/vm tests what they forbid, where they are enforced."""

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


def common() -> str:
    """The rules that all of them include."""
    return re.sub(r"#.*", "", (PROFILES / "abstractions" / "weave-compute").read_text())


def test_they_compile_and_are_the_four_that_the_daemon_names(tmp_path: Path) -> None:
    assert parser(PROFILES).returncode == 0, parser(PROFILES).stderr
    assert set(parser(PROFILES, "--names").stdout.split()) == NAMES
    shutil.copytree(PROFILES, tmp_path / "harmed")
    with open(tmp_path / "harmed" / "weave-compute", "a") as file:
        file.write("profile harmed { /etc/passwd rr w }\n")
    assert parser(tmp_path / "harmed").returncode != 0


@pytest.mark.parametrize("own", sorted(NAMES - {"weave-compute"}))
def test_the_outer_profile_has_every_rule_of_the_inner_ones(own: str) -> None:
    """Both must allow what a process does: a rule that only its own has would never take effect."""
    outer = {line.strip() for line in profiles()["weave-compute"].splitlines()}
    missing = {line.strip() for line in profiles()[own].splitlines()} - outer
    # What the outer wall has in a wider form.
    wider = {"@{PROC}/@{pid}/attr/apparmor/exec w,", "/dev/dri/ r,"}
    assert missing <= wider


def test_each_profile_has_only_what_its_process_needs() -> None:
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


# Every rule has one of these shapes. A shape that is not listed here has not been reviewed.
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


# The only writable paths.
WRITTEN = {
    "abstractions/weave-compute": {"/dev/null", "@{PROC}/@{pid}/task/@{tid}/comm"},
    "weave-compute-supervisor": {
        "@{PROC}/@{pid}/attr/apparmor/exec",
        "/run/systemd/{notify,journal/stdout}",
        "/run/systemd/userdb/{,*}",
        "/run/weave/{,weave.lock,weave.sock}",
        "/var/log/weave/{,*}",
        "/var/lib/weave/metrics/{,*}",
    },
    "weave-compute-broker": set(),
    "weave-compute-worker": {"/dev/nvidia{ctl,-uvm,[0-9],[0-9][0-9]}", "/dev/dri/{,renderD*}", "/dev/kfd"},
}
# No profile may read everything below these: users' files, and secrets.
PRIVATE = re.compile(r"/(\*|\{|home|root|tmp|var/\*|etc/(\*|shadow|ssl|ssh))|@\{HOME")


def lines_of(rules: str) -> list[str]:
    return [line for line in map(str.strip, rules.splitlines()) if line]


def unforeseen(rules: str) -> list[str]:
    return [line for line in lines_of(rules) if not any(re.fullmatch(shape, line) for shape in SHAPES)]


def paths(rules: str, permissions: str) -> set[str]:
    """The path of a rule that gives all of `permissions`."""
    found = (re.fullmatch(r"(?:owner )?([/@]\S*) ([a-z]+),", line) for line in lines_of(rules))
    return {match[1] for match in found if match and set(permissions) <= set(match[2])}


def test_every_rule_is_of_an_expected_kind() -> None:
    """No network except unix, nothing to execute, no capability except the supervisor's, no way out."""
    assert unforeseen("\n".join([common(), *profiles().values()])) == []


@pytest.mark.parametrize("rule", HARMFUL)
def test_a_harmful_rule_would_be_found(rule: str) -> None:
    assert unforeseen(profiles()["weave-compute-broker"] + rule) == [rule]


def misplaced(rules: dict[str, str]) -> set[str]:
    """Paths that break a rule: written to but not listed, both writable and mapped as code, or private."""
    found = set()
    for name, text in rules.items():
        found |= (paths(text, "w") | paths(text, "a")) - WRITTEN[name]
        found |= paths(text, "wm")
        found |= {path for path in paths(text, "") if PRIVATE.match(path)}
    return found


def test_only_socket_log_and_devices_are_writable() -> None:
    all_rules = profiles() | {"abstractions/weave-compute": common()}
    outer = all_rules.pop("weave-compute")
    assert misplaced(all_rules) == set()
    assert {name: paths(text, "w") for name, text in all_rules.items()} == WRITTEN
    inner = set().union(*(paths(text, "w") for text in all_rules.values()))
    # It may write only to what one of the others may; at its start it changes its own profile.
    assert paths(outer, "w") <= inner | {"@{PROC}/@{pid}/attr/apparmor/{current,exec}"}


@pytest.mark.parametrize(
    "rule",
    ("/** rw,", "/etc/shadow r,", "/home/** rwk,", "/tmp/** mrw,", "@{HOME}/** r,", "/usr/lib/** w,", "/etc/** r,"),
)
def test_a_path_too_many_would_be_found(rule: str) -> None:
    assert misplaced({"weave-compute-broker": profiles()["weave-compute-broker"] + rule}) == {rule.split()[0]}


def test_the_broker_and_the_worker_send_to_no_address() -> None:
    """They talk on what they are connected to."""
    for name in ("abstractions/weave-compute", "weave-compute-broker", "weave-compute-worker"):
        rules = profiles().get(name) or (PROFILES / name).read_text()
        assert "dgram" not in rules
