"""The training loop, and the files that it writes into the run directory."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from corsd_lib.datasets import ImageData, ImageFiles
from corsd_lib.errors import PROCESSES_PER_CPU, CorsdError, check_processes
from corsd_lib.evaluation import evaluate, exit_logits, top_k_accuracy
from corsd_lib.files import (
    read_json,
    remove_parts,
    with_checksum,
    write_json,
    write_lines,
    write_tensors,
)
from corsd_lib.methods import Batch, Method
from corsd_lib.network import MultiExitNetwork
from corsd_lib.provenance import provenance
from corsd_lib.readers import read_metrics, read_probe_set, read_snapshot
from corsd_lib.runs import DataInfo, Run, TrainConfig, new_network, splits_of, training_batches, unseen_class_names
from corsd_lib.training.checkpoint import Checkpoint, Position
from corsd_lib.training.cuda_graphs import GraphedForwardBackward, StepOutputs
from corsd_lib.training.optimizer import learning_rate, parameter_groups
from corsd_lib.training.probe_set import ProbeSet

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Trainer"]


def _json_config(config: TrainConfig) -> dict[str, Any]:
    """Configuration as JSON values, with all options of the method, including defaults."""
    options = asdict(config.build_method().options)
    return json.loads(json.dumps(asdict(replace(config, method_options=options))))


class Step(nn.Module):
    """Network and method as one module, because distributed data parallel needs a single forward pass."""

    def __init__(self, network: MultiExitNetwork, method: Method) -> None:
        super().__init__()
        self.network, self.method = network, method

    def forward(self, batch: Batch) -> tuple[dict[str, Tensor], list[Tensor]]:
        out = self.network(self.method.transform_images(batch), detach_exits=self.method.detach_exits)
        return self.method(out, batch), [z.detach() for z in out.logits]


class Trainer:
    """One training: network, method, optimiser, position in the epoch, and the sums of the current epoch.

    The constructor creates network and method with the seeds of the configuration. `begin_or_resume` writes the first files of
    a new run, or restores the checkpoint of an earlier process; `run` trains.
    """

    def __init__(self, fabric: Fabric, config: TrainConfig, data: ImageData) -> None:
        self.fabric, self.config, self.data, self.path = fabric, config, data, config.path
        if isinstance(data.train, ImageFiles):
            check_processes("workers", config.workers, PROCESSES_PER_CPU)
        self.info = DataInfo(
            data.name,
            tuple(data.class_names),
            tuple(data.superclass_names),
            tuple(data.superclass_of_class.tolist()),
            tuple(data.mean),
            tuple(data.std),
            data.image_size,
            splits_of(data),
            unseen_class_names(data),
        )
        # Separate seeds: modules of the method must not change the initial weights of the network.
        torch.manual_seed(config.seed)
        self.network = new_network(config, self.info)
        torch.manual_seed(config.seed + 1)
        self.method = config.build_method(self.network)
        if config.channels_last:
            self.network.to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(
            parameter_groups(nn.ModuleList([self.network, self.method]), config),
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
        )
        step = Step(self.network, self.method)
        if config.compile:
            self.network.compile()
        self.module, self.optimizer = fabric.setup(step, optimizer)
        self.source = training_batches(
            config, data, device=fabric.device, rank=fabric.global_rank, world_size=fabric.world_size
        )
        self.steps_per_epoch = len(self.source.indices(0))
        if not self.steps_per_epoch:
            raise CorsdError(
                f"batch_size {config.batch_size} x {fabric.world_size} processes leaves no complete batch of training images"
            )
        self.forward_backward = self._with_graphs() if config.cuda_graphs else self._forward_backward
        self.checkpoint = Checkpoint(self.path / "checkpoint.safetensors", fabric, self.network, self.method, self.optimizer)
        self.epoch = self.step = 0
        self.elapsed = 0.0  # seconds that earlier processes trained in the current epoch
        self.totals: dict[str, Tensor] = {}
        self.terms: set[str] = set()  # names of the terms of the loss; empty before the first step of this process
        self.probe = ProbeSet(data, config.probe_size, config.probe_split, config.workers)
        # After a resume it is the provenance of the process that began the run.
        self.provenance = provenance(fabric.device) if fabric.is_global_zero else {}

    def begin_or_resume(self) -> None:
        """Restore the checkpoint of an earlier process, else write the first files of a new run."""
        fabric = self.fabric
        if fabric.is_global_zero:
            for folder in (self.path, self.path / "probes"):
                remove_parts(folder)
        if self.checkpoint.path.is_file():
            self._restore()
            if fabric.is_global_zero:
                self._note_resume()
        elif fabric.is_global_zero:
            self._begin()

    # --- the loop ---

    def run(self, stop: threading.Event, on_epoch: Callable[[Run], None] | None, progress: bool) -> None:
        """Train until all epochs are done or `stop` is set.

        `on_epoch(run)` is called after every epoch. After the last epoch, the weights and the evaluation on the test images are
        written.
        """
        from tqdm.auto import tqdm

        c = self.config
        done = self.epoch * self.steps_per_epoch + self.step
        hidden = not (progress and self.fabric.is_global_zero)
        with tqdm(
            total=c.epochs * self.steps_per_epoch, initial=done, disable=hidden, desc=c.method, dynamic_ncols=True
        ) as bar:
            while self.epoch < c.epochs:
                if not self._epoch(stop, bar):
                    return
                if on_epoch is not None and self.fabric.is_global_zero:
                    on_epoch(Run(self.path))
        if self.fabric.is_global_zero:
            self._finish()

    def _epoch(self, stop: threading.Event, bar: Any) -> bool:
        """Train the rest of the current epoch; return False if the training was stopped."""
        self.module.train()
        saved = time.monotonic()
        begin = saved - self.elapsed
        for batch in self.source(self.epoch, self.step, self._progress):
            self._add(*self._step(batch), len(batch.labels))
            self.step += 1
            bar.update()
            if self.step % 20 == 0:
                bar.set_postfix_str(self._summary())
            stop_requested, checkpoint_due = self._any_rank(
                stop.is_set(), time.monotonic() - saved >= self.config.checkpoint_seconds
            )
            if (stop_requested or checkpoint_due) and self.step < self.steps_per_epoch:
                self._check_state()
                saved = time.monotonic()
                self._checkpoint(saved - begin)
                if stop_requested:
                    return False
        self._check_state()
        bar.set_postfix_str(self._summary())
        self._end_epoch(time.monotonic() - begin)
        self.totals, self.elapsed = {}, 0.0
        self._checkpoint()
        return not (self._any_rank(stop.is_set())[0] and self.epoch < self.config.epochs)

    def _step(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """Take an optimiser step. Returns the terms of the loss by name, and the number of correct predictions (K,) of the
        exits.

        Raises `CorsdError` if the loss is not finite.
        """
        c = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self._steps_done(), c.epochs * self.steps_per_epoch, c)
        if c.channels_last:
            batch = batch._replace(images=batch.images.contiguous(memory_format=torch.channels_last))
        parts, logits = self.forward_backward(batch._replace(random=self.method.sample(batch)))
        if self._any_rank(not math.isfinite(parts["total"].item()))[0]:
            values = ", ".join(f"{name} {value.item():g}" for name, value in parts.items())
            raise self._diverged(self.step + 1, f"the loss is not finite ({values})")
        if c.clip_norm:
            self.fabric.clip_gradients(self.module, self.optimizer, max_norm=c.clip_norm, error_if_nonfinite=False)
        self.optimizer.step()
        correct = (torch.stack(logits).argmax(2) == batch.labels).sum(1)
        return parts, correct

    def _forward_backward(self, batch: Batch) -> StepOutputs:
        """Set the gradients for a batch; return the terms of the loss and the logits of every exit, all detached."""
        parts, logits = self.module(batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(parts["total"])
        return {name: value.detach() for name, value in parts.items()}, logits

    def _with_graphs(self) -> Callable[[Batch], StepOutputs]:
        """`_forward_backward` as CUDA graphs if the device is a GPU and the method can be recorded, else unchanged.

        Raises `CorsdError` if graphs would be used with several processes or with the precision "16-mixed".
        """
        if self.fabric.device.type != "cuda" or not self.method.cuda_graphs:
            return self._forward_backward
        if self.fabric.world_size > 1 or self.config.precision == "16-mixed":
            given = f"{self.fabric.world_size} processes and precision {self.config.precision!r}"
            raise CorsdError(
                f"cuda_graphs does not work with {given}; allowed: one process, and a precision other than 16-mixed"
            )
        return GraphedForwardBackward(
            self._forward_backward, [p for group in self.optimizer.param_groups for p in group["params"]]
        )

    def _check_state(self) -> None:
        """Raise `CorsdError` if weights or probe outputs are not finite, and if another process changed the run directory.

        It is called before anything is saved.
        """
        bad = [name for name, value in self._weights().items() if not value.isfinite().all()]
        if not bad and self.fabric.is_global_zero and not self.probe.finite(self.network):
            bad = ["outputs for the probe set"]
        changed = self._change_by_others() if self.fabric.is_global_zero else ""
        diverged, changed_anywhere = self._any_rank(bool(bad), bool(changed))
        if diverged:
            raise self._diverged(self.step, f"no longer finite: {', '.join(bad[:3]) or 'weights of another process'}")
        if changed_anywhere:
            raise CorsdError(
                changed or f"{self.path} was changed by another process during the training, which therefore stops"
            )

    def _diverged(self, step: int, what: str) -> CorsdError:
        file = self.checkpoint.path
        kept = f"the last good checkpoint is kept in {file}" if file.is_file() else "there was no checkpoint yet"
        return CorsdError(
            f"training diverged at epoch {self.epoch + 1}, step {step}: {what}; {kept}. "
            "A lower lr, a clip_norm or precision 32-true may help"
        )

    def _steps_done(self) -> int:
        return self.epoch * self.steps_per_epoch + self.step

    def _progress(self, step: int) -> float:
        return (self.epoch * self.steps_per_epoch + step) / (self.config.epochs * self.steps_per_epoch)

    def _any_rank(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is set in any process.

        Every process gets the same result, because all must stop and save at the same step.
        """
        if self.fabric.world_size == 1:
            return list(flags)
        votes = self.fabric.all_reduce(torch.tensor(flags, dtype=torch.float, device=self.fabric.device), reduce_op="sum")
        return [vote > 0 for vote in cast(Tensor, votes).tolist()]

    # --- what is recorded ---

    def _add(self, parts: dict[str, Tensor], correct: Tensor, images: int) -> None:
        """Add a step to the sums of the epoch, in float64 on the device, so that the CPU does not wait for the GPU."""
        values = torch.stack([value.to(correct.device) for value in parts.values()]).double() * images
        names = [*(f"loss.{name}" for name in parts), *(f"train_top1.exit{k}" for k in range(1, len(correct) + 1)), "images"]
        one = torch.cat([values, 100 * correct.double(), values.new_full((1,), images)])
        self._check_terms(set(parts))
        if self.totals:
            one += torch.stack([self.totals[name] for name in names])
        self.totals = dict(zip(names, one, strict=True))

    def _check_terms(self, terms: set[str]) -> None:
        """Raise `CorsdError` unless these terms of the loss are those of all earlier steps, including steps before a resume.

        metrics.jsonl has one column for each term.
        """
        if not self.terms:
            self.terms = self._terms_before(terms)
        if terms != self.terms:
            raise CorsdError(
                f"method {self.config.method!r}: its terms are {', '.join(sorted(terms))} at epoch {self.epoch + 1}, step "
                f"{self.step + 1}, and were {', '.join(sorted(self.terms))} before; allowed: the same terms in every step"
            )

    def _terms_before(self, terms: set[str]) -> set[str]:
        """Names of the loss terms that earlier processes of this run have recorded.

        `terms`: names at the first step of this process; returned if nothing is recorded yet. Raises `CorsdError` if the
        checkpoint has sums of the current epoch but lacks that of one of `terms`.
        """
        if missing := [f"loss.{name}" for name in sorted(terms) if self.totals and f"loss.{name}" not in self.totals]:
            raise CorsdError(f"{self.checkpoint.path} lacks totals.{missing[0]}: it is incomplete, or of another version")
        recorded = [*self.totals, *(self._recorded_lines(self.epoch) or [{}])[-1]]
        before = {name.removeprefix("loss.") for name in recorded if name.startswith("loss.")}
        # Earlier versions also recorded terms of weight 0.
        return {name for name in before if name in terms or getattr(self.method.options, name, True)} or terms

    def _sum_over_processes(self) -> dict[str, Tensor]:
        """Sums of the epoch over all processes."""
        return {k: cast(Tensor, self.fabric.all_reduce(v.clone(), reduce_op="sum")) for k, v in self.totals.items()}

    def _means(self) -> dict[str, float]:
        sums = {k: v.item() for k, v in self.totals.items()}
        return {k: v / sums["images"] for k, v in sums.items() if k != "images"}

    def _summary(self) -> str:
        means = self._means()
        exits = "/".join(f"{v:.1f}" for k, v in means.items() if k.startswith("train_top1"))
        losses = " ".join(f"{k.removeprefix('loss.')} {v:.3g}" for k, v in means.items() if k.startswith("loss."))
        return f"epoch {self.epoch + 1} train {exits} % {losses}"

    def _end_epoch(self, seconds: float) -> None:
        """Increment the epoch, and write its metrics and, if due, its snapshot. `seconds`: duration of the epoch."""
        if self.fabric.world_size > 1:
            self.totals = self._sum_over_processes()
        self.epoch, self.step = self.epoch + 1, 0
        if not self.fabric.is_global_zero:
            return
        record: dict[str, Any] = {
            "epoch": self.epoch,
            "step": self._steps_done(),
            "lr": self.optimizer.param_groups[0]["lr"],
            "images": int(self.totals["images"].item()),
            "seconds": round(seconds, 3),
            **self._means(),
        }
        if self.data.validation is not None:
            logits, labels = exit_logits(self.network, self.data, self.data.validation, self.config.workers)
            record |= {f"val_top1.exit{k}": top_k_accuracy(z, labels) for k, z in enumerate(logits, 1)}
        # Terms of weight 0, which earlier versions recorded, are dropped, so that all lines have the same columns.
        lines = [{k: v for k, v in line.items() if k in record} for line in self._recorded_lines(self.epoch - 1)]
        write_lines(self._path_to_write("metrics.jsonl"), [*lines, record], within=self.path)
        every = self.config.probe_every
        if self.epoch == self.config.epochs or (every and self.epoch % every == 0):
            self._snapshot()

    def _recorded_lines(self, epochs: int) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl for the first `epochs` epochs.

        The file may also have the next epoch. Raises `CorsdError` if one of the first `epochs` epochs is missing, if there are
        other epochs, and if the step of a line is wrong.
        """
        file = self.path / "metrics.jsonl"
        lines = read_metrics(file)
        there = [line["epoch"] for line in lines]
        if there[:epochs] != list(range(1, epochs + 1)) or there[epochs:] not in ([], [epochs + 1]):
            raise CorsdError(f"{file} has epochs {there}; allowed: each of the {epochs} that are done, and perhaps the next")
        for line in lines:
            if line["step"] != line["epoch"] * self.steps_per_epoch:
                allowed = line["epoch"] * self.steps_per_epoch
                raise CorsdError(f"{file}: epoch {line['epoch']}: step = {line['step']}; allowed: {allowed}")
        return lines[:epochs]

    def _snapshot(self) -> None:
        tensors = self.probe.snapshot(self.network, self.method)
        write_tensors(self._path_to_write(f"probes/epoch_{self.epoch:04d}.safetensors"), tensors, within=self.path)

    def _begin(self) -> None:
        """Write the first files of a new run, with the snapshot of the untrained network."""
        (self.path / "metrics.jsonl").unlink(missing_ok=True)  # left from a run whose checkpoint was removed: it starts over
        content = {"train": _json_config(self.config), "data": asdict(self.info), "provenance": self.provenance}
        write_json(self.path / "config.json", with_checksum(content), within=self.path)
        self.probe.write(self.path)
        self._snapshot()

    def _finish(self) -> None:
        write_tensors(self._path_to_write("weights.safetensors"), self._weights(), within=self.path)
        result = asdict(evaluate(self.network, self.data, workers=self.config.workers))
        write_json(self._path_to_write("test.json"), with_checksum(result), within=self.path)

    def _path_to_write(self, name: str) -> Path:
        """Path at which the file `name` is to be written in the run directory. Raises `CorsdError` if the run directory was
        changed.
        """
        if changed := self._change_by_others():
            raise CorsdError(changed)
        return self.path / name

    def _change_by_others(self) -> str:
        """Error message if others changed the run directory during this training, else ""."""
        if not self.path.is_dir():
            return (
                f"{self.path} was moved or removed during the training, which therefore stops; if it was moved, resume it "
                "where it is now (out, resume=True)"
            )
        file = self.path / "config.json"
        try:
            now = read_json(file) if file.is_file() else None
        except CorsdError as error:
            return f"{error}; the training therefore stops"
        if isinstance(now, dict) and now.get("provenance") == self.provenance:
            return ""
        other = "is gone" if now is None else "is of another training now"
        return f"{file} {other}, so the training stops; put it back and resume (resume=True)"

    # --- stop and resume ---

    def _weights(self) -> dict[str, Tensor]:
        return self.checkpoint.weights()

    def _checkpoint(self, seconds: float = 0.0) -> None:
        """Write the checkpoint. `seconds`: time spent in the current epoch.

        With several processes the sums of the epoch are added up over all processes. The first process keeps the totals, and
        the sums of the other processes become 0.
        """
        if self.fabric.world_size > 1 and self.totals:
            self.totals = {k: v * self.fabric.is_global_zero for k, v in self._sum_over_processes().items()}
        if self.fabric.is_global_zero:
            self._path_to_write(self.checkpoint.path.name)
            self.checkpoint.write(Position(self.epoch, self.step, seconds), self.totals)

    def _note_resume(self) -> None:
        """Add the provenance of this process to config.json if it differs from the last one that is recorded there.

        The provenance includes the commit, the package versions and the machine. The time of the start is not compared. Nothing
        is added if all epochs are done.
        """
        path = self.path / "config.json"
        content = read_json(path)
        now, self.provenance = self.provenance, content["provenance"]
        last = [self.provenance, *content.get("resumed", [])][-1]
        if self.epoch < self.config.epochs and any(last.get(k) != v for k, v in now.items() if k != "started"):
            content.setdefault("resumed", []).append({**now, "epochs_done": self.epoch})
            write_json(path, with_checksum(content), within=self.path)

    def _restore(self) -> None:
        begun_with = Run(self.path).provenance["versions"].get("torch")
        position, self.totals = self.checkpoint.restore(
            self.config.epochs,
            self.steps_per_epoch,
            images=lambda p: self.source.num_images(p.epoch, p.step),
            same_start=begun_with == version("torch"),
        )
        self.epoch, self.step, self.elapsed = position.epoch, position.step, position.seconds
        self._recorded_lines(self.epoch)
        self._check_probes()

    def _check_probes(self) -> None:
        """Check the probe set and the snapshots written so far, which a resumed training keeps; write a missing probe set.

        Raises `CorsdError` for a file that is damaged or does not match.
        """
        file, classes = self.path / "probe.safetensors", self.data.num_classes
        if file.is_file():
            read_probe_set(file, classes)
        elif self.fabric.is_global_zero:
            self.probe.write(self.path)
        for snapshot in sorted((self.path / "probes").glob("epoch_*.safetensors")):
            read_snapshot(snapshot, len(self.probe.split), classes)
