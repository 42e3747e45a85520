"""What each command does. Each returns the exit status."""

import argparse
import os
from pathlib import Path

from weave.client import Answer, Client, WeaveError
from weave.protocol.client_messages import Done, Image, Loading, Preview, Progress, Queued, StatusReport
from weave.protocol.errors import ErrorCode
from weave.weavectl.output import Output


def status(options: argparse.Namespace, output: Output) -> int:
    """What the daemon is doing."""
    with Client(options.socket) as client:
        report = client.status()
    output.event(report)
    if not output.json:
        for name, value in _describe(report):
            output.line(f"{name:<12}{value}")
    return 0


def models(options: argparse.Namespace, output: Output) -> int:
    """The models that can be asked for."""
    with Client(options.socket) as client:
        answer = client.list_models()
    output.event(answer)
    for model in answer.models if not output.json else ():
        marks = [word for word, who in (("default", answer.default), ("loaded", answer.loaded)) if who == model.id]
        suffix = f" ({', '.join(marks)})" if marks else ""
        output.line(f"{model.id:<24}{model.family:<8}{model.title}{suffix}")
    return 0


def load(options: argparse.Namespace, output: Output) -> int:
    """Load a model."""
    with Client(options.socket) as client:
        output.line(f"{options.model} is loaded", event="done", model=client.load_model(options.model).model)
    return 0


def unload(options: argparse.Namespace, output: Output) -> int:
    """Give all of the worker's memory back."""
    with Client(options.socket) as client:
        client.unload()
    output.line("unloaded", event="done")
    return 0


def cancel(options: argparse.Namespace, output: Output) -> int:
    """Cancel jobs by number, or all of this user's."""
    with Client(options.socket) as client:
        jobs = [job.job for job in client.status().jobs] if options.all else options.job
        if not jobs:
            output.line("no job to cancel; name one that status lists, or --all", event="done", jobs=[])
        for job in jobs:
            client.cancel(job=job)
            output.line(f"job {job} is cancelled", event="done", job=job)
    return 0


def generate(options: argparse.Namespace, output: Output) -> int:
    """Draw pictures into files."""
    targets = _targets(options.output, options.images)
    for target in targets:
        if target.exists() and not options.force:
            raise FileExistsError(f"{target} exists; --force overwrites it")
    parameters = {
        name: getattr(options, name)
        for name in (
            "negative_prompt",
            "width",
            "height",
            "steps",
            "cfg_scale",
            "seed",
            "scheduler",
            "images",
            "format",
        )
    }
    with Client(options.socket) as client:
        try:
            _draw(client, options, {"model": options.model, **parameters}, targets, output)
        except WeaveError as error:
            if error.code is not ErrorCode.NO_MODEL:
                raise
            _draw(client, options, {"model": client.list_models().default, **parameters}, targets, output)
    return 0


def _draw(
    client: Client, options: argparse.Namespace, parameters: dict[str, object], targets: list[Path], output: Output
) -> None:
    with output.progress() as progress:
        task = progress.add_task("queued", total=None)
        for answer in client.generate(options.prompt, preview_every=options.preview, **parameters):
            match answer.event:
                case Queued(position=position):
                    progress.update(task, description=f"queued, {position} before")
                case Loading(model=model):
                    progress.update(task, description=f"loading {model}")
                case Progress(image=image, step=step, steps=steps):
                    described = f"image {image + 1} of {len(targets)}"
                    progress.update(task, description=described, completed=step, total=steps)
                case Preview(image=image):
                    _write(targets[image], answer)
                case Image(image=image):
                    _write(targets[image], answer)
            _tell(answer, targets, output)


def _tell(answer: Answer, targets: list[Path], output: Output) -> None:
    if isinstance(answer.event, Image):
        target = targets[answer.event.image]
        output.line(f"{target} (seed {answer.event.seed})", event="image", file=str(target), seed=answer.event.seed)
    elif isinstance(answer.event, Done) and answer.event.timings is not None and not output.json:
        timings = answer.event.timings
        output.line(f"{timings.generating:.2f} s, and {timings.loading:.2f} s to load the model")
    else:
        output.event(answer.event)


def _targets(output: Path, images: int) -> list[Path]:
    if images <= 1:
        return [output]
    return [output.with_stem(f"{output.stem}-{number}") for number in range(1, images + 1)]


def _write(target: Path, answer: Answer) -> None:
    """Through a file beside it, so that nobody ever sees half a picture."""
    part = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        part.write_bytes(answer.data)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _describe(report: StatusReport) -> list[tuple[str, str]]:
    memory = "-"
    if report.memory_used is not None and report.memory_total is not None:
        memory = f"{report.memory_used / 2**20:.0f} of {report.memory_total / 2**20:.0f} MiB"
    lines = [
        ("version", f"{report.version}, {report.mode} mode, up {report.uptime:.0f} s"),
        ("worker", f"{report.worker}, restarted {report.worker_restarts} times"),
        ("model", report.model or "none loaded"),
        ("device", f"{report.device or '-'} {report.dtype or ''}"),
        ("memory", memory),
        ("queue", f"{report.queue_length} of {report.queue_limit}"),
        ("made", f"{report.images_made} images; {sum(report.metrics.errors.values())} errors told"),
    ]
    lines += [(f"{process}", ", ".join(layers) or "not running") for process, layers in report.sandbox.items()]
    lines += [(f"job {job.job}", f"{job.state}, {job.model}, {job.position} before it") for job in report.jobs]
    return lines
