"""The command line: `corsd --help` lists its subcommands. The options of a training are the fields of `TrainConfig`."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import MISSING, Field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, get_args, get_type_hints

from corsd_lib import __version__
from corsd_lib.cli_course import add_course, add_walkthrough
from corsd_lib.cli_share import add_export_model, add_push
from corsd_lib.errors import CorsdError, check_text, shortened
from corsd_lib.files import write_between
from corsd_lib.runs import TrainConfig, load_run
from corsd_lib.schema import parse_json

if TYPE_CHECKING:
    from corsd_lib.methods import Method
    from corsd_lib.studies.cluster import Cluster
    from corsd_lib.studies.study import Study

__all__ = ["main"]

Subcommands: TypeAlias = "argparse._SubParsersAction[_Parser]"
_CONTINUATION = "run the same command again to continue"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a subcommand.

    A user error prints one line to stderr and exits with status 2. Ctrl-C outside a training prints one line and exits with
    status 130.
    """
    options = _parser().parse_args(arguments)
    try:
        _check_texts(vars(options))
        with warnings.catch_warnings():
            warnings.showwarning = _shown_as_note(warnings.showwarning)
            options.subcommand(options)
    except CorsdError as error:
        _complain(f"error: {error}")
        sys.exit(2)
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # the reader of the output has ended, such as `head`
            raise
        where = f"{error.filename}: " if error.filename else ""
        _complain(f"error: {where}{error.strerror or error}")
        sys.exit(2)
    except KeyboardInterrupt:
        _complain(f"stopped; {options.continuation}" if "continuation" in options else "stopped")
        sys.exit(130)


def _complain(text: str) -> None:
    """Print a line on stderr. Control characters of names are escaped, because they would change the terminal."""
    print("corsd: " + "".join(c if c == "\n" or c.isprintable() else repr(c)[1:-1] for c in text), file=sys.stderr)


def _check_texts(options: Mapping[str, Any]) -> None:
    """Raise `CorsdError` for an argument that is empty or not valid UTF-8.

    Text that is not valid UTF-8 could not be written to files later. This check runs before anything is computed.
    """
    for name, value in options.items():
        texts = value if isinstance(value, list) else [value]
        check_text(f"argument {name}:", *(text for text in texts if isinstance(text, str)))
        if "" in texts:
            raise CorsdError(f"argument {name} is empty; give a value, or leave it out")


def _shown_as_note(otherwise: Callable[..., None]) -> Callable[..., None]:
    """A function that shows notices about the data as one line, and other warnings as usual."""

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        from corsd_lib.datasets import DataNotice

        if issubclass(category, DataNotice):
            _complain(f"note: {message}")
        else:
            otherwise(message, category, *place, **more)

    return show


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the long usage text.

    `ending()` returns the last lines of the help. It is called only when the help is shown, because it may load plug-ins.
    """

    ending: Callable[[], str] | None = None

    def format_help(self) -> str:
        return super().format_help() + (f"\n{self.ending()}\n" if self.ending else "")

    def error(self, message: str) -> NoReturn:
        message = message if len(message) <= 600 else f"{message[:300]} ... {message[-300:]}"  # argparse repeats the arguments
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    """The parser of `corsd` with all subcommands."""
    parser = _Parser("corsd", description="Class-Oriented Relational Self Distillation")
    parser.add_argument("--version", action="version", version=f"corsd {__version__}")
    subcommands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        *(_add_train, _add_methods, _add_evaluate, _add_compare, _add_tune),
        *(_add_export, _add_report, add_export_model, add_push, _add_data, _add_bench),
        *(add_walkthrough, add_course),
    ):
        add(subcommands)
    return parser


def _add_train(subcommands: Subcommands) -> None:
    parser = subcommands.add_parser("train", help="train a network and write a run")
    parser.set_defaults(subcommand=_train)
    parser.add_argument("--config", metavar="FILE", help="start from a JSON file, such as a run's own config.json")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--logger", metavar="NAME", help="send metrics to tensorboard, wandb, mlflow or csv after each epoch")
    _add_config_options(parser)
    parser.ending = _methods_text


def _train(options: argparse.Namespace) -> None:
    from lightning_fabric.utilities.rank_zero import rank_zero_only

    from corsd_lib.training import Tracker, train

    given = {f.name: getattr(options, f.name) for f in fields(TrainConfig) if hasattr(options, f.name)}
    config = TrainConfig() if options.config is None else TrainConfig.from_file(options.config)
    given["method_options"] = _method_options(config, given)
    with Tracker(options.logger) if options.logger else nullcontext() as tracker:
        run = train(replace(config, **given), progress=not options.quiet, on_epoch=tracker)
        if getattr(rank_zero_only, "rank", 0):  # only the first process prints
            return
        if tracker:
            tracker(run)  # `on_epoch` is not called for a run that was finished before
    print(run)
    if run.test is None:
        out = shlex.quote(str(run.path))
        print(f"stopped; continue with: corsd train --config {out}/config.json --out {out} --resume")
    else:
        print(_table(run.test["exits"], run.test["ensemble"]))


def _method_options(config: TrainConfig, given: dict[str, Any]) -> dict[str, Any]:
    """Options of the method: those of the file, overridden by those on the command line. If the command line names another
    method, those of the file are dropped.
    """
    same = given.get("method", config.method) == config.method
    return {**(config.method_options if same else {}), **dict(given.get("method_options", ()))}


def _add_methods(subcommands: Subcommands) -> None:
    parser = subcommands.add_parser("methods", help="list the methods, or the options of some of them")
    parser.set_defaults(subcommand=_methods)
    parser.add_argument(
        "methods", nargs="*", metavar="METHOD", help="list the options of this method (default: list the methods)"
    )


def _methods(options: argparse.Namespace) -> None:
    from corsd_lib.methods import find_method

    classes = [find_method(name) for name in options.methods]
    print(*(map(_options_text, classes) if classes else [_methods_text()]), sep="\n\n")


def _methods_text() -> str:
    """One line for each method, and for each plug-in that could not be loaded."""
    from corsd_lib.methods import known_methods, plugin_failures

    known = known_methods()
    width = max(map(len, known))
    lines = ["methods (their options: corsd methods METHOD):"]
    lines += [f"  {name:{width}}  {_purpose(method_class)}" for name, method_class in known.items()]
    failed = plugin_failures()
    lines += ["", "plug-ins that could not be loaded:"] if failed else []
    return "\n".join([*lines, *(f"  {source}: {reason}" for source, reason in failed.items())])


def _options_text(method_class: type[Method]) -> str:
    """The options of a method: name and default as --method-options takes them, help, and allowed values."""
    from corsd_lib.methods import allowed_values, option_info
    from corsd_lib.methods.base import make_options

    lines = [f"{method_class.name}: {_purpose(method_class)}"]
    for name, default in vars(make_options(method_class.name, method_class.Options, {})).items():
        value = default if isinstance(default, str) else json.dumps(default)
        about = [option_info(method_class.Options, name).get("help", ""), allowed_values(method_class.Options, name)]
        lines.append(f"  {f'{name}={value}':28}  {'; '.join(filter(None, about))}")
    return "\n".join(lines)


def _purpose(method_class: type[Method]) -> str:
    """The first line of the docstring of a method."""
    return (method_class.__doc__ or "").strip().partition("\n")[0]


def _add_evaluate(subcommands: Subcommands) -> None:
    parser = subcommands.add_parser("evaluate", help="accuracy, calibration and cost of every exit of a run")
    parser.set_defaults(subcommand=_evaluate)
    parser.add_argument("run", help="run directory")
    parser.add_argument(
        "--data-root", help="folder that holds the data sets; default: that of the run, else $CORSD_DATA, else data"
    )
    parser.add_argument("--split", default="test", choices=("train", "validation", "test"), help="default: %(default)s")
    parser.add_argument("--device", help="such as cpu or cuda; default cpu")
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")


def _evaluate(options: argparse.Namespace) -> None:
    from dataclasses import asdict

    from corsd_lib.evaluation import evaluate

    result = evaluate(load_run(options.run), data_root=options.data_root, split=options.split, device=options.device)
    if options.json:
        print(json.dumps(asdict(result)))
    else:
        print(f"{options.run} on {result.data}, {result.split}: {result.images:,} images")
        print(_table(result.exits, result.ensemble))


def _add_compare(subcommands: Subcommands) -> None:
    parser = subcommands.add_parser("compare", help="train several methods and seeds side by side, and tabulate them")
    parser.set_defaults(subcommand=_compare, continuation=_CONTINUATION)
    parser.add_argument("study", help="a study.json or its folder, such as results/mine; records and tables are written there")
    parser.add_argument("--variants", "--rows", nargs="+", metavar="VARIANT", help="train these variants only")
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        help="train these seeds only; with --methods, the seeds of the new study (default: 0 1 2)",
    )
    parser.add_argument("--runs", metavar="DIR", help="where run directories go (default: runs/ and the study's name)")
    parser.add_argument(
        "--jobs", type=int, help="number of trainings at the same time (default: one for each GPU, else for each CPU)"
    )
    parser.add_argument(
        "--executor",
        choices=("pool", "slurm", "local"),
        default="pool",
        help="where trainings run: pool, in processes on this machine; slurm, as jobs of a cluster; local, the same jobs on "
        "this machine, for tests (default: %(default)s)",
    )
    parser.add_argument(
        "--slurm",
        type=partial(_key_value, example="partition=gpu"),
        nargs="+",
        metavar="NAME=VALUE",
        help="settings of a job, such as partition=gpu gpus_per_node=1 cpus_per_task=8 timeout_min=60 array_parallelism=20",
    )
    parser.add_argument(
        "--wait",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="wait for the jobs of a cluster and record them; after --no-wait, run it again to record them (default: wait)",
    )
    parser.add_argument("--tables", action="store_true", help="do not train: write tables and figures from the records")
    parser.add_argument(
        "--readme", metavar="FILE", help="write a short table between the marks of the study in a Markdown file"
    )
    parser.add_argument("--quiet", action="store_true", help="print no progress and no table")
    new = parser.add_argument_group("a new study", "the settings of `corsd train` are shared by all of its variants")
    new.add_argument(
        "--methods", nargs="+", metavar="METHOD", help="first write the study.json, with a variant for each method"
    )
    new.add_argument(
        "--equal",
        choices=("images", "epochs"),
        help="quantity that is equal for all variants (default: images)",
    )
    _add_config_options(new, without=("method", "seed", "out", "resume"))
    parser.ending = _methods_text


def _compare(options: argparse.Namespace) -> None:
    from corsd_lib.studies.compare import run_study

    study = _study(options)
    report = (lambda line: None) if options.quiet else print
    jobs = []
    if not options.tables:
        jobs = run_study(
            study,
            runs=options.runs,
            jobs=options.jobs,
            data_root=getattr(options, "data_root", None),
            variants=options.variants,
            seeds=options.seeds,
            report=report,
            live=sys.stdout.isatty() and not options.quiet,
            cluster=_cluster(options),
        )
    unfinished = [job for job in jobs if job.state != "done"]
    if options.tables and not study.records():
        raise CorsdError(f"{study.path} has no record of a training yet")
    if study.records():
        _write_study(study, report, all(job.state == "failed" for job in unfinished), options.readme)
    if unfinished:
        print(*unfinished, _CONTINUATION, sep="\n", file=sys.stderr)
        if options.wait or any(job.state not in ("queued", "running") for job in unfinished):
            sys.exit(1)


def _cluster(options: argparse.Namespace) -> Cluster | None:
    """The cluster that the arguments name; None to train in a pool of processes on this machine."""
    from corsd_lib.studies.cluster import Cluster

    if options.executor != "pool":
        return Cluster(options.executor, dict(options.slurm or ()), options.wait)
    if options.slurm or not options.wait:
        given = "--slurm" if options.slurm else "--no-wait"
        raise CorsdError(f"{given} needs --executor slurm or --executor local")
    return None


def _write_study(study: Study, report: Callable[[str], object], figures: bool, readme: str | None) -> None:
    """Write the tables of a study and, if `figures`, its figures, which take seconds."""
    from corsd_lib.studies.tables import markdown, short_markdown, write_tables

    summary = write_tables(study)
    report(f"\n{markdown(summary)}")
    if readme:
        write_between(Path(readme), study.name, short_markdown(summary))
    try:
        drawn = _drawn(summary, study.path) if figures else []
    except CorsdError as error:
        drawn = []
        report(f"no figures: {error}")
    unseen = [name for name in ("unseen.csv", "unseen.md") if (study.path / name).is_file()]
    report(f"{study.path}: {', '.join(['summary.json', 'table.csv', 'table.md', *unseen, *(file.name for file in drawn)])}")


def _drawn(summary: Mapping[str, Any], folder: Path) -> list[Path]:
    from corsd_lib.figures.studies import draw_figures

    return draw_figures(summary, folder)


def _study(options: argparse.Namespace) -> Study:
    """The study that the arguments name; with --methods a new study is written first."""
    from corsd_lib.studies.study import Study, new_study, study_file

    settings = {f.name: getattr(options, f.name) for f in fields(TrainConfig) if hasattr(options, f.name)}
    settings.pop("data_root", None)
    if options.methods:
        if "method_options" in settings:
            settings["method_options"] = dict(settings["method_options"])
        return new_study(options.study, options.methods, options.seeds or (0, 1, 2), settings, options.equal or "images")
    if settings or options.equal:
        what = ", ".join(settings) or "equal"
        raise CorsdError(
            f"{what}: allowed for a new study (--methods) only; this one has its settings in {study_file(options.study)}"
        )
    return Study.from_file(options.study)


def _add_tune(subcommands: Subcommands) -> None:
    parser = subcommands.add_parser("tune", help="search the options of variants of a study on images held out of the training")
    parser.set_defaults(subcommand=_tune)
    parser.add_argument(
        "study", help="a study.json or its folder, whose tuning section defines the search; the record is written there"
    )
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help="variants to tune (default: all that the study tunes)")
    parser.add_argument(
        "--trials", type=int, help="total number of trials, including earlier ones (default: that of the study)"
    )
    parser.add_argument(
        "--jobs", type=int, help="number of trials at the same time (default: one for each GPU, else for each CPU)"
    )
    parser.add_argument("--runs", metavar="DIR", help="where run directories go (default: runs/ and the study's name)")
    parser.add_argument("--data-root", help="folder that holds the data sets; default: $CORSD_DATA, else data")
    parser.add_argument("--quiet", action="store_true", help="print no line for each trial")


def _tune(options: argparse.Namespace) -> None:
    from corsd_lib.studies.study import Study
    from corsd_lib.studies.tuner import tune

    where = {"runs": options.runs, "data_root": options.data_root}
    report = (lambda line: None) if options.quiet else partial(print, flush=True)
    study = Study.from_file(options.study)
    study.check_tuning()
    for variant in options.variants or study.tuning:
        record = tune(study, variant, trials=options.trials, jobs=options.jobs, report=report, **where)
        best, file = record["best"], study.path / "tuning" / f"{variant}.json"
        found = f"best is trial {best['number']} with {best['value']:.2f} %" if best else "no trial is complete"
        print(f"{file}: {study.trials_done(record)} trials, {found}")


def _add_export(subcommands: Subcommands) -> None:
    parser = subcommands.add_parser("export", help="write a small copy of a finished run, for git")
    parser.set_defaults(subcommand=_export)
    parser.add_argument("run", help="run directory")
    parser.add_argument("dest", help="folder of the copy: a new one, or an earlier export of the same run")
    parser.add_argument(
        "--data-root", help="folder that holds the data sets; default: that of the run, else $CORSD_DATA, else data"
    )
    parser.add_argument("--snapshots", type=int, default=6, help="probe snapshots to keep (default: %(default)s)")
    parser.add_argument("--probe-images", type=int, default=500, help="probe images to keep (default: %(default)s)")
    parser.add_argument(
        "--umap", action="store_true", help="compute and store the UMAP projection that StageExplorer shows first"
    )


def _export(options: argparse.Namespace) -> None:
    from corsd_lib.sharing.export import export_run

    kept = {"snapshots": options.snapshots, "probe_images": options.probe_images, "umap": options.umap}
    run = export_run(load_run(options.run), options.dest, data_root=options.data_root, **kept)
    sizes = {file.name: file.stat().st_size for file in sorted(run.path.rglob("*")) if file.is_file()}
    weights, total = sizes["weights.safetensors"] / 1e6, sum(sizes.values()) / 1e6
    print(f"{run.path}: {total:.2f} MB, of which weights {weights:.2f} MB, and {len(run.probes)} snapshots")


def _add_report(subcommands: Subcommands) -> None:
    parser = subcommands.add_parser("report", help="write one HTML file about a run, or several side by side")
    parser.set_defaults(subcommand=_report)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directory, finished or not")
    parser.add_argument("--out", metavar="FILE", default="report.html", help="the file (default: %(default)s)")
    parser.add_argument(
        "--embedding",
        default="pca",
        choices=("pca", "umap", "none"),
        help="projection of the probe images at every exit; umap takes about a minute (default: %(default)s)",
    )


def _report(options: argparse.Namespace) -> None:
    from corsd_lib.sharing.report import write_report

    runs = [load_run(path) for path in options.runs]
    report = partial(print, "corsd report:", file=sys.stderr, flush=True) if sys.stderr.isatty() else (lambda line: None)
    path = write_report(runs, options.out, embedding=options.embedding, report=report)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


def _add_data(subcommands: Subcommands) -> None:
    parser = subcommands.add_parser("data", help="summarise a data set, or download it")
    parser.set_defaults(subcommand=_data)
    names = "digits, shapes, cifar10, cifar100, cub200, tiny_imagenet, imagenet, folder:PATH or npz:PATH"
    parser.add_argument("name", help=names)
    parser.add_argument("--data-root", help="folder that holds the data sets; default: $CORSD_DATA, else data")
    parser.add_argument("--image-size", type=int, help="side of the square input images, pixels")
    parser.add_argument(
        "--test-fraction", type=float, help="fraction of each class in the test set, for a folder without a split"
    )
    parser.add_argument("--download", action="store_true", help="download missing files")


def _data(options: argparse.Namespace) -> None:
    from corsd_lib.datasets import load_dataset
    from corsd_lib.datasets.notices import silent

    with silent():  # the summary contains the notices
        data = load_dataset(
            options.name,
            options.data_root,
            test_fraction=options.test_fraction,
            image_size=options.image_size,
            download=options.download,
        )
    print(data.summary())


def _add_bench(subcommands: Subcommands) -> None:
    parser = subcommands.add_parser("bench", help="measure speed and memory as ratios")
    parser.set_defaults(subcommand=_bench)
    parser.add_argument("--out", metavar="FILE", help="write the measurements as JSON")
    parser.add_argument("--readme", metavar="FILE", help="write the table between the bench marks of a Markdown file")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions and less precise measurements")


def _bench(options: argparse.Namespace) -> None:
    from corsd_lib.bench import bench, table, write_table
    from corsd_lib.files import write_json

    result = bench(quick=options.quick)
    print(table(result))
    if options.out:
        write_json(Path(options.out), result)
    if options.readme:
        write_table(result, Path(options.readme))


def _table(exits: list[dict[str, float]], ensemble: dict[str, float]) -> str:
    """The metrics of every exit as a text table."""
    lines = [f"{'':>8}  {'top-1 %':>8} {'top-5 %':>8} {'CE nats':>8} {'ECE %':>6} {'MACs':>8} {'params':>8}"]
    for name, row in [*((f"exit {k}", row) for k, row in enumerate(exits, 1)), ("ensemble", ensemble)]:
        cost = "".join(f" {_count(row[key]):>8}" for key in ("macs", "parameters") if key in row)
        lines.append(
            f"{name:>8}  {row['top1']:8.2f} {row['top5']:8.2f} {row['cross_entropy']:8.3f} "
            f"{row['calibration_error']:6.2f}{cost}"
        )
    return "\n".join(lines)


def _count(number: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


# --- options from the dataclass ---------------------------------------------------------------------------------------


def _add_config_options(parser: argparse._ActionsContainer, without: Sequence[str] = ()) -> None:
    """Add an option for every field of `TrainConfig` except `without`. Options that are not given are not in the namespace."""
    hints = get_type_hints(TrainConfig)
    for field in (field for field in fields(TrainConfig) if field.name not in without):
        flag = "--" + field.name.replace("_", "-")
        text = f"{field.metadata['help']} (default: {_default(field)})".replace("%", "%%")
        wanted = next((t for t in get_args(hints[field.name]) if t is not type(None)), hints[field.name])
        how: dict[str, Any] = {"type": wanted, "metavar": field.name.upper()}
        if wanted is bool:
            how = {"action": argparse.BooleanOptionalAction}
        elif field.name == "method_options":
            how = {"type": _key_value, "nargs": "+", "metavar": "NAME=VALUE"}
        elif field.name == "milestones":
            how = {"type": float, "nargs": "+", "metavar": "FRACTION"}
        parser.add_argument(flag, dest=field.name, default=argparse.SUPPRESS, help=text, **how)


def _default(field: Field[Any]) -> Any:
    return field.default if field.default is not MISSING else {}


def _key_value(text: str, example: str = "exit_kd=0.2") -> tuple[str, Any]:
    """Parse `exit_kd=0.2` to ("exit_kd", 0.2); a value that is not JSON is a string."""
    name, sign, value = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"{shortened(text)} is not NAME=VALUE, as in {example}")
    try:
        return name, parse_json(value)
    except ValueError:
        return name, value
