"""From a worker's messages to a client's events."""

from weave.broker.schedule.worker_link import WorkerError
from weave.protocol.bounds import MAX_SEED
from weave.protocol.client_messages import Image, Preview, Progress
from weave.protocol.errors import ErrorCode, RequestError
from weave.protocol.tasks import Task
from weave.protocol.worker_messages import Made, Previewed, Progressed, TooLarge

# The error of a job, by the reason in the worker's Failed.
_FAILURES = {
    "cancelled": (ErrorCode.CANCELLED, "cancelled"),
    "out_of_memory": (ErrorCode.OUT_OF_MEMORY, "the device has not enough free memory for this job"),
    "bounds": (
        ErrorCode.WORKER_FAILED,
        "the worker refused the request, which the model's config no longer allows; the daemon's log says why",
    ),
    "refused": (ErrorCode.WORKER_FAILED, "the model's files were refused; the daemon's log says which"),
    "lora": (ErrorCode.WORKER_FAILED, "the file of a LoRA was refused; the daemon's log says which"),
    "embedding": (ErrorCode.WORKER_FAILED, "the file of an embedding was refused; the daemon's log says which"),
    "control": (ErrorCode.WORKER_FAILED, "the files of a ControlNet were refused; the daemon's log says which"),
    "prompt": (
        ErrorCode.OUT_OF_BOUNDS,
        "prompt or negative_prompt contains <|image_pad|> or <|video_pad|>, the model's placeholders for images",
    ),
    "scheduler": (
        ErrorCode.OUT_OF_BOUNDS,
        "scheduler is one that this model's scheduler_config.json rules out; the daemon's log says why",
    ),
    "libraries": (
        ErrorCode.WORKER_FAILED,
        "the daemon's libraries lack something that it needs; the daemon's log says what",
    ),
    "too_large": (ErrorCode.OUT_OF_MEMORY, "the device has not enough memory for this job"),
    "internal": (ErrorCode.INTERNAL, "the GPU worker failed; the daemon's log says why"),
}


def failure_of(error: WorkerError) -> RequestError:
    """The error that the client gets."""
    if error.too_large is not None:
        return _too_large(error.too_large)
    return RequestError(*_FAILURES[error.reason])


def _too_large(found: TooLarge) -> RequestError:
    needed, available = (f"{size / 1e9:.3g} GB" for size in (found.needed, found.available))
    text = f"the job needs about {needed} ({found.needed} bytes) on the device, and {available} are available"
    if not found.width:
        return RequestError(ErrorCode.OUT_OF_MEMORY, f"{text}; no size would fit", field="model")
    text = f"{text}; {found.width}x{found.height} would fit"
    return RequestError(ErrorCode.OUT_OF_MEMORY, text, field="width", maximum=found.width)


def event_of(task: Task, update: Progressed | Previewed | Made) -> Progress | Preview | Image:
    """`update` has been checked against `task` (worker_link.py)."""
    parameters = task.parameters
    if isinstance(update, Progressed):
        return Progress(image=update.image, step=update.step, steps=update.steps)
    if isinstance(update, Previewed):
        return Preview(image=update.image, step=update.step, width=update.width, height=update.height, size=update.size)
    width, height = parameters.output_size
    return Image(
        image=update.image,
        seed=(parameters.seed + update.image) & MAX_SEED,
        format=parameters.format,
        deliver=task.deliver,
        width=width,
        height=height,
        channels=3,
        size=update.size,
    )
