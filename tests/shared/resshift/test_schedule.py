"""The chain's equations as properties, for any numbers a schedule may have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor

from shared.resshift.sampler import sample, sample_deterministic
from shared.resshift.schedule import FACES, SR, ResShiftSchedule, exponential
from shared.resshift.scheduler import ResShiftScheduler

SHAPE = (3, 2, 4, 5)


def normals(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def endless(seed: int) -> Iterator[Tensor]:
    while True:
        yield normals(seed)
        seed += 1


@st.composite
def schedules(draw: st.DrawFn) -> ResShiftSchedule:
    kappa = draw(st.floats(0.2, 4))
    trained = exponential(
        draw(st.integers(2, 30)),
        kappa=kappa,
        min_noise=draw(st.floats(0.005, 0.2)),
        sqrt_eta_end=draw(st.floats(0.5, 0.999)),
        power=draw(st.floats(0.1, 2)),
        start_rule=draw(st.sampled_from(("resshift", "capped"))),
        prediction=draw(st.sampled_from(("x0", "residual"))),
    )
    return trained.respaced(draw(st.integers(1, len(trained))))


@given(schedules())
def test_more_of_the_residual_is_shifted_in_at_every_step(schedule: ResShiftSchedule) -> None:
    assert (schedule.alpha > 0).all()
    assert schedule.eta[0] > 0
    assert schedule.eta[-1] < 1
    assert np.isclose(schedule.alpha.sum(), schedule.eta[-1])


@given(schedules(), st.integers(0, 10))
def test_one_step_of_the_truth_has_the_forward_process_as_its_distribution(
    schedule: ResShiftSchedule, seed: int
) -> None:
    x0, y, noise = normals(seed), normals(seed + 1), normals(seed + 2)
    for now in range(1, len(schedule)):
        t = torch.full((len(x0),), now)
        mean = schedule.posterior_mean(schedule.add_noise(x0, y, t, torch.zeros_like(x0)), x0, t)
        torch.testing.assert_close(mean, schedule.add_noise(x0, y, t - 1, torch.zeros_like(x0)))
        kept = (schedule.eta_prev / schedule.eta)[now]
        variance = kept**2 * schedule.kappa**2 * schedule.eta[now] + schedule.posterior_variance[now]
        assert np.isclose(variance, schedule.kappa**2 * schedule.eta[now - 1])
        drawn = schedule.step(mean, x0, t, noise) - schedule.step(mean, x0, t, torch.zeros_like(x0))
        torch.testing.assert_close(drawn, schedule.posterior_variance[now] ** 0.5 * noise)


@given(schedules(), st.integers(0, 10))
def test_a_deterministic_step_keeps_the_noise(schedule: ResShiftSchedule, seed: int) -> None:
    x0, y, noise = normals(seed), normals(seed + 1), normals(seed + 2)
    for now in range(1, len(schedule)):
        t = torch.full((len(x0),), now)
        x_t = schedule.add_noise(x0, y, t, noise)
        torch.testing.assert_close(schedule.deterministic_step(x_t, x0, y, t), schedule.add_noise(x0, y, t - 1, noise))
        torch.testing.assert_close(schedule.pred_eps(x_t, x0, y, t), noise)


@given(schedules(), st.integers(0, 10))
def test_the_last_step_answers_with_the_prediction(schedule: ResShiftSchedule, seed: int) -> None:
    x_t, pred_x0, y, noise = (normals(seed + i) for i in range(4))
    t = torch.zeros(len(x_t), dtype=torch.int64)
    assert torch.equal(schedule.step(x_t, pred_x0, t, noise), pred_x0)
    assert torch.equal(schedule.deterministic_step(x_t, pred_x0, y, t), pred_x0)


@given(schedules(), st.integers(0, 10))
def test_a_perfect_denoiser_gives_the_clean_latent_back(schedule: ResShiftSchedule, seed: int) -> None:
    x0, y = normals(seed), normals(seed + 1)
    told: list[int] = []
    seen: list[int] = []

    def denoiser(x: Tensor, t: Tensor, lq: Tensor) -> Tensor:
        told.append(int(t[0]))
        return schedule.target(x0, y)

    for walk in (sample, sample_deterministic):
        told.clear()
        seen.clear()
        result = walk(denoiser, schedule, y, y, endless(seed), lambda step, of: seen.append(of - step))
        torch.testing.assert_close(result, x0)
        assert told == schedule.timestep_map[::-1].tolist()
        assert seen == list(range(len(schedule), 0, -1))


def test_the_network_sees_what_was_noised_at_unit_variance() -> None:
    x0, y = normals(0, (1, 1, 400, 500)), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    for now in range(15):
        t = torch.tensor([now])
        x_t = SR.add_noise(y + x0, x0, t, normals(1, tuple(x0.shape)))
        assert abs(float(SR.scale_input(x_t, t).std()) - 1) < 0.01


def test_ancestral_sampling_draws_once_for_the_start_and_once_a_step_but_the_last() -> None:
    drawn = iter([normals(i) for i in range(15)])
    sample(lambda x, t, lq: x, SR, normals(20), normals(21), drawn, lambda step, of: None)
    assert next(drawn, None) is None


def test_one_step_begins_where_the_whole_chain_does() -> None:
    y, noise = normals(0), normals(1)
    inputs: list[Tensor] = []

    def denoiser(x: Tensor, t: Tensor, lq: Tensor) -> Tensor:
        inputs.append(x)
        assert t.tolist() == [14] * 3
        return x

    one = sample(denoiser, SR.one_step(), y, y, iter([noise]), lambda step, of: None)
    assert len(inputs) == 1
    torch.testing.assert_close(one, inputs[0])
    torch.testing.assert_close(one, (y + 1.98 * noise) / (0.9801 * 4 + 1) ** 0.5)


def test_what_on_step_raises_ends_the_walk() -> None:
    def stop(step: int, of: int) -> None:
        if step == 3:
            raise KeyboardInterrupt

    evaluations: list[int] = []

    def denoiser(x: Tensor, t: Tensor, lq: Tensor) -> Tensor:
        evaluations.append(int(t[0]))
        return x

    with pytest.raises(KeyboardInterrupt):
        sample(denoiser, SR, normals(0), normals(0), endless(0), stop)
    assert evaluations == [14, 13, 12]


def test_the_start_rules_agree_for_photographs_and_not_for_faces() -> None:
    def capped_chain(steps: int, min_noise: float) -> ResShiftSchedule:
        return exponential(
            steps,
            kappa=2.0,
            min_noise=min_noise,
            sqrt_eta_end=0.99,
            power=0.3,
            start_rule="capped",
            prediction="x0",
        )

    assert np.array_equal(capped_chain(15, 0.04).eta, SR.eta)
    capped = capped_chain(4, 0.2)
    assert np.allclose(capped.sqrt_eta, [0.001**0.5, 0.37644, 0.667323, 0.99], atol=1e-6)
    assert np.allclose(FACES.sqrt_eta, [0.1, 0.520096, 0.761382, 0.99], atol=1e-6)


@pytest.mark.parametrize(
    ("steps", "kept"), [(15, list(range(15))), (5, [0, 3, 6, 9, 12]), (4, [0, 3, 7, 11]), (1, [0])]
)
def test_fewer_steps_keep_the_references_places(steps: int, kept: list[int]) -> None:
    short = SR.respaced(steps)
    assert short.timestep_map.tolist() == kept
    assert np.array_equal(short.eta, SR.eta[kept])
    assert short.eta_prev[0] == 0


@pytest.mark.parametrize("steps", [0, 16])
def test_a_chain_is_not_walked_in_more_steps_than_it_has(steps: int) -> None:
    with pytest.raises(ValueError, match="1 to 15"):
        SR.respaced(steps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_keep_their_dtype(dtype: torch.dtype) -> None:
    x, t = normals(0).to(dtype), torch.tensor([14, 6, 0])
    assert SR.scale_input(x, t).dtype == dtype
    assert SR.step(x, x, t, x).dtype == dtype
    assert SR.deterministic_step(x, x, x, t).dtype == dtype
    assert SR.start(x, x).dtype == dtype


class TestScheduler:
    def test_it_comes_back_from_its_folder(self, tmp_path: Path) -> None:
        ResShiftScheduler(steps=4, min_noise=0.2, start_rule="capped", prediction="residual").save_pretrained(tmp_path)
        loaded = ResShiftScheduler.from_pretrained(tmp_path, local_files_only=True)
        assert loaded.schedule.prediction == "residual"
        assert np.allclose(loaded.schedule.sqrt_eta, [0.001**0.5, 0.37644, 0.667323, 0.99], atol=1e-6)

    def test_its_steps_are_those_of_the_schedule(self) -> None:
        scheduler = ResShiftScheduler()
        scheduler.set_timesteps(5)
        y, noise = normals(0), normals(1)
        x = y + scheduler.init_noise_sigma * noise
        rng, same = Generator().manual_seed(7), Generator().manual_seed(7)
        expected = sample(
            lambda x, t, lq: x.tanh(),
            SR.respaced(5),
            y,
            y,
            iter([noise, *(torch.randn(SHAPE, generator=same, dtype=torch.float64) for _ in range(4))]),
            lambda step, of: None,
        )
        for t in scheduler.timesteps:
            output = scheduler.scale_model_input(x, t).tanh()
            x = scheduler.step(output, t, x, y, generator=rng).prev_sample
        torch.testing.assert_close(x, expected)
