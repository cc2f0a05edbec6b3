"""What every architecture must keep. A family's tests subclass Contract and name one `tiny()`.

    class TestMyFamily(Contract):      # StockContract where it has a stock form
        @classmethod
        def tiny(cls, folder, shards):
            return TinyModel(write_tiny_my_family(folder, shards=shards), inputs)

Families whose wiring differs also override `states`, `tokens`, `rows`, `one`, `tower_path` or
`loud_norms`; those whose first matrix is no Linear `matrix` and `reader`; those with more inputs
per token `grown`. A model that reads a second kind of input (videos) tests that with a subclass of
Wiring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dcsurgery
from dcsurgery.anatomy import Anatomy, Site
from dcsurgery.architectures import Form
from dcsurgery.connectors.attach import find_module
from dcsurgery.connectors.passes import TowerPass
from dcsurgery.connectors.request import Connector
from dcsurgery.surgery.plan_file import SurgeryPlan
from tests.architectures.cases import Case, TinyModel, load, logits, make_case
from tests.closeness import assert_near
from tests.surgery import digests, write_delta, write_folded

Rows = Tensor | list[Tensor] | tuple[Tensor, ...]
HALF = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in HALF))


def _of_site(rows: Rows, site: int) -> Tensor:
    """What a site reads of a single image."""
    if isinstance(rows, list):
        (rows,) = rows
    return rows[site] if isinstance(rows, tuple) else rows


class Wiring:
    """What holds in memory. Enough for a second kind of input of the same model (videos)."""

    specs: tuple[Connector, ...] = (Connector("dci"), Connector("sci"))
    # Whether tests marked one_connector run with all of them.
    thorough = False

    @classmethod
    def tiny(cls, folder: Path, shards: int) -> TinyModel:
        """Write the family's tiny checkpoint into `folder` as `shards` weight files."""
        raise NotImplementedError

    def states(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Return all hidden states of the tower from transformers' own output_hidden_states."""
        pixels = inputs["pixel_values"].to(model.dtype)
        extra = {key: inputs[key] for key in ("image_sizes",) if key in inputs}
        tower = model.model.vision_tower
        return tuple(tower(pixels, output_hidden_states=True, **extra).hidden_states)

    def tower_path(self, case: Case) -> str:
        """Return the path of the tower that the inputs run through."""
        return case.anatomy.tower.module

    def tokens(self, anatomy: Anatomy, inputs: dict[str, Tensor]) -> int:
        """Return how many tokens a hidden state of these inputs has."""
        return anatomy.tower.grid**2 + anatomy.tower.prefix_tokens

    def rows(self, model: Any, state: Tensor, inputs: dict[str, Tensor]) -> Rows:
        """Restate `arrange`: one hidden state as rows of the projector's first matrices.

        A tuple when the sites read different rows.
        """
        return state

    def one(self, inputs: dict[str, Tensor], index: int) -> dict[str, Tensor]:
        """Return the inputs of one prompt of a batch with one image each."""
        return {key: value[index : index + 1] for key, value in inputs.items()}

    def loud_norms(self, model: Any) -> tuple[nn.Module, ...]:
        """Norms between tower and site, replaced by identity when the site's input is compared."""
        return ()

    def matrix(self, site: nn.Module) -> Tensor:
        """Return the first matrix [out, ...] of a site's module."""
        weight: Tensor = site.weight
        return weight

    def reader(self, model: Any, site: Site) -> nn.Module:
        """Return the module whose input is what a first matrix reads, norms aside."""
        return find_module(model, site.module)

    def grown(self, inputs: dict[str, Tensor], ids: Tensor) -> dict[str, Tensor]:
        """Return the inputs of a prompt that has grown to token ids [B, T]."""
        return {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}

    @pytest.fixture(scope="class")
    @classmethod
    def tiny_model(cls, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
        return cls.tiny(tmp_path_factory.mktemp("single") / "base", 1)

    @pytest.fixture(scope="class")
    @classmethod
    def base(cls, tiny_model: TinyModel) -> Any:
        """The unmodified model in fp32: do not change it."""
        return load(tiny_model.folder)

    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, request: pytest.FixtureRequest, tiny_model: TinyModel) -> Case:
        return make_case(tiny_model, request.param)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "case" not in metafunc.fixturenames:
            return
        one = metafunc.definition.get_closest_marker("one_connector")
        specs = self.specs[:1] if one and not self.thorough else self.specs
        ids = [f"{spec.kind}{spec.groups}" for spec in specs]
        metafunc.parametrize("case", specs, ids=ids, indirect=True)

    @contextmanager
    def restated(self, case: Case, model: Any, weight: Tensor) -> Iterator[None]:
        """Make a plain model compute the paper's formula from stored hidden states, no attach."""

        inputs = case.tiny.inputs(model, 1, 1)

        def extend(index: int, own: Tensor) -> Callable[..., Tensor]:
            def hook(site: nn.Module, args: Any, output: Tensor) -> Tensor:
                means = [
                    torch.stack([states[layer] for layer in block.layers]).mean(0)
                    for block in case.layout.blocks
                ]
                rows = [_of_site(self.rows(model, mean, inputs), index) for mean in means]
                return output + (torch.cat(rows, dim=-1) @ own.T).reshape(output.shape)

            return hook

        with torch.no_grad():
            states = self.states(model, inputs)
        sites = case.anatomy.projector.sites
        parts = weight.split([site.out_features for site in sites])
        handles = [
            find_module(model, site.module).register_forward_hook(extend(index, part))
            for index, (site, part) in enumerate(zip(sites, parts, strict=True))
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def test_anatomy_is_the_loaded_model(self, case: Case, base: Any) -> None:
        anatomy, tower = case.anatomy, case.anatomy.tower
        for site in anatomy.projector.sites:
            matrix = self.matrix(find_module(base, site.module))
            assert matrix.shape[0] == site.out_features
            assert matrix[0].numel() == site.in_features
        blocks = find_module(base, tower.blocks)
        assert isinstance(blocks, nn.ModuleList) and len(blocks) == tower.depth
        inputs = case.tiny.inputs(base, 1, 1)
        states = self.states(base, inputs)
        assert len(states) == tower.depth + 1
        assert states[0].shape[-1] == tower.width
        assert states[0].shape[-2] == self.tokens(anatomy, inputs)

    def test_site_reads_the_feature_layer(self, case: Case, base: Any) -> None:
        """Catches a wrong arrange or layer, which zero weights cannot show."""
        inputs = case.tiny.inputs(base, 1, 1)
        sites = [self.reader(base, site) for site in case.anatomy.projector.sites]
        seen: dict[int, Tensor] = {}
        runs: list[TowerPass] = []

        def note(index: int) -> Callable[..., None]:
            return lambda module, args: seen.setdefault(index, args[0])

        def start(module: nn.Module, args: Any, kwargs: Any) -> None:
            runs.append(TowerPass(base, self.tower_path(case), args, kwargs, case.anatomy))

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            runs[-1].projector_call = (args, kwargs)

        handles = [site.register_forward_pre_hook(note(i)) for i, site in enumerate(sites)]
        for norm in self.loud_norms(base):
            # A norm returns a contiguous tensor, and some families view it.
            handles.append(norm.register_forward_hook(lambda m, args, out: args[0].contiguous()))
        tower = find_module(base, self.tower_path(case))
        handles.append(tower.register_forward_pre_hook(start, with_kwargs=True))
        if case.anatomy.projector.module:
            projector = find_module(base, case.anatomy.projector.module)
            handles.append(projector.register_forward_pre_hook(enter, with_kwargs=True))
        try:
            with torch.no_grad():
                case.tiny.forward(base, inputs)
                states = self.states(base, inputs)
        finally:
            for handle in handles:
                handle.remove()
        for index in range(len(sites)):
            expected = self.site_input(base, case, states, inputs, index)
            assert torch.equal(seen[index].reshape(expected.shape), expected)
        runs[0].site_rows = seen[0].numel() // seen[0].shape[-1]
        wanted = self.rows(base, states[1], inputs)
        for index in range(len(sites)):
            runs[0].site = index
            calls = case.architecture.arrange(runs[0], states[1])
            mine, theirs = _of_site(calls, 0), _of_site(wanted, index)
            assert torch.equal(mine.reshape(theirs.shape), theirs)

    def site_input(
        self,
        model: Any,
        case: Case,
        states: tuple[Tensor, ...],
        inputs: dict[str, Tensor],
        site: int,
    ) -> Tensor:
        """Return what a site reads today: the arranged feature layers, joined."""
        rows = [
            _of_site(self.rows(model, states[layer], inputs), site)
            for layer in case.anatomy.feature_layers
        ]
        return torch.cat(rows, dim=-1)

    @pytest.mark.one_connector
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_zero_matrix_is_the_base_bit_for_bit(self, case: Case, dtype: torch.dtype) -> None:
        base = case.plain(dtype=dtype)
        model = case.attached(dtype=dtype)
        for batch, images in ((1, 1), (1, 2), (2, 1), (2, 0)):
            assert torch.equal(
                logits(case, model, batch, images), logits(case, base, batch, images)
            )

    def test_one_tensor_is_added(self, case: Case, base: Any) -> None:
        model = case.zero
        assert type(model) is type(base)
        added = model.state_dict().keys() - base.state_dict().keys()
        assert added == {"dense_connector.weight"}
        assert base.state_dict().keys() < model.state_dict().keys()
        size = model.dense_connector.weight.numel()
        assert size == sum(p.numel() for p in model.parameters()) - sum(
            p.numel() for p in base.parameters()
        )

    def test_random_matrix_is_the_formula(self, case: Case, base: Any) -> None:
        found = logits(case, case.loud)
        with self.restated(case, base, case.weight):
            expected = logits(case, base)
        assert (found - logits(case, base)).abs().max() > 0.05
        assert_near(found, expected)

    def test_images_do_not_mix(self, case: Case, base: Any) -> None:
        """Two prompts at once give what each gives alone; text without images is untouched."""
        model = case.loud
        inputs = case.tiny.inputs(model, 2, 1)
        with torch.no_grad():
            both = case.tiny.forward(model, inputs)
            for index in range(2):
                single = case.tiny.forward(model, self.one(inputs, index))
                assert_near(single, both[index : index + 1])
        assert torch.equal(logits(case, model, 2, 0), logits(case, base, 2, 0))
        assert logits(case, model, 1, 2).isfinite().all()

    def test_greedy_generate(self, case: Case, base: Any) -> None:
        inputs = case.tiny.inputs(base, 1, 1)
        image = base.config.image_token_id
        settings: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
        # An image token in the answer would ask for another picture.
        settings["suppress_tokens"] = [image]
        expected = base.generate(**inputs, **settings)
        assert torch.equal(case.zero.generate(**inputs, **settings), expected)
        model = case.loud
        answer = model.generate(**inputs, **settings)
        ids = inputs["input_ids"]
        for step in range(4):
            with torch.no_grad():
                scores = case.tiny.forward(model, self.grown(inputs, ids))[:, -1].clone()
            scores[:, [model.generation_config.eos_token_id, image]] = -torch.inf
            ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], dim=1)
            assert torch.equal(answer[:, : ids.shape[1]], ids), step

    def test_gradients_reach_every_block_and_nothing_frozen(self, case: Case) -> None:
        model = case.attached().requires_grad_(False)
        model.dense_connector.weight.requires_grad_(True)
        case.tiny.forward(model, case.tiny.inputs(model, 1, 1)).square().mean().backward()
        grad = model.dense_connector.weight.grad
        assert grad is not None
        for block in grad.chunk(len(case.layout.blocks), dim=1):
            assert block.abs().max() > 0
        assert all(
            p.grad is None for n, p in model.named_parameters() if n != "dense_connector.weight"
        )


class Contract(Wiring):
    """Inherited by the test class of every architecture: the wiring, and what is on disk."""

    forms: tuple[Form, ...] = ("delta", "portable")

    def test_delta_loads_as_it_was(self, case: Case, tmp_path: Path) -> None:
        write_delta(case.tiny.folder, tmp_path / "delta", case.weight, **case.options)
        model = dcsurgery.load(tmp_path / "delta", dtype=torch.float32)
        assert torch.equal(model.dense_connector.weight, case.weight)
        assert torch.equal(logits(case, model), logits(case, case.loud))

    def test_fresh_delta_is_the_base(self, case: Case, base: Any, tmp_path: Path) -> None:
        dcsurgery.convert(case.tiny.folder, tmp_path / "delta", form="delta", **case.options)
        model = dcsurgery.load(tmp_path / "delta", dtype=torch.float32)
        assert torch.equal(logits(case, model), logits(case, base))

    @pytest.mark.one_connector
    @pytest.mark.slow
    def test_sharded_is_single(self, case: Case, tmp_path: Path) -> None:
        sharded = make_case(self.tiny(tmp_path / "base", 3), case.spec)
        assert (sharded.tiny.folder / "model.safetensors.index.json").is_file()
        assert digests(sharded.tiny.folder) == digests(case.tiny.folder)
        write_delta(sharded.tiny.folder, tmp_path / "delta", case.weight, **case.options)
        model = dcsurgery.load(tmp_path / "delta", dtype=torch.float32)
        assert torch.equal(logits(sharded, model), logits(case, case.loud))

    @pytest.mark.slow
    def test_verify_passes_in_every_form(self, case: Case, tmp_path: Path) -> None:
        assert case.architecture.forms == self.forms
        # Past the projector the connectors are alike.
        whole = self.thorough or case.spec == self.specs[0]
        kinds = ("features", "logits") if whole else ("features",)
        for form in self.forms:
            out = tmp_path / form
            dcsurgery.convert(case.tiny.folder, out, form=form, **case.options)
            # A portable folder runs in another process: tests/test_portable.py does it for all.
            report = dcsurgery.verify(out, logits=whole and form != "portable")
            failed = [check for check in report.checks if not check.passed]
            assert not failed, failed
            names = {check.name for check in report.checks}
            run = kinds[:1] if form == "portable" else kinds
            assert {f"{kind}: branch against base" for kind in run} <= names

    @pytest.mark.one_connector
    @pytest.mark.slow
    def test_verify_checks_a_random_matrix(self, case: Case, tmp_path: Path) -> None:
        write_delta(case.tiny.folder, tmp_path / "out", case.weight, **case.options)
        report = dcsurgery.verify(tmp_path / "out")
        assert report.passed, report.checks
        assert "features: branch against the formula" in {check.name for check in report.checks}


class StockContract(Contract):
    """Inherited where the family's config has words for several hidden states."""

    forms = ("stock", "delta", "portable")

    def test_stock_form_is_the_base(self, case: Case, base: Any, tmp_path: Path) -> None:
        out = tmp_path / "stock"
        plan = dcsurgery.convert(case.tiny.folder, out, **case.options).plan
        assert_near(logits(case, load(out)), logits(case, base))
        assert_near(logits(case, dcsurgery.load(out)), logits(case, base))
        self._check_untouched(case, out, plan)

    def test_folded_matrix_is_the_attached_one(self, case: Case, tmp_path: Path) -> None:
        plan = write_folded(case.tiny.folder, tmp_path / "stock", case.weight, **case.options)
        stock = load(tmp_path / "stock")
        for batch, images in ((1, 1), (2, 1), (1, 2)):
            found = logits(case, stock, batch, images)
            assert_near(found, logits(case, case.loud, batch, images))
        self._check_untouched(case, tmp_path / "stock", plan)

    @pytest.mark.slow
    def test_paper_init_agrees_in_both_forms(self, case: Case, tmp_path: Path) -> None:
        for form in ("stock", "delta"):
            dcsurgery.convert(
                case.tiny.folder, tmp_path / form, form=form, init="paper", seed=5, **case.options
            )
        model = dcsurgery.load(tmp_path / "delta", dtype=torch.float32)
        assert_near(logits(case, load(tmp_path / "stock")), logits(case, model))

    @pytest.mark.one_connector
    @pytest.mark.slow
    def test_sharded_fold_is_the_attached_one(self, case: Case, tmp_path: Path) -> None:
        sharded = make_case(self.tiny(tmp_path / "base", 3), case.spec)
        plan = write_folded(sharded.tiny.folder, tmp_path / "stock", case.weight, **case.options)
        found = logits(sharded, load(tmp_path / "stock"))
        assert_near(found, logits(case, case.loud))
        self._check_untouched(sharded, tmp_path / "stock", plan)

    def _check_untouched(self, case: Case, folder: Path, plan: SurgeryPlan) -> None:
        """Every tensor but the planned ones, and every side file, is the base's."""
        before, after = digests(case.tiny.folder), digests(folder)
        changed = {record.name for record in plan.changed}
        assert before.keys() == after.keys()
        assert {name for name in before if before[name] != after[name]} <= changed
        rewritten = {"config.json", "model.safetensors.index.json"}
        for path in case.tiny.folder.iterdir():
            if path.suffix != ".safetensors" and path.name not in rewritten:
                assert (folder / path.name).read_bytes() == path.read_bytes()
