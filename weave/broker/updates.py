"""What a worker says, as what the client is told."""

from weave.broker.job import Job
from weave.broker.worker_link import Update
from weave.protocol.bounds import MAX_SEED
from weave.protocol.client_messages import Image, Preview, Progress
from weave.protocol.errors import ErrorCode
from weave.protocol.worker_messages import Previewed, Progressed

# Of Failed, by its reason.
MESSAGES = {
    "cancelled": (ErrorCode.CANCELLED, "cancelled"),
    "out_of_memory": (ErrorCode.OUT_OF_MEMORY, "the device has not enough free memory for this job"),
    "refused": (ErrorCode.WORKER_FAILED, "the model's files were refused; the daemon's log says which"),
    "scheduler": (ErrorCode.OUT_OF_BOUNDS, "scheduler is one that this model's own scheduler config rules out"),
    "libraries": (
        ErrorCode.WORKER_FAILED,
        "the daemon's libraries lack something that it needs; the daemon's log says what",
    ),
    "internal": (ErrorCode.INTERNAL, "the GPU worker could not do it; the daemon's log says why"),
}


def event_of(job: Job, update: Update) -> Progress | Preview | Image:
    """`update` was checked against `job` (worker_link.py)."""
    assert job.generate is not None and job.parameters is not None
    parameters = job.parameters
    if isinstance(update, Progressed):
        return Progress(image=update.image, step=update.step, steps=parameters.steps)
    if isinstance(update, Previewed):
        return Preview(image=update.image, step=update.step, width=update.width, height=update.height, size=update.size)
    return Image(
        image=update.image,
        seed=(parameters.seed + update.image) & MAX_SEED,
        format=job.generate.format,
        deliver=job.generate.deliver,
        width=parameters.width,
        height=parameters.height,
        channels=3,
        size=update.size,
    )
