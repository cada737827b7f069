"""Runs on the Hugging Face Hub: `push_run` uploads one, `load_run("hf:OWNER/NAME")` opens it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from corsd_lib.datasets import ImageData
from corsd_lib.errors import CorsdError, first_line, require
from corsd_lib.readers import read_config
from corsd_lib.runs import Run, check_name, check_run
from corsd_lib.runs.hub import RUN_FILES
from corsd_lib.sharing.export import export_run

__all__ = ["push_run"]


def push_run(
    run: Run,
    repo: str,
    *,
    private: bool = False,
    data: ImageData | None = None,
    data_root: str | Path | None = None,
) -> str:
    """Upload a finished run to the repository `repo` ("OWNER/NAME") of the Hugging Face Hub; return the name for `load_run`.

    An exported run is uploaded as it is; for any other run `export_run` makes a copy first, which needs its data (`data`,
    `data_root`). If the repository does not exist, it is created; `private` makes it private. Files of an earlier run in the
    repository are replaced in one commit. The returned name is "hf:OWNER/NAME@COMMIT". The account is that of `hf auth login`
    or $HF_TOKEN. Raises the errors of `export_run`, `MissingPackage` if huggingface_hub is not installed, and `CorsdError` for
    an incomplete export and if the Hub refuses the upload or cannot be reached.
    """
    check_run(run)
    check_name("repository", repo)
    require("a run on the Hub", "huggingface_hub")
    from huggingface_hub import HfApi

    with _exported(run, data, data_root) as folder:
        try:
            api = HfApi(library_name="corsd_lib")
            repo = api.create_repo(repo, private=private, exist_ok=True).repo_id  # now with the owner
            commit = api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                allow_patterns=list(RUN_FILES),
                delete_patterns=list(RUN_FILES),  # files of an earlier run, which may have other snapshots
                commit_message=f"{run.config.method} on {run.data.name}, {run.config.network}",
            )
        except Exception as error:  # errors of the Hub, of its HTTP client and of the disk
            raise CorsdError(f"{run.path} cannot be uploaded to {repo}: {first_line(error) or type(error).__name__}") from error
    return f"hf:{repo}@{commit.oid}"


@contextmanager
def _exported(run: Run, data: ImageData | None, data_root: str | Path | None) -> Iterator[Path]:
    """Yield the folder of `run` if it is an export, else the folder of a temporary export of it.

    Raises `CorsdError` for an incomplete export, and the errors of `export_run`.
    """
    if "exported" in read_config(run.path / "config.json"):
        if not run.finished or run.test is None:
            raise CorsdError(f"{run.path} is an incomplete export: export the run again")
        yield run.path
        return
    with TemporaryDirectory() as folder:
        yield export_run(run, Path(folder) / "run", data=data, data_root=data_root).path
