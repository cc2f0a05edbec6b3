"""`export --form gguf` writes what llama.cpp reads, and refuses what it would compute otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

import dcsurgery
from dcsurgery.cli.main import app
from dcsurgery.tiny import write_tiny_llava
from tests.gguf_files import write_gguf
from tests.surgery import random_matrix, write_delta
from tests.tiny.qwen2_vl import write_tiny_qwen2_vl

gguf = pytest.importorskip("gguf")


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings and tensors of a file."""
    reader = gguf.GGUFReader(path)
    tensors = {item.name: item for item in reader.tensors}
    return {key: field.contents() for key, field in reader.fields.items()}, tensors


def same(found: Path, wanted: Path) -> None:
    (settings, tensors), (others, expected) = read(found), read(wanted)
    assert settings == others
    assert tensors.keys() == expected.keys()
    for name, item in tensors.items():
        assert np.array_equal(item.data, expected[name].data), name


def test_the_file_is_the_one_a_second_writer_makes(base: Path, tmp_path: Path) -> None:
    write_gguf(base, tmp_path / "text.gguf", tmp_path / "mmproj.gguf")
    done = dcsurgery.export_gguf(base, tmp_path / "out", outtype="f32")
    assert done.layers == (3,) and not done.problems
    same(done.projector, tmp_path / "mmproj.gguf")


def test_a_trained_delta_is_folded_on_the_way(trained: Path, tmp_path: Path) -> None:
    dcsurgery.export(trained, tmp_path / "stock")
    write_gguf(tmp_path / "stock", tmp_path / "text.gguf", tmp_path / "mmproj.gguf")
    for model in (trained, tmp_path / "stock"):
        done = dcsurgery.export_gguf(model, tmp_path / f"out-{model.name}", outtype="f32")
        assert done.layers == (0, 1, 2, 3)
        same(done.projector, tmp_path / "mmproj.gguf")


def test_a_trained_language_model_is_exported_first(base: Path, tmp_path: Path) -> None:
    write_delta(base, tmp_path / "full", random_matrix(dcsurgery.plan(base, form="delta").plan))
    plain = dcsurgery.export_gguf(tmp_path / "full", tmp_path / "plain")
    assert plain.commands[0].startswith(f"python convert_hf_to_gguf.py {base} ")
    name = "language_model.model.norm.weight"
    plan_file = tmp_path / "full" / "dense_connector" / "plan.json"
    plan = json.loads(plan_file.read_text())
    tensors = load_file(tmp_path / "full" / "dense_connector" / "model.safetensors")
    found = load_file(base / "model.safetensors")[name] * 2
    save_file({**tensors, name: found}, tmp_path / "full" / "dense_connector" / "model.safetensors")
    record = next(item for item in plan["delta"])
    plan["delta"].append({**record, "name": name, "shape": list(found.shape), "sha256": None})
    plan_file.write_text(json.dumps(plan))
    done = dcsurgery.export_gguf(tmp_path / "full", tmp_path / "out")
    assert done.commands[0].startswith(f"dcsurgery export {tmp_path / 'full'} ")
    assert done.commands[1].startswith(f"python convert_hf_to_gguf.py {tmp_path / 'out'}-stock ")


@pytest.mark.parametrize("outtype", ["f16", "q8_0"])
def test_smaller_types_are_close(outtype: str, tmp_path: Path) -> None:
    """Widths of 32 and more are what q8_0 packs; vectors and positions keep float32."""
    base = write_tiny_llava(tmp_path / "base", "siglip", width=32)
    exact = read(dcsurgery.export_gguf(base, tmp_path / "f32", outtype="f32").projector)[1]
    found = read(dcsurgery.export_gguf(base, tmp_path / outtype, outtype=outtype).projector)[1]
    kinds = {name: item.tensor_type.name for name, item in found.items()}
    assert kinds["mm.0.weight"] == outtype.upper()
    assert kinds["mm.0.bias"] == kinds["v.position_embd.weight"] == "F32"
    for name, item in found.items():
        values = gguf.quants.dequantize(item.data, item.tensor_type)
        wanted = exact[name].data
        limit = (0.01 if outtype == "q8_0" else 0.001) * np.abs(wanted).max()
        assert np.abs(values.reshape(wanted.shape) - wanted).max() <= limit, name


def edited(base: Path, target: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    target.mkdir()
    for path in base.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    config = json.loads((base / "config.json").read_text())
    edit(config)
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("vision_feature_select_strategy", "default", "drops the first patch"),
        ("projector_hidden_act", "relu", "activation is relu"),
    ],
)
def test_what_the_engine_computes_otherwise_is_refused(
    setting: str, value: str, words: str, base: Path, tmp_path: Path
) -> None:
    model = edited(base, tmp_path / "model", lambda config: config.update({setting: value}))
    result = CliRunner().invoke(
        app, ["export", str(model), "-o", str(tmp_path / "out"), "--form", "gguf"]
    )
    assert result.exit_code == 1 and words in result.stderr and "--force" in result.stderr
    assert not (tmp_path / "out").exists()
    forced = dcsurgery.export_gguf(model, tmp_path / "out", force=True)
    assert words in forced.problems[0]


def test_a_clip_tower_is_refused_with_the_upstream_reason(tmp_path: Path) -> None:
    base = write_tiny_llava(tmp_path / "clip")
    with pytest.raises(dcsurgery.errors.PlanError, match=r"class token .*llama\.cpp/issues/25814"):
        dcsurgery.export_gguf(base, tmp_path / "out")
    forced = dcsurgery.export_gguf(base, tmp_path / "out", force=True)
    assert {"v.class_embd", "v.pre_ln.weight"} <= read(forced.projector)[1].keys()


def test_picture_settings_are_read_where_transformers_5_keeps_them(
    base: Path, tmp_path: Path
) -> None:
    model = edited(base, tmp_path / "model", lambda config: None)
    settings = json.loads((model / "preprocessor_config.json").read_text())
    (model / "preprocessor_config.json").unlink()
    with pytest.raises(dcsurgery.errors.PlanError, match="no image processor"):
        dcsurgery.export_gguf(model, tmp_path / "out")
    inside = {"image_processor": {**settings, "image_mean": [0.1, 0.2, 0.3]}}
    (model / "processor_config.json").write_text(json.dumps(inside))
    found = read(dcsurgery.export_gguf(model, tmp_path / "out").projector)[0]
    assert found["clip.vision.image_mean"] == pytest.approx([0.1, 0.2, 0.3])


def test_other_families_and_options_are_refused(base: Path, tmp_path: Path) -> None:
    other = write_tiny_qwen2_vl(tmp_path / "qwen")
    run = CliRunner()
    out = ["-o", str(tmp_path / "out")]
    found = run.invoke(app, ["export", str(other), *out, "--form", "gguf"])
    assert found.exit_code == 1 and "no mmproj of this kind" in found.stderr
    for option in ("--link", "--keep-lora", "--dry-run"):
        found = run.invoke(app, ["export", str(base), *out, "--form", "gguf", option])
        assert found.exit_code == 1 and f"{option} is not for" in found.stderr
    found = run.invoke(app, ["export", str(base), *out, "--force"])
    assert found.exit_code == 1 and "--force is for --form gguf" in found.stderr
    found = run.invoke(app, ["export", str(base), *out, "--form", "gguf", "--outtype", "q4"])
    assert found.exit_code == 1 and "f32, f16, q8_0" in found.stderr


def test_the_command_says_what_comes_next(base: Path, tmp_path: Path) -> None:
    arguments = ["export", str(base), "-o", str(tmp_path / "out"), "--form", "gguf"]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0, found.output
    assert "convert_hf_to_gguf.py" in found.stderr and "--engine llama.cpp" in found.stderr
    again = CliRunner().invoke(app, [*arguments, "--overwrite", "--json"])
    assert json.loads(again.stdout)["tensors"] == len(read(tmp_path / "out/mmproj-f16.gguf")[1])
