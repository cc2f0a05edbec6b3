"""Template: a row for `table.ARCHITECTURES`; docs/adding-an-architecture.md explains it."""

from __future__ import annotations

from dcsurgery.architectures import _steps
from dcsurgery.architectures._wiring import Wiring
from dcsurgery.architectures.table import row

TEMPLATE = row(
    "family",
    "FamilyForConditionalGeneration",
    "organisation/model organisation/larger-model",
    "SigLIP",
    Wiring(
        site="multi_modal_projector.linear_1",
        text="llama",
        towers={"siglip_vision_model": 0},
        vision_config={"image_size": 384, "patch_size": 14},
        window="downsample_factor",
    ),
    steps=_steps.shuffle,
)
