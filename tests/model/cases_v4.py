"""DeepSeek-V4 at toy size, every knob loud."""

from __future__ import annotations

from tests.model.cases_dense import PLAIN, YARN
from tests.model.parity import Case

HALF = {"partial_rotary_factor": 0.5}
CASES = (
    Case(
        "deepseek_v4",
        "deepseek_v4",
        {
            "num_hidden_layers": 4,
            "layer_types": [
                "sliding_attention",
                "heavily_compressed_attention",
                "compressed_sparse_attention",
                "compressed_sparse_attention",
            ],
            "mlp_layer_types": ["hash_moe", "moe", "hash_moe", "moe"],
            "compress_rates": {"compressed_sparse_attention": 3, "heavily_compressed_attention": 5},
            "num_key_value_heads": 1,
            "intermediate_size": None,
            "head_dim": 16,
            "q_lora_rank": 12,
            "sliding_window": 4,
            "o_groups": 2,
            "o_lora_rank": 10,
            "index_n_heads": 7,
            "index_head_dim": 12,
            "index_topk": 3,
            "hc_mult": 3,
            "hc_sinkhorn_iters": 2,
            "hc_eps": 0.02,
            "moe_intermediate_size": 24,
            "n_routed_experts": 6,
            "num_experts_per_tok": 2,
            "routed_scaling_factor": 1.7,
            "swiglu_limit": 1.2,
            "rope_parameters": {
                "main": {**PLAIN, **HALF},
                "compress": {
                    **YARN,
                    "rope_theta": 90.0,
                    "original_max_position_embeddings": 64,
                    "attention_factor": 1.0,
                    "beta_fast": 3.25,
                    "beta_slow": 1.06,
                    **HALF,
                },
            },
        },
        gain=1.0,
    ),
)
