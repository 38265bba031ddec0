"""Work over the pictures of an archive: a few at a time, each few a unit, so that a restart redoes only open ones.

A picture that cannot be read, or a line of the manifest that is wrong, is the problem of that entry alone.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO, Generic, TypeVar

from shared import images
from shared.archives import Archive as OpenArchive
from shared.images import Picture
from shared.jobcontext import JobContext
from shared.manifests import Entry, entries_of
from shared.problems import Problem
from shared.resultarchives import MEDIA_TYPE, ResultArchive, Target
from shared.types import Archive, Response

_SUFFIXES = {"image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp", "application/json": ".json"}

_Prepared = TypeVar("_Prepared")


@dataclass(frozen=True)
class Item(Generic[_Prepared]):
    """One readable picture of an archive, and what was made of it."""

    entry: Entry
    content: _Prepared


@dataclass(frozen=True)
class Chunk(Generic[_Prepared]):
    """Some neighbouring entries: one unit of the job."""

    index: int
    of: int
    items: list[Item[_Prepared]]
    problems: list[tuple[Entry, Problem]]
    """The entries that cannot be read, and why."""


def chunks(
    archive: Archive, job: JobContext, prepare: Callable[[Picture], _Prepared], at_once: int
) -> Iterator[Chunk[_Prepared]]:
    """The parts of an archive that no earlier attempt finished. The caller marks each: `job.unit(c.index, c.of, …)`.

    prepare  what is kept of a decoded picture. Runs in another thread, which is one part ahead; may raise a `Problem`
    at_once  entries of one part
    """
    opened = archive.opened
    entries = entries_of(opened)
    of = -(-len(entries) // at_once)

    def read(index: int) -> Chunk[_Prepared]:
        chunk: Chunk[_Prepared] = Chunk(index, of, [], [])
        for entry in entries[index * at_once : (index + 1) * at_once]:
            try:
                chunk.items.append(Item(entry, prepare(_picture(opened, entry))))
            except Problem as problem:
                chunk.problems.append((entry, problem))
        return chunk

    done = job.outputs()
    following = iter([index for index in range(of) if index not in done][1:])
    with ThreadPoolExecutor(1, thread_name_prefix="archive") as reader:
        coming: Future[Chunk[_Prepared]] | None = None
        for index in job.units(of):
            chunk = job.outside((coming or reader.submit(read, index)).result)
            after = next(following, None)
            coming = None if after is None else reader.submit(read, after)
            yield chunk


def worked(
    archive: Archive,
    job: JobContext,
    prepare: Callable[[Picture], _Prepared],
    work: Callable[[Sequence[Item[_Prepared]]], Sequence[Response | Problem]],
    *,
    at_once: int,
) -> Archive:
    """The archive of what `work` gives for every picture: `results.jsonl` in the order of the input, and files.

    work  gets up to `at_once` items, and answers with a response or a problem for each. A file in a response becomes a
          file of the archive, `<field>/<number of the entry><suffix>`, and the line of the entry names it so
    """
    for chunk in chunks(archive, job, prepare, at_once):
        outcomes: dict[int, Response | Problem] = {entry.index: problem for entry, problem in chunk.problems}
        if chunk.items:
            answers = work(chunk.items)
            outcomes |= {item.entry.index: answer for item, answer in zip(chunk.items, answers, strict=True)}
        job.unit(chunk.index, chunk.of, [_said(outcomes[index]) for index in sorted(outcomes)])
    entries = entries_of(archive.opened)
    outputs = job.outputs()

    def fill(target: Target, opened: Callable[[str], BinaryIO]) -> None:
        said = [outcome for index in sorted(outputs) for outcome in outputs[index]]
        with ResultArchive(target, len(entries)) as results:
            for entry, outcome in zip(entries, said, strict=True):
                if "error" in outcome:
                    results.fail(entry, Problem.from_body(outcome["error"]))
                else:
                    files: dict[str, bytes] = {}
                    results.add(entry, _packed(outcome["result"], "", entry.index, opened, files), files)

    return job.write(Archive, MEDIA_TYPE, fill)


def _picture(opened: OpenArchive, entry: Entry) -> Picture:
    if entry.error is not None:
        raise entry.error
    return images.decode(io.BytesIO(opened.read(entry.path)))


def _said(outcome: Response | Problem) -> dict[str, Any]:
    return {"error": outcome.body()} if isinstance(outcome, Problem) else {"result": outcome}


def _packed(value: Any, field: str, index: int, opened: Callable[[str], BinaryIO], files: dict[str, bytes]) -> Any:
    """A result as the archive has it: its stored files moved to `files`, and named by their paths there."""
    if isinstance(value, list):
        return [_packed(item, _inside(field, str(place)), index, opened, files) for place, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if not {"file", "media_type", "sha256"} <= value.keys():
        return {name: _packed(item, _inside(field, name), index, opened, files) for name, item in value.items()}
    path = f"{field}/{index:05d}{_SUFFIXES.get(value['media_type'], '.bin')}"
    with opened(value["file"]) as stream:
        files[path] = stream.read()
    return path


def _inside(field: str, name: str) -> str:
    return f"{field}-{name}" if field else name
