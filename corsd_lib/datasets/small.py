"""Small data sets in memory: the digits of scikit-learn, CIFAR-10 and CIFAR-100."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from corsd_lib.datasets.arrays import ImageArrays, ImageData, as_arrays, channel_statistics, resize_arrays
from corsd_lib.datasets.download import download as fetch
from corsd_lib.datasets.npz import ArrayContent, read_npz
from corsd_lib.datasets.statistics import cached_statistics
from corsd_lib.errors import CorsdError

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10

DIGITS_TRAIN_PER_CLASS = 100

CIFAR10_SUPERCLASSES: dict[str, tuple[str, ...]] = {
    "animal": ("bird", "cat", "deer", "dog", "frog", "horse"),
    "vehicle": ("airplane", "automobile", "ship", "truck"),
}
# Official coarse labels, in official order (Krizhevsky 2009, the table on the data set's page).
CIFAR100_SUPERCLASSES: dict[str, tuple[str, ...]] = {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}
_SUPERCLASSES = {"cifar10": CIFAR10_SUPERCLASSES, "cifar100": CIFAR100_SUPERCLASSES}


def cifar_classes(name: str) -> tuple[tuple[str, ...], tuple[str, ...], Tensor]:
    """Class names, superclass names and superclass_of_class, int64 (C,), of "cifar10" or "cifar100".

    Class names are official, and so are the superclasses of CIFAR-100; those of CIFAR-10 (animal, vehicle) are ours.
    """
    groups = _SUPERCLASSES[name]
    group_of = {member: g for g, members in enumerate(groups.values()) for member in members}
    class_names = tuple(sorted(group_of))  # both official label orders are alphabetical
    return class_names, tuple(groups), torch.tensor([group_of[c] for c in class_names])


def load_digits(image_size: int | None) -> ImageData:
    """scikit-learn's 1,797 handwritten digits, uint8 (N, 1, 8, 8): 1,000 train (100 of each class), 797 test.

    The split is ours, and the same for every seed. The images are resized bilinearly if `image_size` is not 8 (default: 8).
    Source: Alpaydin and Kaynak, UCI 1998 (the test part of the optical digits).
    """
    from sklearn import datasets

    pixels, labels = datasets.load_digits(return_X_y=True)  # 0..16
    images = torch.from_numpy(np.rint(pixels * 255 / 16).astype(np.uint8)).reshape(-1, 1, 8, 8)
    side = image_size or images.shape[-1]
    images, digits = resize_arrays(images, side), torch.from_numpy(labels).long()
    in_train = _digits_in_train(labels)
    train = as_arrays(images[in_train], digits[in_train])
    test = as_arrays(images[~in_train], digits[~in_train])
    names = tuple(map(str, range(10)))
    mean, std = channel_statistics(train.images)
    return ImageData("digits", train, test, names, names, torch.arange(10), mean, std, side, "crop")


def _digits_in_train(labels: np.ndarray) -> Tensor:
    """Mask of the training images, bool (1797,): 100 of each class."""
    # The numbers of RandomState never change (NEP 19); those of newer generators may.
    order = np.random.RandomState(0).permutation(len(labels))
    in_train = torch.zeros(len(labels), dtype=torch.bool)
    for digit in range(10):
        in_train[order[labels[order] == digit][:DIGITS_TRAIN_PER_CLASS]] = True
    return in_train


def load_cifar(name: str, root: Path, image_size: int | None, download: bool) -> ImageData:
    """CIFAR-10 or CIFAR-100 ("cifar10", "cifar100"): 50,000 train and 10,000 test images, uint8 (N, 3, S, S), where S is
    `image_size` (32 by default).

    Reads `<root>/<name>.npz`, in the layout of `read_npz`, if it exists. If the file has no `class_names`, the official names
    are used. If there is no such file, reads torchvision's folder in `root`; torchvision checks its md5 sums. With `download`
    that folder is downloaded first if it is not complete. Raises CorsdError if neither file nor folder exists, if a file is
    corrupt, and if an .npz file has other class names than the official ones but no superclasses. Source: Krizhevsky, 2009.
    """
    file = root / f"{name}.npz"
    content = read_npz(file) if file.exists() else _read_torchvision(name, root, download)
    class_names, superclass_names, superclass_of_class = cifar_classes(name)
    if content.class_names is None:
        content = content._replace(class_names=class_names)
    if content.class_names != class_names and content.superclass_names is None:
        raise CorsdError(
            f"{file}: class_names are not those of {name}; allowed: the official ones, or others if the file has superclasses"
        )
    side = image_size or 32
    as_stored = content.train.images.shape[2:] == (side, side)
    content = content.resized(file, image_size, side)
    images = content.train.images
    mean, std = cached_statistics(images, content.checksum, root) if as_stored else channel_statistics(images)
    return ImageData(
        name,
        content.train,
        content.test,
        class_names=content.class_names or class_names,
        superclass_names=content.superclass_names or superclass_names,
        superclass_of_class=superclass_of_class if content.superclass_of_class is None else content.superclass_of_class,
        mean=mean,
        std=std,
        image_size=side,
        augmentation="crop_flip",
        validation=content.validation,
        notices=content.notices,
    )


def _read_torchvision(name: str, root: Path, download: bool) -> ArrayContent:
    from torchvision import datasets

    dataset_class = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    folder = root / dataset_class.base_folder
    command = f"corsd data {name} --download"
    if not download and not folder.is_dir():
        raise CorsdError(f"{name} is neither at {root / name}.npz nor in {folder}; fetch it with: {command}")
    try:
        if download and not _is_complete(dataset_class, root):
            fetch(
                dataset_class.url, root / dataset_class.filename, dataset_class.tgz_md5
            )  # the download of torchvision cannot be resumed
        train, test = dataset_class(root, train=True, download=download), dataset_class(root, train=False)
    except (RuntimeError, OSError) as error:  # URLError is an OSError
        problem = str(error).removesuffix(" You can use download=True to download it").rstrip(".")
        raise CorsdError(f"{name} in {folder} cannot be used: {problem}. Delete it and fetch it with: {command}") from error
    checksum = "-".join(md5 for _, md5 in dataset_class.train_list)  # torchvision has just compared the files with them
    return ArrayContent(_as_split(train), _as_split(test), checksum, class_names=tuple(train.classes))


def _is_complete(dataset_class: type[CIFAR10], root: Path) -> bool:
    try:
        dataset_class(root)
    except RuntimeError:  # missing, or with another md5
        return False
    return True


def _as_split(dataset: CIFAR10) -> ImageArrays:
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()  # (N, H, W, 3) -> (N, 3, H, W)
    return as_arrays(images, dataset.targets)
