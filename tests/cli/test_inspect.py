from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dcsurgery.surgery.inspection import inspect_checkpoint
from dcsurgery.tiny.original_llava import OriginalSizes, write_original_llava, write_tower

from .conftest import Run


def test_inspect_says_what_is_inside(run: Run, model: Path) -> None:
    result = run("inspect", model)
    assert result.exit_code == 0
    text = result.stdout
    for fact in (
        "LlavaForConditionalGeneration",
        "clip_vision_model, 24 blocks of width 16",
        "32 x 32 pixels in patches of 4: 8 x 8 grid",
        "1 prefix token before the patch tokens; the first 1 dropped",
        "hidden state 23 of 0..24",
        "multi_modal_projector.linear_1, 16 -> 24",
        "llama, 64 image tokens for one image",
        "3 files, 374 kB, 80,584 parameters",
        "model-00003-of-00003.safetensors",
    ):
        assert fact in text


def test_inspect_gives_the_exact_cost_of_each_connector(run: Run, model: Path) -> None:
    rows = [line.split() for line in run("inspect", model).stdout.split("\n")]
    # By hand: D reads 2 blocks of 16 channels into 24; the fold adds 23 states to today's one;
    # fp32 has 4 bytes; two FLOPs per multiply-add for 64 tokens.
    delta, stock = 24 * 2 * 16, 24 * 23 * 16
    assert ["dci", "stock", f"+{stock:,}", "+35.3", "kB", "+1.13", "MFLOP", "64"] in [
        row[:8] for row in rows
    ]
    assert ["delta", f"+{delta}", "+3.07", "kB", "+98.3", "kFLOP", "64"] in rows
    assert (4 * stock, 2 * 64 * stock, 4 * delta, 2 * 64 * delta) == (35328, 1130496, 3072, 98304)


def test_inspect_draws_the_wiring_of_every_connector_that_fits(run: Run, model: Path) -> None:
    text = run("inspect", model).stdout
    assert "+ dci   ├──────────┤" in text and "or sci " in text and "▼" in text


def test_inspect_is_plain_text_of_80_columns_in_a_pipe(spawn: Run, model: Path) -> None:
    done = spawn("inspect", "my-llava", cwd=model.parent)
    assert done.returncode == 0
    assert "\x1b" not in done.stdout + done.stderr
    assert max(map(len, done.stdout.split("\n"))) <= 80
    assert done.stderr == "\nnext:\n  dcsurgery convert my-llava -o OUT\n"


@pytest.mark.parametrize("quiet", ["-q", "--quiet"])
def test_quiet_leaves_the_advice_out(run: Run, model: Path, quiet: str) -> None:
    result = run("inspect", model, quiet)
    assert result.stderr == "" and "vision tower" in result.stdout


def test_inspect_json_is_the_inspection_and_nothing_else(run: Run, model: Path) -> None:
    result = run("inspect", model, "--json")
    assert result.stderr == ""
    answer = json.loads(result.stdout)
    assert answer == json.loads(json.dumps(inspect_checkpoint(model).to_dict()))
    assert answer["schema_version"] == 1
    assert answer["anatomy"]["feature_layer"] == 23 and answer["anatomy"]["tower"]["grid"] == 8
    axes = {offer["kind"]: offer["layout"]["axis"] for offer in answer["offers"]}
    assert axes == {"dci": "channel", "sci": "channel", "sti": "token", "mix": "channel"}


def test_a_connector_is_offered_in_the_forms_it_has(model: Path) -> None:
    offers = {offer.kind: offer for offer in inspect_checkpoint(model).offers}
    costs = {
        kind: {cost.form: (cost.new_parameters, cost.extra_bytes, cost.image_tokens)}
        for kind, offer in offers.items()
        for cost in offer.costs
        if cost.form == "delta"
    }
    # Two states, each averaged over 8 of 64 tokens; 24 fp32 logits beside the matrix.
    assert costs["sti"] == {"delta": (0, 0, 64 + 2 * 8)}
    assert costs["mix"] == {"delta": (768 + 24, 4 * (768 + 24), 64)}
    assert [cost.form for cost in offers["sti"].costs] == ["delta"]
    assert [cost.form for cost in offers["dci"].costs] == ["stock", "delta", "portable"]


def test_inspect_of_a_converted_model_offers_no_second_connector(
    run: Run, model: Path, tmp_path: Path
) -> None:
    run("convert", model, "-o", tmp_path / "out")
    result = run("inspect", tmp_path / "out")
    assert "hidden state 0..23 of 0..24" in result.stdout
    assert "connectors that fit" not in result.stdout and "left out" not in result.stdout
    assert re.search(r"today +├─{22}┤ +0\.\.23", result.stdout)
    assert f"dcsurgery verify {tmp_path / 'out'}" in result.stderr


def test_a_connector_that_does_not_fit_is_listed_with_its_reason(run: Run, tmp_path: Path) -> None:
    from dcsurgery.tiny import write_tiny_llava

    write_tiny_llava(tmp_path / "shallow", "clip", depth=2, feature_layer=0, processor=False)
    text = run("inspect", tmp_path / "shallow").stdout
    assert re.search(r"sci, sti +does not fit: feature layer 0 leaves no", text)


def test_an_original_s_own_weights_are_not_left_out(run: Run, tmp_path: Path) -> None:
    sizes = OriginalSizes(depth=4)
    tower = write_tower(tmp_path / "clip", sizes)
    write_original_llava(tmp_path / "m", sizes, str(tower), pickled=True, shards=2)
    (tmp_path / "m" / "stray.bin").write_bytes(b"x")
    found = run("inspect", tmp_path / "m")
    assert found.exit_code == 0, found.stderr
    line = next(line for line in found.stdout.splitlines() if "left out" in line)
    assert "stray.bin" in line and "pytorch_model" not in line and "model-" not in line
