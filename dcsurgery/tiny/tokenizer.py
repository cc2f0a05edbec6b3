"""A byte-level tokenizer: any text encodes, nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dcsurgery.tiny.weights import write_json

CONTROL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper }}: "
    "{% for item in message['content'] %}"
    "{% if item['type'] == 'text' %}{{ item['text'] }} {% else %}<image> {% endif %}"
    "{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def special_ids(specials: Sequence[str]) -> dict[str, int]:
    """Return the token id of every control token and special token."""
    return {token: index for index, token in enumerate((*CONTROL_TOKENS, *specials))}


def vocab_size(specials: Sequence[str]) -> int:
    """Return the number of tokens: controls, specials, 256 bytes; a multiple of 8."""
    return -(-(len(CONTROL_TOKENS) + len(specials) + 256) // 8) * 8


def write_tokenizer(
    folder: Path,
    specials: Sequence[str],
    chat_template: str | None = None,
    named: Mapping[str, str] | None = None,
) -> None:
    """Write tokenizer.json, its config and the chat template.

    `named` are tokens that processors ask the tokenizer for by name: {"image_token": "<image>"}.
    The config is written by hand: what transformers 5 saves names a class that 4.x does not know.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    ids = special_ids(specials)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {**ids, **{letter: len(ids) + index for index, letter in enumerate(letters)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in ids]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "additional_special_tokens": list(specials),
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 4096,
        "padding_side": "left",
    }
    if named:
        config["extra_special_tokens"] = dict(named)
    if chat_template is not None:
        config["chat_template"] = chat_template
        write_json(folder / "chat_template.json", {"chat_template": chat_template})
    write_json(folder / "tokenizer_config.json", config)
