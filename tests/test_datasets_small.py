"""CIFAR-10 and CIFAR-100: torchvision's files (small ones in the true layout) and an .npz below the root."""

from __future__ import annotations

import hashlib
import http.server
import json
import pickle
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, CIFAR100

from corsd_lib.datasets import ImageArrays, load_dataset, statistics
from corsd_lib.datasets.arrays import channel_statistics
from corsd_lib.datasets.small import CIFAR10_SUPERCLASSES, CIFAR100_SUPERCLASSES, cifar_classes
from corsd_lib.errors import CorsdError

PER_CLASS = 2


def write_pickle(path: Path, content: dict) -> list[str]:
    """Write it and return what torchvision's class attributes want: [file name, md5]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return [path.name, hashlib.md5(path.read_bytes()).hexdigest()]


def batch(classes: int, key: str, seed: int) -> dict:
    data = np.random.default_rng(seed).integers(0, 256, (classes * PER_CLASS, 3072), dtype=np.uint8)
    return {"data": data, key: list(range(classes)) * PER_CLASS}


@pytest.fixture
def cifar100_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cifar-100-python"
    names = list(cifar_classes("cifar100")[0])
    monkeypatch.setattr(CIFAR100, "train_list", [write_pickle(folder / "train", batch(100, "fine_labels", 0))])
    monkeypatch.setattr(CIFAR100, "test_list", [write_pickle(folder / "test", batch(100, "fine_labels", 1))])
    name, md5 = write_pickle(folder / "meta", {"fine_label_names": names})
    monkeypatch.setattr(CIFAR100, "meta", {"filename": name, "key": "fine_label_names", "md5": md5})
    return tmp_path


@pytest.fixture
def cifar10_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cifar-10-batches-py"
    files = [write_pickle(folder / f"data_batch_{i}", batch(10, "labels", i)) for i in range(1, 6)]
    monkeypatch.setattr(CIFAR10, "train_list", files)
    monkeypatch.setattr(CIFAR10, "test_list", [write_pickle(folder / "test_batch", batch(10, "labels", 6))])
    name, md5 = write_pickle(folder / "batches.meta", {"label_names": list(cifar_classes("cifar10")[0])})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": md5})
    return tmp_path


def test_cifar100_reads_torchvisions_pickles(cifar100_root: Path) -> None:
    data = load_dataset("cifar100", cifar100_root)
    assert isinstance(data.train, ImageArrays) and isinstance(data.test, ImageArrays)
    raw = batch(100, "fine_labels", 0)["data"].reshape(-1, 3, 32, 32)  # the file holds channel, row, column
    assert np.array_equal(data.train.images.numpy(), raw)
    assert data.train.images.is_contiguous()
    assert data.train.labels.tolist() == list(range(100)) * PER_CLASS
    assert data.train.index.tolist() == list(range(200))
    assert np.array_equal(data.test.images.numpy(), batch(100, "fine_labels", 1)["data"].reshape(-1, 3, 32, 32))
    assert data.mean == pytest.approx(raw.mean((0, 2, 3)) / 255) and data.std == pytest.approx(raw.std((0, 2, 3)) / 255)
    assert (data.augmentation, data.image_size, data.channels) == ("crop_flip", 32, 3)
    assert repr(data).endswith("100 classes in 20 superclasses, 3x32x32)")
    assert load_dataset("cifar100", cifar100_root, image_size=16).train.images.shape[2:] == (16, 16)


def test_cifar10_has_five_batches_and_two_superclasses(cifar10_root: Path) -> None:
    data = load_dataset("cifar10", cifar10_root)
    assert isinstance(data.train, ImageArrays)
    for i in range(1, 6):
        rows = data.train.images[(i - 1) * 20 : i * 20].numpy()
        assert np.array_equal(rows, batch(10, "labels", i)["data"].reshape(-1, 3, 32, 32))
    group = {name: data.superclass_names[g] for name, g in zip(data.class_names, data.superclass_of_class, strict=True)}
    assert group == {
        "airplane": "vehicle", "automobile": "vehicle", "bird": "animal", "cat": "animal", "deer": "animal",
        "dog": "animal", "frog": "animal", "horse": "animal", "ship": "vehicle", "truck": "vehicle",
    }  # fmt: skip


def test_class_tables_are_complete() -> None:
    for table, sizes in ((CIFAR10_SUPERCLASSES, {6, 4}), (CIFAR100_SUPERCLASSES, {5})):
        members = [member for group in table.values() for member in group]
        assert len(members) == len(set(members)) and {len(group) for group in table.values()} == sizes
    names, groups, of_class = cifar_classes("cifar100")
    assert len(names) == 100 and len(groups) == 20 and torch.bincount(of_class).tolist() == [5] * 20
    # A few by hand, with their official numbers.
    assert (names[0], names[57], names[99]) == ("apple", "pear", "worm")
    assert groups[int(of_class[names.index("lawn_mower")])] == "vehicles_2"
    assert groups[int(of_class[names.index("worm")])] == "non-insect_invertebrates"


def test_absent_data_says_where_it_looked_and_what_to_do(tmp_path: Path) -> None:
    for name, folder in (("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")):
        with pytest.raises(CorsdError) as caught:
            load_dataset(name, tmp_path)
        message = str(caught.value)
        assert str(tmp_path / f"{name}.npz") in message and str(tmp_path / folder) in message
        assert f"corsd data {name} --download" in message


def test_a_file_with_another_checksum_is_refused(cifar100_root: Path) -> None:
    path = cifar100_root / "cifar-100-python" / "train"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorsdError, match=r"cifar-100-python cannot be used: .*corrupted\. Delete it and fetch it"):
        load_dataset("cifar100", cifar100_root)


def test_npz_below_the_root_comes_first(cifar100_root: Path) -> None:
    rng = np.random.default_rng(0)
    names, _, of_class = cifar_classes("cifar100")
    arrays = {
        "train_x": rng.integers(0, 256, (100, 32, 32, 3), dtype=np.uint8),
        "train_y": np.arange(100, dtype=np.uint8),
        "test_x": rng.integers(0, 256, (1, 32, 32, 3), dtype=np.uint8),
        "test_y": np.array([99], dtype=np.uint8),
    }
    np.savez(cifar100_root / "cifar100.npz", **arrays)
    data = load_dataset("cifar100", cifar100_root)
    assert data.name == "cifar100" and isinstance(data.train, ImageArrays)
    assert np.array_equal(data.train.images.permute(0, 2, 3, 1).numpy(), arrays["train_x"])
    assert data.class_names == names and torch.equal(data.superclass_of_class, of_class)
    # Another order of classes with no superclasses of its own would get the wrong ones.
    np.savez(cifar100_root / "cifar100.npz", **arrays, class_names=np.array(names[::-1]))
    with pytest.raises(CorsdError, match="class_names are not those of cifar100"):
        load_dataset("cifar100", cifar100_root)


def npz_arrays(side: int = 32, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "train_x": rng.integers(0, 256, (100, 32, side, 3), dtype=np.uint8),
        "train_y": np.arange(100, dtype=np.uint8),
        "test_x": rng.integers(0, 256, (1, 32, side, 3), dtype=np.uint8),
        "test_y": np.array([99], dtype=np.uint8),
    }


def test_images_that_are_not_square_are_not_squeezed_unasked(tmp_path: Path) -> None:
    np.savez(tmp_path / "cifar100.npz", **npz_arrays(side=40))
    with pytest.raises(CorsdError, match=r"cifar100\.npz: images are 32x40; allowed: square ones, or give image_size"):
        load_dataset("cifar100", tmp_path)
    assert load_dataset("cifar100", tmp_path, image_size=32).image_size == 32


def test_validation_arrays_of_a_known_set_are_used(tmp_path: Path) -> None:
    arrays = npz_arrays()
    np.savez(tmp_path / "cifar100.npz", **arrays, val_x=arrays["test_x"], val_y=arrays["test_y"])
    data = load_dataset("cifar100", tmp_path)
    assert data.validation is not None and data.validation.labels.tolist() == [99]


# ------------------------------------------------------------------------------------------------ kept statistics


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of every computation of statistics."""
    calls: list[int] = []

    def counted(images: torch.Tensor) -> statistics.Statistics:
        calls.append(len(images))
        return channel_statistics(images)

    monkeypatch.setattr(statistics, "channel_statistics", counted)
    return calls


@pytest.mark.parametrize("source", ["torchvision", "npz"])
def test_statistics_are_computed_once(cifar100_root: Path, computed: list[int], source: str) -> None:
    if source == "npz":
        np.savez(cifar100_root / "cifar100.npz", **npz_arrays())
    first, second = (load_dataset("cifar100", cifar100_root) for _ in range(2))
    assert len(computed) == 1
    assert (first.mean, first.std) == (second.mean, second.std) == channel_statistics(first.train.images)  # type: ignore[union-attr]


def test_other_images_never_get_kept_statistics(tmp_path: Path, computed: list[int]) -> None:
    arrays = npz_arrays()
    for change in range(4):  # a bit, then two images in turn, then all
        if change == 1:
            arrays["train_x"][7, 3, 3, 1] ^= 1
        if change == 2:
            arrays["train_x"][[0, 1]] = arrays["train_x"][[1, 0]]
        np.savez(tmp_path / "cifar100.npz", **(npz_arrays(seed=5) if change == 3 else arrays))
        data = load_dataset("cifar100", tmp_path)
        assert (data.mean, data.std) == channel_statistics(data.train.images)  # type: ignore[union-attr]
        assert len(computed) == change + 1
    resized = load_dataset("cifar100", tmp_path, image_size=8)
    assert (resized.mean, resized.std) == channel_statistics(resized.train.images)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        '{"KEY": 3}',
        '{"KEY": [[0.5, 0.5], [0.5, 0.5]]}',
        '{"KEY": [[NaN, 0.5, 0.5], [1, 1, 1]]}',
        "[" * 99_999,
        '{"KEY": [[BIG, 1, 1], [1, 1, 1]]}',
    ],
)
def test_a_damaged_file_of_statistics_is_passed_over(tmp_path: Path, content: str) -> None:
    np.savez(tmp_path / "cifar100.npz", **npz_arrays())
    right = load_dataset("cifar100", tmp_path)
    (key,) = json.loads((tmp_path / "statistics.json").read_text())
    (tmp_path / "statistics.json").write_text(content.replace("KEY", key).replace("BIG", "1" + "0" * 400))
    data = load_dataset("cifar100", tmp_path)
    assert (data.mean, data.std) == (right.mean, right.std)


def test_a_folder_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, computed: list[int]
) -> None:
    np.savez(tmp_path / "cifar100.npz", **npz_arrays())
    (tmp_path / "statistics.json").mkdir()  # a rename onto it fails, for root too
    assert load_dataset("cifar100", tmp_path).mean == load_dataset("cifar100", tmp_path).mean and len(computed) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"cifar100.npz", "statistics.json"}


def test_a_folder_that_is_gone_when_they_are_computed_is_not_made_anew(tmp_path: Path) -> None:
    images = torch.randint(256, (4, 1, 2, 2), dtype=torch.uint8)
    assert statistics.cached_statistics(images, "a", tmp_path / "gone") == channel_statistics(images)
    assert not (tmp_path / "gone").exists()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_download_goes_on_and_is_checked_before_it_is_unpacked(
    cifar100_root: Path, served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url = served
    archive = folder / "cifar-100-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(cifar100_root / "cifar-100-python", "cifar-100-python")
    monkeypatch.setattr(CIFAR100, "url", f"{url}/{archive.name}")
    monkeypatch.setattr(CIFAR100, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    root = tmp_path / "fresh" / "root"
    root.mkdir(parents=True)
    (root / f"{archive.name}.part").write_bytes(archive.read_bytes()[:1000])  # of a download that broke off
    data = load_dataset("cifar100", root, download=True)
    assert len(data.train) == 200 and not (root / f"{archive.name}.part").exists()
    archive.rename(folder / "elsewhere")
    assert len(load_dataset("cifar100", root, download=True).train) == 200  # what is whole is not fetched again
    archive = (folder / "elsewhere").rename(archive)
    monkeypatch.setattr(CIFAR100, "tgz_md5", "0" * 32)
    with pytest.raises(CorsdError, match=r"md5 .*; it is corrupt .*: download it again"):
        load_dataset("cifar100", tmp_path / "other", download=True)
    monkeypatch.setattr(CIFAR100, "url", f"{url}/absent.tar.gz")
    with pytest.raises(CorsdError, match="404"):
        load_dataset("cifar100", tmp_path / "third", download=True)
