"""The same verbs for a terminal: `corsd --help` lists them. Options of a training come from the `TrainConfig` dataclass."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args, get_type_hints

from corsd_lib import __version__
from corsd_lib.errors import CorsdError, check_text, shortened
from corsd_lib.files import write_between
from corsd_lib.runs import TrainConfig, load_run
from corsd_lib.schema import parse_json

if TYPE_CHECKING:
    from corsd_lib.methods import Method
    from corsd_lib.studies.study import Study

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb. What the user can mend ends with one line on stderr and status 2, Ctrl-C with nothing to save with 130."""
    options = _parser().parse_args(arguments)
    try:
        _check_texts(vars(options))
        with warnings.catch_warnings():
            warnings.showwarning = _shown_as_note(warnings.showwarning)
            options.verb(options)
    except CorsdError as error:
        print(f"corsd: error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # whoever read the output has gone, as `head` does
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"corsd: error: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _check_texts(options: Mapping[str, Any]) -> None:
    """Refuse names and paths that are not valid UTF-8 before anything is computed: the end of it is to print or write them."""
    for name, value in options.items():
        texts = value if isinstance(value, list) else [value]
        check_text(f"argument {name}:", *(text for text in texts if isinstance(text, str)))
        if "" in texts:
            raise CorsdError(f"argument {name} is empty; give a value, or leave it out")


def _shown_as_note(otherwise: Callable[..., None]) -> Callable[..., None]:
    """How a warning is shown: one line for what the library says of the data, as usual for others."""

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        from corsd_lib.datasets import DataNotice

        if issubclass(category, DataNotice):
            print(f"corsd: note: {message}", file=sys.stderr)
        else:
            otherwise(message, category, *place, **more)

    return show


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line: the usage of `corsd train` alone would fill a screen.

    `ending` gives the last lines of the help. It is called when the help is shown: it may load plug-ins.
    """

    ending: Callable[[], str] | None = None

    def format_help(self) -> str:
        return super().format_help() + (f"\n{self.ending()}\n" if self.ending else "")

    def error(self, message: str) -> NoReturn:
        message = message if len(message) <= 600 else f"{message[:300]} ... {message[-300:]}"  # it repeats what was typed
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("corsd", description="Class-Oriented Relational Self Distillation")
    parser.add_argument("--version", action="version", version=f"corsd {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    train = verbs.add_parser("train", help="train a network and write a run")
    train.set_defaults(verb=_train)
    train.add_argument("--config", metavar="FILE", help="start from a JSON file, such as a run's own config.json")
    train.add_argument("--quiet", action="store_true", help="no progress bar")
    _add_config_options(train)
    train.ending = _methods_text

    methods = verbs.add_parser("methods", help="list the methods, or the options of some of them")
    methods.set_defaults(verb=_methods)
    methods.add_argument("methods", nargs="*", metavar="METHOD", help="whose options are listed (default: list the methods)")

    evaluate = verbs.add_parser("evaluate", help="accuracy, calibration and cost of every exit of a run")
    evaluate.set_defaults(verb=_evaluate)
    evaluate.add_argument("run", help="run directory")
    evaluate.add_argument("--data-root", help="folder that holds the data sets; default: the run's own, $CORSD_DATA, data")
    evaluate.add_argument("--split", default="test", choices=("train", "validation", "test"))
    evaluate.add_argument("--device", help="such as cpu or cuda; default cpu")
    evaluate.add_argument("--json", action="store_true", help="print JSON in place of a table")

    compare = verbs.add_parser("compare", help="train several methods and seeds side by side, and tabulate them")
    compare.set_defaults(verb=_compare)
    compare.add_argument("study", help="a study.json or its folder, such as results/mine; records and tables go there")
    compare.add_argument("--rows", nargs="+", metavar="ROW", help="train these rows only")
    compare.add_argument(
        "--seeds", nargs="+", type=int, help="train these seeds only; of a new study: its own (default: 0 1 2)"
    )
    compare.add_argument("--runs", metavar="DIR", help="where run directories go (default: runs/ and the study's name)")
    compare.add_argument("--jobs", type=int, help="trainings at a time (default: one a GPU, else one a CPU)")
    compare.add_argument("--tables", action="store_true", help="train nothing: make tables and figures from the records")
    compare.add_argument("--readme", metavar="FILE", help="put a short table between the study's marks of a Markdown file")
    compare.add_argument("--quiet", action="store_true", help="neither progress nor table")
    new = compare.add_argument_group("a new study", "the settings of `corsd train` are those that all of its rows share")
    new.add_argument("--methods", nargs="+", metavar="METHOD", help="write the study.json first, with a row for each of these")
    new.add_argument("--equal", choices=("images", "epochs"), help="what the rows are given alike (default: images)")
    _add_config_options(new, without=("method", "seed", "out", "resume"))
    compare.ending = _methods_text

    tune = verbs.add_parser("tune", help="search the options of rows of a study on a validation split of train")
    tune.set_defaults(verb=_tune)
    tune.add_argument("study", help="a study.json or its folder, whose tuning says what is searched; the record goes there")
    tune.add_argument("rows", nargs="*", metavar="ROW", help="the rows that are tuned (default: all that the study tunes)")
    tune.add_argument("--trials", type=int, help="trials in all, those done before counted (default: what the study says)")
    tune.add_argument("--jobs", type=int, help="trials at a time (default: one a GPU, else one a CPU)")
    tune.add_argument("--runs", metavar="DIR", help="where run directories go (default: runs/ and the study's name)")
    tune.add_argument("--data-root", help="folder that holds the data sets; default: $CORSD_DATA, else data")
    tune.add_argument("--quiet", action="store_true", help="no line a trial")

    export = verbs.add_parser("export", help="write a small copy of a finished run that travels in git")
    export.set_defaults(verb=_export)
    export.add_argument("run", help="run directory")
    export.add_argument("dest", help="folder of the copy: a new one, or an earlier export of the same run")
    export.add_argument("--data-root", help="folder that holds the data sets; default: the run's own, $CORSD_DATA, data")
    export.add_argument("--snapshots", type=int, default=6, help="probe snapshots to keep (default: %(default)s)")
    export.add_argument("--probe-images", type=int, default=500, help="probe images to keep (default: %(default)s)")
    export.add_argument("--umap", action="store_true", help="fit the UMAP that a StageExplorer opens with, and keep it")

    report = verbs.add_parser("report", help="write one HTML file about a run, or several side by side")
    report.set_defaults(verb=_report)
    report.add_argument("runs", nargs="+", metavar="RUN", help="run directory, finished or not")
    report.add_argument("--out", metavar="FILE", default="report.html", help="the file (default: %(default)s)")
    report.add_argument(
        "--embedding",
        default="pca",
        choices=("pca", "umap", "none"),
        help="picture of the probe images at every exit; umap takes a minute or so (default: %(default)s)",
    )

    data = verbs.add_parser("data", help="look at a data set, or download it")
    data.set_defaults(verb=_data)
    data.add_argument("name", help="digits, shapes, cifar10, cifar100, cub200, tiny_imagenet, imagenet, folder:PATH, npz:PATH")
    data.add_argument("--data-root", help="folder that holds the data sets; default: $CORSD_DATA, else data")
    data.add_argument("--image-size", type=int, help="side of the square the network sees, pixels")
    data.add_argument("--test-fraction", type=float, help="share of each class to test on, of a folder without a split")
    data.add_argument("--download", action="store_true", help="fetch what is missing")

    bench = verbs.add_parser("bench", help="measure speed and memory as ratios")
    bench.set_defaults(verb=_bench)
    bench.add_argument("--out", metavar="FILE", help="write the figures as JSON")
    bench.add_argument("--readme", metavar="FILE", help="put the table between the bench marks of a Markdown file")
    bench.add_argument("--quick", action="store_true", help="fewer repetitions; figures are rough")
    return parser


def _train(options: argparse.Namespace) -> None:
    from lightning_fabric.utilities.rank_zero import rank_zero_only

    from corsd_lib.training import train

    given = {f.name: getattr(options, f.name) for f in fields(TrainConfig) if hasattr(options, f.name)}
    config = TrainConfig() if options.config is None else TrainConfig.from_file(options.config)
    given["method_options"] = _method_options(config, given)
    run = train(replace(config, **given), progress=not options.quiet)
    if getattr(rank_zero_only, "rank", 0):  # one report, from the first of several processes
        return
    print(run)
    if run.test is None:
        out = shlex.quote(str(run.path))
        print(f"stopped; go on with: corsd train --config {out}/config.json --out {out} --resume")
    else:
        print(_table(run.test["exits"], run.test["ensemble"]))


def _method_options(config: TrainConfig, given: dict[str, Any]) -> dict[str, Any]:
    """Options on the command line go over those of the file, unless another method is asked for."""
    same = given.get("method", config.method) == config.method
    return {**(config.method_options if same else {}), **dict(given.get("method_options", ()))}


def _methods(options: argparse.Namespace) -> None:
    from corsd_lib.methods import find_method

    kinds = [find_method(name) for name in options.methods]
    print(*(map(_options_text, kinds) if kinds else [_methods_text()]), sep="\n\n")


def _methods_text() -> str:
    """The known methods with a line each, and the plug-ins that could not be loaded."""
    from corsd_lib.methods import known_methods, plugin_failures

    known = known_methods()
    width = max(map(len, known))
    lines = ["methods (their options: corsd methods METHOD):"]
    lines += [f"  {name:{width}}  {_purpose(kind)}" for name, kind in known.items()]
    failed = plugin_failures()
    lines += ["", "plug-ins that could not be loaded:"] if failed else []
    return "\n".join([*lines, *(f"  {source}: {reason}" for source, reason in failed.items())])


def _options_text(kind: type[Method]) -> str:
    """The options of a method: default as --method-options takes it, what it is, and what is allowed."""
    from corsd_lib.methods import allowed_values, described
    from corsd_lib.methods.base import make_options

    lines = [f"{kind.name}: {_purpose(kind)}"]
    for name, default in vars(make_options(kind.name, kind.Options, {})).items():
        value = default if isinstance(default, str) else json.dumps(default)
        about = [described(kind.Options, name).get("help", ""), allowed_values(kind.Options, name)]
        lines.append(f"  {f'{name}={value}':28}  {'; '.join(filter(None, about))}")
    return "\n".join(lines)


def _purpose(kind: type[Method]) -> str:
    """The first line of the docstring of a method."""
    return (kind.__doc__ or "").strip().partition("\n")[0]


def _evaluate(options: argparse.Namespace) -> None:
    from dataclasses import asdict

    from corsd_lib.evaluation import evaluate

    result = evaluate(load_run(options.run), data_root=options.data_root, split=options.split, device=options.device)
    if options.json:
        print(json.dumps(asdict(result)))
    else:
        print(f"{options.run} on {result.data}, {result.split}: {result.images:,} images")
        print(_table(result.exits, result.ensemble))


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
            rows=options.rows,
            seeds=options.seeds,
            report=report,
            live=sys.stdout.isatty() and not options.quiet,
        )
    unfinished = [job for job in jobs if job.state != "done"]
    if options.tables and not study.records():
        raise CorsdError(f"{study.path} has no record of a training yet: there is nothing to tabulate")
    if study.records():
        _write_study(study, report, all(job.state == "failed" for job in unfinished), options.readme)
    if unfinished:
        print(*unfinished, "the same command goes on from here", sep="\n", file=sys.stderr)
        sys.exit(1)


def _write_study(study: Study, report: Callable[[str], object], figures: bool, readme: str | None) -> None:
    """Tables from the records of a study, and figures, which take seconds: not while somebody waits for it to stop."""
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
    """The study that is asked for, written first where it is a new one."""
    from corsd_lib.studies.study import Study, new_study, study_file

    settings = {f.name: getattr(options, f.name) for f in fields(TrainConfig) if hasattr(options, f.name)}
    settings.pop("data_root", None)
    if options.methods:
        if "method_options" in settings:
            settings["method_options"] = dict(settings["method_options"])
        return new_study(options.study, options.methods, options.seeds or (0, 1, 2), settings, options.equal or "images")
    if settings or options.equal:
        what = ", ".join(settings) or "equal"
        raise CorsdError(f"{what}: for a new study (--methods) only; this one has its settings in {study_file(options.study)}")
    return Study.from_file(options.study)


def _tune(options: argparse.Namespace) -> None:
    from corsd_lib.studies.study import Study
    from corsd_lib.studies.tuner import tune

    where = {"runs": options.runs, "data_root": options.data_root}
    report = (lambda line: None) if options.quiet else partial(print, flush=True)
    study = Study.from_file(options.study)
    study.check_tuning()
    for row in options.rows or study.tuning:
        record = tune(study, row, trials=options.trials, jobs=options.jobs, report=report, **where)
        best, file = record["best"], study.path / "tuning" / f"{row}.json"
        found = f"best is trial {best['number']} with {best['value']:.2f} %" if best else "none is complete"
        print(f"{file}: {study.trials_done(record)} trials, {found}")


def _export(options: argparse.Namespace) -> None:
    from corsd_lib.sharing.export import export_run

    kept = {"snapshots": options.snapshots, "probe_images": options.probe_images, "umap": options.umap}
    run = export_run(load_run(options.run), options.dest, data_root=options.data_root, **kept)
    sizes = {file.name: file.stat().st_size for file in sorted(run.path.rglob("*")) if file.is_file()}
    weights, total = sizes["weights.safetensors"] / 1e6, sum(sizes.values()) / 1e6
    print(f"{run.path}: {total:.2f} MB, of which weights {weights:.2f} MB, and {len(run.probes)} snapshots")


def _report(options: argparse.Namespace) -> None:
    from corsd_lib.sharing.report import write_report

    runs = [load_run(path) for path in options.runs]
    say = partial(print, "corsd report:", file=sys.stderr, flush=True) if sys.stderr.isatty() else (lambda line: None)
    path = write_report(runs, options.out, embedding=options.embedding, say=say)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


def _data(options: argparse.Namespace) -> None:
    from corsd_lib.datasets import load_dataset
    from corsd_lib.datasets.notices import silent

    with silent():  # the summary has them
        data = load_dataset(
            options.name,
            options.data_root,
            test_fraction=options.test_fraction,
            image_size=options.image_size,
            download=options.download,
        )
    print(data.summary())


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
    """Figures of every exit as aligned text."""
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
    """An option for every other field of `TrainConfig`, --like-this; one that is not given is absent from the namespace."""
    hints, texts = get_type_hints(TrainConfig), _field_texts()
    for field in (field for field in fields(TrainConfig) if field.name not in without):
        flag = "--" + field.name.replace("_", "-")
        text = f"{texts[field.name]} (default: {_default(field)})".replace("%", "%%")
        kind = next((t for t in get_args(hints[field.name]) if t is not type(None)), hints[field.name])
        how: dict[str, Any] = {"type": kind, "metavar": field.name.upper()}
        if kind is bool:
            how = {"action": argparse.BooleanOptionalAction}
        elif field.name == "method_options":
            how = {"type": _key_value, "nargs": "+", "metavar": "NAME=VALUE"}
        elif field.name == "milestones":
            how = {"type": float, "nargs": "+", "metavar": "SHARE"}
        parser.add_argument(flag, dest=field.name, default=argparse.SUPPRESS, help=text, **how)


def _default(field: Field[Any]) -> Any:
    return field.default if field.default is not MISSING else {}


def _field_texts() -> dict[str, str]:
    """The line of every field in the docstring of `TrainConfig`."""
    return dict(re.findall(r"^ {8}(\w+): (.*)\.$", TrainConfig.__doc__ or "", flags=re.MULTILINE))


def _key_value(text: str) -> tuple[str, Any]:
    """`exit_kd=0.2` -> ("exit_kd", 0.2); a value that is no JSON is a string."""
    name, sign, value = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"{shortened(text)} is not NAME=VALUE, as in exit_kd=0.2")
    try:
        return name, parse_json(value)
    except ValueError:
        return name, value
