"""A trained network as files for deployment: `torch.export` or ONNX programs, and model.json with what is needed to use them.

    model.json            class names, normalisation, input size, the programs of each exit, versions, SHA-256 of each program
    stage1.onnx ...       with `exit="all"`: one program for each exit, which continues from the feature map of the previous one
    exit2.onnx            with `exit=2`: the deployable sub-network of one exit

An ONNX file holds no code. `torch.export.load` unpickles objects, which may execute code: open only .pt2 files that you wrote.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from corsd_lib.errors import CorsdError, check_choice, check_text, is_whole, shortened
from corsd_lib.files import read_json, remove_parts, with_checksum, write_atomic, write_json
from corsd_lib.network import MultiExitNetwork, evaluating
from corsd_lib.runs import Run, check_run, portable_name
from corsd_lib.sharing.programs import FORMATS, Format, Program, chain, single

__all__ = ["export_model"]

_KIND = "network for deployment"  # marks a model.json of this module
_TOLERANCE = 1e-4  # largest difference of logits, relative to the largest logit: sums in another order differ by about 1e-6


def export_model(run: Run, dest: str | Path, *, format: str = "onnx", exit: int | str = "all") -> Path:
    """Write the network of a run into the folder `dest` as programs that run without this library; return the folder.

    `format`: "onnx" or "torch.export". `exit`: "all" for one program per exit, or the number of an exit, from 1, for its
    sub-network as one program. With "all" each program continues from the feature map of the previous one. The caller can
    therefore stop after any program (early exit). The input of the first program is normalised images (B, C, H, W) float32.
    Batches may have any size.

    Before anything is written, every program is loaded from its bytes and compared with the network on random images; ONNX
    programs run in onnxruntime for this. A folder that holds an earlier export is replaced. Raises `CorsdError` if the logits
    differ, if `dest` has other content or cannot be written, for an unknown format or exit, for a network of timm with
    `exit="all"`, and for an operation that the format does not support. Raises `MissingPackage` if a package of the format is
    not installed.
    """
    check_run(run)
    check_choice("format", format, FORMATS)
    dest = Path(dest)
    check_text("folder", str(dest))
    before = _earlier_programs(dest)
    network, how = run.network(), FORMATS[format]
    programs = _programs(network, exit)
    contents, difference = _convert(network, programs, how, _images(run, 3))
    files = {f"{program.name}{how.suffix}": content for program, content in zip(programs, contents, strict=True)}
    about = {**_about(run, format, how), "programs": _program_entries(programs, files), "largest_difference": difference}
    remove_parts(dest)
    for name, content in files.items():
        write_atomic(dest / name, content)
    write_json(dest / "model.json", with_checksum(about), within=dest)
    for name in before - files.keys():
        (dest / name).unlink(missing_ok=True)
    return dest


def _programs(network: MultiExitNetwork, exit: int | str) -> list[Program]:
    if exit == "all":
        return chain(network)
    if not is_whole(exit, 1, len(network.exits)):
        raise CorsdError(f"exit = {shortened(exit)}; allowed: 1 to {len(network.exits)}, or 'all'")
    return single(network, int(exit))


def _earlier_programs(dest: Path) -> set[str]:
    """File names of the programs of an earlier export in `dest`. Raises `CorsdError` unless `dest` is missing, empty or an
    export.
    """
    if not dest.exists() or (dest.is_dir() and not any(dest.iterdir())):
        return set()
    there = read_json(dest / "model.json") if (dest / "model.json").is_file() else None
    if not isinstance(there, dict) or there.get("kind") != _KIND:
        raise CorsdError(f"{dest} exists and is not an exported model: choose another folder, or remove it")
    return {file.name for file in dest.iterdir() if re.fullmatch(r"(stage|exit)\d+\.(onnx|pt2)", file.name)}


def _images(run: Run, count: int) -> Tensor:
    """Random normalised images (count, C, H, W), always the same."""
    data, generator = run.data, torch.Generator().manual_seed(0)
    return torch.randn(count, data.channels, data.image_size, data.image_size, generator=generator)


def _convert(network: MultiExitNetwork, programs: Sequence[Program], how: Format, images: Tensor) -> tuple[list[bytes], float]:
    """Bytes of each program, and the largest difference between its logits and those of the network.

    Programs are traced with two images and checked with all `images` and with one. Raises `CorsdError` if logits differ.
    """
    contents, largest, given = [], 0.0, images
    with evaluating(network):
        wanted = network(images).logits
        for program in programs:
            contents.append(how.convert(program, given[:2]))
            outputs, alone = how.outputs(program, contents[-1], given, given[:1])
            target = wanted[program.exit - 1]
            difference = max((outputs[0] - target).abs().max().item(), (alone[0] - target[:1]).abs().max().item())
            if not difference <= _TOLERANCE * max(1.0, target.abs().max().item()):  # true for NaN too
                raise CorsdError(
                    f"{program.name}{how.suffix}: its logits differ from those of the network by {difference:g}; no file "
                    "was written; try the other format"
                )
            largest, given = max(largest, difference), outputs[-1]
    return contents, largest


def _about(run: Run, format: str, how: Format) -> dict[str, Any]:
    """Content of model.json about the run, its images and the versions of packages."""
    data, config = run.data, run.config
    return {
        "kind": _KIND,
        "format": format,
        "data": portable_name(data.name),
        "method": config.method,
        "network": config.network,
        "epochs": run.epochs_done,
        "class_names": list(data.class_names),
        "channels": data.channels,
        "image_size": data.image_size,
        "normalisation": {"pixels": "in [0, 1]", "mean": list(data.mean), "std": list(data.std)},
        "versions": how.versions(),
        "trained": {key: run.provenance[key] for key in ("corsd_lib", "revision")},
    }


def _program_entries(programs: Sequence[Program], files: dict[str, bytes]) -> list[dict[str, Any]]:
    """Entries of model.json for the programs, in the order in which they run."""
    return [
        {
            "file": name,
            "exit": program.exit,
            "input": program.input,
            "outputs": list(program.outputs),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        for program, (name, content) in zip(programs, files.items(), strict=True)
    ]
