"""How far relations of the committed CUB-200-2011 runs agree with the set's attributes: for notebooks/06_cub200.ipynb.

    CORSD_DATA=... python results/attribute_agreement.py    writes attribute_agreement.json and attribute_shuffles.json
                                                            in results/cub200_small

The table of attributes is the data set's and stays with it; what travels is a rank correlation for each relation, epoch, exit
and group of attributes, and those of one relation after its classes were shuffled.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from corsd_lib import Run, load_run
from corsd_lib.analysis.relations import attribute_agreement, class_relations
from corsd_lib.datasets import data_root
from corsd_lib.errors import CorsdError
from corsd_lib.files import write_json

STUDY = Path(__file__).resolve().parent / "cub200_small"
ASKED = {"CORSD, trained": ("corsd", "trained"), "CORSD, cosine": ("corsd", "cosine"), "plain, cosine": ("baseline", "cosine")}


def main() -> None:
    """Read the attributes and every committed run, write the JSON file and say where it is."""
    attributes, is_colour = read_attributes(data_root() / "CUB_200_2011")
    asked = {name: (load_run(STUDY / "runs" / row), kind) for name, (row, kind) in ASKED.items()}
    file = STUDY / "attribute_agreement.json"
    write_json(file, {name: agreements(*which, attributes, is_colour) for name, which in asked.items()})
    print(file)
    chance = STUDY / "attribute_shuffles.json"
    write_json(chance, {"CORSD, trained": shuffled_agreements(*asked["CORSD, trained"], attributes)})
    print(chance)


def read_attributes(folder: Path) -> tuple[Tensor, Tensor]:
    """Class attributes (200, 312) in %, and which of them (312,) are colours. Raises `CorsdError` where there are none."""
    values, names = folder / "attributes" / "class_attribute_labels_continuous.txt", folder / "attributes.txt"
    if not values.is_file() or not names.is_file():
        raise CorsdError(f"{values} or {names} is missing; fetch them with: corsd data cub200 --download")
    rows = [[float(value) for value in line.split()] for line in values.read_text(encoding="utf-8").splitlines()]
    colours = ["_color::" in line for line in names.read_text(encoding="utf-8").splitlines()]
    return torch.tensor(rows, dtype=torch.double), torch.tensor(colours)


def agreements(run: Run, kind: str, attributes: Tensor, is_colour: Tensor) -> list[dict[str, object]]:
    """One entry for each snapshot, exit and group of attributes; six digits."""
    parts = {"all 312": attributes, "colours": attributes[:, is_colour], "not colours": attributes[:, ~is_colour]}
    rows: list[dict[str, object]] = []
    for epoch, snapshot in run.probes.items():
        for k in range(1, len(snapshot.relations) + 1):
            relation = class_relations(run, epoch, k, kind)
            for part, columns in parts.items():
                value = round(attribute_agreement(relation, columns), 6)
                rows.append({"epoch": epoch, "exit": k, "attributes": part, "agreement": value})
    return rows


def shuffled_agreements(run: Run, kind: str, attributes: Tensor, count: int = 500) -> list[float]:
    """Agreements of the deepest relation at the end with all attributes, its classes in `count` random orders; six digits."""
    epoch = max(run.probes)
    relation = class_relations(run, epoch, len(run.probes[epoch].relations), kind)
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(len(relation), generator=generator) for _ in range(count)]
    return [round(attribute_agreement(relation[order][:, order], attributes), 6) for order in orders]


if __name__ == "__main__":
    main()
