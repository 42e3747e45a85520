"""The files of the .rpm with SELinux enforcing, on a booted Debian with kernel 6.1, torch and the demo model."""

import pytest

from tests.support.daemon import Daemon
from tests.vm.conftest import Answers
from tests.vm.judged import ALLOWED, PROCESSES, ROLES, gained, is_the_image, status_of, was_started_once

DOMAINS = {"supervisor": "weave_t", "broker": "weave_broker_t", "worker": "weave_worker_t"}
# The denial of each attack in the audit log.
DENIALS = {
    "read a file of the system's": ('name="hostname"', "tclass=file"),
    "read the config": (":weave_conf_t:", "tclass=dir"),
    "read a model": (":weave_models_t:", "tclass="),
    "open a GPU": ('name="nvidia0"', "tclass=chr_file"),
    "open another device": ('name="weave-test"', "tclass=chr_file"),
    "write a file": (":tmp_t:", "tclass=dir"),
    "execute": ("{ execute_no_trans }", ":bin_t:"),
    "network": ("{ create }", "tclass=tcp_socket"),
    "routes": ("{ create }", "tclass=netlink_route_socket"),
    "connect to another daemon": ("dbus", "tclass="),
}


def test_the_package_compiles_its_module_while_selinux_is_off(
    selinux: Answers,
) -> None:
    said = selinux["install"]
    assert "Compiling default weave_compute module" in said and "rror" not in said and "not loaded" not in said, said


def test_the_service_serves_an_allowed_user_and_no_stranger(selinux: Answers, shared_daemon: Daemon) -> None:
    assert "ActiveState=active" in selinux["service"]["output"], selinux["service"]
    assert is_the_image(selinux["image"], shared_daemon), selinux["image"]
    assert selinux["a stranger"]["status"] == 3 and selinux["a stranger"]["output"] == ""


def test_audit_and_metrics_are_written(selinux: Answers) -> None:
    files = selinux["files"]["output"]
    assert '"event":"model_loaded"' in files and "weave_images_total" in files, selinux["files"]


def assert_each_in_its_domain(found: dict[str, list[str]]) -> None:
    for program, role in ROLES.items():
        assert {label.split(":")[2] for label in found[program]} == {DOMAINS[role]}


def test_a_reload_reopens_the_audit_and_keeps_serving(selinux: Answers) -> None:
    reloaded = selinux["reload"]
    assert reloaded["status"] == 0 and '"reloaded"' in reloaded["output"], reloaded
    assert reloaded["serves"]["status"] == 0, reloaded


def test_another_model_restarts_the_daemon(selinux: Answers) -> None:
    assert was_started_once(selinux["another model"])
    assert_each_in_its_domain(selinux["another model"]["labels"])


def test_erasing_removes_the_module_and_keeps_config_and_audit(selinux: Answers) -> None:
    erased = selinux["erase"]
    assert (erased["status"], erased["units"], erased["modules"]) == (0, "", ""), erased
    labels = dict(line.split(" ") for line in erased["left"])
    assert {"/etc/weave/conf.d/vm.toml", "/var/log/weave/audit.log"} <= set(labels)
    assert {label.split(":")[2] for label in labels.values()} == {"etc_t", "var_log_t"}


def test_each_process_has_its_own_domain(selinux: Answers) -> None:
    assert_each_in_its_domain(selinux["labels"])
    sandbox = status_of(selinux["status"])["sandbox"]
    assert all("selinux" in sandbox[process] for process in PROCESSES), sandbox


@pytest.mark.parametrize("process", PROCESSES)
def test_a_domain_alone_gives_a_process_only_what_it_needs(selinux: Answers, process: str) -> None:
    assert gained(selinux["attacks"], process) == ALLOWED[process]
    assert selinux["attacks"]["load"]["status"] == 0, selinux["attacks"]


@pytest.mark.parametrize("process", PROCESSES)
def test_each_denial_is_in_the_audit_log_with_its_domain(selinux: Answers, process: str) -> None:
    denied = [
        line for line in selinux["attacks"]["denied"] if f"scontext=system_u:system_r:{DOMAINS[process]}:" in line
    ]
    for attack in set(DENIALS) - ALLOWED[process]:
        assert any(all(part in line for part in DENIALS[attack]) for line in denied), (attack, denied)


def test_selinux_denies_nothing_the_daemon_does(selinux: Answers) -> None:
    assert [line for line in selinux["denied"] if "weave" in line] == []


@pytest.mark.parametrize("process", PROCESSES)
def test_the_same_attacks_succeed_where_selinux_is_permissive(selinux: Answers, process: str) -> None:
    assert gained(selinux["attacks, permissive"], process) >= set(DENIALS)


def test_require_mac_refuses_a_permissive_policy(selinux: Answers) -> None:
    text = selinux["refusals"]["permissive"]
    assert "system.require_mac is true" in text and "ExecMainStatus=78" in text


def test_doctor_reports_selinux_and_systemds_hardening(selinux: Answers) -> None:
    lines = selinux["doctor"]["output"].splitlines()
    assert (
        "ok    mandatory access control: selinux confines each process, and the daemon serves only if it does" in lines
    )
    assert any(line.startswith("ok    service: weave-compute.service is active") for line in lines), lines
