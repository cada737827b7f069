# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 12 How do I use my own images, backbone, loss?
#
# This notebook replaces three parts of a training: the **images**, the **backbone** and
# a **term of the loss**. Each takes a few lines. Each has a trap or two, which are
# shown as well.
#
# **You will learn**
#
# - how to lay out a folder of images, and which augmentation to choose;
# - how to divide your own network into stages, and the training loop in a dozen lines;
# - how to write and test a new method;
# - how to find out whether *your term* made the difference.

# %% [markdown]
# **You need** [01_walkthrough](01_walkthrough.ipynb) and [02_exits](02_exits.ipynb).
# **Run time:** about 1 minute on two CPU cores. **Learning time:** 35 minutes of
# reading, 60 minutes for exercises 1 to 3; exercise 4 is homework. Nothing is
# downloaded: the images are drawn by a program.

# %% [markdown]
# ## Set-up
#
# In a clone with its environment, with the package installed, or on Binder, there is
# nothing to install. On Colab, clone the repository and open the notebook from its
# folder; the next cell then installs the package.

# %%
from importlib.util import find_spec

if find_spec("corsd_lib") is None:
    print("installing corsd_lib from this clone, which takes a few minutes")
    # %pip install --quiet "..[notebooks]"

# %%
import random
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import plotly.express as px
import torch
from IPython.display import display
from PIL import Image, ImageDraw
from scipy.stats import binomtest
from torch import nn
from torch.nn import functional as F

from corsd_lib import METHODS, MultiExitNetwork, TrainConfig, TrainingMonitor
from corsd_lib import build_method, build_network, evaluate, load_dataset, train
from corsd_lib.backbones import SequentialBackbone, StageInfo
from corsd_lib.batches import BatchSource, evaluation_batches
from corsd_lib.course import answered, compare, expect
from corsd_lib.figures import image_strip, template
from corsd_lib.losses import distillation
from corsd_lib.studies.intervals import mean_interval

torch.set_num_threads(1)  # one thread is faster for images this small

# %% [markdown]
# The settings of this notebook.

# %% tags=["parameters"]
epochs = 30  # passes over the training images
drawn_per_class = 40  # training images of each shape
seeds = 3  # trainings of each method in the comparison
seed = 0  # of the drawings and of the first training
run_directory = "runs/12_your_own"  # drawings and trainings

# %% [markdown]
# **How predictions work.** Some cells ask for a prediction before a result. Replace
# `None` by your value and run on: the notebook prints it beside the outcome.

# %% [markdown]
# ## Part 1: your images
#
# Most tools understand this layout: one folder for each split; in it, one folder for
# each class with its image files. Folder names become class names.
#
# ```
# shapes/
#     train/   circle/0.png  circle/1.png ...  hexagon/0.png ...
#     val/     circle/0.png ...
#     test/    circle/0.png ...
# ```
#
# For this notebook a program draws regular polygons of random size, colour, place and
# angle. A circle is a polygon with forty sides.

# %%
SIDES = {"triangle": 3, "square": 4, "pentagon": 5, "hexagon": 6, "circle": 40}


def draw_shape(sides, dice, size=64):
    dark = tuple(dice.randrange(0, 120) for _ in range(3))
    bright = tuple(dice.randrange(130, 250) for _ in range(3))
    image = Image.new("RGB", (size, size), dark)
    radius = dice.uniform(0.28, 0.45) * size
    x, y = (dice.uniform(radius, size - radius) for _ in range(2))
    look = {"rotation": dice.uniform(0, 360), "fill": bright}
    ImageDraw.Draw(image).regular_polygon((x, y, radius), sides, **look)
    return image


# %% tags=["nbval-check-output"]
folder = Path(run_directory) / f"shapes-{drawn_per_class}-a-class-seed-{seed}"
dice = random.Random(seed)
for split, count in {"train": drawn_per_class, "val": 20, "test": 40}.items():
    for name, sides in SIDES.items():
        (folder / split / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            draw_shape(sides, dice).save(folder / split / name / f"{i}.png")
    files = list((folder / split).glob("*/*.png"))
    print(f"{split}: {len(files)} files in {len(SIDES)} folders")

# %% [markdown]
# One call loads them. `image_size` is the side of the square that the network sees: the
# files have 64 pixels, 24 are sufficient. With all three folders `val` is the
# validation split. With `train` and `val` alone, `val` would be the *test* set.

# %% tags=["nbval-check-output"]
shapes = load_dataset(f"folder:{folder}", image_size=24)
splits = (shapes.train, shapes.validation, shapes.test)
print("training, validation, test images:", *(len(split) for split in splits))
print("classes:", ", ".join(shapes.class_names))

# %% [markdown]
# Always look at the input of the network. A wrong crop or swapped channels are obvious
# there and invisible in a loss curve.

# %%
labels = shapes.train.labels
first_two = [(labels == c).nonzero().flatten()[:2] for c in range(shapes.num_classes)]
some = torch.cat(first_two).tolist()
captions = [shapes.class_names[labels[row]] for row in some]
image_strip(shapes.train.images[some], captions, "Two training images of each class")

# %% [markdown]
# ### Choose an augmentation
#
# For a folder the default is a random crop of 40 to 100 % of the image
# (`resized_crop`), as is usual for photographs. A pentagon with two corners cut off is
# no pentagon, so we ask for small shifts and flips (`crop_flip`).
#
# Two questions help. Is a *flipped* image still of its class? (Not so for digits.) Is a
# *part* of it still of its class?

# %% [markdown]
# ### Photographs
#
# - **Pretrained weights.** `network="resnet18"`, `pretrained=True`, `stem="large"` and
#   `image_size=224` start from weights learned on ImageNet (a download). For a few
#   dozen photographs a class this is the usual advice. It was not tested here.
# - **Normalisation** needs no step: the mean and standard deviation are those of your
#   training images, or of ImageNet where the images do not fit into memory.
# - **Unequal classes.** Accuracy counts images: a large class counts more. Compare it
#   with the share of the largest class.
# - **How many test images?** The standard error of an accuracy $a$ is
#   $\sqrt{a (1 - a) / n}$: with 30 images and 70 % it is 8 points.

# %% [markdown]
# ### Train
#
# **Predict:** which two *different* shapes will have the highest relation after
# training?

# %%
my_pair = None  # for example "square with triangle"

# %%
config = TrainConfig(
    data=f"folder:{folder}",
    image_size=24,
    augmentation="crop_flip",
    network="resnet8",
    stem="medium",  # its first convolution has stride 2
    method="corsd",
    method_options={"class_kd": 0.0},  # the terms of the paper
    sampling="plain",
    epochs=epochs,
    batch_size=25,
    probe_size=100,
    probe_every=3,
    seed=seed,
    out=f"{run_directory}/corsd-{drawn_per_class}-a-class-{epochs}-epochs-{seed}",
    resume=True,  # a finished training is opened, not repeated
)

# %%
monitor = TrainingMonitor()
display(monitor)
run = train(config, on_epoch=monitor, progress=False)
monitor(run)

# %% [markdown]
# ![The training monitor after a training on drawn shapes. Left: the accuracy of three
# exits climbs from about a fifth to about two thirds, on validation in jumps. Right:
# the relation matrix of five shapes, in which circle, hexagon and pentagon are related;
# the triangle is related to the square alone. Below: the parts of the
# loss.](images/12_monitor.png)
#
# *The monitor after training.* Accuracy and relation matter here; the terms of the loss
# below are those of [01_walkthrough](01_walkthrough.ipynb). Accuracy starts at about 20
# %, chance for five classes. The training is short: neither training nor validation
# accuracy is flat at the end. Dotted lines are validation accuracy. They jump down to
# chance: probably the running statistics of batch normalisation lag behind with this
# learning rate and small batches. The jumps to chance end as the rate falls.
#
# Validation ends *above* train. The two are not measured alike. Train accuracy is
# averaged over the epoch, on augmented images, while the weights still change.
# Validation is measured after the epoch, on images without augmentation.

# %%
relation = run.probes[epochs].relations[-1]
order = [shapes.class_names.index(name) for name in SIDES]
apart = relation - 2 * torch.eye(len(relation))  # without the diagonal
pair = divmod(apart.argmax().item(), len(relation))
found = " with ".join(sorted(shapes.class_names[c] for c in pair))
compare(
    "Most related", my_pair and " with ".join(sorted(my_pair.split(" with "))), found
)
for c in order:  # by the number of sides
    most = apart[c].argmax().item()
    print(f"{shapes.class_names[c]}: itself {relation[c, c]:.2f},", end=" ")
    print(f"most with another {relation[c, most]:.2f} ({shapes.class_names[most]})")

# %%
images, truth = next(evaluation_batches(shapes, shapes.test, batch_size=200))
with torch.no_grad():
    guess = run.network().eval()(images).logits[-1].argmax(dim=1)

# %%
place = torch.tensor(order).argsort()  # of a class in the order of sides
apart = (place[guess] - place[truth]).abs()
near, wrong = (apart == 1).sum(), (apart > 0).sum()
print(f"{near} of {wrong} mistakes on test go to a neighbour in this order")

# %% [markdown]
# **Answer.** Shapes that look alike are related, mostly neighbours in the order
# triangle, square, pentagon, hexagon, circle. The pentagon is an exception: it is
# related most to the circle, two places away. (The score depends on the order of the
# pair: square with triangle has 0.74, triangle with square 0.68.) Confusions follow the
# order, too: 56 of 68 mistakes (82 %) go to a neighbour. If mistakes fell evenly on all
# pairs, 40 % would: 8 of the 20 ordered pairs are neighbours. Three of five shapes are
# related more to another shape than to themselves: this relation is poor.
#
# **Predict:** which exit has the highest test accuracy?

# %%
my_best = None  # 1, 2 or 3

top1 = [scores["top1"] for scores in run.test["exits"]]
compare("Best exit", my_best, top1.index(max(top1)) + 1)
for k, scores in enumerate(run.test["exits"], 1):
    print(f"exit {k}: {scores['top1']:.0f} % of {run.test['images']} test images")

# %% [markdown]
# **Answer.** Exit 2 in the saved run. If the exits had seen different images, 200 each,
# their difference would be uncertain by about 9 points: 57 against 72 % is more than
# that, 66 against 72 % is not.
#
# The exits have seen the same images, so the comparison can be *paired*. Only those
# images count that exactly one of the two exits gets right. If the exits were equally
# good, these would fall to either side like a fair coin (McNemar's test).


# %%
def paired(right, first, second):  # right[k - 1]: which images exit k gets right
    a, b = right[first - 1], right[second - 1]
    only, lost = (a & ~b).sum().item(), (b & ~a).sum().item()
    p = binomtest(only, only + lost).pvalue
    print(f"only exit {first} right: {only}, only exit {second}: {lost}, p = {p:.1g}")


# %%
with torch.no_grad():
    right = [z.argmax(dim=1) == truth for z in run.network().eval()(images).logits]
paired(right, 2, 1)
paired(right, 2, 3)

# %% [markdown]
# Paired, even 66 against 72 % looks like more than chance: 22 images against 9 (p =
# 0.03). But exit 2 was chosen because it is the best here, so this p is too small. And
# the test is about these images and this network. Whether another *seed* agrees, only
# further trainings tell ([11_compare_methods](11_compare_methods.ipynb)).
#
# **Traps.** All splits need the same class folders; otherwise loading stops and names
# the difference. Grey files become RGB. A photograph with an EXIF orientation is *not*
# rotated. Images of one scene must not be spread over train and test: no program can
# detect that.

# %% [markdown]
# ## Part 2: your backbone
#
# The library needs two facts about each stage: the number of **channels** of its map
# and its **reduction**, the side of the image divided by the side of the map. Exits and
# relation networks take their sizes from these. In a chain with a stem of stride $s_0$
# and stages of strides $s_1, \dots, s_K$, stage $k$ has the reduction
#
# $$R_k = s_0 \prod_{l=1}^{k} s_l$$

# %% [markdown]
# ### Exercise 1, implement: reductions
#
# Return the list of the reductions of the *stages* from the list of all strides, the
# stem's first. The list has one number a stage.


# %% tags=["exercise"]
def reductions(strides):
    return ...


# %% tags=["solution"]
def reductions(strides):
    return torch.tensor(strides).cumprod(dim=0)[1:].tolist()


# %% tags=["check"]
answer = reductions([2, 1, 2, 2])
answered(answer)
expect(len(answer) == 3, f"one number a stage, not {len(answer)}: without the stem")
expect(list(answer) != [1, 2, 2], "strides multiply along the chain")
expect(list(answer) != [1, 2, 4], "the stem is no stage, but it reduces the image, too")
expect(list(answer) == [2, 4, 8], f"{list(answer)} instead of [2, 4, 8]")
expect(list(reductions([1, 1, 2])) == [1, 2], "a stem of stride 1 reduces nothing")
expect(list(reductions([4, 1, 3, 2])) == [4, 12, 24], "strides need not be 2")
print("Exercise 1: correct.")

# %% [markdown]
# A network without residual connections, divided into three stages:


# %%
def conv(channels_in, channels_out, stride):
    layer = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(channels_out), nn.ReLU())


def build_own():
    stages = [conv(16, 16, 1), conv(16, 32, 2), conv(32, 64, 2)]
    declared = [StageInfo(16, 2), StageInfo(32, 4), StageInfo(64, 8)]
    backbone = SequentialBackbone(conv(3, 16, 2), stages, declared, in_channels=3)
    return MultiExitNetwork(backbone, shapes.num_classes)


# %% [markdown]
# Compare what the network *gives* with what it *declares*. A wrong declaration does not
# always raise an error: because exits pool whatever they get, a wrong reduction may go
# unnoticed.
#
# **Predict:** the side of the map of stage 3 for an image of 24 x 24 pixels.

# %% tags=["nbval-check-output"]
my_side = None

torch.manual_seed(seed)
own = build_own()
check = torch.zeros(2, 3, 24, 24)
features = own(check).features
for feature, stage in zip(features, own.backbone.feature_info, strict=True):
    assert feature.shape[1:] == (stage.channels, *2 * [24 // stage.reduction])
compare("Side of the map of stage 3", my_side, features[2].shape[3], " places")

# %% [markdown]
# **Answer.** The stem and stages 2 and 3 halve the side: 24, 12, 6, 3.
#
# ![An image of 24 by 24 pixels and 3 channels passes a stem of stride 2, which gives a
# map of 12 by 12 with 16 channels, and three stages: 12 by 12 with 16 channels, 6 by 6
# with 32, 3 by 3 with 64. Their reductions are 2, 4 and 8, and an exit leaves each of
# them.](images/concept_stages.svg)
#
# `train` builds networks by name. For a network of your own, this loop trains it,
# without checkpoints, resuming and records:


# %%
def fit(network, method, data, epochs, lr=0.1):
    source = BatchSource(data, batch_size=25, augmentation="crop_flip", seed=seed)
    parameters = [*network.parameters(), *method.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=5e-4)
    steps = epochs * len(source.indices(0))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    for epoch in range(epochs):
        for batch in source(epoch):
            loss = method(network(batch.images), batch)["total"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


# %% [markdown]
# `build_method(..., network=own)` also builds the extra modules that a method trains,
# such as CORSD's relation networks.
#
# **Predict:** this network, with deep supervision: which of its exits has the highest
# test accuracy?

# %%
my_own_best = None  # 1, 2 or 3

fit(own.train(), build_method("deep_supervision", network=own), shapes, epochs)
table = evaluate(own.eval(), shapes).table()
top1 = table["top1"].iloc[:3].tolist()  # without the ensemble
compare("Best exit", my_own_best, top1.index(max(top1)) + 1)
columns = {"top1": "accuracy, %", "calibration_error": "calibration error, points"}
whole = table[["macs", "parameters"]].astype("Int64")  # whole numbers, some missing
shown = table[list(columns)].round(1).rename(columns=columns).join(whole)
shown.rename(columns={"macs": "MACs"}).astype(object).fillna("-")

# %% [markdown]
# The calibration error is the mean gap between confidence and accuracy. MACs
# (multiply-accumulates) and parameters are those up to that exit. The ensemble is the
# mean of the probabilities of all exits. The paired counts for exit 1:

# %%
with torch.no_grad():
    right = [z.argmax(dim=1) == truth for z in own(images).logits]
paired(right, 1, 2)
paired(right, 1, 3)

# %% [markdown]
# **Answer.** Exit 1 in the saved run. Against exit 2 its lead looks like more than
# chance (35 images against 16, p = 0.01), against exit 3 it may be chance (30 against
# 17, p = 0.08). Exit 1 was chosen because it is the best here, so both p values are too
# small. In neither training is the deepest exit the best. Possible reasons, neither
# tested: few training images, and a training that is not finished.
#
# ### Backbones of timm
#
# [timm](https://github.com/huggingface/pytorch-image-models) has hundreds of backbones
# that declare their stages. It is optional: `pip install timm`.

# %%
if find_spec("timm"):
    timm = build_network("timm:resnet10t", shapes.num_classes, image_size=24)
    for k, stage in enumerate(timm.backbone.feature_info, 1):
        print(f"resnet10t, exit {k}: {stage.channels} channels, 1/{stage.reduction}")
else:
    print("timm is not installed; the rest of the notebook does not need it")

# %% [markdown]
# At the last stage only one position is left of 24 × 24 pixels. Networks for
# photographs need larger images, such as `image_size=64`.
# `TrainConfig(network="timm:resnet10t")` works, too.

# %% [markdown]
# ## Part 3: your loss
#
# In BYOT the deepest exit is the teacher. Another possible teacher is the mean of all
# exits. The idea: **every** exit learns from the mean of the logits $z^1, \dots, z^K$.
# We call it *consensus*. It is not new: exits that all teach each other are DKS ([arXiv
# 1906.00675](https://arxiv.org/abs/1906.00675)), and an ensemble of branches is the
# teacher in ONE ([arXiv 1806.04606](https://arxiv.org/abs/1806.04606)). With the
# distillation $\mathrm{KD}$ of [02_exits](02_exits.ipynb), in which $\mathrm{sg}$ stops
# the gradient of the teacher:
#
# $$\mathrm{KD}(z, z') = T^2 \, \mathrm{KL}\left( \mathrm{softmax}(\mathrm{sg}(z) / T)
# \,\|\, \mathrm{softmax}(z' / T) \right)$$
#
# $$\bar z = \frac{1}{K} \sum_{k=1}^{K} z^k, \qquad \mathcal{L}_{\mathrm{con}} =
# \frac{1}{K} \sum_{k=1}^{K} \mathrm{KD}(\bar z, z^k)$$


# %%
def consensus_loss(logits, temperature):
    teacher = torch.stack(logits).mean(dim=0)  # (K, B, C) -> (B, C)
    return sum(distillation(teacher, z, temperature) for z in logits) / len(logits)


# %% [markdown]
# Test a loss before you train with it. A network trained with a wrong loss often still
# learns something, and then the mistake is hard to find.
#
# **Predict:** what is the loss if all exits agree? And what should it be for an
# empty batch, where a mean is not a number?

# %% tags=["nbval-check-output"]
my_agree, my_empty = None, None  # numbers

look = {"dtype": torch.double, "requires_grad": True}  # to compare within 1e-6
logits = [torch.randn(6, 10, **look) for _ in range(3)]
agree = round(consensus_loss([logits[0]] * 3, 3.0).item(), 6) + 0.0  # not -0.0
empty = consensus_loss([torch.zeros(0, 10)] * 3, 3.0).item()
compare("All exits agree", my_agree, agree, atol=1e-6)
compare("Empty batch", my_empty, empty, atol=1e-6)
assert abs(agree) < 1e-6 and abs(empty) < 1e-6

# %% [markdown]
# **Answer.** Zero both times; for the empty batch that is a choice of this library. But
# a loss with a mistake may pass this, too. So test the part that does the work,
# $\mathrm{KD}$, in two more ways: compare its **value** with a KL that is written out,
# and ask whether a gradient reaches the **teacher**. A few likely mistakes:


# %%
def kl_by_hand(teacher, student, temperature):  # (B, C), (B, C) -> (); no sg
    p, q = ((z / temperature).softmax(dim=1) for z in (teacher, student))
    return temperature**2 * (p * (p / q).log()).sum(dim=1).mean()


def without_square(teacher, student, temperature):  # the factor T^2 is forgotten
    return distillation(teacher, student, temperature) / temperature**2


def turned_round(teacher, student, temperature):  # teacher and student are exchanged
    return distillation(student, teacher, temperature)


# %%
def tests(kd):  # which tests a distillation passes, within 1e-6
    teacher, student = logits[:2]
    loss = kd(teacher, student, 3.0)
    how = {"allow_unused": True, "materialize_grads": True}  # 0 where nothing arrives
    (gradient,) = torch.autograd.grad(loss, [teacher], **how)
    wanted = kl_by_hand(teacher, student, 3.0)
    return {
        "all agree": abs(kd(teacher, teacher, 3.0).item()) < 1e-6,
        "value": abs((loss - wanted).item()) < 1e-6,
        "teacher": gradient.abs().max().item() < 1e-6,
    }


# %% [markdown]
# **Predict:** which tests does `without_square` fail: `all agree`, `value`, `teacher`?
# And `kl_by_hand`, which does not stop the gradient? (Separate several names by
# commas.)

# %% tags=["nbval-check-output"]
my_square, my_by_hand = None, None

mine = {without_square: my_square, kl_by_hand: my_by_hand}
for kd in (distillation, without_square, turned_round, kl_by_hand):
    failed = ", ".join(name for name, passed in tests(kd).items() if not passed)
    compare(f"{kd.__name__} fails", mine.get(kd), failed or "none")

# %% tags=["nbval-check-output"]
mean = torch.stack(logits).mean(dim=0)
by_hand = sum(kl_by_hand(mean, z, 3.0) for z in logits) / len(logits)
assert abs((consensus_loss(logits, 3.0) - by_hand).item()) < 1e-6
print("the consensus loss has the value of the version written by hand")

# %% [markdown]
# **Answer.** Without $T^2$, only the test *value* fails; without the stop of the
# gradient, only *teacher* fails. All four functions pass *all agree*, which is
# therefore a weak test. *Value* and *teacher* find different mistakes, so make all
# three, with a tolerance far below the loss.
#
# Now the method. Its options are a dataclass whose fields are the **weights of the
# terms, by name**. `loss_terms` returns the terms without weights. The total and the
# metrics follow from the names.

# %%
DeepSupervision = METHODS["deep_supervision"]


@dataclass(frozen=True)
class ConsensusOptions(DeepSupervision.Options):
    """`consensus`: weight of the mean of all exits as their teacher."""

    consensus: float = 1.0
    temperature: float = 3.0


class Consensus(DeepSupervision):
    """Deep supervision, and every exit learns from the mean of all exits."""

    name = "consensus"
    Options = ConsensusOptions

    def loss_terms(self, out, batch):
        term = consensus_loss(out.logits, self.options.temperature)
        return {**super().loss_terms(out, batch), "consensus": term}


METHODS[Consensus.name] = Consensus

# %% [markdown]
# The last line registers it in this kernel. After a restart, run the cell again before
# you open a run of this method.

# %% tags=["nbval-check-output"]
network, batch = own.eval(), next(iter(BatchSource(shapes, batch_size=25)(0)))
parts = build_method("consensus", consensus=2.0)(network(batch.images), batch)
weighted = parts["task"] + parts["exit_ce"] + 2 * parts["consensus"]
assert torch.isclose(parts["total"], weighted)
print("parts:", ", ".join(name for name in parts if name != "total"))
print("the total is their weighted sum")

# %% [markdown]
# ### Exercise 2, implement: another term
#
# A network that is very sure is not always right. Some methods reward uncertainty.
# Write the mean entropy of the predictions, in nats, for `logits` (B, C) with $p_i$
# their softmax. It has to stay finite for a network that is *entirely* sure.
#
# $$H = -\frac{1}{B} \sum_{i=1}^{B} \sum_{c=1}^{C} p_{ic} \log p_{ic}$$


# %% tags=["exercise"]
def mean_entropy(logits):
    return ...


# %% tags=["solution"]
def mean_entropy(logits):
    log_p = F.log_softmax(logits, dim=1)
    return -(log_p.exp() * log_p).sum(dim=1).mean()


# %% tags=["check"]
uniform, sure = torch.zeros(4, 10), 1000 * F.one_hot(torch.arange(4), 10).float()
entropy, wanted = mean_entropy(uniform), torch.tensor(10.0).log()
answered(entropy)
expect(entropy.shape == (), "one number for the whole batch is asked for")
expect(entropy > 0, "entropy is not negative: check the sign")
expect(not torch.isclose(entropy, wanted / 10), "sum over the classes, do not average")
expect(not torch.isclose(entropy, 4 * wanted), "average over the rows, do not sum")
expect(torch.isclose(entropy, wanted), f"{entropy:.2f} instead of log 10 = 2.30")
expect(
    mean_entropy(sure).isfinite(), "not finite for a sure network: use F.log_softmax"
)
expect(mean_entropy(sure).abs() < 1e-5, "a network that is entirely sure has entropy 0")
print("Exercise 2: correct.")

# %% [markdown]
# The entropy of your network before and after training. No information at all would be
# log 5 = 1.61.

# %% tags=["uses-answer"]
images, _ = next(evaluation_batches(shapes, shapes.validation))
with torch.no_grad():
    before = mean_entropy(build_own().eval()(images).logits[-1])
    after = mean_entropy(own.eval()(images).logits[-1])
print(f"deepest exit: {before:.2f} nats untrained, {after:.2f} trained")

# %% [markdown]
# ## Does it help, and is it your term?
#
# Compared with the plain network, two things are new: exits that learn, and your term.
# A third row separates them, the **ablation** with the weight of the term at 0. Each
# row is trained with several seeds, and differences are taken seed by seed, with a 95 %
# interval ([11_compare_methods](11_compare_methods.ipynb) has the formula and a
# picture).
#
# We compare on digits, which are smaller and train faster than the shapes. As long as
# the method may still change, use *validation* images. If you try ten variants and
# report the best on test, you have tuned on test.
#
# **Predict:** by how many points does *consensus* change the deepest exit, compared
# with weight 0?

# %%
my_change = None  # points

# %%
recipe = TrainConfig(
    data="digits",
    per_class=10,
    validation_fraction=0.2,  # 200 images that are not trained on
    epochs=epochs,
    batch_size=25,
    probe_every=0,
    probe_size=20,
    resume=True,
)
rows = {
    "plain": {"method": "probe"},  # the plain network, and exits that watch
    "weight 0": {"method": "consensus", "method_options": {"consensus": 0.0}},
    "consensus": {"method": "consensus"},
}


# %%
def accuracy_of(name, seed):
    place = f"digits-{name.replace(' ', '-')}-{epochs}-epochs-seed-{seed}"
    changes = {"seed": seed, "out": f"{run_directory}/{place}", **rows[name]}
    last = train(replace(recipe, **changes), progress=False).metrics.iloc[-1]
    return [last[f"val_top1.exit{k}"] for k in (1, 2, 3)]


numbers = range(seed, seed + seeds)
accuracy = {
    name: torch.tensor([accuracy_of(name, n) for n in numbers]).double()
    for name in rows
}

# %% [markdown]
# **A trap.** `train` opens what is finished. If you change your loss and run again, you
# see the *old* training. Give each version its own name, or delete its folder.


# %%
def change(after, before):
    differences = (accuracy[after] - accuracy[before])[:, -1].tolist()
    mean, low, high = mean_interval(differences)
    each = ", ".join(f"{d:+.1f}" for d in differences)
    interval = f"[{low:+.1f}, {high:+.1f}]" if low is not None else "no interval"
    print(f"{after} minus {before}: {mean:+.1f} {interval} (by seed: {each})")
    return mean


# %%
_ = change("consensus", "plain")
_ = change("weight 0", "plain")
by_term = change("consensus", "weight 0")
compare("Your term alone", my_change, by_term, " points", atol=0.5, digits=1)

# %%
pairs = [("consensus", "plain"), ("weight 0", "plain"), ("consensus", "weight 0")]
table = []
for after, before in pairs:
    gains = (accuracy[after] - accuracy[before])[:, -1].tolist()
    mean, low, high = mean_interval(gains)
    half = None if low is None else (high - low) / 2
    table.append({"points": mean, "half": half, "seeds": gains})

# %%
table = pd.DataFrame(table).assign(row=range(len(pairs)))
include = sum(abs(t.points) <= t.half for t in table.itertuples())
title = f"{include} of 3 intervals include 0 (deepest exit, 95 % over seeds)"
look = {"height": 320, "template": template(), "title": title, "error_x": "half"}
figure = px.scatter(table, x="points", y="row", **look)
figure.update_traces(marker_size=10, marker_color="grey")
figure.add_vline(x=0, line_width=1)
each = table.explode("seeds")  # a row for each seed, drawn below its interval
rings = {"symbol": "circle-open", "color": "grey", "size": 7}
figure.add_scatter(x=each["seeds"], y=each["row"] + 0.2, mode="markers", marker=rings)
said = [f"{after} minus {before}" for after, before in pairs]
figure.update_yaxes(title="", tickvals=table["row"], ticktext=said, range=[2.5, -0.5])
axis = "difference in validation accuracy (points); rings: single seeds"
figure.update_xaxes(title=axis).update_layout(showlegend=False)

# %% [markdown]
# **Answer.** No effect of the term was detected (+2.2 [-1.6, 6.0]), and no gain over
# the plain network either (0.0 [-1.2, 1.2]). The row `weight 0` splits the total of 0.0
# points into two parts: -2.2 for the exits and +2.2 for the term. All three intervals
# include 0, so even this split may be chance. Without the row with weight 0 you could
# not separate the term from the exits.
#
# Your images, your backbone and your term together, in one training:

# %%
torch.manual_seed(seed)
whole = build_own()
fit(whole.train(), build_method("consensus", network=whole), shapes, epochs)
top1 = evaluate(whole.eval(), shapes).table()["top1"].iloc[:3]
print("consensus, own backbone, shapes:", ", ".join(f"{t:.0f} %" for t in top1))

# %% [markdown]
# The parts fit together. In Part 2 the same network reached 65.0, 55.5 and 58.5 % with
# exits alone: here every exit is less accurate with the term. With one seed each that
# is no finding, and no reason to keep the term, either.

# %% [markdown]
# ### The same as a study
#
# `corsd compare` makes this comparison on any data set, with records and tables;
# [11_compare_methods](11_compare_methods.ipynb) shows how to read one. It reports test
# accuracy, and its trainings run in other processes. `deep_supervision` is the row with
# weight 0. Put `consensus_loss`, the class and their imports into a module such as
# `my_methods.py` and call
#
# ```
# PYTHONPATH=. CORSD_METHODS=my_methods corsd compare runs/consensus \
#   --methods baseline deep_supervision consensus --seeds 0 1 2 \
#   --data digits --per-class 10 --epochs 30
# ```

# %% [markdown]
# ## Answer: how do I use my own images, backbone, loss?
#
# > **What we found.** You replace each with a few lines, and all three fit together.
# > Images go into one folder for each split and class. A backbone declares channels and
# > reduction of its stages. A loss is a class with named weights. On digits the
# > example, consensus, changed the deepest exit by 0.0 points [-1.2, 1.2] against the
# > plain network: its exits alone by -2.2 [-7.2, 2.9], and the term by 2.2 [-1.6, 6.0].
# >
# > **How sure we are.** We are sure that the recipes run on drawn shapes. With three
# > seeds it is open whether consensus helps.
# >
# > **What it does not show.** We used no photographs and no pretrained weights.

# %% [markdown]
# ## Exercise 3, predict and experiment: a term of your own
#
# Give `mean_entropy` a class like `Consensus`. Its term is minus the entropy, averaged
# over all exits; a positive weight then rewards uncertainty. Predict what *weight 1*
# changes in validation accuracy and in calibration error: `+` or `-`, or `0` if you
# expect that the interval of three seeds will include 0. Train three seeds with weights
# 0, 0.1 and 1 (nine trainings, one to two minutes), and report the paired differences
# to weight 0. `accuracy_of` returns accuracies only: let your function
# return the run. `evaluate(run, split="validation").table()["calibration_error"]` gives
# the second measure.
#
# First test that the term is in the loss.

# %% [markdown]
# (Hint: two mistakes are common. If `loss_terms` multiplies by the weight, it counts
# twice: the library multiplies, too. And two weights in one folder are one training:
# `train` opens what is finished.)

# %%
my_sign_accuracy, my_sign_calibration = None, None  # at weight 1: "+", "-" or "0"
# Your class and your trainings go here. Call `compare` with your two signs.

# %% [markdown] tags=["solution"]
# *One solution.* The method:
#
# ```python
# @dataclass(frozen=True)
# class DoubtOptions(DeepSupervision.Options):
#     doubt: float = 1.0
#
#
# class Doubt(DeepSupervision):
#     name = "doubt"
#     Options = DoubtOptions
#
#     def loss_terms(self, out, batch):
#         entropy = sum(mean_entropy(z) for z in out.logits) / len(out.logits)
#         return {**super().loss_terms(out, batch), "doubt": -entropy}
#
#
# METHODS[Doubt.name] = Doubt
# assert "doubt" in build_method("doubt")(network(batch.images), batch)
# ```

# %% [markdown] tags=["solution"]
# Nine trainings, measured on validation images:
#
# ```python
# from corsd_lib.studies.intervals import with_interval
#
#
# def measures_of(weight, seed):  # of the deepest exit, on validation images
#     place = f"{run_directory}/digits-doubt-{weight}-{epochs}-epochs-seed-{seed}"
#     look = {"method": "doubt", "method_options": {"doubt": weight}, "seed": seed}
#     run = train(replace(recipe, out=place, **look), progress=False)
#     table = evaluate(run, split="validation").table()
#     return table.loc["exit3", ["top1", "calibration_error"]].tolist()
#
#
# weights = (0.0, 0.1, 1.0)
# found = {w: torch.tensor([measures_of(w, n) for n in numbers]) for w in weights}
# for weight in weights[1:]:
#     for k, name in enumerate(("accuracy", "calibration error")):
#         mean, low, high = mean_interval((found[weight] - found[0.0])[:, k].tolist())
#         print(weight, name, with_interval(mean, low, high, sign="+"))
#         sign = "0" if low <= 0 <= high else "+" if low > 0 else "-"
#         if weight == 1:
#             compare(name, (my_sign_accuracy, my_sign_calibration)[k], sign)
# ```

# %% [markdown] tags=["solution"]
# *A good answer* registers the class under a new name, checks that the total is the
# weighted sum, gives each weight its own run directory, and reports six paired
# differences with intervals. With two weights tried, it says so.

# %% [markdown]
# ## Exercise 4, explain (open)
#
# Plan a comparison for images of your own on one page: the question, the classes and
# how images of one scene are kept in one split, the augmentation, the rows (with an
# ablation), the number of seeds, the measure, and what result would make you drop the
# idea. Fix it before you train.

# %% [markdown] tags=["answer"]
# *Write your plan here.*

# %% [markdown] tags=["solution"]
# *A good plan* names the primary measure and the exit before training, has a baseline
# with equal images and equal tuning, at least three seeds a row (five if differences of
# a point matter), and a stopping rule. It states what will not be concluded.

# %% [markdown]
# ## Where next
#
# - Put ten photographs of each of three things into folders and run part 1 on them,
#   with pretrained weights.
# - `RelationExplorer(run)`: the relation of your shapes;
#   [07_relation_explorer](07_relation_explorer.ipynb) is a guide.
# - The [notes for contributors](../CONTRIBUTING.md) say what a method needs to become
#   part of the library.
