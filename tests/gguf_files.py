"""Write a LLaVA checkpoint with a SigLIP tower as the two files that llama.cpp reads.

Tensor names come from the `gguf` package's own tables; layers are written in the config's order,
sorted and thinned by nobody, as llama.cpp's converter does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

TEXT_PREFIX, PROJECTOR_PREFIX = "language_model.", "multi_modal_projector."
# The engine numbers the modules of the projector, the activation between them included.
PROJECTOR_NAMES = {"linear_1": "mm.0", "linear_2": "mm.2"}

# A space and a line feed as byte-level tokenizers spell them.
BLANKS = ("\u0120", "\u010a")


def write_gguf(folder: Path, text: Path, projector: Path) -> None:
    """Write `text` (language model, tokenizer) and `projector` (tower, projector) in float32."""
    config = json.loads((folder / "config.json").read_text())
    tensors: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    write_text(folder, config["text_config"], tensors, text)
    write_projector(config, tensors, projector)


def write_text(
    folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray], path: Path
) -> None:
    import gguf

    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    add_tokenizer(writer, folder, config["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    rotated = {"q_proj": heads, "k_proj": kv_heads}
    for name, tensor in tensors.items():
        if name.startswith(TEXT_PREFIX):
            name = name.removeprefix(TEXT_PREFIX)
            count = rotated.get(name.split(".")[-2])
            tensor = tensor if count is None else interleave_halves(tensor, count)
            writer.add_tensor(names.get_name(name, (".weight", ".bias")), tensor)
    finish(writer)


def add_tokenizer(writer: Any, folder: Path, size: int) -> None:
    """Add a byte-level tokenizer without merges, padded to `size` tokens, for an ASCII prompt.

    The engine reports no probabilities of a token that may be part of a character, so other bytes
    get a name that is a whole word.
    """
    import gguf

    content = json.loads((folder / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    control = {token["content"] for token in content["added_tokens"]}
    names = sorted(vocab, key=vocab.__getitem__)
    kinds = gguf.TokenType
    types = [kinds.CONTROL if name in control else kinds.NORMAL for name in names]
    names = [
        name if name.isascii() or name in BLANKS else f"<byte{index}>"
        for index, name in enumerate(names)
    ]
    padding = range(len(names), size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([*names, *(f"<unused{index}>" for index in padding)])
    writer.add_token_types([*types, *(kinds.UNUSED for _ in padding)])
    # The list may not be empty; its result is no token, so this merge never happens.
    writer.add_token_merges([f"{names[-2]} {names[-1]}"])
    writer.add_bos_token_id(vocab["<s>"])
    writer.add_eos_token_id(vocab["</s>"])
    writer.add_add_bos_token(False)


def interleave_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Return the rows in the order of an engine that rotates neighbours, not halves, of a head."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)


def write_projector(config: dict[str, Any], tensors: dict[str, np.ndarray], path: Path) -> None:
    import gguf

    vision, layers = config["vision_config"], config["vision_feature_layer"]
    depth = vision["num_hidden_layers"]
    listed = layers if isinstance(layers, list) else [layers]
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("mlp")
    writer.add_bool("clip.has_llava_projector", True)
    writer.add_vision_attention_layernorm_eps(vision.get("layer_norm_eps", 1e-6))
    writer.add_vision_block_count(depth)
    writer.add_vision_embedding_length(vision["hidden_size"])
    writer.add_vision_feed_forward_length(vision["intermediate_size"])
    writer.add_vision_head_count(vision["num_attention_heads"])
    writer.add_vision_image_mean([0.5] * 3)
    writer.add_vision_image_size(vision["image_size"])
    writer.add_vision_image_std([0.5] * 3)
    writer.add_vision_patch_size(vision["patch_size"])
    writer.add_vision_projection_dim(config["text_config"]["hidden_size"])
    writer.add_vision_use_gelu(True)
    # -1 means "unset" to the engine.
    states = [layer if layer >= 0 else depth + 1 + layer for layer in listed]
    writer.add_array("clip.vision.feature_layer", states)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, depth)
    for name, tensor in tensors.items():
        # Where these are in the file, the engine applies them to the deepest state it reads.
        if name.startswith(TEXT_PREFIX) or ".post_layernorm." in name:
            continue
        if name.startswith(PROJECTOR_PREFIX):
            module, kind = name.removeprefix(PROJECTOR_PREFIX).split(".")
            writer.add_tensor(f"{PROJECTOR_NAMES[module]}.{kind}", tensor)
        else:
            writer.add_tensor(names.get_name(name, (".weight", ".bias")), tensor)
    finish(writer)


def finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
