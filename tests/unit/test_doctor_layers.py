"""The advice of doctor on AppArmor and SELinux. The layers themselves are tested in tests/vm, where they are real."""

import subprocess
from pathlib import Path

import msgspec
import pytest

from weave.config.schema import Config, SystemConfig
from weave.protocol.client_messages import StatusReport
from weave.weavectl import doctor
from weave.weavectl import doctor_sandbox as layers
from weave.weavectl.finding import Finding

MAC = "mandatory access control"


def report(layer: str | None, mode: str = "system") -> StatusReport:
    held_by = ("seccomp", layer) if layer else ("seccomp",)
    fields = {name: 0 for name in StatusReport.__struct_fields__} | {
        **{name: None for name in ("model", "device", "dtype", "memory_used", "memory_total")},
        **{
            "version": "1",
            "mode": mode,
            "worker": "none",
            "features": [],
            "jobs": [],
            "devices": [],
            "plan": "all",
            "metrics": {},
        },
        "libraries_lack": False,
        "sandbox": {"supervisor": held_by, "broker": held_by, "worker": []},
    }
    return msgspec.convert(fields, StatusReport)


def finding(layer: str | None, mode: str = "system", *, required: bool = False) -> Finding:
    config = Config(system=SystemConfig(require_mac=required))
    return next(found for found in layers.check_layers(report(layer, mode), config) if found.check == MAC)


@pytest.mark.parametrize(
    ("layer", "verdict", "advice"),
    [
        ("apparmor", "ok", "require_mac = true"),
        ("selinux", "ok", "require_mac = true"),
        ("apparmor-complaining", "warn", "apparmor_parser --replace"),
        ("selinux-permissive", "warn", "setenforce 1"),
        (None, "warn", "boot with apparmor=1"),
    ],
)
def test_each_state_of_mandatory_access_control_has_its_advice(
    monkeypatch: pytest.MonkeyPatch, layer: str | None, verdict: str, advice: str
) -> None:
    monkeypatch.setattr(layers, "_APPARMOR_ON", Path("/nonexistent"))
    monkeypatch.setattr(layers, "_SELINUX_ON", Path("/nonexistent"))
    found = finding(layer)
    assert found.verdict == verdict and advice in found.advice


def test_there_is_no_advice_when_mac_is_enforced_and_required() -> None:
    assert finding("apparmor", required=True) == Finding(
        MAC, "ok", "apparmor confines each process, and the daemon serves only if it does"
    )


def test_the_advice_is_for_the_system_the_kernel_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "enabled").write_text("Y\n")
    monkeypatch.setattr(layers, "_APPARMOR_ON", tmp_path / "enabled")
    assert "apparmor_parser --replace" in finding(None).advice
    monkeypatch.setattr(layers, "_APPARMOR_ON", tmp_path / "none")
    monkeypatch.setattr(layers, "_SELINUX_ON", tmp_path / "enabled")
    assert "load the module" in finding(None).advice
    (tmp_path / "enabled").write_text("0")
    assert "setenforce 1" in finding(None).advice


def test_without_a_daemon_the_advice_covers_require_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "_APPARMOR_ON", Path("/nonexistent"))
    monkeypatch.setattr(layers, "_SELINUX_ON", Path("/nonexistent"))

    def advice(config: Config | None, *, system: bool = True) -> list[str]:
        return [found.advice for found in layers.check_what_it_needs(config, system=system) if found.check == MAC]

    required = Config(system=SystemConfig(require_mac=True))
    for config in (required, None):  # None: only root may read it
        assert "boot with apparmor=1" in advice(config)[0] and "systemctl reset-failed" in advice(config)[0]
    assert advice(Config()) == advice(required, system=False) == []


@pytest.mark.parametrize(
    "flags", ["attach_disconnected,complain", "attach_disconnected, complain", "complain, attach_disconnected"]
)
def test_the_advice_takes_apparmor_out_of_complain_mode(tmp_path: Path, flags: str) -> None:
    """Only the file: the profiles in the kernel are tested in tests/vm."""
    profiles = Path(__file__).resolve().parents[2] / "apparmor" / "profiles" / "weave-compute"
    complaining = tmp_path / "weave-compute"
    complaining.write_text(profiles.read_text().replace("flags=(attach_disconnected)", f"flags=({flags})"))
    assert complaining.read_text() != profiles.read_text()
    edit = next(step for step in layers._ENFORCE_APPARMOR.split("; ") if step.startswith("sed"))
    subprocess.run(["sh", "-c", edit.replace("/etc/apparmor.d/weave-compute", str(complaining))], check=True)
    assert complaining.read_text() == profiles.read_text()


def test_user_mode_needs_no_profile() -> None:
    assert finding(None, "user").verdict == "ok"


def test_doctor_reports_a_gpu_that_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("_NVIDIA", "_NVIDIA_UVM", "_KFD"):
        monkeypatch.setattr(doctor, name, tmp_path / name)
    assert "no NVIDIA or ROCm device" in doctor._check_gpu(None, system=True).detail
    (tmp_path / "_NVIDIA").touch()
    assert "nvidia-modprobe" in doctor._check_gpu(None, system=True).advice
    (tmp_path / "_NVIDIA_UVM").touch()
    assert doctor._check_gpu("cuda:0", system=True) == Finding("gpu", "ok", str(tmp_path / "_NVIDIA"))
    unused = doctor._check_gpu("cpu", system=True)
    assert unused.verdict == "warn" and "the worker uses the CPU" in unused.detail
