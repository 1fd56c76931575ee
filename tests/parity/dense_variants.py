"""Dense families: what each variant changes in the oracle's configuration, as in
variants.py."""

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "beta_fast": 16,
    "beta_slow": 2,
}
LINEAR = {"type": "linear", "factor": 2.5}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}
PROPORTIONAL = {"rope_type": "proportional", "partial_rotary_factor": 0.5, "factor": 2.0}
MROPE = {"type": "mrope", "mrope_section": [2, 3, 3]}


def longrope(pairs, name="longrope"):
    return {
        "type": name,
        "original_max_position_embeddings": 64,
        "short_factor": [1.0] * pairs,
        "long_factor": [1.0 + 0.25 * i for i in range(pairs)],
    }


ONE_KV_HEAD = {"num_key_value_heads": 1}
TIED = {"tie_word_embeddings": True}
UNTIED = {"tie_word_embeddings": False}
BIASES = {"attention_bias": True, "mlp_bias": True}

# Per family: what each variant changes in the oracle's configuration.
# None removes a field.
VARIANTS = {
    "llama": [
        TIED | BIASES | ONE_KV_HEAD | {"head_dim": None, "rope_scaling": LLAMA3},
        {
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "sliding_window": 6,
        },
        UNTIED | {"rope_scaling": YARN, "rope_traditional": True, "num_key_value_heads": None},
        {"rope_scaling": DYNAMIC, "max_position_embeddings": 16},
        {"rope_scaling": longrope(16), "rope_theta": 5000.0},
        {"rope_scaling": PROPORTIONAL, "mlp_bias": True},
        {"rope_scaling": dict(YARN, type="deepseek_yarn", mscale=1.2, mscale_all_dim=0.7)},
        {"rope_scaling": LINEAR, "attention_bias": True, "tie_word_embeddings": None},
    ],
    "mistral": [
        {"sliding_window": 4, "head_dim": 24, "hidden_size": 48, "intermediate_size": 80},
        TIED | {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": None},
        {"rope_scaling": dict(LLAMA3, factor=8.0), "rope_theta": 1e6, "model_type": "xverse"},
    ],
    "qwen2": [
        TIED | ONE_KV_HEAD | {"rope_scaling": YARN},
        {"rope_scaling": LINEAR, "rope_theta": None},
        {"rope_scaling": DYNAMIC, "max_position_embeddings": 20, "rope_traditional": True},
        {"rope_scaling": MROPE, "num_attention_heads": 8, "use_sliding_window": True},
    ],
    "qwen3": [
        TIED | {"head_dim": 16, "num_key_value_heads": 4},
        {
            "rope_theta": None,
            "rope_parameters": {"rope_type": "llama3", "rope_theta": 7000.0, "factor": 4.0},
        },
        ONE_KV_HEAD | {"rope_scaling": YARN, "rms_norm_eps": 1e-3},
    ],
    "gemma": [
        ONE_KV_HEAD | {"head_dim": 32, "rope_traditional": True},
        {"num_key_value_heads": 4, "num_hidden_layers": 3, "rope_theta": None},
        {"hidden_size": 96, "num_attention_heads": 2, "rms_norm_eps": 1e-3},
    ],
    "gemma2": [
        {"num_key_value_heads": 4, "query_pre_attn_scalar": 64.0, "attn_logit_softcapping": 5.0},
        ONE_KV_HEAD | {"final_logit_softcapping": 4.0, "rope_traditional": True},
        {"query_pre_attn_scalar": None, "attn_logit_softcapping": None, "head_dim": 32},
    ],
    "gemma3_text": [
        {"sliding_window_pattern": 1, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        UNTIED | ONE_KV_HEAD | {"sliding_window": 4, "sliding_window_pattern": 2},
        {"sliding_window": 30, "query_pre_attn_scalar": None, "rope_local_base_freq": None},
        {"head_dim": 32, "num_key_value_heads": 4, "num_hidden_layers": 6, "rope_theta": None},
    ],
    "gemma3": [
        {"text_config": UNTIED | {"sliding_window": 5, "head_dim": 32}},
        {"text_config": {"num_attention_heads": None, "num_key_value_heads": None, "head_dim": 8}},
        {"text_config": ONE_KV_HEAD | {"rope_scaling": {"type": "linear", "factor": 3.0}}},
    ],
    "phi3small": [
        ONE_KV_HEAD | {"dense_attention_every_n_layers": 1, "gegelu_limit": 0.5, "mup_use_scaling": False, "rope_position_scale": 0.5, "mup_embedding_multiplier": 3.0, "blocksparse_vert_stride": 3}
    ],
    "phi3": [
        TIED
        | {
            "rope_scaling": longrope(4),
            "partial_rotary_factor": 0.5,
            "original_max_position_embeddings": 64,
        },
        {"rope_scaling": None, "rope_traditional": True, "num_key_value_heads": None},
        ONE_KV_HEAD | {"rope_scaling": longrope(8, "su"), "max_position_embeddings": 4096},
        {"rope_scaling": {"type": "yarn", "long_factor": [1.0]}, "num_hidden_layers": 3},
    ],
    "smollm3": [
        UNTIED | {"no_rope_layers": [1, 0, 0, 1], "attention_bias": True},
        {"no_rope_layer_interval": 3, "rope_scaling": LLAMA3, "mlp_bias": True},
        ONE_KV_HEAD | {"no_rope_layer_interval": None, "head_dim": 24, "rope_scaling": YARN},
    ],
    "granite": [
        UNTIED | BIASES | {"logits_scaling": 8.0, "residual_multiplier": 0.22},
        ONE_KV_HEAD | {"rope_scaling": LINEAR, "attention_multiplier": 0.1},
        {"rope_scaling": LLAMA3, "embedding_multiplier": 12.0, "mlp_bias": True},
    ],
    "olmo2": [
        TIED | BIASES | {"head_dim": 24},
        ONE_KV_HEAD | {"rope_scaling": LLAMA3, "rope_traditional": True},
        {"num_key_value_heads": None, "rope_scaling": YARN, "rms_norm_eps": 1e-3},
    ],
    "cohere2": [
        {"attention_bias": True, "layer_norm_bias": True, "num_hidden_layers": 4},
        {"sliding_window_pattern": 3, "num_hidden_layers": 6, "sliding_window": 4},
        ONE_KV_HEAD | {"head_dim": 32, "num_attention_heads": 2, "logit_scale": None},
    ],
    "glm4": [
        {"attention_bias": False, "partial_rotary_factor": 1.0, "rope_traditional": False},
        ONE_KV_HEAD | {"head_dim": 32, "partial_rotary_factor": 0.25},
        {"num_key_value_heads": 4, "num_hidden_layers": 3, "rope_theta": 500.0},
    ],
    "starcoder2": [
        UNTIED | ONE_KV_HEAD,
        {"num_key_value_heads": 4, "norm_epsilon": None, "rope_theta": None},
        {"hidden_size": 96, "num_attention_heads": 6, "num_hidden_layers": 3},
    ],
    "mixtral": [
        TIED | {"num_local_experts": 8, "num_experts_per_tok": 3},
        ONE_KV_HEAD | {"num_experts_per_tok": 1, "rope_traditional": True},
        {"num_local_experts": 3, "rope_theta": None, "rms_norm_eps": 1e-3},
    ],
    "qwen2_moe": [
        {"num_experts": 6, "num_experts_per_tok": 4, "num_key_value_heads": None},
        ONE_KV_HEAD | {"num_experts_per_tok": 1, "shared_expert_intermediate_size": 32},
        {"rope_traditional": True, "rope_theta": None, "moe_intermediate_size": 64},
    ],
    "qwen3_moe": [
        {"norm_topk_prob": False, "decoder_sparse_step": 2, "num_hidden_layers": 4},
        TIED | {"mlp_only_layers": [0], "num_experts": 8, "num_experts_per_tok": 4},
        ONE_KV_HEAD | {"num_experts": 0, "head_dim": 32},
        {"norm_topk_prob": False, "num_experts_per_tok": 4, "moe_intermediate_size": 32},
    ],
    "afm7": [{"num_kv_heads": 1, "num_kv_reuse_layers": 1, "hidden_dim_scale_factor": 2.0}, {"num_kv_reuse_layers": 3, "num_heads": 2}],
    "apertus": [TIED | ONE_KV_HEAD | {"mlp_bias": True, "rope_scaling": LLAMA3}],
    "bitnet": [UNTIED | BIASES | ONE_KV_HEAD | {"rope_scaling": LINEAR, "hidden_size": 128}],
    "cohere": [BIASES | ONE_KV_HEAD | {"layer_norm_bias": True, "use_qk_norm": True}],
    "ernie4_5": [TIED | ONE_KV_HEAD | {"use_bias": True, "head_dim": 24}],
    "exaone": [UNTIED | BIASES | ONE_KV_HEAD | {"head_dim": None, "rope_scaling": YARN}],
    "exaone4": [TIED | {"sliding_window": 6, "sliding_window_pattern": "LG", "num_hidden_layers": 3}],
    "gemma3n": [{"text_config": ONE_KV_HEAD | {"altup_num_inputs": 3, "altup_active_idx": 1, "altup_coef_clip": 0.5, "altup_correct_scale": False, "vocab_size_per_layer_input": 48, "intermediate_size": [96, 64, 96, 128]}}],
    "gemma4": [{"text_config": UNTIED | {"attention_k_eq_v": True, "num_global_key_value_heads": 1, "hidden_size_per_layer_input": 0}}],
    "gemma4_text": [{"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 48}, {"num_kv_shared_layers": 1, "use_double_wide_mlp": False, "layer_types": ["full_attention", "sliding_attention"] * 2, "rope_parameters": {"full_attention": {"rope_theta": 5000.0}}}, {"num_kv_shared_layers": 0, "global_head_dim": 0, "rope_traditional": True}],
    "gemma4_unified": [],
    "glm": [UNTIED | ONE_KV_HEAD | {"attention_bias": True, "head_dim": 24}],
    "gpt2": [{"n_head": 2, "layer_norm_epsilon": 1e-3}],
    "gpt_bigcode": [UNTIED | BIASES | {"multi_query": False, "n_head": 2}, {"attention_bias": False, "mlp_bias": False}],
    "gpt_neox": [{"use_parallel_residual": False, "rotary_pct": 1.0, "num_attention_heads": 2}],
    "gptj": [{"rotary_dim": 8, "n_head": 2}],
    "helium": [TIED | BIASES | ONE_KV_HEAD],
    "hunyuan_v1_dense": [TIED | ONE_KV_HEAD | {"attention_bias": True, "use_qk_norm": False, "head_dim": 24}, {"rope_scaling": {"type": "dynamic", "alpha": 50.0, "factor": 1.0}}],
    "internlm2": [TIED | {"bias": True, "rope_scaling": None, "rope_traditional": True}, ONE_KV_HEAD | {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 16}],
    "internlm3": [TIED | {"bias": True, "qkv_bias": True, "rope_scaling": None, "num_key_value_heads": None}],
    "iquestcoder": [],
    "iquestloopcoder": [TIED | BIASES | ONE_KV_HEAD | {"loop_window_size": 5, "rope_scaling": YARN}],
    "lille-130m": [{"n_kv_heads": 1, "layer_norm_eps": 1e-3}],
    "llava": [{"text_config": TIED | {"head_dim": 24}}],
    "mimo": [TIED | ONE_KV_HEAD | {"rope_scaling": LINEAR, "rope_traditional": True}],
    "minicpm": [ONE_KV_HEAD | {"rope_scaling": LINEAR, "rope_traditional": True, "scale_depth": 0.7}],
    "ministral3": [TIED | {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6}, ONE_KV_HEAD | {"head_dim": None, "rope_parameters": {"rope_theta": 5000.0, "llama_4_scaling_beta": 0.5, "original_max_position_embeddings": 4}}],
    "mistral3": [{"text_config": {"tie_word_embeddings": None, "model_type": "ministral3", "rope_parameters": {"rope_theta": 5000.0, "llama_4_scaling_beta": 0.5, "original_max_position_embeddings": 4}}}],
    "muse_glimmer": [TIED | {"layer_rope_theta": [0, 1.0, 1.0, 0], "post_norm_eps": None, "head_dim": 32}, ONE_KV_HEAD | {"layer_types": ["full_attention", "sliding_attention"], "num_hidden_layers": 2}],
    "nanbeige": [{"num_loops": 3}, TIED | BIASES | {"loop_loss_weights": [0.5], "skip_loop_final_norm": True, "head_dim": 24}],
    "nanochat": [{"num_key_value_heads": 2, "rope_theta": 500.0, "num_hidden_layers": 3}],
    "nemotron-nas": [
        TIED | BIASES | {
            "hidden_act": "gelu_new",
            "rope_scaling": dict(LLAMA3, rope_type="llama3"),
            "block_configs": [
                {"attention": {"replace_with_linear": True}, "ffn": {"no_op": True}},
                {"attention": {"n_heads_in_group": 1}, "ffn": {"ffn_mult": 4.1}},
                {"attention": {"no_op": True}, "ffn": {"replace_with_linear": True}},
                {"attention": {"n_heads_in_group": 4}, "ffn": {"ffn_mult": 0.7}},
            ],
        }
    ],
    "nemotron": [TIED | BIASES | {"head_dim": 24, "partial_rotary_factor": 1.0, "rope_scaling": None}, ONE_KV_HEAD | {"rope_scaling": {"type": "linear", "factor": 2.5}}],
    "olmo": [{"mlp_hidden_size": 128, "embedding_size": 104, "rope_traditional": True, "n_heads": 2}],
    "olmo3": [TIED | {"layer_types": ["full_attention", "sliding_attention"] * 2, "attention_bias": True, "num_key_value_heads": None, "rope_scaling": YARN, "head_dim": 24}],
    "openelm": [{"share_input_output_layers": False, "normalize_qk_projections": False, "num_query_heads": [2, 6], "num_kv_heads": [1, 3], "ffn_multipliers": [0.6, 2.3]}],
    "phi": [ONE_KV_HEAD | {"partial_rotary_factor": 1.0, "num_hidden_layers": 3}],
    "pixtral": [{"text_config": {"num_attention_heads": None, "head_dim": 8, "num_key_value_heads": 8}}],
    "plamo": [{"n_shared_head": 4, "rope_traditional": True}],
    "plamo3": [UNTIED | {"sliding_window": 5, "sliding_window_pattern": 3, "rope_local_theta": None}],
    "qwen": [{"no_bias": False, "num_attention_heads": 2, "kv_channels": 32}],
    "qwen2_5_vl": [],
    "qwen2_vl": [{"text_config": TIED | ONE_KV_HEAD | {"rope_scaling": MROPE, "num_attention_heads": 8}}],
    "qwen3_vl": [{"text_config": TIED | {"rope_scaling": None}}],
    "seed_oss": [BIASES | ONE_KV_HEAD | {"tie_word_embeddings": False, "rope_scaling": YARN, "rope_traditional": True}],
    "spark2_5": [UNTIED | BIASES | {"layer_types": ["full_attention", "sliding_attention"], "num_hidden_layers": 2}],
    "stablelm": [ONE_KV_HEAD | {"use_qkv_bias": False, "use_parallel_residual": True, "qk_layernorm": True}],
    "talkie": [{"num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 16, "rope_theta": 500.0}],
    "telechat3": [TIED | BIASES | ONE_KV_HEAD | {"head_dim": 24, "rope_scaling": YARN}],
    "xverse": [],
}

HF_LAYOUT = (
    "gemma4",
    "gemma4_text",
    "gpt2",
    "gpt_neox",
    "gptj",
    "mixtral",
    "qwen2_moe",
    "qwen2_vl",
    "qwen3_moe",
    "qwen3_vl",
)
