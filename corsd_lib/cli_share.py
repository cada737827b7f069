"""Subcommands that make a run available elsewhere: `export-model` (for deployment) and `push` (to the Hugging Face Hub)."""

from __future__ import annotations

import argparse
from typing import Any

from corsd_lib.runs import load_run

__all__ = ["add_export_model", "add_push"]


def add_export_model(subcommands: Any) -> None:
    parser = subcommands.add_parser("export-model", help="write the network of a run as programs for deployment")
    parser.set_defaults(subcommand=_export_model)
    parser.add_argument("run", help="run directory")
    parser.add_argument("--format", default="onnx", help="onnx or torch.export (default: %(default)s)")
    parser.add_argument(
        "--exit",
        default="all",
        help="number of an exit, from 1, for one program; all: one program for each exit, for early exit "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--out", metavar="DIR", default="model", help="folder of the programs and model.json (default: %(default)s)"
    )


def _export_model(options: argparse.Namespace) -> None:
    from corsd_lib.files import read_json
    from corsd_lib.sharing.deploy import export_model

    exit = int(options.exit) if options.exit.isdecimal() else options.exit
    folder = export_model(load_run(options.run), options.out, format=options.format, exit=exit)
    about = read_json(folder / "model.json")
    for program in about["programs"]:
        size = (folder / program["file"]).stat().st_size / 1e6
        print(f"{folder / program['file']}: exit {program['exit']}, {size:.2f} MB")
    print(f"{folder / 'model.json'}: logits differ from those of the network by at most {about['largest_difference']:.1g}")


def add_push(subcommands: Any) -> None:
    parser = subcommands.add_parser("push", help="upload a finished run to the Hugging Face Hub")
    parser.set_defaults(subcommand=_push)
    parser.add_argument("run", help="run directory, exported or not; only the files of its export are uploaded")
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="model repository, created if it does not exist")
    parser.add_argument("--private", action="store_true", help="create it as a private repository")
    parser.add_argument(
        "--data-root", help="folder that holds the data sets; default: that of the run, else $CORSD_DATA, else data"
    )


def _push(options: argparse.Namespace) -> None:
    from corsd_lib.sharing.hub import push_run

    name = push_run(load_run(options.run), options.repo, private=options.private, data_root=options.data_root)
    print(f"{name}: pass this name to load_run, or as RUN to a corsd command")
