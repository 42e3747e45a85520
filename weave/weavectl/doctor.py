"""doctor and check-config: what is wrong, and what to do about it."""

import argparse
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from weave import config as weave_config
from weave.client import Client, NotRunning, default_socket_path
from weave.config import Config, ConfigError
from weave.model_files import ModelFilesRefused, check_model_files
from weave.sandbox import landlock
from weave.weavectl.output import Output

EXIT_PROBLEM = 4


class Finding(NamedTuple):
    """`verdict` is ok, warn or fail; `advice` says what to do about the last two."""

    check: str
    verdict: str
    detail: str
    advice: str = ""


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
    try:
        config = weave_config.load(options.config)
        for model in config.models.values():
            check_model_files(Path(model.path))
    except (ConfigError, ModelFilesRefused) as error:
        output.line(str(error), good=False, detail=str(error))
        return EXIT_PROBLEM
    output.line(f"good: {', '.join(config.models)}", good=True, models=list(config.models))
    return 0


def _findings(options: argparse.Namespace) -> Iterator[Finding]:
    yield from _check_socket(options.socket or default_socket_path())
    yield from _check_daemon(options.socket)
    try:
        config = weave_config.load(options.config)
    except ConfigError as error:
        yield Finding("config", "fail", str(error), "see weave-compute(1) for an example")
    else:
        yield Finding("config", "ok", f"{options.config or weave_config.default_path()}, {len(config.models)} models")
        yield from _check_models(config)
    yield _check_gpu()
    version = landlock.abi()
    yield (
        Finding("landlock", "ok", f"ABI {version}")
        if version
        else Finding("landlock", "fail", "not in this kernel", "boot Linux 5.13 or later with lsm=landlock,...")
    )


def _check_socket(path: Path) -> Iterator[Finding]:
    try:
        folder, found = os.stat(path.parent), os.stat(path)
    except OSError as error:
        yield Finding("socket", "fail", f"{path}: {error.strerror}", "start weave-compute")
        return
    modes = stat.S_IMODE(folder.st_mode), stat.S_IMODE(found.st_mode)
    detail = f"{path}, mode {modes[1]:04o} in a folder of mode {modes[0]:04o}"
    if not stat.S_ISSOCK(found.st_mode):
        yield Finding("socket", "fail", f"{path} is not a socket", "remove it and start weave-compute")
    elif modes[1] & 0o007 or found.st_uid not in (0, os.getuid()):
        yield Finding("socket", "fail", detail, "restart weave-compute; it makes the socket anew with mode 0600")
    else:
        yield Finding("socket", "ok", detail)


def _check_daemon(path: Path | None) -> Iterator[Finding]:
    try:
        with Client(path, timeout=5) as client:
            report = client.status()
    except (NotRunning, TimeoutError) as error:
        yield Finding("daemon", "fail", str(error), "start weave-compute, or look into its log")
        return
    yield Finding("daemon", "ok", f"version {report.version}, worker {report.worker}")
    for process, layers in report.sandbox.items():
        if "seccomp-recording" in layers:
            advice = "it records instead of enforcing; for finding what a new driver needs only"
            yield Finding(f"sandbox of the {process}", "warn", ", ".join(layers), advice)
        elif layers:
            yield Finding(f"sandbox of the {process}", "ok", ", ".join(layers))
        else:
            yield Finding(f"sandbox of the {process}", "ok", "not running; it is attested whenever it starts")


def _check_models(config: Config) -> Iterator[Finding]:
    for name, model in config.models.items():
        try:
            check_model_files(Path(model.path))
        except ModelFilesRefused as error:
            yield Finding(f"model {name}", "fail", str(error), f"mend {model.path}, or take it out of the config")
        else:
            yield Finding(f"model {name}", "ok", model.path)


def _check_gpu() -> Finding:
    nodes = [path for path in (Path("/dev/nvidiactl"), Path("/dev/kfd")) if path.exists()]
    if not nodes:
        return Finding("gpu", "warn", "no NVIDIA or ROCm device", "models run on the CPU; install the GPU's driver")
    for node in nodes:
        if not os.access(node, os.R_OK | os.W_OK):
            group = node.stat().st_gid
            return Finding("gpu", "fail", f"{node} is not accessible", f"join the group {group} that owns it")
    return Finding("gpu", "ok", ", ".join(map(str, nodes)))
