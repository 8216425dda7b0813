"""What a model costs, against counting: modules on the meta device, torch's operation counter, loops over tokens, and published ratios."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.model.support import tokens
from upslope.model.cache import Cache
from upslope.model.config import CSA, HCA, MLA, Attention, Compressed, Indexer, Lightning, Mamba2, Mixer, ModelConfig, Nope, Nothing, Rope
from upslope.model.cost import BYTES, attention_flops, cache_elements, flops, kv_bytes, mtp, params, published, trunk, weight_bytes
from upslope.model.init import initialise
from upslope.model.transformer import Transformer
from upslope.recipes.labs import PRESETS, get
from upslope.recipes.scale import scale

each = pytest.mark.parametrize("name", PRESETS)
MILLION = 2**20


def once(config: ModelConfig) -> ModelConfig:
    """Each block of the pattern once, in order of first appearance."""
    return config.replace(pattern=tuple(dict.fromkeys(name for name, _ in config.pattern)))


@each
def test_parameters_are_those_of_the_modules_at_real_size(name: str) -> None:
    config = get(name).model
    short = once(config)
    held: Counter[str] = Counter()
    for path, p in Transformer(short, device="meta").named_parameters():
        block = re.match(r"blocks\.(\d+)\.", path)
        held[short.pattern[int(block[1])][0] if block else "rest"] += p.numel()
    repeats: Counter[str] = Counter()
    for block, repeat in config.pattern:
        repeats[block] += repeat
    assert params(config) == held["rest"] + sum(repeat * held[block] for block, repeat in repeats.items())


@each
def test_parameters_and_cache_are_those_of_the_modules_scaled_down(name: str) -> None:
    config = scale(get(name).model, "tiny", context=64).replace(vocab=16)
    assert params(config) == sum(p.numel() for p in Transformer(config, device="meta").tensors().values() if p.requires_grad)
    held = Cache(config, 1, 48, slack=0)
    assert held.nbytes >= kv_bytes(config, 48) > 0
    if not any(getattr(b.mixer, "window", None) for b in config.blocks.values()):
        assert held.nbytes == kv_bytes(config, 48)


def test_totals_leave_mtp_out_and_count_an_untied_embedding_twice() -> None:
    v3, gemma = get("deepseek_v3").model, get("gemma3_27b").model
    assert published(v3)[0] == params(v3) - mtp(v3).total == trunk(v3).total + 2 * 129_280 * 7168
    assert published(gemma)[0] == params(gemma) == trunk(gemma).total + 262_144 * 5376
    inactive = 58 * (256 - 8) * 3 * 7168 * 2048
    assert published(v3)[0] - published(v3)[1] == inactive


# ── operations ─────────────────────────────────────────────────────────────────────────────────────────────────────────

PLAIN = Attention(heads=4, kv_heads=2, head_dim=8, value_dim=6, position=Nope())
LATENT = MLA(heads=4, q_latent=16, kv_latent=16, nope_dim=8, rope_dim=4, value_dim=6)
INDEX = Indexer(heads=3, dim=8, top_k=5, rope=Rope(fraction=0.5))
SHORT = Compressed(heads=4, head_dim=8, q_latent=16, window=6, history=None, position=Rope(), groups=2, group_dim=8)
HISTORY = CSA(rate=4, index_heads=3, index_dim=8, top_k=5)


def brute(m: Mixer, t: int) -> float:
    """Operations of the token at position t (from 1), by listing the keys that it sees."""
    past = range(1, t + 1)
    if isinstance(m, Attention):
        keys = [s for s in past if m.window is None or t - s < m.window]
        return len(keys) * m.heads * (2 * m.head_dim + 2 * m.value_width)
    if isinstance(m, MLA):
        scored = len(past) * m.select.heads * 2 * m.select.dim if isinstance(m.select, Indexer) else 0
        few = isinstance(m.select, Indexer) and m.select.stage == "sparse"
        keys = list(past)[: m.select.top_k] if few else list(past)  # type: ignore[union-attr]
        return scored + len(keys) * m.heads * (2 * (m.nope_dim + m.rope_dim) + 2 * m.value_dim)
    assert isinstance(m, Compressed)
    keys, scored, h = [s for s in past if t - s < m.window], 0, m.history
    entries = [] if h is None else [s for s in past if s % h.rate == 0]
    if isinstance(h, CSA):
        scored = len(entries) * h.index_heads * 2 * h.index_dim
        entries = entries[: h.top_k] if h.stage == "sparse" else entries
    return scored + (len(keys) + len(entries)) * m.heads * 4 * m.head_dim


@pytest.mark.parametrize("length", [1, 5, 64, 101])
@pytest.mark.parametrize(
    "mixer",
    [
        PLAIN,
        PLAIN.replace(window=1),
        PLAIN.replace(window=7),
        LATENT,
        LATENT.replace(select=INDEX),
        LATENT.replace(select=INDEX.replace(stage="dense")),
        SHORT,
        SHORT.replace(history=HCA(rate=16)),
        SHORT.replace(history=HISTORY),
        SHORT.replace(history=HISTORY.replace(stage="dense")),
    ],
)
def test_operations_of_attention_by_listing_keys(mixer: Mixer, length: int) -> None:
    at = [brute(mixer, t) for t in range(1, length + 1)]
    assert attention_flops(mixer, length) == pytest.approx(sum(at) / length, rel=1e-12)
    assert attention_flops(mixer, length, last=True) == at[-1]


def test_states_cost_the_same_at_any_length() -> None:
    for mixer in (Lightning(heads=4, head_dim=8), Mamba2(heads=4, head_dim=8, state=16, groups=2)):
        assert attention_flops(mixer, 10) == attention_flops(mixer, 10_000) == attention_flops(mixer, 10, last=True) > 0
    assert attention_flops(Nothing(), 10) == 0


@pytest.mark.parametrize("name", ["kimi_k2", "llama3_8b", "nemotron3_nano", "minimax_m1"])
def test_operations_of_matrices_by_torchs_counter(name: str) -> None:
    """Between the matrices alone and those with all of the square of attention: torch counts what a kernel happens to compute."""
    config = scale(get(name).model, "tiny", context=64).replace(vocab=128)
    config = config.replace(mtp=None, blocks={n: b for n, b in config.blocks.items() if n in dict(config.pattern)})
    model = initialise(Transformer(config), 0)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.logits(model(tokens(64, 128)))
    mixing = sum(attention_flops(layer.mixer, 64) for layer in config.layers())
    matrices = flops(config, 64) - mixing
    assert matrices * 0.97 <= counter.get_total_flops() / 64 <= matrices + 4 * mixing + 1


def test_operations_at_a_million_tokens_are_in_the_published_ratios() -> None:
    """A token's, at that position: DeepSeek-V4-Pro 27 % of V3.2's, GLM-5 2.9 times GLM-5.2's."""

    def at(name: str) -> float:
        return flops(get(name).model, MILLION, last=True)

    assert at("deepseek_v4_pro") / at("deepseek_v32") == pytest.approx(0.27, abs=0.01)
    assert at("glm_5") / at("glm_52") == pytest.approx(2.9, rel=0.05)


def test_a_shared_index_costs_its_attention_only() -> None:
    own, shared = get("glm_5").model, get("glm_52").model
    indexers = 78 - sum(repeat for block, repeat in shared.pattern if block.startswith("full"))
    scoring = 2 * 32 * 128 * (1000 + 1) / 2
    weights = 2 * (2048 * 32 * 128 + 6144 * (128 + 32))
    assert flops(own, 1000) - flops(shared, 1000) == pytest.approx(indexers * (scoring + weights))


# ── bytes ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_caches_of_real_models_by_hand() -> None:
    v3, gemma, hunyuan = get("deepseek_v3").model, get("gemma3_27b").model, get("hunyuan_large").model
    assert cache_elements(v3, 1000) == 1000 * 61 * (512 + 64)
    assert cache_elements(gemma, 10_000) == 2 * 16 * 128 * (10 * 10_000 + 52 * 1024)
    assert (
        cache_elements(hunyuan, 1000) == 1000 * 64 * 2 * 80 * 80 // 20
    )  # 5 % of 80 heads' own keys and values: 1/10 by groups, 1/2 by pairs
    nano = get("nemotron3_nano").model
    assert cache_elements(nano, 1000) == 1000 * 6 * 2 * 2 * 128 + 23 * (64 * 64 * 128 + (64 * 64 + 2 * 8 * 128) * 3)
    v4, v32 = get("deepseek_v4_pro").model, get("deepseek_v32").model
    assert cache_elements(v4, MILLION) / cache_elements(v32, MILLION) == pytest.approx(0.10, abs=0.02)  # the report's 10 % mixes precisions


def test_bytes_of_weights() -> None:
    v3, oss = get("deepseek_v3").model, get("gpt_oss_120b").model
    assert weight_bytes(v3, "fp32") == 4 * params(v3) == 2 * weight_bytes(v3, "bf16")
    bits = {"fp8": 8 + 32 / 128**2, "mxfp4": 4 + 8 / 32, "nvfp4": 4 + 8 / 16}
    assert {k: 8 * v for k, v in BYTES.items() if k in bits} == pytest.approx(bits)
    assert 61 < weight_bytes(oss, "mxfp4") / 1e9 < 66 and weight_bytes(oss, "bf16") > 200e9  # it is made for one GPU of 80 GB
    for precision in bits:
        assert weight_bytes(v3, precision) < weight_bytes(v3, "bf16")  # type: ignore[arg-type]


def test_costs_and_presets_load_no_torch() -> None:
    code = (
        "from upslope.recipes.labs import PRESETS, get; from upslope.recipes.scale import scale; from upslope.model.cost import published;"
        "import upslope.recipes.labs.recipe, upslope.recipes.labs.page, sys;"
        "[published(scale(get(n).model, '1M')) for n in PRESETS]; sys.exit(bool({'torch', 'numba', 'duckdb'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
