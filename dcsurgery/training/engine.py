"""transformers' Trainer with the loss, the rates and the checkpoints of a retrofit."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext, redirect_stdout
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from dcsurgery.errors import RequestError, TrainingError
from dcsurgery.training.average import start_average
from dcsurgery.training.checkpoints import (
    Interruption,
    load_trained,
    mark_complete,
    save_trained,
)
from dcsurgery.training.feeding import ROWS
from dcsurgery.training.freeze import frozen_modules
from dcsurgery.training.gradients import without_gradient
from dcsurgery.training.job import Job
from dcsurgery.training.logs import RATE, block_norms
from dcsurgery.training.lora import taken_for_adapted
from dcsurgery.training.loss import IGNORED, SupervisedHead, supervised_loss, zero_of
from dcsurgery.training.order import EpochOrder
from dcsurgery.training.precision import arithmetic, autocast
from dcsurgery.training.schedule import make_optimizer, make_scheduler
from dcsurgery.training.sharding import PARTITIONED, Shards, in_parts, sharding, whole
from dcsurgery.training.workers import deaths_told, start_worker


class Engine(Trainer):
    """The loop is transformers'. Ours: a loss over supervised positions, normalised over the global
    batch; a rate for each group; checkpoints of the trained tensors alone.
    """

    def __init__(
        self,
        model: Any,
        job: Job,
        args: TrainingArguments,
        facts: dict[str, Any],
        callbacks: list[TrainerCallback],
    ) -> None:
        self.optimizer: Any
        self.lr_scheduler: Any
        self.job = job
        self.facts = facts
        self.head = SupervisedHead(model)
        self.connector = model.dense_connector
        self.sharding = sharding()
        # fp16, and scaling its gradients, is accelerate's.
        self.precision = "fp32" if args.fp16 else arithmetic(job.settings, model)
        if self.sharding.startswith("zero"):
            model.float()  # DeepSpeed takes nothing else where it does not round itself
        self.whole_values: Mapping[str, Tensor] = {}
        parameters = dict(model.named_parameters())
        groups = job.trained.groups
        seeing = [n for g in ("connector", "projector", "tower") for n in groups.get(g, ())]
        self.seeing = [] if self.sharded else [parameters[name] for name in seeing]
        self.frozen = frozen_modules(model, job.plan)
        self.average = start_average(model, job.trained.names, job.settings.average, job.steps)
        self.rows: list[int] = []
        self.counts = [0, 0, 0, 0, 0]
        self._saved = 0
        self.began = time.perf_counter()
        self.order = job.feed.order(job.settings)
        with taken_for_adapted(model):
            super().__init__(
                model=model,
                args=args,
                train_dataset=job.feed.numbered,
                data_collator=partial(job.feed.send, pictured=self.sharded),
                callbacks=[self.average, *callbacks] if self.average else callbacks,
            )
        self.remove_callback(PrinterCallback)
        done = "zero" if self.is_deepspeed_enabled else "fsdp" if self.is_fsdp_enabled else "none"
        if not self.sharding.startswith(done):
            raise TrainingError(
                f"accelerate was asked for {self.sharding} and splits nothing",
                hint="it does so where there is no GPU (FSDP) or no deepspeed package",
            )
        if (
            self.is_fsdp_enabled
            and not self.accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap
        ):
            # transformers names layers of twins too, which accelerate then does not find.
            here = {type(module).__name__ for module in model.modules()}
            layers = sorted(here & set(model._no_split_modules))
            self.accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = layers
        # The count of supervised tokens in the global batch is asked for under this name.
        self.model_accepts_loss_kwargs = True

    def run(self, checkpoint: Path | None) -> None:
        """Train to the end, from a checkpoint if there is one, and take everything off the model.

        Mixed precision wraps the model's forward.
        """
        self.job.feed.put_off(True)
        try:
            if checkpoint is not None and self.sharded:
                self._load_from_checkpoint(str(checkpoint))
            # DeepSpeed prints what it builds where a command's data belongs.
            with deaths_told(), redirect_stdout(sys.stderr) if self.sharded else nullcontext():
                self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            if self.sharded:
                self.whole_values = self.average.values if self.average else self.shards.values()
            elif self.average is not None:
                self.average.finish()
        finally:
            self.job.feed.put_off(False)
            self.head.remove()
            # Or the next model of this process is loaded in parts.
            unset_hf_deepspeed_config()
            model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
            # Kept on the model, its own method would follow it into a copy.
            vars(model).pop("forward", None)

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochOrder | None:
        return self.order

    def get_train_dataloader(self) -> Any:
        """Return the batches; workers that make them know how to stop."""
        loader = super().get_train_dataloader()
        # accelerate's loader asks one that it holds, and is copied where a training goes on.
        for each in (loader, getattr(loader, "base_dataloader", loader)):
            each.worker_init_fn = start_worker
        return loader

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: Any
    ) -> tuple[list[Any], Tensor]:
        """Take the micro-batches of a step and count its supervised tokens over all processes."""
        self.began = time.perf_counter()
        if self.order is not None:
            # Nobody else tells it when one of several processes resumes inside an epoch.
            self.order.set_epoch(int(self.state.epoch or 0))
        try:
            batches = list(islice(epoch_iterator, num_batches))
            for batch in batches:
                self.job.feed.receive(batch)
        except RequestError:
            self._keep()
            raise
        marks = [row for batch in batches for row in batch[ROWS].tolist()]
        self.rows = [number for number, _, _ in marks]
        cut, cut_answers = (sum(row[column] for row in marks) for column in (1, 2))
        supervised = sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batches)
        tokens = sum(batch["labels"].numel() for batch in batches)
        found = [supervised, tokens, len(self.rows), cut, cut_answers]
        counts = torch.tensor([found], device=device)
        if self.args.world_size > 1:
            counts = self.accelerator.gather(counts).sum(dim=0, keepdim=True)
        self.counts = counts[0].tolist()
        return batches, counts[0, 0].clamp(min=1)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor:
        """Return this micro-batch's share of the mean loss of the global batch.

        Raises TrainingError, naming the rows, when it is no number.
        """
        for module in self.frozen:
            module.training = False
        rows = inputs.pop(ROWS)
        with autocast(self.precision):
            total = supervised_loss(model, self.head, inputs)
        assert num_items_in_batch is not None
        # Gradients are averaged over processes; the loss is a sum over them.
        loss: Tensor = total * self.args.world_size / num_items_in_batch.to(total.device)
        if not torch.isfinite(loss):
            raise self._broken(f"the loss became {loss.item()}", rows[:, 0].tolist())
        if self.seeing:
            loss = loss + zero_of(self.seeing).to(loss.device)
        return loss

    def _broken(self, what: str, rows: list[int]) -> TrainingError:
        names = ", ".join(self.job.feed.name_of(row) for row in rows[:8])
        more = f" and {len(rows) - 8} more" if len(rows) > 8 else ""
        return TrainingError(
            f"{what} at step {self.state.global_step + 1}, with rows {names}{more}",
            hint="look at these rows; else lower the learning rates, or use --precision bf16 "
            "instead of fp16",
        )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make AdamW with one group per group that is trained."""
        if self.optimizer is None:
            chosen = self.model if model is None else model
            self.optimizer = make_optimizer(chosen, self.job.trained, self.job.settings)
        made: torch.optim.Optimizer = self.optimizer
        return made

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Make the schedule of every group."""
        if self.lr_scheduler is None:
            chosen = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = make_scheduler(chosen, self.job.settings, num_training_steps)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Nobody reads this estimate, and it walks over all parameters at every step."""
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add rates, norms and speed to a step's loss.

        Raises TrainingError when the gradients were no numbers: the weights are none any more.
        """
        if "loss" in logs:
            norm = logs.get("grad_norm", 0.0)
            if self.accelerator.scaler is None and not norm - norm == 0:
                raise self._broken("the gradients became infinite", self.rows)
            logs |= self._extras()
        super().log(logs, start_time)

    def _extras(self) -> dict[str, float]:
        supervised, tokens, rows, cut, cut_answers = self.counts
        seconds = time.perf_counter() - self.began
        rates = {f"{RATE}{g['name']}": g["lr"] for g in self._used_groups()}
        return {
            **rates,
            **block_norms(self._connector_weight(), self.job.plan.layout),
            "supervised_tokens": supervised,
            "tokens": tokens,
            "rows": rows,
            "cut_rows": cut,
            "cut_answers": cut_answers,
            "seconds": round(seconds, 4),
            "tokens_per_second": round(tokens / seconds, 1),
        }

    def _used_groups(self) -> list[dict[str, Any]]:
        """Groups with the rates of the update just made: the schedule has moved on since."""
        factors = self.lr_scheduler.lr_lambdas
        step = self.state.global_step - 1
        groups = zip(self.optimizer.param_groups, factors, strict=True)
        return [{"name": g["name"], "lr": g["initial_lr"] * f(step)} for g, f in groups]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trained tensors alone."""
        state = self._gathered()
        if self.args.should_save:
            names = self.job.trained.names
            save_trained(Path(output_dir or self.args.output_dir), {n: state[n] for n in names})

    @property
    def sharded(self) -> bool:
        """True where no process holds all of AdamW's numbers: FSDP and DeepSpeed."""
        return self.sharding != "none"

    @cached_property
    def shards(self) -> Shards:
        """What every process holds a part of, once the training is under way."""
        return Shards(self._bare(), self.job.trained, self.optimizer.optimizer)

    def _bare(self) -> Any:
        return self.accelerator.unwrap_model(self.model_wrapped)

    def _connector_weight(self) -> Tensor | None:
        weight = self._bare().dense_connector.weight
        return None if weight is None else whole(weight)

    def _gathered(self) -> Mapping[str, Tensor]:
        """Return whole parameters by name, put together where they are split."""
        return self.shards.values() if self.sharded else dict(self.model.named_parameters())

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Write AdamW's numbers whole, so that any number of processes can go on from them."""
        if not self.sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = self.shards.state()
        if self.args.should_save:
            torch.save(state, Path(output_dir) / "optimizer.pt")
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> Any:
        """Wrap the model; what is split goes on from whole tensors, not from the engine's own."""
        given = None if self.sharded else resume_from_checkpoint
        prepared = super()._prepare_for_training(max_steps, train_dataloader, given)
        if self.sharding in PARTITIONED:
            left = [n for n, p in self._bare().named_parameters() if not in_parts(p)]
            if left:
                raise TrainingError(f"{self.sharding} has not split {left[0]}", hint="report this")
        if self.sharded and resume_from_checkpoint is not None:
            folder = Path(resume_from_checkpoint)
            load = partial(torch.load, map_location="cpu", weights_only=True)
            self.shards.restore(load(folder / "optimizer.pt", mmap=True))
            self.lr_scheduler.load_state_dict(load(folder / "scheduler.pt"))
        return prepared

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        self.job.feed.save_tally(folder)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            if self.average is not None:
                self.average.save(folder)
            mark_complete(folder, self.facts)
        # One that leaves early makes the launcher end the others.
        self.accelerator.wait_for_everyone()
        self._saved = self.state.global_step

    def _keep(self) -> None:
        """Save what is trained when bad rows stop a training; other processes would not come."""
        step = self.state.global_step
        if step and self.args.world_size == 1 and self._saved != step:
            self._save_checkpoint(self.model, None)

    def untouched(self) -> tuple[str, ...]:
        """Return the trained parameters that never had a gradient."""
        if self.sharded:
            return tuple(name for name, touched in self.shards.reached() if not touched)
        return without_gradient(self.optimizer.state_dict(), self.job.trained)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        chosen = self.model if model is None else model
        folder = Path(resume_from_checkpoint)
        load_trained(folder, chosen, self.job.trained.names)
        if self.average is not None:
            self.average.restore(folder)


class StopInOrder(TrainerCallback):
    """Ends the training with a checkpoint after the step in which a signal came."""

    def __init__(self, interruption: Interruption) -> None:
        self.interruption = interruption

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop all processes at the same step, whichever got the signal."""
        number = self.interruption.number or 0
        if args.world_size > 1:
            flag = torch.tensor(number, device=args.device)
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
            number = int(flag)
        if number:
            self.interruption.number = number
            control.should_save = control.should_training_stop = True
