"""The worker's side of the gateway's internal door: ask it for image keys, file keys, signatures and guards."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from shared import tracing
from shared.context import DOOR_HEADER, door_signature
from shared.problems import Problem, ServiceUnavailable
from shared.secretbytes import SecretBytes, wipe

DEK_BYTES = 32
WRAPPED_DEK_BYTES = 12 + DEK_BYTES + 16  # nonce, ciphertext, tag
OCTETS_VALID_S = 120.0  # from redeeming on, an image key must not be used for longer
_BYTES_PER_NUMBER = 4
_PAUSES_S = (0.1, 0.4, 1.6)  # between tries to connect: a gateway that starts anew is back within that time
_TIMEOUT_S = 15.0


def image_nonce(job_id: str, face: int, unit: int = 0) -> str:
    """The nonce of one anonymized face, in hex: 16 bytes that no other picture has.

    face  its place among the anonymized faces of the unit, from 0

    It follows from the job, and custody redeems no other: a compromised worker cannot ask for the image key of an older
    picture by naming the nonce in its record. A retry finds the same nonce again; a nonce does not tell its job.
    """
    part = f"{job_id}/{unit}" if unit else job_id
    return hashlib.sha256(f"tenfold/nonce/v1\0{part}\0{face}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class ForensicKeys:
    """What a worker gets to anonymize a picture whose originals are to be kept, encrypted."""

    keys: list[SecretBytes]
    """The image keys, as of any other picture."""
    dek: SecretBytes
    """The data key of this picture alone: 32 octets."""
    wrapped_dek: bytes
    """The same as only custody can open it, for the sidecar."""
    record_id: str
    """The name that the record of this attempt will have."""


@dataclass(frozen=True)
class GuardTicket:
    """What a worker gets to show encrypted pictures to a guard, and to nobody else."""

    context: str
    """The call of the guard's job, signed. It opens the file key of its own lease and nothing more."""
    lease: str


class LeaseClient:
    """Talks to one door. Thread-safe: several jobs of a worker share one.

    Every call takes the context that came with the job, and raises the problem that the door answers with;
    `ServiceUnavailable` where there is no door.
    """

    def __init__(self, door_url: str, internal_secret: str, *, timeout_s: float = _TIMEOUT_S) -> None:
        """door_url  `http://host:port` or `unix:///path/of.sock`"""
        is_socket = door_url.startswith("unix://")
        self._client = httpx.Client(
            base_url="http://door" if is_socket else door_url,
            transport=httpx.HTTPTransport(uds=door_url.removeprefix("unix://")) if is_socket else None,
            timeout=timeout_s,
            trust_env=False,  # secrets never pass a proxy that the environment names
        )
        self._secret = internal_secret

    def file_key(self, lease: str, context: str) -> bytearray:
        """The 32-byte key of the job's files; the caller wipes it."""
        return bytearray(self._post(_path(lease, "file-key"), {"context": context}).content)

    def release(self, lease: str, context: str) -> None:
        """End a lease that no job will use."""
        self._post(_path(lease, "release"), {"context": context})

    def redeem(
        self,
        lease: str,
        context: str,
        *,
        attempt: int,
        unit: int,
        model: str,
        model_digest: str,
        key_scheme: str,
        dim: int,
        nonces: Sequence[str] | None = None,
        record: Mapping[str, Any] | None = None,
        purpose: str | None = None,
    ) -> list[SecretBytes]:
        """The octets of the image keys of one unit, one item of 4 * dim bytes a face, readable for 120 s.

        nonces   to anonymize: `image_nonce` of each face, or "" for each face to link a person's pictures
        record   to recover: the signed record, with `purpose`, 1-200 characters

        Raises `LeaseRefused`, `LeaseExpired`, `SecretKeyDisabled`, `SecretKeyNotFound`, `RecordInvalid`,
        `RecordMismatch`, `RateLimited` and others as the door answers.
        """
        body = _wish(context, attempt, unit, model, model_digest, key_scheme, dim)
        body |= {"nonces": list(nonces)} if nonces is not None else {}
        body |= {"record": dict(record)} if record is not None else {}
        body |= {"purpose": purpose}
        octets = bytearray(self._post(_path(lease, "redeem"), body).content)
        try:
            return _image_keys(octets, dim)
        finally:
            wipe(octets)

    def redeem_forensic(
        self,
        lease: str,
        context: str,
        *,
        attempt: int,
        unit: int,
        model: str,
        model_digest: str,
        key_scheme: str,
        dim: int,
        nonces: Sequence[str],
    ) -> ForensicKeys:
        """The same to anonymize, and a data key for the originals. All octets are readable for 120 s.

        Raises `SecretKeyPurpose` for a secret key that does not allow it, and what `redeem` raises.
        """
        body = _wish(context, attempt, unit, model, model_digest, key_scheme, dim)
        body |= {"nonces": list(nonces), "forensic": True}
        octets = bytearray(self._post(_path(lease, "redeem"), body).content)
        start = len(nonces) * _BYTES_PER_NUMBER * dim
        dek_end, wrapped_end = start + DEK_BYTES, start + DEK_BYTES + WRAPPED_DEK_BYTES
        images = octets[:start]
        try:
            if len(octets) <= wrapped_end:
                raise ServiceUnavailable("The internal door gave an answer without a data key.")
            return ForensicKeys(
                _image_keys(images, dim),
                SecretBytes(octets[start:dek_end], valid_s=OCTETS_VALID_S),
                bytes(octets[dek_end:wrapped_end]),
                octets[wrapped_end:].decode(),
            )
        finally:
            wipe(octets)
            wipe(images)

    def redeem_dek(
        self,
        lease: str,
        context: str,
        *,
        attempt: int,
        unit: int,
        model: str,
        model_digest: str,
        key_scheme: str,
        dim: int,
        record: Mapping[str, Any],
        purpose: str,
        wrapped_dek: bytes,
    ) -> SecretBytes:
        """To recover exactly: the data key that a sidecar holds wrapped, readable for 120 s.

        Raises `SidecarInvalid` for one that was wrapped for another record or altered, and what `redeem` raises.
        """
        body = _wish(context, attempt, unit, model, model_digest, key_scheme, dim)
        body |= {"record": dict(record), "purpose": purpose, "wrapped_dek": wrapped_dek.hex()}
        octets = bytearray(self._post(_path(lease, "redeem"), body).content)
        if len(octets) != DEK_BYTES:
            wipe(octets)
            raise ServiceUnavailable("The internal door gave an answer that is no data key.")
        return SecretBytes(octets, valid_s=OCTETS_VALID_S)

    def open_guard(self, context: str) -> GuardTicket:
        """For a job whose pictures only some may see: a lease under whose file key its guard's views are encrypted."""
        answer = self._post("/internal/guard/open", {"context": context}).json()
        return GuardTicket(answer["context"], answer["lease"])

    def ask_guard(
        self, context: str, *, fence: str, files: Sequence[str], own: bool, ticket: GuardTicket | None = None
    ) -> bool:
        """Have a job's guard look at stored pictures. The job is parked until it answers.

        fence   of this start of the job
        files   the names of the pictures
        own     they were made for the guard, and go with its job
        ticket  of `open_guard`, for pictures that are encrypted under its lease

        False if another start of the job runs by now.
        """
        body: dict[str, Any] = {"context": context, "fence": fence, "files": list(files), "own": own}
        body |= {"ticket": None if ticket is None else ticket.context}
        return bool(self._post("/internal/guard/ask", body).json()["parked"])

    def seal(self, lease: str, context: str, *, attempt: int, unit: int, draft: Mapping[str, Any]) -> dict[str, Any]:
        """The signed record of one unit. Numbers with a fraction in the draft must be strings."""
        body = {"context": context, "attempt": attempt, "unit": unit, "draft": dict(draft)}
        record: dict[str, Any] = self._post(_path(lease, "seal"), body).json()
        return record

    def check_record(self, context: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """`valid`, `own_tenant`, and what a record of the own tenant says."""
        answer: dict[str, Any] = self._post(
            "/internal/records/check", {"context": context, "record": dict(record)}
        ).json()
        return answer

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _post(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        content = json.dumps(body, separators=(",", ":")).encode()
        for pause_s in (*_PAUSES_S, None):
            headers = {
                "content-type": "application/json",
                DOOR_HEADER: door_signature(self._secret, path, content, time.time()),
            }
            if (traceparent := tracing.current().traceparent) is not None:
                headers[tracing.HEADER] = traceparent
            try:
                answer = self._client.post(path, content=content, headers=headers)
            except (
                httpx.ConnectError,
                httpx.ConnectTimeout,
            ) as error:  # nothing was asked yet, so asking again is safe
                if pause_s is None:
                    raise ServiceUnavailable("The gateway's internal door does not answer.") from error
                time.sleep(pause_s)
            except httpx.HTTPError as error:
                raise ServiceUnavailable("The gateway's internal door broke off.") from error
            else:
                return _checked(answer)
        raise AssertionError("unreachable")


def _wish(
    context: str, attempt: int, unit: int, model: str, model_digest: str, key_scheme: str, dim: int
) -> dict[str, Any]:
    return {
        "context": context,
        "attempt": attempt,
        "unit": unit,
        "model": model,
        "model_digest": model_digest,
        "key_scheme": key_scheme,
        "dim": dim,
    }


def _image_keys(octets: bytearray, dim: int) -> list[SecretBytes]:
    """One item of 4 * dim octets a face; the caller wipes `octets`."""
    size = _BYTES_PER_NUMBER * dim
    if not octets or len(octets) % size:
        raise ServiceUnavailable("The internal door gave an answer that is no image key.")
    starts = range(0, len(octets), size)
    return [SecretBytes(octets[start : start + size], valid_s=OCTETS_VALID_S) for start in starts]


def _checked(answer: httpx.Response) -> httpx.Response:
    if answer.is_success:
        return answer
    try:
        raise Problem.from_body(answer.json())
    except ValueError:
        raise ServiceUnavailable(f"The gateway's internal door answered {answer.status_code}.") from None


def _path(lease: str, what: str) -> str:
    return f"/internal/leases/{quote(lease, safe='')}/{what}"
