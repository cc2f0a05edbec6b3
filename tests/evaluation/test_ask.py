from __future__ import annotations

import importlib
import pkgutil
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

import dcsurgery.tiny
import tests.tiny
from dcsurgery.data.pictures import sample_photo
from dcsurgery.errors import RequestError
from dcsurgery.evaluation.ask import (
    Loading,
    Question,
    ask_model,
    load_respondent,
    make_question,
)
from dcsurgery.evaluation.video import Clip, pool_tokens
from dcsurgery.loading.load import load_model
from dcsurgery.surgery.convert import convert_checkpoint
from tests.architectures.cases import load
from tests.evaluation.clips import write_clip

WORDS = "What is in the picture?"


def writers() -> dict[str, Callable[[Path], Path]]:
    """What writes the tiny model of every family."""
    return {
        name.removeprefix("write_tiny_"): value
        for package in (dcsurgery.tiny, tests.tiny)
        for item in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
        for name, value in vars(importlib.import_module(item.name)).items()
        if name.startswith("write_tiny_")
    }


WRITERS = writers()


@pytest.fixture(scope="module")
def delta(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A delta of tiny_clip with a projector of its own. Do not write into it."""
    folder = tmp_path_factory.mktemp("ask") / "delta"
    convert_checkpoint(tiny_clip, folder, form="delta", init="paper")
    return folder


@pytest.fixture(scope="module")
def clip() -> Clip:
    grey = [Image.new("RGB", (40, 30), (value, 90, 20)) for value in (20, 120, 220)]
    return Clip(tuple(grey), (0, 1, 2), 3)


def greedy(model: Any, folder: Path) -> str:
    """The answer that transformers' own processor and generate give."""
    processor = AutoProcessor.from_pretrained(folder)
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": WORDS}]}
    text = processor.apply_chat_template([message], add_generation_prompt=True)
    with Image.open(sample_photo()) as photo:
        inputs = processor(text=text, images=photo.convert("RGB"), return_tensors="pt")
    found = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    text = processor.decode(found[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return str(text).strip()


def test_the_answer_is_what_transformers_generates(tiny_clip: Path, delta: Path) -> None:
    answers = []
    for folder, model in ((tiny_clip, load(tiny_clip)), (delta, load_model(delta))):
        found = ask_model(folder, WORDS, [sample_photo()], max_new_tokens=6)
        assert found.text == greedy(model, tiny_clip)
        assert (found.model, found.image_tokens, found.new_tokens) == (str(folder), 16, 6)
        assert found.prompt_tokens > 16
        answers.append(found.text)
    assert answers[0] != answers[1]


def test_words_are_heard_before_the_answer_is_whole(tiny_clip: Path) -> None:
    heard: list[str] = []
    respondent = load_respondent(Loading(tiny_clip))
    tokenizer = respondent.prompter.tokenizer
    said = tokenizer("three red ones", add_special_tokens=False)["input_ids"]
    counts = []

    def say(streamer: Any, **_: Any) -> torch.Tensor:
        prompt = torch.tensor([[1, 2]])
        streamer.put(prompt)
        for token in said:
            streamer.put(torch.tensor([token]))
            counts.append(len(heard))
        streamer.end()
        return torch.cat([prompt[:, :0].expand(1, 0), torch.tensor([said])], dim=1)

    respondent.model.generate = say
    respondent.answer(make_question("Who?"), listen=heard.append)
    assert "".join(heard) == "three red ones"
    assert counts[0] == 0 < counts[-1] < len(heard)


def test_what_is_heard_is_the_answer(delta: Path) -> None:
    heard: list[str] = []
    question = make_question("Who?", [sample_photo()])
    found = load_respondent(Loading(delta)).answer(question, max_new_tokens=30, listen=heard.append)
    assert "".join(heard).strip() == found.text != ""


def test_a_question_without_pictures_is_answered(tiny_clip: Path) -> None:
    assert ask_model(tiny_clip, WORDS, max_new_tokens=2).image_tokens == 0


def test_the_base_of_a_delta_may_have_moved(tiny_clip: Path, tmp_path: Path, delta: Path) -> None:
    moved = shutil.copytree(tiny_clip, tmp_path / "moved")
    found = ask_model(delta, WORDS, [sample_photo()], max_new_tokens=3, base=moved)
    assert found.text == ask_model(delta, WORDS, [sample_photo()], max_new_tokens=3).text


def test_pooled_frames_reach_the_language_model(tiny_clip: Path, delta: Path, clip: Clip) -> None:
    """Oracle: features by transformers' method, pooled, put between word embeddings by hand."""
    respondent = load_respondent(Loading(delta))
    model = respondent.model
    processor = AutoProcessor.from_pretrained(tiny_clip)
    pixels = processor.image_processor(list(clip.frames), return_tensors="pt")["pixel_values"]
    tokenizer = processor.tokenizer
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": WORDS}]}
    text = processor.apply_chat_template([message], add_generation_prompt=True)
    before, after = text.split(processor.image_token)
    ids = [tokenizer(before)["input_ids"], tokenizer(after, add_special_tokens=False)["input_ids"]]
    with torch.no_grad():
        frames = model.get_image_features(pixel_values=pixels).pooler_output
        pooled = pool_tokens(torch.stack(list(frames)), 2).flatten(0, 1)
        words = [model.get_input_embeddings()(torch.tensor(part)) for part in ids]
        embedded = torch.cat([words[0], pooled, words[1]])[None]
        tokens = model.generate(inputs_embeds=embedded, max_new_tokens=6, do_sample=False)
    question = about(clip, 2)
    found = respondent.answer(question, max_new_tokens=6)
    assert found.text == respondent.prompter.answer(tokens[0])
    assert found.image_tokens == 3 * 8
    assert found.prompt_tokens == embedded.shape[1]
    whole = respondent.answer(about(clip, 1), max_new_tokens=6)
    assert whole.image_tokens == 3 * 16 and whole.text != found.text


def about(clip: Clip, pool: int) -> Question:
    return Question(WORDS, clip.frames, clip, pool)


# Positions or further layers of these count the tokens of a picture's own grid, or its tokens are
# not in the prompt.
UNPOOLED = {
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "glm4v",
    "paddleocr_vl",
    "video_llama_3",
    "mllama",
    "lfm3_vl",
}
# Their tiny models have no processor, or one that wants torchvision.
SILENT = {"cohere2_vision", "ernie4_5_vl", "kimi_k25", "lfm2_vl", "llama4", "molmo2"}


@pytest.mark.parametrize("family", sorted(WRITERS.keys() - SILENT))
def test_every_family_reads_a_video(family: str, tmp_path: Path, clip: Clip) -> None:
    """Frames as pictures; their tokens pooled, or a clear word that they cannot be."""
    respondent = load_respondent(Loading(WRITERS[family](tmp_path / "model")))
    whole = respondent.answer(about(clip, 1), max_new_tokens=2)
    if family in UNPOOLED:
        with pytest.raises(RequestError, match="--frame-pool"):
            respondent.answer(about(clip, 2), max_new_tokens=2)
        return
    pooled = respondent.answer(about(clip, 2), max_new_tokens=2)
    assert 0 < pooled.image_tokens <= whole.image_tokens / 2
    assert respondent.answer(about(clip, 1), max_new_tokens=2) == whole


def test_questions_that_cannot_be_meant(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    video = write_clip(tmp_path / "clip.mp4", frames=2)
    photo = sample_photo()
    refused: list[tuple[str, tuple[str, list[Path]], dict[str, Any]]] = [
        ("question is empty", (" ", [photo]), {}),
        ("broken.jpg is not a picture", ("Who?", [tmp_path / "broken.jpg"]), {}),
        ("none.png does not exist", ("Who?", [tmp_path / "none.png"]), {}),
        ("cannot be asked about together", ("Who?", [photo]), {"video": video}),
        ("--frame-pool is for frames", ("Who?", [photo]), {"frame_pool": 2}),
        ("--frame-pool 0", ("Who?", []), {"video": video, "frame_pool": 0}),
    ]
    for message, given, options in refused:
        with pytest.raises(RequestError, match=message):
            make_question(*given, **options)


def test_models_that_cannot_be_asked(tiny_clip: Path) -> None:
    for message, options in (("--dtype", {"dtype": "nothing"}), ("--device", {"device": "no"})):
        with pytest.raises(RequestError) as caught:
            load_respondent(Loading(tiny_clip, **options))
        assert message in caught.value.message + caught.value.hint
    respondent = load_respondent(Loading(tiny_clip))
    respondent.model.config.get_text_config().max_position_embeddings = 20
    with pytest.raises(RequestError, match="was made for 20") as caught:
        respondent.answer(make_question(WORDS, [sample_photo()]))
    assert "--frame-pool" in caught.value.hint
