"""The plan as it is written down: dense_connector/plan.json.

Enough to verify a converted folder against its base and to go on training. Version 1, which had no
`layout`, is read as well.
"""

from __future__ import annotations

from dataclasses import fields
from errno import EINVAL
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from dcsurgery import __version__
from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import Form
from dcsurgery.errors import CheckpointNotFoundError, MalformedCheckpointError
from dcsurgery.features import FeatureLayout

DELTA_FOLDER = "dense_connector"
PLAN_FILE = f"{DELTA_FOLDER}/plan.json"
DELTA_FILE = f"{DELTA_FOLDER}/model.safetensors"
CONNECTOR_PREFIX = "dense_connector."
CONNECTOR_TENSOR = f"{CONNECTOR_PREFIX}weight"
ADAPTER_FOLDER = f"{DELTA_FOLDER}/lora"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# In names of parameters: peft's prefix of the model it wraps, and a part of those of its factors.
PEFT_MODEL = "base_model.model."
ADAPTED = ".lora_"
DELTA_LOADER = "dcsurgery.load"
# What loads a form, whatever the family.
MINI_GEMINI_LOADER = "dvlab-research/MGM with the mgm_arch.py of DenseConnector-with-mgm-7B"
LOADERS = {
    "delta": DELTA_LOADER,
    "portable": "transformers >= 4.57 with trust_remote_code=True, and what serves its models",
    "reference": "HJYao00/DenseConnector's own code",
}


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileRecord(_Record):
    """A weight file of the base: its length and the SHA-256 of its tensor table."""

    size: int
    header_sha256: str


class TowerPlace(_Record):
    """Where a tower was found: a Hub id at `commit`, or a folder; empty when it was inside."""

    place: str
    commit: str | None = None


class TemplateRecord(_Record):
    """Whose prompts an original got: a conversation's name, "own", or a file's with its `text`."""

    name: str
    text: str | None = None


class BaseRecord(_Record):
    """Where the base is (`folder` for a local one) and how to recognise it.

    A base in an original format is presented as the Hugging Face one: config and files are those
    presented, `original` says its own format, `towers` where each tower it names was found,
    `template` how its prompts are written.
    """

    id: str
    folder: str | None
    revision: str | None
    commit: str | None
    config_sha256: str
    files: dict[str, FileRecord]
    original: str | None = None
    towers: dict[str, TowerPlace] = {}
    template: TemplateRecord | None = None


class TensorRecord(_Record):
    """A tensor that is written. `base_*` are None for a tensor the base does not have."""

    name: str
    file: str
    dtype: str
    shape: list[int]
    sha256: str | None = None
    base_shape: list[int] | None = None
    base_sha256: str | None = None


class AdapterRecord(_Record):
    """A LoRA adapter of the language model in peft's own files, in dense_connector/lora/.

    `files` are their SHA-256; `targets` says which tensor of the base each adapted module's matrix
    is (modules of which no whole tensor is stored are missing). `merged` means that the stock form
    has it in its weights; else it is loaded beside them.
    """

    files: dict[str, str]
    targets: dict[str, str]
    merged: bool = False


class TrainingRecord(_Record):
    """One finished training: what was trained, on what, how. Rates and counts as they were used.

    `trained` are the names of the tensors that may differ from before it, as the delta holds them;
    `adapter` the LoRA settings (None without one). Losses are means over supervised tokens.
    `layouts` counts rows by how they are written, `columns` is what the user named, and
    `unread_pictures` counts rows by keys that look like pictures and were not read.
    `cut_rows` were longer than the training's max_length, `cut_answers` of them lost the end of an
    answer; `dropped` counts the rows of which the prompt leaves something out. `untouched` are
    tensors that were to be trained and never had a gradient: they are as they were.
    """

    train: Literal["connector", "projector", "lora", "full"]
    trained: list[str]
    trained_parameters: int
    adapter: dict[str, Any] | None = None
    data: str
    data_sha256: str
    rows: int
    skipped_rows: int
    rows_with_pictures: int | None = None
    rows_without_pictures: int | None = None
    layouts: dict[str, int] = {}
    unread_pictures: dict[str, int] = {}
    columns: dict[str, str] = {}
    cut_rows: int = 0
    cut_answers: int = 0
    dropped: dict[str, int] = {}
    untouched: list[str] = []
    seed: int
    steps: int
    epochs: float
    batch_size: int
    settings: dict[str, Any]
    first_loss: float
    last_loss: float
    seconds: float
    device: str
    versions: dict[str, str]


class SurgeryPlan(_Record):
    """The whole surgery. Hashes are None until the tensors are written."""

    schema_version: Literal[2] = 2
    tool: str = f"dcsurgery {__version__}"
    base: BaseRecord
    architecture: str
    anatomy: Anatomy
    layout: FeatureLayout
    feature_layers: list[int]
    form: Form
    # published: the values are those of a checkpoint that has its connector already.
    init: Literal["preserve", "paper", "published"]
    seed: int
    stock_layers: list[int] | None
    config_changes: dict[str, dict[str, Any]]
    processor_changes: dict[str, dict[str, Any]] = {}
    changed: list[TensorRecord]
    delta: list[TensorRecord]
    relies_on: dict[str, str | None]
    new_parameters: int
    extra_flops_per_image: int
    image_tokens: int
    loader: str
    notes: list[str]
    training: list[TrainingRecord] = []
    adapter: AdapterRecord | None = None
    code_sha256: str | None = None

    @property
    def kind(self) -> str:
        """The connector's kind."""
        return self.layout.kind

    @model_validator(mode="before")
    @classmethod
    def _read_version_1(cls, values: Any) -> Any:
        """Version 1 had the layout's fields among the plan's own, and their number of groups."""
        old = isinstance(values, dict) and values.get("schema_version") == 1
        if not old or "layout" in values:
            return values
        values = {**values, "schema_version": 2}
        values.pop("groups", None)
        names = [field.name for field in fields(FeatureLayout) if field.name in values]
        layout = {name: values.pop(name) for name in names}
        if isinstance(layout.get("blocks"), list):
            layout["blocks"] = [{"layers": layers} for layers in layout["blocks"]]
        return {**values, "layout": layout}

    @model_validator(mode="after")
    def _check_layers(self) -> SurgeryPlan:
        depth = self.anatomy.tower.depth
        for layer in [*self.layout.layers, *self.feature_layers]:
            if not 0 <= layer <= depth:
                raise ValueError(f"hidden state {layer} does not exist in {depth} blocks")
        return self

    @model_validator(mode="after")
    def _check_files(self) -> SurgeryPlan:
        """A plan may come from a stranger: its delta is read from the files it may be in alone."""
        weights = set(self.base.files) if self.form == "stock" else set()
        for record in self.delta:
            parts = PurePosixPath(record.file).parts
            inside = record.file in weights and ".." not in parts and parts[:1] != ("/",)
            if record.file != DELTA_FILE and not inside:
                raise ValueError(f"{record.name} cannot be in {record.file[:200]!r}")
        return self


def read_plan(folder: str | Path) -> SurgeryPlan:
    """Read dense_connector/plan.json of a converted folder.

    Raises CheckpointNotFoundError when there is none, MalformedCheckpointError when it is broken.
    """
    path = Path(folder) / PLAN_FILE
    try:
        if path.exists() and not path.is_file():  # reading a FIFO would wait for ever
            raise OSError(EINVAL, "it is not a regular file")
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
