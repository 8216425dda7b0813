"""Emulated products of stacked experts against a loop over experts by hand; absorbed latent attention reads rounded operands."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.model.support import SMALL, loud, segments, tokens
from upslope.config import UsageError
from upslope.model.cache import Cache
from upslope.model.config import MLA, Gated, ModelConfig, MoE, Relu2, Router, TopK
from upslope.model.moe import Experts
from upslope.model.router import Routes
from upslope.model.transformer import Transformer
from upslope.precision.config import Emulated, Fp8V3, MxFp4, MxFp8, NvFp4, Rules
from upslope.precision.linear import QuantizedStack, at_step, chosen, convert, revert
from upslope.precision.quantize import hadamard, quantize, signs
from upslope.precision.recipe import Operand, Recipe, recipe_of
from upslope.precision.rounding import generator

T, E, K, WIDTH, HIDDEN = 23, 4, 2, 20, 36
CONFIGS: dict[str, Emulated] = {
    "fp8_v3": Fp8V3(tile=16),
    "fp8_v3 original": Fp8V3(tile=16, retile="original", power_of_two=("*",)),
    "mxfp8 e5m2": MxFp8(gradients="e5m2"),
    "mxfp4": MxFp4(stochastic=False),
    "nvfp4": NvFp4(stochastic=False),
}


def draw(*shape: int, key: str) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(0, key))


def experts(config: Gated | Relu2) -> Experts:
    stack = Experts(E, config, WIDTH).double()
    with torch.no_grad():
        for name, p in stack.named_parameters():
            p.copy_(draw(*p.shape, key=name) / p.shape[-1] ** 0.5)
    return stack


def routes() -> Routes:
    """Expert 3 gets nothing."""
    chosen_ = torch.stack([torch.randperm(E - 1, generator=generator(1, str(t)))[:K] for t in range(T)])
    weights = draw(T, K, key="weights").abs()
    none = torch.zeros(T, E, dtype=torch.float64)
    return Routes(chosen=chosen_, weights=weights, scores=none, logits=none)


def ran(stack: Experts, x: Tensor, at: Routes, grad: Tensor) -> dict[str, Tensor]:
    """The output and all gradients."""
    x, weights = x.clone().requires_grad_(), at.weights.clone().requires_grad_()
    stack.zero_grad()
    y = stack(x, at._replace(weights=weights))
    (y * grad).sum().backward()
    assert x.grad is not None and weights.grad is not None
    named = {n: p.grad.clone() for n, p in stack.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "x": x.grad, "weights": weights.grad, **named}


def off(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert set(a) == set(b)
    return max(float((a[n] - b[n]).norm() / b[n].norm()) for n in a)


X, AT, GRAD = draw(T, WIDTH, key="x"), routes(), draw(T, WIDTH, key="g")


@pytest.mark.parametrize(
    "config", [Gated(hidden=HIDDEN), Gated(hidden=HIDDEN, bias=True), Relu2(hidden=HIDDEN)], ids=["gated", "biased", "relu2"]
)
def test_a_plain_product_gives_the_written_out_gradients(config: Gated | Relu2) -> None:
    stack = experts(config)
    wanted = ran(stack, X, AT, GRAD)
    stack.product = lambda rows, matrix, leaf, expert: F.linear(rows, matrix)
    assert off(ran(stack, X, AT, GRAD), wanted) < 1e-12
    empty = AT._replace(chosen=AT.chosen[:0], weights=AT.weights[:0])
    assert stack(X[:0], empty).shape == (0, WIDTH)


def q(x: Tensor, operand: Operand) -> Tensor:
    return x if operand.spec is None else quantize(x, operand.spec, operand.mode).dequantize()


def products(x: Tensor, w: Tensor, g: Tensor, r: Recipe) -> tuple[Tensor, Tensor, Tensor]:
    """y, dx and dW of one matrix by the definition."""
    read = q(x, r.fprop[0])
    gt, xt = g.T, (read if r.retile else x).T
    if r.signs is not None:
        gt, xt = hadamard(gt, signs(r.signs)), hadamard(xt, signs(r.signs))
    return read @ q(w, r.fprop[1]).T, q(g, r.dgrad[0]) @ q(w.T, r.dgrad[1]).T, q(gt, r.wgrad[0]) @ q(xt, r.wgrad[1]).T


@pytest.mark.parametrize("name", CONFIGS)
def test_every_expert_multiplies_its_own_rows_from_quantised_operands(name: str) -> None:
    stack, recipe = experts(Gated(hidden=HIDDEN)), recipe_of(CONFIGS[name], "ffn.experts.up")
    assert stack.gate is not None
    stack.product = QuantizedStack(dict.fromkeys(("gate", "up", "down"), recipe), 0, "ffn.experts")
    found = ran(stack, X, AT, GRAD)
    want = {n: torch.zeros_like(t) for n, t in found.items()}
    with torch.no_grad():
        for e in range(E):
            token, place = (AT.chosen == e).nonzero(as_tuple=True)
            if not len(token):
                continue
            rows, weight, g = X[token], AT.weights[token, place][:, None], GRAD[token]
            none = torch.zeros(len(token), HIDDEN, dtype=torch.float64)
            gate, up = products(rows, stack.gate[e], none, recipe)[0], products(rows, stack.up[e], none, recipe)[0]
            act = torch.sigmoid(gate) * gate
            y, to_hidden, to_down = products(act * up * weight, stack.down[e], g, recipe)
            slope = torch.sigmoid(gate) * (1 + gate * (1 - torch.sigmoid(gate)))
            _, from_gate, to_gate = products(rows, stack.gate[e], to_hidden * weight * up * slope, recipe)
            _, from_up, to_up = products(rows, stack.up[e], to_hidden * weight * act, recipe)
            want["y"].index_add_(0, token, y)
            want["x"].index_add_(0, token, from_gate + from_up)
            want["weights"][token, place] = (to_hidden * act * up).sum(1)
            want["gate"][e], want["up"][e], want["down"][e] = to_gate, to_up, to_down
    assert off(found, want) < 1e-12
    stack.product = None
    assert off(ran(stack, X, AT, GRAD), want) > 1e-3


def config(*, moe: bool = False, mla: bool = False) -> ModelConfig:
    layer = SMALL.blocks["dense"]
    if moe:
        layer = layer.replace(ffn=MoE(experts=4, expert=Gated(hidden=12), shared=Gated(hidden=8), router=Router(select=TopK(k=2))))
    if mla:
        layer = layer.replace(mixer=MLA(heads=2, q_latent=10, kv_latent=40, nope_dim=6, rope_dim=4, value_dim=6))
    return ModelConfig.model_validate({**dict(SMALL), "blocks": {"dense": layer}, "pattern": ("dense", "dense")})


IDS, SEG = tokens(14), segments(9, 5)


def logits(model: Transformer) -> Tensor:
    return model.logits(model(IDS, SEG))


def grads(model: Transformer) -> dict[str, Tensor]:
    model.zero_grad()
    torch.log_softmax(logits(model), -1)[:, 3].sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_conversion_takes_stacks_along_and_is_undone() -> None:
    model = loud(config(moe=True), dtype=torch.float64)
    before, plain, names = list(model.state_dict()), logits(model), chosen(model, Rules())
    assert {n for n in names if ".experts." in n} == {f"blocks.{i}.ffn.experts.{leaf}" for i in (0, 1) for leaf in ("gate", "up", "down")}
    assert "blocks.0.ffn.shared.up" in names and not any("router" in n for n in names)
    assert convert(model, MxFp8(rules=Rules(include=("*.experts.*",)))) == [n for n in names if ".experts." in n]
    assert list(model.state_dict()) == before and not torch.equal(logits(model), plain)
    assert set(grads(model)) == {n for n, _ in model.named_parameters()}
    with pytest.raises(UsageError, match="converted already"):
        convert(model, MxFp8())
    assert revert(model) == [n for n in names if ".experts." in n]
    assert torch.equal(logits(model), plain)
    assert sorted(convert(model, MxFp8())) == sorted(names) and sorted(revert(model)) == sorted(names)
    assert torch.equal(logits(model), plain)


def test_rules_choose_stacks_by_name_and_layer() -> None:
    model = loud(config(moe=True), dtype=torch.float64)
    found = {}
    for name, rules in {
        "all": Rules(include=("*.experts.*",)),
        "no down": Rules(include=("*.experts.*",), exclude=("*.down",)),
        "first": Rules(include=("*.experts.*",), first=1),
        "last": Rules(include=("*.experts.*",), last=0.5),
    }.items():
        convert(model, MxFp8(rules=rules))
        found[name] = logits(model)
        revert(model)
    assert all(not torch.allclose(a, b, atol=1e-9) for n, a in found.items() for m, b in found.items() if n < m)
    down = [n for n in chosen(model, Rules(exclude=("*.down",))) if "experts" in n]
    assert down == [f"blocks.{i}.ffn.experts.{leaf}" for i in (0, 1) for leaf in ("gate", "up")]


def test_random_bits_of_stacks_are_those_of_the_step() -> None:
    model = loud(config(moe=True), dtype=torch.float64)
    convert(model, NvFp4(rules=Rules(include=("*.experts.*",))))
    found = []
    for step in (7, 7, 8):
        at_step(model, step)
        found.append(grads(model))
    found.append(grads(model))  # a second pass of the same step
    name = "blocks.0.ffn.experts.up"
    assert torch.equal(found[0][name], found[1][name])
    assert not torch.equal(found[0][name], found[2][name]) and not torch.equal(found[2][name], found[3][name])


def mixers(model: Transformer) -> list[Any]:
    return [block.mixer for block in model.blocks]


@pytest.mark.parametrize("precision", [Fp8V3(tile=16), MxFp8(), NvFp4(rules=Rules())], ids=lambda c: c.kind)
def test_absorbed_latent_attention_is_the_expanded_one_from_the_same_rounded_operands(precision: Emulated) -> None:
    model = loud(config(mla=True), dtype=torch.float64)
    plain = logits(model).detach()
    convert(model, precision)
    expanded, wanted = logits(model).detach(), grads(model)
    for m in mixers(model):
        m.absorb = True
    absorbed = logits(model).detach()
    assert float((absorbed - expanded).norm() / expanded.norm()) < 1e-12
    assert float((plain - expanded).norm() / expanded.norm()) > 1e-3
    found = grads(model)
    assert set(found) == set(wanted)  # straight through: near the emulated gradients, and nothing is cut off
    key = "blocks.0.mixer.kv_b.weight"
    assert float((found[key] - wanted[key]).norm() / wanted[key].norm()) < 0.5


def test_decoding_with_a_cache_computes_as_the_whole_sequence_does() -> None:
    model = loud(config(mla=True), dtype=torch.float64)
    convert(model, MxFp8())
    ids = IDS[:9]
    with torch.no_grad():
        whole, cache = model(ids), Cache(model.config, 1, dtype=torch.float64)
        parts = [model(ids[:4], cache=cache.at([0]))]
        parts += [model(ids[i : i + 1], cache=cache.at([0])) for i in range(4, 9)]
    assert float((torch.cat(parts) - whole).norm() / whole.norm()) < 1e-12


def test_a_recipe_without_quantisation_is_the_plain_stack() -> None:
    nothing = Operand(None)
    recipe = Recipe((nothing, nothing), (nothing, nothing), (nothing, nothing))
    stack = experts(Gated(hidden=HIDDEN))
    wanted = ran(stack, X, AT, GRAD)
    for recipes in ({}, {"up": recipe}, dict.fromkeys(("gate", "up", "down"), recipe)):
        stack.product = QuantizedStack(recipes, 0, "")
        assert off(ran(stack, X, AT, GRAD), wanted) < 1e-12
    one = replace(recipe, fprop=(Operand(recipe_of(MxFp8()).fprop[0].spec), nothing))
    stack.product = QuantizedStack({"down": one}, 0, "")
    assert off(ran(stack, X, AT, GRAD), wanted) > 1e-3
