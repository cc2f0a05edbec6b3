"""Options that several commands share, and what turns a group of them into parameters.

A field of a request (dcsurgery.fields) is an option of every command that takes the request.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, make_dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from dcsurgery.fields import Field, told_fields

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
Out = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="OUT", help="Folder to write. Needed, except with --dry-run."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the whole plan and write nothing.")]
Columns = Annotated[
    str | None,
    typer.Option(
        metavar="WORD=COLUMN,...",
        help="What the data calls our words: question=prompt,answer=label, image=left+right for "
        "several, image={image_id:012}.jpg for names made of others. docs/data.md has the words.",
    ),
]
Images = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder that image paths start from. Default: that of DATA."),
]
Split = Annotated[str, typer.Option(metavar="NAME", help="Split of a Hugging Face data set.")]
RecipeName = Annotated[
    str, typer.Argument(metavar="NAME_OR_FILE", help="A shipped recipe, or a YAML file.")
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a field, such as finetune.lr=1e-4 (every stage) or finetune.0.lr=1e-4. "
        "Repeatable.",
    ),
]
DataDir = Annotated[Path, typer.Option(metavar="D", help="Where the recipe's data paths begin.")]
BaseNow = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="Where the base is now. Default: where the plan says."),
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
        help="Where to find the vision tower that a model in its original format names: NAME as "
        "its config calls it (or the last part of that), PATH a folder or a Hub id. Default: as "
        "the config says.",
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
class WriteOptions:
    """Where and how a conversion writes."""

    output: Out = None
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
    dry_run: DryRun = False


def part_of(request: type, names: Sequence[str]) -> type:
    """Return a group of some fields of a request, with what is told about them."""
    hints = get_type_hints(request, include_extras=True)
    chosen = [(f.name, hints[f.name], f.default) for f in fields(request) if f.name in names]
    return make_dataclass(f"PartOf{request.__name__}", chosen, frozen=True)


def spread(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` with every dataclass parameter replaced by one parameter per field.

    An optional one (`Group | None`) exists when its first option is given, which the others need;
    an option that an earlier group has too is one option, given to both.
    """
    flat: dict[str, inspect.Parameter] = {}
    groups: dict[str, Callable[[Mapping[str, Any]], Any]] = {}
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        plain = [kind for kind in get_args(parameter.annotation) if kind is not type(None)]
        group = plain[0] if len(plain) == 1 else parameter.annotation
        if isinstance(group, type) and is_dataclass(group):
            options = dict(_options(group, optional=bool(plain)))
            own = [option.name for option in options.values() if option.name not in flat]
            names = {field: option.name for field, option in options.items()}
            make = partial(_optional, own=own) if plain else _whole
            groups[parameter.name] = partial(make, group, names)
            for option in options.values():
                flat.setdefault(option.name, option)
        else:
            flat[parameter.name] = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)

    def call(**values: Any) -> Any:
        found = {name: make(values) for name, make in groups.items()}
        plain = inspect.signature(function).parameters.keys() - groups.keys()
        return function(**found, **{name: values[name] for name in plain})

    call.__name__, call.__doc__ = function.__name__, function.__doc__
    vars(call)["__signature__"] = inspect.Signature(list(flat.values()))
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in flat.values()}
    return call


def _whole(group: type, names: Mapping[str, str], values: Mapping[str, Any]) -> Any:
    return group(**{field: values[option] for field, option in names.items()})


def _optional(
    group: type, names: Mapping[str, str], values: Mapping[str, Any], *, own: Sequence[str]
) -> Any:
    """Return a group whose first option was given, else None. Raises BadParameter for the others
    that are its `own`.
    """
    given = {
        name for name in names.values() if values[name] is not None and values[name] is not False
    }
    first = next(iter(names.values()))
    if first in given:
        return group(**{field: values[name] for field, name in names.items() if name in given})
    for option in own:
        if option in given:
            flag = "--" + option.replace("_", "-")
            raise typer.BadParameter(f"needs --{first}", param_hint=flag)
    return None


def _options(group: type, *, optional: bool) -> Iterator[tuple[str, inspect.Parameter]]:
    """Yield every field of a group and its keyword; without defaults where it is optional."""
    hints, told = get_type_hints(group, include_extras=True), told_fields(group)
    for field in fields(group):
        name, hint, default = field.name, hints[field.name], field.default
        if field.name in told:
            name, hint = told[field.name].name, _annotation(told[field.name], optional=optional)
            default = None if optional and told[field.name].kind is not bool else default
        default = inspect.Parameter.empty if default is MISSING else default
        kind = inspect.Parameter.KEYWORD_ONLY
        yield field.name, inspect.Parameter(name, kind, default=default, annotation=hint)


def _annotation(field: Field, *, optional: bool) -> Any:
    flag = "--" + field.name.replace("_", "-")
    if field.kind is bool:
        names = f"{flag}/--no-{flag[2:]}" if field.optional else flag
        option = typer.Option(names, help=field.told.help)
        return Annotated[bool | None if field.optional else bool, option]
    kind: Any = type(field.choices[0]) if field.choices else field.kind
    kind = kind if kind in (int, float) and field.told.read is None else str
    option = typer.Option(flag, metavar=field.told.metavar, help=field.told.help)
    return Annotated[kind | None if optional or field.optional else kind, option]
