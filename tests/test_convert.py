"""convert_checkpoint on hand-made bytes: what is written, what is kept, what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

import dcsurgery
from dcsurgery.checkpoint import copying, destination
from dcsurgery.checkpoint.checks import WRITTEN
from dcsurgery.checkpoint.contents import INDEX
from dcsurgery.checkpoint.written import record as record_files
from dcsurgery.connectors.request import Connector
from dcsurgery.errors import (
    CheckpointError,
    DcSurgeryError,
    MalformedCheckpointError,
    OutputExistsError,
    PlanError,
    RequestError,
)
from dcsurgery.surgery.convert import convert_checkpoint, plan_conversion
from dcsurgery.surgery.plan_file import DELTA_FILE, PLAN_FILE, read_plan
from dcsurgery.verification.pair import open_pair
from dcsurgery.verification.structure import structure_checks
from tests.benchmarks.original import write_sparse
from tests.checkpoint.folders import (
    LLAVA_CONFIG,
    PROJECTOR,
    WEIGHT,
    cache_state,
    hub_cache,
    index_for,
    llava,
    llava_specs,
    load,
    raw_file,
    same,
    snapshot,
    typed_shard,
    write,
)
from tests.checkpoint.hostile import FILES, NODES
from tests.headers_only import llava_like

ROOT = Path(__file__).parents[1]
FORMS = ("stock", "delta")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write(tmp_path / "base", llava(shards=3))


def names(folder: Path) -> set[str]:
    """All files but our record of them."""
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    return found - {WRITTEN}


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_config_is_edited_and_nothing_else_in_it(base: Path, tmp_path: Path) -> None:
    convert_checkpoint(base, tmp_path / "OUT")
    text = (tmp_path / "OUT" / "config.json").read_text(encoding="utf-8")
    found = json.loads(text)
    assert list(found) == list(LLAVA_CONFIG)
    assert found.pop("vision_feature_layer") == [0, 1, 2, 3]
    wanted = {k: v for k, v in LLAVA_CONFIG.items() if k != "vision_feature_layer"}
    assert found == wanted
    assert repr(found) == repr(wanted)  # 1e-05, -0.0 and infinity as they were
    for piece in ('"rms_norm_eps": 1e-05', "Größe 雪 😀", "123456789012345678901234567890"):
        assert piece in text


def test_every_other_file_is_the_same_bytes(base: Path, tmp_path: Path) -> None:
    done = convert_checkpoint(base, tmp_path / "OUT")
    out = tmp_path / "OUT"
    copied = names(base) - {"pytorch_model.bin", "stray.safetensors"}
    assert names(out) == copied | {PLAN_FILE, DELTA_FILE}
    changed = {"config.json", INDEX, done.plan.changed[0].file}
    for name in copied - changed:
        assert (out / name).read_bytes() == (base / name).read_bytes()
    before, after = load(base), load(out)
    assert before.keys() == after.keys()
    for name in before.keys() - {WEIGHT}:
        assert same(before[name], after[name])
    assert {item.file for item in done.transfers} == names(out)
    assert done.bytes_written <= plan_conversion(base).bytes_to_write


def test_a_delta_holds_no_base_weights(base: Path, tmp_path: Path) -> None:
    convert_checkpoint(base, tmp_path / "OUT", form="delta")
    assert names(tmp_path / "OUT") == {PLAN_FILE, DELTA_FILE, "README.md"}
    assert str(base) in (tmp_path / "OUT" / "README.md").read_text()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("init", ["preserve", "paper"])
def test_the_plan_says_what_it_relies_on_and_what_it_wrote(
    init: str, form: str, base: Path, tmp_path: Path
) -> None:
    out = tmp_path / "OUT"
    convert_checkpoint(base, out, init=init, form=form)
    plan = read_plan(out)
    assert plan.tool == f"dcsurgery {dcsurgery.__version__}"
    assert (plan.base.id, plan.base.folder) == (str(base), str(base.resolve()))
    assert (plan.base.revision, plan.base.commit) == (None, None)
    assert plan.base.config_sha256 == sha(base / "config.json")
    assert {k: v.size for k, v in plan.base.files.items()} == {
        path.name: path.stat().st_size for path in base.glob("model-*.safetensors")
    }
    assert plan.layout.groups == ((0, 1), (2, 3))
    weights = {name: tensor.numpy().tobytes() for name, tensor in load(base).items()}
    assert plan.relies_on == {
        name: hashlib.sha256(data).hexdigest()
        for name, data in weights.items()
        if name.startswith(PROJECTOR)
    }
    with safe_open(out / DELTA_FILE, "pt") as file:
        assert file.metadata() == {"format": "pt"}
        found = {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}
    assert {r.name: r.sha256 for r in plan.delta} == {
        name: hashlib.sha256(data).hexdigest() for name, data in found.items()
    }
    written = {name: t.numpy().tobytes() for name, t in load(out).items()}
    for record in plan.changed:
        assert record.sha256 == hashlib.sha256(written[record.name]).hexdigest()
        assert record.base_sha256 == plan.relies_on[record.name]
    assert bool(plan.changed) is (form == "stock")


def test_the_same_request_gives_the_same_bytes(base: Path, tmp_path: Path) -> None:
    for name in "ab":
        convert_checkpoint(base, tmp_path / name, init="paper", seed=3)
    for name in names(tmp_path / "a"):
        assert sha(tmp_path / "a" / name) == sha(tmp_path / "b" / name)
    convert_checkpoint(base, tmp_path / "c", init="paper", seed=4)
    assert sha(tmp_path / "a" / DELTA_FILE) != sha(tmp_path / "c" / DELTA_FILE)


@pytest.mark.parametrize("form", FORMS)
def test_what_was_converted_is_not_converted_again(form: str, base: Path, tmp_path: Path) -> None:
    convert_checkpoint(base, tmp_path / "once", form=form)
    with pytest.raises(PlanError if form == "stock" else RequestError) as caught:
        convert_checkpoint(tmp_path / "once", tmp_path / "OUT")
    assert caught.value.hint
    assert not (tmp_path / "OUT").exists()


@pytest.mark.parametrize("name", ["dense_connector", "dense_connector/notes.txt"])
def test_a_base_with_our_folder_s_name_is_refused(name: str, base: Path, tmp_path: Path) -> None:
    write(base, {name: b"x"})
    with pytest.raises(PlanError, match="where the connector would be written"):
        convert_checkpoint(base, tmp_path / "OUT")


def test_an_index_may_not_name_our_delta(tmp_path: Path) -> None:
    files = llava(shards=1)
    files[DELTA_FILE] = files.pop("model.safetensors")
    weight_map = dict.fromkeys([name for name, _, _ in llava_specs()], DELTA_FILE)
    refused(write(tmp_path / "base", files | {INDEX: index_for(weight_map)}), tmp_path, PlanError)


def refused(
    base: Path, tmp_path: Path, kind: type[DcSurgeryError] = DcSurgeryError, **options: Any
) -> DcSurgeryError:
    """Converting raises this error with a hint, leaves no trace, and the preview agrees."""
    before = snapshot(tmp_path)
    for form in FORMS:
        with pytest.raises(DcSurgeryError) as caught:
            convert_checkpoint(base, tmp_path / "OUT", form=form, **options)
        assert isinstance(caught.value, kind), caught.value
        assert len(caught.value.hint) > 10
        caught.value.message.encode()
        assert snapshot(tmp_path) == before
        assert not list(tmp_path.glob("OUT*"))
    return caught.value


@pytest.mark.parametrize("name", FILES)
def test_hostile_files_leave_no_output(name: str, tmp_path: Path) -> None:
    files, kind = FILES[name]
    refused(write(tmp_path / "model", files), tmp_path, kind)


@pytest.mark.parametrize("name", NODES)
def test_hostile_nodes_leave_no_output(name: str, tmp_path: Path) -> None:
    make, kind = NODES[name]
    folder = write(tmp_path / "model", llava(shards=3))
    make(folder)
    refused(folder, tmp_path, kind)


VISION = LLAVA_CONFIG["vision_config"]
CONFIGS: dict[str, dict[str, Any]] = {
    "no class": {"architectures": None, "model_type": "x"},
    "class is no list": {"architectures": "LlavaForConditionalGeneration"},
    "class is a list of lists": {"architectures": [["LlavaForConditionalGeneration"]]},
    "class is an object": {"architectures": [{"a": 1}]},
    "other class": {"architectures": ["GPT2LMHeadModel"]},
    "original LLaVA": {"architectures": ["LlavaLlamaForCausalLM"], "mm_vision_tower": ["x"]},
    "vision config is a list": {"vision_config": [1]},
    "vision config is text": {"vision_config": "clip"},
    "tower kind is a list": {"vision_config": {**VISION, "model_type": []}},
    "tower kind is unknown": {"vision_config": {**VISION, "model_type": "x"}},
    "depth differs": {"vision_config": {**VISION, "num_hidden_layers": 5}},
    "width differs": {"vision_config": {**VISION, "hidden_size": 17}},
    "patch size is zero": {"vision_config": {**VISION, "patch_size": 0}},
    "patch size is a float": {"vision_config": {**VISION, "patch_size": 4.0}},
    "patch is larger than the image": {"vision_config": {**VISION, "patch_size": 99}},
    "image size is absurd": {"vision_config": {**VISION, "image_size": 10**4000}},
    "text config is text": {"text_config": "llama"},
    "text config is a list": {"text_config": [1]},
    "language model is a list": {"text_config": {"model_type": ["llama"]}},
    "feature layer out of range": {"vision_feature_layer": 99},
    "feature layer is text": {"vision_feature_layer": "-2"},
    "feature layer is null": {"vision_feature_layer": None},
    "feature layer is a float": {"vision_feature_layer": -2.0},
    "feature layer is true": {"vision_feature_layer": True},
    "feature layers are empty": {"vision_feature_layer": []},
    "feature layers are nested": {"vision_feature_layer": [[1]]},
    "strategy is unknown": {"vision_feature_select_strategy": "some"},
    "strategy is a list": {"vision_feature_select_strategy": []},
    "half a surrogate": {"note": "\ud83d"},
    "half a surrogate as key": {"\udc00": 1},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_hostile_configs_leave_no_output(name: str, tmp_path: Path) -> None:
    text = json.dumps({**LLAVA_CONFIG, **CONFIGS[name]})
    refused(write(tmp_path / "model", llava() | {"config.json": text.encode()}), tmp_path)


SHAPES: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {
    "first matrix is a vector": {WEIGHT: ("F32", (384,))},
    "first matrix is a cube": {WEIGHT: ("F32", (24, 4, 4))},
    "first matrix is a kernel": {WEIGHT: ("F32", (24, 4, 2, 2))},
    "first matrix has no rows": {WEIGHT: ("F32", (0, 16))},
    "first matrix has no columns": {WEIGHT: ("F32", (24, 0))},
    "first matrix is quantised": {WEIGHT: ("U8", (24, 16))},
    "first matrix has another width": {WEIGHT: ("F32", (24, 15))},
}


@pytest.mark.parametrize("name", SHAPES)
def test_hostile_shapes_leave_no_output(name: str, tmp_path: Path) -> None:
    specs = [(n, *SHAPES[name].get(n, (d, s))) for n, d, s in llava_specs()]
    files = llava() | {"model.safetensors": typed_shard(specs)}
    refused(write(tmp_path / "model", files), tmp_path)


@pytest.mark.parametrize("shape", [("U8", (24, 24)), ("F32", (2, 3, 4)), ("F32", ())])
def test_a_projector_that_cannot_be_redrawn_is_refused(
    shape: tuple[str, tuple[int, ...]], tmp_path: Path
) -> None:
    extra = [(PROJECTOR + "odd.weight", *shape)]
    base = write(tmp_path / "model", llava(extra=extra))
    refused(base, tmp_path, PlanError, init="paper")
    convert_checkpoint(base, tmp_path / "OUT")  # kept as it is


def mutated(blob: bytes, draw: random.Random) -> bytes:
    """The file with one to three edits in its header; mostly of the right length still."""
    size = struct.unpack("<Q", blob[:8])[0]
    text, data = bytearray(blob[8 : 8 + size]), blob[8 + size :]
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(text))
        action = draw.randrange(4)
        if action == 0:
            text[at] = draw.choice(b'0123456789-.eE{}[]",: \\u\x00\xffabNF')
        elif action == 1:
            del text[at : at + draw.randint(1, 4)]
        elif action == 2:
            text[at:at] = text[at : at + draw.randint(1, 40)]
        else:
            text[at : at + 2] = bytes([draw.choice(b"0123456789"), draw.choice(b'0123456789"')])
    length = len(text) if draw.random() < 0.9 else draw.choice([0, 2**63, len(text) + 1])
    return struct.pack("<Q", length) + bytes(text) + data


def test_two_hundred_fuzzed_headers(tmp_path: Path) -> None:
    """Refused cleanly without a trace, or converted into files that safetensors reads."""
    draw, outcomes = random.Random(11), {"refused": 0, "converted": 0}
    files = {k: v for k, v in llava().items() if k in ("config.json", "model.safetensors")}
    for number in range(200):
        place = tmp_path / str(number)
        blob = mutated(files["model.safetensors"], draw)
        base = write(place / "model", files | {"model.safetensors": blob})
        before = snapshot(place)
        try:
            convert_checkpoint(base, place / "OUT", init=draw.choice(["preserve", "paper"]))
        except DcSurgeryError as error:
            outcomes["refused"] += 1
            assert len(error.hint) > 10
            error.message.encode()
            assert snapshot(place) == before
            assert os.listdir(place) == ["model"]
        else:
            outcomes["converted"] += 1
            assert load(place / "OUT").keys() == load(base).keys()
            assert sorted(os.listdir(place)) == ["OUT", "model"]
    assert outcomes["refused"] > 100
    assert outcomes["converted"] >= 1


def test_linked_weights_are_the_base_s_own(base: Path, tmp_path: Path) -> None:
    before = snapshot(base)
    done = convert_checkpoint(base, tmp_path / "OUT", link=True)
    modes = {item.file: item.mode for item in done.transfers}
    assert [modes[n] for n in sorted(names(base)) if n.startswith("model-")].count("hardlink") == 2
    assert modes["tokenizer.json"] != "hardlink"
    assert snapshot(base) == before
    convert_checkpoint(base, tmp_path / "OUT", overwrite=True)
    assert snapshot(base) == before


def test_links_need_room_for_what_is_copied_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = write(tmp_path / "base", llava(shards=3, filler=20_000, place="first"))
    total = sum(path.stat().st_size for path in base.glob("model-*"))
    usage = shutil.disk_usage(tmp_path)._replace(free=total)
    monkeypatch.setattr(destination.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match="are needed"):
        convert_checkpoint(base, tmp_path / "OUT")
    with pytest.raises(CheckpointError, match="are needed"):
        plan_conversion(base, tmp_path / "OUT")
    plan_conversion(base, tmp_path / "OUT", link=True)
    convert_checkpoint(base, tmp_path / "OUT", link=True)
    # On another disk no link is possible, and everything needs room.
    monkeypatch.setattr("dcsurgery.surgery.convert.on_same_disk", lambda *_: False)
    with pytest.raises(CheckpointError, match="are needed"):
        convert_checkpoint(base, tmp_path / "OUT2", link=True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("overwrite", [False, True])
def test_outputs_that_are_refused(overwrite: bool, form: str, base: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("base")
    cache = tmp_path / "models--a--b" / "snapshots"
    before = snapshot(tmp_path)
    for output in (base, base / "OUT", tmp_path, tmp_path / "file", tmp_path / "file" / "x",
                   tmp_path / "link", tmp_path / "link" / "OUT", cache / "x"):  # fmt: skip
        for call in (convert_checkpoint, preview):
            with pytest.raises((RequestError, OutputExistsError)):
                call(base, output, form=form, overwrite=overwrite)
            assert snapshot(tmp_path) == before
            assert not list(tmp_path.rglob("*.partial"))


def preview(base: Path, output: Path, *, form: str, overwrite: bool) -> object:
    return plan_conversion(base, output, form=form, overwrite=overwrite)


def test_a_preview_writes_nothing(base: Path, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    found = plan_conversion(base, tmp_path / "a" / "OUT")
    assert snapshot(tmp_path) == before
    assert not (tmp_path / "a").exists()
    done = convert_checkpoint(base, tmp_path / "OUT")
    hashes = {"relies_on", "changed", "delta"}
    assert done.plan.model_dump(exclude=hashes) == found.plan.model_dump(exclude=hashes)


def test_an_existing_output_is_kept_unless_overwritten(base: Path, tmp_path: Path) -> None:
    write(tmp_path / "OUT", {"mine.txt": b"mine"})
    with pytest.raises(OutputExistsError, match="not empty") as caught:
        convert_checkpoint(base, tmp_path / "OUT")
    assert "--overwrite" not in caught.value.hint
    with pytest.raises(OutputExistsError, match=r"did not write: mine\.txt"):
        convert_checkpoint(base, tmp_path / "OUT", overwrite=True)
    assert names(tmp_path / "OUT") == {"mine.txt"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("victim", ["model-00003-of-00003.safetensors", "config.json"])
def test_a_source_that_changes_underway_is_an_error(
    victim: str, form: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = copying.create

    def create(target: Path) -> int:
        with (base / victim).open("ab") as opened:
            opened.write(b" ")
        return real(target)

    monkeypatch.setattr(copying, "create", create)
    write(tmp_path / "OUT", {"old": b"old"})
    record_files(tmp_path / "OUT")
    with pytest.raises(MalformedCheckpointError, match="changed while"):
        convert_checkpoint(base, tmp_path / "OUT", form=form, overwrite=True)
    assert names(tmp_path / "OUT") == {"old"}
    assert not (tmp_path / "OUT.partial").exists()


@pytest.mark.parametrize("form", FORMS)
def test_a_source_that_changes_before_the_writing_is_an_error(
    form: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Between reading the headers and the first byte written.
    real = dcsurgery.surgery.convert.staged_output

    def late(*args: Any, **options: Any) -> Any:
        path = base / "model-00003-of-00003.safetensors"
        path.write_bytes(path.read_bytes() + b" ")
        return real(*args, **options)

    monkeypatch.setattr("dcsurgery.surgery.convert.staged_output", late)
    with pytest.raises(MalformedCheckpointError, match="changed while"):
        convert_checkpoint(base, tmp_path / "OUT", form=form)
    assert not list(tmp_path.glob("OUT*"))


CHILD = """
import json, resource, signal, sys
from dcsurgery.surgery.convert import convert_checkpoint
from dcsurgery.errors import DcSurgeryError
model, output, limit, options = json.loads(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    plan = convert_checkpoint(model, output, **options).plan
except DcSurgeryError as error:
    print(json.dumps({"error": type(error).__name__, "message": error.message}))
else:
    print(plan.model_dump_json())
assert not {"torch", "transformers"} & set(sys.modules)
"""


def child(model: Path, output: Path, limit: int, **options: Any) -> dict[str, Any]:
    """Convert in a fresh process for which a file of `limit` bytes is full."""
    call = json.dumps([str(model), str(output), limit, options])
    done = subprocess.run(
        [sys.executable, "-c", CHILD, call],
        capture_output=True, text=True, cwd=ROOT, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_a_file_that_cannot_grow_is_a_clean_error(tmp_path: Path) -> None:
    base = write(tmp_path / "base", llava(filler=5000))
    found = child(base, tmp_path / "a" / "OUT", limit=100_000)
    assert found["error"] == "CheckpointError"
    assert "no room left while writing model.safetensors" in found["message"]
    assert os.listdir(tmp_path) == ["base"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path | None]:
    """A disk of 1 MB, or None where this user may not mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.getuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_fills_up_is_a_clean_error(
    small_disk: Path | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = write(tmp_path / "base", llava(filler=20_000))
    output = (small_disk or tmp_path) / "OUT"
    if small_disk is None:
        # Without the right to mount: the system's answer is replaced.
        def full(*_: Any) -> int:
            raise OSError(28, os.strerror(28))

        monkeypatch.setattr(copying, "_copy", full)
    else:
        with pytest.raises(CheckpointError, match="MB are free"):
            convert_checkpoint(base, output)
    # Another process fills the disk after our look at it.
    usage = shutil.disk_usage("/")._replace(free=10**12)
    monkeypatch.setattr(destination.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match="no room left while writing"):
        convert_checkpoint(base, output)
    assert not list(output.parent.glob("OUT*"))
    if small_disk is not None:
        convert_checkpoint(base, output, form="delta")
        assert names(output) == {PLAN_FILE, DELTA_FILE, "README.md"}


@pytest.mark.parametrize("shared", [False, True])
def test_a_cache_is_never_written_nor_reachable(shared: bool, tmp_path: Path) -> None:
    files = {k: v for k, v in llava(shards=3).items() if k != "stray.safetensors"}
    cache = tmp_path / "hub"
    base = hub_cache(cache, files, shared=shared)
    before = cache_state(cache)
    done = convert_checkpoint(base, tmp_path / "OUT", link=True)
    assert done.plan.base.commit == "c" * 40
    for path in (tmp_path / "OUT").rglob("*"):
        if path.is_file():
            assert path.stat().st_nlink == 1
            path.write_bytes(b"later training")
    assert cache_state(cache) == before
    for output in (base, base / "OUT", base.parent / "OUT", cache / "models--org--name" / "blobs"):
        with pytest.raises(DcSurgeryError):
            convert_checkpoint(base, output, overwrite=True)
    assert cache_state(cache) == before


def test_a_file_system_without_shared_blocks_gets_copies(base: Path) -> None:
    # /dev/shm is another file system on every Linux: no link, no copy_file_range across.
    place = Path("/dev/shm") / f"dcsurgery-tests-{os.getpid()}"
    try:
        done = convert_checkpoint(base, place / "OUT", link=True)
        assert {item.mode for item in done.transfers} == {"copy", "rewrite", "write"}
        before, after = load(base), load(place / "OUT")
        assert all(same(before[name], after[name]) for name in before.keys() - {WEIGHT})
    finally:
        shutil.rmtree(place, ignore_errors=True)


def test_a_read_only_source_is_enough(base: Path, tmp_path: Path) -> None:
    for path in [*base.rglob("*"), base]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = cache_state(base)
    convert_checkpoint(base, tmp_path / "OUT")
    assert cache_state(base) == before
    assert all(p.stat().st_mode & 0o200 for p in (tmp_path / "OUT").rglob("*"))


def test_raw_files_are_what_the_fuzz_starts_from() -> None:
    blob = llava()["model.safetensors"]
    size = struct.unpack("<Q", blob[:8])[0]
    assert raw_file(blob[8 : 8 + size], blob[8 + size :]) == blob


OPTIONS: dict[str, Callable[[], object]] = {
    "connector": lambda: convert_checkpoint(".", "x", connector="nope"),
    "init": lambda: Connector.of(init="zero"),
    "form": lambda: Connector.of(form="both"),
    "seed": lambda: Connector.of(seed=-1),
    "layers": lambda: Connector.of(layers="a-b"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_that_cannot_be_meant(name: str) -> None:
    with pytest.raises(DcSurgeryError) as caught:
        OPTIONS[name]()
    assert caught.value.hint


@pytest.mark.parametrize("form", FORMS)
def test_memory_stays_flat_however_large_the_projector_is(form: str, tmp_path: Path) -> None:
    # Its two matrices have 67 and 134 MB, the connector's has 134 MB.
    config, shapes = llava_like(width=4096, hidden=8192, depth=4)
    listed = [(name, dtype, shape) for name, (dtype, shape) in shapes.items()]
    base = write_sparse(tmp_path / "base", listed, config)
    tracemalloc.start()
    try:
        convert_checkpoint(base, tmp_path / "OUT", form=form)
        converted = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        checks = structure_checks(open_pair(tmp_path / "OUT", None), deep=True)
        verified = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert all(check.passed for check in checks)
    assert max(converted, verified) < 100e6
