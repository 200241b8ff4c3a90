"""Tiny models of many architectures, with random weights: `tiny.build("llama")`. No downloads."""

import torch
import transformers
from transformers import AutoConfig

_COMMON = {"vocab_size": 99, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_LLAMA = _COMMON | {
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
_GPT2 = _COMMON | {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}

CONFIGS: dict[str, tuple[str, dict]] = {
    "gpt2": ("GPT2LMHeadModel", _GPT2),
    "gpt_neox": ("GPTNeoXForCausalLM", _LLAMA | {"use_parallel_residual": True}),
    "gptj": ("GPTJForCausalLM", _GPT2 | {"rotary_dim": 4}),
    "gpt_neo": (
        "GPTNeoForCausalLM",
        _COMMON
        | {
            "hidden_size": 32,
            "num_layers": 3,
            "num_heads": 4,
            "attention_types": [[["global", "local", "global"], 1]],
            "window_size": 4,
            "intermediate_size": 56,
        },
    ),
    "bloom": ("BloomForCausalLM", _COMMON | {"hidden_size": 32, "n_layer": 3, "n_head": 4}),
    "falcon": (
        "FalconForCausalLM",
        _COMMON | {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "multi_query": True},
    ),
    "opt": (
        "OPTForCausalLM",
        _COMMON
        | {
            "hidden_size": 32,
            "ffn_dim": 56,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "word_embed_proj_dim": 32,
        },
    ),
    "llama": ("LlamaForCausalLM", _LLAMA),
    "mistral": ("MistralForCausalLM", _LLAMA | {"sliding_window": 4}),
    "qwen2": ("Qwen2ForCausalLM", _LLAMA),
    "qwen3": ("Qwen3ForCausalLM", _LLAMA | {"head_dim": 12}),
    "gemma": ("GemmaForCausalLM", _LLAMA),
    "gemma2": ("Gemma2ForCausalLM", _LLAMA | {"sliding_window": 4, "query_pre_attn_scalar": 8}),
    "gemma3_text": ("Gemma3ForCausalLM", _LLAMA | {"sliding_window": 4, "query_pre_attn_scalar": 8}),
    "phi3": ("Phi3ForCausalLM", _LLAMA),
    "olmo2": ("Olmo2ForCausalLM", _LLAMA),
    "mixtral": ("MixtralForCausalLM", _LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        _LLAMA | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "mlp_only_layers": [1]},
    ),
    "gpt_oss": (
        "GptOssForCausalLM",
        _LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4},
    ),
    "bert": (
        "BertForMaskedLM",
        _COMMON | {"hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 4},
    ),
    "vit": (
        "ViTForImageClassification",
        {
            "hidden_size": 32,
            "intermediate_size": 56,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 16,
            "patch_size": 8,
            "num_labels": 5,
        },
    ),
    "t5": (
        "T5ForConditionalGeneration",
        {
            "vocab_size": 99,
            "d_model": 32,
            "d_ff": 56,
            "d_kv": 8,
            "num_layers": 3,
            "num_heads": 4,
            "decoder_start_token_id": 0,
            "pad_token_id": 0,
        },
    ),
    # Not in any list of ours: met by discovery alone.
    "granite": (
        "GraniteForCausalLM",
        _LLAMA
        | {
            "residual_multiplier": 0.22,
            "embedding_multiplier": 12.0,
            "logits_scaling": 8.0,
            "attention_multiplier": 0.1,
        },
    ),
    "cohere": ("CohereForCausalLM", _LLAMA | {"logit_scale": 0.25}),
    "phi": ("PhiForCausalLM", _LLAMA | {"num_key_value_heads": 4}),
    "stablelm": ("StableLmForCausalLM", _LLAMA),
    "starcoder2": ("Starcoder2ForCausalLM", _LLAMA),
    "olmoe": ("OlmoeForCausalLM", _LLAMA | {"num_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        _LLAMA
        | {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 40,
        },
    ),
    "glm4": ("Glm4ForCausalLM", _LLAMA),
    "smollm3": ("SmolLM3ForCausalLM", _LLAMA),
    "nemotron": ("NemotronForCausalLM", _LLAMA),
    "mpt": ("MptForCausalLM", {"vocab_size": 99, "d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 64}),
    "codegen": ("CodeGenForCausalLM", _GPT2 | {"rotary_dim": 4, "n_head": 4}),
    "roberta": (
        "RobertaForMaskedLM",
        _COMMON | {"hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 4},
    ),
    "mamba": ("MambaForCausalLM", {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 4}),
    "arcee": ("ArceeForCausalLM", _LLAMA),
    "seed_oss": ("SeedOssForCausalLM", _LLAMA),
    "cohere2": ("Cohere2ForCausalLM", _LLAMA | {"sliding_window": 4}),
    "olmo": ("OlmoForCausalLM", _LLAMA),
    "olmo3": ("Olmo3ForCausalLM", _LLAMA | {"sliding_window": 4}),
    "exaone4": ("Exaone4ForCausalLM", _LLAMA | {"sliding_window": 4}),
    "persimmon": ("PersimmonForCausalLM", _LLAMA | {"num_key_value_heads": 4}),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", _GPT2),
    "xglm": ("XGLMForCausalLM", _COMMON | {"d_model": 32, "ffn_dim": 56, "num_layers": 3, "attention_heads": 4}),
    "biogpt": (
        "BioGptForCausalLM",
        _COMMON | {"hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 4},
    ),
    "deepseek_v2": (
        "DeepseekV2ForCausalLM",
        _LLAMA
        | {
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "n_shared_experts": 1,
        },
    ),
    "lfm2": (
        "Lfm2ForCausalLM",
        _LLAMA | {"layer_types": ["conv", "full_attention", "conv"], "block_auto_adjust_ff_dim": False},
    ),
    "distilbert": ("DistilBertForMaskedLM", _COMMON | {"dim": 32, "hidden_dim": 56, "n_layers": 3, "n_heads": 4}),
    "deberta": (
        "DebertaForMaskedLM",
        _COMMON | {"hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 4},
    ),
    "dinov2": (
        "Dinov2ForImageClassification",
        {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 16,
            "patch_size": 8,
            "num_labels": 5,
        },
    ),
}
NAMED = list(CONFIGS)[:22]
"""The architectures that the first issue names."""
NOT_CAUSAL = ("bert", "roberta", "distilbert", "deberta", "vit", "dinov2", "t5")
"""Those that do not continue a text."""


def build(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes) -> transformers.PreTrainedModel:
    """A random model of an architecture, in evaluation mode, with weights large enough that parts differ clearly."""
    class_name, options = CONFIGS[name]
    config = AutoConfig.for_model(name, **(options | changes))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, class_name)(config)
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=0.15)
            else:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return model.to(dtype).eval()
