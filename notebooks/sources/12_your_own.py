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
# So far everything came with the library. Now the three things that you will want to replace: the **images**, the
# **backbone**, and a **term of the loss**. Each takes a few lines. Each has a trap or two, and we look at those as well.
#
# **You will learn**
#
# - how to lay out a folder of images so that one call loads it, and what to decide about it;
# - how to cut your own network into stages that declare themselves, and the whole training loop in a dozen lines;
# - how to write a new method: one function, one class, one line that registers it;
# - how to find out whether it was *your term* that made the difference, and not something that came along with it.
#
# **You need** [the walkthrough](01_walkthrough.ipynb) and [02_exits](02_exits.ipynb). **Time:** the notebook runs in about
# half a minute on two CPU cores; reading and the two exercises take 40 minutes. Nothing is downloaded: we draw the images
# ourselves.

# %% [markdown]
# ## Set-up
#
# In a clone, in an installed package and on Binder everything is there already. On Colab, clone the repository first and
# open this notebook's folder.

# %%
from importlib.util import find_spec

if find_spec("corsd_lib") is None:
    print("installing corsd_lib from this clone, which takes some minutes")
    # %pip install --quiet "..[notebooks]"

# %%
import random
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from IPython.display import display
from PIL import Image, ImageDraw
from scipy import stats
from torch import nn
from torch.nn import functional as F

from corsd_lib import METHODS, TrainConfig, TrainingMonitor, build_method, build_network, evaluate, load_dataset, train
from corsd_lib.backbones import SequentialBackbone, StageInfo
from corsd_lib.batches import BatchSource, evaluation_batches
from corsd_lib.figures import exit_accuracy_bars, image_strip, relation_heatmap
from corsd_lib.losses import distillation
from corsd_lib.methods.classic import DeepSupervision, DeepSupervisionOptions
from corsd_lib.network import MultiExitNetwork

torch.set_num_threads(1)  # the images are tiny: a second thread would wait more than it works

# %% [markdown]
# These are the knobs of this notebook.

# %% tags=["parameters"]
epochs = 30  # how often each training image is seen
drawn_per_class = 40  # training images of each shape
seeds = 3  # trainings of each method in the comparison
seed = 0  # of the drawings and of the first training
run_directory = "runs/12_your_own"  # drawings and trainings

# %% [markdown]
# ## Part 1: your images
#
# The layout is the one that most tools understand: a folder for each split, in it a folder for each class, in it the image
# files. The names of the folders become the names of the classes.
#
# ```
# shapes/
#     train/   circle/0.png  circle/1.png ...  hexagon/0.png ...
#     val/     circle/0.png ...
#     test/    circle/0.png ...
# ```
#
# We have no photographs at hand, so we draw: regular polygons of any size and colour, anywhere, turned by any angle. A circle
# is a polygon with forty sides.

# %%
SIDES = {"triangle": 3, "square": 4, "pentagon": 5, "hexagon": 6, "circle": 40}


def draw_shape(sides, dice, size=64):
    dark, bright = ([dice.randrange(low, low + 120) for _ in range(3)] for low in (0, 130))
    image = Image.new("RGB", (size, size), tuple(dark))
    radius = dice.uniform(0.28, 0.45) * size
    x, y = (dice.uniform(radius, size - radius) for _ in range(2))
    polygon = {"n_sides": sides, "rotation": dice.uniform(0, 360), "fill": tuple(bright)}
    ImageDraw.Draw(image).regular_polygon((x, y, radius), **polygon)
    return image


# %% [markdown]
# Now the folders. The seed is part of the folder's name: other drawings, another folder.

# %% tags=["nbval-check-output"]
folder, dice = Path(run_directory) / f"shapes-{drawn_per_class}-a-class-seed-{seed}", random.Random(seed)
for split, count in {"train": drawn_per_class, "val": 20, "test": 40}.items():
    for name, sides in SIDES.items():
        (folder / split / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            draw_shape(sides, dice).save(folder / split / name / f"{i}.png")
    print(f"{split}: {len(list((folder / split).glob('*/*.png')))} files in {len(SIDES)} folders")

# %% [markdown]
# One call loads them. `image_size` is the side of the square that the network will see: our files are 64 pixels wide, 24
# will do. With all three folders `val` is the validation split; with `train` and `val` alone it would be the *test* set.

# %% tags=["nbval-check-output"]
shapes = load_dataset(f"folder:{folder}", image_size=24)
print(f"{len(shapes.train)} to learn from, {len(shapes.validation)} to watch, {len(shapes.test)} to be tested on")
print("classes:", ", ".join(shapes.class_names))

# %% [markdown]
# Always look at what the network will be given. A wrong crop or swapped colours are seen at once, and in no loss curve.

# %%
some = [row for c in range(shapes.num_classes) for row in (shapes.train.labels == c).nonzero().flatten()[:2].tolist()]
captions = [shapes.class_names[shapes.train.labels[row]] for row in some]
image_strip(shapes.train.images[some], captions, "Two training images of each class")

# %% [markdown]
# **What you have to decide.** For a folder the default augmentation is a random crop of 40 to 100 % of the image
# (`resized_crop`), as is usual for photographs. A pentagon with two corners cut off is no pentagon. So we ask for small
# shifts and flips (`crop_flip`) instead. Two questions help: *is a flipped image still of its class?* (not so for digits)
# and *is a part of it still of its class?*
#
# **Predict:** CORSD will learn how related two shapes are. Which two *different* shapes will be the most related, and which the
# least?

# %%
config = TrainConfig(
    data=f"folder:{folder}",
    image_size=24,
    augmentation="crop_flip",
    network="resnet8",
    stem="medium",  # its first convolution has stride 2: a quarter of the work
    method="corsd",
    method_options={"class_kd": 0.0},  # the terms of the paper, as in the walkthrough
    sampling="plain",
    epochs=epochs,
    batch_size=25,
    probe_size=100,
    probe_every=3,
    seed=seed,
    out=f"{run_directory}/shapes-corsd-{drawn_per_class}-a-class-{epochs}-epochs-seed-{seed}",
    resume=True,  # a finished training is opened, not repeated
)

# %%
monitor = TrainingMonitor()
display(monitor)
run = train(config, on_epoch=monitor, progress=False)
monitor(run)

# %% [markdown]
# ![The training monitor after a training on drawn shapes. Left: the accuracy of three exits climbs from about a fifth to
# about two thirds, on validation in jumps. Right: the relation matrix of five shapes, in which circle, hexagon and pentagon
# are related and the triangle stands apart. Below: the parts of the loss.](images/12_monitor.png)
#
# *The monitor as a picture.* It starts at about 20 %, which is guessing among five classes. The dotted lines are accuracy
# on the validation images; they jump, since there are 100 of them only and the learning rate is high for most of the time.
# Nothing in the training knows that these are our own images.
#
# Here is the relation of the deepest exit once more, with the shapes in the order of their sides.

# %%
relation = run.probes[epochs].relations[-1]
order = [shapes.class_names.index(name) for name in SIDES]
apart = relation - 2 * torch.eye(len(relation))  # the diagonal is out of the competition
first, second = divmod(apart.argmax().item(), len(relation))
pair = f"{shapes.class_names[first]} with {shapes.class_names[second]}"
relation_heatmap(relation, shapes.class_names, f"Most related of different shapes: {pair}", order=order)

# %% [markdown]
# Was it your pair? Nobody told the network how many sides a shape has, nor that five is next to six. If the relation falls off
# from the diagonal in this order, it has found that out by itself.

# %%
for k, scores in enumerate(run.test["exits"], 1):
    print(f"exit {k}: {scores['top1']:.0f} % of {run.test['images']} test images right")

# %% [markdown]
# **Traps with folders.** All splits need the *same* class folders; otherwise loading stops and says which differ. Grey
# files become RGB. A photograph whose orientation is noted in its EXIF tag is *not* turned. And images of the same scene
# must not be spread over train and test: no program can see that, only you.

# %% [markdown]
# ## Part 2: your backbone
#
# The library needs to know two things about each stage: how many **channels** its map has, and its **reduction**, the side of
# the image divided by the side of the map. Exits and relation networks size themselves from that. This is a network without
# residual connections:


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
# **Predict:** the stem has stride 2, the stages 1, 2 and 2. How large are the maps of a 24 x 24 image? Then let the network
# say what it *gives*, and compare with what it *declares*. A wrong declaration would not always raise an error: an exit might
# silently shrink a map to nearly nothing.

# %% tags=["nbval-check-output"]
torch.manual_seed(seed)
own = build_own()
features = own(torch.zeros(2, 3, 24, 24)).features
for k, (feature, stage) in enumerate(zip(features, own.backbone.feature_info, strict=True), 1):
    assert feature.shape[1:] == (stage.channels, 24 // stage.reduction, 24 // stage.reduction)
    print(f"stage {k}: {stage.channels} channels of {feature.shape[2]} x {feature.shape[3]}, as declared")

# %% [markdown]
# `train` builds its networks by name. For a network of your own the loop is short enough to write it yourself. This is all
# that happens in a training, without checkpoints, resuming and records:


# %%
def fit(network, method, data, epochs, lr=0.1):
    source = BatchSource(data, batch_size=25, augmentation="crop_flip", seed=seed)
    parameters = [*network.parameters(), *method.parameters()]  # a relation network learns, too
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=5e-4)
    steps = epochs * len(source.rows(0))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    for epoch in range(epochs):
        for batch in source(epoch):
            loss = method(network(batch.images), batch)["total"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


# %% [markdown]
# Any method will do. `build_method(..., network=own)` makes what the method trains beside the network, such as CORSD's
# relation networks.

# %%
fit(own.train(), build_method("deep_supervision", network=own), shapes, epochs)
table = evaluate(own.eval(), shapes).table()
table[["top1", "calibration_error", "macs", "parameters"]].round(1)

# %% [markdown]
# The columns: per cent right on test; how far confidence is from accuracy, in points; and for an exit the multiply-accumulates
# and the parameters that it needs, with the stages before it. The ensemble is the mean of all exits' probabilities. *Would you
# send this network's images to the end, or stop at an earlier exit?*
#
# ### Or somebody else's
#
# The package [timm](https://github.com/huggingface/pytorch-image-models) holds hundreds of backbones, which declare their
# stages themselves. It is optional: `pip install timm`. The cell says so where it is missing.

# %%
if find_spec("timm"):
    borrowed = build_network("timm:resnet10t", shapes.num_classes, image_size=24)
    for k, stage in enumerate(borrowed.backbone.feature_info, 1):
        print(f"timm's resnet10t, exit {k}: {stage.channels} channels, reduction {stage.reduction}")
else:
    print("timm is not installed here; the rest of the notebook does without it")

# %% [markdown]
# Compare the last reduction with our 24 pixels: what is left is a single place. Networks for photographs want larger
# images, say `image_size=64` or more. These names work in `TrainConfig(network="timm:resnet10t")`, too, and
# `pretrained=True` fetches weights that have seen ImageNet, where there is a network connection.

# %% [markdown]
# ## Part 3: your loss
#
# In BYOT the deepest exit is the teacher. There is another candidate: all exits together. In the table above the *ensemble*
# is the mean of their probabilities. Is it better there than the best single exit? Where it is, it could teach them all; where
# it is not, doubt what follows. The idea: let **every** exit, the deepest included, learn from the mean of all. (We take the
# mean of the logits, a close relative.) We call it *consensus*.
#
# Begin with the term alone: a pure function, tensors in, scalar out. `distillation` is the divergence that you wrote out in
# [02_exits](02_exits.ipynb); it detaches its teacher.


# %%
def consensus_loss(logits, temperature):
    teacher = torch.stack(logits).mean(dim=0)  # (K, B, C) -> (B, C)
    return sum(distillation(teacher, z, temperature) for z in logits) / len(logits)


# %% [markdown]
# Test it before you train with it. A training with a wrong loss often works *somewhat*, and then the mistake is hard to
# find. Three questions catch most mistakes.
#
# **Predict:** what should it be when all exits agree? Which exits should get a gradient? And what if the batch is empty?

# %% tags=["nbval-check-output"]
logits = [torch.randn(6, 10, requires_grad=True) for _ in range(3)]
assert consensus_loss([logits[0]] * 3, 3.0).abs() < 1e-5
consensus_loss(logits, 3.0).backward()
print("exits agree: nothing is missing")
print("exits with a gradient:", [k for k, z in enumerate(logits, 1) if z.grad.abs().sum() > 0])
print("an empty batch costs", round(consensus_loss([torch.zeros(0, 10)] * 3, 3.0).item()))

# %% [markdown]
# Now the method. The options are a dataclass whose fields are the **weights of the terms, by name**. `terms` gives the terms
# themselves, unweighted. The total, the progress bar and the metrics follow from the names.


# %%
@dataclass(frozen=True)
class ConsensusOptions(DeepSupervisionOptions):
    """`consensus`: weight of the mean of all exits as their teacher."""

    consensus: float = 1.0
    temperature: float = 3.0


class Consensus(DeepSupervision):
    """Deep supervision, and every exit learns from the mean of all exits."""

    name = "consensus"
    Options = ConsensusOptions

    def terms(self, out, batch):
        term = consensus_loss(out.logits, self.options.temperature)
        return {**super().terms(out, batch), "consensus": term}


METHODS[Consensus.name] = Consensus

# %% [markdown]
# The last line registers it, for this kernel: after a restart run the cell again before you open a run of this method. From
# here on `"consensus"` is a method like any other:

# %% tags=["nbval-check-output"]
network, batch = own.eval(), next(iter(BatchSource(shapes, batch_size=25)(0)))
parts = build_method("consensus", consensus=2.0)(network(batch.images), batch)
weighted = parts["task"] + parts["exit_ce"] + 2 * parts["consensus"]
assert torch.isclose(parts["total"], weighted)
print("parts:", ", ".join(name for name in parts if name != "total"))
print("the total is their weighted sum")

# %% [markdown]
# ### Does it help? And is it *your term* that helps?
#
# Against the plain network two things are new: there are exits that learn, and there is your term. If you compare only these
# two, you cannot tell which of them did it. So there is a third row, the **ablation**: everything as in yours, with the weight
# of the term at 0.
#
# Each row is trained with several seeds, on the digits. As long as you may still change the method, you look at
# *validation*: whoever tries ten variants and reports the best test accuracy has tuned on test.
#
# **Predict:** by how many points will the deepest exit change? And how much do you expect it to move from one seed to the next?

# %%
recipe = TrainConfig(
    data="digits",
    per_class=10,
    validation_fraction=0.2,  # 200 images that no training sees
    epochs=epochs,
    batch_size=25,
    probe_every=0,  # we look at nothing on the way
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
    out = f"{run_directory}/digits-{name.replace(' ', '-')}-{epochs}-epochs-seed-{seed}"
    run = train(replace(recipe, seed=seed, out=out, **rows[name]), progress=False)
    last = run.metrics.iloc[-1]
    return [last[f"val_top1.exit{k}"] for k in (1, 2, 3)]


accuracy = {name: torch.tensor([accuracy_of(name, seed + s) for s in range(seeds)]) for name in rows}

# %% [markdown]
# **A trap.** `train` opens what is finished. When you change your loss and run again, you would look at the *old* training.
# Give each version a name of its own, or remove its folder.
#
# The same seed gives the same images and the same order of them in all rows. So we compare *seed by seed*, and take the mean of
# the differences. Its 95 % interval comes from Student's t distribution: with few seeds it is wide, and that is honest.


# %%
def change(after, before):
    difference = (accuracy[after] - accuracy[before])[:, -1].double()  # of the deepest exit, one a seed
    spread = difference.std() / seeds**0.5 * stats.t.ppf(0.975, seeds - 1)
    verdict = "can be chance" if difference.mean().abs() <= spread else "is more than chance between seeds"
    each = ", ".join(f"{d:+.1f}" for d in difference)
    return f"{after} minus {before}: {difference.mean():+.1f} ± {spread:.1f} points ({each}): {verdict}"


# %%
print(change("consensus", "plain"))
print(change("consensus", "weight 0"))

# %%
means = {name: values.mean(dim=0).tolist() for name, values in accuracy.items()}
title = "Deepest exit, mean of the seeds: "
title += ", ".join(f"{name} {values[-1]:.1f} %" for name, values in means.items())
spread = {name: values.std(dim=0).tolist() for name, values in accuracy.items()}
exit_accuracy_bars(means, title, error=spread, ylabel="validation images right (%)")

# %% [markdown]
# The thin bars are the standard deviation over the seeds. Read the second printed line again: it is the one that judges your
# *term*. Does its interval hold zero? Then this comparison does not tell whether the term does anything, however large the bars
# look.
#
# And look at exit 1: it is there that teaching would be expected to show first. Is the step from *plain* to *weight 0* larger
# than the one from *weight 0* to *consensus*? Then most of the change came with the exits, not with the idea.
#
# With `corsd compare` and a `study.json` the same comparison is made on any data set, with records of each training and a
# table at the end; [11_compare_methods](11_compare_methods.ipynb) shows how to read one. It trains in processes of its own,
# which know nothing of this kernel: put `consensus_loss`, the cell with your class and the imports of both into a module, say
# `my_methods.py`, and tell them with `PYTHONPATH=. CORSD_METHODS=my_methods corsd compare ...`.

# %% [markdown]
# ## Recap
#
# - **Images:** `train/`, `val/`, `test/`, a folder a class, then `folder:PATH`. Decide on size and augmentation, and look.
# - **Backbone:** stages that declare channels and reduction, and a check that they tell the truth.
# - **Loss:** a pure function; test it where you know its value; then a dataclass of weights, a class, one line in `METHODS`.
# - **Comparison:** same seeds, an ablation with weight 0, validation while you try, test once.

# %% [markdown]
# ## Exercise 1: what does a stage declare?
#
# A network is a chain: a stem, then stages, each with a stride. Write the function that gives the reductions of the
# *stages* from the list of all strides, the stem's first. For our network, `reductions([2, 1, 2, 2])` is `[2, 4, 8]`.


# %% tags=["exercise"]
def reductions(strides):
    return ...


# %% tags=["solution"]
def reductions(strides):
    return torch.tensor(strides).cumprod(dim=0)[1:].tolist()


# %% tags=["check"]
answer = reductions([2, 1, 2, 2])
assert answer is not ..., "there is no answer yet: write yours in place of the `...`"
assert len(answer) == 3, "wanted: one number a stage; the stem is none"
assert list(answer) == [2, 4, 8], "does each stage go on from where the one before it stopped?"
assert list(reductions([1, 1, 2])) == [1, 2], "a stem of stride 1 reduces nothing"
assert list(reductions([4, 1, 3, 2])) == [4, 12, 24], "strides need not be 2"
print("Exercise 1: right.")

# %% [markdown]
# ## Exercise 2: another term
#
# A network that is very sure is not always right. Some methods reward doubt, and need to measure it. Write the **mean
# entropy** of the predictions, in nats: for each row of `logits` (B, C) the sum of `-p log p` over the classes, with `p`
# the softmax; then the mean over the rows. It must stay finite for a network that is *entirely* sure.


# %% tags=["exercise"]
def mean_entropy(logits):
    return ...


# %% tags=["solution"]
def mean_entropy(logits):
    log_p = F.log_softmax(logits, dim=1)
    return -(log_p.exp() * log_p).sum(dim=1).mean()


# %% tags=["check"]
undecided, decided = torch.zeros(4, 10), 1000 * F.one_hot(torch.arange(4), 10).float()
entropy = mean_entropy(undecided)
assert isinstance(entropy, torch.Tensor), "there is no answer yet: write yours in place of the `...`"
assert entropy.shape == (), "wanted: one number for the whole batch"
assert torch.isclose(entropy, torch.tensor(10.0).log()), "ten equal probabilities have entropy log 10; mind sign, sum and mean"
assert mean_entropy(decided).isfinite(), "not finite for a sure network: log of a probability that is 0? Try F.log_softmax"
assert mean_entropy(decided).abs() < 1e-5, "a network that is entirely sure has entropy 0"
print("Exercise 2: right.")

# %% [markdown]
# What does your function say about the network that you trained on the shapes, before and after?

# %% tags=["uses-answer"]
images, _ = next(evaluation_batches(shapes, shapes.validation))
with torch.no_grad():
    before, after = (mean_entropy(network(images).logits[-1]).item() for network in (build_own().eval(), own.eval()))
print(f"entropy of the deepest exit: {before:.2f} nats untrained, {after:.2f} trained; log 5 = 1.61 would be no idea at all")

# %% [markdown]
# ## Where next
#
# - Make it a method: give `mean_entropy` a class with a term of that name, register it, and compare. Its weight cannot be
#   negative, so the *term* is minus the entropy if doubt is to be rewarded.
# - Put ten photographs of each of three things into folders, and run part 1 on them.
# - Explore the relation of your shapes: `RelationExplorer(run)`; [07_relation_explorer](07_relation_explorer.ipynb) is a guide.
# - Contribute it: the [notes for contributors](../CONTRIBUTING.md) say what a method needs to become part of the library.
