from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from dcsurgery.cli.output import Output
from dcsurgery.evaluation.ask import ask_model
from tests.evaluation.clips import write_clip

from .conftest import Run


@pytest.fixture(scope="module")
def place(tiny_clip: Path, tiny_siglip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two models, a picture and a video."""
    folder = tmp_path_factory.mktemp("ask")
    (folder / "one").symlink_to(tiny_clip)
    (folder / "two").symlink_to(tiny_siglip)
    Image.new("RGB", (40, 30), (200, 90, 20)).save(folder / "photo.jpg")
    write_clip(folder / "clip.mp4")
    return folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


SHORT = ("--max-new-tokens", "4")


def answers(*names: str) -> list[str]:
    return [ask_model(name, "Who?", ["photo.jpg"], max_new_tokens=4).text for name in names]


def readable(text: str) -> str:
    """What a terminal shows of an answer of random letters."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def test_the_answer_alone_is_on_stdout(run: Run) -> None:
    result = run("ask", "one", "photo.jpg", "Who?", *SHORT)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip() == readable(answers("one")[0]).strip()
    assert result.stdout.endswith("\n")


def test_two_models_answer_under_their_names(run: Run) -> None:
    result = run("ask", "one", "photo.jpg", "Who?", "--against", "two", *SHORT)
    assert result.exit_code == 0, result.stderr
    first, second = (readable(text) for text in answers("one", "two"))
    assert "".join(result.stdout.split()) == "".join(f"one:{first}two:{second}".split())


def test_two_models_stand_side_by_side_on_a_terminal(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Output, "on_terminal", True)
    result = run("ask", "one", "photo.jpg", "Who?", "--against", "two", *SHORT)
    assert result.exit_code == 0, result.stderr
    title = next(line for line in result.stdout.split("\n") if "one" in line)
    assert title.split() == ["one", "two"]
    rest = "".join(result.stdout.split())
    assert all("".join(readable(text).split()) in rest for text in answers("one"))


def test_json_holds_question_and_answers(run: Run) -> None:
    result = run("ask", "one", "photo.jpg", "Who?", "--against", "two", "--json", *SHORT)
    assert result.exit_code == 0, result.stderr
    values = json.loads(result.stdout)
    assert (values["question"], values["images"]) == ("Who?", ["photo.jpg"])
    assert [item["model"] for item in values["answers"]] == ["one", "two"]
    assert [item["text"] for item in values["answers"]] == answers("one", "two")


def test_a_turned_picture_is_asked_about_upright_unless_asked_raw(run: Run, place: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.linear_gradient("L").convert("RGB").save(place / "turned.jpg", exif=exif)
    with Image.open(place / "turned.jpg") as photo:
        photo.convert("RGB").save(place / "raw.png")
        ImageOps.exif_transpose(photo).convert("RGB").save(place / "exif.png")
    for kind in ("exif", "raw"):
        arguments = ("Who?", "--orientation", kind, "--json", *SHORT)
        found = json.loads(run("ask", "one", "turned.jpg", *arguments).stdout)
        assert found["orientation"] == kind
        assert (
            found["answers"][0]["text"]
            == ask_model("one", "Who?", [f"{kind}.png"], max_new_tokens=4).text
        )
    for picture, kind in ((["turned.jpg"], "up"), (["--video", "clip.mp4"], "raw")):
        result = run("ask", "one", *picture, "Who?", "--orientation", kind, *SHORT)
        assert result.exit_code == 1 and "--orientation" in result.stderr


def test_a_video_is_asked_about(run: Run) -> None:
    options = ("--video", "clip.mp4", "--frames", "3", "--frame-pool", "2", "--json")
    result = run("ask", "one", "Who?", *options, *SHORT)
    assert result.exit_code == 0, result.stderr
    values = json.loads(result.stdout)
    assert (values["frames"], values["frame_pool"]) == ([3, 9, 16], 2)
    assert values["answers"][0]["image_tokens"] == 3 * 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["one", "photo.jpg"], "the question is missing: photo.jpg is a file"),
        (["one", "none.jpg", "Who?"], "none.jpg does not exist"),
        (["one", "Who?", "--video", "photo.txt"], "video photo.txt does not exist"),
        (["one", "photo.jpg", "Who?", "--prompt", "v9"], "--prompt v9 is unknown"),
        (["nothing-here", "photo.jpg", "Who?"], "nothing-here"),
    ],
)
def test_mistakes_are_told_in_words(run: Run, arguments: list[str], message: str) -> None:
    result = run("ask", *arguments)
    assert result.exit_code == 1
    assert message in result.stderr and "hint: " in result.stderr
    assert "Traceback" not in result.stderr
