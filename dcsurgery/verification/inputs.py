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
from dcsurgery.data.processor import FOREIGN, RENAMED
from dcsurgery.errors import DcSurgeryError, VerificationError
from dcsurgery.loading.adopted_models import small_files
from dcsurgery.modeling import register
from dcsurgery.verification.report import Check

if TYPE_CHECKING:
    from torch import Tensor

PLAIN = "pictures resized to a plain square, mean and deviation 0.5: "
NO_PROCESSOR = f"{PLAIN}the base has no processor"
NO_TORCHVISION = f"{PLAIN}the base's image processor needs torchvision, which is not installed"


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

    A base without any image processor, or with one that needs torchvision where there is none, gets
    plain squares instead, which the note says. Raises VerificationError when the base has one that
    cannot be loaded here for another reason.
    """
    if not _has_processor(base):
        return _prepare_plainly(base, anatomy, pictures, NO_PROCESSOR)
    from torch import Tensor

    what = f"the image processor of {base.ref.name} cannot prepare the pictures"
    hint = "features cannot be compared without it; repair preprocessor_config.json in the base"
    with foreign_errors(what, hint):
        processor = _load_processor(base)
        if processor is None:
            return _prepare_plainly(base, anatomy, pictures, NO_TORCHVISION)
        prepared = processor(images=list(pictures), return_tensors="pt")
    tensors = {name: value for name, value in prepared.items() if isinstance(value, Tensor)}
    return Inputs({RENAMED.get(name, name): value for name, value in tensors.items()})


def _load_processor(base: Checkpoint) -> Any:
    """Return the base's image processor, None when only torchvision is missing.

    Code of the repository's own is never run: where a config names some, it is what transformers
    falls back on when its own class cannot be imported.
    """
    from transformers import AutoImageProcessor

    register()
    try:
        with small_files(base) as folder:
            return AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    except (ImportError, ValueError) as error:
        known = any(word in str(error).lower() for word in ("torchvision", "trust_remote_code"))
        if known and find_spec("torchvision") is None:
            return None
        raise


def _prepare_plainly(
    base: Checkpoint, anatomy: Anatomy, pictures: Sequence[Any], note: str
) -> Inputs:
    preprocess = named(anatomy.architecture).preprocess
    if preprocess is not None:
        return Inputs(preprocess(base.config, pictures), note)
    return Inputs(_plain_squares(anatomy, pictures), note)


def _has_processor(base: Checkpoint) -> bool:
    """transformers >= 5 may keep the image processor inside processor_config.json."""
    if "preprocessor_config.json" in base.side_files:
        return True
    if "processor_config.json" not in base.side_files:
        return False
    try:
        processor = json.loads(base.read_file("processor_config.json"))
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
