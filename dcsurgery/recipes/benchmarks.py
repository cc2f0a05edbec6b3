"""Published benchmark files as rows with the prompts that LLaVA asks them with."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dcsurgery.checkpoint.copying import replace_text
from dcsurgery.checkpoint.destination import check_output
from dcsurgery.data.rows import data_files
from dcsurgery.errors import OutputExistsError, RequestError
from dcsurgery.printing.sheet import Printed, Sheet
from dcsurgery.recipes import published
from dcsurgery.recipes.published import Left, Made


@dataclass(frozen=True)
class Benchmark:
    """A published benchmark: its file, what its images start from, how `eval` scores it.

    `rows` makes rows of the files; None where they are read as they are, with a `note` on that.
    """

    file: str
    images: str
    metric: str
    rows: Callable[[list[Path], str], Iterator[Made | Left]] | None = None
    note: str = ""


@dataclass(frozen=True)
class Converted(Printed):
    """The rows that were written, and how many records became none, by reason."""

    benchmark: str
    output: str
    rows: int
    left_out: dict[str, int]
    images: str
    metric: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; keys only ever get added."""
        return {"schema_version": 1, **asdict(self)}

    def show(self, out: Sheet) -> None:
        """Put the counts on a sheet, and how to evaluate on the rows."""
        out.show(f"{self.rows:,} rows of {self.benchmark} in {self.output}", "bold")
        left = [("left out", f"{count:,}: {why}") for why, count in self.left_out.items()]
        images = [("--images", self.images), ("--metric", self.metric)]
        out.facts([*left, *images])


def convert_benchmark(
    name: str, data: str | Path, output: str | Path, *, split: str = "test"
) -> Converted:
    """Write the rows of a published benchmark's files as JSONL, one question a row.

    `data` is one file, several with commas between them, or a folder (mme). `split` is of files
    that hold several (scienceqa). Raises RequestError for a benchmark that is not known or read as
    it is, for files of another layout and an output that cannot be written; OutputExistsError.
    Nothing is half-written.
    """
    place, known = Path(output), BENCHMARKS.get(name)
    if known is None:
        raise RequestError(
            f"there is no benchmark {name!r}", hint=f"known: {', '.join(BENCHMARKS)}"
        )
    if known.rows is None:
        raise RequestError(
            f"{name}: {known.file} is read as it is{known.note and f': {known.note}'}",
            hint=f"name it as data, and in --images {known.images}",
        )
    if os.path.lexists(place):
        raise OutputExistsError(f"{place} exists", hint="choose another -o, or move it away")
    check_output(place, overwrite=False)
    folder = Path(os.path.expanduser(str(data)))
    files = [folder] if folder.is_dir() and known.rows is published.mme else data_files(data)
    if not files and not folder.exists():
        kind = "folder" if known.rows is published.mme else "file"
        raise RequestError(f"there is no {kind} {data}", hint=f"{name} is made of {known.file}")
    if not files or (folder.is_file() and known.rows is published.mme):
        raise RequestError(
            f"{data} is not what {name} comes in", hint=f"{name} is made of {known.file}"
        )
    made, left = _made(name, known.file, known.rows(files, split))
    replace_text(place, "".join(f"{json.dumps(row)}\n" for row in made))
    return Converted(name, str(place), len(made), dict(left), known.images, known.metric)


def _made(name: str, file: str, found: Iterator[Made | Left]) -> tuple[list[Made], Counter[str]]:
    """Return rows with ids of their own, and what was left out. Raises RequestError."""
    made: list[Made] = []
    left: Counter[str] = Counter()
    try:
        for item in found:
            if isinstance(item, Left):
                left[str(item)] += 1
            else:
                made.append(item)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RequestError(
            f"this is not {name}'s published file: {type(error).__name__} {error} "
            f"after {len(made) + sum(left.values()):,} records",
            hint=f"{name} is made of {file}",
        ) from None
    if not made:
        why = "; ".join(f"{count:,}: {text}" for text, count in left.items()) or "no records"
        raise RequestError(f"no row of {name} could be made ({why})", hint=f"take {file}")
    twice = [key for key, count in Counter(row["id"] for row in made).items() if count > 1]
    if twice:
        raise RequestError(
            f"{len(twice):,} ids come twice, {twice[0]} first", hint="name every file once"
        )
    return made, left


GPT_4 = "its score is GPT-4's; lmms-eval runs it"
BENCHMARKS: Mapping[str, Benchmark] = {
    "gqa": Benchmark("testdev_balanced_questions.json", "images", "exact", published.gqa),
    "vqav2": Benchmark(
        "v2_OpenEnded_mscoco_val2014_questions.json,v2_mscoco_val2014_annotations.json",
        "val2014", "vqa", published.vqa,
    ),
    "okvqa": Benchmark(
        "OpenEnded_mscoco_val2014_questions.json,mscoco_val2014_annotations.json",
        "val2014", "vqa", published.vqa,
    ),
    "textvqa": Benchmark("TextVQA_0.5.1_val.json", "train_images", "vqa", published.textvqa),
    "vizwiz": Benchmark("val.json", "val", "vqa", published.vizwiz),
    "pope": Benchmark(
        "coco_pope_random.json,coco_pope_popular.json,coco_pope_adversarial.json",
        "val2014", "exact", published.pope,
    ),
    "scienceqa": Benchmark("problems.json", "images/test", "choice", published.scienceqa),
    "mme": Benchmark("MME_Benchmark_release_version", "that folder", "exact", published.mme),
    "mmbench": Benchmark("mmbench_dev_20230712.tsv", "the file has them", "choice"),
    "seedbench": Benchmark("SEED-Bench.json", "SEED-Bench-image", "choice", published.seedbench),
    "mmmu": Benchmark("validation-*.parquet", "the file has them", "choice"),
    "mathvista": Benchmark("testmini-*.parquet", "the file has them", "exact"),
    "aokvqa": Benchmark("aokvqa_v1p0_val.json", "val2017", "choice"),
    "docvqa": Benchmark("val_v1.0.json", "its folder", "exact", note="ANLS is not computed"),
    "chartqa": Benchmark(
        "test_human.json", "test/png", "exact", note="its relaxed accuracy is not computed"
    ),
    "mmvet": Benchmark("mm-vet.json", "images", "exact", note=GPT_4),
    "llavabench": Benchmark("questions.jsonl", "images", "exact", note=GPT_4),
}  # fmt: skip
