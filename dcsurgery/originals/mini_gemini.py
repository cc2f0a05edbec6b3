"""dvlab-research/MGM (Mini-Gemini) and the Dense Connector checkpoint trained with its code.

Published configs carry no model_type, older ones the class names MiniGemini*. A checkpoint of
HuanjinYao/DenseConnector-with-mgm-7B is wider: `mm_projector.0` reads three states and the config
says `mm_hidden_size_uni`, the width mining keeps. Its code is not published beyond that: that the
columns are [feature + mined | group 1 | group 2], groups as in the LLaVA code, is inferred.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.errors import AnatomyError
from dcsurgery.modeling.mini_gemini.original import CHECKPOINT, renamed
from dcsurgery.originals import auxiliary_tower, dense, vision
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
from dcsurgery.originals.llava import (
    CHECK,
    FIRST,
    GENERATION,
    HEAD,
    INSIDE,
    WORDS,
    Config,
    generation_config,
    picture_words,
    prompt_notes,
)
from dcsurgery.originals.prompts import Speaker, choose_prompt
from dcsurgery.originals.text import text_section
from dcsurgery.originals.tokens import TokenizerFiles, Tokens, plan_image_token
from dcsurgery.originals.towers import PREPROCESSOR, Towers

UNI = "mm_hidden_size_uni"
# Keys of the original's config that say nothing about its language model.
_FOREIGN = ("optimize_", "aux_", "drop_path", "model_path")
_NEEDED = (
    WORDS,
    FIRST,
    "model.mm_projector.2.weight",
    *(f"model.vlm_uni_{part}_projector.1.weight" for part in ("query", "aux", "val")),
)
_CLASS = re.compile(r"(?:MGM|MiniGemini)(Llama|Gemma|Mistral|Mixtral)ForCausalLM")


@dataclass(frozen=True)
class _Parts:
    """What a checkpoint is presented from."""

    kind: tuple[str, str]
    tower: vision.Tower
    aux: auxiliary_tower.AuxTower
    tokens: Tokens


def recognises(config: Config) -> bool:
    """Return whether a config is a Mini-Gemini's: its class, and two towers named in words."""
    declared = config.get("architectures")
    name = declared[0] if isinstance(declared, list) and declared else None
    named = isinstance(config.get(vision.KEY), str) and isinstance(
        config.get(auxiliary_tower.KEY), str
    )
    return named and _CLASS.fullmatch(str(name)) is not None


def adopt(source: Checkpoint, towers: Towers, template: Template | None = None) -> Adopted:
    """Present an original Mini-Gemini as MiniGeminiForConditionalGeneration.

    Raises AnatomyError, CheckpointError or RequestError.
    """
    config = source.config
    inside = {name: found[1] for name in source.tensors if (found := INSIDE.match(name))}
    _require_known(source, inside)
    tower = vision.find_tower(source, inside, towers)
    found = _CLASS.fullmatch(config["architectures"][0])
    name = found[1] if found else ""
    own, rows = TokenizerFiles(source), source.tensors[WORDS].shape[0]
    parts = _Parts(
        kind=(name.lower(), f"{name}ForCausalLM"),
        tower=tower,
        aux=auxiliary_tower.find_tower(source, towers),
        tokens=plan_image_token(own, rows),
    )
    _check_sizes(source, parts)
    groups, connector = _tensors(source, parts)
    made = _config(source, parts)
    speaker = Speaker(parts.kind[0], rows, "mgm", picture_words(config))
    prompt = choose_prompt(own, speaker, template)
    adoption = Adoption(
        source=source,
        format="original Mini-Gemini" if connector is None else "published Dense Connector",
        class_name=config["architectures"][0],
        towers=dict(towers.found),
        template=prompt.template,
        notes=(*_notes(config, parts, connector), *prompt_notes(prompt, own)),
    )
    files = {
        **_files(source, parts, made),
        **prompt.files(source.side_files),
        GENERATION: render_json(generation_config(own, made["text_config"], parts.tokens, prompt)),
        **parts.tokens.files,
    }
    kept = [side for side in source.side_files if side not in files]
    return present(adoption, groups, made, files, kept, connector)


def _require_known(source: Checkpoint, inside: dict[str, str]) -> None:
    """Refuse a projector of another kind, tensors without a place, and places without a tensor."""
    kind = source.config.get("mm_projector_type", "linear")
    if kind != "mlp2x_gelu":
        raise AnatomyError(
            f"mm_projector_type is {kind!r}; Mini-Gemini's own is mlp2x_gelu",
            hint="this model has another projector and cannot be read",
        )
    select = source.config.get("mm_vision_select_feature", "patch")
    if select != "patch":
        raise AnatomyError(
            f"mm_vision_select_feature is {select!r}: mining needs patch tokens alone",
            hint=CHECK,
        )
    for name in _NEEDED:
        if name not in source.tensors:
            raise AnatomyError(f"the checkpoint has no tensor {name}", hint=CHECK)
    for name in sorted(source.tensors):
        if name not in inside and not _is_buffer(name) and renamed(name, CHECKPOINT) is None:
            raise AnatomyError(
                f"Mini-Gemini has no place for the tensor {name[:200]!r}", hint=CHECK
            )


def _is_buffer(name: str) -> bool:
    return name.endswith("rotary_emb.inv_freq")


def _check_sizes(source: Checkpoint, parts: _Parts) -> None:
    """Compare the widths the config states with the tensors."""
    config, width = source.config, parts.tower.config["hidden_size"]
    if parts.tower.is_siglip:
        raise AnatomyError(
            f"the vision tower {config[vision.KEY]!r} is a SigLIP, Mini-Gemini's is a CLIP",
            hint=f"name the tower it was trained with: --tower {vision.KEY}=PATH",
        )
    expected = {
        "mm_hidden_size": source.tensors[FIRST].shape[-1],
        "mm_hidden_size_aux": sum(parts.aux.config["hidden_sizes"]),
        UNI: width,
    }
    for key, found in expected.items():
        if config.get(key, found) != found:
            raise AnatomyError(
                f"{key} in config.json is {config[key]!r}, the tensors say {found}",
                hint=CHECK,
            )


def _tensors(
    source: Checkpoint, parts: _Parts
) -> tuple[list[list[Presented]], InstalledConnector | None]:
    """Return the tensors of every weight file, then those of towers that lie elsewhere."""
    tower = [replace(item, name=f"model.{item.name}") for item in parts.tower.tensors]
    width, depth = parts.tower.config["hidden_size"], parts.tower.config["num_hidden_layers"]
    wide = Presented.renamed(source, FIRST, str(renamed(FIRST, CHECKPOINT)))
    stated = {dense.KEY: source.config.get(dense.KEY) or ("dci" if UNI in source.config else None)}
    first, connector = dense.split(wide, stated, width, depth, siglip=False)
    own = {item.tensor: item for item in tower} if parts.tower.inside else {}
    own[FIRST] = first
    # The head of a tied model is its embeddings; a stored copy has no place of its own.
    left = {HEAD} if _is_tied(source.config, parts.kind[0]) else set()
    groups = []
    for file in source.weights:
        group = []
        for name in file.header.tensors:
            new = renamed(name, CHECKPOINT)
            if name in own:
                group.append(own[name])
            elif new is not None and name not in left and not INSIDE.match(name):
                group.append(Presented.renamed(source, name, new))
        groups.append(group)
    elsewhere = [[] if parts.tower.inside else tower, list(parts.aux.tensors)]
    return [*groups, *elsewhere], connector


def _is_tied(config: Config, language_model: str) -> bool:
    # Configs leave out what equals the default of their class: Gemma's is True.
    return bool(config.get("tie_word_embeddings", language_model == "gemma"))


def _says_old_gelu(config: Config, language_model: str) -> bool:
    return language_model == "gemma" and config.get("hidden_act") == "gelu"


def _config(source: Checkpoint, parts: _Parts) -> Config:
    config = source.config
    rows = source.tensors[WORDS].shape[0]
    tied = _is_tied(config, parts.kind[0])
    if not tied and HEAD not in source.tensors:
        raise AnatomyError(f"the checkpoint has no tensor {HEAD}", hint=CHECK)
    text = text_section(config, source.tensors, rows, parts.kind)
    text = {key: value for key, value in text.items() if not key.startswith(_FOREIGN)}
    if _says_old_gelu(config, parts.kind[0]):
        text["hidden_act"] = "gelu_pytorch_tanh"
    return {
        "architectures": ["MiniGeminiForConditionalGeneration"],
        "image_global": bool(config.get("image_global", False)),
        "image_grid": config.get("image_grid", 1),
        "image_token_id": parts.tokens.image,
        "model_type": "mini_gemini",
        "pad_token_id": parts.tokens.pad,
        "projector_hidden_act": "gelu",
        "text_config": {**text, "tie_word_embeddings": tied},
        "tie_word_embeddings": tied,
        "torch_dtype": config.get("torch_dtype") or "float16",
        "vision_config": parts.tower.config,
        # 320 pixels are the reference's default (mgm_arch.py, initialize_uni_modules).
        "vision_config_aux": {
            **parts.aux.config,
            "image_size": config.get("image_size_aux", 320),
        },
        "vision_feature_layer": config.get("mm_vision_select_layer", -2),
    }


def _files(source: Checkpoint, parts: _Parts, config: Config) -> dict[str, bytes]:
    """Return the processor files, which the original has not."""
    images = {
        "image_processor_type": "MiniGeminiImageProcessor",
        "processor_class": "MiniGeminiProcessor",
        "size": parts.tower.config["image_size"],
        "size_aux": config["vision_config_aux"]["image_size"],
        "image_grid": config["image_grid"],
        "image_global": config["image_global"],
        "do_pad": source.config.get("image_aspect_ratio") == "pad",
    }
    known = parts.tower.preprocessor
    images |= {key: known[key] for key in ("image_mean", "image_std") if key in known}
    processor = {
        "image_token": "<image>",
        "patch_size": parts.tower.config["patch_size"],
        "processor_class": "MiniGeminiProcessor",
    }
    return {
        PREPROCESSOR: render_json(images),
        "processor_config.json": render_json(processor),
    }


def _notes(config: Config, parts: _Parts, connector: InstalledConnector | None) -> list[str]:
    places = {True: "inside the checkpoint", False: "from a repository of its own"}
    notes = [
        "adopted from the original Mini-Gemini format; the vision tower comes "
        f"{places[parts.tower.inside]}, the auxiliary tower {places[parts.aux.inside]}"
    ]
    if _says_old_gelu(config, parts.kind[0]):
        notes.append(
            "hidden_act 'gelu' of this Gemma is read as its tanh form, as transformers reads it"
        )
    if config.get("image_grid", 1) != 1:
        notes.append(
            "the reference never defined a connector with tiles: its states follow their own "
            "tokens, the whole picture first, then tile by tile"
        )
    if connector is not None:
        notes.append(
            "its code is not published: that the projector reads [feature + mined, group 1, "
            "group 2] in that order is inferred from its sizes and from the LLaVA code"
        )
    return notes


FORMAT = OriginalFormat("mini_gemini", recognises, adopt)
