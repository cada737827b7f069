"""load_dataset, the types it returns, and which images it picks."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corsd_lib.datasets import (
    DATASETS,
    LARGEST_SIDE,
    DataNotice,
    ImageArrays,
    ImageData,
    ImageFiles,
    archive,
    data_root,
    load_dataset,
)
from corsd_lib.datasets.arrays import as_arrays, channel_statistics, resize_arrays
from corsd_lib.datasets.decoding import read_squares
from corsd_lib.datasets.notices import say, silent
from corsd_lib.datasets.selection import pick_per_class, split_validation, stratified_indices
from corsd_lib.errors import CorsdError
from corsd_lib.readers import SIDE


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_dataset("digits")


def random_images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


# ---------------------------------------------------------------------------------------------------- digits


def test_digits_are_scikit_learns_split_100_a_class(digits: ImageData) -> None:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    assert (len(digits.train), len(digits.test)) == (1000, 797)
    assert torch.bincount(digits.train.labels).tolist() == [100] * 10
    expected = {(*np.rint(p * 255 / 16).astype(int).tolist(), int(y)) for p, y in zip(pixels, labels, strict=True)}
    found = set()
    for split in (digits.train, digits.test):
        assert isinstance(split, ImageArrays)
        rows = zip(split.images.flatten(1).tolist(), split.labels.tolist(), strict=True)
        found |= {(*image, label) for image, label in rows}
    assert found == expected  # every digit is in exactly one split, none altered: 1,000 + 797 = 1,797


def test_digits_split_does_not_move(digits: ImageData) -> None:
    # Pinned: results of every study on digits depend on this split.
    assert isinstance(digits.train, ImageArrays)
    pixels = digits.train.images.numpy().tobytes()
    assert hashlib.sha256(pixels).hexdigest().startswith("57041035c5aeb8b7")
    other = load_dataset("digits", seed=5)
    assert isinstance(other.train, ImageArrays)
    assert torch.equal(digits.train.images, other.train.images)


def test_digits_describe_themselves(digits: ImageData) -> None:
    assert digits.class_names == digits.superclass_names == tuple("0123456789")
    assert digits.superclass_of_class.tolist() == list(range(10))
    assert (digits.channels, digits.num_classes, digits.image_size, digits.augmentation) == (1, 10, 8, "crop")
    assert repr(digits) == "ImageData(digits: 1,000 train, 797 test, 10 classes, 1x8x8)"
    assert digits.summary().splitlines()[0] == "digits: 1,000 train, 797 test images, 1x8x8"
    assert len(digits.summary()) < 300
    assert repr(digits.train) == "ImageArrays(1,000 images of 1x8x8)"


def test_statistics_are_of_the_full_train_split(digits: ImageData) -> None:
    assert isinstance(digits.train, ImageArrays)
    pixels = digits.train.images.numpy().astype(np.float64) / 255
    assert digits.mean == pytest.approx((pixels.mean(),), abs=1e-9)
    assert digits.std == pytest.approx((pixels.std(),), abs=1e-9)
    few = load_dataset("digits", per_class=1, validation_fraction=0.5)
    assert (few.mean, few.std) == (digits.mean, digits.std)


def test_image_size_resizes_once() -> None:
    data = load_dataset("digits", image_size=16)
    assert isinstance(data.train, ImageArrays)
    assert data.image_size == 16 and data.train.images.shape == (1000, 1, 16, 16)
    small = load_dataset("digits").train
    assert isinstance(small, ImageArrays)
    want = torch.nn.functional.interpolate(small.images.double(), (16, 16), mode="bilinear").round()
    # float32 and float64 may round an exact half to either side
    assert (data.train.images.double() - want).abs().max() <= 1


# ---------------------------------------------------------------------------------- validation and per_class


def test_validation_comes_off_train_first_then_per_class(digits: ImageData) -> None:
    data = load_dataset("digits", validation_fraction=0.2, per_class=7, seed=3)
    assert data.validation is not None
    assert torch.bincount(data.validation.labels).tolist() == [20] * 10
    assert torch.bincount(data.train.labels).tolist() == [7] * 10
    assert not set(data.train.index.tolist()) & set(data.validation.index.tolist())
    for split in (data.train, data.validation):
        assert isinstance(split, ImageArrays) and isinstance(digits.train, ImageArrays)
        assert torch.equal(digits.train.images[split.index], split.images)  # index names the image
        assert torch.equal(digits.train.labels[split.index], split.labels)
    assert len(data.test) == 797
    assert "7 train" not in repr(data) and "70 train, 200 validation, 797 test" in repr(data)


def test_same_seed_same_images_other_seed_others() -> None:
    a, b, c = (load_dataset("digits", per_class=10, validation_fraction=0.1, seed=s) for s in (1, 1, 2))
    assert a.validation is not None and b.validation is not None and c.validation is not None
    assert torch.equal(a.train.index, b.train.index) and torch.equal(a.validation.index, b.validation.index)
    assert not torch.equal(a.train.index, c.train.index)
    assert not torch.equal(a.validation.index, c.validation.index)


def test_global_random_state_is_neither_used_nor_moved() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = load_dataset("digits", per_class=5).train.index
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(load_dataset("digits", per_class=5).train.index, first)


def test_more_labels_add_images_and_exchange_none() -> None:
    ten, twenty = (set(load_dataset("digits", per_class=n).train.index.tolist()) for n in (10, 20))
    assert ten < twenty


@settings(max_examples=50, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    wanted=st.lists(st.integers(0, 12), min_size=5, max_size=5),
    seed=st.integers(0, 1000),
)
def test_stratified_rows_take_what_is_wanted_of_each_class(labels: list[int], wanted: list[int], seed: int) -> None:
    rows = stratified_indices(torch.tensor(labels), torch.tensor(wanted), torch.Generator().manual_seed(seed)).tolist()
    assert rows == sorted(set(rows))
    for c in range(5):
        assert sum(labels[row] == c for row in rows) == min(wanted[c], labels.count(c))


def test_every_row_has_the_same_chance() -> None:
    labels, hits = torch.tensor([0, 0, 0, 0, 1, 1]), torch.zeros(6)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2000):
        hits[stratified_indices(labels, torch.tensor([1, 1]), generator)] += 1
    assert (hits / 2000 - torch.tensor([0.25] * 4 + [0.5] * 2)).abs().max() < 0.05


def test_validation_takes_at_least_one_and_leaves_at_least_one() -> None:
    split = as_arrays(random_images(14, 1, 2, 2), [0] * 2 + [1] * 12)
    for fraction, taken in ((0.01, [1, 1]), (0.25, [1, 3]), (0.99, [1, 11])):
        train, validation = split_validation(split, fraction, ("a", "b"), torch.Generator())
        assert torch.bincount(validation.labels).tolist() == taken
        assert sorted(train.index.tolist() + validation.index.tolist()) == list(range(14))


def test_a_class_with_too_few_images_is_named() -> None:
    split = as_arrays(random_images(4, 1, 2, 2), [0, 0, 0, 1])
    with pytest.raises(CorsdError, match=r"per_class 2 .* class 'rare', .*; allowed: 1 to 1"):
        pick_per_class(split, 2, ("common", "rare"), torch.Generator())
    with pytest.raises(CorsdError, match=r"at least 2 train images .* class 'rare' has 1"):
        split_validation(split, 0.1, ("common", "rare"), torch.Generator())
    with pytest.raises(CorsdError, match="per_class 91"):
        load_dataset("digits", per_class=91, validation_fraction=0.1)


def test_per_class_works_on_files_too() -> None:
    files = ImageFiles(tuple("abcdef"), torch.tensor([0, 0, 0, 1, 1, 1]), torch.arange(6), 32)
    picked = pick_per_class(files, 2, ("x", "y"), torch.Generator().manual_seed(0))
    assert isinstance(picked, ImageFiles)
    assert picked.paths == tuple("abcdef"[i] for i in picked.index.tolist()) and len(picked) == 4
    assert repr(picked) == "ImageFiles(4 files, seen at 32x32)"


# ----------------------------------------------------------------------------------------------- bad options


def test_an_unknown_name_lists_all_names() -> None:
    for name in ("mnist", "npz", "folder:", "digits:3"):
        with pytest.raises(CorsdError) as caught:
            load_dataset(name)
        assert all(known in str(caught.value) for known in DATASETS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_class": 0}, "per_class is 0"),
        ({"per_class": 2.5}, r"per_class is 2\.5"),
        ({"per_class": True}, "per_class is True"),
        ({"per_class": 10**5000}, "per_class is <integer of about 5,000 digits>; allowed: a whole number of at least 1"),
        ({"image_size": 10**5000}, "image_size is <integer of about 5,000 digits>"),
        ({"image_size": 100_000}, "image_size is 100000; allowed: a whole number of at least 1 and at most 65535, or None"),
        ({"seed": -1}, "seed is -1; allowed: a whole number of at least 0"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"seed": None}, "seed is None"),
        ({"seed": "1"}, "seed is '1'"),
        ({"seed": 1.0}, r"seed is 1\.0"),
        ({"seed": True}, "seed is True"),
        ({"seed": torch.tensor(1.5)}, r"seed is tensor\(1\.5"),
        ({"per_class": np.zeros(2, int)}, r"per_class is array"),
        ({"validation_fraction": None}, "validation_fraction is None"),
        ({"validation_fraction": 10**400}, "validation_fraction is 1000"),
        ({"validation_fraction": "0.1"}, r"validation_fraction is '0\.1'"),
        ({"validation_fraction": False}, "validation_fraction is False"),
        ({"test_fraction": "0.1"}, r"test_fraction is '0\.1'; allowed: above 0 and below 1, or None"),
        ({"test_fraction": True}, "test_fraction is True"),
        ({"download": "no"}, "download is 'no'; allowed: True or False"),
        ({"crop_to_box": 1}, "crop_to_box is 1; allowed: True or False"),
        ({"root": 3}, "data root 3 is of type int; allowed: a path, or None"),
        ({"root": "~no_such_user/x"}, "data root '~no_such_user/x': '~no_such_user' has no home folder"),
        ({"image_size": -8}, "image_size is -8"),
        ({"validation_fraction": 1.0}, r"validation_fraction is 1\.0"),
        ({"validation_fraction": -0.1}, r"validation_fraction is -0\.1"),
        ({"validation_fraction": float("nan")}, "validation_fraction is nan"),
        ({"crop_to_box": True}, "only for cub200"),
    ],
)
def test_options_out_of_range_are_named(options: dict, message: str) -> None:
    with pytest.raises(CorsdError, match=message):
        load_dataset("digits", **options)


@pytest.mark.parametrize("name", [3, None, b"digits", Path("digits")])
def test_a_name_that_is_no_string_lists_all_names(name: object) -> None:
    with pytest.raises(CorsdError, match=r"data set .* is of type \w+; allowed: digits, "):
        load_dataset(name)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_a_path_that_the_system_cannot_take_is_one_error(kind: str, tmp_path: Path) -> None:
    with pytest.raises(CorsdError, match="data set '~no_such_user/x': '~no_such_user' has no home folder"):
        load_dataset(f"{kind}:~no_such_user/x")
    with pytest.raises(CorsdError, match=f"cannot read data set '{kind}:(?!x{{200}}).*': File name too long"):
        load_dataset(f"{kind}:{'x' * 5000}")


def test_numbers_of_numpy_will_do() -> None:
    plain = load_dataset("digits", per_class=3, seed=2, image_size=9, validation_fraction=0.25)
    numbers = {
        "per_class": np.int64(3),
        "seed": np.uint8(2),
        "image_size": np.int32(9),
        "validation_fraction": np.float32(0.25),
    }
    data = load_dataset("digits", **numbers)
    assert torch.equal(data.train.index, plain.train.index) and data.image_size == plain.image_size == 9
    assert type(data.image_size) is int


def test_sides_are_those_that_a_run_may_have() -> None:
    assert LARGEST_SIDE == SIDE


def test_images_that_memory_does_not_hold_are_refused_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_available_memory", lambda: 10**6)
    with pytest.raises(CorsdError, match=r"1,797 images of 30x30 pixels take 0\.00162 GB; available memory: 0\.001 GB"):
        load_dataset("digits", image_size=30)
    with pytest.raises(CorsdError, match=r"2 images of 1000x1000 pixels take 0\.006 GB; available memory: 0\.001 GB"):
        read_squares(["a.png", "b.png"], 1000)


def test_root_is_the_argument_else_the_environment_else_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORSD_DATA", "elsewhere")
    assert data_root("here") == Path("here")
    assert data_root() == Path("elsewhere")
    monkeypatch.delenv("CORSD_DATA")
    assert data_root() == Path("data")


# ----------------------------------------------------------------------------------------------------- types


@pytest.mark.parametrize("images", [torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4, dtype=torch.uint8)])
def test_image_arrays_refuse_other_dtypes_and_shapes(images: torch.Tensor) -> None:
    with pytest.raises(CorsdError, match="expected uint8 of shape"):
        ImageArrays(images, torch.zeros(2, dtype=torch.int64), torch.arange(2))


def test_image_arrays_refuse_labels_that_do_not_fit() -> None:
    images = random_images(3, 1, 2, 2)
    with pytest.raises(CorsdError, match=r"labels are int64 of shape \(2,\)"):
        ImageArrays(images, torch.zeros(2, dtype=torch.int64), torch.arange(3))
    with pytest.raises(CorsdError, match="index are int32"):
        ImageArrays(images, torch.zeros(3, dtype=torch.int64), torch.arange(3, dtype=torch.int32))
    with pytest.raises(CorsdError, match="labels"):
        ImageFiles(("a",), torch.zeros(3, dtype=torch.int64), torch.arange(3), 8)


def image_data(**changes: object) -> ImageData:
    split = as_arrays(random_images(2, 1, 4, 4), [0, 1])
    fields = {
        "train": split,
        "test": split,
        "class_names": ("a", "b"),
        "superclass_names": ("all",),
        "superclass_of_class": torch.tensor([0, 0]),
        "mean": (0.5,),
        "std": (0.5,),
        "image_size": 4,
    }
    return ImageData("mine", **(fields | changes))


def test_image_data_refuses_what_does_not_fit_together() -> None:
    image_data()
    wrong = as_arrays(random_images(2, 1, 4, 4), [0, 2])
    for changes, message in (
        ({"test": wrong}, r"mine: test label is 2 at row 1; allowed: 0\.\.1"),
        ({"validation": wrong}, "validation label is 2"),
        ({"superclass_of_class": torch.tensor([0])}, "1 entries for 2 classes"),
        (
            {"superclass_of_class": torch.tensor([0, 1])},
            r"superclass_of_class is 1 at row 1; allowed: 0\.\.0",
        ),
        ({"mean": (0.5, 0.5)}, "mean"),
        ({"class_names": ("a", "\udce9")}, r"mine: class '\\udce9' is not valid UTF-8"),
        ({"superclass_names": ("\udce9",)}, r"mine: superclass '\\udce9' is not valid UTF-8"),
        ({"attribute_names": ("\udce9",)}, r"mine: attribute '\\udce9' is not valid UTF-8"),
        ({"class_names": ("a", "")}, r"mine: class ''; allowed: a non-empty name without line breaks"),
        ({"class_names": (" \t", "b")}, r"mine: class ' \\t'; allowed: a non-empty name without line breaks"),
        ({"class_names": ("a\nb", "b")}, r"mine: class 'a\\nb'; allowed: a non-empty name without line breaks"),
        ({"class_names": ("a", "b\n")}, r"mine: class 'b\\n'; allowed: a non-empty name without line breaks"),
        ({"class_names": ("a", "b\u2028c")}, r"mine: class 'b\\u2028c'; allowed: a non-empty name without line breaks"),
        ({"superclass_names": ("",)}, r"mine: superclass ''; allowed: a non-empty name without line breaks"),
        ({"attribute_names": ("a\rb",)}, r"mine: attribute 'a\\rb'; allowed: a non-empty name without line breaks"),
        ({"augmentation": "blur"}, "augmentation 'blur' .* crop, crop_flip, resized_crop"),
    ):
        with pytest.raises(CorsdError, match=message):
            image_data(**changes)


def test_notices_are_lines_of_the_summary_and_warned_of_once_a_process() -> None:
    data = image_data(notices=("two files are not read", "extra/ is not used"))
    assert data.summary().splitlines()[-2:] == ["note: two files are not read", "note: extra/ is not used"]
    with pytest.warns(DataNotice) as seen:
        say(data.name, data.notices)
    assert [str(warning.message) for warning in seen] == [f"mine: {notice}" for notice in data.notices]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # forgets, as every library that uses catch_warnings makes Python do, what was shown
        say(data.name, data.notices)
        with silent():
            say(data.name, ("another",))


@pytest.mark.parametrize("shape", [(700, 3, 5, 7), (3, 1, 300, 300), (1, 2, 1, 1)])
def test_channel_statistics_match_numpy(shape: tuple[int, ...]) -> None:
    images = random_images(*shape)
    mean, std = channel_statistics(images)
    pixels = images.numpy().astype(np.float64) / 255
    assert mean == pytest.approx(pixels.mean((0, 2, 3)), abs=1e-9)
    assert std == pytest.approx(np.maximum(pixels.std((0, 2, 3)), 1 / 255), abs=1e-7)


def test_a_constant_channel_can_still_be_normalised() -> None:
    mean, std = channel_statistics(torch.full((4, 1, 3, 3), 200, dtype=torch.uint8))
    assert mean == pytest.approx((200 / 255,)) and std == (1 / 255,)


def test_resizing_keeps_a_flat_image_flat_and_a_fitting_one_untouched() -> None:
    flat = torch.full((2000, 1, 6, 9), 77, dtype=torch.uint8)
    for side in (3, 20):
        resized = resize_arrays(flat, side)
        assert resized.shape == (2000, 1, side, side) and (resized == 77).all()
    square = random_images(2, 3, 4, 4)
    assert resize_arrays(square, 4) is square


@pytest.mark.slow
def test_importing_the_package_stays_light() -> None:
    heavy = ("torchvision", "sklearn", "PIL", "tqdm", "pandas", "scipy")
    code = "import sys, torch; had = set(sys.modules); import corsd_lib.datasets; new = set(sys.modules) - had\n"
    code += f"print([module for module in {heavy} if module in new])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
