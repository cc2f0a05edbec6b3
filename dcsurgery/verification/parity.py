"""Numeric checks: image features without the language model, and logits of the whole model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from dcsurgery.architectures import Architecture, named
from dcsurgery.connectors.attach import detach, find_module
from dcsurgery.connectors.passes import block_input
from dcsurgery.errors import VerificationError
from dcsurgery.loading.load import install, load_adapter, load_stock, read_delta
from dcsurgery.surgery.plan_file import CONNECTOR_PREFIX, CONNECTOR_TENSOR, SurgeryPlan
from dcsurgery.verification.agreement import agreement_check
from dcsurgery.verification.inputs import foreign_errors, prepare_inputs
from dcsurgery.verification.models import (
    free_memory,
    image_features,
    load_vision,
    logit_inputs,
    model_logits,
)
from dcsurgery.verification.pair import Pair
from dcsurgery.verification.portable import portable_checks
from dcsurgery.verification.remembered import remembered_blocks
from dcsurgery.verification.report import Check
from dcsurgery.verification.restated import restated_connector

# Allowed difference between fold and branch, relative to the largest value. A fold rounds W / M
# once to the file's dtype: bf16 keeps 8 bits, fp16 11; at zero nothing is rounded and only the
# order of the fp32 sum differs.
FOLD_LIMITS = {"F64": 1e-5, "F32": 1e-5, "F16": 2e-3, "BF16": 1e-2}
LOGIT_LIMITS = {"F64": 1e-5, "F32": 1e-5, "F16": 2e-2, "BF16": 1e-1}
# A state that overflows turns into NaN even under a zero matrix (0 * inf): fp16 is the narrow one.
LARGEST = {"F16": 65504.0}


def feature_checks(pair: Pair, pictures: Sequence[Any]) -> list[Check]:
    """Compare image features of base, branch, formula and (stock form) fold on PIL images.

    Only vision tower, connector and projector compute, one model at a time; the language model's
    blocks are never read.
    """
    plan, architecture = pair.plan, named(pair.plan.architecture)
    prepared = prepare_inputs(pair.base, plan.anatomy, pictures)
    inputs = prepared.values
    delta = _connector(pair)
    zero = _starts_exact(plan, delta)
    with torch.no_grad(), _model_errors(pair):
        model = load_vision(pair.base)
        with remembered_blocks(model, plan.anatomy):
            with _largest_states(model, plan) as largest:
                base = image_features(model, architecture, inputs)
            checks = [_finite_check(plan, largest)]
            install(model, plan, pair.folder, partly=True)
            if zero:
                branch = image_features(model, architecture, inputs)
                checks.append(_equal_check("features: branch against base", branch, base))
        model.float()
        with remembered_blocks(model, plan.anatomy):
            branch = image_features(model, architecture, inputs)
            if pair.stock is None:
                checks.append(agreement_check(pair, model, architecture, pictures[0], prepared))
            detach(model)
            restated = _restate(model, architecture, plan, inputs, delta)
        checks.append(_close_check("features: branch against the formula", branch, restated, 1e-5))
        del model
        free_memory()
        if pair.stock is not None and plan.form != "portable":
            stock = load_vision(pair.stock).float()
            with remembered_blocks(stock, plan.anatomy):
                fold = image_features(stock, architecture, inputs)
                limit = 1e-5 if zero else FOLD_LIMITS[plan.anatomy.dtype]
                checks.append(_close_check("features: fold against branch", fold, branch, limit))
                checks.append(agreement_check(pair, stock, architecture, pictures[0], prepared))
    return [prepared.explain(check) for check in checks]


def _connector(pair: Pair) -> dict[str, Tensor]:
    names = [r.name for r in pair.plan.delta if r.name.startswith(CONNECTOR_PREFIX)]
    return dict(read_delta(pair.plan, pair.folder, names))


def _starts_exact(plan: SurgeryPlan, delta: dict[str, Tensor]) -> bool:
    """Whether the branch must equal the base bit for bit: D is zero and nothing else changed."""
    own = [r.name for r in plan.delta if not r.name.startswith(CONNECTOR_PREFIX)]
    matrix = delta.get(CONNECTOR_TENSOR)
    return not (own or plan.layout.changes_tokens or matrix is None or matrix.any().item())


def _restate(
    model: Any,
    architecture: Architecture,
    plan: SurgeryPlan,
    inputs: dict[str, Tensor],
    delta: dict[str, Tensor],
) -> Tensor:
    tensors = {name.removeprefix(CONNECTOR_PREFIX): value.float() for name, value in delta.items()}
    layout, arrange = plan.layout, architecture.arrange
    with restated_connector(model, plan.anatomy, layout, arrange, tensors):
        return image_features(model, architecture, inputs)


def logit_checks(pair: Pair, pictures: Sequence[Any]) -> list[Check]:
    """Compare logits of base, branch and (stock form) fold on one image and a few text tokens."""
    plan, architecture = pair.plan, named(pair.plan.architecture)
    prepared = prepare_inputs(pair.base, plan.anatomy, pictures[:1])
    inputs = prepared.values
    projector = plan.anatomy.projector.tensors
    zero = plan.adapter is None and _starts_exact(plan, _connector(pair))
    checks = []
    with torch.no_grad(), _model_errors(pair):
        model = load_stock(pair.base, projector)
        with remembered_blocks(model, plan.anatomy):
            count = len(image_features(model, architecture, inputs))
            base = model_logits(model, architecture, inputs, count)
        # A training may have changed the tower.
        install(model, plan, pair.folder)
        if plan.adapter is not None:
            load_adapter(model, plan, pair.folder)
        with remembered_blocks(model, plan.anatomy):
            count = len(image_features(model, architecture, inputs))
            given = logit_inputs(model, architecture, inputs, count)
            branch = model(**given).logits
        del model
        free_memory()
        if zero:
            checks.append(_equal_check("logits: branch against base", branch, base))
        else:
            checks.append(_finite_logits(branch))
        if plan.form == "portable":
            checks += portable_checks(plan, pair.folder, given, branch)
        elif pair.stock is not None:
            stock = load_stock(pair.stock, projector)
            if plan.adapter is not None and not plan.adapter.merged:
                load_adapter(stock, plan, pair.folder)
            fold = model_logits(stock, architecture, inputs, count)
            limit = LOGIT_LIMITS[plan.anatomy.dtype]
            checks.append(_close_check("logits: fold against branch", fold, branch, limit))
    return [prepared.explain(check) for check in checks]


def _model_errors(pair: Pair) -> AbstractContextManager[None]:
    return foreign_errors(
        f"{pair.base.ref.name} does not run in the installed transformers",
        "load the base with transformers alone to see why",
    )


def _finite_logits(found: Tensor) -> Check:
    worst = found.float().abs().max().item()
    finite = bool(torch.isfinite(found).all())
    return Check("logits: branch is finite", finite, f"largest value {worst:.4g}", "no NaN or inf")


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


def _finite_check(plan: SurgeryPlan, values: Sequence[float]) -> Check:
    if not values:
        raise VerificationError("the vision tower did not run", hint="report this model")
    dtype = plan.anatomy.dtype
    limit = LARGEST.get(dtype, math.inf)
    # max() of floats loses a NaN; isfinite sees it.
    passed = all(math.isfinite(value) and value < limit for value in values)
    measured = f"largest value {max(values):.4g}"
    return Check("hidden states stay in range", passed, measured, f"finite in {dtype}")


@contextmanager
def _largest_states(model: Any, plan: SurgeryPlan) -> Iterator[list[float]]:
    """Collect the largest magnitude of every hidden state that the connector reads."""
    values: list[float] = []

    def note(hidden: Tensor) -> None:
        values.append(hidden.float().abs().max().item())

    def before(block: Any, args: Any, kwargs: Any) -> None:
        note(block_input(args, kwargs))

    def after(block: Any, args: Any, output: Any) -> None:
        note(output[0] if isinstance(output, tuple) else output)

    handles: list[Any] = []
    for _, path in plan.anatomy.tower.paths:
        blocks = list(find_module(model, path).children())
        for layer in plan.layout.layers:
            if layer < len(blocks):
                handles.append(blocks[layer].register_forward_pre_hook(before, with_kwargs=True))
            else:
                handles.append(blocks[-1].register_forward_hook(after))
    try:
        yield values
    finally:
        for handle in handles:
            handle.remove()
