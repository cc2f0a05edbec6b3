"""A connector in words and in one line of arithmetic."""

from __future__ import annotations

from dcsurgery.features import FeatureBlock, describe_layers
from dcsurgery.surgery.plan_file import SurgeryPlan

NAMES = {
    "dci": "Dense Channel Integration",
    "sci": "Sparse Channel Integration",
    "sti": "Sparse Token Integration",
    "mix": "Dense Channel Integration with learned weights",
}


def name_connector(plan: SurgeryPlan) -> str:
    """Return the connector's name, like "dci (Dense Channel Integration)"."""
    return f"{plan.kind} ({NAMES[plan.kind]})" if plan.kind in NAMES else plan.kind


def write_formula(plan: SurgeryPlan) -> str:
    """Return what the connector computes, as lines of plain text.

    arXiv 2405.13800, eq. 1 to 4, with the widened matrix [W | D1 | D2 ...] written as a sum. `h[i]`
    is hidden state i, x the feature the projector reads without the connector.
    """
    layout = plan.layout
    states = describe_layers(plan.feature_layers)
    lines = [f"x = h[{states}]"]
    terms = [_term(block, mixed=layout.mixed, normed=layout.normed) for block in layout.blocks]
    if layout.axis == "token":
        pooled = ", ".join(f"average of {layout.stride} tokens({term})" for term in terms)
        lines += [f"tokens = [x, {pooled}]", "y = W tokens"]
    else:
        added = " + ".join(f"D{number} {term}" for number, term in enumerate(terms, 1))
        lines.append(f"y = W x + {added}")
    if layout.pool > 1:
        lines.append(f"then both sides of the token grid are divided by {layout.pool}")
    return "\n".join(lines)


def _term(block: FeatureBlock, *, mixed: bool, normed: bool) -> str:
    term = f"h[{block}]"
    if len(block.layers) > 1:
        term = f"{'mix' if mixed else 'mean'}(h[{block}])"
    return f"norm({term})" if normed else term
