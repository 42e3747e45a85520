"""The broker's side of one worker, which is assumed to be hostile: a message that is not valid in the current state
raises ChannelViolation, and the worker is killed."""

from collections.abc import AsyncIterator
from typing import TypeAlias

from weave.broker.admission.principal import EVERYONE, Served
from weave.broker.schedule.snapshot import WorkerSnapshot
from weave.protocol.channel import Channel, ChannelViolation, check_sealed_memfd, close_all
from weave.protocol.client_messages import Tokens
from weave.protocol.parameters import Parameters
from weave.protocol.waiting import receive
from weave.protocol.worker_messages import (
    ENCODERS,
    CancelRun,
    Failed,
    Finished,
    FromWorker,
    Load,
    Loaded,
    Made,
    Memory,
    PlanName,
    Planned,
    Previewed,
    Progressed,
    Reason,
    Restarted,
    Run,
    TooLarge,
)

_MAX_PNG_OVERHEAD = 256 * 1024
_MAX_PREVIEW_SIDE = 256

Update: TypeAlias = Restarted | Progressed | Previewed | Made


class WorkerError(Exception):
    """The worker failed at a job and continues; with the reason "libraries", none could start or load the model."""

    def __init__(self, reason: Reason, detail: str = "", too_large: TooLarge | None = None) -> None:
        super().__init__(detail)
        self.reason = reason
        self.too_large = too_large


class WorkerLink:
    """An attested worker for one model. `layers` are those of its sandbox, according to the supervisor."""

    def __init__(
        self, number: int, model: str, channel: int, *, serves: Served = EVERYONE, layers: tuple[str, ...] = ()
    ) -> None:
        self.number = number
        self.model = model
        self.serves = serves
        self._layers = layers
        self.device: str | None = None
        self.dtype: str | None = None
        self.memory: Memory | None = None
        self.plan: PlanName | None = None
        self._channel: Channel[FromWorker] = Channel.from_fd(channel, FromWorker)
        self._channel.set_blocking(False)

    async def load(self, parameters: Parameters | None = None) -> None:
        """Have the worker load its model, for a job with these parameters, and wait for its plan. Raises WorkerError,
        ChannelViolation, ChannelClosed."""
        self._send(Load(parameters=parameters))
        message = await self._answer_to_load()
        if not isinstance(message, Planned):
            raise ChannelViolation(f"{type(message).__name__} instead of a plan")
        self.plan = message.plan

    async def loaded(self) -> None:
        """Wait until the model is loaded, after load(). Raises as it does."""
        message = await self._answer_to_load()
        if not isinstance(message, Loaded):
            raise ChannelViolation(f"{type(message).__name__} while loading")
        self.device, self.dtype, self.memory = message.device, message.dtype, message.memory

    async def _answer_to_load(self) -> FromWorker:
        message, memfd = await self._receive()
        close_all(memfd)
        if memfd:
            raise ChannelViolation("an unexpected descriptor")
        if isinstance(message, Failed) and message.job == 0:
            raise WorkerError(message.reason, message.detail, message.too_large)
        return message

    async def run(self, run: Run, inputs: tuple[int, ...] = ()) -> AsyncIterator[tuple[Update | Finished, int | None]]:
        """`inputs` are the job's images, which the caller keeps. Yields each update with its checked memfd, which the
        caller owns, and Finished last.

        Raises WorkerError, ChannelViolation, ChannelClosed.
        """
        images = run.parameters.images
        self._send(run, inputs)
        image = step = steps = previewed = 0
        restarted = False
        while True:
            message, descriptors = await self._receive()
            try:
                if isinstance(message, Planned | Loaded) or message.job != run.job:
                    raise ChannelViolation(f"{type(message).__name__} of another job")
                if isinstance(message, Failed | Finished):
                    finished = _checked_end(message, descriptors, images - image)
                    break
                if not isinstance(message, Restarted) and (message.image != image or image >= images):
                    raise ChannelViolation(f"image {message.image} instead of {image}")
                _check_update(message, descriptors, run, step, steps, previewed, restarted=restarted)
                if isinstance(message, Restarted):
                    restarted, step, steps, previewed = True, 0, 0, 0
                    self.plan = message.plan
                elif isinstance(message, Progressed):
                    step, steps = message.step, message.steps
                elif isinstance(message, Previewed):
                    previewed = message.step
                else:
                    image, step, steps, previewed = image + 1, 0, 0, 0
            except BaseException:
                close_all(descriptors)
                raise
            yield message, descriptors[0] if descriptors else None
        self.memory, self.plan = finished.memory, finished.plan or self.plan
        yield finished, None

    def cancel(self, job: int) -> None:
        """Have the worker end that job at its next step, with Failed."""
        self._send(CancelRun(job=job))

    def snapshot(self) -> WorkerSnapshot:
        """The worker's state as of now."""
        return WorkerSnapshot(
            model=self.model,
            serves=self.serves,
            device=self.device,
            dtype=self.dtype,
            memory=self.memory,
            plan=self.plan,
            layers=self._layers,
        )

    def close(self) -> None:
        """Close the channel; the worker then exits."""
        self._channel.close()

    def _send(self, message: Load | Run | CancelRun, descriptors: tuple[int, ...] = ()) -> None:
        try:
            self._channel.send(message, descriptors)
        except BlockingIOError:
            raise ChannelViolation("the worker does not read its channel") from None
        except OSError as error:  # ENOMEM, or ETOOMANYREFS: too many descriptors are on their way to clients
            raise WorkerError("internal", f"cannot send to the worker: {error.strerror}") from None

    async def _receive(self) -> tuple[FromWorker, list[int]]:
        return await receive(self._channel)


def _checked_end(message: Failed | Finished, descriptors: list[int], missing: int) -> Finished:
    """`missing` is the number of images that were not sent. Raises ChannelViolation, and WorkerError for Failed."""
    if descriptors:
        raise ChannelViolation("an unexpected descriptor")
    if isinstance(message, Failed):
        raise WorkerError(message.reason, message.detail, message.too_large)
    if missing:
        raise ChannelViolation(f"finished without {missing} of its images")
    _check_tokens(message.tokens)
    return message


def _check_tokens(tokens: Tokens) -> None:
    """Only known encoders: clients display their names. Raises ChannelViolation."""
    for encoders in (tokens.prompt, tokens.negative_prompt):
        names = [encoder.encoder for encoder in encoders]
        if len(names) != len(set(names)) or not set(names) <= set(ENCODERS):
            raise ChannelViolation("tokens of an unknown encoder, or of one encoder twice")


def _check_update(
    message: Update, descriptors: list[int], run: Run, step: int, steps: int, previewed: int, *, restarted: bool
) -> None:
    """`step` (of `steps`) and `previewed` are the last steps of this image that Progressed and Previewed reported,
    `restarted` says whether the job was already restarted. Raises ChannelViolation."""
    if isinstance(message, Restarted):
        if restarted or descriptors:
            raise ChannelViolation("restarted twice, or with a descriptor")
        return
    if isinstance(message, Progressed):
        passes = 2 if run.parameters.enlarge else 1
        most = steps or passes * run.parameters.steps
        if descriptors or message.step != step + 1 or not message.step <= message.steps <= most:
            raise ChannelViolation(f"step {message.step} of {message.steps} after {step} of {most}")
        if steps and message.steps != steps:
            raise ChannelViolation(f"{message.steps} steps instead of {steps}")
        return
    if len(descriptors) != 1:
        raise ChannelViolation("an image without exactly one memfd")
    width, height = run.parameters.output_size
    pixels = width * height * 3
    if isinstance(message, Previewed):
        every = run.parameters.preview_every
        if not every or message.step != step or step % every or step == previewed:
            raise ChannelViolation("a preview that was not requested")
        if not (1 <= message.width <= _MAX_PREVIEW_SIDE and 1 <= message.height <= _MAX_PREVIEW_SIDE):
            raise ChannelViolation(
                f"a preview of {message.width}x{message.height}, at most {_MAX_PREVIEW_SIDE} a side are possible"
            )
        largest = message.width * message.height * 3 + _MAX_PNG_OVERHEAD
    else:
        largest = pixels if run.parameters.format == "raw" else pixels + _MAX_PNG_OVERHEAD
    if not 1 <= message.size <= largest:
        raise ChannelViolation(f"{message.size} bytes of image, at most {largest} are possible")
    if isinstance(message, Made) and run.parameters.format == "raw" and message.size != pixels:
        raise ChannelViolation(f"{message.size} bytes of raw image instead of {pixels}")
    check_sealed_memfd(descriptors[0], message.size)
