"""May this key be used for this now, and if so: its secret, for a moment.

An unwrapped secret stays in memory for at most a minute, so that anonymization outlives a short outage of the
key-encryption key's provider. Recovery never looks there: while the provider is down it is refused (key-custody.md,
section 2). The key's state is read from Redis every time.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from gateway.custody.envelope import METHOD_SECRET, Envelope, SecretName, Wrapped
from gateway.custody.store import KeyState, KeyStore, Purpose
from shared.problems import SecretKeyDisabled, SecretKeyIntegrity, SecretKeyPurpose
from shared.secretbytes import SecretBytes

CACHE_S = 60.0
CACHE_SIZE = 1000


class KeyOpener:
    """Checks keys and opens their secrets."""

    def __init__(self, store: KeyStore, envelope: Envelope, *, now: Callable[[], float] = time.time) -> None:
        self._store = store
        self._envelope = envelope
        self._now = now
        self._cache: OrderedDict[tuple[SecretName, Wrapped], tuple[SecretBytes, float]] = OrderedDict()

    async def usable(self, tenant: str, key_id: str, *purposes: Purpose) -> KeyState:
        """The key, if it may be used for all of `purposes` at this moment.

        Raises `SecretKeyNotFound`, `SecretKeyDisabled`, `SecretKeyPurpose`, `SecretKeyIntegrity`.
        """
        state = await self._store.load(tenant, key_id)
        if state.status != "active":
            raise SecretKeyDisabled
        if state.not_after is not None and state.not_after <= self._now():
            raise SecretKeyDisabled("The key's time is over.")
        if not state.purposes.issuperset(purposes):
            raise SecretKeyPurpose(purposes=sorted(state.purposes))
        return state

    @asynccontextmanager
    async def open(self, state: KeyState, version: int, purpose: Purpose) -> AsyncIterator[SecretBytes]:
        """The secret of one version, to be used at once and not kept: it may be wiped after the block.

        Raises `KekUnavailable`, and `SecretKeyIntegrity` for a version that the key does not have.
        """
        if not 1 <= version <= state.version:
            raise SecretKeyIntegrity
        name = SecretName(METHOD_SECRET, state.tenant, state.key_id, version)
        wrapped = await self._store.wrapped(state.tenant, state.key_id, version)
        if purpose == "recover":
            with await self._envelope.unwrap(name, wrapped) as secret:
                yield secret
        else:
            yield await self._remembered(name, wrapped)

    def forget_expired(self) -> None:
        """Wipe the secrets whose minute is over."""
        for entry, (secret, until) in list(self._cache.items()):
            if until <= self._now():
                secret.wipe()
                del self._cache[entry]

    def forget_all(self) -> None:
        for secret, _ in self._cache.values():
            secret.wipe()
        self._cache.clear()

    async def _remembered(self, name: SecretName, wrapped: Wrapped) -> SecretBytes:
        self.forget_expired()
        if (name, wrapped) in self._cache:
            return self._cache[name, wrapped][0]
        secret = await self._envelope.unwrap(name, wrapped)
        self._cache[name, wrapped] = secret, self._now() + CACHE_S
        if len(self._cache) > CACHE_SIZE:
            _, (oldest, _) = self._cache.popitem(last=False)
            oldest.wipe()
        return secret
