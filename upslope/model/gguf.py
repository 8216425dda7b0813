"""Export to GGUF, llama.cpp's file format, for the architectures that it computes exactly as we do; every other config is refused by name.

Conventions of llama.cpp that differ from the hub's: `llama` rotates neighbouring channels, so the rows of q and k are interleaved; Gemma's
norm gains are stored as they multiply (plus one); Llama 3's rope scaling is a tensor of divisors; MLA's up-projection is two stacks, for
keys (transposed, so that queries absorb it) and for values; vectors and routers stay in F32. MTP modules are left out: none reads them.
Sources: the GGUF specification and llama.cpp's loaders, read in 2026; tensor names are those of the `gguf` package.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from upslope.config import UsageError
from upslope.machine.files import atomic, read_json
from upslope.model.config import MLA, Attention, Gated, Linear, Llama3, ModelConfig, MoE, Rope, Tied, TopK, Yarn
from upslope.model.families import Family, family_of
from upslope.model.rope import frequencies
from upslope.model.transformer import Transformer
from upslope.tokens.template import IM_END

if TYPE_CHECKING:
    import gguf

    from upslope.tokens.tokenizer import Tokenizer

Stored = Literal["f32", "f16", "bf16", "q8_0"]
STORED: tuple[Stored, ...] = ("f32", "f16", "bf16", "q8_0")
FILE_TYPES: dict[Stored, int] = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}


def _package() -> Any:
    try:
        import gguf
    except ImportError:
        raise UsageError("GGUF needs the gguf package\nway out: pip install 'upslope[hf]'") from None
    return gguf


# ── which configs map exactly ──────────────────────────────────────────────────────────────────────────────────────────


def _mixers(config: ModelConfig) -> list[Attention | MLA]:
    return [layer.mixer for layer in config.layers() if isinstance(layer.mixer, Attention | MLA)]


def _gqa(config: ModelConfig) -> list[Attention]:
    return [m for m in _mixers(config) if isinstance(m, Attention)]


def _ropes(config: ModelConfig) -> list[Rope]:
    return [m.position for m in _mixers(config) if isinstance(m.position, Rope)]


def _square(config: ModelConfig) -> str:
    m = _gqa(config)[0]
    return "" if m.heads * m.head_dim == config.d_model else f"heads × head_dim = {m.heads * m.head_dim}, not d_model = {config.d_model}"


def _tied(config: ModelConfig) -> str:
    return "the head is tied" if isinstance(config.head, Tied) else ""


def _all_experts(config: ModelConfig) -> str:
    ffns = [layer.ffn for layer in config.layers()]
    if not all(isinstance(f, MoE) for f in ffns):
        return "some layers have a dense FFN"
    return "" if all(f.router.renorm for f in ffns if isinstance(f, MoE)) else "router.renorm = false"


def _pattern(config: ModelConfig, period: int) -> str:
    """period: of so many layers the last is global, fixed in llama.cpp."""
    wrong = any((m.window is None) != (i % period == period - 1) for i, m in enumerate(_gqa(config)))
    return f"of every {period} layers the last must be global, the others local" if wrong else ""


def _gemma(config: ModelConfig, period: int, large: int) -> str:
    """large: the depth whose scale is by d_model / heads."""
    mixers = _gqa(config)
    m = mixers[0]
    if why := _pattern(config, period):
        return why
    scale = (config.d_model // m.heads if config.depth == large else m.head_dim) ** -0.5
    if any(abs((x.scale or x.head_dim**-0.5) - scale) > 1e-6 for x in mixers):
        return f"scale = {m.scale:g}: llama.cpp has it fixed at {scale:g}" if m.scale else f"no scale: llama.cpp's is {scale:g}"
    return ""


def _gemma2(config: ModelConfig) -> str:
    if not isinstance(config.head, Tied):
        return "the head is not tied"
    if config.logit_softcap is None or any(m.softcap is None for m in _gqa(config)):
        return "no soft-cap: llama.cpp always has both"
    return _gemma(config, 2, 46)


def _gemma3(config: ModelConfig) -> str:
    if config.logit_softcap is not None or any(m.softcap is not None for m in _gqa(config)):
        return "soft-caps"
    local = [m.position for m in _gqa(config) if m.window is not None and isinstance(m.position, Rope)]
    if any(r.base != 10_000 or r.scaling for r in local):
        return "local layers must have rope.base = 10000 without scaling"
    if any(isinstance(r.scaling, Yarn) for r in _ropes(config)):
        return "YaRN, which would change its local layers too"
    return _gemma(config, 6, 62)


def _gpt_oss(config: ModelConfig) -> str:
    limits = {layer.ffn.expert.limit for layer in config.layers() if isinstance(layer.ffn, MoE) and isinstance(layer.ffn.expert, Gated)}
    return _tied(config) or _pattern(config, 2) or ("" if limits == {7.0} else f"expert.limit = {limits.pop():g}, not 7")


def _deepseek(config: ModelConfig) -> str:
    m = _mixers(config)[0]
    assert isinstance(m, MLA)
    if m.q_latent is None:
        return "queries have no latent"
    if m.eps != config.final_norm.eps:
        return f"mixer.eps = {m.eps:g} and final_norm.eps = {config.final_norm.eps:g}: it has one"
    return _tied(config) or ("" if _experts(config) else "no layer is a mixture")


class Arch(NamedTuple):
    """name: of llama.cpp's architecture. limits: why a config of the family is not computed as we do, or "". pairs: neighbours rotate.

    plus: added to norm gains. ffn_norm: its name for the norm before the FFN. loads: whether transformers reads it back.
    """

    name: str
    limits: Callable[[ModelConfig], str] = lambda config: ""
    pairs: bool = False
    plus: float = 0.0
    ffn_norm: str = "ffn_norm"
    loads: bool = True


ARCHS: dict[str, Arch] = {
    "llama": Arch("llama", pairs=True),
    "qwen2": Arch("qwen2", _square),
    "qwen3": Arch("qwen3"),
    "qwen3_moe": Arch("qwen3moe", _all_experts),
    "gemma2": Arch("gemma2", _gemma2, plus=1.0),
    "gemma3_text": Arch("gemma3", _gemma3, plus=1.0),
    "minimax_m2": Arch("minimax-m2", _tied),
    "olmo2": Arch("olmo2", lambda config: _tied(config) or _square(config), loads=False),
    "gpt_oss": Arch("gpt-oss", _gpt_oss, ffn_norm="post_attention_norm", loads=False),
    "deepseek_v3": Arch("deepseek2", _deepseek, loads=False),
}


def arch_of(config: ModelConfig) -> tuple[Family, Arch]:
    """The published family of a config and llama.cpp's architecture for it. UsageError, with the reason, where there is none."""
    found = family_of(config)
    out = "way out: --format hf"
    if isinstance(found, str):
        raise UsageError(f"GGUF: no published architecture expresses this model\nllama.cpp has: {', '.join(ARCHS)}\n{out}")
    family = found[0]
    if family.kind not in ARCHS:
        raise UsageError(f"GGUF: no exact mapping for {family.architecture} here\nthere is one for: {', '.join(ARCHS)}\n{out}")
    arch = ARCHS[family.kind]
    why = _rope_limits(config, arch) or arch.limits(config)
    if why:
        raise UsageError(f"GGUF: llama.cpp's {arch.name} does not compute this {family.architecture}: {why}\n{out}")
    return family, arch


def _rope_limits(config: ModelConfig, arch: Arch) -> str:
    temperature = "softmax" if arch.name == "deepseek2" else "rotation"
    for rope in _ropes(config):
        s = rope.scaling
        if rope.fraction != 1 and arch.name != "minimax-m2":
            return f"rope.fraction = {rope.fraction:g}"
        if isinstance(s, Llama3) and arch.name != "llama":
            return "rope scaling 'llama3'"
        if isinstance(s, Yarn):
            fixed = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True, "temperature": temperature}
            fixed |= {"mscale": 1.0} if temperature == "rotation" else {}
            if wrong := [k for k, v in fixed.items() if getattr(s, k) != v]:
                return f"yarn.{wrong[0]} = {getattr(s, wrong[0])!r}, not {fixed[wrong[0]]!r}"
    return ""


# ── tensors ────────────────────────────────────────────────────────────────────────────────────────────────────────────

_TABLE = """
embed token_embd                    final_norm output_norm               head output
mixer_half.before attn_norm         mixer_half.after post_attention_norm
ffn_half.before ffn_norm            ffn_half.after post_ffw_norm
mixer.q attn_q                      mixer.k attn_k                       mixer.v attn_v
mixer.o attn_output                 mixer.q_norm attn_q_norm             mixer.k_norm attn_k_norm
mixer.sinks attn_sinks              mixer.q_a attn_q_a                   mixer.q_a_norm attn_q_a_norm
mixer.q_b attn_q_b                  mixer.kv_a attn_kv_a_mqa             mixer.kv_a_norm attn_kv_a_norm
ffn.gate ffn_gate                   ffn.up ffn_up                        ffn.down ffn_down
ffn.router ffn_gate_inp             ffn.select exp_probs_b
ffn.experts.gate ffn_gate_exps      ffn.experts.up ffn_up_exps           ffn.experts.down ffn_down_exps
ffn.shared.gate ffn_gate_shexp      ffn.shared.up ffn_up_shexp           ffn.shared.down ffn_down_shexp
"""
_NAMES = dict(pair.split() for line in _TABLE.strip().splitlines() for pair in re.split(r"\s{2,}", line))


class Piece(NamedTuple):
    """One of our tensors there: the names that it goes by, and the two maps."""

    names: tuple[str, ...]
    to: Callable[[Tensor], list[Tensor]] = lambda t: [t]
    of: Callable[[list[Tensor]], Tensor] = lambda parts: parts[0]


def _interleave_rows(rows: Tensor, heads: int) -> Tensor:
    """Rows (heads · D, ...) with channel i beside i + D/2 of each head."""
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(rows.shape)


def _deinterleave_rows(rows: Tensor, heads: int) -> Tensor:
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(rows.shape)


def piece(ours: str, config: ModelConfig, arch: Arch) -> Piece | None:
    """Where one of our tensors goes; None for those of MTP modules. ValueError for a tensor that has no place."""
    if ours.startswith("mtp."):
        return None
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", ours)
    prefix, rest = (f"blk.{block[1]}.", block[2]) if block else ("", ours)
    found = re.fullmatch(r"(.+?)(?:[._](weight|bias))?", rest)
    assert found is not None
    stem, leaf = found.groups("weight")
    m = _mixers(config)[int(block[1]) if block else 0]
    if stem == "mixer.kv_b" and isinstance(m, MLA):
        sizes, heads = [m.nope_dim, m.value_dim], m.heads

        def split(t: Tensor) -> list[Tensor]:
            keys, values = t.unflatten(0, (heads, -1)).split(sizes, 1)
            return [keys.mT, values]

        def join(parts: list[Tensor]) -> Tensor:
            return torch.cat((parts[0].mT, parts[1]), 1).flatten(0, 1)

        return Piece((f"{prefix}attn_k_b.weight", f"{prefix}attn_v_b.weight"), split, join)
    if stem not in _NAMES:
        raise ValueError(f"GGUF has no place for our tensor {ours!r}")
    name = (f"{prefix}{arch.ffn_norm if stem == 'ffn_half.before' else _NAMES[stem]}.{leaf}",)
    if arch.pairs and stem in ("mixer.q", "mixer.k") and isinstance(m, Attention):
        count = m.heads if stem == "mixer.q" else m.kv_heads
        return Piece(name, lambda t: [_interleave_rows(t, count)], lambda parts: _deinterleave_rows(parts[0], count))
    if arch.plus and name[0].endswith("norm.weight"):
        return Piece(name, lambda t: [t + arch.plus], lambda parts: parts[0] - arch.plus)
    return Piece(name)


def named(model: Transformer, arch: Arch) -> Iterator[tuple[str, Tensor]]:
    """llama.cpp's tensors by name, float32, on the CPU; of experts a stack (E, out, in)."""
    config = model.config
    for ours, tensor in model.tensors().items():
        if (place := piece(ours, config, arch)) is not None:
            yield from zip(place.names, place.to(tensor.detach().cpu().float()))
    rope = _leading(config).position
    if isinstance(rope, Rope) and isinstance(rope.scaling, Llama3):
        width = _gqa(config)[0].head_dim
        yield "rope_freqs.weight", frequencies(rope.replace(scaling=None), width) / frequencies(rope, width)


def _leading(config: ModelConfig) -> Attention | MLA:
    """The mixer that the file describes: where some layers are local, a global one."""
    mixers = _mixers(config)
    return next((m for m in mixers if isinstance(m, MLA) or m.window is None), mixers[0])


def _experts(config: ModelConfig) -> MoE | None:
    return next((layer.ffn for layer in config.layers() if isinstance(layer.ffn, MoE)), None)


def _encoded(name: str, value: Tensor, stored: Stored) -> tuple[np.ndarray, gguf.GGMLQuantizationType]:
    """The bytes of a tensor: vectors, biases and routers in F32, rows that Q8_0's blocks of 32 do not divide in F16."""
    package = _package()
    types = package.GGMLQuantizationType
    array = np.ascontiguousarray(value.numpy())
    if array.ndim == 1 or stored == "f32" or "ffn_gate_inp" in name or name.endswith(".bias"):
        return array, types.F32
    if stored == "q8_0" and array.shape[-1] % 32:
        stored = "f16"
    if stored == "f16" and float(np.abs(array).max()) > 65504:
        raise UsageError(f"GGUF: {name} has values beyond F16's range\nway out: --dtype bf16")
    kind = types[stored.upper()]
    return package.quants.quantize(array, kind), kind


# ── metadata ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _describe(w: gguf.GGUFWriter, config: ModelConfig, stored: Stored) -> None:
    """Everything that llama.cpp reads about the model."""
    m, moe = _leading(config), _experts(config)
    rope = m.position
    assert isinstance(rope, Rope)
    w.add_file_type(FILE_TYPES[stored])
    w.add_quantization_version(2)
    w.add_block_count(config.depth)
    w.add_context_length(config.context)
    w.add_embedding_length(config.d_model)
    w.add_vocab_size(config.vocab)
    w.add_head_count(m.heads)
    if isinstance(m, MLA):  # computed as attention over the latents, which are one key-value head
        w.add_head_count_kv(1)
        w.add_q_lora_rank(m.q_latent or 0)
        w.add_kv_lora_rank(m.kv_latent)
        w.add_key_length(m.kv_latent + m.rope_dim)
        w.add_value_length(m.kv_latent)
        w.add_key_length_mla(m.nope_dim + m.rope_dim)
        w.add_value_length_mla(m.value_dim)
        w.add_rope_dimension_count(m.rope_dim)
    else:
        w.add_head_count_kv(m.kv_heads)
        w.add_key_length(m.head_dim)
        w.add_value_length(m.value_width)
        w.add_rope_dimension_count(rope.width(m.head_dim))
    w.add_rope_freq_base(rope.base)
    w.add_layer_norm_rms_eps(config.final_norm.eps)
    dense = next((layer.ffn.hidden for layer in config.layers() if isinstance(layer.ffn, Gated)), None)
    w.add_feed_forward_length(dense or moe.expert.hidden)  # type: ignore[union-attr]
    if moe is not None:
        _describe_experts(w, config, moe)
    s = rope.scaling
    if isinstance(s, Linear | Yarn):
        w.add_rope_scaling_type(_package().RopeScalingType[s.kind.upper()])
        w.add_rope_scaling_factor(s.factor)
    if isinstance(s, Yarn):
        w.add_rope_scaling_orig_ctx_len(s.original)
        if s.temperature == "softmax":
            w.add_rope_scaling_yarn_log_mul(0.1 * s.mscale)
    window = next((x.window for x in _gqa(config) if x.window is not None), None)
    if window is not None:
        w.add_sliding_window(window)
    if isinstance(m, Attention) and m.softcap is not None:
        w.add_attn_logit_softcapping(m.softcap)
    if config.logit_softcap is not None:
        w.add_final_logit_softcapping(config.logit_softcap)


def _describe_experts(w: gguf.GGUFWriter, config: ModelConfig, moe: MoE) -> None:
    r = moe.router
    w.add_expert_feed_forward_length(moe.expert.hidden)
    w.add_expert_count(moe.experts)
    w.add_expert_used_count(r.select.k)
    if r.score == "sigmoid":
        w.add_expert_gating_func(_package().ExpertGatingFuncType.SIGMOID)
    if moe.shared is None:
        return
    w.add_leading_dense_block_count(sum(not isinstance(layer.ffn, MoE) for layer in config.layers()))
    w.add_expert_shared_count(moe.shared.hidden // moe.expert.hidden)
    w.add_expert_weights_scale(r.scale)
    w.add_expert_weights_norm(r.renorm)
    if isinstance(r.select, TopK) and r.select.groups > 1:
        w.add_expert_group_count(r.select.groups)
        w.add_expert_group_used_count(r.select.keep)


_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_SPLITS: dict[str, list[Any]] = {
    "gpt-2": [_GPT2],
    "smollm": [{"type": "Digits", "individual_digits": True}, _GPT2],
    "llama-bpe": [r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"],
    "qwen2": [r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"],
}
"""How llama.cpp's pre-tokenizers, by their names there, cut text: steps of a tokenizer.json, or one regular expression."""


def _split(data: dict[str, Any]) -> str:
    """llama.cpp's name for the way in which a tokenizer.json cuts text. UsageError for one that it is not known to have."""
    pre = data.get("pre_tokenizer") or {}
    parts = pre.get("pretokenizers", [pre])
    kinds = [p.get("type") for p in parts]
    if kinds == ["Split", "ByteLevel"] and parts[0]["behavior"] == "Isolated" and not parts[0]["invert"] and not parts[1]["use_regex"]:
        cut: list[Any] = [parts[0]["pattern"].get("Regex")]
    else:
        cut = [{k: v for k, v in p.items() if k != "trim_offsets"} for p in parts]
    name = next((n for n, steps in _SPLITS.items() if steps == cut), None)
    whole = bool(data["model"].get("ignore_merges"))  # a word that is a token is taken as it is
    normal = (data.get("normalizer") or {}).get("type")
    if name is None or whole != (name == "llama-bpe") or normal not in (None, "NFC"):
        steps = ", ".join([*([normal] if normal else []), *map(str, kinds)])
        raise UsageError(f"GGUF: llama.cpp is not known to cut text as this tokenizer does ({steps})\nway out: --format hf")
    return name


def _tokenize(w: gguf.GGUFWriter, tokenizer: Tokenizer, rows: int) -> None:
    """Vocabulary, merges, token types, special ids and chat template, from the tokenizer's own files."""
    import tokenizers

    data = read_json(tokenizer.path / "tokenizer.json")
    model = data["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise UsageError(f"GGUF: only byte-level BPE is written here, not {model.get('type')} with byte fallback\nway out: --format hf")
    types = _package().TokenType
    tokens = [f"[PAD{i}]" for i in range(rows)]
    kinds = [types.UNUSED] * rows
    for text, i in model["vocab"].items():
        tokens[i], kinds[i] = text, types.NORMAL
    for added in data["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = types.CONTROL if added["special"] else types.USER_DEFINED
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre(_split(data))
    w.add_token_list(tokens)
    w.add_token_types(kinds)
    w.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in model["merges"]])
    w.add_eos_token_id(tokenizer.eos)
    w.add_pad_token_id(int(tokenizer.pad))
    begun = tokenizers.Tokenizer.from_file(str(tokenizer.path / "tokenizer.json")).encode("").ids
    if begun:
        w.add_bos_token_id(begun[0])
    w.add_add_bos_token(bool(begun))
    if (turn := tokenizer.special.get(IM_END)) is not None:
        w.add_eot_token_id(turn)
    file, settings = tokenizer.path / "chat_template.jinja", tokenizer.path / "tokenizer_config.json"
    template = file.read_text() if file.is_file() else read_json(settings).get("chat_template") if settings.is_file() else None
    if template:
        w.add_chat_template(template)


def export_gguf(model: Transformer, tokenizer: Tokenizer | None, file: Path, stored: Stored = "f16", name: str = "upslope") -> Arch:
    """Writes one GGUF file; equal weights give equal bytes. Returns the architecture.

    stored: type of the matrices. name: shown by readers. UsageError where llama.cpp does not compute this config as we do, or cannot read
    the tokenizer; ValueError for weights that are not finite.
    """
    gguf = _package()
    _, arch = arch_of(model.config)
    if tokenizer is not None and tokenizer.vocab_size > model.config.vocab:
        raise UsageError(f"the tokenizer has {tokenizer.vocab_size} tokens, the model only {model.config.vocab}")
    with atomic(file) as path:
        w = gguf.GGUFWriter(path, arch.name)
        w.add_name(name)
        _describe(w, model.config, stored)
        if tokenizer is None:
            w.add_tokenizer_model("none")
        else:
            _tokenize(w, tokenizer, model.config.vocab)
        for tensor_name, tensor in named(model, arch):
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"tensor {tensor_name!r} holds NaN or infinity: such weights are not saved")
            data, kind = _encoded(tensor_name, tensor, stored)
            w.add_tensor(tensor_name, data, raw_dtype=kind)
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()
    return arch


def read_gguf(file: Path) -> dict[str, Tensor]:
    """The tensors of a GGUF file by llama.cpp's names, float32."""
    gguf = _package()
    reader = gguf.GGUFReader(file)
    return {t.name: torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32)) for t in reader.tensors}


def from_gguf(file: Path, config: ModelConfig) -> Transformer:
    """The model of a config with the weights of a GGUF file that was written from it, MTP left out. ValueError where they do not fit."""
    _, arch = arch_of(config)
    given, model = read_gguf(file), Transformer(config.replace(mtp=None))
    with torch.no_grad():
        for ours, tensor in model.tensors().items():
            place = piece(ours, config, arch)
            assert place is not None
            if missing := [n for n in place.names if n not in given]:
                raise ValueError(f"{file.name}: no tensor {missing[0]!r}")
            value = place.of([given.pop(n) for n in place.names])
            if value.shape != tensor.shape:
                raise ValueError(f"{file.name}: {place.names[0]!r} is {tuple(value.shape)} here, wanted {tuple(tensor.shape)}")
            tensor.copy_(value)
    if rest := set(given) - {"rope_freqs.weight"}:
        raise ValueError(f"{file.name}: unexpected tensor {min(rest)!r}")
    return model.eval()


def round_off(source: Transformer, back: Transformer, stored: Stored) -> str | None:
    """The first of our tensors in which a model read back differs by more than rounding to `stored` explains; None where all are right."""
    share = {"f32": 2**-23, "f16": 2**-11, "bf16": 2**-8, "q8_0": 1 / 254 + 2**-11}[stored]  # of the largest value
    given = back.tensors()
    for ours, tensor in source.tensors().items():
        if ours in given and bool(((given[ours] - tensor).abs() > share * tensor.abs().amax() + 2e-7).any()):
            return ours
    return None


def their_config(config: ModelConfig) -> dict[str, Any]:
    """Entries of the family's configuration class, for readers that do not take all of it from a GGUF file."""
    family, _ = arch_of(config)
    out = family.write(config)
    assert not isinstance(out, str)
    return {k: v for k, v in out.items() if k not in ("model_type", "architectures")}
