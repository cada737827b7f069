"""Pack the committed runs for a release, and write the list with which `sample_run` checks what it downloads.

    python results/samples.py             writes corsd_lib/runs/samples.json
    python results/samples.py build/runs  also writes the archives, one for each run, into this folder

The same runs give the same bytes on every machine. Only the standard library is needed.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent
LIST = RESULTS.parent / "corsd_lib" / "runs" / "samples.json"
TEXT = (".json", ".jsonl", ".md")


def archives() -> dict[str, tuple[str, bytes]]:
    """For each committed run, by "<study>/<variant>", the name of its archive and the content."""
    runs = sorted(path.parent for path in RESULTS.glob("*/runs/*/config.json"))
    return {f"{run.parts[-3]}/{run.name}": (f"{run.parts[-3]}-{run.name}.tar", packed(run)) for run in runs}


def packed(run: Path) -> bytes:
    """An uncompressed tar file of a run, without times and owners. It does not shrink when compressed: weights are float16."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(path.relative_to(run).as_posix() for path in (*run.glob("*.*"), *run.glob("probes/*"))):
            content = (run / name).read_bytes()
            if name.endswith(TEXT):  # git may have changed the ends of lines
                content = content.replace(b"\r\n", b"\n")
            member = tarfile.TarInfo(f"{run.name}/{name}")
            member.size, member.mode = len(content), 0o644
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def listed(runs: dict[str, tuple[str, bytes]]) -> dict[str, dict[str, Any]]:
    """File name, bytes and SHA-256 of each archive."""
    return {
        name: {"file": file, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, (file, content) in runs.items()
    }


def main() -> None:
    runs = archives()
    LIST.write_text(json.dumps(listed(runs), indent=1) + "\n", encoding="utf-8", newline="\n")
    for folder in map(Path, sys.argv[1:]):
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in runs.values():
            (folder / file).write_bytes(content)
    print(f"{LIST.name}: {len(runs)} runs, {sum(len(content) for _, content in runs.values()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
