"""The connector that a checkpoint has been trained with already."""

from __future__ import annotations

from dcsurgery.connectors.kinds import STI_STRIDE
from dcsurgery.connectors.request import Connector
from dcsurgery.errors import PlanError
from dcsurgery.features import FeatureBlock, FeatureLayout
from dcsurgery.originals.adopted import InstalledConnector


def installed_layout(installed: InstalledConnector, asked: Connector) -> FeatureLayout:
    """Return the layout a checkpoint was trained with. Raises PlanError when asked for another."""
    plain = Connector(kind=asked.kind, seed=asked.seed, form=asked.form)
    if asked != plain or asked.kind not in (installed.kind, Connector().kind):
        raise PlanError(
            f"this checkpoint was trained with a {installed.kind} connector: the surgery is done",
            hint="leave the connector's options out; its own connector is written",
        )
    blocks = tuple(FeatureBlock(layers) for layers in installed.blocks)
    if installed.kind == "sti":
        return FeatureLayout("sti", blocks, "token", stride=STI_STRIDE)
    return FeatureLayout(installed.kind, blocks)
