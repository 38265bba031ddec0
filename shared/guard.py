"""The guard: before an operation computes, a detector says whether its pictures are like those that it was fitted on.

Any compute operation that takes pictures has the fields `guard` and `guard_action`. The worker shows the pictures (or
what the method says is to be looked at: its `views`) to `dlsr/score` and gives its place up meanwhile. It asks at the
gateway's internal door, because the broker lets no method enqueue for another (docs/decisions/0014); the gateway makes
the guard's job in the name of the same principal, parks the job that asked, and queues it again on the answer.

Of several views the strangest counts: p is the smallest p-value times the number of views (Bonferroni).
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from pydantic import BaseModel, Field, create_model

from shared.jobs import GUARDING, JobRecord, Jobs
from shared.problems import InvalidRequest, JobNotFound, OutOfDistribution, Problem, ServiceUnavailable
from shared.types import File, Image, ModelRef, Request

OPERATION = "score"  # takes `images` and `model`; answers `results`, each with a `p_value`, and `alpha`
MAX_VIEWS = 256

Action = Literal["flag", "refuse"]


class Parked(Exception):
    """Raised in a worker when a job waits for its guard: it was queued again, or ended, by somebody else."""


class _Guarded(Request):
    guard: ModelRef | None = Field(
        None,
        description="A detector, `dlsr/name`: is this picture like those that it was fitted on? The job's `guard` "
        "answers with a p-value.",
    )
    guard_action: Action = Field(
        "flag", description="`refuse`: a picture that the detector finds strange is 422 and nothing is computed."
    )


def guarded(request: type[Request]) -> type[Request]:
    """The same request with the fields of a guard."""
    return create_model(
        request.__name__, __base__=(request, _Guarded), __module__=request.__module__, __doc__=request.__doc__
    )


def shows_pictures(annotation: Any) -> bool:
    """Whether a value of this type may hold pictures."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if issubclass(annotation, File):
            return issubclass(annotation, Image)
        return any(shows_pictures(field.annotation) for field in annotation.model_fields.values())
    return any(map(shows_pictures, get_args(annotation)))


@dataclass(frozen=True)
class Guard:
    """What was asked of a guard, and what it said. A job's record keeps it as `guard`.

    model    the detector, with its version
    job      the guard's own job, once there is one
    views    how many pictures it was shown
    p_value  of the job; small: such pictures are rare where the detector comes from
    alpha    the share of false alarms that the detector allows itself
    is_ood   p_value <= alpha
    error    the problem that kept it from answering, where `flag` lets the job go on all the same
    """

    model: str
    action: Action
    job: str | None = None
    views: int | None = None
    p_value: float | None = None
    alpha: float | None = None
    is_ood: bool | None = None
    error: dict[str, Any] | None = None

    @classmethod
    def of(cls, record: JobRecord) -> Guard | None:
        """That of a job, or None: nobody asked for one."""
        return None if record.guard is None else cls(**record.guard)

    def text(self) -> str:
        return json.dumps(asdict(self))

    @property
    def is_open(self) -> bool:
        """Whether there is no answer yet."""
        return self.p_value is None and self.error is None

    def shown(self, job_id: str, views: int) -> Guard:
        """Asked: the guard's job looks at so many views."""
        return replace(self, job=job_id, views=views)

    def answered(self, record: JobRecord | None) -> Guard:
        """With what its job came to; None: that job is gone."""
        if record is None:
            return self.failed(ServiceUnavailable("The guard's job is gone."))
        if (problem := record.problem) is not None:
            return self.failed(problem)
        result = record.result or {}
        p_values = [one["p_value"] for one in result["results"]]
        if None in p_values:
            return self.failed(InvalidRequest(f"{self.model} is not calibrated, so it gives no p-value."))
        alpha = float(result["alpha"])
        p_value = min(1.0, min(p_values) * len(p_values))
        return replace(self, p_value=p_value, alpha=alpha, is_ood=p_value <= alpha)

    def failed(self, problem: Problem) -> Guard:
        return replace(self, error=problem.body())

    def check(self) -> None:
        """Raise what `refuse` makes of the answer: `OutOfDistribution`, or the problem that kept it from answering."""
        if self.action != "refuse":
            return
        if self.error is not None:
            raise Problem.from_body(self.error)
        if self.is_ood:
            seen = "the picture" if self.views == 1 else f"one of {self.views} views"
            raise OutOfDistribution(
                f"{self.model} finds {seen} strange: p = {self.p_value:.4g}, at most {self.alpha:g} is refused.",
                model=self.model,
                p_value=self.p_value,
                alpha=self.alpha,
            )


async def wake_answered(jobs: Jobs, method: str) -> None:
    """Queue again the parked jobs of a method whose guards have answered, or never will.

    Who asked for the guard's job sees to that itself, unless it was ended meanwhile: then this does.
    """
    for job_id in await jobs.parked(method):
        try:
            guard = Guard.of(await jobs.get(method, job_id))
        except JobNotFound:
            continue
        if guard is not None and guard.job is not None:
            await wake(jobs, method, job_id, guard)


async def wake(jobs: Jobs, method: str, job_id: str, guard: Guard) -> bool:
    """Queue one parked job again, if its guard has answered. `guard` is as the job has it."""
    answer: JobRecord | None = None
    with contextlib.suppress(JobNotFound):
        answer = await jobs.get(GUARDING, guard.job or "")
    if answer is not None and not answer.is_finished:
        return False
    return await jobs.unpark(method, job_id, guard.answered(answer).text())


def check_model(ref: str) -> None:
    """Raise `InvalidRequest` for a guard that is no detector."""
    if ref.partition("/")[0] != GUARDING:
        raise InvalidRequest(
            f"guard: {ref} is no detector.",
            errors=[{"place": "guard", "message": f"{GUARDING}/<name>", "kind": "model"}],
        )
