"""Videos as pictures: a few frames of a file, and their image tokens pooled after the projector.

The zero-shot reading of arXiv 2405.13800 section 4.4: frames go in as images, in one run; with
pooling, a maximum over every two neighbouring tokens of a frame's projected features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dcsurgery.data.prompts import TOKEN_FIELDS
from dcsurgery.errors import RequestError

# Their positions, or further layers, count the picture's own tokens.
UNPOOLED = ("image_grid_thw", "image_grid_hws")


@dataclass(frozen=True)
class Clip:
    """Frames of a video as RGB PIL images; `numbers` are theirs in the file, of `total`."""

    frames: tuple[Any, ...]
    numbers: tuple[int, ...]
    total: int


def frame_numbers(total: int, count: int) -> list[int]:
    """Return the middle frame of each of `count` equal parts of a video of `total` frames.

    A shorter video gives all it has. The rule of the reference's get_seq_frames.
    """
    count = min(total, count)
    edges = [round((total - 1) / count * index) for index in range(count + 1)]
    return [(start + end) // 2 for start, end in pairwise(edges)]


def read_clip(path: Path, count: int = 8) -> Clip:
    """Decode `count` frames, evenly spread over a video file, upright.

    Raises RequestError for a file that is missing or holds no video that can be decoded, or where
    PyAV is not installed.
    """
    if count < 1:
        raise RequestError(f"--frames {count}: at least 1 is needed", hint="the paper uses 8")
    av = _pyav()
    if not path.is_file():
        raise RequestError(f"video {path} does not exist", hint="check the path")
    try:
        with av.open(str(path)) as container:
            total = _packets(container)
        clip = _pick(av, path, total, count)
        if clip is None:
            # Packets that give no picture of their own: what comes out is what counts.
            with av.open(str(path)) as container:
                total = sum(1 for _ in _decoded(container))
            clip = _pick(av, path, total, count)
            if clip is None:
                raise _unreadable(path, "the number of its frames changes each time")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise _unreadable(path, str(error)) from None
    return clip


def _pick(av: Any, path: Path, total: int, count: int) -> Clip | None:
    """Decode as far as the last wanted frame; None when fewer frames come."""
    if total == 0:
        raise _unreadable(path, "it has no frames")
    numbers = frame_numbers(total, count)
    with av.open(str(path)) as container:
        frames = islice(enumerate(_decoded(container)), numbers[-1] + 1)
        found = {number: _upright(frame) for number, frame in frames if number in numbers}
    if not found.keys() >= set(numbers):
        return None
    return Clip(tuple(found[number] for number in numbers), tuple(numbers), total)


def _pyav() -> Any:
    try:
        import av
    except ImportError:
        raise RequestError(
            "reading videos needs PyAV, which is not installed",
            hint="pip install 'dcsurgery[video]'",
        ) from None
    return av


def _packets(container: Any) -> int:
    """Return how many packets the first video stream has: its frames, without decoding any."""
    streams = container.streams.video
    return sum(1 for packet in container.demux(streams[0]) if packet.size) if streams else 0


def _decoded(container: Any) -> Iterator[Any]:
    """Yield the frames of the first video stream; none when there is no such stream."""
    if container.streams.video:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        yield from container.decode(stream)


def _upright(frame: Any) -> Any:
    image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def _unreadable(path: Path, why: str) -> RequestError:
    return RequestError(
        f"{path} is not a video that can be read: {' '.join(why.split())[:120]}",
        hint="try to play it, or convert it: ffmpeg -i FILE video.mp4",
    )


def pool_tokens(features: Tensor, pool: int) -> Tensor:
    """Return [..., N // pool, H]: the maximum of every `pool` neighbouring tokens of [..., N, H].

    The remainder is dropped. The reference's temporal_aggregation with if_pool (pool 2).
    """
    flat = features.reshape(-1, *features.shape[-2:]).transpose(1, 2)
    pooled = functional.max_pool1d(flat.float(), pool).to(features.dtype)
    return pooled.transpose(1, 2).reshape(*features.shape[:-2], -1, features.shape[-1])


def image_runs(ids: Tensor, token: int) -> list[tuple[int, int]]:
    """Return where tokens [T] hold unbroken runs of the image token, as [start, end)."""
    marked = functional.pad((ids == token).int(), (1, 1))
    edges = marked.diff().nonzero().flatten().tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


@dataclass(frozen=True)
class Shortened:
    """A prompt whose image tokens are pooled: its inputs, and the runs [lengths] it had before."""

    inputs: dict[str, Tensor]
    runs: tuple[int, ...]


def shorten(
    inputs: Mapping[str, Tensor], token: int, frames: int, pool: int, blanks: Sequence[int] = ()
) -> Shortened:
    """Return a prompt [1, T] about `frames` with every run of image tokens divided by `pool`.

    Tokens of `blanks` alone between two runs are dropped too: frames stand side by side, as in the
    reference. Raises RequestError where the model's image tokens cannot be pooled.
    """
    ids = inputs["input_ids"][0]
    found = _by_frame(image_runs(ids, token), frames)
    lengths = tuple(end - start for start, end in found)
    if pool > 1 and (any(name in inputs for name in UNPOOLED) or min(lengths, default=0) < pool):
        raise RequestError(
            f"--frame-pool {pool} cannot be used with this model: its positions count the tokens "
            "of every picture, or a picture has too few",
            hint="leave --frame-pool out and take fewer --frames",
        )
    keep = torch.ones(len(ids), dtype=torch.bool)
    for start, end in found:
        keep[start + (end - start) // pool : end] = False
    for (_, end), (start, _) in pairwise(found):
        if set(ids[end:start].tolist()) <= set(blanks):
            keep[end:start] = False
    kept = {
        name: value[:, keep] if name in TOKEN_FIELDS else value for name, value in inputs.items()
    }
    return Shortened(kept, lengths)


def _by_frame(runs: list[tuple[int, int]], frames: int) -> list[tuple[int, int]]:
    """Return the runs, a single one of several frames that nothing divides cut into equal parts."""
    if len(runs) != 1 or (runs[0][1] - runs[0][0]) % frames:
        return runs
    start, end = runs[0]
    size = (end - start) // frames
    return [(at, at + size) for at in range(start, end, size)]


@contextmanager
def pooled_features(model: nn.Module, runs: Sequence[int], pool: int) -> Iterator[None]:
    """Make the model's image features those that `shorten` has left room for.

    `runs` are the lengths of the runs before. Raises RequestError while it computes when the model
    gives other features than one per image token.
    """
    owner: Any = getattr(model, "model", model)
    encode = getattr(owner, "get_image_features", None)
    if pool == 1:
        yield
        return
    if encode is None:
        raise _no_features(model)

    # generate() reads the signature to see which of its keywords are the encoder's.
    @wraps(encode)
    def pooled(*args: Any, **kwargs: Any) -> Any:
        found = encode(*args, **kwargs)
        features = getattr(found, "pooler_output", found)
        if getattr(found, "deepstack_features", None) is not None or features is None:
            raise _no_features(model)
        sizes = iter(runs)
        features = _pool_runs(features, sizes, pool)
        if features is None or next(sizes, None) is not None:
            raise _no_features(model)
        if hasattr(found, "pooler_output"):
            found.pooler_output = features
            return found
        return features

    owner.get_image_features = pooled
    try:
        yield
    finally:
        del owner.get_image_features


def _pool_runs(features: Any, sizes: Iterator[int], pool: int) -> Any:
    """Return features in the same lists, every run of tokens pooled; None where runs do not fit."""
    if isinstance(features, list | tuple):
        parts = [_pool_runs(item, sizes, pool) for item in features]
        return None if any(part is None for part in parts) else type(features)(parts)
    if features.dim() > 2:
        # Tiles of a frame may share a run.
        joined = _pool_runs(features.flatten(0, -2), sizes, pool)
        rows = features.shape[:-2].numel()
        fits = joined is not None and len(joined) % rows == 0
        return joined.unflatten(0, (*features.shape[:-2], -1)) if fits else None
    pieces, start = [], 0
    while start < len(features):
        size = next(sizes, None)
        if size is None or start + size > len(features):
            return None
        pieces.append(pool_tokens(features[start : start + size], pool))
        start += size
    return torch.cat(pieces)


def _no_features(model: nn.Module) -> RequestError:
    return RequestError(
        f"--frame-pool cannot be used with {type(model).__name__}: its image features are not one "
        "per image token",
        hint="leave --frame-pool out and take fewer --frames",
    )
