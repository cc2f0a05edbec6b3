"""Folding arithmetic and rounding against torch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcsurgery.connectors.folding import (
    CHUNK_ROWS,
    Rows,
    constant_rows,
    decode,
    encode,
    encoded,
    fold_rows,
    rounded,
    streamed_rows,
    uniform_rows,
)
from dcsurgery.features import FeatureBlock, FeatureLayout, joined_columns, stock_layers
from tests.closeness import SAME, assert_near

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def whole(rows: Rows) -> np.ndarray[Any, np.dtype[Any]]:
    return np.concatenate(list(rows()))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_rounding_equals_torch(dtype: str) -> None:
    # Every exponent and sign, all kinds of trailing bits: ties, subnormals, overflow, inf.
    high = torch.arange(0, 2**16, dtype=torch.int64) << 16
    low = torch.tensor([0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    bits = (high[:, None] + low).reshape(-1)
    values = (bits - (bits >= 2**31) * 2**32).to(torch.int32).view(torch.float32)
    numbers = values[~values.isnan()]
    assert encode(numbers.numpy(), dtype) == raw(numbers.to(DTYPES[dtype]))
    nans = values[values.isnan()]
    assert np.isnan(decode(encode(nans.numpy(), dtype), dtype)).all()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20))
def test_rounding_equals_torch_for_any_bits(bits: list[int]) -> None:
    array = np.array(bits, "<u4").view("<f4")
    array = np.append(array[~np.isnan(array)], np.float32(1))
    for dtype in ("F16", "BF16"):
        assert encode(array, dtype) == raw(torch.from_numpy(array.copy()).to(DTYPES[dtype]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_stored_values_come_back_exactly(dtype: str) -> None:
    if dtype in ("F16", "BF16"):
        tensor = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(DTYPES[dtype])
    else:
        tensor = torch.randn(999, dtype=DTYPES[dtype]) * 1e30
    values = decode(raw(tensor), dtype)
    assert values.dtype == (np.float64 if dtype == "F64" else np.float32)
    wanted = tensor.to(torch.float64 if dtype == "F64" else torch.float32).numpy()
    assert np.array_equal(values, wanted, equal_nan=True)
    numbers = tensor[~tensor.isnan()]
    assert encode(decode(raw(numbers), dtype), dtype) == raw(numbers)


@pytest.mark.parametrize("rows", [1, CHUNK_ROWS - 1, CHUNK_ROWS, CHUNK_ROWS + 1, 200])
@pytest.mark.parametrize("dtype", DTYPES)
def test_matrices_come_in_chunks_of_rows(dtype: str, rows: int) -> None:
    matrix = torch.randn(rows, 7).to(DTYPES[dtype])
    source = streamed_rows(lambda: [raw(matrix)], dtype, matrix.shape)
    assert [len(chunk) for chunk in source()] == [len(c) for c in matrix.split(CHUNK_ROWS)]
    assert b"".join(encoded(source, dtype)()) == raw(matrix)
    assert [c.shape for c in source()] == [c.shape for c in constant_rows(matrix.shape, 0)()]
    assert not whole(constant_rows(matrix.shape, 0)).any()


def layout(*blocks: tuple[int, ...]) -> FeatureLayout:
    return FeatureLayout("dci", tuple(FeatureBlock(item) for item in blocks))


LAYOUTS = {
    "dci": (layout((0, 1), (2, 3)), (3,)),
    "dci of three": (layout((0, 1, 2), (3, 4, 5)), (5,)),
    "sci": (layout((1,), (3,)), (4,)),
    "one block with the feature": (layout((2,)), (2,)),
    "two features today": (layout((0, 1), (2, 3)), (4, 1)),
    "overlapping blocks": (layout((0, 1, 2), (2, 3)), (2,)),
}
WIDTH, OUT = 6, 70


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_folding_is_the_mean_then_the_matrix(name: str, dtype: str) -> None:
    shape, features = LAYOUTS[name]
    draw = torch.Generator().manual_seed(3)
    base = torch.randn(OUT, WIDTH * len(features), generator=draw).to(DTYPES[dtype])
    delta = torch.randn(OUT, WIDTH * len(shape.blocks), generator=draw).to(DTYPES[dtype])
    folded = fold_rows(
        streamed_rows(lambda: [raw(base)], dtype, base.shape),
        streamed_rows(lambda: [raw(delta)], dtype, delta.shape),
        shape,
        joined_columns(stock_layers(shape, features), features, WIDTH),
        WIDTH,
    )
    layers = stock_layers(shape, features)
    assert list(layers) == sorted(set(layers))
    states = torch.randn(9, 5, WIDTH, dtype=torch.float64, generator=draw)
    today = torch.cat([states[i] for i in features], -1)
    means = torch.cat([states[list(b.layers)].mean(0) for b in shape.blocks], -1)
    wanted = today @ base.double().T + means @ delta.double().T
    matrix = torch.from_numpy(whole(folded)).double()
    assert matrix.shape == (OUT, WIDTH * len(layers))
    found = torch.cat([states[i] for i in layers], -1) @ matrix.T
    assert_near(found, wanted, 1e-13 if dtype == "F64" else SAME)


@pytest.mark.parametrize("dtype", DTYPES)
def test_folding_zeros_keeps_the_base_and_nothing_else(dtype: str) -> None:
    shape, features = LAYOUTS["dci"]
    base = torch.randn(OUT, WIDTH).to(DTYPES[dtype])
    rows = streamed_rows(lambda: [raw(base)], dtype, base.shape)
    folded = fold_rows(
        rows,
        constant_rows((OUT, 2 * WIDTH), 0),
        shape,
        joined_columns((0, 1, 2, 3), features, WIDTH),
        WIDTH,
    )
    matrix = torch.frombuffer(bytearray(b"".join(encoded(folded, dtype)())), dtype=DTYPES[dtype])
    matrix = matrix.reshape(OUT, 4 * WIDTH)
    assert torch.equal(matrix[:, 3 * WIDTH :], base)
    assert not matrix[:, : 3 * WIDTH].any()


def test_sums_are_rounded_once() -> None:
    # Rounded after each step, 1 + 2**-8 + 2**-8 stays 1 in bf16; rounded once it is 1.0078125.
    base, delta = torch.ones(1, 1), torch.full((1, 2), 2.0**-8)
    folded = fold_rows(
        streamed_rows(lambda: [raw(base.bfloat16())], "BF16", (1, 1)),
        streamed_rows(lambda: [raw(delta.bfloat16())], "BF16", (1, 2)),
        layout((0,), (0,)),
        joined_columns((0,), (0,), 1),
        1,
    )
    value = b"".join(encoded(folded, "BF16")())
    assert value == raw(torch.tensor([1.0078125], dtype=torch.bfloat16))


@pytest.mark.parametrize("special", [math.inf, -math.inf, math.nan, 6e-8, 65504.0])
def test_special_values_pass_through(special: float) -> None:
    base = torch.full((1, 1), special).half()
    folded = fold_rows(
        streamed_rows(lambda: [raw(base)], "F16", (1, 1)),
        constant_rows((1, 1), 0),
        layout((1,)),
        joined_columns((0, 1), (0,), 1),
        1,
    )
    found = whole(rounded(folded, "F16"))
    assert np.array_equal(found[:, :1], base.float().numpy(), equal_nan=True)
    assert found[0, 1] == 0


def test_values_too_large_for_half_become_infinite_quietly() -> None:
    assert encode(np.array([1e6, -1e6], "<f4"), "F16") == raw(torch.tensor([1e6, -1e6]).half())
    assert encode(np.array([1e300], "<f8"), "BF16") == raw(torch.tensor([math.inf]).bfloat16())


@pytest.mark.parametrize("shape", [(200, 33), (70,), (1, 1)])
@pytest.mark.parametrize("fan_in", [1, 48, 4096])
def test_drawn_values_keep_torch_s_bound(shape: tuple[int, ...], fan_in: int) -> None:
    values = whole(uniform_rows(shape, fan_in, 0, "x"))
    assert values.shape == (shape[0], shape[1] if len(shape) > 1 else 1)
    assert values.dtype == np.float32
    bound = torch.nn.Linear(fan_in, 500).weight.detach().abs().max().item()
    assert np.abs(values).max() <= np.float32(fan_in**-0.5)
    if values.size > 1000:
        assert np.abs(values).max() > 0.95 * bound
        # Mean and variance of U(-b, b): 0 and b^2 / 3.
        assert abs(values.mean()) < 0.05 * fan_in**-0.5
        assert values.var() == pytest.approx(1 / (3 * fan_in), rel=0.05)


def test_drawn_values_follow_from_seed_and_name_only() -> None:
    first = whole(uniform_rows((130, 5), 9, 1, "a"))
    rows = uniform_rows((130, 5), 9, 1, "a")
    assert np.array_equal(whole(rows), first)
    assert np.array_equal(whole(rows), first)  # a second reading starts anew
    for seed, name in ((2, "a"), (1, "b")):
        assert not np.array_equal(whole(uniform_rows((130, 5), 9, seed, name)), first)
    # Pinned: plans made today must give the same tensors tomorrow.
    assert first[0, :2].tolist() == pytest.approx(PINNED, abs=0)


PINNED = [-0.27277645468711853, 0.1892719715833664]
