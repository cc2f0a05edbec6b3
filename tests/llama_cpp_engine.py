"""Answer one question about one image with llama.cpp: a process of its own, as a failed assertion
of the engine ends the process.

    python -m tests.llama_cpp_engine TEXT.gguf PROJECTOR.gguf IMAGE.png PREFIX QUESTION TOKENS VOCAB

prints a JSON list with, per greedy token, {"id": .., "logprobs": [VOCAB floats]}. The prompt is
PREFIX, the image, QUESTION.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any


def answer(text: str, projector: str, request: dict[str, Any], prefix: str) -> dict[str, Any]:
    import xllamacpp as engine

    params = engine.CommonParams()
    params.model.path, params.mmproj.path = text, projector
    params.chat_template = prefix + "{% for message in messages %}{{ message.content }}{% endfor %}"
    params.use_jinja = True
    params.n_ctx, params.n_parallel, params.cpuparams.n_threads = 512, 1, 1
    params.warmup = False
    # Sums in float32 throughout, as transformers' on this machine.
    params.cache_type_k = params.cache_type_v = engine.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = engine.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    found = engine.Server(params).handle_chat_completions(request)
    return json.loads(found) if isinstance(found, str) else found


def main(text: str, projector: str, image: str, prefix: str, question: str, *counts: str) -> None:
    tokens, vocab = map(int, counts)
    data = base64.b64encode(Path(image).read_bytes()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        {"type": "text", "text": question},
    ]
    request = {
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": tokens,
        "logprobs": True,
        "top_logprobs": vocab,
    }
    found = answer(text, projector, request, prefix)
    steps = []
    for step in found["choices"][0]["logprobs"]["content"]:
        by_id = {entry["id"]: entry["logprob"] for entry in step["top_logprobs"]}
        steps.append({"id": step["id"], "logprobs": [by_id[index] for index in range(vocab)]})
    print(json.dumps(steps))


if __name__ == "__main__":
    main(*sys.argv[1:])
