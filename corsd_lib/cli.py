"""The same verbs for a terminal: `corsd train | evaluate | data | bench`. Options come from the `TrainConfig` dataclass."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields, replace
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

from corsd_lib import __version__
from corsd_lib.errors import CorsdError
from corsd_lib.runs import TrainConfig, load_run

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb. A `CorsdError` ends with one line on stderr and status 2, Ctrl-C where there is nothing to save with 130."""
    options = _parser().parse_args(arguments)
    try:
        options.verb(options)
    except CorsdError as error:
        print(f"corsd: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line: the usage of `corsd train` alone would fill a screen."""

    def error(self, message: str) -> NoReturn:
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

    evaluate = verbs.add_parser("evaluate", help="accuracy, calibration and cost of every exit of a run")
    evaluate.set_defaults(verb=_evaluate)
    evaluate.add_argument("run", help="run directory")
    evaluate.add_argument("--data-root", help="folder that holds the data sets; default: the run's own, $CORSD_DATA, data")
    evaluate.add_argument("--split", default="test", choices=("train", "validation", "test"))
    evaluate.add_argument("--device", help="such as cpu or cuda; default cpu")
    evaluate.add_argument("--json", action="store_true", help="print JSON in place of a table")

    data = verbs.add_parser("data", help="look at a data set, or download it")
    data.set_defaults(verb=_data)
    data.add_argument("name", help="digits, cifar10, cifar100, cub200, imagenet, folder:PATH or npz:PATH")
    data.add_argument("--data-root", help="folder that holds the data sets; default: $CORSD_DATA, else data")
    data.add_argument("--image-size", type=int, help="side of the square the network sees, pixels")
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
    config = TrainConfig.from_file(options.config) if options.config else TrainConfig()
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


def _evaluate(options: argparse.Namespace) -> None:
    from dataclasses import asdict

    from corsd_lib.evaluation import evaluate

    result = evaluate(load_run(options.run), data_root=options.data_root, split=options.split, device=options.device)
    if options.json:
        print(json.dumps(asdict(result)))
    else:
        print(f"{options.run} on {result.data}, {result.split}: {result.images:,} images")
        print(_table(result.exits, result.ensemble))


def _data(options: argparse.Namespace) -> None:
    from corsd_lib.datasets import load_dataset

    data = load_dataset(options.name, options.data_root, image_size=options.image_size, download=options.download)
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


def _add_config_options(parser: argparse.ArgumentParser) -> None:
    """An option for every field of `TrainConfig`, --like-this; one that is not given is absent from the namespace."""
    hints, texts = get_type_hints(TrainConfig), _field_texts()
    for field in fields(TrainConfig):
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
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE, as in exit_kd=0.2")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
