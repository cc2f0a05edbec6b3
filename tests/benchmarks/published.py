"""One published model of each family: the sizes in its config.json, and its tensors' shapes.

`source` says where the sizes are from: "config.json" (a public copy of the published file),
"conversion script" (transformers' or the authors', which writes that file), "commonly given" (read
in no file here; the sum of parameters agrees with the model's name), or "transformers' defaults".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from dcsurgery.tiny.weights import rename
from tests.benchmarks.synthetic import TEXT as VICUNA_7B
from tests.benchmarks.synthetic import Shapes

CONFIG, SCRIPT = "config.json", "conversion script"
GIVEN, DEFAULTS = "commonly given", "transformers' defaults"


@dataclass(frozen=True)
class Published:
    """A repository and the sizes in its config.json.

    `names` is the module whose HUB_NAMES turn module names into those of published files; without
    one transformers' own way back does, whose slips `mended` corrects.
    """

    repository: str
    class_name: str
    source: str = DEFAULTS
    sizes: Mapping[str, Any] = field(default_factory=dict)
    names: str = ""
    mended: Sequence[tuple[str, str]] = ()


def _block(hidden: int, inner: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, **more,
    }  # fmt: skip


def _text(
    kind: str, hidden: int, inner: int, layers: int, heads: int, **more: Any
) -> dict[str, Any]:
    return {"text_config": {"model_type": kind, **_block(hidden, inner, layers, heads, **more)}}


def _siglip(image: int, patch: int, **more: Any) -> dict[str, Any]:
    """SigLIP so400m without its pooling head."""
    sizes = _block(1152, 4304, 27, 16, image_size=image, patch_size=patch)
    model = {"model_type": "siglip_vision_model", "vision_use_head": False}
    return {"vision_config": {**model, **sizes, **more}}


def _clip(image: int) -> dict[str, Any]:
    sizes = _block(1024, 4096, 24, 16, image_size=image, patch_size=14, projection_dim=768)
    return {"vision_config": {"model_type": "clip_vision_model", **sizes}}


_VICUNA = {"text_config": {"model_type": "llama", **VICUNA_7B}}
_LLAVA = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"}
_SIGLIP_L = {"model_type": "siglip_vision_model", **_block(1024, 4096, 24, 16), "image_size": 384}
_HUB = "dcsurgery.tiny.llava"
# Of Qwen2-VL's names; the models before transformers 4.52 lay in the file this way.
_QWEN = "tests.tiny.qwen2_vl"

PUBLISHED: dict[str, Published] = {
    "aya_vision": Published(
        "CohereLabs/aya-vision-8b", "AyaVisionForConditionalGeneration", GIVEN,
        {**_text("cohere2", 4096, 14336, 32, heads=32, num_key_value_heads=8, vocab_size=256000),
         **_siglip(364, 14), "alignment_intermediate_size": 28672, "downsample_factor": 2,
         "tie_word_embeddings": True},
        _HUB,
    ),
    "cohere2_vision": Published(
        "CohereLabs/command-a-vision-07-2025", "Cohere2VisionForConditionalGeneration", GIVEN,
        {**_text("cohere2", 12288, 36864, 64, heads=96, num_key_value_heads=8, vocab_size=256000),
         **_siglip(512, 16), "alignment_intermediate_size": 36864, "tie_word_embeddings": True},
        "tests.tiny.cohere2_vision",
    ),
    "deepseek_vl": Published(
        "deepseek-community/deepseek-vl-1.3b-chat", "DeepseekVLForConditionalGeneration", GIVEN,
        {**_text("llama", 2048, 5632, 24, heads=16, vocab_size=102400), "vision_config": _SIGLIP_L,
         "tie_word_embeddings": False},
        "tests.tiny.deepseek_vl",
    ),
    "deepseek_vl_hybrid": Published(
        "deepseek-community/deepseek-vl-7b-chat", "DeepseekVLHybridForConditionalGeneration", GIVEN,
        {**_text("llama", 4096, 11008, 30, heads=32, vocab_size=102400),
         "vision_config": _SIGLIP_L, "tie_word_embeddings": False},
        "tests.tiny.deepseek_vl",
    ),
    "ernie4_5_vl": Published(
        "baidu/ERNIE-4.5-VL-28B-A3B-PT", "Ernie4_5_VLMoeForConditionalGeneration",
    ),
    "gemma3": Published(
        "google/gemma-3-4b-it", "Gemma3ForConditionalGeneration", SCRIPT,
        {**_text("gemma3_text", 2560, 10240, 34, heads=8, num_key_value_heads=4, head_dim=256,
                 vocab_size=262208),
         **_siglip(896, 14), "mm_tokens_per_image": 256, "tie_word_embeddings": True},
        _HUB,
    ),
    "glm4v": Published("zai-org/GLM-4.1V-9B-Thinking", "Glm4vForConditionalGeneration"),
    "idefics2": Published(
        "HuggingFaceM4/idefics2-8b", "Idefics2ForConditionalGeneration", GIVEN,
        {**_text("mistral", 4096, 14336, 32, heads=32, num_key_value_heads=8, vocab_size=32003),
         "vision_config": {**_block(1152, 4304, 27, 16), "image_size": 980, "patch_size": 14},
         "perceiver_config": {"hidden_size": 4096, "resampler_n_latents": 64}},
    ),
    "idefics3": Published(
        "HuggingFaceM4/Idefics3-8B-Llama3", "Idefics3ForConditionalGeneration", GIVEN,
        {**_text("llama", 4096, 14336, 32, heads=32, num_key_value_heads=8, vocab_size=128259),
         "vision_config": {**_block(1152, 4304, 27, 16), "image_size": 364, "patch_size": 14},
         "scale_factor": 2},
    ),
    "internvl": Published(
        "OpenGVLab/InternVL3-1B-hf", "InternVLForConditionalGeneration", GIVEN,
        {**_text("qwen2", 896, 4864, 24, heads=14, num_key_value_heads=2, vocab_size=151674),
         "tie_word_embeddings": False},
        _HUB + ":HUB_NAMES_PLAIN",
    ),
    "janus": Published(
        "deepseek-community/Janus-Pro-7B", "JanusForConditionalGeneration", GIVEN,
        {**_text("llama", 4096, 11008, 30, heads=32, vocab_size=102400),
         "vision_config": {"projection_dim": 4096}, "vq_config": {"projection_dim": 4096},
         "tie_word_embeddings": False},
    ),
    "kimi_k25": Published(
        "moonshotai/Kimi-K2.5", "Kimi_K25ForConditionalGeneration", GIVEN,
        _text("deepseek_v3", 7168, 18432, 61, heads=64, num_key_value_heads=64, vocab_size=163840,
              n_routed_experts=384, first_k_dense_replace=1, n_group=1, topk_group=1),
        mended=((r"^language_model\.model\.blocks\.", "language_model.model.layers."),
                (r"^model\.mm_projector\.", "mm_projector.")),
    ),
    "lfm2_vl": Published(
        "LiquidAI/LFM2.5-VL-1.6B", "Lfm2VlForConditionalGeneration", CONFIG,
        {**_text("lfm2", 2048, 12288, 16, heads=32, num_key_value_heads=8, vocab_size=65536,
                 block_auto_adjust_ff_dim=True, block_ffn_dim_multiplier=1.0,
                 layer_types=["conv", "conv", "full_attention"] * 3
                 + ["conv", "full_attention"] * 3 + ["conv"]),
         "vision_config": {"model_type": "siglip2_vision_model", **_block(1152, 4304, 27, 16),
                           "num_patches": 256, "patch_size": 16, "vision_use_head": False},
         "downsample_factor": 2, "projector_hidden_size": 2048, "projector_use_layernorm": False},
        "tests.tiny.lfm2_vl",
    ),
    "lfm3_vl": Published("LiquidAI/LFM3-VL-2B", "Lfm3VlForConditionalGeneration"),
    "lighton_ocr": Published("lightonai/LightOnOCR-1B-1025", "LightOnOcrForConditionalGeneration"),
    "llama4": Published(
        "meta-llama/Llama-4-Scout-17B-16E-Instruct", "Llama4ForConditionalGeneration", SCRIPT,
        {**_text("llama4_text", 5120, 8192, 48, heads=40, num_key_value_heads=8, vocab_size=202048,
                 intermediate_size_mlp=16384, num_local_experts=16, interleave_moe_layer_step=1),
         "vision_config": {**_block(1408, 5632, 34, 16), "image_size": 336, "patch_size": 14,
                           "projector_input_dim": 4096, "projector_output_dim": 4096,
                           "vision_output_dim": 4096}},
    ),
    "llava": Published(
        "llava-hf/llava-1.5-7b-hf", "LlavaForConditionalGeneration", GIVEN,
        {**_VICUNA, **_clip(336), **_LLAVA}, _HUB,
    ),
    "llava_next": Published(
        "llava-hf/llava-v1.6-mistral-7b-hf", "LlavaNextForConditionalGeneration", GIVEN,
        {**_text("mistral", 4096, 14336, 32, heads=32, num_key_value_heads=8, vocab_size=32064),
         **_clip(336), **_LLAVA},
        _HUB,
    ),
    "llava_next_video": Published(
        "llava-hf/LLaVA-NeXT-Video-7B-hf", "LlavaNextVideoForConditionalGeneration", GIVEN,
        {**_VICUNA, **_clip(336), **_LLAVA}, _HUB,
    ),
    "llava_onevision": Published(
        "llava-hf/llava-onevision-qwen2-0.5b-ov-hf", "LlavaOnevisionForConditionalGeneration",
        GIVEN,
        {**_text("qwen2", 896, 4864, 24, heads=14, num_key_value_heads=2, vocab_size=152000,
                 tie_word_embeddings=True),
         **_siglip(384, 14, num_hidden_layers=26), "tie_word_embeddings": True},
        _HUB,
    ),
    "mini_gemini": Published(
        "YanweiLi/MGM-7B", "MiniGeminiForConditionalGeneration", GIVEN,
        {**_VICUNA, **_clip(336)}, "dcsurgery.tiny.mini_gemini:NAMES",
    ),
    "mistral3": Published(
        "mistralai/Mistral-Small-3.1-24B-Instruct-2503", "Mistral3ForConditionalGeneration", GIVEN,
        {**_text("mistral", 5120, 32768, 40, heads=32, num_key_value_heads=8, head_dim=128,
                 vocab_size=131072), "tie_word_embeddings": False},
        "tests.tiny.mistral3",
    ),
    "mistral_large4": Published(
        "mistralai/Mistral-Large-4-1T-A52B", "MistralLarge4ForConditionalGeneration",
    ),
    "mllama": Published(
        "meta-llama/Llama-3.2-90B-Vision-Instruct", "MllamaForConditionalGeneration", CONFIG,
        {**_text("mllama_text_model", 8192, 28672, 100, heads=64, num_key_value_heads=8,
                 vocab_size=128256, cross_attention_layers=list(range(3, 100, 5))),
         "vision_config": {"model_type": "mllama_vision_model", "hidden_size": 1280,
                           "intermediate_size": 5120, "num_hidden_layers": 32,
                           "num_global_layers": 8, "attention_heads": 16, "image_size": 560,
                           "patch_size": 14, "max_num_tiles": 4, "vision_output_dim": 7680,
                           "intermediate_layers_indices": [3, 7, 15, 23, 30]}},
        "tests.tiny.mllama",
    ),
    "molmo2": Published("allenai/Molmo2-8B", "Molmo2ForConditionalGeneration"),
    "paddleocr_vl": Published(
        "PaddlePaddle/PaddleOCR-VL", "PaddleOCRVLForConditionalGeneration",
        names="tests.tiny.paddleocr_vl",
    ),
    "paligemma": Published(
        "google/paligemma2-3b-pt-224", "PaliGemmaForConditionalGeneration", SCRIPT,
        {**_text("gemma2", 2304, 9216, 26, heads=8, num_key_value_heads=4, head_dim=256,
                 vocab_size=257216),
         **_siglip(224, 14, projection_dim=2304), "projection_dim": 2304},
        _HUB,
    ),
    "qianfan_ocr": Published(
        "baidu/Qianfan-OCR", "QianfanOCRForConditionalGeneration",
        mended=((r"^language_model\.model\.encoder\.", "language_model.model."),),
    ),
    "qwen2_5_vl": Published(
        "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen2_5_VLForConditionalGeneration", CONFIG,
        {**_block(3584, 18944, 28, 28), "num_key_value_heads": 4, "vocab_size": 152064,
         "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
         "vision_config": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420,
                           "num_heads": 16, "out_hidden_size": 3584, "patch_size": 14,
                           "spatial_merge_size": 2, "window_size": 112,
                           "fullatt_block_indexes": [7, 15, 23, 31]}},
        _QWEN,
    ),
    "qwen2_vl": Published(
        "Qwen/Qwen2-VL-2B-Instruct", "Qwen2VLForConditionalGeneration", GIVEN,
        {**_block(1536, 8960, 28, 12), "num_key_value_heads": 2, "vocab_size": 151936,
         "tie_word_embeddings": True,
         "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
         "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "mlp_ratio": 4,
                           "num_heads": 16, "patch_size": 14}},
        _QWEN,
    ),
    "qwen3_vl": Published(
        "Qwen/Qwen3.5-9B", "Qwen3_5ForConditionalGeneration", CONFIG,
        {**_text("qwen3_5_text", 4096, 12288, 32, heads=16, num_key_value_heads=4, head_dim=256,
                 vocab_size=248320, linear_num_key_heads=16, linear_num_value_heads=32,
                 linear_key_head_dim=128, linear_value_head_dim=128, linear_conv_kernel_dim=4,
                 layer_types=(["linear_attention"] * 3 + ["full_attention"]) * 8),
         "vision_config": {"deepstack_visual_indexes": [], "depth": 27, "hidden_size": 1152,
                           "intermediate_size": 4304, "num_heads": 16, "out_hidden_size": 4096,
                           "num_position_embeddings": 2304, "patch_size": 16,
                           "spatial_merge_size": 2}},
    ),
    "smolvlm": Published(
        "HuggingFaceTB/SmolVLM2-2.2B-Instruct", "SmolVLMForConditionalGeneration", GIVEN,
        {**_text("llama", 2048, 8192, 24, heads=32, vocab_size=49280),
         "vision_config": {**_block(1152, 4304, 27, 16), "image_size": 384, "patch_size": 14},
         "scale_factor": 3, "tie_word_embeddings": False},
    ),
    "video_llama_3": Published(
        "lkhl/VideoLLaMA3-2B-Image-HF", "VideoLlama3ForConditionalGeneration", GIVEN,
        {**_text("qwen2", 1536, 8960, 28, heads=12, num_key_value_heads=2, vocab_size=151936,
                 tie_word_embeddings=True),
         "vision_config": {**_block(1152, 4304, 27, 16), "patch_size": 14},
         "tie_word_embeddings": True},
    ),
    "video_llava": Published(
        "LanguageBind/Video-LLaVA-7B-hf", "VideoLlavaForConditionalGeneration", GIVEN,
        {**_VICUNA, **_clip(224), **_LLAVA}, _HUB,
    ),
    "vipllava": Published(
        "llava-hf/vip-llava-7b-hf", "VipLlavaForConditionalGeneration", GIVEN,
        {**_VICUNA, **_clip(336)}, _HUB,
    ),
}  # fmt: skip


def published_config(family: str) -> dict[str, Any]:
    """Return the config.json of a family's model: sizes, and nothing that a default says too."""
    model_class = _model_class(family)
    found = PUBLISHED[family]
    kind = model_class.config_class.model_type
    return {
        "architectures": [found.class_name], "model_type": kind, "torch_dtype": "bfloat16",
        **found.sizes,
    }  # fmt: skip


def published_shapes(family: str) -> Shapes:
    """Return every tensor of the model under its name in published files."""
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    model_class, config = _model_class(family), published_config(family)
    with torch.device("meta"):
        model = model_class(model_class.config_class.from_dict(config))
    tied = model._tied_weights_keys if getattr(model.config, "tie_word_embeddings", False) else {}
    state = {name: value for name, value in model.state_dict().items() if name not in (tied or {})}
    module, _, table = PUBLISHED[family].names.partition(":")
    names = PUBLISHED[family].mended
    if module:
        names = getattr(import_module(module), table or "HUB_NAMES")
    else:
        state = revert_weight_conversion(model, state)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return [(name, "BF16", shape) for name, shape in rename(shapes, names).items()]


def _model_class(family: str) -> Any:
    import transformers

    name = PUBLISHED[family].class_name
    ours = "dcsurgery.modeling.mini_gemini"
    return getattr(import_module(ours) if family == "mini_gemini" else transformers, name)
