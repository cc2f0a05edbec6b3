"""Load a model's own processor, also where its video half cannot be loaded."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from dcsurgery.checkpoint.model_ref import local_folder
from dcsurgery.errors import RequestError
from dcsurgery.loading.adopted_models import small_files
from dcsurgery.loading.load import quiet_transformers
from dcsurgery.modeling import register
from dcsurgery.originals import Hints, is_original, open_model, told
from dcsurgery.surgery.base_model import find_base
from dcsurgery.surgery.plan_file import PLAN_FILE, read_plan

# Video-LLaVA's image processor still uses a name that its model has dropped.
RENAMED = {"pixel_values_images": "pixel_values"}
# Whatever a library may raise over a config that only its own code understands.
FOREIGN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
FOREIGN_ERRORS = (*FOREIGN, StrictDataclassError)
# What LLaVA's processors cannot count without; repositories from before transformers 4.46 lack it.
COUNTING = ("patch_size", "num_image_tokens")
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


def load_processor(
    path: str | Path,
    *,
    revision: str | None = None,
    base: str | Path | None = None,
    towers: Mapping[str, str] | None = None,
    template: str | None = None,
) -> Any:
    """Return the processor of a model folder or Hub id; a delta's is its base's, unless it has one.

    `towers` and `template` are as load_model takes them. Where torchvision is missing, the
    processor comes without its video half. Code of the repository's own is never run. Raises
    RequestError when there is no processor that works here.
    """
    with (
        processor_files(path, revision, base, told(towers, template)) as folder,
        quiet_transformers(),
        _no_questions(),
    ):
        register()
        try:
            processor = _load_whole(folder)
        except FOREIGN_ERRORS as error:
            processor = _load_without_video(folder, error)
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise _unusable(folder, f"it is only a {type(processor).__name__}")
    for word in COUNTING:
        if getattr(processor, word, "") is None:
            raise RequestError(
                f"the processor of {path} has no {word}: it cannot count image tokens",
                hint="`dcsurgery convert` takes it from config.json; or add it to "
                f"{PROCESSOR_FILES[0]}",
            )
    return processor


@contextmanager
def processor_files(
    path: str | Path,
    revision: str | None = None,
    base: str | Path | None = None,
    hints: Hints | None = None,
) -> Iterator[Path]:
    """Yield a folder that holds a model's processor files, a temporary one for original formats."""
    folder = local_folder(path, revision)
    own = any((folder / name).is_file() for name in PROCESSOR_FILES)
    converted = (folder / PLAN_FILE).is_file()
    if converted and not own:
        with small_files(find_base(read_plan(folder), base, (hints or Hints()).towers)) as found:
            yield found
    elif not converted and is_original(_read(folder / "config.json")):
        with small_files(open_model(path, revision, hints=hints)) as found:
            yield found
    else:
        yield folder


@contextmanager
def _no_questions() -> Iterator[None]:
    """Keep transformers from asking on the terminal whether to run a repository's own code."""
    from transformers import dynamic_module_utils

    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = before


def _load_whole(folder: Path) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(folder, trust_remote_code=False)


def _load_without_video(folder: Path, error: Exception) -> Any:
    """Return the processor with a stand-in for the half that needs torchvision."""
    from transformers import AutoImageProcessor, AutoTokenizer

    name = _class_name(folder)
    if name is None:
        raise _unusable(folder, _words(error))
    try:
        known = _lenient(_processor_class(name))
        settings = _read(folder / PROCESSOR_FILES[0])
        template = _read(folder / "chat_template.json").get("chat_template")
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        parts = {
            "tokenizer": tokenizer,
            "image_processor": AutoImageProcessor.from_pretrained(folder, trust_remote_code=False),
            "video_processor": _NoVideo(),
        }
        if (folder / "chat_template.jinja").is_file():
            template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        arguments = [parts[item] for item in known.get_attributes()]
        chosen = {"chat_template": template or getattr(tokenizer, "chat_template", None)}
        return known.from_args_and_dict(arguments, {**settings, **chosen})
    except FOREIGN_ERRORS as second:
        raise _unusable(folder, _words(second)) from None


class _NoVideo(dict[str, Any]):
    """Stands where a video processor would, and is written as {}; nothing is asked of it."""

    merge_size = 2
    temporal_patch_size = 2


def _lenient(known: Any) -> Any:
    """Return a subclass that takes the stand-in; its name stays, because templates ask for it."""

    def accept(self: Any, name: str, argument: Any) -> Any:
        return type(argument)

    return type(known.__name__, (known,), {"check_argument_for_proper_class": accept})


def _class_name(folder: Path) -> str | None:
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    for file in (*PROCESSOR_FILES, "tokenizer_config.json"):
        if found := _read(folder / file).get("processor_class"):
            return str(found)
    found = PROCESSOR_MAPPING_NAMES.get(_read(folder / "config.json").get("model_type"))
    return None if found is None else str(found)


def _processor_class(name: str) -> Any:
    """Return the class from its own module: transformers itself shows a dummy without torchvision.

    Raises AttributeError for an unknown one.
    """
    import transformers.models

    for folder in transformers.models.__path__:
        for path in sorted(Path(folder).glob("*/processing_*.py")):
            if f"class {name}(" in path.read_text(encoding="utf-8"):
                module = _import_processing(f"transformers.models.{path.parent.name}", path.stem)
                if getattr(module, "num2words", "") is None:
                    module.num2words = str  # counts a video's frames in words: never asked
                return getattr(module, name)
    raise AttributeError(f"transformers has no {name}")


def _import_processing(package: str, stem: str) -> Any:
    """Import a processor's module; its family's Pillow helpers stand in for torchvision's."""
    try:
        return importlib.import_module(f"{package}.{stem}")
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise
    family = stem.removeprefix("processing_")
    wanted = f"{package}.image_processing_{family}"
    sys.modules[wanted] = importlib.import_module(f"{package}.image_processing_pil_{family}")
    try:
        return importlib.import_module(f"{package}.{stem}")
    finally:
        del sys.modules[wanted]


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _unusable(folder: Path, why: str) -> RequestError:
    torchvision = "torchvision" in why.lower()
    return RequestError(
        f"{folder} has no processor that works here: {why}",
        hint="install the torchvision release that belongs to your torch"
        if torchvision
        else "the folder needs the processor and tokenizer files of its base model",
    )
