"""Runs inside the virtual machine, as a unit after boot. Each step writes one JSON line with its result to the second
serial port; the tests outside check it. The argument is the system of mandatory access control."""

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HOME = Path("/opt/weave-vm")
PACKAGE = Path("/usr/lib/weave-compute/lib/python3.11/site-packages/weave")
IMAGE = Path("/home/alice/image.png")
# An emulated processor is slow, most of all at multiplying: one step, without guidance.
PROMPT = "a red circle on a blue background"
PARAMETERS = {"seed": 1, "steps": 1, "cfg_scale": 1.0, "model": "shapes"}
CONFIG = """
[limits]
start_seconds = 900
load_seconds = 900
job_seconds = 900
queued_seconds = 900
[audit]
file = "/var/log/weave/audit.log"
[metrics]
file = "/var/lib/weave/metrics/weave.prom"
"""


def sh(command: str, seconds: float = 1200) -> dict[str, Any]:
    command_line = ["/bin/sh", "-c", command]
    done = subprocess.run(command_line, check=False, text=True, capture_output=True, timeout=seconds)
    return {"status": done.returncode, "output": done.stdout[-20_000:], "errors": done.stderr[-4000:]}


def as_user(name: str, command: str) -> dict[str, Any]:
    return sh(f"setpriv --reuid={name} --regid={name} --init-groups env HOME=/home/{name} {command}")


def generate() -> dict[str, Any]:
    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in PARAMETERS.items())
    done = as_user("alice", f"weavectl --timeout 600 --json generate '{PROMPT}' {options} --output {IMAGE}")
    image = base64.b64encode(IMAGE.read_bytes()).decode() if IMAGE.exists() else None
    return done | {"image": image}


def labels() -> dict[str, list[str]]:
    """Of each of the daemon's processes, by what it runs as."""
    found: dict[str, list[str]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_text()
            label = (process / "attr/current").read_text().strip("\0\n")
        except OSError:
            continue
        for name in ("weave.gpu_worker", "weave.broker", "/usr/bin/weave-compute"):
            if name in command.split("\0"):
                found.setdefault(name, []).append(label)
    return found


def install() -> dict[str, Any]:
    Path("/etc/weave/conf.d").mkdir(parents=True, exist_ok=True)
    Path("/etc/weave/conf.d/vm.toml").write_text(CONFIG)
    return sh(f"dpkg --install {HOME}/packages/*.deb")


def service() -> dict[str, Any]:
    return sh("systemctl start weave-compute.service; systemctl show weave-compute --property=ActiveState,StatusText")


def status() -> dict[str, Any]:
    return as_user("alice", "weavectl --timeout 600 --json status")


def doctor() -> dict[str, Any]:
    return sh("weavectl --timeout 600 doctor")


def reload() -> dict[str, Any]:
    """After logrotate: the audit is another file."""
    audit = Path("/var/log/weave/audit.log")
    audit.rename(audit.with_suffix(".1"))
    wait = f"until grep --no-messages '\"reloaded\"' {audit}; do sleep 1; done"
    return sh(f"systemctl reload weave-compute.service && {wait}", 120) | {"serves": status()}


def after(command: str) -> dict[str, Any]:
    """The service after that command: how often it was restarted, and its state."""
    count = "journalctl --unit=weave-compute --output=cat --grep=^Started | wc --lines"
    before = int(sh(count)["output"])
    done = sh(command)
    state = sh("systemctl show weave-compute --property=ActiveState")["output"]
    starts = int(sh(count)["output"]) - before
    return done | {"starts": starts, "state": state, "serves": status(), "labels": labels()}


def upgrade() -> dict[str, Any]:
    """To the next release, while the service runs; the config is as the administrator has changed it."""
    config = Path("/etc/weave/weave-compute.toml")
    mine = config.read_text() + "# The administrator's own.\n"
    config.write_text(mine)
    upgraded = after(f"dpkg --force-confold --install {HOME}/packages/later/*.deb {HOME}/packages/*-model-*.deb")
    version = sh("dpkg-query --show --showformat='${Version}' weave-compute")["output"]
    profiles = Path("/sys/kernel/security/apparmor/profiles").read_text()
    return upgraded | {"version": version, "kept": config.read_text() == mine, "profiles": profiles}


def refused_by_policy() -> dict[str, Any]:
    """What policy-rc.d refuses is left as it runs."""
    policy = Path("/usr/sbin/policy-rc.d")
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        return after(f"dpkg --install {HOME}/packages/*-model-*.deb")
    finally:
        policy.unlink()


def users_own() -> dict[str, Any]:
    """A daemon of alice's own, by the units for one user."""
    sh("loginctl enable-linger alice; until systemctl is-active user@$(id -u alice); do sleep 1; done", 120)
    units = "systemctl --user start weave-compute.socket"
    status = "weavectl --timeout 600 --json status"
    stop = "systemctl --user stop weave-compute.socket weave-compute.service"
    return as_user("alice", f"XDG_RUNTIME_DIR=/run/user/$(id -u alice) sh -c '{units} && {status}; {stop}'")


def purge() -> dict[str, Any]:
    """What is left: profiles in the kernel, running units, and files by name."""
    (PACKAGE / "attack.py").unlink()
    purged = sh("dpkg --purge weave-compute weave-compute-model-shapes")
    profiles = sh("grep --count weave-compute /sys/kernel/security/apparmor/profiles")
    units = sh("systemctl list-units --plain --no-legend 'weave-compute*'")
    files = sh(f"find / -xdev -path {HOME} -prune -o -path '*/torch' -prune -o -name '*weave*' -print")
    return purged | {"profiles": profiles["output"], "units": units["output"], "files": files["output"].split()}


def erase() -> dict[str, Any]:
    """What is left: SELinux's modules, running units, and labels of the administrator's files."""
    (PACKAGE / "attack.py").unlink()
    erased = sh("HOME=/root rpm --erase weave-compute weave-compute-model-shapes")
    modules = sh("semodule --list-modules | grep weave")["output"]
    units = sh("systemctl list-units --plain --no-legend 'weave-compute*'")["output"]
    left = sh("find /etc/weave /var/log/weave /var/lib/weave -printf '%p %Z\\n'")["output"]
    return erased | {"modules": modules, "units": units, "left": left.splitlines()}


def a_stranger() -> dict[str, Any]:
    return as_user("eve", "weavectl --timeout 600 status")


def denied() -> list[str]:
    """The denials in the audit log since boot."""
    text = Path("/var/log/audit/audit.log").read_text(errors="replace")
    return [line for line in text.splitlines() if 'apparmor="DENIED"' in line or "avc:  denied" in line]


def attacks(properties: str) -> dict[str, Any]:
    """The attacks in a daemon that systemd holds by nothing else, and what the audit log says of it."""
    before = len(denied())
    sh("systemctl stop weave-compute.socket weave-compute.service")
    sh(f"systemd-run --unit=weave-attacked --property=Type=notify --property=TimeoutStartSec=600 {properties} "
       "/usr/bin/weave-compute --system")  # fmt: skip
    load = as_user("alice", "weavectl --timeout 600 --json load shapes")
    log = sh("journalctl --unit=weave-attacked --output=cat")["output"]
    ended = sh("systemctl stop weave-attacked; systemctl reset-failed weave-attacked")
    lines = [json.loads(line) for line in log.splitlines() if '"event":"attack"' in line]
    sh("journalctl --rotate; journalctl --vacuum-time=1s")
    return {"attacks": lines, "denied": denied()[before:], "load": load, "stopped": ended, "log": log[-4000:]}


def arm() -> dict[str, Any]:
    (PACKAGE / "attack.py").write_text((HOME / "attack.py").read_text())
    shutil.copytree(HOME / "armed", PACKAGE, dirs_exist_ok=True)
    for compiled in PACKAGE.glob("**/__pycache__"):
        shutil.rmtree(compiled)
    # One device that is not a GPU, and one that is by its name. Their modes let every user open both.
    return sh("mknod --mode=666 /dev/nvidia0 c 1 3; mknod --mode=666 /dev/weave-test c 1 3; restorecon /dev/nvidia0")


def refusals(units: dict[str, str]) -> dict[str, Any]:
    """How the daemon exits where mandatory access control would not confine it, by the way it is started."""
    found = {}
    for name, start in units.items():
        sh(start)
        found[name] = sh("journalctl --unit=weave-refused --output=cat")["output"]
        found[name] += sh("systemctl show weave-refused --property=ExecMainStatus")["output"]
        sh("systemctl stop weave-refused; systemctl reset-failed weave-refused; journalctl --rotate; "
           "journalctl --vacuum-time=1s")  # fmt: skip
    return found


def inside(role: str, options: str) -> dict[str, Any]:
    """The attacks from inside a process that is locked in, on this kernel (tests/security/attacker.py)."""
    return sh(f"cd {HOME}/source && /usr/lib/weave-compute/bin/python -B -m tests.security.attacker {role} {options}")


REFUSED = "systemd-run --wait --unit=weave-refused --property=NoNewPrivileges=yes --remain-after-exit"
UNCONFINED = "sed -i s/require_mac.*/require_mac=false/ /etc/weave/weave-compute.toml"

# A metrics file is written every five seconds by then, the audit's first line is the model's.
FILES = "cat /var/log/weave/audit.log /var/lib/weave/metrics/weave.prom"

SERVING: dict[str, Callable[[], Any]] = {
    "service": service,
    "image": generate,
    "files": lambda: sh(FILES),
    "labels": labels,
    "status": status,
    "doctor": doctor,
    "a stranger": a_stranger,
    "reload": reload,
}
STEPS: dict[str, dict[str, Callable[[], Any]]] = {
    "apparmor": {
        "install": install,
        **SERVING,
        "upgrade": upgrade,
        "another model": lambda: after(f"dpkg --install {HOME}/packages/*-model-*.deb"),
        "another model, refused": refused_by_policy,
        "a user's own": users_own,
        "landlock of this kernel, broker": lambda: inside("broker", ""),
        "landlock of this kernel, worker": lambda: inside(
            "worker", "--only 'read /etc/passwd' 'write a file' 'list /proc' 'socket AF_INET' execve truncate"
        ),
        "denied": denied,
        "arm": arm,
        "attacks": lambda: attacks("--property=NoNewPrivileges=yes --property=AppArmorProfile=weave-compute"),
        "refusals": lambda: refusals(
            {
                "unconfined": f"{REFUSED} /usr/bin/weave-compute --system",
                "one complaining": "sed -i '/^profile weave-compute-supervisor/s/attach/complain,attach/' "
                "/etc/apparmor.d/weave-compute; apparmor_parser --replace /etc/apparmor.d/weave-compute; "
                f"{REFUSED} --property=AppArmorProfile=weave-compute /usr/bin/weave-compute --system",
                "complaining": "apparmor_parser --replace --Complain /etc/apparmor.d/weave-compute; "
                f"{REFUSED} --property=AppArmorProfile=weave-compute /usr/bin/weave-compute --system",
            }
        ),
        "not required": lambda: sh(UNCONFINED),
        "attacks, unconfined": lambda: attacks("--property=NoNewPrivileges=yes"),
        "purge": purge,
    },
    "selinux": {
        **SERVING,
        "another model": lambda: after(f"HOME=/root rpm --upgrade --replacepkgs {HOME}/packages/*.rpm"),
        "denied": denied,
        "arm": arm,
        "attacks": lambda: attacks("--property=NoNewPrivileges=yes"),
        "permissive": lambda: sh("setenforce 0"),
        "refusals": lambda: refusals({"permissive": f"{REFUSED} /usr/bin/weave-compute --system"}),
        "not required": lambda: sh(UNCONFINED),
        "attacks, permissive": lambda: attacks("--property=NoNewPrivileges=yes"),
        "erase": erase,
    },
}


def main() -> None:
    with open("/dev/ttyS1", "w") as answers:
        for name, step in STEPS[sys.argv[1]].items():
            started = time.monotonic()
            try:
                found = step()
            except Exception as error:
                found = {"error": repr(error)}
            line = {"step": name, "seconds": round(time.monotonic() - started, 1), "found": found}
            print(json.dumps(line), file=answers, flush=True)
        print(json.dumps({"step": "end"}), file=answers, flush=True)
    os.sync()


if __name__ == "__main__":
    main()
