"""The gateway's side of a guard: what a worker can have looked at, and what it cannot."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.door import create_door
from gateway.guarding import Guarding
from shared import ids
from shared.context import DOOR_HEADER, CallContext, door_signature
from shared.files import Owner
from shared.guard import Guard
from shared.jobs import JobRecord, NewJob
from tests.gateway.echo import SECRET
from tests.gateway.house import House, house
from tests.redis_server import RedisServer

pytestmark = pytest.mark.anyio


class Door:
    """A job of `diagnostic` that runs and has a guard to ask, and the door at which its worker stands."""

    def __init__(self, house: House, client: httpx.AsyncClient, context: CallContext, fence: str) -> None:
        self.house, self.client, self.context, self.fence = house, client, context, fence

    async def knock(self, what: str, **body: Any) -> httpx.Response:
        path = f"/internal/guard/{what}"
        content = json.dumps({"context": self.context.signed(SECRET), **body}).encode()
        headers = {DOOR_HEADER: door_signature(SECRET, path, content, time.time())}
        return await self.client.post(path, content=content, headers=headers)

    async def ask(self, *files: str, own: bool = False, ticket: str | None = None, fence: str = "") -> httpx.Response:
        return await self.knock("ask", fence=fence or self.fence, files=files, own=own, ticket=ticket)

    def stored(self, owner: Owner, key: bytes | None = None) -> str:
        with self.house.runtime.files.create(owner, "image/png", 600, key=key) as writer:
            writer.write(b"a picture")
            return writer.commit(4, 3).id

    async def record(self, job_id: str | None = None, method: str = "diagnostic") -> JobRecord:
        return await self.house.runtime.jobs.get(method, job_id or self.context.job_id)


@pytest.fixture
async def door(broker: RedisServer, fresh_redis: Any, tmp_path: Path) -> AsyncIterator[Door]:
    async with contextlib.AsyncExitStack() as stack:
        here = await stack.enter_async_context(house(broker, tmp_path, {}))
        principal, _ = await here.principal()
        context = CallContext(
            tenant=principal.tenant,
            principal=principal.id,
            scopes=tuple(sorted(principal.scopes)),
            method="diagnostic",
            operation="blur",
            job_id=ids.ordered_id("job"),
            request_id="req_1",
            expires_at=time.time() + 600,
        )
        guarding = Guarding(here.runtime, here.custody)
        stack.push_async_callback(guarding.close)
        app = create_door(here.custody, None, guarding)
        client = await stack.enter_async_context(
            httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://door")
        )
        door = Door(here, client, context, "1")
        await started(door, door.stored(Owner("acme", made_by=principal.id)))
        fresh_redis.zadd("tf:dlsr:workers", {"one": 2**53})  # somebody serves detectors
        yield door


async def started(door: Door, *inputs: str) -> None:
    context = door.context
    fields = {
        "operation": "blur",
        "principal": context.principal,
        "request": json.dumps({"image": {"file": inputs[0]}}),
        "attempts": "2",
        "ttl_ms": "60000",
        "guard": Guard("dlsr/faces@1", "flag").text(),
    }
    job = NewJob(context.job_id, "diagnostic", "diagnostic", "acme", fields, 600, 10, needs_worker=False)
    await door.house.runtime.jobs.create(job)
    outcome, _ = await door.house.runtime.jobs._change("diagnostic", "start", context.job_id, "w")
    assert outcome == "started"


async def input_of(door: Door) -> str:
    name: str = (await door.record()).request["image"]["file"]
    return name


class TestAsking:
    async def test_the_guards_job_is_made_in_the_callers_name_and_the_one_that_asks_parked(self, door: Door) -> None:
        answer = await door.ask(await input_of(door))
        assert answer.json() == {"parked": True}
        asked = await door.record()
        assert (asked.state, asked.public()["stage"]) == ("queued", "guard")
        looks = await door.record((asked.guard or {})["job"], "dlsr")
        assert (looks.tenant, looks.principal) == (asked.tenant, asked.principal)
        assert looks.fields["queue"] == "dlsr.guard"
        assert [image["file"] for image in looks.request["images"]] == [await input_of(door)]
        assert json.loads(looks.fields["own_files"]) == []
        assert looks.fields["lease"] == looks.fields["call"] == ""

    async def test_it_is_asked_once(self, door: Door) -> None:
        name = await input_of(door)
        assert (await door.ask(name)).json() == {"parked": True}
        assert (await door.ask(name)).json() == {"parked": False}

    async def test_an_old_start_of_the_job_parks_nothing_and_its_guard_is_called_off(
        self, door: Door, fresh_redis: Any
    ) -> None:
        answer = await door.ask(await input_of(door), fence="0")
        assert answer.json() == {"parked": False}
        assert (await door.record()).state == "running"
        (looked,) = fresh_redis.zrange("tf:dlsr:tenant:acme", 0, -1)
        assert (await door.record(looked, "dlsr")).state == "cancelled"

    async def test_where_nobody_serves_detectors_it_says_so(self, door: Door, fresh_redis: Any) -> None:
        fresh_redis.delete("tf:dlsr:workers")
        answer = await door.ask(await input_of(door))
        assert (answer.status_code, answer.json()["code"]) == (503, "no_worker")
        assert (await door.record()).state == "running"


class TestNothingElse:
    @pytest.mark.parametrize("own", [True, False])
    @pytest.mark.parametrize("owner", [Owner("acme"), Owner("others"), Owner("others", "runtime", "runtime")])
    async def test_no_file_but_the_jobs_own_is_looked_at(self, door: Door, own: bool, owner: Owner) -> None:
        answer = await door.ask(door.stored(owner), own=own)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
        assert (await door.record()).state == "running"

    async def test_a_job_that_asked_for_no_guard_gets_none(self, door: Door, fresh_redis: Any) -> None:
        fresh_redis.hdel(f"tf:diagnostic:job:{door.context.job_id}", "guard")
        for answer in (await door.ask(await input_of(door)), await door.knock("open")):
            assert (answer.status_code, answer.json()["code"]) == (403, "call_not_signed")

    async def test_nor_does_anyone_else_for_it(self, door: Door) -> None:
        name = await input_of(door)
        door.context = replace(door.context, principal="prn_other")
        assert (await door.ask(name)).status_code == 403

    async def test_an_unsigned_call_is_refused(self, door: Door) -> None:
        answer = await door.client.post("/internal/guard/open", content=b"{}")
        assert answer.status_code == 403


class TestTickets:
    async def ticket(self, door: Door) -> tuple[CallContext, str]:
        answer = (await door.knock("open")).json()
        return CallContext.verified(answer["context"], SECRET), answer["context"]

    async def test_it_opens_a_file_key_of_its_own_and_redeems_nothing(self, door: Door) -> None:
        call, signed = await self.ticket(door)
        assert call.lease is not None
        assert (call.method, call.operation) == ("dlsr", "score")
        assert len(await door.house.custody.redeeming.file_key(call, call.lease)) == 32
        path = f"/internal/leases/{call.lease}/redeem"
        wish = {
            "context": signed,
            "attempt": 1,
            "unit": 0,
            "model": "ifadit/small@1",
            "dim": 128,
            "nonces": ["00" * 16],
        }
        wish |= {"model_digest": "sha256:" + "0" * 64, "key_scheme": "v2-gauss"}
        content = json.dumps(wish).encode()
        headers = {DOOR_HEADER: door_signature(SECRET, path, content, time.time())}
        answer = await door.client.post(path, content=content, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "lease_refused")

    async def test_what_is_encrypted_under_it_goes_to_that_job_alone(self, door: Door) -> None:
        call, signed = await self.ticket(door)
        key = await door.house.custody.redeeming.file_key(call, call.lease or "")
        view = door.stored(Owner("acme", "runtime", "runtime", call.lease), bytes(key))
        assert (await door.ask(view, own=True)).status_code == 422, "without the ticket"
        assert (await door.ask(view, own=True, ticket=signed)).json() == {"parked": True}
        looks = await door.record(call.job_id, "dlsr")
        assert looks.fields["lease"] == call.lease
        assert json.loads(looks.fields["own_files"]) == [view]

    async def test_another_jobs_is_of_no_use(self, door: Door) -> None:
        call, _ = await self.ticket(door)
        stolen = replace(call, tenant="others").signed(SECRET)
        assert (await door.ask(await input_of(door), ticket=stolen)).status_code == 403
        assert (await door.ask(await input_of(door), ticket=door.context.signed(SECRET))).status_code == 403
