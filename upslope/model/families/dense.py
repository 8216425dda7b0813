"""Dense families: Llama 3, Qwen2 (MiMo's trunk), Qwen3, OLMo 2 and 3, Gemma 2 and 3."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from upslope.config import UsageError
from upslope.model.families.dsl import TIE, Data, Family, Key, Piece, Rule, Tree, common, listed, ropes, rules, same, tie, writes

ADD = {"kind": "add"}
PRE: Tree = {"norm": {"kind": "pre"}, "residual": ADD}
GATED: Tree = {"kind": "swiglu", "bias": False}


def gqa(**fixed: Any) -> Tree:
    """Skeleton of grouped-query attention with rope: what is not named here must be as in Llama."""
    return {"kind": "gqa", "kv": {"kind": "own"}, "qk_norm": None, "bias": "none", **fixed}


HEADS = {
    "num_attention_heads": Key(("*.mixer.heads",)),
    "num_key_value_heads": Key(("*.mixer.kv_heads",)),
    "intermediate_size": Key(("*.ffn.hidden",)),
}
ENDS = (
    Rule(("embed.weight",), "model.embed_tokens.weight"),
    Rule(("final_norm.weight",), "model.norm.weight"),
    Rule(("head.weight",), "lm_head.weight"),
)
PRE_NORMS = rules("mixer_half.before.weight input_layernorm.weight\nffn_half.before.weight post_attention_layernorm.weight")
QKVO = rules("\n".join(f"mixer.{n}.weight self_attn.{n}_proj.weight" for n in "qkvo"))
BIASES = rules("\n".join(f"mixer.{n}.bias self_attn.{n}_proj.bias" for n in "qkvo"))
QK_NORM = rules("\n".join(f"mixer.{n}_norm.weight self_attn.{n}_norm.weight" for n in "qk"))
MLP = rules("\n".join(f"ffn.{n}.weight mlp.{n}_proj.weight" for n in ("gate", "up", "down")))
BODY = (*ENDS, *PRE_NORMS, *QKVO, *MLP)


def _derived_width(d: Data, tree: Tree) -> None:
    """head_dim, where config.json leaves it to be hidden_size / heads."""
    for block in tree["blocks"].values():
        if block["mixer"].get("kind") == "gqa":
            block["mixer"]["head_dim"] = d.get("head_dim") or d["hidden_size"] // d["num_attention_heads"]


@writes("head_dim")
def _written_width(tree: Tree) -> Tree:
    return {"head_dim": next(b["mixer"]["head_dim"] for b in tree["blocks"].values() if b["mixer"]["kind"] == "gqa")}


HEAD_DIM = Piece(_derived_width, _written_width)
NO_WINDOW = {"use_sliding_window": (False, None)}  # and where it is false, sliding_window is read by nobody
ROPE = ropes({"": "*"})
PARTIAL_ROPE = ropes({"": "*"}, fraction=1.0)


def _read_full(d: Data, tree: Tree) -> None:
    if other := sorted(set(d.get("layer_types") or ()) - {"full_attention"}):
        raise UsageError(f"config.json: layers of kind {other[0]!r} are not supported here\nsupported: full_attention")


@writes("layer_types")
def _write_full(tree: Tree) -> Tree:
    return {}


FULL = Piece(_read_full, _write_full)


def _read_division(d: Data, tree: Tree) -> None:
    if isinstance(d.get("hidden_size"), int) and d["hidden_size"] % d["num_attention_heads"]:
        raise UsageError(
            f"config.json: hidden_size = {d['hidden_size']} is no multiple of num_attention_heads, which this architecture wants"
        )


DIVIDED = Piece(_read_division, lambda tree: {})


KINDS = {"full_attention": "global", "sliding_attention": "local"}


def every(period: int, key: str = "") -> Callable[[Data, int], Sequence[str]]:
    """The pattern where config.json lists none: the last layer of every period, which `key` may name, is global."""
    return lambda d, n: ["sliding_attention" if (i + 1) % (d.get(key) or period) else "full_attention" for i in range(n)]


def local_global(**mixer: Any) -> dict[str, tuple[str, Tree]]:
    """Two kinds of attention layer: over all tokens, and over a window."""
    return {"full_attention": ("global", {"mixer": {**mixer, "window": None}}), "sliding_attention": ("local", {"mixer": mixer})}


LLAMA = Family(
    "llama",
    "LlamaForCausalLM",
    (same({"mixer": gqa(), "ffn": GATED, **PRE}),),
    common() | HEADS,
    BODY,
    (ROPE, HEAD_DIM, TIE, FULL, DIVIDED),
    fixed={"attention_bias": (False, None), "mlp_bias": (False, None)},
)
QWEN2 = LLAMA._replace(
    kind="qwen2",
    architecture="Qwen2ForCausalLM",
    axes=(same({"mixer": gqa(bias="qkv"), "ffn": GATED, **PRE}),),
    rules=(*BODY, *BIASES),
    pieces=(ROPE, HEAD_DIM, TIE, FULL),
    fixed={"use_mrope": (None, False), **NO_WINDOW},
    harmless=frozenset({"sliding_window"}),
)
QWEN3 = LLAMA._replace(
    kind="qwen3",
    architecture="Qwen3ForCausalLM",
    axes=(same({"mixer": gqa(qk_norm={"over": "head", "place": "before"}), "ffn": GATED, **PRE}),),
    keys=common("*.mixer.qk_norm.eps") | HEADS,
    rules=(*BODY, *QK_NORM),
    pieces=(ROPE, HEAD_DIM, TIE, FULL),
    fixed={"attention_bias": (False, None), **NO_WINDOW},
    harmless=frozenset({"sliding_window"}),
)

_OLMO_NORMS = rules("mixer_half.after.weight post_attention_layernorm.weight\nffn_half.after.weight post_feedforward_layernorm.weight")
_OLMO: Tree = {"ffn": GATED, "norm": {"kind": "post"}, "residual": ADD}
_FULL_WIDTH = gqa(qk_norm={"over": "full", "place": "before"})
OLMO2 = LLAMA._replace(
    kind="olmo2",
    architecture="Olmo2ForCausalLM",
    axes=(same({"mixer": _FULL_WIDTH, **_OLMO}),),
    keys=common("*.mixer.qk_norm.eps") | HEADS,
    rules=(*ENDS, *_OLMO_NORMS, *QKVO, *QK_NORM, *MLP),
    pieces=(ROPE, HEAD_DIM, TIE, FULL),
    fixed={"attention_bias": (False, None)},
)
OLMO3 = OLMO2._replace(
    kind="olmo3",
    architecture="Olmo3ForCausalLM",
    axes=(listed("layer_types", local_global(**_FULL_WIDTH), every(4)), same(_OLMO)),
    keys=common("*.mixer.qk_norm.eps") | HEADS | {"sliding_window": Key(("local.mixer.window",), default=4096)},
    pieces=(ropes(KINDS, bases=dict.fromkeys(KINDS, ("rope_theta", 500_000.0)), stretched="full_attention"), HEAD_DIM, TIE),
)


def _whole(x: float) -> float | int:
    """A number that should be whole, freed from rounding."""
    return round(x) if abs(x - round(x)) < 1e-6 * x else x


def _scale(q: float) -> float:
    if q != int(q):
        raise UsageError(f"config.json: query_pre_attn_scalar = {q}: mixer.scale is no 1 / sqrt(whole number)")
    return float(q) ** -0.5


def _cap(c: float) -> float | None:
    return float(c) if c else None


_GEMMA: Tree = {"ffn": {"kind": "swiglu", "act": "gelu"}, "norm": {"kind": "sandwich", "gain": "zero"}, "residual": ADD}
_GEMMA_NORMS = rules(
    "mixer_half.before.weight input_layernorm.weight\nmixer_half.after.weight post_attention_layernorm.weight\n"
    "ffn_half.before.weight pre_feedforward_layernorm.weight\nffn_half.after.weight post_feedforward_layernorm.weight"
)
_GEMMA_KEYS = HEADS | {
    "head_dim": Key(("*.mixer.head_dim",)),
    "sliding_window": Key(("local.mixer.window",), default=4096),
    "query_pre_attn_scalar": Key(("*.mixer.scale",), of=_scale, to=lambda s: s and _whole(s**-2)),
    "final_logit_softcapping": Key(("logit_softcap",), default=0, of=_cap),
    "attn_logit_softcapping": Key(("*.mixer.softcap",), default=0, of=_cap),
}
_GEMMA_FIXED = {
    "attention_bias": (False, None),
    "hidden_act": (None, "gelu_pytorch_tanh"),
    "hidden_activation": ("gelu_pytorch_tanh",),
    "use_bidirectional_attention": (False, None),
}
GEMMA2 = Family(
    "gemma2",
    "Gemma2ForCausalLM",
    (listed("layer_types", local_global(**gqa()), every(2)), same(_GEMMA)),
    common()
    | _GEMMA_KEYS
    | {k: _GEMMA_KEYS[k]._replace(absent=cap) for k, cap in (("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0))},
    (*ENDS, *_GEMMA_NORMS, *QKVO, *MLP),
    (ROPE, tie(absent=True), DIVIDED),
    top={"embed_scale": "sqrt_d", "final_norm": {"gain": "zero"}},
    fixed=_GEMMA_FIXED,
)
_GEMMA3_GQA = gqa(qk_norm={"over": "head", "place": "before", "gain": "zero"})
GEMMA3 = GEMMA2._replace(
    kind="gemma3_text",
    architecture="Gemma3ForCausalLM",
    axes=(listed("layer_types", local_global(**_GEMMA3_GQA), every(6, "sliding_window_pattern")), same(_GEMMA)),
    keys=common("*.mixer.qk_norm.eps")
    | _GEMMA_KEYS
    | {
        "attn_logit_softcapping": _GEMMA_KEYS["attn_logit_softcapping"]._replace(only=(0,))
    },  # the released code keeps it, and uses it nowhere
    rules=(*GEMMA2.rules, *QK_NORM),
    pieces=(
        ropes(
            KINDS,
            bases={"full_attention": ("rope_theta", 1e6), "sliding_attention": ("rope_local_base_freq", 1e4)},
            stretched="full_attention",
        ),
        tie(absent=True),
        DIVIDED,
    ),
    harmless=frozenset({"rope_local_base_freq", "sliding_window_pattern"}),
)
FAMILIES: tuple[Family, ...] = (QWEN3, LLAMA, QWEN2, OLMO2, OLMO3, GEMMA2, GEMMA3)
