"""Mixture-of-experts families at toy size, every knob loud."""

from __future__ import annotations

from tests.model.cases_dense import PLAIN, YARN
from tests.model.parity import Case

EXPERTS = {"moe_intermediate_size": 24, "num_experts_per_tok": 3, "head_dim": 16}

CASES = (
    Case(
        "qwen3_moe",
        "qwen3_moe",
        {**EXPERTS, "num_hidden_layers": 3, "num_experts": 6, "norm_topk_prob": True, "mlp_only_layers": [1], "rope_parameters": PLAIN},
    ),
    Case(
        "glm4_moe",
        "glm4_moe",
        {
            **EXPERTS,
            "num_hidden_layers": 3,
            "n_routed_experts": 8,
            "n_shared_experts": 2,
            "use_qk_norm": True,
            "attention_bias": True,
            "first_k_dense_replace": 1,
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 1.7,
            "rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5},
        },
    ),
    Case(
        "minimax_m2",
        "minimax_m2",
        {
            "num_hidden_layers": 2,
            "num_experts_per_tok": 2,
            "num_local_experts": 6,
            "head_dim": 16,
            "rotary_dim": 8,
            "rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5},
        },
    ),
    Case(
        "hunyuan_v1_moe",
        "hunyuan_v1_moe",
        {"num_hidden_layers": 2, "num_experts": 6, "moe_topk": 2, "head_dim": 16, "rope_parameters": PLAIN},
    ),
    Case(
        "hunyuan_alpha",
        "hunyuan_v1_moe",
        {
            "num_hidden_layers": 2,
            "num_experts": 6,
            "moe_topk": [2, 2],
            "head_dim": 16,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 20.0, "alpha": 5.0, "factor": 1.0},
        },
    ),
    Case(
        "gpt_oss",
        "gpt_oss",
        {
            "num_hidden_layers": 2,
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "head_dim": 16,
            "sliding_window": 5,
            "swiglu_limit": 1.5,
            "rope_parameters": {**YARN, "truncate": False},
        },
    ),
)
