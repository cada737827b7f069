"""Build wheel and source archive, and try both outside the clone: `python tests/try_wheel.py` (`make test-wheel`).

The wheel is built from the source archive, and installed into an empty environment: without extras, then with "notebooks". It
trains, opens the run that it carries, writes a report and pages, and copies the course; mypy must see its types. The tests of
the source archive are collected, and those about its files are run. Needs a network, for pip.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PINS = ["-c", str(ROOT / "constraints.txt")] if sys.version_info[:2] == (3, 11) else []
MEGABYTE = 1_000_000
# A user's script, and what mypy must say of it.
SCRIPT = """\
from corsd_lib import TrainConfig, sample_run, train

reveal_type(train(TrainConfig(data="digits")))
reveal_type(sample_run("digits/corsd").network())
reveal_type(sample_run("digits/corsd").metrics)
"""
TYPES = ("corsd_lib.runs.run.Run", "corsd_lib.network.MultiExitNetwork", "pandas.core.frame.DataFrame")
# Another one, which asks for the type of every public name.
NAMES = "import corsd_lib; print('import corsd_lib', *(f'reveal_type(corsd_lib.{n})' for n in corsd_lib.__all__), sep='\\n')"
OPEN = """\
from corsd_lib import RelationExplorer, StageExplorer, sample_run
run = sample_run("digits/corsd")
assert "site-packages" in str(run.path), run.path
for kind in (RelationExplorer, StageExplorer):
    kind(run).to_html(f"{kind.__name__}.html")
"""
TRAIN = "train --data digits --per-class 10 --epochs 1 --batch-size 25 --method corsd --out run --quiet"
TESTS = (
    "tests/test_packaging.py",
    "tests/test_docs.py",
    "tests/test_wheel.py",
    "tests/test_samples.py",
    "tests/test_results.py",
)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        wheel, archive = build(place)
        try_archive(archive, place / "archive")
        try_wheel(wheel, place)
    print("wheel and source archive are in order")


def build(place: Path) -> tuple[Path, Path]:
    """The wheel and the source archive from which it is built."""
    tools = environment(place / "tools")
    run([tools, "-m", "pip", "install", "--quiet", "build"], place)
    run([tools, "-m", "build", "--outdir", place / "dist", ROOT], place)
    (wheel,), (archive,) = (list((place / "dist").glob(pattern)) for pattern in ("*.whl", "*.tar.gz"))
    assert wheel.stat().st_size < 15 * MEGABYTE, f"{wheel.name} has {wheel.stat().st_size / MEGABYTE:.1f} MB"
    return wheel, archive


def try_archive(archive: Path, place: Path) -> None:
    """In the unpacked archive, with the packages of this environment: every test is collected, and some are run."""
    with tarfile.open(archive) as tar:
        tar.extractall(place, filter="data")
    (unpacked,) = place.iterdir()
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    run([*pytest, "--collect-only"], unpacked, quiet=True, PYTHONPATH=str(unpacked))
    run([*pytest, "-m", "not slow", *TESTS], unpacked, PYTHONPATH=str(unpacked))


def try_wheel(wheel: Path, place: Path) -> None:
    """In an empty environment and an empty folder, without and with the extra "notebooks"."""
    python, work = environment(place / "venv"), place / "work"
    work.mkdir()
    corsd = [python, "-m", "corsd_lib"]
    run([python, "-m", "pip", "install", "--quiet", wheel, *PINS], work)
    run([python.with_name("corsd"), "--help"], work, quiet=True)
    run([*corsd, *TRAIN.split()], work)
    run([*corsd, "evaluate", "run"], work)
    refused = run([*corsd, "walkthrough"], work, quiet=True, status=2)
    assert "the walkthrough needs plotly" in refused and not (work / "walkthrough").exists(), refused
    run([python, "-m", "pip", "install", "--quiet", f"{wheel}[notebooks]", "mypy", "pandas-stubs", *PINS], work)
    run([*corsd, "report", "run"], work)
    run([python, "-c", OPEN], work)
    run([*corsd, "course", "--no-open"], work)
    run([*corsd, "walkthrough", "--epochs", "2"], work)
    (work / "script.py").write_text(SCRIPT)
    said = run([python, "-m", "mypy", "--strict", "script.py"], work)
    assert all(f'Revealed type is "{name}' in said for name in TYPES), said
    (work / "names.py").write_text(run([python, "-c", NAMES], work, quiet=True))
    said = run([python, "-m", "mypy", "--strict", "names.py"], work, quiet=True)
    assert 'Revealed type is "Any"' not in said and said.count("Revealed type is") > 40, said


def environment(folder: Path) -> Path:
    """The Python of a new virtual environment."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    return folder / ("Scripts" if os.name == "nt" else "bin") / "python"


def run(command: Sequence[str | Path], folder: Path, quiet: bool = False, status: int = 0, **variables: str) -> str:
    """The output of a command in `folder` with `variables`, without a clone on the path. Exits unless it ends with `status`."""
    words = list(map(str, command))
    print("$", " ".join(words)[:200], flush=True)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "CORSD_RELEASES"))}
    done = subprocess.run(words, cwd=folder, env=clean | variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != status:
        sys.exit(f"{done.stdout}\nended with status {done.returncode}, expected {status}")
    if not quiet:
        print(done.stdout, end="", flush=True)
    return done.stdout


if __name__ == "__main__":
    main()
