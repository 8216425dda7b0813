"""Every knob of attention against the formula written out, pair by pair, in float64; backends against each other."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.knobs import BASE, KNOBS, MODELS, ROPE, stack
from tests.model.support import loud, segments, tokens
from upslope.config import UsageError
from upslope.model.attention import GQA
from upslope.model.aux import Aux
from upslope.model.backends import Choice, Needs, choose, core, legal
from upslope.model.cache import Cache
from upslope.model.config import Attention, Linear, Llama3, Own, QKNorm, Rope, Yarn
from upslope.model.flow import Backend, Flow
from upslope.model.init import initialise
from upslope.model.packing import Packing
from upslope.model.rope import frequencies, temperature
from upslope.model.transformer import Transformer

LENGTHS = (5, 1, 9)
EXACT = 1e-10


def mixer_of(config: Attention) -> GQA:
    """The mixer alone, every parameter loud."""
    model = stack(BASE if isinstance(config.kv, Own) else config, config)
    mixer = GQA(config, model, 1).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in mixer.parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            p.copy_(noise if p.ndim == 1 else noise * 1.5 / p.shape[1] ** 0.5)
    return mixer


def run(mixer: GQA, x: Tensor, lengths: tuple[int, ...], backend: Backend = "auto", aux: Aux | None = None) -> Tensor:
    """The mixer on packed segments without a cache."""
    packing = Packing(segments(*lengths))
    return mixer(x, Flow(torch.zeros(len(x)), packing.offsets(), packing, None, backend, aux, x.dtype))


# ── the formula, written out ───────────────────────────────────────────────────────────────────────────────────────────


def _rms(x: Tensor, weight: Tensor, config: QKNorm) -> Tensor:
    gain = weight + 1 if config.gain == "zero" else weight
    return x / (x.square().mean(-1, keepdim=True) + config.eps).sqrt() * gain


def _turned(x: Tensor, rope: Rope) -> Tensor:
    """x (L, heads, D) at positions 0 ... L-1: pairs of channels as complex numbers times e^{i m f}."""
    width = int(x.shape[-1] * rope.fraction)
    start = 0 if rope.part == "leading" else x.shape[-1] - width
    turning = x[..., start : start + width]
    a, b = turning.chunk(2, -1) if rope.layout == "half" else (turning[..., 0::2], turning[..., 1::2])
    angle = torch.arange(len(x))[:, None, None] * frequencies(rope, width, torch.float64)
    size = temperature(rope.scaling) if isinstance(rope.scaling, Yarn) and rope.scaling.temperature == "rotation" else 1.0
    z = torch.complex(a, b) * torch.polar(torch.full_like(angle, size), angle)
    out = torch.cat((z.real, z.imag), -1) if rope.layout == "half" else torch.stack((z.real, z.imag), -1).flatten(-2)
    return torch.cat((x[..., :start], out, x[..., start + width :]), -1)


def _project(linear: Any, x: Tensor) -> Tensor:
    return x @ linear.weight.T + (0 if linear.bias is None else linear.bias)


def _heads(c: Attention, x: Tensor, linear: Any, norm: Any) -> Tensor:
    """Queries or keys (L, heads, D) of one segment."""
    y = _project(linear, x)
    n = c.qk_norm
    if n is not None and n.place == "before":
        y = _rms(y, norm.weight, n) if n.over == "full" else _rms(y.unflatten(-1, (-1, c.head_dim)), norm.weight, n).flatten(1)
    y = y.unflatten(-1, (-1, c.head_dim))
    if isinstance(c.position, Rope):
        y = _turned(y, c.position)
    if n is not None and n.place == "after":
        y = _rms(y.flatten(1), norm.weight, n).view_as(y) if n.over == "full" else _rms(y, norm.weight, n)
    return y


def reference(m: GQA, x: Tensor, lengths: tuple[int, ...], own: GQA | None = None, own_x: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Output (T, d) and largest logit per head; keys and values by the weights of `own` from its input."""
    own, own_x = (m, x) if own is None or own_x is None else (own, own_x)
    c, outs = m.config, []
    largest = [-math.inf] * c.heads
    scale = c.head_dim**-0.5 if c.scale is None else c.scale
    if isinstance(c.position, Rope) and isinstance(c.position.scaling, Yarn) and c.position.scaling.temperature == "softmax":
        scale *= (0.1 * c.position.scaling.mscale * math.log(c.position.scaling.factor) + 1) ** 2
    for part, own_part in zip(x.split(list(lengths)), own_x.split(list(lengths))):
        q = _heads(c, part, m.q, m.q_norm)
        k = _heads(own.config, own_part, own.k, own.k_norm)
        v = _project(own.v, own_part).unflatten(-1, (-1, c.value_width))
        rows = []
        for t, h in itertools.product(range(len(part)), range(c.heads)):
            g = h * c.kv_heads // c.heads
            first = 0 if c.window is None else max(0, t - c.window + 1)
            logits = torch.stack([scale * torch.dot(q[t, h], k[s, g]) for s in range(first, t + 1)])
            if c.softcap is not None:
                logits = c.softcap * torch.tanh(logits / c.softcap)
            largest[h] = max(largest[h], float(logits.detach().max()))
            total = logits.exp().sum() + (m.sinks[h].exp() if c.sinks and m.sinks is not None else 0)
            rows.append((logits.exp() / total) @ v[first : t + 1, g])
        y = torch.stack(rows).view(len(part), -1)
        if m.gate is not None:
            y = y / (1 + (-_project(m.gate, part)).exp())
        outs.append(_project(m.o, y))
    return torch.cat(outs), torch.tensor(largest, dtype=torch.float64)


# ── knobs ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", KNOBS)
def test_a_knob_does_what_its_formula_says_with_gradients(name: str) -> None:
    mixer, x = mixer_of(KNOBS[name]), torch.randn(sum(LENGTHS), 24, dtype=torch.float64, requires_grad=True)
    inputs = [x, *mixer.parameters()]
    cotangent = torch.randn(sum(LENGTHS), 24, dtype=torch.float64)
    wanted, largest = reference(mixer, x, LENGTHS)
    slopes = torch.autograd.grad(wanted, inputs, cotangent)
    backends: tuple[Backend, ...] = ("auto", "eager") if KNOBS[name].softcap else ("auto", "eager", "sdpa")
    for backend in backends:
        aux = Aux(frozenset(("max_logit",)) if backend == "eager" else frozenset())
        got = run(mixer, x, LENGTHS, backend, aux)
        assert (got - wanted).abs().max() <= EXACT * wanted.abs().max(), backend
        for a, b in zip(torch.autograd.grad(got, inputs, cotangent), slopes):
            assert (a - b).norm() <= 1e-9 * (1 + b.norm()), backend
        if backend == "eager":
            assert (aux.max_logit[1] - largest).abs().max() <= EXACT


@pytest.mark.parametrize("name", [n for n in KNOBS if n not in ("plain", "mha", "mqa", "wide_values", "narrow_values")])
def test_a_knob_is_heard(name: str) -> None:
    """Each knob set back to neutral, with the same weights, gives something else: so the comparison above can fail."""
    mixer, x = mixer_of(KNOBS[name]), torch.randn(sum(LENGTHS), 24, dtype=torch.float64)
    fields = [f for f in Attention.model_fields if f != "value_dim" and getattr(mixer.config, f) != getattr(BASE, f)]
    assert fields
    for field in fields:
        other = mixer_of(mixer.config.replace(**{field: getattr(BASE, field)}))
        other.load_state_dict(mixer.state_dict(), strict=False)
        assert (run(other, x, LENGTHS) - run(mixer, x, LENGTHS)).abs().max() > 1e-3, field


def test_each_knob_has_its_own_parameters() -> None:
    plain = {"q.weight", "k.weight", "v.weight", "o.weight"}
    biases = {"q.bias", "k.bias", "v.bias"}
    more = {
        "qk_norm": {"q_norm.weight", "k_norm.weight"},
        "sinks": {"sinks"},
        "bias": biases,
        "bias_all": biases | {"o.bias"},
        "gate": {"gate.weight"},
        "window": set(),
    }
    for name, extra in more.items():
        assert set(mixer_of(KNOBS[name]).state_dict()) == plain | extra, name
    assert {n: tuple(p.shape) for n, p in mixer_of(KNOBS["all"]).named_parameters()} == {
        "q.weight": (32, 24),
        "q.bias": (32,),
        "k.weight": (16, 24),
        "k.bias": (16,),
        "v.weight": (12, 24),
        "v.bias": (12,),
        "o.weight": (24, 24),
        "o.bias": (24,),
        "gate.weight": (24, 24),
        "q_norm.weight": (32,),
        "k_norm.weight": (16,),
        "sinks": (4,),
    }


def test_sinks_and_biases_start_at_zero() -> None:
    blocks: Any = initialise(Transformer(MODELS["all"]), 0).blocks
    mixer = blocks[0].mixer
    assert not any(p.any() for p in (mixer.sinks, mixer.q.bias, mixer.o.bias))
    assert mixer.gate.weight.std() > 0.1


@pytest.mark.parametrize("name", ["all", "window_sinks", "norm_full_after"])
def test_autocast_leaves_norms_and_softmax_wide(name: str) -> None:
    model, ids = loud(MODELS[name]), tokens(9)
    wanted = model(ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = model(ids)
    assert got.dtype == torch.float32
    assert 1e-4 < (got - wanted).norm() / wanted.norm() < 3e-2


def test_layouts_differ_by_a_permutation_of_channels() -> None:
    for fraction, part in ((1.0, "leading"), (0.5, "trailing")):
        config = BASE.replace(position=ROPE.replace(fraction=fraction, part=part), qk_norm=QKNorm())
        pairs = config.replace(position=config.position.replace(layout="interleaved"))
        half: Any = mixer_of(config)
        interleaved: Any = mixer_of(pairs)
        width = int(8 * fraction)
        start = 0 if part == "leading" else 8 - width
        order = torch.arange(8)
        order[start : start + width] = start + torch.cat((torch.arange(0, width, 2), torch.arange(1, width, 2)))
        with torch.no_grad():
            for linear, other in ((half.q, interleaved.q), (half.k, interleaved.k)):
                linear.weight.copy_(other.weight.unflatten(0, (-1, 8))[:, order].flatten(0, 1))
            for norm, other in ((half.q_norm, interleaved.q_norm), (half.k_norm, interleaved.k_norm)):
                norm.weight.copy_(other.weight[order])
        x = torch.randn(9, 24, dtype=torch.float64)
        assert (run(half, x, (9,)) - run(interleaved, x, (9,))).abs().max() <= EXACT


@pytest.mark.parametrize("name", ["cla", "cla_window", "cla_of_full"])
def test_reused_keys_and_values_are_those_of_the_layer_below(name: str) -> None:
    model, ids = loud(MODELS[name], dtype=torch.float64), tokens(sum(LENGTHS))
    calls: list[tuple[GQA, Tensor, Tensor]] = []
    blocks: Any = model.blocks
    for block in blocks:
        block.mixer.register_forward_hook(lambda m, args, out: calls.append((m, args[0], out)))
    with torch.no_grad():
        model(ids, segments(*LENGTHS))
        own: Any = None
        for mixer, x, got in calls:
            if isinstance(mixer.config.kv, Own):
                own = mixer, x
            else:
                assert not {"k.weight", "v.weight", "k_norm.weight"} & set(mixer.state_dict())
            wanted = reference(mixer, x, LENGTHS, *own)[0]
            assert (got - wanted).abs().max() <= EXACT * wanted.abs().max()
    assert len(calls) == model.config.depth


def test_reusing_trains_the_layer_below() -> None:
    model = loud(MODELS["cla"], dtype=torch.float64)
    blocks: Any = model.blocks
    blocks[0].mixer.o.weight.detach_().zero_()
    model(tokens(5)).square().sum().backward()
    assert blocks[0].mixer.k.weight.grad.norm() > 1e-6


def test_the_window_spans_its_blocks() -> None:
    """Longer than two blocks: the path that is linear in length, at lengths round its block boundaries."""
    for n, window in ((129, 3), (192, 64), (193, 70), (300, 100), (128, 4)):
        q, k, v = (torch.randn(2, h, n, 8, dtype=torch.float64, requires_grad=True) for h in (4, 2, 2))
        sinks = torch.randn(4, dtype=torch.float64, requires_grad=True)
        at = torch.arange(n)
        seen = (at[None] <= at[:, None]) & (at[None] > at[:, None] - window)
        scores = torch.einsum("shnd,shld->shnl", q, k.repeat_interleave(2, 1)) * 0.7
        weights = torch.where(seen, scores, -torch.inf).exp()
        wanted = weights / (weights.sum(-1, keepdim=True) + sinks.exp()[:, None, None]) @ v.repeat_interleave(2, 1)
        got = core(q, k, v, "causal", "sdpa", scale=0.7, sinks=sinks, window=window)
        assert (got - wanted).abs().max() <= EXACT
        g = torch.randn_like(got)
        for a, b in zip(torch.autograd.grad(got, (q, k, v, sinks), g), torch.autograd.grad(wanted, (q, k, v, sinks), g)):
            assert (a - b).norm() <= 1e-9 * (1 + b.norm())


# ── rotary frequencies ─────────────────────────────────────────────────────────────────────────────────────────────────


SCALINGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "linear": (Linear(factor=3.0), {"rope_type": "linear", "factor": 3.0}),
    "llama3": (
        Llama3(factor=8.0, low=1.0, high=4.0, original=8192),
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
    ),
    "yarn": (Yarn(factor=4.0, original=4096), {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}),
    "yarn whole": (
        Yarn(factor=40.0, original=4096, beta_fast=16.0, beta_slow=2.0, truncate=False),
        {
            "rope_type": "yarn",
            "factor": 40.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "truncate": False,
        },
    ),
}


def test_scaled_frequencies_are_those_of_transformers() -> None:
    utils = pytest.importorskip("transformers.modeling_rope_utils")
    from transformers import LlamaConfig

    for base, (scaling, theirs) in itertools.product((10_000.0, 500_000.0), SCALINGS.values()):
        config = LlamaConfig(
            head_dim=64,
            hidden_size=128,
            num_attention_heads=2,
            max_position_embeddings=131072,
            rope_parameters={"rope_theta": base, **theirs},
        )
        wanted, size = utils.ROPE_INIT_FUNCTIONS[theirs["rope_type"]](config, "cpu")
        got = frequencies(Rope(base=base, scaling=scaling), 64)
        assert ((got - wanted) / wanted).abs().max() <= 1e-6
        assert not torch.allclose(got, frequencies(Rope(base=base), 64))
        assert size == pytest.approx(temperature(scaling) if isinstance(scaling, Yarn) else 1.0)


# ── backends ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("backend", ["sdpa", "flex"])
def test_backends_equal_the_formula(backend: Backend) -> None:
    additive = torch.zeros(2, 1, 9, 9, dtype=torch.float64).masked_fill_(torch.rand(2, 1, 9, 9) < 0.5, -torch.inf)
    additive[..., 0] = 0.0
    by_head = additive.roll(1, -2) + torch.randn(4, 9, 9, dtype=torch.float64)
    masks: tuple[Any, ...] = ("causal", additive, additive[:1], by_head, None)
    for mask, width, softcap, sunk, window in itertools.product(masks, (8, 12, 4), (None, 1.5), (False, True), (None, 3)):
        if (backend == "sdpa" and softcap) or (window and not isinstance(mask, str)):
            continue
        grad = backend == "sdpa"
        q, k = (torch.randn(2, h, 9, 8, dtype=torch.float64, requires_grad=grad) for h in (4, 2))
        v = torch.randn(2, 2, 9, width, dtype=torch.float64, requires_grad=grad)
        sinks = torch.randn(4, dtype=torch.float64, requires_grad=grad) if sunk else None
        knobs: dict[str, Any] = {"scale": 0.6, "softcap": softcap, "sinks": sinks, "window": window}
        got, wanted = (core(q, k, v, mask, b, **knobs) for b in (backend, "eager"))
        assert (got - wanted).abs().max() <= EXACT
        if grad:
            inputs = [t for t in (q, k, v, sinks) if t is not None]
            g = torch.randn_like(got)
            for a, b in zip(torch.autograd.grad(got, inputs, g), torch.autograd.grad(wanted, inputs, g)):
                assert (a - b).norm() <= 1e-9 * (1 + b.norm())
        else:
            theirs: list[Tensor] = []
            ours: list[Tensor] = []
            core(q, k, v, mask, "flex", lse=theirs, **knobs)
            core(q, k, v, mask, "eager", lse=ours, **knobs)
            assert (theirs[0] - ours[0]).abs().max() <= EXACT


def test_the_log_sum_exp_is_the_softmax_denominator() -> None:
    q, k, sinks = torch.randn(2, 2, 5, 8), torch.randn(2, 1, 5, 8), torch.tensor([0.3, -1.0])
    lse: list[Tensor] = []
    core(q, k, k, "causal", lse=lse, sinks=sinks)
    for s, h, t in itertools.product(range(2), range(2), range(5)):
        total = sum(math.exp(float(q[s, h, t] @ k[s, 0, j]) / 8**0.5) for j in range(t + 1)) + math.exp(sinks[h])
        assert float(lse[0][s, h, t]) == pytest.approx(math.log(total), abs=1e-5)


def test_what_a_backend_cannot_do_is_said() -> None:
    half = Needs(flat=True, dtype=torch.bfloat16, grad=True)
    assert choose("cpu", Needs(grad=True)) == Choice("sdpa", "")
    assert choose("cpu", Needs(softcap=True)) == Choice("eager", "sdpa has no soft-cap")
    assert choose("cuda", half) == Choice("varlen", "")
    assert choose("cuda", half._replace(sinks=True)) == Choice("sdpa", "varlen has no sinks")
    assert choose("cuda", half._replace(sinks=True, window=True)) == Choice("flex", "varlen has no sinks")
    assert choose("cuda", half._replace(softcap=True)).backend == "flex"
    assert choose("cuda", half._replace(max_logit=True)).backend == "flex"
    assert choose("cuda", Needs(flat=True)) == Choice("sdpa", "varlen 16 bit only")
    assert legal("varlen", "cpu", half) == "CUDA only"
    assert "gradients" in legal("flex", "cpu", half)
    assert all(legal("eager", d, Needs(*(True,) * 8)) == "" for d in ("cpu", "cuda", "mps"))  # type: ignore[arg-type]
    x = torch.randn(1, 1, 3, 8)
    with pytest.raises(UsageError, match=r"'sdpa' has no soft-cap[\s\S]*auto"):
        core(x, x, x, "causal", "sdpa", softcap=1.0)
    with pytest.raises(UsageError, match="'varlen' CUDA only"):
        run(mixer_of(BASE), torch.randn(4, 24, dtype=torch.float64), (4,), "varlen")


def test_the_choice_can_be_read() -> None:
    model = loud(stack(BASE, BASE.replace(softcap=5.0), BASE.replace(window=3, sinks=True)))
    assert model.backends() == {"0": "sdpa", "1": "eager (sdpa has no soft-cap)", "2": "sdpa"}
    assert model.backends(max_logit=True)["0"] == "eager (sdpa shows no logits)"
    model.backend = "eager"
    assert set(model.backends().values()) == {"eager"}


def test_flat_rows_are_handed_to_varlen_as_it_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernel is CUDA only; here a stand-in with its documented meaning shows that segments, window, scale and heads arrive."""

    def stand_in(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, **kw: Any) -> Tensor:
        assert torch.equal(cu_q, cu_k)
        assert cu_q.dtype == torch.int32
        assert max_q == max_k == max(LENGTHS)
        assert kw["enable_gqa"]
        left, right = kw["window_size"]
        outs = []
        for a, b in itertools.pairwise(cu_q.tolist()):
            at = torch.arange(b - a)
            ahead = at[None] - at[:, None]
            hidden = (ahead > right) | ((ahead < -left) if left >= 0 else torch.zeros_like(ahead, dtype=torch.bool))
            scores = torch.einsum("thd,shd->hts", q[a:b], k[a:b].repeat_interleave(2, 1)) * kw["scale"]
            outs.append(torch.einsum("hts,shd->thd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v[a:b].repeat_interleave(2, 1)))
        return torch.cat(outs)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", stand_in)
    monkeypatch.setattr("upslope.model.attention.resolve", lambda *_: Choice("varlen", ""))
    for name in ("plain", "window", "scale", "window_one"):
        mixer, x = mixer_of(KNOBS[name]), torch.randn(sum(LENGTHS), 24, dtype=torch.float64)
        assert (run(mixer, x, LENGTHS) - reference(mixer, x, LENGTHS)[0]).abs().max() <= EXACT


def test_the_largest_logit_ignores_padding() -> None:
    """All logits are negative here, so zeros in padded places would win."""
    config = stack(BASE.replace(kv_heads=4, position=KNOBS["nope"].position))
    model = loud(config, dtype=torch.float64)
    blocks: Any = model.blocks
    mixer = blocks[0].mixer
    mixer.k.weight.data.copy_(-mixer.q.weight)
    ids, lengths = torch.full((12,), 3), (5, 1, 6)
    x = blocks[0].mixer_half.before(model.embed(ids[:1]))
    wanted = -(mixer.q(x).view(4, 8).square().sum(-1)) / 8**0.5
    cache = Cache(config, 3, dtype=torch.float64)
    passes = ((None, lengths), (cache.at([2, 0, 1]), lengths), (cache.at([1, 2, 0]), (1, 3, 1)))
    for view, counts in passes:
        aux = Aux(frozenset(("max_logit",)))
        model(ids[: sum(counts)], segments(*counts), cache=view, aux=aux)
        assert (aux.max_logit[0] - wanted).abs().max() <= EXACT
