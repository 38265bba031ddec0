"""The life of a secret key as a state machine: whatever custodians do in whatever order, the model and custody agree,
and every picture that was ever made is recovered exactly when it may be."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis

from gateway.custody.limits import Bucket, RecoverLimits
from gateway.custody.secretkeys import DAY_S, NewKey
from gateway.custody.service import Custody
from shared.problems import InvalidRequest, Problem, SecretKeyConflict, SecretKeyDisabled, SecretKeyNotFound
from tests.gateway.custody.support import Clock, anonymized, person, recovered, settings_for
from tests.redis_server import RedisServer

PLENTY = {"plenty": Bucket(10**6, 1.0)}
UNLIMITED = RecoverLimits(actor=PLENTY, tenant=PLENTY, key=PLENTY, verify=PLENTY, failures=Bucket(10**6, 1.0))


@dataclass
class Model:
    """What a custodian believes about the key."""

    status: str = "active"
    version: int = 1
    not_after: float | None = None
    destroy_at: float = 0.0
    requested_by: str | None = None
    approved_by: str | None = None
    pictures: list[tuple[bytes, dict[str, Any]]] = field(default_factory=list)

    def usable(self, now: float) -> bool:
        return self.status == "active" and (self.not_after is None or now < self.not_after)


class KeyLife(RuleBasedStateMachine):
    server: ClassVar[RedisServer]
    home: ClassVar[Path]
    numbers: ClassVar[Iterator[int]] = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = Clock()
        self.model = Model()

    @initialize(days=st.none() | st.integers(1, 40))
    def create(self, days: int | None) -> None:
        self.custody = self.run(
            Custody.connect(settings_for(self.home, self.server.url), now=self.clock, limits=UNLIMITED)
        )
        tenant = f"tenant-{next(self.numbers)}"
        self.app, self.officer = (self.run(person(self.custody, role, tenant)) for role in ("app", "officer"))
        self.custodians = [self.run(person(self.custody, "custodian", tenant)) for _ in range(2)]
        self.model.not_after = None if days is None else self.clock() + days * DAY_S
        new = NewKey(not_after=self.model.not_after, default=True)
        self.state = self.run(self.custody.keys.create(self.custodians[0].caller, new))

    def teardown(self) -> None:
        if hasattr(self, "custody"):
            self.run(self.custody.close())
        self.runner.close()

    def run(self, asked: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(asked)

    def refused(self, *problems: type[Problem]) -> Any:
        return pytest.raises((SecretKeyNotFound,) if self.model.status == "destroyed" else problems)

    @rule()
    def rotate(self) -> None:
        asked = self.custody.keys.rotate(self.custodians[0].caller, self.state.key_id)
        if self.model.status == "active":
            assert self.run(asked).version == self.model.version + 1
            self.model.version += 1
        else:
            with self.refused(SecretKeyConflict):
                self.run(asked)

    @rule()
    def disable(self) -> None:
        asked = self.custody.keys.disable(self.custodians[0].caller, self.state.key_id)
        if self.model.status in ("active", "disabled"):
            self.run(asked)
            self.model.status = "disabled"
        else:
            with self.refused(SecretKeyConflict):
                self.run(asked)

    @rule(days=st.none() | st.integers(-1, 40).filter(bool))
    def enable(self, days: int | None) -> None:
        not_after = None if days is None else self.clock() + days * DAY_S
        asked = self.custody.keys.enable(self.custodians[0].caller, self.state.key_id, not_after=not_after)
        expiry = self.model.not_after if not_after is None else not_after
        if self.model.status in ("active", "disabled") and (expiry is None or expiry > self.clock()):
            self.run(asked)
            self.model.status, self.model.not_after = "active", expiry
        else:
            with self.refused(SecretKeyConflict, InvalidRequest):
                self.run(asked)

    @rule(who=st.integers(0, 1), days=st.integers(7, 30))
    def destroy(self, who: int, days: int) -> None:
        model, custodian = self.model, self.custodians[who]
        asked = self.custody.keys.destroy(custodian.caller, self.state.key_id, reason="x", grace_days=days)
        if model.status in ("active", "disabled"):
            model.status, model.requested_by = self.run(asked).status, custodian.principal.id
            assert model.status == "pending_destroy"
            model.destroy_at, model.approved_by = self.clock() + days * DAY_S, None
        elif (
            model.status == "pending_destroy" and not model.approved_by and model.requested_by != custodian.principal.id
        ):
            model.status, model.approved_by = self.run(asked).status, custodian.principal.id
            assert model.status == ("destroyed" if model.destroy_at < self.clock() else "pending_destroy")
        else:
            with self.refused(SecretKeyConflict):
                self.run(asked)

    @rule(who=st.integers(0, 1))
    def cancel_destroy(self, who: int) -> None:
        asked = self.custody.keys.cancel_destroy(self.custodians[who].caller, self.state.key_id)
        if self.model.status == "pending_destroy":
            self.run(asked)
            self.model.status, self.model.approved_by = "disabled", None
        else:
            with self.refused(SecretKeyConflict):
                self.run(asked)

    @rule(days=st.sampled_from([0.5, 3.0, 10.0]))
    def wait(self, days: float) -> None:
        self.clock.advance(days * DAY_S)

    @rule()
    def sweep(self) -> None:
        self.run(self.custody.keys.sweep())
        model, now = self.model, self.clock()
        if model.status == "active" and not model.usable(now):
            model.status = "disabled"
        if model.status == "pending_destroy" and model.approved_by and model.destroy_at < now:
            model.status = "destroyed"

    @rule()
    def anonymize(self) -> None:
        if self.model.usable(self.clock()):
            octets, record = self.run(anonymized(self.custody, self.app))
            assert record["key_version"] == self.model.version
            self.model.pictures.append((bytes(octets), record))
        else:
            with self.refused(SecretKeyDisabled):
                self.run(anonymized(self.custody, self.app))

    @precondition(lambda self: self.model.pictures)
    @rule(data=st.data())
    def recover(self, data: st.DataObject) -> None:
        octets, record = data.draw(st.sampled_from(self.model.pictures))
        if self.model.usable(self.clock()):
            assert self.run(recovered(self.custody, self.officer, record)) == octets
        else:
            with self.refused(SecretKeyDisabled):
                self.run(recovered(self.custody, self.officer, record))

    @invariant()
    def custody_agrees(self) -> None:
        if not hasattr(self, "state"):
            return
        found = self.run(self.custody.keys.list(self.state.tenant))
        if self.model.status == "destroyed":
            assert found == []
        else:
            [state] = found
            assert (state.status, state.version) == (self.model.status, self.model.version)
            assert state.destroy_approved_by == self.model.approved_by


def checked(server: RedisServer, home: Path, examples: int, steps: int) -> None:
    KeyLife.server, KeyLife.home = server, home
    how = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(KeyLife, settings=how)


def test_a_keys_life(redis: Redis, shared_server: RedisServer, home: Path) -> None:
    checked(shared_server, home, examples=8, steps=25)


@pytest.mark.slow
def test_many_keys_lives(redis: Redis, shared_server: RedisServer, home: Path) -> None:
    checked(shared_server, home, examples=150, steps=50)
