"""The families whose towers read pictures of any shape, packed one behind another or padded."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from dcsurgery.architectures import _pictures, _steps
from dcsurgery.architectures._wiring import Wiring, counted, nominal, positioned, sized
from dcsurgery.architectures.table import counted_by_patches, row

QWEN = Wiring(
    site="visual.merger.mlp.0",
    parts=("visual.merger",),
    module="visual",
    blocks="blocks",
    norm="norm1",
    patches="visual.patch_embed.proj.weight",
    towers={},
    patch_size=14,
    depth="depth",
    output="",
    window="vision_config.spatial_merge_size",
    grid=nominal,
)
MISTRAL3 = Wiring(
    site="multi_modal_projector.linear_1",
    text="mistral",
    blocks="transformer.layers",
    norm="attention_norm",
    towers={"pixtral": 0},
    vision_config={"image_size": 1540, "patch_size": 14},
    image_size=1024,
    window="spatial_merge_size",
    merger="patch_merger.merging_layer.weight",
    layer="any",
    normed=False,
    grid=sized,
)

ARCHITECTURES = (
    row(
        "ernie4_5_vl",
        "Ernie4_5_VLMoeForConditionalGeneration",
        "baidu/ERNIE-4.5-VL-28B-A3B-PT",
        "ERNIE ViT",
        # The matrix merges windows of patches; another one behind it merges frames.
        replace(
            QWEN,
            site="resampler_model.spatial_linear.fc1",
            parts=("resampler_model",),
            module="vision_tower",
            patches="",
            published={"site": "resampler_model.spatial_linear.0", "module": "vision_model"},
        ),
        steps=_steps.merge,
        parameter_names=tuple(
            (f"{part}_linear.{old}.", f"{part}_linear.{new}.")
            for part in ("spatial", "temporal")
            for old, new in (("0", "fc1"), ("2", "fc2"), ("3", "ln"))
        ),
        preprocess=partial(
            _pictures.pack_squares,
            processor="Ernie4_5_VLMoeImageProcessor",
            words=_pictures.MERGE_WORDS,
        ),
    ),
    row(
        "glm4v",
        "Glm4vForConditionalGeneration Glm4vMoeForConditionalGeneration "
        "Glm46VForConditionalGeneration GlmOcrForConditionalGeneration "
        "Glm5NextForConditionalGeneration",
        "zai-org/GLM-4.1V-9B-Thinking zai-org/GLM-4.5V zai-org/GLM-OCR zai-org/GLM-5.3-Flash",
        "GLM-V ViT",
        # The first matrix is a strided convolution in the tower.
        replace(
            QWEN,
            site="visual.downsample",
            parts=("visual.downsample", "visual.merger"),
            image_size=336,
            grid=sized,
        ),
        steps=lambda anatomy, _: [["convolve", _steps.window(anatomy)]],
        preprocess=_pictures.pack_squares,
    ),
    row(
        "kimi_k25",
        "Kimi_K25ForConditionalGeneration",
        "moonshotai/Kimi-K2.5 moonshotai/Kimi-K2.6",
        "MoonViT",
        replace(
            QWEN,
            site="mm_projector.in_proj",
            text="deepseek_v3",
            parts=(),
            published={
                "site": "mm_projector.proj.0",
                "blocks": "encoder.blocks",
                "norm": "norm0",
            },
            module="vision_tower",
            blocks="layers",
            patches="patch_embed.proj.weight",
            depth="num_hidden_layers",
            window="vision_config.merge_kernel_size",
        ),
        rows=_steps.average_frames,
        parameter_names=(
            ("mm_projector.proj.0.", "mm_projector.in_proj."),
            ("mm_projector.proj.2.", "mm_projector.out_proj."),
        ),
        preprocess=_pictures.raster_patches,
    ),
    row(
        "lfm2_vl",
        "Lfm2VlForConditionalGeneration",
        "LiquidAI/LFM2-VL-450M LiquidAI/LFM2-VL-1.6B LiquidAI/LFM2-VL-3B",
        "SigLIP 2",
        # The tower reads pictures of any shape, padded to one length.
        Wiring(
            site="multi_modal_projector.linear_1",
            text="lfm2",
            towers={"siglip2_vision_model": 0},
            output="",
            window="downsample_factor",
            grid=counted,
        ),
        steps=lambda anatomy, _: [["shuffle_each", _steps.window(anatomy), "spatial_shapes", 2]],
        preprocess=_pictures.padded_patches,
    ),
    row(
        "lfm3_vl",
        "Lfm3VlForConditionalGeneration",
        "LiquidAI/LFM3-VL-2B",
        "convolutions and attention",
        replace(
            QWEN,
            site="multi_modal_projector.linear_1",
            text="lfm3",
            parts=(),
            module="vision_tower",
            blocks="layers",
            norm="operator_norm",
            patches="",
            depth="num_hidden_layers",
            patch_size=16,
            normed=False,
        ),
        steps=_steps.merge,
        preprocess=_pictures.pack_squares,
    ),
    row(
        "lighton_ocr",
        "LightOnOcrForConditionalGeneration",
        "lightonai/LightOnOCR-1B-1025",
        "Pixtral",
        replace(
            MISTRAL3,
            site="vision_projection.linear_1",
            text="qwen3",
            module="vision_encoder",
            # The code reads the last state whatever a config says.
            layer="",
        ),
        steps=_steps.cut_windows,
    ),
    row(
        "mistral3",
        "Mistral3ForConditionalGeneration",
        "mistralai/Mistral-Small-3.1-24B-Instruct-2503 "
        "mistralai/Mistral-Small-3.2-24B-Instruct-2506",
        "Pixtral",
        MISTRAL3,
        steps=_steps.cut_windows,
        counting=counted_by_patches(
            "PixtralProcessor", "spatial_merge_size", {"patch_size": 16, "spatial_merge_size": 1}
        ),
    ),
    row(
        "mistral_large4",
        "MistralLarge4ForConditionalGeneration",
        "mistralai/Mistral-Large-4-1T-A52B",
        "Pixtral",
        replace(
            MISTRAL3,
            text="mistral_large4_text",
            published={
                "site": "vision_language_adapter.w_in",
                "parts": ("vision_language_adapter", "patch_merger", "pre_mm_projector_norm"),
                "module": "vision_encoder",
            },
        ),
        steps=_steps.cut_windows,
        parameter_names=(
            ("vision_language_adapter.w_in.", "multi_modal_projector.linear_1."),
            ("vision_language_adapter.w_out.", "multi_modal_projector.linear_2."),
            ("patch_merger.merging_layer.", "multi_modal_projector.patch_merger.merging_layer."),
            ("pre_mm_projector_norm.", "multi_modal_projector.norm."),
        ),
        counting=counted_by_patches(
            "PixtralProcessor", "spatial_merge_size", {"patch_size": 16, "spatial_merge_size": 1}
        ),
    ),
    row(
        "paddleocr_vl",
        "PaddleOCRVLForConditionalGeneration",
        "PaddlePaddle/PaddleOCR-VL",
        "PaddleOCR-VL ViT",
        replace(
            QWEN,
            site="projector.linear_1",
            parts=(),
            published={"site": "mlp_AR.linear_1"},
            blocks="encoder.layers",
            norm="layer_norm1",
            patches="embeddings.patch_embedding.weight",
            depth="num_hidden_layers",
            image_size=384,
            grid=sized,
        ),
        steps=lambda anatomy, _: [["merge_each", _steps.window(anatomy), "grid_thw", 1]],
        parameter_names=(("mlp_AR.", "projector."),),
        preprocess=partial(
            _pictures.pack_squares,
            processor="PaddleOCRVLImageProcessor",
            words=_pictures.MERGE_WORDS,
        ),
    ),
    row(
        "qwen2_5_vl",
        "Qwen2_5_VLForConditionalGeneration Exaone4_5_ForConditionalGeneration",
        "Qwen/Qwen2.5-VL-3B-Instruct Qwen/Qwen2.5-VL-7B-Instruct LGAI-EXAONE/EXAONE-4.5-33B",
        "Qwen2.5-VL ViT",
        QWEN,
        steps=_steps.merge,
        preprocess=_pictures.pack_squares,
    ),
    row(
        "qwen2_vl",
        "Qwen2VLForConditionalGeneration",
        "Qwen/Qwen2-VL-2B-Instruct Qwen/Qwen2-VL-7B-Instruct",
        "Qwen2-VL ViT",
        # vision_config.hidden_size is the language model's width here.
        replace(QWEN, width="embed_dim"),
        steps=_steps.merge,
        preprocess=_pictures.pack_squares,
    ),
    row(
        "qwen3_vl",
        "Qwen3VLForConditionalGeneration Qwen3VLMoeForConditionalGeneration "
        "Qwen3_5ForConditionalGeneration Qwen3_5MoeForConditionalGeneration "
        "Qwen4ExpForConditionalGeneration CohereCompassForConditionalGeneration",
        "Qwen/Qwen3-VL-4B-Instruct Qwen/Qwen3-VL-30B-A3B-Instruct Qwen/Qwen3.5-27B "
        "CohereLabs/North-Micro-Vision-Instruct",
        "Qwen3-VL ViT",
        # The main merger; DeepStack's own (Qwen3-VL) stay as they are.
        replace(QWEN, site="visual.merger.linear_fc1", patch_size=16, grid=positioned),
        steps=_steps.merge,
        preprocess=_pictures.pack_squares,
    ),
    row(
        "video_llama_3",
        "VideoLlama3ForConditionalGeneration",
        "lkhl/VideoLLaMA3-2B-Image-HF",
        "VideoLLaMA 3 ViT",
        replace(
            QWEN,
            site="projector.readout.0",
            parts=("projector",),
            text="qwen2",
            module="vision_model",
            blocks="encoder.layers",
            norm="layer_norm1",
            patches="vision_model.embeddings.patch_embedding.weight",
            depth="num_hidden_layers",
            patch_size=16,
            window="",
        ),
        steps=lambda anatomy, _: [["halve", "grid_thw", 1, "merge_sizes", 2]],
        preprocess=partial(_pictures.pack_squares, processor="VideoLlama3ImageProcessor", words={}),
    ),
)
