"""Families with recurrent mixers at toy size, every knob loud."""

from __future__ import annotations

from tests.model.cases_dense import PLAIN
from tests.model.parity import Case

CASES = (
    Case(
        "minimax",
        "minimax",
        {
            "num_hidden_layers": 4,
            "num_experts_per_tok": 2,
            "num_local_experts": 6,
            "head_dim": 16,
            "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
            "block_size": 64,
            "full_attn_alpha_factor": 1.3,
            "full_attn_beta_factor": 0.7,
            "linear_attn_alpha_factor": 1.2,
            "linear_attn_beta_factor": 0.8,
            "mlp_alpha_factor": 1.5,
            "mlp_beta_factor": 0.9,
            "rope_parameters": PLAIN,
        },
        gain=1.2,
    ),
    Case(
        "nemotron_h",
        "nemotron_h",
        {
            "rms_norm_eps": None,
            "layer_norm_epsilon": 0.05,
            "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp", "linear_attention", "moe"],
            "head_dim": 16,
            "mamba_num_heads": 4,
            "mamba_head_dim": 8,
            "ssm_state_size": 6,
            "n_groups": 2,
            "chunk_size": 8,
            "conv_kernel": 3,
            "time_step_min": 0.2,
            "n_routed_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 24,
            "moe_shared_expert_intermediate_size": 20,
            "moe_latent_size": 16,
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 1.7,
        },
    ),
)
