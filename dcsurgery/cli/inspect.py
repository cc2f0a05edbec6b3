"""`dcsurgery inspect`: what is inside a model and which connectors fit."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from dcsurgery.cli.options import (
    AsJson,
    Model,
    Quiet,
    Revision,
    Template,
    Towers,
    read_towers,
)
from dcsurgery.cli.output import Output
from dcsurgery.printing import units

if TYPE_CHECKING:
    from dcsurgery.surgery.inspection import ConnectorOffer, Inspection

EXAMPLES = (
    "dcsurgery inspect llava-hf/llava-1.5-7b-hf",
    "dcsurgery inspect ./my-llava --json",
)
LISTED_FILES = 6


def inspect(
    model: Model,
    revision: Revision = None,
    tower: Towers = None,
    template: Template = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show what is inside a model and which connectors fit.

    Each connector comes with its exact cost and with what loads the result. Config and header bytes
    are read, nothing else: of a Hub model no weights are fetched.
    """
    from dcsurgery.surgery.inspection import inspect_checkpoint

    out = Output(as_json=as_json, quiet=quiet)
    with out.working(f"reading the headers of {model}"):
        found = inspect_checkpoint(model, revision, towers=read_towers(tower), template=template)
    if as_json:
        out.data(found.to_dict())
        return
    out.show(found.model + (f" at {found.commit[:12]}" if found.commit else ""), "bold")
    out.facts(_anatomy(found) + _files(found))
    if found.converted:
        out.heading("wiring")
        _draw(found, out)
        out.tell(
            "\nThis is a converted model: dense_connector/plan.json names its base, and\n"
            f"  dcsurgery verify {shlex.quote(model)}"
        )
        return
    _offers(found, out)
    out.heading("wiring")
    _draw(found, out)
    out.tell(f"\nnext:\n  dcsurgery convert {shlex.quote(model)} -o OUT")


def _anatomy(found: Inspection) -> list[tuple[str, str]]:
    from dcsurgery.features import describe_layers

    anatomy, tower = found.anatomy, found.anatomy.tower
    projector = anatomy.projector
    prefix = f"{units.plural(tower.prefix_tokens, 'prefix token')} before the patch tokens"
    dropped = f"; the first {anatomy.dropped_tokens} dropped" if anatomy.dropped_tokens else ""
    up_to = "up to " if anatomy.variable_resolution else ""
    return [
        *_original(found),
        ("class", f"{found.class_name} (architecture {anatomy.architecture})"),
        ("vision tower", f"{tower.kind}, {tower.depth} blocks of width {tower.width}"),
        (
            "image",
            f"{up_to}{tower.image_size} x {tower.image_size} pixels in patches of "
            f"{tower.patch_size}: {tower.grid} x {tower.grid} grid\n"
            f"{prefix}{dropped}",
        ),
        (
            "feature layer",
            f"hidden state {describe_layers(anatomy.feature_layers)} of 0..{tower.depth}",
        ),
        (
            "projector",
            "".join(
                f"{site.module}, {site.in_features} -> {site.out_features}\n{site.weight}\n"
                for site in projector.sites
            )
            + f"{units.plural(len(projector.tensors), 'tensor')}, {anatomy.dtype}",
        ),
        (
            "language model",
            f"{anatomy.language_model}, {up_to}{anatomy.image_tokens} image tokens for one image",
        ),
        *_processor(found),
    ]


def _processor(found: Inspection) -> list[tuple[str, str]]:
    fit = found.processor
    if fit is None:
        return []
    fits = (f"writes {fit.written} image tokens for a picture, as many as the model makes",)
    return [("processor", "\n".join(fit.notes or fits))]


def _original(found: Inspection) -> list[tuple[str, str]]:
    """Say what a model in an original format is, before it is described as what it means."""
    original = found.original
    if original is None:
        return []
    rows = [("format", f"{original.format} (class {original.class_name})")]
    rows += [("tower named", f"{name}\n{place}") for name, place in original.towers.items()]
    if original.connector:
        rows.append(("connector", f"{original.connector}, trained: the surgery is done"))
    return rows + [("note", note) for note in original.notes]


def _files(found: Inspection) -> list[tuple[str, str]]:
    total = sum(file.size for file in found.weights)
    head = f"{units.plural(len(found.weights), 'file')}, {units.size(total)}"
    lines = [f"{head}, {units.count(found.parameters)} parameters"]
    listed = found.weights if len(found.weights) <= LISTED_FILES else ()
    longest = max((len(file.name) for file in listed), default=0)
    lines += [
        f"  {file.name:<{longest}}  {units.size(file.size):>8}  "
        f"{units.plural(file.tensors, 'tensor')}"
        for file in listed
    ]
    rows = [("weights", "\n".join(lines)), ("side files", f"{len(found.side_files)}")]
    left_out = [name for name in found.left_out if not name.startswith("dense_connector/")]
    if left_out:
        rows.append(("left out", ", ".join(left_out) + " (no loader of this model reads it)"))
    return rows


def _offers(found: Inspection, out: Output) -> None:
    out.heading("connectors that fit")
    fitting = [offer for offer in found.offers if not offer.refused]
    if fitting:
        columns = ("kind", "form", "parameters", "bytes", "FLOPs/image", "tokens", "states read")
        out.table(columns, [row for offer in fitting for row in _costs(offer)], "llrrrrl")
        out.show()
        loaders = {cost.form: cost.loader for offer in fitting for cost in offer.costs}
        out.facts([(f"{form} form", f"loads with {loader}") for form, loader in loaders.items()])
    notes: dict[str, list[str]] = {}
    for offer in found.offers:
        for note in (f"does not fit: {offer.refused}",) if offer.refused else offer.notes:
            notes.setdefault(note, []).append(offer.kind)
    if notes:
        out.facts([(", ".join(kinds), note) for note, kinds in notes.items()])


def _costs(offer: ConnectorOffer) -> list[tuple[str, ...]]:
    from dcsurgery.features import describe_layers

    states = " | ".join(describe_layers(block) for block in offer.blocks)
    return [
        (
            "" if index else offer.kind,
            cost.form,
            "+" + units.count(cost.new_parameters),
            "+" + units.size(cost.extra_bytes),
            "+" + units.flops(cost.extra_flops_per_image),
            str(cost.image_tokens),
            "" if index else states,
        )
        for index, cost in enumerate(offer.costs)
    ]


def _draw(found: Inspection, out: Output) -> None:
    from dcsurgery.printing.wiring import draw_wiring

    layouts = [offer.layout for offer in found.offers if offer.layout and not found.converted]
    for line in draw_wiring(found.anatomy, layouts).split("\n"):
        out.show("  " + line)
