"""QK-Clip on real modules: the largest logits land on tau, clipped heads alone change, and nothing else is touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.support import loud, segments, tokens
from upslope.config import UsageError
from upslope.model.aux import Aux
from upslope.model.config import MLA, Attention, Gated, Layer, ModelConfig, QKNorm, Reuse, Rope
from upslope.model.transformer import Transformer
from upslope.optim.build import build
from upslope.optim.config import AdamW, Muon
from upslope.optim.heads import heads_of
from upslope.optim.qk_clip import Shared, clippable, gamma, max_logits, qk_clip

ROPE = Rope(base=50.0)
GQA = Attention(heads=6, kv_heads=2, head_dim=4, position=ROPE, qk_norm=None, bias="qkv")
MIXERS: dict[str, Any] = {
    "gqa": GQA,
    "mha": GQA.replace(heads=3, kv_heads=3, bias="none"),
    "mla": MLA(heads=3, q_latent=10, kv_latent=8, nope_dim=6, rope_dim=4, value_dim=5),
    "mla-plain-q": MLA(heads=3, q_latent=None, kv_latent=8, nope_dim=6, rope_dim=4, value_dim=5),
}
IDS, SEG = tokens(40), segments(23, 17)


def model(*mixers: Any, dtype: torch.dtype = torch.float64) -> Transformer:
    blocks = {str(i): Layer(mixer=m, ffn=Gated(hidden=20)) for i, m in enumerate(mixers)}
    config = ModelConfig.model_validate({"d_model": 24, "vocab": 64, "context": 64, "blocks": blocks, "pattern": tuple(blocks)})
    return loud(config, seed=2, dtype=dtype)


def seen(m: Transformer) -> dict[int, Tensor]:
    return max_logits(m, Aux(frozenset({"max_logit"})), IDS, SEG)


def between(largest: Tensor) -> float:
    """A tau that some heads pass and some do not."""
    s = largest.sort().values
    return float(s[len(s) // 2 - 1] + s[len(s) // 2]) / 2


@pytest.mark.parametrize("name", list(MIXERS))
@pytest.mark.parametrize("shared", ["q", "min"])
@pytest.mark.parametrize("alpha", [0.5, 0.2])
def test_clipped_heads_end_at_tau_and_the_others_stay(name: str, shared: Shared, alpha: float) -> None:
    m = model(MIXERS[name])
    before = seen(m)[0]
    tau = between(before)
    got = qk_clip(m, {0: before}, tau, alpha, shared)
    torch.testing.assert_close(got[0], torch.clamp(tau / before.clamp_min(1e-9), max=1), rtol=1e-14, atol=0)
    after = seen(m)[0]
    assert 0 < int((before > tau).sum()) < len(before)
    assert float(after.max()) <= tau + 1e-9
    torch.testing.assert_close(after, before.clamp_max(tau), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", list(MIXERS))
def test_only_rows_of_clipped_heads_change(name: str) -> None:
    m = model(MIXERS[name])
    old = {n: p.detach().clone() for n, p in m.named_parameters()}
    largest = seen(m)[0]
    tau = between(largest)
    g = gamma(largest, tau)
    qk_clip(m, {0: largest}, tau)
    c, prefix = MIXERS[name], "blocks.0.mixer."
    new = {n.removeprefix(prefix): (old[n], p.detach()) for n, p in m.named_parameters() if not torch.equal(old[n], p)}
    one = torch.ones_like(g)
    factors: dict[str, Tensor] = {}
    if c.kind == "mla":
        q = "q" if c.q_latent is None else "q_b"
        factors[f"{q}.weight"] = torch.cat([torch.stack([a**0.5] * 6 + [a] * 4) for a in g])
        factors["kv_b.weight"] = torch.cat([torch.stack([a**0.5] * 6 + [b] * 5) for a, b in zip(g, one)])
    elif name == "mha":
        factors = {f"{x}.weight": (g**0.5).repeat_interleave(4) for x in "qk"}
    else:
        factors = {"q.weight": g.repeat_interleave(4), "q.bias": g.repeat_interleave(4)}
    assert set(new) == set(factors)
    for n, (was, now) in new.items():
        f = factors[n][:, None] if was.ndim == 2 else factors[n]
        torch.testing.assert_close(now, was * f, rtol=1e-14, atol=0)
        assert torch.equal(now[factors[n] == 1], was[factors[n] == 1])


@pytest.mark.parametrize("name", list(MIXERS))
def test_nothing_changes_below_tau(name: str) -> None:
    m = model(MIXERS[name])
    old = {n: p.detach().clone() for n, p in m.named_parameters()}
    assert qk_clip(m, seen(m), float(seen(m)[0].max())) == {}
    assert all(torch.equal(old[n], p) for n, p in m.named_parameters())
    assert gamma(torch.tensor([-3.0, 0.0, 2.0]), 2.0).tolist() == [1.0, 1.0, 1.0]


def test_keys_that_another_layer_reads_are_not_scaled() -> None:
    own = GQA.replace(heads=2, kv_heads=2, bias="none")
    m = model(own, own.replace(kv=Reuse()))
    k = m.get_parameter("blocks.0.mixer.k.weight").detach().clone()
    largest = seen(m)
    qk_clip(m, {0: largest[0]}, 0.5 * float(largest[0].max()))
    assert torch.equal(k, m.get_parameter("blocks.0.mixer.k.weight"))
    assert float(seen(m)[0].max()) == pytest.approx(0.5 * float(largest[0].max()))
    upper = seen(m)[1]
    assert set(qk_clip(m, {1: upper}, 0.5 * float(upper.max()))) == {1}
    assert float(seen(m)[1].max()) == pytest.approx(0.5 * float(upper.max()))


def test_masters_are_scaled_and_the_weights_are_their_roundings() -> None:
    m = model(MIXERS["mha"], dtype=torch.bfloat16)
    opt = build(m.named_parameters(), AdamW())
    name = "blocks.0.mixer.q.weight"
    start = opt.masters()[name].clone()
    for _ in range(3):  # each time by less than bfloat16 resolves
        qk_clip(m, {0: torch.tensor([1.001, 0.5, 0.5])}, 1.0, masters=opt.masters())
    factor = torch.tensor(1 / 1.001).sqrt() ** 3
    torch.testing.assert_close(opt.masters()[name][:4], start[:4] * factor, rtol=1e-6, atol=0)
    assert torch.equal(m.get_parameter(name), opt.masters()[name].bfloat16())


def test_maxima_merge_over_passes() -> None:
    m = model(MIXERS["gqa"])
    aux = Aux(frozenset({"max_logit"}))
    max_logits(m, aux, IDS[:23])
    found = max_logits(m, aux, IDS[23:])
    torch.testing.assert_close(found[0], seen(m)[0], rtol=1e-12, atol=0)


def test_bounded_attention_is_passed_over_or_refused() -> None:
    normed, capped = GQA.replace(qk_norm=QKNorm()), GQA.replace(softcap=30.0)
    assert set(clippable(model(normed, GQA, capped))) == {1}
    with pytest.raises(UsageError, match="bound the logits already"):
        qk_clip(model(normed, capped), {})
    with pytest.raises(UsageError, match="tau must be > 0"):
        qk_clip(model(GQA), {}, tau=0.0)


def test_heads_of_a_model_and_muon_over_them() -> None:
    m = model(GQA, MIXERS["mla"])
    names = heads_of(m)
    assert names == {f"blocks.0.mixer.{n}.weight": h for n, h in (("q", 6), ("k", 2), ("v", 2))} | {
        f"blocks.1.mixer.{n}.weight": 3 for n in ("q_b", "kv_b")
    }
    assert set(names) <= {n for n, _ in m.named_parameters()}
    old = m.get_parameter("blocks.0.mixer.q.weight").detach().clone()
    opt = build(m.named_parameters(), Muon(split="heads", ns_dtype="fp32", weight_decay=0.0, ns_steps=8, ns_polish=2), heads=names)
    m.logits(m(IDS, SEG)).square().mean().backward()  # type: ignore[no-untyped-call]
    opt.step(1.0)
    for head in (old - m.get_parameter("blocks.0.mixer.q.weight").detach()).chunk(6):
        s = torch.linalg.svdvals(head) / (0.2 * 24**0.5)
        assert 0.9 < float(s.min()) <= float(s.max()) < 1.1
