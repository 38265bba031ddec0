"""What the contract's service holds, and what its jobs do."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from shared.ids import ordered_id

API_KEY = "tf_abcdefgh_" + "k" * 43
FINISHED = ("succeeded", "failed", "cancelled")
KEPT_BYTES = 2**20  # what is larger is hashed and forgotten


@dataclass
class Call:
    """One request, as it arrived."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    fields: dict[str, Any] = field(default_factory=dict)
    files: dict[str, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    names: dict[str, str] = field(default_factory=dict)
    at: float = field(default_factory=time.monotonic)


@dataclass
class Kept:
    """A stored file: its bytes, or a function that makes them."""

    media_type: str
    size: int
    sha256: str
    read: Callable[[int, int], bytes]

    @staticmethod
    def of(content: bytes, media_type: str) -> Kept:
        return Kept(media_type, len(content), hashlib.sha256(content).hexdigest(), lambda a, b: content[a:b])


@dataclass
class Job:
    record: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    finished: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self, kind: str, **data: Any) -> None:
        self.events.append((kind, data))
        if kind == "state":
            self.record |= {"state": data["state"], "stage": data.get("stage")}
            if data["state"] in FINISHED:
                self.finished.set()
        else:
            self.record["progress" if kind == "progress" else "units"] = data


class State:
    """The whole service but for its routes, and how it is to behave."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.calls: list[Call] = []
        self.jobs: dict[str, Job] = {}
        self.by_key: dict[str, str] = {}
        self.files: dict[str, Kept] = {}
        self.keys: dict[str, dict[str, Any]] = {}
        self.audit: list[dict[str, str]] = []
        self.models = [_model("ifadit/small@1", "shipped"), _model("dlsr/mine@3", "trained")]
        self.is_ready = True
        self.takes_s = 0.0
        self.holds = True
        self.steps = 0
        self.outcome: dict[str, Any] = {}

    def called(self, path: str) -> list[Call]:
        """The requests whose method and path match this expression."""
        return [call for call in self.calls if re.search(path, f"{call.method} {call.path}")]

    def wait_for(self, path: str) -> None:
        """Let time pass until there is such a request; ten seconds at most."""
        until = time.monotonic() + 10
        while not self.called(path) and time.monotonic() < until:
            time.sleep(0.01)

    def keep(self, kept: Kept) -> dict[str, Any]:
        name = ordered_id("file")
        self.files[name] = kept
        return {
            "file": name,
            "url": f"/v1/files/{name}",
            "media_type": kept.media_type,
            "bytes": kept.size,
            "sha256": kept.sha256,
        }

    # what jobs do

    def start(self, method: str, operation: str, call: Call) -> Job:
        """The job of this request: a new one, or that of its idempotency key."""
        key = call.headers["idempotency-key"]
        if key in self.by_key:
            return self.jobs[self.by_key[key]]
        name = self.by_key[key] = ordered_id("job")
        record = {"id": name, "method": method, "operation": operation, "state": "queued", "attempt": 1}
        job = self.jobs[name] = Job({**record, "created_at": "2026-03-01T12:00:00Z", "url": f"/v1/jobs/{name}"})
        job.tell("state", state="queued")
        return job

    async def work(self, job: Job, call: Call) -> None:
        job.tell("state", state="running", stage="looking")
        for step in range(self.steps):
            await asyncio.sleep(self.takes_s / self.steps)
            job.tell("progress", step=step + 1, of=self.steps)
        if not self.steps:
            await asyncio.sleep(self.takes_s)
        if "code" in self.outcome:
            job.record["error"] = {"status": 422, "detail": "It went wrong.", "request_id": "req_job", **self.outcome}
            job.tell("state", state="failed")
        else:
            job.record["result"] = self._result(call) | self.outcome
            job.tell("state", state="succeeded")

    def _result(self, call: Call) -> dict[str, Any]:
        """Every file that was sent, kept, beside what the three operations of ifadit say."""
        form = call.fields.get("output_format", "png")
        image = call.files.get("image") or [b"named"]
        kept = Kept.of(b"IFX1", "application/vnd.tenfold.ifx") if call.fields.get("mode") == "forensic" else None
        return {
            "image": self.keep(Kept.of(image[0], f"image/{form}")),
            "record": self.keep(Kept.of(b'{"v":1}', "application/json")),
            "sidecar": self.keep(kept) if kept else None,
            "faces": [{"box": {"x": 1, "y": 2, "width": 3, "height": 4}, "action": "anonymized", "score": 0.99}],
            "model": "ifadit/small@1",
            "key_id": call.query.get("key", "key_default"),
            "key_version": 1,
            "linkage": call.fields.get("linkage", "per_image"),
            "expected_recovery": {"png": 0.7},
            "fidelity": "parametric",
            "expected_fidelity": 0.7,
            "record_match": True,
            "record_valid": True,
            "cosine": None,
        }


def _model(ref: str, kind: str) -> dict[str, Any]:
    method, _, rest = ref.partition("/")
    name, _, version = rest.partition("@")
    return {
        "model": ref,
        "method": method,
        "name": name,
        "version": int(version),
        "versions": [*range(1, int(version) + 1)],
        "kind": kind,
        "digest": "0" * 64,
        "licence": None,
        "card": None,
        "figures": {},
        "created_at": "2026-03-01T12:00:00Z",
    }


def call_of(request: Request) -> Call:
    return Call(request.method, request.url.path, dict(request.query_params), dict(request.headers))
