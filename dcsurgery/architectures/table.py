"""The families that one description each is enough for: a row says all that is particular."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import isqrt
from typing import Any

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import Architecture, Config, Counting, Tensors, _pictures, _steps
from dcsurgery.architectures import _reading as reading
from dcsurgery.architectures._wiring import Wiring, read_anatomy

IDEFICS3 = Wiring(
    site="connector.modality_projection.proj",
    text="llama",
    module="vision_model",
    towers={"idefics3_vision": 0},
    fixed=True,
    patch_size=32,
    window="scale_factor",
)
INTERNVL = Wiring(
    site="multi_modal_projector.linear_1",
    text="qwen2",
    blocks="encoder.layer",
    norm="layernorm_before",
    towers={"internvl_vision": 1},
    fixed=True,
    image_size=448,
    patch_size=14,
    window="downsample_ratio",
    layer="default",
)


def row(
    name: str,
    class_names: str,
    checkpoints: str,
    towers: str,
    wiring: Wiring,
    *,
    read: Callable[..., Anatomy] = read_anatomy,
    **more: Any,
) -> Architecture:
    """Return an architecture; `class_names` and `checkpoints` are separated by spaces.

    `read` is read_anatomy or refines it; `more` are fields of Architecture.
    """
    return Architecture(
        name=name,
        class_names=tuple(class_names.split()),
        dissect=partial(read, name=name, wiring=wiring),
        checkpoints=tuple(checkpoints.split()),
        towers=towers,
        **more,
    )


def _internvl(
    config: Config, tensors: Tensors, *, name: str, wiring: Wiring, tied: bool
) -> Anatomy:
    """Say whether the feature has passed the last norm: not where patches are mean-pooled.

    Untied towers name their output by -1 alone; the same state by its positive number has not.
    """
    anatomy = read_anatomy(config, tensors, name=name, wiring=wiring)
    last = tied and anatomy.feature_layer == anatomy.tower.depth
    output = config.get("vision_feature_layer", -1) == -1 or last
    pooled = reading.section(config, "vision_config").get("use_mean_pooling", True)
    return replace(anatomy, normed=output and not pooled)


def _gemma3(config: Config, tensors: Tensors, *, name: str, wiring: Wiring) -> Anatomy:
    """Count the tokens that the grid is pooled to."""
    anatomy = read_anatomy(config, tensors, name=name, wiring=wiring)
    tokens, grid = reading.positive(config, "mm_tokens_per_image", 256), anatomy.tower.grid
    side = isqrt(tokens)
    reading.require(
        side**2 == tokens and grid % side == 0,
        f"mm_tokens_per_image is {tokens}, which a grid of {grid} x {grid} patches cannot be "
        "pooled to",
    )
    return replace(anatomy, image_tokens=tokens)


def _idefics2(config: Config, tensors: Tensors, *, name: str, wiring: Wiring) -> Anatomy:
    """Count the latents of the perceiver behind the two matrices, which read every patch.

    A processor that cuts a picture in four gives five times as many.
    """
    anatomy = read_anatomy(config, tensors, name=name, wiring=wiring)
    latents = reading.section(config, "perceiver_config")
    return replace(
        anatomy,
        projector=anatomy.projector.reading(anatomy.image_tokens, anatomy.image_tokens),
        image_tokens=reading.positive(latents, "resampler_n_latents", 64),
        variable_resolution=True,
    )


def _counted(
    class_name: str, word: str, default: int | None = None
) -> Callable[[Anatomy], Counting]:
    """Return how a processor counts that is told the tokens of a picture (of a tile) by `word`.

    Without a default its image processor is told, and must be.
    """

    def find(anatomy: Anatomy) -> Counting:
        words = {word: anatomy.image_tokens}
        absent = {} if default is None else {word: default}
        return Counting(
            class_name, words, absent, lambda stated: int(stated[word]), of_images=default is None
        )

    return find


def counted_by_patches(
    class_name: str, window: str, absent: dict[str, int], *, size: str = ""
) -> Callable[[Anatomy], Counting]:
    """Return how a processor counts that is told patches and how many a side are joined (`window`),
    and where it knows no picture, its `size`.
    """

    def find(anatomy: Anatomy) -> Counting:
        tower = anatomy.tower
        joined = isqrt(tower.grid**2 // anatomy.image_tokens)
        words = {"patch_size": tower.patch_size, window: joined}
        words |= {size: tower.image_size} if size else {}

        def count(stated: Config) -> int:
            side: int = stated.get(size, tower.image_size)
            return int(side // (stated["patch_size"] * stated[window])) ** 2

        return Counting(class_name, words, absent, count)

    return find


def _encode_llama4(model: Any, inputs: dict[str, Any]) -> Any:
    """Return what the language model reads: the projector runs outside get_image_features."""
    states = model.vision_model(inputs["pixel_values"]).last_hidden_state
    return model.multi_modal_projector(states.flatten(0, 1))


ARCHITECTURES = (
    row(
        "aya_vision",
        "AyaVisionForConditionalGeneration",
        "CohereLabs/aya-vision-8b CohereLabs/aya-vision-32b",
        "SigLIP",
        Wiring(
            site="multi_modal_projector.linear_1",
            text="cohere2",
            towers={"siglip_vision_model": 0, "clip_vision_model": 1},
            vision_config={"image_size": 384, "patch_size": 14},
            output="alignment_intermediate_size",
            window="downsample_factor",
            layer="full",
            normed=False,
        ),
        steps=_steps.shuffle,
        counting=counted_by_patches(
            "AyaVisionProcessor",
            "downsample_factor",
            {"patch_size": 28, "downsample_factor": 1, "img_size": 364},
            size="img_size",
        ),
    ),
    row(
        "cohere2_vision",
        "Cohere2VisionForConditionalGeneration",
        "CohereLabs/command-a-vision-07-2025",
        "SigLIP",
        Wiring(
            site="multi_modal_projector.linear_1",
            text="cohere2",
            vision_config={"image_size": 512},
            output="alignment_intermediate_size",
            window="downsample_factor",
        ),
        steps=_steps.shuffle,
    ),
    row(
        "deepseek_vl",
        "DeepseekVLForConditionalGeneration",
        "deepseek-community/deepseek-vl-1.3b-chat",
        "SigLIP",
        Wiring(site="aligner.linear1", text="llama", module="vision_model"),
        counting=_counted("DeepseekVLProcessor", "num_image_tokens", 576),
    ),
    row(
        "deepseek_vl_hybrid",
        "DeepseekVLHybridForConditionalGeneration",
        "deepseek-community/deepseek-vl-7b-chat",
        "SigLIP (SAM is left alone)",
        # The half of the projector that reads SigLIP.
        Wiring(site="aligner.vision_proj", text="llama", module="vision_model", output=""),
        preprocess=_pictures.two_sizes,
        counting=_counted("DeepseekVLHybridProcessor", "num_image_tokens", 576),
    ),
    row(
        "gemma3",
        "Gemma3ForConditionalGeneration",
        "google/gemma-3-4b-it google/gemma-3-12b-it google/gemma-3-27b-it",
        "SigLIP",
        # The matrix is a bare parameter of the projector, whose output is its product.
        Wiring(
            site="multi_modal_projector",
            text="gemma3_text",
            matrix="multi_modal_projector.mm_input_projection_weight",
            transposed=True,
        ),
        read=_gemma3,
        steps=_steps.average,
        counting=_counted("Gemma3Processor", "image_seq_length", 256),
    ),
    row(
        "idefics2",
        "Idefics2ForConditionalGeneration",
        "HuggingFaceM4/idefics2-8b HuggingFaceM4/idefics2-8b-chatty",
        "SigLIP",
        # Published configs say "idefics2"; the config class goes by its own name whatever they say.
        Wiring(
            site="connector.modality_projection.gate_proj",
            second="connector.modality_projection.up_proj",
            parts=("connector.modality_projection",),
            text="mistral",
            module="vision_model",
            towers={"idefics2_vision": 0},
            fixed=True,
            patch_size=32,
            output="",
        ),
        read=_idefics2,
        preprocess=_pictures.one_prompt,
        counting=_counted("Idefics2Processor", "image_seq_len", 64),
    ),
    row(
        "idefics3",
        "Idefics3ForConditionalGeneration",
        "HuggingFaceM4/Idefics3-8B-Llama3 HuggingFaceTB/SmolVLM-256M-Instruct",
        "SigLIP",
        IDEFICS3,
        steps=_steps.shuffle,
        preprocess=_pictures.one_prompt,
        counting=_counted("Idefics3Processor", "image_seq_len", 169),
    ),
    row(
        "internvl",
        "InternVLForConditionalGeneration",
        "OpenGVLab/InternVL3-1B-hf OpenGVLab/InternVL3_5-8B-HF",
        "InternViT",
        INTERNVL,
        read=partial(_internvl, tied=False),
        steps=_steps.shuffle,
        counting=_counted("InternVLProcessor", "image_seq_length", 256),
    ),
    row(
        "janus",
        "JanusForConditionalGeneration",
        "deepseek-community/Janus-Pro-1B deepseek-community/Janus-Pro-7B",
        "SigLIP-like",
        # The understanding path.
        Wiring(
            site="aligner.fc1",
            text="llama",
            module="vision_model",
            towers={"janus_vision_model": 0},
            fixed=True,
            image_size=384,
            output="vision_config.projection_dim",
        ),
        counting=_counted("JanusProcessor", "num_image_tokens", 576),
    ),
    row(
        "llama4",
        "Llama4ForConditionalGeneration",
        "meta-llama/Llama-4-Scout-17B-16E-Instruct meta-llama/Llama-4-Maverick-17B-128E-Instruct",
        "own, CLS behind the patches",
        # The matrix is that of the adapter inside the tower; the projector behind it has another.
        Wiring(
            site="vision_model.vision_adapter.mlp.fc1",
            text="llama4_text",
            parts=("vision_model.vision_adapter", "multi_modal_projector"),
            module="vision_model",
            blocks="layers",
            norm="input_layernorm",
            towers={"llama4_vision_model": 0},
            fixed=True,
            image_size=448,
            patch_size=14,
            output="vision_config.projector_input_dim",
            window="vision_config.pixel_shuffle_ratio",
        ),
        steps=lambda anatomy, config: [["cut_last", 1], *_steps.shuffle(anatomy, config)],
        encode=_encode_llama4,
    ),
    row(
        "paligemma",
        "PaliGemmaForConditionalGeneration",
        "google/paligemma-3b-pt-224 google/paligemma2-3b-pt-224",
        "SigLIP",
        Wiring(
            site="multi_modal_projector.linear",
            text="gemma",
            vision_config={"patch_size": 14},
            output="projection_dim",
        ),
        counting=_counted("PaliGemmaProcessor", "image_seq_length"),
    ),
    row(
        "qianfan_ocr",
        "QianfanOCRForConditionalGeneration",
        "baidu/Qianfan-OCR",
        "InternViT",
        replace(
            INTERNVL,
            text="qwen3",
            blocks="layers",
            towers={"qianfan_ocr_vision": 1},
            # The names of InternVL's original code.
            published={
                "site": "mlp1.1",
                "parts": ("mlp1",),
                "module": "vision_model",
                "blocks": "encoder.layers",
                "norm": "norm1",
            },
        ),
        read=partial(_internvl, tied=True),
        steps=_steps.shuffle,
        parameter_names=(
            ("mlp1.0.", "multi_modal_projector.layer_norm."),
            ("mlp1.1.", "multi_modal_projector.linear_1."),
            ("mlp1.3.", "multi_modal_projector.linear_2."),
        ),
        counting=_counted("QianfanOCRProcessor", "image_seq_length", 256),
    ),
    row(
        "smolvlm",
        "SmolVLMForConditionalGeneration",
        "HuggingFaceTB/SmolVLM2-2.2B-Instruct HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
        "SigLIP",
        # Videos are frames among the images.
        replace(IDEFICS3, towers={"smolvlm_vision": 0}),
        steps=_steps.shuffle,
        preprocess=_pictures.one_prompt,
        counting=_counted("SmolVLMProcessor", "image_seq_len", 169),
    ),
)
