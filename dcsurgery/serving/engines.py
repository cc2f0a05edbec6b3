"""Servers that answer like OpenAI's: one that runs already, or one that is started for a check."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dcsurgery.errors import CheckpointNotFoundError, RequestError
from dcsurgery.serving.gguf import RECORD

ENGINES = ("llama.cpp", "vllm")
START_S, ANSWER_S = 900, 300
# Our prompt is sent as it is: what is compared is what the model makes of it, not the template.
PASS_ON = "{% for message in messages %}{{ message.content }}{% endfor %}"
RAISED = re.compile(r"(?:^|\] |\) )(\w*(?:Error|Exception): .*)")
_SERVE = """
import sys, time
import xllamacpp as engine
params = engine.CommonParams()
params.model.path, params.mmproj.path, port, params.chat_template = sys.argv[1:]
params.port, params.use_jinja, params.warmup, params.n_ctx = int(port), True, False, 4096
server = engine.Server(params)
while True:
    time.sleep(3600)
"""


@dataclass(frozen=True)
class Engine:
    """A server at an address. `own_template`: it writes prompts with the model's chat template."""

    name: str
    url: str
    own_template: bool

    def ask(self, content: Sequence[dict[str, Any]], tokens: int, top: int) -> dict[str, Any]:
        """Return the server's greedy answer with log-probabilities, as it sent it.

        Raises RequestError when it refuses or does not answer.
        """
        models = self._send("/v1/models", None).get("data") or [{}]
        return self._send(
            "/v1/chat/completions",
            {
                "model": models[0].get("id", "default"),
                "messages": [{"role": "user", "content": list(content)}],
                "temperature": 0,
                "max_tokens": tokens,
                "logprobs": True,
                "top_logprobs": top,
                "return_tokens_as_token_ids": True,
            },
        )

    def _send(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
                found = json.load(answer)
        except urllib.error.HTTPError as error:
            told = " ".join(error.read().decode(errors="replace").split())[:300]
            raise RequestError(
                f"{self.name} refuses the question ({error.code}): {told}",
                hint="it must take pictures and give log-probabilities; its own log says more",
            ) from None
        except (OSError, ValueError) as error:
            raise RequestError(
                f"{self.name} at {self.url} does not answer: {error}",
                hint="name a server that runs, for example --engine http://localhost:8000",
            ) from None
        if not isinstance(found, dict):
            told = f"{self.url}{path} is not an OpenAI endpoint"
            raise RequestError(told, hint="check the address")
        return found


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def running_engine(engine: str, model: Path) -> Iterator[Engine]:
    """Yield a server: the one at an address, or `engine` started for `model` and stopped after.

    What follows the engine's name are further arguments of its server: "vllm --dtype float32".

    Raises RequestError for an engine that is unknown, not installed, or that does not start.
    """
    if engine.startswith(("http://", "https://")):
        yield Engine("the server", engine.rstrip("/").removesuffix("/v1"), own_template=True)
        return
    name, *further = shlex.split(engine) or [engine]
    if name not in ENGINES:
        raise RequestError(
            f"--engine {engine} is unknown", hint=f"an address, or one of {', '.join(ENGINES)}"
        )
    port = free_port()
    command = (_llama if name == "llama.cpp" else _vllm)(model, port, further)
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            _wait(name, process, port, log)
            own = name != "llama.cpp"
            yield Engine(name, f"http://127.0.0.1:{port}", own_template=own)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(name: str, process: subprocess.Popen[bytes], port: int, log: Any) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        try:
            address = f"http://127.0.0.1:{port}/health"
            with urllib.request.urlopen(address, timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    log.seek(0)
    lines = [line.strip() for line in log.read().splitlines() if line.strip()]
    # Servers of several processes end with the news that one of them ended: the first error is why.
    errors = [found[1] for line in lines if (found := RAISED.search(line))]
    told = " / ".join(errors[:1] or lines[-4:])
    raise RequestError(
        f"{name} did not start: {told or f'no answer in {START_S} s'}",
        hint="start it yourself and give its address: --engine http://localhost:8000",
    )


def _llama(folder: Path, port: int, further: Sequence[str]) -> list[str]:
    """Return the command that serves a folder that export wrote, with its language model in it."""
    text, projector = gguf_files(folder)
    if server := shutil.which("llama-server"):
        command = [server, "-m", str(text), "--mmproj", str(projector), "--port", str(port)]
        command += ["-c", "4096", "--jinja", "--no-warmup", "--chat-template", PASS_ON]
        return [*command, *further]
    if find_spec("xllamacpp") is None:
        raise RequestError(
            "llama.cpp is not installed: neither llama-server nor xllamacpp",
            hint="pip install xllamacpp",
        )
    if further:
        raise RequestError(
            f"xllamacpp takes no arguments: {shlex.join(further)}",
            hint="they are for llama-server, which is not on the path",
        )
    return [sys.executable, "-c", _SERVE, str(text), str(projector), str(port), PASS_ON]


def gguf_files(folder: Path) -> tuple[Path, Path]:
    """Return the files of language model and projector. Raises CheckpointNotFoundError."""
    record = read_record(folder)
    projector = folder / str(record.get("projector"))
    texts = sorted(path for path in folder.glob("*.gguf") if path != projector)
    if len(texts) != 1:
        found = ", ".join(path.name for path in texts) or "none"
        raise CheckpointNotFoundError(
            f"{folder} needs one GGUF file of the language model beside {projector.name}; it has "
            f"{found}",
            hint=f"python convert_hf_to_gguf.py {record.get('model')} --outfile "
            f"{folder / 'text-f16.gguf'}",
        )
    return texts[0], projector


def read_record(folder: Path) -> dict[str, Any]:
    """Return what export noted beside an mmproj file. Raises CheckpointNotFoundError."""
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise CheckpointNotFoundError(
            f"{folder} is not a folder that `dcsurgery export --form gguf` wrote",
            hint=f"dcsurgery export {folder} -o OUT --form gguf",
        )
    return found


def _vllm(model: Path, port: int, further: Sequence[str]) -> list[str]:
    server = shutil.which("vllm")
    if server is None:
        raise RequestError(
            "vllm is not on the path",
            hint="install it, or give the address of a server: --engine http://localhost:8000",
        )
    command = [server, "serve", str(model), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--model-impl", "transformers", "--trust-remote-code", "--max-logprobs", "20"]
    return [*command, *further]
