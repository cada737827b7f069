"""What the largest run of the explorers' promise costs: 100 classes, 1,000 probe images, 4 exits, 30 snapshots, on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from explorers import small_run

from corsd_lib import load_run
from corsd_lib.files import read_json, write_json, write_tensors
from corsd_lib.runs import new_network

CLASSES, IMAGES, EXITS, EPOCHS = 100, 1000, 4, 30

# In a process of its own, a fork for each explorer: memory is what the system gave it (tracemalloc sees neither torch's nor
# mapped files), first views are counted after the imports and after another explorer, of a small run, has loaded what Python
# loads once.
MEASURED = """
import json, os, sys, time
from pathlib import Path
from corsd_lib.analysis import stage_embedding
from ipywidgets.widgets.widget import _remove_buffers
from corsd_lib import ExitExplorer, RelationExplorer, StageExplorer, load_run

def megabytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

def timed(act):
    begin = time.process_time()
    made = act()
    return made, time.process_time() - begin

small, large = load_run(sys.argv[1]), sys.argv[2]
for kind in ("relation", "stage", "exit"):
    if (child := os.fork()) == 0:
        break
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{kind} failed")
else:
    sys.exit()
make = {"relation": RelationExplorer, "stage": lambda run: StageExplorer(run, method="pca"), "exit": ExitExplorer}[kind]
make(small)._repr_mimebundle_()
before = megabytes()
if kind == "stage":
    stage_embedding(load_run(large), method="pca")  # kept in the run by an earlier view: the first one fits it
explorer, first = timed(lambda: make(load_run(large)))
_, _, buffers = _remove_buffers(explorer.get_state())
shipped = sum(memoryview(b).nbytes for b in buffers)

changes = []
if kind == "relation":
    acts = [lambda k=k: setattr(explorer, "exit", k) for k in (1, 2, 3, 4)]
    acts += [lambda e=e: setattr(explorer, "epoch", e) for e in range(30)]
elif kind == "exit":
    acts = [lambda i=i: setattr(explorer, "threshold", explorer.curve["threshold"].iloc[i]) for i in (10, 40, 70, 90)]
else:
    acts = [lambda c=c: explorer.ask_image(c, explorer.epoch) for c in (3, 500, 999)]
for act in acts:
    changes.append(timed(act)[1])
if kind == "relation":
    for kind_ in ("cosine", "l2"):
        explorer.ask_classes([f"0/{kind_}/29"])
    for exit in (1, 2, 3, 4):
        explorer.ask_images(0, explorer.kind, 29, exit, list(range(250)), list(range(1000)))
print(json.dumps({"kind": kind, "first": first, "changes": changes, "shipped": shipped, "memory": megabytes() - before}))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small run, and one of a ResNet-18 on CIFAR-100 in the true layout, with random values."""
    folder = tmp_path_factory.mktemp("runs")
    small = small_run(folder / "small", "corsd")
    config = read_json(small.path / "config.json")
    config["data"] |= {
        "class_names": [f"class {c}" for c in range(CLASSES)],
        "superclass_names": [f"group {g}" for g in range(20)],
        "superclass_of_class": [c // 5 for c in range(CLASSES)],
    }
    config["train"] |= {"network": "resnet18", "width": None, "stem": "small"}
    write_json(folder / "large" / "config.json", config)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(CLASSES).repeat_interleave(IMAGES // CLASSES)
    probe = {"labels": labels, "index": torch.arange(IMAGES)}
    write_tensors(folder / "large" / "probe.safetensors", probe, {"split": "train"})
    large = load_run(folder / "large")
    network = new_network(large.config, large.data)
    relations = large.config.build_method(network).relation_networks().half().state_dict()
    state = {f"method.relations.{name}": values for name, values in relations.items()}
    for epoch in range(EPOCHS):
        path = folder / "large" / "probes" / f"epoch_{epoch:04d}.safetensors"
        write_tensors(path, snapshot(generator, network.embedding_dim) | state)
    return small.path, large.path


def snapshot(generator: torch.Generator, width: int) -> dict[str, torch.Tensor]:
    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).half()

    tensors = {f"relations.{k}": torch.rand(CLASSES, CLASSES, generator=generator) for k in range(EXITS)}
    tensors |= {f"embeddings.{k}": normal(IMAGES, width) for k in range(EXITS)}
    return tensors | {f"logits.{k}": normal(IMAGES, CLASSES) for k in range(EXITS)}


@pytest.fixture(scope="module")
def costs(runs: tuple[Path, Path]) -> dict[str, dict[str, Any]]:
    command = [sys.executable, "-c", MEASURED, *map(str, runs)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=600)
    assert done.returncode == 0, done.stderr
    return {cost.pop("kind"): cost for cost in map(json.loads, done.stdout.splitlines())}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("kind", ["relation", "stage", "exit"])
def test_a_run_of_cifar100s_size_opens_in_a_second_answers_at_once_and_stays_small(
    costs: dict[str, dict[str, Any]], kind: str
) -> None:
    cost = costs[kind]
    print(kind, {name: max(value) if isinstance(value, list) else value for name, value in cost.items()})
    changes = sorted(cost["changes"])
    assert cost["first"] < 1.0
    assert changes[len(changes) // 2] < 0.05
    assert cost["shipped"] <= 3_000_000  # once; changes need no data
    assert cost["memory"] < 300
