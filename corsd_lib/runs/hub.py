"""Runs of the Hugging Face Hub, as `hf:OWNER/NAME` or `hf:OWNER/NAME@REVISION`."""

from __future__ import annotations

from pathlib import Path

from corsd_lib.errors import CorsdError, first_line, require, shortened

__all__ = ["RUN_FILES", "downloaded", "is_on_hub"]

_PREFIX = "hf:"
# The files of an exported run: JSON, text and safetensors. Nothing else is uploaded or downloaded.
RUN_FILES = (
    *("config.json", "metrics.jsonl", "test.json", "README.md", "weights.safetensors", "probe.safetensors"),
    *("probes/epoch_*.safetensors", "embeddings/*.safetensors"),
)


def is_on_hub(name: object) -> bool:
    """Whether `name` is a run on the Hub (begins with "hf:"), not a folder."""
    return isinstance(name, str) and name.startswith(_PREFIX)


def downloaded(name: str) -> Path:
    """Download a run of the Hub into the local cache and return its folder. Files that are there already are not downloaded
    again.

    `name`: hf:OWNER/NAME or hf:OWNER/NAME@REVISION, where the revision is a commit, tag or branch. The default is the newest
    commit of the main branch. Only the files of a run are downloaded, and reading them executes no code. Raises `CorsdError`
    for a malformed name and if the Hub cannot be reached or has no such run, and `MissingPackage` if huggingface_hub is not
    installed.
    """
    repo, at, revision = name.removeprefix(_PREFIX).partition("@")
    if not repo or (at and not revision):
        raise CorsdError(f"the name of a run is {shortened(name)}; allowed: hf:OWNER/NAME or hf:OWNER/NAME@REVISION")
    require(f"run {shortened(name)}", "huggingface_hub")
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(repo, revision=revision or None, allow_patterns=list(RUN_FILES)))
    except Exception as error:  # errors of the Hub, of its HTTP client and of the disk
        raise CorsdError(f"{name} cannot be downloaded: {first_line(error) or type(error).__name__}") from error
