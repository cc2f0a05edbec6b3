"""Make base LLaVAs from nothing: towers, one language model for all, projectors between them.

    python -m tests.demo.full.pretrain --seeds 1 2 3 --language-seed 2 --output baselines

made the embedded ones (with --dtype float16), in about five minutes of one core each.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcsurgery.demo.checkpoints import write_baseline
from dcsurgery.tiny.llava import HUB_NAMES

FACTS = "pretraining.json"


def pretrain(seed: int, folder: Path, language_folder: Path, dtype: str = "float32") -> None:
    """Write a base LLaVA with a fresh tower into `folder`, beside it how well its parts learnt.

    Shares of right answers in validation: "tower" names digits per occupied patch token,
    "language" answers about symbols, "base" answers about pictures.
    """
    from tests.demo.full.base import train_base
    from tests.demo.full.tower import train_tower

    tower, named = train_tower(seed)
    language, told = _read_language(language_folder)
    model, seen = train_base(seed, tower, language)
    write_baseline(folder, hub_named(model.state_dict()), dtype)
    _write_facts(
        folder,
        {
            "seed": seed,
            "language_seed": told["seed"],
            "tower": round(named, 4),
            "language": told["share"],
            "base": round(seen, 4),
        },
    )


def hub_named(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's state by the names of published checkpoints."""
    names = {}
    for module in weights:
        pattern, replacement = next(pair for pair in HUB_NAMES if re.match(pair[0], module))
        names[re.sub(pattern, replacement, module)] = weights[module]
    return names


def ensure_language(seed: int, folder: Path) -> None:
    """Pre-train a language model into `folder` unless it is there; it appears whole."""
    from tests.demo.full.language import train_language

    if folder.exists():
        return
    partial = folder.with_name(f"{folder.name}.{os.getpid()}")
    language, share = train_language(seed)
    language.save_pretrained(partial)
    _write_facts(partial, {"seed": seed, "share": round(share, 4)})
    try:
        partial.rename(folder)
    except OSError:
        # Another worker made the same one meanwhile.
        if not folder.is_dir():
            raise


def _read_language(folder: Path) -> tuple[Any, dict[str, Any]]:
    from transformers import LlamaForCausalLM

    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    return LlamaForCausalLM.from_pretrained(folder), facts


def _write_facts(folder: Path, facts: dict[str, Any]) -> None:
    (folder / FACTS).write_text(json.dumps(facts) + "\n", encoding="utf-8")


def main() -> None:
    """Train one base for every seed."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--language-seed", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True, help="gets tower-SEED folders")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    wanted.output.mkdir(parents=True, exist_ok=True)
    language = wanted.output / "language"
    ensure_language(wanted.language_seed, language)
    for seed in wanted.seeds:
        folder = wanted.output / f"tower-{seed}"
        if not (folder / FACTS).is_file():
            pretrain(seed, folder, language, wanted.dtype)
            print((folder / FACTS).read_text(encoding="utf-8"), end="", flush=True)


if __name__ == "__main__":
    main()
