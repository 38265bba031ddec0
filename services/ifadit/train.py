"""Make the weights of `small`: `python -m services.ifadit.train --data DIR --teachers DIR --out DIR --stage STAGE`.

Stages, in order, each resumed where it was stopped; every one reads what the one before left in --out. With --start
they go on from the networks of a model folder instead of random ones (D, which is not shipped, starts anew).

encoder      E_id from scratch, on the identity teacher's answers
disentangle  E_attr, M, G (phase I), and T on identities alone
anonymize    all six together, with the file that the picture travels in (phase II)
export       the averaged networks in half precision, as a model folder
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from services.ifadit.anonymizer import Ifadit
from services.ifadit.anonymizing import AnonymizeLearner
from services.ifadit.configuration_small import SMALL
from services.ifadit.dataset import SETS, Faces, load_faces
from services.ifadit.discriminator import SMALL as SMALL_DISCRIMINATOR
from services.ifadit.discriminator import Discriminator
from services.ifadit.disentangling import DisentangleLearner, Material
from services.ifadit.encoding import EncoderLearner
from services.ifadit.latents import listen_to_keys
from services.ifadit.teachers import FEATURE_LAYERS, IdentityTeacher
from shared.nn.mobilenetv2 import MobileNetV2Features
from shared.torchdevice import fast_dtype
from shared.training import CHECKPOINT, Budget, Learner, Metrics, Rhythm, Trained, restored_average, train

log = logging.getLogger("services.ifadit.train")

STAGES = ("encoder", "disentangle", "anonymize", "export")
EMA = {"encoder": 0.995, "disentangle": 0.998, "anonymize": 0.998}


def report(step: int, of: int, metrics: Metrics) -> None:
    """One line a report, on stderr."""
    log.info("step %d of %d  %s", step, of, "  ".join(f"{name} {value:.3f}" for name, value in metrics.items()))


def taught(teacher: IdentityTeacher, faces: Faces, cache: Path) -> Tensor:
    """The teacher's embeddings of all faces (N, D); kept in `cache`."""
    path = cache / f"taught.{'+'.join(sorted(set(faces.source)))}.{len(faces)}.pt"
    if path.exists():
        kept: Tensor = torch.load(path, weights_only=True)
        return kept
    with torch.no_grad():
        chunks = [teacher(chunk.float() / 255, mirror=True) for chunk in faces.pictures.split(64)]
    embeddings = torch.cat(chunks)
    torch.save(embeddings, path)
    return embeddings


def fresh(seed: int, start: Path | None = None) -> tuple[Ifadit, Discriminator]:
    """Networks as training finds them; the same seed gives the same ones, and the caller's random state stays.

    start  a model folder whose numbers the model gets. Raises WeightsDamaged where they do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(seed)
        model, discriminator = Ifadit(SMALL), Discriminator(SMALL_DISCRIMINATOR)
    if start is None:
        listen_to_keys(model, torch.Generator().manual_seed(seed))
    else:
        model.load_state_dict(Ifadit.load(start).state_dict())
    return model, discriminator


def learner(stage: str, out: Path, material: Material, seed: int, start: Path | None = None) -> Learner:
    """The learner of a stage, starting from what the stages before left in `out`.

    Phase I can learn beside the encoder where `start` brings one: it does not change E_id, and phase II takes the
    encoder stage's.
    """
    model, discriminator = fresh(seed, start)
    if stage == "encoder":
        return EncoderLearner(model.E_id, material.teacher, material.pictures, material.taught)
    if stage == "anonymize":
        both = nn.ModuleDict({"model": model, "discriminator": discriminator})
        both.load_state_dict(restored_average(out / "disentangle"))
    if start is None or (out / "encoder" / CHECKPOINT).exists():
        model.E_id.load_state_dict(restored_average(out / "encoder"))
    chosen = DisentangleLearner if stage == "disentangle" else AnonymizeLearner
    return chosen(model, discriminator, material)


def run(
    stage: str, out: Path, material: Material, budget: Budget, seed: int, rhythm: Rhythm, start: Path | None = None
) -> Trained:
    """One stage to the end of its budget."""
    chosen = learner(stage, out, material, seed, start)
    return train(chosen, out / stage, budget, seed, EMA[stage], report, rhythm)


def export(out: Path, folder: Path, seed: int) -> None:
    """The averaged networks of the last stage as a model folder in half precision."""
    model, discriminator = fresh(seed)
    stages = nn.ModuleDict({"model": model, "discriminator": discriminator})
    stages.load_state_dict(restored_average(out / "anonymize"))
    model.save(folder, torch.float16)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Raises Problem for a checkpoint that does not fit, OSError for files that are not there."""
    parser = argparse.ArgumentParser(prog="python -m services.ifadit.train", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the packed sets")
    parser.add_argument("--teachers", type=Path, required=True, help="folder of the frozen teachers")
    parser.add_argument("--out", type=Path, required=True, help="checkpoints and caches; `export` writes small/ there")
    parser.add_argument("--start", type=Path, help="model folder to go on from")
    parser.add_argument("--stage", choices=STAGES, required=True)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--budget-s", type=float, default=float("inf"), help="seconds of computing, resumes included")
    parser.add_argument("--seed", type=int, default=20250601)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sets", nargs="+", default=SETS)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    if args.stage == "export":
        export(args.out, args.out / "small", args.seed)
        return 0
    torch.set_num_threads(args.threads)
    with torch.device(args.device):
        dtype = fast_dtype(args.device)
        teacher = IdentityTeacher.load(args.teachers).to(args.device, dtype)
        features = MobileNetV2Features.load(args.teachers, FEATURE_LAYERS).to(args.device, dtype)
        faces = load_faces(args.data, args.out, args.sets).of("train")
        material = Material(faces.pictures.to(args.device), taught(teacher, faces, args.out), teacher, features)
        trained = run(
            args.stage, args.out, material, Budget(args.steps, args.budget_s), args.seed, Rhythm(), args.start
        )
    log.info("%s: %d steps in %.1f min", args.stage, trained.step, trained.elapsed_s / 60)
    return 0


if __name__ == "__main__":
    sys.exit(main())
