"""Families with experts or latent attention: what each variant changes in the
oracle's configuration, as in make_models.py."""

YARN = {
    "rope_type": "yarn",
    "type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "beta_fast": 16.0,
    "beta_slow": 2.0,
}
GROUPS = {"n_routed_experts": 8, "n_group": 4, "topk_group": 2}
THREE_LAYERS = {"num_hidden_layers": 3, "hc_sinkhorn_iters": 2}
NO_EXPERTS = {"n_routed_experts": None}
LATENT_OPTIONS = {
    "q_lora_rank": "null",
    "attention_bias": True,
    "rope_scaling": dict(YARN, mscale=1.2, mscale_all_dim=0.7),
    "n_shared_experts": None,
    "norm_topk_prob": False,
}
V3_GROUPS = GROUPS | {
    "moe_layer_freq": 2,
    "num_hidden_layers": 4,
    "qk_nope_head_dim": 32,
    "v_head_dim": 16,
    "num_experts_per_tok": 3,
}

VARIANTS = {
    "afmoe": [
        {
            "num_experts": 8,
            "n_group": 4,
            "topk_group": 2,
            "score_func": "softmax",
            "tie_word_embeddings": True,
            "mup_enabled": False,
            "num_shared_experts": 0,
            "route_norm": False,
        },
        {"num_dense_layers": 0, "num_experts_per_tok": 1, "rope_scaling": YARN},
    ],
    "bailing_moe": [
        {
            "use_bias": True,
            "use_qkv_bias": True,
            "use_qk_norm": False,
            "score_function": "sigmoid",
            "moe_router_enable_expert_bias": True,
            "num_experts": 8,
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 2.5,
            "partial_rotary_factor": 0.5,
            "moe_shared_expert_intermediate_size": 48,
        },
        {
            "tie_word_embeddings": False,
            "norm_head": True,
            "norm_topk_prob": False,
            "rotary_dim": 8,
            "moe_router_enable_shared_expert": False,
        },
    ],
    "dbrx": [{"n_heads": 2, "attn_config": {"kv_n_heads": 1, "clip_qkv": 0.5, "rope_theta": 5e5}}],
    "deepseek": [
        NO_EXPERTS | {"num_key_value_heads": 2},
        {
            "attention_bias": True,
            "n_shared_experts": None,
            "moe_layer_freq": 2,
            "rope_scaling": {"type": "linear", "factor": 2.0},
        },
    ],
    "deepseek_v2": [
        LATENT_OPTIONS | {"rope_scaling": dict(YARN, mscale=0.7, mscale_all_dim=1.0)},
        V3_GROUPS | {"topk_method": "group_limited_greedy"},
    ],
    "deepseek_v3": [LATENT_OPTIONS, V3_GROUPS],
    "deepseek_v32": [
        V3_GROUPS | {"index_topk": 9, "indexer_rope_interleave": True, "index_n_heads": 4},
        {"rope_scaling": dict(YARN, mscale=1.2, mscale_all_dim=0.7), "attention_bias": True},
    ],
    "deepseek_v41": [
        {
            **THREE_LAYERS,
            "compress_ratios": [0, 4, 4],
            "kv_source_layer_ids": [1, 2],
            "index_source_layer_ids": [1, 2],
            "candidate_source_layer_id": 1,
            "candidate_topk_blocks": 2,
            "candidate_block_size": 2,
            "index_topk": 2,
            "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 128},
            "gate_temp": 2.0,
            "scoring_func": "softmax",
            "norm_topk_prob": False,
        },
        {
            **THREE_LAYERS,
            "compress_ratios": [0, 2, 2],
            "kv_source_layer_ids": [1],
            "index_source_layer_ids": [1, 2],
            "swiglu_limit": 0.5,
            "hc_mult": 3,
            "o_groups": 4,
            "head_dim": 40,
            "index_head_dim": 24,
        },
    ],
    "deepseek_v41_text": [
        {
            **THREE_LAYERS,
            "compress_ratios": [2, 0, 4],
            "kv_source_layer_ids": [0, 2],
            "index_source_layer_ids": [0, 2],
            "norm_topk_prob": False,
        }
    ],
    "dots1": [
        V3_GROUPS | {"tie_word_embeddings": True, "mlp_bias": True, "head_dim": 24},
        {"norm_topk_prob": False, "rope_scaling": YARN, "first_k_dense_replace": 0},
    ],
    "ernie4_5_moe": [
        {
            "use_bias": True,
            "tie_word_embeddings": False,
            "moe_gate_act": "sigmoid",
            "moe_num_shared_experts": 0,
            "moe_layer_interval": 2,
            "head_dim": 24,
        },
        {
            "moe_layer_start_index": [1, 2],
            "moe_layer_end_index": [1, 1],
            "moe_intermediate_size": None,
            "moe_k": 3,
        },
    ],
    "exaone_moe": [
        {
            "layer_types": ["full_attention"] * 3,
            "is_moe_layer": [True, False, True],
            "tie_word_embeddings": True,
            "num_shared_experts": 0,
            "num_experts": 8,
            "n_group": 4,
            "topk_group": 2,
        },
        {"norm_topk_prob": False, "rope_scaling": YARN, "routed_scaling_factor": None},
    ],
    "glm4_moe": [
        V3_GROUPS | {"use_qk_norm": True, "attention_bias": False},
        {"n_shared_experts": 2, "partial_rotary_factor": 1.0, "norm_topk_prob": False},
    ],
    "glm4_moe_lite": [LATENT_OPTIONS, V3_GROUPS],
    "glm_moe_dsa": [V3_GROUPS | {"index_topk": 9, "indexer_rope_interleave": False}],
    "gpt_oss": [
        {"num_hidden_layers": 4, "layer_types": None, "rope_scaling": YARN, "head_dim": 32},
        {"num_experts_per_tok": 1, "layer_types": ["full_attention", "sliding_attention"]},
    ],
    "granitemoe": [
        {"attention_bias": True, "tie_word_embeddings": False, "num_experts_per_tok": 3},
        {"rope_scaling": {"type": "linear", "factor": 2.5}, "num_local_experts": 6},
    ],
    "joyai_llm_flash": [NO_EXPERTS],
    "kimi_k2": [{"norm_topk_prob": False}],
    "kimi_k25": [{"text_config": V3_GROUPS}],
    "kimi_vl": [{"text_config": V3_GROUPS | {"q_lora_rank": 32}}],
    "Klear": [
        {"attention_bias": True, "mlp_only_layers": [], "norm_topk_prob": False},
        {"decoder_sparse_step": 2, "num_experts_per_tok": 1, "n_shared_experts": 2},
    ],
    "laguna": [
        {
            "gating": False,
            "qkv_bias": True,
            "attention_bias": True,
            "moe_router_score_func": "sqrtsoftplus",
            "moe_router_logit_softcapping": 2.0,
            "tie_word_embeddings": True,
            "mlp_layer_types": ["sparse", "dense", "sparse"],
        },
        {
            "num_attention_heads_per_layer": [4, 2, 6],
            "layer_types": None,
            "rope_parameters": {
                "full_attention": dict(YARN, rope_theta=5000.0, partial_rotary_factor=0.5)
            },
        },
    ],
    "llama4": [
        {
            "text_config": {
                "attention_bias": True,
                "use_qk_norm": False,
                "interleave_moe_layer_step": 1,
                "attn_temperature_tuning": 0,
                "attention_chunk_size": 5,
                "num_hidden_layers": 5,
            }
        },
        {"text_config": {"rope_scaling": YARN, "intermediate_size_mlp": 64, "head_dim": 24}},
    ],
    "llama4_text": [
        {"tie_word_embeddings": True, "use_qk_norm": False, "no_rope_layers": [0, 1, 0, 1]},
    ],
    "hunyuan": [
        {
            "attention_bias": True,
            "use_qk_norm": False,
            "use_cla": False,
            "use_mixed_mlp_moe": True,
            "num_shared_expert": [1, 2, 1, 1],
            "moe_topk": [2, 1, 3, 2],
            "moe_intermediate_size": [64, 32, 64, 32],
        },
        {"num_experts": 1, "cla_share_factor": 3},
    ],
    "longcat_flash": [
        {
            "attention_bias": True,
            "norm_topk_prob": True,
            "router_bias": True,
            "moe_topk": 3,
            "rope_scaling": dict(YARN, mscale=1.2, mscale_all_dim=0.7),
        },
    ],
    "longcat_flash_ngram": [
        {
            "emb_neighbor_num": 3,
            "emb_split_num": 2,
            "ngram_vocab_size_ratio": 5,
            "zero_expert_num": 1,
        }
    ],
    "mellum": [
        {
            "tie_word_embeddings": True,
            "norm_topk_prob": False,
            "num_experts_per_tok": 3,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": YARN | {"rope_theta": 5000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
        }
    ],
    "mimo_v2_flash": [
        {
            "add_full_attention_sink_bias": True,
            "add_swa_attention_sink_bias": False,
            "swa_head_dim": 24,
            "swa_v_head_dim": 32,
            "v_head_dim": 24,
            "swa_num_attention_heads": 6,
            "swa_num_key_value_heads": 3,
            "attention_value_scale": 0.7,
            "n_shared_experts": 1,
            "routed_scaling_factor": 1.5,
        },
        GROUPS | {"norm_topk_prob": False, "hybrid_layer_pattern": [1, 0, 1]},
    ],
    "minicpm3": [
        {"tie_word_embeddings": True, "attention_bias": True, "scale_depth": 2.0},
        {
            "rope_scaling": {
                "type": "longrope",
                "original_max_position_embeddings": 64,
                "short_factor": [1.0] * 8,
                "long_factor": [1.0 + 0.25 * i for i in range(8)],
            },
            "max_position_embeddings": 256,
        },
    ],
    "minimax": [
        {"use_qk_norm": False, "tie_word_embeddings": True, "head_dim": None},
        {"num_experts_per_tok": 3, "rotary_dim": 16},
    ],
    "minimax_m3_vl": [
        {
            "text_config": {
                "use_gemma_norm": False,
                "use_qk_norm": False,
                "tie_word_embeddings": True,
                "rope_parameters": {"rope_theta": 5000.0, "partial_rotary_factor": 1.0},
                "mlp_layer_types": ["sparse", "dense", "sparse"],
                "layer_types": ["minimax_sparse", "full_attention", "minimax_sparse"],
                "sparse_attention_config": None,
                "index_n_heads": 1,
                "index_head_dim": 8,
                "index_block_size": 3,
                "index_topk_blocks": 3,
                "index_local_blocks": 2,
                "swiglu_limit": 1.5,
                "num_experts_per_tok": 3,
            }
        },
        {"text_config": {"sparse_attention_config": None, "moe_layer_freq": None}},
    ],
    "minimax_m2": [{"num_local_experts": 6}],
    "mistral4": [
        V3_GROUPS | {"tie_word_embeddings": True, "rope_interleave": False},
        {"q_lora_rank": "null", "attention_bias": True, "norm_topk_prob": False},
    ],
    "muse_spark": [
        {
            "text_config": {
                "num_experts_per_tok": 3,
                "routed_scaling_factor": 1.7,
                "moe_hidden_size": 64,
                "num_key_value_heads": 1,
                "output_multiplier": 0.8,
            }
        }
    ],
    "olmoe": [
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "head_dim": 24},
        {"norm_topk_prob": True, "rope_traditional": True, "rope_scaling": YARN},
    ],
    "phi-msft": [{"num_local_experts": 3}],
    "phimoe": [
        {"rope_scaling": "null", "num_experts_per_tok": 3, "num_local_experts": 6},
        {"router_jitter_noise": 0.2, "num_key_value_heads": 1},
    ],
    "phixtral": [{"num_experts_per_tok": 1, "rotary_dim": 16, "num_heads": 2}],
    "qwen3_vl_moe": [
        {"text_config": {"mlp_only_layers": [0], "norm_topk_prob": False}},
    ],
    "solar_open": [V3_GROUPS | {"use_qk_norm": True, "attention_bias": True}],
    "step3p5": [
        {
            "use_head_wise_attn_gate": False,
            "layer_types": [
                "full_attention",
                "sliding_attention",
                "sliding_attention",
                "full_attention",
            ],
            "yarn_only_types": ["full_attention"],
            "rope_scaling": YARN,
            "moe_layers_enum": "0,2",
            "attention_other_setting": None,
        },
        {
            "rope_theta": [10000.0, 500.0, 10000.0, 500.0],
            "partial_rotary_factors": None,
            "norm_expert_weight": False,
            "swiglu_limits": None,
            "swiglu_limits_shared": [0.4, 0.0, 0.0, 0.0],
        },
    ],
    "youtu_llm": [
        {"q_lora_rank": "null", "attention_bias": True, "mlp_bias": True, "rope_scaling": YARN},
        {"tie_word_embeddings": False, "rope_traditional": False},
    ],
}

# Published in another layout than the reference's.
HF_LAYOUT = (
    "Klear",
    "afmoe",
    "bailing_moe",
    "dbrx",
    "deepseek",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "dots1",
    "ernie4_5_moe",
    "exaone_moe",
    "glm4_moe",
    "glm4_moe_lite",
    "glm_moe_dsa",
    "gpt_oss",
    "granitemoe",
    "hunyuan",
    "kimi_k25",
    "kimi_vl",
    "laguna",
    "llama4",
    "longcat_flash",
    "longcat_flash_ngram",
    "mellum",
    "mimo_v2_flash",
    "minimax",
    "minimax_m3_vl",
    "mistral4",
    "olmoe",
    "phimoe",
    "phixtral",
    "qwen3_vl_moe",
    "solar_open",
    "step3p5",
)
