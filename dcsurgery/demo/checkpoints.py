"""The demo's models as Hugging Face folders: config, weights, word tokenizer, processor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcsurgery.demo.scenes import IMAGE_SIZE
from dcsurgery.demo.words import BEGIN, END, IMAGE, IMAGE_TOKENS, PAD, SPECIALS, VOCABULARY
from dcsurgery.tiny.llava import write_llava
from dcsurgery.tiny.weights import write_json

if TYPE_CHECKING:
    import torch

PATCH = 12
WIDTH = 64
TOWER_DEPTH = 8
FEATURE_LAYER = TOWER_DEPTH - 1
VISION: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_attention_heads": 4,
    "num_hidden_layers": TOWER_DEPTH,
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH,
    "projection_dim": WIDTH,
}
TEXT: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 128,
    "vocab_size": len(VOCABULARY),
    "pad_token_id": PAD,
    "bos_token_id": BEGIN,
    "eos_token_id": END,
    "tie_word_embeddings": False,
    # With 0.02 a model this small stays for long where it names attributes but binds none.
    "initializer_range": 0.1,
}
CONFIG: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"],
    "image_seq_length": IMAGE_TOKENS,
    "image_token_index": IMAGE,
    "model_type": "llava",
    "pad_token_id": PAD,
    "projector_hidden_act": "gelu",
    "text_config": TEXT,
    "tie_word_embeddings": False,
    "transformers_version": "4.49.0",
    "vision_config": VISION,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}
# The question mark ends the question; what follows is the answer.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for item in message['content'] %}"
    "{% if item['type'] == 'text' %}{{ item['text'] }}{% else %}<image>{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %} {% endif %}{% endfor %}"
)


def embedded() -> list[Path]:
    """Return the folders of the embedded baselines: fp16, made as data/README.md says."""
    return sorted(path.parent for path in (Path(__file__).parent / "data").glob("*/config.json"))


def unpack(source: Path, folder: Path) -> Path:
    """Write an embedded baseline to `folder` in float32, which processors compute fast."""
    from safetensors.torch import load_file

    return write_baseline(folder, load_file(source / "model.safetensors"), "float32")


def write_baseline(folder: Path, tensors: Mapping[str, torch.Tensor], dtype: str) -> Path:
    """Write a LlavaForConditionalGeneration, named as published ones are, and return `folder`."""
    write_llava(folder, CONFIG, tensors=tensors, dtype=dtype)
    _write_tokenizer(folder)
    _write_processor(folder)
    return folder


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex(r"[?.,!]"), behavior="isolated"),
        ]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in SPECIALS]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "additional_special_tokens": ["<image>"],
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 128,
        "padding_side": "left",
        "chat_template": CHAT_TEMPLATE,
    }
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})


def _write_processor(folder: Path) -> None:
    square = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = {
        "image_token": "<image>",
        "num_additional_image_tokens": 1,
        "patch_size": PATCH,
        "processor_class": "LlavaProcessor",
        "vision_feature_select_strategy": "default",
    }
    write_json(folder / "processor_config.json", processor)
    images = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": IMAGE_SIZE},
        "crop_size": square,
        "do_center_crop": True,
        "processor_class": "LlavaProcessor",
    }
    write_json(folder / "preprocessor_config.json", images)
