"""Files under a lease, encrypted at rest: AES-256-GCM in segments of 64 KiB, so that a reader can seek.

    file     = version (1 byte, 1) | prefix (7 random bytes) | segment_0 | … | segment_n-1
    segment  = AES-256-GCM(file key, nonce, 65,536 bytes of the file (the last: what is left), aad = the first 8 bytes)
    nonce    = prefix | index of the segment (4 bytes, big-endian) | 1 for the last segment, else 0
    file key = HKDF-SHA-256(key of the lease, no salt, info = "tenfold/file/v1" | 0 | file id)

The construction of Hoang, Reyhanitabar, Rogaway and Vizár (STREAM, CRYPTO 2015): index and last mark in the nonce make
a segment worthless in any other place, and the key of its own makes it worthless in any other file. The reader opens
the last segment first, so a truncated file is refused before its first byte is given out.
"""

from __future__ import annotations

import io
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, ClassVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from shared.problems import Problem

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

KEY_BYTES = 32
SEGMENT_BYTES = 64 * 1024
_TAG_BYTES = 16
_PREFIX_BYTES = 7
_HEADER_BYTES = 1 + _PREFIX_BYTES
_SEALED_BYTES = SEGMENT_BYTES + _TAG_BYTES
_VERSION = b"\x01"
_MAX_SEGMENTS = 2**32


class FileDamaged(Problem):
    """What the store holds of this file is not what was written. It cannot be opened."""

    code: ClassVar[str] = "file_damaged"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "The stored file is damaged."


def file_cipher(lease_key: bytes | bytearray, file_id: str) -> AESGCM:
    """The cipher of one file. `lease_key` has 32 bytes; the same pair always gives the same cipher."""
    if len(lease_key) != KEY_BYTES:
        raise ValueError(f"a lease's file key has {KEY_BYTES} bytes, not {len(lease_key)}")
    info = b"tenfold/file/v1\0" + file_id.encode()
    return AESGCM(HKDF(SHA256(), KEY_BYTES, salt=None, info=info).derive(bytes(lease_key)))


def _nonce(header: bytes, index: int, *, last: bool) -> bytes:
    return header[1:] + index.to_bytes(4, "big") + bytes([last])


class SegmentEncryptor:
    """Plain bytes in pieces of any size; sealed segments out, through `emit`. Holds one segment at most."""

    def __init__(self, cipher: AESGCM, emit: Callable[[bytes], None]) -> None:
        self._cipher = cipher
        self._emit = emit
        self._header = _VERSION + secrets.token_bytes(_PREFIX_BYTES)
        self._index = 0
        self._pending = bytearray()
        emit(self._header)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        while view:
            if len(self._pending) == SEGMENT_BYTES:  # only now is it known that this is not the last one
                self._seal(last=False)
            taken = min(len(view), SEGMENT_BYTES - len(self._pending))
            self._pending += view[:taken]
            view = view[taken:]

    def finish(self) -> None:
        """Seal the last segment. An empty file has one empty segment."""
        self._seal(last=True)

    def _seal(self, *, last: bool) -> None:
        if self._index == _MAX_SEGMENTS:
            raise ValueError("the file has more segments than the nonce can count")
        nonce = _nonce(self._header, self._index, last=last)
        self._emit(self._cipher.encrypt(nonce, bytes(self._pending), self._header))
        self._index += 1
        self._pending.clear()


class SegmentReader(io.RawIOBase):
    """The plain bytes of a sealed file: seekable, one open segment in memory. Closes `sealed` with itself.

    Raises `FileDamaged`, at once or when the segment is reached, for anything that was not written like this by
    `SegmentEncryptor`; it never says what is wrong.
    """

    def __init__(self, sealed: BinaryIO, cipher: AESGCM) -> None:
        super().__init__()
        self._sealed = sealed
        self._cipher = cipher
        self._position = 0
        self._opened = -1
        self._segment = b""
        sealed.seek(0)
        self._header = sealed.read(_HEADER_BYTES)
        body_bytes = sealed.seek(0, io.SEEK_END) - _HEADER_BYTES
        self._count = -(-body_bytes // _SEALED_BYTES)
        if len(self._header) != _HEADER_BYTES or self._header[:1] != _VERSION or not 0 < self._count <= _MAX_SEGMENTS:
            raise FileDamaged
        self.size = body_bytes - self._count * _TAG_BYTES
        if self.size <= (self._count - 1) * SEGMENT_BYTES and self._count > 1:  # a last segment without a byte
            raise FileDamaged
        self._open(self._count - 1)

    def _open(self, index: int) -> None:
        if index == self._opened:
            return
        self._sealed.seek(_HEADER_BYTES + index * _SEALED_BYTES)
        nonce = _nonce(self._header, index, last=index == self._count - 1)
        try:
            self._segment = self._cipher.decrypt(nonce, self._sealed.read(_SEALED_BYTES), self._header)
        except InvalidTag:
            raise FileDamaged from None
        self._opened = index

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if start + offset < 0:
            raise ValueError(f"the file has no byte {start + offset}")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        if self._position >= self.size:
            return 0
        index, offset = divmod(self._position, SEGMENT_BYTES)
        self._open(index)
        view = memoryview(buffer).cast("B")
        piece = self._segment[offset : offset + len(view)]
        view[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def close(self) -> None:
        if not self.closed:
            self._segment = b""
            self._sealed.close()
        super().close()
