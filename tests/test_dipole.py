"""The dipole operator: self-adjoint, linear, exact under rotation, the analytic field of a sphere, no wrap-around."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.dipole import Dipole, dipole_kernel, fft_size, padded_shape

CASES = [
    ((9, 12, 7), (1.0, 1.0, 1.0), (0, 0, 1)),
    ((8, 10, 12), (0.7, 1.3, 2.0), (0.3, -0.5, 0.8)),
    ((11, 8, 9), (2.0, 0.6, 1.1), (1.0, 2.0, -0.5)),
]
OBLIQUE = (0.3, -0.5, 0.8)


def random(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("padding", [0.0, 0.2, 1.0])
@pytest.mark.parametrize(("shape", "size", "b0"), CASES)
def test_the_operator_is_its_own_adjoint(
    shape: tuple[int, int, int], size: tuple[float, ...], b0: tuple[float, ...], padding: float
) -> None:
    dipole = Dipole(shape, size, b0, padding=padding, dtype=torch.float64)
    x, y = random(shape, 1), random(shape, 2)
    torch.testing.assert_close((dipole.forward(x) * y).sum(), (x * dipole.forward(y)).sum(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("shape", "size", "b0"), CASES)
def test_the_operator_is_linear_and_takes_a_stack(
    shape: tuple[int, int, int], size: tuple[float, ...], b0: tuple[float, ...]
) -> None:
    dipole = Dipole(shape, size, b0, dtype=torch.float64)
    x, y = random(shape, 1), random(shape, 2)
    torch.testing.assert_close(dipole.forward(3 * x - y), 3 * dipole.forward(x) - dipole.forward(y))
    torch.testing.assert_close(dipole.forward(torch.stack([x, y]))[1], dipole.forward(y))


@pytest.mark.parametrize(("shape", "size", "b0"), CASES)
def test_the_kernel_lies_between_minus_two_thirds_and_one_third(
    shape: tuple[int, int, int], size: tuple[float, ...], b0: tuple[float, ...]
) -> None:
    kernel = dipole_kernel(shape, size, b0, dtype=torch.float64)
    assert kernel.shape == (shape[0], shape[1], shape[2] // 2 + 1)
    assert kernel[0, 0, 0] == 0
    assert -2 / 3 - 1e-12 <= float(kernel.min()) < -0.4
    assert 0.25 < float(kernel.max()) <= 1 / 3 + 1e-12


@pytest.mark.parametrize("length", [0.01, 1, 300])
def test_only_the_direction_of_b0_counts_not_its_length_or_sign(length: float) -> None:
    unit, other = (dipole_kernel((9, 8, 7), (1, 2, 3), [s * c for c in OBLIQUE]) for s in (1, -length))
    torch.testing.assert_close(unit, other)


def test_each_value_of_the_kernel_is_the_formula() -> None:
    shape, size = (9, 7, 11), (0.8, 1.5, 2.0)
    kernel = dipole_kernel(shape, size, OBLIQUE, dtype=torch.float64)
    b = [c / math.hypot(*OBLIQUE) for c in OBLIQUE]
    for index in [(1, 0, 0), (8, 3, 2), (4, 6, 5), (0, 0, 3)]:
        signed = [i - n if i > n // 2 else i for i, n in zip(index, shape, strict=True)]
        k = [i / (n * v) for i, n, v in zip(signed, shape, size, strict=True)]
        along = sum(a * c for a, c in zip(k, b, strict=True))
        assert float(kernel[index]) == pytest.approx(1 / 3 - along**2 / sum(a * a for a in k))


@pytest.mark.parametrize("padding", [0.0, 1.0])
def test_turning_head_and_b0_together_turns_the_field(padding: float) -> None:
    chi, size = random((9, 12, 8)), (0.7, 1.3, 2.0)
    bx, by, bz = OBLIQUE
    field = Dipole(chi.shape, size, OBLIQUE, padding=padding, dtype=torch.float64).forward(chi)
    turned = torch.rot90(chi, 1, (0, 1)).contiguous()
    other = Dipole(turned.shape, (1.3, 0.7, 2.0), (-by, bx, bz), padding=padding, dtype=torch.float64)
    torch.testing.assert_close(other.forward(turned), torch.rot90(field, 1, (0, 1)), rtol=0, atol=1e-12)
    tipped = chi.permute(1, 2, 0).contiguous()
    other = Dipole(tipped.shape, (1.3, 2.0, 0.7), (by, bz, bx), padding=padding, dtype=torch.float64)
    torch.testing.assert_close(other.forward(tipped), field.permute(1, 2, 0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("b0", [(0, 0, 1), OBLIQUE, (1, 0, 0)])
def test_a_sphere_makes_the_field_of_the_textbook(b0: tuple[float, float, float]) -> None:
    shape, size, radius, chi = (48, 40, 31), (0.8, 1.0, 1.25), 7.0, 0.6
    axes = [(torch.arange(n, dtype=torch.float64) - n // 2) * v for n, v in zip(shape, size, strict=True)]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    r = (x**2 + y**2 + z**2).sqrt()
    sphere = ((radius - r) + 0.5).clamp(0, 1)
    field = Dipole(shape, size, b0, dtype=torch.float64).forward(chi * sphere)
    b = [c / math.hypot(*b0) for c in b0]
    cosine = (b[0] * x + b[1] * y + b[2] * z) / r.clamp_min(1e-9)
    outside = (r > 1.3 * radius) & (r < 2 * radius)
    analytic = chi / 3 * (radius / r.clamp_min(1)) ** 3 * (3 * cosine**2 - 1)
    assert float((field - analytic)[outside].norm() / analytic[outside].norm()) < 0.07
    assert float(field[r < 0.7 * radius].abs().max()) < 0.03 * chi


def test_padding_keeps_one_edge_out_of_the_sight_of_the_other() -> None:
    shape, size = (24, 10, 10), (1.0, 1.0, 1.0)
    chi = torch.zeros(shape, dtype=torch.float64)
    chi[1, 5, 5] = 1
    r = 21.0
    analytic = 2 / (4 * math.pi * r**3)
    padded, bare = (float(Dipole(shape, size, (1, 0, 0), padding=p).forward(chi.float())[22, 5, 5]) for p in (1.0, 0.0))
    assert abs(padded - analytic) < 0.02 * abs(bare - analytic)


def test_the_same_source_makes_the_same_field_wherever_it_lies() -> None:
    chi = torch.zeros((17, 14, 11), dtype=torch.float64)
    dipole = Dipole(chi.shape, (1, 1.2, 2), OBLIQUE, dtype=torch.float64)
    blob = random((3, 3, 3))
    near, far = chi.clone(), chi.clone()
    near[:3, :3, :3], far[9:12, 7:10, 5:8] = blob, blob
    torch.testing.assert_close(dipole.forward(near)[:8, :7, :6], dipole.forward(far)[9:, 7:, 5:], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("shape", "size", "b0"), CASES)
def test_single_precision_is_enough(
    shape: tuple[int, int, int], size: tuple[float, ...], b0: tuple[float, ...]
) -> None:
    chi = random(shape)
    single = Dipole(shape, size, b0).forward(chi.float())
    double = Dipole(shape, size, b0, dtype=torch.float64).forward(chi)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=0, atol=3e-6)


@given(st.integers(1, 1200))
def test_an_fft_size_is_even_smooth_and_the_smallest(n: int) -> None:
    def smooth(m: int) -> bool:
        for prime in (2, 3, 5):
            while m % prime == 0:
                m //= prime
        return m == 1

    size = fft_size(n)
    assert size >= n and size % 2 == 0 and smooth(size)
    assert not any(smooth(m) for m in range(n + n % 2, size, 2))


@given(st.tuples(*[st.integers(1, 200)] * 3), st.floats(0, 1))
def test_padding_never_shrinks(shape: tuple[int, int, int], padding: float) -> None:
    assert all(
        big >= n and big >= round(n * (1 + padding)) for big, n in zip(padded_shape(shape, padding), shape, strict=True)
    )
