"""haotian-liu/LLaVA and what was trained with it, DenseConnector's checkpoints included."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.errors import AnatomyError
from dcsurgery.originals import dense, vision
from dcsurgery.originals.adopted import (
    Adopted,
    Adoption,
    InstalledConnector,
    Presented,
    Template,
    present,
    render_json,
)
from dcsurgery.originals.format import OriginalFormat
from dcsurgery.originals.prompts import Prompt, Speaker, choose_prompt
from dcsurgery.originals.text import text_class, text_section
from dcsurgery.originals.tokens import TokenizerFiles, Tokens, padded_rows, plan_tokens
from dcsurgery.originals.towers import PREPROCESSOR, Towers

Config = dict[str, Any]
CHECK = "compare config.json with the tensors; the checkpoint may be mixed from two models"
GENERATION = "generation_config.json"
WORDS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
FIRST, NEWLINE = "model.mm_projector.0.weight", "model.image_newline"
INSIDE = re.compile(r"^model\.vision_tower\.(?:vision_tower\.)?(vision_model\..+)$")
_NAMES = (
    (re.compile(r"^model\.mm_projector\.0\."), "multi_modal_projector.linear_1."),
    (re.compile(r"^model\.mm_projector\.2\."), "multi_modal_projector.linear_2."),
    (re.compile(r"^model\.image_newline$"), "image_newline"),
    (re.compile(r"^model\.(embed_tokens|layers|norm)\."), r"language_model.model.\1."),
    (re.compile(r"^lm_head\."), "language_model.lm_head."),
)
# What a config says about dtype -> safetensors dtype of the projector.
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


def recognises(config: Config) -> bool:
    """Return whether a config is an original LLaVA's: its class and a tower named in words.

    model_type does not tell: "llava" is also that of transformers' own class.
    """
    declared = config.get("architectures")
    name = str(declared[0]) if isinstance(declared, list) and declared else ""
    named = isinstance(config.get(vision.KEY), str) and "mm_vision_tower_aux" not in config
    return "vision_config" not in config and named and name.startswith("Llava")


def adopt(source: Checkpoint, towers: Towers, template: Template | None = None) -> Adopted:
    """Present an original LLaVA as LlavaForConditionalGeneration or its LLaVA-NeXT sister.

    Raises UnknownArchitectureError, AnatomyError, CheckpointError or RequestError.
    """
    config = source.config
    kind, _ = text_class(config)
    inside = {name: m[1] for name in source.tensors if (m := INSIDE.match(name))}
    _require_known(source, inside)
    tower = vision.find_tower(source, inside, towers)
    pinpoints = read_grid(config)
    own, rows = TokenizerFiles(source), source.tensors[WORDS].shape[0]
    tokens = plan_tokens(own, rows)
    code = "dense_connector" if dense.KEY in config else "llava"
    prompt = choose_prompt(own, Speaker(kind, rows, code, picture_words(config)), template)
    groups, connector = _tensors(source, tower, tokens, flat=pinpoints is None)
    made = _config(source, tower, tokens, pinpoints)
    adoption = Adoption(
        source=source,
        format="original LLaVA" if connector is None else "published Dense Connector",
        class_name=config["architectures"][0],
        towers=dict(towers.found),
        template=prompt.template,
        notes=(*_notes(source, tower, tokens), *prompt_notes(prompt, own)),
    )
    files = {
        **_files(tower, pinpoints, made),
        **prompt.files(source.side_files),
        GENERATION: render_json(generation_config(own, made["text_config"], tokens, prompt)),
        **tokens.files,
    }
    kept = [name for name in source.side_files if name not in files]
    return present(adoption, groups, made, files, kept, connector)


def _require_known(source: Checkpoint, inside: Mapping[str, str]) -> None:
    """Refuse tensors that stock LLaVA has no place for, and a projector of another kind."""
    kind = source.config.get("mm_projector_type", "linear")
    if kind != "mlp2x_gelu":
        raise AnatomyError(
            f"mm_projector_type is {kind!r}; transformers' LLaVA has two layers (mlp2x_gelu)",
            hint="this model has no Hugging Face form",
        )
    tied = bool(source.config.get("tie_word_embeddings", False))
    needed = (WORDS, "model.norm.weight", FIRST, "model.mm_projector.2.weight")
    for name in (*needed, *(() if tied else (HEAD,))):
        if name not in source.tensors:
            raise AnatomyError(f"the checkpoint has no tensor {name}", hint=CHECK)
    known = [name for name in source.tensors if name in inside or _is_known(name)]
    for name in sorted(set(source.tensors) - set(known)):
        raise AnatomyError(
            f"transformers' LLaVA has no place for the tensor {name[:200]!r}", hint=CHECK
        )


def _is_known(name: str) -> bool:
    return name.endswith("rotary_emb.inv_freq") or any(p.match(name) for p, _ in _NAMES)


def new_name(name: str) -> str | None:
    """Return what transformers' LLaVA calls a tensor; None for a buffer it computes itself."""
    if name.endswith("rotary_emb.inv_freq"):
        return None
    for pattern, replacement in _NAMES:
        renamed, count = pattern.subn(replacement, name)
        if count:
            return renamed
    return None


def _tensors(
    source: Checkpoint, tower: vision.Tower, tokens: Tokens, *, flat: bool
) -> tuple[list[list[Presented]], InstalledConnector | None]:
    """Return the tensors of every weight file, those of a tower elsewhere in a last one."""
    width, depth = tower.config["hidden_size"], tower.config["num_hidden_layers"]
    wide = Presented.renamed(source, FIRST, "multi_modal_projector.linear_1.weight")
    first, connector = dense.split(wide, source.config, width, depth, siglip=tower.is_siglip)
    own = {item.tensor: item for item in tower.tensors} if tower.inside else {}
    own[FIRST] = first
    groups = []
    for file in source.weights:
        group = []
        for name in file.header.tensors:
            renamed = None if flat and name == NEWLINE else new_name(name)
            if name in own:
                group.append(own[name])
            elif renamed is not None:
                item = Presented.renamed(source, name, renamed)
                group.append(padded_rows(item, tokens.rows) if name in (WORDS, HEAD) else item)
        groups.append(group)
    return [*groups, [] if tower.inside else list(tower.tensors)], connector


def read_grid(config: Config) -> list[list[int]] | None:
    """Return the pinpoints (height, width) of an AnyRes model, None for a plain LLaVA-1.5.

    The original writes (width, height). A grid that holds every pair both ways keeps its order, as
    transformers' own converter left it; another is turned. Raises AnatomyError where transformers
    has no words for what the config asks.
    """
    aspect = str(config.get("image_aspect_ratio"))
    merge = str(config.get("mm_patch_merge_type", "flat"))
    stated = config.get("image_grid_pinpoints")
    # The reference looks at the merge type only for images that were cut into tiles.
    tiled = "image_aspect_ratio" not in config and merge == "spatial_unpad" and stated is not None
    if "anyres" not in aspect and not tiled:
        return None
    if (aspect != "anyres" and not tiled) or merge != "spatial_unpad":
        raise AnatomyError(
            f"image_aspect_ratio {aspect!r} with mm_patch_merge_type {merge!r} cannot be "
            "expressed in transformers' LLaVA",
            hint="'anyres' with 'spatial_unpad' (LLaVA-NeXT) and 'flat' (LLaVA-1.5) can",
        )
    try:
        grid = ast.literal_eval(stated) if isinstance(stated, str) else stated
        pairs = [[int(w), int(h)] for w, h in list(grid or [()])]
    except (SyntaxError, TypeError, ValueError):
        raise AnatomyError(
            f"image_grid_pinpoints {str(stated)[:80]!r} is not a list of pairs", hint=CHECK
        ) from None
    return turned_grid(pairs)


def turned_grid(pairs: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return pinpoints with width and height exchanged; a grid that has both of each as it is."""
    turned = [[second, first] for first, second in pairs]
    same = sorted(turned) == sorted(map(list, pairs))
    return [list(pair) for pair in pairs] if same else turned


def _config(
    source: Checkpoint,
    tower: vision.Tower,
    tokens: Tokens,
    pinpoints: Sequence[Sequence[int]] | None,
) -> Config:
    config = source.config
    dtype = _DTYPES.get(source.tensors[FIRST].dtype, "float32")
    select = str(config.get("mm_vision_select_feature", "patch"))
    if select not in ("patch", "cls_patch"):
        raise AnatomyError(f"mm_vision_select_feature is {select!r}", hint=CHECK)
    # The reference's SigLIP tower gives the output of its last block whatever the config says.
    layer = -1 if tower.is_siglip else config.get("mm_vision_select_layer", -2)
    full = tower.is_siglip or select == "cls_patch"
    tied = bool(config.get("tie_word_embeddings", False))
    named = "LlavaForConditionalGeneration"
    more: Config = {"image_seq_length": _image_tokens(tower, full=full)}
    if pinpoints is not None:
        _require_newline(source)
        named = "LlavaNextForConditionalGeneration"
        more |= {"image_grid_pinpoints": pinpoints, "use_image_newline_parameter": True}
    return {
        "architectures": [named],
        "ignore_index": -100,
        "image_token_index": tokens.image,
        "model_type": "llava" if pinpoints is None else "llava_next",
        **more,
        "multimodal_projector_bias": True,
        "pad_token_id": tokens.pad,
        "projector_hidden_act": "gelu",
        "text_config": text_section(config, source.tensors, tokens.rows),
        "tie_word_embeddings": tied,
        "torch_dtype": config.get("torch_dtype") or dtype,
        "vision_config": tower.config,
        "vision_feature_layer": layer,
        "vision_feature_select_strategy": "full" if full else "default",
    }


def _image_tokens(tower: vision.Tower, *, full: bool) -> int:
    patches = (tower.config["image_size"] // tower.config["patch_size"]) ** 2
    return int(patches + (1 if full and not tower.is_siglip else 0))


def _require_newline(source: Checkpoint) -> None:
    if NEWLINE not in source.tensors:
        raise AnatomyError(
            f"mm_patch_merge_type is spatial_unpad, but there is no tensor {NEWLINE}", hint=CHECK
        )


def _files(
    tower: vision.Tower, pinpoints: Sequence[Sequence[int]] | None, config: Config
) -> dict[str, bytes]:
    """Return the processor files, which the original has not."""
    processor = {
        "image_token": "<image>",
        "num_additional_image_tokens": 0 if tower.is_siglip else 1,
        "patch_size": tower.config["patch_size"],
        "processor_class": "LlavaProcessor" if pinpoints is None else "LlavaNextProcessor",
        "vision_feature_select_strategy": config["vision_feature_select_strategy"],
    }
    return {
        PREPROCESSOR: render_json(vision.image_processor(tower, pinpoints)),
        "processor_config.json": render_json(processor),
    }


def picture_words(config: Config) -> str:
    """Return what the original writes for a picture: its place, in some models between marks."""
    return "<im_start><image><im_end>" if config.get("mm_use_im_start_end") else "<image>"


def generation_config(own: TokenizerFiles, text: Config, tokens: Tokens, prompt: Prompt) -> Config:
    """Return generation_config.json: the original's own, or its special tokens.

    Padding is set, and what ends an answer of its prompts ends generation.
    """
    kept = own.object(GENERATION) or {
        key: text[key] for key in ("bos_token_id", "eos_token_id") if text.get(key) is not None
    }
    if not kept.get("do_sample"):
        # transformers refuses to save sampling settings of a model that does not sample.
        kept = {k: v for k, v in kept.items() if k not in ("temperature", "top_p", "top_k")}
    stated = kept.get("eos_token_id")
    ends = [*stated] if isinstance(stated, list) else [] if stated is None else [stated]
    more = [found for stop in prompt.stops if (found := own.token_id(stop)) is not None]
    ends = list(dict.fromkeys([*ends, *more]))
    if ends:
        kept = {**kept, "eos_token_id": ends[0] if len(ends) == 1 else ends}
    return {**kept, "pad_token_id": tokens.pad}


def prompt_notes(prompt: Prompt, own: TokenizerFiles) -> list[str]:
    """Return which prompts the model gets, and whether its answers can end."""
    notes = [prompt.note]
    named = own.special_tokens()["eos_token"]
    for stop in prompt.stops if own.json else ():
        if own.token_id(stop) is None and stop != named:
            notes.append(f"its tokenizer has no token {stop}: nothing but length may end an answer")
    if not prompt.stops and prompt.template.name == "v0":
        notes.append('answers end with the text "###": pass stop_strings=["###"] to generate')
    return notes


def _notes(source: Checkpoint, tower: vision.Tower, tokens: Tokens) -> list[str]:
    rows = source.tensors[WORDS].shape[0]
    where = "inside the checkpoint" if tower.inside else "from a repository of its own"
    notes = [f"adopted from the original LLaVA format; the vision tower comes {where}"]
    if tokens.rows > rows:
        notes.append(
            f"the vocabulary of {rows} is padded to {tokens.rows} (<image> is {tokens.image}, "
            f"padding {tokens.pad}), as transformers' own converter does"
        )
    if tower.config["num_hidden_layers"] < tower.full_depth:
        notes.append("the tower's last block is left out: the reference never runs it")
    if not any(name.startswith("tokenizer") for name in source.side_files):
        notes.append("the original has no tokenizer files: add those of its language model")
    if source.config.get("image_aspect_ratio") == "pad":
        notes.append("images are cropped to a square as llava-hf does; the original pads them")
    return notes


FORMAT = OriginalFormat("llava", recognises, adopt)
