"""A first lesson in training: `python -m dcsurgery.demo.lesson DIR` writes its model and its data.

The model is one of the demo's. It knows four backgrounds and has only ever seen digits on them;
the pictures are plain sheets of six colours, each shade its own, which it never saw.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from dcsurgery.demo.checkpoints import embedded, unpack
from dcsurgery.demo.scenes import COLOURS, IMAGE_SIZE, INK
from dcsurgery.errors import DcSurgeryError, OutputExistsError

QUESTION = "what is the background?"
ROWS = {"train": 240, "test": 60}


def write_lesson(folder: Path) -> Path:
    """Write model/, train.json and test.json with their pictures into a new folder; return it.

    Raises OutputExistsError for one that is there already.
    """
    import numpy as np
    from PIL import Image

    if folder.exists():
        raise OutputExistsError(f"{folder} exists", hint="name a new folder, or remove it")
    unpack(embedded()[0], folder / "model")
    draw = np.random.default_rng(0)
    for split, count in ROWS.items():
        (folder / split).mkdir()
        rows = []
        for number in range(count):
            which = number % len(COLOURS)
            sheet = INK[which] + draw.normal(0, 20, 3)
            pixels = sheet + draw.normal(0, 8, (IMAGE_SIZE, IMAGE_SIZE, 3))
            name = f"{split}/{number}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
            rows.append({"image": name, "question": QUESTION, "answer": COLOURS[which]})
        (folder / f"{split}.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return folder


if __name__ == "__main__":
    try:
        print(write_lesson(Path(sys.argv[1] if len(sys.argv) > 1 else "lesson")))
    except DcSurgeryError as error:
        sys.exit(f"error: {error.message}\nhint: {error.hint}")
