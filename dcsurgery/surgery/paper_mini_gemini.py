"""The reference form of Mini-Gemini: the layout of HuanjinYao/DenseConnector-with-mgm-7B.

What is published of it are config and sizes: mm_hidden_size is three times mm_hidden_size_uni, the
width mining keeps, and no key names the connector. That the columns are [feature + mined | group 1
| group 2], groups as in the LLaVA code, is inferred; tiles were never defined.
"""

from __future__ import annotations

import re
from typing import Any

from dcsurgery.architectures import class_name
from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.errors import PlanError
from dcsurgery.modeling.mini_gemini.original import (
    CHECKPOINT,
    original_config,
    original_names,
    renamed,
    turned,
)
from dcsurgery.originals.adopted import Adopted, Adoption, Presented, present
from dcsurgery.originals.dense import reference_blocks
from dcsurgery.originals.llava import FIRST
from dcsurgery.originals.mini_gemini import UNI
from dcsurgery.surgery.paper_config import CLASSES
from dcsurgery.surgery.plan_file import SurgeryPlan
from dcsurgery.surgery.planned_tensors import Delta, widened

_BACK = turned(CHECKPOINT)
# transformers 5 saves a CLIP tower without "vision_model.", as the model calls it.
_BARE_TOWER = re.compile(r"^model\.vision_tower\.(?!vision_model\.)")
_OWN_FILES = re.compile(r"(?:pre|video_pre)?processor_config\.json|chat_template.*")


def mini_gemini_checkpoint(
    checkpoint: Checkpoint, plan: SurgeryPlan, delta: Delta, tower: str | None = None
) -> Adopted:
    """Return base and connector as one checkpoint of Mini-Gemini's own layout, presented.

    There is an index even for one file: the reference's code reads mining through it. `tower` is
    the name by which that code shall load the CLIP tower. Raises PlanError for a connector that
    the published checkpoint does not have.
    """
    _require_known(plan)
    groups = [
        [_presented(checkpoint, delta, name) for name in file.header.tensors]
        for file in checkpoint.weights
    ]
    source = checkpoint
    if isinstance(checkpoint, Adopted) and checkpoint.adoption is not None:
        source = checkpoint.adoption.source
    width = plan.anatomy.feature_width
    own = source.config
    if source is checkpoint:
        # What configs of the reference's transformers say where a newer one leaves it out.
        *_, defaults = CLASSES.get(plan.anatomy.language_model, ({},))
        own = {**defaults, **original_config(checkpoint.config)}
    config: dict[str, Any] = {
        **own,
        **original_names(plan.anatomy.language_model),
        "mm_hidden_size": width * (1 + len(plan.layout.blocks)),
        UNI: width,
    }
    if tower is not None:
        config["mm_vision_tower"] = tower
    adoption = Adoption(source, "reference", class_name(checkpoint.config))
    side = [name for name in source.side_files if not _OWN_FILES.fullmatch(name)]
    return present(adoption, groups, dict(sorted(config.items())), {}, side, indexed=True)


def _require_known(plan: SurgeryPlan) -> None:
    layout, wanted = plan.layout, reference_blocks("dci", siglip=False)
    plain = layout.pool == 1 and not layout.normed and not layout.mixed
    if layout.kind != "dci" or not plain or layout.groups != wanted:
        raise PlanError(
            "the published Dense Connector with Mini-Gemini averages hidden states 0..11 and "
            f"12..23, this connector is another ({layout.kind} {list(map(list, layout.groups))})",
            hint="use --form delta; the reference form cannot name other states",
        )


def _presented(checkpoint: Checkpoint, delta: Delta, name: str) -> Presented:
    """Return a tensor under the reference's name, as it is stored, replaced or widened."""
    old = renamed(_BARE_TOWER.sub("model.vision_tower.vision_model.", name), _BACK)
    if old is None:
        raise PlanError(
            f"the reference code has no place for the tensor {name[:200]!r}",
            hint="use --form delta",
        )
    if old == FIRST:
        return widened(checkpoint, delta, name, old)
    if name in delta:
        new = delta[name]
        return Presented(old, new.dtype, new.shape, checkpoint, name, new.chunks)
    if isinstance(checkpoint, Adopted):
        own = checkpoint.presented[name]
        return Presented(old, own.dtype, own.shape, own.origin, own.tensor, own.made)
    return Presented.renamed(checkpoint, name, old)
