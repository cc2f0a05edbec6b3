"""Through Xet, as the real Hub stores large files: only chunks that changed are sent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.checkpoint.folders import llava, write
from tests.hub import User, running_hub
from tests.hub.xet import XetStore
from tests.publishing.pusher import environment

SEED = """
import sys
from huggingface_hub import HfApi
api = HfApi(token="hf_writer")
api.create_repo("me/seed")
api.upload_folder(repo_id="me/seed", folder_path=sys.argv[1])
"""
BASE = "me/base"


def test_of_a_changed_shard_only_the_changed_chunks_are_stored(tmp_path: Path) -> None:
    files = llava(filler=120_000)
    write(tmp_path / "base", files)
    store = XetStore(tmp_path / "cas")
    with running_hub() as hub:
        hub.users["hf_writer"] = User("me")
        hub.store = store
        env = environment(hub, tmp_path) | {"HF_HUB_DISABLE_XET": "0", "HF_TOKEN": "hf_writer"}

        def run(*command: object) -> None:
            done = subprocess.run(
                [sys.executable, *map(str, command)], env=env, capture_output=True, text=True,
                check=False, timeout=120,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr

        run("-c", SEED, tmp_path / "base")
        hub.add(BASE, files, xet=True)
        before = store.stored()
        assert before > 0.5 * len(files["model.safetensors"])
        run("-m", "dcsurgery", "convert", BASE, "-o", tmp_path / "OUT")
        run("-m", "dcsurgery", "push", tmp_path / "OUT", "me/model", "--no-verify")
        added = store.stored() - before
        repository = hub.repositories["me/model"]
    shard = repository.commits[repository.commit].entries["model.safetensors"]
    assert shard.size > len(files["model.safetensors"])
    assert 0 < added < 0.05 * shard.size
    assert hub.received("/lfs/") == 0
