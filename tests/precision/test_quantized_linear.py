"""Emulated linear maps: products and gradients by hand from quantised operands, what each field changes, splits, conversion and back."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from torch import Tensor, nn

from upslope.config import UsageError, dump
from upslope.precision.config import Emulated, Fp8V3, MxFp4, MxFp8, NvFp4, Plain, Precision, Rules
from upslope.precision.formats import BF16, E2M1, E4M3, E5M2
from upslope.precision.linear import QuantizedLinear, at_step, chosen, convert, revert
from upslope.precision.products import Draws, emulated_linear
from upslope.precision.quantize import ROW, TENSOR, Spec, hadamard, quantize, signs
from upslope.precision.recipe import Operand, Recipe, recipe_of
from upslope.precision.rounding import generator

CONFIGS: dict[str, Emulated] = {
    "fp8_v3": Fp8V3(),
    "fp8_v3 pow2": Fp8V3(power_of_two=("*",)),
    "mxfp8": MxFp8(),
    "mxfp8 e5m2": MxFp8(gradients="e5m2"),
    "mxfp4": MxFp4(),
    "nvfp4": NvFp4(),
    "nvfp4 plain": NvFp4(blocks=False, stochastic=False, hadamard=False),
}


def draw(*shape: int, key: str) -> Tensor:
    """Normal numbers with rows and columns of unequal size, float64."""
    x = torch.randn(*shape, dtype=torch.float64, generator=generator(0, key))
    return x * torch.exp2(2 * torch.randn(shape[-1], dtype=torch.float64, generator=generator(1, key)))


X, W, G = draw(37, 150, key="x"), draw(140, 150, key="w"), draw(37, 140, key="g")
PASS = Draws(3, 5, "blocks.1.q", 2)


def products(recipe: Recipe, x: Tensor = X, w: Tensor = W, g: Tensor = G, draws: Draws | None = PASS) -> tuple[Tensor, Tensor, Tensor]:
    """y, dx, dW of the function."""
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    y = emulated_linear(x, w, recipe, draws)
    dx, dw = torch.autograd.grad(y, (x, w), g.to(y.dtype))
    return y.detach(), dx, dw


def by_hand(x: Tensor, operand: Operand, product: str = "") -> Tensor:
    """The quantised operand, from `quantize` alone."""
    if operand.spec is None:
        return x
    random = generator(3, 5, "blocks.1.q", 2, product) if operand.mode == "stochastic" else None
    return quantize(x, operand.spec, operand.mode, random).dequantize()


@pytest.mark.parametrize("name", CONFIGS)
def test_products_and_gradients_are_those_of_the_quantised_operands(name: str) -> None:
    recipe = recipe_of(CONFIGS[name], "blocks.1.q")
    y, dx, dw = products(recipe)
    xq = by_hand(X, recipe.fprop[0])
    torch.testing.assert_close(y, torch.einsum("ti,oi->to", xq, by_hand(W, recipe.fprop[1])), rtol=1e-12, atol=1e-10)
    g = by_hand(G, recipe.dgrad[0], "dgrad")
    torch.testing.assert_close(dx, torch.einsum("to,io->ti", g, by_hand(W.T, recipe.dgrad[1])), rtol=1e-12, atol=1e-10)
    gt, xt = G.T, (xq if recipe.retile else X).T
    if recipe.signs is not None:
        gt, xt = hadamard(gt, signs(recipe.signs)), hadamard(xt, signs(recipe.signs))
    want = torch.einsum("ot,it->oi", by_hand(gt, recipe.wgrad[0], "wgrad"), by_hand(xt, recipe.wgrad[1]))
    torch.testing.assert_close(dw, want, rtol=1e-12, atol=1e-10)
    exact = torch.autograd.functional.vjp(F.linear, (X, W), G)
    for got, ref in zip((y, dx, dw), (exact[0], *exact[1]), strict=True):
        assert 1e-4 < (got - ref).norm() / ref.norm() < (0.06 if "fp8" in name else 0.35)


def test_straight_through_autograd_agrees_where_operands_are_shared() -> None:
    """With 2-D weight blocks and exact gradients, dx is autograd's through the quantised weight."""
    recipe = replace(recipe_of(Fp8V3()), dgrad=(Operand(None), Operand(Spec(E4M3, (128, 128)))), wgrad=(Operand(None), Operand(None)))
    x, w = X.clone().requires_grad_(), W.clone().requires_grad_()
    ste = lambda t, spec: t + (quantize(t, spec).dequantize() - t).detach()  # noqa: E731
    y = ste(x, Spec(E4M3, (1, 128))) @ ste(w, Spec(E4M3, (128, 128))).T
    for got, ref in zip(products(recipe), (y.detach(), *torch.autograd.grad(y, (x, w), G)), strict=True):
        torch.testing.assert_close(got, ref, rtol=1e-12, atol=1e-10)


def test_no_quantisation_is_a_linear_map() -> None:
    off = (Operand(None), Operand(None))
    exact = torch.autograd.functional.vjp(F.linear, (X, W), G)
    for signs_ in (None, 0):  # the transform cancels in the product
        for got, ref in zip(products(Recipe(off, off, off, signs_)), (exact[0], *exact[1]), strict=True):
            torch.testing.assert_close(got, ref, rtol=1e-10, atol=1e-9)


def test_two_dimensional_blocks_show_both_passes_the_same_weight() -> None:
    for config, same in ((Fp8V3(), True), (NvFp4(), True), (NvFp4(blocks=False), False), (MxFp8(), False)):
        recipe = recipe_of(config)
        assert torch.equal(by_hand(W, recipe.fprop[1]), by_hand(W.T, recipe.dgrad[1]).T) == same


@pytest.mark.parametrize("field", ["fprop", "dgrad", "wgrad"])
@pytest.mark.parametrize("side", [0, 1])
def test_each_operand_reaches_its_product_alone(field: str, side: int) -> None:
    off = (Operand(None), Operand(None))
    exact = Recipe(off, off, off)
    on = Operand(Spec(E4M3))
    changes: dict[str, Any] = {field: (on, off[1]) if side == 0 else (off[0], on)}
    changed = [not torch.equal(a, b) for a, b in zip(products(exact), products(replace(exact, **changes)))]
    assert changed == [field == f for f in ("fprop", "dgrad", "wgrad")]


@pytest.mark.parametrize(
    ("base", "changes"),
    [
        (Fp8V3(), {"power_of_two": ("*",)}),
        (Fp8V3(), {"retile": "original"}),
        (Fp8V3(), {"tile": 64}),
        (MxFp8(), {"gradients": "e5m2"}),
        (MxFp8(), {"round_up": True}),
        (MxFp4(), {"round_up": True}),
        (MxFp4(), {"stochastic": False}),
        (MxFp4(), {"hadamard": False}),
        (MxFp4(), {"seed": 1}),
        (NvFp4(), {"blocks": False}),
        (NvFp4(), {"stochastic": False}),
        (NvFp4(), {"hadamard": False}),
        (NvFp4(), {"seed": 1}),
    ],
    ids=str,
)
def test_each_field_changes_the_result(base: Emulated, changes: dict[str, object]) -> None:
    a, b = products(recipe_of(base, "q")), products(recipe_of(base.replace(**changes), "q"))
    assert not all(torch.equal(p, q) for p, q in zip(a, b))


@pytest.mark.parametrize("change", [{"seed": 4}, {"step": 6}, {"name": "blocks.2.q"}, {"call": 3}], ids=str)
def test_random_bits_follow_seed_step_name_and_pass(change: dict[str, int | str]) -> None:
    recipe = recipe_of(NvFp4())
    a, again, b = products(recipe), products(recipe), products(recipe, draws=replace(PASS, **change))  # type: ignore[arg-type]
    assert all(torch.equal(p, q) for p, q in zip(a, again))
    assert [torch.equal(p, q) for p, q in zip(a, b)] == [True, False, False]


def test_stochastic_gradients_are_unbiased_where_nearest_ones_are_not() -> None:
    """Gradients a third of the way between codes: nearest rounding loses the same part of each, stochastic rounding none on average."""
    g = torch.full((16, 16), 1 / 3 + 1, dtype=torch.float64)
    g[0] = 6  # scale 1 for every column of gᵀ
    x, w = torch.ones(16, 16, dtype=torch.float64), torch.ones(16, 16, dtype=torch.float64)
    off = Operand(None)

    def mean(mode: str) -> float:
        recipe = Recipe((off, off), (off, off), (Operand(Spec(E2M1, ROW, "mx"), mode), off))  # type: ignore[arg-type]
        return torch.stack([products(recipe, x, w, g, Draws(0, i, "w", 0))[2] for i in range(100)]).mean().item()

    exact = 6 + 15 * 4 / 3
    assert abs(mean("stochastic") - exact) < 0.1 < 2 < abs(mean("nearest-even") - exact)


def test_splits_of_tokens_agree_where_scales_are_per_token_only() -> None:
    per_token = (Spec(E4M3, (1, 128)), Spec(E2M1, (1, 32), "mx"), Spec(E4M3, ROW))
    for spec, same in (*((s, True) for s in per_token), (Spec(E4M3, TENSOR), False), (Spec(E2M1, (1, 16), "two-level"), False)):
        op, off = Operand(spec), Operand(None)
        recipe = Recipe((op, off), (op, off), (off, off))
        whole, parts = products(recipe), [products(recipe, X[a:b], g=G[a:b]) for a, b in ((0, 5), (5, 37))]
        for i in (0, 1):
            assert torch.allclose(whole[i], torch.cat([p[i] for p in parts]), rtol=1e-10, atol=1e-9) == same


def test_tiles_beat_one_scale_where_outliers_are_planted() -> None:
    x = torch.randn(64, 256, generator=generator(7))
    x[3, 5] = 2e5
    w = torch.randn(32, 256, generator=generator(8))
    off, clean = (Operand(None), Operand(None)), [t for t in range(64) if t != 3]

    def error(tile: tuple[int, int]) -> float:
        y = emulated_linear(x, w, Recipe((Operand(Spec(E4M3, tile)), Operand(Spec(E4M3, (128, 128)))), off, off))
        return ((y - x @ w.T)[clean].norm() / (x @ w.T)[clean].norm()).item()

    assert error((1, 128)) < 0.06 < 0.15 < error(TENSOR)


def test_hadamard_keeps_small_values_from_being_flushed_beside_outliers() -> None:
    """Fewer numbers become zero with the transform. The error by norm of a weight gradient was not smaller on such outliers."""
    x = torch.randn(32, 128, generator=generator(5)).double()
    x[:, ::16] *= 30
    spec = Spec(E2M1, (1, 16), "two-level")
    flushed = [(quantize(t, spec).values == 0).double().mean().item() for t in (x, hadamard(x, signs(0)))]
    assert flushed[0] > 0.5 and flushed[1] < 0.25


def test_not_finite_is_never_hidden() -> None:
    for config in CONFIGS.values():
        for bad in (torch.nan, torch.inf):
            x, g = X.clone(), G.clone()
            x[2, 3] = g[4, 5] = bad
            y, dx, dw = products(recipe_of(config, "q"), x, g=g)
            assert y[2].isnan().all() and dx[4].isnan().all() and dw.isnan().any()


def test_autocast_decides_the_type_of_the_result_alone() -> None:
    recipe, x, w = recipe_of(Fp8V3()), X.float(), W.float()
    y = emulated_linear(x, w, recipe)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = emulated_linear(x, w, recipe)
    assert y.dtype == torch.float32 and torch.equal(narrow, y.bfloat16())
    assert [t.dtype for t in products(recipe, x.bfloat16(), w)] == [torch.float32, torch.bfloat16, torch.float32]
    assert emulated_linear(x[0], w, recipe).shape == (140,) and emulated_linear(x.view(1, 37, 150), w, recipe).shape == (1, 37, 140)


# ── conversion ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Router(nn.Linear):
    """A map with a forward pass of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


class Toy(nn.Module):
    """Seven layers, an embedding and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        layers = ({"up": nn.Linear(32, 48), "o": nn.Linear(48, 32), "router": Router(32, 4)} for _ in range(7))
        self.blocks = nn.ModuleList(nn.ModuleDict(layer) for layer in layers)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 50, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for b in self.blocks:
            assert isinstance(b, nn.ModuleDict)
            x = x + b["o"](torch.relu(b["up"](x))) * b["router"](x).mean(-1, keepdim=True)
        out: Tensor = self.head(self.norm(x))
        return out


def toy() -> Toy:
    """The same weights each time."""
    model = Toy()
    for name, p in model.named_parameters():
        p.data = torch.randn(p.shape, generator=generator(0, name)) * 0.2
    return model


IDS = torch.arange(40)


def gradients(model: Toy) -> dict[str, Tensor]:
    """Of a loss, by name."""
    F.cross_entropy(model(IDS), (IDS + 1) % 50).backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def test_conversion_keeps_names_and_parameters_and_is_undone() -> None:
    model = toy()
    before, parameters, plain = model.state_dict(), dict(model.named_parameters()), model(IDS)
    names = convert(model, NvFp4())
    assert names == [f"blocks.{i}.{m}" for i in range(5) for m in ("up", "o")]  # the last ⌈0.15 · 7⌉ = 2 layers, routers and head kept
    assert list(model.state_dict()) == list(before) and all(dict(model.named_parameters())[n] is p for n, p in parameters.items())
    assert not torch.equal(model(IDS), plain)
    with pytest.raises(UsageError, match="converted already"):
        convert(model, Fp8V3())
    copied = copy.deepcopy(model)
    assert torch.equal(copied(IDS), model(IDS))
    assert revert(model) == names and torch.equal(model(IDS), plain)
    assert not any(isinstance(m, QuantizedLinear) for m in model.modules())
    assert revert(copied) == names and torch.equal(copied(IDS), plain)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (Rules(include=("*",)), [f"blocks.{i}.{m}" for i in range(7) for m in ("up", "o")] + ["head"]),
        (Rules(exclude=("*.o",)), [f"blocks.{i}.up" for i in range(7)]),
        (Rules(first=2, exclude=("*.o",)), [f"blocks.{i}.up" for i in range(2, 7)]),
        (Rules(last=2 / 7, exclude=("*.o",)), [f"blocks.{i}.up" for i in range(5)]),
        (Rules(include=("blocks.1.*",), last=1 / 7), ["blocks.1.up", "blocks.1.o"]),
    ],
    ids=str,
)
def test_rules_choose_by_name_and_layer(rules: Rules, expected: list[str]) -> None:
    assert chosen(toy(), rules) == expected


def test_rules_that_choose_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="no linear map"):
        convert(toy(), Fp8V3(rules=Rules(include=("layers.*",))))


def test_power_of_two_scales_go_to_the_maps_that_are_named() -> None:
    config = Fp8V3(power_of_two=("*.o",))
    scales = {n: recipe_of(config, n).fprop[0].spec for n in ("blocks.1.o", "blocks.1.up")}
    assert [s and s.scale for s in scales.values()] == ["power-of-two", "real"]


def test_steps_are_reproduced_and_micro_batches_draw_anew() -> None:
    model, again = toy(), toy()
    for m in (model, again):
        convert(m, NvFp4())
    at_step(model, 7)
    first, second = gradients(model), gradients(model)
    at_step(again, 7)
    resumed = gradients(again)
    at_step(again, 8)
    other = gradients(again)
    name = "blocks.0.up.weight"
    assert all(torch.equal(first[n], resumed[n]) for n in first)
    assert not torch.equal(first[name], second[name]) and not torch.equal(first[name], other[name])


def test_a_pass_without_gradient_draws_nothing() -> None:
    model = toy()
    convert(model, NvFp4())
    first = gradients(model)
    at_step(model, 0)
    with torch.no_grad():
        model(IDS)
    assert all(torch.equal(g, first[n]) for n, g in gradients(model).items())


def test_training_with_fp8_follows_float32() -> None:
    def losses(config: Emulated | None) -> list[float]:
        model, out = toy(), []
        if config is not None:
            convert(model, config)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        for step in range(15):
            at_step(model, step)
            loss = F.cross_entropy(model(IDS), (IDS * 7 + 1) % 50)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            out.append(loss.item())
        return out

    exact, fp8, fp4 = losses(None), losses(Fp8V3()), losses(NvFp4())
    assert exact[-1] < exact[0] / 2
    assert 0 < abs(fp8[-1] - exact[-1]) < 0.05 * exact[-1]
    assert fp4[-1] < fp4[0] / 2


def test_configs_are_one_sum_type() -> None:
    adapter: TypeAdapter[Precision] = TypeAdapter(Precision)
    for config in (Plain(), Plain(numerics="fp16"), *CONFIGS.values()):
        assert adapter.validate_python(dump(config)) == config
    assert recipe_of(MxFp8(gradients="e5m2")).dgrad[0].spec == Spec(E5M2, (1, 32), "mx") and BF16.max > E5M2.max
