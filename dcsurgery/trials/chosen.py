"""Which states the chosen arm reads: the user's, else those that a probe recommends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dcsurgery.connectors.request import Connector, Layers
from dcsurgery.errors import RequestError
from dcsurgery.probing.probe import probe_model
from dcsurgery.probing.probe_report import ProbeReport
from dcsurgery.surgery.plan_file import BaseRecord
from dcsurgery.surgery.probed_layers import with_probed_layers
from dcsurgery.training.settings import READING
from dcsurgery.trials.units import Step, Workshop, held

PROBE_FILE = "probe.json"


def asked_for(
    connector: Connector | str | None, layers: Layers | None, base: BaseRecord
) -> Connector | None:
    """Return the connector that the user chose, None where the probe shall choose.

    Raises RequestError for one that does not start from the model as it is, and what
    with_probed_layers raises.
    """
    if connector is None and layers is None:
        return None
    found = Connector.of(connector)
    found = found if layers is None else replace(found, layers=layers)
    if found.init != "preserve" or found.form not in (None, "delta"):
        raise RequestError(
            "a trial starts from the model as it is, and keeps deltas",
            hint="leave out init and form",
        )
    return with_probed_layers(found, base)


def recommended(report: ProbeReport | None) -> Connector | None:
    """Return the connector that a probe recommends."""
    if report is None or not report.recommended.operate:
        return None
    return Connector(layers=tuple(map(tuple, report.recommended.blocks)))


def probe(shop: Workshop, rows: int, dry_run: bool) -> ProbeReport | None:
    """Return what the probe says of the training rows, once; in a dry run only what it has said."""
    asked, place = shop.asked, shop.work / PROBE_FILE

    def run(goes_on: bool) -> dict[str, Any]:
        report = probe_model(
            asked.model,
            asked.data,
            place,
            overwrite=True,
            rows=rows,
            settings=asked.settings,
            images=asked.images,
            split=asked.split,
            columns=asked.columns,
            revision=asked.revision,
            **asked.hints,
        )
        return {"verdict": report.verdict}

    inputs = {
        "settings": {name: getattr(asked.settings, name) for name in ("seed", *READING)},
        "rows": rows,
        "data": asked.digests["data"],
        "images": asked.images and str(asked.images.resolve()),
        "split": asked.split,
        "columns": asked.columns and dict(asked.columns),
    }
    step = Step("probe", "probe", inputs, run, PROBE_FILE)
    if not dry_run:
        with held(shop.work, step.name, wait=True):
            shop.once(step, step.name)
    elif not shop.has(step):
        return None
    found = ProbeReport.model_validate_json(place.read_bytes())
    shop.say(f"probe: {found.verdict}")
    return found
