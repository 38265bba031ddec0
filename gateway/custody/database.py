"""Custody's Redis: what must be true of the server, and how a change is made so that an answer means it is on disk.

Every change is a Lua script (`lua/`), so that a state is compared and set in one step. A change that a caller is told
about is committed: script and WAITAOF on the same connection (key-custody.md, sections 3 and 3.2).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any, Literal, cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from shared.problems import ServiceUnavailable

ACL_RULES = (
    "resetkeys resetchannels ~kc:* ~pr:* -@all +hget +hset +hgetall +hmget +hincrby +get +set +del +exists +sadd +srem "
    "+smembers +zadd +zrem +zrange +zcard +zremrangebyscore +pttl +pexpire +evalsha +script|load +wait +waitaof +time "
    "+ping +info +acl|whoami +client|setinfo +hello +select +bgrewriteaof"
)
"""What the gateway's user may do in custody Redis: no KEYS, FLUSH, CONFIG, DEBUG, MONITOR, SWAPDB, RENAME, EVAL."""

_POOL_SIZE = 32
_POOL_WAIT_S = 5.0
_SOCKET_TIMEOUT_S = 5.0
_DURABLE_WITHIN_MS = 2000  # everysec needs up to a second for the fsync that WAITAOF waits for


class Database:
    """A pool of connections to custody Redis. Every method raises `ServiceUnavailable` where Redis does not answer."""

    def __init__(self, url: str) -> None:
        # No retries: a script whose answer was lost may have run, and running it again would answer "changed".
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=_POOL_SIZE,
            timeout=_POOL_WAIT_S,
            socket_timeout=_SOCKET_TIMEOUT_S,
            socket_connect_timeout=_SOCKET_TIMEOUT_S,
            decode_responses=True,
            retry=Retry(NoBackoff(), 0),
        )
        self.redis = Redis(connection_pool=pool)
        self._pool = pool
        self._scripts: dict[str, Any] = {}
        self.durability: Literal["waitaof", "aof_always"] = "waitaof"
        self._replicas = 0
        self.owes_rewrite = False

    async def check(self, environment: str) -> None:
        """Refuse a server that could lose or leak a key. Raises `ValueError` with what to change."""
        async with self._reaching():
            persistence = await self.redis.info("persistence")
            memory = await self.redis.info("memory")
            replication = await self.redis.info("replication")
            if not persistence.get("aof_enabled"):
                raise ValueError("custody Redis must run with `appendonly yes`")
            if persistence.get("aof_last_write_status") != "ok":
                raise ValueError("custody Redis could not write its append-only file; look at its log and its disk")
            if memory.get("maxmemory_policy") != "noeviction":
                raise ValueError("custody Redis must run with `maxmemory-policy noeviction`, or it drops keys")
            fsync = await self._appendfsync()
            if environment != "dev":
                if await self.redis.acl_whoami() == "default":
                    raise ValueError("custody Redis must be reached as a user of its own, not as `default`")
                if fsync is not None:
                    raise ValueError("the gateway's user of custody Redis must not be allowed to use CONFIG")
            self.durability = "waitaof" if await self._has_waitaof() else "aof_always"
            if self.durability == "aof_always" and fsync != "always":
                raise ValueError("custody Redis has no WAITAOF (it came with 7.2), so it must run `appendfsync always`")
            self._replicas = int(replication.get("connected_slaves", 0))

    async def _appendfsync(self) -> str | None:
        try:
            return str((await self.redis.config_get("appendfsync"))["appendfsync"])
        except NoPermissionError:
            return None

    async def _has_waitaof(self) -> bool:
        try:
            await self._waitaof(self.redis, local=0, replicas=0)
        except ResponseError:
            return False
        return True

    async def close(self) -> None:
        await self.redis.aclose()
        await self._pool.aclose()

    async def health(self) -> str:
        """`ok` or `down`; never raises."""
        try:
            async with self._reaching():
                await self.redis.ping()
        except ServiceUnavailable:
            return "down"
        return "ok"

    async def hash(self, key: str) -> dict[str, str]:
        """All fields of a hash; empty where there is none."""
        return cast(dict[str, str], await self._read(lambda: self.redis.hgetall(key)))

    async def text(self, key: str) -> str | None:
        return cast(str | None, await self._read(lambda: self.redis.get(key)))

    async def members(self, key: str) -> set[str]:
        return cast(set[str], await self._read(lambda: self.redis.smembers(key)))

    async def ranked(self, key: str, low: float | str = "-inf", high: float | str = "+inf") -> list[str]:
        """The members of a sorted set whose score is within the bounds, lowest first."""
        return cast(list[str], await self._read(lambda: self.redis.zrange(key, low, high, byscore=True)))

    async def run(self, script: str, keys: Sequence[str], args: Sequence[str | int | float]) -> Any:
        """Run `lua/<script>.lua` and return its answer."""
        async with self._reaching():
            return await self._script(script)(keys=list(keys), args=list(args))

    async def commit(self, script: str, keys: Sequence[str], args: Sequence[str | int | float]) -> Any:
        """The same, and return only when the change is in the append-only files asked for.

        Raises `NotDurable` where it was made but may be lost.
        """
        async with self._reaching(), self.redis.client() as connection:
            answer = await self._script(script)(keys=list(keys), args=list(args), client=connection)
            if self.durability == "waitaof":
                local, replicas = await self._waitaof(connection, local=1, replicas=self._replicas)
                if local < 1 or replicas < self._replicas:
                    raise NotDurable
            elif self._replicas and await connection.wait(self._replicas, _DURABLE_WITHIN_MS) < self._replicas:
                raise NotDurable
            return answer

    async def rewrite_log(self) -> None:
        """Have the append-only file rewritten, so that what was deleted is not in it any longer. Does not wait.

        Redis refuses while another rewrite runs, which may have begun before the deletion: then `owes_rewrite` is set.
        """
        async with self._reaching():
            try:
                await self.redis.bgrewriteaof()
            except ResponseError:
                self.owes_rewrite = True
            else:
                self.owes_rewrite = False

    @staticmethod
    async def _waitaof(connection: Redis, *, local: int, replicas: int) -> tuple[int, int]:
        reached = await connection.waitaof(local, replicas, _DURABLE_WITHIN_MS)
        return reached[0], reached[1]

    def _script(self, name: str) -> Any:
        if name not in self._scripts:
            text = files("gateway.custody").joinpath("lua", f"{name}.lua").read_text()
            self._scripts[name] = self.redis.register_script(text)
        return self._scripts[name]

    async def _read(self, command: Callable[[], Awaitable[Any]]) -> Any:
        """What only reads is asked again where the connection turned out to be one that the server had closed."""
        async with self._reaching():
            try:
                return await command()
            except RedisConnectionError:
                await self._drop_idle()
                return await command()

    @asynccontextmanager
    async def _reaching(self) -> AsyncIterator[None]:
        try:
            yield
        except RedisError as error:
            if isinstance(error, RedisConnectionError):
                await self._drop_idle()
            raise ServiceUnavailable("Custody's Redis does not answer.", retry_after_s=1) from error

    async def _drop_idle(self) -> None:
        """A server that went away closed all connections: without this, each idle one would fail one more caller."""
        await self._pool.disconnect(inuse_connections=False)


class NotDurable(ServiceUnavailable):
    """The change was made in memory, but the disk or a replica did not confirm it in time. Send the request again."""

    code, status, title = "not_durable", 503, "The change could not be made safe."
