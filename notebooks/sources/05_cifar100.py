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
# # 05 What do exits, class KD and relations add on CIFAR-100?
#
# CIFAR-100 is the usual benchmark of self-distillation: 100 classes, from *apple* to
# *worm*, and small colour photographs. **Which terms raise the accuracy, and do
# relations reveal that an oak and a pine belong together, although no label groups
# them?**
#
# **You will learn**
#
# - what a small and a larger network gain, and from which terms;
# - how to make a relation of 100 classes readable;
# - how to test whether a relation contains what it was never told, and which measure
#   misleads;
# - how much more arithmetic the full recipe needs than the small run.

# %% [markdown]
# **You need** [03_relations](03_relations.ipynb), for RKD and the AUC, and what
# [04_class_oriented](04_class_oriented.ipynb) says about class KD; BYOT is in
# [02_exits](02_exits.ipynb). The data are *not* needed: real runs are in the
# repository. **Run time:** about 1 minute on two CPU cores.
# **Learning time:** 30 minutes of reading, 40 minutes for the four exercises.

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
from dataclasses import replace

import pandas as pd
import plotly.express as px
import torch
from IPython.display import display

from corsd_lib import RelationExplorer, TrainConfig, TrainingMonitor, committed_run
from corsd_lib import committed_summary, train
from corsd_lib.analysis import class_order, class_relations, relation_agreement
from corsd_lib.analysis import same_class_auc, superclass_lift
from corsd_lib.costs import training_macs
from corsd_lib.course import answered, compare, expect, with_ends
from corsd_lib.figures import differences_by_exit, exit_accuracy_points
from corsd_lib.figures import relation_heatmap, template
from corsd_lib.studies.intervals import mean_interval

torch.set_num_threads(1)  # one thread is faster for networks this small

# %% [markdown]
# Set `train_here` to `True` for a short training of your own. It needs the data: `corsd
# data cifar100 --download` fetches 169 MB into the folder that the environment variable
# `CORSD_DATA` names. Everything else works without them.

# %% tags=["parameters"]
train_here = False  # a short training on the real images
method = "corsd"  # of that training
epochs = 2  # passes over its images; a laptop needs seconds for each
per_class = 20  # labelled images of each class, of 500
seed = 0
run_directory = "runs/05_cifar100"

# %% [markdown]
# **How predictions work.** Some cells ask for a prediction before a result. Replace
# `None` by your value and run on: the notebook prints it beside the outcome.

# %% [markdown]
# ## One hundred classes, twenty groups
#
# The classes belong to *superclasses* of five: trees, fish, people. **No training here
# uses them.** The labels are the 100 classes.

# %% tags=["nbval-check-output"]
corsd = committed_run("cifar100_small/corsd")
plain = committed_run("cifar100_small/baseline")
names = [name.replace("_", " ") for name in corsd.data.class_names]
groups = [name.replace("_", " ") for name in corsd.data.superclass_names]
superclass = torch.tensor(corsd.data.superclass_of_class)
print(f"{len(names)} classes in {len(groups)} superclasses")
for group in ("trees", "people", "vehicles 2"):
    members = (superclass == groups.index(group)).nonzero().flatten()
    print(f"{group}: " + ", ".join(names[c] for c in members))

# %% [markdown]
# ## A short training of your own
#
# If `train_here` is `True`, the cell trains on real images with the recipe of the
# committed run. Otherwise the monitor shows the committed run.

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
# ![The training monitor after 60 epochs on CIFAR-100. Left: accuracy of three
# exits climbs, the deepest on top; below it the terms of the loss. Right: a relation
# matrix of 100 classes, dark and without visible order, with a thin bright
# diagonal.](images/05_monitor.png)
#
# *The committed run of CORSD with class KD.* The deeper the exit, the higher its
# accuracy. Some losses *rise*: `class_kd`, `exit_kd`, `auxiliary_kd_...` and
# `relation_transfer` compare outputs with each other, not with labels. A possible
# reason, not tested: an untrained network gives nearly the same output for everything,
# so these differences begin near 0 and grow while the outputs become different. In
# alphabetical order the relation matrix shows bright specks and, in places, a diagonal.
# A figure below shows it larger, ordered by superclass.

# %%
if train_here:
    reached = ", ".join(f"{e['top1']:.1f} %" for e in watched.test["exits"])
    print(f"{watched.config.method}, {watched.config.epochs} epochs: {reached}")

# %% [markdown]
# ## What the exits reach
#
# Four committed runs have exits at all three stages: same network (ResNet-8), same
# images, one seed. They are deep supervision (labels only), BYOT and RKD (02, 03), and
# CORSD with class KD; class KD is a term of this library
# ([04](04_class_oriented.ipynb)).
#
# **Predict:** how many points are between exit 1 and the deepest exit of CORSD with
# class KD? And how many between its deepest exit and the plain network?

# %%
my_depth, my_gain = None, None  # points

# %%
labels = {"deep_supervision": "deep supervision", "byot": "BYOT", "rkd": "RKD"}
labels["corsd"] = "CORSD with class KD"
recorded = committed_summary("cifar100_small")["methods"]
accuracy = {label: recorded[name]["top1"] for name, label in labels.items()}
reference = recorded["baseline"]["top1"][-1]
values = accuracy["CORSD with class KD"]
compare(
    "Deepest minus exit 1", my_depth, values[-1] - values[0], " points", 1, digits=1
)
compare("Minus plain", my_gain, values[-1] - reference, " points", 0.3, digits=1)
title = "Test accuracy of every exit, one seed"
error = {  # of a percentage of 10,000 test images
    label: [1.96 * (p * (100 - p) / 10_000) ** 0.5 for p in by_exit]
    for label, by_exit in accuracy.items()
}
look = {"error": error, "reference": ("plain network", reference)}
exit_accuracy_points(accuracy, title, **look)

# %% [markdown]
# **Answer.** The deepest exit is five to seven points above exit 1. The bars are 95 %
# intervals for the choice of test images. The methods differ by at most 1.2 points at
# any exit; with one seed that is no finding.

# %% [markdown]
# ### A larger network
#
# Are the methods alike, or is the network too *small* to show a difference? A larger
# study (ResNet-10, width 32, four exits) has the same training images. Its variants
# have different numbers of seeds, so every difference is taken over the seeds that both
# have.
#
# **Predict:** what does its deepest exit gain over the plain network, in points, with
# CORSD with class KD? And with exits alone (deep supervision)? (03 has shown what
# relation terms change together with class KD.)


# %%
def gaps(study, one, other):  # at the deepest exit, one value per common seed
    methods = committed_summary(study)["methods"]
    a, b = methods[one]["top1_by_seed"], methods[other]["top1_by_seed"]
    return [[a[s][-1] - b[s][-1]] for s in a if s in b]


deep, no_terms = "deep supervision", "class KD without relation terms"
pairs = {
    f"{deep} minus plain": ("deep_supervision", "baseline"),
    "CORSD with class KD minus plain": ("corsd", "baseline"),
    f"{no_terms} minus plain": ("no_relations", "baseline"),
    f"{no_terms} minus {deep}": ("no_relations", "deep_supervision"),
    f"CORSD with class KD minus {no_terms}": ("corsd", "no_relations"),
    f"CORSD minus {deep}": ("no_class_kd", "deep_supervision"),
    "CORSD with class KD minus CORSD": ("corsd", "no_class_kd"),
}
one = "ResNet-8, CORSD with class KD minus plain"
found = {one: gaps("cifar100_small", "corsd", "baseline")}
found |= {name: gaps("cifar100", *pair) for name, pair in pairs.items()}

# %%
my_larger, my_exits = None, None  # points

mean_of = {
    name: mean_interval(gap for (gap,) in seeds) for name, seeds in found.items()
}
larger = mean_of["CORSD with class KD minus plain"][0]
of_relations = mean_of[f"CORSD with class KD minus {no_terms}"][0]
compare("Larger network gains", my_larger, larger, " points", 0.5, digits=1)
exits_alone = mean_of[f"{deep} minus plain"][0]
compare("Exits alone gain", my_exits, exits_alone, " points", 0.5, digits=1)
print(f"due to relation terms: {of_relations:.1f} points")

# %%
title = "CIFAR-100, ResNet-10 (first row: ResNet-8), deepest exit"
differences_by_exit(found, title, exits=["deepest exit"])

# %%
for name, interval in mean_of.items():
    print(f"{name}: {with_ends(*interval)}, seeds: {len(found[name])}")
common = mean_interval(gap for (gap,) in found["CORSD with class KD minus plain"][:3])
print(f"the same on three seeds: {with_ends(*common)}")

# %% [markdown]
# **Answer.** The larger network gains 4.2 points with CORSD with class KD (five seeds).
# On the three seeds that all have it gains 4.8 [2.9, 6.7], deep supervision 2.3 [0.1,
# 4.5], and class KD without relation terms 4.6 [2.1, 7.2]. So the lead over deep
# supervision does not need the relation terms. On the three seeds that both have,
# relation terms change accuracy by 0.1 [-0.5, 0.8] together with class KD; without it
# they were not tested on their own here. For the small network we have a single seed,
# -0.2 points, which decides nothing.

# %% [markdown]
# **Which CORSD?** The terms of the paper, without class KD, exist as two variants of
# this study (points at the deepest exit, three seeds):
#
# | variant | used in | batches | weights searched | minus deep supervision |
# | --- | --- | --- | --- | --- |
# | `no_class_kd` | 04, 05, 11 | two of each class | with class KD | 0.3 [-0.7, 1.4] |
# | `corsd_paper` | README, 11 | plain | without it | 0.4 [-0.7, 1.6] |
#
# No lead of either was detected; class KD adds 2.2 [0.8, 3.6] to the first. Unlike deep
# supervision, every variant of CORSD has exit KD and other weights of the exits;
# `no_class_kd` has other batches.

# %% [markdown]
# Exits also give cheaper, less accurate predictions. The cell prints accuracy and cost
# of the small network cut off after each exit (02 counts the exits that an image passes
# as well):

# %% tags=["nbval-check-output"]
costs = [e["macs"] / 1e6 for e in corsd.test["exits"]]
whole = plain.test["exits"][-1]["macs"] / 1e6
for k, (top1, cost) in enumerate(zip(values, costs, strict=True), 1):
    of_plain = f"{100 * cost / whole:.0f} % of the plain network"
    print(f"exit {k}: {top1:.0f} %, {1000 * cost:,.0f} thousand MACs, {of_plain}")

# %% [markdown]
# ## One hundred by one hundred
#
# The relation of two classes is the mean score of their pairs of images. Ordered by
# superclass, blocks of five should be bright along the diagonal *if* the relation
# reflects superclasses.
#
# Each class has three images here, so a cell is the mean of few pairs.
#
# **Predict:** which block will be darkest: `trees`, `people` or `vehicles 2`?

# %%
my_block = None

# %%
matrix = class_relations(corsd, corsd.config.epochs, exit=3)
other = ~torch.eye(100, dtype=torch.bool)
mean_of = {}
for group in ("trees", "people", "vehicles 2"):
    members = superclass == groups.index(group)
    mean_of[group] = matrix[members[:, None] & members & other].mean().item()
compare("Darkest block", my_block, min(mean_of, key=mean_of.get))
print(", ".join(f"{group} {mean:.2f}" for group, mean in mean_of.items()))
apart = matrix[superclass[:, None] != superclass].mean()
print(f"classes of different superclasses: {apart:.2f}")
order = class_order("superclass", superclass_of_class=superclass)
look = {"order": order, "groups": superclass[order], "group_names": groups}
title = "Relation of the deepest exit, by superclass"
figure = relation_heatmap(matrix, names, title, **look)
figure.update_xaxes(ticktext=groups).update_yaxes(ticktext=groups)  # names in full
figure.update_xaxes(title="class of the second image, grouped by superclass")
figure.update_yaxes(title="class of the first image, grouped by superclass")
figure.update_layout(width=800, height=760)

# %% [markdown]
# **Answer.** *vehicles 2* is the darkest of the three (0.44), and still well above the
# mean between superclasses (0.27). Perhaps the reason is that a rocket and a lawn mower
# do not look alike, while trees look alike, and so do people. Outside the blocks is a
# larger pattern: animals are related to animals, and vehicles to vehicles. Interpret
# blocks and not single cells.

# %% [markdown]
# ### Exercise 1, implement: the lift
#
# The **lift** compares pairs of different classes within and between superclasses. With
# the class relation $R_{cd}$ and the superclass $g(c)$:
#
# $$\mathrm{lift} = \frac{\mathrm{mean} \{ R_{cd} : c \neq d, \; g(c) = g(d) \}}
# {\mathrm{mean} \{ R_{cd} : g(c) \neq g(d) \}}$$
#
# ![A table of six made-up classes in three superclasses, with invented numbers. Cells
# within superclasses are framed and brighter, cells between superclasses darker, and
# the diagonal is left out.](images/concept_lift.svg)
#
# Return it as a Python number for `matrix` (C, C) and `superclass` (C,).


# %% tags=["exercise"]
def lift_by_hand(matrix, superclass):
    return ...


# %% tags=["solution"]
def lift_by_hand(matrix, superclass):
    same = superclass[:, None] == superclass[None, :]
    other_class = ~torch.eye(len(matrix), dtype=torch.bool)
    return (matrix[same & other_class].mean() / matrix[~same].mean()).item()


# %% tags=["check"]
rows = [[0.9, 0.6, 0.2, 0.2], [0.6, 0.9, 0.2, 0.2]]
rows += [[0.1, 0.1, 0.9, 0.4], [0.1, 0.1, 0.4, 0.9]]
value = lift_by_hand(torch.tensor(rows), torch.tensor([0, 0, 1, 1]))
answered(value)
value = float(value)
expect(abs(value - 0.7 / 0.15) > 0.01, "leave out the diagonal: c and d are different")
expect(
    abs(value - 0.9 / 0.15) > 0.01, "this is the diagonal; different classes are asked"
)
expect(abs(value - 0.5 / 0.15) < 1e-4, f"{value:.2f} instead of 3.33")
some, of_class = torch.rand(12, 12), torch.arange(12) // 3
found, wanted = float(lift_by_hand(some, of_class)), superclass_lift(some, of_class)
expect(abs(found - wanted) < 1e-4, f"{found:.4f} instead of {wanted:.4f}")
print("Exercise 1: correct.")

# %% [markdown]
# ## When does it appear?
#
# A lift of 1 means that superclasses make no difference.
#
# **Predict:** the lift at the deepest exit before training and at the end.

# %%
my_begin, my_end = None, None

table = pd.concat([relation_agreement(corsd, epoch) for epoch in corsd.probes])
deepest = table[table["exit"] == 3].set_index("epoch")["superclass_lift"]
compare("Before training", my_begin, deepest.loc[0], atol=0.1, digits=2)
compare("At the end", my_end, deepest.iloc[-1], atol=0.3, digits=2)
look = {"title": "Lift over the epochs", "labels": {"superclass_lift": "lift"}}
look |= {"template": template(), "height": 400, "color": "exit", "symbol": "exit"}
px.line(table, x="epoch", y="superclass_lift", **look)

# %% [markdown]
# **Answer.** It starts at 1 and rises at all exits. Shallow relation networks are
# *taught* by the deepest one, so part of it may be passed on; a run without transfer
# would tell.

# %% [markdown]
# ### A ratio can mislead
#
# The plain network has no relation network. Its stored relation is the cosine of
# embeddings, moved to the range from 0 to 1. The embeddings of CORSD with class KD have
# a cosine, too.
#
# **Predict:** whose lift is the largest: `trained`, `cosine` (both of CORSD with class
# KD) or `plain, cosine`?

# %%
my_largest = None

kinds = {"trained": (corsd, "trained"), "cosine": (corsd, "cosine")}
kinds["plain, cosine"] = (plain, "cosine")
matrices = {
    name: class_relations(run, 60, len(run.probes[60].embeddings), kind)
    for name, (run, kind) in kinds.items()
}
lifts = {name: superclass_lift(m, superclass) for name, m in matrices.items()}
compare("Largest lift", my_largest, max(lifts, key=lifts.get))
print(", ".join(f"{name} {lift:.2f}" for name, lift in lifts.items()))

# %% [markdown]
# **Answer.** The trained relation, by far. But a lift depends on the *scale*.
# Embeddings after a ReLU have no negative entries, so their cosines are 0 or more, the
# moved values lie between 0.5 and 1, and the lift cannot exceed 2. The AUC uses the
# order only: it is the probability that a random pair of classes within a superclass is
# more related than a random pair between two. Chance is 0.5.
#
# **Predict:** the AUC of the trained relation and of the plain network's cosine.

# %%
my_trained, my_plain = None, None

aucs = {name: same_class_auc(m, superclass) for name, m in matrices.items()}
compare("Trained", my_trained, aucs["trained"], atol=0.03, digits=2)
compare("Plain, cosine", my_plain, aucs["plain, cosine"], atol=0.03, digits=2)
print(f"Cosine of CORSD with class KD: {aucs['cosine']:.2f}")
before = same_class_auc(class_relations(corsd, 0, 3, "cosine"), superclass)
print(f"Cosine before training: {before:.2f}")
ranks = {n: m.flatten().argsort().argsort().view(100, 100) for n, m in matrices.items()}
lifts_of_ranks = {n: superclass_lift(r.float(), superclass) for n, r in ranks.items()}
print("lift of the ranks:", {n: round(v, 2) for n, v in lifts_of_ranks.items()})

# %% [markdown]
# **Answer.** In the order of pairs the three are close, and far above the same network
# before training (0.53). If each score is replaced by its rank, so that all have the
# same scale, their lifts are close, too: 1.68, 1.66 and 1.60. So most of the large
# difference in lift was a difference of scale.

# %% [markdown]
# ## Explore it
#
# Choose an exit, an epoch and an order. Select a superclass such as `people`. With
# *subtract*, compare with the deepest exit or the plain network.
#
# **Find** the most related pair of one of the `people` and a class that is not one.
# Would you confuse them?

# %%
explorer = RelationExplorer(corsd, plain)
explorer.order = "superclass_cluster"
explorer.selection = ("oak_tree", "pine_tree")
display(explorer)

# %% [markdown]
# ![The figure of the relation explorer: a heatmap of 100 by 100 classes, grouped by
# superclass, with bright blocks along the diagonal and larger, paler ones where animals
# meet animals.](images/05_relation_explorer.png)
#
# *CORSD with class KD at its deepest exit after the last epoch,* classes grouped by
# superclass and clustered within. The frame marks the oak (row) with the pine (column).
# The axes name every fourth class.

# %% [markdown] tags=["solution"]
# *An answer.* Boy with hamster (0.89, the mean of both orders). The deepest exit does
# not confuse the two: it takes no boy for a hamster and no hamster for a boy (nor any
# of the three boys for a boy). With three images per class such a pair may be chance.
# [07_relation_explorer](07_relation_explorer.ipynb) tests how stable such lists are.

# %% [markdown]
# ### Exercise 2, implement: mistakes within the superclass
#
# Confusing an oak with a pine is a smaller mistake than confusing it with a bus. Of all
# *wrong* predictions, return the share (0 to 1, a Python number) that stays in the
# right superclass, for `logits` (N, C), `labels` (N,) and `superclass` (C,).


# %% tags=["exercise"]
def good_mistakes(logits, labels, superclass):
    return ...


# %% tags=["solution"]
def good_mistakes(logits, labels, superclass):
    predicted = logits.argmax(dim=1)
    wrong = predicted != labels
    right_group = superclass[predicted] == superclass[labels]
    return right_group[wrong].float().mean().item()


# %% tags=["check"]
predicted, truth = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([0, 0, 0, 0, 3])
share = good_mistakes(torch.eye(4)[predicted], truth, torch.tensor([0, 0, 1, 1]))
answered(share)
share = float(share)
expect(abs(share - 0.4) > 1e-4, "a correct prediction is no mistake: wrong ones only")
expect(abs(share - 0.2) > 1e-4, "divide by the number of mistakes, not of images")
expect(
    abs(share - 0.6) > 1e-4, "that is the share in *another* superclass, of all images"
)
expect(abs(share - 0.25) < 1e-4, f"{share:.2f}, but one of four mistakes stays inside")
print("Exercise 2: correct.")

# %% [markdown]
# A random wrong class is in the right superclass 4 times in 99. Each share below is of
# about two hundred mistakes, so its 95 % interval is about ± 6 points, and two lines
# can differ by about 9 points by chance.

# %% tags=["uses-answer"]
for name, run in {"CORSD with class KD": corsd, "plain": plain}.items():
    by_exit = run.probes[run.config.epochs].logits
    for k, logits in enumerate(by_exit, 1):
        share = good_mistakes(logits.float(), run.probes.labels, superclass)
        print(f"{name}, exit {k} of {len(by_exit)}: {share:.0%}")
print(f"guessing: {4 / 99:.0%}")

# %% [markdown]
# **Answer.** In the runs saved here 24 % to 30 % of the mistakes stay inside the
# superclass, six to seven times as many as by guessing. The plain network has 26 %, so
# no relation term is needed for that.

# %% [markdown]
# ## The full recipe
#
# All runs above are small, so that they fit into the repository. This is a training at
# the usual scale, for a GPU: a ResNet-18 on all images, 200 epochs.
# Options that are not named keep their defaults.

# %% tags=["nbval-check-output"]
recipe = TrainConfig(
    data="cifar100",
    network="resnet18",
    method="corsd",
    epochs=200,
    batch_size=128,
    precision="bf16-mixed",  # half the bytes, on GPUs that support it
    channels_last=True,
)
batches = -(-50_000 // recipe.batch_size)  # rounded up
print(f"{batches * recipe.epochs:,} steps, {50_000 * recipe.epochs:,} images")

# %% [markdown]
# From a terminal, with a plain network to compare with. `--resume` makes the command
# safe to repeat: it continues where the training was stopped. (The method `corsd` has
# class KD unless its weight is set to 0.) Several GPUs: `--devices 4`. Several seeds
# with intervals: `corsd compare`.
#
# ```bash
# corsd data cifar100 --download
# for method in baseline corsd; do
#   corsd train --data cifar100 --network resnet18 --method $method \
#     --epochs 200 --batch-size 128 --precision bf16-mixed --channels-last \
#     --out runs/resnet18-$method --resume
# done
# ```

# %% [markdown]
# ### What it costs
#
# Cost is counted in multiply-accumulates (MACs): those per training image, forward and
# backward, times the number of images in all epochs together. The committed run is the
# one of CORSD with class KD that is used above.
#
# **Predict:** how many thousand times as much arithmetic does the full recipe need as
# the committed run?

# %%
my_thousands = None

ours, full = (training_macs(config, corsd.data) for config in (corsd.config, recipe))
each, more = full / ours, 50_000 * recipe.epochs / int(corsd.metrics["images"].sum())
print(
    f"each image costs {each:.0f} times as much, and there are {more:.0f} times as many"
)
compare("Thousands", my_thousands, each * more / 1000, atol=1, digits=1)

# %% [markdown]
# **Answer.** About 2,700 times. The committed run took about six minutes on a machine
# with two cores; 2,700 times that is between eleven and twelve days (an estimate: time
# may not grow in proportion to arithmetic). That is why the recipe needs a GPU.
# Network, images and epochs all differ, so a gain or a loss in the small study says
# little about the full recipe.

# %% [markdown]
# ## Answer: what do exits, class KD and relations add on CIFAR-100?
#
# > **What we found.** *Accuracy:* with CORSD with class KD, ResNet-10 gains 4.2 [3.1,
# > 5.4] points over the plain network (five seeds), and 4.8 [2.9, 6.7] on the three
# > seeds that all variants have. Of the 4.8, exits alone (deep supervision) give 2.3
# > [0.1, 4.5], the paper's terms another 0.3 [-0.7, 1.4] and class KD 2.2 [0.8, 3.6];
# > these steps also differ in weights and batches. Together with class KD, relation
# > terms change the accuracy by 0.1 [-0.5, 0.8]. *Superclasses:* the relation reveals
# > them (AUC 0.83), and so does the cosine of the plain network (0.79). The full recipe
# > has 2,700 times the arithmetic of the small run.
# >
# > **How sure we are.** We are sure of the gain, less of its parts (three seeds), and
# > unsure of the AUC (one run).
# >
# > **What it does not show.** The full recipe was not trained.

# %% [markdown]
# ## Exercise 3, predict and experiment: chance level of the lift
#
# Shuffle which class belongs to which superclass, 200 times, and compute the lift of
# the trained relation each time ([06](06_cub200.ipynb) explains such tests). Hint:
# `torch.randperm(100)` is a random order; apply
# it to `superclass` and leave `matrix` as it is. Predict two numbers first: the largest
# of the 200 values, and the percentage of the shuffles that reach the true lift.

# %%
my_largest_shuffled, my_reached = None, None  # a lift, and percent
# Your code: a list `shuffled` of 200 lifts.
shuffled = []

# %%
if shuffled:
    expect(len(shuffled) == 200, f"200 lifts are asked for, not {len(shuffled)}")
    expect(len(set(shuffled)) > 1, "all lifts are equal: is each a new order?")
    compare("Largest of 200", my_largest_shuffled, max(shuffled), atol=0.1, digits=2)
    reached = sum(v >= lifts["trained"] for v in shuffled) / 2
    compare("Reach the true lift", my_reached, reached, " %", atol=1, digits=1)

# %% [markdown] tags=["solution"]
# ```
# groups_of = [superclass[torch.randperm(100)] for _ in range(200)]
# shuffled = [superclass_lift(matrix, g) for g in groups_of]
# ```
#
# *A good answer* reports the largest value (between 1.1 and 1.2 in four tries) and that
# no shuffle reaches 2.14. It says that a shuffle keeps the sizes of the groups, which
# is what makes it a fair chance level.

# %% [markdown]
# ## Exercise 4, explain (open)
#
# CORSD with class KD gains 4.2 points with the larger network; one seed of the small
# one (ResNet-8) shows -0.2. Suppose that more seeds confirm that the small network
# gains nothing. Write down three explanations. For each, name an experiment that would
# refute it, with the variants to compare, the seeds and the measure. Which of them
# could you run on a laptop?

# %% [markdown] tags=["answer"]
# *Write your answer here.*

# %% [markdown] tags=["solution"]
# *A good answer* has testable explanations. (a) Capacity: vary the width alone. (b) The
# fourth exit: take one exit away. (c) Loss weights, which were searched for the larger
# network only: search them for the small one, too. (d) Memorising: the larger plain
# network reaches 96 % on its training images, the small one 58 %; match the train
# accuracy with more epochs. Against (d): on birds ([06](06_cub200.ipynb)) the small
# plain network has 60 %, and CORSD with class KD is 3.2 points above it (one seed). It
# fixes variants and seeds before training and estimates the cost in MACs.

# %% [markdown]
# ## Where next
#
# - [06_cub200](06_cub200.ipynb): birds, and attributes that tell what two birds share.
# - [07_relation_explorer](07_relation_explorer.ipynb): a guided tour of the explorer.
# - [11_compare_methods](11_compare_methods.ipynb): the studies that these runs are
#   from.
# - With the data: set `train_here`, raise `epochs` and `per_class`, or set `method` to
#   `byot`.
