"""Layer arithmetic: the rule of groups, the defaults, and what people write after --layers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcsurgery.architectures import find_architecture
from dcsurgery.connectors import make_layout
from dcsurgery.connectors.request import Connector
from dcsurgery.errors import PlanError
from dcsurgery.features import (
    FeatureBlock,
    FeatureLayout,
    dci_blocks,
    describe_layers,
    distinct_layers,
    parse_layers,
    resolve_layer,
    sci_layers,
    split_evenly,
    stock_layers,
)
from tests.headers_only import checkpoint, llava_like

Layers = tuple[tuple[int, ...], ...]

DEPTHS = st.integers(1, 48)


def runs(*bounds: tuple[int, int]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(range(first, last + 1)) for first, last in bounds)


def layers_of(blocks: tuple[FeatureBlock, ...]) -> tuple[tuple[int, ...], ...]:
    return tuple(block.layers for block in blocks)


# Literals from the paper's tables (its layer i is our state i - 1) and the reference code.
PUBLISHED = {
    "CLIP-L, two groups": (23, 2, runs((0, 11), (12, 23))),
    "SigLIP-so400m, two groups": (26, 2, runs((0, 12), (13, 25))),
    "CLIP-L, three groups": (23, 3, runs((0, 7), (8, 15), (16, 23))),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_dci_groups_are_the_published_ones(name: str) -> None:
    feature_layer, groups, expected = PUBLISHED[name]
    assert layers_of(dci_blocks(feature_layer, groups)) == expected


def test_dci_groups_that_fit_no_way_are_nearly_equal() -> None:
    assert layers_of(dci_blocks(24, 7)) == runs(
        (0, 3), (4, 7), (8, 11), (12, 15), (16, 18), (19, 21), (22, 24)
    )


@given(DEPTHS.flatmap(lambda depth: st.tuples(st.just(depth), st.integers(1, depth))))
def test_dci_groups_cover_adjacent_states_in_order(case: tuple[int, int]) -> None:
    feature_layer, groups = case
    blocks = layers_of(dci_blocks(feature_layer, groups))
    flat = [layer for block in blocks for layer in block]
    sizes = [len(block) for block in blocks]
    assert len(blocks) == groups and min(sizes) >= 1
    assert flat == list(range(len(flat)))
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)
    if (feature_layer + 1) % groups == 0:
        assert len(flat) == feature_layer + 1 and len(set(sizes)) == 1
    elif feature_layer % groups == 0:
        assert len(flat) == feature_layer and len(set(sizes)) == 1
    else:
        assert len(flat) == feature_layer + 1


@pytest.mark.parametrize("groups", [0, -1, 25])
def test_impossible_group_counts_name_the_possible_ones(groups: int) -> None:
    with pytest.raises(PlanError) as caught:
        dci_blocks(23, groups)
    assert str(groups) in caught.value.message and "24" in caught.value.hint


@given(st.integers(1, 500), st.integers(1, 500))
def test_split_evenly_cuts_everything_once(count: int, groups: int) -> None:
    if groups > count:
        with pytest.raises(PlanError):
            split_evenly(count, groups)
        return
    cut = split_evenly(count, groups)
    assert [item for run in cut for item in run] == list(range(count))
    assert {len(run) for run in cut} <= {count // groups, -(-count // groups)}


def test_sci_defaults_are_a_third_and_two_thirds_of_the_way() -> None:
    assert sci_layers(23) == (7, 15)
    assert sci_layers(26) == (8, 17)
    assert sci_layers(11) == (3, 7)
    assert sci_layers(2) == (0, 1)
    assert sci_layers(0) == ()


@given(DEPTHS)
def test_sci_defaults_are_shallower_than_the_feature_layer(feature_layer: int) -> None:
    found = sci_layers(feature_layer)
    assert 1 <= len(found) <= 2 and found == tuple(sorted(set(found)))
    assert all(0 <= layer < feature_layer for layer in found)


@given(DEPTHS.flatmap(lambda depth: st.tuples(st.just(depth), st.integers(-depth - 1, depth))))
def test_negative_layers_count_from_the_end_as_lists_do(case: tuple[int, int]) -> None:
    depth, layer = case
    assert resolve_layer(layer, depth) == range(depth + 1)[layer]


@pytest.mark.parametrize("layer", [25, -26, 1000])
def test_layers_the_tower_lacks_are_refused(layer: int) -> None:
    with pytest.raises(PlanError) as caught:
        resolve_layer(layer, 24)
    assert str(layer) in caught.value.message and "24 blocks" in caught.value.message
    assert "inspect" in caught.value.hint


def test_distinct_layers_sorts_and_refuses_repeats() -> None:
    assert distinct_layers([-1, 3, 0], 4) == (0, 3, 4)
    bad = {(): "are empty", (1, 1): "state 1 twice", (4, -1): "state 4 twice"}
    for layers, told in bad.items():
        with pytest.raises(PlanError, match=told):
            distinct_layers(layers, 4)


GOOD_TEXT = {
    "7,15": ((7, 15),),
    " 7 , 15 ": ((7, 15),),
    "15,7": ((15, 7),),
    "0-3": ((0, 1, 2, 3),),
    "0..3": ((0, 1, 2, 3),),
    "3..3": ((3,),),
    "-2": ((-2,),),
    "-2,-9": ((-2, -9),),
    "-3..-1": ((-3, -2, -1),),
    "0-1;2-3": ((0, 1), (2, 3)),
    "0-1/2,4": ((0, 1), (2, 4)),
    "0-1,5": ((0, 1, 5),),
}


@pytest.mark.parametrize("text", GOOD_TEXT)
def test_layers_can_be_written_as_people_do(text: str) -> None:
    assert parse_layers(text) == GOOD_TEXT[text]


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "7,",
        "a",
        "1.5",
        "3-1",
        "3..1",
        "0-9999999999",
        "1;;2",
        "--3",
        "0-",
        "7 15",
        "0...3",
    ],
)
def test_layers_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(PlanError) as caught:
        parse_layers(text)
    assert repr(text) in caught.value.message and "0-11;12-23" in caught.value.hint


@given(st.text(max_size=20))
def test_no_text_breaks_the_reader(text: str) -> None:
    try:
        groups = parse_layers(text)
    except PlanError:
        return
    assert groups and all(groups)


@given(st.lists(st.integers(0, 48), min_size=1, unique=True).map(sorted))
def test_what_is_printed_can_be_typed_again(layers: list[int]) -> None:
    assert parse_layers(describe_layers(layers)) == (tuple(layers),)


def test_runs_are_printed_short() -> None:
    assert describe_layers(range(12)) == "0..11"
    assert describe_layers([0, 1, 5, 7, 8, 9]) == "0, 1, 5, 7..9"


def test_the_stock_list_is_ascending_and_distinct() -> None:
    layout = FeatureLayout("sci", (FeatureBlock((7,)), FeatureBlock((3,)), FeatureBlock((1, 3))))
    assert layout.layers == (1, 3, 7)
    assert stock_layers(layout, [5, 3]) == (1, 3, 5, 7)


def blocks_for(
    depth: int, feature_layer: int, kind: str, layers: Layers | None = None, groups: int = 2
) -> Layers:
    config, shapes = llava_like("siglip_vision_model", depth=depth)
    config["vision_feature_layer"] = feature_layer
    source = checkpoint(config, shapes)
    anatomy = find_architecture(source.config).dissect(source.config, source.tensors)
    return layers_of(make_layout(anatomy, Connector(kind, groups, layers)).blocks)


def test_dci_takes_the_given_groups_or_cuts_one_list() -> None:
    assert blocks_for(24, 23, "dci", ((0, 1), (5, 4))) == ((0, 1), (4, 5))
    assert blocks_for(24, 23, "dci", (tuple(range(6)),)) == ((0, 1, 2), (3, 4, 5))
    assert blocks_for(24, 23, "dci", ((-1, 0),), groups=1) == ((0, 24),)
    with pytest.raises(PlanError):
        blocks_for(24, 23, "dci", ((0, 25),))


def test_sci_keeps_the_given_order_and_has_no_groups() -> None:
    assert blocks_for(27, 26, "sci", ((15, 7),)) == ((15,), (7,))
    assert blocks_for(27, 26, "sci", ((-1,),)) == ((27,),)
    for bad in (((0,), (1,)), ((7, 7),), ((28,),)):
        with pytest.raises(PlanError):
            blocks_for(27, 26, "sci", bad)
    with pytest.raises(PlanError, match="no shallower hidden state"):
        blocks_for(4, 0, "sci")
