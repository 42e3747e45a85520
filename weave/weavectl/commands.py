"""The commands. Each returns the exit status."""

import argparse
import time

from weave.protocol.client_messages import DeviceStatus, StatusReport
from weave.weavectl.connect import connect, connect_for_long
from weave.weavectl.output import Output


def status(options: argparse.Namespace, output: Output) -> int:
    """Show the daemon's state: once, or until interrupted."""
    with connect(options) as client:
        report = client.status()
        if options.watch is None:
            _show_status(report, output)
            return 0
        while True:
            output.clear()
            _show_status(report, output)
            time.sleep(options.watch)
            report = client.status()


def _show_status(report: StatusReport, output: Output) -> None:
    output.event(report)
    if not output.json:
        for name, value in _describe(report):
            output.line(f"{name:<11} {value}")


def models(options: argparse.Namespace, output: Output) -> int:
    """List the models on offer, and the LoRAs, embeddings and ControlNets for them."""
    with connect(options) as client:
        answer = client.list_models()
    output.event(answer)
    for model in answer.models if not output.json else ():
        marks = [word for word, who in (("default", answer.default), ("loaded", answer.loaded)) if who == model.id]
        suffix = f" ({', '.join(marks)})" if marks else ""
        output.line(f"{model.id:<23} {model.family:<11} {model.title}{suffix}")
    for lora in answer.loras if not output.json else ():
        output.line(f"  {lora.id:<21} {lora.family:<11} {lora.title} (LoRA, weight up to {lora.max_weight:g})")
    for embedding in answer.embeddings if not output.json else ():
        output.line(f"  {embedding.id:<21} {embedding.family:<11} {embedding.title} (embedding)")
    for control in answer.controls if not output.json else ():
        output.line(f"  {control.id:<21} {control.family:<11} {control.title} (ControlNet)")
    return 0


def load(options: argparse.Namespace, output: Output) -> int:
    """Load a model."""
    with connect_for_long(options) as client:
        output.line(f"{options.model} is loaded", event="done", model=client.load_model(options.model).model)
    return 0


def unload(options: argparse.Namespace, output: Output) -> int:
    """End the worker, which frees all of its memory."""
    with connect_for_long(options) as client:
        client.unload()
    output.line("unloaded", event="done")
    return 0


def cancel(options: argparse.Namespace, output: Output) -> int:
    """Cancel jobs by number, or all jobs of this user."""
    with connect(options) as client:
        jobs = [job.job for job in client.status().jobs] if options.all else options.job
        if not jobs:
            output.line("no job to cancel; name one that status lists, or --all", event="done", jobs=[])
        for job in jobs:
            client.cancel(job=job)
            output.line(f"job {job} is cancelled", event="done", job=job)
    return 0


def _memory(used: StatusReport | DeviceStatus) -> str | None:
    if used.memory_used is None or used.memory_total is None:
        return None
    return f"{used.memory_used / 2**20:.0f} of {used.memory_total / 2**20:.0f} MiB"


def _describe_device(device: DeviceStatus) -> str:
    retry = None if device.retry_seconds is None else f"tried again in {device.retry_seconds:.0f} s"
    parts = (device.state, device.problem, retry, device.model, device.dtype, _memory(device))
    return ", ".join(part for part in parts if part)


def _describe(report: StatusReport) -> list[tuple[str, str]]:
    # In system mode only root gets the totals of all users. Where there are totals, this request is counted in them.
    has_totals = report.metrics.requests > 0
    lines = [
        ("version", f"{report.version}, {report.mode} mode, up {report.uptime:.0f} s"),
        ("worker", report.worker + (f", restarted {report.worker_restarts} times" if has_totals else "")),
    ]
    if len(report.devices) > 1:
        lines += [(device.device, _describe_device(device)) for device in report.devices]
    else:
        lines.append(("model", report.model or "none loaded"))
        lines.append(("device", f"{report.device or '-'} {report.dtype or ''}"))
        lines.append(("memory", _memory(report) or "-"))
        lines += [("problem", device.problem) for device in report.devices if device.problem]
    lines.append(("queue", f"{report.queue_length} of {report.queue_limit}"))
    if has_totals:
        lines.append(("totals", f"{report.images_made} images; {sum(report.metrics.errors.values())} errors returned"))
    lines += [(f"{process}", ", ".join(layers) or "not running") for process, layers in report.sandbox.items()]
    lines += [(f"job {job.job}", f"{job.state}, {job.model}, {job.position} before it") for job in report.jobs]
    return lines
