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
# # 05 What does it take on CIFAR-100?
#
# Digits are a toy. CIFAR-100 is where self-distillation is usually shown: 100 classes, from *apple* to *worm*, and a small
# colour photograph of each. **What does a training on it cost, what do the exits reach, and do relations find out that an oak
# is a kind of tree although nobody says so?**
#
# **You will learn**
#
# - the recipe for a GPU, as a configuration and as commands, and what it costs compared with what a laptop can do;
# - how to read a training that is on disk: exits, curves, the gap between training and test;
# - how a relation of 100 classes is made readable: an order, and groups;
# - how to ask a relation whether it knows something that it was never told, and when not to trust the answer.
#
# **You need** [01_walkthrough](01_walkthrough.ipynb). The data are *not* needed: real runs travel with the repository.
# **Time:** less than half a minute on two CPU cores; reading and the two exercises take about forty minutes.

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
from dataclasses import replace

import pandas as pd
import plotly.express as px
import torch
from IPython.display import display

from corsd_lib import RelationExplorer, TrainConfig, TrainingMonitor, committed_run, train
from corsd_lib.analysis import class_order, class_relations
from corsd_lib.analysis.relations import relation_agreement, same_class_auc, superclass_lift
from corsd_lib.evaluation import training_macs
from corsd_lib.figures import exit_accuracy_bars, relation_heatmap, template, training_curves
from corsd_lib.files import read_json
from corsd_lib.tables import with_interval

torch.set_num_threads(1)  # the networks are small: a second thread would wait more than it works

# %% [markdown]
# Set `train_here` to `True` to train a little yourself. That needs the data: `corsd data cifar100 --download` fetches 169 MB
# into the folder that the environment variable `CORSD_DATA` names. Everything else reads without them.

# %% tags=["parameters"]
train_here = False  # a short training on the real images
method = "corsd"  # of that training
epochs = 2  # passes over its images; more is better, a laptop needs seconds for each
per_class = 20  # labelled images of each class, of 500
seed = 0
run_directory = "runs/05_cifar100"

# %% [markdown]
# ## One hundred classes, twenty groups
#
# The classes come in *superclasses* of five: trees, fish, people. **No training here is told about them.** The labels are
# the 100 classes, and that an oak and a pine belong together is for the network to find out, or not.

# %% tags=["nbval-check-output"]
corsd, plain = committed_run("cifar100_small/corsd"), committed_run("cifar100_small/baseline")
names, groups = corsd.data.class_names, corsd.data.superclass_names
superclass = torch.tensor(corsd.data.superclass_of_class)
print(f"{len(names)} classes in {len(groups)} superclasses of {superclass.bincount().unique().tolist()}")
for group in ("trees", "people", "vehicles_2"):
    print(f"{group}: " + ", ".join(names[c] for c in (superclass == groups.index(group)).nonzero()))

# %% [markdown]
# Some superclasses are about looks (trees), some about use (*vehicles_2* holds a rocket and a lawn mower). **Predict:** which
# of these three will a network find most easily? Keep your guess for the heatmap.

# %% [markdown]
# ## The full recipe
#
# This is what one trains on a GPU: a ResNet-18 on all images, 200 epochs. It is a plain object; the options that are not
# named keep their defaults, and `TrainConfig?` lists them all.

# %% tags=["nbval-check-output"]
recipe = TrainConfig(
    data="cifar100",
    network="resnet18",
    method="corsd",
    epochs=200,
    batch_size=128,
    precision="bf16-mixed",  # half the bytes, on GPUs that can
    channels_last=True,
)
batches = -(-50_000 // recipe.batch_size)  # the last one of an epoch is a smaller one
print(f"{batches * recipe.epochs:,} steps, {50_000 * recipe.epochs:,} images")

# %% [markdown]
# The same from a terminal, with the data and a plain network to compare with. `--resume` makes the command safe to repeat: it
# goes on where the training was stopped, to the bit.
#
# ```bash
# corsd data cifar100 --download
# for method in baseline corsd; do
#   corsd train --data cifar100 --network resnet18 --method $method --epochs 200 --batch-size 128 \
#     --precision bf16-mixed --channels-last --out runs/resnet18-$method --resume
# done
# ```
#
# Several GPUs: add `--devices 4`. Several seeds, with intervals: `corsd compare`, see
# [11_compare_methods](11_compare_methods.ipynb). **The committed run below is not of this recipe**: it is far smaller, so
# that it travels, and could be made on a CPU.
#
# How much smaller? The unit is the *multiply-accumulate* (MAC), one product added to a sum. The library counts those of a
# training step, forward and backward, method included. **Predict:** the recipe costs how many times the committed run?

# %% tags=["nbval-check-output"]
mine, theirs = (training_macs(config, corsd.data) for config in (corsd.config, recipe))
seen = int(corsd.metrics["images"].sum())
each, more = theirs / mine, 50_000 * recipe.epochs / seen
print(f"an image costs {each:.0f} times as much, and there are {more:.0f} times as many:")
print(f"about {each * more / 1000:.0f} thousand times the arithmetic of the committed run")

# %% [markdown]
# That is why nobody trains the recipe on a laptop, and why a gain or a loss in the small study says little about it.

# %% [markdown]
# ## A short training of your own
#
# If you asked for it above, the cell trains on real images while you watch, with the recipe of the committed run on fewer
# images. If not, the monitor shows the committed run, from its record.

# %%
short = replace(
    corsd.config,
    method=method,
    method_options={},
    per_class=per_class,
    epochs=epochs,
    probe_size=300,
    probe_every=1,
    seed=seed,
    out=f"{run_directory}/{method}-{per_class}-a-class-{epochs}-epochs-seed-{seed}",
    resume=True,
)

# %%
monitor = TrainingMonitor()
display(monitor)
watched = train(short, on_epoch=monitor, progress=False) if train_here else corsd
monitor(watched)

# %% [markdown]
# ![The training monitor after 60 epochs of CORSD on CIFAR-100. Left: accuracy of three exits climbs, the deepest on top; below
# it the parts of the loss. Right: a relation matrix of 100 classes, a dark muddle with a thin bright
# diagonal.](images/05_monitor.png)
#
# *The monitor on the committed CORSD run, as a picture.* The exits climb in order of depth. The relation matrix of 100
# classes, in alphabetical order, is a muddle with a thin bright diagonal. We shall put it in order.

# %%
reached = [e["top1"] for e in watched.test["exits"]]
print(f"{watched.config.method}, {watched.config.per_class} images a class, {watched.config.epochs} epochs:")
print("test accuracy by exit", [f"{value:.1f} %" for value in reached], "; guessing gives 1 %")

# %% [markdown]
# ## What the exits reach
#
# Four committed runs have exits at all three stages: same network, same images, same number of them, one seed. **Predict:**
# how many points lie between the first exit and the last? And is CORSD's last exit above the plain network's?

# %%
labels = {"deep_supervision": "deep supervision", "byot": "BYOT", "rkd": "RKD", "corsd": "CORSD"}
accuracy = {label: [e["top1"] for e in committed_run(f"cifar100_small/{row}").test["exits"]] for row, label in labels.items()}
reference = plain.test["exits"][-1]["top1"]
deepest = [values[-1] for values in accuracy.values()]
exit_accuracy_bars(accuracy, f"Last exits: {min(deepest):.1f} to {max(deepest):.1f} %. Plain network: {reference:.1f} %")

# %% [markdown]
# Compare the last exits with the plain network in the title. One seed each: a difference of less than a point or so is
# nothing to speak of. **Does any self-distillation stand out above the plain network here?**
#
# Then ask whether that is about the methods or about this *small* network. The records of a larger one, from the same images,
# are in the repository, too. Gains are over the plain network of the same study, in points, with a 95 % interval over seeds
# where there are several.

# %%
for study in ("cifar100_small", "cifar100"):
    summary = read_json(corsd.path.parents[2] / study / "summary.json")
    row, used = summary["methods"]["corsd"], summary["train"]
    gain = with_interval(row["gain"], row["gain_low"], row["gain_high"], sign="+")
    print(f"{used['network']} of width {used['width']}: CORSD {gain} points, seeds: {row['n']}")

# %% [markdown]
# If the two lines differ, the network decides how much there is to gain; [11_compare_methods](11_compare_methods.ipynb) reads
# these records with all methods. What exits give in any case is another thing: an answer at a fraction of the cost.

# %%
for k, e in enumerate(corsd.test["exits"], 1):
    print(f"exit {k}: {e['top1']:.1f} % right, {e['macs'] / 1e6:.1f} million MACs an image, {e['parameters']:,} parameters")

# %% [markdown]
# ## What the training worked on
#
# Self-distillation is thought to help most where a network learns its training images by heart: a soft target keeps it from
# being too sure. So look at the gap. **Read off** the train accuracy at the end, and compare it with test above.

# %%
final = {name: run.metrics.filter(like="train_top1").iloc[-1].iloc[-1] for name, run in (("plain", plain), ("CORSD", corsd))}
title = "Train accuracy at the end: " + ", ".join(f"{name} {value:.0f} %" for name, value in final.items())
training_curves({"plain network": plain.metrics, "CORSD": corsd.metrics}, title)

# %% [markdown]
# Train accuracy counts on *augmented* images, shifted and mirrored, which are harder than the originals. Does it end above
# test all the same? And is it near 100 %? If not, this network is too small to learn ten thousand images by heart in 60
# epochs, and a soft target may have little to cure. *May*: that is a guess. In [06_cub200](06_cub200.ipynb) a network just as
# small is as far from 100 %, and CORSD gains there. How far does the larger one get?

# %%
for name, row in read_json(corsd.path.parents[2] / "cifar100" / "summary.json")["methods"].items():
    if name in ("baseline", "corsd"):
        print(f"larger network, {row['label']:19}: train {row['train_top1']:.0f} %, test {row['top1'][-1]:.0f} %")

# %% [markdown]
# ## What travels with a run
#
# The weights, the metrics, and *snapshots*: what the network made of some validation images after some epochs. No image
# travels, so nothing of the data set is copied, and yet almost everything can be looked at.

# %% tags=["nbval-check-output"]
last = corsd.probes[corsd.config.epochs]
print("snapshots after epochs", list(corsd.probes))
print(f"{len(corsd.probes.labels)} images of {corsd.probes.split}, {len(last.relations)} exits")
print("embeddings", tuple(last.embeddings[-1].shape), "relation", tuple(last.relations[-1].shape))

# %% [markdown]
# ## One hundred by one hundred
#
# The relation of two classes is the mean score of their pairs of images, from the relation network of a stage. In
# alphabetical order one sees little. In the order of the superclasses, with lines between them, blocks of five should
# light up along the diagonal, *if* the relation knows anything of them.

# %%
order = class_order("superclass", superclass_of_class=superclass)
matrix = class_relations(corsd, corsd.config.epochs, exit=3)
lift = superclass_lift(matrix, superclass)
title = f"Two classes of one superclass are {lift:.1f} times as related as two of different ones"
relation_heatmap(matrix, names, title, order=order, groups=superclass[order], group_names=groups)

# %% [markdown]
# **Look for** trees, people and vehicles_2. Which block is brightest, which is hardly there? Then look *outside* the blocks.
# There is a larger pattern: animals of many superclasses are related to each other, flowers to fruit, the two kinds of
# vehicles to one another. Are these mistakes or good ideas?
#
# Each class has only three images in this snapshot, so a single cell is a mean of few pairs. Trust blocks, not cells.

# %% [markdown]
# ## When does it find out?
#
# The number in the title is the *lift*: mean relation of two different classes of one superclass, divided by that of two
# classes of different superclasses. 1 means that it knows nothing. **Predict:** where is the lift before training? Does the
# shallowest exit get there first, or the deepest?

# %%
table = pd.concat([relation_agreement(corsd, epoch) for epoch in corsd.probes])
begin, end = (table[table["epoch"] == e]["superclass_lift"] for e in (0, corsd.config.epochs))
title = f"Lift from {begin.mean():.2f} to " + ", ".join(f"{v:.1f} at exit {k}" for k, v in enumerate(end, 1))
look = {"title": title, "labels": {"superclass_lift": "lift"}, "template": template(), "height": 400}
px.line(table, x="epoch", y="superclass_lift", color="exit", symbol="exit", **look)

# %% [markdown]
# Is it in order of depth at the end? The shallow relation networks are *taught* by the deepest one, so some of what they know
# is handed down.
#
# ### Do not trust a ratio
#
# The plain network has no relation network. Its stored relation is the cosine of embeddings, moved to 0 to 1. The embeddings of
# CORSD have a cosine, too. **Predict:** whose lift is largest, whose is smallest?

# %%
asked = {"CORSD, trained": (corsd, "trained"), "CORSD, cosine": (corsd, "cosine"), "plain, cosine": (plain, "cosine")}
deepest = {name: class_relations(run, 60, len(run.probes[60].embeddings), kind) for name, (run, kind) in asked.items()}
for name, matrix in deepest.items():
    print(f"{name:15} lift {superclass_lift(matrix, superclass):.2f}")

# %% [markdown]
# The lifts are far apart. But a lift depends on the *scale*. Embeddings come out of a ReLU, so their cosine is never below 0,
# and moved to 0 to 1 it is never below one half: no ratio of two such means is above 2, whatever the network knows. The
# margin loss, on the other hand, pushes CORSD's scores towards 0 and 1.
#
# A fair comparison uses *ranks*, which no change of scale can move. Take a pair of classes from one superclass and a pair from
# two: how often is the first the more related one? That share is called *AUC*, and chance gives one half. **Predict** again.

# %%
for name, matrix in deepest.items():
    print(f"{name:15} AUC {same_class_auc(matrix, superclass):.2f}")

# %% [markdown]
# How much is left of the distance? And which of the three is CORSD's own, the trained relation or the embeddings under it?
# **A measure that flatters one method by its scale is not a finding about it.**

# %% [markdown]
# ## Explore it
#
# Choose an exit, an epoch, an order. Under *superclass* take one, such as `people`. Under *subtract* take the deepest exit or
# the plain network, and blue and orange show where they differ. Where the data are, a click on a cell also shows two images.
#
# **Look for** the most related pair of classes from *different* superclasses. Is there a picture in your mind in which they
# look alike?

# %%
explorer = RelationExplorer(corsd, plain)
explorer.order = "superclass_cluster"
display(explorer)

# %% [markdown]
# ![The figure of the relation explorer: a heatmap of 100 by 100 classes, grouped by superclass, with bright blocks along the
# diagonal and larger, paler ones where animals meet animals.](images/05_relation_explorer.png)
#
# *The explorer's figure, as a picture*: the CORSD run at its deepest exit after the last epoch, classes grouped by
# superclass and clustered within.

# %% [markdown]
# ## Recap
#
# - The **recipe** is one object, or one command. What it costs can be counted before it is trained.
# - A **run on disk** answers most questions without data: exits, curves, snapshots, relations.
# - **Order and groups** make a large matrix readable.
# - Relations pick up superclasses that no label named; the **lift** shows it, and its scale can mislead.
# - **Ranks** compare what scales cannot. And one seed of a small network is a record to look into, not a result.

# %% [markdown]
# ## Exercise 1: the lift, by hand
#
# `matrix` (C, C) holds relations of classes, `superclass` (C,) the superclass of each. Return the mean over pairs of
# *different* classes of the *same* superclass, divided by the mean over pairs of different superclasses. Mind the diagonal.


# %% tags=["exercise"]
def lift_by_hand(matrix, superclass):
    return ...


# %% tags=["solution"]
def lift_by_hand(matrix, superclass):
    same = superclass[:, None] == superclass[None, :]
    other_class = ~torch.eye(len(matrix), dtype=torch.bool)
    return (matrix[same & other_class].mean() / matrix[~same].mean()).item()


# %% tags=["check"]
toy = torch.tensor([[0.9, 0.6, 0.2, 0.2], [0.6, 0.9, 0.2, 0.2], [0.1, 0.1, 0.9, 0.4], [0.1, 0.1, 0.4, 0.9]])
value = lift_by_hand(toy, torch.tensor([0, 0, 1, 1]))
assert value is not ..., "there is no answer yet: write yours in place of the `...`"
value = float(value)
assert abs(value - 0.7 / 0.15) > 0.01, "a class with itself is no pair of different classes: leave the diagonal out"
assert abs(value - 0.5 / 0.15) < 1e-4, "mean within superclasses 0.5, mean between them 0.15: which of them do you have?"
random_one, of_class = torch.rand(12, 12), torch.arange(12) // 3
assert abs(float(lift_by_hand(random_one, of_class)) - superclass_lift(random_one, of_class)) < 1e-4, "not the library's"
print("Exercise 1: right.")

# %% [markdown]
# ## Exercise 2: good mistakes
#
# To take an oak for a pine is a better mistake than to take it for a bus. Of all *wrong* answers, what share stays in the
# right superclass? `logits` (N, C), `labels` (N,), `superclass` (C,). Return a number from 0 to 1.


# %% tags=["exercise"]
def good_mistakes(logits, labels, superclass):
    return ...


# %% tags=["solution"]
def good_mistakes(logits, labels, superclass):
    answer = logits.argmax(dim=1)
    wrong = answer != labels
    return (superclass[answer] == superclass[labels])[wrong].float().mean().item()


# %% tags=["check"]
answers, truth = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([0, 0, 0, 0, 3])
share = good_mistakes(torch.eye(4)[answers], truth, torch.tensor([0, 0, 1, 1]))
assert share is not ..., "there is no answer yet: write yours in place of the `...`"
assert abs(float(share) - 0.4) > 1e-4, "a right answer is no mistake: count among the wrong ones only"
assert abs(float(share) - 0.25) < 1e-4, "four answers are wrong, and one of them is in the right superclass"
print("Exercise 2: right.")

# %% [markdown]
# Your function on the committed runs. Blind guessing among the 99 wrong classes would stay in the superclass 4 times in 99.
# Do deeper exits make better mistakes? Does the plain network make worse ones? Each share is of some two hundred mistakes, so
# a few per cent more or less are chance.

# %% tags=["uses-answer"]
for name, run in {"CORSD": corsd, "plain": plain}.items():
    for k, logits in enumerate(run.probes[run.config.epochs].logits, 1):
        which = f"exit {k}" if name == "CORSD" else "its one exit, the deepest"
        print(f"{name}, {which}: {good_mistakes(logits.float(), run.probes.labels, superclass):.0%} of its mistakes")
print(f"guessing: {4 / 99:.0%}")

# %% [markdown]
# ## Where next
#
# - [06_cub200](06_cub200.ipynb): birds, where superclasses are families and attributes say what two birds share.
# - [07_relation_explorer](07_relation_explorer.ipynb) is a guided tour of the explorer.
# - [08_class_structure](08_class_structure.ipynb): how classes tighten and part in these very runs.
# - [11_compare_methods](11_compare_methods.ipynb): how to read the study that these runs are from, and the larger one.
# - With the data: set `train_here`, raise `epochs` and `per_class`, or change `method` to `byot`. From a terminal:
#   `papermill solutions/05_cifar100.ipynb out.ipynb -p train_here True -p epochs 10`.
