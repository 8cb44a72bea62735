"""Models that continue text: decoders, mixtures of experts, and state spaces."""

from __future__ import annotations

from typing import Any

from reducible.architecture import Architecture
from reducible.pretrained import PLAIN, Inputs, last, logits, pretrained, tokens

CAUSAL = tokens(use_cache=False)
KEYS = {"num_key_value_heads": 2}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT: dict[str, Any] = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}


def causal(
    name: str,
    prefix: str,
    head: str = "ForCausalLM",
    family: str = "decoder",
    inputs: Inputs = CAUSAL,
    **sizes: Any,
) -> Architecture:
    return pretrained(name, family, prefix, head, inputs, last if head == "Model" else logits, **sizes)


def llama_like(name: str, prefix: str, family: str = "decoder", **sizes: Any) -> Architecture:
    return causal(name, prefix, family=family, **{**PLAIN, **SPECIAL, **sizes})


GPT2: dict[str, Any] = {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}

DECODERS = (
    causal("gpt2", "GPT2", "LMHeadModel", **GPT2),
    causal("gpt2_bare", "GPT2", "Model", **GPT2),
    causal("gpt2_classifier", "GPT2", "ForSequenceClassification", **GPT2, pad_token_id=0),
    causal("openai_gpt", "OpenAIGPT", "LMHeadModel", inputs=tokens(), **GPT2),
    causal("gpt_bigcode", "GPTBigCode", **GPT2),
    causal("imagegpt", "ImageGPT", "ForCausalImageModeling", **GPT2),
    causal("ctrl", "CTRL", "LMHeadModel", vocab_size=99, n_embd=32, n_layer=2, n_head=4, dff=64,
        n_positions=64),
    causal(
        "gpt_neo", "GPTNeo", vocab_size=99, hidden_size=32, num_layers=2, num_heads=4, window_size=4,
        attention_types=[[["global", "local"], 1]], max_position_embeddings=64,
    ),
    llama_like("gpt_neox", "GPTNeoX"),
    llama_like("gpt_neox_japanese", "GPTNeoXJapanese"),
    causal("gptj", "GPTJ", **GPT2, rotary_dim=4),
    causal("codegen", "CodeGen", **GPT2, rotary_dim=4),
    causal(
        "opt", "OPT", vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64,
        max_position_embeddings=64, word_embed_proj_dim=32, **SPECIAL,
    ),
    causal(
        "opt_projected", "OPT", vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        ffn_dim=64, max_position_embeddings=64, word_embed_proj_dim=16, do_layer_norm_before=False, **SPECIAL,
    ),
    causal("bloom", "Bloom", vocab_size=99, hidden_size=32, n_layer=2, n_head=4),
    llama_like("falcon", "Falcon", alibi=False, new_decoder_architecture=True, num_kv_heads=2),
    llama_like("falcon_multiquery", "Falcon", alibi=False, multi_query=True, parallel_attn=True),
    causal("mpt", "Mpt", vocab_size=99, d_model=32, n_heads=4, n_layers=2, expansion_ratio=2, max_seq_len=64),
    llama_like("llama", "Llama", **KEYS),
    causal("llama_bare", "Llama", "Model", **{**PLAIN, **SPECIAL, **KEYS}),
    llama_like("mistral", "Mistral", **KEYS, sliding_window=4),
    llama_like("ministral", "Ministral", **KEYS, head_dim=8, sliding_window=4),
    llama_like("gemma", "Gemma", num_key_value_heads=1, head_dim=8),
    llama_like("gemma2", "Gemma2", **KEYS, head_dim=8, sliding_window=4),
    pretrained(
        "gemma3", "decoder", "Gemma3Text", "Model", CAUSAL, last, **PLAIN, **SPECIAL, **KEYS, head_dim=8,
        sliding_window=4,
    ),
    llama_like("qwen2", "Qwen2", **KEYS),
    llama_like("qwen3", "Qwen3", **KEYS, head_dim=8),
    llama_like("phi", "Phi", partial_rotary_factor=0.5),
    llama_like("phi3", "Phi3", **KEYS),
    llama_like("stablelm", "StableLm", **KEYS, partial_rotary_factor=0.5),
    llama_like("cohere", "Cohere", **KEYS),
    llama_like("cohere2", "Cohere2", **KEYS, sliding_window=4),
    llama_like("granite", "Granite", **KEYS),
    llama_like("olmo", "Olmo"),
    llama_like("olmo2", "Olmo2"),
    llama_like("olmo3", "Olmo3", sliding_window=4),
    llama_like("starcoder2", "Starcoder2", **KEYS),
    llama_like("persimmon", "Persimmon", partial_rotary_factor=0.5),
    llama_like("nemotron", "Nemotron", **KEYS),
    llama_like("helium", "Helium", **KEYS, head_dim=8),
    llama_like("smollm3", "SmolLM3", **KEYS),
    llama_like("glm", "Glm", **KEYS, head_dim=8),
    llama_like("glm4", "Glm4", **KEYS, head_dim=8),
    llama_like("exaone4", "Exaone4", **KEYS, sliding_window=4),
    llama_like("arcee", "Arcee", **KEYS),
    llama_like("apertus", "Apertus", **KEYS),
    llama_like("ernie4_5", "Ernie4_5", **KEYS),
    llama_like("diffllama", "DiffLlama", **KEYS),
    llama_like("seed_oss", "SeedOss", **KEYS, head_dim=8),
    llama_like("hunyuan", "HunYuanDenseV1", **KEYS, head_dim=8),
    llama_like("bitnet", "BitNet", **KEYS),
    llama_like("biogpt", "BioGpt"),
    llama_like("nanochat", "NanoChat", **KEYS),
    llama_like("lfm2", "Lfm2", **KEYS, layer_types=["conv", "full_attention"], block_multiple_of=8),
    causal(
        "xglm", "XGLM", vocab_size=99, d_model=32, ffn_dim=64, num_layers=2, attention_heads=4,
        max_position_embeddings=64,
    ),
    llama_like("modernbert_decoder", "ModernBertDecoder", local_attention=4),
)  # fmt: skip

MIXTURES = (
    llama_like("mixtral", "Mixtral", "mixture", **KEYS, num_local_experts=4),
    llama_like("qwen2_moe", "Qwen2Moe", "mixture", **KEYS, **EXPERTS, shared_expert_intermediate_size=32),
    llama_like("qwen3_moe", "Qwen3Moe", "mixture", **KEYS, **EXPERTS, head_dim=8),
    llama_like("olmoe", "Olmoe", "mixture", num_experts=4, num_experts_per_tok=2),
    llama_like("granitemoe", "GraniteMoe", "mixture", **KEYS, num_local_experts=4, num_experts_per_tok=2),
    llama_like("phimoe", "Phimoe", "mixture", **KEYS, num_local_experts=4),
    llama_like("deepseek_v2", "DeepseekV2", "mixture", **LATENT),
    llama_like("deepseek_v3", "DeepseekV3", "mixture", **LATENT),
    llama_like(
        "gpt_oss", "GptOss", "mixture", **KEYS, num_local_experts=4, num_experts_per_tok=2, head_dim=8,
        sliding_window=4,
    ),
    llama_like("jetmoe", "JetMoe", "mixture", num_key_value_heads=2, kv_channels=8, num_local_experts=4,
               num_experts_per_tok=2),
    llama_like("dots1", "Dots1", "mixture", **KEYS, n_routed_experts=4, n_shared_experts=1, n_group=1,
               topk_group=1, num_experts_per_tok=2, moe_intermediate_size=32, first_k_dense_replace=1),
    llama_like("ernie4_5_moe", "Ernie4_5_Moe", "mixture", **KEYS, moe_num_experts=4, moe_k=2,
               moe_intermediate_size=32, moe_layer_start_index=1),
    causal(
        "dbrx", "Dbrx", family="mixture", vocab_size=99, d_model=32, n_heads=4, n_layers=2, max_seq_len=64,
        attn_config={"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        ffn_config={"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    ),
)  # fmt: skip

STATE: dict[str, Any] = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2}

STATES = (
    causal("mamba", "Mamba", family="state space", **STATE, state_size=8),
    causal("mamba_bare", "Mamba", "Model", family="state space", **STATE, state_size=8),
    causal("falcon_mamba", "FalconMamba", family="state space", **STATE, state_size=8),
    causal(
        "mamba2", "Mamba2", family="state space", **STATE, state_size=8, num_heads=8, head_dim=8, n_groups=2,
        chunk_size=4,
    ),
    causal(
        "rwkv", "Rwkv", family="state space", **STATE, attention_hidden_size=32, intermediate_size=64,
        context_length=64,
    ),
    llama_like(
        "recurrent_gemma", "RecurrentGemma", "state space", num_key_value_heads=1, lru_width=32,
        attention_window_size=4, conv1d_width=3, num_hidden_layers=3,
    ),
    llama_like(
        "jamba", "Jamba", "state space", **KEYS, num_experts=2, num_experts_per_tok=1, attn_layer_period=2,
        attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1, mamba_d_state=8, mamba_d_conv=4,
        mamba_expand=2, use_mamba_kernels=False,
    ),
    llama_like(
        "bamba", "Bamba", "state space", **KEYS, attn_layer_indices=[1], mamba_n_heads=8, mamba_d_head=8,
        mamba_d_state=8, mamba_n_groups=1, mamba_chunk_size=4, mamba_expand=2,
    ),
    llama_like(
        "zamba", "Zamba", "state space", mamba_d_state=8, mamba_d_conv=4, mamba_expand=2, mamba_dt_rank=4,
        n_mamba_heads=1, num_key_value_heads=4, layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
        use_mamba_kernels=False,
        num_hidden_layers=4,
    ),
    llama_like(
        "falcon_h1", "FalconH1", "state space", **KEYS, mamba_d_ssm=64, mamba_n_heads=8, mamba_d_head=8,
        mamba_d_state=8, mamba_n_groups=1, mamba_chunk_size=4,
    ),
    causal("xlstm", "xLSTM", family="state space", **STATE, num_heads=4, num_blocks=2, chunk_size=16),
    llama_like("qwen3_next", "Qwen3Next", "state space", **KEYS, **EXPERTS, head_dim=8,
        linear_num_key_heads=2,
               linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8,
               shared_expert_intermediate_size=32, layer_types=["linear_attention", "full_attention"]),
)  # fmt: skip

ARCHITECTURES = (*DECODERS, *MIXTURES, *STATES)
