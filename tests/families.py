"""Tiny random models of every causal family that the installed transformers knows: its default config, shrunk."""

from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests import tiny

FAMILIES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
MOST_USED = (
    *("llama", "mistral", "ministral3", "mixtral", "qwen2", "qwen3", "qwen3_moe", "qwen3_next", "qwen3_5_text"),
    *("gemma2", "gemma3_text", "gemma3n_text", "gemma4_text", "phi3", "phimoe", "gpt_oss", "deepseek_v3", "glm4_moe"),
    *("granite", "granitemoehybrid", "nemotron_h", "falcon_h1", "lfm2", "olmo3", "smollm3"),
)
CONTEXT = 128
_HIDDEN, _WIDE, _HEAD, _HEADS = 32, 48, 8, 4
# Attribute names across families, and what they become.
_SIZES: dict[str, Any] = {
    name: size
    for size, names in (
        (tiny.VOCAB_SIZE, "vocab_size vocab_size_per_layer_input"),
        (tiny.PAD, "pad_token_id"),
        (tiny.BOS, "bos_token_id decoder_start_token_id"),
        (tiny.EOS, "eos_token_id"),
        (CONTEXT, "max_position_embeddings n_positions n_ctx max_seq_len max_target_positions"),
        (_HIDDEN, "hidden_size d_model n_embd emb_dim embedding_size embedding_dim lru_width word_embed_proj_dim"),
        (_HIDDEN, "attention_hidden_size input_embedding_size output_embedding_size pronunciation_embed_dim"),
        (_HIDDEN, "shape_embed_dim ple_embed_dim router_hidden_size qk_dim v_dim"),
        (2, "num_hidden_layers n_layer n_layers num_layers num_blocks decoder_layers encoder_layers"),
        (2, "num_decoder_layers num_encoder_layers num_key_value_heads multi_query_group_num num_key_value_groups"),
        (_HEADS, "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads"),
        (_HEADS, "num_decoder_attention_heads num_encoder_attention_heads attention_heads mamba_num_heads"),
        (_HEAD, "head_dim dim_head d_head attention_head_size kv_channels d_kv v_head_dim qk_rope_head_dim"),
        (
            _HEAD,
            "qk_nope_head_dim linear_key_head_dim linear_value_head_dim linear_head_dim index_head_dim mamba_d_head",
        ),
        (
            _HEAD,
            "q_lora_rank kv_lora_rank o_lora_rank mamba_d_state ssm_state_size state_size rotary_dim mamba_head_dim",
        ),
        (_HEAD, "mamba_chunk_size"),
        (_HEAD, "chunk_size mamba_ssm_state_size hidden_size_per_layer_input hc_lowrank gated_norm_rank adapter_rank"),
        (_WIDE, "intermediate_size ffn_dim d_inner dim_ff dff n_inner decoder_ffn_dim encoder_ffn_dim"),
        (_WIDE, "feed_forward_size moe_intermediate_size ffn_hidden_size shared_expert_intermediate_size"),
        (_WIDE, "expert_ffn_hidden_size moe_shared_expert_intermediate_size shared_intermediate_size mlp_hidden_size"),
        (4, "num_experts num_local_experts n_routed_experts moe_num_experts num_hash_heads"),
        (2, "num_experts_per_tok num_experts_per_token moe_topk moe_top_k moe_k top_k_experts linear_num_key_heads"),
        (4, "linear_num_value_heads index_topk mamba_n_heads n_mamba_heads linear_num_heads"),
        (16, "index_n_heads"),  # with few of them many keys tie at 0, and which of those count is anybody's guess
        (1, "n_group topk_group mamba_n_groups n_groups mamba_ngroups"),
    )
    for name in names.split()
}
# Lists of one value per layer.
_PER_LAYER = (
    *("layer_types", "mlp_layer_types", "layers_block_type", "layer_rope_theta", "no_rope_layers"),
    "indexer_types",
)
# What the table above cannot know.
_ALTERNATING = ["sliding_attention", "full_attention"]
_ASSISTANT = {
    **{"vocab_size": tiny.VOCAB_SIZE, "hidden_size": _HIDDEN, "intermediate_size": _WIDE, "num_hidden_layers": 2},
    **{"layer_types": _ALTERNATING, "num_kv_shared_layers": 2},
    **{"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0},
}
_ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4}
_BLT = {"hidden_size": _HIDDEN, "num_attention_heads": _HEADS, "num_hidden_layers": 2, "intermediate_size": _WIDE}
_BLT_LOCAL = {**_BLT, "hidden_size_global": _HIDDEN, "vocab_size": tiny.VOCAB_SIZE}
_QWEN4 = {
    **{"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": _HEAD, "indexer_budget": 4},
    **{"indexer_compress_ratio": 2, "ngram_vocab_size_base": 50, "split_ngram_parts": 2, "heads_per_ngram": 2},
}
_UNSETTABLE = {("prophetnet", "num_hidden_layers"), ("xlnet", "max_position_embeddings")}
_FIXED: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1], "mamba_d_head": 16},
    "blt": {
        **{"encoder_hash_byte_group_vocab": 100, "encoder_hash_byte_group_size": [3, 4]},
        **{"encoder_config": _BLT_LOCAL, "decoder_config": _BLT_LOCAL, "global_config": _BLT},
        "patcher_config": {**_BLT, "vocab_size": tiny.VOCAB_SIZE},
    },
    "cohere_compass_text": {
        "layer_types": _ALTERNATING,
        "rope_parameters": {kind: {**_ROPE, "mrope_section": [1, 1, 2]} for kind in _ALTERNATING},
        "num_hidden_layers": 2,
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "rope_parameters": _ROPE,
        "ffn_config": {"ffn_hidden_size": _WIDE, "moe_top_k": 2},
    },
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "falcon_h1": {"mamba_d_ssm": 32},
    "gemma3n_text": {"num_hidden_layers": 4, "num_kv_shared_layers": 2, "layer_types": _ALTERNATING * 2},
    "gemma4_assistant": {"text_config": {"model_type": "gemma4_text", **_ASSISTANT}},
    "gemma4_unified_assistant": {"text_config": {"model_type": "gemma4_unified_text", **_ASSISTANT}},
    "got_ocr2": {
        "vision_config": {
            **{"hidden_size": _HIDDEN, "num_hidden_layers": 1, "num_attention_heads": _HEADS, "mlp_dim": _WIDE},
            **{"output_channels": 16, "image_size": 32, "global_attn_indexes": [0]},
        }
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 6},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"], "mamba_d_head": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "head_dim": _HEAD},
    "musicgen": {"vocab_size": tiny.VOCAB_SIZE},
    "qwen4_exp": _QWEN4,
    "qwen4_exp_text": _QWEN4,
    "reformer": {
        **{"is_decoder": True, "axial_pos_shape": [8, 16], "axial_pos_embds_dim": [8, 24]},
        **{"attn_layers": ["local", "lsh"], "num_buckets": 2},
    },
    "roc_bert": {"pronunciation_vocab_size": 50, "shape_vocab_size": 50},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        **{"layers_block_type": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4},
        **{"attention_hidden_size": 2 * _HIDDEN, "head_dim": 2 * _HEAD},
    },
    "zamba2": {
        **{"layers_block_type": ["linear_attention", "hybrid"], "num_key_value_heads": 4, "n_mamba_heads": 8},
        **{"attention_hidden_size": 2 * _HIDDEN, "head_dim": 2 * _HEAD},
    },
    "zaya": {"num_experts_per_tok": 1},
}
# Unless is_decoder is set.
ENCODERS = (
    *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert"),
    *("rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod"),
)
VARIANTS = {
    **{name: (name, {}) for name in FAMILIES},
    **{f"{name}:decoder": (name, {"is_decoder": True}) for name in ENCODERS},
    "falcon:alibi": ("falcon", {"alibi": True}),
    "falcon:new": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "mistral:window": ("mistral", {"sliding_window": 4}),
    "phi3:longrope": (
        "phi3",
        {
            "original_max_position_embeddings": 12,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0] * 4,
                "long_factor": [4.0, 3.0, 2.0, 1.0],
            },
        },
    ),
    "xlm:causal": ("xlm", {"causal": True}),
}


def new_config(name: str) -> Any:
    """Return the tiny config of a family or variant."""
    family, settings = VARIANTS[name]
    model_class = _model_class(family)
    config_class = model_class.config_class
    return _shrunk(config_class, {**_FIXED.get(family, {}), **settings})


def new_model(name: str, seed: int = 0) -> Any:
    """Return a random model, float32, in evaluation mode, with distributions that are told apart."""
    torch.manual_seed(seed)
    model = _model_class(VARIANTS[name][0])(new_config(name)).float().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.3)
    return model


def _model_class(family: str) -> Any:
    return getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family])


def _shrunk(config_class: Any, settings: dict[str, Any]) -> Any:
    default = config_class()
    values = default.to_dict()
    sizes = {name: size for name, size in _SIZES.items() if name in values or hasattr(default, name)}
    if "kv_lora_rank" in sizes:
        sizes["num_key_value_heads"] = _HEADS  # latent attention has no groups
    kinds = _kinds(values, default)
    sizes |= kinds
    if kinds:
        num_layers = len(next(iter(kinds.values())))
        sizes |= {name: num_layers for name in ("num_hidden_layers", "n_layer", "num_layers") if hasattr(default, name)}
    for name in ("sliding_window", "attention_chunk_size"):
        if values.get(name):
            sizes[name] = 6
    for name in config_class.sub_configs:
        part = getattr(default, name, None)
        if isinstance(part, PreTrainedConfig) and name not in settings:
            sizes[name] = _shrunk(type(part), {}).to_dict()
    sizes = {name: size for name, size in sizes.items() if not _is_read_only(config_class, name)}
    return config_class(**{**sizes, **settings})


def _is_read_only(config_class: Any, name: str) -> bool:
    attribute = getattr(config_class, config_class.attribute_map.get(name, name), None)
    is_refused = (config_class.model_type, name) in _UNSETTABLE
    return isinstance(attribute, property) and (attribute.fset is None or is_refused)


def _kinds(values: dict[str, Any], default: Any) -> dict[str, list[Any]]:
    lists = {name: getattr(default, name, None) for name in _PER_LAYER}
    aliases = type(default).attribute_map
    lists = {name: value for name, value in lists.items() if isinstance(value, list) and value and name not in aliases}
    if not lists:
        return {}
    rows = list(zip(*lists.values(), strict=False))
    chosen = list(dict.fromkeys(rows))[:4]
    while len(chosen) < 2:
        chosen.append(chosen[-1])
    return {name: [row[place] for row in chosen] for place, name in enumerate(lists)}
