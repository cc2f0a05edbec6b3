"""The tokens a Hugging Face LLaVA needs and the original has not: `<image>`, `<pad>`, their rows.

The original splices image features in by code (token -200); Hugging Face reserves a row of the
embeddings. transformers' own converter adds `<image>` and `<pad>` behind the vocabulary and pads
the embeddings to a multiple of 64 (32000 -> 32064). It draws the new rows around the mean of the
embeddings; here they are the mean of the matrix they belong to, the same in every run. A padded
row of the output matrix so gives the mean of all logits, never the largest; the others stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dcsurgery.checkpoint import checks
from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.connectors.folding import ITEM_BYTES, decode, encode
from dcsurgery.errors import MalformedCheckpointError
from dcsurgery.originals.adopted import Presented, render_json

MULTIPLE = 64
IMAGE, PAD = "<image>", "<pad>"
CONFIG, TOKENIZER, ADDED = "tokenizer_config.json", "tokenizer.json", "added_tokens.json"
SPECIAL_MAP, PIECES, WORDS = "special_tokens_map.json", "tokenizer.model", "vocab.json"


@dataclass(frozen=True)
class Tokens:
    """Ids of `<image>` and the padding token, embedding rows, and tokenizer files that change."""

    image: int
    pad: int
    rows: int
    files: Mapping[str, bytes]


def plan_image_token(found: TokenizerFiles, rows: int) -> Tokens:
    """Return the tokens for a model whose image token marks places and needs no row.

    Padding keeps the token the tokenizer uses now, or the one that ends or stands for anything.
    Raises MalformedCheckpointError for tokenizer files that cannot be read.
    """
    ids = found.ids()
    free = max(max(ids.values(), default=-1) + 1, found.words() or rows)
    added = {} if IMAGE in ids else {IMAGE: free}
    word = found.any_pad_token()
    stated = found.source.config.get("pad_token_id")
    pad = stated if type(stated) is int and 0 <= stated < rows else ids.get(word or "", 0)
    return Tokens(ids.get(IMAGE, free), pad, rows, found.edited(added, word))


def plan_tokens(found: TokenizerFiles, rows: int) -> Tokens:
    """Return the tokens for a language model of `rows` embeddings, beside its own tokenizer.

    `<image>` and `<pad>` get the ids that the tokenizer would give them next; a tokenizer that has
    one keeps it. Raises MalformedCheckpointError for tokenizer files that cannot be read.
    """
    ids = found.ids()
    free = max(ids.values(), default=-1) + 1
    free = max(free, found.words()) or rows
    added: dict[str, int] = {}
    for token in (IMAGE, found.pad_token() or PAD):
        if token not in ids:
            ids[token] = added[token] = free
            free += 1
    image, pad = ids[IMAGE], ids[found.pad_token() or PAD]
    if added:
        rows = _rounded(max(rows + 2, image + 1, pad + 1))
    return Tokens(image, pad, rows, found.edited(added, found.pad_token() or PAD))


def _rounded(rows: int) -> int:
    return -(-rows // MULTIPLE) * MULTIPLE


class TokenizerFiles:
    """A checkpoint's tokenizer files, parsed once. Raises MalformedCheckpointError."""

    def __init__(self, source: Checkpoint) -> None:
        self.source = source
        names = (CONFIG, TOKENIZER, ADDED, SPECIAL_MAP, WORDS)
        self.json = {name: self.object(name) for name in names if name in source.side_files}

    def object(self, name: str) -> dict[str, Any]:
        """Return a JSON side file, {} where there is none."""
        if name not in self.source.side_files:
            return {}
        raw = self.source.read_file(name)
        checks.bounded(len(raw), name)
        return checks.parse_object(checks.decode(raw, name), name)

    def token_id(self, token: str) -> int | None:
        """Return the id of a token, None for one that no file names."""
        model = self.get(TOKENIZER).get("model")
        vocabulary = model.get("vocab") if isinstance(model, dict) else None
        tables = (self.ids(), vocabulary, self.get(WORDS))
        found = next((t[token] for t in tables if isinstance(t, dict) and token in t), None)
        return found if type(found) is int else None

    def get(self, name: str) -> dict[str, Any]:
        return self.json.get(name, {})

    def ids(self) -> dict[str, int]:
        """Return added tokens by content."""
        listed = self.get(TOKENIZER).get("added_tokens")
        found = {item.get("content"): item.get("id") for item in _tables(listed)}
        decoder = self.get(CONFIG).get("added_tokens_decoder")
        for key, item in decoder.items() if isinstance(decoder, dict) else ():
            if str(key).isdigit() and isinstance(item, dict):
                found[item.get("content")] = int(key)
        found.update(self.get(ADDED))
        return {k: v for k, v in found.items() if isinstance(k, str) and type(v) is int and v >= 0}

    def words(self) -> int:
        """Return the size of the vocabulary without added tokens, 0 when no file has one."""
        model = self.get(TOKENIZER).get("model")
        vocabulary = model.get("vocab") if isinstance(model, dict) else None
        if isinstance(vocabulary, dict) and vocabulary:
            return 1 + max(value for value in vocabulary.values() if type(value) is int)
        if isinstance(vocabulary, list):
            return len(vocabulary)
        if PIECES in self.source.side_files:
            return count_pieces(self.source.read_file(PIECES))
        return len(self.get(WORDS))

    def special_tokens(self) -> dict[str, str | None]:
        """Return the tokens for padding, for anything unknown, and for both ends of a text."""
        return {
            key: _content(self.get(SPECIAL_MAP).get(key) or self.get(CONFIG).get(key))
            for key in ("pad_token", "unk_token", "eos_token", "bos_token")
        }

    def any_pad_token(self) -> str | None:
        """Return a token that can pad: the one named for it, else unknown or end."""
        named = self.special_tokens()
        return next((item for item in named.values() if item is not None), None)

    def pad_token(self) -> str | None:
        """Return the tokenizer's own padding token; None where another token stands in for it."""
        named = self.special_tokens()
        pad = named.pop("pad_token")
        known = pad in self.ids()
        return pad if pad is not None and known and pad not in named.values() else None

    def edited(self, added: Mapping[str, int], pad: str | None) -> dict[str, bytes]:
        """Return the files that say more than before, as bytes."""
        has_tokenizer = bool(self.json) or PIECES in self.source.side_files
        if not added or not has_tokenizer:
            return {}
        entries = {token: _entry(token) for token in added}
        config = dict(self.get(CONFIG))
        decoder = dict(config.get("added_tokens_decoder") or {})
        for item in _tables(self.get(TOKENIZER).get("added_tokens")):
            known = {key: value for key, value in item.items() if key != "id"}
            decoder.setdefault(str(item.get("id")), known)
        decoder |= {str(added[token]): entry for token, entry in entries.items()}
        config |= {"added_tokens_decoder": decoder}
        config |= {} if pad is None else {"pad_token": pad}
        files = {CONFIG: render_json(config)}
        if TOKENIZER in self.json:
            more = [{"id": added[token], **entry} for token, entry in entries.items()]
            before = list(_tables(self.get(TOKENIZER).get("added_tokens")))
            tokenizer = {**self.get(TOKENIZER), "added_tokens": [*before, *more]}
            files[TOKENIZER] = render_json(tokenizer)
        if ADDED in self.json or TOKENIZER not in self.json:
            files[ADDED] = render_json({**self.get(ADDED), **added})
        if SPECIAL_MAP in self.json and pad is not None:
            files[SPECIAL_MAP] = render_json({**self.get(SPECIAL_MAP), "pad_token": pad})
        return files


def _tables(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, list):
        yield from (item for item in value if isinstance(item, dict))


def _content(value: Any) -> str | None:
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def _entry(token: str) -> dict[str, Any]:
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"content": token, **flags, "special": True}


def count_pieces(raw: bytes) -> int:
    """Return how many pieces a SentencePiece model has: field 1 of its protobuf, repeated.

    Raises MalformedCheckpointError.
    """
    at = count = 0
    try:
        while at < len(raw):
            key, at = _varint(raw, at)
            field, wire = key >> 3, key & 7
            if wire == 2:
                length, at = _varint(raw, at)
                at += length
            elif wire == 0:
                _, at = _varint(raw, at)
            else:
                at += {1: 8, 5: 4}[wire]
            count += field == 1 and wire == 2
        if at != len(raw):
            raise IndexError
    except (IndexError, KeyError):
        raise MalformedCheckpointError(
            f"{PIECES} is not a SentencePiece model", hint="fetch the file again"
        ) from None
    return count


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise IndexError


def padded_rows(item: Presented, rows: int) -> Presented:
    """Return a matrix [rows of before, C] presented with its mean row behind it, up to `rows`."""
    before, width = item.shape
    if rows <= before:
        return item
    if item.dtype not in ITEM_BYTES:
        raise MalformedCheckpointError(
            f"{item.tensor} is {item.dtype}: rows for new tokens cannot be made",
            hint="convert the unquantised model",
        )

    def chunks() -> Iterator[bytes]:
        import numpy as np

        total = np.zeros(width, np.float64)
        held = b""
        row = width * ITEM_BYTES[item.dtype]
        for chunk in item.origin.tensor_chunks(item.tensor):
            yield chunk
            held += chunk
            whole = len(held) // row * row
            total += decode(held[:whole], item.dtype).reshape(-1, width).sum(0, dtype=np.float64)
            held = held[whole:]
        mean = encode(total / before, item.dtype)
        for _ in range(rows - before):
            yield mean

    return Presented(item.name, item.dtype, (rows, width), item.origin, item.tensor, chunks)
