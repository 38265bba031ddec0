"""Who holds the key-encryption keys: the interface of a provider, and the one that reads a file.

A provider knows several versions of its key; the newest wraps, all of them unwrap. Nothing else in custody ever sees a
key-encryption key (key-custody.md, section 2).
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, Self

from shared.keyderivation import NONCE_BYTES, SECRET_BYTES, WrongKey, unwrap, wrap
from shared.problems import KekUnavailable, SecretKeyIntegrity
from shared.secretbytes import SecretBytes, wipe

ALG: Final = "A256GCM"


@dataclass(frozen=True)
class KekVersion:
    """A key-encryption key by name: what a wrapped secret says about how it can be opened."""

    kek_id: str
    version: int


class KekProvider(Protocol):
    """Wraps and unwraps 32-byte secrets. Asynchronous, because most providers live on another machine."""

    async def primary(self) -> KekVersion:
        """The version that new secrets are wrapped with. Raises `KekUnavailable`."""

    async def wrap(self, kek: KekVersion, secret: SecretBytes, aad: bytes) -> tuple[bytes, bytes]:
        """Encrypt `secret`; returns (nonce, ciphertext and tag). Raises `KekUnavailable`."""

    async def unwrap(self, kek: KekVersion, nonce: bytes, ciphertext: bytes, aad: bytes) -> SecretBytes:
        """Decrypt. Raises `KekUnavailable`, and `SecretKeyIntegrity` where nonce, ciphertext or AAD were altered."""

    async def health(self) -> str:
        """`ok` or `down`; never raises."""


class InsecureFileKek:
    """Key-encryption keys from a JSON file {version: base64 of 32 bytes}: for one machine, not for production.

    Whoever reads the file and a copy of Redis opens every picture, so the file must be readable by its owner alone
    (mode 0400) and owned by this process. It is read anew at every use: nothing is kept in memory, and a file that was
    taken away locks custody at once.
    """

    kek_id = "file"

    def __init__(self, path: Path, *, environment: str) -> None:
        """Check the file once. Raises `ValueError` in production, `KekUnavailable` for a file that cannot be used."""
        if environment == "production":
            raise ValueError(
                "the key-encryption key lies in a file, which environment=production refuses: use a key service"
            )
        self._path = path
        _wipe_all(self._read())

    @classmethod
    def create(cls, path: Path, *, environment: str) -> Self:
        """Write a new file with version 1, mode 0400. Raises `FileExistsError` rather than replace one."""
        key = SecretBytes(secrets.token_bytes(SECRET_BYTES))
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
        with key, os.fdopen(descriptor, "wb") as file:
            file.write(b'{"1": "' + base64.b64encode(key.octets) + b'"}\n')
            file.flush()
            os.fsync(file.fileno())
        return cls(path, environment=environment)

    async def primary(self) -> KekVersion:
        keys = self._read()
        _wipe_all(keys)
        return KekVersion(self.kek_id, max(keys))

    async def wrap(self, kek: KekVersion, secret: SecretBytes, aad: bytes) -> tuple[bytes, bytes]:
        nonce = secrets.token_bytes(NONCE_BYTES)  # far below 2^32 wraps a version, so random ones do not meet
        with self._key(kek) as key:
            return nonce, wrap(key.octets, nonce, secret.octets, aad, ALG)

    async def unwrap(self, kek: KekVersion, nonce: bytes, ciphertext: bytes, aad: bytes) -> SecretBytes:
        with self._key(kek) as key:
            try:
                return SecretBytes(unwrap(key.octets, nonce, ciphertext, aad, ALG))
            except WrongKey:
                raise SecretKeyIntegrity from None

    async def health(self) -> str:
        try:
            _wipe_all(self._read())
        except KekUnavailable:
            return "down"
        return "ok"

    def _key(self, kek: KekVersion) -> SecretBytes:
        if kek.kek_id != self.kek_id:
            raise SecretKeyIntegrity
        keys = self._read()
        key = keys.pop(kek.version, None)
        _wipe_all(keys)
        if key is None:
            raise KekUnavailable(f"Version {kek.version} of the key-encryption key is not in the file.")
        return key

    def _read(self) -> dict[int, SecretBytes]:
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise KekUnavailable(f"The key-encryption key cannot be read: {error.strerror}.") from error
        with os.fdopen(descriptor, "rb") as file:
            facts = os.fstat(descriptor)
            if stat.S_IMODE(facts.st_mode) != 0o400 or facts.st_uid != os.geteuid():
                raise KekUnavailable(
                    "The file of the key-encryption key must have mode 0400 and belong to this process."
                )
            text = bytearray(file.read())
        try:
            keys = {
                int(version): SecretBytes(base64.b64decode(key, validate=True))
                for version, key in json.loads(text).items()
            }
        except (ValueError, AttributeError, TypeError, binascii.Error):
            raise KekUnavailable("The file of the key-encryption key is not a JSON object of base64 keys.") from None
        finally:
            wipe(text)
        if not keys or any(len(key) != SECRET_BYTES for key in keys.values()) or min(keys) < 1:
            raise KekUnavailable(f"The file must hold keys of {SECRET_BYTES} bytes under versions from 1 on.")
        return keys


def _wipe_all(keys: dict[int, SecretBytes]) -> None:
    for key in keys.values():
        key.wipe()
