"""Families with latent attention at toy size, every knob loud."""

from __future__ import annotations

from typing import Any

from tests.model.cases_dense import PLAIN, YARN
from tests.model.parity import Case


class NoQueryLatent(Case):
    """A case whose q_lora_rank is null, which `Case` would leave out."""

    @property
    def entries(self) -> dict[str, Any]:
        return {**super().entries, "q_lora_rank": None}


LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 20,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 14,
    "moe_intermediate_size": 24,
    "num_experts_per_tok": 3,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "routed_scaling_factor": 1.7,
    "first_k_dense_replace": 1,
    "n_group": 4,
    "topk_group": 2,
}
INDEX = {"index_n_heads": 16, "index_head_dim": 10, "index_topk": 6}
GAIN = 1.2  # at 1.5 either side is 1e-5 away from what float64 gives: the limit would be met by luck

CASES = (
    Case(
        "deepseek_v3", "deepseek_v3", {**LATENT, "num_hidden_layers": 3, "rope_parameters": {**YARN, "mscale": 1.5, "mscale_all_dim": 1.5}}
    ),
    NoQueryLatent("deepseek_v3_direct", "deepseek_v3", {**LATENT, "num_hidden_layers": 2, "rope_parameters": PLAIN}),
    Case("kimi_k2", "deepseek_v3", {**LATENT, "num_hidden_layers": 2, "n_group": 1, "topk_group": 1, "rope_parameters": PLAIN}),
    Case("deepseek_v32", "deepseek_v32", {**LATENT, **INDEX, "num_hidden_layers": 3, "rope_parameters": PLAIN}, GAIN),
    Case(
        "glm_moe_dsa",
        "glm_moe_dsa",
        {
            **LATENT,
            **INDEX,
            "num_hidden_layers": 5,
            "n_group": 1,
            "topk_group": 1,
            "indexer_types": ["full", "full", "shared", "full", "shared"],
            "rope_parameters": PLAIN,
        },
        GAIN,
    ),
)
