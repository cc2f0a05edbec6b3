"""A run as a script for a cluster: printed, never submitted."""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from string import Template

from dcsurgery.errors import RequestError
from dcsurgery.recipes.launch import Launch, check_share
from dcsurgery.recipes.schema import Recipe

# GPUs that machines of a cluster usually have, and flavours of `hf jobs` by how many they have.
PER_MACHINE = 8
FLAVORS = {0: "cpu-upgrade", 1: "a100-large", 4: "a100x4", 8: "a100x8"}
# The cost of a recipe is an estimate.
MARGIN = 1.5
# Where `hf jobs` shows the bucket, and what it installs.
BUCKET = "/bucket"
PACKAGES = "'dcsurgery[data] @ git+https://github.com/dcsurgery/dcsurgery' deepspeed"
# Minutes that every job gets: more than its warning, and time to start.
SHORTEST = 15
# Seconds before the end of its time in which a training keeps a checkpoint and ends.
WARNED = 300

SLURM = Template("""\
#!/bin/bash
# $title
# Submit it with sbatch, and again after it stopped: it goes on after its last step and checkpoint.
# Time is what the recipe says ($cost) and half as much again, 15 minutes at least.
# Add your partition and account. All machines must see the work folder and the data.
#SBATCH --job-name=$name
#SBATCH --nodes=$machines
#SBATCH --ntasks-per-node=1
$gpus#SBATCH --time=$time
#SBATCH --signal=INT@$warned
#SBATCH --output=%x-%j.log
#SBATCH --requeue
set -euo pipefail

$run
""")
# A task a machine, on which accelerate starts a process a GPU.
MANY = """\
export FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --kill-on-bad-exit=1 bash -c """
HERE = ' --machine-rank "$SLURM_NODEID" --main-address "$FIRST"'
JOBS = Template("""\
#!/bin/bash
# $title
# Needs `hf auth login`, and a bucket of yours with the data in it, which gets the run too:
#   BUCKET=you/bucket bash THIS_FILE
# Paths begin in the bucket. A recipe that is a FILE must lie in it too, and one of accelerate.
# Run it again after it stopped: it goes on after its last step and checkpoint.
# Time is what the recipe says ($cost) and half as much again, in whole hours.
set -euo pipefail
: "$${BUCKET:?name your bucket: BUCKET=you/bucket}"

hf jobs run --detach --name $name --flavor $flavor --timeout ${hours}h --secrets HF_TOKEN \\
  --volume "hf://buckets/$$BUCKET:$bucket" python:3.12 \\
  bash -c $inside
""")


def slurm_script(recipe: Recipe, words: Sequence[str], launch: Launch) -> str:
    """Return an sbatch script of `dcsurgery recipe run WORDS` with the machines that it needs.

    How many is what `launch` says, else the recipe's cost, eight GPUs to a machine. Raises
    RequestError for processes that machines or batches cannot share.
    """
    count = _gpus(recipe, launch)
    machines = launch.machines if launch.machines > 1 else ceil(count / PER_MACHINE) or 1
    launch = replace(launch, machines=machines)
    command = _command(recipe, words, launch, count)
    run = f"srun {command}"
    if machines > 1:
        run = MANY + shlex.quote(f"exec {command} --machines {machines}{HERE}")
    minutes = max(SHORTEST, ceil(recipe.cost.hours * MARGIN * 60))
    return SLURM.substitute(
        _told(recipe),
        machines=machines,
        gpus=f"#SBATCH --gpus-per-node={count // machines}\n" if count else "",
        time=f"{minutes // 60:02}:{minutes % 60:02}:00",
        warned=WARNED,
        run=run,
    )


def jobs_script(
    recipe: Recipe, words: Sequence[str], launch: Launch, paths: Sequence[str] = ()
) -> str:
    """Return a script that submits `dcsurgery recipe run WORDS` with `hf jobs run`.

    Data and run lie in a bucket, whose name the script asks for. Raises RequestError for more than
    one machine, as many GPUs as no flavour has, and those of the words' `paths` that leave the
    bucket.
    """
    count = _gpus(recipe, launch)
    if launch.machines > 1 or count not in FLAVORS:
        raise RequestError(
            f"a job has {', '.join(str(n) for n in FLAVORS if n)} GPUs on one machine, not {count} "
            f"on {max(launch.machines, ceil(count / PER_MACHINE))}",
            hint="--processes 8, or --slurm for several machines",
        )
    command = _command(recipe, words, launch, count)
    for path in paths:
        place = posixpath.normpath(posixpath.join(BUCKET, path))
        if place != BUCKET and not place.startswith(f"{BUCKET}/"):
            raise RequestError(
                f"{path} is no path in the bucket, and a job sees nothing else",
                hint="put it into the bucket, and say where it lies there: data, not /home/me/data",
            )
    setup = f"pip install {PACKAGES} && cd {BUCKET}"
    hours = ceil(recipe.cost.hours * MARGIN)
    inside = shlex.quote(f"{setup} && exec {command}")
    return JOBS.substitute(
        _told(recipe), bucket=BUCKET, flavor=FLAVORS[count], hours=hours, inside=inside
    )


def _gpus(recipe: Recipe, launch: Launch) -> int:
    """Return how many GPUs a run has: as told, as its stages say, else as its cost does."""
    stated = max((stage.processes for stage in recipe.finetune), default=1)
    found = re.match(r"(\d+) x ", recipe.cost.gpu)
    return launch.processes or (stated if stated > 1 else int(found[1]) if found else 0)


def _command(recipe: Recipe, words: Sequence[str], launch: Launch, count: int) -> str:
    wanted = replace(launch, processes=max(1, count))
    for number, stage in enumerate(recipe.finetune, start=1):
        check_share(stage, wanted, f"finetune-{number}")
    more = ["--processes", str(count)] if count > 1 and launch.config is None else []
    return shlex.join(["dcsurgery", "recipe", "run", *words, *more])


def _told(recipe: Recipe) -> dict[str, str]:
    cost = f"{recipe.cost.hours:g} h on {recipe.cost.gpu}"
    found = {"title": " ".join(recipe.title.split()), "name": recipe.name, "cost": cost}
    return {key: re.sub(r"[^\x20-\x7e]", "?", text) for key, text in found.items()}
