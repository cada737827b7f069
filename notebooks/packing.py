"""What goes into the wheel and the source archive; pyproject.toml names this class for setuptools.

The wheel carries the files of `corsd_lib/bundle.py`, so that `corsd course` works without a clone. The source archive has every
file that git tracks, so that tests run in it. Only setuptools and the standard library are there when a package is built.
"""

from __future__ import annotations

import runpy
import subprocess
from pathlib import Path

from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parents[1]
MADE = ("build", "dist", "__pycache__", ".git", ".venv", ".venv-min")  # folders that are not sources, where git is not asked


class BuildPy(build_py):
    """`build_py` that also copies the bundle into the package and lists every source."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # an editable install finds the files in the clone
            return
        bundle = runpy.run_path(str(ROOT / "corsd_lib" / "bundle.py"))
        for path in bundle["bundled_files"](ROOT):
            target = Path(self.build_lib, "corsd_lib", bundle["PACKAGED"], path)
            self.mkpath(str(target.parent))
            self.copy_file(str(ROOT / path), str(target), preserve_mode=False)

    def get_source_files(self) -> list[str]:
        return sorted({*super().get_source_files(), *self._tracked()})

    def _tracked(self) -> list[str]:
        """Files that git tracks, relative to the root; in an unpacked source archive, which has no history, all files."""
        if not (ROOT / ".git").exists():
            files = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
            return [path.as_posix() for path in files if not set(MADE).intersection(path.parts)]
        try:
            listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            self.warn(f"git does not list the files of this clone ({error}): a source archive would have the package alone")
            return []
        return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
