"""The file store in a bucket of S3, Azure or GCS: any number of machines, nothing of it on their disks.

Imports `obstore`, which only installations with an object store have: `shared.filestores` imports this module when the
settings name one.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import timedelta
from tempfile import SpooledTemporaryFile
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import urlsplit

import obstore
import structlog
from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, S3Store

from shared.files import BUFFER_BYTES, RETRY_S, FileDamaged, FileStore, checked_id, store_problem
from shared.problems import ServiceUnavailable, StoredFileNotFound
from shared.storedfile import Owner, Sink, StoredFile, moment

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from obstore import WritableFile
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

MIN_PART_BYTES = 5 * 2**20  # S3 takes no smaller ones, but for the last
PART_BYTES = MIN_PART_BYTES + 1  # obstore waits for a part when it is given more, and not when it is told to flush
SPOOL_BYTES = 256 * 1024  # of the part that a file is at; what is more lies in the system's folder for temporary files
COPY_BYTES = 256 * 1024
TRANSFERS = 3  # parts of one process on their way at once: memory for uploads is bounded by this, not by their number
FIRST_READ_BYTES = 256 * 1024  # most files that are read are pictures of about this size
NEXT_READ_BYTES = 2**20
SWEEPERS = 8
SWEEP_GRACE_S = 60.0  # whoever extended a file just before its end has written that down by then
CHECK_S = 2.0

log = structlog.get_logger()


class ObjectFiles(FileStore):
    """Files in a bucket, under the prefix of its URL.

    A file is three objects: its bytes `<two last characters of its id>/<id>`, its description `<id>.json` beside them,
    and a mark `due/<hour>/<expiry in ms>.<id>`. It exists once the description does, which is written last and removed
    first. The mark is written before the bytes appear and removed last: so a sweep looks at the marks of the hours that
    are over and never at the whole bucket, and finds what a crash left as it finds what is over.

    url         s3://bucket/prefix, gs://bucket/prefix or az://account/container/prefix; credentials and endpoint come
                from the environment variables that obstore knows (`AWS_…`, `AZURE_…`, `GOOGLE_…`)
    patience_s  how long a request may be tried again; an answer, good or bad, comes within twice that time
    """

    def __init__(self, url: str, patience_s: float, now: Callable[[], float] = time.time) -> None:
        super().__init__(now)
        self._patience_s = patience_s
        self._transfers = ThreadPoolExecutor(TRANSFERS, "files")
        self._store = _connected(url, timeout_s=patience_s, retries=5, retry_s=patience_s)
        self._prompt = _connected(url, timeout_s=CHECK_S, retries=0, retry_s=CHECK_S)

    def stat(self, file_id: str) -> StoredFile:
        stored = self._described(file_id)
        if stored.expires_at <= self._now():
            raise StoredFileNotFound
        return stored

    def delete(self, file_id: str) -> None:
        with contextlib.suppress(StoredFileNotFound):
            try:
                due = [_due(file_id, self._described(file_id).expires_at)]
            except FileDamaged:
                due = []
            self._remove(file_id, *due)

    def extend(self, file_id: str, ttl_s: float) -> None:
        stored = self.stat(file_id)
        expires_at = moment(self._now() + ttl_s)
        if expires_at <= stored.expires_at:
            return
        longer = replace(stored, expires_at=expires_at)
        with _errors("changed"):
            self._put(
                _due(file_id, expires_at), b""
            )  # the mark before stays, and tells the sweep nothing once it is due
            self._put(_description(file_id), _encoded(longer))
            try:
                obstore.head(self._store, _data(file_id))
            except FileNotFoundError:  # deleted meanwhile: its description must not come back
                self._remove(file_id, _due(file_id, expires_at))
                raise StoredFileNotFound from None

    def sweep(self, now: float | None = None) -> int:
        until = (self._now() if now is None else now) - SWEEP_GRACE_S
        with _errors("swept"), ThreadPoolExecutor(SWEEPERS) as pool:
            return sum(sum(pool.map(self._end, marks, [until] * len(marks))) for marks in self._marks(until))

    def check(self) -> None:
        with _errors("reached"):
            obstore.list_with_delimiter(self._prompt, "due")  # an object that is not there may be a bucket that is not

    def _marks(self, until: float) -> Iterator[list[str]]:
        """Marks that are due, a page at a time."""
        hours = obstore.list_with_delimiter(self._store, "due")["common_prefixes"]
        for hour in hours:
            if hour <= f"due/{_hour(until)}":
                for page in obstore.list(self._store, hour, chunk_size=1000):
                    yield [mark["path"] for mark in page if int(_mark(mark["path"])[0]) <= until * 1000]

    def _end(self, due: str, until: float) -> bool:
        """Remove the file that this mark is of, unless it was extended. Returns whether there was something left."""
        file_id = _mark(due)[1]
        try:
            if self._described(file_id).expires_at > until:
                self._delete(due)
                return False
        except StoredFileNotFound:
            if not self._is_held(file_id):
                self._delete(due)
                return False
        except FileDamaged:
            log.warning("files.damaged", file=file_id)
        self._remove(file_id, due)
        return True

    def _is_held(self, file_id: str) -> bool:
        try:
            obstore.head(self._store, _data(file_id))
        except FileNotFoundError:
            return False
        return True

    def _described(self, file_id: str) -> StoredFile:
        """What is known of the file, over or not."""
        path = _description(checked_id(file_id))
        with _errors("read"):
            try:
                text = bytes(obstore.get(self._store, path).bytes())
            except FileNotFoundError:
                raise StoredFileNotFound from None
        try:
            fields = json.loads(text)
            return StoredFile(**{**fields, "owner": Owner(**fields["owner"])})
        except (ValueError, TypeError, KeyError) as error:
            raise FileDamaged from error

    def _remove(self, file_id: str, *due: str, patient: bool = True) -> None:
        """Remove the three objects of a file, the mark last: what a crash leaves, a sweep will find."""
        with _errors("changed"):
            for path in (_description(file_id), _data(file_id), *due):
                self._delete(path, patient=patient)

    def _delete(self, path: str, *, patient: bool = True) -> None:
        with contextlib.suppress(FileNotFoundError):  # S3 never says so, Azure and GCS do
            obstore.delete(self._store if patient else self._prompt, path)

    def _put(self, path: str, data: bytes) -> None:
        obstore.put(self._store, path, data, use_multipart=False)

    def _transfer(self, send: Callable[[], None]) -> None:
        """Have it sent, and wait. Raises `ServiceUnavailable` where its turn does not come."""
        sending = self._transfers.submit(send)
        try:
            sending.result(self._patience_s)
        except TimeoutError as error:
            if sending.cancel():
                raise ServiceUnavailable("The file store takes files too slowly.", retry_after_s=RETRY_S) from error
            sending.result()

    def _sink(self, file_id: str) -> Sink:
        return _ObjectSink(self, file_id)

    def _raw(self, file_id: str) -> BinaryIO:
        with _errors("read"):
            try:
                return io.BufferedReader(_ObjectReader(self._store, _data(checked_id(file_id))), BUFFER_BYTES)
            except FileNotFoundError:
                raise StoredFileNotFound from None


class _ObjectSink:
    """A file on its way: gathered to parts of `PART_BYTES`, or to one object if it ends before."""

    def __init__(self, files: ObjectFiles, file_id: str) -> None:
        self._files = files
        self._id = file_id
        self._part = SpooledTemporaryFile(max_size=SPOOL_BYTES)  # noqa: SIM115 - lives as long as the sink
        self._part_bytes = 0
        self._upload: WritableFile | None = None
        self._due: str | None = None
        self._failed = False

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        with self._sending():
            while view:
                if self._part_bytes == PART_BYTES:  # only now is it known that this is not the last one
                    self._files._transfer(self._send)
                taken = view[: PART_BYTES - self._part_bytes]
                self._part.write(taken)
                self._part_bytes += len(taken)
                view = view[len(taken) :]

    def commit(self, stored: StoredFile) -> None:
        self._due = _due(stored.id, stored.expires_at)
        with self._sending():
            self._files._put(self._due, b"")
            if self._part_bytes <= SPOOL_BYTES and self._upload is None:
                self._send_last()  # is in memory as it is
            else:
                self._files._transfer(self._send_last)
            self._files._put(_description(self._id), _encoded(stored))
        self._part.close()

    def abort(self) -> None:
        self._part.close()
        if self._upload is None and self._due is None:
            return  # nothing was sent
        # What cannot be removed now, a sweep will remove; parts that nobody put together, the bucket's own rule.
        with contextlib.suppress(BaseError, OSError, ServiceUnavailable):
            if self._upload is not None and not self._failed:
                self._due = self._due or _due(self._id, self._files._now())
                self._files._put(self._due, b"")
                self._upload.close()  # the only end of an upload that obstore knows
            self._upload = None
            self._files._remove(self._id, *filter(None, [self._due]), patient=not self._failed)

    @contextlib.contextmanager
    def _sending(self) -> Iterator[None]:
        try:
            with _errors("written"):
                yield
        except BaseException:
            self._failed = True
            raise

    def _send(self) -> None:
        """Send the part and wait until the store has it."""
        if self._upload is None:
            path = _data(self._id)
            self._upload = obstore.open_writer(self._files._store, path, buffer_size=MIN_PART_BYTES, max_concurrency=1)
        self._part.seek(0)
        while piece := self._part.read(COPY_BYTES):
            self._upload.write(piece)
        self._part.seek(0)
        self._part.truncate()
        self._part_bytes = 0

    def _send_last(self) -> None:
        """Send what is left, and make it one object with what was sent."""
        if self._upload is None:
            self._part.seek(0)
            self._files._put(_data(self._id), self._part.read())
        else:
            self._send()
            self._upload.close()
            self._upload = None


class _ObjectReader(io.RawIOBase):
    """The bytes of an object, seekable: a block of it in memory, small after a seek, then larger."""

    def __init__(self, store: ObjectStore, path: str) -> None:
        super().__init__()
        self._store = store
        self._path = path
        self._position = 0
        self._start = 0
        self._block = memoryview(b"")
        try:
            first = obstore.get(store, path, options={"range": (0, FIRST_READ_BYTES)})
            self.size = first.meta["size"]
            self._block = memoryview(first.bytes())
        except BaseError:
            self.size = obstore.head(store, path)["size"]
            if self.size:  # an empty object has no range
                raise

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
        view = memoryview(buffer).cast("B")
        if self._position >= self.size or not view:
            return 0
        if not self._start <= self._position < self._start + len(self._block):
            self._fetch()
        offset = self._position - self._start
        piece = self._block[offset : offset + len(view)]
        view[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def _fetch(self) -> None:
        goes_on = self._position == self._start + len(self._block)
        stop = min(self.size, self._position + (NEXT_READ_BYTES if goes_on else FIRST_READ_BYTES))
        self._block = memoryview(b"")  # never two of them in memory
        with _errors("read"):
            try:
                block = obstore.get_range(self._store, self._path, start=self._position, end=stop)
            except FileNotFoundError:
                raise StoredFileNotFound from None  # deleted while it was read
        self._start, self._block = self._position, memoryview(block)

    def close(self) -> None:
        self._block = memoryview(b"")
        super().close()


def _connected(url: str, *, timeout_s: float, retries: int, retry_s: float) -> ObjectStore:
    client: ClientConfig = {
        "connect_timeout": timedelta(seconds=CHECK_S),
        "timeout": timedelta(seconds=timeout_s),
        "allow_http": True,  # where the environment names such an endpoint; those of the clouds are https
    }
    retry: RetryConfig = {
        "max_retries": retries,
        "retry_timeout": timedelta(seconds=retry_s),
        "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=2), "base": 2},
    }
    scheme, bucket, path = urlsplit(url)[:3]
    prefix = path.strip("/")
    match scheme:
        case "s3":
            return S3Store(bucket, prefix=prefix or None, client_options=client, retry_config=retry)
        case "gs":
            return GCSStore(bucket, prefix=prefix or None, client_options=client, retry_config=retry)
        case "az":
            container, _, prefix = prefix.partition("/")
            return AzureStore(
                container, prefix=prefix or None, account_name=bucket, client_options=client, retry_config=retry
            )
        case _:
            raise ValueError("the URL begins with s3://, az:// or gs://")


def _data(file_id: str) -> str:
    return f"{file_id[-2:]}/{file_id}"


def _description(file_id: str) -> str:
    return f"{_data(file_id)}.json"


def _hour(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H", time.gmtime(at))


def _due(file_id: str, expires_at: float) -> str:
    return f"due/{_hour(expires_at)}/{round(expires_at * 1000)}.{file_id}"


def _mark(due: str) -> tuple[str, str]:
    """Expiry in milliseconds and file of a mark."""
    expiry_ms, _, file_id = due.rpartition("/")[2].partition(".")
    return expiry_ms, file_id


def _encoded(stored: StoredFile) -> bytes:
    return json.dumps(asdict(stored)).encode()


@contextlib.contextmanager
def _errors(done: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:  # of an object that is being written: the bucket
        log.warning("files.store_failed", done=done, error=_said(error))
        raise ServiceUnavailable(f"The file store cannot be {done}: there is no such bucket.") from error
    except OSError as error:
        raise store_problem(done, error) from error
    except BaseError as error:
        log.warning("files.store_failed", done=done, error=_said(error))  # names the bucket, which callers need not see
        raise ServiceUnavailable(
            f"The file store cannot be {done}: it does not answer.", retry_after_s=RETRY_S
        ) from error


def _said(error: Exception) -> str:
    return str(error).partition("\n\nDebug source")[0]
