"""Numeric checks: image features without the language model, and logits of the whole model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcsurgery.architectures import available
from dcsurgery.connectors.attach import Arrange, find_module
from dcsurgery.errors import DcSurgeryError, VerificationError
from dcsurgery.loading import install, load_stock, quiet_transformers, read_delta
from dcsurgery.plan import CONNECTOR_TENSOR, SurgeryPlan
from dcsurgery.verification.images import open_images
from dcsurgery.verification.report import Check
from dcsurgery.verification.structure import Pair

# Allowed difference between fold and branch, relative to the largest value. A fold rounds W / M
# once to the file's dtype: bf16 keeps 8 bits, fp16 11; at zero nothing is rounded and only the
# order of the fp32 sum differs.
FOLD_LIMITS = {"F64": 1e-5, "F32": 1e-5, "F16": 2e-3, "BF16": 1e-2}
LOGIT_LIMITS = {"F64": 1e-5, "F32": 1e-5, "F16": 2e-2, "BF16": 1e-1}
# A state that overflows turns into NaN even under a zero matrix (0 * inf): fp16 is the narrow one.
LARGEST = {"F16": 65504.0}
TEXT_IDS = (5, 6, 7, 8, 9, 10, 11, 12)


def feature_checks(pair: Pair, images: Sequence[Path]) -> list[Check]:
    """Compare image features of base, branch and (stock form) fold on real images.

    Only vision tower, connector and projector compute, one model at a time; the language model's
    blocks are never read.
    """
    inputs = prepare_images(pair, open_images(images))
    with torch.no_grad():
        model = load_vision(pair.base.ref.folder)
        weight = read_delta(pair.plan, pair.folder)[CONNECTOR_TENSOR]
        zero = not weight.any().item() and len(pair.plan.delta) == 1
        base = image_features(model, inputs)
        install(model, pair.plan, pair.folder)
        checks = [_finite_check(model, pair.plan, inputs)]
        if zero:
            branch = image_features(model, inputs)
            checks.append(_equal_check("features: branch against base", branch, base))
        model.float()
        branch = image_features(model, inputs)
        checks.append(_formula_check(model, pair.plan, inputs, branch))
        del model
        if pair.stock is not None:
            fold = image_features(load_vision(pair.stock.ref.folder).float(), inputs)
            limit = 1e-5 if zero else FOLD_LIMITS[pair.plan.read_anatomy().dtype]
            checks.append(_close_check("features: fold against branch", fold, branch, limit))
    return checks


def logit_checks(pair: Pair, images: Sequence[Path]) -> list[Check]:
    """Compare logits of base, branch and (stock form) fold on one image and a few text tokens."""
    inputs = prepare_images(pair, open_images(images)[:1])
    plan = pair.plan
    with torch.no_grad():
        model = load_stock(pair.base.ref.folder)
        count = image_features(model, inputs).shape[0]
        token = getattr(model.config, "image_token_id", None) or model.config.image_token_index
        ids = torch.tensor([[*TEXT_IDS[:3], *[token] * count, *TEXT_IDS[3:]]])
        base = _logits(model, inputs, ids)
        install(model, plan, pair.folder)
        branch = _logits(model, inputs, ids)
        zero = not model.dense_connector.weight.any().item() and len(plan.delta) == 1
        del model
        checks = [_equal_check("logits: branch against base", branch, base)] if zero else []
        if pair.stock is not None:
            fold = _logits(load_stock(pair.stock.ref.folder), inputs, ids)
            limit = LOGIT_LIMITS[plan.read_anatomy().dtype]
            checks.append(_close_check("logits: fold against branch", fold, branch, limit))
    return checks


def prepare_images(pair: Pair, images: Sequence[Any]) -> dict[str, Tensor]:
    """Return the base's own preprocessing of PIL images: pixel_values and what belongs to them.

    Raises VerificationError when the base has no image processor that can be loaded here.
    """
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(pair.base.ref.folder)
    except (OSError, ValueError, ImportError) as error:
        raise VerificationError(
            f"the image processor of {pair.base.ref.name} cannot be loaded ({str(error)[:100]})",
            hint="features cannot be compared without it; add preprocessor_config.json to the base",
        ) from None
    prepared = processor(images=list(images), return_tensors="pt")
    return {name: value for name, value in prepared.items() if isinstance(value, Tensor)}


def load_vision(folder: Path | None) -> Any:
    """Load a checkpoint without its language model's blocks, in the file's dtype, in eval mode.

    Raises VerificationError when a tensor that is needed is missing or has another shape.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(folder)
    config.text_config.num_hidden_layers = 0
    with quiet_transformers():
        model, info = AutoModelForImageTextToText.from_pretrained(
            folder, config=config, dtype="auto", output_loading_info=True
        )
    problems = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if problems:
        raise VerificationError(
            f"transformers finds no fitting tensor for {', '.join(problems[:4])} in {folder}",
            hint="the installed transformers may be too old for this checkpoint",
        )
    return model.eval()


def image_features(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Return what the language model would be fed: projected image features [tokens, width]."""
    dtype = next(model.parameters()).dtype
    cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    features = model.get_image_features(**cast)
    pooled = getattr(features, "pooler_output", features)
    parts = pooled if isinstance(pooled, list | tuple) else [pooled]
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])


def _logits(model: Any, inputs: dict[str, Tensor], ids: Tensor) -> Tensor:
    dtype = next(model.parameters()).dtype
    cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    result: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), **cast).logits
    return result


def _equal_check(name: str, found: Tensor, wanted: Tensor) -> Check:
    same = torch.equal(found, wanted)
    worst = (found.float() - wanted.float()).abs().max().item()
    return Check(name, same, f"max difference {worst:.3g} ({found.dtype})", "bit-equal")


def _close_check(name: str, found: Tensor, wanted: Tensor, limit: float) -> Check:
    worst = (found.float() - wanted.float()).abs().max().item()
    scale = max(1.0, wanted.float().abs().max().item())
    # A NaN compares false with everything: it fails here.
    return Check(
        name, worst <= limit * scale, f"max difference {worst:.3g}", f"{limit:g} x {scale:.3g}"
    )


def _finite_check(model: Any, plan: SurgeryPlan, inputs: dict[str, Tensor]) -> Check:
    states = hidden_states(model, plan, inputs)
    values = [states[layer].float().abs().max().item() for layer in plan.layout.layers]
    dtype = plan.read_anatomy().dtype
    limit = LARGEST.get(dtype, math.inf)
    # max() of floats loses a NaN; isfinite sees it.
    passed = all(math.isfinite(value) and value < limit for value in values)
    measured = f"largest value {max(values):.4g}"
    return Check("hidden states stay in range", passed, measured, f"finite in {dtype}")


def _formula_check(
    model: Any, plan: SurgeryPlan, inputs: dict[str, Tensor], branch: Tensor
) -> Check:
    """Restate the connector from all hidden states, stacked, and compare with the hooks' result."""
    anatomy = plan.read_anatomy()
    states = hidden_states(model, plan, inputs)
    arrange: Arrange | None = next(a.arrange for a in available() if a.name == plan.architecture)
    means = [torch.stack([states[i] for i in block]).mean(dim=0) for block in plan.blocks]
    rows = [
        arrange(model, mean) if arrange else mean[:, anatomy.dropped_tokens :] for mean in means
    ]
    added = torch.cat(rows, dim=-1) @ model.dense_connector.weight.T
    site = find_module(model, anatomy.projector.site)
    with _without_hooks(site):
        handle = site.register_forward_hook(lambda _, __, out: out + added.reshape(out.shape))
        restated = image_features(model, inputs)
        handle.remove()
    return _close_check("features: branch against the formula", branch, restated, 1e-5)


@contextmanager
def _without_hooks(site: Any) -> Iterator[None]:
    hooks, site._forward_hooks = site._forward_hooks, type(site._forward_hooks)()
    try:
        yield
    finally:
        site._forward_hooks = hooks


def hidden_states(model: Any, plan: SurgeryPlan, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Return all hidden states of the vision tower, by running it as the model itself does."""
    tower = find_module(model, plan.read_anatomy().tower.blocks.partition(".")[0])
    seen: dict[str, Any] = {}

    def remember(_: Any, args: Any, kwargs: Any) -> None:
        seen.setdefault("args", args)
        seen.setdefault("kwargs", kwargs)

    handle = tower.register_forward_pre_hook(remember, with_kwargs=True)
    image_features(model, inputs)
    handle.remove()
    if not seen:
        raise DcSurgeryError("the vision tower did not run", hint="report this model")
    states: tuple[Tensor, ...] = tower(
        *seen["args"], **{**seen["kwargs"], "output_hidden_states": True}
    ).hidden_states
    return states
