"""The same upload sent twice is one file: `Idempotency-Key` where the gateway itself takes a POST."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from redis.exceptions import RedisError

from shared.problems import MalformedIdempotencyKey, ServiceUnavailable


class FirstAnswers:
    """What the first request with an idempotency key led to, kept in broker Redis.

    No request is ever in between: each does its work, and then the one whose answer is written first has won. The
    others compare and discard theirs.
    """

    def __init__(self, client: Any) -> None:
        self._redis = client

    async def first(self, principal: str, key: str, answer: str, ttl_s: float) -> str:
        """`answer`, or the one that was given before under this key. Raises `MalformedIdempotencyKey`."""
        try:
            before = await self._redis.set(self._name(principal, key), answer, nx=True, get=True, ex=int(ttl_s))
        except RedisError as error:
            raise ServiceUnavailable("The broker does not answer.", retry_after_s=2) from error
        return str(before) if before is not None else answer

    async def replace(self, principal: str, key: str, answer: str, ttl_s: float) -> None:
        """Keep `answer`, because what was answered before is gone."""
        try:
            await self._redis.set(self._name(principal, key), answer, ex=int(ttl_s))
        except RedisError as error:
            raise ServiceUnavailable("The broker does not answer.", retry_after_s=2) from error

    def _name(self, principal: str, key: str) -> str:
        check_key(key)
        return f"tf:gateway:idempotency:{principal}:{hashlib.sha256(key.encode()).hexdigest()}"


def check_key(key: str) -> None:
    """Raise `MalformedIdempotencyKey` unless it is 1 to 255 printable ASCII characters."""
    if not re.fullmatch(r"[\x20-\x7e]{1,255}", key):
        raise MalformedIdempotencyKey
