"""Golden vectors of TAD-SR: one runner a kind, from the config alone (the table in the golden format's description)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from services.tad_sr import losses
from services.tad_sr.denoiser import UNetModelSwin
from services.tad_sr.discriminator import TimeAwareDiscriminator
from shared import golden
from shared.golden import Case, CaseResult, Observed, Runner
from shared.nn.freezing import freeze
from shared.resshift.padding import upsample
from shared.resshift.referenceconfig import denoiser_config, published_buffers, reference_schedule
from shared.resshift.sampler import predict, sample
from shared.resshift.schedule import ResShiftSchedule
from shared.resshift.verify import autoencoder_of

Network = TypeVar("Network", bound=nn.Module)


class Denoisers:
    """Networks of the cases seen so far: at paper size, making the weights takes longer than running them."""

    def __init__(self) -> None:
        self._known: dict[str, UNetModelSwin] = {}

    def get(self, case: Case, config: Mapping[str, Any], part: str = "network") -> UNetModelSwin:
        """The network of a published configuration with the weights of a part, in eval mode; made once."""
        source = json.dumps([str(case.folder), case.source(part), config, str(case.device), str(case.dtype)])
        if source not in self._known:
            with torch.device("meta"):
                network = UNetModelSwin(**denoiser_config(config, **FIXED))
            self._known[source] = _loaded(network, case, part)
        return self._known[source]


# What the published configurations say and our network always is.
FIXED = {"use_scale_shift_norm": True, "resblock_updown": False}


def _loaded(network: Network, case: Case, part: str) -> Network:
    state = network.state_dict()
    weights = case.weights(part, state)
    network.load_state_dict({name: weights[name] for name in state}, assign=True)
    freeze(network)
    return network


def verify(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Iterator[CaseResult]:
    """Rerun every case of a folder in the golden format; one result a case, as it is ready."""
    yield from golden.run(golden.cases(folder, device, dtype), runners())


def runners() -> dict[str, Runner]:
    """A runner for every kind of the set. They share the networks they build."""
    denoisers = Denoisers()
    with_networks: dict[str, Callable[[Denoisers, Case], Observed]] = {
        "network": run_network,
        "one_step": run_one_step,
        "losses": run_losses,
    }
    bound: dict[str, Runner] = {kind: _bind(run, denoisers) for kind, run in with_networks.items()}
    return bound | {"weights_recipe": run_weights_recipe}


def _bind(run: Callable[[Denoisers, Case], Observed], denoisers: Denoisers) -> Runner:
    return lambda case: run(denoisers, case)


def run_weights_recipe(case: Case) -> Observed:
    """The state dict that a recipe makes, published buffers included."""
    config = dict(case.config)
    if (module := config.pop("module")) != "network":
        raise ValueError(f"the set has no module {module!r}")
    with torch.device("meta"):
        network = UNetModelSwin(**denoiser_config(config, **FIXED))
    return Observed(case.weights("network", network.state_dict() | published_buffers(network)))


def run_network(denoisers: Denoisers, case: Case) -> Observed:
    """A forward pass with every stage."""
    network = denoisers.get(case, case.config)
    stages = {
        "time_embed": network.time_embed,
        **{f"input_blocks.{i}": block for i, block in enumerate(network.input_blocks)},
        "middle_block": network.middle_block,
        **{f"output_blocks.{i}": block for i, block in enumerate(network.output_blocks)},
    }
    seen: dict[str, Tensor] = {}
    hooks = [stage.register_forward_hook(_keep(seen, name)) for name, stage in stages.items()]
    try:
        y = network(case.input("x"), case.input("t"), case.input("lq"))
    finally:
        for hook in hooks:
            hook.remove()
    return Observed(seen | {"y": y})


def _keep(seen: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Tensor], None]:
    def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
        seen[name] = output

    return hook


def chain_of(case: Case) -> ResShiftSchedule:
    """TAD-SR's code caps the start of the chain."""
    return reference_schedule(case.config["diffusion"], "capped")


def run_one_step(denoisers: Denoisers, case: Case) -> Observed:
    """From picture to picture in one evaluation; and the teacher's whole chain from the same noise."""
    student, teacher = (denoisers.get(case, case.config["network"], part) for part in ("student", "teacher"))
    autoencoder = autoencoder_of(case, case.config["autoencoder"])
    schedule = chain_of(case)
    lq, noise = case.input("lq"), case.input("noise")
    z_y = autoencoder.encode(upsample(lq, case.config["diffusion"]["sf"]))
    student_x0 = sample(student, schedule.one_step(), z_y, lq, iter([noise]), lambda step, of: None)
    x = schedule.start(z_y, noise)
    samples, predictions = [], []
    for now in reversed(range(len(schedule))):
        t = torch.full((len(x),), now, device=x.device)
        predictions.append(predict(teacher, schedule, x, z_y, lq, t))
        x = schedule.deterministic_step(x, predictions[-1], z_y, t)
        samples.append(x)
    return Observed(
        {
            "z_y": z_y,
            "x_T": schedule.start(z_y, noise),
            "student_x0": student_x0,
            "student_sr": autoencoder.decode(student_x0).clamp(-1, 1),
            "teacher_samples": torch.stack(samples),
            "teacher_pred_x0": torch.stack(predictions),
        }
    )


def run_losses(denoisers: Denoisers, case: Case) -> Observed:
    """Every term of the training from given noise and times; the logits as far as they are stored."""
    teacher, schedule = denoisers.get(case, case.config["network"], "teacher"), chain_of(case)
    config = case.config["discriminator"]
    with torch.device("meta"):
        discriminator = TimeAwareDiscriminator(
            teacher.feature_channels(), embed_dim=config["embed_dim"], c_dim=config["c_dim"]
        )
    discriminator = _loaded(discriminator, case, "discriminator")
    names = ("lq", "z_y", "gt_z", "stu_x0", "tch_x0", "noise_hsd", "noise_dis", "t_hsd", "t_dis")
    lq, z_y, gt_z, stu_x0, tch_x0, noise_hsd, noise_dis, t_hsd, t_dis = (case.input(name) for name in names)
    hsd = losses.score_distillation(
        teacher,
        schedule,
        stu_x0,
        tch_x0,
        z_y,
        lq,
        t_hsd,
        noise_hsd,
        double_scale=case.config["hsd_double_scale"],
    )
    real, fake = (losses.noisy_features(teacher, schedule, x0, z_y, lq, t_dis, noise_dis) for x0 in (gt_z, stu_x0))
    t = schedule.trained_index(t_dis)
    real_logits, fake_logits = discriminator(real, t), discriminator(fake, t)
    stored = case.stored("outputs")
    return Observed(
        {
            "mse": losses.regression(stu_x0, tch_x0),
            "hsd.x_stu": hsd.x_student,
            "hsd.pred_x0_stu": hsd.pred_student,
            "hsd.pred_x0_tch": hsd.pred_target,
            "hsd.grad": hsd.gradient,
            "hsd.loss": hsd.loss,
            **{f"feature_real_{k}": feature for k, feature in enumerate(real)},
            **{f"feature_fake_{k}": feature for k, feature in enumerate(fake)},
            "feature_means_real": torch.stack([feature.flatten(1).mean(1) for feature in real]),
            **{
                f"logits_fake.{k}": logits[:, : stored[f"logits_fake.{k}"].shape[1]]
                for k, logits in enumerate(fake_logits)
                if f"logits_fake.{k}" in stored
            },
            "logits_real_mean": torch.stack([logits.mean(1) for logits in real_logits]),
            "loss_D": losses.hinge(real_logits, fake_logits),
            "loss_G_unweighted": losses.adversarial(fake_logits),
        }
    )
