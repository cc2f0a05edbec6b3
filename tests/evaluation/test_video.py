from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dcsurgery.errors import RequestError
from dcsurgery.evaluation.video import (
    _upright,
    frame_numbers,
    image_runs,
    pool_tokens,
    pooled_features,
    read_clip,
    shorten,
)
from tests.evaluation.clips import STEP, write_clip, write_sound

GOLDEN = Path(__file__).parents[1] / "golden" / "video_temporal_aggregation.safetensors"


@pytest.mark.parametrize("case", ["even", "odd", "one_frame"])
@pytest.mark.parametrize(("pool", "name"), [(1, "no_pool"), (2, "pool")])
def test_tokens_are_pooled_as_the_reference_does(case: str, pool: int, name: str) -> None:
    golden = load_file(GOLDEN)
    found = pool_tokens(golden[f"{case}.frames"], pool)
    assert torch.equal(found.flatten(0, 1)[None], golden[f"{case}.{name}"])


def test_half_precision_is_kept() -> None:
    features = torch.randn(2, 5, 3).half()
    found = pool_tokens(features, 2)
    assert found.dtype == torch.float16
    assert torch.equal(found, torch.maximum(features[:, 0:4:2], features[:, 1:4:2]))


@pytest.mark.parametrize(
    ("total", "count", "numbers"),
    [
        # Edges 0 12 25 37 50 62 74 87 99 by hand; 49.5 rounds to the even 50.
        (100, 8, [6, 18, 31, 43, 56, 68, 80, 93]),
        (100, 1, [49]),
        (1, 8, [0]),
        (3, 8, [0, 1, 1]),
    ],
)
def test_frames_are_the_middles_of_equal_parts(total: int, count: int, numbers: list[int]) -> None:
    assert frame_numbers(total, count) == numbers


def test_the_frames_read_are_the_ones_numbered(tmp_path: Path) -> None:
    clip = read_clip(write_clip(tmp_path / "clip.mp4"), 4)
    assert (clip.total, clip.numbers) == (20, tuple(frame_numbers(20, 4)))
    for number, frame in zip(clip.numbers, clip.frames, strict=True):
        assert frame.mode == "RGB" and frame.size == (32, 32)
        assert abs(frame.getpixel((16, 16))[0] - (20 + STEP * number)) < STEP / 2


class Phone:
    """A frame that a phone held sideways has recorded: red on its left."""

    rotation = 90  # PyAV: what the display matrix turns it by, counterclockwise

    def to_image(self) -> Image.Image:
        image = Image.new("RGB", (4, 2), "blue")
        image.putpixel((0, 0), (255, 0, 0))
        return image


def test_a_frame_is_turned_as_players_turn_it() -> None:
    image = _upright(Phone())
    assert image.size == (2, 4) and image.getpixel((0, 3)) == (255, 0, 0)


def test_a_short_video_gives_all_it_has(tmp_path: Path) -> None:
    clip = read_clip(write_clip(tmp_path / "clip.avi", frames=3), 8)
    assert clip.numbers == (0, 1, 1) and len(clip.frames) == 3


def test_files_that_are_no_video_are_errors(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "words.mp4").write_text("no video")
    whole = write_clip(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    write_sound(tmp_path / "sound.wav")
    for name in ("empty.mp4", "words.mp4", "cut.mp4", "sound.wav"):
        with pytest.raises(RequestError, match=f"{name} is not a video that can be read") as caught:
            read_clip(tmp_path / name)
        assert "ffmpeg" in caught.value.hint
    with pytest.raises(RequestError, match="does not exist"):
        read_clip(tmp_path / "none.mp4")
    with pytest.raises(RequestError, match="--frames 0"):
        read_clip(tmp_path / "whole.mp4", 0)


def test_a_missing_decoder_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = write_clip(tmp_path / "clip.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(RequestError, match="PyAV") as caught:
        read_clip(clip)
    assert "pip install 'dcsurgery[video]'" in caught.value.hint


def prompt(ids: list[int]) -> dict[str, torch.Tensor]:
    """A prompt whose other token field counts its tokens."""
    tokens = torch.tensor([ids])
    return {
        "input_ids": tokens,
        "token_type_ids": torch.arange(len(ids))[None],
        "pixel_values": torch.zeros(3, 2),
    }


def test_a_prompt_keeps_half_the_tokens_of_every_frame_side_by_side() -> None:
    found = shorten(prompt([1, 9, 9, 9, 9, 5, 9, 9, 9, 6, 9, 9, 7]), 9, 3, 2, blanks=[5])
    assert found.inputs["input_ids"].tolist() == [[1, 9, 9, 9, 6, 9, 7]]
    assert found.inputs["token_type_ids"].tolist() == [[0, 1, 2, 6, 9, 10, 12]]
    assert found.inputs["pixel_values"].shape == (3, 2)
    assert found.runs == (4, 3, 2)


def test_frames_that_nothing_divides_are_pooled_one_by_one() -> None:
    found = shorten(prompt([1, 9, 9, 9, 9, 9, 9, 7]), 9, 2, 2)
    assert found.inputs["token_type_ids"].tolist() == [[0, 1, 4, 7]]
    assert found.runs == (3, 3)


def test_runs_are_found_at_both_ends() -> None:
    assert image_runs(torch.tensor([9, 9, 1, 9]), 9) == [(0, 2), (3, 4)]
    assert image_runs(torch.tensor([1, 2]), 9) == []


def test_models_that_count_tokens_by_grid_are_refused() -> None:
    given = {**prompt([9, 9, 1]), "image_grid_thw": torch.tensor([[1, 2, 2]])}
    assert shorten(given, 9, 1, 1).runs == (2,)
    with pytest.raises(RequestError, match="--frame-pool 2 cannot be used"):
        shorten(given, 9, 1, 2)
    with pytest.raises(RequestError, match="--frame-pool 3 cannot be used"):
        shorten(prompt([9, 9, 1]), 9, 1, 3)


class Encoder(torch.nn.Module):
    """Gives what it is told to as image features."""

    def __init__(self, features: object) -> None:
        super().__init__()
        self.features = features

    def get_image_features(self) -> object:
        return self.features


def test_features_keep_the_shape_they_come_in() -> None:
    frames = torch.randn(2, 5, 3)
    wanted = pool_tokens(frames, 2)
    for given in (frames, frames.flatten(0, 1), list(frames), tuple(frames)):
        model = Encoder(given)
        with pooled_features(model, [5, 5], 2):
            found = model.get_image_features()
        assert type(found) is type(given)
        joined = torch.cat(list(found)) if isinstance(found, list | tuple) else found
        assert torch.equal(joined.reshape(wanted.shape), wanted)
        assert model.get_image_features() is given


def test_tiles_of_a_frame_may_share_a_run() -> None:
    tiles = torch.randn(4, 6, 3)
    model = Encoder(tiles)
    with pooled_features(model, [12, 12], 2):
        found = model.get_image_features()
    assert torch.equal(found, pool_tokens(tiles, 2))


def test_features_that_are_not_one_per_token_are_refused() -> None:
    for runs in ([5], [5, 6], [4, 4, 2, 2], []):
        model = Encoder(torch.randn(2, 5, 3))
        with pooled_features(model, runs, 2), pytest.raises(RequestError, match="--frame-pool"):
            model.get_image_features()
    with (
        pytest.raises(RequestError, match="Linear"),
        pooled_features(torch.nn.Linear(1, 1), [5], 2),
    ):
        pass
