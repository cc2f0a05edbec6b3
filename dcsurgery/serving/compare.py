"""Whether a server computes what transformers does: log-probabilities of answers about pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcsurgery.connectors.attach import detach
from dcsurgery.data.conversations import ask
from dcsurgery.data.pictures import open_images
from dcsurgery.data.templates import image_token
from dcsurgery.errors import RequestError
from dcsurgery.evaluation.ask import Loading, Respondent, load_respondent
from dcsurgery.evaluation.generation import model_inputs, running
from dcsurgery.serving.engines import Engine, read_record, running_engine
from dcsurgery.serving.gguf import RECORD
from dcsurgery.verification.report import Check, Report

QUESTION = "What is in this picture?"
# Most servers give at most 20 alternatives a token.
TOKENS, TOP = 8, 20
LIMIT = 0.1


@dataclass(frozen=True)
class _Step:
    """One answered token: its id and log-probabilities by token id, as the server sent them."""

    token: int
    logprobs: Mapping[int, float]


def verify_engine(  # noqa: PLR0913 - one keyword per CLI option, by design
    model: str | Path,
    engine: str,
    *,
    base: str | Path | None = None,
    revision: str | None = None,
    images: Sequence[str | Path] = (),
    limit: float = LIMIT,
    device: str | None = None,
) -> Report:
    """Ask a server and transformers about pictures and compare log-probabilities token by token.

    `model` is a folder or Hub id, converted or not, or a folder that export_gguf wrote; `engine` is
    the address of an OpenAI-compatible server, "llama.cpp" or "vllm". `limit` is the largest
    difference in nats. Two controls say whether the comparison can tell anything at all: a grey
    picture, and the connector taken off. Without `images` a photograph is shown at the tower's own
    size, because engines resize in different ways. Raises DcSurgeryError.
    """
    served, place = Path(model), Loading(model, revision, base, device=device)
    if (served / RECORD).is_file():
        record = read_record(served)
        place = Loading(record["model"], record["revision"], record["base"], device=device)
    asked = load_respondent(place)
    pictures = [
        _sized(picture, asked.model, images)
        for picture in open_images([Path(image) for image in images])
    ]
    with running_engine(engine, served) as server:
        answers = [_ask(server, asked, picture) for picture in pictures]
    checks = [_template_check(asked, pictures, answers)] if server.own_template else []
    steps = [steps for steps, _ in answers]
    served_values = [[v for step in each for v in step.logprobs.values()] for each in steps]
    own = _own_values(asked, pictures, steps)
    worst = _distance(own, served_values)
    grey = _own_values(asked, [picture.point(lambda _: 128) for picture in pictures], steps)
    controls, likeness = [_control("a grey picture", _distance(own, grey), limit)], ""
    if _distance(grey, served_values) <= limit < worst:
        likeness = "the server answers as if the picture were grey: it does not see it"
    if _has_trained_connector(asked.model):
        detach(asked.model)
        bare = _own_values(asked, pictures, steps)
        controls.append(_control("the connector taken off", _distance(own, bare), limit))
        if _distance(bare, served_values) <= limit < worst:
            likeness = "the server computes the model without its connector"
    count = sum(map(len, steps))
    measured = f"{count} tokens, {TOP} candidates each: largest difference {worst:.3g}"
    passed = worst <= limit
    checks.append(Check("log-probabilities", passed, measured, f"{limit:g} nats", likeness))
    return Report(str(model), str(place.path), f"served by {engine}", (*checks, *controls))


def _has_trained_connector(model: Any) -> bool:
    connector = getattr(model, "dense_connector", None)
    return connector is not None and any(bool(p.any()) for p in connector.parameters())


def _sized(picture: Any, model: Any, images: Sequence[str | Path]) -> Any:
    size = getattr(getattr(model.config, "vision_config", None), "image_size", None)
    size = tuple(size) if isinstance(size, list | tuple) else (size, size)
    return picture if images or None in size else picture.resize(size[::-1])


def _ask(server: Engine, asked: Respondent, picture: Any) -> tuple[list[_Step], int]:
    """Return the server's answer, and how many tokens its prompt had."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}}]
    if server.own_template:
        parts.append({"type": "text", "text": QUESTION})
    else:
        text = asked.prompter.written([ask(QUESTION, 1)])
        before, _, after = text.partition(image_token(asked.prompter.processor))
        around = [{"type": "text", "text": part} for part in (before, after)]
        parts = [around[0], *parts, around[1]]
    found = server.ask(parts, TOKENS, TOP)
    try:
        listed = found["choices"][0]["logprobs"]["content"]
        steps = [_step(asked, item) for item in listed]
        counted = int((found.get("usage") or {}).get("prompt_tokens", -1))
    except (KeyError, IndexError, TypeError, ValueError):
        raise RequestError(
            f"{server.name} answered without log-probabilities",
            hint="they are what is compared; the server must support logprobs and top_logprobs",
        ) from None
    if not steps:
        raise RequestError(f"{server.name} answered with no token", hint="look at its log")
    return steps, counted


def _step(asked: Respondent, item: Mapping[str, Any]) -> _Step:
    each = {_token(asked, entry): float(entry["logprob"]) for entry in item["top_logprobs"]}
    own = _token(asked, item)
    return _Step(own, {**each, own: float(item["logprob"])})


def _token(asked: Respondent, entry: Mapping[str, Any]) -> int:
    """Return a token's id: llama.cpp sends it, vLLM writes it as its name."""
    if "id" in entry:
        return int(entry["id"])
    name = str(entry["token"])
    if name.startswith("token_id:"):
        return int(name.removeprefix("token_id:"))
    ids = asked.prompter.tokenizer.encode(name, add_special_tokens=False)
    if len(ids) != 1:
        raise RequestError(
            f"the server names a token {name!r}, which is {len(ids)} tokens of the model's own "
            "tokenizer",
            hint="it must send token ids (llama.cpp and vLLM do)",
        )
    return int(ids[0])


def _template_check(
    asked: Respondent, pictures: Sequence[Any], answers: Sequence[tuple[list[_Step], int]]
) -> Check:
    own = [_prompt(asked, picture)["input_ids"].shape[1] for picture in pictures]
    found = [count for _, count in answers]
    return Check(
        "prompt tokens", own == found, f"{found[0]} on the server, {own[0]} here", "equal",
        "" if own == found else "its chat template or its picture sizes differ",
    )  # fmt: skip


def _prompt(asked: Respondent, picture: Any) -> dict[str, Tensor]:
    return asked.prompter.prompt([ask(QUESTION, 1)], [picture])


def _own_values(
    asked: Respondent, pictures: Sequence[Any], answers: Sequence[Sequence[_Step]]
) -> list[list[float]]:
    """Return per picture the model's own log-probabilities of what the server named.

    The model reads the server's tokens, so that one difference does not make the next.
    """
    values = []
    for picture, steps in zip(pictures, answers, strict=True):
        prompt = model_inputs(asked.model, _prompt(asked, picture))
        with torch.inference_mode(), running(asked.model, asked.name):
            found = _read(asked.model, prompt, [step.token for step in steps])
        values.append(
            [float(row[t]) for row, step in zip(found, steps, strict=True) for t in step.logprobs]
        )
    return values


def _distance(ours: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> float:
    """Return the largest difference, in nats, of the pictures' values."""
    return max(
        abs(a - b)
        for one, other in zip(ours, others, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def _read(model: Any, prompt: Mapping[str, Tensor], tokens: Sequence[int]) -> Tensor:
    """Return log-probabilities [tokens, vocabulary] of the answer's tokens, each after the last."""
    added = torch.tensor([list(tokens[:-1])], device=model.device)
    values = {}
    for name, value in prompt.items():
        longer = {"input_ids": added, "attention_mask": torch.ones_like(added)}.get(name)
        if longer is None and value.shape[:2] == prompt["input_ids"].shape:
            longer = torch.zeros_like(added)  # token types: the answer is text
        values[name] = value if longer is None else torch.cat([value, longer.to(value)], 1)
    start = prompt["input_ids"].shape[1] - 1
    return torch.as_tensor(model(**values).logits[0, start:].float().log_softmax(-1))


def _control(what: str, moved: float, limit: float) -> Check:
    return Check(
        f"it can tell: {what}", moved > 2 * limit,
        f"moves them by {moved:.3g}", f"more than {2 * limit:g} nats",
        "" if moved > 2 * limit else "answers hardly depend on it: equal numbers prove little here",
    )  # fmt: skip
