"""Retrofit the Dense Connector (arXiv 2405.13800) into existing vision-language models."""

from __future__ import annotations

import importlib
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dcsurgery.connectors.request import Connector
    from dcsurgery.demo.story import run_demo
    from dcsurgery.evaluation.ask import Answer
    from dcsurgery.evaluation.ask import ask_model as ask
    from dcsurgery.evaluation.eval_report import EvalReport
    from dcsurgery.evaluation.foreign import score_answers
    from dcsurgery.evaluation.runner import EvalSettings
    from dcsurgery.evaluation.runner import evaluate_checkpoints as evaluate
    from dcsurgery.evaluation.trial_report import TrialReport
    from dcsurgery.loading.load import load_model as load
    from dcsurgery.modeling import register
    from dcsurgery.probing.probe import probe_model as probe
    from dcsurgery.probing.probe_report import ProbeReport
    from dcsurgery.publishing.push import PushResult
    from dcsurgery.publishing.push import push_checkpoint as push
    from dcsurgery.recipes import Recipe, RecipeRun, load_recipe, run_recipe
    from dcsurgery.serving.compare import verify_engine
    from dcsurgery.serving.gguf import export_gguf
    from dcsurgery.surgery.conversion import Conversion, ConversionPlan
    from dcsurgery.surgery.convert import convert_checkpoint as convert
    from dcsurgery.surgery.convert import plan_conversion as plan
    from dcsurgery.surgery.export import export_checkpoint as export
    from dcsurgery.surgery.inspection import Inspection
    from dcsurgery.surgery.inspection import inspect_checkpoint as inspect
    from dcsurgery.surgery.plan_file import SurgeryPlan, read_plan
    from dcsurgery.training.finetune import finetune_connector as finetune
    from dcsurgery.training.finetuned import Finetuned, TrainingPlan
    from dcsurgery.training.settings import TrainingSettings
    from dcsurgery.trials.trial import try_model as trial
    from dcsurgery.verification import Report
    from dcsurgery.verification import verify_checkpoint as verify

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "Connector",
    "Conversion",
    "ConversionPlan",
    "EvalReport",
    "EvalSettings",
    "Finetuned",
    "Inspection",
    "ProbeReport",
    "PushResult",
    "Recipe",
    "RecipeRun",
    "Report",
    "SurgeryPlan",
    "TrainingPlan",
    "TrainingSettings",
    "TrialReport",
    "__version__",
    "ask",
    "convert",
    "evaluate",
    "export",
    "export_gguf",
    "finetune",
    "inspect",
    "load",
    "load_recipe",
    "plan",
    "probe",
    "push",
    "read_plan",
    "register",
    "run_demo",
    "run_recipe",
    "score_answers",
    "trial",
    "verify",
    "verify_engine",
]

_HOMES = {
    "Answer": "evaluation.ask:Answer",
    "Connector": "connectors.request:Connector",
    "Conversion": "surgery.conversion:Conversion",
    "ConversionPlan": "surgery.conversion:ConversionPlan",
    "EvalReport": "evaluation.eval_report:EvalReport",
    "EvalSettings": "evaluation.runner:EvalSettings",
    "Finetuned": "training.finetuned:Finetuned",
    "Inspection": "surgery.inspection:Inspection",
    "ProbeReport": "probing.probe_report:ProbeReport",
    "PushResult": "publishing.push:PushResult",
    "Recipe": "recipes:Recipe",
    "RecipeRun": "recipes:RecipeRun",
    "Report": "verification:Report",
    "SurgeryPlan": "surgery.plan_file:SurgeryPlan",
    "TrainingPlan": "training.finetuned:TrainingPlan",
    "TrainingSettings": "training.settings:TrainingSettings",
    "TrialReport": "evaluation.trial_report:TrialReport",
    "ask": "evaluation.ask:ask_model",
    "convert": "surgery.convert:convert_checkpoint",
    "evaluate": "evaluation.runner:evaluate_checkpoints",
    "export": "surgery.export:export_checkpoint",
    "export_gguf": "serving.gguf:export_gguf",
    "finetune": "training.finetune:finetune_connector",
    "inspect": "surgery.inspection:inspect_checkpoint",
    "load": "loading.load:load_model",
    "load_recipe": "recipes:load_recipe",
    "plan": "surgery.convert:plan_conversion",
    "probe": "probing.probe:probe_model",
    "push": "publishing.push:push_checkpoint",
    "read_plan": "surgery.plan_file:read_plan",
    "register": "modeling:register",
    "run_demo": "demo.story:run_demo",
    "run_recipe": "recipes:run_recipe",
    "score_answers": "evaluation.foreign:score_answers",
    "trial": "trials.trial:try_model",
    "verify": "verification:verify_checkpoint",
    "verify_engine": "serving.compare:verify_engine",
}
# Names of 0.1, kept for one release.
_RENAMED = {
    "ConnectorSpec": "Connector",
    "TrainingPreview": "TrainingPlan",
    "ask_model": "ask",
    "convert_checkpoint": "convert",
    "evaluate_checkpoints": "evaluate",
    "export_checkpoint": "export",
    "finetune_connector": "finetune",
    "inspect_checkpoint": "inspect",
    "load_model": "load",
    "push_checkpoint": "push",
    "verify_checkpoint": "verify",
}


# Functions of 0.1 that are called in another way now: what to call, and what still works.
_REPLACED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "make_plan": ("plan(model, ...)", "surgery.plan:make_plan", {}),
    "preview_finetune": (
        "finetune(..., dry_run=True)", "training.finetune:finetune_connector", {"dry_run": True},
    ),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import public names on first use (PEP 562), so that `import dcsurgery` stays instant."""
    options: dict[str, Any] = {}
    home = _HOMES.get(_RENAMED.get(name, name), "")
    if name in _RENAMED:
        _warn(name, _RENAMED[name])
    elif name in _REPLACED:
        new, home, options = _REPLACED[name]
        _warn(name, new)
    elif not home:
        raise AttributeError(f"module 'dcsurgery' has no attribute {name!r}")
    module, _, attribute = home.partition(":")
    found = getattr(importlib.import_module(f"dcsurgery.{module}"), attribute)
    return partial(found, **options) if options else found


def _warn(old: str, new: str) -> None:
    warnings.warn(f"dcsurgery.{old} is now dcsurgery.{new}", DeprecationWarning, stacklevel=3)


def __dir__() -> list[str]:
    return sorted(__all__)
