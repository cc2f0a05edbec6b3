"""Tiny checkpoints as haotian-liu/LLaVA and DenseConnector write them, and their vision towers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dcsurgery.tiny.weights import seeded_tensors, write_json, write_weights

if TYPE_CHECKING:
    import torch

Tower = Literal["clip", "siglip"]
Shapes = dict[str, tuple[int, ...]]
_TEXT_CLASSES = {"llama": "LlavaLlamaForCausalLM", "mistral": "LlavaMistralForCausalLM"}
_TEXT_CLASSES["qwen2"] = "LlavaQwenForCausalLM"
_INSIDE = "model.vision_tower.vision_tower."


@dataclass(frozen=True)
class OriginalSizes:
    """Sizes of a tiny original: `depth`, `width`, ... of the tower as its own config has them.

    `hidden`, `words`, `layers` and `heads` are the language model's; `inter` is the tower's MLP.
    """

    tower: Tower = "clip"
    depth: int = 24
    width: int = 16
    inter: int = 32
    tower_heads: int = 2
    image: int = 28
    patch: int = 7
    hidden: int = 24
    words: int = 320
    layers: int = 2
    heads: int = 4

    @property
    def kept(self) -> int:
        """Blocks the reference keeps: it deletes SigLIP's last one."""
        return self.depth - 1 if self.tower == "siglip" else self.depth

    @property
    def key_heads(self) -> int:
        """Key-value heads of the language model."""
        return max(1, self.heads // 2)


def tower_shapes(sizes: OriginalSizes, depth: int) -> Shapes:
    """Return the tensors of a vision tower of `depth` blocks under their published names."""
    width, inter, clip = sizes.width, sizes.inter, sizes.tower == "clip"
    positions = (sizes.image // sizes.patch) ** 2 + clip
    top = "vision_model."
    shapes: Shapes = {f"{top}embeddings.patch_embedding.weight": (width, 3, *[sizes.patch] * 2)}
    shapes[f"{top}embeddings.position_embedding.weight"] = (positions, width)
    if clip:
        shapes[f"{top}embeddings.class_embedding"] = (width,)
    else:
        shapes[f"{top}embeddings.patch_embedding.bias"] = (width,)
    norms = ["post_layernorm", *(["pre_layrnorm"] if clip else [])]
    for index in range(depth):
        block = f"encoder.layers.{index}."
        norms += [f"{block}layer_norm1", f"{block}layer_norm2"]
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            shapes[f"{top}{block}self_attn.{name}.weight"] = (width, width)
            shapes[f"{top}{block}self_attn.{name}.bias"] = (width,)
        for name, (out, read) in {"fc1": (inter, width), "fc2": (width, inter)}.items():
            shapes[f"{top}{block}mlp.{name}.weight"] = (out, read)
            shapes[f"{top}{block}mlp.{name}.bias"] = (out,)
    for norm in norms:
        shapes[f"{top}{norm}.weight"] = shapes[f"{top}{norm}.bias"] = (width,)
    return shapes


def text_shapes(sizes: OriginalSizes) -> Shapes:
    """Return the tensors of the language model, where two queries share a key-value head."""
    hidden, inter = sizes.hidden, 2 * sizes.hidden
    shapes: Shapes = {"model.embed_tokens.weight": (sizes.words, hidden)}
    for index in range(sizes.layers):
        layer = f"model.layers.{index}."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            keys = hidden * sizes.key_heads // sizes.heads
            out = keys if name in ("k_proj", "v_proj") else hidden
            shapes[f"{layer}self_attn.{name}.weight"] = (out, hidden)
        for name in ("gate_proj", "up_proj"):
            shapes[f"{layer}mlp.{name}.weight"] = (inter, hidden)
        shapes[f"{layer}mlp.down_proj.weight"] = (hidden, inter)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{layer}{name}.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    shapes["lm_head.weight"] = (sizes.words, hidden)
    return shapes


def original_config(
    sizes: OriginalSizes, named_tower: str, *, text: str = "llama", connector: str | None = None
) -> dict[str, Any]:
    """Return config.json as the reference saves it."""
    wide = 3 if connector in ("sci", "dci") else 1
    config = {
        "architectures": [_TEXT_CLASSES[text]],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": sizes.hidden,
        "initializer_range": 0.02,
        "intermediate_size": 2 * sizes.hidden,
        "max_position_embeddings": 4096,
        "mm_hidden_size": wide * sizes.width,
        "mm_patch_merge_type": "flat",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": named_tower,
        "model_type": {"llama": "llava_llama", "mistral": "llava_mistral"}.get(text, "llava_qwen"),
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        "num_key_value_heads": sizes.key_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        # Not the default on purpose: a reader that loses the key computes other logits.
        "rope_theta": 20000.0,
        "tie_word_embeddings": False,
        "transformers_version": "4.36.2",
        "use_cache": True,
        "use_mm_proj": True,
        "vocab_size": sizes.words,
    }
    more = {} if connector is None else {"is_video": False, "mm_dense_connector_type": connector}
    return config | more


def write_tower(
    folder: Path,
    sizes: OriginalSizes,
    *,
    tensors: Mapping[str, torch.Tensor] | None = None,
    pickled: bool = False,
) -> Path:
    """Write a vision tower as its own repository has it: the whole of CLIP or SigLIP.

    A text model and SigLIP's pooling head lie beside it. `pickled` writes pytorch_model.bin, as
    openai/clip-vit-large-patch14-336 does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shapes = tower_shapes(sizes, sizes.depth)
    head = {"vision_model.head.probe": (1, 1, sizes.width)} if sizes.tower == "siglip" else {}
    shapes |= {"text_model.final_layer_norm.weight": (4,), **head}
    weights = seeded_tensors(shapes, seed=5, scale=0.25)
    weights |= {name: value for name, value in (tensors or {}).items() if name in shapes}
    vision = {
        "model_type": f"{sizes.tower}_vision_model", "hidden_size": sizes.width,
        "image_size": sizes.image, "intermediate_size": sizes.inter,
        "num_attention_heads": sizes.tower_heads, "num_hidden_layers": sizes.depth,
        "patch_size": sizes.patch,
    }  # fmt: skip
    write_json(folder / "config.json", {"model_type": sizes.tower, "vision_config": vision})
    square = {"height": sizes.image, "width": sizes.image}
    if sizes.tower == "clip":
        images: dict[str, Any] = {"feature_extractor_type": "CLIPFeatureExtractor"}
        images |= {"crop_size": square, "size": {"shortest_edge": sizes.image}}
    else:
        images = {"image_processor_type": "SiglipImageProcessor", "size": square}
    write_json(folder / "preprocessor_config.json", images)
    _write(folder, weights, shards=1, pickled=pickled)
    return folder


def write_original_llava(  # noqa: PLR0913
    folder: Path,
    sizes: OriginalSizes,
    named_tower: str,
    *,
    inside: bool = True,
    connector: str | None = None,
    text: str = "llama",
    shards: int = 1,
    pickled: bool = False,
    dtype: str = "float32",
    tensors: Mapping[str, torch.Tensor] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write an original LLaVA, with the tower's tensors `inside` or only its name; return `folder`.

    `connector` widens the projector as DenseConnector does. `tensors` (original name -> tensor)
    replaces seeded weights, `config` keys of config.json; "image_aspect_ratio" anyres brings
    model.image_newline.
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    stated = original_config(sizes, named_tower, text=text, connector=connector)
    stated |= {**(config or {}), "torch_dtype": dtype}
    shapes = {
        **text_shapes(sizes),
        "model.mm_projector.0.weight": (sizes.hidden, stated["mm_hidden_size"]),
        "model.mm_projector.0.bias": (sizes.hidden,),
        "model.mm_projector.2.weight": (sizes.hidden, sizes.hidden),
        "model.mm_projector.2.bias": (sizes.hidden,),
    }
    if text == "qwen2":
        for name in [
            n for n in shapes if n.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))
        ]:
            shapes[name.replace("weight", "bias")] = shapes[name][:1]
    if "anyres" in str(stated.get("image_aspect_ratio")):
        shapes["model.image_newline"] = (sizes.hidden,)
    weights = seeded_tensors(shapes, seed=4, scale=0.25)
    if inside:
        tower = seeded_tensors(tower_shapes(sizes, sizes.kept), seed=5, scale=0.25)
        weights |= {_INSIDE + name: value for name, value in tower.items()}
    weights |= {name: value for name, value in (tensors or {}).items() if name in weights}
    weights = {name: value.to(getattr(torch, dtype)) for name, value in weights.items()}
    write_json(folder / "config.json", stated)
    _write(folder, weights, shards=shards, pickled=pickled)
    return folder


def _write(
    folder: Path, weights: Mapping[str, torch.Tensor], *, shards: int, pickled: bool
) -> None:
    if not pickled:
        write_weights(folder, weights, shards)
        return
    import torch

    names, mapping = list(weights), {}
    for index in range(shards):
        part = names[index * len(names) // shards : (index + 1) * len(names) // shards]
        file = f"pytorch_model-{index + 1:05d}-of-{shards:05d}.bin"
        file = "pytorch_model.bin" if shards == 1 else file
        torch.save({name: weights[name] for name in part}, folder / file)
        mapping.update(dict.fromkeys(part, file))
    if shards > 1:
        total = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
        index_json = {"metadata": {"total_size": total}, "weight_map": mapping}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index_json))
