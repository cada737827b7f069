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
# A hundred classes make 4,950 pairs, and a trained relation has an opinion on each. Nobody reads that as a table. In this
# notebook you look for things in it, with your own hands, and after each find a few lines of Python tell whether it holds.
# **Five finds wait: some are insights, some are mistakes, and some vanish when you look twice.**
#
# **You will learn**
#
# - to read a relation matrix of 100 classes: select, order, group, subtract;
# - why the most related pair is not the most interesting one;
# - what shallow exits relate that deep ones do not, and how a relation forms over the epochs;
# - where a trained relation and a cosine disagree, and how to compare two scales that have nothing in common;
# - to ask of every find: would another image have said the same?
#
# **You need** [01_walkthrough](01_walkthrough.ipynb); [05_cifar100](05_cifar100.ipynb) helps. Nothing is trained and nothing
# is downloaded. **Time:** the notebook runs in half a minute on two CPU cores; exploring takes as long as you like, the two
# exercises about twenty minutes.

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
from collections import Counter

import pandas as pd
import plotly.express as px
import torch
from IPython.display import display

from corsd_lib import RelationExplorer, committed_run, relation_matrix
from corsd_lib.analysis import class_relations, snapshot_scores
from corsd_lib.analysis.relations import same_class_auc
from corsd_lib.figures import relation_difference, relation_heatmap, template

torch.set_num_threads(1)  # the tables are small: a second thread would wait more than it works

# %% [markdown]
# The text describes one run. With another one, or another epoch, the questions stay and the answers change.

# %% tags=["parameters"]
run_directory = "cifar100_small/corsd"  # a run of a study in results/
epochs = 60  # the snapshot to look at: 0, 5, 15, 35 or 60
seed = 0  # of the random groups that the real ones are compared with

# %% [markdown]
# ## The run
#
# A small ResNet with three exits, trained with CORSD on 100 images of each CIFAR-100 class. Its snapshots hold what it made
# of some *validation* images, which it never learned from. The classes come in superclasses of five (trees, people, fish).
# **The training knew the classes, not the superclasses.**

# %% tags=["nbval-check-output"]
run = committed_run(run_directory)
names, groups, labels = run.data.class_names, run.data.superclass_names, run.probes.labels
superclass = torch.tensor(run.data.superclass_of_class)
print(f"{len(names)} classes in {len(groups)} superclasses")
print(f"{len(labels)} images to look at, {labels.bincount().unique().item()} of each class")
print("snapshots after epochs", list(run.probes))

# %% [markdown]
# ## Look first
#
# Row and column are classes. A cell is the mean score of all pairs with the first image from one class and the second from the
# other: 0 unrelated, 1 related. Spend five minutes before you read on.
#
# - **Click** a cell, or move with the arrow keys: beside the matrix you get the pair, at every exit, both ways round. The two
#   ways can differ, because a relation network is asked about (first, second). **Drag** a rectangle to zoom in, *reset view* to
#   come back; Ctrl-Z undoes.
# - **find a class** takes a name, or part of it, and opens that class with whatever it is most related to. **Pairs worth a
#   look** lists the most related ones, those that changed most, and those that two popular classes do not explain.
# - Where the CIFAR-100 images are on your machine (the environment variable `CORSD_DATA` names their folder), images appear
#   too, on hover and for the pair. Without them everything else works.
#
# **Predict:** which two *different* classes does the network find most related? Write down a pair. The explorer opens on its
# answer, so look at it last.

# %%
explorer = RelationExplorer(run)
explorer.epoch = epochs
display(explorer)

# %% [markdown]
# ![The relation explorer's heatmap of 100 by 100 classes in alphabetical order, deepest exit, last epoch. A thin bright
# diagonal, bright specks and stripes all over, no visible order.](images/07_explorer.png)
#
# *The explorer's heatmap as a picture, at the deepest exit after the last epoch.* The thin diagonal is every class with
# itself. The rest looks like noise with stripes: some rows and columns are bright all along. Keep the stripes in mind.
#
# ## Find 1: the most related pair
#
# Everything that you click can be read from code. `explorer.selection` is the pair, `explorer.matrix` the cells as shown, and
# `explorer.rows` says which class stands in which row.

# %% tags=["nbval-check-output"]
first, second = explorer.selection or (0, 0)
print(f"Selected: {names[first]} with {names[second]}")
print("superclasses:", groups[superclass[first]], "and", groups[superclass[second]])

# %% [markdown]
# Was it your pair? Both live in rivers. Has the network found that out from 200 photographs? It would be a nice story. First
# look at the ten most related pairs, with both ways round averaged.


# %%
def most_related(matrix, count=10):
    """The pairs of different classes with the largest values: (first, second), both ways round averaged."""
    i, j = torch.triu_indices(len(matrix), len(matrix), 1)
    mean = (matrix[i, j] + matrix[j, i]) / 2
    best = mean.argsort(descending=True, stable=True)[:count]
    return list(zip(i[best].tolist(), j[best].tolist(), strict=True))


# %% tags=["nbval-check-output"]
deep = class_relations(run, epochs, exit=3)
for first, second in most_related(deep):
    home = "same superclass" if superclass[first] == superclass[second] else ""
    print(f"{names[first]:>10} with {names[second]:<12} {home}")

# %% [markdown]
# Rivers do not explain a list in which the beaver comes up again and again, with a porcupine, a wolf, a skunk. Ask the *exit*
# what it takes these very images for.


# %%
def called(name):
    """What the deepest exit takes the images of a class for."""
    said = run.probes[epochs].logits[-1].float()[labels == names.index(name)].argmax(dim=1)
    return ", ".join(names[c] for c in said)


# %% tags=["nbval-check-output"]
for name in ("beaver", "crocodile", "oak_tree", "pine_tree"):
    print(f"images of {name:<10} are taken for {called(name)}")

# %% [markdown]
# Two kinds of "related". Is any of the beavers called a beaver? Where a network cannot tell classes apart, its relation cannot
# do so either. Oak and pine are another matter: the exit names most of them rightly, and the relation joins them all the same.
# **A high relation can be an insight or a confusion. The matrix alone does not say which.**
#
# ### The stripes
#
# Some classes are related to everything. Call the mean relation of a class to all others its *popularity*. **Predict:** where
# does the beaver stand among the hundred?

# %%
others = deep.clone().fill_diagonal_(torch.nan)
popularity = (others.nanmean(dim=0) + others.nanmean(dim=1)) / 2
ranking = popularity.argsort(descending=True).tolist()
place = ranking.index(names.index("beaver")) + 1
title = f"Beaver is number {place} of {len(names)} in popularity; {names[ranking[-1]]} is the least popular"
look = {"labels": {"x": "class", "y": "mean relation to all others"}, "template": template(), "height": 420}
px.bar(x=[names[c] for c in ranking], y=popularity[ranking].numpy(), title=title, **look)

# %% [markdown]
# A popular class makes bright pairs with anybody. So "most related" mostly finds popular classes. What one wants is a pair that
# is *more related than the popularity of the two explains*. That is exercise 1, and its answer is a better list.

# %% [markdown]
# ## Find 2: blocks that nobody asked for
#
# In alphabetical order, neighbours mean nothing. Choose *order by: superclass*: lines part the groups of five.
#
# **Predict:** which superclass has the brightest block: trees, people, or vehicles_2 (a rocket, a tank, a lawn mower, ...)?
# Then choose one under *superclass* to see its five classes alone.

# %%
by_group = RelationExplorer(run)
by_group.epoch, by_group.order = epochs, "superclass"
display(by_group)

# %% [markdown]
# ![The same heatmap sorted by superclass, with lines between the twenty groups. Some five by five blocks on the diagonal are
# bright, and further bright areas off it join many groups of animals.](images/07_by_superclass.png)
#
# *The explorer's heatmap as a picture, in the order of the superclasses.* Some blocks on the diagonal light up, some do not.
# And there is a larger pattern: groups of animals are related to other groups of animals.
#
# Twenty blocks by twenty are easier to judge than cells. The function that made a class matrix out of scores of images makes
# a superclass matrix out of classes: the same mean, one level up. On its diagonal are pairs of *different* classes of one
# superclass.

# %%
blocks = relation_matrix(deep, superclass, len(groups))
best = max(range(len(groups)), key=lambda g: blocks[g, g])
title = f"Brightest block: {groups[best]}, {blocks[best, best]:.2f}; mean of all blocks {blocks.diag().mean():.2f}"
relation_heatmap(blocks, groups, title).update_layout(width=800, height=700, font_size=11)

# %% [markdown]
# Now a sharper question: for how many superclasses is their *own* block the brightest of their row? And if it is not, whose
# is? Compare with groups of five that were drawn at random.

# %% tags=["nbval-check-output"]
brightest = blocks.argmax(dim=1).tolist()
for group, other in enumerate(brightest):
    if other != group:
        print(f"{groups[group]} are most related to {groups[other]}")
shuffled = superclass[torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))]
chance = relation_matrix(deep, shuffled, len(groups)).argmax(dim=1)
print("own block is the brightest:", sum(a == b for a, b in enumerate(brightest)), "of", len(groups), "superclasses")
print("in random groups:          ", (chance == torch.arange(len(groups))).sum().item(), "of", len(groups))

# %% [markdown]
# Read the exceptions aloud. The superclasses of CIFAR-100 were made by people who think of biology and use; a camera sees
# neither. So **an exception is not always the network's error; sometimes it is the table's.** Fish with mammals that swim
# looks like one of these. But remember find 1: a favourite of everybody is a favourite here, too. Exercise 1 takes popularity
# off, and asks again which exceptions are left. Why those are related, the matrix does not say.

# %% [markdown]
# ## Find 3: what shallow exits relate, and deep ones do not
#
# Choose *exit 1*, and under *subtract* the *deepest exit*. Orange cells are more related at the shallow exit, blue ones at
# the deep one.
#
# **Look for:** long orange stripes. Which superclass has the most of them? Zoom in there: with whom is it related at exit 1?

# %%
by_depth = RelationExplorer(run)
by_depth.epoch, by_depth.exit, by_depth.order, by_depth.against = epochs, 1, "superclass", "deepest exit"
display(by_depth)

# %% [markdown]
# ![A heatmap of differences, exit 1 minus the deepest exit, sorted by superclass: orange and blue specks, more orange than
# blue, with orange stripes in the rows and columns of people.](images/07_by_depth.png)
#
# *The explorer's heatmap as a picture, exit 1 minus the deepest exit.* There is more orange than blue: on average exit 1
# relates different classes more. And the orange is not spread evenly.
#
# Again one level up, so that single cells do not distract.

# %%
shallow = class_relations(run, epochs, exit=1)
shallow_blocks = relation_matrix(shallow, superclass, len(groups))
change = shallow_blocks - blocks
first, second = most_related(change, 1)[0]
title = f"Exit 1 minus 3: {change.mean():+.2f} on average, most {groups[first]} with {groups[second]}"
figure = relation_difference(shallow_blocks, blocks, groups, title, limit=0.25)
figure.update_layout(width=800, height=700, font_size=11)

# %% tags=["nbval-check-output"]
changed = [(groups[a], groups[b]) for a, b in most_related(change, 8)]
print("\n".join(" and ".join(pair) for pair in changed))
print("pairs with people:", sum("people" in pair for pair in changed), "of", len(changed))

# %% [markdown]
# The first exit relates people to animals more than the last one does: the deep stages take them apart. What do the two have
# in common that a shallow stage can see: skin and fur colours, a round shape in the middle? The numbers do not tell. If you
# have the images, set `by_depth.against = None`, open *man* with *lion*, and compare the exits.
#
# Note what we did *not* do: pick the most extreme of 10,000 cells and tell a story about it. Among so many, some are extreme
# by chance. A whole superclass that moves the same way is harder to get by chance.

# %% [markdown]
# ## Find 4: how a relation forms
#
# Go back to the first explorer and press **play**. **Predict:** three means are drawn below, over the epochs: pairs of one
# class, pairs of two classes of one superclass, pairs of different superclasses. At first all three are alike. Which of them
# rises at first, and which falls?

# %%
same = superclass[:, None] == superclass
itself = torch.eye(len(names), dtype=torch.bool)
kinds = {"one class": itself, "one superclass": same & ~itself, "different superclasses": ~same}
formed = {epoch: class_relations(run, epoch, exit=3) for epoch in run.probes}
history = pd.DataFrame({kind: {e: m[mask].mean().item() for e, m in formed.items()} for kind, mask in kinds.items()})
early, late = (history.iloc[n] for n in (1, -1))
ends = (f"{row.iloc[0]:.2f} and {row.iloc[2]:.2f} after epoch {row.name}" for row in (early, late))
title = f"One class and different superclasses: {', '.join(ends)}"
look = {"labels": {"index": "epoch", "value": "mean relation", "variable": "pairs of"}, "template": template(), "height": 400}
px.line(history, markers=True, title=title, **look)

# %% [markdown]
# Did you expect that? At first *everything* becomes more related. One way to satisfy "pairs of one class are related" is to
# say so of every pair. Only then does the network take back what it said too freely, of different superclasses most of all.
# Some children learn a word that way: the first *dog* is any animal.
#
# Check it in the explorer with `explorer.epoch = 5`: nearly the whole matrix is bright.

# %% [markdown]
# ## Find 5: where the trained relation and the cosine disagree
#
# Under *relation* choose the cosine: the handcrafted relation of the same embeddings, moved to 0 to 1. **Predict:** what will
# the matrix look like, with the same colours?

# %%
cosine = class_relations(run, epochs, exit=3, kind="cosine")
for name, matrix in (("trained", deep), ("cosine", cosine)):
    print(f"{name}: from {matrix[~itself].min():.2f} to {matrix[~itself].max():.2f} between classes")

# %% [markdown]
# One colour, because the scale is narrow. Subtracting one from the other would tell about scales only. What can be compared
# is the *order*: sort all pairs by one relation and by the other, and ask how far each pair moves.

# %%
i, j = torch.triu_indices(len(names), len(names), 1)
pairs = pd.DataFrame({"pair": [f"{names[a]}, {names[b]}" for a, b in zip(i, j, strict=True)]})
for name, matrix in (("trained", deep), ("cosine", cosine)):
    pairs[name] = ((matrix + matrix.T) / 2)[i, j].numpy()
agreement = pairs["trained"].corr(pairs["cosine"], method="spearman")
title = f"Two orders of {len(pairs):,} pairs, rank correlation {agreement:.2f}"
px.scatter(pairs, x="trained", y="cosine", hover_name="pair", opacity=0.3, title=title, template=template(), height=480)

# %% [markdown]
# They agree in the large: a correlation of 1 would be the same order, 0 none. The interesting points are those far from the
# curve. Hover over the ones at its lower right edge, then at its upper left. Is there a class that you meet again and again?

# %%
ranks = pairs[["trained", "cosine"]].rank()
pairs["moved"] = ranks["trained"] - ranks["cosine"]
for words, rows in (("trained relation", pairs.nlargest(50, "moved")), ("cosine", pairs.nsmallest(50, "moved"))):
    met = Counter(name for pair in rows["pair"] for name in pair.split(", "))
    print(f"higher in the {words}:", ", ".join(f"{name} ({count})" for name, count in met.most_common(4)))

# %% [markdown]
# The number in brackets says in how many of the 50 pairs a class is. No class can be in more than 50, and an average one is
# in one. So much of the disagreement belongs to few classes: the cosine holds one class for close to others that the trained
# relation keeps away from it, and the other way round. Popularity again, and each relation has its own favourites.
#
# Which of the two is *right*? Neither was told about superclasses, so they can be asked: how often is a pair of classes of
# one superclass more related than a pair of two? (That share is the *AUC*, and one half is chance.) And for single images:
# how often is a pair of one class more related than a pair of two? **Predict** who wins, and by how much.

# %%
labels = run.probes.labels
for kind, matrix in {"trained": deep, "cosine": cosine}.items():
    images = same_class_auc(snapshot_scores(run, epochs, exit=3, kind=kind), labels)
    print(f"{kind:8} superclasses: AUC {same_class_auc(matrix, superclass):.2f}; single images: AUC {images:.2f}")

# %% [markdown]
# A trained relation that is no better a detector than the cosine of the embeddings under it has not failed: it was trained to
# *shape* these embeddings, and the cosine reads what it left in them. But to find relatives you would not need it.

# %% [markdown]
# ## Would another image have said the same?
#
# Each class has three images here. So a cell is the mean of nine scores, and not of nine independent ones. A plain test:
# leave one image of every class out, and make the list of the most related pairs again. **Predict:** of the first twenty, how
# many stay?

# %%
scores = snapshot_scores(run, epochs, exit=3)  # (N, N), of single images
listed = set(most_related(deep, 20))
for left_out in range(3):
    kept = torch.arange(len(labels)) % 3 != left_out  # the images are sorted by class
    again = relation_matrix(scores[kept][:, kept], labels[kept], len(names))
    print(f"without image {left_out + 1} of each class: {len(listed & set(most_related(again, 20)))} of 20 stay")

# %% [markdown]
# A list of extremes is the least stable thing that one can make of a matrix: what comes first, comes first partly by luck. A
# block above is a mean of 20 cells or more, a point of the three curves of 100 or more. **Trust means over many cells, and
# treat a single cell as a question.** And all of it is *one* run of *one* seed. What another seed relates, nobody has looked
# at here.
#
# ## Recap
#
# - The most related pair is often two **popular** classes, or two that the network cannot tell apart.
# - **Superclass blocks** appear although nobody asked for them, and not for all superclasses.
# - **Shallow exits** relate different classes more; people and animals are taken apart by the deep ones.
# - A relation forms by **first saying yes to everything**, then taking back.
# - Relations on different scales are compared by **order**, never by subtraction.
# - Means over many cells hold. **Single cells are questions.**

# %% [markdown]
# ## Exercise 1: more than popularity explains
#
# Take from every entry of `matrix` (C, C) the mean of its row and the mean of its column, and add the mean of the whole
# matrix. What remains has mean zero in each row and in each column. The answers are in `notebooks/solutions`.


# %% tags=["exercise"]
def without_popularity(matrix):
    return ...


# %% tags=["solution"]
def without_popularity(matrix):
    return matrix - matrix.mean(dim=1, keepdim=True) - matrix.mean(dim=0, keepdim=True) + matrix.mean()


# %% tags=["check"]
toy = torch.tensor([[0.9, 0.5, 0.4], [0.6, 0.8, 0.1], [0.3, 0.2, 0.7]])
rest = without_popularity(toy)
assert isinstance(rest, torch.Tensor), "there is no answer yet: write yours in place of the `...`"
assert rest.shape == (3, 3), f"the answer should be (3, 3), yours is {tuple(rest.shape)}"
assert rest.mean(dim=1).abs().max() < 1e-6, "the rows do not have mean zero: did you keep the dimension of their means?"
assert rest.mean(dim=0).abs().max() < 1e-6, "the columns do not have mean zero"
assert abs(rest[0, 0] - (0.9 - 0.6 - 0.6 + 0.5)) < 1e-6, "another value was expected at the first place"
print("Exercise 1: right.")

# %% [markdown]
# And the better list. Compare it with that of find 1: are these pairs insights? How many of 50 share a superclass, before and
# after?

# %% tags=["uses-answer"]
better = without_popularity(deep)
for first, second in most_related(better):
    print(f"{names[first]:>12} with {names[second]}")
for words, matrix in (("before", deep), ("after", better)):
    print(words, sum(superclass[a].item() == superclass[b].item() for a, b in most_related(matrix, 50)), "of 50")

# %% [markdown]
# And find 2: which exceptions are left?

# %% tags=["uses-answer"]
left = relation_matrix(better, superclass, len(groups)).argmax(dim=1).tolist()
for group, other in enumerate(left):
    if other != group:
        was = "as before" if brightest[group] == other else f"before: to {groups[brightest[group]]}"
        print(f"{groups[group]} are most related to {groups[other]} ({was})")
print("no exception any more:", "; ".join(groups[g] for g, other in enumerate(brightest) if other != g == left[g]) or "none")

# %% [markdown]
# ## Exercise 2: is the best friend a relative?
#
# For each class, take the *other* class with the largest value in its row of `matrix` (C, C). Give the share of classes (a
# float, 0 to 1) whose best friend has the same `superclass` (C,). Mind the diagonal.


# %% tags=["exercise"]
def friends_at_home(matrix, superclass):
    return ...


# %% tags=["solution"]
def friends_at_home(matrix, superclass):
    others = matrix.clone().fill_diagonal_(-torch.inf)
    friend = others.argmax(dim=1)
    return (superclass[friend] == superclass).float().mean().item()


# %% tags=["check"]
toy = torch.tensor([[0.9, 0.8, 0.1, 0.2], [0.3, 0.9, 0.7, 0.1], [0.0, 0.1, 0.5, 0.4], [0.2, 0.6, 0.1, 0.9]])
home = friends_at_home(toy, torch.tensor([5, 5, 7, 7]))
assert home is not ..., "there is no answer yet: write yours in place of the `...`"
assert isinstance(home, float), "a float is wanted: .item() makes one of a tensor"
assert home < 1, "is each class its own best friend? Leave the diagonal out"
assert home == 0.5, "rows 0 and 2 have their friend at home, rows 1 and 3 have not"
assert friends_at_home(toy, torch.tensor([5, 7, 5, 7])) == 0.25, "does it depend on the superclasses?"
print("Exercise 2: right.")

# %% [markdown]
# With a best friend by chance it would be 4 of 99. When does your network find its relatives, and at which exit first?

# %% tags=["uses-answer"]
for epoch in run.probes:
    shares = [friends_at_home(class_relations(run, epoch, exit), superclass) for exit in (1, 2, 3)]
    print(f"epoch {epoch:2}:", ", ".join(f"exit {k} {share:.0%}" for k, share in enumerate(shares, 1)))

# %% [markdown]
# ## Where next
#
# - Compare two runs: `RelationExplorer(run, committed_run("cifar100_small/baseline"))`, then *subtract: other run*.
# - Go down to images: *level: image x image*, and click *All images of these classes*.
# - [08_class_structure](08_class_structure.ipynb): the same question in distances. How do classes tighten and part?
# - [10_attribution](10_attribution.ipynb): a pair is related. Which *pixels* made it so?
# - Keep what you found: `by_group.save_png("mine.png")`, or `by_group.to_html("mine.html")` for a page that still answers.
