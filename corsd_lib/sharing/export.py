"""Small copies of finished runs for git: weights in float16, some snapshots of some probe images, and a model card."""

from __future__ import annotations

from dataclasses import asdict
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import torch
from torch import Tensor, nn

from corsd_lib.bundle import find_result, results_folders
from corsd_lib.datasets import ImageData
from corsd_lib.errors import CorsdError, check_text, is_whole, require, shortened
from corsd_lib.evaluation import evaluate
from corsd_lib.files import (
    read_json,
    remove_parts,
    with_checksum,
    write_atomic,
    write_json,
    write_lines,
    write_tensors,
)
from corsd_lib.readers import read_config, read_metrics, read_summary, read_weights
from corsd_lib.relation import HandcraftedRelation, MapRelation, VectorRelation, cosine_scores, relation_matrix
from corsd_lib.runs import (
    PLACE_FIELDS,
    PROBE_FIELDS,
    Run,
    Snapshot,
    check_name,
    check_run,
    load_part,
    portable_name,
    run_data,
    sample_run,
)

__all__ = ["committed_run", "committed_summary", "export_run"]

_NOT_ON_THE_CARD = (*PLACE_FIELDS, *PROBE_FIELDS)


def export_run(
    run: Run,
    dest: str | Path,
    *,
    data: ImageData | None = None,
    data_root: str | Path | None = None,
    snapshots: int = 6,
    probe_images: int = 500,
    umap: bool = False,
) -> Run:
    """Write a small copy of a finished run into the folder `dest` and return it. It can be used like the original.

    Weights are stored in float16 and metrics with six significant digits. The rounded weights are evaluated again. test.json
    has the new metrics, and the original ones under "trained". The evaluation needs the images of the run: `data` if it is
    given, else the data set of its configuration, read from `data_root`. `data` is required for a run that was trained on
    images given to `train`. README.md is a model card.

    `snapshots`: number of probe snapshots in the copy, 2 or more. The first and the last are among them, and early epochs are
    chosen more densely than late ones. `probe_images`: number of probe images in the copy, equally many of each class, and at
    least two of each. Class-level relations are computed again for these images. With the "maps" fusion this would need feature
    maps, so the copy has the relations of all probe images.

    The copy has no images and no paths of this machine. For a data set `folder:PATH` or `npz:PATH` it keeps only the last part
    of the path.

    The weights take 2 bytes each. A snapshot takes 2·N·(D + C) + 4·C² bytes for each exit, and 2 bytes for each weight of the
    relation networks, with N probe images, D embedding dimensions and C classes. Examples for a ResNet-10, 100 classes and 500
    probe images:

    - width 32, plain network: 2.5 MB for the weights, 0.4 MB for each snapshot;
    - width 32, with exits and relation networks: 3.8 MB and 2.2 MB;
    - width 16, plain network: 0.7 MB and 0.3 MB;
    - width 16, with exits and relation networks: 1.3 MB and 1.4 MB.

    With `umap` the copy has the UMAP of the last snapshot (`stage_embedding`), so that a `StageExplorer` opens without
    computing it.

    Exporting a run again to the same folder gives the same files. Raises `CorsdError` for an unfinished run, for a `dest` whose
    content is not an export of this run, for missing data, and for weights out of the range of float16. Raises
    `MissingPackage` without huggingface_hub, which writes the metadata of the card.
    """
    check_run(run)
    dest = Path(dest)
    check_text("folder", str(dest))  # the copy is a run, and its name stands in its README
    require("the model card of an export", "huggingface_hub")
    _check_counts(snapshots, probe_images)
    trained, content = _trained_metrics(run), _portable(run, snapshots, probe_images)
    _check_destination(dest, content, run)
    data = _data(run, data, data_root)
    weights = _halved(read_weights(run.path / "weights.safetensors"), run.path)
    # Written first, because this file identifies the folder of an incomplete export.
    write_json(dest / "config.json", with_checksum(content))
    for folder in (dest, dest / "probes", dest / "embeddings"):
        remove_parts(folder)
    _write_probes(run, dest, snapshots, probe_images)
    write_lines(dest / "metrics.jsonl", [_rounded(line) for line in read_metrics(run.path / "metrics.jsonl")], within=dest)
    write_tensors(dest / "weights.safetensors", weights, within=dest)
    exported = Run(dest)
    metrics = asdict(evaluate(exported, data)) | {"data": exported.data.name}
    write_json(dest / "test.json", with_checksum({**metrics, "trained": trained}), within=dest)
    write_atomic(dest / "README.md", _card(exported, metrics, trained).encode(), within=dest)
    _keep_umap(exported, umap)
    return exported


def _keep_umap(exported: Run, wanted: bool) -> None:
    from corsd_lib.analysis.embedding import stage_embedding

    for file in (exported.path / "embeddings").glob("*.safetensors"):  # left by an earlier export with other images
        file.unlink()
    if wanted:
        stage_embedding(exported)


def committed_run(name: str) -> Run:
    """`sample_run` by its earlier name."""
    return sample_run(name)


def committed_summary(study: str) -> dict[str, Any]:
    """The summary of a study of the repository, such as "digits": see `studies.summary.summarise`.

    The file results/<study>/summary.json is looked up in the working directory and its parents, then in the clone or wheel of
    the package. Raises `CorsdError` for an unknown study and for a damaged file.
    """
    check_name("study", study)
    if (file := find_result(Path(study) / "summary.json")) is not None:
        return read_summary(file)
    there = sorted({path.parts[-2] for folder in results_folders() for path in folder.glob("*/summary.json")})
    raise CorsdError(f"there is no summary of a study {shortened(study)}; there are: {', '.join(there) or 'none'}")


def _check_counts(snapshots: int, probe_images: int) -> None:
    for what, value, low in (("snapshots", snapshots, 2), ("probe_images", probe_images, 0)):
        if not is_whole(value, low, 2**31 - 1):
            raise CorsdError(f"{what} is {shortened(value)}; allowed: a whole number of at least {low} and at most {2**31 - 1}")


def _trained_metrics(run: Run) -> dict[str, Any]:
    """The test metrics of the trained weights. For an export these are the metrics before its weights were rounded.

    Raises `CorsdError` for a run that is not finished, and if the metrics do not have as many exits as the network.
    """
    test = run.test
    if not run.finished or test is None:
        done = f"{run.epochs_done} of {run.config.epochs} epochs"
        raise CorsdError(f"{run.path} is not finished ({done}): only a finished run is exported")
    metrics = {name: test.get("trained", test)[name] for name in ("exits", "ensemble")}
    exits = len(run.network().exits)
    if len(metrics["exits"]) != exits:
        file = run.path / "test.json"
        raise CorsdError(f"{file}: exits has {len(metrics['exits'])} entries; allowed: {exits}, as the network of its weights")
    return metrics


def _portable(run: Run, snapshots: int, probe_images: int) -> dict[str, Any]:
    """The content of config.json for the export: without values of this machine, with the settings of the export."""
    content = read_config(run.path / "config.json")
    train = content["train"] | {"data": portable_name(run.config.data), "data_root": None, "out": None, "resume": False}
    exported = {"snapshots": snapshots, "probe_images": probe_images}
    return {**content, "train": train, "data": content["data"] | {"name": portable_name(run.data.name)}, "exported": exported}


def _check_destination(dest: Path, content: dict[str, Any], run: Run) -> None:
    if not dest.exists() or (dest.is_dir() and not any(dest.iterdir())):
        return
    there = read_json(dest / "config.json") if (dest / "config.json").is_file() else None
    same = ("train", "data", "provenance")
    if not isinstance(there, dict) or "exported" not in there or any(there.get(key) != content[key] for key in same):
        raise CorsdError(f"{dest} exists and is not an export of {run.path}: choose another folder, or remove it")


def _data(run: Run, data: ImageData | None, data_root: str | Path | None) -> ImageData:
    try:
        return run_data(run, data, None if data_root is None else str(data_root))
    except CorsdError as error:
        raise CorsdError(f"an export needs the data of the run for its evaluation, which cannot be read: {error}") from error


# --- tensors ----------------------------------------------------------------------------------------------------------


def _halved(tensors: dict[str, Tensor], source: Path) -> dict[str, Tensor]:
    """A copy of `tensors` in which floating-point tensors are in float16; other types are unchanged.

    Raises `CorsdError`, with `source` in the message, for values that are not finite in float16.
    """
    half = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    for name, value in half.items():
        if not value.isfinite().all():
            largest = tensors[name].abs().max().item()
            raise CorsdError(
                f"{source}: {name} has values up to {largest:g}; allowed in an export, which is in float16: finite values "
                "up to 65504"
            )
    return half


def _rounded(record: dict[str, Any]) -> dict[str, Any]:
    """`record` with its floats rounded to six significant digits."""
    return {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in record.items()}


def _write_probes(run: Run, dest: Path, snapshots: int, probe_images: int) -> None:
    probes, kept = run.probes, _spread(list(run.probes), snapshots)
    indices = _balanced(probes.labels, max(2, probe_images // run.data.num_classes))
    labels, index = probes.labels[indices], probes.index[indices]
    write_tensors(dest / "probe.safetensors", {"labels": labels, "index": index}, {"split": probes.split}, within=dest)
    networks = run.method().relation_networks()
    smaller = {epoch: _smaller(run, probes[epoch], indices, labels, networks) for epoch in kept}
    for epoch, tensors in smaller.items():
        write_tensors(dest / "probes" / f"epoch_{epoch:04d}.safetensors", tensors, within=dest)
    for file in (dest / "probes").glob("epoch_*.safetensors"):  # left by an earlier export with other snapshots
        if int(file.stem.removeprefix("epoch_")) not in smaller:
            file.unlink()


def _spread(epochs: list[int], count: int) -> list[int]:
    """Choose `count` of the sorted `epochs` (all if there are fewer), more densely at the beginning than at the end.

    The first and the last are always chosen. The positions of the chosen epochs grow quadratically.
    """
    last = len(epochs) - 1
    if last < count:
        return epochs
    places = [max(i, int(last * (i / (count - 1)) ** 2 + 0.5)) for i in range(count)]
    return [epochs[place] for place in places]


def _balanced(labels: Tensor, each: int) -> Tensor:
    """Indices of the first `each` images of every class of sorted `labels` (N,), as a smaller `ProbeSet` would choose them."""
    sizes = torch.bincount(labels)
    rank = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes)[labels]
    return (rank < each).nonzero().flatten()


def _smaller(run: Run, snapshot: Snapshot, indices: Tensor, labels: Tensor, networks: nn.ModuleList) -> dict[str, Tensor]:
    """The tensors of a snapshot for the probe images `indices` (n,) with `labels` (n,).

    `networks`: relation networks of the method; the weights of the snapshot are loaded into them. Class-level relations are
    computed again from these images. If the relation networks compare feature maps, which a snapshot does not have, the
    relations of the snapshot are kept.
    """
    embeddings = [e[indices] for e in snapshot.embeddings]
    relations = snapshot.relations
    load_part(networks, snapshot.relation_state, "relations", run.path / "probes" / f"epoch_{snapshot.epoch:04d}.safetensors")
    if not any(isinstance(network, MapRelation) for network in networks):
        scores = [_scores(e, networks[k] if len(networks) else None) for k, e in enumerate(embeddings)]
        relations = [relation_matrix(s, labels, run.data.num_classes) for s in scores]
    return {
        **{f"embeddings.{k}": e for k, e in enumerate(embeddings)},
        **{f"logits.{k}": z[indices] for k, z in enumerate(snapshot.logits)},
        **{f"relations.{k}": r for k, r in enumerate(relations)},
        **{f"method.{k}": v for k, v in snapshot.relation_state.items()},
    }


def _scores(embeddings: Tensor, network: nn.Module | None) -> Tensor:
    """Scores (N, N) of all pairs of float16 embeddings (N, D), by `network` if it compares embeddings, else by cosine."""
    with torch.no_grad():
        if isinstance(network, VectorRelation | HandcraftedRelation):
            return network.scores(embeddings.float())
        return cosine_scores(embeddings)


# --- the model card ---------------------------------------------------------------------------------------------------


def _card(run: Run, metrics: dict[str, Any], trained: dict[str, Any]) -> str:
    """A model card in the format of Hugging Face, from the template model_card.md."""
    c, data, provenance = run.config, run.data, run.provenance
    template = (resources.files("corsd_lib.sharing") / "model_card.md").read_text(encoding="utf-8")
    return Template(template).substitute(
        front_matter=_front_matter(run, metrics),
        method=c.method,
        network=f"{c.network}{f' of width {c.width}' if c.width else ''}",
        data=data.name,
        channels=data.channels,
        size=data.image_size,
        classes=data.num_classes,
        exits="an exit on its last stage"
        if len(metrics["exits"]) == 1
        else f"{len(metrics['exits'])} exits, one on each stage",
        images=f"{metrics['images']:,}",
        split=metrics["split"],
        results=_results(metrics, trained),
        probe_images=len(run.probes.labels),
        probe_split=run.probes.split,
        epochs=", ".join(map(str, run.probes)),
        settings=_settings(run),
        commit=provenance["revision"],
        version=provenance["corsd_lib"],
        versions=", ".join(f"{name} {version}" for name, version in provenance["versions"].items()),
        resumed=_resumed(run),
        **{key: provenance[key] for key in ("python", "device", "threads", "system", "machine")},
    )


def _resumed(run: Run) -> str:
    """A sentence for each process that resumed the training on another machine, with another commit or other packages."""
    return "".join(
        f"\nResumed after epoch {other['epochs_done']} with commit {other['revision']}, PyTorch "
        f"{other['versions']['torch']}, device {other['device']}, {other['threads']} threads."
        for other in run.resumed
    )


def _front_matter(run: Run, metrics: dict[str, Any]) -> str:
    """The YAML header of the model card, with the accuracy of every exit."""
    from huggingface_hub import EvalResult, ModelCardData

    data, method = run.data.name, run.config.method
    about: dict[str, Any] = {"task_type": "image-classification", "dataset_type": data, "dataset_name": data}
    results = [
        EvalResult(
            **about,
            dataset_split=metrics["split"],
            metric_type="accuracy",
            metric_name=f"top-1 of exit {k} (%)",
            metric_value=round(row["top1"], 2),
        )
        for k, row in enumerate(metrics["exits"], 1)
    ]
    card = ModelCardData(
        license="other",
        license_name="terms-of-the-images",
        library_name="corsd",
        pipeline_tag="image-classification",
        tags=["image-classification", "self-distillation", "multi-exit", method],
        datasets=None if ":" in data else [data],  # a local folder has no public name
        metrics=["accuracy"],
        model_name=run.config.path.name,
        eval_results=results,
    )
    return f"---\n{card.to_yaml()}\n---\n"


def _results(metrics: dict[str, Any], trained: dict[str, Any]) -> str:
    names = [*(f"exit {k}" for k in range(1, len(metrics["exits"]) + 1)), "ensemble"]
    rows = zip(names, [*metrics["exits"], metrics["ensemble"]], [*trained["exits"], trained["ensemble"]], strict=True)
    lines = ["| | top-1 % | top-5 % | cross-entropy | calibration error % | MACs | parameters | top-1 % as trained |"]
    lines.append("| --- |" + " ---: |" * 7)
    for name, row, before in rows:
        cost = " | ".join(f"{row[key]:,}" if key in row else "" for key in ("macs", "parameters"))
        quality = f"{row['top1']:.2f} | {row['top5']:.2f} | {row['cross_entropy']:.3f} | {row['calibration_error']:.2f}"
        lines.append(f"| {name} | {quality} | {cost} | {before['top1']:.2f} |")
    return "\n".join(lines)


def _settings(run: Run) -> str:
    """The configuration as a table, without fields that are None."""
    settings = {k: v for k, v in run.raw_config.items() if k not in (*_NOT_ON_THE_CARD, "method_options") and v is not None}
    settings |= {f"method option {k}": v for k, v in run.raw_config["method_options"].items()}
    return "\n".join(["| setting | value |", "| --- | --- |", *(f"| {k} | {v} |" for k, v in settings.items())])
