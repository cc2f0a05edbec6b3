"""The README's picture, drawn as a model card's is: python -m tests.docs.picture."""

from __future__ import annotations

from dcsurgery.connectors.request import Connector
from dcsurgery.publishing.picture import draw_wiring
from dcsurgery.surgery.plan import make_plan
from tests.docs.pages import ROOT
from tests.headers_only import checkpoint, llava_like

PICTURE = ROOT / "docs/images/wiring.png"


def draw() -> bytes:
    """Return the wiring of LLaVA-1.5-7B with dci as PNG."""
    return draw_wiring(make_plan(checkpoint(*llava_like()), Connector("dci")))


if __name__ == "__main__":
    PICTURE.write_bytes(draw())
