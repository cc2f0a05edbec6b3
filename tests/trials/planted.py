"""A LLaVA whose first state alone tells colours: the first block takes them out of all others.

The tower's blocks do nothing but for that one. Its states leave the first norm with mean 0 and
deviation 1, so that the block's own norm changes nothing, and its MLP is linear: quick_gelu(z) -
quick_gelu(-z) = z. It subtracts the half of the channels that colours are in.

The language model answers "a" or "b" by two channels of the mean over all tokens, "x" where the
question is "s", and ends after its answer.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dcsurgery.tiny.llava import llava_config, write_llava, write_llava_processor
from dcsurgery.tiny.tokenizer import vocab_size

WIDTH, HALF, DEPTH = 16, 8, 4
HIDDEN, END, LOUD, SPECIALS = 24, 2, 3.0, 5
# Channels of the language model: the question, and what is seen.
ASKED, SEEN = 4, (8, 9)
VOCABULARY = vocab_size(["<image>"])
TEXT = "language_model."
TOWER = "vision_tower.vision_model."
COLOURS = {"a": np.array([60, -60, 30]), "b": np.array([-60, 60, -30])}
MIDDLE = 127.5


def tower() -> dict[str, Tensor]:
    """The tensors of the tower, by their names on the Hub."""
    draw = torch.Generator().manual_seed(3)
    half = torch.randn(HALF // 2, 3, 1, 1, generator=draw).expand(-1, -1, 4, 4) / 16
    patch = torch.zeros(WIDTH, 3, 4, 4)
    # Their sum is zero, whatever the picture, and so is the mean over channels.
    patch[:HALF] = torch.cat([half, -half])
    place = torch.zeros(17, WIDTH)
    place[:, HALF:] = torch.randn(17, HALF, generator=draw)
    place[:, HALF:] -= place[:, HALF:].mean(1, keepdim=True)
    found = {
        f"{TOWER}embeddings.patch_embedding.weight": patch,
        f"{TOWER}embeddings.position_embedding.weight": place,
        f"{TOWER}embeddings.class_embedding": torch.zeros(WIDTH),
        **norm("pre_layrnorm"),
    }
    for index in range(DEPTH):
        block = f"encoder.layers.{index}"
        found |= norm(f"{block}.layer_norm1") | norm(f"{block}.layer_norm2")
        found |= {
            f"{TOWER}{block}.self_attn.out_proj.weight": torch.zeros(WIDTH, WIDTH),
            f"{TOWER}{block}.self_attn.out_proj.bias": torch.zeros(WIDTH),
            f"{TOWER}{block}.mlp.fc1.bias": torch.zeros(2 * WIDTH),
            f"{TOWER}{block}.mlp.fc2.bias": torch.zeros(WIDTH),
            f"{TOWER}{block}.mlp.fc1.weight": torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)]),
            f"{TOWER}{block}.mlp.fc2.weight": torch.zeros(WIDTH, 2 * WIDTH),
        }
    taken = torch.zeros(WIDTH, WIDTH)
    taken[:HALF, :HALF] = torch.eye(HALF)
    found[f"{TOWER}encoder.layers.0.mlp.fc2.weight"] = torch.cat([-taken, taken], 1)
    return found


def language() -> dict[str, Tensor]:
    """The tensors of the language model and of the projector's second matrix."""
    place = {letter: letter_id(letter) for letter in "abxs"}
    words, head = torch.zeros(2, VOCABULARY, HIDDEN).unbind()
    for channel, letter in enumerate("abx"):
        words[place[letter], channel] = 30  # louder than what it hears
        head[END, channel] = LOUD
    words[place["s"], ASKED] = 1
    for letter, channel in {"a": SEEN[0], "b": SEEN[1], "x": ASKED}.items():
        head[place[letter], channel] = LOUD
    heard = torch.zeros(HIDDEN)
    heard[[ASKED, *SEEN]] = torch.tensor([30.0, 1.0, 1.0])
    seeing = torch.zeros(HIDDEN, HIDDEN)
    seeing[list(SEEN)] = torch.randn(2, HIDDEN, generator=torch.Generator().manual_seed(5)) / 4
    found = {
        f"{TEXT}model.embed_tokens.weight": words,
        f"{TEXT}model.norm.weight": torch.ones(HIDDEN),
        f"{TEXT}lm_head.weight": head,
        "multi_modal_projector.linear_2.weight": seeing,
        "multi_modal_projector.linear_2.bias": (heard == 1).float(),
    }
    for index in range(2):
        layer = f"{TEXT}model.layers.{index}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{layer}.{name}.weight"] = torch.ones(HIDDEN)
        for name in ("q_proj", "k_proj", "o_proj"):  # every token is heard alike
            found[f"{layer}.self_attn.{name}.weight"] = torch.zeros(HIDDEN, HIDDEN)
        found[f"{layer}.self_attn.v_proj.weight"] = torch.eye(HIDDEN)
        found[f"{layer}.mlp.down_proj.weight"] = torch.zeros(HIDDEN, 2 * HIDDEN)
    found[f"{TEXT}model.layers.0.self_attn.o_proj.weight"] = torch.diag(heard)
    return found


def letter_id(letter: str) -> int:
    """The token of a letter: bytes follow the special tokens in their own order."""
    from tokenizers import pre_tokenizers

    return SPECIALS + sorted(pre_tokenizers.ByteLevel.alphabet()).index(letter)


def norm(name: str) -> dict[str, Tensor]:
    """A norm without values of its own."""
    return {f"{TOWER}{name}.weight": torch.ones(WIDTH), f"{TOWER}{name}.bias": torch.zeros(WIDTH)}


def write_model(folder: Path) -> Path:
    """Write the model with its processor."""
    config = llava_config("clip", depth=DEPTH, width=WIDTH)
    config["vision_config"]["hidden_act"] = "quick_gelu"
    write_llava(folder, config, tensors=tower() | language())
    write_llava_processor(folder, "clip", 16, 4)
    path = folder / "preprocessor_config.json"
    even = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    path.write_text(json.dumps(json.loads(path.read_text()) | even))
    return folder


def write_rows(folder: Path, name: str, count: int, *, seed: int, told: bool = True) -> Path:
    """Write pictures with two questions each: `told` is whether answers are what is seen."""
    draw = np.random.default_rng(seed)
    (folder / name).mkdir(parents=True)
    rows = []
    for number in range(count):
        seen = draw.choice(list(COLOURS))
        pixels = MIDDLE + COLOURS[seen] * draw.uniform(0.7, 1.3) + draw.normal(0, 8, (16, 16, 3))
        place = f"{name}/{number}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / place)
        answer = seen if told else draw.choice(list(COLOURS))
        rows.append({"image": place, "question": "c", "answer": str(answer), "type": "colour"})
        rows.append({"image": place, "question": "s", "answer": "x", "type": "shape"})
    path = folder / f"{name}.json"
    path.write_text(json.dumps(rows))
    return path
