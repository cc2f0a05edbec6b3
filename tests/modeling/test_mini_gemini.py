"""Mini-Gemini as a citizen of transformers: Auto classes, processor, generation, training."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPImageProcessor

from dcsurgery.modeling import register
from dcsurgery.modeling.mini_gemini import (
    MiniGeminiConfig,
    MiniGeminiForConditionalGeneration,
    MiniGeminiImageProcessor,
    MiniGeminiProcessor,
)
from dcsurgery.tiny.mini_gemini import mini_gemini_config, write_tiny_mini_gemini
from tests.architectures.inputs import mini_gemini_inputs
from tests.closeness import assert_near

MESSAGES: list[Any] = [
    {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "How many?"}],
    }
]


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    draw = np.random.default_rng(seed)
    return Image.fromarray(draw.integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    register()
    return write_tiny_mini_gemini(tmp_path_factory.mktemp("mgm") / "tiny", grid=2, whole=True)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return AutoProcessor.from_pretrained(folder)


def test_auto_classes_give_the_real_ones(model: Any, processor: Any) -> None:
    assert type(model) is MiniGeminiForConditionalGeneration
    assert type(model.config) is MiniGeminiConfig
    assert type(processor) is MiniGeminiProcessor
    assert type(processor.image_processor) is MiniGeminiImageProcessor
    assert processor.image_seq_length == model.config.image_seq_length == 5 * 16


def test_saved_model_and_processor_come_back(
    model: Any, processor: Any, folder: Path, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[f"{kind}_keys"] for kind in ("missing", "unexpected", "mismatched"))
    inputs = mini_gemini_inputs(model, 1, 1)
    with torch.no_grad():
        assert torch.equal(again.eval()(**inputs).logits, model(**inputs).logits)
    reread = AutoProcessor.from_pretrained(tmp_path)
    image = picture(40, 30)
    ours, theirs = (p.image_processor(image) for p in (processor, reread))
    assert all(torch.equal(ours[key], theirs[key]) for key in ("pixel_values", "pixel_values_aux"))
    assert reread.chat_template == processor.chat_template


@pytest.mark.parametrize("size", [(50, 30), (30, 50), (64, 64)])
def test_pictures_are_prepared_as_the_reference_prepares_them(size: tuple[int, int]) -> None:
    """Oracle: transformers' CLIP processor on a padded picture, then torch's interpolation."""
    image = picture(*size)
    side = max(size)
    oracle = CLIPImageProcessor(
        size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, resample=3
    )
    colour = tuple(int(255 * value) for value in oracle.image_mean)
    squared = ImageOps.expand(image, 0)
    if size[0] != size[1]:
        squared = Image.new("RGB", (side, side), colour)
        squared.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
    large = torch.as_tensor(np.stack(oracle(squared)["pixel_values"]))
    middle = functional.interpolate(large, size=(32, 32), mode="bilinear")
    small = functional.interpolate(middle, size=(16, 16), mode="bilinear")
    tiles = [middle[..., :16, :16], middle[..., :16, 16:], middle[..., 16:, :16]]
    wanted = torch.cat([*tiles, middle[..., 16:, 16:], small])
    found = MiniGeminiImageProcessor(size=16, size_aux=64, image_grid=2, image_global=True)(image)
    assert_near(found["pixel_values_aux"], large)
    assert_near(found["pixel_values"][0], wanted)


def test_arrays_are_pictures_too_and_the_middle_can_be_cut_out() -> None:
    image = picture(50, 30)
    prepare = MiniGeminiImageProcessor(size=16, size_aux=32)
    array = np.asarray(image)
    for other in (array, array.transpose(2, 0, 1), (array / 255).astype("float32")):
        assert torch.equal(prepare([other])["pixel_values"], prepare(image)["pixel_values"])
    square = {"height": 32, "width": 32}
    oracle = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square, resample=3)
    middle = torch.as_tensor(np.stack(oracle(image)["pixel_values"]))
    assert_near(prepare(image, do_pad=False)["pixel_values_aux"], middle)


def test_pictures_of_any_kind_are_seen_as_a_person_sees_them() -> None:
    prepare = MiniGeminiImageProcessor(size=16, size_aux=32)

    def same(found: Any, wanted: Image.Image) -> None:
        assert torch.equal(prepare(found)["pixel_values"], prepare(wanted)["pixel_values"])

    clear = picture(50, 30)
    clear.putalpha(Image.linear_gradient("L").resize((50, 30)))
    white = Image.new("RGBA", clear.size, "white")
    wanted = Image.alpha_composite(white, clear).convert("RGB")
    for other in (clear, np.asarray(clear), np.asarray(clear).transpose(2, 0, 1)):
        same([other], wanted)
    flat = np.linspace(0, 255, 50 * 30).round().astype(np.uint8).reshape(30, 50)
    ramp = flat[None]
    deep = ramp.astype(np.uint16) * 257
    for other in (ramp, flat[..., None], ramp.astype(float), deep, ramp / 255):
        same([other], Image.fromarray(flat).convert("RGB"))
    same(Image.fromarray(deep[0]), Image.fromarray(flat).convert("RGB"))
    same([ramp > 127], Image.fromarray(np.where(flat > 127, 255, 0).astype(np.uint8)))
    for unclear in (ramp / 100, ramp.astype(int) - 1, ramp.astype(int) * 100):
        with pytest.raises(ValueError, match="no evident black and white"):
            prepare([unclear])


def test_prompts_are_those_of_the_reference(processor: Any) -> None:
    prompt = processor.apply_chat_template(MESSAGES, add_generation_prompt=True)
    start = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions. "
    )
    assert prompt == f"{start}USER: <image>\nHow many? ASSISTANT:"
    answered = [*MESSAGES, {"role": "assistant", "content": "Two."}, *MESSAGES]
    turn = "USER: <image>\nHow many? "
    assert processor.apply_chat_template(answered) == f"{start}{turn}ASSISTANT: Two.</s>{turn}"


@pytest.mark.parametrize(
    ("language", "wanted"),
    [
        (
            "gemma",
            "<start_of_turn>user\n<image>\nHow many?<end_of_turn>\n"
            "<start_of_turn>model\nTwo.<end_of_turn>\n<eos>"
            "<start_of_turn>user\nAnd now?<end_of_turn>\n<start_of_turn>model\n",
        ),
        (
            "mgm_mistral_instruct",
            "[INST] <image>\nHow many? [/INST] Two. </s><s>[INST] And now? [/INST]",
        ),
    ],
)
def test_other_language_models_have_their_own_prompts(
    processor: Any, language: str, wanted: str
) -> None:
    from dcsurgery.modeling.chat_templates import chat_template

    talk = [
        *MESSAGES,
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "And now?"},
    ]
    found = processor.apply_chat_template(
        talk, chat_template=chat_template(language), add_generation_prompt=True
    )
    assert found == wanted


def test_a_chat_with_pictures_is_answered(model: Any, processor: Any) -> None:
    """Two prompts of different length at once answer as each alone, with and without a cache."""
    prompt = processor.apply_chat_template(MESSAGES, add_generation_prompt=True)
    prompts = [prompt, prompt.replace("How many?", "Is there a red square?")]
    images = [picture(40, 30), picture(30, 30, seed=1)]
    settings: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    settings["suppress_tokens"] = [model.config.image_token_id]

    def answers(text: list[str], pictures: list[Any], **more: Any) -> Tensor:
        inputs = processor(images=pictures, text=text, padding=True, return_tensors="pt")
        found = model.generate(**inputs, **settings, **more)
        tokens: Tensor = found[:, inputs["input_ids"].shape[1] :]
        return tokens

    both = answers(prompts, images)
    assert torch.equal(answers(prompts, images, use_cache=False), both)
    for index in range(2):
        assert torch.equal(
            answers(prompts[index : index + 1], images[index : index + 1])[0], both[index]
        )
    assert not torch.equal(answers(prompts, images[::-1]), both)


def test_template_tokenises_and_marks_the_answers(processor: Any) -> None:
    talk = [*MESSAGES, {"role": "assistant", "content": [{"type": "text", "text": "Two."}]}]
    talk[0]["content"][0] = {"type": "image", "image": picture(20, 30)}
    found = processor.apply_chat_template(
        talk, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert found["pixel_values"].shape == (1, 5, 3, 16, 16)
    assert (found["input_ids"] == processor.image_token_id).sum() == processor.image_seq_length


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_reaches_the_mining(model: Any, reentrant: bool) -> None:
    gradients = []
    for checkpointing in (False, True):
        trained = copy.deepcopy(model).train()
        if checkpointing:
            trained.gradient_checkpointing_enable({"use_reentrant": reentrant})
            trained.enable_input_require_grads()
            assert trained.model.patch_info_mining.gradient_checkpointing
        inputs = mini_gemini_inputs(trained, 1, 1)
        trained(**inputs, labels=inputs["input_ids"]).loss.backward()
        gradients.append({n: p.grad for n, p in trained.named_parameters() if "mining" in n})
    assert len(gradients[0]) == 12
    for name, wanted in gradients[0].items():
        assert wanted is not None and wanted.abs().max() > 0, name
        assert_near(gradients[1][name], wanted, what=name)


def test_parts_on_other_places_compute_the_same(model: Any, folder: Path, tmp_path: Path) -> None:
    places = {
        "model.vision_tower": "cpu",
        "model.vision_tower_aux": "disk",
        "model.patch_info_mining": "disk",
        "model.multi_modal_projector": "cpu",
        "model.language_model": "disk",
        "lm_head": "cpu",
    }
    spread = AutoModelForImageTextToText.from_pretrained(
        folder, device_map=places, offload_folder=tmp_path, dtype=torch.float32
    )
    inputs = mini_gemini_inputs(model, 1, 1)
    with torch.no_grad():
        assert torch.equal(spread(**inputs).logits, model(**inputs).logits)


def test_no_device_boundary_runs_through_mining_or_projector(model: Any) -> None:
    from accelerate import infer_auto_device_map

    def split(kinds: list[str]) -> set[str]:
        found: set[str] = set()
        for limit in range(40_000, 200_000, 4_000):
            sizes = {0: limit, "cpu": 10**9}
            found |= infer_auto_device_map(
                model, sizes, no_split_module_classes=kinds, offload_buffers=True
            ).keys()
        return {name for name in found if "mining." in name or "multi_modal_projector." in name}

    assert split([])
    assert not split(model._no_split_modules)


@pytest.mark.parametrize("language", ["llama", "gemma"])
def test_logits_are_the_language_models_own(language: Any, tmp_path: Path) -> None:
    """Assembled by hand: transformers' causal LM over words and projected image tokens.

    Gemma multiplies what it reads by the root of its width; the reference did so to image tokens
    as well. Older transformers multiply inside the model, later ones with the embeddings.
    """
    from transformers import GemmaForCausalLM, LlamaForCausalLM

    write_tiny_mini_gemini(tmp_path, language, processor=False)
    built = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32).eval()
    alone = {"llama": LlamaForCausalLM, "gemma": GemmaForCausalLM}[language](
        built.config.text_config
    ).eval()
    alone.model.load_state_dict(built.model.language_model.state_dict())
    alone.lm_head.load_state_dict(built.lm_head.state_dict())
    inputs = mini_gemini_inputs(built, 1, 1)
    with torch.no_grad():
        (image,) = built.get_image_features(
            inputs["pixel_values"], inputs["pixel_values_aux"]
        ).pooler_output
        table = built.model.language_model.embed_tokens.weight
        words = [table[inputs["input_ids"][0, :1]], image, table[inputs["input_ids"][0, 17:]]]
        later = hasattr(built.model.language_model.embed_tokens, "embed_scale")
        scale = 24**0.5 if language == "gemma" and later else 1.0
        wanted = alone(inputs_embeds=torch.cat(words)[None] * scale).logits
        assert_near(built(**inputs).logits, wanted)


def test_outputs_are_a_tuple_on_request(model: Any) -> None:
    inputs = mini_gemini_inputs(model, 1, 1)
    with torch.no_grad():
        named = model(**inputs, labels=inputs["input_ids"])
        loss, logits, *_ = model(**inputs, labels=inputs["input_ids"], return_dict=False)
    assert torch.equal(named["logits"], logits) and torch.equal(named["loss"], loss)


def test_the_image_token_need_not_be_a_word(model: Any) -> None:
    outside = copy.deepcopy(model)
    outside.config.image_token_id = outside.config.text_config.vocab_size
    inputs, others = (mini_gemini_inputs(each, 1, 1) for each in (model, outside))
    assert others["input_ids"].max() == outside.config.text_config.vocab_size
    with torch.no_grad():
        assert torch.equal(outside(**others).logits, model(**inputs).logits)


def test_contradictions_are_told(model: Any, processor: Any) -> None:
    inputs = mini_gemini_inputs(model, 1, 1)
    few = {**inputs, "pixel_values": inputs["pixel_values"][:, :4]}
    with pytest.raises(ValueError, match="4 low-resolution pictures"):
        model(**few)
    with pytest.raises(ValueError, match="79 image tokens, the images give 80"):
        model(
            **{
                **inputs,
                "input_ids": inputs["input_ids"].clone().index_fill(1, torch.tensor([1]), 7),
            }
        )
    with pytest.raises(ValueError, match="do not divide by 2 x 2"):
        model(**{**inputs, "pixel_values_aux": inputs["pixel_values_aux"][..., :36, :36]})
    with pytest.raises(ValueError, match="exactly one"):
        model(**inputs, inputs_embeds=torch.zeros(1, 1, 24))
    with pytest.raises(ValueError, match="2 times <image>, for 1 images"):
        processor(images=[picture(20, 20)], text="<image> <image>")
    with pytest.raises(ValueError, match="has no meaning"):
        MiniGeminiConfig(**{**mini_gemini_config(), "image_global": True})
