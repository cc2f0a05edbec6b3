"""Retrofit the Dense Connector (arXiv 2405.13800) into existing vision-language models."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Costs no import of transformers: its Auto classes learn dcsurgery's models once they exist.
from dcsurgery import modeling as modeling

if TYPE_CHECKING:
    from dcsurgery.connectors.spec import ConnectorSpec
    from dcsurgery.convert import Conversion, convert_checkpoint
    from dcsurgery.demo.story import run_demo
    from dcsurgery.evaluation.ask import Answer, ask_model
    from dcsurgery.evaluation.report import EvalReport
    from dcsurgery.evaluation.runner import EvalSettings, evaluate_checkpoints
    from dcsurgery.export import export_checkpoint
    from dcsurgery.inspection import Inspection, inspect_checkpoint
    from dcsurgery.loading import load_model
    from dcsurgery.plan import make_plan
    from dcsurgery.publishing.push import PushResult, push_checkpoint
    from dcsurgery.recipes import Recipe, RecipeRun, load_recipe, run_recipe
    from dcsurgery.records import SurgeryPlan, read_plan
    from dcsurgery.training.finetune import (
        Finetuned,
        TrainingPreview,
        finetune_connector,
        preview_finetune,
    )
    from dcsurgery.training.settings import TrainingSettings
    from dcsurgery.verification import Report, verify_checkpoint

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "ConnectorSpec",
    "Conversion",
    "EvalReport",
    "EvalSettings",
    "Finetuned",
    "Inspection",
    "PushResult",
    "Recipe",
    "RecipeRun",
    "Report",
    "SurgeryPlan",
    "TrainingPreview",
    "TrainingSettings",
    "__version__",
    "ask_model",
    "convert_checkpoint",
    "evaluate_checkpoints",
    "export_checkpoint",
    "finetune_connector",
    "inspect_checkpoint",
    "load_model",
    "load_recipe",
    "make_plan",
    "preview_finetune",
    "push_checkpoint",
    "read_plan",
    "run_demo",
    "run_recipe",
    "verify_checkpoint",
]

_HOMES = {
    "Answer": "evaluation.ask",
    "ConnectorSpec": "connectors.spec",
    "Conversion": "convert",
    "EvalReport": "evaluation.report",
    "EvalSettings": "evaluation.runner",
    "Finetuned": "training.finetune",
    "Inspection": "inspection",
    "PushResult": "publishing.push",
    "Recipe": "recipes",
    "RecipeRun": "recipes",
    "Report": "verification",
    "SurgeryPlan": "records",
    "TrainingPreview": "training.finetune",
    "TrainingSettings": "training.settings",
    "ask_model": "evaluation.ask",
    "convert_checkpoint": "convert",
    "export_checkpoint": "export",
    "evaluate_checkpoints": "evaluation.runner",
    "finetune_connector": "training.finetune",
    "inspect_checkpoint": "inspection",
    "load_model": "loading",
    "load_recipe": "recipes",
    "make_plan": "plan",
    "preview_finetune": "training.finetune",
    "push_checkpoint": "publishing.push",
    "read_plan": "records",
    "run_demo": "demo.story",
    "run_recipe": "recipes",
    "verify_checkpoint": "verification",
}


def __getattr__(name: str) -> Any:
    """Import public names on first use (PEP 562), so that `import dcsurgery` stays instant."""
    if name not in _HOMES:
        raise AttributeError(f"module 'dcsurgery' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dcsurgery.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
