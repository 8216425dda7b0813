"""Families with latent attention: DeepSeek-V3 (and R1, Kimi K2), V3.2 with sparse attention, GLM-5 and 5.2 with shared indices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from upslope.config import UsageError
from upslope.model.families.dense import ENDS, GATED, MLP, PRE, PRE_NORMS
from upslope.model.families.dsl import TIE, Axis, Data, Family, Key, Piece, Tree, common, listed, ropes, rules, same, writes
from upslope.model.families.moe import MOE_KEYS, ROUTER, SHARED, SHARED_WIDTH, V3_EXPERTS, V3_FIRST, V3_KEYS, expert_rules

_LATENT: Tree = {"kind": "mla", "eps": 1e-6}  # fixed in the released code, whatever rms_norm_eps
_KEYS = {
    "num_attention_heads": Key(("*.mixer.heads",)),
    "kv_lora_rank": Key(("*.mixer.kv_latent",)),
    "qk_nope_head_dim": Key(("*.mixer.nope_dim",)),
    "qk_rope_head_dim": Key(("*.mixer.rope_dim",)),
    "v_head_dim": Key(("*.mixer.value_dim",)),
}
_RULES = (
    *ENDS,
    *PRE_NORMS,
    *MLP,
    *ROUTER,
    *SHARED,
    *expert_rules("mlp"),
    *rules(
        """
        mixer.q.weight self_attn.q_proj.weight
        mixer.q_a.weight self_attn.q_a_proj.weight
        mixer.q_a_norm.weight self_attn.q_a_layernorm.weight
        mixer.q_b.weight self_attn.q_b_proj.weight
        mixer.kv_a.weight self_attn.kv_a_proj_with_mqa.weight
        mixer.kv_a_norm.weight self_attn.kv_a_layernorm.weight
        mixer.kv_b.weight self_attn.kv_b_proj.weight
        mixer.o.weight self_attn.o_proj.weight
        """
    ),
)
_INDEXER_RULES = rules(
    """
    mixer.indexer.q.weight self_attn.indexer.wq_b.weight
    mixer.indexer.k.weight self_attn.indexer.wk.weight
    mixer.indexer.k_norm.weight self_attn.indexer.k_norm.weight
    mixer.indexer.k_norm.bias self_attn.indexer.k_norm.bias
    mixer.indexer.weights.weight self_attn.indexer.weights_proj.weight
    """
)
_ROPE = ropes({"": "*"}, layout="interleaved", softmax=True)
_FIXED: dict[str, tuple[Any, ...]] = {"attention_bias": (False, None), "mlp_bias": (False, None)}


def _read_heads(d: Data, tree: Tree) -> None:
    """What config.json repeats follows from the rest; null is a query latent too: none."""
    if "q_lora_rank" not in d:
        raise UsageError("config.json: 'q_lora_rank' is missing")
    for block in tree["blocks"].values():
        block["mixer"]["q_latent"] = d["q_lora_rank"]


@writes("q_lora_rank", "num_key_value_heads", "head_dim", "qk_head_dim")
def _write_heads(tree: Tree) -> Tree:
    m = next(iter(tree["blocks"].values()))["mixer"]
    repeated = {"num_key_value_heads": m["heads"], "head_dim": m["rope_dim"], "qk_head_dim": m["nope_dim"] + m["rope_dim"]}
    return {"q_lora_rank": m["q_latent"], **repeated}


_HEADS = Piece(_read_heads, _write_heads)
DEEPSEEK_V3 = Family(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    (same({"mixer": {**_LATENT, "select": None}, **PRE}), V3_FIRST),
    {**common(), **_KEYS, **V3_KEYS, **MOE_KEYS},
    _RULES,
    (_ROPE, _HEADS, SHARED_WIDTH, TIE),
    fixed={**_FIXED, "rope_interleave": (True,)},
    harmless=frozenset("layer_types mlp_layer_types ep_size moe_layer_freq scoring_func topk_method seq_aux aux_loss_alpha".split()),  # noqa: SIM905
)


def _index(**fixed: Any) -> Tree:
    return {"mixer": {**_LATENT, "select": {"kind": "indexer", "eps": 1e-6, "rope": {"kind": "rope"}, **fixed}}}


_INDEX_KEYS = {
    "index_n_heads": Key(("sparse|full.mixer.select.heads",)),
    "index_head_dim": Key(("sparse|full.mixer.select.dim",)),
    "index_topk": Key(("sparse|full.mixer.select.top_k",)),
}


def _index_rope(layout: str) -> Piece:
    """The indexer's rope is the attention's, on as many channels, in a layout of its own; nothing of it stands in config.json."""

    def read(d: Data, tree: Tree) -> None:
        for block in tree["blocks"].values():
            m = block["mixer"]
            if m["select"]["kind"] == "indexer":
                m["select"]["rope"] = {**m["position"], "layout": layout, "fraction": m["rope_dim"] / m["select"]["dim"]}
                scaling = m["position"]["scaling"]
                if scaling and scaling["kind"] == "yarn" and scaling["temperature"] == "softmax":
                    m["select"]["rope"]["scaling"] = {**scaling, "temperature": "none"}

    return Piece(read, lambda tree: {})


def _mlp_default(d: Data, n: int) -> Sequence[str]:
    k = d.get("first_k_dense_replace", 3)
    return ["dense"] * min(k, n) + ["sparse"] * max(0, n - k)


_MLP_BASE = listed("mlp_layer_types", {"dense": ("dense", {"ffn": GATED}), "sparse": ("moe", {"ffn": V3_EXPERTS})}, _mlp_default)


def _write_mlp(names: Sequence[str]) -> Tree:
    return {"mlp_layer_types": list(names), "first_k_dense_replace": next((i for i, n in enumerate(names) if n != "dense"), len(names))}


_MLP_AXIS = Axis(_MLP_BASE.choices, _MLP_BASE.read, _write_mlp)
_ALL_SPARSE = Axis({"": ("sparse", _index())}, lambda d, n: [""] * n, lambda names: {})
DEEPSEEK_V32 = DEEPSEEK_V3._replace(
    kind="deepseek_v32",
    architecture="DeepseekV32ForCausalLM",
    axes=(_ALL_SPARSE, same(PRE), _MLP_AXIS),
    keys={**DEEPSEEK_V3.keys, **_INDEX_KEYS},
    rules=(*_RULES, *_INDEXER_RULES),
    fixed=_FIXED,
    last=(_index_rope("half"),),
)


def _glm_default(d: Data, n: int) -> Sequence[str]:
    """As a pattern of letters says, else full layers at the start and then every `index_topk_freq`-th."""
    if pattern := d.get("index_topk_pattern"):
        return [{"F": "full", "S": "shared"}.get(letter, letter) for letter in pattern]
    every, offset = max(d.get("index_topk_freq", 1), 1), d.get("index_skip_topk_offset", 2)
    return ["full" if max(i - offset + 1, 0) % every == 0 else "shared" for i in range(n)]


_REUSE: Tree = {"mixer": {**_LATENT, "select": {"kind": "reuse"}}}
GLM_MOE_DSA = DEEPSEEK_V32._replace(
    kind="glm_moe_dsa",
    architecture="GlmMoeDsaForCausalLM",
    axes=(listed("indexer_types", {"full": ("full", _index()), "shared": ("shared", _REUSE)}, _glm_default), same(PRE), _MLP_AXIS),
    harmless=DEEPSEEK_V32.harmless | {"index_topk_freq", "index_skip_topk_offset", "index_topk_pattern"},
    last=(_index_rope("interleaved"),),
)
FAMILIES: tuple[Family, ...] = (DEEPSEEK_V3, DEEPSEEK_V32, GLM_MOE_DSA)
