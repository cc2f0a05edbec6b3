from __future__ import annotations

import re
from dataclasses import replace

import pytest

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import named
from dcsurgery.checkpoint.headers import TensorEntry
from dcsurgery.features import Axis, FeatureBlock, FeatureLayout
from dcsurgery.printing.wiring import draw_wiring


def anatomy(depth: int = 24, width: int = 1024, layers: object = -2) -> Anatomy:
    """The anatomy of a LLaVA of true size, from headers made up here."""
    count = len(layers) if isinstance(layers, list) else 1
    shapes = {
        f"vision_tower.vision_model.encoder.layers.{i}.mlp.fc1.bias": (4 * width,)
        for i in range(depth)
    }
    shapes["multi_modal_projector.linear_1.weight"] = (4096, width * count)
    tensors = {name: TensorEntry(name, "BF16", shape, 0, 0) for name, shape in shapes.items()}
    return named("llava").dissect({"vision_feature_layer": layers}, tensors)


def layout(kind: str, *blocks: tuple[int, ...], axis: Axis = "channel") -> FeatureLayout:
    return FeatureLayout(kind, tuple(map(FeatureBlock, blocks)), axis)


INDENT = 2
DCI = layout("dci", tuple(range(12)), tuple(range(12, 24)))
SCI = layout("sci", (7,), (15,))


def lane(picture: str, index: int) -> str:
    """The row of marks of one lane, as wide as the ruler."""
    lines = picture.split("\n")
    start = lines[1].index("┼")
    return lines[2 + index][start : start + len(lines[1].strip())]


def test_picture_of_llava_1_5_is_this_one() -> None:
    assert draw_wiring(anatomy(), [DCI, SCI]).split("\n") == [
        "state   0         10        20",
        "        ┼┴┴┴┴┴┴┴┴┴┼┴┴┴┴┴┴┴┴┴┼┴┴┴┴",
        "today                          █   23             ─▶ W  [4096, 1024] ─┐",
        "+ dci   ├──────────┤               mean of 0..11  ─▶ D1 [4096, 1024] ─┤",
        "                    ├──────────┤   mean of 12..23 ─▶ D2 [4096, 1024] ─┤",
        "or sci         █                   7              ─▶ D1 [4096, 1024] ─┤",
        "                       █           15             ─▶ D2 [4096, 1024] ─┤",
        "                                                                      ▼",
        "                sum, rest of the projector ─▶ 576 image tokens ─▶ llama",
    ]


def test_marks_stand_on_the_states_they_mean() -> None:
    picture = draw_wiring(anatomy(), [DCI, SCI])
    for index, states in enumerate([{23}, set(range(12)), set(range(12, 24)), {7}, {15}]):
        assert {i for i, mark in enumerate(lane(picture, index)) if mark != " "} == states


def test_states_that_are_not_neighbours_are_not_bracketed_together() -> None:
    picture = draw_wiring(anatomy(), [layout("dci", (0, 1, 2, 6, 7, 11))])
    assert lane(picture, 1).rstrip() == "├─┤   ├┤   █"


@pytest.mark.parametrize("depth", [16, 24, 27, 40, 63, 100])
def test_picture_fits_80_columns_at_any_depth(depth: int) -> None:
    halves = (tuple(range(depth // 2)), tuple(range(depth // 2, depth)))
    lines = draw_wiring(anatomy(depth, 1152), [layout("dci", *halves), SCI]).split("\n")
    assert max(map(len, lines)) + INDENT <= 80
    assert f"mean of {depth // 2}..{depth - 1}" in "".join(lines)


def test_a_converted_model_shows_one_lane_that_reads_all_its_states() -> None:
    lines = draw_wiring(anatomy(layers=list(range(24))), []).split("\n")
    assert re.search(r"^today +├─{22}┤ +0\.\.23 ─▶ W \[4096, 24576\] ─┐$", lines[2])


def test_what_happens_to_a_state_on_the_way_is_named() -> None:
    mixed = replace(layout("mix", (0, 1, 2)), mixed=True)
    normed = replace(layout("sci", (7,)), normed=True)
    pooled = replace(layout("sti", (7,), axis="token"), stride=8)
    picture = draw_wiring(anatomy(), [mixed, normed, pooled])
    for text in ("mix of 0..2 ", "norm of 7 ", "7, 8 to 1 ", "576 or 648 image tokens"):
        assert text in picture


def test_appended_tokens_go_through_the_matrix_that_is_there() -> None:
    picture = draw_wiring(anatomy(), [layout("sti", (7,), (15,), axis="token")])
    assert picture.count("─▶ W more tokens") == 2 and "D1" not in picture
