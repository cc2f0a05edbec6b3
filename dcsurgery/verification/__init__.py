"""Prove what a conversion changed and what it did not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dcsurgery.verification.report import Check, Report

if TYPE_CHECKING:
    from dcsurgery.verification.cost import Cost

__all__ = ["Check", "Report", "verify_checkpoint"]


def verify_checkpoint(  # noqa: PLR0913 - one keyword per CLI option, by design
    model: str | Path,
    *,
    revision: str | None = None,
    against: str | Path | None = None,
    images: Sequence[str | Path] = (),
    deep: bool = False,
    logits: bool = False,
    towers: Mapping[str, str] | None = None,
    announce: Callable[[Cost], None] | None = None,
    orientation: str = "exif",
) -> Report:
    """Verify a converted model against its base and return the report.

    `model` is a folder or a Hub id (at `revision`), `against` where its base is now. Structure is
    checked always (bytes, config, plan); features (tower, connector and projector, without the
    language model) on `images`, or on a photograph; `orientation` is exif or raw: whether they are
    turned as their tag says; `logits` runs the whole models; `deep` also hashes what a hard link
    already proves equal and compares with the Hub's digests; `towers` says where the vision towers
    of a base in an original format are now. Of models on the Hub only headers and the tensors that
    a check needs are read, by range requests (`logits` fetches them whole). `announce` is told what
    it will take before it starts. Raises DcSurgeryError when a check cannot be made, never when one
    fails.
    """
    from dcsurgery.data.pictures import open_images
    from dcsurgery.verification.pair import open_pair
    from dcsurgery.verification.structure import structure_checks

    pair = open_pair(model, against, towers, revision=revision, whole=logits)
    if announce is not None:
        from dcsurgery.verification.cost import estimate_cost

        announce(estimate_cost(pair, logits=logits))
    pictures = open_images([Path(image) for image in images], orientation)
    checks = structure_checks(pair, deep=deep)
    if all(check.passed for check in checks):
        from dcsurgery.verification.parity import feature_checks, logit_checks

        checks += feature_checks(pair, pictures)
        if logits:
            checks += logit_checks(pair, pictures)
    return Report(
        output=str(model), base=pair.base.ref.name, form=pair.plan.form, checks=tuple(checks)
    )
