"""A detector: encoder, the two states of LFDN, the baselines' statistics and the calibration."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from services.dlsr import schedule as schedules
from services.dlsr import scores
from services.dlsr.baselines import Baselines
from services.dlsr.conformal import Calibration
from services.dlsr.encoder import Encoder, EncoderConfig, load_encoder
from services.dlsr.encoding import Features
from services.dlsr.lfdn import LFDN, LFDNConfig
from services.dlsr.reconstruction import Reconstructor, keyed_noise
from services.dlsr.service import EncoderMismatch, FeaturesUnfit, Kind, NotCalibrated, ScoreUnavailable
from shared.nn.published import load_exactly
from shared.problems import WeightsDamaged

KINDS: tuple[Kind, ...] = get_args(Kind)
BASELINES: tuple[Kind, ...] = ("distance_to_mean", "mahalanobis", "knn", "pca")

CONFIG, BASELINE_FILE, CALIBRATION_FILE = "config.json", "baselines.safetensors", "calibration.safetensors"
END_FILE, FIRST_FILE = "lfdn_end.safetensors", "lfdn_first.safetensors"
FORMAT = 1
BATCH = 256


@dataclass(frozen=True)
class DetectorConfig:
    """What a detector is, beside its numbers.

    fingerprint  of the encoder that made the features
    steps        timesteps 1..steps are walked back
    draws        reconstructions of each picture that a score is averaged over
    seed         of the noise, and of the fit
    kind         the score that is used where none is asked for
    alpha        the false-alarm rate that is used where none is asked for
    preset       of the fit
    """

    encoder: EncoderConfig
    fingerprint: str
    lfdn: LFDNConfig
    steps: int
    draws: int
    seed: int
    kind: Kind
    alpha: float
    preset: str


@dataclass(frozen=True)
class Verdict:
    """What one score says of one picture.

    score          larger is more out of distribution
    p_value        conformal; None where the detector is not calibrated for this score
    is_ood         p_value <= alpha; None likewise
    threshold      is_ood where the score is above it; infinity where alpha is below 1 / (n + 1)
    contributions  of each layer; their sum is the score
    """

    score: float
    p_value: float | None
    is_ood: bool | None
    threshold: float | None
    contributions: tuple[float, ...]


class Detector:
    """Scores feature vectors, and pictures through its encoder."""

    def __init__(
        self,
        config: DetectorConfig,
        encoder: Encoder,
        end: LFDN,
        first: LFDN | None,
        baselines: Baselines | None,
        calibration: Mapping[Kind, Calibration],
    ) -> None:
        self.config, self.encoder = config, encoder
        self.end, self.first, self.baselines = end, first, baselines
        self.calibration: dict[Kind, Calibration] = dict(calibration)
        steps = schedules.reverse_steps(schedules.PAPER, range(1, config.steps + 1), schedules.ETA)
        self._end = Reconstructor(end, schedules.PAPER, steps, config.steps)
        self._first = None if first is None else Reconstructor(first, schedules.PAPER, steps, config.steps)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The scores that this detector can give."""
        lacking = {"lr"} if self.first is None else set()
        if self.baselines is None:
            lacking |= set(BASELINES)
        elif not len(self.baselines.bank):
            lacking |= {"knn"}
        return tuple(kind for kind in KINDS if kind not in lacking)

    @property
    def memory_bytes(self) -> int:
        """What its numbers take."""
        networks = [network.state_dict().values() for network in (self.end, self.first) if network is not None]
        tensors = [tensor for values in networks for tensor in values]
        tensors += [self.baselines.covariance, self.baselines.bank] if self.baselines is not None else []
        return self.encoder.memory_bytes + sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    @torch.inference_mode()
    def parts(self, features: Features, kinds: Sequence[Kind], draws: int | None = None) -> dict[Kind, Tensor]:
        """Scores by layer, (N, M) float32 on the CPU for each kind.

        An item's scores do not depend on the others. Raises `FeaturesUnfit`, `ScoreUnavailable`.
        """
        if features.vectors.shape[1] != self.encoder.dimension:
            raise FeaturesUnfit(
                f"The vectors have {features.vectors.shape[1]} values, not {self.encoder.dimension}.",
                width=self.encoder.dimension,
            )
        if lacking := [kind for kind in kinds if kind not in self.kinds]:
            raise ScoreUnavailable(f"The detector has no score {lacking[0]}.", kinds=list(self.kinds))
        chunks = [
            self._parts(features.at(range(place, min(place + BATCH, len(features)))), kinds, draws or self.config.draws)
            for place in range(0, len(features), BATCH)
        ]
        empty = torch.empty(0, len(self.encoder.boundaries))
        return {kind: torch.cat([empty, *(chunk[kind] for chunk in chunks)]) for kind in kinds}

    def _parts(self, features: Features, kinds: Sequence[Kind], draws: int) -> dict[Kind, Tensor]:
        boundaries = self.encoder.boundaries
        z = features.vectors.to(self.encoder.device)
        found: dict[Kind, Tensor] = {}
        for kind in kinds:
            if kind in BASELINES:
                found[kind] = getattr(self.baselines, kind)(z, boundaries)
        if set(kinds) - set(BASELINES):
            noises = keyed_noise(self.config.seed, features.keys, draws, self._end.noise_count, z.shape[1])
            noises = noises.flatten(0, 1).to(z.device)
            repeated = z.repeat_interleave(draws, 0)
            z_hat = self._end(repeated, noises)
            made: dict[Kind, Callable[[], Tensor]] = {
                "mse": lambda: scores.mse(repeated, z_hat, boundaries),
                "mfsim": lambda: scores.mfsim(repeated, z_hat, boundaries),
                "mfsim_all": lambda: scores.mfsim_all(repeated, z_hat, boundaries),
                "lr": lambda: scores.lr(repeated, z_hat, self._early(repeated, noises), boundaries),
            }
            for kind in kinds:
                if kind in made:
                    found[kind] = made[kind]().unflatten(0, (len(z), draws)).mean(1)
        return {kind: value.cpu() for kind, value in found.items()}

    def _early(self, z: Tensor, noises: Tensor) -> Tensor:
        if self._first is None:
            raise ScoreUnavailable("The detector has no early network.", kinds=list(self.kinds))
        return self._first(z, noises)

    def score(
        self,
        features: Features,
        kinds: Sequence[Kind] | None = None,
        alpha: float | None = None,
        draws: int | None = None,
    ) -> list[dict[Kind, Verdict]]:
        """What each score says of each item, in order; where nothing is asked for, as the detector's config says.

        Raises `FeaturesUnfit`, `ScoreUnavailable`.
        """
        kinds = kinds or (self.config.kind,)
        alpha = self.config.alpha if alpha is None else alpha
        found: list[dict[Kind, Verdict]] = [{} for _ in features.keys]
        for kind, parts in self.parts(features, kinds, draws).items():
            totals = total(parts)
            calibration = self.calibration.get(kind)
            p_values = None if calibration is None else calibration.p_values(totals)
            threshold = None if calibration is None else calibration.threshold(alpha)
            for place, row in enumerate(found):
                row[kind] = Verdict(
                    score=float(totals[place]),
                    p_value=None if p_values is None else float(p_values[place]),
                    is_ood=None if threshold is None else bool(totals[place] > threshold),
                    threshold=threshold,
                    contributions=tuple(parts[place].tolist()),
                )
        return found

    def p_values(self, features: Features, kind: Kind | None = None) -> NDArray[np.float64]:
        """Conformal p-values (N,) by one score. Raises `NotCalibrated`, and what `parts` raises."""
        kind = kind or self.config.kind
        if kind not in self.calibration:
            raise NotCalibrated(f"The detector has no calibration for {kind}.", kinds=list(self.calibration))
        return self.calibration[kind].p_values(total(self.parts(features, (kind,))[kind]))

    def calibrated(self, features: Features) -> Detector:
        """The same detector with the calibration that these items, none of which it was fitted on, give every score."""
        parts = self.parts(features, self.kinds)
        calibration = {kind: Calibration(total(value)) for kind, value in parts.items()}
        return Detector(self.config, self.encoder, self.end, self.first, self.baselines, calibration)

    def trimmed(self) -> Detector:
        """The same detector at a third of the size: without the scores `lr` and `knn`."""
        baselines = self.baselines and self.baselines.without_bank()
        calibration = {kind: known for kind, known in self.calibration.items() if kind not in ("lr", "knn")}
        return Detector(self.config, self.encoder, self.end, None, baselines, calibration)

    def with_encoder(self, encoder: Encoder) -> Detector:
        """The same detector behind an encoder with another way of the picture into the same network."""
        config = replace(self.config, encoder=encoder.config, fingerprint=encoder.fingerprint)
        return Detector(config, encoder, self.end, self.first, self.baselines, self.calibration)

    def save(self, folder: Path, storage: torch.dtype = torch.float16) -> None:
        """Write the model folder; the networks' numbers become `storage`."""
        folder.mkdir(parents=True, exist_ok=True)
        text = {"format": FORMAT, **asdict(self.config)}
        (folder / CONFIG).write_text(json.dumps(text, indent=1) + "\n")
        self.encoder.save(folder)
        for network, name in ((self.end, END_FILE), (self.first, FIRST_FILE)):
            if network is not None:
                state = {key: value.to(storage).contiguous() for key, value in network.state_dict().items()}
                save_file(state, folder / name)
        if self.baselines is not None:
            save_file(_packed(self.baselines), folder / BASELINE_FILE)
        if self.calibration:
            kept: dict[str, Tensor] = {kind: torch.from_numpy(known.scores) for kind, known in self.calibration.items()}
            save_file(kept, folder / CALIBRATION_FILE)

    @classmethod
    def load(cls, folder: Path, device: torch.device | str) -> Detector:
        """Read a model folder. Raises `WeightsDamaged`, and `EncoderMismatch` for features of another encoder."""
        config = read_config(folder)
        encoder = load_encoder(config.encoder, folder, device)
        if encoder.fingerprint != config.fingerprint:
            raise EncoderMismatch(
                f"The detector was fitted with encoder {config.fingerprint[:12]}…, here is {encoder.fingerprint[:12]}…."
            )
        end = _network(config.lfdn, folder / END_FILE, device)
        first = _network(config.lfdn, folder / FIRST_FILE, device) if (folder / FIRST_FILE).exists() else None
        baselines = _unpacked(folder / BASELINE_FILE, device) if (folder / BASELINE_FILE).exists() else None
        calibration = {}
        if (folder / CALIBRATION_FILE).exists():
            stored = _tensors(folder / CALIBRATION_FILE)
            calibration = {kind: Calibration(stored[kind].numpy()) for kind in KINDS if kind in stored}
        return cls(config, encoder, end, first, baselines, calibration)


def total(parts: Tensor) -> NDArray[np.float32]:
    """The scores (N,) that parts by layer (N, M) add up to."""
    sums: NDArray[np.float32] = parts.sum(1).numpy()
    return sums


def read_config(folder: Path) -> DetectorConfig:
    """The configuration of a model folder. Raises `WeightsDamaged`."""
    try:
        text: dict[str, Any] = json.loads((folder / CONFIG).read_text())
        if text.pop("format") != FORMAT:
            raise ValueError("it is of another format")
        encoder, lfdn = EncoderConfig(**text.pop("encoder")), LFDNConfig(**text.pop("lfdn"))
        return DetectorConfig(encoder=encoder, lfdn=lfdn, **text)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise WeightsDamaged(f"{CONFIG} of the detector cannot be read: {error}") from error


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsDamaged(f"{path.name}: {error}") from error


def _network(config: LFDNConfig, path: Path, device: torch.device | str) -> LFDN:
    with torch.device("meta"):
        network = LFDN(config)
    load_exactly(network, _tensors(path), path.name)
    return network.to(device).eval().requires_grad_(False)


def _packed(baselines: Baselines) -> dict[str, Tensor]:
    """A symmetric matrix is stored as its lower triangle."""
    rows, columns = torch.tril_indices(*baselines.covariance.shape)
    return {
        "mean": baselines.mean.cpu(),
        "covariance": baselines.covariance.cpu()[rows, columns].half(),
        "shrinkage": torch.tensor(baselines.shrinkage, dtype=torch.float64),
        "bank": baselines.bank.cpu(),
        "scales": baselines.scales.cpu(),
    }


def _unpacked(path: Path, device: torch.device | str) -> Baselines:
    stored = _tensors(path)
    try:
        width = len(stored["mean"])
        rows, columns = torch.tril_indices(width, width)
        covariance = torch.empty(width, width)
        covariance[rows, columns] = covariance[columns, rows] = stored["covariance"].float()
        shrinkage = float(stored["shrinkage"])
        mean, bank, scales = (stored[name].to(device, copy=True) for name in ("mean", "bank", "scales"))
        return Baselines(mean, covariance.to(device), shrinkage, bank, scales)
    except (KeyError, RuntimeError, ValueError) as error:
        raise WeightsDamaged(f"{path.name}: {error}") from error
