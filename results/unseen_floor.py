"""What raw pixels and untrained networks reach on the held-out classes of a study: for notebooks/13_unseen_classes.ipynb.

    CORSD_DATA=... python results/unseen_floor.py results/unseen_birds    writes results/unseen_birds/floor.json

Every value is by cosine, in %, on the test images of the held-out classes: of pixel values, and of the exit embeddings of
networks with initial weights.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from corsd_lib.analysis.retrieval import Episodes, embedding_few_shot, embedding_retrieval
from corsd_lib.evaluation import exit_embeddings
from corsd_lib.files import write_json
from corsd_lib.network import build_network
from corsd_lib.runs import load_data
from corsd_lib.studies.study import Study

VARIANT = "deep_supervision"  # has an exit at every stage
SEEDS = (0, 1, 2)  # of the initial weights


def main() -> None:
    """Measure pixels and untrained networks, write the JSON file and print its path."""
    if len(sys.argv) != 2:
        sys.exit("usage: python results/unseen_floor.py STUDY")
    study = Study.from_file(sys.argv[1])
    config = study.config(VARIANT, 0)
    data = load_data(config)
    if data.unseen is None:
        sys.exit(f"{study.path} has no held-out classes; allowed: a study with hold_out_classes")
    test = data.unseen.test
    pixels = measured(test.images.flatten(1).float(), test.labels)
    untrained = {}
    for seed in SEEDS:
        torch.manual_seed(seed)
        shape = {"in_channels": test.images.shape[1], "image_size": test.images.shape[-1]}
        network = build_network(config.network, len(data.class_names), width=config.width, stem=config.stem, **shape).eval()
        untrained[str(seed)] = [measured(e, test.labels) for e in exit_embeddings(network, data, test)]
    write_json(study.path / "floor.json", {"pixels": pixels, "untrained": untrained, "images": len(test.labels)})
    print(study.path / "floor.json")


def measured(vectors: Tensor, labels: Tensor) -> dict[str, float]:
    """Retrieval and five-way few-shot accuracy of vectors (N, D) with labels (N,), by cosine, in %, four digits."""
    found = embedding_retrieval(vectors, labels)
    ways = min(5, int(labels.max()) + 1)
    for name, shots in (("one_shot", 1), ("five_shot", 5)):
        found[name] = embedding_few_shot(vectors, labels, Episodes(ways, shots)).accuracy
    return {name: round(value, 4) for name, value in found.items()}


if __name__ == "__main__":
    main()
