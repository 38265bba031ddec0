"""Photographs in, photographs out: find, align, compute, paste, seal. A plain object without a server."""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from services.ifadit import forensic, photograph
from services.ifadit.anonymizer import Drawn, Ifadit
from services.ifadit.keys import key_vector
from services.ifadit.photograph import Place
from services.ifadit.service import (
    Anonymized,
    AnonymizeRequest,
    Box,
    FaceReport,
    NoFace,
    OutputFormat,
    Recovered,
    RecoverRequest,
    Sidecar,
    Verified,
    VerifyRequest,
)
from shared import images
from shared.faces import FaceFinder, Matrix, Pixels
from shared.images import Picture
from shared.jobcontext import JobContext, Member
from shared.leases import ForensicKeys, image_nonce
from shared.problems import LeaseExpired, Problem, RecordInvalid, RecordMismatch
from shared.secretbytes import SecretBytes
from shared.service import Document, Image

RECORD_KEYWORD = "tenfold-record"  # of the PNG chunk that carries the record
FACES_A_PASS = 16
LOOKS_KEPT = 64  # photographs whose faces were found for a guard: they mostly come back within a second
_MEDIA_TYPES: dict[OutputFormat, str] = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg"}

_Pass = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Drawn]
_Some = TypeVar("_Some")


@dataclass
class _Task:
    """One photograph of a batch that is still on its way."""

    member: Member
    picture: Picture
    places: list[Place]
    record: dict[str, Any] | None = None
    record_match: bool = True
    nonces: tuple[str, ...] = ()
    keys: list[SecretBytes] | None = None
    forensic: ForensicKeys | None = None
    restored: Pixels | None = None
    drawn: Pixels | None = None

    @property
    def matrices(self) -> list[Matrix]:
        return [place.matrix for place in self.places if place.matrix is not None]

    @property
    def redacted(self) -> list[Place]:
        return [place for place in self.places if place.matrix is None]


class IfaditPipeline:
    """The networks of one model and the face finder, on one device."""

    def __init__(self, networks: Ifadit, finder: FaceFinder, device: torch.device, figures: dict[str, float]) -> None:
        self.networks = networks
        self.finder = finder
        self.device = device
        self.expected_recovery = figures
        self._looked_at: OrderedDict[tuple[str, str], list[Place]] = OrderedDict()
        self._mask = networks.mean_face_mask().to(device)
        self.memory_bytes = sum(t.numel() * t.element_size() for t in networks.state_dict().values())

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> Self:
        """The model of a folder. Raises `WeightsDamaged`."""
        networks = Ifadit.load(folder, device)
        return cls(networks, FaceFinder.load(device), device, _expected_recovery(folder))

    # the three operations

    def anonymize(self, requests: Sequence[AnonymizeRequest], job: JobContext) -> list[Anonymized | Problem]:
        """Every face replaced by the one that its key says. The faces of all photographs are drawn together."""
        job.stage("finding faces")
        tasks = [_try(partial(self._found, r, m)) for r, m in zip(requests, job.members, strict=True)]
        job.stage("drawing")
        try:
            tasks = self._drawn(tasks, self.networks.anonymize)
            job.stage("sealing")
            return [_unless(task, partial(self._sealed, r)) for task, r in zip(tasks, requests, strict=True)]
        finally:
            for task in tasks:
                if isinstance(task, _Task) and task.forensic:
                    task.forensic.dek.wipe()

    def recover(self, requests: Sequence[RecoverRequest], job: JobContext) -> list[Recovered | Problem]:
        """Every face that a record names drawn again with the identity it had."""
        job.stage("reading records")
        tasks = [_try(partial(self._recorded, r, m)) for r, m in zip(requests, job.members, strict=True)]
        job.stage("drawing")
        tasks = self._drawn(tasks, self.networks.recover)
        return [_unless(task, partial(self._recovered, r)) for task, r in zip(tasks, requests, strict=True)]

    def verify(self, requests: Sequence[VerifyRequest], job: JobContext) -> list[Verified | Problem]:
        """Whether a record belongs to a picture, or how alike two people are."""
        return [_try(partial(self._verified, r, m)) for r, m in zip(requests, job.members, strict=True)]

    def views(self, request: AnonymizeRequest | RecoverRequest | VerifyRequest) -> list[Picture]:
        """What a guard looks at: every face, cut out upright; where none is found, the whole picture."""
        boxes = request.faces if isinstance(request, AnonymizeRequest) else None
        other = [request.other] if isinstance(request, VerifyRequest) and request.other is not None else []
        shown = [(request.image, boxes), *((image, None) for image in other)]
        return [view for image, named in shown for view in self._views_of(image, named)]

    def _views_of(self, image: Image, boxes: Sequence[Box] | None) -> list[Picture]:
        picture = image.picture
        try:
            places = self._places(image, boxes)
        except NoFace:
            return [picture]
        self._looked_at[_look(image, boxes)] = places
        while len(self._looked_at) > LOOKS_KEPT:
            self._looked_at.popitem(last=False)
        matrices = [place.matrix for place in places if place.matrix is not None]
        return [Picture(face) for face in photograph.crops(picture.pixels, matrices, self.size)] or [picture]

    # steps

    def _places(self, image: Image, boxes: Sequence[Box] | None) -> list[Place]:
        """The faces of a photograph, not searched for again where a guard was just shown them."""
        known = self._looked_at.pop(_look(image, boxes), None)
        return known or photograph.find(image.picture.pixels, self.finder, boxes, self.size)

    def _found(self, request: AnonymizeRequest, member: Member) -> _Task:
        task = _Task(member, request.image.picture, self._places(request.image, request.faces))
        count = len(task.matrices)
        if count:
            linked = request.linkage == "per_key"
            task.nonces = tuple("" if linked else image_nonce(member.id, i) for i in range(count))
            claim = {"nonces": list(task.nonces), "key_scheme": self.scheme, "dim": self.dim}
            if request.mode == "forensic":
                task.forensic = member.redeem_forensic(**claim)
                task.keys = task.forensic.keys
            else:
                task.keys = member.redeem(**claim)
        return task

    def _recorded(self, request: RecoverRequest, member: Member) -> _Task:
        picture = request.image.picture
        record = _record(request.image, request.record)
        match = _matches(record, picture)
        if not match and request.sidecar is not None:
            raise RecordMismatch("Exact recovery takes the very picture; without its sidecar, `allow_modified` helps.")
        if not match and not request.allow_modified:
            raise RecordMismatch("The picture is not, pixel for pixel, the one that was recorded.")
        places = photograph.from_entries(record.get("faces", []))
        task = _Task(member, picture, places, record, match)
        claim = {"record": record, "purpose": request.purpose, "key_scheme": self.scheme, "dim": self.dim}
        if request.sidecar is not None:
            sidecar = forensic.read(request.sidecar.content, record)
            with member.redeem_dek(wrapped_dek=sidecar.wrapped_dek, **claim) as dek:
                sha256 = record["image"]["pixel_sha256"]
                task.restored = forensic.restored(picture.pixels, sidecar, dek=dek.octets, pixel_sha256=sha256)
            return task
        task.keys = member.redeem(**claim)
        if len(task.keys) != len(task.matrices):
            raise RecordInvalid
        return task

    def _drawn(self, tasks: Sequence[_Task | Problem], network: _Pass) -> list[_Task | Problem]:
        """Cut out, draw, a few faces at a time whatever photograph they are of; keys are wiped here, come what may."""
        good = [task for task in tasks if isinstance(task, _Task) and task.restored is None]
        keys = [key for task in good for key in task.keys or ()]
        try:
            vectors = [key_vector(key.octets, self.scheme) for key in keys]
            faces = [photograph.crops(task.picture.pixels, task.matrices, self.size) for task in good]
            drawn = list(self._passes(np.concatenate(faces), vectors, network)) if vectors else []
            for vector in vectors:
                vector.zero_()
        finally:
            for key in keys:
                key.wipe()
        for task, part in zip(good, photograph.split(drawn, [len(task.matrices) for task in good]), strict=True):
            task.drawn = np.stack(part) if len(part) else np.zeros((0, self.size, self.size, 3), np.uint8)
        return list(tasks)

    def _passes(self, faces: Pixels, vectors: Sequence[torch.Tensor], network: _Pass) -> Iterator[Pixels]:
        for start in range(0, len(faces), FACES_A_PASS):
            x = torch.from_numpy(faces[start : start + FACES_A_PASS]).to(self.device).permute(0, 3, 1, 2).float() / 255
            k = torch.stack(list(vectors[start : start + FACES_A_PASS])).to(self.device)
            picture = network(x, k, self._mask).picture.clamp(0, 1)
            k.zero_()
            yield from (picture * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()

    def _sealed(self, request: AnonymizeRequest, task: _Task) -> Anonymized:
        picture, media_type = self._rewritten(task, request.output_format)
        height, width = picture.pixels.shape[:2]
        sha256 = images.pixel_sha256(_as_decoded(picture, media_type))
        originals = self._originals(task, sha256)
        sidecar: Sidecar | None = None
        if task.forensic:
            sidecar = Sidecar.of(forensic.written(task.forensic.record_id, task.forensic.wrapped_dek, originals))
        record = task.member.seal(
            {
                "key_scheme": self.scheme,
                "linkage": request.linkage,
                "image": {"w": width, "h": height, "pixel_sha256": sha256},
                "faces": photograph.entries(task.places, task.nonces, forensic.digests(originals)),
            }
        )
        texts = {RECORD_KEYWORD: json.dumps(record, separators=(",", ":"))} if media_type == "image/png" else None
        return Anonymized(
            image=_output(picture, media_type, texts),
            record=Document.of(record),
            sidecar=sidecar,
            faces=_reports(task.places, "anonymized"),
            linkage=request.linkage,
            model=task.member.model,
            key_id=record["key_id"],
            key_version=record["key_version"],
            expected_recovery=self.expected_recovery,
        )

    def _originals(self, task: _Task, pixel_sha256: str) -> dict[int, bytes]:
        """The encrypted originals of the faces, by number; empty where none are to be kept.

        Faces that are blurred for good are blurred in the originals of their neighbours, too.
        """
        if task.forensic is None:
            return {}
        nothing = np.zeros((0, self.size, self.size, 3), np.uint8)
        mask = self._soft_mask()
        try:
            return forensic.encrypted(
                photograph.pasted(task.picture.pixels, [], nothing, mask, task.redacted),
                photograph.numbered(task.places),
                mask,
                dek=task.forensic.dek.octets,
                record_id=task.forensic.record_id,
                pixel_sha256=pixel_sha256,
            )
        except ValueError as error:
            if task.forensic.dek.is_wiped:
                raise LeaseExpired("Drawing took longer than the data key was valid.") from error
            raise

    def _recovered(self, request: RecoverRequest, task: _Task) -> Recovered:
        if task.restored is not None:
            picture = replace(task.picture, pixels=task.restored, gray=False)
            media_type = _MEDIA_TYPES[request.output_format]
        else:
            aligned = [place for place in task.places if place.matrix is not None]  # the others are blurred already
            picture, media_type = self._rewritten(replace(task, places=aligned), request.output_format)
        came_as = "jpeg" if request.image.media_type == "image/jpeg" or not task.record_match else "png"
        record = task.record or {}
        return Recovered(
            image=_output(picture, media_type, None),
            faces=_reports(task.places, "recovered"),
            fidelity="parametric" if task.restored is None else "forensic",
            expected_fidelity=self.expected_recovery.get(came_as) if task.restored is None else None,
            record_match=task.record_match,
            model=task.member.model,
            key_id=record["key_id"],
            key_version=record["key_version"],
        )

    def _rewritten(self, task: _Task, output_format: OutputFormat) -> tuple[Picture, str]:
        """The photograph with its faces replaced, and the media type that was asked for."""
        drawn = task.drawn if task.drawn is not None else np.zeros((0, self.size, self.size, 3), np.uint8)
        pixels = photograph.pasted(task.picture.pixels, task.matrices, drawn, self._soft_mask(), task.redacted)
        return replace(task.picture, pixels=pixels, gray=False), _MEDIA_TYPES[output_format]

    def _soft_mask(self) -> NDArray[np.floating]:
        mask: NDArray[np.floating] = self._mask[0, 0].cpu().numpy()
        return mask

    def _verified(self, request: VerifyRequest, member: Member) -> Verified:
        picture = request.image.picture
        if request.other is not None:
            pair = [self._largest(picture), self._largest(request.other.picture)]
            x = torch.from_numpy(np.stack(pair)).to(self.device).permute(0, 3, 1, 2).float() / 255
            first, second = self.networks.embed(x)
            return Verified(record_valid=None, record_match=None, cosine=round(float(first @ second), 4))
        record = _record(request.image, request.record)
        facts = member.check_record(record)
        valid = bool(facts["valid"] and facts["own_tenant"])
        return Verified(record_valid=valid, record_match=_matches(record, picture) if valid else None, cosine=None)

    def _largest(self, picture: Picture) -> Pixels:
        places = photograph.find(picture.pixels, self.finder, None, self.size)
        aligned = [place for place in places if place.matrix is not None]
        if not aligned:
            raise NoFace("No face is large enough to be compared.")
        largest = max(aligned, key=lambda place: place.box[2] * place.box[3])
        return photograph.crops(picture.pixels, [largest.matrix], self.size)[0]  # type: ignore[list-item]

    # facts of the model

    @property
    def size(self) -> int:
        return self.networks.config.size

    @property
    def dim(self) -> int:
        return self.networks.config.key_dim

    @property
    def scheme(self) -> Any:
        return self.networks.config.key_scheme


def _look(image: Image, boxes: Sequence[Box] | None) -> tuple[str, str]:
    return image.sha256, repr(boxes)


def _record(image: Image, document: Document | None) -> dict[str, Any]:
    """The record that came with a picture, or inside it. Raises `RecordInvalid`."""
    if document is not None:
        return document.data
    text = image.texts.get(RECORD_KEYWORD)
    if text is None:
        raise RecordInvalid("The picture carries no record; send it as `record`.")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordInvalid from error
    if not isinstance(record, dict):
        raise RecordInvalid
    return record


def _matches(record: dict[str, Any], picture: Picture) -> bool:
    image = record.get("image")
    return isinstance(image, dict) and image.get("pixel_sha256") == images.pixel_sha256(picture.pixels)


def _reports(places: Sequence[Place], done: Any) -> list[FaceReport]:
    return [
        FaceReport(
            box=place.reported_box(),
            action="redacted_irreversibly" if place.matrix is None else done,
            score=None if place.score is None else round(place.score, 3),
        )
        for place in places
    ]


def _as_decoded(picture: Picture, media_type: str) -> Pixels:
    """The pixels that whoever opens the file will see: those of a JPEG differ from what went in."""
    if media_type != "image/jpeg":
        return picture.pixels
    return images.decode(io.BytesIO(images.encode(picture, media_type))).pixels


def _output(picture: Picture, media_type: str, texts: dict[str, str] | None) -> Image:
    return Image.of(picture, media_type, texts=texts)


def _expected_recovery(folder: Path) -> dict[str, float]:
    """Identity cosines of recovery by output format, as measured with these weights; empty where nobody measured."""
    path = folder / "evaluate.json"
    figures = json.loads(path.read_text()) if path.exists() else {}
    found: dict[str, float] = figures.get("expected_recovery", {})
    return found


def _try(step: Callable[[], _Some]) -> _Some | Problem:
    """What a step gives, or the problem that ends this photograph and no other."""
    try:
        return step()
    except Problem as problem:
        return problem


def _unless(task: _Task | Problem, step: Callable[[_Task], _Some]) -> _Some | Problem:
    return task if isinstance(task, Problem) else _try(partial(step, task))
