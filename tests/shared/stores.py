"""The file stores side by side, for tests of what all of them promise."""

from __future__ import annotations

import os

import obstore

from shared.files import FileStore, InMemoryFiles, Owner, StoredFile
from shared.localfiles import LocalFiles
from shared.objectfiles import ObjectFiles, _data

ACME = Owner("acme")
LEASED = Owner("acme", "prn_a", "recover", lease="lease_1")
KEY = bytes(range(32))


class Clock:
    def __init__(self) -> None:
        self.now = 1_760_000_000.25

    def __call__(self) -> float:
        return self.now


def put(store: FileStore, data: bytes = b"bytes", ttl_s: float = 60.0, owner: Owner = ACME) -> StoredFile:
    with store.create(owner, "image/png", ttl_s, key=KEY if owner.lease else None) as writer:
        writer.write(data)
        return writer.commit()


def remains(store: FileStore) -> list[str]:
    """Everything that lies in the store, files or not."""
    match store:
        case LocalFiles():
            return sorted(str(path) for path in store._folder.rglob("*") if path.is_file())
        case ObjectFiles():
            return sorted(meta["path"] for page in obstore.list(store._store) for meta in page)
        case InMemoryFiles():
            return sorted(store._held)
    raise TypeError(type(store))


def lying(store: FileStore, file_id: str) -> bytes:
    """The bytes of a file as they lie in the store."""
    with store._raw(file_id) as raw:
        return raw.read()


def overwrite(store: FileStore, file_id: str, data: bytes) -> None:
    """What a bad disk does."""
    match store:
        case LocalFiles():
            store._path(file_id).write_bytes(data)
        case ObjectFiles():
            obstore.put(store._store, _data(file_id), data)
        case InMemoryFiles():
            store._put(store.stat(file_id), data)


def describe(store: FileStore, file_id: str, text: str) -> None:
    """Write another description, as nobody should. Only for stores that keep them as text."""
    match store:
        case LocalFiles():
            path = store._path(file_id).with_name(f"{file_id}.json")
            time_ns = path.stat().st_mtime_ns
            path.write_text(text)
            os.utime(path, ns=(time_ns, time_ns))
        case ObjectFiles():
            obstore.put(store._store, f"{_data(file_id)}.json", text.encode())
