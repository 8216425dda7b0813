"""DeepSeek-V4's attention against the equations written as loops, and decoding against one shot."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.model.support import loud, segments, tokens
from upslope.config import FrozenDict
from upslope.model.aux import Aux
from upslope.model.cache import Cache
from upslope.model.compressed import CompressedAttention
from upslope.model.config import CSA, HCA, Compressed, Gated, Layer, ModelConfig, Rope
from upslope.model.transformer import Transformer

D, ROPE = 12, 4
HISTORIES = {
    "none": None,
    "hca": HCA(rate=4),
    "hca1": HCA(rate=1),
    "hca7": HCA(rate=7),
    "csa": CSA(rate=3, index_heads=3, index_dim=6, top_k=2),
    "csa1": CSA(rate=1, index_heads=4, index_dim=8, top_k=3),
}


def mixer(history: HCA | CSA | None, window: int = 5, **more: object) -> Compressed:
    rope = Rope(base=30.0, layout="interleaved", fraction=ROPE / D, part="trailing")
    return Compressed(
        heads=4, head_dim=D, q_latent=10, window=window, history=history, position=rope, groups=2, group_dim=7, eps=1e-3, **more
    )


def model_of(*mixers: Compressed, dtype: torch.dtype = torch.float64) -> Transformer:
    blocks = FrozenDict({f"b{i}": Layer(mixer=m, ffn=Gated(hidden=20)) for i, m in enumerate(mixers)})
    return loud(ModelConfig(d_model=16, blocks=blocks, pattern=tuple(blocks), vocab=64), dtype=dtype)


def norm(x: Tensor, gain: Tensor | float, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean() + eps) * gain


def turn(x: Tensor, pos: int, base: float = 30.0) -> Tensor:
    """The last ROPE channels as complex numbers times e^{i pos θ}."""
    y = x.clone()
    start = len(x) - ROPE
    for i in range(ROPE // 2):
        z = complex(x[start + 2 * i], x[start + 2 * i + 1]) * complex(math.cos(a := pos * base ** (-2 * i / ROPE)), math.sin(a))
        y[start + 2 * i], y[start + 2 * i + 1] = z.real, z.imag
    return y


def entries_of(f: object, x: Tensor, rate: int, series: int, eps: float) -> list[Tensor]:
    """Each window's entry, channel by channel."""
    k, z = x @ f.kv.weight.T, x @ f.gate.weight.T
    dim, out = f.kv_norm.weight.shape[0], []
    for i in range(len(x) // rate):
        slots = [(i * rate + j, (series - 1) * dim, j) for j in range(rate)]
        if series == 2 and i > 0:
            slots += [((i - 1) * rate + j, 0, j) for j in range(rate)]
        entry = torch.zeros(dim, dtype=x.dtype)
        for ch in range(dim):
            weights = [math.exp(z[t, at + ch] + f.position_bias[j, at + ch]) for t, at, j in slots]
            entry[ch] = sum(w * k[t, at + ch] for w, (t, at, _) in zip(weights, slots)) / sum(weights)
        out.append(turn(norm(entry, f.kv_norm.weight, eps), i * rate))
    return out


@torch.no_grad()
def reference(m: CompressedAttention, x: Tensor) -> Tensor:
    """One segment x (T, d) → (T, d), as the equations read."""
    c = m.config
    h, rate = c.history, c.history.rate if c.history else 1
    series = 2 if isinstance(h, CSA) else 1
    kv = [turn(norm(m.kv.weight @ row, m.kv_norm.weight, c.eps), t) for t, row in enumerate(x)]
    entries = entries_of(m.compressor, x, rate, series, c.eps) if h else []
    keys = entries_of(m.indexer.compressor, x, rate, 2, c.eps) if isinstance(h, CSA) else []
    out = []
    for t, row in enumerate(x):
        latent = norm(m.q_a.weight @ row, m.q_a_norm.weight, c.eps)
        seen = kv[max(0, t - c.window + 1) : t + 1]
        ready = list(range((t + 1) // rate)) if h else []
        if isinstance(h, CSA):
            weights = m.indexer.weights.weight @ row
            qs = (m.indexer.q.weight @ latent).view(h.index_heads, -1)
            score = {i: sum(w * max(0.0, float(turn(q, t) @ keys[i])) for w, q in zip(weights, qs)) for i in ready}
            ready = sorted(ready, key=lambda i: (-score[i], i))[: h.top_k]
        seen = seen + [entries[i] for i in ready]
        heads = []
        for n, q in enumerate((m.q_b.weight @ latent).view(c.heads, -1)):
            q = turn(norm(q, 1.0, c.eps), t)
            w = [math.exp(q @ k / math.sqrt(c.head_dim)) for k in seen]
            total = sum(w) + math.exp(m.sinks[n])
            heads.append(turn(sum(a * k for a, k in zip(w, seen)) / total, -t))
        per = c.heads // c.groups
        grouped = [m.o_a[g] @ torch.cat(heads[g * per : (g + 1) * per]) for g in range(c.groups)]
        out.append(m.o.weight @ torch.cat(grouped))
    return torch.stack(out)


def through(model: Transformer, seg: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """What goes into and comes out of the first mixer."""
    caught: list[tuple[Tensor, Tensor]] = []
    hook = model.blocks[0].mixer.register_forward_hook(lambda _, args, out: caught.append((args[0], out)))
    with torch.no_grad():
        model(ids, seg)
    hook.remove()
    return caught[0]


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
def test_the_mixer_is_its_equations(history: HCA | CSA | None) -> None:
    lengths = (1, 4, 17, 12, 3)
    equal_the_equations(history, lengths)


@pytest.mark.parametrize("name", ["hca7", "csa"])
def test_long_segments_in_blocks_are_the_equations_too(name: str) -> None:
    equal_the_equations(HISTORIES[name], (133, 2, 131))


def equal_the_equations(history: HCA | CSA | None, lengths: tuple[int, ...]) -> None:
    seg = segments(*lengths)
    model = model_of(mixer(history))
    x, out = through(model, seg, tokens(len(seg)))
    want = torch.cat([reference(model.blocks[0].mixer, part) for part in x.split(lengths)])
    assert (out - want).abs().max() < 1e-10


@torch.no_grad()
def test_rate_one_adds_every_token_as_its_own_entry() -> None:
    """Softmax over one slot is 1: an entry is then norm(x W_k) at its token's position, read beside the window."""
    model = model_of(mixer(HCA(rate=1)))
    m, ids = model.blocks[0].mixer, tokens(11)
    with torch.no_grad():
        m.compressor.kv.weight.copy_(m.kv.weight)
        m.compressor.kv_norm.weight.copy_(m.kv_norm.weight)
    x, out = through(model, torch.zeros(11, dtype=torch.long), ids)
    c = m.config
    kv = torch.stack([turn(norm(m.kv.weight @ row, m.kv_norm.weight, c.eps), t) for t, row in enumerate(x)]).detach()
    latent = F.rms_norm(x @ m.q_a.weight.T, (c.q_latent,), m.q_a_norm.weight, c.eps)
    q = F.rms_norm((latent @ m.q_b.weight.T).view(11, c.heads, D), (D,), eps=c.eps)
    q = torch.stack([torch.stack([turn(a, t) for a in row]) for t, row in enumerate(q)])
    back = torch.arange(11)[:, None] - torch.arange(11)
    times = (back >= 0).double() + ((back >= 0) & (back < c.window)).double()  # a token within the window is read twice
    w = torch.einsum("thd,sd->ths", q, kv).mul(D**-0.5).exp() * times[:, None]
    mixed = (w @ kv) / (w.sum(-1, keepdim=True) + m.sinks.exp()[:, None])
    mixed = torch.stack([torch.stack([turn(a, -t) for a in row]) for t, row in enumerate(mixed)])
    grouped = torch.einsum("tgi,goi->tgo", mixed.view(11, c.groups, -1), m.o_a).flatten(1)
    assert (out - grouped @ m.o.weight.T).abs().max() < 1e-10


def test_choosing_all_entries_is_dense_and_fewer_is_not() -> None:
    ids, seg = tokens(40), segments(23, 17)
    outs = {}
    for k, stage in ((2, "sparse"), (7, "sparse"), (8, "sparse"), (1, "dense")):
        model = model_of(mixer(CSA(rate=3, index_heads=3, index_dim=6, top_k=k, stage=stage)))
        outs[k] = through(model, seg, ids)[1]
    assert torch.equal(outs[7], outs[8]) and (outs[7] - outs[1]).abs().max() < 1e-12
    assert (outs[2] - outs[7]).abs().max() > 1e-3


def test_values_depend_on_relative_position_only() -> None:
    """Without entries, moving a segment by a constant changes nothing: the output's inverse rotation undoes the values' own."""
    model, ids = model_of(mixer(None)), tokens(9)
    with torch.no_grad():
        assert (model(ids) - model(ids, pos=torch.arange(9) + 13)).abs().max() < 1e-10


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
def test_nothing_comes_from_the_future_or_from_another_segment(history: HCA | CSA | None) -> None:
    model, ids, seg = model_of(mixer(history)), tokens(33), segments(20, 13)
    x = model.embedded(ids).detach().requires_grad_()
    model.embedded = lambda _: x  # type: ignore[method-assign]
    for t in (0, 3, 11, 19, 20, 32):
        (grad,) = torch.autograd.grad(model(ids, seg)[t].sum(), x)
        rows = grad.abs().sum(1).nonzero()[:, 0]
        assert rows.max() == t and rows.min() >= (0 if t < 20 else 20)


def cached(model: Transformer, ids: Tensor, cuts: list[int], cache: Cache, slot: int) -> Tensor:
    """ids appended to a slot in pieces of these lengths."""
    return torch.cat([model(part, cache=cache.at([slot])) for part in ids.split(cuts)])


MIXED = ("hca", "none", "csa", "hca7")


@pytest.mark.parametrize("slack", [0, 16])
def test_decoding_equals_one_shot(slack: int) -> None:
    """Every cut of a prefix round compression and window boundaries, in one piece, and token by token."""
    model = model_of(*(mixer(HISTORIES[n]) for n in MIXED))
    ids, n = tokens(30), 30
    with torch.no_grad():
        want = model(ids)
        for cuts in ([n], [1] * n, *([a, n - a] for a in range(1, 16)), [4, 1, 1, 6, 2, 9, 7], [2, 3, 5, 7, 13]):
            cache = Cache(model.config, 2, capacity=3, dtype=torch.float64, slack=slack)
            assert (cached(model, ids, cuts, cache, 1) - want).abs().max() < 1e-10, cuts


def test_packed_slots_of_different_lengths_decode_together() -> None:
    model = model_of(*(mixer(HISTORIES[n]) for n in MIXED))
    lengths, rounds = [17, 1, 6, 12], [(1, 1, 1, 1), (5, 1, 2, 9), (1, 1, 1, 1), (3, 14, 1, 4)]
    streams = [tokens(60, seed=s) for s in range(4)]
    with torch.no_grad():
        cache = Cache(model.config, 6, dtype=torch.float64, slack=2)
        slots, at = [4, 0, 5, 2], [0] * 4
        got: list[list[Tensor]] = [[] for _ in range(4)]
        for counts in (lengths, *rounds):
            parts = [s[a : a + n] for s, a, n in zip(streams, at, counts)]
            out = model(torch.cat(parts), segments(*counts), cache=cache.at(slots))
            for g, piece in zip(got, out.split(list(counts))):
                g.append(piece)
            at = [a + n for a, n in zip(at, counts)]
        for s, g, a in zip(streams, got, at):
            assert (torch.cat(g) - model(s[:a])).abs().max() < 1e-10


def test_a_fork_goes_its_own_way_and_a_slot_is_reused_clean() -> None:
    model = model_of(*(mixer(HISTORIES[n]) for n in MIXED))
    ids, other = tokens(40), tokens(40, seed=1)
    with torch.no_grad():
        for at in (1, 5, 6, 11, 12, 14):
            cache = Cache(model.config, 3, dtype=torch.float64)
            cached(model, ids[:at], [at], cache, 0)
            cache.fork(0, 2)
            cached(model, other[at:30], [1] * (30 - at), cache, 2)
            assert (cached(model, ids[at:30], [1] * (30 - at), cache, 0) - model(ids[:30])[at:]).abs().max() < 1e-10
            cache.free(2)
            assert (cached(model, ids[:9], [1] * 9, cache, 2) - model(ids[:9])).abs().max() < 1e-10


@pytest.mark.parametrize("n", [22, 23])
def test_rewinding_within_the_slack(n: int) -> None:
    model = model_of(*(mixer(HISTORIES[name]) for name in MIXED))
    ids, other = tokens(40), tokens(40, seed=1)
    with torch.no_grad():
        for back in range(1, 10):
            cache = Cache(model.config, 1, dtype=torch.float64, slack=8)
            cached(model, ids[:n], [n - 3, 1, 1, 1], cache, 0)
            assert cache.rewind(0, n - back)
            text = torch.cat((ids[: n - back], other[:10]))
            assert (cached(model, other[:10], [1] * 10, cache, 0) - model(text)[n - back :]).abs().max() < 1e-10
        assert not cache.rewind(0, 2)


@pytest.mark.parametrize("stage", ["dense", "sparse"])
def test_the_indexer_learns_the_attention_over_entries_and_nothing_else(stage: str) -> None:
    """KL(heads' summed attention over entries ‖ softmax(I)) by loops; the indexer alone learns from it, and from nothing else."""
    h = CSA(rate=3, index_heads=3, index_dim=6, top_k=2, stage=stage)
    model = model_of(mixer(h))
    m, c, lengths = model.blocks[0].mixer, model.blocks[0].mixer.config, (131, 2, 14)
    ids, seg = tokens(147), segments(*lengths)
    x, _ = through(model, seg, ids)
    want = 0.0
    with torch.no_grad():
        for part in x.split(lengths):
            kv = [turn(norm(m.kv.weight @ row, m.kv_norm.weight, c.eps), t) for t, row in enumerate(part)]
            entries = entries_of(m.compressor, part, 3, 2, c.eps)
            keys = entries_of(m.indexer.compressor, part, 3, 2, c.eps)
            for t, row in enumerate(part):
                latent = norm(m.q_a.weight @ row, m.q_a_norm.weight, c.eps)
                qs = (m.indexer.q.weight @ latent).view(h.index_heads, -1)
                w = m.indexer.weights.weight @ row / math.sqrt(h.index_heads * h.index_dim)
                score = [sum(a * max(0.0, float(turn(q, t) @ k)) for a, q in zip(w, qs)) for k in keys[: (t + 1) // 3]]
                ready = sorted(range(len(score)), key=lambda i: (-score[i], i))[: 2 if stage == "sparse" else None]
                p = dict.fromkeys(ready, 0.0)
                for n, q in enumerate((m.q_b.weight @ latent).view(c.heads, -1)):
                    q = turn(norm(q, 1.0, c.eps), t)
                    e = [math.exp(q @ k / math.sqrt(D)) for k in (*kv[max(0, t - c.window + 1) : t + 1], *(entries[i] for i in ready))]
                    for i, value in zip(ready, e[-len(ready) :] if ready else ()):
                        p[i] += value / (sum(e) + math.exp(m.sinks[n]))
                total, below = sum(p.values()), sum(math.exp(score[i]) for i in ready)
                want += sum(p[i] / total * math.log(p[i] / total / (math.exp(score[i]) / below)) for i in ready)
    aux = Aux(frozenset({"index"}))
    out = model(ids, seg, aux=aux)
    loss, count = aux.index[0]
    assert count == 147 and abs(loss.item() - want) < 1e-9
    loss.backward(retain_graph=True)
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert moved == {name for name, _ in model.named_parameters() if ".indexer." in name}
    model.zero_grad()
    out.sum().backward()
    assert not any(p.grad is not None and p.grad.any() for p in m.indexer.parameters())


def test_bfloat16_and_side_outputs() -> None:
    """Under autocast the result stays near, in float32 at the end; the largest logit is the equations'."""
    model = model_of(mixer(HISTORIES["csa"]), mixer(HISTORIES["hca"]), dtype=torch.float32)
    ids = tokens(25)
    with torch.no_grad():
        want = model(ids)
        with torch.autocast("cpu", torch.bfloat16):
            got = model(ids)
    assert got.dtype == torch.float32 and (got - want).abs().mean() < 0.1
    aux = Aux(frozenset({"max_logit"}))
    assert (model(ids, aux=aux) - want).abs().max() < 1e-4
    assert set(aux.max_logit) == {0, 1} and aux.max_logit[0].shape == (4,)
