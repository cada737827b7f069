"""Classes held out of a training: which, how they are renumbered, and that a run opened again has the same ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from corsd_lib import cli
from corsd_lib.datasets import ImageArrays, ImageData, load_dataset
from corsd_lib.datasets.arrays import as_arrays
from corsd_lib.datasets.holdout import split_classes
from corsd_lib.errors import CorsdError
from corsd_lib.evaluation import evaluate
from corsd_lib.files import read_json, write_json
from corsd_lib.runs import TrainConfig, load_data, load_run, run_data
from corsd_lib.sharing.export import export_run
from corsd_lib.training import train

Tiny = Callable[..., TrainConfig]


def _made_up(groups: list[int]) -> ImageData:
    """A class for each entry of `groups`, its superclass; three train and two test images a class that show their class."""
    classes = len(groups)
    splits = [as_arrays(_shown(y), y) for y in (torch.arange(classes).repeat(each) for each in (3, 2))]
    names = tuple(f"class {c}" for c in range(classes))
    supers = tuple(f"group {g}" for g in range(max(groups) + 1))
    attributes = torch.arange(classes).float()[:, None] / classes
    return ImageData(
        "made up",
        *splits,
        names,
        supers,
        torch.tensor(groups),
        (0.5,),
        (0.2,),
        4,
        attributes=attributes,
        attribute_names=("a",),
    )


def _shown(labels: torch.Tensor) -> torch.Tensor:
    return labels[:, None, None, None].expand(-1, 1, 4, 4).to(torch.uint8)


def test_every_image_is_in_one_part_under_the_name_of_its_class() -> None:
    data = _made_up([0, 1, 2, 0, 1, 2, 3, 3])
    seen = split_classes(data, 3, seed=4)
    unseen = seen.unseen
    assert unseen is not None and unseen.unseen is None and (seen.num_classes, unseen.num_classes) == (5, 3)
    assert {*seen.class_names} | {*unseen.class_names} == {*data.class_names}
    for part in (seen, unseen):
        for split, whole in ((part.train, data.train), (part.test, data.test)):
            assert isinstance(split, ImageArrays) and isinstance(whole, ImageArrays)
            assert split.labels.unique().tolist() == list(range(part.num_classes))
            shown = split.images[:, 0, 0, 0].tolist()  # the original label
            assert [part.class_names[y] for y in split.labels] == [data.class_names[c] for c in shown]
            groups = [part.superclass_names[int(part.superclass_of_class[y])] for y in split.labels]
            assert groups == [data.superclass_names[int(data.superclass_of_class[c])] for c in shown]
            assert torch.equal(whole.images[split.index], split.images)
        assert part.attributes is not None and part.superclass_of_class.unique().tolist() == list(
            range(len(part.superclass_names))
        )
        assert part.attributes[:, 0].tolist() == [int(name.split()[1]) / 8 for name in part.class_names]
    assert len(seen.train) + len(unseen.train) == 24 and len(seen.test) + len(unseen.test) == 16


def test_a_larger_count_holds_out_the_same_classes_and_more_and_another_seed_others() -> None:
    data = _made_up(list(range(30)))

    def names(count: int, seed: int) -> set[str]:
        unseen = split_classes(data, count, seed=seed).unseen
        assert unseen is not None
        return {*unseen.class_names}

    assert names(5, 0) < names(9, 0) and len(names(9, 0)) == 9 and names(5, 0) != names(5, 1)


def test_the_last_classes_are_those_with_the_highest_labels() -> None:
    seen = split_classes(_made_up([0] * 6), 2, "last")
    assert seen.unseen is not None and seen.unseen.class_names == ("class 4", "class 5")
    assert seen.class_names == tuple(f"class {c}" for c in range(4))


def test_whole_superclasses_are_held_out() -> None:
    data = _made_up([0, 1, 2, 3] * 3)
    for seed in range(4):
        seen = split_classes(data, 6, "superclasses", seed)
        assert seen.unseen is not None and len(seen.unseen.superclass_names) == 2 == len(seen.superclass_names)
        assert not {*seen.superclass_names} & {*seen.unseen.superclass_names}
        assert torch.bincount(seen.unseen.superclass_of_class).tolist() == [3, 3]


@pytest.mark.parametrize(
    "groups,count,how,message",
    [
        ([0] * 6, 1, "random", "hold_out_classes is 1 for made up with 6 classes; allowed: 0, or 2 to 4"),
        ([0] * 6, 5, "random", "hold_out_classes is 5 for made up with 6 classes; allowed: 0, or 2 to 4"),
        ([0] * 6, -2, "last", "hold_out_classes is -2 for made up with 6 classes; allowed: 0, or 2 to 4"),
        ([0] * 6, 2, "first", "hold_out 'first' is not known; allowed: random, last, superclasses"),
        ([0, 1, 2] * 3, 4, "superclasses", "hold_out_classes is 4 for whole superclasses of made up; allowed: multiples of 3"),
        (
            [0, 0, 0, 0, 1, 1],
            2,
            "superclasses",
            "made up, which has superclasses of different sizes, 2 to 4 classes; allowed for it: 'random' or 'last'",
        ),
        (list(range(6)), 2, "superclasses", "made up, which has no superclasses; allowed for it: 'random' or 'last'"),
    ],
)
def test_what_cannot_be_held_out_is_named(groups: list[int], count: int, how: str, message: str) -> None:
    with pytest.raises(CorsdError, match=message):
        split_classes(_made_up(groups), count, how)


def test_classes_are_held_out_before_images_are_chosen() -> None:
    data = load_dataset("digits", hold_out_classes=3, hold_out="last", validation_fraction=0.2, per_class=7, seed=2)
    unseen = data.unseen
    assert unseen is not None and unseen.class_names == ("7", "8", "9") and data.validation is not None
    assert [torch.bincount(s.labels).tolist() for s in (data.train, data.validation)] == [[7] * 7, [20] * 7]
    assert (len(data.test) + len(unseen.test), len(unseen.train)) == (797, 300)
    assert "3 classes held out, 233 test images: 7, 8, 9" in data.summary()
    assert (data.mean, data.std) == (load_dataset("digits").mean, load_dataset("digits").std)


def test_the_validation_split_of_the_data_is_parted_too() -> None:
    data = _made_up([0] * 6)
    seen = split_classes(replace(data, validation=data.test), 2, "last")
    assert seen.validation is not None and torch.equal(seen.validation.labels, seen.test.labels)


def test_nothing_is_held_out_unless_it_is_asked_for() -> None:
    assert load_dataset("digits").unseen is None and TrainConfig().hold_out_classes == 0


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"hold_out_classes": -1}, "hold_out_classes = -1 must be at least 0"),
        ({"hold_out_classes": 2.0}, r"hold_out_classes = 2\.0 is of type float; allowed: int"),
        ({"hold_out_seed": -1}, "hold_out_seed = -1 must be at least 0"),
        ({"hold_out": "first"}, "hold_out 'first' is not known; allowed: random, last, superclasses"),
    ],
)
def test_settings_out_of_range_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CorsdError, match=message):
        TrainConfig(**changes)


def test_a_training_sees_the_other_classes_only_and_opened_again_has_the_same_parts(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(hold_out_classes=3, hold_out_seed=5, validation_fraction=0.2, epochs=1)
    run = train(config, progress=False)
    data = load_data(config)
    assert data.unseen is not None
    assert run.network().num_classes == 7 == run.data.num_classes == len(data.class_names)
    assert run.data.class_names == data.class_names and run.data.unseen_class_names == data.unseen.class_names
    assert run.test is not None and run.test["images"] == len(data.test) < 797
    for opened in (load_run(run.path), export_run(run, tmp_path / "copy", snapshots=2)):
        again = run_data(opened)
        assert again.unseen is not None and again.unseen.class_names == data.unseen.class_names
        assert torch.equal(again.unseen.test.index, data.unseen.test.index)
        assert torch.equal(again.train.index, data.train.index)
    assert evaluate(run).exits[-1]["top1"] == run.test["exits"][-1]["top1"]
    with pytest.raises(CorsdError, match="another configuration: hold_out_seed was 5, is 6"):
        train(replace(config, hold_out_seed=6, resume=True), progress=False)


def test_images_of_a_run_without_its_held_out_classes_are_not_its_own(tiny: Tiny) -> None:
    run = train(tiny(hold_out_classes=2, hold_out="last", epochs=1), progress=False)
    content = read_json(run.path / "config.json")
    content["data"]["unseen_class_names"] = ["8", "7"]
    write_json(run.path / "config.json", content)
    with pytest.raises(CorsdError, match="the training images of 'digits' here are not those of"):
        run_data(load_run(run.path))


def test_mean_and_deviation_of_the_held_out_classes_are_the_runs(tiny: Tiny) -> None:
    run = train(tiny(hold_out_classes=2, epochs=1), progress=False)
    given = run_data(run, replace(run_data(run), mean=(0.1,), std=(0.9,)))
    assert given.unseen is not None and (given.unseen.mean, given.unseen.std) == (run.data.mean, run.data.std)


@pytest.mark.parametrize("asked,given", [(2, 0), (0, 2)])
def test_given_images_hold_out_what_the_configuration_says(tiny: Tiny, asked: int, given: int) -> None:
    data = load_dataset("digits", per_class=5, hold_out_classes=given)
    with pytest.raises(
        CorsdError, match=f"hold_out_classes = {asked}, but .* 'digits' .* holds out {given} classes; allowed: the same"
    ):
        train(tiny(hold_out_classes=asked), data=data, progress=False)


def test_a_run_of_an_earlier_library_opens(tiny: Tiny) -> None:
    run = train(tiny(epochs=1), progress=False)
    content = read_json(run.path / "config.json")
    assert content["data"].pop("unseen_class_names") == []
    for name in ("hold_out_classes", "hold_out", "hold_out_seed"):
        del content["train"][name]
    write_json(run.path / "config.json", content)
    old = load_run(run.path)
    assert old.data.unseen_class_names == () and old.config.hold_out_classes == 0
    assert run_data(old).unseen is None and train(replace(run.config, resume=True), progress=False).finished


def test_the_command_line_has_the_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "train --data digits --per-class 5 --width 4 --epochs 1 --batch-size 16 --method baseline --accelerator cpu --quiet"
    out = tmp_path / "run"
    cli.main([*words.split(), "--hold-out-classes", "4", "--hold-out", "last", "--hold-out-seed", "3", "--out", str(out)])
    kept = asdict(load_run(out).config)
    assert [kept[k] for k in ("hold_out_classes", "hold_out", "hold_out_seed")] == [4, "last", 3]
    with pytest.raises(SystemExit):
        cli.main([*words.split(), "--hold-out-classes", "9", "--out", str(tmp_path / "other")])
    assert capsys.readouterr().err == "corsd: error: hold_out_classes is 9 for digits with 10 classes; allowed: 0, or 2 to 8\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hold_out_classes": "3"}, r"hold_out_classes is '3'; allowed: a whole number"),
        ({"hold_out_classes": 2.5}, r"hold_out_classes is 2.5; allowed: a whole number"),
        ({"hold_out_classes": None}, r"hold_out_classes is None; allowed: a whole number"),
        ({"hold_out_seed": "a"}, r"hold_out_seed is 'a'; allowed: a whole number"),
        ({"hold_out_classes": 3, "hold_out_seed": 2**70}, r"hold_out_seed is .*; allowed: a whole number"),
        ({"hold_out_classes": 3, "hold_out_seed": -1}, r"hold_out_seed is -1; allowed: a whole number of at least 0"),
        ({"hold_out": 5}, r"hold_out .*5.*; allowed: random, last, superclasses"),
    ],
)
def test_wrong_arguments_are_one_error_each(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(CorsdError, match=message):
        load_dataset("digits", **arguments)


def test_a_validation_split_of_held_out_classes_alone_is_refused() -> None:
    data = _made_up([0] * 5)
    of_last = as_arrays(_shown(torch.tensor([4, 4])), torch.tensor([4, 4]))
    with pytest.raises(CorsdError, match=r"hold_out_classes is 2 for made up, whose validation images are all of those"):
        split_classes(replace(data, validation=of_last), 2, "last")


def test_unseen_classes_without_validation_images_have_no_validation_split() -> None:
    data = _made_up([0] * 5)
    of_first = as_arrays(_shown(torch.tensor([0, 0])), torch.tensor([0, 0]))
    split = split_classes(replace(data, validation=of_first), 2, "last")
    assert split.unseen is not None and split.unseen.validation is None
    assert split.validation is not None and len(split.validation) == 2
