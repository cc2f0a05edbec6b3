"""Pictures as the vision tower wants them, prepared as the base itself would."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import named
from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.errors import DcSurgeryError, VerificationError
from dcsurgery.verification.report import Check

if TYPE_CHECKING:
    from torch import Tensor

PLAIN = "pictures resized to a plain square, mean and deviation 0.5: the base has no processor"
NO_TORCHVISION = PLAIN.replace("has no processor", "has one that needs torchvision, not installed")
# Whatever a library may raise over a config that only its own code understands.
FOREIGN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Inputs:
    """`values` are the vision tower's keyword arguments; `note` says what is unusual about them."""

    values: dict[str, Tensor]
    note: str = ""

    def explain(self, check: Check) -> Check:
        """Return the check with the note in what it measured."""
        return replace(check, measured=f"{check.measured}; {self.note}") if self.note else check


@contextmanager
def foreign_errors(what: str, hint: str) -> Iterator[None]:
    """Turn an exception of another library into a VerificationError: `what` failed, because."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    except (*FOREIGN, StrictDataclassError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise VerificationError(f"{what} ({reason})", hint=hint) from error


def prepare_inputs(base: Checkpoint, anatomy: Anatomy, pictures: Sequence[Any]) -> Inputs:
    """Return PIL images prepared by the base's own image processor, as pixel_values and so on.

    A base without any image processor, or with one that exists for torchvision alone where that is
    not installed, gets plain squares instead, which the note says. Raises VerificationError when
    the base has one that cannot be loaded for another reason.
    """
    if not _has_processor(base):
        return Inputs(_without_processor(base, anatomy, pictures), PLAIN)
    from torch import Tensor
    from transformers import AutoImageProcessor

    what = f"the image processor of {base.ref.name} cannot prepare the pictures"
    hint = "features cannot be compared without it; repair preprocessor_config.json in the base"
    with foreign_errors(what, hint):
        try:
            processor = AutoImageProcessor.from_pretrained(base.ref.folder)
        except (ImportError, ValueError) as error:
            if find_spec("torchvision") or "torchvision" not in str(error).lower():
                raise
            return Inputs(_without_processor(base, anatomy, pictures), NO_TORCHVISION)
        prepared = processor(images=list(pictures), return_tensors="pt")
    return Inputs({name: value for name, value in prepared.items() if isinstance(value, Tensor)})


def _without_processor(
    base: Checkpoint, anatomy: Anatomy, pictures: Sequence[Any]
) -> dict[str, Tensor]:
    preprocess = named(anatomy.architecture).preprocess
    if preprocess is not None:
        return preprocess(base.config, pictures)
    return _plain_squares(anatomy, pictures)


def _has_processor(base: Checkpoint) -> bool:
    """transformers >= 5 may keep the image processor inside processor_config.json."""
    if "preprocessor_config.json" in base.side_files:
        return True
    if "processor_config.json" not in base.side_files:
        return False
    try:
        processor = json.loads(base.path("processor_config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return True
    return not isinstance(processor, dict) or "image_processor" in processor


def _plain_squares(anatomy: Anatomy, pictures: Sequence[Any]) -> dict[str, Tensor]:
    import numpy as np
    import torch

    tower = anatomy.tower
    side = tower.grid * tower.patch_size
    if side == 0:
        raise DcSurgeryError(
            f"the tower's patches of {tower.patch_size} pixels are larger than its pictures of "
            f"{tower.image_size}",
            hint="compare vision_config in config.json with the original model",
        )
    arrays = [np.asarray(item.resize((side, side)), np.float32) / 127.5 - 1 for item in pictures]
    values = {"pixel_values": torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()}
    if anatomy.variable_resolution:
        values["image_sizes"] = torch.tensor([[side, side]] * len(arrays))
    return values
