"""doctor's checks of the sandbox: which layers are in force, and how to turn on the others."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

from weave.config.schema import Config
from weave.protocol.client_messages import StatusReport
from weave.sandbox import landlock
from weave.weavectl.finding import Finding

_SERVICE = "weave-compute.service"
_MAC = "mandatory access control"
# The rights that we use, by the Landlock ABI that added them: weave/sandbox/landlock.py, landlock(7).
_LANDLOCK_ADDED = {3: "truncating files", 4: "TCP", 5: "ioctl on devices", 6: "abstract sockets and signals"}
# Undoes aa-disable(8) and aa-complain(8), which edits the profiles.
_ENFORCE_APPARMOR = (
    "rm -f /etc/apparmor.d/disable/weave-compute /etc/apparmor.d/force-complain/weave-compute; "
    "sed -i -E '/^profile /s/complain, *|, *complain//' /etc/apparmor.d/weave-compute; "
    "apparmor_parser --replace /etc/apparmor.d/weave-compute"
)
_RESTART = "systemctl reset-failed weave-compute.socket weave-compute.service; systemctl restart weave-compute.socket"
_APPARMOR_ON = Path("/sys/module/apparmor/parameters/enabled")
_SELINUX_ON = Path("/sys/fs/selinux/enforce")


def check_layers(report: StatusReport, config: Config | None) -> Iterator[Finding]:
    """What a running daemon reports, and what systemd reports about it."""
    for process, layers in report.sandbox.items():
        if "seccomp-recording" in layers:
            advice = "it records instead of enforcing; use this only to find out what a new driver needs"
            yield Finding(f"sandbox of the {process}", "warn", ", ".join(layers), advice)
        else:
            detail = ", ".join(layers) or "not running; it is attested each time it starts"
            yield Finding(f"sandbox of the {process}", "ok", detail)
    yield _check_mac(report, config)
    yield _check_service(user=report.mode != "system")


def check_what_it_needs(config: Config | None, *, system: bool) -> Iterator[Finding]:
    """For a daemon that does not answer: require_mac may be the reason."""
    if system and (config is None or config.system.require_mac):
        detail = "with require_mac the daemon exits unless AppArmor or SELinux confines it"
        yield Finding(_MAC, "warn", detail, f"{_how_to_turn_mac_on()}; then {_RESTART}")
    yield _check_service(user=not system)


def check_landlock() -> Finding:
    """Check the kernel's Landlock."""
    version = landlock.abi()
    if not version:
        return Finding(
            "landlock", "fail", "this kernel does not have it", "boot Linux 5.13 or later with lsm=landlock,..."
        )
    lacking = [what for added, what in _LANDLOCK_ADDED.items() if added > version]
    if not lacking:
        return Finding("landlock", "ok", f"ABI {version}")
    return Finding("landlock", "ok", f"ABI {version}; {', '.join(lacking)}: restricted by seccomp alone on this kernel")


def _check_mac(report: StatusReport, config: Config | None) -> Finding:
    layers = {layer for held_by in report.sandbox.values() for layer in held_by}
    required = config is not None and config.system.require_mac
    if enforced := layers & {"apparmor", "selinux"}:
        detail = f"{enforced.pop()} confines each process"
        if required:
            return Finding(_MAC, "ok", f"{detail}, and the daemon serves only if it does")
        return Finding(_MAC, "ok", detail, "require_mac = true in [system] makes the daemon insist on it")
    if report.mode != "system":
        return Finding(_MAC, "ok", f"none in {report.mode} mode; the system service has profiles")
    if "apparmor-complaining" in layers:
        return Finding(
            _MAC, "warn", "AppArmor is in complain mode", f"{_ENFORCE_APPARMOR}; systemctl restart {_SERVICE}"
        )
    if "selinux-permissive" in layers:
        return Finding(_MAC, "warn", "SELinux is permissive", f"setenforce 1; then systemctl restart {_SERVICE}")
    return Finding(_MAC, "warn", "none", f"{_how_to_turn_mac_on()}; then systemctl restart {_SERVICE}")


def _how_to_turn_mac_on() -> str:
    try:
        if _APPARMOR_ON.read_text().startswith("Y"):
            return _ENFORCE_APPARMOR
    except OSError:  # not in this kernel
        pass
    if _SELINUX_ON.exists():
        if _SELINUX_ON.read_text() == "0":
            return "setenforce 1"
        return "load the module and label its files as in selinux/README.md"
    return "boot with apparmor=1 security=apparmor, or with selinux=1 security=selinux"


def _check_service(*, user: bool) -> Finding:
    """Whether the daemon runs as a systemd service, with that service's sandbox."""
    systemctl = ["systemctl", *(["--user"] if user else [])]
    command = [*systemctl, "is-active", "--quiet", _SERVICE]
    try:
        active = subprocess.run(command, check=False, stderr=subprocess.DEVNULL, timeout=10).returncode == 0
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return Finding("service", "warn", "there is no systemd to sandbox the daemon from outside")
    if active:
        return Finding("service", "ok", f"{_SERVICE} is active; systemd-analyze security {_SERVICE} rates its sandbox")
    enable = " ".join([*systemctl, "enable --now weave-compute.socket"])
    return Finding("service", "warn", f"{_SERVICE} is not active: systemd does not sandbox the daemon", enable)
