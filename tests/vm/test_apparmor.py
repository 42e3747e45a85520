"""The .deb, its unit and its AppArmor profiles, on a booted Debian with kernel 6.1, torch and the demo model."""

import json

import pytest

from tests.support.daemon import Daemon
from tests.vm.conftest import Answers
from tests.vm.judged import ALLOWED, PROCESSES, ROLES, gained, is_the_image, status_of, was_started_once

# AppArmor knows nothing of connect(2) to a path before Linux 6.17 (Ubuntu's kernels do): there seccomp stands alone.
NOT_HELD = {"connect to another daemon"}
# The denial of each attack in the audit log.
DENIALS = {
    "read a file of the system's": ('operation="open"', 'name="/etc/hostname"'),
    "read the config": ('operation="open"', 'name="/etc/weave/weave-compute.toml"'),
    "read a model": ('operation="open"', 'name="/usr/share/weave-compute/models/shapes/vae/config.json"'),
    "open a GPU": ('operation="open"', 'name="/dev/nvidia0"'),
    "open another device": ('operation="open"', 'name="/dev/weave-test"'),
    "write a file": ('operation="mknod"', 'name="/tmp/weave-attack-'),
    "execute": ('operation="exec"', 'name="/usr/bin/true"'),
    "network": ('operation="create"', 'family="inet"'),
    "routes": ('operation="create"', 'family="netlink"'),
}
# Only the supervisor gets as far as asking for another profile.
LEAVING = {
    "supervisor": ('operation="change_profile"', 'target="unconfined"'),
    "broker": ('operation="open"', 'attr/apparmor/current"'),
    "worker": ('operation="open"', 'attr/apparmor/current"'),
}


def test_the_package_installs_and_its_service_serves(apparmor: Answers) -> None:
    assert apparmor["install"]["status"] == 0, apparmor["install"]
    assert "ActiveState=active" in apparmor["service"]["output"], apparmor["service"]


def test_an_allowed_user_gets_an_image_and_a_stranger_nothing(apparmor: Answers, shared_daemon: Daemon) -> None:
    assert is_the_image(apparmor["image"], shared_daemon), apparmor["image"]
    assert apparmor["a stranger"]["status"] == 3 and apparmor["a stranger"]["output"] == ""


def test_the_user_units_start_a_users_own_daemon(apparmor: Answers) -> None:
    status = status_of(apparmor["a user's own"])
    assert (status["mode"], "apparmor" in status["sandbox"]["broker"]) == ("user", False)


def test_purging_leaves_torch_and_the_administrators_files(apparmor: Answers) -> None:
    left = apparmor["purge"]
    assert (left["status"], left["profiles"], left["units"]) == (0, "0\n", ""), left
    ours = ("weave-vm", "weave-attack", "weave-compute-torch-")  # the tests', and the other package's
    files = {file for file in left["files"] if not any(name in file for name in ours)}
    assert files == {"/etc/weave", "/usr/lib/weave-compute"}


def test_audit_and_metrics_are_written(apparmor: Answers) -> None:
    files = apparmor["files"]["output"]
    assert '"event":"model_loaded"' in files and "weave_images_total" in files, apparmor["files"]


def test_a_reload_reopens_the_audit_and_keeps_serving(apparmor: Answers) -> None:
    reloaded = apparmor["reload"]
    assert reloaded["status"] == 0 and '"reloaded"' in reloaded["output"], reloaded
    assert reloaded["serves"]["status"] == 0, reloaded


def test_an_upgrade_restarts_the_daemon_and_keeps_the_config(apparmor: Answers) -> None:
    upgraded = apparmor["upgrade"]
    assert was_started_once(upgraded) and upgraded["version"].endswith(".later") and upgraded["kept"]
    assert "weave-later (enforce)" in upgraded["profiles"].splitlines()
    assert_each_in_its_profile(upgraded["labels"])


def test_another_model_restarts_the_daemon_unless_policy_forbids(apparmor: Answers) -> None:
    assert was_started_once(apparmor["another model"])
    assert not was_started_once(apparmor["another model, refused"])


def test_apparmor_denies_nothing_the_daemon_does(apparmor: Answers) -> None:
    assert apparmor["denied"] == []


def assert_each_in_its_profile(found: dict[str, list[str]]) -> None:
    assert set(found) == set(ROLES)
    for program, labels in found.items():
        assert set(labels) == {f"weave-compute//&weave-compute-{ROLES[program]} (enforce)"}


def test_each_process_has_its_own_enforced_profile(apparmor: Answers) -> None:
    assert_each_in_its_profile(apparmor["labels"])
    assert len(apparmor["labels"]["weave.gpu_worker"]) == 2  # the zygote and its worker
    sandbox = status_of(apparmor["status"])["sandbox"]
    assert all("apparmor" in sandbox[process] for process in PROCESSES), sandbox


@pytest.mark.parametrize("process", PROCESSES)
def test_a_profile_alone_gives_a_process_only_what_it_needs(apparmor: Answers, process: str) -> None:
    assert gained(apparmor["attacks"], process) == ALLOWED[process] | NOT_HELD
    assert apparmor["attacks"]["load"]["status"] == 0, apparmor["attacks"]


@pytest.mark.parametrize("process", PROCESSES)
def test_each_refusal_is_in_the_audit_log_with_its_profile(apparmor: Answers, process: str) -> None:
    denied = [line for line in apparmor["attacks"]["denied"] if f'profile="weave-compute-{process}"' in line]
    for attack, parts in {**DENIALS, "leave AppArmor": LEAVING[process]}.items():
        if attack not in ALLOWED[process] | {"execute"}:
            assert any(all(part in line for part in parts) for line in denied), (attack, denied)


def test_each_attempt_to_execute_is_in_the_audit_log(apparmor: Answers) -> None:
    """There the outer wall alone is named: it comes first, and one refusal is enough."""
    denied = [line for line in apparmor["attacks"]["denied"] if all(part in line for part in DENIALS["execute"])]
    assert len(denied) == len(PROCESSES) and all('profile="weave-compute"' in line for line in denied)


def test_nothing_but_the_attacks_is_denied(apparmor: Answers) -> None:
    expected = [parts[1] for parts in (*DENIALS.values(), *LEAVING.values())] + ['attr/current"']
    lines = apparmor["attacks"]["denied"]
    assert [line for line in lines if not any(part in line for part in expected)] == []


@pytest.mark.parametrize("process", PROCESSES)
def test_without_apparmor_the_same_attacks_succeed(apparmor: Answers, process: str) -> None:
    assert gained(apparmor["attacks, unconfined"], process) >= set(DENIALS)


def test_require_mac_refuses_no_profile_and_complain_mode(
    apparmor: Answers,
) -> None:
    labels = {"unconfined": "unconfined", "one complaining": "supervisor", "complaining": "supervisor (complain)"}
    for how, label in labels.items():
        text = apparmor["refusals"][how]
        assert "system.require_mac is true" in text and label in text and "ExecMainStatus=78" in text


def test_the_older_landlock_holds_broker_and_worker(apparmor: Answers) -> None:
    for role, least in (("broker", 60), ("worker", 6)):
        done = apparmor[f"landlock of this kernel, {role}"]
        outcomes = [json.loads(line) for line in done["output"].splitlines()]
        assert done["status"] == 0 and len(outcomes) >= least, done
        assert all("landlock-2" in outcome["layers"] and "attestation" not in outcome for outcome in outcomes)
        assert [outcome for outcome in outcomes if outcome["result"].startswith("gained")] == []


def test_doctor_reports_apparmor_and_systemds_hardening(apparmor: Answers) -> None:
    lines = apparmor["doctor"]["output"].splitlines()
    assert (
        "ok    mandatory access control: apparmor confines each process, and the daemon serves only if it does" in lines
    )
    assert any(line.startswith("ok    service: weave-compute.service is active") for line in lines), lines
