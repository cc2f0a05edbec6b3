"""What will change, decided before anything is written: ConnectorSpec + Checkpoint -> SurgeryPlan.

make_plan is pure and torch-free. The plan is also the record a converted folder carries
(dense_connector/plan.json): enough to verify it against its base and to go on training.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dcsurgery import __version__
from dcsurgery.anatomy import Anatomy, Projector, VisionTower
from dcsurgery.architectures import Architecture, Form, find_architecture
from dcsurgery.checkpoint.contents import Checkpoint, WeightFile
from dcsurgery.checkpoint.headers import TensorEntry
from dcsurgery.connectors import Layers, find_kind
from dcsurgery.errors import CheckpointNotFoundError, MalformedCheckpointError, PlanError
from dcsurgery.features import FeatureBlock, FeatureLayout, stock_layers

DELTA_FOLDER = "dense_connector"
PLAN_FILE = f"{DELTA_FOLDER}/plan.json"
DELTA_FILE = f"{DELTA_FOLDER}/model.safetensors"
CONNECTOR_TENSOR = "dense_connector.weight"
DELTA_LOADER = "dcsurgery.load_model"

Init = Literal["preserve", "paper"]


@dataclass(frozen=True)
class ConnectorSpec:
    """What the user asks for. `layers` overrides the kind's rule; without `form` the family
    chooses."""

    kind: str = "dci"
    groups: int = 2
    layers: Layers | None = None
    init: Init = "preserve"
    seed: int = 0
    form: Form | None = None


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileRecord(_Record):
    """A weight file of the base: its length and the SHA-256 of its tensor table."""

    size: int
    header_sha256: str


class BaseRecord(_Record):
    """Where the base is (`folder` for a local one) and how to recognise it."""

    id: str
    folder: str | None
    revision: str | None
    commit: str | None
    config_sha256: str
    files: dict[str, FileRecord]


class TensorRecord(_Record):
    """A tensor that is written. `base_*` are None for a tensor the base does not have."""

    name: str
    file: str
    dtype: str
    shape: list[int]
    sha256: str | None = None
    base_shape: list[int] | None = None
    base_sha256: str | None = None


class SurgeryPlan(_Record):
    """The whole surgery. Hashes are None until the tensors are written."""

    schema_version: Literal[1] = 1
    tool: str = f"dcsurgery {__version__}"
    base: BaseRecord
    architecture: str
    anatomy: dict[str, Any]
    kind: str
    groups: int
    blocks: list[list[int]] = Field(min_length=1)
    axis: Literal["channel", "token"] = "channel"
    feature_layers: list[int]
    form: Form
    init: Init
    seed: int
    stock_layers: list[int] | None
    config_changes: dict[str, dict[str, Any]]
    changed: list[TensorRecord]
    delta: list[TensorRecord]
    relies_on: dict[str, str | None]
    new_parameters: int
    extra_flops_per_image: int
    image_tokens: int
    loader: str
    notes: list[str]

    @property
    def layout(self) -> FeatureLayout:
        """The feature layout the plan installs."""
        blocks = tuple(FeatureBlock(tuple(layers)) for layers in self.blocks)
        return FeatureLayout(self.kind, blocks, self.axis)

    def read_anatomy(self) -> Anatomy:
        """The base's anatomy as recorded."""
        values = dict(self.anatomy)
        tower = VisionTower(**values.pop("tower"))
        projector = values.pop("projector")
        projector["tensors"] = tuple(projector["tensors"])
        values["feature_layers"] = tuple(values["feature_layers"])
        return Anatomy(tower=tower, projector=Projector(**projector), **values)


def feature_width(anatomy: Anatomy) -> int:
    """Channels of one arranged feature at the projector's first matrix."""
    return anatomy.projector.in_features // len(anatomy.feature_layers)


def make_layout(anatomy: Anatomy, spec: ConnectorSpec) -> FeatureLayout:
    """Return the layout a spec means for this anatomy. Raises PlanError or RequestError."""
    kind = find_kind(spec.kind)
    return kind.layout(anatomy.feature_layer, anatomy.tower.depth, spec.groups, spec.layers)


def header_digest(weights: WeightFile) -> str:
    """SHA-256 of a file's tensor table: names, dtypes, shapes and offsets in order."""
    rows = [[e.name, e.dtype, *e.shape, e.begin, e.end] for e in weights.header.tensors.values()]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def describe_base(checkpoint: Checkpoint) -> BaseRecord:
    """Return the record by which a plan recognises its base."""
    ref = checkpoint.ref
    local = None if ref.repo_id or ref.folder is None else str(ref.folder.resolve())
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
    )


def make_plan(checkpoint: Checkpoint, spec: ConnectorSpec) -> SurgeryPlan:
    """Decide everything about installing a connector; nothing is read but headers and config.

    Raises UnknownArchitectureError, AnatomyError, PlanError or RequestError.
    """
    architecture = find_architecture(checkpoint.config)
    anatomy = architecture.dissect(checkpoint.config, checkpoint.tensors)
    layout = make_layout(anatomy, spec)
    form = _choose_form(architecture, spec)
    layers = stock_layers(layout, anatomy.feature_layers) if form == "stock" else None
    width = feature_width(anatomy)
    out = anatomy.projector.out_features
    new_matrix = TensorRecord(
        name=CONNECTOR_TENSOR,
        file=DELTA_FILE,
        dtype=anatomy.dtype,
        shape=[out, width * len(layout.blocks)],
    )
    redrawn = _redrawn(checkpoint, anatomy) if spec.init == "paper" else []
    added = len(layers) - len(anatomy.feature_layers) if layers else len(layout.blocks)
    return SurgeryPlan(
        base=describe_base(checkpoint),
        architecture=architecture.name,
        anatomy=asdict(anatomy),
        kind=spec.kind,
        groups=len(layout.blocks),
        blocks=[list(block.layers) for block in layout.blocks],
        axis=layout.axis,
        feature_layers=list(anatomy.feature_layers),
        form=form,
        init=spec.init,
        seed=spec.seed,
        stock_layers=list(layers) if layers else None,
        config_changes=_config_changes(architecture, checkpoint.config, layers),
        changed=_changed(checkpoint, anatomy, layers, redrawn),
        delta=[new_matrix, *(r.model_copy(update={"file": DELTA_FILE}) for r in redrawn)],
        relies_on=dict.fromkeys(anatomy.projector.tensors),
        new_parameters=out * width * added,
        extra_flops_per_image=2 * anatomy.image_tokens * out * width * added,
        image_tokens=anatomy.image_tokens,
        loader=architecture.stock_loader if form == "stock" else DELTA_LOADER,
        notes=_notes(anatomy, layout, spec),
    )


def _choose_form(architecture: Architecture, spec: ConnectorSpec) -> Form:
    form: Form = spec.form or ("stock" if "stock" in architecture.forms else "delta")
    if form not in architecture.forms:
        raise PlanError(
            f"the config of {architecture.name} has no words for several hidden states, "
            "so there is no stock form",
            hint="use --form delta",
        )
    return form


def _redrawn(checkpoint: Checkpoint, anatomy: Anatomy) -> list[TensorRecord]:
    return [_rewritten(checkpoint, name, None) for name in anatomy.projector.tensors]


def _rewritten(checkpoint: Checkpoint, name: str, shape: list[int] | None) -> TensorRecord:
    entry: TensorEntry = checkpoint.tensors[name]
    return TensorRecord(
        name=name,
        file=checkpoint.file_of(name).name,
        dtype=entry.dtype,
        shape=shape or list(entry.shape),
        base_shape=list(entry.shape),
    )


def _changed(
    checkpoint: Checkpoint,
    anatomy: Anatomy,
    layers: tuple[int, ...] | None,
    redrawn: list[TensorRecord],
) -> list[TensorRecord]:
    if layers is None:
        return []
    weight = anatomy.projector.weight
    shape = [anatomy.projector.out_features, feature_width(anatomy) * len(layers)]
    others = [record for record in redrawn if record.name != weight]
    return [_rewritten(checkpoint, weight, shape), *others]


def _config_changes(
    architecture: Architecture, config: dict[str, Any], layers: tuple[int, ...] | None
) -> dict[str, dict[str, Any]]:
    if layers is None or architecture.stock_config is None:
        return {}
    edited = architecture.stock_config(config, layers)
    return {
        key: {"from": config.get(key), "to": value}
        for key, value in edited.items()
        if key not in config or config[key] != value
    }


def _notes(anatomy: Anatomy, layout: FeatureLayout, spec: ConnectorSpec) -> list[str]:
    notes = []
    sizes = {len(block.layers) for block in layout.blocks}
    if spec.kind == "dci" and spec.layers is None:
        last = layout.layers[-1]
        if len(sizes) > 1:
            notes.append(
                f"states 0..{last} do not divide by {spec.groups}: groups of {sorted(sizes)} states"
            )
        elif last < anatomy.feature_layer:
            notes.append(
                f"groups stop at state {last}: 0..{anatomy.feature_layer} does not divide by "
                f"{spec.groups}, 0..{last} does (the reference does the same for SigLIP)"
            )
    if spec.init == "paper":
        notes.append(
            "connector and projector are drawn at random: the model sees nothing before training"
        )
    if anatomy.dropped_tokens > anatomy.tower.prefix_tokens:
        notes.append(
            "the base's vision_feature_select_strategy drops a patch token: "
            "this tower has no CLS token"
        )
    return notes


def read_plan(folder: str | Path) -> SurgeryPlan:
    """Read dense_connector/plan.json of a converted folder.

    Raises CheckpointNotFoundError when there is none, MalformedCheckpointError when it is broken.
    """
    path = Path(folder) / PLAN_FILE
    try:
        return SurgeryPlan.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointNotFoundError(
            f"{folder} has no {PLAN_FILE}: dcsurgery did not write it",
            hint="convert a model first: dcsurgery convert MODEL -o OUT",
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole file"
        raise MalformedCheckpointError(
            f"{path} is not a plan this version can read: {place}: {first['msg']}",
            hint="convert the base again, or update dcsurgery",
        ) from None
    except OSError as error:
        raise MalformedCheckpointError(
            f"{path} cannot be read: {error.strerror}", hint="check the folder's permissions"
        ) from None
