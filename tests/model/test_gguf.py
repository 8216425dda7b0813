"""GGUF files, read by the gguf package and by transformers' own reader of them. llama.cpp itself is not at hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.cases_dense import LINEAR, LLAMA3, PLAIN, YARN
from tests.model.llama_cpp import File, forward
from tests.model.parity import Case, build, our_logits, sequences, their_logits
from tests.model.support import SMALL, loud, tokenizer, tokens
from upslope.config import UsageError
from upslope.machine.store import Store
from upslope.model.config import MTP, ModelConfig, Nope, Rope, Tied, Yarn, dense
from upslope.model.gguf import arch_of, export_gguf, from_gguf, read_gguf, round_off, their_config
from upslope.model.weights import read_tensors, save_weights

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

LAYERS = {"num_hidden_layers": 2, "rope_parameters": PLAIN}
MOE = {"moe_intermediate_size": 24, "num_experts_per_tok": 3, "head_dim": 16}
GEMMA = {"head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 16}
LOCAL = {"rope_type": "default", "rope_theta": 10_000.0}
FIXED = {**YARN, "beta_fast": 32.0, "beta_slow": 1.0, "original_max_position_embeddings": 1024}  # the ramp's ends as llama.cpp has them
LATENT = {
    "num_key_value_heads": 4, "q_lora_rank": 20, "kv_lora_rank": 12, "qk_nope_head_dim": 10, "qk_rope_head_dim": 6, "v_head_dim": 14,
    "moe_intermediate_size": 24, "num_experts_per_tok": 3, "n_routed_experts": 8, "n_shared_experts": 2, "routed_scaling_factor": 1.7,
    "first_k_dense_replace": 1, "n_group": 4, "topk_group": 2, "rms_norm_eps": 1e-6,
}  # fmt: skip
READ = (  # by transformers too
    Case("g_llama", "llama", {**LAYERS, "head_dim": 12}),
    Case("g_llama_tied", "llama", {**LAYERS, "num_key_value_heads": 4, "tie_word_embeddings": True}),
    Case("g_qwen2", "qwen2", LAYERS),
    Case("g_qwen3", "qwen3", {**LAYERS, "head_dim": 16}),
    Case("g_qwen3_moe", "qwen3_moe", {**LAYERS, **MOE, "num_experts": 6, "norm_topk_prob": True}),
    Case(
        "g_minimax_m2",
        "minimax_m2",
        {**LAYERS, "num_experts_per_tok": 2, "num_local_experts": 6, "head_dim": 16, "rotary_dim": 8}
        | {"rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5}},
    ),
    Case("g_gemma2", "gemma2", {**LAYERS, **GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    Case(
        "g_gemma3",
        "gemma3_text",
        {**GEMMA, "num_hidden_layers": 8, "rope_parameters": {"full_attention": LINEAR, "sliding_attention": LOCAL}},
    ),
)
WRITTEN = (
    *READ,
    Case("g_llama3", "llama", {**LAYERS, "rope_parameters": {**LLAMA3, "original_max_position_embeddings": 16}}),
    Case("g_yarn", "qwen3", {**LAYERS, "head_dim": 16, "rope_parameters": FIXED}),
    Case("g_olmo2", "olmo2", LAYERS),
    Case(
        "g_gpt_oss",
        "gpt_oss",
        {**LAYERS, "num_local_experts": 5, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 5, "swiglu_limit": 7.0}
        | {"rope_parameters": FIXED},
    ),
    Case(
        "g_deepseek", "deepseek_v3", {**LATENT, "num_hidden_layers": 3, "rope_parameters": {**FIXED, "mscale": 1.5, "mscale_all_dim": 1.5}}
    ),
)
read = pytest.mark.parametrize("case", READ, ids=lambda c: c.name)
written = pytest.mark.parametrize("case", WRITTEN, ids=lambda c: c.name)


def file_of(case: Case, folder: Path) -> Path:
    file = folder / "model.gguf"
    export_gguf(build(case).ours, None, file, "f32")
    return file


def fields(file: Path) -> dict[str, Any]:
    return {name: f.contents() for name, f in gguf.GGUFReader(file).fields.items()}


# ── the independent reader ─────────────────────────────────────────────────────────────────────────────────────────────


@read
def test_transformers_reads_the_same_model(case: Case, tmp_path: Path) -> None:
    """Its reader undoes the conventions by its own code; with the file's weights the logits are those of the model before ours."""
    from upslope.cli.models import read_in_transformers

    pair, file = build(case), file_of(case, tmp_path)
    config = transformers.AutoConfig.for_model(case.kind, **their_config(pair.ours.config))
    again = read_in_transformers(file, config)
    with torch.no_grad():
        wanted = their_logits(pair.theirs)
        assert float(wanted.std()) > 0.3
        assert float((their_logits(again) - wanted).abs().max()) <= 2e-5
        assert float((our_logits(from_gguf(file, pair.ours.config)) - our_logits(pair.ours)).abs().max()) <= 2e-5


@written
def test_what_llama_cpp_computes_from_the_file_is_the_model(case: Case, tmp_path: Path) -> None:
    """Its graphs, written down in `llama_cpp.py`, on nothing but the file: so the metadata are complete and mean what they should."""
    theirs, _, _ = build(case)
    file, row = file_of(case, tmp_path), sequences()[0]
    with torch.no_grad():
        wanted = theirs(row[None], use_cache=False).logits[0]
        assert float((forward(File(file), row) - wanted).abs().max()) <= 5e-5


def test_every_value_in_the_metadata_counts(tmp_path: Path) -> None:
    """That comparison can fail: another value of any of these shows."""
    changed: dict[str, dict[str, Any]] = {
        "g_deepseek": {
            "rope.freq_base": 60.0,
            "rope.scaling.factor": 8.0,
            "rope.scaling.original_context_length": 64,
            "expert_gating_func": 1,
            "rope.scaling.yarn_log_multiplier": 0.3,
            "attention.layer_norm_rms_epsilon": 0.05,
            "expert_used_count": 2,
            "expert_weights_scale": 1.0,
            "expert_weights_norm": False,
            "expert_group_used_count": 1,
            "expert_group_count": 2,
        },
        "g_gemma2": {"attn_logit_softcapping": 4.0, "final_logit_softcapping": 4.0, "attention.sliding_window": 6},
        "g_minimax_m2": {"rope.dimension_count": 16, "expert_gating_func": 1},
    }
    row = sequences()[0]
    for name, values in changed.items():
        case = next(c for c in WRITTEN if c.name == name)
        f = File(file_of(case, tmp_path))
        with torch.no_grad():
            wanted = forward(f, row)
            for key, value in values.items():
                before = f.fields[f"{f.arch}.{key}"]
                f.fields[f"{f.arch}.{key}"] = value
                assert float((forward(f, row) - wanted).abs().max()) > 1e-3, key
                f.fields[f"{f.arch}.{key}"] = before


def test_a_wrong_convention_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison can fail: rows of q and k left as they are, gains without their one."""
    from upslope.cli.models import read_in_transformers
    from upslope.model import gguf as ours

    for case, change in ((READ[0], {"pairs": False}), (next(c for c in READ if c.kind == "gemma2"), {"plus": 0.0})):
        pair = build(case)
        config = transformers.AutoConfig.for_model(case.kind, **their_config(pair.ours.config))
        monkeypatch.setitem(ours.ARCHS, case.kind, ours.ARCHS[case.kind]._replace(**change))
        file = file_of(case, tmp_path)
        with torch.no_grad():
            assert float((their_logits(read_in_transformers(file, config)) - their_logits(pair.theirs)).abs().max()) > 1e-2


# ── names, values, metadata ────────────────────────────────────────────────────────────────────────────────────────────


def wanted_tensors(case: Case) -> dict[str, Tensor]:
    """What the hub's tensors are called by gguf's own map for the architecture, experts stacked, without llama.cpp's changes of values."""
    _, arch = arch_of(build(case).ours.config)
    key = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == arch.name)
    names = gguf.get_tensor_name_map(key, case.config["num_hidden_layers"])
    out: dict[str, Any] = {}
    for theirs, tensor in sorted(read_tensors(build(case).folder).items()):
        name = theirs.replace("e_score_correction_bias", "e_score_correction.bias").replace("sinks", "sinks.weight")
        parts = {name: tensor}
        if "gate_up_proj" in name or ("experts.down_proj" in name and case.kind == "gpt_oss"):
            stem, leaf = name.removesuffix("_bias"), "bias" if name.endswith("_bias") else "weight"
            whole = tensor if leaf == "bias" else tensor.mT
            parts = {f"{stem}.{leaf}": whole}
            if "gate_up_proj" in name:
                parts = {f"{stem.replace('gate_up', n)}.{leaf}": whole[:, i::2] for i, n in enumerate(("gate", "up"))}
        elif ".experts." in name:
            head, _, rest = name.partition(".experts.")
            number, _, rest = rest.partition(".")
            out.setdefault(names.get_name(f"{head}.experts.{rest.removesuffix('.weight')}") + ".weight", {})[int(number)] = tensor
            continue
        for stem, value in parts.items():
            stem, _, leaf = stem.rpartition(".")
            out[f"{names.get_name(stem)}.{leaf}"] = value
    return {n: torch.stack([t[i] for i in range(len(t))]) if isinstance(t, dict) else t for n, t in out.items()}


@written
def test_names_shapes_and_values_are_those_of_the_map(case: Case, tmp_path: Path) -> None:
    file = file_of(case, tmp_path)
    given, wanted, config = read_gguf(file), wanted_tensors(case), build(case).ours.config
    _, arch = arch_of(config)
    key = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == arch.name)
    known = {gguf.TENSOR_NAMES[t].split(".")[-1] for t in gguf.MODEL_TENSORS[key]}
    assert {name.rsplit(".", 1)[0].split(".")[-1] for name in given} <= known, "the architecture has no such tensor"
    given.pop("rope_freqs.weight", None)
    for i in range(config.depth):  # MLA's up-projection in two
        if (whole := wanted.pop(f"blk.{i}.attn_kv_b.weight", None)) is not None:
            per_head = whole.view(4, 10 + 14, 12)
            keys, values = given.pop(f"blk.{i}.attn_k_b.weight"), given.pop(f"blk.{i}.attn_v_b.weight")
            q, c = torch.randn(4, 10), torch.randn(12)
            absorbed = (keys @ q[..., None])[..., 0] @ c  # (W_UK' q) · c
            assert torch.allclose(absorbed, (q * (per_head[:, :10] @ c)).sum(-1), atol=1e-5)
            assert torch.allclose(values @ c, per_head[:, 10:] @ c, atol=1e-5)
    assert set(given) == set(wanted)
    for name, tensor in wanted.items():
        if case.kind.startswith("gemma") and "norm" in name:
            tensor = tensor + 1
        if case.kind == "llama" and (".attn_q." in name or ".attn_k." in name):
            heads = case.entries["num_attention_heads" if ".attn_q." in name else "num_key_value_heads"]
            width = tensor.shape[0] // heads
            order = [h * width + half * (width // 2) + i for h in range(heads) for i in range(width // 2) for half in (0, 1)]
            tensor = tensor[order]
        assert torch.equal(given[name], tensor), name


@written
def test_metadata_is_complete(case: Case, tmp_path: Path) -> None:
    got, e = fields(file_of(case, tmp_path)), case.entries
    arch = got["general.architecture"]

    def of(key: str) -> Any:
        return got.get(f"{arch}.{key}")

    assert got["general.file_type"] == 0 and got["general.quantization_version"] == 2 and got["general.name"]
    assert of("block_count") == e["num_hidden_layers"] and of("context_length") == 64
    assert of("embedding_length") == 32 and of("vocab_size") == 80 and of("attention.head_count") == 4
    assert of("attention.layer_norm_rms_epsilon") == pytest.approx(e["rms_norm_eps"])
    rope = e["rope_parameters"]
    rope = rope.get("full_attention", rope)
    assert of("rope.freq_base") == rope["rope_theta"]
    scaled = {"linear": "linear", "yarn": "yarn"}.get(rope["rope_type"])
    assert of("rope.scaling.type") == scaled
    assert of("rope.scaling.factor") == (rope["factor"] if scaled else None)
    assert of("rope.scaling.original_context_length") == (1024 if scaled == "yarn" else None)
    if case.kind == "deepseek_v3":
        expected = {
            "attention.head_count_kv": 1, "attention.q_lora_rank": 20, "attention.kv_lora_rank": 12, "rope.dimension_count": 6,
            "attention.key_length": 18, "attention.value_length": 12, "attention.key_length_mla": 16, "attention.value_length_mla": 14,
            "feed_forward_length": 48, "expert_feed_forward_length": 24, "expert_count": 8, "expert_used_count": 3,
            "expert_shared_count": 2, "leading_dense_block_count": 1, "expert_weights_norm": True, "expert_gating_func": 2,
            "expert_weights_scale": pytest.approx(1.7), "expert_group_count": 4, "expert_group_used_count": 2,
            "rope.scaling.yarn_log_multiplier": pytest.approx(0.15),
        }  # fmt: skip
    else:
        width = e.get("head_dim") or 8
        expected = {"attention.head_count_kv": e["num_key_value_heads"], "attention.key_length": width, "attention.value_length": width}
        expected |= {"rope.dimension_count": e.get("rotary_dim", width), "attention.sliding_window": e.get("sliding_window")}
        expected |= {"expert_gating_func": 2 if case.kind == "minimax_m2" else None}
        expected |= {"attn_logit_softcapping": e.get("attn_logit_softcapping"), "final_logit_softcapping": e.get("final_logit_softcapping")}
        experts = e.get("num_experts", e.get("num_local_experts"))
        hidden = e.get("moe_intermediate_size", 48)
        expected |= {"expert_count": experts, "expert_used_count": e.get("num_experts_per_tok"), "feed_forward_length": hidden}
        expected |= {"expert_feed_forward_length": hidden if experts else None}
    assert {k: of(k) for k in expected} == expected


def test_llama3_scaling_is_a_tensor_of_divisors(tmp_path: Path) -> None:
    case = next(c for c in WRITTEN if c.name == "g_llama3")
    divisors = read_gguf(file_of(case, tmp_path))["rope_freqs.weight"].tolist()
    width, original, factor, low, high = 8, 16, 4.0, 1.0, 3.0
    for i, divisor in enumerate(divisors):
        wavelength = 2 * math.pi * 40.0 ** (2 * i / width)
        if wavelength < original / high:
            wanted = 1.0
        elif wavelength > original / low:
            wanted = factor
        else:
            smooth = (original / wavelength - low) / (high - low)
            wanted = 1 / ((1 - smooth) / factor + smooth)
        assert divisor == pytest.approx(wanted, rel=1e-5)
    assert len(divisors) == width // 2 and len({round(d, 3) for d in divisors}) > 2


# ── types ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stored", ["f32", "f16", "bf16", "q8_0"])
def test_types_of_tensors_and_rounding(stored: Any, tmp_path: Path) -> None:
    model = loud(dense(64, 2, 4, 2, 16, 40, context=64, vocab=64))
    file = tmp_path / "model.gguf"
    export_gguf(model, None, file, stored)
    kinds = {t.name: t.tensor_type.name.lower() for t in gguf.GGUFReader(file).tensors}
    assert kinds.pop("blk.0.ffn_down.weight") == ("f16" if stored == "q8_0" else stored), "rows of 40 are no blocks of 32"
    assert kinds["blk.1.ffn_down.weight"] == ("f16" if stored == "q8_0" else stored)
    assert {v for n, v in kinds.items() if "norm" in n} == {"f32"}
    assert {v for n, v in kinds.items() if "norm" not in n and "down" not in n} == {stored}
    assert fields(file)["general.file_type"] == {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7}[stored]
    back = from_gguf(file, model.config)
    assert round_off(model, back, stored) is None
    off = max(float((a - b).abs().max()) for a, b in zip(model.state_dict().values(), back.state_dict().values()))
    assert (off == 0) == (stored == "f32")
    with torch.no_grad():
        back.blocks[1].ffn.up.weight[3, 3] += 0.1  # type: ignore[union-attr,index,operator]
    assert round_off(model, back, stored) == "blocks.1.ffn.up.weight"


def test_routers_and_biases_stay_wide(tmp_path: Path) -> None:
    case = next(c for c in WRITTEN if c.name == "g_gpt_oss")
    export_gguf(build(case).ours, None, tmp_path / "m.gguf", "f16")
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert {kinds[f"blk.0.{n}"] for n in ("ffn_gate_inp.weight", "ffn_gate_exps.bias", "attn_q.bias", "attn_sinks.weight")} == {"F32"}
    assert kinds["blk.0.ffn_gate_exps.weight"] == "F16"


def test_values_that_cannot_be_stored_are_refused(tmp_path: Path) -> None:
    model = loud(SMALL)
    with torch.no_grad():
        model.embed.weight[0, 0] = 1e5
        with pytest.raises(UsageError, match="beyond F16's range"):
            export_gguf(model, None, tmp_path / "m.gguf", "f16")
        export_gguf(model, None, tmp_path / "m.gguf", "bf16")
        model.embed.weight[0, 0] = math.nan
        with pytest.raises(ValueError, match="NaN"):
            export_gguf(model, None, tmp_path / "n.gguf", "f32")
    assert not (tmp_path / "n.gguf").exists()


def test_equal_weights_give_equal_bytes(tmp_path: Path) -> None:
    model = loud(SMALL.replace(vocab=tokenizer().vocab_size))
    for name in "ab":
        export_gguf(model, tokenizer(), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_prediction_modules_are_left_out(tmp_path: Path) -> None:
    model = loud(SMALL.replace(mtp=MTP(block="dense")))
    export_gguf(model, None, tmp_path / "m.gguf", "f32")
    back = from_gguf(tmp_path / "m.gguf", model.config)
    assert back.mtp is None
    assert torch.equal(back(tokens(9)), model(tokens(9)))


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    export_gguf(loud(SMALL), None, tmp_path / "m.gguf", "f32")
    with pytest.raises(ValueError, match=r"no tensor 'blk\.2"):
        from_gguf(tmp_path / "m.gguf", SMALL.replace(pattern=(("dense", 3),)))
    with pytest.raises(ValueError, match=r"unexpected tensor 'blk\.1"):
        from_gguf(tmp_path / "m.gguf", SMALL.replace(pattern=(("dense", 1),)))
    with pytest.raises(ValueError, match="wanted"):
        from_gguf(tmp_path / "m.gguf", SMALL.replace(vocab=65))


# ── tokenizer ──────────────────────────────────────────────────────────────────────────────────────────────────────────

NASTY = ("sort 3 1 2:", "x  12\n\n 7", "a1b22 ", "don't, it's 1,024!", "  two", "Straße ½ ²", "tab\t9\r\n", "日本 42 語", "<|im_end|>")


def test_the_tokenizer_in_the_file_is_ours(tmp_path: Path) -> None:
    """Rebuilt from the metadata by the rules of llama.cpp's `smollm`: cut at every digit, then by GPT-2's expression."""
    import tokenizers as hf
    from tokenizers import models, pre_tokenizers

    mine = tokenizer()
    model = loud(SMALL.replace(vocab=mine.vocab_size + 3))
    export_gguf(model, mine, tmp_path / "m.gguf", name="tiny-1")
    got = fields(tmp_path / "m.gguf")
    texts, types = got["tokenizer.ggml.tokens"], got["tokenizer.ggml.token_type"]
    assert (got["general.name"], got["tokenizer.ggml.model"], got["tokenizer.ggml.pre"]) == ("tiny-1", "gpt2", "smollm")
    assert texts[-3:] == [f"[PAD{i}]" for i in range(300, 303)] and types[-3:] == [5, 5, 5]
    assert {texts[i]: types[i] for i in range(5)} == {t: 3 if t.startswith("<|") else 4 for t in mine.special}
    assert set(types[5:300]) == {1}
    assert (got["tokenizer.ggml.eos_token_id"], got["tokenizer.ggml.eot_token_id"]) == (mine.eos, mine.im_end)
    assert got["tokenizer.ggml.padding_token_id"] == mine.pad and got["tokenizer.ggml.add_bos_token"] is False
    assert got["tokenizer.chat_template"] == json.loads((mine.path / "tokenizer_config.json").read_text())["chat_template"]
    merges = [tuple(m.split(" ")) for m in got["tokenizer.ggml.merges"]]
    other = hf.Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(texts[:300])}, merges=merges))
    gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
    other.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(hf.Regex(r"\p{N}"), "isolated"),
            pre_tokenizers.Split(hf.Regex(gpt2), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    for text in NASTY:
        assert other.encode(text).ids == mine.encode(text), text


def test_tokenizers_that_llama_cpp_cuts_otherwise_are_refused(tmp_path: Path) -> None:
    from upslope.tokens.tokenizer import Tokenizer

    model = loud(SMALL.replace(vocab=tokenizer().vocab_size))
    data = json.loads((tokenizer().path / "tokenizer.json").read_text())
    digits, level = data["pre_tokenizer"]["pretokenizers"]
    split = {"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}|\s+"}, "behavior": "Isolated", "invert": False}
    changes: tuple[dict[str, Any], ...] = (
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{**digits, "individual_digits": False}, level]}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, {**level, "use_regex": False}]}},
        {"pre_tokenizer": {**level, "add_prefix_space": True}},
        {"pre_tokenizer": None},
        {"normalizer": {"type": "Lowercase"}},
        {"model": {**data["model"], "ignore_merges": True}},
    )
    for change in changes:
        (tmp_path / "tokenizer.json").write_text(json.dumps({**data, **change}))
        with pytest.raises(UsageError, match=r"not known to cut text[\s\S]*--format hf"):
            export_gguf(model, Tokenizer.load(tmp_path), tmp_path / "m.gguf")
    (tmp_path / "tokenizer.json").write_text(json.dumps({**data, "pre_tokenizer": level}))
    export_gguf(model, Tokenizer.load(tmp_path), tmp_path / "m.gguf")
    assert fields(tmp_path / "m.gguf")["tokenizer.ggml.pre"] == "gpt-2"
    first = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}
    ids = {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}}
    template = {"type": "TemplateProcessing", "single": [first, {"Sequence": {"id": "A", "type_id": 0}}], "pair": [], "special_tokens": ids}
    (tmp_path / "tokenizer.json").write_text(json.dumps({**data, "post_processor": template}))
    export_gguf(model, Tokenizer.load(tmp_path), tmp_path / "m.gguf")
    got = fields(tmp_path / "m.gguf")
    assert (got["tokenizer.ggml.bos_token_id"], got["tokenizer.ggml.add_bos_token"]) == (1, True)
    with pytest.raises(UsageError, match="300 tokens, the model only 299"):
        export_gguf(loud(SMALL.replace(vocab=299)), tokenizer(), tmp_path / "n.gguf")


# ── refusals ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def config_of(kind: str, **entries: Any) -> ModelConfig:
    return build(Case(f"r_{kind}_{sorted(entries.items())!r}", kind, {**LAYERS, **entries})).ours.config


def test_what_llama_cpp_computes_otherwise_is_refused_by_name() -> None:
    block = SMALL.blocks["dense"]
    nope = SMALL.replace(blocks={"dense": block.replace(mixer=block.mixer.replace(position=Nope()))})  # type: ignore[union-attr,call-arg]
    fast = Rope(scaling=Yarn(factor=4.0, original=64, beta_fast=8.0))
    yarn = SMALL.replace(blocks={"dense": block.replace(mixer=block.mixer.replace(position=fast))})  # type: ignore[union-attr,call-arg]
    gemma2 = {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
    oss = {"num_local_experts": 5, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 5}
    hunyuan = {"num_experts": 5, "moe_topk": 2, "head_dim": 16}
    cases = {
        "no published architecture": nope,
        "no exact mapping for HunYuanMoEV1ForCausalLM": config_of("hunyuan_v1_moe", **hunyuan),
        "qwen3 does not compute .*yarn.beta_fast = 8.0, not 32.0": yarn,
        "qwen3 .*rope scaling 'llama3'": config_of(
            "qwen3", head_dim=16, rope_parameters={**LLAMA3, "original_max_position_embeddings": 16}
        ),
        "qwen2 .*heads × head_dim = 64, not d_model = 32": config_of("qwen2", head_dim=16),
        "olmo2 .*the head is tied": config_of("olmo2", tie_word_embeddings=True),
        "qwen3moe .*renorm = false": config_of("qwen3_moe", **MOE, num_experts=6, norm_topk_prob=False),
        "qwen3moe .*dense FFN": config_of("qwen3_moe", **MOE, num_experts=6, norm_topk_prob=True, mlp_only_layers=[1]),
        "gemma2 .*scale": config_of("gemma2", **{**gemma2, "query_pre_attn_scalar": 7}),
        "gemma2 .*no soft-cap": config_of("gemma2", **gemma2).replace(logit_softcap=None),
        "gemma2 .*of every 2 layers the last must be global": config_of(
            "gemma2", **gemma2, layer_types=["full_attention", "sliding_attention"]
        ),
        "gemma3 .*rope.base = 10000": config_of(
            "gemma3_text", **GEMMA, rope_parameters={"full_attention": PLAIN, "sliding_attention": PLAIN}
        ),
        "gemma3 .*YaRN": config_of(
            "gemma3_text", **GEMMA, num_hidden_layers=6, rope_parameters={"full_attention": FIXED, "sliding_attention": LOCAL}
        ),
        "gpt-oss .*expert.limit = 1.5, not 7": config_of("gpt_oss", **oss, swiglu_limit=1.5),
        "gpt-oss .*yarn.truncate = False": config_of("gpt_oss", **oss, rope_parameters={**FIXED, "truncate": False}),
        "deepseek2 .*mixer.eps = 1e-06 and final_norm.eps = 0.05": config_of("deepseek_v3", **{**LATENT, "rms_norm_eps": 0.05}),
    }
    for said, config in cases.items():
        with pytest.raises(UsageError, match=said) as error:
            arch_of(config)
        assert len(str(error.value).splitlines()) <= 6
        assert "way out: --format hf" in str(error.value)


# ── the command ────────────────────────────────────────────────────────────────────────────────────────────────────────


def export(source: Path, out: Path, form: str, dtype: str | None = None, verify: bool = True) -> dict[str, Any]:
    from upslope.cli.models import export_model

    return export_model(str(source), out, form, dtype, verify, Store(out.parent / "store"))


def test_the_command_exports_and_verifies(tmp_path: Path) -> None:
    vocab = tokenizer().vocab_size
    save_weights(loud(SMALL.replace(vocab=vocab, head=Tied())), tokenizer(), tmp_path / "qwen3")
    odd = SMALL.replace(vocab=vocab, final_norm=SMALL.final_norm.replace(eps=1e-2))
    save_weights(loud(odd), tokenizer(), tmp_path / "own")
    for dtype in (None, "q8_0"):
        body = export(tmp_path / "qwen3", tmp_path / f"gguf-{dtype}", "gguf", dtype)
        assert body["files"] == ["README.md", "model.gguf"] and body["verified"] >= 64
        assert "greedy tokens equal after reload in transformers" in body["line"]
    assert fields(tmp_path / "gguf-q8_0" / "model.gguf")["general.file_type"] == 7
    body = export(tmp_path / "own", tmp_path / "hf", "hf")
    assert "modeling_upslope.py" in body["files"] and body["verified"] >= 64
    assert not (tmp_path / "own" / "modeling_upslope.py").exists()
    with pytest.raises(UsageError, match="no published architecture"):
        export(tmp_path / "own", tmp_path / "no", "gguf")
    with pytest.raises(UsageError, match="--format 'onnx': formats: hf, gguf"):
        export(tmp_path / "own", tmp_path / "no", "onnx")
    with pytest.raises(UsageError, match="--dtype 'q4_0': one of f32"):
        export(tmp_path / "qwen3", tmp_path / "no", "gguf", "q4_0")
    with pytest.raises(UsageError, match="--dtype 'f16': an HF folder holds float32"):
        export(tmp_path / "qwen3", tmp_path / "no", "hf", "f16")


def test_a_file_whose_weights_are_wrong_does_not_verify(tmp_path: Path) -> None:
    from upslope.cli.models import verify_gguf

    mine = tokenizer()
    model = loud(SMALL.replace(vocab=mine.vocab_size))
    export_gguf(model, mine, tmp_path / "m.gguf", "f32")
    with torch.no_grad():
        model.final_norm.weight[0] += 1e-3
    with pytest.raises(UsageError, match=r"'final_norm\.weight' is further"):
        verify_gguf(model, mine, tmp_path / "m.gguf", "f32")
    olmo = build(next(c for c in WRITTEN if c.name == "g_olmo2")).ours
    export_gguf(olmo, None, tmp_path / "o.gguf", "f32")
    assert verify_gguf(olmo, mine, tmp_path / "o.gguf", "f32")[0] == 0
