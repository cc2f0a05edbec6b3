"""In which numbers a training computes: autocast around a base in its own dtype."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from dcsurgery.errors import RequestError
from dcsurgery.training.settings import TrainingSettings

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def wanted_precision(settings: TrainingSettings) -> str:
    """Return bf16, fp16 or fp32: what was asked for, else what the device does well.

    Raises RequestError for fp16 without a GPU, whose gradients would vanish unscaled.
    """
    gpu = torch.cuda.is_available()
    if settings.precision == "fp16" and not gpu:
        raise RequestError("fp16 needs a GPU", hint="use --precision bf16 or fp32")
    if settings.precision != "auto":
        return settings.precision
    if not gpu:
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def arithmetic(settings: TrainingSettings, model: Any) -> str:
    """Return the precision in which a loaded model is trained.

    A model in bf16 or fp16 computes in that, its new weights in fp32 under autocast. Raises
    RequestError when the settings say otherwise.
    """
    precision = wanted_precision(settings)
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    low = next((name for name in ("bf16", "fp16") if DTYPES[name] in kinds), None)
    if low is None or low == precision:
        return precision
    if settings.precision == "auto" and (low == "bf16" or torch.cuda.is_available()):
        return low
    raise RequestError(
        f"the model is loaded in {low} and is to be trained in {precision}",
        hint=f"load it with dtype={DTYPES[precision]}, or use --precision {low}",
    )


def autocast(precision: str) -> AbstractContextManager[Any]:
    """Return the context in which a model of mixed dtypes computes in `precision`."""
    if precision == "fp32":
        return nullcontext()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.autocast(device, DTYPES[precision])
