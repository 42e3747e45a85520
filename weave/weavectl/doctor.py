"""doctor and check-config: what is wrong, and what to do about it."""

import argparse
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from weave import config as weave_config
from weave.client import Client, NotRunning, default_socket_path
from weave.config import Config, ConfigError
from weave.model_files import ModelFilesRefused, check_model_files
from weave.protocol import SYSTEM_SOCKET_PATH
from weave.weavectl.finding import Finding
from weave.weavectl.layers import check_landlock, check_layers, check_what_it_needs
from weave.weavectl.output import Output

EXIT_PROBLEM = 4
_NVIDIA, _NVIDIA_UVM, _KFD = (Path("/dev") / name for name in ("nvidiactl", "nvidia-uvm", "kfd"))


def doctor(options: argparse.Namespace, output: Output) -> int:
    """Check socket, config, models, GPU and sandbox, and say what to do."""
    worst = 0
    for finding in _findings(options):
        output.line(
            f"{finding.verdict:<5} {finding.check}: {finding.detail}"
            + (f"; {finding.advice}" if finding.advice else ""),
            **finding._asdict(),
        )
        worst = EXIT_PROBLEM if finding.verdict == "fail" else worst
    return worst


def check_config(options: argparse.Namespace, output: Output) -> int:
    """Check the config and its models' files."""
    system = _socket(options) == SYSTEM_SOCKET_PATH
    path = options.config or weave_config.default_path(system=system)
    try:
        config = weave_config.load(options.config, system=system)
        for model in config.models.values():
            check_model_files(Path(model.path))
    except (ConfigError, ModelFilesRefused, PermissionError) as error:
        output.line(str(error), good=False, detail=str(error))
        return EXIT_PROBLEM
    output.line(f"good: {path}: {', '.join(config.models)}", good=True, path=str(path), models=list(config.models))
    return 0


def _socket(options: argparse.Namespace) -> Path:
    """Whose daemon is meant: where none has a socket, the system's if that alone has a config."""
    found: Path = options.socket or default_socket_path()
    own, systems = (os.path.exists(weave_config.default_path(system=system)) for system in (False, True))
    if options.socket is None and not found.exists() and systems and not own:
        return SYSTEM_SOCKET_PATH
    return found


def _findings(options: argparse.Namespace) -> Iterator[Finding]:
    socket = _socket(options)
    system = socket == SYSTEM_SOCKET_PATH
    yield from _check_socket(socket, system=system)
    config: Config | None = None
    try:
        config = weave_config.load(options.config, system=system)
    except (ConfigError, PermissionError) as error:
        yield Finding("config", "fail", str(error), "see weave-compute(1) for an example")
    else:
        path = options.config or weave_config.default_path(system=system)
        yield Finding("config", "ok", f"{path}, {len(config.models)} models")
        yield from _check_models(config)
    try:
        with Client(socket, timeout=5) as client:
            report = client.status()
    except (NotRunning, PermissionError, TimeoutError) as error:
        yield Finding("daemon", "fail", str(error), "start weave-compute, or look into its log")
        yield from check_what_it_needs(config, system=system)
        yield _check_gpu(None, system=system)
    else:
        yield Finding("daemon", "ok", f"version {report.version}, worker {report.worker}")
        yield from check_layers(report, config)
        yield _check_gpu(report.device, system=system)
    yield check_landlock()


def _check_socket(path: Path, *, system: bool) -> Iterator[Finding]:
    try:
        folder, found = os.stat(path.parent), os.stat(path)
    except OSError as error:
        yield Finding("socket", "fail", f"{path}: {error.strerror}", "start weave-compute")
        return
    modes = stat.S_IMODE(folder.st_mode), stat.S_IMODE(found.st_mode)
    detail = f"{path}, mode {modes[1]:04o} in a folder of mode {modes[0]:04o}"
    # In system mode the socket may be everybody's: the config's socket_mode.
    if not stat.S_ISSOCK(found.st_mode):
        yield Finding("socket", "fail", f"{path} is not a socket", "remove it and start weave-compute")
    elif (modes[1] & 0o007 and not system) or found.st_uid not in (0, os.getuid()):
        yield Finding("socket", "fail", detail, "restart weave-compute; it makes the socket anew with mode 0600")
    else:
        yield Finding("socket", "ok", detail)


def _check_models(config: Config) -> Iterator[Finding]:
    for name, model in config.models.items():
        try:
            check_model_files(Path(model.path))
        except ModelFilesRefused as error:
            yield Finding(f"model {name}", "fail", str(error), f"mend {model.path}, or take it out of the config")
        else:
            yield Finding(f"model {name}", "ok", model.path)


def _check_gpu(used: str | None, *, system: bool) -> Finding:
    """`used` is the device of the worker, if there is one."""
    nodes = [path for path in (_NVIDIA, _KFD) if path.exists()]
    if not nodes:
        return Finding("gpu", "warn", "no NVIDIA or ROCm device", "models run on the CPU; install the GPU's driver")
    for node in nodes:
        # The system daemon puts its worker into the group that owns the device.
        if not system and not os.access(node, os.R_OK | os.W_OK):
            group = node.stat().st_gid
            return Finding("gpu", "fail", f"{node} is not accessible", f"join the group {group} that owns it")
    if _NVIDIA in nodes and not _NVIDIA_UVM.exists():
        advice = "nvidia-modprobe -u -c 0; then restart weave-compute"
        return Finding("gpu", "warn", f"there is no {_NVIDIA_UVM}, which CUDA needs", advice)
    if used == "cpu":
        return Finding("gpu", "warn", f"{nodes[0]} is there, but the worker uses the CPU", "the log says why")
    return Finding("gpu", "ok", ", ".join(map(str, nodes)))
