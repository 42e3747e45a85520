"""Every request that a client can make, and what it does. There are no others."""

import asyncio
from collections.abc import Callable

from weave.broker.admission.audit import Audit
from weave.broker.admission.inputs import Inputs
from weave.broker.admission.limits import Admission
from weave.broker.front.requests import pick_model, pick_model_of_version_1, task_of, task_of_version_1
from weave.broker.front.session import Session
from weave.broker.front.status import DaemonSnapshot, report_to
from weave.broker.schedule.job import GenerateJob, Job, JobNumber, JobNumbers, LoadJob, Reply
from weave.broker.schedule.scheduler import Scheduler
from weave.config.child_configs import BrokerConfig
from weave.protocol import version1
from weave.protocol.client_messages import (
    Cancel,
    ClientMessage,
    Done,
    Error,
    Generate,
    ListModels,
    LoadModel,
    ModelOffer,
    Models,
    Status,
    Unload,
)
from weave.protocol.errors import ErrorCode, RequestError
from weave.protocol.inputs import InputImage, inputs_of
from weave.protocol.metrics import Metrics
from weave.protocol.tasks import Task


class Dispatcher:
    """For each request: who may make it, what it costs, and what handles it."""

    def __init__(
        self,
        config: BrokerConfig,
        admission: Admission,
        scheduler: Scheduler,
        audit: Audit,
        metrics: Metrics,
        snapshot: Callable[[], DaemonSnapshot],
    ) -> None:
        self._config = config
        self._admission = admission
        self._scheduler = scheduler
        self._audit = audit
        self._metrics = metrics
        self._snapshot = snapshot
        self._numbers = JobNumbers(per_user=config.mode == "system")

    def reconfigure(self, config: BrokerConfig) -> None:
        """From the next request on."""
        self._config = config

    def handle(self, session: Session, reply: Reply, message: ClientMessage | version1.Request) -> None:
        """Answer a request now, or start what answers it later. Raises RequestError."""
        uid = session.requester.uid
        self._metrics.requests += 1
        match message:
            case Status():
                reply.send(report_to(uid, self._snapshot()))
            case ListModels():
                config, loaded = self._config, self._scheduler.loaded_model(uid)
                models = Models(
                    models=config.models,
                    default=config.default_model,
                    loaded=loaded,
                    loras=config.loras,
                    embeddings=config.embeddings,
                    controls=config.controls,
                )
                reply.send(models)
            case Cancel():
                self._cancel(session, message)
                reply.send(Done())
            case Generate():
                self._charge(session)
                model = pick_model(self._config, message.model, self._scheduler.loaded_model(uid))
                task = task_of(message, model, self._config)
                if images := inputs_of(task.parameters):
                    self._upload(session, reply, model, task, images)
                else:
                    self._generate(session, reply, model, task)
            case version1.Request():
                self._charge(session)
                model = pick_model_of_version_1(self._config, message.model_id)
                task = task_of_version_1(message, model, self._config)
                self._generate(session, reply, model, task, seconds=self._config.limits.v1_seconds)
            case LoadModel():
                self._charge(session)
                model = pick_model(self._config, message.model, None)
                job = LoadJob(self._next_number(session), session.requester, reply, model)
                self._submit(session, job)
            case Unload():
                self._charge(session)
                self._unload(session, reply)

    def disconnected(self, session: Session, *, still_connected: tuple[int, ...]) -> None:
        """Cancel the jobs of a session. `still_connected`: the UIDs that have a connection."""
        for job in session.jobs():
            self._scheduler.cancel(job)
        self._numbers.forget_all_but({job.uid for job in self._scheduler.jobs()}.union(still_connected))

    def _charge(self, session: Session) -> None:
        """Count a request for the rate limit. Raises RequestError (rate_limited)."""
        self._admission.request(session.requester.principal, asyncio.get_running_loop().time())

    def _upload(
        self, session: Session, reply: Reply, model: ModelOffer, task: Task, images: tuple[InputImage, ...]
    ) -> None:
        """Queue the job when its images have arrived. Raises RequestError (queue_full, out_of_bounds)."""
        self._check_queue(session)
        inputs = Inputs(self._admission, session.requester.principal, images)
        session.begin(reply, None)
        session.uploads.begin(
            reply,
            images,
            inputs,
            lambda inputs: self._generate(session, reply, model, task, inputs),
            seconds=self._config.limits.upload_seconds,
        )

    def _generate(
        self,
        session: Session,
        reply: Reply,
        model: ModelOffer,
        task: Task,
        inputs: Inputs | None = None,
        *,
        seconds: float | None = None,
    ) -> None:
        """Takes ownership of `inputs`, unless it raises RequestError (queue_full)."""
        job = GenerateJob(self._next_number(session), session.requester, reply, model, task, inputs)
        if self._config.audit_prompts:
            prompt = task.parameters.prompt
            self._audit.write("generate", job.requester.peer, job=job.number, model=model.id, prompt=prompt)
        self._submit(session, job, seconds=seconds)

    def _next_number(self, session: Session) -> JobNumber:
        """Check that the queue has room for one more job, and number it. Raises RequestError (queue_full)."""
        self._check_queue(session)
        return self._numbers.next(session.requester.uid)

    def _check_queue(self, session: Session) -> None:
        """Raises RequestError (queue_full)."""
        queue, principal = self._scheduler.queue, session.requester.principal
        self._admission.check_queue(principal, waiting=len(queue), theirs=queue.waiting(principal))

    def _submit(self, session: Session, job: Job, *, seconds: float | None = None) -> None:
        session.begin(job.reply, job)
        job.on_finish(lambda: session.end(job.reply))
        self._scheduler.submit(job, seconds=seconds)

    def _unload(self, session: Session, reply: Reply) -> None:
        unloading = self._scheduler.unload(session.requester.peer)
        session.begin(reply, None)

        def answer(ended: "asyncio.Future[None]") -> None:
            if ended.cancelled():  # the broker is exiting
                return
            session.end(reply)
            refused = ended.exception()
            reply.send(Error.from_exception(refused) if isinstance(refused, RequestError) else Done())

        unloading.add_done_callback(answer)

    def _cancel(self, session: Session, message: Cancel) -> None:
        """Raises RequestError (invalid_request)."""
        if message.request is None or message.job is not None or not session.uploads.cancel(message.request):
            self._scheduler.cancel(self._find_job(session, message))

    def _find_job(self, session: Session, message: Cancel) -> Job:
        """A connection may cancel any job of its user, and no other job."""
        if (message.request is None) == (message.job is None):
            raise RequestError(ErrorCode.INVALID_REQUEST, "cancel takes either request or job", field="job")
        if message.request is not None:
            for job in session.jobs():
                if job.reply.request == message.request:
                    return job
            raise RequestError(
                ErrorCode.INVALID_REQUEST, "no such request in flight", field="request", value=message.request
            )
        for job in self._scheduler.jobs():
            if job.user_number == message.job and job.uid == session.requester.uid:
                return job
        raise RequestError(ErrorCode.INVALID_REQUEST, "no such job of yours", field="job", value=message.job)
