"""Latency of early exits, relative to the plain network, which has only the deepest exit.

Images are classified one at a time in onnxruntime on one thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from corsd_lib.analysis import early_exit
from corsd_lib.batches import evaluation_batches
from corsd_lib.costs import early_exit_macs
from corsd_lib.datasets import load_dataset
from corsd_lib.network import MultiExitNetwork, build_network
from corsd_lib.runs import load_data, sample_run
from corsd_lib.sharing.programs import FORMATS, Program, chain, single

__all__ = ["serving_measurements"]

RUN = "digits/corsd"  # its images come with scikit-learn
IMAGES = 200
Call = Callable[[np.ndarray], list[np.ndarray]]


def serving_measurements(repeat: int) -> dict[str, dict[str, Any]]:
    """Measurements by name, each a dict of `what`, `value` and `target`.

    A value is the wall-clock time of an image with early exits, divided by its time in the plain network. One measurement is of
    a trained network with a threshold chosen on validation images. Two are of ResNet-18 with random weights: all images leave
    at the first exit, or all at the deepest one.
    """
    return {"serving_trained": trained_ratio(repeat), **resnet18_ratios(repeat)}


def trained_ratio(repeat: int) -> dict[str, Any]:
    """Latency and MACs of the sample run with early exits on test images, relative to the plain network. The threshold of
    `early_exit` is chosen on validation images.
    """
    run = sample_run(RUN)
    network, data = run.network(), load_data(run.config)
    chosen = early_exit(network, data)
    images = next(iter(evaluation_batches(data, data.test)))[0][:IMAGES]
    what = f"{RUN} with early exits ({chosen.test['accuracy_drop']:.1f} points of accuracy less) / plain network"
    macs = chosen.test["macs"] / chosen.deepest_macs
    return _measurement(what, macs, _ratio(network, images, chosen.threshold, repeat))


def resnet18_ratios(repeat: int) -> dict[str, dict[str, Any]]:
    """Two measurements of ResNet-18 at 32 pixels: all images leave at the first exit, or all at the deepest one."""
    data = load_dataset("shapes", per_class=2)
    network = build_network("resnet18", data.num_classes).eval()
    macs, plain = early_exit_macs(network, data)
    images = next(iter(evaluation_batches(data, data.test)))[0][:8]
    return {
        f"serving_resnet18_{name}": _measurement(
            f"resnet18, leaving at the {name} exit / plain network",
            macs[exit] / plain,
            _ratio(network, images, threshold, repeat),
        )
        for name, exit, threshold in (("first", 0, 0.0), ("deepest", -1, 2.0))
    }


def classify(programs: Sequence[Call], image: np.ndarray, threshold: float) -> tuple[int, int]:
    """Classify one normalised image (1, C, H, W) with early exit; returns its class and the number of its exit, from 1.

    The image leaves at the first exit whose confidence is at least `threshold`, else at the deepest. `programs`: one for each
    exit.
    """
    given = image
    for k, program in enumerate(programs, 1):
        (scores, *_), *rest = program(given)
        p = np.exp(scores - scores.max())
        if not rest or p.max() / p.sum() >= threshold:
            return int(p.argmax()), k
        (given,) = rest
    raise AssertionError("the last program returned a feature map besides its logits")


def load(programs: Sequence[Program], image: Tensor) -> list[Call]:
    """Load `programs` into onnxruntime, on one thread; returns a function for each program.

    The first program gets images; each other program gets the last output of the previous one. The first is traced with two
    copies of `image` (1, C, H, W).
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    loaded: list[Call] = []
    given = image.repeat(2, 1, 1, 1)
    for program in programs:
        content = FORMATS["onnx"].convert(program, given)
        loaded.append(_call(onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])))
        given = torch.from_numpy(loaded[-1](given.numpy())[-1])
    return loaded


def _call(session: Any) -> Call:
    name = session.get_inputs()[0].name
    return lambda given: session.run(None, {name: given})


def _ratio(network: MultiExitNetwork, images: Tensor, threshold: float, repeat: int) -> float:
    """Median over rounds of the time with early exits, relative to the plain network in the same round."""
    early, plain = load(chain(network), images[:1]), load(single(network, len(network.exits)), images[:1])
    rounds = []
    for _ in range(repeat + 1):
        seconds = []
        for programs in (early, plain):
            begin = time.perf_counter()
            for image in images.numpy():
                classify(programs, image[None], threshold)
            seconds.append(time.perf_counter() - begin)
        rounds.append(seconds[0] / seconds[1])
    return statistics.median(rounds[1:])  # the first round warms up


def _measurement(what: str, macs: float, value: float) -> dict[str, Any]:
    return {"what": f"latency of one image: {what}; MACs: {macs:.2f}", "value": round(value, 3), "target": "-"}
