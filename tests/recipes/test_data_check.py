"""`recipe data`: what is there of a recipe's data, counted before a GPU is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dcsurgery.cli.main import app
from dcsurgery.errors import DcSurgeryError, RequestError
from dcsurgery.recipes import preflight
from dcsurgery.recipes.catalog import load_recipe, shipped
from dcsurgery.recipes.data_check import FOLDERS, Folder, check_data
from dcsurgery.recipes.places import needed
from dcsurgery.recipes.schema import Recipe
from dcsurgery.recipes.steps import Place, Step, build_steps
from tests.training.pictures import save_picture

NAME = "llava-1.5-7b-dci"
# The five picture sets that LLaVA's README lists, Visual Genome in two parts.
MIX = (
    "coco/train2017", "gqa/images", "ocr_vqa/images", "textvqa/train_images", "vg/VG_100K",
    "vg/VG_100K_2",
)  # fmt: skip
STAGE_1, STAGE_2 = (
    "LLaVA-Pretrain/blip_laion_cc_sbu_558k.json",
    "LLaVA-Tuning/llava_v1_5_mix665k.json",
)


def row(number: int, image: str | None) -> dict[str, Any]:
    shown = "<image>\n" if image else ""
    said = [{"from": "human", "value": f"{shown}What is it?"}, {"from": "gpt", "value": "A ball."}]
    return {"id": str(number), **({"image": image} if image else {}), "conversations": said}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))


@pytest.fixture
def playground(tmp_path: Path) -> Path:
    """The data of both stages in miniature, whole: two rows a folder, one without a picture."""
    captions = [f"{number:05}/{number:05}1.jpg" for number in range(FOLDERS + 3)]
    write(tmp_path / STAGE_1, [row(n, image) for n, image in enumerate(captions)])
    mixed = [f"{folder}/{number}.jpg" for folder in MIX for number in range(2)]
    write(tmp_path / STAGE_2, [row(n, image) for n, image in enumerate([*mixed, None])])
    for place in [*(f"LLaVA-Pretrain/images/{name}" for name in captions),
                  *(f"LLaVA-Tuning/{name}" for name in mixed)]:  # fmt: skip
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        save_picture(tmp_path / place)
    return tmp_path


def training(data: Path, **options: Any) -> Any:
    return check_data(load_recipe(NAME), data, steps=("finetune-1", "finetune-2"), **options)


def test_what_is_whole_is_counted_by_the_folders_of_the_recipe(playground: Path) -> None:
    found = training(playground)
    assert found.problems == {} and found.fetch == {}
    first, second = found.sources
    assert first.folders == (Folder("LLaVA-Pretrain/images", FOLDERS + 3, 0),)
    assert second.folders == tuple(Folder(f"LLaVA-Tuning/{name}", 2, 0) for name in MIX)
    assert (second.rows, second.looked_at, second.unusable) == (13, 13, 0)


def test_missing_pictures_are_counted_by_folder_and_stop_the_stage(playground: Path) -> None:
    (playground / "LLaVA-Tuning/gqa/images/1.jpg").unlink()
    for picture in (playground / "LLaVA-Tuning/vg/VG_100K_2").iterdir():
        picture.unlink()
    (playground / "LLaVA-Tuning/vg/VG_100K_2").rmdir()
    found = training(playground)
    counts = {item.name: item.missing for item in found.sources[1].folders if item.missing}
    assert counts == {"LLaVA-Tuning/gqa/images": 1, "LLaVA-Tuning/vg/VG_100K_2": 2}
    assert list(found.problems) == ["finetune-2"]
    assert "3 of 13 rows cannot be used, more than 1 %" in found.problems["finetune-2"]
    assert (
        "1 of 2 pictures are not there: https://downloads.cs.stanford.edu"
        in found.fetch["LLaVA-Tuning/gqa/images"]
    )
    assert found.fetch["LLaVA-Tuning/vg/VG_100K_2"].startswith(
        "https://cs.stanford.edu/people/rak248/VG_100K_2/images2.zip"
    )
    assert len(found.fetch) == 2
    allowed = load_recipe(NAME, ("finetune.max_bad=30",))
    assert check_data(allowed, playground, steps=("finetune-2",)).problems == {}


def test_what_two_steps_count_in_one_folder_is_added_up(playground: Path) -> None:
    questions = [{"image": f"{n}.jpg", "question": "Why?", "answer": "x"} for n in range(2)]
    (playground / "eval").mkdir()
    (playground / "eval/gqa.jsonl").write_text("".join(f"{json.dumps(q)}\n" for q in questions))
    mixed = [row(n, f"gqa/images/{n}.jpg") for n in range(3)]
    write(playground / STAGE_2, mixed)
    found = check_data(load_recipe(NAME), playground, steps=("finetune-2", "eval-gqa"))
    assert [source.folders[0].missing for source in found.sources] == [1, 0]
    assert found.fetch["LLaVA-Tuning/gqa/images"].startswith("1 of 5 pictures are not there")


def test_a_folder_that_no_row_names_is_not_asked_for(playground: Path) -> None:
    write(playground / STAGE_2, [row(1, "coco/train2017/0.jpg")])
    (playground / "LLaVA-Tuning/gqa").rename(playground / "elsewhere")
    assert training(playground).fetch == {}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([row(1, None)], "has a picture"),
        ([{"id": "1", "image": "coco/train2017/0.jpg", "caption": []}] * 2, "cannot be used"),
        ([], "has no rows"),
        ({"version": 1}, "not a list of rows"),
    ],
)
def test_data_that_could_not_be_trained_on_is_a_problem(
    playground: Path, rows: Any, words: str
) -> None:
    write(playground / STAGE_2, rows)
    assert words in training(playground).problems["finetune-2"]


def test_pictures_inside_rows_and_links_count_as_there(playground: Path) -> None:
    image = playground / "LLaVA-Tuning/coco/train2017/0.jpg"
    image.rename(playground / "real.jpg")
    image.symlink_to(playground / "real.jpg")
    assert training(playground).problems == {}
    (playground / "real.jpg").unlink()
    assert training(playground).sources[1].folders[0].missing == 1


def look(recipe: Recipe, steps: list[Step], data: Path) -> None:
    """What a run does first of all, without a base that would have to be fetched."""
    preflight._check_data(recipe, steps, Place(data, "", None, {}, data, True, print))


def test_the_start_of_a_run_looks_at_a_sample(playground: Path) -> None:
    mixed = [row(n, f"coco/train2017/{n % 2}.jpg") for n in range(1200)]
    write(playground / STAGE_2, mixed)
    recipe = load_recipe(NAME)
    steps = [step for step in build_steps(recipe) if step.name.startswith("finetune")]
    look(recipe, steps, playground)
    assert training(playground, sample=1000).sources[1].looked_at == 1000
    (playground / "LLaVA-Tuning/coco/train2017/1.jpg").unlink()
    with pytest.raises(
        RequestError, match=r"finetune-2: 5.. of 1000 rows that were measured"
    ) as no:
        look(recipe, steps, playground)
    assert no.value.hint == f"dcsurgery recipe data {NAME} --data-dir {playground}"
    look(recipe, steps[:1], playground)  # the other step is done, say


def test_a_few_bad_rows_of_a_sample_are_left_to_the_training(playground: Path) -> None:
    mixed = [row(n, f"coco/train2017/{'gone' if n % 130 == 0 else 0}.jpg") for n in range(4000)]
    write(playground / STAGE_2, mixed)
    recipe = load_recipe(NAME)
    look(recipe, [s for s in build_steps(recipe) if s.name == "finetune-2"], playground)


def test_the_command_says_it_and_exits_with_3(playground: Path) -> None:
    def run(*words: str) -> Any:
        return CliRunner().invoke(app, ["recipe", "data", *words, "--data-dir", str(playground)])

    done = run(NAME)
    assert done.exit_code == 3
    assert (
        "eval-pope" in done.stdout
        and "http://images.cocodataset.org/zips/val2014.zip" in done.stdout
    )
    found = json.loads(run(NAME, "--json").stdout)
    assert found["ready"] is False and len(found["sources"]) == 6
    assert found["sources"][0]["problem"] is None
    trained = run("llava-1.5-13b-dci")
    assert trained.exit_code == 0 and "every step has its data" in trained.stdout
    assert run("tiny").exit_code == 0
    for words in (("tiny", "-o", "x.jsonl"), ("x.json", "--convert", "gqa", "--set", "a=b")):
        assert run(*words).exit_code == 1


def test_a_folder_that_is_not_there_is_told_by_its_parts(tmp_path: Path) -> None:
    from dcsurgery.recipes.runner import run_recipe

    with pytest.raises(DcSurgeryError, match=r"LLaVA-Pretrain/images is not in .*images\.zip"):
        write(tmp_path / STAGE_1, [row(1, "a.jpg")])
        run_recipe(NAME, work_dir=tmp_path / "run", data_dir=tmp_path, until="finetune-1")


@pytest.mark.parametrize("name", sorted(set(shipped()) - {"tiny"}))
def test_every_recipe_says_where_all_of_its_data_is(name: str) -> None:
    recipe = load_recipe(name)
    for step, section in recipe.sections().items():
        # Without a folder, pictures lie beside their rows.
        for place in (section.data, *([section.images] if section.images else [])):
            assert all(name in recipe.needs for name in needed(place, recipe.needs)), (step, place)
    asked = [stage.data for stage in recipe.finetune]
    if STAGE_2 in asked:
        assert {f"LLaVA-Tuning/{folder}" for folder in MIX} <= set(recipe.needs)
