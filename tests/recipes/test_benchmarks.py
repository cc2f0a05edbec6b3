"""Published benchmark files become rows. The files here are written by hand in their layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dcsurgery.cli.main import app
from dcsurgery.data.conversations import Row
from dcsurgery.data.rows import read_rows
from dcsurgery.errors import OutputExistsError, RequestError
from dcsurgery.recipes.benchmarks import BENCHMARKS, convert_benchmark
from dcsurgery.recipes.published import SHORT
from tests.docs.pages import PAGES
from tests.training.pictures import save_picture

GQA = {
    "201307251": {
        "semantic": [{"operation": "select", "dependencies": [], "argument": "table (1)"}],
        "entailed": [], "equivalent": ["201307251"], "question": "Is it overcast?",
        "imageId": "n161313", "isBalanced": True, "groups": {"global": None, "local": "13-weather"},
        "answer": "no", "semanticStr": "select", "annotations": {},
        "types": {"detailed": "weatherVerify", "semantic": "global", "structural": "verify"},
        "fullAnswer": "No, it is clear.",
    },
    "2": {"question": "Who?", "imageId": "n2", "types": {"structural": "query"}},
}  # fmt: skip
SAID = [{"answer": a, "answer_confidence": "yes", "answer_id": n} for n, a in enumerate(
    ["net", "net", "netting"], start=1)]  # fmt: skip
ABOUT = {"info": {}, "license": {}, "data_subtype": "val2014", "data_type": "mscoco"}
VQA = {
    "v2_OpenEnded_mscoco_val2014_questions.json": {
        **ABOUT, "task_type": "Open-Ended",
        "questions": [{"image_id": 262148, "question": "What is it? ", "question_id": 262148000}],
    },
    "v2_mscoco_val2014_annotations.json": {
        **ABOUT,
        "annotations": [{
            "question_type": "what is", "multiple_choice_answer": "net", "answers": SAID,
            "image_id": 262148, "answer_type": "other", "question_id": 262148000,
        }],
    },
}  # fmt: skip
OKVQA = {
    "OpenEnded_mscoco_val2014_questions.json":
        VQA["v2_OpenEnded_mscoco_val2014_questions.json"],
    "mscoco_val2014_annotations.json": {
        "annotations": [{
            "image_id": 262148, "answer_type": "other", "question_type": "four", "confidence": 3,
            "answers": [{**one, "raw_answer": "nets"} for one in SAID], "question_id": 262148000,
        }],
    },
}  # fmt: skip
TEXTVQA = {
    "dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1",
    "data": [{
        "question": "what is the brand of this camera?", "image_id": "003a8ae2ef43b901",
        "image_classes": ["Camera"], "flickr_original_url": "https://c1.example/1_o.jpg",
        "flickr_300k_url": "https://c1.example/1_z.jpg", "image_width": 1024, "image_height": 664,
        "answers": ["nous les gosses", "dakota", "dakota"], "question_tokens": ["what"],
        "question_id": 34602, "set_name": "val",
    }],
}  # fmt: skip
OCR = "what is the brand of this camera?\nReference OCR token: Dakota, DIGITAL\n" + SHORT
LLAVA_TEXTVQA = {
    "question_id": "003a8ae2ef43b901", "image": "003a8ae2ef43b901.jpg", "text": OCR,
    "category": "default",
}  # fmt: skip
VIZWIZ = [
    {"image": "VizWiz_val_00000000.jpg", "question": "Ok. There is another picture I hope?",
     "answers": [{"answer_confidence": "yes", "answer": "unanswerable"}] * 2,
     "answer_type": "unanswerable", "answerable": 0},
]  # fmt: skip
POPE = {
    "question_id": 1, "image": "COCO_val2014_000000310196.jpg",
    "text": "Is there a snowboard in the image?", "label": "yes",
}  # fmt: skip
SCIENCE = {
    "question": "Which of these states is farthest north?", "choices": ["Louisiana", "Maine"],
    "answer": 1, "hint": "", "image": "image.png", "task": "closed choice", "grade": "grade2",
    "subject": "social science", "topic": "geography", "category": "Geography",
    "skill": "Read a map", "lecture": "Maps ...", "solution": "...", "split": "test",
}  # fmt: skip


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def lines(*rows: Any) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def rows_of(done: Any, folder: Path, pictures: Path | None = None) -> list[Row]:
    found = list(read_rows(done.output, images=pictures or folder))
    assert all(isinstance(row, Row) for row in found), found
    assert len(found) == done.rows
    return [row for row in found if isinstance(row, Row)]


def asked(row: Row) -> str:
    return "".join(part for part in row.turns[0].parts if part)


def test_gqa(tmp_path: Path) -> None:
    file = write(tmp_path / "testdev_balanced_questions.json", GQA)
    done = convert_benchmark("gqa", file, tmp_path / "rows.jsonl")
    (row,) = rows_of(done, tmp_path)
    assert asked(row) == f"Is it overcast?\n{SHORT}"
    assert (row.id, row.answers, row.kind) == ("201307251", ("no",), "verify")
    assert [image.name for image in row.images] == ["n161313.jpg"]
    assert done.left_out == {"no answer, as in test splits": 1}


@pytest.mark.parametrize(("name", "files"), [("vqav2", VQA), ("okvqa", OKVQA)])
def test_vqa(name: str, files: dict[str, Any], tmp_path: Path) -> None:
    paths = [write(tmp_path / file, content) for file, content in files.items()]
    done = convert_benchmark(name, ",".join(map(str, paths)), tmp_path / "rows.jsonl")
    (row,) = rows_of(done, tmp_path)
    assert asked(row) == f"What is it?\n{SHORT}"
    assert row.answers == ("net", "net", "netting") and row.turns[-1].text == "net"
    assert row.images[0].name == "COCO_val2014_000000262148.jpg"
    assert row.kind == ("other" if name == "vqav2" else "four")


def test_vqa_without_its_annotations_or_its_name_is_refused(tmp_path: Path) -> None:
    questions = VQA["v2_OpenEnded_mscoco_val2014_questions.json"]
    alone = write(tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json", questions)
    with pytest.raises(RequestError, match=r"no row of vqav2 could be made.*no answer"):
        convert_benchmark("vqav2", alone, tmp_path / "rows.jsonl")
    with pytest.raises(RequestError, match="do not say which pictures of COCO"):
        convert_benchmark("vqav2", write(tmp_path / "q.json", questions), tmp_path / "rows.jsonl")
    assert not list(tmp_path.glob("rows*"))


def test_textvqa_with_and_without_the_ocr_tokens_of_llava_s_questions(tmp_path: Path) -> None:
    answers = write(tmp_path / "TextVQA_0.5.1_val.json", TEXTVQA)
    (row,) = rows_of(convert_benchmark("textvqa", answers, tmp_path / "plain.jsonl"), tmp_path)
    assert asked(row) == f"what is the brand of this camera?\n{SHORT}"
    assert (row.id, row.answers[1]) == ("34602", "dakota")
    assert row.images[0].name == "003a8ae2ef43b901.jpg"
    both = write(tmp_path / "llava_textvqa_val_v051_ocr.jsonl", lines(LLAVA_TEXTVQA))
    for name, text in (("ocr", OCR), ("first", "Reference OCR token: Dakota\n" + OCR)):
        write(both, lines({**LLAVA_TEXTVQA, "text": text}))
        done = convert_benchmark("textvqa", f"{both},{answers}", tmp_path / f"{name}.jsonl")
        assert asked(rows_of(done, tmp_path)[0]) == text
    with pytest.raises(RequestError, match="has no answers"):
        convert_benchmark("textvqa", both, tmp_path / "alone.jsonl")


def test_vizwiz(tmp_path: Path) -> None:
    done = convert_benchmark("vizwiz", write(tmp_path / "val.json", VIZWIZ), tmp_path / "r.jsonl")
    (row,) = rows_of(done, tmp_path)
    assert asked(row).splitlines()[1:] == [
        "When the provided information is insufficient, respond with 'Unanswerable'.", SHORT,
    ]  # fmt: skip
    assert row.answers == ("unanswerable",) * 2 and row.id == "VizWiz_val_00000000.jpg"


def test_pope_s_three_files_are_the_question_types(tmp_path: Path) -> None:
    files = [
        write(tmp_path / f"coco_pope_{kind}.json", lines(POPE, {**POPE, "question_id": 2}))
        for kind in ("random", "popular", "adversarial")
    ]
    done = convert_benchmark("pope", ",".join(map(str, files)), tmp_path / "rows.jsonl")
    found = rows_of(done, tmp_path)
    assert len({row.id for row in found}) == 6 and found[0].id == "random-1"
    assert [row.kind for row in found[::2]] == ["random", "popular", "adversarial"]
    assert asked(found[0]) == f"Is there a snowboard in the image?\n{SHORT}"
    with pytest.raises(RequestError, match="2 ids come twice"):
        convert_benchmark("pope", f"{files[0]},{files[0]}", tmp_path / "twice.jsonl")


def test_scienceqa_is_the_rows_of_a_split_with_a_picture(tmp_path: Path) -> None:
    problems = {
        "5": {**SCIENCE, "hint": "Look at the map."},
        "6": {**SCIENCE, "image": None},
        "7": {**SCIENCE, "split": "train"},
        "8": SCIENCE,
    }
    file = write(tmp_path / "problems.json", problems)
    done = convert_benchmark("scienceqa", file, tmp_path / "rows.jsonl")
    first, second = rows_of(done, tmp_path)
    assert done.left_out == {"no picture": 1, "of the split train": 1}
    assert first.images[0].name == "5/image.png" and first.kind == "social science"
    assert asked(first) == (
        "Look at the map.\nWhich of these states is farthest north?\nA. Louisiana\nB. Maine\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert second.right == (1,) and second.answers[0] == "B"
    train = convert_benchmark("scienceqa", file, tmp_path / "train.jsonl", split="train")
    assert train.rows == 1


def test_seedbench_s_pictures_are_kept_and_its_videos_counted(tmp_path: Path) -> None:
    question = {
        "question_id": "1", "data_id": "1454426_2591111986", "data_type": "image", "answer": "C",
        "question": "How many towels?", "question_type_id": 5, "choice_a": "One",
        "choice_b": "Two", "choice_c": "Three", "choice_d": "Four",
    }  # fmt: skip
    video = {**question, "question_id": "v1", "data_type": "video", "segment": [0.1, 3.2]}
    content = {"questions": [question, video], "question_type": {"Instances Counting": 5}}
    file = write(tmp_path / "SEED-Bench.json", content)
    done = convert_benchmark("seedbench", file, tmp_path / "rows.jsonl")
    (row,) = rows_of(done, tmp_path)
    assert done.left_out == {"its data is a video": 1}
    assert row.right == (2,) and row.images[0].name == "1454426_2591111986"


def test_mme_is_a_folder_of_tasks(tmp_path: Path) -> None:
    two = "Is it real? Please answer yes or no.\tYes\nIs it blue? Please answer yes or no.\tNo\n"
    for folder in ("artwork/images", "artwork/questions_answers_YN", "count"):
        (tmp_path / "MME" / folder).mkdir(parents=True)
    write(tmp_path / "MME/artwork/questions_answers_YN/10002.txt", two)
    write(tmp_path / "MME/count/000000006040.txt", two)
    write(tmp_path / "MME/count/lost.txt", two)
    save_picture(tmp_path / "MME/artwork/images/10002.jpg")
    save_picture(tmp_path / "MME/count/000000006040.png")
    done = convert_benchmark("mme", tmp_path / "MME", tmp_path / "rows.jsonl")
    found = rows_of(done, tmp_path, tmp_path / "MME")
    assert done.left_out == {"its picture is not there": 2}
    assert {row.kind for row in found} == {"artwork", "count"} and len(found) == 4
    assert all(image.check() is None for row in found for image in row.images)
    assert asked(found[0]) == f"Is it real?\n{SHORT}" and found[0].answers == ("Yes",)
    with pytest.raises(RequestError, match="not what mme comes in"):
        convert_benchmark("mme", tmp_path / "rows.jsonl", tmp_path / "r.jsonl")


AS_IS = {
    "mmvet": {
        "v1_0": {
            "imagename": "a.jpg", "question": "What is x in the equation?", "answer": "-1<AND>-5",
            "imagesource": "https://example.org/a", "capability": ["ocr", "math"],
        }
    },
    "llavabench": {"question_id": 0, "image": "a.jpg", "category": "conv", "text": "Where is it?"},
}  # fmt: skip


@pytest.mark.parametrize("name", AS_IS)
def test_what_is_read_as_it_is(name: str, tmp_path: Path) -> None:
    """The others of the table are layouts of docs/data.md, which tests/data reads."""
    save_picture(tmp_path / "a.jpg")
    file = write(tmp_path / BENCHMARKS[name].file, AS_IS[name])
    (row,) = read_rows(file, images=tmp_path)
    assert isinstance(row, Row) and row.images[0].name == "a.jpg"
    with pytest.raises(RequestError, match="is read as it is"):
        convert_benchmark(name, file, tmp_path / "rows.jsonl")


def test_other_files_and_outputs_that_exist_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "d.json", [{"question": "Why?", "answer": "So."}])
    for name, words in (
        ("gqa", "not gqa's published file: KeyError"),
        ("scienceqa", "not scienceqa's published file"),
        ("vizwiz", "no row of vizwiz could be made"),
        ("pope", "not pope's published file"),
        ("nlvr", "there is no benchmark 'nlvr'"),
    ):
        with pytest.raises(RequestError, match=words):
            convert_benchmark(name, file, tmp_path / "rows.jsonl")
    for name, kind in (("gqa", "file"), ("mme", "folder")):
        with pytest.raises(RequestError, match=rf"there is no {kind} .*absent\.json"):
            convert_benchmark(name, tmp_path / "absent.json", tmp_path / "rows.jsonl")
    for below in ("rows.jsonl", "deeper/rows.jsonl"):
        with pytest.raises(RequestError, match=r"d\.json is not a folder"):
            convert_benchmark("gqa", file, file / below)
    with pytest.raises(RequestError, match="not what gqa comes in"):
        convert_benchmark("gqa", tmp_path, tmp_path / "rows.jsonl")
    with pytest.raises(OutputExistsError):
        convert_benchmark("gqa", file, file)
    assert [path.name for path in tmp_path.iterdir()] == ["d.json"]


def test_the_command_and_the_page(tmp_path: Path) -> None:
    file = write(tmp_path / "q.json", GQA)
    words = ["recipe", "data", str(file), "--convert", "gqa", "-o", str(tmp_path / "e/rows.jsonl")]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["rows"] == 1
    assert CliRunner().invoke(app, words[:-2]).exit_code == 1
    words[-1] = str(tmp_path / "more.jsonl")
    for given in (["--split", "foo"], ["--data-dir", "nowhere"], ["--set", "a=b"]):
        refused = CliRunner().invoke(app, [*words, *given])
        assert refused.exit_code == 1 and given[0] in refused.stderr and not refused.stdout
    for given in (["--split", "x"], ["-o", "x"]):
        refused = CliRunner().invoke(app, ["recipe", "data", "tiny", *given])
        assert refused.exit_code == 1 and f"{given[0]} is of --convert" in refused.stderr
    assert not (tmp_path / "more.jsonl").exists()
    page = PAGES["docs/recipes.md"].section("Benchmark files")
    for name, known in BENCHMARKS.items():
        line = next(line for line in page.splitlines() if line.startswith(f"| {name} "))
        assert ("as it is" in line) == (known.rows is None), name
        assert known.file.split(",")[0] in line and f"`{known.metric}`" in line
