"""The figures of the model card, each beside its baselines, on people of no training.

`python -m services.ifadit.evaluate --data DIR --teachers DIR --weights DIR [--sheet FILE.png]`, DIR the model folder,
writes evaluate.json beside the weights and prints the table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Generator, Tensor

from services.ifadit.anonymizer import Ifadit
from services.ifadit.augmentation import jpeg, to_uint8
from services.ifadit.checkpoint import digest
from services.ifadit.dataset import FACE_PX, photographs
from services.ifadit.judges import DlibJudge, Judge, TeacherJudge
from services.ifadit.masks import compose, gaussian_taps
from services.ifadit.teachers import IdentityTeacher
from shared.faces import FaceFinder, Matrix, Pixels, aligned_template, paste, similarity, warp_crop
from shared.torchdevice import fast_dtype

SEED = 20250601
LFW, UTK = "faces_lfw_gray_128", "faces_utk_128"
WRONG_KEYS = 20
WRONG_KEYS_SECOND = 2  # for the second judge, which is slow
FORMATS = {"png": None, "jpeg 95": 95, "jpeg 85": 85, "jpeg 75": 75}
FALSE_ACCEPTS = 0.01
CENTRED_ON = 100  # validation faces, for the second judge
BLUR_SIGMA_PX, CELL_PX = 4.0, 8  # the baselines: at 64 px


@dataclass(frozen=True, eq=False)
class Person:
    """A photograph of somebody, the aligned face in it, and where that lies."""

    photo: Pixels
    matrix: Matrix
    face: Pixels
    other: Pixels | None  # the face in another photograph of the same person


def people(data: Path, finder: FaceFinder, lfw: int, utk: int) -> list[Person]:
    """The first `lfw` identities of the LFW test split with two photographs, and the first `utk` faces of UTK's."""
    by_identity: dict[str, list[tuple[Pixels, Matrix, Pixels]]] = {}
    pairs: list[list[tuple[Pixels, Matrix, Pixels]]] = []
    for row, photo in photographs(data, LFW):
        if len(pairs) == lfw:
            break
        cuts = by_identity.setdefault(row["identity"], [])
        if row["split"] == "test" and len(cuts) < 2 and (cut := located(finder, photo)) is not None:
            cuts.append(cut)
            if len(cuts) == 2:
                pairs.append(cuts)
    found = [Person(*cuts[0], other=cuts[1][2]) for cuts in pairs]
    for row, photo in photographs(data, UTK):
        if len(found) == len(pairs) + utk:
            break
        if row["split"] == "test" and (cut := located(finder, photo)) is not None:
            found.append(Person(*cut, other=None))
    return found


def validation(data: Path, finder: FaceFinder) -> Iterator[Pixels]:
    """Aligned faces of UTK's validation split."""
    for row, photo in photographs(data, UTK):
        if row["split"] == "val" and (cut := located(finder, photo)) is not None:
            yield cut[2]


def located(finder: FaceFinder, photo: Pixels) -> tuple[Pixels, Matrix, Pixels] | None:
    """A photo of one face, the matrix into the aligned crop, and that crop; None where no face is found."""
    face = finder.landmarks_of_crop(photo)
    if face is None:
        return None
    matrix = similarity(face.landmarks, aligned_template(FACE_PX))
    return photo, matrix, warp_crop(photo, matrix, FACE_PX)


def as_tensor(faces: Sequence[Pixels]) -> Tensor:
    """(N, S, S, 3) uint8 -> (N, 3, S, S), 0..1"""
    return torch.from_numpy(np.stack(faces)).permute(0, 3, 1, 2).float() / 255


def stored(x: Tensor, quality: int | None) -> Tensor:
    """Pictures after a PNG (None) or a JPEG file."""
    return (x * 255).round() / 255 if quality is None else jpeg(x, quality)


def blurred(x: Tensor) -> Tensor:
    """Gaussian blur of BLUR_SIGMA_PX."""
    taps = gaussian_taps(25, BLUR_SIGMA_PX).to(x)
    padded = F.pad(x.flatten(0, 1)[:, None], (12, 12, 12, 12), mode="reflect")
    return F.conv2d(F.conv2d(padded, taps[None, None, None]), taps[None, None, :, None]).reshape(x.shape)


def pixelated(x: Tensor) -> Tensor:
    """Cells of CELL_PX."""
    return F.interpolate(F.avg_pool2d(x, CELL_PX), scale_factor=CELL_PX, mode="nearest")


def psnr(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """(B,) in dB inside a soft mask (1, 1, S, S), data range 1."""
    error = ((pred - target).square() * mask).sum((1, 2, 3)) / (3 * mask.sum())
    return -10 * error.log10()


def ssim(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """(B,) Wang et al. 2004: Gaussian of 11 px and sigma 1.5, data range 1, mean over channels and the soft mask."""
    taps = gaussian_taps(11, 1.5).to(pred)

    def local(v: Tensor) -> Tensor:
        padded = F.pad(v.flatten(0, 1)[:, None], (5, 5, 5, 5), mode="reflect")
        return F.conv2d(F.conv2d(padded, taps[None, None, None]), taps[None, None, :, None]).reshape(v.shape)

    mu_p, mu_t = local(pred), local(target)
    var_p, var_t = local(pred * pred) - mu_p**2, local(target * target) - mu_t**2
    cov = local(pred * target) - mu_p * mu_t
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * mu_p * mu_t + c1) * (2 * cov + c2) / ((mu_p**2 + mu_t**2 + c1) * (var_p + var_t + c2))
    return (value * mask).sum((1, 2, 3)) / (3 * mask.sum())


def keys(model: Ifadit, count: int, rng: Generator) -> Tensor:
    """Key vectors (count, key_dim) of scheme v2-gauss, one a face."""
    return torch.randn(count, model.config.key_dim, generator=rng)


def batched(pass_: Callable[[Tensor, Tensor], Any], x: Tensor, k: Tensor) -> Tensor:
    """The composites of a pass, 50 faces at a time."""
    return torch.cat([pass_(a, b).composite for a, b in zip(x.split(50), k.split(50), strict=True)])


class Trial:
    """What one judge says of everything."""

    def __init__(self, judge: Judge, x: Tensor) -> None:
        self.judge, self.own = judge, judge(x)
        between = self.own @ self.own.T
        self.different = between[~torch.eye(len(x), dtype=torch.bool)]
        self.threshold = float(self.different.quantile(1 - FALSE_ACCEPTS))

    def compare(self, a: Tensor, b: Tensor) -> dict[str, float]:
        """Cosine (mean) of rows of embeddings, and the share that passes as the same person at FAR 1 %."""
        cosines = (a * b).sum(1)
        return {"cosine": float(cosines.mean()), "tar": float((cosines > self.threshold).float().mean())}

    def with_own(self, pictures: Tensor) -> dict[str, float]:
        """The same of pictures (B, 3, S, S) and the originals."""
        return self.compare(self.judge(pictures), self.own)


def detection(finder: FaceFinder, photos: Sequence[Pixels]) -> float:
    """Share of photographs in which a face is found; they are framed so that nothing lies at the border."""
    framed = [np.pad(photo, ((32, 32), (32, 32), (0, 0)), mode="edge") for photo in photos]
    return float(np.mean([bool(finder.find(photo, turned="never")) for photo in framed]))


def photographed(persons: Sequence[Person], faces: Tensor, mask: NDArray[np.float32]) -> list[Pixels]:
    """Faces (N, 3, S, S) pasted back into their photographs, as the service does."""
    return [paste(p.photo, face, p.matrix, mask) for p, face in zip(persons, to_uint8(faces), strict=True)]


@torch.no_grad()
def evaluate(
    model: Ifadit, persons: Sequence[Person], first: Judge, second: Judge, finder: FaceFinder
) -> dict[str, Any]:
    """All figures as a tree of numbers, judge by judge."""
    rng = torch.Generator().manual_seed(SEED)
    x = as_tensor([person.face for person in persons])
    mask = model.mean_face_mask()
    paired = torch.tensor([person.other is not None for person in persons])
    others = as_tensor([person.other for person in persons if person.other is not None])
    k1, k2 = keys(model, len(x), rng), keys(model, len(x), rng)
    y1, y2 = batched(model.anonymize, x, k1), batched(model.anonymize, x, k2)
    right = {name: batched(model.recover, stored(y1, quality), k1) for name, quality in FORMATS.items()}
    wrong = [batched(model.recover, stored(y1, None), keys(model, len(x), rng)) for _ in range(WRONG_KEYS)]
    redrawn = torch.cat(
        [compose(model.draw(model.embed(c), model.E_attr(c)).clamp(0, 1), c, mask) for c in x.split(50)]
    )
    photos = photographed(persons, y1, mask[0, 0].numpy())
    cut = as_tensor([warp_crop(photo, p.matrix, FACE_PX) for photo, p in zip(photos, persons, strict=True)])
    through_photo = batched(model.recover, cut, k1)
    baselines = {"blur": compose(blurred(x), x, mask), "pixelation": compose(pixelated(x), x, mask)}

    judged: dict[str, Any] = {}
    for name, judge, wrong_count in (("teacher", first, WRONG_KEYS), ("second", second, WRONG_KEYS_SECOND)):
        trial = Trial(judge, x)
        e1, e2, other = judge(y1), judge(y2), judge(others)
        wrongs = [trial.with_own(q) for q in wrong[:wrong_count]]
        judged[name] = {
            "threshold": trial.threshold,
            "untouched, other photo": trial.compare(other, trial.own[paired]),
            "different people": {"cosine": float(trial.different.mean()), "tar": FALSE_ACCEPTS},
            "own identity redrawn": trial.with_own(redrawn),
            "anonymized": trial.compare(e1, trial.own),
            "anonymized, other photo": trial.compare(e1[paired], other),
            "blur": trial.with_own(baselines["blur"]),
            "pixelation": trial.with_own(baselines["pixelation"]),
            **{f"recovered, {name}": trial.with_own(r) for name, r in right.items()},
            "recovered through the photograph": trial.with_own(through_photo),
            "recovered, wrong key": {m: float(np.mean([w[m] for w in wrongs])) for m in ("cosine", "tar")},
            "two keys": trial.compare(e1, e2),
        }
    pictures = {
        f"recovered, {name}": {"psnr_mask": float(psnr(r, x, mask).mean()), "ssim_mask": float(ssim(r, x, mask).mean())}
        for name, r in right.items()
    }
    for name, drawn in {"anonymized": y1, **baselines, "recovered, wrong key": wrong[0]}.items():
        pictures[name] = {
            "psnr_mask": float(psnr(drawn, x, mask).mean()),
            "ssim_mask": float(ssim(drawn, x, mask).mean()),
        }
    found = {
        "untouched": detection(finder, [person.photo for person in persons]),
        "anonymized": detection(finder, photos),
        **{
            name: detection(finder, photographed(persons, drawn, mask[0, 0].numpy()))
            for name, drawn in baselines.items()
        },
    }
    recovery = {name: judged["teacher"][f"recovered, {name}"]["cosine"] for name in FORMATS}
    return {
        "people": len(x),
        "people_lfw": int(paired.sum()),
        "people_utk": int((~paired).sum()),
        "wrong_keys": WRONG_KEYS,
        "seed": SEED,
        "judges": judged,
        "pictures": pictures,
        "detection": found,
        "expected_recovery": {"png": recovery["png"], "webp": recovery["png"], "jpeg": recovery["jpeg 95"]},
    }


def table(figures: dict[str, Any]) -> str:
    """The judges' figures as Markdown; the card holds this text."""
    first, second = figures["judges"]["teacher"], figures["judges"]["second"]
    lines = ["| | teacher: cosine / TAR | second judge: cosine / TAR | PSNR / SSIM in the mask | detected |"]
    lines.append("|---|---|---|---|---|")
    for row, said in first.items():
        if row == "threshold":
            continue
        cells = [f"{of['cosine']:.3f} / {of['tar']:.3f}" for of in (said, second[row])]
        quality = figures["pictures"].get(row)
        cells.append(f"{quality['psnr_mask']:.1f} / {quality['ssim_mask']:.2f}" if quality else "")
        found = figures["detection"].get(row.partition(",")[0])
        cells.append("" if found is None or row == "anonymized, other photo" else f"{found:.3f}")
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    lines.append(f"| threshold at FAR 1 % | {first['threshold']:.3f} | {second['threshold']:.3f} | | |")
    return "\n".join(lines)


@torch.no_grad()
def sheet(model: Ifadit, faces: Sequence[Pixels], path: Path) -> None:
    """A contact sheet: original, three keys, recovered with the first, and with a wrong key. A row a face."""
    rng = torch.Generator().manual_seed(SEED)
    x = as_tensor(faces)
    k = [keys(model, len(x), rng) for _ in range(4)]
    drawn = [model.anonymize(x, key).composite for key in k[:3]]
    first = stored(drawn[0], None)
    columns = [x, *drawn, model.recover(first, k[0]).composite, model.recover(first, k[3]).composite]
    rows = np.concatenate([np.concatenate(list(to_uint8(column)), axis=0) for column in columns], axis=1)
    Image.fromarray(rows).resize((rows.shape[1] * 2, rows.shape[0] * 2), Image.Resampling.BICUBIC).save(path)


def rounded(value: Any) -> Any:
    """Numbers to four places, through trees."""
    if isinstance(value, dict):
        return {name: rounded(inner) for name, inner in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m services.ifadit.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teachers", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="model folder; evaluate.json is written into it")
    parser.add_argument("--sheet", type=Path, help="a picture of eight of the people and the astronaut; not to publish")
    parser.add_argument("--lfw", type=int, default=200)
    parser.add_argument("--utk", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    model, finder = Ifadit.load(args.weights), FaceFinder.load()
    persons = people(args.data, finder, args.lfw, args.utk)
    if args.sheet is not None:
        sheet(model, [p.face for p in [*persons[:3], *persons[-5:]]] + astronaut(finder), args.sheet)
    second = DlibJudge(as_tensor(list(islice(validation(args.data, finder), CENTRED_ON))))
    # Half precision moves an embedding by a cosine of 0.001 and costs a fifth where the CPU has it.
    first = TeacherJudge(IdentityTeacher.load(args.teachers).to(fast_dtype("cpu")))
    figures = rounded(evaluate(model, persons, first, second, finder)) | {"model_digest": digest(args.weights)}
    (args.weights / "evaluate.json").write_text(json.dumps(figures, indent=1) + "\n")
    sys.stdout.write(table(figures) + "\n")
    return 0


def astronaut(finder: FaceFinder) -> list[Pixels]:
    """The face of scikit-image's astronaut, where that package is installed."""
    try:
        from skimage import data
    except ImportError:
        return []
    photo: Pixels = data.astronaut()
    face = finder.find(photo)[0]
    return [warp_crop(photo, similarity(face.landmarks, aligned_template(FACE_PX)), FACE_PX)]


if __name__ == "__main__":
    sys.exit(main())
