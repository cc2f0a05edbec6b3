"""A folder in which the models, pictures and questions that examples name are tiny real ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from PIL import Image

from dcsurgery.tiny.published import write_tiny_published
from dcsurgery.tiny.published_mini_gemini import write_tiny_published_mini_gemini
from tests.evaluation.clips import write_clip

LLAVA = "llava-hf/llava-1.5-7b-hf"


def write_workplace(place: Path, llava: Path) -> Path:
    """Fill `place`: a copy of `llava` below its Hub id, questions, pictures, a video."""
    shutil.copytree(llava, place / LLAVA)
    Image.new("RGB", (40, 30), (200, 90, 20)).save(place / "photo.jpg")
    (place / "pictures").mkdir()
    shutil.copy(place / "photo.jpg", place / "pictures")
    write_clip(place / "clip.mp4")
    row = json.dumps({"image": "photo.jpg", "question": "Which colour?", "answer": "orange"})
    (place / "test.json").write_text(f"[{row}]")
    (place / "test.jsonl").write_text(row)
    return place


def write_originals(place: Path) -> None:
    """Add originals below the Hub ids that the pages name."""
    write_tiny_published(place / "liuhaotian/llava-v1.5-7b", tower="clip", connector=None)
    write_tiny_published(
        place / "liuhaotian/llava-v1.6-mistral-7b", tower="clip", connector=None, anyres=True
    )
    write_tiny_published(place / "HuanjinYao/DenseConnector-v1.5-7B", tower="clip")
    write_tiny_published_mini_gemini(place / "YanweiLi/MGM-7B")
