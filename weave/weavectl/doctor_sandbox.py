"""doctor on what holds the daemon's processes: which layers are in force, and how to turn on those that are not."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

from weave.config.schema import Config
from weave.protocol.client_messages import StatusReport
from weave.sandbox import landlock
from weave.weavectl.finding import Finding

_SERVICE = "weave-compute.service"
_MAC = "mandatory access control"
# What each Landlock ABI added of what we use: weave/sandbox/landlock.py, landlock(7).
_LANDLOCK_ADDED = {3: "truncating files", 4: "TCP", 5: "ioctl on devices", 6: "abstract sockets and signals"}
# Undoes aa-disable(8) and aa-complain(8), of which the latter writes into the profiles.
_ENFORCE_APPARMOR = (
    "rm -f /etc/apparmor.d/disable/weave-compute /etc/apparmor.d/force-complain/weave-compute; "
    "sed -i -E '/^profile /s/complain, *|, *complain//' /etc/apparmor.d/weave-compute; "
    "apparmor_parser --replace /etc/apparmor.d/weave-compute"
)
_RESTART = "systemctl reset-failed weave-compute.socket weave-compute.service; systemctl restart weave-compute.socket"
_APPARMOR_ON = Path("/sys/module/apparmor/parameters/enabled")
_SELINUX_ON = Path("/sys/fs/selinux/enforce")


def check_layers(report: StatusReport, config: Config | None) -> Iterator[Finding]:
    """What a running daemon says of itself and its service manager of it."""
    for process, layers in report.sandbox.items():
        if "seccomp-recording" in layers:
            advice = "it records instead of enforcing; for finding what a new driver needs only"
            yield Finding(f"sandbox of the {process}", "warn", ", ".join(layers), advice)
        else:
            detail = ", ".join(layers) or "not running; it is attested whenever it starts"
            yield Finding(f"sandbox of the {process}", "ok", detail)
    yield _check_mac(report, config)
    yield _check_service(user=report.mode != "system")


def check_what_it_needs(config: Config | None, *, system: bool) -> Iterator[Finding]:
    """Of a daemon that does not answer: whether it is because require_mac finds nothing that holds it."""
    if system and (config is None or config.system.require_mac):
        detail = "with require_mac it ends where neither AppArmor nor SELinux holds it"
        yield Finding(_MAC, "warn", detail, f"{_how_to_turn_mac_on()}; then {_RESTART}")
    yield _check_service(user=not system)


def check_landlock() -> Finding:
    """What this kernel has."""
    version = landlock.abi()
    if not version:
        return Finding("landlock", "fail", "not in this kernel", "boot Linux 5.13 or later with lsm=landlock,...")
    lacking = [what for added, what in _LANDLOCK_ADDED.items() if added > version]
    if not lacking:
        return Finding("landlock", "ok", f"ABI {version}")
    return Finding("landlock", "ok", f"ABI {version}; {', '.join(lacking)}: held by seccomp alone on this kernel")


def _check_mac(report: StatusReport, config: Config | None) -> Finding:
    layers = {layer for held_by in report.sandbox.values() for layer in held_by}
    required = config is not None and config.system.require_mac
    if enforced := layers & {"apparmor", "selinux"}:
        detail = f"{enforced.pop()} holds each process"
        if required:
            return Finding(_MAC, "ok", f"{detail}, and it would not serve otherwise")
        return Finding(_MAC, "ok", detail, "require_mac = true in [system] makes sure that it stays so")
    if report.mode != "system":
        return Finding(_MAC, "ok", f"none in {report.mode} mode; the system service has profiles")
    if "apparmor-complaining" in layers:
        return Finding(_MAC, "warn", "AppArmor only complains", f"{_ENFORCE_APPARMOR}; systemctl restart {_SERVICE}")
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
        return "load the module and label its files as selinux/README.md says"
    return "boot with apparmor=1 security=apparmor, or with selinux=1 security=selinux"


def _check_service(*, user: bool) -> Finding:
    """Whether the daemon has systemd's walls around it."""
    systemctl = ["systemctl", *(["--user"] if user else [])]
    command = [*systemctl, "is-active", "--quiet", _SERVICE]
    try:
        active = subprocess.run(command, check=False, stderr=subprocess.DEVNULL, timeout=10).returncode == 0
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return Finding("service", "warn", "there is no systemd to hold the daemon from outside")
    if active:
        return Finding("service", "ok", f"{_SERVICE} is active; systemd-analyze security {_SERVICE} lists its walls")
    enable = " ".join([*systemctl, "enable --now weave-compute.socket"])
    return Finding("service", "warn", f"{_SERVICE} is not active: nothing of systemd's is around the daemon", enable)
