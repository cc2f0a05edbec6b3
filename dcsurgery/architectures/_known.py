"""Well-known repositories that are not read as they are: what to use instead, or why not."""

from __future__ import annotations

from dataclasses import dataclass

from dcsurgery.architectures._refused import REFUSED

OWN_CODE = "its code comes with the weights, and transformers has no class for it"
_RESAMPLER = "its projector is an attention resampler: what it gives are queries, not patch tokens"
_RETRIEVAL = "it answers with embeddings, not with text"
_OMNI = "its vision and language model are the thinker, one part of several in its files"


@dataclass(frozen=True)
class Known:
    """Repositories of one kind: `class_names` are what their configs say, `twin` the same model as
    a supported repository, `reason` why there is none (REFUSED has that of transformers' classes).
    """

    repositories: tuple[str, ...]
    class_names: tuple[str, ...]
    twin: str = ""
    reason: str = OWN_CODE

    @property
    def why(self) -> str:
        """The reason, of whichever table."""
        return REFUSED.get(self.class_names[0], self.reason)


def _row(repositories: str, class_names: str, twin: str = "", reason: str = OWN_CODE) -> Known:
    return Known(tuple(repositories.split()), tuple(class_names.split()), twin, reason)


KNOWN: tuple[Known, ...] = (
    _row("OpenGVLab/InternVL3-8B OpenGVLab/InternVL2_5-8B", "InternVLChatModel",
         "OpenGVLab/InternVL3-1B-hf or another InternVL repository whose name ends in -hf"),
    _row("deepseek-ai/Janus-Pro-1B deepseek-ai/deepseek-vl-7b-chat", "MultiModalityCausalLM",
         "deepseek-community/Janus-Pro-1B or deepseek-community/deepseek-vl-7b-chat"),
    _row("DAMO-NLP-SG/VideoLLaMA3-2B", "Videollama3Qwen2ForCausalLM",
         "lkhl/VideoLLaMA3-2B-Image-HF"),
    _row("mistralai/Pixtral-12B-2409", "PixtralModel", "mistral-community/pixtral-12b"),
    _row("allenai/Molmo-7B-D-0924", "MolmoForCausalLM", "",
         OWN_CODE + "; its successor allenai/Molmo2-4B is supported"),
    _row("microsoft/Phi-4-multimodal-instruct", "Phi4MMForCausalLM", "",
         "transformers' own form of it (Phi4MultimodalForCausalLM) is refused as well: "
         + REFUSED["Phi4MultimodalForCausalLM"]),
    _row("microsoft/Phi-3.5-vision-instruct microsoft/Phi-3-vision-128k-instruct",
         "Phi3VForCausalLM"),
    _row("openbmb/MiniCPM-V-2_6 openbmb/MiniCPM-Llama3-V-2_5", "MiniCPMV", "", _RESAMPLER),
    _row("openbmb/MiniCPM-o-2_6", "MiniCPMO", "", _RESAMPLER),
    _row("meta-llama/Llama-4-Scout-17B-16E-Instruct", "Llama4ForConditionalGeneration", "",
         "this version has no anatomy for it"),
    _row("Qwen/Qwen2.5-Omni-7B",
         "Qwen2_5OmniModel Qwen2_5OmniForConditionalGeneration "
         "Qwen2_5OmniThinkerForConditionalGeneration", "",
         _OMNI + "; Qwen/Qwen2.5-VL-7B-Instruct has a tower of the same kind"),
    _row("Qwen/Qwen3-Omni-30B-A3B-Instruct",
         "Qwen3OmniMoeForConditionalGeneration Qwen3OmniMoeThinkerForConditionalGeneration", "",
         _OMNI + "; Qwen/Qwen3-VL-30B-A3B-Instruct has a tower of the same kind"),
    _row("moonshotai/Kimi-VL-A3B-Instruct", "KimiVLForConditionalGeneration"),
    _row("deepseek-ai/deepseek-vl2-tiny", "DeepseekVLV2ForCausalLM"),
    _row("deepseek-ai/DeepSeek-OCR", "DeepseekOCRForCausalLM", "",
         "two towers in a row, SAM into CLIP, of code that transformers does not have"),
    _row("deepseek-community/DeepSeek-OCR-2", "DeepseekOcr2ForConditionalGeneration", "",
         _RESAMPLER),
    _row("rednote-hilab/dots.ocr", "DotsOCRForCausalLM"),
    _row("tencent/HunyuanOCR", "HunYuanVLForConditionalGeneration", "",
         "its projector begins with a norm and a convolution over blocks of patches, for which "
         "this version has no anatomy"),
    _row("baidu/ERNIE-4.5-VL-28B-A3B-PT",
         "Ernie4_5_VLMoeForConditionalGeneration Ernie4_5_VL_MoeForConditionalGeneration", "",
         "its projector merges patches, then frames, by networks of their own, for which this "
         "version has no anatomy"),
    _row("vikhyatk/moondream2", "HfMoondream Moondream"),
    _row("lmms-lab/LLaVA-OneVision-1.5-8B-Instruct",
         "LLaVAOneVision1_5_ForConditionalGeneration"),
    _row("vidore/colpali-v1.3-hf", "ColPaliForRetrieval", "", _RETRIEVAL),
    _row("vidore/colqwen2-v1.0-hf", "ColQwen2ForRetrieval", "", _RETRIEVAL),
    _row("AIDC-AI/Ovis2-8B AIDC-AI/Ovis1.6-Gemma2-9B", "Ovis", "",
         REFUSED["Ovis2ForConditionalGeneration"]),
    _row("nyu-visionx/cambrian-8b", "CambrianLlamaForCausalLM", "",
         "four towers are read together through cross-attention"),
    _row("BAAI/Bunny-Llama-3-8B-V", "BunnyLlamaForCausalLM BunnyPhiForCausalLM"),
    _row("THUDM/cogvlm2-llama3-chat-19B THUDM/cogvlm-chat-hf", "CogVLMForCausalLM"),
    _row("THUDM/glm-4v-9b", "ChatGLMForConditionalGeneration ChatGLMModel", "",
         OWN_CODE + "; zai-org/GLM-4.1V-9B-Thinking is supported"),
    _row("BAAI/Emu2-Chat", "EmuForCausalLM", "", OWN_CODE),
    _row("BAAI/Emu3-Chat", "Emu3ForCausalLM", "", REFUSED["Emu3ForConditionalGeneration"]),
    _row("stepfun-ai/GOT-OCR2_0", "GOTQwenForCausalLM", "",
         REFUSED["GotOcr2ForConditionalGeneration"]),
    _row("apple/FastVLM-0.5B", "LlavaQwen2ForCausalLM", "",
         REFUSED["FastVlmForConditionalGeneration"]),
    _row("Efficient-Large-Model/NVILA-8B Efficient-Large-Model/VILA1.5-3b",
         "LlavaLlamaModel VILAForCausalLM", "",
         "VILA keeps language model, projector and tower in folders of their own (llm, "
         "mm_projector, vision_tower), and transformers has no class for them"),
    _row("Lin-Chen/ShareGPT4V-7B", "Share4VLlamaForCausalLM ShareGPT4VLlamaForCausalLM", "",
         "ShareGPT4V is LLaVA-1.5 under class names of its own, with a tower of its own that it "
         "trained; no repository in transformers' format is known"),
    _row("nvidia/NVLM-D-72B", "NVLM_D NVLM_D_Model"),
    _row("nvidia/Llama-3.1-Nemotron-Nano-VL-8B-V1 nvidia/NVIDIA-Nemotron-Nano-12B-v2-VL",
         "Llama_Nemotron_Nano_VL NemotronH_Nano_VL_V2"),
    _row("nvidia/Eagle2-9B",
         "Eagle2ChatModel Eagle2_5_VLForConditionalGeneration Eagle2ForConditionalGeneration"),
    _row("h2oai/h2ovl-mississippi-2b", "H2OVLChatModel"),
    _row("Skywork/Skywork-R1V-38B", "SkyworkChatModel SkyworkR1VChatModel"),
    _row("YannQi/R-4B", "RForConditionalGeneration"),
    _row("Kwai-Keye/Keye-VL-8B-Preview",
         "KeyeForConditionalGeneration KeyeVL1_5ForConditionalGeneration"),
    _row("Qwen/Qwen-VL-Chat", "QWenLMHeadModel", "", _RESAMPLER),
    _row("internlm/internlm-xcomposer2-vl-7b", "InternLMXComposer2ForCausalLM"),
    _row("Salesforce/xgen-mm-phi3-mini-instruct-r-v1", "XGenMMModelForConditionalGeneration", "",
         _RESAMPLER),
    _row("microsoft/Magma-8B", "MagmaForCausalLM MagmaForConditionalGeneration"),
    _row("tinyllava/TinyLLaVA-Phi-2-SigLIP-3.1B", "TinyLlavaForConditionalGeneration"),
    _row("stepfun-ai/Step-3.7-Flash", "Step3p7ForConditionalGeneration", "",
         "this version has no anatomy for it"),
    _row("moonshotai/Kimi-K2.6", "Kimi_K25ForConditionalGeneration", "",
         "this version has no anatomy for it"),
    _row("XiaomiMiMo/MiMo-VL-7B-RL", "Qwen2_5_VLForConditionalGeneration"),
    _row("ServiceNow-AI/Apriel-1.5-15b-Thinker", "LlavaForConditionalGeneration"),
    # Classes of transformers' own, refused with REFUSED's reason.
    _row("rhymes-ai/Aria", "AriaForConditionalGeneration"),
    _row("Salesforce/blip2-opt-2.7b", "Blip2ForConditionalGeneration"),
    _row("Salesforce/instructblip-vicuna-7b", "InstructBlipForConditionalGeneration"),
    _row("microsoft/kosmos-2-patch14-224", "Kosmos2ForConditionalGeneration"),
    _row("microsoft/Florence-2-large florence-community/Florence-2-large",
         "Florence2ForConditionalGeneration"),
    _row("adept/fuyu-8b", "FuyuForCausalLM"),
    _row("facebook/chameleon-7b", "ChameleonForConditionalGeneration"),
    _row("facebook/Perception-LM-1B", "PerceptionLMForConditionalGeneration"),
    _row("google/gemma-3n-E4B-it", "Gemma3nForConditionalGeneration"),
    _row("HuggingFaceM4/idefics-9b", "IdeficsForVisionText2Text"),
)  # fmt: skip


def find_known(class_name: str) -> Known | None:
    """Return the repositories that a class name stands for."""
    return next((known for known in KNOWN if class_name in known.class_names), None)
