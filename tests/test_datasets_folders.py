"""folder:PATH and imagenet: image folders in memory or streamed."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from corsd_lib.datasets import ImageArrays, ImageData, ImageFiles, folders, load_dataset
from corsd_lib.datasets.arrays import IMAGENET_MEAN, IMAGENET_STD
from corsd_lib.errors import CorsdError
from corsd_lib.evaluation import evaluate
from corsd_lib.files import read_json, write_json
from corsd_lib.runs import TrainConfig, image_changes, load_data, load_run
from corsd_lib.training import train

pytestmark = pytest.mark.filterwarnings("ignore::corsd_lib.datasets.DataNotice")


def make_images(folder: Path, classes: dict[str, int], size: tuple[int, int] = (30, 20)) -> None:
    """`classes`: name -> number of images; pixel value = 10 * (class + 1) + number."""
    for c, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", size, (10 * (c + 1) + i,) * 3).save(folder / name / f"{i:03}.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_images(tmp_path / "train", {"cat": 3, "dog": 2})
    make_images(tmp_path / "val", {"cat": 1, "dog": 2})
    return tmp_path


def values(split: ImageArrays) -> list[int]:
    return split.images[:, 0, 0, 0].tolist()


def test_a_folder_is_read_into_memory(folder: Path) -> None:
    data = load_dataset(f"folder:{folder}")
    assert isinstance(data.train, ImageArrays) and isinstance(data.test, ImageArrays)
    assert data.train.images.shape == (5, 3, 73, 73)
    assert values(data.train) == [10, 11, 12, 20, 21] and data.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert values(data.test) == [10, 20, 21] and data.validation is None
    assert data.class_names == data.superclass_names == ("cat", "dog")
    assert (data.name, data.image_size, data.augmentation) == (f"folder:{folder}", 64, "resized_crop")
    assert data.crop_scale == 0.4
    pixels = np.array([10, 11, 12, 20, 21]) / 255
    assert data.mean == pytest.approx([pixels.mean()] * 3) and data.std == pytest.approx([pixels.std()] * 3)


def test_a_third_folder_is_the_validation_split(folder: Path) -> None:
    make_images(folder / "test", {"cat": 4, "dog": 1})
    data = load_dataset(f"folder:{folder}")
    assert data.validation is not None and (len(data.validation), len(data.test)) == (3, 5)
    asked = load_dataset(f"folder:{folder}", validation_fraction=0.5)
    assert asked.validation is not None and (len(asked.train), len(asked.validation)) == (2, 3)
    (folder / "val").rename(folder / "aside")
    assert len(load_dataset(f"folder:{folder}").test) == 5


def test_a_large_folder_streams(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 8 * 3 * 32 * 32  # 8 images of 28 * 8 / 7
    monkeypatch.setattr(folders, "MEMORY_LIMIT", needed)
    assert isinstance(load_dataset(f"folder:{folder}", image_size=28).train, ImageArrays)
    monkeypatch.setattr(folders, "MEMORY_LIMIT", needed - 1)
    data = load_dataset(f"folder:{folder}", image_size=28, per_class=2)
    assert isinstance(data.train, ImageFiles) and isinstance(data.test, ImageFiles)
    assert data.train.image_size == data.image_size == 28 and data.train.labels.tolist() == [0, 0, 1, 1]
    assert data.train.load(3).shape == (3, 20, 30) and data.train.load(3).unique().tolist() == [21]
    assert (data.mean, data.std) == (IMAGENET_MEAN, IMAGENET_STD)


def test_hidden_and_other_files_are_passed_over(folder: Path) -> None:
    (folder / "train" / ".ipynb_checkpoints").mkdir()
    (folder / "train" / "cat" / ".ipynb_checkpoints").mkdir()
    shutil.copy(next((folder / "train" / "cat").glob("*.png")), folder / "train" / "cat" / ".ipynb_checkpoints" / "copy.png")
    (folder / "train" / "notes.txt").write_text("mine")
    (folder / "train" / "cat" / "._000.png").write_text("what macOS leaves behind")
    (folder / "train" / "cat" / "Thumbs.db").write_text("what Windows leaves behind")
    data = load_dataset(f"folder:{folder}")
    assert isinstance(data.train, ImageArrays) and values(data.train) == [10, 11, 12, 20, 21]


def test_wrong_folders_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CorsdError, match=r"absent is not a folder of images: there is no such folder"):
        load_dataset(f"folder:{tmp_path / 'absent'}")
    with pytest.raises(CorsdError, match=r"000\.png is not a folder of images: it is a file"):
        load_dataset(f"folder:{folder / 'train' / 'cat' / '000.png'}")
    with pytest.raises(CorsdError, match=r"cat has no class folders; expected a folder of images for each class"):
        load_dataset(f"folder:{folder / 'train' / 'cat'}")
    (folder / "val").rename(folder / "aside")
    with pytest.raises(
        CorsdError, match=r"has aside/, train/ in it; expected train/ and val/ or test/, .*to split .* of train/, name"
    ):
        load_dataset(f"folder:{folder}")
    (folder / "val").mkdir()
    with pytest.raises(CorsdError, match=r"val has no class folders; expected a folder of images for each class, as in train/"):
        load_dataset(f"folder:{folder}")


def test_a_refusal_says_which_side_lacks_which_class(folder: Path) -> None:
    make_images(folder / "val", {"fox": 1})
    with pytest.raises(CorsdError, match="train/ lacks fox; expected the same class folders in both"):
        load_dataset(f"folder:{folder}")
    make_images(folder / "train", {"owl": 1, "elk": 1})
    with pytest.raises(CorsdError, match="train/ lacks fox and val/ lacks elk, owl; expected"):
        load_dataset(f"folder:{folder}")


def test_a_class_without_readable_images_is_named_with_what_is_read(folder: Path) -> None:
    for part in ("train", "val"):
        (folder / part / "fox").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "train" / "fox" / "a.gif")
    with pytest.raises(CorsdError) as caught:
        load_dataset(f"folder:{folder}")
    message = str(caught.value)
    assert (
        "train has no image in the class folders fox (files that are not read: 1 .gif; read are .jpg, .jpeg, .jfif" in message
    )
    assert message.endswith(".webp); expected at least one in each")
    (folder / "train" / "fox" / "a.gif").unlink()
    with pytest.raises(CorsdError, match=r"folders fox; expected at least one in each, with the extension \.jpg, .*, \.webp$"):
        load_dataset(f"folder:{folder}")


# ------------------------------------------------------------------------------- names of folders and files


def notices(data: ImageData) -> tuple[str, ...]:
    """But for the one about small images."""
    return tuple(notice for notice in data.notices if "enlarged" not in notice)


@pytest.mark.parametrize("name", ["val", "Valid", "validation", "DEV"])
def test_the_validation_folder_has_many_names(folder: Path, name: str) -> None:
    (folder / "val").rename(folder / name)
    assert values(load_dataset(f"folder:{folder}").test) == [10, 20, 21]  # type: ignore[arg-type]
    make_images(folder / "test", {"cat": 4, "dog": 1})
    data = load_dataset(f"folder:{folder}")
    assert data.validation is not None and (len(data.validation), len(data.test)) == (3, 5) and notices(data) == ()


@pytest.mark.parametrize("train,test", [("Train", "TEST"), ("Training", "Testing")])
def test_train_and_test_have_other_names_too(folder: Path, train: str, test: str) -> None:
    (folder / "train").rename(folder / train)
    (folder / "val").rename(folder / test)
    assert (len(load_dataset(f"folder:{folder}").train), len(load_dataset(f"folder:{folder}").test)) == (5, 3)


def test_two_folders_of_one_meaning_are_refused(folder: Path) -> None:
    make_images(folder / "valid", {"cat": 1, "dog": 1})
    with pytest.raises(CorsdError, match="has val/ and valid/, which both mean validation; expected one of them"):
        load_dataset(f"folder:{folder}")


def test_every_folder_that_is_not_used_is_named(folder: Path) -> None:
    make_images(folder / "extra", {"cat": 1})
    (folder / "__MACOSX").mkdir()
    make_images(folder / "test", {"cat": 1, "dog": 1})
    assert notices(load_dataset(f"folder:{folder}")) == ("extra/ is not used",)
    asked = load_dataset(f"folder:{folder}", validation_fraction=0.5)
    assert (
        "the validation split of the data is not used: validation_fraction takes one from the training images" in asked.notices
    )


@pytest.mark.parametrize("below", [".", "images"])
def test_test_images_without_labels_are_passed_over(folder: Path, below: str) -> None:
    (folder / "test" / below).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "test" / below / "a.png")
    data = load_dataset(f"folder:{folder}")
    assert len(data.test) == 3 and data.validation is None
    assert notices(data) == ("test/ is not used: it has no class folders",)


def test_folders_of_the_system_are_no_classes(folder: Path) -> None:
    for name in ("__MACOSX", "@eaDir", ".ipynb_checkpoints", "__pycache__", "$RECYCLE.BIN", "lost+found"):
        make_images(folder / "train", {name: 1})
        make_images(folder / "train" / "cat", {name: 1})
    data = load_dataset(f"folder:{folder}")
    assert data.class_names == ("cat", "dog") and len(data.train) == 5 and notices(data) == ()


ONCE = "links to a folder above them, or to one that is read already: {}, not followed; each folder is read once"


@pytest.mark.parametrize("target", [".", "..", "../..", "../../val/cat", "../dog", "../dog/deeper"])
def test_links_to_folders_that_are_read_already_multiply_nothing(folder: Path, target: str) -> None:
    make_images(folder / "train" / "dog", {"deeper": 1})
    before = [load_dataset(f"folder:{folder}").train.names, load_dataset(f"folder:{folder}").test.names]
    os.symlink(target, folder / "train" / "cat" / "a link")
    os.symlink(target, folder / "train" / "cat" / "another")
    data = load_dataset(f"folder:{folder}")
    assert [data.train.names, data.test.names] == before
    assert notices(data) == (f"train/: {ONCE.format(2)}",)


def test_links_in_a_folder_without_a_split_multiply_nothing(classes: Path) -> None:
    before = load_dataset(f"folder:{classes}")
    os.symlink("..", classes / "cat" / "parent")
    os.symlink("../owl", classes / "dog" / "owls")
    data = load_dataset(f"folder:{classes}")
    assert (data.train.names, data.test.names) == (before.train.names, before.test.names)
    assert notices(data)[0] == ONCE.format(2)


def test_links_to_folders_that_are_read_nowhere_else_are_followed_once(folder: Path, tmp_path: Path) -> None:
    make_images(tmp_path / "pool", {"more": 2, "fox": 1})
    os.symlink(tmp_path / "pool" / "more", folder / "train" / "cat" / "more")
    for part in ("train", "val"):
        os.symlink(tmp_path / "pool" / "fox", folder / part / "fox")
    with pytest.raises(CorsdError, match=rf"val has no image in the class folders fox \({ONCE.format(1)}\)"):
        load_dataset(f"folder:{folder}")
    (folder / "val" / "fox").unlink()
    make_images(folder / "val", {"fox": 1})
    data = load_dataset(f"folder:{folder}")
    assert [name for name in data.train.names if "cat" not in name] == ["dog/000.png", "dog/001.png", "fox/000.png"]
    assert data.train.names[3:5] == ("cat/more/000.png", "cat/more/001.png") and notices(data) == ("pool/ is not used",)


def test_files_that_are_not_read_are_counted_by_kind(folder: Path) -> None:
    cat = folder / "train" / "cat"
    for name in ("a.gif", "b.GIF", "c.heic", "README"):
        (cat / name).write_bytes(b"x")
    for name in ("Thumbs.db", ".DS_Store", "._000.png"):
        (cat / name).write_bytes(b"what systems leave behind")
    shutil.copy(cat / "000.png", folder / "val" / "lost.png")
    assert notices(load_dataset(f"folder:{folder}")) == (
        "train/: files that are not read: 2 .gif, 1 .heic, 1 no extension; "
        "read are .jpg, .jpeg, .jfif, .png, .bmp, .ppm, .pgm, .tif, .tiff, .webp",
        "val/: images that are not read: 1, beside the class folders",
    )


def test_jfif_is_read(folder: Path) -> None:
    Image.new("RGB", (30, 20), (77,) * 3).save(folder / "train" / "cat" / "new.JFIF", "JPEG")
    data = load_dataset(f"folder:{folder}")
    assert isinstance(data.train, ImageArrays) and 77 in values(data.train) and notices(data) == ()


def test_one_class_is_refused_before_images_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("train", "val"):
        make_images(tmp_path / part, {"cat": 2})
    monkeypatch.setattr(folders, "read_squares", lambda *_, **__: pytest.fail("images are read"))
    for path, message in (
        (tmp_path, "train: the data has one class, 'cat'; at"),
        (tmp_path / "val", "val: the data has one class"),
    ):
        with pytest.raises(CorsdError, match=message):
            load_dataset(f"folder:{path}")


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no such file names")
def test_names_that_are_not_utf_8_are_refused_before_images_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "read_squares", lambda *_, **__: pytest.fail("images are read"))
    for part in ("train", "val"):
        (folder / part / "cat").rename(folder / part / os.fsdecode(b"caf\xe9"))
    with pytest.raises(CorsdError, match=r"train: class 'caf\\udce9' is not valid UTF-8"):
        load_dataset(f"folder:{folder}")
    with pytest.raises(CorsdError, match=r"data set 'folder:caf\\udce9' is not valid UTF-8"):
        load_dataset("folder:" + os.fsdecode(b"caf\xe9"))
    with pytest.raises(CorsdError, match=r"data root 'caf\\udce9' is not valid UTF-8"):
        load_dataset("digits", os.fsdecode(b"caf\xe9"))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such file names")
def test_a_folder_name_of_two_lines_is_refused_before_images_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "read_squares", lambda *_, **__: pytest.fail("images are read"))
    for part in ("train", "val"):
        (folder / part / "cat").rename(folder / part / "big\ncat")
    with pytest.raises(CorsdError, match=r"train: class 'big\\ncat'; allowed: a non-empty name without line breaks"):
        load_dataset(f"folder:{folder}")


@pytest.mark.parametrize("size,said", [((30, 20), True), ((64, 90), False), ((28, 28), True)])
def test_small_images_are_said_to_be_enlarged(tmp_path: Path, size: tuple[int, int], said: bool) -> None:
    for part in ("train", "val"):
        make_images(tmp_path / part, {"cat": 2, "dog": 2}, size)
    found = load_dataset(f"folder:{tmp_path}").notices
    width, height = size
    notice = f"images of about {width}x{height} are enlarged to 64x64; image_size sets another side"
    assert found == ((notice,) if said else ())
    assert load_dataset(f"folder:{tmp_path}", image_size=20).notices == ()


# ------------------------------------------------------------------------------------ folders without a split


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    make_images(tmp_path, {"cat": 10, "dog": 6, "owl": 5})
    return tmp_path


def test_a_folder_of_classes_is_split(classes: Path) -> None:
    data = load_dataset(f"folder:{classes}")
    assert isinstance(data.train, ImageArrays) and isinstance(data.test, ImageArrays) and data.generated_split
    of_cat = [name for name in data.test.names if name.startswith("cat")]
    assert of_cat == ["cat/000.png", "cat/001.png", "cat/004.png", "cat/005.png"]  # the same on every machine, ever
    assert torch.bincount(data.train.labels).tolist() == [6, 3, 3] and torch.bincount(data.test.labels).tolist() == [4, 3, 2]
    both = sorted(values(data.train) + values(data.test))
    assert both == sorted([*range(10, 20), *range(20, 26), *range(30, 35)])
    assert notices(data) == ("no train/ and test/: about test_fraction 0.2 of each class is test (12 train, 9 test images)",)


def test_images_that_come_and_go_leave_all_others_where_they_are(tmp_path: Path) -> None:
    make_images(tmp_path / "data", {"cat": 40, "dog": 40}, (8, 8))

    def names() -> tuple[set[str], set[str]]:
        data = load_dataset(f"folder:{tmp_path / 'data'}", image_size=8)
        return set(data.train.names), set(data.test.names)

    train, test = names()
    assert 8 <= len(test) <= 24 and len(train) + len(test) == 80  # 16 expected, with a deviation of 3.6
    renamed = tmp_path / "data" / "cat" / "a first one.png"
    (tmp_path / "data" / "cat" / "020.png").rename(renamed)
    (tmp_path / "data" / "dog" / "000.png").unlink()
    shutil.copy(renamed, tmp_path / "data" / "dog" / "0000.png")
    new, old = {"cat/a first one.png", "dog/0000.png"}, {"cat/020.png", "dog/000.png"}
    now_train, now_test = names()
    assert (now_train - new, now_test - new) == (train - old, test - old)
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    shutil.copytree(tmp_path / "elsewhere", tmp_path / "data")
    assert names() == (now_train, now_test)


def test_small_classes_have_images_on_both_sides(tmp_path: Path) -> None:
    make_images(tmp_path, {str(number): 2 for number in range(30)}, (8, 8))
    for fraction in (0.001, 0.2, 0.999):
        data = load_dataset(f"folder:{tmp_path}", image_size=8, test_fraction=fraction)
        assert torch.bincount(data.train.labels).tolist() == torch.bincount(data.test.labels).tolist() == [1] * 30


def test_that_split_hangs_on_the_fraction_and_on_no_seed(classes: Path) -> None:
    name = f"folder:{classes}"
    tests = [load_dataset(name, seed=seed, validation_fraction=v).test for seed in (0, 1, 7) for v in (0.0, 0.3)]
    assert len({tuple(values(test)) for test in tests}) == 1  # type: ignore[arg-type]
    half = load_dataset(name, test_fraction=0.5)
    assert set(tests[0].names) <= set(half.test.names) and len(half.test) > len(tests[0])
    (classes / "rat").mkdir()
    Image.new("RGB", (9, 9)).save(classes / "rat" / "only.png")
    with pytest.raises(CorsdError, match=r"test_fraction 0\.2 needs at least 2 train images of every class; class 'rat' has 1"):
        load_dataset(name)


def test_a_test_fraction_is_refused_where_it_has_no_effect(folder: Path) -> None:
    with pytest.raises(
        CorsdError, match=r"test_fraction is 0\.3 for .*, which has train/ and val/; allowed: only for a folder without"
    ):
        load_dataset(f"folder:{folder}", test_fraction=0.3)
    with pytest.raises(CorsdError, match=r"test_fraction is 0\.3 for 'digits'; allowed: only for folder:PATH without a split"):
        load_dataset("digits", test_fraction=0.3)
    for fraction in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(CorsdError, match=r"test_fraction is .*; allowed: above 0 and below 1, or None"):
            load_dataset(f"folder:{folder}", test_fraction=fraction)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    make_images(tmp_path, {"bus": 2, "car": 2, "train": 2})
    assert load_dataset(f"folder:{tmp_path}").class_names == ("bus", "car", "train")
    shutil.rmtree(tmp_path / "bus")
    with pytest.raises(CorsdError, match="has car/, train/ in it"):  # as train/ and test1/ would be, without labels
        load_dataset(f"folder:{tmp_path}")


def test_a_truncated_image_is_named(folder: Path) -> None:
    path = folder / "val" / "dog" / "001.png"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorsdError, match=r"dog/001\.png cannot be read"):
        load_dataset(f"folder:{folder}")


# ---------------------------------------------------------------------------------------- where a folder is looked for


def test_a_relative_folder_is_looked_for_below_the_root_and_in_the_working_directory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("root", "work"):
        (tmp_path / place).mkdir()
    for part in ("train", "val"):
        (folder / part).rename(tmp_path / "root" / part)
    (tmp_path / "root").rename(tmp_path / "pets")
    (tmp_path / "work").rename(tmp_path / "root")
    (tmp_path / "pets").rename(tmp_path / "root" / "pets")
    monkeypatch.chdir(tmp_path / "root")
    for root in (None, tmp_path / "elsewhere"):
        assert load_dataset("folder:pets", root).name == "folder:pets"
    monkeypatch.chdir(tmp_path)
    assert load_dataset("folder:pets", tmp_path / "root").name == "folder:pets"
    with pytest.raises(CorsdError) as caught:
        load_dataset("folder:pets")
    assert str(caught.value) == (
        f"pets does not exist: it is not at {tmp_path}/pets; a relative path starts at the working directory, or at a "
        "data root (--data-root, root=)"
    )
    with pytest.raises(CorsdError) as caught:
        load_dataset("npz:pets.npz", "other")
    assert (
        str(caught.value) == f"pets.npz does not exist: it is neither at {tmp_path}/other/pets.npz nor at {tmp_path}/pets.npz"
    )


def test_a_run_on_a_relative_folder_opens_from_anywhere_with_a_data_root(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"image_size": 8, "method": "baseline", "width": 4, "epochs": 1, "batch_size": 2}
    monkeypatch.chdir(folder.parent)
    name = f"folder:{folder.name}"
    run = train(TrainConfig(data=name, **settings, accelerator="cpu", out=str(tmp_path / "run")), progress=False)
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    again = load_run(run.path)
    with pytest.raises(CorsdError, match=rf"^{run.path}: {folder.name} does not exist: it is not at {tmp_path}/away/"):
        evaluate(again)
    assert evaluate(again, data_root=str(folder.parent)).data == name and again.config.data == name


# ---------------------------------------------------------------------------------------- a folder that changes


def test_a_run_refuses_a_folder_whose_train_images_are_others(tmp_path: Path) -> None:
    make_images(tmp_path / "data", {"cat": 12, "dog": 12}, (8, 8))
    settings: dict[str, Any] = {"data": f"folder:{tmp_path / 'data'}", "image_size": 8, "method": "baseline", "width": 4}
    config = TrainConfig(**settings, epochs=1, batch_size=8, accelerator="cpu", probe_size=8, out=str(tmp_path / "run"))
    run = train(config, progress=False)
    test, first = load_data(config).test.names[0], load_data(config).train.names[0]
    other = next(name for i in range(99) if folders._hash_fraction(name := f"{first[:-4]}{i}.png") > folders.TEST_FRACTION)
    (tmp_path / "data" / test).rename(tmp_path / "aside.png")
    assert run.test is not None and evaluate(run).images == run.test["images"] - 1  # no image that it was trained on
    (tmp_path / "data" / first).rename(tmp_path / "data" / other)
    what = "train has as many images of each class, but different ones: some were replaced or renamed"
    with pytest.raises(CorsdError, match=rf"images of 'folder:.*' here are not those of .*run: {what}; restore the files"):
        evaluate(run)
    (run.path / "test.json").unlink()
    with pytest.raises(CorsdError, match=what):
        train(replace(config, resume=True), progress=False)
    (tmp_path / "data" / other).unlink()
    with pytest.raises(CorsdError, match=rf"those of .*run: train has {len(load_data(config).train)} images, had "):
        evaluate(run)


def test_a_run_of_an_earlier_library_opens_and_is_not_tested_on_a_split_by_name(tmp_path: Path, folder: Path) -> None:
    settings: dict[str, Any] = {"image_size": 8, "method": "baseline", "width": 4, "epochs": 1, "batch_size": 2}
    config = TrainConfig(data=f"folder:{folder}", **settings, accelerator="cpu", out=str(tmp_path / "run"))
    run = train(config, progress=False)
    file = run.path / "config.json"
    content = read_json(file)
    content["data"]["splits"] = {name: values[:2] for name, values in content["data"]["splits"].items()}
    write_json(file, content)
    old = load_run(run.path)
    assert evaluate(old).images == 3 and old.data.splits == {"train": [5, run.data.splits["train"][1]]}  # type: ignore[index]
    data = replace(load_data(config), generated_split=True)
    for splits in (old.data.splits, None):
        told = image_changes(data, replace(old.data, splits=splits))
        assert told == "it was trained with an earlier version of this library, which split a folder of classes by position"


# -------------------------------------------------------------------------------------------------- imagenet


@pytest.mark.parametrize("below", ["imagenet", "."])
def test_imagenet_streams_torchvisions_layout(tmp_path: Path, below: str) -> None:
    for part, count in (("train", 3), ("val", 1)):
        make_images(tmp_path / below / part, {"n01440764": count, "n01443537": count})
    data = load_dataset("imagenet", tmp_path, validation_fraction=0.3, per_class=1)
    assert isinstance(data.train, ImageFiles) and isinstance(data.validation, ImageFiles)
    assert (len(data.train), len(data.validation), len(data.test)) == (2, 2, 2)
    assert (data.image_size, data.train.image_size, data.augmentation) == (224, 224, "resized_crop")
    assert data.crop_scale == 0.08
    assert (data.mean, data.std, data.channels) == (IMAGENET_MEAN, IMAGENET_STD, 3)
    assert data.class_names == ("n01440764", "n01443537")
    assert load_dataset("imagenet", tmp_path, image_size=160).train.image_size == 160
    torch.save(({"n01440764": ("tench", "Tinca tinca")}, []), tmp_path / below / "meta.bin")
    assert load_dataset("imagenet", tmp_path).class_names == ("tench", "n01443537")


@pytest.mark.parametrize("content", [b"", b"no such file", {"a": 1}, ({"n01440764": 3}, []), ([], []), ({"n01440764": ()}, [])])
def test_a_meta_file_that_is_another_is_one_error(tmp_path: Path, content: Any) -> None:
    for part in ("train", "val"):
        make_images(tmp_path / part, {"n01440764": 1, "n01443537": 1})
    if isinstance(content, bytes):
        (tmp_path / "meta.bin").write_bytes(content)
    else:
        torch.save(content, tmp_path / "meta.bin")
    with pytest.raises(
        CorsdError, match=r"meta\.bin (cannot be read: it is not|does not map WordNet ids to class names; expected) the meta"
    ):
        load_dataset("imagenet", tmp_path)


def test_the_thousand_classes_have_words(tmp_path: Path) -> None:
    wnids = tuple(f"n{number:08}" for number in range(1000))
    names = folders._imagenet_names(tmp_path, wnids)
    assert (names[0], names[1], names[999]) == ("tench", "goldfish", "toilet tissue")
    assert folders._imagenet_names(tmp_path, wnids[:999]) == wnids[:999]


def test_absent_imagenet_says_where_it_looked(tmp_path: Path) -> None:
    for download in (False, True):
        with pytest.raises(CorsdError, match=r"imagenet is neither in .*imagenet nor in .*image-net\.org"):
            load_dataset("imagenet", tmp_path, download=download)
