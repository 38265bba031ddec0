"""Everything that can go wrong, as a caller sees it: RFC 9457 problem details without a web framework.

A worker raises the same classes as an API process; the problem is stored with the job and shown later. Problems that
only one method knows (no face found) stand in that method's `service.py`.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any, ClassVar

MEDIA_TYPE = "application/problem+json"
FULL_FOR_S = 60.0  # a store that is full is asked again after this long: files that are over go once a minute


class Problem(Exception):
    """Base class. A subclass fixes what never changes; an instance says what happened this time."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "The service failed."

    known: ClassVar[dict[str, type[Problem]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        other = Problem.known.setdefault(cls.code, cls)
        if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(f"{cls.__qualname__} and {other.__qualname__} share the problem code {cls.code!r}")

    def __init__(self, detail: str = "", *, retry_after_s: float | None = None, **extras: Any) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.retry_after_s = retry_after_s
        self.extras = extras

    def body(self, request_id: str | None = None) -> dict[str, Any]:
        """The JSON object that a caller receives, and that a failed job keeps."""
        body: dict[str, Any] = {
            "type": f"/problems/{self.code}",
            "code": self.code,
            "status": self.status,
            "title": self.title,
            "detail": self.detail,
            **self.extras,
        }
        if self.retry_after_s is not None:
            body["retry_after_s"] = self.retry_after_s
        if request_id:
            body["request_id"] = request_id
        return body

    @staticmethod
    def from_body(body: Mapping[str, Any]) -> Problem:
        """The problem that `body` was made from. A plain `Problem` says the same where its class is not loaded."""
        fixed = ("type", "code", "status", "title", "detail", "retry_after_s", "request_id")
        extras = {name: value for name, value in body.items() if name not in fixed}
        cls = Problem.known.get(str(body.get("code")), Problem)
        problem = cls.__new__(cls)
        if cls is Problem and {"code", "status", "title"} <= body.keys():
            vars(problem).update({name: body[name] for name in ("code", "status", "title")})
        Problem.__init__(problem, str(body.get("detail", "")), retry_after_s=body.get("retry_after_s"), **extras)
        return problem


# What a request says


class InvalidRequest(Problem):
    """A field is missing, unknown, of the wrong type or out of range. `errors` names each place and what is right."""

    code, status, title = "invalid_request", 422, "The request is not valid."


class BadSyntax(Problem):
    """The body could not be parsed at all: broken JSON, or a multipart body without its boundary."""

    code, status, title = "bad_syntax", 400, "The body cannot be parsed."


class UnsupportedMediaType(Problem):
    """The body, or a file in it, is of a type that this operation does not take. `accepted` lists those it takes."""

    code, status, title = "unsupported_media_type", 415, "This media type is not accepted."


class NotAcceptable(Problem):
    """`Accept` asks for a form that this operation cannot answer in. `offered` lists the forms there are."""

    code, status, title = "not_acceptable", 406, "The answer cannot be given in the form asked for."


class BodyTooLarge(Problem):
    """The body has more bytes than is allowed. `limit_bytes` says how many it may have."""

    code, status, title = "body_too_large", 413, "The body is too large."


class ImageTooLarge(Problem):
    """The picture has more pixels, or a longer side, than is accepted. `limit_px` says how many it may have."""

    code, status, title = "image_too_large", 413, "The picture is too large."


class ImageUnreadable(Problem):
    """The file is no picture, or is truncated or damaged."""

    code, status, title = "image_unreadable", 422, "The picture cannot be read."


class ImageAnimated(Problem):
    """The file holds several frames where one picture is expected. `frames` says how many."""

    code, status, title = "image_animated", 422, "The picture is animated."


class ArchiveUnsafe(Problem):
    """The archive has links, paths that leave it, too many files or too many bytes, or cannot be read."""

    code, status, title = "archive_unsafe", 422, "The archive is not accepted."


class MalformedIdempotencyKey(Problem):
    """`Idempotency-Key` takes 1 to 255 printable ASCII characters."""

    code, status, title = "malformed_idempotency_key", 422, "The idempotency key is malformed."


class IdempotencyConflict(Problem):
    """The same idempotency key came before with another request. Take a new key for a new request."""

    code, status, title = "idempotency_conflict", 409, "This idempotency key belongs to another request."


# Who asks


class ApiKeyMissing(Problem):
    """Send the API key as `Authorization: Bearer …`."""

    code, status, title = "api_key_missing", 401, "An API key is needed."


class ApiKeyInvalid(Problem):
    """The API key is unknown, expired or revoked."""

    code, status, title = "api_key_invalid", 401, "The API key is not valid."


class ScopeMissing(Problem):
    """The API key may not do this. `scope` names the one it lacks."""

    code, status, title = "scope_missing", 403, "The API key is not allowed to do this."


class CallNotSigned(Problem):
    """A service takes calls from its gateway only, signed and unexpired."""

    code, status, title = "call_not_signed", 403, "The call did not come through the gateway."


class RateLimited(Problem):
    """Too many requests or pixels for this while. `Retry-After` says when this one will be taken."""

    code, status, title = "rate_limited", 429, "Too many requests."


class QuotaExceeded(Problem):
    """The API key has as many unfinished jobs or stored bytes as it may. `limit` says how many."""

    code, status, title = "quota_exceeded", 429, "The quota is used up."


# What is asked for


class RouteNotFound(Problem):
    """There is nothing at this path."""

    code, status, title = "route_not_found", 404, "There is nothing here."


class HttpMethodNotAllowed(Problem):
    """The path exists, but not for this HTTP method. `allowed` lists those it takes."""

    code, status, title = "http_method_not_allowed", 405, "The path does not take this HTTP method."


class MethodNotFound(Problem):
    """No such method is served here. `GET /v1/methods` lists those that are."""

    code, status, title = "method_not_found", 404, "There is no such method."


class OperationNotFound(Problem):
    """The method has no such operation. `operations` lists those it has."""

    code, status, title = "operation_not_found", 404, "The method has no such operation."


class JobNotFound(Problem):
    """No job of this name belongs to the caller."""

    code, status, title = "job_not_found", 404, "There is no such job."


class StoredFileNotFound(Problem):
    """No file of this name belongs to the caller, or its time is over."""

    code, status, title = "file_not_found", 404, "There is no such file."


class ModelNotFound(Problem):
    """No model of this name and version belongs to the caller. `GET /v1/models` lists those that do."""

    code, status, title = "model_not_found", 404, "There is no such model."


class WeightsMissing(Problem):
    """The model's weights are published elsewhere and were not imported. `command` imports them."""

    code, status, title = "weights_missing", 409, "The weights of this model have not been imported."


class ModelProtected(Problem):
    """Shipped and imported models cannot be deleted over HTTP."""

    code, status, title = "model_protected", 409, "The model cannot be deleted."


class RangeNotSatisfiable(Problem):
    """The byte range lies outside the file. `bytes` says how many it has."""

    code, status, title = "range_not_satisfiable", 416, "The file has no such bytes."


# What becomes of a job


class JobCancelled(Problem):
    """The job was cancelled before it finished."""

    code, status, title = "job_cancelled", 409, "The job was cancelled."


class DeadlineExceeded(Problem):
    """The job's deadline passed before it finished."""

    code, status, title = "deadline_exceeded", 504, "The job did not finish in time."


class OutOfDistribution(Problem):
    """The guard found the picture strange, and `guard_action` was `refuse`: nothing was computed. `p_value` says how
    strange: so many pictures of the detector's own kind would be as strange or stranger."""

    code, status, title = "out_of_distribution", 422, "The picture is not of the kind that this is for."


class WorkerLost(Problem):
    """The worker died with this job as often as is allowed. `attempts` says how often."""

    code, status, title = "worker_lost", 500, "The worker was lost."


class Hung(Problem):
    """The computation stood still for longer than is allowed; its process was ended."""

    code, status, title = "hung", 500, "The computation hung."


class InsufficientMemory(Problem):
    """The device has too little memory for this request, even alone."""

    code, status, title = "insufficient_memory", 507, "There is too little memory for this request."


class WeightsDamaged(Problem):
    """The model's files do not hold what its description says. An operator has to import or train it again."""

    code, status, title = "weights_damaged", 500, "The model's weights cannot be loaded."


class ServiceUnavailable(Problem):
    """A part that the request needs (broker, method, file store) does not answer. Try again."""

    code, status, title = "service_unavailable", 503, "A part of the service does not answer."


class StorageFull(ServiceUnavailable):
    """The file store has no room left. It takes files again once old ones expired or an operator made room."""

    code, status, title = "storage_full", 507, "The file store is full."

    def __init__(self, detail: str = "", *, retry_after_s: float = FULL_FOR_S, **extras: Any) -> None:
        super().__init__(detail, retry_after_s=retry_after_s, **extras)


def is_full(error: OSError) -> bool:
    """Whether a disk has no room left, or no more for this user or process."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NoWorker(Problem):
    """No worker serves this method at the moment. `Prefer: respond-async` queues the job all the same."""

    code, status, title = "no_worker", 503, "No worker serves this method."


class QueueFull(Problem):
    """More jobs wait than will be served in reasonable time. `Retry-After` is computed from the queue."""

    code, status, title = "queue_full", 503, "The queue is full."


class Overloaded(Problem):
    """A job would wait longer than is sensible, so it was not queued. `Retry-After` is computed from the queue."""

    code, status, title = "overloaded", 503, "The method has too much to do."


# Custody of secret keys (an error never says why a secret did not open)


class SecretKeyNotFound(Problem):
    """No secret key of this name belongs to the tenant, or it was destroyed."""

    code, status, title = "key_not_found", 404, "There is no such key."


class SecretKeyPurpose(Problem):
    """The key was made for other purposes. `purposes` lists them."""

    code, status, title = "key_purpose", 409, "The key is not meant for this."


class SecretKeyDisabled(Problem):
    """The key, or the version that the picture was made with, is not active. A custodian can enable it."""

    code, status, title = "key_disabled", 409, "The key is not active."


class SecretKeyConflict(Problem):
    """The key changed in the meantime, or is not in the state that this change starts from. Read it again."""

    code, status, title = "key_conflict", 409, "The key is in another state."


class SecretKeyIntegrity(Problem):
    """What custody holds of this key was altered. Nothing was opened; an operator has been alarmed."""

    code, status, title = "key_integrity", 500, "The key's record is damaged."


class KekUnavailable(Problem):
    """The provider of the key-encryption key does not answer. Recovery waits until it does."""

    code, status, title = "kek_unavailable", 503, "The key-encryption key is out of reach."


class AuditUnavailable(Problem):
    """The audit trail cannot be written, so nothing that must be in it is done."""

    code, status, title = "audit_unavailable", 503, "The audit trail cannot be written."


class LeaseRefused(Problem):
    """The lease is unknown, expired, used up, or belongs to another job or operation."""

    code, status, title = "lease_refused", 403, "The lease does not allow this."


class LeaseExpired(Problem):
    """The lease ran out or was redeemed as often as is allowed. Send the request again."""

    code, status, title = "lease_expired", 409, "The lease has run out."


class RecordInvalid(Problem):
    """The record is missing, not a record, not signed by this installation, or another tenant's."""

    code, status, title = "record_invalid", 422, "The record is not valid."


class RecordMismatch(Problem):
    """The record belongs to another picture, or the picture was changed. `allow_modified` recovers it all the same."""

    code, status, title = "record_mismatch", 422, "The record does not belong to this picture."


class RecordModelMismatch(Problem):
    """The record was made with other weights than those that would recover it. `model_id` names the right ones."""

    code, status, title = "record_model_mismatch", 409, "The record was made with another model."


class SidecarInvalid(Problem):
    """The sidecar is damaged, or belongs to another record or key. Without one, recovery is an approximation."""

    code, status, title = "sidecar_invalid", 422, "The sidecar does not belong to this record."


class ModelRetired(Problem):
    """The record was made with weights that are no longer here."""

    code, status, title = "model_retired", 410, "The model that made this picture is gone."


class TenantMismatch(Problem):
    """The request names another tenant than the API key."""

    code, status, title = "tenant_mismatch", 403, "The request names another tenant."
