"""The picture half of a LLaVA as the mmproj file that llama.cpp reads, written with `gguf`.

llama.cpp joins the hidden states that `clip.vision.feature_layer` lists and multiplies them by
`mm.0`, so that a folded connector is served as it is (tools/mtmd/models/llava.cpp, clip.cpp). It
treats the list as a set in ascending order, and puts a class token behind the patches where CLIP
has it in front (ggml-org/llama.cpp#25814): a CLIP tower is served wrong, converted or not.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.checkpoint.headers import TensorEntry
from dcsurgery.checkpoint.model_ref import local_folder
from dcsurgery.checkpoint.rewrite import NewTensor
from dcsurgery.checkpoint.staging import staged_output
from dcsurgery.connectors.folding import decode
from dcsurgery.errors import PlanError, RequestError
from dcsurgery.features import resolve_layer
from dcsurgery.originals import open_model
from dcsurgery.printing import units
from dcsurgery.printing.sheet import Printed, Sheet
from dcsurgery.surgery.base_model import open_base
from dcsurgery.surgery.export import trained_adapter
from dcsurgery.surgery.plan_file import PLAN_FILE, read_plan
from dcsurgery.surgery.planned_tensors import stock_tensors, stored_delta
from dcsurgery.surgery.trained_plan import as_complete

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

OUT_TYPES = ("f32", "f16", "q8_0")
RECORD, IMAGES = "gguf.json", "image_processor"
# Of SiglipImageProcessor and CLIPImageProcessor in transformers.
DEFAULTS = {
    "siglip_vision_model": ([0.5] * 3, [0.5] * 3),
    "clip_vision_model": (
        [0.48145466, 0.4578275, 0.40821073],
        [0.26862954, 0.26130258, 0.27577711],
    ),
}
# Where the last norm is in the file, the engine applies it to the deepest state it reads; the head
# pools, which no LLaVA does; position ids are a constant.
UNREAD = ("post_layernorm.", "head.", "embeddings.position_ids")
# The engine counts the modules of the projector, the activation between them included.
PROJECTOR = {"linear_1": "mm.0", "linear_2": "mm.2"}
CLASS_TOKEN = "https://github.com/ggml-org/llama.cpp/issues/25814"


@dataclass(frozen=True)
class GgufExport(Printed):
    """What was written, and the commands that complete it.

    `layers` are the hidden states that the engine joins, `problems` what it computes in another way
    and --force let pass.
    """

    output: Path
    projector: Path
    layers: tuple[int, ...]
    tensors: int
    commands: tuple[str, ...]
    problems: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; keys only ever get added."""
        paths = {"output": str(self.output), "projector": str(self.projector)}
        return {"schema_version": 1, **asdict(self), **paths}

    def show(self, out: Sheet) -> None:
        """Put what was written on a sheet."""
        out.show(f"{self.projector}: what llama.cpp reads of the picture half", "bold")
        states = ", ".join(map(str, self.layers))
        rows = [("tensors", f"{self.tensors} in {units.size(self.projector.stat().st_size)}")]
        rows += [("hidden states", states), *(("forced", problem) for problem in self.problems)]
        out.facts(rows)


@dataclass(frozen=True)
class _Served:
    """A complete model: the config and the tensors that plain transformers would load."""

    config: Mapping[str, Any]
    checkpoint: Checkpoint
    changed: Mapping[str, NewTensor]
    language: str

    @property
    def whole(self) -> bool:
        """True when the language model is as it stands in `language`."""
        return not any(_place(name)[0] == "language" for name in self.changed)

    def pictures(self) -> list[str]:
        """Return the tensors of tower and projector that the engine reads."""
        names = {**self.checkpoint.tensors, **self.changed}
        return [name for name in names if _place(name)[0] in ("tower", "projector")]

    def entry(self, name: str) -> NewTensor | TensorEntry:
        return self.changed.get(name) or self.checkpoint.tensors[name]

    def read(self, name: str) -> NDArray[np.float32]:
        item = self.entry(name)
        if isinstance(item, NewTensor):
            raw = b"".join(item.stream())
        else:
            raw = self.checkpoint.read_tensor(name)
        return decode(raw, item.dtype).astype("<f4").reshape(item.shape)


def export_gguf(  # noqa: PLR0913 - one keyword per CLI option, by design
    model: str | Path,
    output: str | Path,
    *,
    outtype: str = "f16",
    base: str | Path | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    force: bool = False,
) -> GgufExport:
    """Write vision tower, connector and projector of a LLaVA as `mmproj-<outtype>.gguf`.

    `model` is a folder or Hub id, converted (in any form) or not; a trained connector is folded on
    the way. `outtype` is f32, f16 or q8_0 for matrices; vectors stay f32. The language model is
    llama.cpp's own converter's work: the result names its command. `force` writes what llama.cpp
    is known to serve wrong. Raises PlanError for a model that llama.cpp cannot serve.
    """
    gguf = _gguf()
    if outtype not in OUT_TYPES:
        raise RequestError(
            f"--outtype {outtype} does not exist", hint=f"choose one of {', '.join(OUT_TYPES)}"
        )
    served = _open(model, base, revision)
    notes = _check(served, force)
    layers = _layers(served.config)
    # Half precision grows to float32 at most.
    needed = 2 * sum(served.entry(name).nbytes for name in served.pictures())
    target, file = Path(output), f"mmproj-{outtype}.gguf"
    sources = [*served.checkpoint.folders, *([Path(model)] if Path(model).is_dir() else [])]
    with staged_output(target, overwrite=overwrite, needed=needed, sources=sources) as new:
        count = _write(gguf, served, layers, new / file, outtype)
        where = str(Path(model).resolve()) if Path(model).is_dir() else str(model)
        record = {"model": where, "revision": revision, "base": None if base is None else str(base)}
        text = json.dumps({"schema_version": 1, **record, "projector": file}, indent=2)
        (new / RECORD).write_text(text + "\n", encoding="utf-8")
    return GgufExport(
        target, target / file, layers, count, _commands(target, file, served, model), notes
    )


def _gguf() -> ModuleType:
    try:
        import gguf
    except ImportError:
        raise RequestError(
            "--form gguf is written with the gguf package, which is not installed",
            hint="pip install gguf",
        ) from None
    module: ModuleType = gguf
    return module


def _open(model: str | Path, base: str | Path | None, revision: str | None) -> _Served:
    """Open a model as the complete checkpoint that its stock form is, without writing one."""
    folder = local_folder(model, revision)
    plan = read_plan(folder) if (folder / PLAN_FILE).is_file() else None
    loose = plan is not None and plan.adapter is not None and not plan.adapter.merged
    if plan is None or (plan.form == "stock" and not loose):
        checkpoint = open_model(model, revision)
        return _Served(checkpoint.config, checkpoint, {}, str(model))
    adapter = trained_adapter(
        plan, folder, hint="train one that can, or serve it with transformers"
    )
    checkpoint = open_base(plan, base)
    after = as_complete(checkpoint, plan, "stock", merge=True)
    changed = stock_tensors(checkpoint, after, stored_delta(folder, plan), adapter)
    config = {**checkpoint.config, "vision_feature_layer": after.stock_layers}
    return _Served(config, checkpoint, changed, checkpoint.ref.name)


def _picture_settings(served: _Served) -> tuple[list[float], list[float]]:
    """Return mean and deviation of pictures; transformers 5 keeps them in the processor's file.

    Where they are not written they are the defaults of the tower's own image processor.
    """
    checkpoint = served.checkpoint
    for name, key in (("preprocessor_config.json", ""), ("processor_config.json", IMAGES)):
        if name not in checkpoint.side_files:
            continue
        found = json.loads(checkpoint.read_file(name))
        if found := found.get(key) if key else found:
            mean, std = DEFAULTS[served.config["vision_config"]["model_type"]]
            return list(found.get("image_mean") or mean), list(found.get("image_std") or std)
    raise PlanError(
        f"{checkpoint.ref.name} has no image processor: nothing says how pictures are scaled",
        hint="add the preprocessor_config.json of the model it was made from",
    )


def _check(served: _Served, force: bool) -> tuple[str, ...]:
    """Return what is wrong and was forced. Raises PlanError for what cannot be served."""
    config = served.config
    vision = config.get("vision_config") or {}
    kind, tower = config.get("model_type"), vision.get("model_type")
    if kind != "llava" or tower not in ("siglip_vision_model", "clip_vision_model"):
        raise PlanError(
            f"llama.cpp has no mmproj of this kind for {kind} (tower {tower})",
            hint="LLaVA-1.5 with a SigLIP tower has; for others export --form stock or portable",
        )
    wrong = []
    if tower == "clip_vision_model":
        wrong.append(
            "llama.cpp puts the class token of a CLIP tower behind the patches: it answers from "
            f"other features, with or without a connector ({CLASS_TOKEN})"
        )
    elif config.get("vision_feature_select_strategy", "default") == "default":
        wrong.append(
            "vision_feature_select_strategy is default: transformers drops the first patch of the "
            "SigLIP tower, llama.cpp keeps it"
        )
    if (act := config.get("projector_hidden_act", "gelu")) != "gelu":
        wrong.append(f"the projector's activation is {act}; llama.cpp computes gelu")
    if wrong and not force:
        raise PlanError("; ".join(wrong), hint="--force writes it nevertheless")
    return tuple(wrong)


def _layers(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the states that are joined, none negative: -1 means "unset" to the engine."""
    depth = config["vision_config"]["num_hidden_layers"]
    listed = config.get("vision_feature_layer", -2)
    states = listed if isinstance(listed, list) else [listed]
    return tuple(resolve_layer(layer, depth) for layer in states)


def _place(name: str) -> tuple[str, str]:
    """Return where a tensor belongs and its name there, whichever transformers wrote it."""
    name = name.removeprefix("model.")
    for part, prefix in (("tower", "vision_tower."), ("projector", "multi_modal_projector.")):
        if name.startswith(prefix):
            inner = name.removeprefix(prefix).removeprefix("vision_model.")
            return "unread" if inner.startswith(UNREAD) else part, inner
    return "language", name


def _write(
    gguf: ModuleType, served: _Served, layers: tuple[int, ...], path: Path, outtype: str
) -> int:
    depth = served.config["vision_config"]["num_hidden_layers"]
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, depth)
    writer = gguf.GGUFWriter(path, "clip")
    tensors: dict[str, NDArray[np.float32]] = {}
    for name in served.pictures():
        part, inner = _place(name)
        if part == "projector":
            module, kind = inner.rsplit(".", 1)
            tensors[f"{PROJECTOR[module]}.{kind}"] = served.read(name)
        else:
            full = f"vision_tower.vision_model.{inner}"
            found = known.get_name(full, (".weight", ".bias"))
            if found is None:
                raise PlanError(f"llama.cpp has no name for {name}", hint="report this model")
            tensors[found] = served.read(name)
    _write_settings(writer, served, layers, tensors)
    for name, values in tensors.items():
        _add(gguf, writer, name, values, outtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return len(tensors)


def _write_settings(
    writer: Any,
    served: _Served,
    layers: tuple[int, ...],
    tensors: Mapping[str, NDArray[np.float32]],
) -> None:
    vision = served.config["vision_config"]
    siglip = vision["model_type"] == "siglip_vision_model"
    writer.add_type("mmproj")
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("mlp")
    writer.add_bool("clip.has_llava_projector", True)
    writer.add_vision_attention_layernorm_eps(
        vision.get("layer_norm_eps", 1e-6 if siglip else 1e-5)
    )
    writer.add_vision_block_count(vision["num_hidden_layers"])
    writer.add_vision_embedding_length(vision["hidden_size"])
    writer.add_vision_feed_forward_length(vision["intermediate_size"])
    writer.add_vision_head_count(vision["num_attention_heads"])
    mean, std = _picture_settings(served)
    writer.add_vision_image_mean(mean)
    writer.add_vision_image_std(std)
    writer.add_vision_image_size(vision["image_size"])
    writer.add_vision_patch_size(vision["patch_size"])
    writer.add_vision_projection_dim(tensors["mm.2.weight"].shape[0])
    # Neither key is quick_gelu, CLIP's; gelu is ggml's own, a tanh form in half precision.
    act = vision.get("hidden_act", "gelu_pytorch_tanh" if siglip else "quick_gelu")
    writer.add_vision_use_gelu(act != "quick_gelu")
    writer.add_array("clip.vision.feature_layer", list(layers))


def _add(
    gguf: ModuleType, writer: Any, name: str, values: NDArray[np.float32], outtype: str
) -> None:
    """Add a tensor: matrices in the wanted type, everything that is added to a sum in float32."""
    import numpy as np

    kinds = gguf.GGMLQuantizationType
    matrix = values.ndim == 2 and "embd" not in name
    if outtype == "q8_0" and matrix and values.shape[1] % 32 == 0:
        writer.add_tensor(name, gguf.quants.quantize(values, kinds.Q8_0), raw_dtype=kinds.Q8_0)
    elif outtype != "f32" and (matrix or values.ndim == 4):
        writer.add_tensor(name, values.astype(np.float16))
    else:
        writer.add_tensor(name, values)


def _commands(output: Path, file: str, served: _Served, model: str | Path) -> tuple[str, ...]:
    """Return what completes the export: the language model, a server, and the comparison."""
    text = shlex.quote(str(output / "text-f16.gguf"))
    source, commands = shlex.quote(served.language), []
    if not served.whole:
        source = shlex.quote(f"{output}-stock")
        commands.append(f"dcsurgery export {shlex.quote(str(model))} -o {source}")
    commands.append(f"python convert_hf_to_gguf.py {source} --outfile {text} --outtype f16")
    commands.append(f"llama-server -m {text} --mmproj {shlex.quote(str(output / file))}")
    commands.append(f"dcsurgery verify {shlex.quote(str(output))} --engine llama.cpp")
    return tuple(commands)
