"""Sample runs: the runs in `results/`, from the clone, the installed package, a cache, or a release."""

from __future__ import annotations

import math
import os
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from corsd_lib import __version__
from corsd_lib.bundle import find_result, results_folders
from corsd_lib.datasets.download import download, unpacked
from corsd_lib.errors import CorsdError, shortened
from corsd_lib.files import locked, make_folder, read_json
from corsd_lib.runs.run import Run, check_name

__all__ = ["sample_run"]

TRIES, WAIT = 3, 1.0  # connections, and the pause in seconds after the first


def sample_run(name: str) -> Run:
    """Open one of the sample runs of the studies by its name "<study>/<variant>", such as "digits/corsd".

    The folder results/<study>/runs/<variant> is looked up in the working directory and its parents, then in the clone or wheel
    of the package. A wheel has only "digits/corsd". A run that is not found is downloaded once (0.5 to 3.5 MB) and kept in
    `$CORSD_CACHE` (default ~/.cache/corsd). The source is the GitHub release of this version, or the URL or folder in
    `$CORSD_RELEASES`. The SHA-256 of the archive is checked before it is unpacked. Nothing in it is executed.

    Raises `CorsdError` for an unknown name and if the download fails. The message lists the names, or says what to do.
    """
    check_name("sample run", name)
    study, _, variant = str(name).partition("/")
    if study and variant and (found := find_result(f"{study}/runs/{variant}/config.json")):
        return Run(found.parent)
    if entry := _released().get(str(name)):
        return Run(_fetched(str(name), entry))
    here = [path for folder in results_folders() for path in folder.glob("*/runs/*/config.json")]
    there = sorted({*_released(), *(f"{path.parts[-4]}/{path.parts[-2]}" for path in here)})
    raise CorsdError(f"there is no sample run {shortened(name)}; there are: {', '.join(there)}")


@cache
def _released() -> dict[str, dict[str, Any]]:
    """Entry of each run in the GitHub release, by name: file name, size in bytes and SHA-256 of its archive.

    The entries are read from samples.json, which `results/samples.py` writes.
    """
    with resources.as_file(resources.files("corsd_lib.runs") / "samples.json") as path:
        return read_json(path)


def _fetched(name: str, entry: dict[str, Any]) -> Path:
    """The folder of a run in the cache, downloaded and unpacked if it is not there."""
    study, _, variant = name.partition("/")
    home = _cache() / entry["sha256"][:16]  # another release may have other runs of the same name
    folder = home / study / "runs" / variant
    if (folder / "config.json").is_file():
        return folder
    where = f"sample run {shortened(name)} is not on this machine"
    advice = "work in a clone of the repository, or use digits/corsd, which comes with the package"
    address = _address()
    if address is None:
        raise CorsdError(
            f"{where}, and no download URL is set: set CORSD_RELEASES to a URL or folder with the archives, or {advice}"
        )
    try:
        make_folder(home)
        with locked(_cache(), wait=math.inf):
            _fetch(folder, address, home / entry["file"], entry)
    except CorsdError as error:
        raise CorsdError(f"{where}: {error}. Connect to the internet and call sample_run again, or {advice}") from error
    return folder


def _fetch(folder: Path, address: str, archive: Path, entry: dict[str, Any]) -> None:
    if (folder / "config.json").is_file():  # another process has downloaded it meanwhile
        return
    download(f"{address}/{archive.name}", archive, entry["sha256"], entry["bytes"], tries=TRIES, wait=WAIT)
    with unpacked(archive) as content:
        make_folder(folder.parent)
        os.replace(content / folder.name, folder)
    archive.unlink()


def _cache() -> Path:
    return Path(os.environ.get("CORSD_CACHE") or os.path.expanduser("~/.cache/corsd"))


def _address() -> str | None:
    """URL of the folder with the archives: `$CORSD_RELEASES`, else the release of this version on GitHub.

    None if neither the variable is set nor the repository is known.
    """
    if given := os.environ.get("CORSD_RELEASES"):
        return given.rstrip("/") if "://" in given else Path(given).resolve().as_uri()
    repository = _repository()
    return f"{repository}/releases/download/v{__version__}" if repository else None


def _repository() -> str | None:
    """The URL `Repository` of [project.urls], from the metadata of the installed package; None if there is none."""
    try:
        urls = metadata.metadata("corsd_lib").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        return None
    named = dict(url.split(", ", 1) for url in urls)
    return named["Repository"].rstrip("/").removesuffix(".git") if "Repository" in named else None
