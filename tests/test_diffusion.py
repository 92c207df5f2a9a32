"""The diffusion prior: its process, its network's bounds, patches, what was measured, samplers that find the truth."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from models import diffusion
from models.diffusion import Diffusion, Walk, of_coarse, of_coarse_field, of_field, reconstruct, sample
from models.diffusion.measured import Lowpass, Measured
from models.diffusion.patches import Patches
from models.diffusion.prior import LIMIT, SPREAD, Denoiser
from models.diffusion.process import LARGEST, SCALE_PPM, SMALLEST, alpha_at, levels, sigma_at, time_of
from models.diffusion.samplers import SAMPLERS
from models.dipole import Dipole

SHAPE, SIZE, B0 = (21, 18, 15), (1.0, 1.2, 1.6), (0.3, -0.4, 0.85)
SD = 0.002
CHANNELS = (4, 8)


def ball(shape: tuple[int, ...] = SHAPE) -> Tensor:
    axes = [torch.linspace(-1, 1, n) for n in shape]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    return x**2 + y**2 + z**2 < 0.9


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def truth(inside: Tensor, seed: int = 1) -> Tensor:
    """Smooth chi in ppm whose mean over the mask is 0."""
    chi = noise(*inside.shape, seed=seed)
    for axis in range(3):
        chi = (chi.roll(1, axis) + 2 * chi + chi.roll(-1, axis)) / 4
    return torch.where(inside, chi - chi[inside].mean(), 0) * 0.1


def head(sd: float = SD, seed: int = 2) -> tuple[Tensor, Tensor, Tensor, Dipole]:
    """Chi (ppm), its noisy field, weight, dipole: oblique, anisotropic, of odd sizes, the weight uneven."""
    inside, dipole = ball(), Dipole(SHAPE, SIZE, B0, padding=0.2)
    chi, weight = truth(inside), inside / (sd * torch.linspace(1, 2, SHAPE[0])[:, None, None])
    field = dipole.forward(chi) + noise(*SHAPE, seed=seed) / weight.clamp_min(1e-3)
    return chi, torch.where(inside, field, 0), weight, dipole


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Small random weights in place of the shipped ones; `scale` 0 is the Wiener filter."""

    def prepare(scale: float = 0.3) -> Denoiser:
        network = Denoiser(CHANNELS)
        random = torch.Generator().manual_seed(0)
        tensors = {k: scale * torch.randn(v.shape, generator=random) for k, v in network.state_dict().items()}
        network.load_state_dict(tensors)
        monkeypatch.setattr(diffusion, "learned", lambda: (tensors, {"channels": list(CHANNELS), "sha256": "0" * 64}))
        return network.eval().requires_grad_(False)

    return prepare


def test_noise_and_time_are_each_other_s_inverse_and_the_variance_is_preserved() -> None:
    assert 150 < LARGEST < 155
    for time in (1e-3, 0.01, 0.3, 0.77, 1.0):
        sigma = float(sigma_at(time))
        assert time_of(sigma) == pytest.approx(time, rel=1e-9)
        integral = 0.1 * time + (20 - 0.1) * time**2 / 2
        assert float(alpha_at(sigma)) == pytest.approx(float(torch.tensor(-integral / 2).exp()), rel=1e-5)
        assert float(alpha_at(sigma) ** 2 * (1 + sigma**2)) == pytest.approx(1, rel=1e-6)
    steps = levels(7, LARGEST, SMALLEST)
    assert len(steps) == 7 and steps[0] == pytest.approx(LARGEST) and steps[-1] == pytest.approx(SMALLEST)
    assert steps == sorted(steps, reverse=True)
    times = torch.tensor([time_of(s) for s in steps])
    torch.testing.assert_close(times.diff(), torch.full((6,), (1e-3 - 1) / 6), rtol=1e-4, atol=0)


@pytest.mark.parametrize("sigma", [SMALLEST, 0.3, LARGEST])
def test_a_network_of_zeros_is_the_wiener_filter(sigma: float) -> None:
    network, inside = Denoiser(CHANNELS), ball((9, 8, 11))[None]
    noisy = noise(1, 9, 8, 11).clamp(-3, 3) * (1 + sigma**2) ** 0.5
    with torch.no_grad():
        mean = network(noisy, torch.tensor([sigma]), inside)
    torch.testing.assert_close(mean, inside * noisy / (1 + sigma**2))


def test_what_stands_out_passes_the_network_unchanged_and_has_no_say(tiny: Any) -> None:
    network, inside, sigma = tiny(), torch.ones((1, 8, 8, 8), dtype=torch.bool), torch.tensor([0.5])
    limit = LIMIT + SPREAD * 0.5
    clipped = noise(1, 8, 8, 8)
    clipped[0, 4, 4, 4], clipped[0, 2, 2, 2] = limit, -limit
    out = clipped.clone()
    out[0, 4, 4, 4], out[0, 2, 2, 2] = limit + 50, -limit - 7
    extra = torch.zeros_like(out)
    extra[0, 4, 4, 4], extra[0, 2, 2, 2] = 50, -7
    torch.testing.assert_close(network(out, sigma, inside), network(clipped, sigma, inside) + extra)
    assert not bool(network(out, sigma, ~inside).any())


@pytest.mark.parametrize("shape", [(21, 30, 13), (17, 5, 40)])
@pytest.mark.parametrize(("edge", "overlap"), [(12, 0), (12, 1), (12, 6), (10, 3), (0, 4), (64, 8)])
def test_patches_cover_all_and_blend_into_what_they_were(shape: tuple[int, ...], edge: int, overlap: int) -> None:
    patches = Patches(edge, overlap)
    volume, sizes = noise(*shape), set()

    def work(some: Tensor, twice: Tensor) -> Tensor:
        sizes.add(tuple(some.shape[1:]))
        assert len(some) <= 3
        return twice - some

    for shift in ([0, 0, 0], [patches.room, 0, patches.room // 2]):
        made = patches.blend([volume, 2 * volume], work, 3, shift)
        torch.testing.assert_close(made, volume, rtol=0, atol=1e-5)
    assert all(n <= edge for size in sizes for n in size) or not edge


def test_patches_are_of_one_size_no_larger_than_asked_no_smaller_than_learned_and_share_the_overlap() -> None:
    for edge, overlap in ((48, 8), (48, 24), (96, 16), (64, 0)):
        patches = Patches(edge, overlap)
        for n in (*range(30, 200, 7), 48, 49, 96, 97):
            boxes = [box[0] for box in patches.boxes((n, 20, 20))]
            (size,) = {box.stop - box.start for box in boxes}
            assert min(n, 48) <= size <= edge
            assert boxes[0].start == 0 and boxes[-1].stop == n
            assert all(a.stop - b.start >= overlap for a, b in pairwise(boxes))


def test_no_seam_is_left_where_patches_disagree() -> None:
    """Each patch answers with its own constant: with an overlap they fade, without they jump."""
    jumps = []
    for overlap in (0, 16):
        count = iter(range(100))
        made = Patches(48, overlap).blend(
            [torch.zeros(96, 20, 20)],
            lambda some, count=count: torch.stack([torch.full_like(v, float(next(count))) for v in some]),
            1,
            [0] * 3,
        )
        jumps.append(float(made.diff(dim=0).abs().max()))
    assert jumps[0] == 1 and jumps[1] < 0.15


def measured(task: str) -> Measured:
    """Each task on oblique, anisotropic volumes of odd sizes."""
    inside, fine = ball(), Dipole(SHAPE, SIZE, B0, padding=0.2)
    coarse = (21, 9, 8)
    weight = 100 + 50 * noise(*(SHAPE if task == "DipInv" else coarse), seed=5).abs()
    value = noise(*weight.shape, seed=6) * 0.02
    if task == "DipInv":
        return of_field(value * inside, weight * inside, fine)
    return (of_coarse if task == "SR" else of_coarse_field)(value, weight, inside, fine)


TASKS = ["DipInv", "SR", "SR-DipInv"]


@pytest.mark.parametrize("task", TASKS)
def test_forward_and_adjoint_are_each_other_s(task: str) -> None:
    m = measured(task)
    x, y = noise(*SHAPE, seed=7), noise(*m.value.shape, seed=8)
    assert float((m.forward(x) * y).sum()) == pytest.approx(float((x * m.adjoint(y)).sum()), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("task", TASKS)
def test_the_slope_is_that_of_the_misfit_and_a_constant_changes_nothing(task: str) -> None:
    m = measured(task)
    x = (0.1 * noise(*SHAPE, seed=9) * m.inside).requires_grad_()
    (slope,) = torch.autograd.grad(m.residual(x).square().sum(), x)
    torch.testing.assert_close(
        m.slope(x.detach()), -slope * m.inside / 2, rtol=1e-3, atol=1e-3 * float(slope.abs().max())
    )
    moved = replace(m, value=torch.where(m.weight > 0, m.value + 3, m.value))
    mean = 0.1 * noise(*SHAPE, seed=10) * m.inside
    assert moved.misfit(mean) == pytest.approx(m.misfit(mean), rel=1e-4)
    torch.testing.assert_close(moved.nearest(mean, 4.0, 20), m.nearest(mean, 4.0, 20), rtol=0, atol=1e-4)


def test_the_nearest_map_is_that_of_a_dense_solution() -> None:
    shape = (6, 6, 6)
    inside, dipole = ball(shape), Dipole(shape, SIZE, B0, padding=0.5)
    weight = inside / SD * torch.linspace(0.5, 1.5, 6)
    m = of_field(noise(*shape) * 0.05 * inside, weight, dipole)
    mean, trust = noise(*shape, seed=3) * inside, 30.0
    n = inside.numel()
    columns = [m.residual(v.view(shape)).flatten() - m.residual(torch.zeros(shape)).flatten() for v in torch.eye(n)]
    A, b = -torch.stack(columns, 1).double(), m.residual(torch.zeros(shape)).flatten().double()
    free = inside.flatten()
    A, x0 = A[:, free], mean.flatten()[free].double()
    known = x0 + torch.linalg.solve(A.T @ A + trust * torch.eye(len(x0)), A.T @ (b - A @ x0))
    found = m.nearest(mean, trust, 300)
    torch.testing.assert_close(found.flatten()[free].double(), known, rtol=0, atol=2e-3 * float(known.abs().max()))
    assert not bool(found[~inside].any())


def test_a_lowpass_keeps_what_is_slow_and_is_the_mean_over_what_is_not() -> None:
    for fine, coarse in ((12, 6), (12, 5), (13, 7), (9, 9)):
        at, of = (torch.arange(coarse) + 0.5) / coarse, (torch.arange(fine) + 0.5) / fine
        wave = lambda x: 2 + torch.cos(2 * torch.pi * 2 * x + 0.3)  # noqa: E731
        made = Lowpass((fine, 2, 2), (coarse, 2, 2), torch.device("cpu")).forward(
            wave(of)[:, None, None].expand(fine, 2, 2)
        )
        torch.testing.assert_close(made[:, 0, 0], wave(at), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="no coarser"):
        Lowpass((4, 4, 4), (5, 4, 4), torch.device("cpu"))


QUICK = Diffusion(steps=6, samples=1, precision="float32", iterations=8)


def walked(sampler: str, prior: Any, m: Measured, params: Diffusion, start: Tensor | None = None) -> Tensor:
    random = torch.Generator().manual_seed(params.seed)
    draw = lambda: torch.randn(SHAPE, generator=random) * m.inside  # noqa: E731
    sigmas = levels(params.steps, 20.0, params.last_ppm / SCALE_PPM)
    z = (0 if start is None else start) + sigmas[0] * draw()
    return SAMPLERS[sampler](prior, m, z, sigmas, params, draw, lambda step, x: None)  # type: ignore[no-any-return]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_prior_that_knows_the_truth_leads_to_it(sampler: str) -> None:
    chi, _, weight, dipole = head()
    m, known = of_field(dipole.forward(chi) * (weight > 0), weight, dipole), chi / SCALE_PPM
    found = walked(sampler, lambda z, sigma: known + 0 * z, m, QUICK)
    torch.testing.assert_close(found, known, rtol=0, atol=1e-4)


def test_with_a_gaussian_prior_diffpir_draws_from_the_posterior() -> None:
    """Of a prior of unit variance its mean is the map nearest to 0 with a trust of 1, its spread 0.92 on average."""
    _, field, weight, dipole = head(sd=0.02)
    m = of_field(field, weight, dipole)
    wiener = lambda z, sigma: z / (1 + sigma**2)  # noqa: E731
    known = m.nearest(torch.zeros(SHAPE), 1.0, 200)
    params = replace(QUICK, steps=30, iterations=10, temperature=1.0, churn=0.3, first_ppm=0.03)
    maps = torch.stack([walked("diffpir", wiener, m, replace(params, seed=seed)) for seed in range(6)])
    spread = float(maps.std(0)[m.inside].mean())
    assert 0.7 < spread < 1
    off = (maps.mean(0) - known)[m.inside]
    assert 0.25 * spread < float(off.std()) < 0.55 * spread, "of 6 samples 0.41"
    guess = walked("diffpir", wiener, m, replace(params, temperature=0.0, churn=0.0))
    assert float((guess - known).norm() / known.norm()) < 2e-3


def test_the_same_seed_gives_the_same_map_another_another_and_their_spread_is_told(tiny: Any) -> None:
    tiny(0.1)
    _, field, weight, dipole = head()
    said: list[float] = []
    both = reconstruct(field, weight, dipole, replace(QUICK, samples=2, seed=4), lambda share, word: said.append(share))
    first, again, other = (reconstruct(field, weight, dipole, replace(QUICK, seed=s)) for s in (4, 4, 5))
    assert torch.equal(first.chi_ppm, again.chi_ppm) and not torch.equal(first.chi_ppm, other.chi_ppm)
    torch.testing.assert_close(both.chi_ppm, (first.chi_ppm + other.chi_ppm) / 2)
    assert first.uncertainty_ppm is None and both.uncertainty_ppm is not None
    inside = weight > 0
    assert float(both.uncertainty_ppm[inside].min()) > 0 and not bool(both.chi_ppm[~inside].any())
    assert abs(float(both.chi_ppm[inside].mean())) < 1e-6
    assert said == sorted(said) and said[-1] == 1 and len(said) == 12
    assert both.facts["network_evaluations"] == 12 and [run["seed"] for run in both.facts["runs"]] == [4, 5]
    assert [len(run["misfit"]) for run in both.facts["runs"]] == [6, 6] and not both.facts["out_of_time"]
    json.dumps(both.facts)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("start", ["noise", "tkd"])
def test_half_precision_changes_little_and_every_start_is_heeded(sampler: str, start: Any, tiny: Any) -> None:
    tiny(0.1)
    _, field, weight, dipole = head()
    params = replace(QUICK, sampler=sampler, start=start)
    full, half = (
        reconstruct(field, weight, dipole, replace(params, precision=p)).chi_ppm for p in ("float32", "bfloat16")
    )
    assert bool(full.isfinite().all()) and float((full - half).norm() / full.norm()) < 0.05
    begun = reconstruct(field, weight, dipole, replace(params, start="tv")).chi_ppm
    assert not torch.allclose(begun, full)


def test_a_step_of_dps_hangs_neither_on_the_number_of_voxels_nor_on_how_they_are_cut() -> None:
    """A second volume beside the first, without a word between them, changes nothing for it."""
    dipole = Dipole(SHAPE, SIZE, B0)
    same = lambda v: v  # noqa: E731
    wiener = lambda z, sigma: z / (1 + sigma**2)  # noqa: E731
    value, z, sigmas = noise(*SHAPE), noise(*SHAPE, seed=2), levels(5, 1.0, 0.05)
    found = []
    for times in (1, 2):
        v, start = (torch.cat([volume] * times) for volume in (value, z))
        weight, inside = torch.full_like(v, 5.0), torch.ones_like(v, dtype=torch.bool)
        m = Measured(v, weight, same, same, inside, dipole.kernel, dipole, ())
        none = lambda v=v: torch.zeros_like(v)  # noqa: E731
        found.append(SAMPLERS["dps"](wiener, m, start, sigmas, QUICK, none, lambda *_: None)[: SHAPE[0]])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-4)
    assert float((found[0] - value).norm()) < 0.5 * float((z - value).norm())


@pytest.mark.parametrize("sampler", ["diffpir", "dps"])
def test_patches_and_the_whole_agree_and_dps_finds_its_way_back_through_both(sampler: str, tiny: Any) -> None:
    """The network of zeros has no context, so that its patches are exact; with a context they nearly agree."""
    tiny(0.0)
    _, field, weight, dipole = head()
    whole, cut = (replace(QUICK, sampler=sampler, patch=p, overlap=4, start="tkd") for p in (0, 48))
    m = of_field(field, weight, dipole)
    maps = []
    for params, edge in ((whole, 0), (cut, 10)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(diffusion, "Patches", lambda _, overlap, edge=edge: Patches(edge, overlap))
            maps.append(sample(m, field, params).chi_ppm)
    torch.testing.assert_close(maps[1], maps[0], rtol=0, atol=1e-5)


def test_the_walk_is_the_network_mirrored_and_has_no_mean(tiny: Any) -> None:
    network = tiny()
    inside = ball()
    walk, z = Walk(replace(QUICK, patch=0), inside), noise(*SHAPE) * inside
    with torch.no_grad():
        for mirrored in ([], [0], [1], [0, 1]):
            plain = network(z.flip(mirrored)[None], torch.tensor([0.7]), inside.flip(mirrored)[None])[0].flip(mirrored)
            plain = torch.where(inside, plain - plain[inside].mean(), 0)
            torch.testing.assert_close(walk(z, 0.7), plain, rtol=0, atol=1e-5)


def test_what_is_kept_for_the_way_back_does_not_grow_with_what_the_network_makes(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny()
    monkeypatch.setattr(diffusion, "Patches", lambda _, overlap: Patches(10, 2))
    walk, kept = Walk(replace(QUICK, patch=48), ball()), 0

    def keep(saved: Tensor) -> Tensor:
        nonlocal kept
        kept += saved.numel() * saved.element_size()
        return saved

    z = noise(*SHAPE).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        mean = walk(z, 0.7)
    assert kept < 40 * z.numel()
    (slope,) = torch.autograd.grad(mean.square().sum(), z)
    assert bool(slope.isfinite().all()) and bool(slope.any())


def test_when_the_time_is_over_there_is_the_mean_of_what_is_done(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny()
    _, field, weight, dipole = head()

    def within(seconds: float, samples: int = 3) -> Any:
        clock = iter(range(1000))
        monkeypatch.setattr(diffusion.time, "monotonic", lambda: float(next(clock)))
        return reconstruct(field, weight, dipole, replace(QUICK, samples=samples, seconds=seconds))

    steps = [
        sum(len(run["misfit"]) for run in within(seconds).facts["runs"]) for seconds in (0, 1e4, 14.5, 6.5, 2.5, 0.5)
    ]
    assert steps == [18, 18, 12, 6, 3, 1]
    found = within(2.5)
    assert found.facts["out_of_time"] and found.facts["samples"] == 1 and found.uncertainty_ppm is None
    assert bool(found.chi_ppm.isfinite().all()) and not within(0).facts["out_of_time"]


def test_parameters_that_cannot_be_are_refused() -> None:
    for wrong in ({"patch": 47}, {"patch": 1}, {"patch": 48, "overlap": 25}):
        with pytest.raises(ValueError, match=r"patch|overlap"):
            Diffusion(**wrong)  # type: ignore[arg-type]
