"""One exit of a run as a classifier for the Hugging Face Hub: `save_pretrained`, `push_to_hub`, `from_pretrained`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from corsd_lib.errors import CorsdError, first_line, is_whole, missing_package, named, shortened
from corsd_lib.files import read_json, read_tensors
from corsd_lib.network import build_network
from corsd_lib.readers import check_classifier
from corsd_lib.runs import Run, check_name, check_run, load_part

try:
    from huggingface_hub import ModelCard, ModelCardData, PyTorchModelHubMixin, snapshot_download
except ImportError as error:
    raise missing_package("a classifier for the Hub", "huggingface_hub", error) from error

__all__ = ["ExitClassifier"]

_OF_A_DOWNLOAD = ("revision", "token", "cache_dir", "force_download", "local_files_only")


class ExitClassifier(nn.Module, PyTorchModelHubMixin):
    """One exit with the stages that it needs. Maps images (B, C_in, H, W) in [0, 1] to logits (B, C).

    The classifier normalises the images itself. It has neither the other exits nor relation networks. Its weights are random
    until `from_run` or `from_pretrained` loads them. The mixin of huggingface_hub stores the weights in model.safetensors and
    the arguments, which are plain values, in config.json.

    `network`, `width`, `stem`: of the backbone, see `build_backbone`. `exits`: "all" if the network has an exit on every stage,
    "deepest" if it has one exit. `exit`: number of the exit, from 1 (shallowest). `class_names` (C,). `mean`, `std` (C_in,): of
    the training images. `image_size`: side in pixels. Raises `CorsdError` for a value that is not valid.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: str,
        exit: int,
        class_names: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int,
        width: int | None = None,
        stem: str = "auto",
        exits: str = "all",
    ) -> None:
        super().__init__()
        lists = {
            k: list(v) if isinstance(v, tuple) else v for k, v in (("class_names", class_names), ("mean", mean), ("std", std))
        }
        given = {"network": network, "exit": exit, "image_size": image_size, "width": width, "stem": stem, "exits": exits}
        check_classifier({**given, **lists}, type(self).__name__)
        whole = build_network(
            network, len(class_names), in_channels=len(mean), image_size=image_size, width=width, stem=stem, exits=exits
        )
        _check_exit(exit, len(whole.exits))
        self.network = whole.truncated(exit - 1)
        self.class_names, self.image_size = tuple(class_names), image_size
        self.architecture, self.exit = network, exit
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_run(cls, run: Run, exit: int | None = None) -> ExitClassifier:
        """The classifier of a finished run at `exit`, numbered from 1, the deepest by default; in eval mode.

        Raises `CorsdError` for an exit that the run does not have, and for a run whose weights are missing or damaged.
        """
        check_run(run)
        trained, config, data = run.network(), run.config, run.data
        exit = len(trained.exits) if exit is None else exit
        _check_exit(exit, len(trained.exits))
        classifier = cls(
            network=config.network,
            exit=int(exit),
            class_names=list(data.class_names),
            mean=list(data.mean),
            std=list(data.std),
            image_size=data.image_size,
            width=config.width,
            stem=config.stem,
            exits=run.method().exits,
        )
        classifier.network.load_state_dict(trained.truncated(exit - 1).state_dict())
        return classifier.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of images (B, C_in, H, W) in [0, 1]."""
        return self.network((images - self.mean) / self.std)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, map_location: str = "cpu", **options: Any
    ) -> ExitClassifier:
        """The classifier of a folder that `save_pretrained` wrote, or of a repository of the Hub ("OWNER/NAME"); in eval mode.

        `options`: `revision`, `token`, `cache_dir`, `force_download` and `local_files_only` of a download, and arguments of the
        class in place of those in config.json. Loading executes no code. Raises `CorsdError` if the download fails, if a value
        of config.json is not valid, and if the weights are not those of this architecture or not finite.
        """
        name = pretrained_model_name_or_path
        check_name("classifier", name)
        download = {key: options.pop(key) for key in _OF_A_DOWNLOAD if key in options}
        options.pop("strict", None)  # an option of the mixin, ignored: loading is always strict
        folder = Path(name) if os.path.isdir(name) else _downloaded(str(name), download)
        config = read_json(folder / "config.json")
        check_classifier({**config, **options} if isinstance(config, dict) else config, str(folder / "config.json"))
        with named(folder / "config.json"):
            classifier = cls(**{**config, **options})
        classifier._load(folder)
        return classifier.to(map_location).eval()

    def _load(self, folder: Path) -> None:
        """Load the weights from model.safetensors in `folder`."""
        file, pickled = folder / "model.safetensors", folder / "pytorch_model.bin"
        if pickled.exists() and not file.exists():
            raise CorsdError(f"{pickled} is a pickle, which is not opened; expected: model.safetensors")
        tensors, _ = read_tensors(file)
        if stray := [key for key in tensors if not key.startswith("network.")]:
            raise CorsdError(
                f"{file} has the tensor {shortened(stray[0])}, which is not part of the network; allowed: names that begin "
                "with network."
            )
        load_part(self.network, tensors, "network", file)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write config.json, model.safetensors and README.md into a folder. `options`: those of `PyTorchModelHubMixin`.

        Returns the URL of the commit with `push_to_hub=True`, else None. Raises `CorsdError` if the folder cannot be written.
        """
        check_name("folder of a classifier", save_directory)
        try:
            return super().save_pretrained(save_directory, **options)
        except (OSError, SafetensorError) as error:
            raise CorsdError(
                f"cannot write {save_directory}: {getattr(error, 'strerror', None) or first_line(error)}"
            ) from error

    def generate_model_card(self, *args: Any, **options: Any) -> ModelCard:
        """The model card that `save_pretrained` and `push_to_hub` write, from the template classifier_card.md.

        The only option of the mixin that is used is `repo_id`: the example on the card loads the classifier by this name.
        """
        about = ModelCardData(
            library_name="corsd", pipeline_tag="image-classification", tags=["image-classification", "self-distillation"]
        )
        template = (resources.files("corsd_lib.sharing") / "classifier_card.md").read_text(encoding="utf-8")
        text = Template(template).substitute(
            front_matter=f"---\n{about.to_yaml()}\n---\n",
            network=self.architecture,
            exit=self.exit,
            channels=len(self.mean),
            size=self.image_size,
            classes=len(self.class_names),
            source=options.get("repo_id") or ".",
        )
        return ModelCard(text)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the files of `save_pretrained` to the repository `repo_id` ("OWNER/NAME"), with the `options` of the mixin.

        Raises `CorsdError` if the Hub refuses or cannot be reached.
        """
        card = {"repo_id": repo_id} | (options.pop("model_card_kwargs", None) or {})
        try:
            return super().push_to_hub(repo_id, model_card_kwargs=card, **options)
        except CorsdError:
            raise
        except Exception as error:  # errors of the Hub, of its HTTP client and of the disk
            reason = first_line(error) or type(error).__name__
            raise CorsdError(f"the classifier cannot be uploaded to {shortened(repo_id)}: {reason}") from error


def _check_exit(exit: object, count: int) -> None:
    if not is_whole(exit, 1, count):
        raise CorsdError(f"exit = {shortened(exit)}; allowed: 1 to {count}")


def _downloaded(name: str, options: dict[str, Any]) -> Path:
    """Download config.json and the weights of a classifier of the Hub, and return their folder."""
    try:
        return Path(snapshot_download(name, allow_patterns=["config.json", "model.safetensors"], **options))
    except Exception as error:  # errors of the Hub, of its HTTP client and of the disk
        reason = first_line(error) or type(error).__name__
        raise CorsdError(f"classifier {shortened(name)} is not a folder, and it cannot be downloaded: {reason}") from error
