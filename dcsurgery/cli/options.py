"""Options that several commands share, and what turns a group of them into parameters.

A new connector option is one field of ConnectorOptions; its value reaches make_spec under the
field's name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from dcsurgery.connectors import KINDS

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A model folder, or a Hub id such as llava-hf/llava-1.5-7b-hf."
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(metavar="REV", help="Branch, tag or commit of a Hub model. Default: the newest."),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="No progress, no advice: only the result, and errors."),
]
Columns = Annotated[
    str | None,
    typer.Option(
        metavar="WORD=COLUMN,...",
        help="What the data calls our words: question=prompt,answer=label, image=left+right for "
        "several, image={image_id:012}.jpg for names made of others. docs/data.md has the words.",
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace OUT, if dcsurgery wrote all of it; it stays until the new one is whole.",
    ),
]
Link = Annotated[
    bool,
    typer.Option(
        "--link",
        help="Hard-link unchanged weight files instead of copying them: no time, no space, "
        "but editing one edits both. Never out of a Hub cache.",
    ),
]
PromptOption = Annotated[
    str,
    typer.Option(
        metavar="VERSION",
        help="auto: the model's chat template, v1 where it has none. plain, v1: LLaVA's own.",
    ),
]
Orientation = Annotated[
    str,
    typer.Option(
        metavar="KIND",
        help="exif: turn pictures as their EXIF tag says, as viewers do. raw: leave them as they "
        "are stored, as LLaVA's own code does.",
    ),
]
Dtype = Annotated[
    str, typer.Option(metavar="DTYPE", help="auto (the checkpoint's), float32, bfloat16, ...")
]
Device = Annotated[
    str | None, typer.Option(metavar="DEVICE", help="cpu, cuda, ... Default: a GPU if any.")
]
Towers = Annotated[
    list[str] | None,
    typer.Option(
        "--tower",
        metavar="NAME=PATH",
        help="Where the vision tower is that a model in its original format names: NAME as its "
        "config calls it (or the last part of that), PATH a folder or a Hub id. Default: as the "
        "config says.",
    ),
]


Template = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="How prompts are written for a model in its original format: a conversation of its "
        "reference (v1, chatml_direct, mistral_instruct, llama_3, ...), own (its tokenizer's), or "
        "a file with a chat template. Default: as the checkpoint tells.",
    ),
]


def read_towers(values: list[str] | None) -> dict[str, str]:
    """Return --tower options as a table. Raises BadParameter for one without "="."""
    pairs = [value.rpartition("=") for value in values or ()]
    for (name, _, place), value in zip(pairs, values or (), strict=True):
        if not name or not place:
            raise typer.BadParameter(f"{value!r} is not NAME=PATH", param_hint="--tower")
    return {name: place for name, _, place in pairs}


@dataclass(frozen=True)
class ConnectorOptions:
    """Which connector, in which form: the keywords of dcsurgery.surgery.convert.make_spec."""

    connector: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            help="; ".join(f"{kind.name}: {kind.summary}" for kind in KINDS.values()) + ".",
        ),
    ] = "dci"
    groups: Annotated[
        int, typer.Option(metavar="N", help="Number of groups of hidden states (dci, mix).")
    ] = 2
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="LAYERS",
            help="Hidden states to read, instead of the connector's own rule: states like 7,15, "
            "runs like 0-11, groups like '0-11;12-23'. State 0 is the embeddings, state i the "
            "output of block i; -1 is the last. @probe.json: those that `dcsurgery probe` found.",
        ),
    ] = None
    norm: Annotated[
        bool, typer.Option("--norm", help="Put a LayerNorm on every state that is added (sci).")
    ] = False
    pool: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="2 halves both sides of the token grid after the projector: a quarter of the "
            "image tokens. 1 keeps them all.",
        ),
    ] = 1
    init: Annotated[
        str,
        typer.Option(
            metavar="INIT",
            help="preserve: the new matrix is zero, the model computes what it did. paper: "
            "connector and projector are drawn at random, to be trained.",
        ),
    ] = "preserve"
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of --init paper, 0 or more.")] = 0
    form: Annotated[
        str | None,
        typer.Option(
            metavar="FORM",
            help="stock: a complete checkpoint that plain transformers loads. delta: the connector "
            "alone, megabytes; dcsurgery loads it with its base. portable: a complete checkpoint "
            "with the connector's code inside, for plain transformers with trust_remote_code and "
            "for servers. reference: what the paper's own "
            "code (HJYao00/DenseConnector) saves and loads. Default: stock where the model's "
            "config has words for it, else delta.",
        ),
    ] = None


@dataclass(frozen=True)
class WriteOptions:
    """Where and how a conversion writes."""

    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            help="Folder to write. Needed, except with --dry-run.",
        ),
    ] = None
    overwrite: Overwrite = False
    link: Link = False
    keep_all: Annotated[
        bool,
        typer.Option(
            "--keep-all",
            help="Copy what a training or an editor left in MODEL too: logs, optimiser, "
            "checkpoints, hidden files.",
        ),
    ] = False
    tower: Towers = None
    template: Template = None
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the whole plan and write nothing.")
    ] = False


def spread(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` with every dataclass parameter replaced by one parameter per field."""
    flat: list[inspect.Parameter] = []
    groups: dict[str, type] = {}
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        group = parameter.annotation
        if not (isinstance(group, type) and is_dataclass(group)):
            flat.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[parameter.name] = group
        hints = get_type_hints(group, include_extras=True)
        flat += [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.default is MISSING else field.default,
                annotation=hints[field.name],
            )
            for field in fields(group)
        ]

    def call(**values: Any) -> Any:
        for name, kind in groups.items():
            values[name] = kind(**{field.name: values.pop(field.name) for field in fields(kind)})
        return function(**values)

    call.__name__, call.__doc__ = function.__name__, function.__doc__
    vars(call)["__signature__"] = inspect.Signature(flat)
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    return call
