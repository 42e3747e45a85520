"""doctor and check-config: they report problems and how to fix them."""

import argparse
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from weave.client import NotRunning, ProtocolError, WeaveError
from weave.config import load as config_file
from weave.config.schema import Config, ConfigError, ModelConfig
from weave.models import control_files, embedding_keys, lora_keys
from weave.models.assets import all_checks, source_of
from weave.models.families import FAMILIES
from weave.models.faults import collect, fault_of
from weave.models.layouts import unread_files
from weave.models.schedulers import misfit
from weave.protocol.client_messages import StatusReport
from weave.weavectl.connect import connect, describe_listener
from weave.weavectl.doctor_sandbox import check_landlock, check_layers, check_what_it_needs
from weave.weavectl.finding import Finding
from weave.weavectl.locate import is_systems, socket_to_check
from weave.weavectl.output import Output

EXIT_PROBLEM = 4
_NVIDIA, _NVIDIA_UVM, _KFD = (Path("/dev") / name for name in ("nvidiactl", "nvidia-uvm", "kfd"))
_SHOWN_FILES = 5
_KINDS = {"lora": "LoRA", "embedding": "embedding", "control": "ControlNet"}


def doctor(options: argparse.Namespace, output: Output) -> int:
    """Check the socket, config, models, LoRAs, embeddings, ControlNets, GPU and sandbox, and suggest fixes."""
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
    """Check the config and the files of its models, LoRAs, embeddings and ControlNets."""
    system = is_systems(socket_to_check(options))
    try:
        path = options.config or config_file.default_path(system=system)
        config = config_file.load(options.config, system=system)
    except (ConfigError, OSError, RuntimeError) as error:  # RuntimeError: ~ of an unknown user
        output.line(str(error), good=False, detail=str(error))
        return EXIT_PROBLEM
    found = [("model", name, fault) for name, model in config.models.items() for fault in _faults(config, model)[0]]
    found += [(kind, name, fault) for kind, name, _, faults in _faults_of_added(config) for fault in faults]
    for kind, name, fault in found:
        output.line(f"{kind} {name}: {fault}", good=False, detail=fault, **{kind: name})
    if found:
        return EXIT_PROBLEM
    output.line(f"good: {path}: {', '.join(config.models)}", good=True, path=str(path), models=list(config.models))
    return 0


def _findings(options: argparse.Namespace) -> Iterator[Finding]:
    socket = socket_to_check(options)
    system = is_systems(socket)
    report, daemon = _ask(argparse.Namespace(socket=socket, timeout=options.timeout))
    yield _check_socket(socket, system=system, answers=report is not None)
    config: Config | None = None
    try:
        config = config_file.load(options.config, system=system)
    except (ConfigError, OSError, RuntimeError) as error:
        yield Finding("config", "fail", str(error), "see weave-compute(1) for an example")
    else:
        path = options.config or config_file.default_path(system=system)
        yield Finding("config", "ok", f"{path}, {len(config.models)} models")
        yield from _check_models(config)
        yield from _check_added(config)
    yield daemon
    if report is None:
        yield from check_what_it_needs(config, system=system)
    else:
        yield from _check_libraries(report)
        yield from check_layers(report, config)
    yield _check_gpu(report.device if report else None, system=system)
    yield check_landlock()


def _check_libraries(report: StatusReport) -> Iterator[Finding]:
    """Relies on the daemon's report: torch is not imported here."""
    if report.libraries_lack is True:
        detail = "torch, diffusers or another library lacks something that the daemon needs: no model can run"
        advice = "its log names it under libraries_lack; install another version, then reload or restart weave-compute"
        yield Finding("libraries", "fail", detail, advice)


def _ask(options: argparse.Namespace) -> tuple[StatusReport | None, Finding]:
    try:
        with connect(options) as client:
            report = client.status()
    except (NotRunning, ProtocolError, WeaveError, OSError) as error:
        return None, Finding("daemon", "fail", str(error), "start weave-compute, or read its log")
    return report, Finding("daemon", "ok", f"version {report.version}, worker {report.worker}")


def _check_socket(path: Path, *, system: bool, answers: bool) -> Finding:
    """The modes say something about weave-compute only if that is what listens."""
    try:
        folder, found = os.stat(path.parent), os.stat(path)
    except OSError as error:
        return Finding("socket", "fail", f"{path}: {error.strerror}", "start weave-compute")
    if not answers and stat.S_ISSOCK(found.st_mode):
        return _check_listener(path)
    modes = stat.S_IMODE(folder.st_mode), stat.S_IMODE(found.st_mode)
    detail = f"{path}, mode {modes[1]:04o} in a folder of mode {modes[0]:04o}"
    # In system mode socket_mode may open the socket to everyone.
    if not stat.S_ISSOCK(found.st_mode):
        return Finding("socket", "fail", f"{path} is not a socket", "remove it and start weave-compute")
    if (modes[1] & 0o007 and not system) or found.st_uid not in (0, os.getuid()):
        return Finding("socket", "fail", detail, "restart weave-compute; it makes a new socket with mode 0600")
    return Finding("socket", "ok", detail)


def _check_listener(path: Path) -> Finding:
    """For a socket on which no weave-compute has answered."""
    try:
        listener = describe_listener(path)
    except ConnectionRefusedError:
        return Finding("socket", "fail", f"{path}: no process listens on it", "start weave-compute")
    except BlockingIOError:
        detail = f"{path}: a program listens, but accepts no connection, and its backlog is full"
        return Finding("socket", "fail", detail, f"ss -xlp src {path} names it")
    except PermissionError as error:
        return Finding("socket", "fail", f"{path}: {error.strerror}", "join the group that owns it")
    except OSError as error:  # not a stream socket, or a path too long
        detail = f"{path}: {error.strerror or error}; weave-compute does not listen there"
        return Finding("socket", "fail", detail, "give it or weave-compute another socket")
    if listener.startswith("weave-compute "):
        return Finding("socket", "fail", f"{path}: {listener} listens, but does not answer", "restart weave-compute")
    advice = f"stop it, give it or weave-compute another socket, or serve it with weave-compute --socket-path {path}"
    return Finding("socket", "fail", f"{path}: another program listens, {listener}", advice)


def _check_models(config: Config) -> Iterator[Finding]:
    for name, model in config.models.items():
        faults, weights = _faults(config, model)
        for fault in faults:
            yield Finding(
                f"model {name}",
                "fail",
                fault,
                f"fix {model.path} or its table in the config, or remove the model from the config",
            )
        if not faults:
            unread = unread_files(model.family, Path(model.path), weights)
            more = ", ..." * (len(unread) > _SHOWN_FILES)
            note = f" (never read: {', '.join(unread[:_SHOWN_FILES])}{more})" if unread else ""
            yield Finding(f"model {name}", "ok", f"{model.path}{note}")


def _faults(config: Config, model: ModelConfig) -> tuple[list[str], list[Path]]:
    """Everything that is wrong with a model's files, and the files with its weights."""
    source = source_of(model.path, model.layout, model.parts)
    faults, assets = collect(all_checks(model.family, source, config.device.dtype, model.sha256))
    if assets and not faults:
        faults = list(_default_faults(model, assets.checked.configs["scheduler"]))
    return faults, assets.files() if assets else []


def _default_faults(model: ModelConfig, scheduler: dict[str, Any]) -> Iterator[str]:
    """That a request without a scheduler would fail."""
    default = model.defaults.scheduler or FAMILIES[model.family].defaults.scheduler
    if reason := misfit(default, scheduler["_class_name"], scheduler):
        yield f"the default scheduler is {default}: {reason}; set the model's defaults.scheduler in the config"


def _check_added(config: Config) -> Iterator[Finding]:
    for kind, name, path, faults in _faults_of_added(config):
        for fault in faults:
            yield Finding(f"{kind} {name}", "fail", fault, f"fix {path}, or remove the {_KINDS[kind]} from the config")
        if not faults:
            yield Finding(f"{kind} {name}", "ok", path)


def _faults_of_added(config: Config) -> Iterator[tuple[str, str, str, list[str]]]:
    """Kind, ID, path and faults of each LoRA, embedding and ControlNet, as far as they show without a model."""
    for name, lora in config.loras.items():
        yield "lora", name, lora.path, list(fault_of(lora_keys.check_file, Path(lora.path), lora.sha256))
    for name, embedding in config.embeddings.items():
        check = embedding_keys.check_file
        faults = fault_of(check, Path(embedding.path), embedding.family, embedding.sha256)
        yield "embedding", name, embedding.path, list(faults)
    for name, control in config.controls.items():
        found, _ = collect(control_files.check_files(Path(control.path), control.family, control.sha256))
        yield "control", name, control.path, found


def _check_gpu(used: str | None, *, system: bool) -> Finding:
    """`used` is the worker's device, if there is a worker."""
    nodes = [path for path in (_NVIDIA, _KFD) if path.exists()]
    if not nodes:
        return Finding("gpu", "warn", "no NVIDIA or ROCm device", "models run on the CPU; install the GPU's driver")
    for node in nodes:
        # The system daemon gives its worker the group that owns the device.
        if not system and not os.access(node, os.R_OK | os.W_OK):
            group = node.stat().st_gid
            return Finding("gpu", "fail", f"{node} is not accessible", f"join the group {group} that owns it")
    if _NVIDIA in nodes and not _NVIDIA_UVM.exists():
        advice = "nvidia-modprobe -u -c 0; then restart weave-compute"
        return Finding("gpu", "warn", f"{_NVIDIA_UVM}, which CUDA needs, does not exist", advice)
    if used == "cpu":
        return Finding("gpu", "warn", f"{nodes[0]} exists, but the worker uses the CPU", "the log says why")
    return Finding("gpu", "ok", ", ".join(map(str, nodes)))
