"""Families of published models that a config maps onto: names of tensors, and config.json both ways.

A family is a list of `Rule(ours, theirs)` in which `{layer}` stands for a block number, and two functions between `ModelConfig`
and the family's config.json. A config that a family cannot express is refused, never bent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from upslope.config import UsageError
from upslope.model.config import ModelConfig, Normal, Rope, Tied, Untied, dense


class Rule(NamedTuple):
    """One tensor name in both worlds; `{layer}` matches a block number."""

    ours: str
    theirs: str


class Family(NamedTuple):
    """kind: model_type in config.json. architecture: the class that loads it. write: ModelConfig → config.json, or why not."""

    kind: str
    architecture: str
    rules: tuple[Rule, ...]
    write: Callable[[ModelConfig], dict[str, Any] | str]
    read: Callable[[Mapping[str, Any]], ModelConfig]


def names(family: Family | None, ours: Iterable[str]) -> dict[str, str]:
    """Our tensor names → the family's (None: our own). ValueError for a name that no rule covers."""
    if family is None:
        return {name: name for name in ours}
    compiled = [(re.compile(re.escape(r.ours).replace(r"\{layer\}", r"(?P<layer>\d+)") + r"\Z"), r.theirs) for r in family.rules]
    found: dict[str, str] = {}
    for name in ours:
        for pattern, theirs in compiled:
            if match := pattern.match(name):
                found[name] = theirs.format(**match.groupdict())
                break
        else:
            raise ValueError(f"family {family.kind!r} has no rule for our tensor {name!r}")
    return found


# ── dense, pre-norm, GQA, half-split RoPE, SwiGLU: Qwen3 (with per-head QK-norm) and Llama (without) ────────────────────

_DENSE = (
    Rule("embed.weight", "model.embed_tokens.weight"),
    *(Rule(f"blocks.{{layer}}.mixer.{n}.weight", f"model.layers.{{layer}}.self_attn.{n}_proj.weight") for n in "qkvo"),
    *(Rule(f"blocks.{{layer}}.ffn.{n}.weight", f"model.layers.{{layer}}.mlp.{n}_proj.weight") for n in ("gate", "up", "down")),
    Rule("blocks.{layer}.mixer_norm.weight", "model.layers.{layer}.input_layernorm.weight"),
    Rule("blocks.{layer}.ffn_norm.weight", "model.layers.{layer}.post_attention_layernorm.weight"),
    Rule("final_norm.weight", "model.norm.weight"),
    Rule("head.weight", "lm_head.weight"),
)
_QK_NORM = tuple(Rule(f"blocks.{{layer}}.mixer.{n}_norm.weight", f"model.layers.{{layer}}.self_attn.{n}_norm.weight") for n in "qk")

_SHAPE = {
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "max_position_embeddings",
    "vocab_size",
    "rms_norm_eps",
    "rope_parameters",
    "rope_theta",
    "rope_scaling",
    "tie_word_embeddings",
}
_FIXED: dict[str, tuple[Any, ...]] = {  # keys that change the computation, with the values that we compute
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "use_sliding_window": (False, None),
    "quantization_config": (None,),
    "pretraining_tp": (1, None),
    "is_decoder": (None, True, False),
    "add_cross_attention": (None, False),
}
_HARMLESS = {
    "architectures",
    "model_type",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "initializer_range",
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "sep_token_id",
    "max_window_layers",
    "sliding_window",
    "layer_types",
    "name_or_path",
    "chunk_size_feed_forward",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "id2label",
    "label2id",
    "problem_type",
    "is_encoder_decoder",
}


def _write_dense(config: ModelConfig, kind: str, architecture: str, qk_norm: bool) -> dict[str, Any] | str:
    layers = list(config.layers())
    first = layers[0]
    mixer = first.mixer
    if any(layer != first for layer in layers):
        return "its blocks differ from each other"
    if not isinstance(mixer.position, Rope):
        return f"its attention has position {mixer.position.kind!r}, not 'rope'"
    if (mixer.qk_norm is not None) != qk_norm:
        return "it has no QK-norm" if qk_norm else "it has QK-norm"
    eps = {first.norm.eps, config.final_norm.eps} | ({mixer.qk_norm.eps} if mixer.qk_norm else set())
    if len(eps) > 1:
        return f"its norms have different eps ({', '.join(f'{e:g}' for e in sorted(eps))})"
    out = {
        "architectures": [architecture],
        "model_type": kind,
        "dtype": "float32",
        "hidden_act": "silu",
        "attention_bias": False,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.depth,
        "num_attention_heads": mixer.heads,
        "num_key_value_heads": mixer.kv_heads,
        "head_dim": mixer.head_dim,
        "intermediate_size": first.ffn.hidden,
        "max_position_embeddings": config.context,
        "vocab_size": config.vocab,
        "rms_norm_eps": eps.pop(),
        "rope_parameters": {"rope_type": "default", "rope_theta": mixer.position.base},
        "rope_theta": mixer.position.base,
        "tie_word_embeddings": isinstance(config.head, Tied),
    }
    return out


def _read_dense(data: Mapping[str, Any], qk_norm: bool) -> ModelConfig:
    for key, value in data.items():
        if key in _FIXED and value not in _FIXED[key]:
            raise UsageError(f"config.json: {key} = {value!r} is not supported\nsupported: {', '.join(map(repr, _FIXED[key]))}")
        if key not in _SHAPE | set(_FIXED) | _HARMLESS and not key.startswith("_"):
            raise UsageError(f"config.json: {key!r} = {value!r} is unknown here\nway out: remove it if it does not change the model")
    if any(kind != "full_attention" for kind in data.get("layer_types") or ()):
        raise UsageError("config.json: layer_types has layers without full attention, which is not supported")
    rope = dict(data.get("rope_parameters") or {}) | dict(data.get("rope_scaling") or {})
    scaling = rope.get("rope_type", rope.get("type", "default"))
    if scaling != "default":
        raise UsageError(f"config.json: rope scaling {scaling!r} is not supported\nsupported: 'default'")
    try:
        heads, width = data["num_attention_heads"], data["hidden_size"]
        tied, std = data.get("tie_word_embeddings", False), float(data.get("initializer_range", 0.02))
        base = float(rope.get("rope_theta", data.get("rope_theta", 10_000.0)))
        model = dense(
            width,
            data["num_hidden_layers"],
            heads,
            data.get("num_key_value_heads") or heads,
            data.get("head_dim") or width // heads,
            data["intermediate_size"],
            context=data["max_position_embeddings"],
            base=base,
            vocab=data["vocab_size"],
            head=Tied() if tied else Untied(),
            init=Normal(std=std),
            eps=float(data["rms_norm_eps"]),
            qk_norm=qk_norm,
        )
    except KeyError as e:
        raise UsageError(f"config.json: {e.args[0]!r} is missing") from None
    return model


QWEN3 = Family(
    "qwen3",
    "Qwen3ForCausalLM",
    _DENSE + _QK_NORM,
    lambda c: _write_dense(c, "qwen3", "Qwen3ForCausalLM", True),
    lambda d: _read_dense(d, True),
)
LLAMA = Family(
    "llama", "LlamaForCausalLM", _DENSE, lambda c: _write_dense(c, "llama", "LlamaForCausalLM", False), lambda d: _read_dense(d, False)
)
FAMILIES: dict[str, Family] = {family.kind: family for family in (QWEN3, LLAMA)}


def family_of(config: ModelConfig) -> tuple[Family, dict[str, Any]] | str:
    """The family that expresses this config, with its config.json; or, a line per family, why none does."""
    reasons = []
    for family in FAMILIES.values():
        out = family.write(config)
        if not isinstance(out, str):
            return family, out
        reasons.append(f"{family.architecture}: {out}")
    return "\n".join(reasons)
