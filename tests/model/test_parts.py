"""Norm, rotation, SwiGLU and packing, each against its formula and by its property."""

from __future__ import annotations

import pytest
import torch

from tests.model.support import segments
from upslope.model.config import RMS, Gated, Rope
from upslope.model.ffn import GatedFFN
from upslope.model.norm import RMSNorm, rms_norm
from upslope.model.packing import FILL, Packing
from upslope.model.rope import angles, rotate


def test_rms_norm_is_its_formula() -> None:
    x, gain = torch.randn(5, 3, 8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    wanted = x / (x.square().mean(-1, keepdim=True) + 1e-2).sqrt() * gain
    assert torch.allclose(rms_norm(x, gain, 1e-2), wanted, atol=1e-12)
    with torch.no_grad():
        assert torch.allclose(rms_norm(x, gain, 1e-2), wanted, atol=1e-12)


def test_rms_norm_gradient() -> None:
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    gain = torch.randn(6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: rms_norm(a, b, 1e-3), (x, gain))


def test_rms_norm_widens_bf16_and_starts_neutral() -> None:
    out = RMSNorm(8, RMS())(torch.full((2, 8), 3.0, dtype=torch.bfloat16))
    assert out.dtype == torch.float32
    assert torch.allclose(out, torch.ones(2, 8))


def test_rotation_is_complex_multiplication_of_half_split_pairs() -> None:
    x = torch.randn(7, 3, 8, dtype=torch.float64)
    pos = torch.tensor([0, 1, 2, 5, 9, 100, 1000])
    at = angles(pos, Rope(base=50.0), 8, torch.float64)
    pairs = torch.complex(x[..., :4], x[..., 4:])
    frequency = 50.0 ** (-torch.arange(4, dtype=torch.float64) * 2 / 8)
    turned = pairs * torch.polar(torch.ones(7, 1, 4, dtype=torch.float64), pos[:, None, None] * frequency)
    assert torch.allclose(rotate(x, at), torch.cat((turned.real, turned.imag), -1), atol=1e-12)


def test_rotated_products_depend_on_distance_alone() -> None:
    q, k = torch.randn(1, 1, 8, dtype=torch.float64), torch.randn(1, 1, 8, dtype=torch.float64)

    def product(m: int, n: int) -> float:
        a, b = (rotate(x, angles(torch.tensor([p]), Rope(base=10.0), 8, torch.float64)) for x, p in ((q, m), (k, n)))
        return float((a * b).sum())

    assert product(9, 4) == pytest.approx(product(105, 100), abs=1e-10)
    assert product(9, 4) != pytest.approx(product(9, 5), abs=1e-3)


def test_rotation_gradient() -> None:
    x = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    at = angles(torch.tensor([0, 3, 8]), Rope(base=10.0), 4, torch.float64)
    assert torch.autograd.gradcheck(lambda a: rotate(a, at), (x,))


def test_swiglu_is_its_formula() -> None:
    ffn = GatedFFN(Gated(hidden=5), 3)
    torch.manual_seed(0)
    for p in ffn.parameters():
        torch.nn.init.normal_(p)
    x = torch.randn(4, 3)
    g = x @ ffn.gate.weight.T
    assert torch.allclose(ffn(x), (g / (1 + (-g).exp()) * (x @ ffn.up.weight.T)) @ ffn.down.weight.T, atol=1e-6)


@pytest.mark.parametrize("lengths", [(5,), (4, 4, 4), (1, 9, 3, 3, 8, 1, 2), (7, 1), (1, 1, 1)])
def test_padding_and_back_is_the_identity_with_its_gradient(lengths: tuple[int, ...]) -> None:
    packing = Packing(segments(*lengths))
    x = torch.randn(sum(lengths), 2, 3, dtype=torch.float64, requires_grad=True)
    parts = packing.pad(x)
    assert torch.equal(packing.unpad(parts), x)
    scale = torch.randn_like(x)
    (packing.unpad([p * 2 for p in parts]) * scale).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, 2 * scale)


def test_buckets_bound_the_padding() -> None:
    lengths = torch.randint(1, 60, (50,), generator=torch.Generator().manual_seed(0)).tolist()
    packing = Packing(segments(*lengths))
    padded = sum(b.rows * b.length for b in packing.buckets)
    assert padded * FILL <= sum(lengths)
    assert sum(b.rows for b in packing.buckets) == 50


@pytest.mark.parametrize("seg", [[1, 1], [0, 2], [0, 1, 0], []])
def test_wrong_segment_numbers_are_refused(seg: list[int]) -> None:
    with pytest.raises(ValueError, match="seg"):
        Packing(torch.tensor(seg, dtype=torch.long))


def test_offsets_count_from_zero_in_each_segment() -> None:
    assert Packing(segments(3, 1, 2)).offsets().tolist() == [0, 1, 2, 0, 0, 1]
