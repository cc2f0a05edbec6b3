"""Retrofit the Dense Connector (arXiv 2405.13800) into existing vision-language models."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Costs no import of transformers: its Auto classes learn dcsurgery's models once they exist.
from dcsurgery import modeling as modeling

if TYPE_CHECKING:
    from dcsurgery.connectors.spec import ConnectorSpec
    from dcsurgery.convert import Conversion, convert_checkpoint
    from dcsurgery.inspection import Inspection, inspect_checkpoint
    from dcsurgery.loading import load_model
    from dcsurgery.plan import make_plan
    from dcsurgery.publishing.push import PushResult, push_checkpoint
    from dcsurgery.records import SurgeryPlan, read_plan
    from dcsurgery.verification import Report, verify_checkpoint

__version__ = "0.1.0"

__all__ = [
    "ConnectorSpec",
    "Conversion",
    "Inspection",
    "PushResult",
    "Report",
    "SurgeryPlan",
    "__version__",
    "convert_checkpoint",
    "inspect_checkpoint",
    "load_model",
    "make_plan",
    "push_checkpoint",
    "read_plan",
    "verify_checkpoint",
]

_HOMES = {
    "ConnectorSpec": "connectors.spec",
    "Conversion": "convert",
    "Inspection": "inspection",
    "PushResult": "publishing.push",
    "Report": "verification",
    "SurgeryPlan": "records",
    "convert_checkpoint": "convert",
    "inspect_checkpoint": "inspection",
    "load_model": "loading",
    "make_plan": "plan",
    "push_checkpoint": "publishing.push",
    "read_plan": "records",
    "verify_checkpoint": "verification",
}


def __getattr__(name: str) -> Any:
    """Import public names on first use (PEP 562), so that `import dcsurgery` stays instant."""
    if name not in _HOMES:
        raise AttributeError(f"module 'dcsurgery' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dcsurgery.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
