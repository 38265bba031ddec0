"""Callers that do not give up: every call has an idempotency key and is sent again until it is answered."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import random
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import PIL.Image
import skimage.data

from tests.faults.ledger import TERMINAL, Ledger, Promise

PATIENCE_S = 120.0  # how long a caller repeats a call that is not answered
RECOVER_EVERY_S = 8.0  # ten a minute are the limit of an officer, thirty an hour that of a key
KEY_EVERY_S = 15.0
_UNANSWERED = frozenset({"service_unavailable", "upstream_timeout"})  # they name a job that may not have been made


class Callers:
    """The traffic of one tenant against `url`, until `stop` is set."""

    def __init__(self, url: str, keys: dict[str, list[str]], ledger: Ledger, seed: int) -> None:
        self._http = httpx.AsyncClient(base_url=url, timeout=httpx.Timeout(40, connect=2))
        self._api_keys = {role: itertools.cycle(keys[role]) for role in keys}
        self._ledger = ledger
        self._random = random.Random(seed)  # noqa: S311 - traffic, not secrets
        self._stop = asyncio.Event()
        self._secret_keys: list[str] = []
        self._anonymized: asyncio.Queue[tuple[dict[str, Any], str]] = asyncio.Queue(maxsize=4)
        with io.BytesIO() as stream:
            PIL.Image.fromarray(skimage.data.astronaut()[:256, 96:352]).save(stream, "PNG")
            self._face = stream.getvalue()

    async def run(self, seconds: float, *, main_job: bool) -> None:
        """Call for so long, and see every begun call through."""
        loops: list[Callable[[], Awaitable[None]]] = [self._noop, self._noop, self._noop, self._units, self._train]
        if main_job:
            loops += [self._make_key, self._anonymize, self._recover]
        tasks = [asyncio.create_task(self._again(loop)) for loop in loops]
        await asyncio.sleep(seconds)
        self._stop.set()
        await asyncio.gather(*tasks)

    async def _again(self, loop: Callable[[], Awaitable[None]]) -> None:
        while not self._stop.is_set():
            await loop()

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)

    def _bearer(self, role: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {next(self._api_keys[role])}"}

    # kinds of callers

    async def _noop(self) -> None:
        text = f"{self._random.getrandbits(64):x}"
        record = await self.call("diagnostic/noop", json={"text": text})
        if record and record["state"] == "succeeded" and record["result"]["text"] != text:
            self._ledger.untruths.append(f"{record['id']} answered with the text of another")
        await self._pause(self._random.uniform(0.02, 0.3))

    async def _units(self) -> None:
        await self.call("diagnostic/sleep", json={"seconds": 0.1, "units": 10}, prefer="respond-async")
        await self._pause(self._random.uniform(0.5, 3))

    async def _train(self) -> None:
        name = f"chaos-{self._random.getrandbits(48):x}"
        await self.call("diagnostic/train", json={"name": name, "steps": 30, "seconds_a_step": 0.05})
        await self._pause(self._random.uniform(2, 6))

    async def _make_key(self) -> None:
        try:
            answer = await self._http.post("/v1/keys", headers=self._bearer("custodian"), json={"label": "chaos"})
        except httpx.TransportError:
            await self._pause(1)
            return
        if answer.status_code == 201:  # only what was answered was promised
            self._ledger.keys.add(answer.json()["key_id"])
            self._secret_keys.append(answer.json()["key_id"])
            await self._pause(KEY_EVERY_S)
        else:
            self._ledger.answers[f"keys {answer.status_code}"] += 1
            await self._pause(1)

    async def _anonymize(self) -> None:
        if not self._secret_keys:
            await self._pause(0.5)
            return
        key_id = self._random.choice(self._secret_keys)
        bearer = self._bearer("app")
        files = {"image": ("p.png", self._face, "image/png")}
        record = await self.call(f"ifadit/anonymize?key={key_id}", files=files, bearer=bearer)
        if record and record["state"] == "succeeded":
            with contextlib.suppress(asyncio.QueueFull):
                self._anonymized.put_nowait((record["result"]["image"], bearer["Authorization"]))
        await self._pause(self._random.uniform(0.5, 2))

    async def _recover(self) -> None:
        try:
            image, authorization = await asyncio.wait_for(self._anonymized.get(), 1)
        except TimeoutError:
            return
        picture = await self._download(image["url"], authorization)
        if picture is not None:
            files = {"image": ("a.png", picture, "image/png")}
            await self.call("ifadit/recover", files=files, data={"purpose": "faults"}, role="officer")
        await self._pause(RECOVER_EVERY_S)

    async def _download(self, url: str, authorization: str) -> bytes | None:
        for _ in range(20):
            with contextlib.suppress(httpx.TransportError):
                answer = await self._http.get(url, headers={"Authorization": authorization})
                if answer.status_code == 200:
                    return answer.content
            await asyncio.sleep(0.5)
        self._ledger.untruths.append(f"{url} is the result of a job and cannot be had")
        return None

    # one call

    async def call(
        self, operation: str, *, role: str = "app", bearer: dict[str, str] | None = None, prefer: str = "", **body: Any
    ) -> dict[str, Any] | None:
        """Send a call until it is answered for good; its job's record, if there is one."""
        promise = Promise(operation.partition("?")[0])
        self._ledger.promises.append(promise)
        headers = (bearer or self._bearer(role)) | {"Idempotency-Key": f"{self._random.getrandbits(96):x}"}
        headers |= {"Prefer": prefer} if prefer else {}
        loop = asyncio.get_running_loop()
        until = loop.time() + PATIENCE_S
        while loop.time() < until:
            promise.sent += 1
            try:
                answer = await self._http.post(f"/v1/{operation}", headers=headers, **body)
            except httpx.TransportError as error:
                self._ledger.answers[type(error).__name__] += 1
                await asyncio.sleep(0.3)
                continue
            self._ledger.answers[str(answer.status_code)] += 1
            content: dict[str, Any] = answer.json()
            if answer.status_code in (200, 202):
                promise.jobs.add(content["id"])
                return content
            if "job_id" in content and content["code"] not in _UNANSWERED:
                promise.jobs.add(content["job_id"])  # it failed, which is an answer too
                return None
            if answer.status_code not in (429, 502, 503, 504):
                return None  # an answer for good, though no result
            await asyncio.sleep(min(float(answer.headers.get("retry-after", 1)), 3))
        return None

    # the reckoning

    async def settle(self, within_s: float) -> None:
        """Read every promised job until all have ended, or time is over."""
        deadline = asyncio.get_running_loop().time() + within_s
        pending = self._ledger.accepted()
        while pending and asyncio.get_running_loop().time() < deadline:
            for promise in pending:
                await self._read(promise)
            pending = [promise for promise in pending if promise.state not in TERMINAL]
            await asyncio.sleep(1)

    async def _read(self, promise: Promise) -> None:
        role = "officer" if promise.operation == "ifadit/recover" else "app"
        for job_id in promise.jobs:
            for headers in [self._bearer(role) for _ in range(5 if role == "officer" else 1)]:
                with contextlib.suppress(httpx.TransportError):
                    answer = await self._http.get(f"/v1/jobs/{job_id}", headers=headers)
                    if answer.status_code == 200:
                        promise.record = answer.json()

    async def read_everything(self) -> None:
        """Models and secret keys, as the gateway lists them at the end."""
        models = (await self._http.get("/v1/models", headers=self._bearer("app"))).json()
        for model in models["models"]:
            if model["name"].startswith("chaos-"):
                self._ledger.versions[model["name"]] += len(model["versions"])
        for key_id in self._ledger.keys:
            answer = await self._http.get(f"/v1/keys/{key_id}", headers=self._bearer("custodian"))
            if answer.status_code == 200 and answer.json()["state"] == "active":
                self._ledger.keys_found.add(key_id)

    async def close(self) -> None:
        await self._http.aclose()
