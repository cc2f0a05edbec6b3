"""The README of a delta, which no other tool can load."""

from __future__ import annotations

from dcsurgery.surgery.plan_file import SurgeryPlan, TrainingRecord

CARD = "README.md"
BEGIN = "<!-- dcsurgery: from here to the end mark this text is written by `dcsurgery push` -->"
END = "<!-- dcsurgery: end -->"


def delta_readme(plan: SurgeryPlan) -> str:
    """Return README.md of a delta: what it is for and how to load it."""
    commit = f" at commit `{plan.base.commit}`" if plan.base.commit else ""
    trained = "".join(map(_trained, plan.training))
    return f"""# Dense Connector delta for {plan.base.id}

This folder holds no base weights: it is a `{plan.kind}` connector for `{plan.base.id}`{commit}.
{trained}
```python
import dcsurgery

model = dcsurgery.load("path/to/this/folder")
```

Plain transformers cannot load it. `dense_connector/plan.json` says what it contains and on which
tensors of the base it relies; `dcsurgery verify` checks it, `dcsurgery export` makes a complete
checkpoint of it where the family has one.
"""


def _trained(record: TrainingRecord) -> str:
    lora = " and a LoRA adapter (`dense_connector/lora/`)" if record.train == "lora" else ""
    return (
        f"\nTrained ({record.train}): {record.steps} steps on `{record.data}`, "
        f"{len(record.trained)} tensors{lora}.\n"
    )
