"""What a training leaves in a model's folder stays there and is named; --keep-all passes it on."""

from __future__ import annotations

from pathlib import Path

import pytest

import dcsurgery
from dcsurgery.checkpoint.leftovers import describe_leftovers, is_leftover
from dcsurgery.errors import CheckpointError
from dcsurgery.tiny import write_tiny_llava
from tests.checkpoint.folders import write

LEFT = (
    ".env", ".env.local", ".netrc", ".DS_Store_", "trainer_state.json", "training_args.bin",
    "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state.pth",
    "rng_state_3.pth", "random_states_0.pkl", "events.out.tfevents.1700000000.host.1.0", "latest",
    "zero_to_fp32.py", "train.log", "nohup.out", "slurm-123.out", ".README.md.swp", "README.md~",
    "#config.json#", "._config.json", "Thumbs.db", "config.json.bak",
    "wandb/run-1/files/output.log", "wandb/latest-run", "runs/Nov01/events.out.tfevents.1.h",
    "checkpoint-500/model.safetensors", "checkpoint-500/config.json", "global_step500/x.pt",
    "logs/a.txt", "mlruns/0/meta.yaml", "sub/__pycache__/x.pyc", ".vscode/settings.json",
    ".ipynb_checkpoints/a.ipynb", "lightning_logs/version_0/hparams.yaml",
)  # fmt: skip
MODEL = (
    "README.md", "LICENSE", "tokenizer.json", "tokenizer.model", "generation_config.json",
    "chat_template.jinja", "additional_chat_templates/tool_use.jinja", "modeling_llava.py",
    "assets/example.png", "preprocessor_config.json", "vocab.json", "dense_connector/plan.json",
    "dense_connector/training.jsonl", "runs.md", "wandb.md", "checkpoints.txt", ".gitattributes",
    "latest.json", "tower/config.json", "added_tokens.json",
)  # fmt: skip


def test_leftovers_are_told_from_a_model() -> None:
    assert [name for name in LEFT if not is_leftover(name)] == []
    assert [name for name in MODEL if is_leftover(name)] == []


def test_they_are_counted_and_named() -> None:
    told = describe_leftovers(["optimizer.pt", "runs/a", "runs/b", *(f"{i}.log" for i in range(6))])
    assert told == (
        "9 files of a training, an editor or the system: "
        "0.log, 1.log, 2.log, 3.log, 4.log, 5.log and 2 more"
    )
    assert describe_leftovers(["runs/a"]).startswith("1 file of")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as transformers' Trainer leaves it, and an editor, and a stranger."""
    folder = write_tiny_llava(tmp_path_factory.mktemp("trainer") / "model")
    return write(folder, {**dict.fromkeys(LEFT, b"x"), "assets/example.txt": b"kept"})


@pytest.mark.parametrize("target", ["run-1", "/etc/hosts", "nowhere", "/etc"])
def test_links_among_them_are_in_nobodys_way(target: str, tmp_path: Path) -> None:
    model = write_tiny_llava(tmp_path / "model")
    (model / "wandb" / "run-1").mkdir(parents=True)
    (model / "wandb" / "latest-run").symlink_to(target)
    dcsurgery.convert(model, tmp_path / "OUT", form="stock")
    assert not (tmp_path / "OUT" / "wandb").exists()
    with pytest.raises(CheckpointError, match="wandb/latest-run"):
        dcsurgery.convert(model, tmp_path / "ALL", form="stock", keep_all=True)
    assert not (tmp_path / "ALL").exists()


def names(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("keep", [False, True])
def test_a_conversion_copies_them_only_when_asked(
    keep: bool, trained: Path, tmp_path: Path
) -> None:
    done = dcsurgery.convert(trained, tmp_path / "OUT", form="stock", keep_all=keep)
    found = names(tmp_path / "OUT")
    assert found & set(LEFT) == (set(LEFT) if keep else set())
    assert "assets/example.txt" in found
    told = [note for note in done.plan.notes if note.startswith("not copied")]
    assert len(told) == (0 if keep else 1)
    assert keep or f"{len(LEFT)} files" in told[0]
    assert dcsurgery.verify(tmp_path / "OUT").passed
    # Nothing is copied into a delta, and nothing is said.
    delta = dcsurgery.convert(trained, tmp_path / "delta", form="delta")
    assert not [note for note in delta.plan.notes if note.startswith("not copied")]


def test_inspect_tells_them_from_side_files(trained: Path) -> None:
    found = dcsurgery.inspect(trained)
    assert set(found.set_aside) == set(LEFT)
    assert not set(found.side_files) & set(LEFT) and not set(found.left_out) & set(LEFT)
