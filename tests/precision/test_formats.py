"""Formats and rounding: every code point against torch's own casts, ties included; stochastic rounding unbiased and reproducible."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from upslope.precision.formats import BF16, E2M1, E4M3, E5M2, E5M6, E8M0, FP16, Format, codes, exponent_of, power_of_two, round_to
from upslope.precision.rounding import generator

NATIVE = {BF16: torch.bfloat16, FP16: torch.float16, E4M3: torch.float8_e4m3fn, E5M2: torch.float8_e5m2}


def every_code(dtype: torch.dtype) -> Tensor:
    """All values of a torch dtype in the order of its codes, float32."""
    bits = torch.arange(2 ** (8 * dtype.itemsize))
    return bits.to(torch.uint8 if dtype.itemsize == 1 else torch.uint16).view(dtype).float()


def same(a: Tensor, b: Tensor) -> bool:
    """Equal to the bit, signed zeros too; any NaN equals any NaN."""
    return bool(((a == b) & (a.signbit() == b.signbit()) | (a.isnan() & b.isnan())).all())


def around(values: Tensor) -> Tensor:
    """Values, midpoints of neighbours, and the float32 numbers next to both."""
    grid = values[values.isfinite()].unique()
    points = torch.cat([grid, grid[:-1] / 2 + grid[1:] / 2])
    up, down = torch.full_like(points, torch.inf), torch.full_like(points, -torch.inf)
    return torch.cat([points, points.nextafter(up), points.nextafter(down)])


@pytest.mark.parametrize(("format", "dtype"), NATIVE.items(), ids=lambda v: getattr(v, "name", ""))
def test_every_code_is_a_fixed_point_and_listed(format: Format, dtype: torch.dtype) -> None:
    values = every_code(dtype)
    assert same(round_to(values, format), values)
    assert torch.equal(codes(format), values[values.isfinite() & ~values.signbit()].double())
    assert format.max == torch.finfo(dtype).max
    assert format.tiny == torch.finfo(dtype).smallest_normal * 2.0**-format.mantissa
    assert format.has_inf == bool(values.isinf().any())


@pytest.mark.parametrize(("format", "dtype"), NATIVE.items(), ids=lambda v: getattr(v, "name", ""))
def test_rounding_equals_torch_at_ties_neighbours_and_random_bits(format: Format, dtype: torch.dtype) -> None:
    bits = torch.randint(-(2**31), 2**31, (200_000,), generator=generator(0, "bits")).to(torch.int32).view(torch.float32)
    beyond = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 1e38, -1e38, torch.inf, -torch.inf, torch.nan]).float()
    edge = torch.tensor(format.max) * torch.linspace(0.98, 1.1, 4001)
    random = torch.randn(20_000, generator=generator(0, "normal")) * 10
    x = torch.cat([bits, beyond, edge, -edge, random, around(every_code(dtype))])
    if format == E4M3:  # beyond the tie at 464 torch's cast is NaN in some versions and 448, also for ∞, in others
        x = x[~(x.abs() > 464)]
    assert same(round_to(x, replace(format, saturating=False)), x.to(dtype).float())


def test_saturation_clamps_finite_values_and_shows_infinite_ones() -> None:
    x = torch.tensor([449.0, 464.1, 1e30, -1e30, torch.inf, -torch.inf, torch.nan])
    assert same(round_to(x, E4M3), torch.tensor([448.0, 448.0, 448.0, -448.0, torch.nan, torch.nan, torch.nan]))
    assert same(round_to(x, replace(E4M3, saturating=False))[:4], torch.tensor([448.0, *[torch.nan] * 3]))
    assert same(round_to(x, E5M2)[2:], torch.tensor([57344.0, -57344.0, torch.inf, -torch.inf, torch.nan]))
    assert same(round_to(x, E2M1)[2:], torch.tensor([6.0, -6.0, torch.nan, torch.nan, torch.nan]))


def test_e2m1_by_brute_force() -> None:
    grid = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert codes(E2M1).tolist() == grid
    for v in torch.linspace(0, 7, 29).tolist():  # steps of 1/4: all ties
        nearest = min(range(8), key=lambda i: (abs(grid[i] - v), i % 2))
        assert round_to(torch.tensor([v, -v]), E2M1).tolist() == [grid[nearest], -grid[nearest]]


def test_e8m0_equals_torch_and_has_neither_sign_nor_zero() -> None:
    values = torch.arange(255).to(torch.uint8).view(torch.float8_e8m0fnu).float()
    assert torch.equal(codes(E8M0).float(), values)
    x = torch.rand(10_000, generator=generator(1)) * torch.exp2(torch.randint(-125, 126, (10_000,), generator=generator(2)).float())
    x = torch.cat([x[x >= 2.0**-126], values[1:], values[1:-1] * 1.5])  # torch rounds subnormal float32 otherwise
    assert same(round_to(x, E8M0), x.to(torch.float8_e8m0fnu).float())
    assert same(round_to(torch.tensor([0.0, -1.0, 1e39]), E8M0), torch.tensor([2.0**-127, torch.nan, torch.nan]))


def test_float64_is_rounded_once() -> None:
    just_above = torch.tensor([1 + 2.0**-8 + 2.0**-40], dtype=torch.float64)  # through float32 it would become a tie, and go down
    assert round_to(just_above, BF16).item() == 1 + 2.0**-7
    assert round_to(just_above, BF16).dtype == torch.float64
    assert round_to(just_above.half(), E4M3).dtype == torch.float32


def test_exact_exponents() -> None:
    e = torch.arange(-1022, 1024)
    assert power_of_two(e).tolist() == [2.0**i for i in e.tolist()]
    assert torch.equal(exponent_of(power_of_two(e)), e)
    assert exponent_of(torch.tensor([7.999999999999999], dtype=torch.float64)).item() == 2
    assert [f.emax for f in (E2M1, E4M3, E5M2, E8M0, FP16)] == [2, 8, 15, 127, 15]


@pytest.mark.parametrize("format", [BF16, FP16, E5M6, E4M3, E5M2, E2M1], ids=lambda f: f.name)
def test_stochastic_rounding_is_unbiased_and_reaches_only_neighbours(format: Format) -> None:
    n = 40_000
    for v in (1.1, -2.3, 0.3 * format.tiny, 0.55 * format.max):
        out = round_to(torch.full((n,), v, dtype=torch.float64), format, "stochastic", generator(3, format.name))
        grid = torch.cat([-codes(format).flip(0), codes(format)])
        low, high = grid[grid <= v].max().item(), grid[grid >= v].min().item()
        assert set(out.tolist()) == {low, high}
        assert abs(out.mean().item() - v) < 4.5 * (high - low) / 2 / n**0.5


def test_stochastic_rounding_keeps_codes_and_saturates() -> None:
    for format in (E4M3, E2M1):
        values = codes(format)
        assert torch.equal(round_to(values, format, "stochastic", generator(0)), values)
        assert round_to(torch.full((99,), format.max * 1.01), format, "stochastic", generator(0)).unique().tolist() == [format.max]
    assert round_to(torch.tensor([torch.nan, torch.inf]), E4M3, "stochastic", generator(0)).isnan().all()


def test_stochastic_bits_are_those_of_seed_and_index() -> None:
    x = torch.randn(1000, generator=generator(4))

    def draw(*index: int | str) -> Tensor:
        return round_to(x, E4M3, "stochastic", generator(*index))  # type: ignore[arg-type]

    assert torch.equal(draw(7, 3, "blocks.0.q"), draw(7, 3, "blocks.0.q"))
    others = [draw(8, 3, "blocks.0.q"), draw(7, 4, "blocks.0.q"), draw(7, 3, "blocks.1.q")]
    assert not any(torch.equal(draw(7, 3, "blocks.0.q"), other) for other in others)
    with pytest.raises(ValueError, match="generator"):
        round_to(x, E4M3, "stochastic")


def test_lost_updates_nearest_stalls_and_stochastic_follows() -> None:
    """Updates below half a unit vanish under nearest rounding: 1 + 1000 · 1e-3 stays 1 in bf16."""
    nearest, stochastic, g = torch.ones(512), torch.ones(512), generator(9)
    for _ in range(1000):
        nearest = round_to(nearest + 1e-3, BF16)
        stochastic = round_to(stochastic + 1e-3, BF16, "stochastic", g)
    assert nearest.unique().tolist() == [1.0]
    assert abs(stochastic.mean().item() - 2) < 0.02


@pytest.mark.parametrize("format", [f for f in (E2M1, E4M3, E5M2, E5M6, FP16, BF16) if f.signed and f.saturating], ids=lambda f: f.name)
def test_float32_takes_a_short_way_to_the_same_bits(format: Format) -> None:
    g = torch.Generator().manual_seed(0)
    anything = torch.randint(-(2**31), 2**31, (200_000,), generator=g).to(torch.int32).view(torch.float32)
    values = codes(format).float()
    middle = (values[1:] + values[:-1]) / 2
    edges = [values, middle, *(torch.nextafter(middle, torch.tensor(to)) for to in (-1e9, 1e9)), torch.tensor([0.0, 1e-45, 1e30, 3e38])]
    x = torch.cat([anything[anything.isfinite()], *edges, *(-e for e in edges)])
    long = round_to(x.double(), format).float()
    assert torch.equal(round_to(x, format).view(torch.int32), long.view(torch.int32))
