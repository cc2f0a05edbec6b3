"""What will change, decided before anything is written: Connector + Checkpoint -> SurgeryPlan.

make_plan is pure and torch-free.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import Architecture, Form, find_architecture
from dcsurgery.checkpoint.contents import Checkpoint, WeightFile
from dcsurgery.checkpoint.headers import TensorEntry
from dcsurgery.checkpoint.leftovers import describe_leftovers
from dcsurgery.connectors import connector_shapes, make_layout
from dcsurgery.connectors.request import Connector
from dcsurgery.errors import PlanError
from dcsurgery.features import FeatureLayout, stock_layers
from dcsurgery.originals.adopted import Adopted
from dcsurgery.surgery.installed_connector import installed_layout
from dcsurgery.surgery.plan_file import (
    CONNECTOR_PREFIX,
    DELTA_FILE,
    LOADERS,
    MINI_GEMINI_LOADER,
    BaseRecord,
    FileRecord,
    SurgeryPlan,
    TemplateRecord,
    TensorRecord,
    TowerPlace,
)
from dcsurgery.surgery.portable import (
    code_digest,
    extra_records,
    joined_shape,
    portable_config,
    portable_problem,
)
from dcsurgery.surgery.probed_layers import with_probed_layers
from dcsurgery.surgery.processor_changes import plan_processor


def header_digest(weights: WeightFile) -> str:
    """SHA-256 of a file's tensor table: names, dtypes, shapes and offsets in order."""
    rows = [[e.name, e.dtype, *e.shape, e.begin, e.end] for e in weights.header.tensors.values()]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def describe_base(checkpoint: Checkpoint) -> BaseRecord:
    """Return the record by which a plan recognises its base."""
    ref = checkpoint.ref
    local = None if ref.repo_id or ref.folder is None else str(ref.folder.resolve())
    adoption = checkpoint.adoption if isinstance(checkpoint, Adopted) else None
    template = adoption.template if adoption else None
    return BaseRecord(
        id=ref.repo_id or ref.name,
        folder=local,
        revision=ref.revision,
        commit=ref.commit,
        config_sha256=hashlib.sha256(checkpoint.config_text.encode()).hexdigest(),
        files={
            item.name: FileRecord(size=item.size, header_sha256=header_digest(item))
            for item in checkpoint.weights
        },
        original=adoption.format if adoption else None,
        towers={
            name: TowerPlace(place=item.place, commit=item.commit)
            for name, item in (adoption.towers if adoption else {}).items()
        },
        template=TemplateRecord(name=template.name, text=template.text) if template else None,
    )


def make_plan(checkpoint: Checkpoint, asked: Connector) -> SurgeryPlan:
    """Decide everything about installing a connector; nothing is read but headers and config (and
    the probe that a request names).

    Raises UnknownArchitectureError, AnatomyError, PlanError or RequestError.
    """
    architecture = find_architecture(checkpoint.config)
    anatomy = architecture.dissect(checkpoint.config, checkpoint.tensors)
    base = describe_base(checkpoint)
    asked = with_probed_layers(asked, base)
    installed = checkpoint.connector if isinstance(checkpoint, Adopted) else None
    layout = installed_layout(installed, asked) if installed else make_layout(anatomy, asked)
    form = _choose_form(architecture, anatomy, layout, asked)
    layers = stock_layers(layout, anatomy.feature_layers) if form == "stock" else None
    redrawn = _redrawn(checkpoint, anatomy) if asked.init == "paper" else []
    processor_changes, notes = plan_processor(checkpoint, architecture, anatomy, layout)
    connector = _connector(anatomy, layout)
    new, flops = cost(architecture, checkpoint, anatomy, layout, layers)
    plan = SurgeryPlan(
        base=base,
        architecture=architecture.name,
        anatomy=anatomy,
        layout=layout,
        feature_layers=list(anatomy.feature_layers),
        form=form,
        init="published" if installed else asked.init,
        seed=asked.seed,
        stock_layers=list(layers) if layers else None,
        config_changes=config_changes(architecture, checkpoint.config, layers),
        processor_changes=processor_changes,
        changed=_changed(_first_matrices(architecture, checkpoint, anatomy, layout, form), redrawn),
        delta=[*connector, *(r.model_copy(update={"file": DELTA_FILE}) for r in redrawn)],
        relies_on=dict.fromkeys(anatomy.projector.tensors),
        new_parameters=new,
        extra_flops_per_image=flops,
        image_tokens=layout.count_tokens(anatomy.image_tokens),
        loader=loader_of(architecture, form),
        notes=[
            *_file_notes(checkpoint, form),
            *_adoption_notes(checkpoint),
            *_notes(anatomy, layout, asked),
            *notes,
        ],
    )
    return as_portable(checkpoint, plan) if form == "portable" else plan


def as_portable(checkpoint: Checkpoint, plan: SurgeryPlan) -> SurgeryPlan:
    """Return the plan of a portable form with its config keys, its code and all its tensors.

    Raises PlanError where the model cannot have one.
    """
    problem = portable_problem(checkpoint.config, plan.layout)
    if problem is not None:
        raise PlanError(f"{problem}: there is no portable form", hint="use --form delta")
    edited = portable_config(checkpoint, plan.anatomy, plan.layout)
    return plan.model_copy(
        update={
            "form": "portable",
            "stock_layers": None,
            "loader": LOADERS["portable"],
            "config_changes": _key_changes(checkpoint.config, edited),
            "changed": [*plan.changed, *extra_records(plan, checkpoint)],
            "code_sha256": code_digest(),
        }
    )


def loader_of(architecture: Architecture, form: Form) -> str:
    """Return what loads a family's checkpoints in a form, in words."""
    if form == "reference" and architecture.name == "mini_gemini":
        return MINI_GEMINI_LOADER
    return LOADERS.get(form, architecture.stock_loader)


def _file_notes(checkpoint: Checkpoint, form: Form) -> list[str]:
    if form == "delta" or not checkpoint.set_aside:
        return []
    return [f"not copied: {describe_leftovers(checkpoint.set_aside)} (--keep-all copies them)"]


def _adoption_notes(checkpoint: Checkpoint) -> list[str]:
    if not isinstance(checkpoint, Adopted) or checkpoint.adoption is None:
        return []
    notes = list(checkpoint.adoption.notes)
    if checkpoint.connector is not None:
        notes.append(f"the {checkpoint.connector.kind} connector and its values are its own")
    return notes


def _connector(anatomy: Anatomy, layout: FeatureLayout) -> list[TensorRecord]:
    return [
        TensorRecord(
            name=CONNECTOR_PREFIX + name,
            file=DELTA_FILE,
            dtype=anatomy.dtype if name == "weight" else "F32",
            shape=list(shape),
        )
        for name, shape in connector_shapes(anatomy, layout).items()
    ]


def cost(
    architecture: Architecture,
    checkpoint: Checkpoint,
    anatomy: Anatomy,
    layout: FeatureLayout,
    layers: tuple[int, ...] | None,
) -> tuple[int, int]:
    """Return new parameters and extra FLOPs per image, two per multiply-add, of what is loaded.

    Appended tokens pass all matrices of the projector; sums and pooling are not counted.
    """
    projector = anatomy.projector
    shapes = connector_shapes(anatomy, layout)
    new = sum(math.prod(shape) for shape in shapes.values())
    if layout.axis == "token":
        read = [checkpoint.tensors[name].shape for name in projector.tensors]
        matrices = sum(math.prod(shape) for shape in read if len(shape) == 2)
        return new, 2 * layout.appended_tokens(anatomy.image_tokens) * matrices
    columns = anatomy.feature_width * len(layout.blocks)
    added = [site.out_features * columns for site in projector.sites]
    if layers is not None:
        total = architecture.stock_columns(anatomy, layers).total
        added = [site.out_features * (total - site.in_features) for site in projector.sites]
        new = sum(added)
    rows = [site.rows or anatomy.image_tokens for site in projector.sites]
    return new, 2 * sum(map(math.prod, zip(rows, added, strict=True)))


def stock_problem(
    architecture: Architecture, anatomy: Anatomy, layout: FeatureLayout
) -> str | None:
    """Return why a layout has no stock form in a family; None where it has one."""
    if "stock" not in architecture.forms:
        return f"the config of {architecture.name} cannot name several hidden states"
    if not layout.foldable:
        what = "a norm" if layout.normed else "another number of image tokens"
        return f"stock code cannot be told of {what}"
    if layout.layers[0] < anatomy.first_state:
        return (
            f"the config of {architecture.name} cannot name hidden state {layout.layers[0]} "
            f"(it begins with {anatomy.first_state})"
        )
    return None


def _choose_form(
    architecture: Architecture, anatomy: Anatomy, layout: FeatureLayout, asked: Connector
) -> Form:
    if asked.form in ("portable", "reference"):
        return asked.form
    problem = stock_problem(architecture, anatomy, layout)
    if problem is None:
        return asked.form or "stock"
    if asked.form == "stock":
        raise PlanError(f"{problem}, so there is no stock form", hint="use --form delta")
    return "delta"


def _redrawn(checkpoint: Checkpoint, anatomy: Anatomy) -> list[TensorRecord]:
    """The tensors `--init paper` draws: the reference defines it for linear layers alone."""
    names = set(anatomy.projector.tensors)
    for name in sorted(names):
        matrix = name.removesuffix("bias").removesuffix("weight") + "weight"
        if matrix not in names or len(checkpoint.tensors[matrix].shape) != 2:
            raise PlanError(
                f"--init paper is defined for projectors of linear layers, and {name} is not one",
                hint="use --init preserve, which keeps the projector as it is",
            )
    return [rewritten(checkpoint, name) for name in anatomy.projector.tensors]


def rewritten(checkpoint: Checkpoint, name: str, shape: list[int] | None = None) -> TensorRecord:
    """Return the record of a tensor of the base that is written anew, by default in its shape."""
    entry: TensorEntry = checkpoint.tensors[name]
    return TensorRecord(
        name=name,
        file=checkpoint.file_of(name).name,
        dtype=entry.dtype,
        shape=shape or list(entry.shape),
        base_shape=list(entry.shape),
    )


def _first_matrices(
    architecture: Architecture,
    checkpoint: Checkpoint,
    anatomy: Anatomy,
    layout: FeatureLayout,
    form: Form,
) -> list[TensorRecord]:
    """Return the first matrices as a complete checkpoint holds them; none in the other forms."""
    return [
        rewritten(checkpoint, name, shape)
        for name, shape in matrix_shapes(architecture, checkpoint, anatomy, layout, form).items()
    ]


def matrix_shapes(
    architecture: Architecture,
    checkpoint: Checkpoint,
    anatomy: Anatomy,
    layout: FeatureLayout,
    form: Form,
) -> dict[str, list[int]]:
    """Return the shape of every first matrix in a form that holds them folded or joined."""
    sites = anatomy.projector.sites
    if form == "portable":
        added = anatomy.feature_width * len(layout.blocks)
        return {site.weight: joined_shape(checkpoint, site, added) for site in sites}
    if form != "stock":
        return {}
    layers = stock_layers(layout, anatomy.feature_layers)
    columns = architecture.stock_columns(anatomy, layers).total
    return {site.weight: [site.out_features, columns] for site in sites}


def _changed(matrices: list[TensorRecord], redrawn: list[TensorRecord]) -> list[TensorRecord]:
    names = {record.name for record in matrices}
    others = [record for record in redrawn if record.name not in names]
    return [*matrices, *others] if matrices else []


def config_changes(
    architecture: Architecture, config: dict[str, Any], layers: tuple[int, ...] | None
) -> dict[str, dict[str, Any]]:
    """Return the keys that make stock code read the hidden states, as {"from", "to"}."""
    if layers is None or architecture.stock_config is None:
        return {}
    return _key_changes(config, architecture.stock_config(config, layers))


def _key_changes(config: dict[str, Any], edited: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        key: {"from": config.get(key), "to": value}
        for key, value in edited.items()
        if key not in config or config[key] != value
    }


def _notes(anatomy: Anatomy, layout: FeatureLayout, asked: Connector) -> list[str]:
    notes = []
    if layout.kind in ("dci", "mix") and asked.layers is None:
        notes += _group_notes(anatomy, layout, asked)
    if asked.init == "paper":
        notes.append(
            "connector and projector are drawn at random: the model sees nothing before training"
        )
    if layout.changes_tokens:
        after = layout.count_tokens(anatomy.image_tokens)
        notes.append(
            f"{anatomy.image_tokens} image tokens become {after}: the model's outputs change even "
            "before training"
        )
    if layout.pool > 1 and anatomy.tower.grid % layout.pool:
        notes.append(
            f"the {anatomy.tower.grid} x {anatomy.tower.grid} grid is odd: its last row and column "
            "of patches are not seen"
        )
    if anatomy.normed:
        notes.append(
            "the feature read today has passed the tower's last norm, the added states have not "
            "(an extension of the paper)"
        )
    if anatomy.dropped_tokens > anatomy.tower.prefix_tokens:
        notes.append(
            "the base's vision_feature_select_strategy drops a patch token: "
            "this tower has no CLS token"
        )
    return notes


def _group_notes(anatomy: Anatomy, layout: FeatureLayout, asked: Connector) -> list[str]:
    first, last = layout.layers[0], layout.layers[-1]
    sizes = sorted({len(block.layers) for block in layout.blocks})
    notes = []
    if first > 0:
        notes.append(f"groups begin at state {first}: the stock config cannot name state 0")
    if len(sizes) > 1:
        notes.append(
            f"states {first}..{last} do not divide by {asked.groups}: groups of {sizes} states"
        )
    elif last < anatomy.feature_layer:
        notes.append(
            f"groups stop at state {last}: {first}..{anatomy.feature_layer} does not divide by "
            f"{asked.groups}, {first}..{last} does (the reference does the same for SigLIP)"
        )
    return notes
