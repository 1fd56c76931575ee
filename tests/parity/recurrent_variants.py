"""Recurrent and hybrid families: what each variant changes in the oracle's
configuration, as in make_models.py."""


def packed(blocks):
    """Prism's list of the modules that are packed, and the blocks they rotate."""
    return [
        {"path": path, "block": block, "embedding": "embed" in path, "dtype": "float16"}
        for path, block in blocks.items()
    ]


VARIANTS = {
    "baichuan_m1": [
        {"num_swa_attention_heads": 2, "num_swa_key_value_heads": 1, "sliding_window": 4},
        {"sliding_window_layers": [0, 2], "num_key_value_heads": 4},
    ],
    "bailing_hybrid": [
        {
            "num_key_value_heads": 4,
            "q_lora_rank": None,
            "use_qkv_bias": True,
            "use_bias": True,
            "n_group": 2,
            "score_function": "softmax",
            "tie_word_embeddings": True,
            "rope_interleave": False,
        },
        {
            "moe_router_enable_expert_bias": False,
            "use_qk_norm": False,
            "partial_rotary_factor": 1.0,
            "moe_shared_expert_intermediate_size": 48,
            "head_dim": 24,
            "layer_group_size": 3,
        },
    ],
    "bailing_moe_linear": [
        {
            "num_key_value_heads": 4,
            "score_function": "sigmoid",
            "n_group": 2,
            "routed_scaling_factor": 2.0,
            "moe_router_enable_expert_bias": True,
            "use_bias": True,
            "use_qkv_bias": True,
            "tie_word_embeddings": False,
        },
        {
            "use_qk_norm": False,
            "layer_group_size": 3,
            "group_norm_size": 4,
            "rope_traditional": True,
            "partial_rotary_factor": 0.5,
            "moe_shared_expert_intermediate_size": 48,
            "norm_topk_prob": False,
        },
    ],
    "bailing_moe_v3": [
        {
            "q_lora_rank": None,
            "n_group": 2,
            "short_conv_kernel_size": 3,
            "kda_lower_bound": -2.0,
            "layer_group_size": 3,
            "tie_word_embeddings": True,
        },
    ],
    "gear": [
        {
            "hidden_activation": "silu",
            "attention_bias": True,
            "query_pre_attn_scalar": 40.0,
            "attn_logit_softcapping": 8.0,
            "final_logit_softcapping": 12.0,
            "rope_local_base_freq": 500.0,
            "rope_scaling": {"type": "linear", "factor": 2.5},
            "tie_word_embeddings": False,
            "conv_L_cache": 4,
            "layer_types": ["conv_mixer", "full_attention", "sliding_attention"],
        }
    ],
    "falcon_h1": [
        {"mamba_rms_norm": True, "mamba_n_groups": 2, "rope_traditional": True},
        {
            "mamba_rms_norm": True,
            "mamba_norm_before_gate": True,
            "attention_bias": True,
            "mlp_bias": True,
            "mamba_proj_bias": True,
            "projectors_bias": True,
            "mamba_conv_bias": False,
            "tie_word_embeddings": False,
        },
    ],
    "falcon_mamba": [
        {"mixer_rms_eps": 1e-3, "use_bias": True, "time_step_rank": "auto"},
    ],
    "granitemoehybrid": [
        {
            "num_local_experts": None,
            "num_experts_per_tok": None,
            "mlp_bias": True,
            "position_embedding_type": "rope",
            "rope_parameters": {"rope_theta": 5000.0},
        },
        {
            "mamba_n_groups": 2,
            "mamba_proj_bias": True,
            "mamba_conv_bias": False,
            "time_step_limit": [0.01, 0.5],
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
    ],
    "jamba": [
        {
            "mamba_dt_rank": 8,
            "mamba_proj_bias": True,
            "mamba_conv_bias": False,
            "tie_word_embeddings": False,
            "expert_layer_period": 3,
        },
        {"layers_block_type": ["attention", "mamba", "mamba", "attention"], "num_experts": 1},
    ],
    "kimi_linear": [
        {
            "linear_attn_config": {
                "kda_layers": [1, 3],
                "full_attn_layers": [2],
                "num_heads": 3,
                "head_dim": 16,
                "short_conv_kernel_size": 3,
            },
            "moe_renormalize": False,
            "num_shared_experts": 0,
            "first_k_dense_replace": 0,
            "routed_scaling_factor": 2.0,
            "tie_word_embeddings": True,
        },
        {"num_expert_group": 2, "topk_group": 1, "moe_layer_freq": 2, "moe_router_activation_func": "softmax"},
    ],
    "kimi_k3": [
        {
            "text_config": {
                "num_hidden_layers": 5,
                "attn_res_block_size": 2,
                "activation_situ_beta": 1.5,
                "activation_situ_linear_beta": 2.0,
                "q_lora_rank": "null",
                "mla_use_output_gate": True,
                "num_shared_experts": 1,
                "routed_expert_hidden_size": "null",
                "tie_word_embeddings": True,
                "num_expert_group": 2,
                "routed_scaling_factor": 2.0,
                "linear_attn_config": {
                    "kda_layers": [1, 2, 4],
                    "num_heads": 2,
                    "head_dim": 16,
                    "short_conv_kernel_size": 3,
                    "gate_lower_bound": -5.0,
                    "use_full_rank_gate": True,
                },
            }
        },
        {
            "text_config": {
                "attn_res_block_size": 3,
                "latent_moe_use_norm": True,
                "moe_renormalize": False,
                "first_k_dense_replace": 0,
                "moe_layer_freq": 2,
            }
        },
    ],
    "lfm2": [
        {
            "conv_bias": True,
            "conv_L_cache": 4,
            "block_auto_adjust_ff_dim": False,
            "full_attn_idxs": None,
            "layer_types": ["full_attention", "conv", "full_attention"],
        },
        {
            "block_ff_dim": None,
            "intermediate_size": 160,
            "block_ffn_dim_multiplier": 1.5,
            "rope_theta": None,
            "rope_parameters": {"rope_theta": 5000.0},
        },
    ],
    "lfm2-vl": [{"text_config": {"conv_bias": True, "conv_L_cache": 4, "block_auto_adjust_ff_dim": False}}],
    "lfm2_moe": [
        {
            "conv_bias": True,
            "use_expert_bias": False,
            "norm_topk_prob": False,
            "routed_scaling_factor": 2.0,
            "num_dense_layers": 0,
        },
        {
            "full_attn_idxs": None,
            "layer_types": ["conv", "full_attention", "conv"],
            "rope_parameters": {"rope_theta": 5000.0},
        },
    ],
    "mamba": [
        {"use_bias": True, "use_conv_bias": False, "conv_kernel": 3, "time_step_rank": "auto"},
        {"tie_word_embeddings": False, "use_bcdt_rms": True, "state_size": 16},
    ],
    "mamba2": [
        {
            "n_groups": 2,
            "use_bias": True,
            "use_conv_bias": False,
            "time_step_limit": [0.01, 0.5],
            "tie_word_embeddings": False,
        },
        {"ssm_state_size": 8, "conv_kernel": 3, "num_heads": 4, "head_dim": 24},
    ],
    "nemotron_h": [
        {
            "hybrid_override_pattern": ["E", "M", "*", "-", "M", "E"],
            "moe_latent_size": 32,
            "n_group": 2,
            "n_groups": 2,
            "mamba_proj_bias": True,
            "mlp_bias": True,
            "attention_bias": True,
            "head_dim": 24,
            "time_step_limit": [0.01, 0.5],
        },
        {
            "hybrid_override_pattern": None,
            "layers_block_type": ["mamba", "moe", "attention", "mlp"],
            "n_shared_experts": None,
            "norm_topk_prob": False,
            "use_conv_bias": False,
        },
    ],
    "olmo_hybrid": [
        {
            "layer_types": None,
            "num_hidden_layers": 4,
            "linear_allow_neg_eigval": False,
            "attention_bias": True,
            "num_key_value_heads": "null",
            "head_dim": 24,
        },
        {"tie_word_embeddings": True, "rope_parameters": None, "layer_norm_epsilon": 1e-3},
    ],
    "plamo2": [
        {"mamba_step": 4, "mamba_d_conv": 3, "tie_word_embeddings": False, "rms_norm_eps": 1e-3},
        {"mamba_enabled": False, "num_key_value_heads": 1, "hidden_size_per_head": 32},
    ],
    "prism_hadamard_qwen35": [
        {
            "text_config": {"tie_word_embeddings": True, "hidden_size": 512},
            "modules": packed(
                {"model.embed_tokens": 512, "model.layers.0.mlp.up_proj": 0}
                | {f"model.layers.0.linear_attn.{name}": 512 for name in ("in_proj_qkv", "in_proj_z")}
            ),
        },
        {
            "schema_version": 1,
            "tensor_namespace": "mlx-lm-text",
            "text_config": {"hidden_size": 1024},
            "modules": packed(
                {f"model.layers.1.self_attn.{name}_proj": 512 for name in "qk"}
                | {"model.layers.0.mlp.gate_proj": 1024, "lm_head": 512}
            ),
        },
    ],
    "qwen3_5": [
        {
            "text_config": {
                "tie_word_embeddings": True,
                "attention_bias": True,
                "full_attention_interval": 3,
                "rope_parameters": None,
                "linear_key_head_dim": 16,
            }
        },
        {
            "text_config": {
                "num_key_value_heads": 4,
                "linear_conv_kernel_dim": 3,
                "rope_parameters": {"rope_type": "linear", "factor": 2.0},
            }
        },
    ],
    "qwen3_5_moe": [
        {
            "text_config": {
                "norm_topk_prob": False,
                "num_experts_per_tok": 1,
                "full_attention_interval": 3,
            }
        },
    ],
    "qwen3_next": [
        {
            "tie_word_embeddings": True,
            "attention_bias": True,
            "norm_topk_prob": False,
            "mlp_only_layers": [],
            "decoder_sparse_step": 2,
            "rope_scaling": {"type": "linear", "factor": 2.0},
        },
        {"num_experts": 0, "full_attention_interval": 3, "linear_conv_kernel_dim": 3},
    ],
    "recurrent_gemma": [
        {"attention_window_size": 30, "embeddings_scale_by_sqrt_dim": False},
        {"block_types": None, "_block_types": ["attention", "recurrent"], "logits_soft_cap": 5.0},
    ],
    "rwkv7": [
        {"tie_word_embeddings": True, "num_hidden_layers": 3, "head_dim": 32},
        {"gate_low_rank_dim": 16, "v_low_rank_dim": 8, "a_low_rank_dim": 24},
    ],
}
HF_LAYOUT = (
    "bailing_hybrid",
    "bailing_moe_linear",
    "bailing_moe_v3",
    "falcon_h1",
    "gear",
    "jamba",
    "granitemoehybrid",
    "kimi_k3",
    "kimi_linear",
    "lfm2",
    "lfm2_moe",
    "mamba",
    "mamba2",
    "nemotron_h",
    "olmo_hybrid",
    "plamo2",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_next",
    "recurrent_gemma",
    "rwkv7",
)
