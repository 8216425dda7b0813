"""Latent attention, its indexer and the sharing of indices against the equations written as loops; decoding against one shot."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.support import loud, segments, tokens
from upslope.config import FrozenDict, UsageError, validated
from upslope.model import mla
from upslope.model.aux import Aux
from upslope.model.cache import Cache
from upslope.model.config import MLA, MTP, Gated, Indexer, Layer, ModelConfig, Reuse, Rope, Yarn
from upslope.model.families import FAMILIES
from upslope.model.init import initialise
from upslope.model.rope import frequencies
from upslope.model.transformer import Transformer
from upslope.model.weights import load_weights, read_tensors, save_weights

ROPE = Rope(base=30.0, layout="interleaved")
YARN = Yarn(factor=4.0, original=16, beta_fast=4.0, mscale=0.7, temperature="softmax")
BASE = MLA(heads=3, q_latent=10, kv_latent=8, nope_dim=5, rope_dim=4, value_dim=6, position=ROPE, eps=1e-3)


def indexer(top_k: int = 4, layout: str = "half", **more: Any) -> Indexer:
    rope = Rope(base=30.0, layout=layout, fraction=4 / 7)  # type: ignore[arg-type]
    return Indexer(heads=6, dim=7, top_k=top_k, rope=rope, eps=1e-2, **more)


def sparse(top_k: int = 4, layout: str = "half", **more: Any) -> MLA:
    return BASE.replace(select=indexer(top_k, layout, **more))


SHARED = BASE.replace(select=Reuse())
MIXERS = {
    "plain": BASE,
    "direct": BASE.replace(q_latent=None),
    "half": BASE.replace(position=Rope(base=30.0)),
    "yarn": BASE.replace(position=ROPE.replace(scaling=YARN)),
    "same_width": BASE.replace(value_dim=9),
    "one_head": BASE.replace(heads=1),
    "sparse": sparse(),
    "sparse_interleaved": sparse(3, "interleaved"),
    "sparse_one": sparse(1),
    "warm_up": sparse(stage="dense"),
}
LENGTHS = (1, 13, 4, 17)


def model_of(*mixers: MLA, dtype: torch.dtype = torch.float64, mtp: MTP | None = None) -> Transformer:
    blocks: FrozenDict[str, Layer] = FrozenDict({f"b{i}": Layer(mixer=m, ffn=Gated(hidden=20)) for i, m in enumerate(mixers)})
    return loud(ModelConfig(d_model=16, blocks=blocks, pattern=tuple(blocks), vocab=64, mtp=mtp), dtype=dtype)  # type: ignore[arg-type]


def mixer_of(model: Transformer, layer: int = 0) -> Any:
    return model.blocks[layer].mixer  # type: ignore[union-attr]


def norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean() + eps) * gain


def turn(x: Tensor, pos: int, rope: Rope) -> Tensor:
    """The leading channels that rotate, as complex numbers times e^{i pos f}."""
    y, width = x.clone(), round(len(x) * rope.fraction)
    for i, f in enumerate(frequencies(rope, width, torch.float64).tolist()):
        a, b = (i, i + width // 2) if rope.layout == "half" else (2 * i, 2 * i + 1)
        z = complex(x[a], x[b]) * complex(math.cos(pos * f), math.sin(pos * f))
        y[a], y[b] = z.real, z.imag
    return y


def queries_latent(m: Any, row: Tensor) -> Tensor:
    return row if m.q_a is None else norm(m.q_a.weight @ row, m.q_a_norm.weight, m.config.eps)


def index_of(m: Any, x: Tensor) -> list[list[float]]:
    """I(t, s) for s ≤ t."""
    f, c = m.indexer, m.indexer.config
    keys = []
    for s, row in enumerate(x):
        k = f.k.weight @ row
        k = (k - k.mean()) / torch.sqrt(((k - k.mean()) ** 2).mean() + c.eps) * f.k_norm.weight + f.k_norm.bias
        keys.append(turn(k, s, c.rope))
    rows = []
    for t, row in enumerate(x):
        qs = [turn(q, t, c.rope) for q in (f.q.weight @ queries_latent(m, row)).view(c.heads, c.dim)]
        w = f.weights.weight @ row / math.sqrt(c.heads)
        rows.append([sum(float(a) * max(0.0, float(q @ k) / math.sqrt(c.dim)) for a, q in zip(w, qs)) for k in keys[: t + 1]])
    return rows


def choice_of(m: Any, x: Tensor) -> list[list[int]]:
    """The tokens that each query reads."""
    if m.indexer is None or m.indexer.config.stage == "dense":
        return [list(range(t + 1)) for t in range(len(x))]
    return [sorted(range(t + 1), key=lambda s: (-row[s], s))[: m.indexer.config.top_k] for t, row in enumerate(index_of(m, x))]


def attention_of(m: Any, x: Tensor, choice: list[list[int]]) -> tuple[Tensor, list[list[list[float]]]]:
    """One segment x (T, d) → outputs (T, d) and, per query and head, logits over its choice."""
    c = m.config
    scale, s = 1 / math.sqrt(c.nope_dim + c.rope_dim), c.position.scaling
    if s is not None:
        scale *= (0.1 * s.mscale * math.log(s.factor) + 1) ** 2
    keys: list[list[Tensor]] = []
    values: list[list[Tensor]] = []
    for t, row in enumerate(x):
        down = m.kv_a.weight @ row
        up = (m.kv_b.weight @ norm(down[: c.kv_latent], m.kv_a_norm.weight, c.eps)).view(c.heads, -1)
        rotary = turn(down[c.kv_latent :], t, c.position)
        keys.append([torch.cat((head[: c.nope_dim], rotary)) for head in up])
        values.append([head[c.nope_dim :] for head in up])
    out, logits = [], []
    last = m.q if m.q_b is None else m.q_b
    for t, row in enumerate(x):
        read, here = [], []
        for h, q in enumerate((last.weight @ queries_latent(m, row)).view(c.heads, -1)):
            q = torch.cat((q[: c.nope_dim], turn(q[c.nope_dim :], t, c.position)))
            z = [float(q @ keys[s][h]) * scale for s in choice[t]]
            w = [math.exp(a) for a in z]
            read.append(torch.stack([a * values[s][h] for a, s in zip(w, choice[t])]).sum(0) / sum(w))
            here.append(z)
        out.append(m.o.weight @ torch.cat(read))
        logits.append(here)
    return torch.stack(out), logits


def through(model: Transformer, ids: Tensor, seg: Tensor | None, aux: Aux | None = None) -> list[tuple[Tensor, Tensor]]:
    """What goes into and comes out of each mixer."""
    caught: list[tuple[Tensor, Tensor]] = []
    hooks = [mixer_of(model, i).register_forward_hook(lambda _, args, out: caught.append((args[0], out))) for i in range(len(model.blocks))]
    with torch.no_grad():
        model(ids, seg, aux=aux)
    for hook in hooks:
        hook.remove()
    return caught


@pytest.mark.parametrize("name", MIXERS)
@torch.no_grad()
def test_the_mixer_is_its_equations(name: str) -> None:
    """Packed segments; keys made or absorbed; every backend; and the largest logit of each head."""
    model, seg = model_of(MIXERS[name]), segments(*LENGTHS)
    m, ids = mixer_of(model), tokens(len(seg))
    wanted: list[Tensor] = []
    largest: list[list[float]] = []
    for x in through(model, ids, seg)[0][0].split(LENGTHS):
        out, logits = attention_of(m, x, choice_of(m, x))
        wanted.append(out)
        largest += [[max(z) for z in heads] for heads in logits]
    for absorb in (None, True, False):
        for backend in ("auto", "eager"):
            m.absorb, model.backend = absorb, backend
            assert (through(model, ids, seg)[0][1] - torch.cat(wanted)).abs().max() < 1e-10
        aux = Aux(frozenset({"max_logit"}))
        model.backend = "auto"
        assert (through(model, ids, seg, aux)[0][1] - torch.cat(wanted)).abs().max() < 1e-10
        assert (aux.max_logit[0] - torch.tensor(largest, dtype=torch.float64).amax(0)).abs().max() < 1e-10


def test_absorbed_gradients_are_the_naive_ones() -> None:
    model, seg = model_of(BASE), segments(*LENGTHS)
    found = []
    for absorb in (False, True):
        mixer_of(model).absorb = absorb
        model.zero_grad()
        model(tokens(len(seg)), seg).square().sum().backward()
        found.append([p.grad.clone() for p in mixer_of(model).parameters()])
    assert all((a - b).norm() < 1e-10 * a.norm() and a.norm() > 1e-3 for a, b in zip(*found))


# ── the cache ──────────────────────────────────────────────────────────────────────────────────────────────────────────

STACKS = {
    "dense": (BASE, MIXERS["direct"], MIXERS["yarn"]),
    "sparse": (sparse(), BASE, sparse(7, "interleaved")),
    "shared": (sparse(5), SHARED, sparse(2), SHARED),
    "warm_up": (MIXERS["warm_up"], SHARED),
}


def stacked(name: str, absorb: bool | None = None) -> Transformer:
    model = model_of(*STACKS[name]).requires_grad_(False)
    for i in range(len(model.blocks)):
        mixer_of(model, i).absorb = absorb
    return model


def feed(model: Transformer, ids: Tensor, cuts: list[int], cache: Cache, slot: int) -> Tensor:
    return torch.cat([model(part, cache=cache.at([slot])) for part in ids.split(cuts)])


@pytest.mark.parametrize("absorb", [None, True, False])
@pytest.mark.parametrize("name", STACKS)
def test_any_pieces_equal_one_shot(name: str, absorb: bool | None) -> None:
    """Token by token, whole, and in chunks that end before, at and after the choice starts to bite."""
    model, ids, n = stacked(name, absorb), tokens(19), 19
    wanted = model(ids)
    for cuts in ([n], [1] * n, *([a, n - a] for a in (1, 4, 5, 6)), [3, 1, 1, 6, 2, 1, 5], [2, 7, 10]):
        cache = Cache(model.config, 2, capacity=3, dtype=torch.float64)
        assert (feed(model, ids, cuts, cache, 1) - wanted).abs().max() < 1e-10, cuts


@pytest.mark.parametrize("name", STACKS)
def test_packed_slots_of_different_lengths_decode_together(name: str) -> None:
    model, streams = stacked(name), [tokens(40, seed=s) for s in range(4)]
    cache = Cache(model.config, 6, dtype=torch.float64)
    slots, at = [4, 0, 5, 2], [0] * 4
    for counts in ((11, 1, 6, 3), (1, 1, 1, 1), (5, 1, 2, 9), (1, 1, 1, 1), (3, 7, 1, 4)):
        parts = [s[a : a + n] for s, a, n in zip(streams, at, counts)]
        out = model(torch.cat(parts), segments(*counts), cache=cache.at(slots)).split(counts)
        at = [a + n for a, n in zip(at, counts)]
        for s, a, h in zip(streams, at, out):
            assert (h - model(s[:a])[-len(h) :]).abs().max() < 1e-10


@pytest.mark.parametrize("name", STACKS)
def test_forks_and_rewinds(name: str) -> None:
    model, ids, other = stacked(name), tokens(20), tokens(20, seed=1)
    cache = Cache(model.config, 3, dtype=torch.float64)
    feed(model, ids[:9], [8, 1], cache, 0)
    cache.fork(0, 2)
    feed(model, other[9:], [1] * 11, cache, 2)
    assert (feed(model, ids[9:], [1, 5, 1, 4], cache, 0) - model(ids)[9:]).abs().max() < 1e-10
    for length in (15, 7, 3, 0):
        assert cache.rewind(2, length)
        text = torch.cat((ids[:9], other[9:]))[:length]
        assert (feed(model, other[:4], [1, 3], cache, 2) - model(torch.cat((text, other[:4])))[length:]).abs().max() < 1e-10
    cache.free(0)
    assert (feed(model, other, [7, 1, 12], cache, 0) - model(other)).abs().max() < 1e-10


def test_the_cache_holds_one_latent_and_one_rotary_key_a_token() -> None:
    cache = Cache(model_of(*STACKS["shared"]).config, 2, capacity=10)
    assert [m.nbytes // (2 * 10 * 4) for m in cache.layers] == [8 + 4 + 7, 8 + 4, 8 + 4 + 7, 8 + 4]


def test_a_decoded_token_reads_its_chosen_tokens_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids, read = stacked("shared"), tokens(12), []

    def spy(q: Tensor, k: Tensor, *rest: Any, **more: Any) -> Tensor:
        read.append((k.shape[1], k.shape[2]))
        return real(q, k, *rest, **more)

    real: Callable[..., Tensor] = mla.core
    monkeypatch.setattr(mla, "core", spy)
    feed(model, ids, [3, 1, 1, 6, 1], Cache(model.config, 1, dtype=torch.float64), 0)
    assert read == [(3, 3)] * 4 + [(1, n) for n in (4, 4, 2, 2, 5, 5, 2, 2, 11, 11, 11, 11, 5, 5, 2, 2)], "heads and tokens; absorbed"


# ── the indexer ────────────────────────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def test_choosing_all_tokens_is_dense_exactly_and_fewer_is_not() -> None:
    ids, seg = tokens(30), segments(17, 13)
    dense, *others = (through(model_of(m), ids, seg)[0][1] for m in (BASE, sparse(17), sparse(99), sparse(stage="dense"), sparse(16)))
    assert all(torch.equal(dense, other) for other in others[:3])
    assert (dense - others[3]).abs().max() > 1e-3


@torch.no_grad()
def test_equal_scores_go_to_the_earlier_token() -> None:
    model = model_of(sparse(3))
    m = mixer_of(model)
    m.indexer.weights.weight.zero_()
    x, out = through(model, tokens(9), None)[0]
    assert (out - attention_of(m, x, [list(range(min(t + 1, 3))) for t in range(9)])[0]).abs().max() < 1e-10


def moved(model: Transformer) -> set[str]:
    """Parameters with a gradient, be it NaN."""
    return {name for name, p in model.named_parameters() if p.grad is not None and (p.grad != 0).any()}


@pytest.mark.parametrize("absorb", [None, True])
@pytest.mark.parametrize("stage", ["dense", "sparse"])
def test_the_indexers_loss_is_its_divergence_and_gradients_keep_apart(stage: str, absorb: bool | None) -> None:
    """Σ_t KL(mean of the heads' probabilities ‖ softmax(I)) by loops, over what the attention reads; who learns from what."""
    model, seg = model_of(sparse(stage=stage), SHARED), segments(*LENGTHS)
    m, ids, wanted = mixer_of(model), tokens(len(seg)), 0.0
    m.absorb = absorb
    for x in through(model, ids, seg)[0][0].split(LENGTHS):
        with torch.no_grad():
            choice, index = choice_of(m, x), index_of(m, x)
            logits = attention_of(m, x, choice)[1]
        for t, seen in enumerate(choice):
            total = sum(math.exp(index[t][s]) for s in seen)
            for j, s in enumerate(seen):
                p = sum(math.exp(z[j]) / sum(map(math.exp, z)) for z in logits[t]) / len(logits[t])
                wanted += p * math.log(p / (math.exp(index[t][s]) / total))
    aux = Aux(frozenset({"index"}))
    out = model(ids, seg, aux=aux)
    assert set(aux.index) == {0}
    loss, count = aux.index[0]
    assert count == len(ids) and abs(loss.item() - wanted) < 1e-9
    own = {name for name, _ in model.named_parameters() if ".indexer." in name}
    loss.backward(retain_graph=True)
    assert moved(model) == own
    model.zero_grad()
    out.square().sum().backward()
    assert moved(model) == {name for name, _ in model.named_parameters()} - own - {"head.weight"}
    model.zero_grad()
    model(ids, seg).square().sum().backward()
    assert not moved(model) & own


def test_the_loss_in_pieces_on_a_cache_is_that_of_one_shot() -> None:
    model, ids = model_of(sparse()).requires_grad_(False), tokens(33)
    whole, pieces, cache = (
        (Aux(frozenset({"index"})) for _ in range(2)),
        Aux(frozenset({"index"})),
        Cache(model.config, 2, dtype=torch.float64),
    )
    first, second = whole
    model(ids[:20], aux=first)
    model(ids[20:], aux=second)
    for a, b in ((ids[:5], ids[20:21]), (ids[5:6], ids[21:31]), (ids[6:7], ids[31:32]), (ids[7:20], ids[32:])):
        model(torch.cat((a, b)), segments(len(a), len(b)), cache=cache.at([1, 0]), aux=pieces)
    (a, n), (b, more), (c, all_) = first.index[0], second.index[0], pieces.index[0]
    assert all_ == n + more == 33
    assert abs(a + b - c) < 1e-10


def recall_of(model: Transformer, top_k: int = 4) -> float:
    """Attention mass on the top_k of the indexer, as a share of the mass on the best top_k; on text that nothing trained on."""
    twin, caught, best = model_of(sparse(stage="dense")), 0.0, 0.0
    twin.load_state_dict(model.state_dict())
    for seed in (7, 8):
        x = through(twin, tokens(24, seed=seed), None)[0][0]
        with torch.no_grad():
            index, logits = index_of(mixer_of(twin), x), attention_of(mixer_of(twin), x, choice_of(mixer_of(twin), x))[1]
        for row, heads in zip(index[8:], logits[8:]):
            p = torch.tensor(heads).softmax(-1).mean(0)
            caught += float(p[torch.tensor(row).topk(top_k).indices].sum())
            best += float(p.topk(top_k).values.sum())
    return caught / best


def test_a_warm_up_teaches_the_indexer_where_the_attention_looks() -> None:
    """100 steps on the dense stage, each on new text: the divergence falls, and the attention's mass is found on new text too."""
    model = model_of(sparse(stage="dense"), dtype=torch.float32)
    fresh, f = initialise(Transformer(model.config), 0).state_dict(), mixer_of(model).indexer
    model.load_state_dict({**model.state_dict(), **{n: t for n, t in fresh.items() if ".indexer." in n}})
    before = {name: p.clone() for name, p in model.named_parameters()}
    start, losses, opt = recall_of(model), [], torch.optim.Adam(f.parameters(), lr=3e-2)
    for step in range(100):
        aux = Aux(frozenset({"index"}))
        model(tokens(96, seed=100 + step), segments(32, 32, 32), aux=aux)
        loss, count = aux.index[0]
        opt.zero_grad()
        (loss / count).backward()
        opt.step()
        losses.append(float(loss.detach()) / count)
    assert sum(losses[-10:]) < 0.6 * sum(losses[:1]) * 10
    assert start < 0.45 and recall_of(model) > 0.65
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if ".indexer." not in name)


@torch.no_grad()
def test_a_shared_index_is_the_one_of_the_nearest_layer_below() -> None:
    model, seg = model_of(sparse(5), sparse(3), BASE, SHARED, SHARED), segments(*LENGTHS)
    caught = through(model, tokens(len(seg)), seg)
    for i in (3, 4):
        ways = []
        for source in (1, 0):
            m, chooser = mixer_of(model, i), mixer_of(model, source)
            parts = zip(caught[source][0].split(LENGTHS), caught[i][0].split(LENGTHS))
            ways.append(torch.cat([attention_of(m, x, choice_of(chooser, below))[0] for below, x in parts]))
        assert (caught[i][1] - ways[0]).abs().max() < 1e-10
        assert (caught[i][1] - ways[1]).abs().max() > 1e-3, "the choice matters"
    own = model_of(sparse(5), sparse(3), BASE, sparse(3), SHARED)
    own.load_state_dict(model.state_dict(), strict=False)
    assert (through(own, tokens(len(seg)), seg)[3][1] - caught[3][1]).abs().max() > 1e-3


def test_predictors_share_the_index_too() -> None:
    model = model_of(sparse(3), SHARED, mtp=MTP(depth=2, block="b1"))
    aux = Aux(frozenset({"mtp"}))
    model(tokens(11), aux=aux)
    assert len(aux.mtp) == 2 and all(h.isfinite().all() for h in aux.mtp)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"blocks": {"b0": Layer(mixer=SHARED, ffn=Gated(hidden=4))}}, "reuses an index, but no layer below has an indexer"),
        (
            {
                "blocks": {"b0": Layer(mixer=BASE, ffn=Gated(hidden=4)), "b1": Layer(mixer=SHARED, ffn=Gated(hidden=4))},
                "mtp": MTP(block="b1"),
            },
            "layer 1 reuses an index",
        ),
    ],
)
def test_an_index_that_nothing_made_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        validated(ModelConfig, {"d_model": 16, "pattern": ["b0"], "vocab": 64, **change}, "model")


def test_an_indexer_must_fit() -> None:
    with pytest.raises(ValueError, match="give q_latent"):
        BASE.replace(q_latent=None, select=indexer())
    with pytest.raises(ValueError, match="rotates an even number"):
        indexer().replace(dim=9)


# ── precision, initial values, names ───────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def test_under_autocast_results_stay_near() -> None:
    """Matrices run in bfloat16, whichever way attention is computed."""
    for m in (BASE, MIXERS["direct"], sparse(99)):
        model, ids = model_of(m, dtype=torch.float32), tokens(25)
        wanted = model(ids)
        for absorb in (False, True):
            mixer_of(model).absorb = absorb
            with torch.autocast("cpu", torch.bfloat16):
                got = model(ids)
            assert got.dtype == torch.float32 and 1e-4 < (got - wanted).abs().mean() < 0.05


def test_under_autocast_scores_and_their_loss_are_computed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids, read = model_of(sparse(), dtype=torch.float32), tokens(25), []

    def spy(*of: Tensor) -> Tensor:
        read.append((*of, real(*of)))
        return read[-1][-1]

    real: Callable[..., Tensor] = mla.scores
    monkeypatch.setattr(mla, "scores", spy)
    aux, f = Aux(frozenset({"index"})), mixer_of(model).indexer
    with torch.autocast("cpu", torch.bfloat16):
        x = through(model, ids, None)[0][0]
        read.clear()
        model(ids, aux=aux)
    q, k, weights, score = read[0]
    assert torch.equal(score, real(q, k, weights)) and score.requires_grad
    assert torch.equal(weights[0, :, :, 0].T, f.weights(x) * 6**-0.5)
    assert aux.index[0][0].dtype == torch.float32
    read.clear()
    model(ids)
    assert not read[0][-1].requires_grad, "nothing would learn from it"


def test_every_weight_is_drawn_and_norms_start_neutral() -> None:
    model = Transformer(model_of(*STACKS["shared"], MIXERS["direct"]).config)
    tensors = initialise(model, 0).tensors()
    assert all(t.isfinite().all() for t in tensors.values())
    assert (tensors["blocks.0.mixer.indexer.k_norm.weight"] == 1).all() and not tensors["blocks.0.mixer.indexer.k_norm.bias"].any()
    assert not tensors["blocks.0.mixer.o.weight"].any() and tensors["blocks.0.mixer.indexer.weights.weight"].std() > 0.1


HUB: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 12,
    "moe_intermediate_size": 8,
    "num_hidden_layers": 11,
    "num_attention_heads": 2,
    "q_lora_rank": 6,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "routed_scaling_factor": 2.5,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "index_n_heads": 2,
    "index_head_dim": 8,
    "index_topk": 3,
}


@pytest.mark.parametrize(
    ("entries", "letters"),
    [
        ({}, "FFFFFFFFFFF"),
        ({"index_topk_freq": 4}, "FFSSSFSSSFS"),
        ({"index_topk_freq": 2, "index_skip_topk_offset": 3}, "FFFSFSFSFSF"),
        ({"index_topk_pattern": "FSSFSSFSSFS"}, "FSSFSSFSSFS"),
    ],
)
def test_where_glm_has_indexers(entries: dict[str, Any], letters: str) -> None:
    config = FAMILIES["glm_moe_dsa"].read({**HUB, **entries})
    found = [layer.mixer.select for layer in config.layers()]  # type: ignore[union-attr]
    assert "".join("F" if isinstance(s, Indexer) else "S" for s in found) == letters
    assert all(s.rope.layout == "interleaved" and s.rope.width(s.dim) == 4 for s in found if isinstance(s, Indexer))


def test_a_module_for_further_tokens_has_the_hubs_names(tmp_path: Any) -> None:
    data = {**HUB, "num_hidden_layers": 3, "first_k_dense_replace": 1}
    config = FAMILIES["deepseek_v32"].read({k: v for k, v in data.items() if "skip" not in k})
    model = loud(config.replace(mtp=MTP(depth=1, block=config.pattern[-1][0])))
    save_weights(model, None, tmp_path)
    found = {n.removeprefix("model.layers.3.") for n in read_tensors(tmp_path) if n.startswith("model.layers.3.")}
    assert {"enorm.weight", "hnorm.weight", "eh_proj.weight", "shared_head.norm.weight", "self_attn.indexer.wq_b.weight"} <= found
    assert {"mlp.gate.e_score_correction_bias", "mlp.experts.3.down_proj.weight", "input_layernorm.weight"} <= found
    again = load_weights(model.config, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.tensors().values(), again.tensors().values()))
