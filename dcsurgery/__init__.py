"""Retrofit the Dense Connector (arXiv 2405.13800) into existing vision-language models."""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dcsurgery.connectors.spec import ConnectorSpec
    from dcsurgery.demo.story import run_demo
    from dcsurgery.evaluation.ask import Answer
    from dcsurgery.evaluation.ask import ask_model as ask
    from dcsurgery.evaluation.eval_report import EvalReport
    from dcsurgery.evaluation.foreign import score_answers
    from dcsurgery.evaluation.runner import EvalSettings
    from dcsurgery.evaluation.runner import evaluate_checkpoints as evaluate
    from dcsurgery.loading.load import load_model as load
    from dcsurgery.modeling import register
    from dcsurgery.probing.probe import probe_model as probe
    from dcsurgery.probing.probe_report import ProbeReport
    from dcsurgery.publishing.push import PushResult
    from dcsurgery.publishing.push import push_checkpoint as push
    from dcsurgery.recipes import Recipe, RecipeRun, load_recipe, run_recipe
    from dcsurgery.surgery.convert import Conversion
    from dcsurgery.surgery.convert import convert_checkpoint as convert
    from dcsurgery.surgery.export import export_checkpoint as export
    from dcsurgery.surgery.inspection import Inspection
    from dcsurgery.surgery.inspection import inspect_checkpoint as inspect
    from dcsurgery.surgery.plan_file import SurgeryPlan, read_plan
    from dcsurgery.training.finetune import Finetuned, TrainingPreview, preview_finetune
    from dcsurgery.training.finetune import finetune_connector as finetune
    from dcsurgery.training.settings import TrainingSettings
    from dcsurgery.verification import Report
    from dcsurgery.verification import verify_checkpoint as verify

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "ConnectorSpec",
    "Conversion",
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
    "TrainingPreview",
    "TrainingSettings",
    "__version__",
    "ask",
    "convert",
    "evaluate",
    "export",
    "finetune",
    "inspect",
    "load",
    "load_recipe",
    "preview_finetune",
    "probe",
    "push",
    "read_plan",
    "register",
    "run_demo",
    "run_recipe",
    "score_answers",
    "verify",
]

_HOMES = {
    "Answer": "evaluation.ask:Answer",
    "ConnectorSpec": "connectors.spec:ConnectorSpec",
    "Conversion": "surgery.convert:Conversion",
    "EvalReport": "evaluation.eval_report:EvalReport",
    "EvalSettings": "evaluation.runner:EvalSettings",
    "Finetuned": "training.finetune:Finetuned",
    "Inspection": "surgery.inspection:Inspection",
    "ProbeReport": "probing.probe_report:ProbeReport",
    "PushResult": "publishing.push:PushResult",
    "Recipe": "recipes:Recipe",
    "RecipeRun": "recipes:RecipeRun",
    "Report": "verification:Report",
    "SurgeryPlan": "surgery.plan_file:SurgeryPlan",
    "TrainingPreview": "training.finetune:TrainingPreview",
    "TrainingSettings": "training.settings:TrainingSettings",
    "ask": "evaluation.ask:ask_model",
    "convert": "surgery.convert:convert_checkpoint",
    "evaluate": "evaluation.runner:evaluate_checkpoints",
    "export": "surgery.export:export_checkpoint",
    "finetune": "training.finetune:finetune_connector",
    "inspect": "surgery.inspection:inspect_checkpoint",
    "load": "loading.load:load_model",
    "load_recipe": "recipes:load_recipe",
    "preview_finetune": "training.finetune:preview_finetune",
    "probe": "probing.probe:probe_model",
    "push": "publishing.push:push_checkpoint",
    "read_plan": "surgery.plan_file:read_plan",
    "register": "modeling:register",
    "run_demo": "demo.story:run_demo",
    "run_recipe": "recipes:run_recipe",
    "score_answers": "evaluation.foreign:score_answers",
    "verify": "verification:verify_checkpoint",
}
# Names of 0.1, kept for one release.
_RENAMED = {
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


def __getattr__(name: str) -> Any:
    """Import public names on first use (PEP 562), so that `import dcsurgery` stays instant."""
    if name in _RENAMED:
        new = _RENAMED[name]
        warnings.warn(f"dcsurgery.{name} is now dcsurgery.{new}", DeprecationWarning, stacklevel=2)
        name = new
    if name == "make_plan":
        warnings.warn(
            "dcsurgery.make_plan is now dcsurgery.convert(..., dry_run=True)",
            DeprecationWarning,
            stacklevel=2,
        )
        return importlib.import_module("dcsurgery.surgery.plan").make_plan
    if name not in _HOMES:
        raise AttributeError(f"module 'dcsurgery' has no attribute {name!r}")
    home, _, attribute = _HOMES[name].partition(":")
    return getattr(importlib.import_module(f"dcsurgery.{home}"), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
