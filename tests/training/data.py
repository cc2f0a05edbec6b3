"""A small LLaVA data file with pictures, for trainings from end to end."""

from __future__ import annotations

import json
from pathlib import Path

from tests.training.pictures import save_picture

COLOURS = ("red", "green", "blue", "grey")


def write_data(folder: Path, count: int = 8) -> Path:
    """Write `count` rows with a picture each, the last one text alone; return the JSON file."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        picture = save_picture(folder / f"{number}.png", 32, 32, seed=number)
        question = "<image>\nWhich colour?" if number < count - 1 else "Which colour is the sky?"
        answer = COLOURS[number % len(COLOURS)]
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        image = {"image": picture.name} if number < count - 1 else {}
        rows.append({"id": f"row-{number}", **image, "conversations": turns})
    path = folder / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path
