"""Our header parser refuses all that safetensors refuses, and never leaks another exception."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import deserialize

from dcsurgery.checkpoint.headers import (
    DTYPE_BITS,
    Header,
    TensorEntry,
    lay_out,
    parse_header,
    read_header,
    render_header,
)
from dcsurgery.errors import MalformedCheckpointError
from tests.checkpoint.folders import raw_file, shard

# A busy machine is no fault of the code.
SLOW = [HealthCheck.too_slow]


def accept(blob: bytes) -> None:
    """Raise unless safetensors itself accepts the file."""
    deserialize(blob)  # type: ignore[no-untyped-call]


def parse_or_none(blob: bytes) -> Header | None:
    """The header, or None after a clean refusal."""
    try:
        return parse_header(blob, len(blob), "x.safetensors")
    except MalformedCheckpointError as error:
        assert "x.safetensors" in error.message
        assert error.hint
        error.message.encode()
        return None


def tensor(dtype: str = "U8", shape: str = "[4]", offsets: str = "[0,4]") -> str:
    return f'{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}'


GOOD = tensor()
DEEP = "[" * 100_000
REFUSED = {
    "hole": f'{{"a":{tensor(offsets="[1,5]")}}}',
    "overlap": f'{{"a":{GOOD},"b":{tensor(offsets="[2,6]")}}}',
    "same bytes twice": f'{{"a":{GOOD},"b":{GOOD}}}',
    "trailing bytes": f'{{"a":{tensor(shape="[3]", offsets="[0,3]")}}}',
    "truncated data": f'{{"a":{tensor(shape="[9]", offsets="[0,9]")}}}',
    "shape and bytes differ": f'{{"a":{tensor(shape="[5]")}}}',
    "end before begin": f'{{"a":{tensor(offsets="[4,0]")}}}',
    "negative": f'{{"a":{tensor(shape="[-4]")}}}',
    "minus zero": f'{{"a":{tensor(offsets="[-0,4]")}}}',
    "float": f'{{"a":{tensor(shape="[4.0]")}}}',
    "bool": f'{{"a":{tensor(shape="[4,true]")}}}',
    "exponent": f'{{"a":{tensor(shape="[4e0]")}}}',
    "overflow": f'{{"a":{tensor(shape="[4294967296,4294967296,0]", offsets="[0,0]")}}}',
    "huge digits": f'{{"a":{tensor(shape="[" + "9" * 5000 + "]")}}}',
    "unknown dtype": f'{{"a":{tensor(dtype="I4")}}}',
    "dtype is a list": '{"a":{"dtype":["U8"],"shape":[4],"data_offsets":[0,4]}}',
    "half a byte": f'{{"a":{tensor(dtype="F4", shape="[7]")}}}',
    "three offsets": f'{{"a":{tensor(offsets="[0,2,4]")}}}',
    "missing field": '{"a":{"dtype":"U8","shape":[4]}}',
    "duplicate tensor": f'{{"a":{GOOD},"a":{GOOD}}}',
    "duplicate field": '{"a":{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}}',
    "duplicate metadata": f'{{"__metadata__":{{}},"__metadata__":{{}},"a":{GOOD}}}',
    "duplicate metadata key": f'{{"__metadata__":{{"k":"1","k":"1"}},"a":{GOOD}}}',
    "metadata number": f'{{"__metadata__":{{"k":1}},"a":{GOOD}}}',
    "metadata list": f'{{"__metadata__":[],"a":{GOOD}}}',
    "NaN": f'{{"a":{tensor(shape="[NaN]")}}}',
    "list header": f"[{GOOD}]",
    "leading space": f' {{"a":{GOOD}}}',
    "byte order mark": f'\ufeff{{"a":{GOOD}}}',
    "NUL padding": f'{{"a":{GOOD}}}\0\0',
    "two objects": f'{{"a":{GOOD}}}{{}}',
    "cut JSON": f'{{"a":{GOOD}',
    "lone surrogate": f'{{"\\ud800":{GOOD}}}',
    "deep list": f'{{"a":{DEEP}',
    "deep metadata": f'{{"__metadata__":{DEEP}',
    "tensor is text": '{"a":"U8"}',
    "empty text": "",
}


@pytest.mark.parametrize("name", REFUSED)
def test_broken_headers_are_refused(name: str) -> None:
    assert parse_or_none(raw_file(REFUSED[name], bytes(4))) is None


def test_invalid_utf8_is_refused() -> None:
    header = f'{{"a":{GOOD}}}'.encode().replace(b'"a"', b'"\xff"')
    assert parse_or_none(raw_file(header, bytes(4))) is None


@pytest.mark.parametrize(
    "blob", [b"", b"1234567", struct.pack("<Q", 2**63), struct.pack("<Q", 9) + b"{}"]
)
def test_lengths_that_cannot_be_true_are_refused(blob: bytes) -> None:
    assert parse_or_none(blob) is None


def test_header_limit_holds_before_anything_is_read() -> None:
    with pytest.raises(MalformedCheckpointError, match="100 MB"):
        parse_header(struct.pack("<Q", 100_000_001), 10**12, "x.safetensors")


@pytest.mark.parametrize(
    "header",
    ["{}", '{"__metadata__":null}', '{"a":' + tensor(shape="[0,9]", offsets="[0,0]") + "}",
     '{"":' + tensor(shape="[]", offsets="[0,1]") + "}  ",
     '{"../../x":' + tensor(dtype="F4", shape="[2]", offsets="[0,1]") + "}"],
)  # fmt: skip
def test_odd_but_sound_headers_are_accepted(header: str) -> None:
    blob = raw_file(header, b"\0" if "[0,1]" in header else b"")
    assert parse_or_none(blob) is not None
    accept(blob)


def test_entries_come_in_offset_order(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    late, early = tensor(offsets="[4,8]"), tensor()
    path.write_bytes(raw_file(f'{{"late":{late},"early":{early}}}', bytes(8)))
    header = read_header(path)
    assert list(header.tensors) == ["early", "late"]
    assert header.file_size == path.stat().st_size


def test_missing_file_and_folder_are_clean_errors(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(MalformedCheckpointError):
            read_header(path)


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(
    lambda name: name != "__metadata__"
)
specs = st.lists(
    st.tuples(names, st.sampled_from(sorted(DTYPE_BITS)), st.lists(st.integers(0, 8), max_size=3)),
    max_size=6,
    unique_by=lambda item: item[0],
)


def whole(specs: list[tuple[str, str, list[int]]]) -> list[TensorEntry]:
    """Entries for those specs that end on a byte."""
    kept = []
    for name, dtype, shape in specs:
        bits = DTYPE_BITS[dtype]
        for dim in shape:
            bits *= dim
        if bits % 8 == 0:
            kept.append((name, dtype, tuple(shape)))
    return lay_out(kept)


@settings(max_examples=150, deadline=None, suppress_health_check=SLOW)
@given(specs, st.none() | st.dictionaries(names, names, max_size=3), st.integers(0, 4095))
def test_rendered_headers_round_trip(
    specs: list[tuple[str, str, list[int]]], metadata: dict[str, str] | None, congruent: int
) -> None:
    entries = whole(specs)
    data = bytes(entries[-1].end if entries else 0)
    for target in (None, congruent):
        head = render_header(entries, metadata, target)
        assert len(head) % 8 == 0 if target is None else len(head) % 4096 == target
        header = parse_or_none(head + data)
        assert header is not None
        assert list(header.tensors.values()) == entries
        assert header.metadata == metadata
        assert (header.data_start, header.data_size) == (len(head), len(data))
        accept(head + data)


def test_metadata_comes_first_and_json_is_compact() -> None:
    head = render_header(lay_out([("a", "U8", (4,))]), {"format": "pt"})
    assert head[8:].startswith(b'{"__metadata__":{"format":"pt"},"a":{"dtype":"U8","shape":[4],')


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.floats(0, 9) | st.text(max_size=4)
    | st.sampled_from(["U8", "F32", "F4"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
loose_tensors = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["U8", "F4", "F16", "X"]) | json_values,
     "shape": st.lists(st.integers(-1, 4), max_size=2) | json_values,
     "data_offsets": st.lists(st.integers(0, 8), min_size=2, max_size=2) | json_values},
    optional={"extra": json_values},
)  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=SLOW)
@given(st.dictionaries(names | st.just("__metadata__"), loose_tensors | json_values, max_size=3),
       st.integers(0, 8))  # fmt: skip
def test_what_we_accept_safetensors_accepts(table: object, size: int) -> None:
    blob = raw_file(json.dumps(table), bytes(size))
    if parse_or_none(blob) is not None:
        accept(blob)


@settings(max_examples=200, deadline=None, suppress_health_check=SLOW)
@given(st.binary(max_size=64))
def test_any_bytes_are_parsed_or_refused_cleanly(blob: bytes) -> None:
    if parse_or_none(blob) is not None:
        accept(blob)


def test_mutated_headers_never_fool_us() -> None:
    draw = random.Random(7)
    sound = shard({"a.weight": (2, 3), "b": (4,), "empty": (0,), "scalar": ()}, note="x")
    alphabet = b'0123456789-.eE{}[]",: \\u\x00\xffabN'
    accepted = 0
    for _ in range(3000):
        blob = bytearray(sound)
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(len(blob))
            action = draw.randrange(4)
            if action == 0:
                blob[at] = draw.choice(alphabet)
            elif action == 1:
                del blob[at : at + draw.randint(1, 4)]
            elif action == 2:
                blob.insert(at, draw.choice(alphabet))
            else:
                blob[at:at] = blob[at : at + draw.randint(1, 40)]
        if draw.random() < 0.7:  # keep the length right, so that the JSON itself is reached
            blob[:8] = struct.pack("<Q", max(0, len(blob) - 8 - 44))
        if parse_or_none(bytes(blob)) is not None:
            accepted += 1
            accept(bytes(blob))
    assert accepted
