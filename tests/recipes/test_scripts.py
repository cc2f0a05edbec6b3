"""`recipe run --slurm` and `--hf-jobs`: scripts that bash takes, and that start what they say."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from dcsurgery.cli.main import app
from dcsurgery.recipes.catalog import shipped

ROOT = Path(__file__).parent.parent.parent
STRANGE = ("--set", 'title=it\'s $HOME; "x"', "--work-dir", "my run")
# A program that says how it was called, for every program that a script starts.
ECHO = '#!/bin/bash\nprintf "%s\\0" "$(basename "$0")" "$@" >> "$CALLS"\nprintf "\\n" >> "$CALLS"\n'
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
for node in $(seq 0 $((NODES - 1))); do SLURM_NODEID=$node "$@"; done
"""


def script(*words: str) -> str:
    done = CliRunner().invoke(app, ["recipe", "run", *words])
    assert done.exit_code == 0, done.output
    return done.stdout


def carry_out(text: str, place: Path, **env: str) -> list[list[str]]:
    """Run a script with programs that only note their words; return these, call by call."""
    programs = place / "bin"
    programs.mkdir()
    told = {
        "dcsurgery": ECHO,
        "hf": ECHO,
        "srun": SRUN,
        "scontrol": "#!/bin/bash\necho one\necho two\n",
    }
    for name, content in told.items():
        (programs / name).write_text(content)
        (programs / name).chmod(0o755)
    (place / "run.sh").write_text(text)
    path = f"{programs}:{os.environ['PATH']}"
    calls = {"CALLS": str(place / "calls"), "PATH": path, "SLURM_JOB_NODELIST": "n[1-2]", **env}
    subprocess.run(["bash", place / "run.sh"], env={**os.environ, **calls}, check=True)
    lines = (place / "calls").read_text().split("\0\n")
    return [line.split("\0") for line in lines if line]


def parse(words: list[str]) -> dict[str, Any]:
    """The options of a `dcsurgery recipe run`, as the program itself takes them."""
    assert words[:3] == ["dcsurgery", "recipe", "run"]
    group: Any = get_command(app)
    command = group.commands["recipe"].commands["run"]
    found: dict[str, Any] = command.make_context("run", words[3:]).params
    return found


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_recipe_s_script_is_one_that_bash_takes(name: str) -> None:
    text = script(name, "--slurm")
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    assert text.startswith("#!/bin/bash\n") and text.endswith("\n")
    headers = re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", text, re.M)
    assert {"nodes", "time", "signal"} <= {key for key, _ in headers}


def test_one_machine(tmp_path: Path) -> None:
    text = script("llava-1.5-7b-dci", "--data-dir", "playground", "--slurm", *STRANGE)
    assert "#SBATCH --gpus-per-node=8\n" in text and "#SBATCH --nodes=1\n" in text
    assert "#SBATCH --time=20:15:00\n" in text, "13.5 h and half as much again"
    (words,) = carry_out(text, tmp_path, NODES="1")
    found = parse(words)
    assert found["processes"] == 8 and found["machines"] == 1
    assert found["changes"] == [STRANGE[1]] and str(found["work_dir"]) == STRANGE[3]
    assert str(found["data_dir"]) == "playground"


def test_several_machines_have_a_rank_each_and_know_the_first(tmp_path: Path) -> None:
    text = script("llava-next-34b-dci-lora", "--slurm", *STRANGE)
    assert "#SBATCH --nodes=4\n" in text and "#SBATCH --gpus-per-node=8\n" in text
    calls = [parse(words) for words in carry_out(text, tmp_path, NODES="4")]
    assert [found["machine_rank"] for found in calls] == [0, 1, 2, 3]
    for found in calls:
        assert (found["processes"], found["machines"]) == (32, 4)
        assert found["main_address"] == "one" and found["changes"] == [STRANGE[1]]


def test_what_is_told_beats_the_recipe_s_cost(tmp_path: Path) -> None:
    text = script("llava-1.5-7b-dci", "--slurm", "--processes", "16", "--machines", "4")
    assert "--nodes=4\n" in text and "--gpus-per-node=4\n" in text
    file = tmp_path / "mine.yaml"
    file.write_text("{}")
    config = script("llava-1.5-7b-dci", "--slurm", "--accelerate-config", str(file))
    assert "--processes" not in config and f"--accelerate-config {file}" in config
    assert "gpus" not in re.sub(r"#.*says.*", "", script("tiny", "--slurm"))
    uneven = CliRunner().invoke(app, ["recipe", "run", "tiny", "--slurm", "--processes", "3"])
    assert uneven.exit_code == 1 and "evenly" in uneven.stderr


def test_hf_jobs_are_asked_for_with_options_that_hf_has(tmp_path: Path) -> None:
    text = script("llava-1.5-7b-dci", "--hf-jobs", *STRANGE)
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    assert subprocess.run(["bash", "-c", text], capture_output=True).returncode, "without a bucket"
    (words,) = carry_out(text, tmp_path, BUCKET="me/run", NODES="1")
    assert words[:3] == ["hf", "jobs", "run"]
    hf = Path(sys.executable).with_name("hf")
    helped = subprocess.run([hf, "jobs", "run", "--help"], capture_output=True, text=True)
    asked = {word for word in words[: words.index("python:3.12")] if word.startswith("--")}
    assert asked <= set(re.findall(r"--[a-z-]+", helped.stdout)) and "--secrets" in asked
    flavors = re.sub(r"\s", "", helped.stdout)
    assert words[words.index("--flavor") + 1] == "a100x8" and "a100x8" in flavors
    inside = shlex.split(words[-1])
    found = parse(inside[inside.index("dcsurgery") :])
    assert found["processes"] == 8 and found["changes"] == [STRANGE[1]]
    refused = CliRunner().invoke(app, ["recipe", "run", "llava-next-34b-dci-lora", "--hf-jobs"])
    assert refused.exit_code == 1 and "not 32 on 4" in refused.stderr
    told = script("tiny", "--hf-jobs", "--json")
    assert json.loads(told)["script"].startswith("#!/bin/bash")


@pytest.mark.parametrize("name", sorted(shipped()))
def test_a_job_lasts_longer_than_its_warning(name: str) -> None:
    text = script(name, "--slurm")
    hours, minutes = re.findall(r"--time=(\d+):(\d\d):00\n", text)[0]
    warned = int(re.findall(r"--signal=INT@(\d+)\n", text)[0])
    assert int(hours) * 3600 + int(minutes) * 60 > 2 * warned


def test_a_job_of_the_hub_installs_what_the_readme_does_and_sees_the_bucket_alone(
    tmp_path: Path,
) -> None:
    (words,) = carry_out(script("tiny", "--hf-jobs"), tmp_path, BUCKET="me/run")
    site = re.findall(r"git clone (\S+)", (ROOT / "README.md").read_text())[0]
    setup = shlex.split(words[-1].partition(" && ")[0])
    assert setup == ["pip", "install", f"dcsurgery[data] @ git+{site}", "deepspeed"]
    for option in ("--data-dir", "--work-dir", "--accelerate-config"):
        for path in ("/home/me/my data", "../data"):
            refuse(f"{path} is no path in the bucket", "--hf-jobs", option, path)
        assert "/bucket/a" in script("tiny", "--hf-jobs", option, "/bucket/a")
    mine = tmp_path / "mine.yaml"
    mine.write_text((ROOT / "recipes/tiny.yaml").read_text())
    refuse(f"{mine} is no path in the bucket", "--hf-jobs", name=str(mine))


def refuse(why: str, *words: str, name: str = "tiny") -> None:
    done = CliRunner().invoke(app, ["recipe", "run", name, *words])
    assert done.exit_code == 1 and done.stdout == "" and "hint: " in done.stderr
    assert why in " ".join(done.stderr.split()), done.stderr


@pytest.mark.parametrize("kind", ["--slurm", "--hf-jobs"])
def test_what_the_script_decides_cannot_be_told(kind: str) -> None:
    refuse("one kind of cluster", "--slurm", "--hf-jobs")
    refuse("itself which machine is which", kind, "--main-address", "h")
    refuse("--dry-run is done here", kind, "--dry-run")
    refuse("--smoke is done here", kind, "--smoke", name="llava-1.5-7b-dci")
    refuse("there is no step 'nonsense'", kind, "--until", "nonsense")
    refuse("there is no step 'nonsense'", kind, "--until", "nonsense", name="table-1-ablation")
    refuse("there is no file nofile.yaml", "--slurm", "--accelerate-config", "nofile.yaml")


def test_nothing_is_written_or_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    script("tiny", "--slurm")
    assert not list(tmp_path.iterdir())
