"""Put one question about pictures or a video to a model, and hear the answer as it comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TextStreamer

from dcsurgery.data.conversations import ask
from dcsurgery.data.pictures import RowError, open_images
from dcsurgery.data.processor import load_processor
from dcsurgery.data.prompts import Prompter
from dcsurgery.data.templates import Prompt, prompt_version
from dcsurgery.errors import RequestError
from dcsurgery.evaluation.generation import GREEDY, model_inputs, place_model, running
from dcsurgery.evaluation.video import Clip, image_runs, pooled_features, read_clip, shorten
from dcsurgery.loading.hints import share_hints
from dcsurgery.loading.load import load_model, quiet_transformers

Listener = Callable[[str], None]


@dataclass(frozen=True)
class Question:
    """Words, and the PIL images or the video they are about; `frame_pool` pools the frames."""

    text: str
    pictures: tuple[Any, ...] = ()
    clip: Clip | None = None
    frame_pool: int = 1


@dataclass(frozen=True)
class Answer:
    """What a model said. `image_tokens` of the prompt's `prompt_tokens` were pictures."""

    model: str
    text: str
    prompt_tokens: int
    image_tokens: int
    new_tokens: int


def make_question(
    text: str,
    images: Sequence[str | Path] = (),
    *,
    video: str | Path | None = None,
    frames: int = 8,
    frame_pool: int = 1,
    orientation: str = "exif",
) -> Question:
    """Open the pictures, or decode the frames, of a question.

    `orientation` is exif or raw: whether pictures are turned as their tag says.

    Raises RequestError for files that cannot be read, for both at once, or no words.
    """
    if not text.strip():
        raise RequestError("the question is empty", hint='end with it: "What is this?"')
    if frame_pool < 1:
        raise RequestError(
            f"--frame-pool {frame_pool}: at least 1 is needed",
            hint="1 keeps all tokens of a frame, 2 (the paper) half of them",
        )
    if video is None:
        if frame_pool != 1:
            raise RequestError("--frame-pool is for frames of --video", hint="leave it out")
        pictures = open_images([Path(item) for item in images], orientation) if images else []
        return Question(text.strip(), tuple(pictures))
    if images:
        raise RequestError(
            "pictures and --video cannot be asked about together", hint="leave one of them out"
        )
    if orientation != "exif":
        raise RequestError("--orientation is for pictures", hint="leave it out with --video")
    clip = read_clip(Path(video), frames)
    return Question(text.strip(), clip.frames, clip, frame_pool)


class Respondent:
    """A loaded model and what writes its prompts. `name` is what people see."""

    def __init__(self, name: str, model: Any, prompter: Prompter) -> None:
        self.name = name
        self.model = model
        self.prompter = prompter

    def answer(
        self, question: Question, *, max_new_tokens: int = 256, listen: Listener | None = None
    ) -> Answer:
        """Answer greedily; `listen` gets the text in pieces while it is generated.

        Raises RequestError where the model cannot take the question.
        """
        inputs, runs = self._inputs(question)
        width = inputs["input_ids"].shape[1]
        self._check_length(width)
        streamer = None if listen is None else _stream(self.prompter.tokenizer, listen)
        settings = {**GREEDY, "max_new_tokens": max_new_tokens, "streamer": streamer}
        with (
            torch.inference_mode(),
            quiet_transformers(),
            running(self.model, self.name),
            pooled_features(self.model, runs, question.frame_pool),
        ):
            tokens = self.model.generate(**inputs, **settings)[0, width:]
        return Answer(
            model=self.name,
            text=self.prompter.answer(tokens),
            prompt_tokens=width,
            image_tokens=int((inputs["input_ids"] == self._token).sum()),
            new_tokens=len(tokens),
        )

    @property
    def _token(self) -> int:
        config = self.model.config
        found = getattr(config, "image_token_id", None)
        return int(getattr(config, "image_token_index", -1) if found is None else found)

    def _inputs(self, question: Question) -> tuple[dict[str, Tensor], tuple[int, ...]]:
        """Return what generate takes, and the runs of image tokens before they were pooled."""
        turns = [ask(question.text, len(question.pictures))]
        try:
            inputs = self.prompter.prompt(turns, question.pictures)
        except RowError as error:
            raise RequestError(
                f"the question cannot be put to {self.name}: {error.message}",
                hint="ask with one picture to see whether the model takes several",
            ) from None
        runs: tuple[int, ...] = ()
        if question.clip is not None:
            blanks = self._blanks(inputs["input_ids"][0])
            count = len(question.clip.frames)
            found = shorten(inputs, self._token, count, question.frame_pool, blanks)
            inputs, runs = found.inputs, found.runs
        return model_inputs(self.model, inputs), runs

    def _blanks(self, ids: Tensor) -> list[int]:
        """Return the tokens between runs of image tokens that are line breaks or blanks."""
        found = image_runs(ids, self._token)
        between = {
            int(token) for (_, end), (start, _) in pairwise(found) for token in ids[end:start]
        }
        decode = self.prompter.tokenizer.decode
        return [token for token in between if not decode([token]).strip()]

    def _check_length(self, width: int) -> None:
        config = self.model.config.get_text_config()
        longest = getattr(config, "max_position_embeddings", None)
        if isinstance(longest, int) and width >= longest:
            raise RequestError(
                f"the prompt has {width} tokens; {self.name} was made for {longest}",
                hint="take fewer --frames or pictures, or --frame-pool 2",
            )


def _stream(tokenizer: Any, listen: Listener) -> Any:
    """Return a streamer for generate that hands text on as soon as its words are whole."""

    def pass_on(text: str, stream_end: bool = False) -> None:
        if text:
            listen(text)

    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    streamer.on_finalized_text = pass_on
    return streamer


@dataclass(frozen=True)
class Loading:
    """Where a model is and how it is loaded.

    `base`: where the base of a delta is now. `dtype` is a torch name or "auto", the checkpoint's
    own; `device` None takes a GPU if there is one. `prompt` "auto" is the model's chat template,
    "plain" and "v1" are LLaVA's; `towers` and `template` are as in load_model.
    """

    path: str | Path
    revision: str | None = None
    base: str | Path | None = None
    dtype: str = "auto"
    device: str | None = None
    prompt: Prompt = "auto"
    towers: Mapping[str, str] | None = None
    template: str | None = None


def load_respondent(where: Loading) -> Respondent:
    """Load a converted folder, a plain one or a Hub id, with its processor, to be asked.

    Raises DcSurgeryError.
    """
    version = prompt_version(where.prompt)
    dtype = where.dtype if where.dtype == "auto" else getattr(torch, where.dtype, None)
    if dtype != "auto" and not isinstance(dtype, torch.dtype):
        raise RequestError(f"--dtype {where.dtype} is unknown", hint="float32, bfloat16, auto, ...")
    place: dict[str, Any] = {"revision": where.revision, "base": where.base}
    (hints,) = share_hints([(where.path, where.revision)], where.towers, where.template)
    processor = load_processor(where.path, **place, **hints)
    model = load_model(where.path, dtype=dtype, **place, **hints)
    model = place_model(model, str(where.path), where.device)
    return Respondent(str(where.path), model, Prompter(processor, version=version))


def ask_model(  # noqa: PLR0913 - one keyword per CLI option, by design
    path: str | Path,
    question: str,
    images: Sequence[str | Path] = (),
    *,
    video: str | Path | None = None,
    max_new_tokens: int = 256,
    orientation: str = "exif",
    revision: str | None = None,
    base: str | Path | None = None,
    dtype: str = "auto",
    device: str | None = None,
    prompt: Prompt = "auto",
    towers: Mapping[str, str] | None = None,
    template: str | None = None,
) -> Answer:
    """Ask a model (folder or Hub id) about pictures, or 8 frames of a video, and return its answer.

    `orientation` as in make_question; the last seven keywords as in Loading. Raises DcSurgeryError.
    """
    asked = make_question(question, images, video=video, orientation=orientation)
    where = Loading(path, revision, base, dtype, device, prompt, towers, template)
    return load_respondent(where).answer(asked, max_new_tokens=max_new_tokens)
