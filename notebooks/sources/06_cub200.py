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
# # 06 Do relations find what birds share?
#
# A relation network says that two images are "related". Related *in what*? On most data nobody can check, because nobody has
# written down what two classes have in common. For birds somebody has. CUB-200-2011 holds photographs of 200 species, and
# for every species how often people saw each of 312 attributes: a hooked bill, a red crown, striped wings. **So we can ask
# whether the relation that a network learned from names alone agrees with what people see.**
#
# **You will learn**
#
# - what fine-grained classes ask for, and the recipe for a GPU;
# - how to turn a table of attributes into a similarity of classes, and compare it with a relation by *ranks*;
# - how to find out what chance would give, by shuffling;
# - which easier explanations to rule out before you say that a network "has understood" something.
#
# **You need** [05_cifar100](05_cifar100.ipynb), for the lift and why ranks are fairer than ratios. The data are *not* needed.
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

import numpy as np
import pandas as pd
import plotly.express as px
import torch
from IPython.display import display

from corsd_lib import RelationExplorer, TrainConfig, TrainingMonitor, committed_run, train
from corsd_lib.analysis import class_relations
from corsd_lib.analysis.relations import attribute_agreement, same_class_auc, spearman, superclass_lift
from corsd_lib.datasets import data_root
from corsd_lib.figures import exit_names, relation_heatmap, template
from corsd_lib.files import read_json
from corsd_lib.tables import with_interval

torch.set_num_threads(1)  # the networks are small: a second thread would wait more than it works

# %% [markdown]
# Set `train_here` to `True` to train a little yourself. That needs the data: `corsd data cub200 --download` fetches 1.2 GB into
# the folder that the environment variable `CORSD_DATA` names. Everything else reads without them.

# %% tags=["parameters"]
train_here = False  # a short training on the real images
method = "corsd"  # of that training
epochs = 2  # passes over its images
per_class = 10  # photographs of each species, of 29 or 30
seed = 0
run_directory = "runs/06_cub200"

# %% [markdown]
# ## Two hundred birds
#
# The set has no superclasses. Ours is the last word of a name: a *Song Sparrow* is a sparrow. That is a rough guess at
# kinship, made by a computer from English names, and many words stand for a single species.

# %% tags=["nbval-check-output"]
corsd, plain = committed_run("cub200_small/corsd"), committed_run("cub200_small/baseline")
names, families = corsd.data.class_names, corsd.data.superclass_names
family = torch.tensor(corsd.data.superclass_of_class)
sizes = family.bincount()
print(f"{len(names)} species, {len(families)} last words, {int((sizes == 1).sum())} of them of one species only")
print("largest:", ", ".join(f"{families[f]} {sizes[f]}" for f in sizes.argsort(descending=True, stable=True)[:5]))
print("wrens:", ", ".join(name for name in names if name.endswith("Wren")))

# %% [markdown]
# These classes are *fine-grained*: what tells a Carolina Wren from a House Wren at a glance is a white eyebrow. There are 29
# or 30 training images of each species, and in most of them the bird fills only a part of the picture.

# %% [markdown]
# ## The full recipe
#
# Fine detail needs pixels: 224 of them to a side, cut out around the bird by the boxes that come with the set. This is for a
# GPU. People mostly start from a network that was trained on ImageNet (`pretrained=True`); that is another question, because
# some of those birds are in ImageNet, too.

# %% tags=["nbval-check-output"]
recipe = TrainConfig(
    data="cub200",
    image_size=224,
    crop_to_box=True,
    network="resnet18",
    method="corsd",
    epochs=200,
    batch_size=64,
    precision="bf16-mixed",
    channels_last=True,
)
pixels = {name: config.image_size**2 for name, config in {"recipe": recipe, "committed run": corsd.config}.items()}
print(f"the recipe shows {pixels['recipe'] / pixels['committed run']:.0f} times as many pixels of each bird")

# %% [markdown]
# From a terminal:
#
# ```bash
# corsd data cub200 --download
# for method in baseline corsd; do
#   corsd train --data cub200 --image-size 224 --crop-to-box --network resnet18 --method $method --epochs 200 \
#     --batch-size 64 --precision bf16-mixed --channels-last --out runs/cub-$method --resume
# done
# ```
#
# **The committed runs below are not of this recipe.** They saw birds at 64 pixels, in a small network, from scratch, on a CPU.
# They are here to be looked into.

# %% [markdown]
# ## A short training of your own
#
# If you asked for it above, the cell trains on real photographs while you watch (decoding them takes a while first). If
# not, the monitor shows the committed run, from its record.

# %%
short = replace(
    corsd.config,
    method=method,
    method_options={},
    per_class=per_class,
    epochs=epochs,
    probe_size=400,
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
# ![The training monitor after a CORSD training on birds. Left: train accuracy of the exits and parts of the loss over the
# epochs. Right: a relation matrix of 200 species.](images/06_monitor.png)
#
# *The monitor on the committed CORSD run, as a picture*: train accuracy by exit, the parts of the loss, and the relation of
# 200 species with each other.

# %% [markdown]
# How many birds does it name? With 200 species, guessing is right once in 200 times. **Predict:** is the deepest exit of the
# committed run above 10 %? Above 50 %?

# %%
for name, run in {"plain": plain, "CORSD": corsd}.items():
    top1, top5 = ([f"{e[key]:.1f}" for e in run.test["exits"]] for key in ("top1", "top5"))
    print(f"{name:6} % of test images right, by exit: {', '.join(top1)}; among its first five answers: {', '.join(top5)}")

# %% [markdown]
# One seed each, a short training, small pictures. Do not read a winner from this; read that both know *something*, which is
# all that the rest needs. Who is ahead is a question for several seeds. The study `cub200` asks it with a wider network. This
# is what its records say so far, as points over the plain network, paired by seed.

# %%
file = corsd.path.parents[2] / "cub200" / "summary.json"
wide = read_json(file)["methods"] if file.is_file() else {}
gains = {m["label"]: (m["n"], m["gain"], m["gain_low"], m["gain_high"]) for m in wide.values() if m["gain"] is not None}
for label, (n, gain, low, high) in gains.items():
    print(f"{label:20} {with_interval(gain, low, high, sign='+')} points, seeds: {n}")
print(f"methods with a record in the wider study: {len(gains)}")

# %% [markdown]
# Is there an interval, and does it hold zero? If the list is empty, the study is still to be trained.
# [11_compare_methods](11_compare_methods.ipynb) says how to read such lines. Now to what relations know.

# %% [markdown]
# ## First question: families
#
# The labels are 200 numbers. Nothing in a training says that species 113 and 114 are both sparrows. Does the relation put
# them together? Here are the families of seven and more.

# %%
last = corsd.config.epochs
matrix = class_relations(corsd, last, exit=len(corsd.probes[last].relations))
large = torch.cat([(family == f).nonzero().flatten() for f in (sizes >= 7).nonzero().flatten()])
lift = superclass_lift(matrix, family)
title = f"All 200 species: those of one family are {lift:.2f} times as related as others"
relation_heatmap(matrix[large][:, large], [names[c] for c in large], title, groups=family[large], group_names=families)

# %% [markdown]
# **Look for** a family that is bright as a block, and one that falls apart. Flycatchers share a way to hunt; gulls share
# white and grey. Which of the two is a camera likely to see? Single cells come from two photographs of each species: trust
# blocks.

# %% [markdown]
# ### What would chance give?
#
# The lift is above 1 or it is not; but how far above could it be if families meant nothing? **Shuffle**: deal the family
# names to the species at random, compute the lift, and do that many times. Sizes of families and values of the matrix stay
# as they are; only the link between them is cut.

# %%
generator = torch.Generator().manual_seed(seed)
shuffled = [superclass_lift(matrix, family[torch.randperm(len(family), generator=generator)]) for _ in range(500)]
beyond = sum(value >= lift for value in shuffled)
title = f"Of {len(shuffled)} shuffled lifts, {beyond} are as large as the true one, {lift:.2f}"
ends = [min(*shuffled, lift) - 0.01, max(*shuffled, lift) + 0.01]
look = {"title": title, "labels": {"x": "lift"}, "range_x": ends, "template": template(), "height": 360}
px.histogram(x=shuffled, **look).add_vline(x=lift, line_dash="dot")

# %% [markdown]
# If hardly any shuffled lift reaches the dotted line, chance is ruled out as the explanation. *Only* chance: that the network
# has an idea of families is one explanation, that gulls are all photographed against the sky is another.
#
# ### Whose merit is it?
#
# And is it *CORSD* that found the families? The embeddings have a relation without any relation network, their cosine, and the
# plain network has embeddings as well. Scales differ, so we ask by ranks: how often is a pair of one family more related than a
# pair of two (AUC, one half is chance)? **Predict** the order of the three.

# %%
asked = {"CORSD, trained": (corsd, "trained"), "CORSD, cosine": (corsd, "cosine"), "plain, cosine": (plain, "cosine")}
for name, (run, kind) in asked.items():
    relation = class_relations(run, last, len(run.probes[last].embeddings), kind)
    print(f"{name:15} AUC {same_class_auc(relation, family):.2f}")

# %% [markdown]
# If the three are alike, families were learned by the *features*, in any network that has to tell species apart, and the
# relation network reads them off. It is a good reader then, and no discoverer.

# %% [markdown]
# ## Second question: attributes
#
# A table of attributes makes a similarity of classes. Take four birds and five yes-or-no attributes of our own. Each row is
# a vector, and the *cosine* of two rows says how far they point the same way: 1 for the same attributes, 0 for none in
# common. **Predict:** which bird is nearest to the cardinal?

# %% tags=["nbval-check-output"]
birds = ["Cardinal", "Summer Tanager", "Mallard", "Herring Gull"]
toy = torch.tensor([[1, 1, 0, 0, 1], [1, 0, 0, 0, 1], [0, 0, 1, 1, 0], [0, 0, 1, 0, 0]]).double()
# red, crest, webbed feet, broad bill, sings in trees
unit = toy / toy.norm(dim=1, keepdim=True)
similarity = unit @ unit.T
for name, row in zip(birds, similarity, strict=True):
    print(f"{name:15}", [f"{100 * value:.0f} %" for value in row])

# %% [markdown]
# ### Agreement by ranks
#
# Now two matrices over the same classes: what people see, and what the network relates. We ask whether *the same pairs* stand
# high in both, whatever the scales: replace each value by its rank, and take the correlation of the ranks. That is
# Spearman's correlation, from -1 (opposite order) over 0 (nothing in common) to 1 (same order).


# %%
def rank_correlation(first, second):
    ranks = torch.stack([first.argsort().argsort(), second.argsort().argsort()]).double()  # (2, n), without ties
    centred = ranks - ranks.mean(dim=1, keepdim=True)
    return (centred[0] @ centred[1] / (centred[0].norm() * centred[1].norm())).item()


# %% [markdown]
# The library's `spearman` also gives equal values the mean of their ranks. Where there are none, both agree; and a change of
# scale, here the exponential, changes nothing.

# %% tags=["nbval-check-output"]
first, second = torch.randn(2, 200, generator=torch.Generator().manual_seed(0)).double()
assert abs(rank_correlation(first, second) - spearman(first, second)) < 1e-9
assert abs(rank_correlation(first.exp(), second) - rank_correlation(first, second)) < 1e-9
print("same order:", round(rank_correlation(first, first.exp())), " opposite:", round(rank_correlation(first, -first)))

# %% [markdown]
# ### The birds
#
# `attribute_agreement` does all of it: cosine of the attributes of all 19,900 pairs of species, and the rank correlation with
# their relation. The table of attributes belongs to the data set and may not be copied into this repository. **Where the data
# are, the cell below computes; else it reads what was computed** (by `results/attribute_agreement.py`).
#
# Three quarters of the 312 attributes are colours, of the crown, of the belly, of the wings. So we ask three times: all of
# them, colours only, and all but colours.


# %%
def agreements(run, kind, attributes, is_colour):
    rows = []
    for epoch, snapshot in run.probes.items():
        for k in range(1, len(snapshot.relations) + 1):
            relation = class_relations(run, epoch, k, kind)
            for part, columns in {"all 312": slice(None), "colours": is_colour, "not colours": ~is_colour}.items():
                value = attribute_agreement(relation, attributes[:, columns])
                rows.append({"epoch": epoch, "exit": k, "attributes": part, "agreement": value})
    return rows


# %%
folder = data_root() / "CUB_200_2011"
values = folder / "attributes" / "class_attribute_labels_continuous.txt"
if values.is_file():
    attributes = torch.from_numpy(np.loadtxt(values))  # (200 species, 312 attributes), in %
    is_colour = torch.tensor(["_color::" in line for line in (folder / "attributes.txt").read_text().splitlines()])
    found = {name: agreements(*which, attributes, is_colour) for name, which in asked.items()}
else:
    found = read_json(corsd.path.parents[1] / "attribute_agreement.json")
table = pd.concat({name: pd.DataFrame(rows) for name, rows in found.items()}, names=["relation"]).reset_index(0)

# %% [markdown]
# **Predict** before you look: the agreement at the deepest exit, from 0 to 1. Is the shallowest exit, which sees small patches,
# nearer to *colours*? And where was all this before training?

# %%
mine = table[(table["relation"] == "CORSD, trained") & (table["epoch"] == last)]
best = mine.loc[mine["agreement"].idxmax()]
title = f"Highest agreement: {best['agreement']:.2f}, at exit {best['exit']} with {best['attributes']} (1 = same order)"
bars = mine.assign(exit=mine["exit"].map(dict(enumerate(exit_names(mine["exit"].max()), 1))))
px.bar(bars, x="exit", y="agreement", color="attributes", barmode="group", title=title, template=template(), height=400)

# %% [markdown]
# Even a perfect relation would not reach 1: species are told apart by few attributes, and people differ in what they see.
# Read off whether it is far from 0, and whether colours or the rest come first.

# %% [markdown]
# ## Easier explanations
#
# Three of them, to be ruled out one by one.
#
# **1. An untrained network may do it, too.** Convolutions with random weights keep colours apart. Compare epoch 0 with the
# end. **2. No relation network is needed.** The *cosine* of CORSD's embeddings may agree as well as its trained relation.
# **3. No CORSD is needed.** The cosine of the plain network's embeddings may agree as well as both.
#
# **Predict** the order of these three after training.

# %%
deepest = table[table["attributes"] == "all 312"].groupby(["relation", "epoch"], sort=False).tail(1)
final = deepest[deepest["epoch"] == last].set_index("relation")["agreement"].sort_values(ascending=False)
title = "Deepest exit, all attributes, after training: " + "; ".join(f"{name} {value:.2f}" for name, value in final.items())
look = {"barmode": "group", "title": title, "template": template(), "height": 420}
when = deepest.assign(when=deepest["epoch"].map({0: "before training", last: f"after {last} epochs"}))
px.bar(when, x="when", y="agreement", color="relation", pattern_shape="relation", labels={"when": ""}, **look)

# %% [markdown]
# Read the bars. Did *training* raise the agreement, or was it there from the start? And is the *trained relation* nearest to
# what people see, or does a cosine do as well? If it does, then relations agree with attributes because *features* do, and
# the relation network deserves no praise for it. A careful answer names all three numbers, and says that each comes from
# one seed.

# %% [markdown]
# ## Explore it
#
# The explorer opens on the warblers, the largest family. Take another under *superclass*, or all. Where the data are, a click
# on a cell also shows two photographs.
#
# **Look at** the pair beside the heatmap: of all 200 species these two are the most related at the deepest exit. Look them up:
# do they share a colour, a pose, a background? Then **look for** the most related pair of warblers, and choose *cosine* as the
# relation. Is it the same pair?

# %%
explorer = RelationExplorer(corsd, plain)
explorer.superclass = "Warbler"
display(explorer)

# %% [markdown]
# ![The figure of the relation explorer: a heatmap of 25 by 25 warblers, uneven in brightness, with some rows and columns that
# stand out.](images/06_relation_explorer.png)
#
# *The explorer's figure, as a picture*: the 25 warblers at the deepest exit after the last epoch. Bright cells beside the
# diagonal are species that the network holds to be related.

# %% [markdown]
# ## Recap
#
# - **Attributes** give what is rare: something to check a relation against that no label contained.
# - Two similarities are compared by the **ranks** of their pairs, so that scales do not matter.
# - **Shuffling** shows what chance gives. It rules out chance, and nothing else.
# - An **untrained network**, a **cosine** and a **plain network** are the comparisons that a claim about "what relations find"
#   needs.
# - Families are our guess from names; attributes are what people saw. Neither is the truth about birds.

# %% [markdown]
# ## Exercise 1: similarity from attributes
#
# `attributes` (C, A) holds a row for each class. Return the *cosine similarity* of all pairs of classes, (C, C). Classes with
# many attributes should not look more alike for having many.


# %% tags=["exercise"]
def attribute_similarity(attributes):
    return ...


# %% tags=["solution"]
def attribute_similarity(attributes):
    unit = attributes / attributes.norm(dim=1, keepdim=True)
    return unit @ unit.T


# %% tags=["check"]
made_up = torch.tensor([[3.0, 4.0, 0.0], [6.0, 8.0, 0.0], [0.0, 0.0, 5.0]])  # the second is the first, twice as strong
found_similarity = attribute_similarity(made_up)
assert isinstance(found_similarity, torch.Tensor), "there is no answer yet: write yours in place of the `...`"
assert found_similarity.shape == (3, 3), "a value for each pair of classes: (C, C)"
assert torch.allclose(found_similarity.diag(), torch.ones(3)), "a class is like itself: divide rows by their length"
assert abs(found_similarity[0, 1] - 1) < 1e-5 and abs(found_similarity[0, 2]) < 1e-5, "direction counts, not strength"
print("Exercise 1: right.")

# %% [markdown]
# ## Exercise 2: how surprising is it?
#
# `observed` is a measured value, `shuffled` a list of values under shuffling. Return the *p-value* of a shuffle test: the
# share of values at least as large as the observed one, **with the observed one counted among them**. So it is never 0: one
# of `n + 1` orders is the true one, and with few shuffles you cannot claim much.


# %% tags=["exercise"]
def p_value(observed, shuffled):
    return ...


# %% tags=["solution"]
def p_value(observed, shuffled):
    return (1 + sum(value >= observed for value in shuffled)) / (1 + len(shuffled))


# %% tags=["check"]
p = p_value(3, [1, 2, 3, 4])
assert p is not ..., "there is no answer yet: write yours in place of the `...`"
assert p_value(9, [1, 2, 3, 4]) > 0, "it is never 0: count the observed value, too, above and below the line"
assert abs(p - 3 / 5) < 1e-6, "3 and 4 are at least as large, and the observed one: 3 of 5"
assert abs(p_value(9, [1, 2, 3, 4]) - 1 / 5) < 1e-6, "with four shuffles it cannot be below 1 in 5"
print("Exercise 2: right.")

# %% [markdown]
# Your function on the families, at every exit. Is the shallowest exit's lift already beyond chance? With 200 shuffles, the
# smallest p that you can find is 1 in 201.

# %% tags=["uses-answer"]
for k, relation in enumerate(corsd.probes[last].relations, 1):
    dealt = [superclass_lift(relation, family[torch.randperm(len(family), generator=generator)]) for _ in range(200)]
    true_lift = superclass_lift(relation, family)
    print(f"exit {k}: lift {true_lift:.2f}, p = {p_value(true_lift, dealt):.3f}")

# %% [markdown]
# ## Where next
#
# - [07_relation_explorer](07_relation_explorer.ipynb): a guided tour of the explorer.
# - [08_class_structure](08_class_structure.ipynb): how classes tighten and part with depth.
# - [10_attribution](10_attribution.ipynb): *which pixels* made two images related: the bird, or its branch?
# - With the data: set `train_here`, raise `epochs` and `per_class`. From a terminal:
#   `papermill solutions/06_cub200.ipynb out.ipynb -p train_here True -p epochs 10`.
