"""Runs in a process without dcsurgery: what a portable folder does in plain transformers.

`python portable_child.py JOBS RESULTS`: JOBS is a JSON list of {"name", "folder", "stock",
"inputs": [files], "logits": [files], "checks": [names]}; RESULTS becomes {name: {check: "" or what
went wrong}}.
"""

from __future__ import annotations

import copy
import importlib.abc
import json
import sys
import tempfile
import traceback
import warnings
from pathlib import Path


class Blocked(importlib.abc.MetaPathFinder):
    """dcsurgery is not installed here."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "dcsurgery":
            raise ModuleNotFoundError("dcsurgery is blocked")


sys.meta_path.insert(0, Blocked())
warnings.simplefilter("ignore")

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModel, AutoModelForImageTextToText  # noqa: E402

CODE = "modeling_dense_connector.py"
transformers.logging.set_verbosity(60)
torch.set_num_threads(1)
FIVE = int(transformers.__version__.split(".")[0]) >= 5


def load(folder, auto=AutoModelForImageTextToText, **options):
    options = {"dtype" if FIVE else "torch_dtype": torch.float32, **options}
    return auto.from_pretrained(folder, trust_remote_code=True, **options).eval()


# transformers 4 calls some inputs otherwise, or has no place for them.
OLD_NAMES = {"VideoLlavaForConditionalGeneration": {"pixel_values": "pixel_values_images"}}
OLD_EXTRA = {"mm_token_type_ids"}


class Job:
    def __init__(self, job, folder, logits):
        self.folder, self.stock, self.base = job[folder], job["stock"], job["base"]
        self.inputs = [self.named(load_file(path)) for path in job["inputs"]]
        self.wanted = [load_file(path)["logits"] for path in job[logits]]
        self.model = load(self.folder)

    def named(self, inputs):
        if FIVE:
            return inputs
        names = OLD_NAMES.get(self.stock, {})
        return {names.get(k, k): v for k, v in inputs.items() if k not in OLD_EXTRA}

    def compare(self, model, exact=True, pairs=None):
        """Compare logits, to the bit unless another version or another order of sums is at work."""
        for inputs, wanted in pairs or zip(self.inputs, self.wanted):
            with torch.no_grad():
                found = model(**copy.deepcopy(inputs)).logits
            worst = (found - wanted).abs().max().item()
            limit = 0 if exact and FIVE else 5e-5 * wanted.abs().max().item()
            assert worst <= limit, f"differs by {worst:.3g}"

    def equals_the_branch(self):
        self.compare(self.model)

    def generates(self):
        inputs = copy.deepcopy(self.inputs[0])
        image = self.model.config.image_token_id
        options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
        with torch.no_grad():
            found = self.model.generate(**inputs, **options, suppress_tokens=[image])
        assert found.shape[1] == inputs["input_ids"].shape[1] + 3

    def inner_model_loads(self):
        inner = load(self.folder, AutoModel)
        assert type(inner).__name__.startswith("Dense") and type(inner).__name__.endswith("Model")
        joined = [
            n
            for n, _ in inner.named_parameters()
            if n in dict(self.model.named_parameters())
            or f"model.{n}" in dict(self.model.named_parameters())
        ]
        assert joined

    def copies(self):
        self.compare(copy.deepcopy(self.model))

    def saves_and_comes_back(self):
        with tempfile.TemporaryDirectory() as place:
            self.model.save_pretrained(place)
            assert self.folder == self.base or (Path(place) / CODE).is_file()
            self.compare(load(place))

    def runs_from_disk(self):
        disk = {"device_map": {"": "disk"}}
        with tempfile.TemporaryDirectory() as place:
            self.compare(load(self.folder, offload_folder=place, **disk))

    def spreads(self):
        self.compare(load(self.folder, device_map="cpu"))

    def trains(self):
        model = copy.deepcopy(self.model).train()
        if model.supports_gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        sites = [m for m in model.modules() if type(m).__name__ == "DenseSite"]
        assert sites
        model(**copy.deepcopy(self.inputs[0])).logits.float().square().mean().backward()
        for site in sites:
            grad = getattr(site, site.name).grad
            dim = 0 if site.spec["transposed"] else 1
            added = grad.tensor_split([site.kept], dim)[1]
            groups = len(site.state.spec["groups"])
            for block in added.chunk(groups, dim=dim):
                assert block.abs().max() > 0, "no gradient"

    def takes_lora(self):
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(copy.deepcopy(self.model), LoraConfig(target_modules="all-linear"))
        self.compare(model, exact=False)
        model(**copy.deepcopy(self.inputs[0])).logits.float().square().mean().backward()

    def compiles(self):
        torch._dynamo.reset()
        pair = [(self.inputs[0], self.wanted[0])]
        self.compare(torch.compile(copy.deepcopy(self.model), backend="eager"), False, pair)

    def bf16_runs(self):
        model = load(self.folder, **{"dtype" if FIVE else "torch_dtype": torch.bfloat16})
        inputs = {
            key: value.bfloat16() if value.is_floating_point() else value
            for key, value in copy.deepcopy(self.inputs[0]).items()
        }
        with torch.no_grad():
            assert model(**inputs).logits.isfinite().all()

    def stock_code_refuses(self):
        stock = getattr(transformers, self.stock)
        for loader, options in (
            (AutoModelForImageTextToText, {"trust_remote_code": False}),
            (stock, {}),
            (stock, {"trust_remote_code": True}),
        ):
            try:
                model = loader.from_pretrained(self.folder, **options)
            except (RuntimeError, ValueError):
                continue
            if type(model).__name__.startswith("Dense"):  # loaded before, with our consent
                continue
            raise AssertionError(f"{loader.__name__} {options} loaded it without the connector")


def attempt(job, name):
    try:
        getattr(job, name)()
    except Exception:
        return traceback.format_exc(limit=-3)[-900:]
    return ""


def answer(item):
    """Return what failed by check; what the unconverted base cannot do either is no failure."""
    if not hasattr(transformers, item["stock"]):
        return {"exists": f"no class {item['stock']} in this version"}
    job, base = Job(item, "folder", "logits"), None
    assert type(job.model).__name__ == f"Dense{item['stock']}"
    found = {}
    for name in item["checks"]:
        found[name] = attempt(job, name)
        if found[name] and name in BOTH:
            base = base or Job(item, "base", "base_logits")
            found[name] = found[name] if not attempt(base, name) else ""
            found.setdefault("as_the_base", "")
            found["as_the_base"] += "" if found[name] else f"{name} "
    return found


BOTH = {"equals_the_branch", "generates", "saves_and_comes_back", "runs_from_disk", "compiles"}


def main(jobs_file, results_file):
    results = {}
    for item in json.loads(Path(jobs_file).read_text()):
        try:
            results[item["name"]] = answer(item)
        except Exception:
            results[item["name"]] = {"loads": traceback.format_exc(limit=-3)[-900:]}
        Path(results_file).write_text(json.dumps(results))


main(*sys.argv[1:])
