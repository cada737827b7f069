"""Attributions of a run on disk, for images of the data that it was trained on."""

from __future__ import annotations

from typing import Any

from corsd_lib.analysis.images import run_images
from corsd_lib.attribution.engine import Attribution
from corsd_lib.attribution.maps import attribute_exit, attribute_pair
from corsd_lib.batches import Normalise
from corsd_lib.datasets import ImageData
from corsd_lib.runs import Run, run_data


def attribute_run(
    run: Run, position: int, exit: int, data: ImageData | None = None, *, split: str = "probe", **options: Any
) -> Attribution:
    """`attribute_exit` for the newest weights of a run and one image of its data, see `run_images`.

    `options`: target, method, steps, baseline of `attribute_exit`. Raises the errors of both functions.
    """
    data = run_data(run, data)
    (image,) = run_images(run, [position], data, split)
    return attribute_exit(run.network(), image, exit, **options, normalise=Normalise(data))


def attribute_run_pair(
    run: Run, first: int, second: int, exit: int, data: ImageData | None = None, *, split: str = "probe", **options: Any
) -> tuple[Attribution, Attribution]:
    """`attribute_pair` for the newest weights of a run and two images of its data, see `run_images`.

    Uses the relation networks of the run, or the cosine if its method has none. `options`: method, steps, baseline of
    `attribute_pair`. Raises the errors of `attribute_pair` and of `run_images`.
    """
    data = run_data(run, data)
    a, b = run_images(run, [first, second], data, split)
    networks = run.method().relation_networks()
    relations = networks if len(networks) else "cosine"
    return attribute_pair(run.network(), relations, a, b, exit, **options, normalise=Normalise(data))
