"""How prompts are written for each language model Mini-Gemini was trained with.

The words are those of the reference's conversation.py (dvlab-research/MGM): v1, gemma and
mistral_instruct. The beginning-of-sequence token is the tokenizer's to add.
"""

from __future__ import annotations

_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
# A message is a text, or a list of images and texts; each image stands on a line of its own.
_SAY = (
    "{% macro say(content) %}{% if content is string %}{{ content }}{% else %}"
    "{% for item in content %}{% if item['type'] == 'text' %}{{ item['text'] }}"
    "{% else %}<image>\n{% endif %}{% endfor %}{% endif %}{% endmacro %}"
)
_EACH = "{% for message in messages %}{% set words = say(message['content']) %}"

VICUNA = (
    f"{_SAY}{{% if messages[0]['role'] != 'system' %}}{_SYSTEM}{{% endif %}}{_EACH}"
    "{% if message['role'] == 'system' %}{{ words }} "
    "{% elif message['role'] == 'user' %}USER: {{ words }} "
    "{% else %}ASSISTANT: {% generation %}{{ words }}</s>{% endgeneration %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
GEMMA = (
    f"{_SAY}{_EACH}"
    "{% if message['role'] == 'assistant' %}<start_of_turn>model\n"
    "{% generation %}{{ words }}<end_of_turn>\n<eos>{% endgeneration %}"
    "{% else %}<start_of_turn>{{ message['role'] }}\n{{ words }}<end_of_turn>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    f"{_SAY}{_EACH}"
    "{% if message['role'] == 'assistant' %} {% generation %}{{ words }} </s>{% endgeneration %}"
    "{% else %}{% if not loop.first %}<s>{% endif %}[INST] {{ words }} [/INST]{% endif %}"
    "{% endfor %}"
)

_BY_KIND = {"gemma": GEMMA, "mistral": MISTRAL, "mixtral": MISTRAL}


def chat_template(language_model: str) -> str:
    """Return the template for a text config's model type; Vicuna's for Llama and all others."""
    return _BY_KIND.get(language_model, VICUNA)
