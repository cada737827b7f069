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
# # 07 What has the network learned to relate?
#
# A hundred classes make 4,950 pairs, each in two orders. You search their scores with
# an explorer and test each observation with a few lines of Python. **Which observations
# are insights (a test confirms them), which are confusions of the network, and which
# disappear when images are left out?**
#
# **You will learn**
#
# - to read a relation matrix of 100 classes: select, order, group, subtract;
# - why the most related pair is not the most interesting one;
# - to test whether exits differ, and to follow how a relation forms;
# - how to compare relations with different scales;
# - to test whether a result stays when some images are left out.

# %% [markdown]
# **You need** [01_walkthrough](01_walkthrough.ipynb), and
# [03_relations](03_relations.ipynb) for the AUC. Nothing is trained and nothing is
# downloaded. **Run time:** about 1 minute on two CPU cores. **Learning time:** 40
# minutes with the explorer, 40 minutes for the four exercises.

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
from collections import Counter

import pandas as pd
import plotly.express as px
import torch
from IPython.display import display

from corsd_lib import RelationExplorer, committed_run, relation_matrix, sample_run
from corsd_lib.analysis import class_relations, run_pixels, same_class_auc
from corsd_lib.analysis import snapshot_scores, superclass_lift
from corsd_lib.course import answered, compare, expect
from corsd_lib.figures import PALETTE, image_strip, relation_difference
from corsd_lib.figures import relation_heatmap, template

torch.set_num_threads(1)  # one thread is faster for tables this small

# %% [markdown]
# The text describes one run. With another run or epoch the questions stay the same and
# the answers change.

# %% tags=["parameters"]
run_directory = "cifar100_small/corsd"  # a run of a study in results/
epochs = 60  # the snapshot to look at: 0, 5, 15, 35 or 60
seed = 0  # of the random groups that the real ones are compared with

# %% [markdown]
# **How predictions work.** Some cells ask for a prediction before a result. Replace
# `None` by your value and run on: the notebook prints it beside the outcome.

# %% [markdown]
# ## The run
#
# A small ResNet with three exits, trained with CORSD with class KD
# ([04](04_class_oriented.ipynb)) on 100 images of each CIFAR-100 class. Its snapshots
# contain the outputs for 300 *validation* images. Classes belong to superclasses of
# five (trees, people, fish), **which the training did not use.**
#
# The relation of two classes is the mean score of their pairs of images. With the
# images $\mathcal{I}_c$ of class $c$ and the scores $r_{ij}$:
#
# $$R_{cd} = \frac{1}{|\mathcal{I}_c| \, |\mathcal{I}_d|} \sum_{i \in \mathcal{I}_c}
# \sum_{j \in \mathcal{I}_d} r_{ij}$$
#
# On the diagonal ($c = d$) an image is not paired with itself: these $|\mathcal{I}_c|$
# pairs count neither in the sum nor in the number of pairs.

# %% tags=["nbval-check-output"]
run = committed_run(run_directory)
names = [name.replace("_", " ") for name in run.data.class_names]
groups = [name.replace("_", " ") for name in run.data.superclass_names]
labels = run.probes.labels
superclass = torch.tensor(run.data.superclass_of_class)
print(f"{len(names)} classes in {len(groups)} superclasses, {len(labels)} images")
print("snapshots after epochs", list(run.probes))

# %%
deep = class_relations(run, epochs, exit=3)  # (100, 100)
scores = snapshot_scores(run, epochs, exit=3)  # (300, 300)
rose, tulip = names.index("rose"), names.index("tulip")
by_hand = scores[labels == rose][:, labels == tulip].mean()
print(f"rose with tulip: {by_hand:.2f} by hand, {deep[rose, tulip]:.2f} in the matrix")

# %% [markdown]
# ## Look first
#
# Spend five minutes with the explorer. It opens on a rose and a tulip.
#
# - **Click** a cell or use the arrow keys: the pair appears at every exit, in both
#   orders.
#   **Drag** a rectangle to zoom; *reset view* returns; Ctrl-Z undoes.
# - **find a class** opens a class with its most related class. **Notable pairs**
#   lists pairs.
# - Where CIFAR-100 is installed (`CORSD_DATA`), images appear as well.
#
# **Predict:** which two *different* classes are the most related, in the mean of both
# orders? Predict before you open **Notable pairs**, which lists them.

# %%
my_pair = None  # for example "oak tree with pine tree"

# %%
explorer = RelationExplorer(run)
explorer.epoch, explorer.selection = epochs, ("rose", "tulip")
display(explorer)

# %% [markdown]
# ![The relation explorer's heatmap of 100 by 100 classes in alphabetical order, deepest
# exit, last epoch. A thin bright diagonal, bright specks and stripes all over, no
# visible order.](images/07_explorer.png)
#
# *The deepest exit after the last epoch.* The thin diagonal is every class with itself.
# The other cells look like noise with stripes: some rows and columns are bright
# throughout. The frame marks the rose (row) with the tulip (column).

# %% [markdown]
# ## Observation 1: the most related pair


# %%
def most_related(matrix, count=10):
    """Pairs of different classes with the largest mean of both orders."""
    i, j = torch.triu_indices(len(matrix), len(matrix), 1)
    mean = (matrix[i, j] + matrix[j, i]) / 2
    best = mean.argsort(descending=True, stable=True)[:count]
    return list(zip(i[best].tolist(), j[best].tolist(), strict=True))


# %% tags=["nbval-check-output"]
top = most_related(deep)  # whatever is selected in the explorer
first, second = top[0]
if my_pair is not None:  # the order and "_" do not matter
    my_pair = " with ".join(sorted(my_pair.replace("_", " ").split(" with ")))
compare("Most related", my_pair, f"{names[first]} with {names[second]}")
print("superclasses:", groups[superclass[first]], "and", groups[superclass[second]])

# %% [markdown]
# Both animals live in rivers. Did the network learn that from 100 photographs of each?
# Look at the ten most related pairs first.

# %% tags=["nbval-check-output"]
for first, second in top:
    shared = "same superclass" if superclass[first] == superclass[second] else ""
    print(f"{names[first]:>10} with {names[second]:<12} {shared}")

# %% [markdown]
# Rivers do not explain why the beaver is related to the wolf. What does the *exit*
# predict for the images?


# %%
def predicted(name):
    logits = run.probes[epochs].logits[-1].float()
    guesses = logits[labels == names.index(name)].argmax(dim=1)
    return ", ".join(names[c] for c in guesses)


# %% tags=["nbval-check-output"]
for name in ("beaver", "crocodile", "oak tree", "pine tree"):
    print(f"images of {name:<10} are predicted as {predicted(name)}")

# %% [markdown]
# **Answer.** None of the three beavers is recognised: two are taken for a porcupine and
# one for a crocodile. That can explain why the beaver is related to these two, but not
# to the wolf. Oak and pine are recognised in two of three images and are related, too.
# **A high relation can be an insight or a confusion. The matrix alone does not tell
# which.**

# %% [markdown]
# ### How many related pairs are confused?
#
# The beaver is one example. Call two classes *confused* if the exit takes an image of
# one for the other.
#
# **Predict:** in how many of the 50 most related pairs does the exit confuse the two
# classes?

# %%
my_confused = None  # 0 to 50

guesses = run.probes[epochs].logits[-1].argmax(dim=1)
confused = torch.zeros(len(names), len(names), dtype=torch.bool)
confused[labels, guesses] = True
confused = (confused | confused.T).fill_diagonal_(False)


def confused_pairs(order, matrix=deep):  # of the 50 most related, in this order
    first, second = torch.tensor(most_related(matrix, 50)).T
    return confused[order[first], order[second]].sum().item()


generator = torch.Generator().manual_seed(seed)
orders = [torch.randperm(len(names), generator=generator) for _ in range(200)]
compare("Confused", my_confused, confused_pairs(torch.arange(100)), " of 50", atol=3)
chance = [confused_pairs(order) for order in orders]
print(f"classes in random order: {sum(chance) / 200:.1f}, at most {max(chance)} of 50")

# %% [markdown]
# **Answer.** 12 of 50. With the classes in random order it is 1.6 on average and at
# most 6 in 200 tries. So confused classes tend to be related. With three images a
# class, 12 is a lower limit: more images would show more confusions. Some classes are
# related to nearly all others. That may explain a part of the 12, and a random order
# destroys it. The next section removes this effect and counts again.

# %% [markdown]
# ### Popular classes
#
# The stripes are classes with a high relation to many others. Call the mean relation of
# a class to all others its *popularity*.
#
# **Predict:** the rank of the beaver in popularity among the hundred.

# %%
my_rank = None  # 1 to 100


def popularity(matrix):
    others = matrix.clone().fill_diagonal_(torch.nan)
    return (others.nanmean(dim=0) + others.nanmean(dim=1)) / 2  # (C,)


# %%
ranking = popularity(deep).argsort(descending=True).tolist()
compare("Rank of the beaver", my_rank, ranking.index(names.index("beaver")) + 1)
names_of_both = [names[c] for c in ranking[:10] + ranking[-10:]]
heights = popularity(deep)[ranking[:10] + ranking[-10:]].tolist()
bars = pd.DataFrame({"class": names_of_both, "mean relation": heights})
bars["bar"] = bars["class"].eq("beaver").map({True: "beaver", False: "others"})
gap = pd.DataFrame({"class": ["..."], "mean relation": [None], "bar": ["others"]})
bars = pd.concat([bars[:10], gap, bars[10:]])
look = {"color": "bar", "template": template(), "height": 400}
look["category_orders"] = {"class": bars["class"].tolist()}
title = "The ten most and the ten least popular classes"
figure = px.bar(bars, x="class", y="mean relation", title=title, **look)
figure.update_layout(showlegend=False)
mean = popularity(deep).mean().item()
said = {"annotation_text": f"mean of all 100: {mean:.2f}", "line_dash": "dot"}
figure.add_hline(y=mean, annotation_position="top right", **said)

# %% [markdown]
# Do the most related pairs consist of popular classes?

# %% tags=["nbval-check-output"]
in_pairs = Counter(c for pair in top for c in pair)
for c, count in in_pairs.most_common(4):
    print(f"{names[c]}: in {count} of the ten pairs, rank {ranking.index(c) + 1}")
popular = set(ranking[:10])
print("pairs with one of the ten most popular:", sum(bool(popular & {*p}) for p in top))
print("most popular of all:", names[ranking[0]], "- its pairs:", in_pairs[ranking[0]])

# %% [markdown]
# **Answer.** The beaver has rank 2. Six of the ten pairs contain the beaver or the
# crocodile, which are among the four most popular classes. But flatfish, the most
# popular of all, is in none. So popularity does not explain the whole list.
#
# The next question: which pairs are *more* related than the popularity of their classes
# explains?

# %% [markdown]
# ![Three tables of four made-up classes with invented numbers: the relation is the sum
# of what popularity predicts and a remainder. A with B has the higher relation, A with
# C the higher remainder.](images/concept_popularity.svg)
#
# For a pair, popularity predicts row mean + column mean - mean of the matrix. We
# subtract this prediction:
#
# $$E_{cd} = R_{cd} - \bar R_{c \cdot} - \bar R_{\cdot d} + \bar R_{\cdot \cdot}$$
#
# A bar and a dot mean an average over that index: $\bar R_{c \cdot}$ is the mean of row
# $c$, $\bar R_{\cdot d}$ that of column $d$ and $\bar R_{\cdot \cdot}$ that of the
# whole matrix. Here the means include the diagonal, so that all rows and columns of the
# remainder $E$ have the mean 0. (Popularity above leaves it out; it is one cell of a
# hundred in a row.)

# %% [markdown]
# ### Exercise 1, implement: beyond popularity
#
# Return $E$ for `matrix` (C, C), the diagonal included. All its rows and columns have
# mean zero. Hint: what does `keepdim=True` change in the shape of a mean?


# %% tags=["exercise"]
def without_popularity(matrix):
    return ...


# %% tags=["solution"]
def without_popularity(matrix):
    rows = matrix.mean(dim=1, keepdim=True)
    columns = matrix.mean(dim=0, keepdim=True)
    return matrix - rows - columns + matrix.mean()


# %% tags=["check"]
toy = torch.tensor([[0.9, 0.5, 0.4], [0.6, 0.8, 0.1], [0.3, 0.2, 0.7]])
left = without_popularity(toy)
answered(left)
expect(left.shape == (3, 3), f"(3, 3) is asked for, not {tuple(left.shape)}")
expect(abs(left.mean()) < 1e-6, "the mean is not zero: add the mean of the matrix back")
rows = left.mean(dim=1).abs().max()
expect(
    rows < 1e-6, "rows do not have mean zero: did you keep the dimension of the mean?"
)
expect(left.mean(dim=0).abs().max() < 1e-6, "the columns do not have mean zero")
expect(
    abs(left[0, 0] - 0.2) < 1e-6, f"0.9 - 0.6 - 0.6 + 0.5 = 0.2, not {left[0, 0]:.2f}"
)
print("Exercise 1: correct.")

# %% [markdown]
# **Predict:** how many of the 50 most related pairs share a superclass, before and
# after popularity is removed? And how many would it be for random groups of five?

# %%
my_before, my_after, my_random_pairs = None, None, None  # 0 to 50


def shared_pairs(matrix, groups_of):  # how many of the 50 most related
    first, second = torch.tensor(most_related(matrix, 50)).T
    return (groups_of[first] == groups_of[second]).sum().item()


# %% tags=["uses-answer"]
better = without_popularity(deep)
for first, second in most_related(better):
    print(f"{names[first]:>12} with {names[second]}")
compare("Before", my_before, shared_pairs(deep, superclass), " of 50")
compare("After", my_after, shared_pairs(better, superclass), " of 50")
random = [shared_pairs(better, superclass[order]) for order in orders]
mean = sum(random) / len(random)
compare("Random, mean of 200", my_random_pairs, mean, " of 50", 1, digits=1)
before = [shared_pairs(deep, superclass[order]) for order in orders]
print(f"largest of the 200 shuffles: {max(before)} before, {max(random)} after")
now = [confused_pairs(order, better) for order in orders]
print("confused, popularity removed:", confused_pairs(torch.arange(100), better))
print(f"  classes in random order: {sum(now) / 200:.1f}, at most {max(now)}")

# %% [markdown]
# **Answer.** After popularity is removed, 27 of the 50 most related pairs share a
# superclass; before, it was 19. With random groups it is 2 on average, and at most 6
# before and 7 after. So both numbers are far above chance. Whether 27 is really more
# than 19, one run cannot tell. None of the first ten pairs contains the beaver. Of
# these 50 pairs 14 are confused (random order: at most 5), so popularity alone does not
# explain such a number.

# %% [markdown]
# ## Observation 2: superclasses appear
#
# Choose *order by: superclass*. Lines separate the groups of five.
#
# The *own block* of a superclass is its block on the diagonal.
#
# **Predict:** for how many of the 20 superclasses is the own block the brightest of its
# row? And how many would it be for 20 random groups of five classes?

# %%
my_own, my_random = None, None  # 0 to 20

# %%
by_group = RelationExplorer(run)
by_group.epoch, by_group.order = epochs, "superclass"
by_group.selection = None  # no frame in the picture below
display(by_group)

# %% [markdown]
# ![The same heatmap sorted by superclass, with lines between the twenty groups. Some
# five by five blocks on the diagonal are bright, and further bright areas off it join
# many groups of animals.](images/07_by_superclass.png)
#
# *In the order of the superclasses.* Some blocks on the diagonal are bright and some
# are not. Groups of animals are related to other groups of animals. The axes have room
# for every fourth class only; in the explorer, the pointer shows both names.
#
# `relation_matrix` averages images into classes; applied to its own result, it
# averages classes into
# superclasses. On its diagonal are pairs of *different* classes of one superclass.

# %%
blocks = relation_matrix(deep, superclass, len(groups))
sides = {"xaxis_title": "superclass of the second image"}
sides["yaxis_title"] = "superclass of the first image"
figure = relation_heatmap(blocks, groups, "Relation of the superclasses")
figure.update_layout(width=800, height=700, font_size=11, **sides)


# %%
def own_is_brightest(matrix, groups_of):
    blocks = relation_matrix(matrix, groups_of, len(groups))
    return (blocks.argmax(dim=1) == torch.arange(len(groups))).sum().item()


chance = [own_is_brightest(deep, superclass[order]) for order in orders]
compare("Own block", my_own, own_is_brightest(deep, superclass), " of 20")
compare("Random, mean of 200", my_random, sum(chance) / 200, " of 20", 0.5, digits=1)
print("largest of the 200 shuffles:", max(chance))

# %%
for group, other in enumerate(blocks.argmax(dim=1).tolist()):
    if other != group:
        print(f"{groups[group]} are most related to {groups[other]}")

# %% [markdown]
# **Answer.** 11 of 20. Random groups reach 1.5 on average and at most 5. The
# superclasses of CIFAR-100 follow biology and use, which a camera sees only in part. So
# an exception need not be an error of the network. Popular classes may distort this
# list, too. The same with your matrix from exercise 1:

# %% tags=["uses-answer"]
print("own block:", own_is_brightest(better, superclass), "of 20")
better_blocks = relation_matrix(better, superclass, len(groups))
for group, other in enumerate(better_blocks.argmax(dim=1).tolist()):
    if other != group:
        print(f"{groups[group]} are most related to {groups[other]}")

# %% [markdown]
# **Answer.** 12 of 20 (not shuffled again), and the list is much the same. Medium
# mammals and reptiles, which were each other's nearest group, are now nearest to the
# large carnivores.

# %% [markdown]
# ### Exercise 2, implement: does the most related class share the superclass?
#
# For each class take the *other* class with the largest value in its row of `matrix`
# (C, C). Return the share of classes (0 to 1, a Python float) for which it has the same
# `superclass` (C,).


# %% tags=["exercise"]
def same_superclass_share(matrix, superclass):
    return ...


# %% tags=["solution"]
def same_superclass_share(matrix, superclass):
    others = matrix.clone().fill_diagonal_(-torch.inf)
    closest = others.argmax(dim=1)
    return (superclass[closest] == superclass).float().mean().item()


# %% tags=["check"]
rows = [[0.9, 0.8, 0.1, 0.2], [0.3, 0.9, 0.7, 0.1]]
rows += [[0.0, 0.1, 0.5, 0.4], [0.2, 0.6, 0.1, 0.9]]
toy = torch.tensor(rows)
share = same_superclass_share(toy, torch.tensor([5, 5, 7, 7]))
answered(share)
expect(isinstance(share, float), "return a Python float: `.item()`")
expect(share < 1, "each class is its own most related class: leave the diagonal out")
expect(share == 0.5, f"{share}, but it holds for rows 0 and 2 of four: 0.5")
found = same_superclass_share(toy, torch.tensor([5, 7, 5, 7]))
expect(found == 0.25, f"{found} instead of 0.25: rows, not columns")
print("Exercise 2: correct.")

# %% [markdown]
# Chance is 4 in 99. How does the share grow with the epochs, and at which exit?

# %% tags=["uses-answer"]
for epoch in run.probes:
    matrices = [class_relations(run, epoch, exit) for exit in (1, 2, 3)]
    shares = [f"{same_superclass_share(m, superclass):.0%}" for m in matrices]
    print(f"epoch {epoch:2}, exits 1 to 3:", ", ".join(shares))

# %% [markdown]
# **Answer.** In the run saved here 4 % to 8 % at epoch 0, which is close to chance (4
# %), and 34 % to 40 % at epoch 60. All exits rise together; at the end they differ by
# at most six classes of a hundred, in one run.

# %% [markdown]
# ## Observation 3: do shallow exits relate what deep ones do not?
#
# The difference of two matrices, exit 1 minus the deepest exit: in orange cells the
# relation is higher at the shallow exit, in blue ones at the deep one. Ten thousand
# cells are too many to compare by eye, so we take the means of superclasses. (In the
# explorer above: *exit 1* and *subtract: deepest exit*.)
#
# **Predict:** which superclass has the most orange, as the mean over its row and
# column?

# %%
my_orange = None  # a superclass, for example "trees"

# %%
shallow = class_relations(run, epochs, exit=1)
shallow_blocks = relation_matrix(shallow, superclass, len(groups))
change = shallow_blocks - blocks
higher = (shallow > deep).double().mean()
print(f"cells of 100 by 100 that are higher at exit 1: {higher:.0%}")
title = f"Exit 1 minus exit 3, mean {change.mean():+.2f}; colours end at ±0.25"
figure = relation_difference(shallow_blocks, blocks, groups, title, limit=0.25)
figure.update_layout(width=800, height=700, font_size=11, **sides)

# %%
for a, b in most_related(change, 8):
    print(f"{groups[a]} and {groups[b]}")
mean_of = (change.mean(dim=0) + change.mean(dim=1)) / 2
most = mean_of.argsort(descending=True)[:3].tolist()
print("largest means:", ", ".join(f"{groups[g]} {mean_of[g]:+.2f}" for g in most))
my_orange = my_orange and my_orange.replace("_", " ")
compare("Most orange", my_orange, groups[most[0]])


# %% [markdown]
# Would twenty random groups of five have a largest mean like that? The p-value counts
# how many of the 200 shuffles reach the true value: $p = (1 + \mathrm{count}) / 201$.


# %%
def largest_mean(groups_of):
    ends = [relation_matrix(m, groups_of, len(groups)) for m in (shallow, deep)]
    change = ends[0] - ends[1]
    return ((change.mean(dim=0) + change.mean(dim=1)) / 2).max().item()


by_chance = [largest_mean(superclass[order]) for order in orders]
reached = sum(value >= mean_of.max().item() for value in by_chance)
middle = sorted(by_chance)[len(by_chance) // 2]
print(f"median of the largest means of random groups: {middle:+.2f}, ", end="")
print(f"p = {(1 + reached) / (1 + len(by_chance)):.2f}")

# %% [markdown]
# **Answer.** People, +0.10. But exit 1 is higher on average (+0.06; about 70 % of the
# cells), household devices have +0.09, and random groups of five reach a largest mean
# of about +0.10, too ($p = 0.30$). Some superclass must have the largest of twenty
# means. So *people* is a candidate and not a finding. A test on
# other seeds could decide.

# %% [markdown]
# ## Observation 4: how a relation forms
#
# **Predict:** from epoch 0 to 5, does the mean relation of *different* superclasses
# `rise` or `fall`?

# %%
my_first = None

same = superclass[:, None] == superclass
itself = torch.eye(len(names), dtype=torch.bool)
kinds = {"one class": itself, "one superclass": same & ~itself}
kinds["different superclasses"] = ~same
formed = {epoch: class_relations(run, epoch, exit=3) for epoch in run.probes}
means = {
    k: {e: m[mask].mean().item() for e, m in formed.items()}
    for k, mask in kinds.items()
}
history = pd.DataFrame(means)
steps = history["different superclasses"].diff()
compare("At first", my_first, "rise" if steps.iloc[1] > 0 else "fall")
names_of = {"index": "epoch", "value": "mean relation", "variable": "pairs of (number)"}
look = {"markers": True, "labels": names_of, "template": template(), "height": 400}
shown = history.rename(columns=lambda kind: f"{kind} ({kinds[kind].sum()})")
px.line(shown, title="Mean relation of pairs of classes over the epochs", **look)

# %% [markdown]
# **Answer.** At first all three means rise. The margin loss (03, $m = 1$) does not ask
# for it: adding a constant to all scores does not change this loss. These snapshots do
# not show why it happens. Later the scores of different superclasses fall most. Set
# `explorer.epoch = 5` to see it.

# %% [markdown]
# ## Observation 5: trained relation and cosine
#
# The cosine of the same embeddings, rescaled to the range from 0 to 1, has a much
# narrower range. So the difference of the two would mean little. Their *orders*
# can be compared.
#
# **Predict:** the rank correlation of the two orders of 4,950 pairs.

# %%
my_correlation = None  # 1 = same order

cosine = class_relations(run, epochs, exit=3, kind="cosine")
i, j = torch.triu_indices(len(names), len(names), 1)
pairs = {"pair": [f"{names[a]}, {names[b]}" for a, b in zip(i, j, strict=True)]}
for name, matrix in (("trained", deep), ("cosine", cosine)):
    print(f"{name}: {matrix[~itself].min():.2f} to {matrix[~itself].max():.2f}")
    pairs[name] = ((matrix + matrix.T) / 2)[i, j].numpy()
pairs = pd.DataFrame(pairs)
agreement = pairs["trained"].corr(pairs["cosine"], method="spearman")
compare("Rank correlation", my_correlation, agreement, atol=0.05, digits=2)

# %%
colours = {"neither": "#c3c9d0", "squirrel": PALETTE[0], "maple tree": PALETTE[1]}
pairs["pairs with"] = "neither"
for name in ("squirrel", "maple tree"):
    pairs.loc[[name in both.split(", ") for both in pairs["pair"]], "pairs with"] = name
look = {"hover_name": "pair", "color": "pairs with", "color_discrete_map": colours}
look |= {"template": template(), "width": 700, "height": 460}
title = "Each point is a pair of classes"
axes = {"trained": "trained relation (mean of both orders)"}
axes["cosine"] = "cosine, moved to the range from 0 to 1"
px.scatter(pairs, x="trained", y="cosine", title=title, labels=axes, **look)

# %%
ranks = pairs[["trained", "cosine"]].rank()
pairs["moved"] = ranks["trained"] - ranks["cosine"]
ends = {"trained": pairs.nlargest(50, "moved"), "cosine": pairs.nsmallest(50, "moved")}
for words, rows in ends.items():
    met = Counter(name for pair in rows["pair"] for name in pair.split(", "))
    most = ", ".join(f"{name} ({count})" for name, count in met.most_common(4))
    print(f"ranked higher by the {words} relation: {most}")

# %%
mean_rank = {
    name: ranks[[name in pair.split(", ") for pair in pairs["pair"]]].mean()
    for name in ("squirrel", "camel", "bed", "maple tree", "oak tree")
}  # of the 99 pairs of a class; 4,950 = the most related pair
pd.DataFrame(mean_rank).T.round(0).astype(int)

# %% tags=["uses-answer"]
levelled = (without_popularity(m) for m in (deep, cosine))
one, two = (pd.Series(((m + m.T) / 2)[i, j].numpy()) for m in levelled)
print(f"rank correlation: {agreement:.2f}, ", end="")
print(f"popularity removed from both: {one.corr(two, method='spearman'):.2f}")

# %% [markdown]
# **Answer.** The orders agree in general. A few classes occur often among the 50 pairs
# that moved most; the number in brackets says how often. Their pairs are shifted as a
# group: those of squirrel, camel and bed rank lower *on average* in the trained
# relation than in the cosine, and those of maple and oak higher. But popularity is not
# the only difference: with popularity removed from both, the rank correlation is 0.87,
# not much more than 0.85.

# %% [markdown]
# Which one is better? Neither was told about superclasses. The AUC (03) for "same
# superclass" is 0.83 for the trained relation and 0.82 for the cosine
# ([05](05_cifar100.ipynb)): this is how often two classes of one superclass are more
# related than two of different superclasses.
#
# **Predict:** both values after popularity is removed with your function from
# exercise 1. The cell also prints the AUC of *single images* for "same class".

# %% tags=["uses-answer"]
my_trained, my_cosine = None, None

for kind, matrix, mine in (
    ("trained", deep, my_trained),
    ("cosine", cosine, my_cosine),
):
    auc = same_class_auc(without_popularity(matrix), superclass)
    print(f"{kind}, superclasses: {same_class_auc(matrix, superclass):.2f}")
    compare("  popularity removed", mine, auc, atol=0.02, digits=2)
    images = snapshot_scores(run, epochs, exit=3, kind=kind)
    print(f"  single images, same class: {same_class_auc(images, labels):.2f}")

# %% [markdown]
# **Answer.** They hardly change (0.83 and 0.81), so popularity does not explain that
# superclasses are found. On single images the cosine has 0.86 and the trained relation
# 0.84; with one run and 300 images this is no finding ([03](03_relations.ipynb) names a
# reason that could be tested). A single run does not show whether the trained relation
# helped to shape these embeddings. The cosine of the plain network reaches 0.79 on
# superclasses ([05](05_cifar100.ipynb)).

# %% [markdown]
# ## Would fewer images give the same result?
#
# Each class has three images here, so a cell is the mean of nine scores (six on the
# diagonal). We have no other images, so we leave out one image per class and list the
# twenty most related pairs again. With new images probably fewer would stay.
#
# **Predict:** how many of the twenty stay?

# %%
my_stay = None  # 0 to 20

listed = set(most_related(deep, 20))
for left_out in range(3):
    kept = torch.arange(len(labels)) % 3 != left_out  # images are sorted by class
    again = relation_matrix(scores[kept][:, kept], labels[kept], len(names))
    stay = len(listed & set(most_related(again, 20)))
    compare(f"Without image {left_out + 1}", my_stay, stay, " of 20", atol=2)
    own = own_is_brightest(again, superclass)
    most = max(own_is_brightest(again, superclass[order]) for order in orders)
    print(f"  own block is the brightest: {own} of 20, random groups at most {most}")

# %% [markdown]
# **Answer.** Half or fewer stay: 6 to 10 of 20. The top of such a list is partly luck.
# The own block is the brightest for 8 to 11 superclasses (11 with all images), each
# time more than for any of the 200 random groupings. **Means over many cells are more
# stable than single cells. Treat a single cell as a question.**

# %% [markdown]
# ## A run where the truth is known
#
# In the drawn data set `shapes` a class is a shape, a colour and a texture. A committed
# run of CORSD with class KD learned the names of 12 classes. Its snapshots, used here,
# are of 120 of the training images (03 uses 600 test images). These are drawn again
# when needed, so a click shows images without a download. The superclasses are the
# four shapes.
#
# **Predict:** the lift of the shapes: the mean relation of different classes of one
# shape divided by that of different shapes (1 = the shape makes no difference). And
# their AUC, as for superclasses above (chance: 0.5).

# %%
my_lift, my_auc = None, None

# %%
drawn = sample_run("unseen_shapes/corsd")
with_images = RelationExplorer(drawn)
with_images.order = "superclass"
display(with_images)

# %% [markdown]
# ![The relation explorer with twelve classes of drawn shapes, grouped by shape: a
# bright diagonal, dark blocks around it, and green and blue cells in many other blocks
# where colour and texture are the same.](images/07_shapes.png)
#
# *The deepest exit, grouped by shape.* Inside the blocks on the diagonal only the
# diagonal itself is bright. Related classes are three, six or nine places apart: they
# have the same colour and texture.

# %%
matrix = class_relations(drawn, drawn.config.epochs, exit=3)
shape_of = torch.tensor(drawn.data.superclass_of_class)
looks = [" ".join(name.split()[:2]) for name in drawn.data.class_names]
look_of = torch.tensor([sorted(set(looks)).index(look) for look in looks])
compare("Lift of the shapes", my_lift, superclass_lift(matrix, shape_of), digits=2)
compare("AUC", my_auc, same_class_auc(matrix, shape_of), atol=0.05, digits=2)
for name, group in (("shape", shape_of), ("colour and texture", look_of)):
    blocks_of = relation_matrix(matrix, group, int(group.max()) + 1)
    own = (blocks_of.argmax(dim=1) == torch.arange(len(blocks_of))).sum().item()
    auc = same_class_auc(matrix, group)
    print(f"{name}: own block the brightest {own} of {len(blocks_of)}, AUC {auc:.2f}")
a, b = most_related(matrix, 1)[0]
shown = torch.cat([(drawn.probes.labels == c).nonzero()[:3, 0] for c in (a, b)])
captions = [drawn.data.class_names[c].split()[-1] for c in (a, b) for _ in range(3)]
look = " ".join(drawn.data.class_names[a].split()[:2])
title = f"The most related pair of classes, both {look}"
image_strip(run_pixels(drawn, shown.tolist()), captions, title, columns=6)

# %% [markdown]
# **Answer.** 0.08: classes of one shape are *less* related than others, and no shape
# has the brightest block. By colour *and* texture all three blocks are the brightest.
# The AUC of the shapes says the opposite: 0.63, above chance. A few bright cells decide
# the means in the lift; the many cells near 0 decide the order in the AUC.
#
# Twelve classes are few. How often do shuffled groups of classes reach these AUCs?

# %%
mixed = [torch.randperm(len(matrix), generator=generator) for _ in range(500)]
for name, group in (("shape", shape_of), ("colour and texture", look_of)):
    true = same_class_auc(matrix, group)
    reached = sum(same_class_auc(matrix, group[order]) >= true for order in mixed)
    print(f"{name}: AUC {true:.2f}, p = {(1 + reached) / 501:.3f}")

# %% [markdown]
# No shuffle reaches the 0.94 of colour and texture ($p = 0.002$). 9 % of the shuffles
# reach the 0.63 of shape, so a relation by shape was not detected. Here we know what
# classes share. For CIFAR-100 we do not: if one grouping shows nothing, another may
# show something.

# %% [markdown]
# ## Answer: what has the network learned to relate?
#
# > **What we found.** *Insight:* it relates classes of one superclass. The own block is
# > the brightest for 11 of 20 superclasses (random groups: at most 5). The cosine finds
# > superclasses as well (AUC 0.82, trained 0.83), and so does that of a plain network
# > ([05](05_cifar100.ipynb)). On drawn shapes it relates classes of equal colour and
# > texture (AUC 0.94, $p = 0.002$). *Confusion:* in 12 of the 50 most related pairs the
# > exit confuses the two classes (random order: at most 6). *Not confirmed:* people at
# > exit 1 ($p = 0.30$), and shape alone ($p = 0.09$). *Unstable:* only 6 to 10 of the
# > top 20 pairs stay when a third of the images is left out.
# >
# > **How sure we are.** Each result is from one run. The shuffles do not rule out that
# > another training differs.
# >
# > **What it does not show.** We did not test why.

# %% [markdown]
# ## Exercise 3, predict and experiment: other methods
#
# Predict for how many superclasses the own block is the brightest in the run of *RKD*,
# whose stored relation is the cosine. Then compute it for `rkd`, `byot`, `baseline`
# (which has one exit) and `corsd`, for all with the *cosine* (`kind="cosine"`), so that
# the scale is the same. Shuffle the superclasses 200 times for each method, too: what
# is the largest number by chance?

# %%
my_rkd = None  # 0 to 20
# Your code: two numbers per method, the true one and the largest of 200 shuffles.
own_block = {}  # such as own_block["rkd"] = (true, largest)

for method, (true, largest) in own_block.items():
    mine = my_rkd if method == "rkd" else None
    compare(f"{method}, by chance at most {largest}; own block", mine, true, " of 20")

# %% [markdown] tags=["solution"]
# *A good answer* uses `committed_run("cifar100_small/rkd")` and so on, and
# `kind="cosine"` for all:
#
# ```
# for name in ("rkd", "byot", "baseline", "corsd"):
#     other = committed_run(f"cifar100_small/{name}")
#     last = len(other.probes[epochs].embeddings)  # the baseline has one exit
#     m = class_relations(other, epochs, last, "cosine")
#     shuffles = [own_is_brightest(m, superclass[order]) for order in orders]
#     own_block[name] = own_is_brightest(m, superclass), max(shuffles)
# ```
#
# It gives the four numbers (RKD 11, BYOT 12, plain network 13,
# CORSD with class KD's cosine 10 of 20; 200 shuffles with `seed` 0 reach at most 4 for
# each) and says that one seed each does not rank the methods.

# %% [markdown]
# ## Exercise 4, explain (open)
#
# Choose one observation of this notebook that a news article could report. Write down
# its strongest alternative explanation, a test that separates the two, and what the
# test would show under each of them. Which images does it need, and why more than one
# seed?

# %% [markdown] tags=["answer"]
# *Write your answer here.*

# %% [markdown] tags=["solution"]
# *A good answer* names a concrete alternative, such as background colour for "fish and
# aquatic mammals", and a test, such as images with the background removed, with the
# expected outcome under each explanation. It uses images that were not looked at
# before, and several seeds, because this notebook searched one run.

# %% [markdown]
# ## Where next
#
# - `RelationExplorer(run, committed_run("cifar100_small/baseline"))`, then *subtract:
#   other run*.
# - *level: image x image*, then *All images of these classes*.
# - [08_class_structure](08_class_structure.ipynb): the same question in distances.
# - [10_attribution](10_attribution.ipynb): which *pixels* made a pair related?
# - Keep what you found: `by_group.to_html("mine.html")` writes a page that stays
#   interactive without Python.
