"""Real products: layouts against a decoder by index arithmetic, torch's own checks of the contract, a CPU's kernel, and the emulation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from upslope.config import UsageError, dump
from upslope.model.config import Gated
from upslope.model.moe import Experts
from upslope.precision import kernels
from upslope.precision.config import Emulated, Fp8V3, MxFp4, MxFp8, NvFp4, Plain
from upslope.precision.formats import E2M1, E4M3, E5M2, codes
from upslope.precision.kernels import Layout, Scaled, encode, has, layout_of, multiply, swizzle, tiling_of, trial
from upslope.precision.linear import QuantizedLinear, QuantizedStack, at_step, convert
from upslope.precision.products import described, emulated_linear, quantized_linear, real_linear, supported
from upslope.precision.quantize import ROW, TENSOR, Spec, quantize
from upslope.precision.recipe import Operand, Recipe, recipe_of
from upslope.precision.rounding import generator
from upslope.train.stage import _computed

CONFIGS: dict[str, Emulated] = {
    "fp8_v3": Fp8V3(),
    "fp8_v3 pow2": Fp8V3(power_of_two=("*",), retile="original"),
    "mxfp8": MxFp8(),
    "mxfp8 e5m2": MxFp8(gradients="e5m2", round_up=True),
    "mxfp4": MxFp4(),
    "nvfp4": NvFp4(),
    "nvfp4 rows": NvFp4(blocks=False),
}
LAYOUTS: dict[str, Layout] = {"fp8_v3": "fp8 tiles of 128", "mxfp8": "mxfp8", "mxfp4": "mxfp4", "nvfp4": "nvfp4"}
SPECS = sorted({o.spec for c in CONFIGS.values() for p in recipe_of(c).products().values() for o in p if o.spec}, key=repr)
ROWS = [Spec(E4M3, ROW), Spec(E4M3, TENSOR), Spec(E4M3, ROW, "power-of-two"), Spec(E5M2, ROW), Spec(E4M3, TENSOR, "none")]
FP4 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
CPU = torch.device("cpu")


def draw(*shape: int, key: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers whose rows and columns differ, so that no two tiles share a scale."""
    x = torch.randn(*shape, dtype=torch.float64, generator=generator(0, key))
    for i in range(len(shape)):
        side = [n if i == j else 1 for j, n in enumerate(shape)]
        x = x * torch.exp2(2 * torch.randn(side, dtype=torch.float64, generator=generator(1, key, i)))
    return x.to(dtype)


def opened(s: Scaled, width: int) -> Tensor:
    """The matrix (R, K) that a kernel reads, float64, by the contract: which scale belongs to which code, one index at a time."""
    if s.codes.dtype == torch.float4_e2m1fn_x2:
        nibbles = [[n for byte in row for n in (byte & 15, byte >> 4)] for row in s.codes.view(torch.uint8).tolist()]
        values = torch.tensor([[FP4[n & 7] * (-1 if n & 8 else 1) for n in row] for row in nibbles], dtype=torch.float64)
    else:
        values = s.codes.double()
    scale, k = s.scales[0], values.shape[1]
    if s.tiling in ("1x32", "1x16"):
        size = 32 if s.tiling == "1x32" else 16
        across = -(-k // size // 4)  # tiles of 128×4 scales in a row
        flat = scale.float().double().tolist()

        def of(i: int, j: int) -> float:
            r, c = i, j // size
            found = flat[((r // 128) * across + c // 4) * 512 + (r % 32) * 16 + (r % 128) // 32 * 4 + c % 4]
            return found * float(s.scales[1]) if size == 16 else found
    else:
        rows = scale.double().tolist()

        def of(i: int, j: int) -> float:
            if s.tiling == "row":
                return rows[i][0]
            return rows[i][j // 128] if s.tiling == "1x128" else rows[j // 128][i // 128]

    step = {"row": k, "1x128": 128, "128x128": 128, "1x32": 32, "1x16": 16}[s.tiling]
    table = torch.tensor([[of(i, j) for j in range(0, width, step)] for i in range(s.rows)], dtype=torch.float64)
    return values[: s.rows, :width] * table.repeat_interleave(step, 1)[:, :width]


def reference(a: Scaled, b: Scaled) -> Tensor:
    """The kernels' contract in float64."""
    width = a.codes.shape[1] * (2 if a.codes.dtype == torch.float4_e2m1fn_x2 else 1)
    return opened(a, width) @ opened(b, width).T


def off(found: Tensor, want: Tensor) -> float:
    """Relative error by norm."""
    return ((found.double() - want.double()).norm() / want.double().norm()).item()


X, W, G = draw(37, 300, key="x"), draw(148, 300, key="w"), draw(37, 148, key="g")


def products(linear: Callable[..., Tensor], recipe: Recipe, dtype: torch.dtype = torch.float32, **options: Any) -> list[Tensor]:
    """y, dx, dW."""
    x, w = X.to(dtype, copy=True).requires_grad_(), W.to(dtype, copy=True).requires_grad_()
    y = linear(x, w, recipe, **options)
    return [y.detach(), *torch.autograd.grad(y, (x, w), G.to(y.dtype))]


# ── layouts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("spec", [*SPECS, *ROWS], ids=str)
@pytest.mark.parametrize("shape", [(150, 300), (5, 128), (256, 40)], ids=str)
def test_kernels_read_the_codes_and_scales_of_the_emulation(spec: Spec, shape: tuple[int, int]) -> None:
    q = quantize(draw(*shape, key="q"), spec)
    rows, columns = q.tile
    scales = q.scales.double().repeat_interleave(rows, 0)[: shape[0]].repeat_interleave(columns, 1)[:, : shape[1]]
    want = q.values.double() * (scales * (1 / q.outer).double())
    s = encode(q, spec)
    assert torch.equal(opened(s, shape[1]), want)
    assert s.codes.shape[0] % 16 == 0 and s.codes.shape[1] % 64 == 0


def test_order_of_scales_and_of_pairs_by_hand() -> None:
    """Scale (r, c) of a tile of 128×4 stands at 16 (r mod 32) + 4 ⌊r/32⌋ + c; the first of two FP4 codes is in the low bits."""
    flat = swizzle(torch.arange(256 * 12).view(256, 12)).view(2, 3, 512)
    assert flat[0, 0, :8].tolist() == [0, 1, 2, 3, 32 * 12, 32 * 12 + 1, 32 * 12 + 2, 32 * 12 + 3]
    assert flat[0, 0, 16].item() == 12 and flat[0, 1, 0].item() == 4 and flat[1, 2, -1].item() == 256 * 12 - 1
    spec = Spec(E2M1, (1, 16), "two-level")
    packed = encode(quantize(torch.cat([codes(E2M1), -codes(E2M1)]).float()[None], spec), spec).codes.view(torch.uint8)
    assert packed[0, :8].tolist() == [2 * i | (2 * i + 1) << 4 for i in range(8)]


def described_to(t: Tensor) -> Tensor:
    """A tensor without values of the same shape, strides and type."""
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")


# torch's description, unlike the operator, takes the pairs of MXFP4 for single codes; of few columns both ask for as many scales
PAIRS = [(n, p, w) for n, p, w in product(CONFIGS, ("fprop", "dgrad", "wgrad"), (300, 64)) if (n, w) != ("mxfp4", 300)]


@pytest.mark.parametrize(("name", "which", "width"), PAIRS)
def test_torch_accepts_each_product_of_each_config(name: str, which: str, width: int) -> None:
    """torch's own description of the operator on CUDA devices checks shapes, strides, types and the order of scales."""
    a, b = (o.spec for o in recipe_of(CONFIGS[name]).products()[which])
    assert a is not None and b is not None and layout_of(a, b) == LAYOUTS[name.split()[0]]
    p, q = encode(quantize(draw(150, width, key="p"), a), a), encode(quantize(draw(70, width, key="q"), b), b)
    p, q = (replace(s, codes=described_to(s.codes), scales=tuple(map(described_to, s.scales))) for s in (p, q))
    out = multiply(p, q)
    assert out.shape == (150, 70) and out.dtype == (torch.bfloat16 if name == "mxfp4" else torch.float32)
    first = p.scales[0]
    wrongs = [first.new_empty(len(first) + 1, *first.shape[1:]), first.to(torch.float16)]
    if name.startswith("fp8") and width == 300:
        wrongs.append(first.contiguous())
    for wrong in wrongs:
        with pytest.raises(RuntimeError, match=r"scale a must have|scaling scale_a must have"):
            multiply(replace(p, scales=(wrong, *p.scales[1:])), q)


def test_what_no_kernel_multiplies() -> None:
    tiles, blocks, mx = Spec(E4M3, (1, 128)), Spec(E4M3, (128, 128)), Spec(E4M3, (1, 32), "mx")
    assert layout_of(tiles, blocks) == layout_of(blocks, tiles) == layout_of(tiles, tiles) == "fp8 tiles of 128"
    for a, b in [
        (blocks, blocks),
        (tiles, mx),
        (tiles, None),
        (None, None),
        (replace(mx, format=E5M2), replace(mx, format=E5M2)),
        (mx, Spec(E2M1, (1, 32), "mx")),
        (Spec(E4M3, (1, 64)), Spec(E4M3, (64, 64))),
        (Spec(E4M3, ROW), Spec(E5M2, ROW)),
        (Spec(E4M3, (128, 1)), tiles),
        (Spec(E2M1, (1, 16), "mx"), Spec(E2M1, (1, 16), "mx")),
    ]:
        assert layout_of(a, b) is None, (a, b)
    assert tiling_of(Spec(E4M3, (1, 32), "real")) is None
    with pytest.raises(ValueError, match="no kernel reads e4m3 in tiles of 1×64"):
        encode(quantize(X, Spec(E4M3, (1, 64))), Spec(E4M3, (1, 64)))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_what_is_not_finite_stays_so(spec: Spec) -> None:
    x = draw(20, 300, key="bad")
    x[3, 5] = torch.nan
    assert opened(encode(quantize(x, spec), spec), 300)[3, 5].isnan()


# ── products ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", CONFIGS)
def test_real_products_by_the_contract_are_the_emulated_ones(name: str) -> None:
    recipe = recipe_of(CONFIGS[name], "blocks.1.o")
    emulated, real = products(emulated_linear, recipe), products(real_linear, recipe, multiply=reference)
    assert all(off(r, e) < 1e-6 for r, e in zip(real, emulated))
    if name.startswith("mxfp"):  # scales are powers of two, so float64 holds all of it
        emulated = products(emulated_linear, recipe, torch.float64)
        real = products(real_linear, recipe, torch.float64, multiply=reference)
        assert all(off(r, e) < 1e-12 for r, e in zip(real, emulated))


def turned(t: Tensor) -> Tensor:
    """In reverse order; torch moves no FP8 scales."""
    return t.view(torch.uint8).flip(0).view(t.dtype) if t.element_size() == 1 else t.flip(0)


WRONG: dict[str, Callable[[Scaled], Scaled]] = {
    "scales of other tiles": lambda s: replace(s, scales=(turned(s.scales[0]), *s.scales[1:])),
    "one scale for all": lambda s: replace(s, scales=(torch.ones_like(s.scales[0]), *s.scales[1:])),
    "halves swapped": lambda s: replace(s, codes=s.codes.view(torch.uint8).roll(1, 1).view(s.codes.dtype)),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", ["fp8_v3", "mxfp8", "nvfp4"])
def test_a_trial_finds_out_kernels_that_read_otherwise(name: str, wrong: str) -> None:
    for a, b in (p for p in recipe_of(CONFIGS[name]).products().values()):
        assert a.spec is not None and b.spec is not None
        assert trial(a.spec, b.spec, CPU, reference) == ""
        assert "off by" in trial(a.spec, b.spec, CPU, lambda p, q: reference(WRONG[wrong](p), q))
        assert "off by" in trial(a.spec, b.spec, CPU, lambda p, q: reference(p, WRONG[wrong](q)))


def test_a_trial_reports_what_torch_refuses() -> None:
    said = trial(Spec(E4M3, (1, 128)), Spec(E4M3, (128, 128)), CPU)
    assert said.startswith("torch refuses fp8 tiles of 128:") and "\n" not in said


def test_a_product_without_a_layout_is_emulated() -> None:
    base, seen = recipe_of(Fp8V3(), "q"), []

    def counted(a: Scaled, b: Scaled) -> Tensor:
        seen.append((a.rows, b.rows))
        return reference(a, b)

    e5m2 = Operand(Spec(E5M2, (1, 128)))
    recipe = replace(base, wgrad=(e5m2, e5m2))
    emulated, real = products(emulated_linear, recipe), products(real_linear, recipe, multiply=counted)
    assert seen == [(37, 148), (37, 300)]
    assert torch.equal(real[2], emulated[2]) and not torch.equal(real[0], emulated[0])
    assert products(real_linear, base, multiply=counted) and seen[-1] == (148, 300)


# ── a CPU's kernel: one scale per row ──────────────────────────────────────────────────────────────────────────────────

row, tensor, power, coarse = (Operand(s) for s in ROWS[:4])
BY_ROW = Recipe((row, tensor), (coarse, power), (row, row), retile=True)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The shapes of scaled products that torch was asked for, but for those of trials."""
    seen: list[tuple[int, int]] = []
    kernels.lacking.cache_clear()
    supported_rows = products(quantized_linear, BY_ROW)  # trials run now
    assert len(supported_rows) == 3
    torch_s = kernels.scaled_mm

    def counted(a: Tensor, b: Tensor, *args: Any, **options: Any) -> Tensor:
        seen.append((a.shape[0], b.shape[1]))
        return torch_s(a, b, *args, **options)

    monkeypatch.setattr(kernels, "scaled_mm", counted)
    return seen


def test_a_cpus_kernel_gives_the_emulated_products(calls: list[tuple[int, int]]) -> None:
    emulated, real = products(emulated_linear, BY_ROW), products(real_linear, BY_ROW)
    assert calls == [(48, 160), (48, 304), (160, 304)]
    assert all(off(r, e) < 1e-6 for r, e in zip(real, emulated))
    narrow = quantized_linear(X.bfloat16(), W, BY_ROW)
    assert narrow.dtype == torch.float32 and off(narrow, emulated_linear(X.bfloat16(), W, BY_ROW)) < 1e-6
    with torch.autocast("cpu", torch.bfloat16):
        assert real_linear(X, W, BY_ROW).dtype == torch.bfloat16


@pytest.mark.parametrize(("mode", "count"), [("auto", 3), ("real", 3), ("emulated", 0)])
def test_modules_use_the_kernels_that_their_config_allows(calls: list[tuple[int, int]], mode: Any, count: int) -> None:
    linear = nn.Linear(300, 148, bias=False)
    QuantizedLinear(linear, BY_ROW, 0, "q", mode)(X.clone().requires_grad_()).sum().backward()
    assert len(calls) == count
    stack = QuantizedStack({"up": BY_ROW}, 0, "experts", mode)
    for rows in (X, X[:0]):  # an expert without tokens
        out = stack(rows, linear.weight, "up", 0)
        assert out.shape == (len(rows), 148)
        out.sum().backward()
    assert len(calls) == count + (count and 2)


def test_each_step_looks_the_kernels_of_the_device_up(calls: list[tuple[int, int]]) -> None:
    linear, experts = QuantizedLinear(nn.Linear(32, 32, bias=False), BY_ROW, 0, "q"), Experts(2, Gated(hidden=32), 32)
    experts.product = stack = QuantizedStack({"up": BY_ROW}, 0, "experts")  # type: ignore[assignment]
    linear.by, stack.by = {}, {"up": {}}  # as on a device without kernels
    linear(X[:, :32])
    stack(X[:, :32], linear.weight, "up", 0)
    assert not calls
    at_step(nn.ModuleList([linear, experts]), 1)
    linear(X[:, :32])
    stack(X[:, :32], linear.weight, "up", 0)
    assert len(calls) == 2


def test_float64_stays_emulated(calls: list[tuple[int, int]]) -> None:
    auto, emulated = products(quantized_linear, BY_ROW, torch.float64), products(emulated_linear, BY_ROW, torch.float64)
    assert not calls and all(torch.equal(a, e) for a, e in zip(auto, emulated))


# ── which devices ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("layout", "devices"),
    [
        ("fp8 rows", [None, (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)]),
        ("fp8 tiles of 128", [(9, 0)]),
        ("mxfp8", [(10, 0), (10, 3), (12, 0)]),
        ("mxfp4", [(10, 0), (10, 3)]),
        ("nvfp4", [(10, 0), (10, 3), (12, 0)]),
    ],
)
def test_which_device_has_which_kernel(layout: Layout, devices: list[tuple[int, int] | None]) -> None:
    every = [None, (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)]
    assert [c for c in every if has(layout, c)] == devices


def test_where_there_are_no_kernels_auto_is_emulated_and_real_is_refused() -> None:
    for config in CONFIGS.values():
        assert "needs CUDA capability" in supported(config, "cpu") and "there is no CUDA device" in supported(config, "cuda:7")
        assert described(config, "cpu") == described(config.replace(kernels="emulated"), "cpu") == f"{config.kind}, emulated"
        recipe = recipe_of(config, "q")
        assert all(torch.equal(a, e) for a, e in zip(products(quantized_linear, recipe), products(emulated_linear, recipe)))
        with pytest.raises(UsageError, match="needs CUDA capability") as error:
            quantized_linear(X, W, recipe, kernels="real")
        assert len(str(error.value).splitlines()) <= 6 and "way out:" in str(error.value)
        model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(32, 32) for _ in range(7)])})
        with pytest.raises(UsageError, match="needs CUDA capability"):
            convert(model, config.replace(kernels="real"))
        assert not any(isinstance(m, QuantizedLinear) for m in model.modules())
    assert "1×64" in supported(Fp8V3(tile=64), "cuda")


@pytest.mark.parametrize("mode", ["auto", "emulated"])
def test_conversion_hands_the_choice_on(mode: Any) -> None:
    model = nn.ModuleDict({"blocks": nn.ModuleList([nn.ModuleDict({"q": nn.Linear(32, 32), "ffn": Experts(2, Gated(hidden=32), 32)})])})
    convert(model, Fp8V3(kernels=mode))
    found = [m.kernels for m in model.modules() if isinstance(m, QuantizedLinear)]
    found += [m.product.kernels for m in model.modules() if isinstance(m, Experts) and isinstance(m.product, QuantizedStack)]
    assert found == [mode, mode]


@pytest.mark.parametrize(
    ("precision", "said"), [(Plain(), "plain"), (Fp8V3(), "fp8_v3, emulated"), (NvFp4(kernels="emulated"), "nvfp4, emulated")], ids=str
)
def test_a_stage_says_what_computed_its_products(precision: Any, said: str) -> None:
    assert _computed(precision, nn.Linear(2, 2)) == said  # type: ignore[arg-type]


def test_what_is_said_of_a_config_follows_its_products(monkeypatch: pytest.MonkeyPatch) -> None:
    assert described(Fp8V3(kernels="real"), "cpu") == "fp8_v3, emulated"
    monkeypatch.setattr("upslope.precision.products._lacking", lambda recipe, device: {})
    assert described(Fp8V3(), "cpu") == "fp8_v3, real kernels" and supported(Fp8V3(), "cpu") == ""
    assert described(Fp8V3(kernels="emulated"), "cpu") == "fp8_v3, emulated"
    monkeypatch.setattr("upslope.precision.products._lacking", lambda recipe, device: {"wgrad": "why"})
    assert described(Fp8V3(), "cpu") == "fp8_v3, real kernels but for wgrad, emulated" and supported(Fp8V3(), "cpu") == "why"


def test_kernels_are_no_part_of_a_fingerprint() -> None:
    for config in CONFIGS.values():
        identities = [dump(config.replace(kernels=k), identity=True) for k in ("auto", "emulated", "real")]
        assert identities[0] == identities[1] == identities[2] and "kernels" not in str(identities)
        assert dump(config)["kernels"] == "auto"
