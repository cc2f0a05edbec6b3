"""`dcsurgery ask`: one question about pictures or a video, answered as you watch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from dcsurgery.cli.options import (
    AsJson,
    Device,
    Dtype,
    Model,
    Orientation,
    PromptOption,
    Quiet,
    Revision,
    Template,
    Towers,
    read_towers,
)
from dcsurgery.cli.output import Output
from dcsurgery.errors import RequestError

if TYPE_CHECKING:
    from dcsurgery.data.templates import Prompt
    from dcsurgery.evaluation.ask import Answer, Listener, Question

EXAMPLES = (
    'dcsurgery ask llava-dci photo.jpg "How many people are there?"',
    'dcsurgery ask llava-dci photo.jpg "What is this?" --against ./my-llava',
    'dcsurgery ask llava-dci --video clip.mp4 --frame-pool 2 "What happens?"',
)


@dataclass(frozen=True)
class AskOptions:
    """What is asked about, beside pictures, who is asked, and how the answers are shown."""

    revision: Revision = None
    against: Annotated[
        str | None,
        typer.Option(
            metavar="BASE", help="Ask this model too and show both answers: a folder or a Hub id."
        ),
    ] = None
    video: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Ask about frames of a video instead of pictures."),
    ] = None
    frames: Annotated[
        int, typer.Option(metavar="N", help="Frames of the video, evenly spread.")
    ] = 8
    frame_pool: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Keep the maximum of every N neighbouring tokens of a frame; the paper: 2.",
        ),
    ] = 1
    max_new_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="Longest answer, in tokens.")
    ] = 256
    base: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Where the base of a delta is now."),
    ] = None
    prompt: PromptOption = "auto"
    tower: Towers = None
    template: Template = None
    orientation: Orientation = "exif"
    dtype: Dtype = "auto"
    device: Device = None
    as_json: AsJson = False
    quiet: Quiet = False


def ask(
    model: Model,
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="IMAGE", help="Pictures, in their order.")
    ] = None,
    *,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask, in quotes.")],
    options: AskOptions,
) -> None:
    """Ask a model about pictures or a video.

    MODEL is what `dcsurgery convert` wrote, or any model of the support table. The answer is the
    likeliest one (greedy) and is printed as it is generated. A video is read as the paper does:
    frames as pictures.
    """
    out = Output(as_json=options.as_json, quiet=options.quiet)
    if Path(question).is_file():
        raise RequestError(
            f"the question is missing: {question} is a file",
            hint=f'end with it: dcsurgery ask {model} {question} "What is this?"',
        )
    with out.working("reading the question"):
        from dcsurgery.evaluation.ask import make_question

        asked = make_question(
            question,
            images or [],
            video=options.video,
            frames=options.frames,
            frame_pool=options.frame_pool,
            orientation=options.orientation,
        )
    if options.prompt == "plain":
        out.tell("the plain prompt shows the pictures alone: the question is left out")
    if asked.clip is not None:
        out.tell(f"{len(asked.clip.frames)} of {asked.clip.total} frames")
    models = [(model, options)]
    if options.against is not None:
        # These belong to MODEL alone.
        models.append((options.against, replace(options, revision=None, base=None)))
    with out.working("reading the models"):
        from dcsurgery.loading.hints import share_hints

        places = [(name, own.revision) for name, own in models]
        hints = share_hints(places, read_towers(options.tower), options.template)
    with _shown([name for name, _ in models], out) as shows:
        answers = [
            _ask_one(name, asked, own, given, show, out)
            for (name, own), given, show in zip(models, hints, shows, strict=True)
        ]
    if options.as_json:
        out.data(_values(asked, images or [], options, answers))


def _ask_one(
    name: str,
    asked: Question,
    options: AskOptions,
    hints: Mapping[str, Any],
    show: Show,
    out: Output,
) -> Answer:
    """Load one model, let it answer, and give its memory back."""
    with out.working(f"loading {name}") if show.waits else nullcontext():
        from dcsurgery.evaluation.ask import Loading, load_respondent
        from dcsurgery.verification.models import free_memory

        where = Loading(
            name,
            revision=options.revision,
            base=options.base,
            dtype=options.dtype,
            device=options.device,
            prompt=cast("Prompt", options.prompt),
            **hints,
        )
        respondent = load_respondent(where)
    with show.words() as listen:
        answer = respondent.answer(asked, max_new_tokens=options.max_new_tokens, listen=listen)
    del respondent
    free_memory()
    return answer


@dataclass(frozen=True)
class Show:
    """How one answer appears. `waits`: the screen is free for a progress line until it comes."""

    words: Callable[[], AbstractContextManager[Listener | None]]
    waits: bool = True


@contextmanager
def _shown(names: list[str], out: Output) -> Iterator[list[Show]]:
    """Yield where each model's words go: columns on a terminal, else lines with its name."""
    if out.as_json:
        yield [Show(nullcontext) for _ in names]
    elif len(names) > 1 and out.on_terminal:
        with out.columns(names) as add:
            listeners: list[Listener] = [partial(add, index) for index in range(len(names))]
            yield [Show(partial(nullcontext, listen), waits=False) for listen in listeners]
    else:
        labels = [f"{name}: " for name in names] if len(names) > 1 else [""]
        yield [Show(partial(_line, label, out)) for label in labels]


@contextmanager
def _line(label: str, out: Output) -> Iterator[Listener]:
    out.piece(label)
    yield out.piece
    out.piece("\n")


def _values(
    asked: Question, images: list[Path], options: AskOptions, answers: list[Answer]
) -> dict[str, Any]:
    values: dict[str, Any] = {"schema_version": 1, "question": asked.text}
    if asked.clip is None:
        values["images"] = [str(path) for path in images]
        values["orientation"] = options.orientation
    else:
        values["video"] = str(options.video)
        values["frames"] = list(asked.clip.numbers)
        values["frame_pool"] = asked.frame_pool
    return {**values, "answers": [asdict(answer) for answer in answers]}
