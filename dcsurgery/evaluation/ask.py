"""Put one question about pictures or a video to a model, and hear the answer as it comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TextStreamer

from dcsurgery.errors import RequestError
from dcsurgery.evaluation.video import Clip, image_runs, pooled_features, read_clip, shorten
from dcsurgery.loading import load_model, quiet_transformers
from dcsurgery.training.conversations import ask
from dcsurgery.training.pictures import RowError
from dcsurgery.training.processing import FOREIGN_ERRORS, load_processor
from dcsurgery.training.prompts import Prompter
from dcsurgery.verification.images import open_images
from dcsurgery.verification.models import cast_inputs

Listener = Callable[[str], None]
# Sampling settings of a checkpoint's own generation config: greedy search warns about them.
GREEDY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "temperature": None,
    "top_p": None,
    "top_k": None,
}


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
) -> Question:
    """Open the pictures, or decode the frames, of a question.

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
        pictures = open_images([Path(item) for item in images]) if images else []
        return Question(text.strip(), tuple(pictures))
    if images:
        raise RequestError(
            "pictures and --video cannot be asked about together", hint="leave one of them out"
        )
    clip = read_clip(Path(video), frames)
    return Question(text.strip(), clip.frames, clip, frame_pool)


class Respondent:
    """A loaded model with its own processor. `name` is what people see."""

    def __init__(self, name: str, model: Any, processor: Any) -> None:
        self.name = name
        self.model = model
        self.prompter = Prompter(processor)

    def answer(
        self, question: Question, *, max_new_tokens: int = 256, listen: Listener | None = None
    ) -> Answer:
        """Answer greedily; `listen` gets the text in pieces while it is generated.

        Raises RequestError where the model cannot take the question.
        """
        inputs, runs = self._inputs(question)
        width = inputs["input_ids"].shape[1]
        self._check_length(width)
        streamer = None if listen is None else _Stream(self.prompter.tokenizer, listen)
        settings = {**GREEDY, "max_new_tokens": max_new_tokens, "streamer": streamer}
        with (
            torch.inference_mode(),
            quiet_transformers(),
            pooled_features(self.model, runs, question.frame_pool),
        ):
            try:
                tokens = self.model.generate(**inputs, **settings)[0, width:]
            except RequestError:
                raise
            except FOREIGN_ERRORS as error:
                why = " ".join(str(error).split())[:160] or type(error).__name__
                raise RequestError(
                    f"{self.name} cannot answer: {why}",
                    hint="`dcsurgery verify` says whether the model itself is well",
                ) from error
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
            found = shorten(inputs, self._token, question.frame_pool, blanks)
            inputs, runs = found.inputs, found.runs
        device = self.model.device
        cast = cast_inputs(self.model, inputs)
        return {name: value.to(device) for name, value in cast.items()}, runs

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


class _Stream(TextStreamer):
    """Hands text on as soon as its words are whole."""

    def __init__(self, tokenizer: Any, listen: Listener) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._listen = listen

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Pass a piece on."""
        if text:
            self._listen(text)


def load_respondent(
    path: str | Path,
    *,
    revision: str | None = None,
    base: str | Path | None = None,
    **loading: Any,
) -> Respondent:
    """Load a converted folder, a plain one or a Hub id, with its processor, to be asked.

    On a machine with a GPU it goes there. Keywords go to load_model. Raises DcSurgeryError.
    """
    if torch.cuda.is_available():
        loading.setdefault("device_map", "auto")
    processor = load_processor(path, revision=revision, base=base)
    model = load_model(path, revision=revision, base=base, **loading)
    return Respondent(str(path), model, processor)


def ask_model(
    path: str | Path,
    question: str,
    images: Sequence[str | Path] = (),
    *,
    video: str | Path | None = None,
    max_new_tokens: int = 256,
    **loading: Any,
) -> Answer:
    """Ask a model (folder or Hub id) about pictures, or 8 frames of a video, and return its answer.

    Keywords go to load_respondent. Raises DcSurgeryError.
    """
    asked = make_question(question, images, video=video)
    return load_respondent(path, **loading).answer(asked, max_new_tokens=max_new_tokens)
