"""One exit of a run as a classifier for the Hugging Face Hub: `save_pretrained`, `push_to_hub`, `from_pretrained`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from corsd_lib.errors import CorsdError, first_line, missing_package, shortened
from corsd_lib.network import build_network
from corsd_lib.runs import Run

try:
    from huggingface_hub import PyTorchModelHubMixin
except ImportError as error:
    raise missing_package("a classifier for the Hub", "huggingface_hub", error) from error

__all__ = ["ExitClassifier"]


class ExitClassifier(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="corsd_lib",
    tags=["image-classification", "self-distillation"],
):
    """One exit with the stages that it needs. Maps images (B, C_in, H, W) in [0, 1] to logits (B, C).

    It normalises the images itself, and has neither the other exits nor relation networks. Its arguments are plain values,
    which the mixin of huggingface_hub stores in config.json beside the weights in model.safetensors: `network`, `width` and
    `stem` of the backbone; `exit`, numbered from 1 (shallowest), of a network with exits on "all" stages or on the "deepest"
    only (`exits`); `class_names` (C,); `mean` and `std` (C_in,) of the training images; `image_size` (pixels). Weights are
    random until `from_run` or `from_pretrained` loads them. Raises `CorsdError` for an unknown network or exit.
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
        whole = build_network(
            network, len(class_names), in_channels=len(mean), image_size=image_size, width=width, stem=stem, exits=exits
        )
        if not 1 <= exit <= len(whole.exits):
            raise CorsdError(f"exit {shortened(exit)} of a network; allowed: 1 to {len(whole.exits)}")
        self.network = whole.truncated(exit - 1)
        self.class_names, self.image_size = tuple(class_names), image_size
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_run(cls, run: Run, exit: int | None = None) -> ExitClassifier:
        """The classifier of a finished run at `exit`, numbered from 1, the deepest by default; in eval mode.

        Raises `CorsdError` for an exit that the run does not have and for a run without weights.
        """
        trained, config, data = run.network(), run.config, run.data
        exit = len(trained.exits) if exit is None else exit
        classifier = cls(
            network=config.network,
            exit=exit,
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
    def _load_as_safetensor(cls, model: Any, model_file: str, map_location: str, strict: bool) -> Any:
        """Load all weights: the mixin would leave those that are missing in the file at random values."""
        try:
            return super()._load_as_safetensor(model, model_file, map_location, True).eval()
        except Exception as error:  # of safetensors, of torch and of the disk
            raise CorsdError(f"{model_file} has no weights of this classifier: {first_line(error)}") from error

    @classmethod
    def _load_as_pickle(cls, model: Any, model_file: str, map_location: str, strict: bool) -> NoReturn:
        raise CorsdError(f"{model_file} is a pickle, which is not opened; expected: model.safetensors")
