"""Quantisation: tile by tile against brute force in plain Python, closed forms, ragged ends, zeros, infinities, the Hadamard transform."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from upslope.precision.formats import E2M1, E4M3, E5M2, Format, codes, round_to
from upslope.precision.quantize import ROW, TENSOR, Scale, Spec, hadamard, quantize, signs
from upslope.precision.rounding import generator

NVFP4 = Spec(E2M1, (1, 16), "two-level")
TILES = [TENSOR, ROW, (0, 1), (1, 16), (16, 16), (1, 32), (1, 128), (128, 128), (5, 7)]


def planted(rows: int = 37, columns: int = 75, spread: float = 3.0) -> Tensor:
    """Values over several orders of magnitude, float64."""
    x = torch.randn(rows, columns, dtype=torch.float64, generator=generator(0, "x"))
    return x * torch.exp2(spread * torch.randn(rows, 1, dtype=torch.float64, generator=generator(0, "scale")))


def nearest(v: float, format: Format) -> float:
    """By search over all codes: the nearest, ties to the even code, beyond the largest the largest."""
    table = codes(format).tolist()
    i = min(range(len(table)), key=lambda i: (abs(table[i] - abs(v)), i % 2))
    return math.copysign(table[i], v)


def scale_of(a: float, spec: Spec, tensor: float) -> float:
    """The decoding scale of a tile with largest element a, in plain arithmetic."""
    if spec.scale == "none" or a == 0:
        return 1.0
    if spec.scale == "real":
        return a / spec.format.max
    if spec.scale == "power-of-two":
        return 2.0 ** math.ceil(math.log2(a / spec.format.max))
    if spec.scale == "mx":
        return 2.0 ** (math.floor(math.log2(a)) - {"e2m1": 2, "e4m3": 8, "e5m2": 15}[spec.format.name])
    encode = 6 * 448 / tensor
    return nearest(a / 6 * encode, E4M3) / encode


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize(
    ("format", "scale"),
    [(E4M3, "real"), (E4M3, "power-of-two"), (E4M3, "mx"), (E5M2, "mx"), (E2M1, "mx"), (E2M1, "two-level"), (E4M3, "none")],
    ids=lambda v: getattr(v, "name", v),
)
def test_dequantised_equals_brute_force(format: Format, scale: Scale, tile: tuple[int, int]) -> None:
    x = planted(11, 21)
    spec = Spec(format, tile, scale)
    rows, columns = tile[0] or 11, tile[1] or 21
    want = torch.empty_like(x)
    for i, j in product(range(0, 11, rows), range(0, 21, columns)):
        part = x[i : i + rows, j : j + columns]
        s = scale_of(part.abs().max().item(), spec, x.abs().max().item())
        want[i : i + rows, j : j + columns] = torch.tensor(
            [[s * nearest(v / s, format) if s else 0.0 for v in row] for row in part.tolist()]
        )
    torch.testing.assert_close(quantize(x, spec).dequantize(), want, rtol=1e-7, atol=0)


def test_each_field_of_the_spec_matters() -> None:
    base, x = Spec(E4M3, (1, 16), "real"), planted()
    for change in ({"format": E5M2}, {"tile": (1, 17)}, {"tile": (2, 16)}, {"scale": "mx"}, {"scale": "power-of-two"}, {"scale": "none"}):
        assert not torch.equal(quantize(x, base).dequantize(), quantize(x, replace(base, **change)).dequantize()), change  # type: ignore[arg-type]


def test_scales_of_one_level_are_what_hardware_stores() -> None:
    x = planted()
    for scale in ("mx", "power-of-two"):
        s = quantize(x, Spec(E4M3, (1, 32), scale)).scales  # type: ignore[arg-type]
        assert torch.equal(s.log2(), s.log2().round()) and s.shape == (37, 3)
    q = quantize(x, NVFP4)
    assert torch.equal(round_to(q.scales, E4M3), q.scales) and q.scales.max() == 448
    assert q.outer == 6 * 448 / x.abs().max()


def test_power_of_two_scales_are_exact_at_powers_and_only_mx_saturates() -> None:
    """448 = 1.75 · 2^8: the tile of ±448 has scale 1, one just above scale 2 rounded up, and 1 with floor(log2), where it saturates."""
    x = torch.tensor([[448.0], [448.0 * (1 + 2**-20)], [512.0], [511.0]])
    assert quantize(x, Spec(E4M3, ROW, "power-of-two")).scales.flatten().tolist() == [1, 2, 2, 2]
    mx = quantize(x, Spec(E4M3, ROW, "mx"))
    assert mx.scales.flatten().tolist() == [1, 1, 2, 1] and mx.dequantize()[3].item() == 448
    tiny = torch.tensor([[1e-44], [3e38]])
    for scale in ("mx", "power-of-two", "real"):
        assert quantize(tiny, Spec(E4M3, ROW, scale)).dequantize().isfinite().all()  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", ["none", "real", "power-of-two", "mx", "two-level"])
@pytest.mark.parametrize("mode", ["nearest-even", "stochastic"])
def test_zeros_stay_and_what_is_not_finite_is_never_hidden(scale: Scale, mode: str) -> None:
    spec = Spec(E2M1, (1, 16), scale)
    zeros = torch.zeros(3, 40)
    assert torch.equal(quantize(zeros, spec, mode, generator(0)).dequantize(), zeros)  # type: ignore[arg-type]
    for bad in (math.nan, math.inf, -math.inf):
        x = torch.ones(3, 40)
        x[1, 20] = bad
        out = quantize(x, spec, mode, generator(0)).dequantize()  # type: ignore[arg-type]
        assert out[1, 20].isnan()
        whole = {"none": 1, "two-level": 120}.get(scale, 16)
        assert out.isnan().sum() == whole


def test_a_tile_far_below_the_tensor_flushes_to_zero_only_with_two_levels() -> None:
    x = torch.ones(2, 16)
    x[1] *= 1e-6  # its scale would be 448e-6, below half of the smallest E4M3 value 2^-9
    assert quantize(x, NVFP4).dequantize()[1].abs().max() == 0
    assert quantize(x, Spec(E2M1, (1, 16), "mx")).dequantize()[1].min() > 0


def test_empty_matrices_and_wrong_shapes() -> None:
    for scale in ("real", "two-level", "mx"):
        assert quantize(torch.zeros(0, 20), Spec(E4M3, (1, 16), scale)).dequantize().shape == (0, 20)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="matrix"):
        quantize(torch.zeros(3), NVFP4)


def test_narrow_input_is_read_exactly() -> None:
    x = planted(spread=1).bfloat16()
    assert torch.equal(quantize(x, NVFP4).dequantize(), quantize(x.float(), NVFP4).dequantize())
    assert quantize(x, NVFP4).values.dtype == torch.float32


def test_planted_outliers_hurt_a_whole_tensor_more_than_its_tiles() -> None:
    x = torch.randn(64, 256, generator=generator(1))
    x[3, 5] = 2e5  # as far above the rest as E4M3 reaches: the rest falls among its subnormal numbers
    clean = torch.ones_like(x, dtype=torch.bool)
    clean[3, :128] = False

    def error(tile: tuple[int, int], scale: Scale = "real") -> float:
        out = quantize(x, Spec(E4M3, tile, scale)).dequantize()
        return ((out - x)[clean].norm() / x[clean].norm()).item()

    tensor, tiled = error(TENSOR), error((1, 128))
    assert tiled < 0.03 < 0.15 < tensor


def test_stochastic_tiles_are_unbiased_but_where_a_rounded_scale_saturates() -> None:
    """A tile's E4M3 scale may round down; its largest element then lies above 6 and becomes 6 whatever the rounding."""
    x = planted(2, 40, 0.5)
    mean = torch.stack([quantize(x, NVFP4, "stochastic", generator(2, i)).dequantize() for i in range(1000)]).mean(0)
    once = quantize(x, NVFP4)
    scaled = x.abs() * once.outer / once.scales.repeat_interleave(16, 1)[:, :40]
    inside = scaled <= 6
    assert (mean - x)[inside].norm() < 0.1 * (once.dequantize() - x)[inside].norm()
    torch.testing.assert_close(mean[~inside], once.dequantize()[~inside])
    assert 0 < (~inside).sum() < 6


def test_hadamard_is_orthonormal_keeps_products_and_spreads_outliers() -> None:
    d = signs(0)
    assert set(d.tolist()) == {1.0, -1.0} and torch.equal(d, signs(0)) and not torch.equal(d, signs(1))
    eye = torch.eye(16, dtype=torch.float64)
    h = hadamard(eye, d)
    torch.testing.assert_close(h @ h.T, eye, rtol=0, atol=1e-12)
    assert torch.equal(h.abs(), torch.full_like(eye, 0.25))
    bits = torch.tensor([[(-1) ** ((i & j).bit_count()) for j in range(16)] for i in range(16)], dtype=torch.float64)
    assert torch.equal(h, d[:, None] * bits / 4)
    a, b = planted(5, 41, 1), planted(7, 41, 1)
    torch.testing.assert_close(hadamard(a, d) @ hadamard(b, d).T, a @ b.T, rtol=1e-10, atol=1e-10)
    assert hadamard(a, d).shape == (5, 48)
    spike = torch.zeros(1, 16, dtype=torch.float64)
    spike[0, 3] = 8
    assert hadamard(spike, d).abs().max() == 2
