"""The files of the .rpm with SELinux enforcing, on a booted Debian with kernel 6.1, torch and the demo model."""

import pytest

from tests.support.daemon import Daemon
from tests.vm.conftest import Answers
from tests.vm.judged import ALLOWED, PROCESSES, gained, is_the_picture, status_of

DOMAINS = {"supervisor": "weave_t", "broker": "weave_broker_t", "worker": "weave_worker_t"}
# The class and the target of each attack's denial.
DENIALS = {
    "read a file of the system's": "etc_t:file",
    "read the config": "weave_conf_t:file",
    "read a model": "weave_models_t:file",
    "open a GPU": "xserver_misc_device_t:chr_file",
    "open another device": "device_t:chr_file",
    "write a file": "tmp_t:",
    "execute": "bin_t:file",
    "network": "self:tcp_socket",
    "routes": "self:netlink_route_socket",
    "connect to another daemon": ":unix_stream_socket",
    "leave SELinux": "self:process",
}


def test_the_service_serves_and_an_allowed_user_gets_a_picture_and_a_stranger_nothing(
    selinux: Answers, shared_daemon: Daemon
) -> None:
    assert "ActiveState=active" in selinux["service"]["output"], selinux["service"]
    assert is_the_picture(selinux["picture"], shared_daemon), selinux["picture"]
    assert selinux["a stranger"]["status"] != 0 and selinux["a stranger"]["output"] == ""


def test_each_process_is_in_a_domain_of_its_own(selinux: Answers) -> None:
    roles = {"/usr/bin/weave-compute": "supervisor", "weave.broker": "broker", "weave.gpu_worker": "worker"}
    for program, role in roles.items():
        assert {label.split(":")[2] for label in selinux["labels"][program]} == {DOMAINS[role]}
    sandbox = status_of(selinux["status"])["sandbox"]
    assert all("selinux" in sandbox[process] for process in PROCESSES), sandbox


@pytest.mark.parametrize("process", PROCESSES)
def test_in_its_domain_alone_a_process_gains_only_what_it_is_for(selinux: Answers, process: str) -> None:
    assert gained(selinux["attacks"], process) == ALLOWED[process]
    assert selinux["attacks"]["load"]["status"] == 0, selinux["attacks"]


@pytest.mark.parametrize("process", PROCESSES)
def test_where_selinux_is_permissive_the_same_attacks_succeed(selinux: Answers, process: str) -> None:
    assert gained(selinux["attacks, permissive"], process) >= set(DENIALS) - {"leave SELinux"}


def test_where_it_is_required_the_daemon_does_not_serve_under_a_permissive_policy(selinux: Answers) -> None:
    text = selinux["refusals"]["permissive"]
    assert "system.require_mac is true" in text and "ExecMainStatus=78" in text
