"""What the reference calls things: its config.json, its tensors, its classes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.errors import PlanError
from dcsurgery.originals.adopted import Adopted
from dcsurgery.originals.dense import KEY as CONNECTOR_KEY
from dcsurgery.originals.llava import NEWLINE, turned_grid
from dcsurgery.originals.towers import PUBLIC
from dcsurgery.originals.vision import KEY as TOWER_KEY
from dcsurgery.originals.vision import KNOWN
from dcsurgery.surgery.plan_file import SurgeryPlan

Config = dict[str, Any]
# What LlamaConfig and MistralConfig of transformers 4.36.2, the reference's pin, save where a
# config leaves it out.
_LLAMA: Config = {
    "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
    "hidden_act": "silu", "initializer_range": 0.02, "max_position_embeddings": 2048,
    "pretraining_tp": 1, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "use_cache": True,
}  # fmt: skip
_MISTRAL: Config = {
    "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "initializer_range": 0.02, "max_position_embeddings": 131072, "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False, "use_cache": True,
}  # fmt: skip
CLASSES: dict[str, tuple[str, str, Config]] = {
    "llama": ("LlavaLlamaForCausalLM", "llava_llama", _LLAMA),
    "mistral": ("LlavaMistralForCausalLM", "llava_mistral", {**_MISTRAL, "num_key_value_heads": 8}),
}
WORDS = ("model.embed_tokens.weight", "lm_head.weight")
INSIDE = "model.vision_tower.vision_tower.vision_model."
_NAMES = (
    (re.compile(r"^(?:model\.)?vision_tower\.(?:vision_model\.)?(?=\w)"), INSIDE),
    (re.compile(r"^(?:model\.)?multi_modal_projector\.linear_1\."), "model.mm_projector.0."),
    (re.compile(r"^(?:model\.)?multi_modal_projector\.linear_2\."), "model.mm_projector.2."),
    (re.compile(r"^(?:model\.)?image_newline$"), NEWLINE),
    (re.compile(r"^(?:model\.language_model|language_model\.model)\."), "model."),
    (re.compile(r"^(?:language_model\.)?lm_head\."), "lm_head."),
)


def reference_name(name: str) -> str:
    """Return what the reference calls a tensor of transformers' LLaVA."""
    for pattern, replacement in _NAMES:
        renamed, count = pattern.subn(replacement, name)
        if count:
            return renamed
    raise PlanError(
        f"the reference code has no place for the tensor {name[:200]!r}",
        hint="use --form stock or --form delta",
    )


def tower_name(checkpoint: Checkpoint, plan: SurgeryPlan, given: str | None) -> str:
    """Return the name by which the reference loads the tower; it tells SigLIP by that name."""
    name = given
    if name is None and isinstance(checkpoint, Adopted) and checkpoint.adoption is not None:
        name = str(checkpoint.adoption.source.config[TOWER_KEY])
    tower = plan.anatomy.tower
    if name is None:
        sizes = (tower.kind, tower.width, tower.image_size, tower.patch_size)
        name = next(
            (
                PUBLIC[key]
                for key, known in KNOWN.items()
                if sizes == (known["model_type"], *_picture(known))
            ),
            None,
        )
    if name is None:
        raise PlanError(
            "the reference code loads its vision tower by name, and this is not a known public one",
            hint=f"say how to find it: --tower {TOWER_KEY}=PATH-OR-HUB-ID",
        )
    if ("siglip" in name.lower()) != (tower.kind == "siglip_vision_model"):
        raise PlanError(
            f"the reference code tells SigLIP from CLIP by the tower's name, and {name!r} says the "
            f"wrong one for a {tower.kind}",
            hint=f"give it a name that fits: --tower {TOWER_KEY}=PATH-OR-HUB-ID",
        )
    return name


def _picture(config: Mapping[str, Any]) -> tuple[int, int, int]:
    return config["hidden_size"], config["image_size"], config["patch_size"]


def reference_config(
    checkpoint: Checkpoint, plan: SurgeryPlan, tower: str, *, siglip: bool
) -> Config:
    """Return config.json with the entries the reference saves, sorted as it does."""
    anatomy = plan.anatomy
    class_name, model_type, _ = CLASSES[anatomy.language_model]
    widths = 1 if plan.layout.axis == "token" else 1 + len(plan.layout.blocks)
    if isinstance(checkpoint, Adopted) and checkpoint.adoption is not None:
        words = dict(checkpoint.adoption.source.config)
    else:
        words = _words(checkpoint, plan)
    select = -2 if siglip else anatomy.feature_layer - anatomy.tower.depth - 1
    words.setdefault("mm_patch_merge_type", "flat")
    words.setdefault("mm_vision_select_layer", select)
    feature = "patch" if anatomy.dropped_tokens or siglip else "cls_patch"
    words |= {
        "architectures": [class_name],
        "is_video": False,
        CONNECTOR_KEY: plan.kind,
        "mm_hidden_size": widths * anatomy.tower.width,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_feature": feature,
        TOWER_KEY: tower,
        "model_type": model_type,
        "use_mm_proj": True,
    }
    return dict(sorted(words.items()))


def _words(checkpoint: Checkpoint, plan: SurgeryPlan) -> Config:
    """Return what a Hugging Face LLaVA's config says, in the reference's words."""
    config = checkpoint.config
    text = dict(config.get("text_config") or {})
    _, _, defaults = CLASSES[plan.anatomy.language_model]
    rope = text.pop("rope_parameters", None) or {}
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    if "rope_theta" in rope:
        text["rope_theta"] = rope["rope_theta"]
    if scaling.get("rope_type", "default") != "default":
        raise PlanError(
            f"the reference's transformers 4.36.2 has no rotary embeddings of type "
            f"{scaling['rope_type']!r}",
            hint="use --form stock or --form delta",
        )
    shapes = {reference_name(name): entry.shape for name, entry in checkpoint.tensors.items()}
    rows, hidden = shapes[WORDS[0]]
    blocks = {name.split(".")[2] for name in shapes if name.startswith("model.layers.")}
    # LlamaConfig's and MistralConfig's own default.
    heads = text.get("num_attention_heads", 32)
    words = {
        "num_key_value_heads": heads,
        **defaults,
        **{key: text[key] for key in (*defaults, "num_key_value_heads") if key in text},
        "num_attention_heads": heads,
        "hidden_size": hidden,
        "vocab_size": rows,
        "num_hidden_layers": len(blocks),
        "intermediate_size": shapes["model.layers.0.mlp.up_proj.weight"][0],
        "torch_dtype": config.get("torch_dtype") or config.get("dtype") or "float16",
        "transformers_version": "4.36.2",
    }
    if plan.architecture == "llava_next":
        grid = turned_grid(config["image_grid_pinpoints"])
        words |= {"image_aspect_ratio": "anyres", "image_grid_pinpoints": grid}
        words["mm_patch_merge_type"] = "spatial_unpad"
    return words
