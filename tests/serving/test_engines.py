"""`verify --engine` says whether a server computes what transformers does."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import dcsurgery
from dcsurgery.cli.main import app
from dcsurgery.data.pictures import open_images
from dcsurgery.errors import DcSurgeryError
from tests.gguf_files import write_gguf

Answer = dict[str, Any]
CHECKS = [
    "log-probabilities", "it can tell: a grey picture", "it can tell: the connector taken off",
]  # fmt: skip


@contextmanager
def serving(answer: Answer, code: int = 200) -> Iterator[tuple[str, list[Answer]]]:
    """A server that gives one answer; yields its address and the questions it got."""
    asked: list[Answer] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._say({"data": [{"id": "served"}]}, 200)

        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self._say(answer, code)

        def _say(self, what: Answer, status: int) -> None:
            body = json.dumps(what).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def right(model: Path, *, grey: bool = False) -> Answer:
    """What an exact server answers: transformers' own generate, tokens named as vLLM names them."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(model if (model / "config.json").is_file() else BASE)
    (picture,) = open_images([])
    picture = picture.resize((16, 16))
    picture = picture.point(lambda _: 128) if grey else picture
    content = [{"type": "image"}, {"type": "text", "text": "What is in this picture?"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    inputs = processor(images=picture, text=text, return_tensors="pt")
    found = dcsurgery.load(model).generate(
        **inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True,
        output_logits=True,
    )  # fmt: skip
    start = inputs["input_ids"].shape[1]
    listed = []
    for token, row in zip(found.sequences[0, start:], torch.cat(found.logits), strict=True):
        logprobs = row.log_softmax(-1)
        top = [named(index, logprobs) for index in logprobs.topk(5).indices]
        listed.append({**named(token, logprobs), "top_logprobs": top})
    usage = {"prompt_tokens": start}
    return {"choices": [{"logprobs": {"content": listed}}], "usage": usage}


def named(token: torch.Tensor, logprobs: torch.Tensor) -> Answer:
    return {"token": f"token_id:{int(token)}", "logprob": float(logprobs[token])}


BASE = Path()


@pytest.fixture(autouse=True)
def _base(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "BASE", base)


def failed(report: dcsurgery.Report) -> set[str]:
    return {check.name for check in report.checks if not check.passed}


def test_an_exact_server_passes(trained: Path) -> None:
    with serving(right(trained)) as (address, asked):
        report = dcsurgery.verify_engine(trained, f"{address}/v1", limit=1e-4)
    assert report.passed, report.checks
    assert [check.name for check in report.checks] == ["prompt tokens", *CHECKS]
    assert asked[0]["model"] == "served" and asked[0]["temperature"] == 0
    assert asked[0]["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png")


def test_a_server_that_lost_the_connector_fails(base: Path, trained: Path) -> None:
    with serving(right(base)) as (address, _):
        arguments = ["verify", str(trained), "--engine", address, "--json"]
        found = CliRunner().invoke(app, arguments)
        same = dcsurgery.verify_engine(base, address)
    assert found.exit_code == 3
    (failure,) = (c for c in json.loads(found.stdout)["checks"] if not c["passed"])
    assert failure["name"] == CHECKS[0]
    assert failure["detail"] == "the server computes the model without its connector"
    # An unconverted model can be asked about too.
    assert same.passed and len(same.checks) == 3


def test_a_server_that_does_not_see_the_picture_fails(trained: Path) -> None:
    with serving(right(trained, grey=True)) as (address, _):
        report = dcsurgery.verify_engine(trained, address)
    (failure,) = (check for check in report.checks if not check.passed)
    assert failure.detail == "the server answers as if the picture were grey: it does not see it"


def test_another_template_is_named(trained: Path) -> None:
    answer = right(trained)
    answer["usage"]["prompt_tokens"] += 2
    with serving(answer) as (address, _):
        assert failed(dcsurgery.verify_engine(trained, address)) == {"prompt tokens"}


def test_an_answer_that_depends_on_nothing_proves_nothing(trained: Path) -> None:
    with serving(right(trained)) as (address, _):
        report = dcsurgery.verify_engine(trained, address, limit=1e3)
    assert failed(report) == set(CHECKS[1:])


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        ({"choices": [{"message": {"content": "a cat"}}]}, 200, "without log-probabilities"),
        ({"choices": [{"logprobs": {"content": []}}]}, 200, "no token"),
        ({"choices": [{"logprobs": None}]}, 200, "without log-probabilities"),
        ({"error": "it takes no pictures"}, 400, "it takes no pictures"),
        ([], 200, "not an OpenAI endpoint"),
    ],
)
def test_a_server_that_cannot_be_compared(
    answer: Any, code: int, words: str, trained: Path
) -> None:
    with serving(answer, code) as (address, _):
        found = CliRunner().invoke(app, ["verify", str(trained), "--engine", address])
    assert found.exit_code == 1 and words in found.stderr and "hint:" in found.stderr


def test_no_server_or_no_such_engine(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(DcSurgeryError, match="does not answer"):
        dcsurgery.verify_engine(trained, "http://127.0.0.1:9")
    with pytest.raises(DcSurgeryError, match="tgi is unknown"):
        dcsurgery.verify_engine(trained, "tgi")
    found = CliRunner().invoke(
        app, ["verify", str(trained), "--engine", "vllm --dtype float32", "--deep"]
    )
    assert found.exit_code == 1 and "--deep is not for --engine" in found.stderr
    if shutil.which("vllm") is None:
        with pytest.raises(DcSurgeryError, match="vllm is not on the path"):
            dcsurgery.verify_engine(trained, "vllm --dtype float32")


class TestLlamaCpp:
    """The engine itself, where it is installed."""

    @pytest.fixture
    def exported(self, base: Path, trained: Path, tmp_path: Path) -> Path:
        pytest.importorskip("xllamacpp")
        pytest.importorskip("gguf")
        dcsurgery.export_gguf(trained, tmp_path / "out", outtype="f32")
        return tmp_path / "out"

    def test_it_serves_what_was_trained(self, exported: Path, base: Path, tmp_path: Path) -> None:
        write_gguf(base, exported / "text.gguf", tmp_path / "unused.gguf")
        report = dcsurgery.verify_engine(exported, "llama.cpp", limit=0.02)
        assert report.passed, report.checks
        assert [check.name for check in report.checks] == CHECKS

    def test_a_base_in_its_place_fails(self, exported: Path, base: Path, tmp_path: Path) -> None:
        write_gguf(base, exported / "text.gguf", tmp_path / "unused.gguf")
        plain = dcsurgery.export_gguf(base, tmp_path / "plain", outtype="f32")
        shutil.copy(plain.projector, exported / "mmproj-f32.gguf")
        assert failed(dcsurgery.verify_engine(exported, "llama.cpp")) == set(CHECKS[:1])

    def test_what_is_missing_is_said(self, exported: Path, trained: Path) -> None:
        with pytest.raises(DcSurgeryError, match="needs one GGUF file of the language model"):
            dcsurgery.verify_engine(exported, "llama.cpp")
        with pytest.raises(DcSurgeryError, match="is not a folder that"):
            dcsurgery.verify_engine(trained, "llama.cpp")
        (exported / "text.gguf").write_bytes(b"GGUF of something else")
        with pytest.raises(DcSurgeryError, match=r"llama\.cpp did not start"):
            dcsurgery.verify_engine(exported, "llama.cpp")
