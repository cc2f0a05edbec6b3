"""Which forms which engines serve as transformers runs them: python -m tests.benchmarks.serving

Tiny models with random weights and a random dci connector, one process an engine. Every engine is
asked about one picture of the tower's size; the cell is what it did:

    run (0.009)         log-probabilities differ by at most 0.009 nats (`verify --engine`)
    run (same words)    a server without log-probabilities gave transformers' greedy answer
    fails (reason)      it refused, or answered something else
    not run (reason)    the engine is not installed here

    python -m tests.benchmarks.serving --engine transformers --engine llama.cpp
    python -m tests.benchmarks.serving --write docs/serving.md      # its table, between the marks
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dcsurgery
from dcsurgery.data.conversations import ask
from dcsurgery.data.pictures import open_images
from dcsurgery.errors import DcSurgeryError
from dcsurgery.evaluation.ask import Loading, load_respondent
from dcsurgery.evaluation.generation import GREEDY, model_inputs
from dcsurgery.tiny import write_tiny_llava
from tests.gguf_files import write_gguf
from tests.surgery import random_matrix, write_delta
from tests.tiny.idefics3 import write_tiny_idefics3
from tests.tiny.internvl import write_tiny_internvl
from tests.tiny.qwen2_5_vl import write_tiny_qwen2_5_vl

ENGINES = ("transformers", "llama.cpp", "vllm")
PACKAGES = {"transformers": "transformers", "llama.cpp": "xllamacpp", "vllm": "vllm"}
BEGIN, END = "<!-- begin: tests.benchmarks.serving -->", "<!-- end -->"
VLLM = "vllm --dtype float32 --enforce-eager --max-model-len 512"
QUESTION, TOKENS = "What is this?", 8
# Their processors have a video half, which needs torchvision.
WITH_VIDEO = ("InternVL", "Qwen2.5-VL")
FAMILIES: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "LLaVA-1.5, SigLIP": (
        lambda folder: write_tiny_llava(folder, "siglip", seed=8), ("base", "stock", "portable")
    ),
    "LLaVA-1.5, CLIP": (write_tiny_llava, ("base", "stock", "portable")),
    "Idefics3": (write_tiny_idefics3, ("base", "portable")),
    "InternVL": (write_tiny_internvl, ("base", "portable")),
    "Qwen2.5-VL": (write_tiny_qwen2_5_vl, ("base", "portable")),
}  # fmt: skip


def write_forms(work: Path, *, wide: bool) -> Iterator[tuple[str, str, Path, Path]]:
    """Write every family in every form; yield family, form, folder and the base."""
    for number, (family, (write, forms)) in enumerate(FAMILIES.items()):
        base = write(work / f"{number}-base")
        base = widened(base) if wide else base
        delta = work / f"{number}-delta"
        plan = dcsurgery.plan(base, form="delta").plan
        write_delta(base, delta, random_matrix(plan, scale=1.0))
        for form in forms:
            folder = base if form == "base" else work / f"{number}-{form}"
            if form != "base":
                dcsurgery.export(delta, folder, form=form)
            yield family, form, folder, base


def widened(folder: Path) -> Path:
    """Give a tiny model's language half heads of 32: vLLM has no attention for smaller ones."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(folder)
    text = config.text_config
    text.hidden_size, text.num_attention_heads, text.num_key_value_heads = 64, 2, 2
    text.head_dim = 32
    rope = getattr(text, "rope_parameters", None) or {}
    if "mrope_section" in rope:
        rope["mrope_section"] = [4, 6, 6]
    if hasattr(config.vision_config, "out_hidden_size"):
        config.vision_config.out_hidden_size = text.hidden_size
    torch.manual_seed(8)
    model = AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1:
                value.normal_(0, 0.25 if value.shape[-1] < 64 else 0.12)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    model.save_pretrained(folder)
    return folder


def try_transformers(folder: Path, address: str) -> str:
    """`transformers serve` sends no log-probabilities: its greedy words are compared."""
    asked = load_respondent(Loading(folder))
    (picture,) = open_images([])
    size = getattr(asked.model.config.vision_config, "image_size", 64)
    picture = picture.resize((size, size) if isinstance(size, int) else tuple(size))
    prompt = asked.prompter.prompt([ask(QUESTION, 1)], [picture])
    found = asked.model.generate(
        **model_inputs(asked.model, prompt), **GREEDY, max_new_tokens=TOKENS
    )
    tokens = found[0, prompt["input_ids"].shape[1] :]
    wanted = asked.prompter.tokenizer.decode(tokens, skip_special_tokens=True)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    content = [
        {"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION},
    ]  # fmt: skip
    body = {
        "model": str(folder), "messages": [{"role": "user", "content": content}],
        "max_tokens": TOKENS, "temperature": 0, "stream": False,
    }  # fmt: skip
    request = urllib.request.Request(
        f"{address}/v1/chat/completions", json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=300) as answer:
        said = json.load(answer)["choices"][0]["message"]["content"]
    return "run (same words)" if said == wanted else f"fails (says {said!r}, not {wanted!r})"


@contextmanager
def transformers_server() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()"]
    command += ["serve", "--port", str(port), "--trust-remote-code"]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        address = f"http://localhost:{port}"
        try:
            for _ in range(300):
                try:
                    urllib.request.urlopen(f"{address}/health", timeout=5).close()
                    break
                except OSError:
                    time.sleep(1)
            yield address
        finally:
            process.terminate()
            process.wait()


def try_llama(folder: Path, base: Path) -> str:
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "out"
        dcsurgery.export_gguf(folder, out, outtype="f32")
        write_gguf(base, out / "text.gguf", Path(place) / "unused.gguf")
        return figure(dcsurgery.verify_engine(out, "llama.cpp"))


def figure(report: Any) -> str:
    failed = [check for check in report.checks if not check.passed]
    if failed:
        return f"fails ({failed[0].name}: {failed[0].detail or failed[0].measured})"
    (check,) = (check for check in report.checks if check.name == "log-probabilities")
    return f"run ({check.measured.rsplit(' ', 1)[-1]})"


def cell(engine: str, family: str, folder: Path, base: Path, address: str | None) -> str:
    if engine == "transformers" and family in WITH_VIDEO and find_spec("torchvision") is None:
        return "not run (torchvision absent)"
    try:
        if engine == "transformers":
            return try_transformers(folder, str(address))
        if engine == "vllm":
            return figure(dcsurgery.verify_engine(folder, VLLM))
        return try_llama(folder, base)
    except DcSurgeryError as error:
        why = error.message.split("; ")[0].rpartition("did not start: ")[2]
        return f"fails ({why if 'Error' in why else why.split(': ')[0]})"
    except OSError as error:
        return f"fails ({error})"


def absent(engine: str) -> str:
    """Why an engine cannot run here; "" when it can."""
    needed = {"transformers": ("fastapi", "uvicorn"), "llama.cpp": ("xllamacpp", "gguf")}
    lacks = [name for name in needed.get(engine, ()) if find_spec(name) is None]
    if engine == "vllm" and shutil.which("vllm") is None:
        lacks = ["vllm"]
    return f"not run ({' and '.join(lacks)} absent)" if lacks else ""


def table(engines: list[str]) -> str:
    lines = [
        f"| family | form | {' | '.join(map(title, engines))} |",
        "|---" * (2 + len(engines)) + "|",
    ]
    with tempfile.TemporaryDirectory() as place:
        cells: dict[tuple[str, str, str], str] = {}
        for engine in engines:
            why = absent(engine)
            (Path(place) / engine).mkdir()
            forms = list(write_forms(Path(place) / engine, wide=engine == "vllm"))
            with transformers_server() if engine == "transformers" and not why else _none() as at:
                for family, form, folder, base in forms:
                    found = why or cell(engine, family, folder, base, at)
                    cells[family, form, engine] = found.replace(place, "").replace("|", "/")
                    print(f"{family}, {form}, {engine}: {found}", file=sys.stderr, flush=True)
    for family, form, *_ in forms:
        row = " | ".join(cells[family, form, engine] for engine in engines)
        lines.append(f"| {family} | {form} | {row} |")
    return "\n".join(lines)


@contextmanager
def _none() -> Iterator[None]:
    yield None


def title(engine: str) -> str:
    name = "`transformers serve`" if engine == "transformers" else engine
    try:
        return f"{name} ({PACKAGES[engine]} {version(PACKAGES[engine])})"
    except PackageNotFoundError:
        return name


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.serving")
    parser.add_argument("--engine", action="append", choices=ENGINES, help="default: all")
    parser.add_argument("--write", type=Path, help="a page whose table to replace")
    options = parser.parse_args()
    found = table(options.engine or list(ENGINES))
    if options.write is None:
        print(found)
        return
    text = options.write.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    options.write.write_text(f"{before}{BEGIN}\n{found}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
