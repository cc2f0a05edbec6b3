"""Families that are recognised and cannot take a dense connector, with the reason."""

from __future__ import annotations

_QFORMER = "a Q-Former reads the tower: its projection sees query tokens, not patch tokens"
_RESAMPLER = "its projector is an attention resampler: what it gives are queries, not patch tokens"
_CROSS = "its language model reads the tower by cross-attention: there is no projector"
_PYRAMID = "its tower is a pyramid: stages differ in channels and resolution"
_MERGING = "its tower merges patches between blocks: states before and after have other tokens"
_CODEBOOK = "it has no vision tower: images become tokens of a codebook"
_PIXELS = "it has no vision tower: patches of pixels go straight to the language model"

REFUSED: dict[str, str] = {
    "AriaForConditionalGeneration": _RESAMPLER,
    "Blip2ForConditionalGeneration": _QFORMER,
    "BlipForConditionalGeneration": _CROSS,
    "ChameleonForConditionalGeneration": _CODEBOOK,
    "Emu3ForConditionalGeneration": _CODEBOOK,
    "FastVlmForConditionalGeneration": _PYRAMID,
    "Florence2ForConditionalGeneration": _PYRAMID,
    "FuyuForCausalLM": _PIXELS,
    "Gemma3nForConditionalGeneration": _PYRAMID,
    "Gemma4ForConditionalGeneration": (
        "its tower pools patches by their positions and rescales them: its states do not line up "
        "with what the projector reads"
    ),
    "Gemma4UnifiedForConditionalGeneration": _PIXELS,
    "GotOcr2ForConditionalGeneration": (
        "its tower (SAM) gives feature maps and narrows them by convolutions before the projector"
    ),
    "Granite4VisionForConditionalGeneration": (
        "it already reads many hidden states, each through a Q-Former of its own"
    ),
    "GraniteDoclingForConditionalGeneration": (
        "it already reads many hidden states (DeepStack), by one of two routes with other windows"
    ),
    "IdeficsForVisionText2Text": _CROSS,
    "InklingForConditionalGeneration": _PYRAMID,
    "InstructBlipForConditionalGeneration": _QFORMER,
    "InstructBlipVideoForConditionalGeneration": _QFORMER,
    "Kosmos2ForConditionalGeneration": _RESAMPLER,
    "Kosmos2_5ForConditionalGeneration": _RESAMPLER,
    "MiniCPMV4_6ForConditionalGeneration": _MERGING,
    "MiniCPMV4_7ForConditionalGeneration": _MERGING,
    "Ovis2ForConditionalGeneration": (
        "its tower feeds a softmax over a visual vocabulary, not a projector"
    ),
    "PerceptionLMForConditionalGeneration": (
        "its tower is code of the timm package, which gives other states and is not required here"
    ),
    "Phi4MultimodalForCausalLM": (
        "it puts learned tokens among the patch tokens before the projector, and transformers does "
        "not load it as an image-text-to-text model"
    ),
}
