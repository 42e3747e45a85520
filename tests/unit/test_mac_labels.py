"""The label that each process must have. That the kernel enforces it is tested in tests/vm."""

import os
from pathlib import Path

import pytest

from weave.sandbox.account import Account
from weave.sandbox.attestation import AttestationFailed, Confinement, attest
from weave.sandbox.mac import Mac, Role, apparmor_labels, selinux_labels


def test_apparmor_stacks_each_profile_on_the_daemons() -> None:
    assert apparmor_labels("weave-compute (enforce)") == {
        "supervisor": "weave-compute//&weave-compute-supervisor (enforce)",
        "broker": "weave-compute//&weave-compute-broker (enforce)",
        "worker": "weave-compute//&weave-compute-worker (enforce)",
    }


def test_selinux_changes_the_type_and_keeps_user_role_and_level() -> None:
    labels = selinux_labels("system_u:system_r:weave_t:s0:c1,c2")
    assert labels is not None and labels["broker"] == "system_u:system_r:weave_broker_t:s0:c1,c2"
    labels = selinux_labels("system_u:system_r:weave_t")
    assert labels is not None and labels["worker"] == "system_u:system_r:weave_worker_t"


@pytest.mark.parametrize(
    "label", ["unconfined", "firefox (enforce)", "weave-compute-worker (enforce)", "a:b:c_t:s0", ""]
)
def test_in_another_profile_or_domain_mac_is_not_ours(label: str) -> None:
    assert apparmor_labels(label) is None and selinux_labels(label) is None


def test_a_child_gets_the_name_without_the_mode(tmp_path: Path) -> None:
    attribute = os.open(tmp_path / "exec", os.O_WRONLY | os.O_CREAT)
    labels = apparmor_labels("weave-compute (enforce)")
    assert labels is not None
    Mac("apparmor", True, labels, attribute, "exec ").at_next_exec("broker")
    os.close(attribute)
    assert (tmp_path / "exec").read_text() == "exec weave-compute//&weave-compute-broker"


def held_by(labels: dict[Role, str] | None) -> Confinement:
    assert labels is not None
    return Confinement("broker", Account.own(), False, Mac("apparmor", True, labels, -1))


def test_a_child_with_another_label_is_not_attested(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the label is wrong: the rest is first shown to be right except for this process's seccomp."""
    monkeypatch.setattr("weave.sandbox.attestation._REQUIRED", {})
    monkeypatch.setattr("weave.sandbox.attestation._own_filters", lambda: -1)
    monkeypatch.setattr("weave.sandbox.attestation.label_of", lambda task: "weave-compute (enforce)")
    wall: dict[Role, str] = {"broker": "weave-compute (enforce)"}
    attest(os.getpid(), held_by(wall), parent=os.getppid())
    with pytest.raises(AttestationFailed, match=r"Label is weave-compute \(enforce\), not .*broker \(enforce\)"):
        attest(os.getpid(), held_by(apparmor_labels(wall["broker"])), parent=os.getppid())
