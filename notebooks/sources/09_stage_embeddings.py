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
# # 09 What does a UMAP show, and what not?
#
# An exit sees an image as a vector of 64 numbers. A page has two. Every picture of embeddings therefore leaves something out,
# and some pictures add something that was never there. UMAP makes the best-looking ones. What may you read off, and what not?
#
# **You will learn**
#
# - to draw embeddings with PCA, written out, and to say how much that picture leaves out;
# - two measures that belong beside *every* picture: trustworthiness and neighbour purity;
# - what UMAP keeps (neighbours), and what it makes up: distances, sizes, and sometimes the groups themselves;
# - why several exits need one **joint fit**, and what it costs;
# - to explore the exits of a network with lasso and relation matrix linked.
#
# **You need** PyTorch basics; [08_class_structure](08_class_structure.ipynb) helps. **Time:** the notebook runs in about half
# a minute on two CPU cores, of which a third is UMAP being compiled; reading and the two exercises take about 40 minutes.
# Nothing is downloaded.

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
import torch
from IPython.display import display

from corsd_lib import RelationExplorer, StageExplorer, committed_run, stage_embedding, train
from corsd_lib.analysis.embedding import (
    aligned_embedding,
    joint_projection,
    knn_purity,
    nearest_images,
    purity_limit,
    scaled_embedding,
    trustworthiness,
)
from corsd_lib.analysis.relations import spearman
from corsd_lib.figures import embedding_scatter
from corsd_lib.walkthrough import plan

torch.set_num_threads(1)  # the images are tiny: a second thread would wait more than it works

# %% [markdown]
# These are the knobs of this notebook. Each setting gets run directories of its own, so a training that was finished before is
# opened, not repeated.

# %% tags=["parameters"]
epochs = 60  # how often each training image is seen
per_class = 10  # labelled images of each digit
seed = 0  # of the weights, the choice of images and their order
run_directory = "runs/digits"  # finished trainings are found here again

# %% [markdown]
# ## Something to draw
#
# CORSD on a hundred digits, by the recipe of [01_walkthrough](01_walkthrough.ipynb). The run keeps what every exit makes of 200
# *probe images*, which it does not learn from.

# %% tags=["nbval-check-output"]
run = train(plan("corsd", run_directory, epochs, per_class, seed), progress=False)
labels, digits = run.probes.labels, run.data.class_names
exits = [scaled_embedding(e.float()) for e in run.probes[epochs].embeddings]  # each centred, mean norm 1
x = exits[-1]
print(f"{len(exits)} exits, each with {x.shape[0]} images in {x.shape[1]} dimensions")

# %% [markdown]
# ## A shadow: PCA
#
# The honest way to get from 64 dimensions to 2 is to look from one side. PCA chooses the side from which the points spread
# most. That is all there is to it:


# %%
def pca_by_hand(x):
    x = x - x.mean(dim=0)
    _, spread, directions = torch.linalg.svd(x, full_matrices=False)
    kept = spread[:2].square().sum() / spread.square().sum()
    return x @ directions[:2].T, kept.item()  # (N, 2), and the share of the variance


# %% [markdown]
# A shadow may be turned or mirrored, so we compare distances with those of the library's.

# %% tags=["nbval-check-output"]
shadow, kept = pca_by_hand(x)
same = torch.allclose(torch.pdist(shadow), torch.pdist(joint_projection(x, "pca")), atol=1e-3)
print("the same picture as the library's" if same else "another picture")

# %% [markdown]
# **Predict:** two of 64 directions. What share of the variance do they keep? And will ten digits part in them?

# %%
title = f"PCA keeps {kept:.0%} of the variance in two directions of {x.shape[1]}"
embedding_scatter(shadow[None], labels, digits, ["deepest exit, PCA"], title)

# %% [markdown]
# Some digits stand apart, others lie on top of each other. Do they *really* mix, or only in this shadow? The picture alone
# cannot say. So we measure.
#
# ## Two numbers beside every picture
#
# **Neighbour purity**: of the ten images nearest to an image, how many are of its class? Computed *in the picture*, and *in
# the embedding*. If the picture is less pure, it mixes what the exit had apart. If it is **purer**, it shows more order than
# there is.

# %%
print(f"of its class, in the embedding: {knn_purity(x, labels):.0%}")
print(f"of its class, in the picture:   {knn_purity(shadow, labels):.0%}")

# %% [markdown]
# Is the first much larger? Then the digits do not mix in the embedding as they do here: the mixing is the shadow's.
#
# **Trustworthiness** asks no labels at all: are neighbours in the picture neighbours in the embedding? For each image, take
# the `k` nearest in the picture. One that is only the `r`-th nearest in the embedding, `r > k`, is a false neighbour and costs
# `r - k`. The sum is scaled so that 1 means no false neighbour; random positions get about one half.


# %%
def trustworthiness_by_hand(x, picture, k=10):
    n = len(x)
    order = nearest_images(x, n - 1)  # (N, N - 1): all others, nearest first
    rank = torch.zeros(n, n, dtype=torch.long)
    rank.scatter_(1, order, torch.arange(1, n).expand(n, -1))  # r: 1 is the nearest
    shown = nearest_images(picture, k)  # (N, k)
    cost = (rank.gather(1, shown) - k).clamp_min(0).sum().item()
    return 1 - cost * 2 / (n * k * (2 * n - 3 * k - 1))


# %% tags=["nbval-check-output"]
assert abs(trustworthiness_by_hand(x, shadow) - trustworthiness(x, shadow)) < 1e-3
scattered = torch.rand(len(x), 2, generator=torch.Generator().manual_seed(0))
print("the same as the library's (and scikit-learn's)")
print("random positions:", "about one half" if 0.4 < trustworthiness(x, scattered) < 0.6 else "something else")

# %% [markdown]
# ## A drawing: UMAP
#
# UMAP (McInnes et al. 2018, [arXiv 1802.03426](https://arxiv.org/abs/1802.03426)) is no shadow. It lists the nearest
# neighbours of every image, forgets everything else, and then moves points on a page until neighbours lie together. The first
# call takes some seconds, because its code is compiled then.
#
# **Predict:** which picture has the higher trustworthiness, PCA or UMAP? And the purity: will UMAP's be below, at or above that
# of the embedding?


# %%
def quality(picture, x=x, labels=labels):
    here, there = knn_purity(picture, labels), knn_purity(x, labels)
    return f"trustworthiness {trustworthiness(x, picture):.2f}\nsame label: {here:.0%} (embedding {there:.0%})"


# %%
drawing = joint_projection(x, "umap", seed=seed)
both = torch.stack([scaled_embedding(shadow), scaled_embedding(drawing)])  # on the same scale, to be drawn side by side
trust = [trustworthiness(x, picture) for picture in both]
title = f"Trustworthiness: PCA {trust[0]:.2f}, UMAP {trust[1]:.2f}"
embedding_scatter(both, labels, digits, ["PCA", "UMAP"], title, quality=[quality(p) for p in both])

# %% [markdown]
# Read the two lines under each picture. UMAP was made for neighbours, and neighbours it keeps. Images that lie together there
# are, as a rule, alike to the network. That is what a UMAP shows. Now to what it does not.
#
# ## It is one of many
#
# UMAP starts and stirs with random numbers. **Predict:** three seeds. Will the groups be the same? Will they lie in the same
# places?

# %%
seeds = [seed, seed + 1, seed + 2]
drawings = torch.stack([scaled_embedding(joint_projection(x, "umap", seed=s)) for s in seeds])
title = "The same embedding, three seeds: trustworthiness " + ", ".join(f"{trustworthiness(x, d):.2f}" for d in drawings)
embedding_scatter(drawings, labels, digits, [f"seed {s}" for s in seeds], title).update_layout(width=900, height=400)

# %% [markdown]
# Pick two digits, and look how far apart they are in each picture. Does one of them lie at the rim here and in the middle
# there? Read the three numbers in the title. If no picture is more trustworthy than another, whatever differs between them
# cannot be read off any of them.
#
# ### Distances between groups
#
# Let us put a number on that. For every pair of digits, take the distance between the two class means: in the embedding, and
# in the picture. Do they have the same *order*? The rank correlation is 1 when they do, and 0 when one says nothing about the
# other.


# %%
def distances_of_classes(points):
    means = torch.stack([points[labels == c].mean(dim=0) for c in range(10)])
    return torch.pdist(means)  # (45,): one a pair of digits


# %%
real = distances_of_classes(x)
print(f"PCA and embedding: {spearman(distances_of_classes(shadow), real):.2f}")
for s, picture in zip(seeds, drawings, strict=True):
    print(f"UMAP of seed {s} and embedding: {spearman(distances_of_classes(picture), real):.2f}")

# %% [markdown]
# Which of these would you trust? Near 0 means that the distance of two groups in the picture says nothing about their
# distance in the embedding. A moderate number means that it says something *on average*, and you cannot know for which pair.
#
# ### A test where we know the truth
#
# We make three groups ourselves. B lies 10 from A. C lies **ten times** as far. And A is **ten times as wide** as the others.
#
# **Predict:** what will be left of these two facts in the PCA, and in the UMAP?

# %%
which = torch.arange(150) % 3
centres, widths = torch.tensor([0.0, 10.0, 100.0])[which], torch.tensor([1.0, 0.1, 0.1])[which]
made = torch.randn(150, 10, generator=torch.Generator().manual_seed(seed)) * widths[:, None]
made[:, 0] += centres
pictures = torch.stack([scaled_embedding(joint_projection(made, method, seed=seed)) for method in ("pca", "umap")])


# %%
def facts(points):
    means = torch.stack([points[which == g].mean(dim=0) for g in range(3)])
    wide = [(points[which == g] - means[g]).norm(dim=1).mean() for g in range(3)]
    far = torch.cdist(means[:1], means)[0]
    return f"C / B distance {far[2] / far[1]:.1f}\nA / B width {wide[0] / wide[1]:.1f}"


title = f"In truth both are 10. UMAP says: {facts(pictures[1])}".replace("\n", ", ")
embedding_scatter(pictures, which, ["A (wide)", "B (near)", "C (far)"], ["PCA", "UMAP"], title, quality=[*map(facts, pictures)])

# %% [markdown]
# In the PCA both facts are there, though B and C are hardly more than dots. UMAP gives each group its own room, about as large
# for each, wherever there is space. That makes it a good *index* of groups and a bad *map*. **Never read the distance between
# two islands, nor the size of one.**
#
# ### Groups that are not there
#
# Now as many points of pure noise, which we give the labels of the digits. UMAP has a knob, `neighbours`: how many neighbours
# of each point it listens to. **Predict:** will you see groups, with 3 and with 15?

# %%
static = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
names, numbers = ["noise, 3 neighbours", "noise, 15 neighbours"], (3, 15)
clouds = torch.stack([scaled_embedding(joint_projection(static, "umap", seed, k)) for k in numbers])
title = f"Pure noise. Trustworthiness {trustworthiness(static, clouds[0]):.2f} and {trustworthiness(static, clouds[1]):.2f}"
embedding_scatter(clouds, labels, digits, names, title, quality=[quality(p, static) for p in clouds])

# %% [markdown]
# Would you have called some of those clumps a finding, had you met the left picture without its labels? The numbers
# give it away: compare the trustworthiness with that of the digits above, and the purity with blind chance, 10 %. **A picture
# without its numbers proves nothing.**
#
# ## Three exits: one fit or three?
#
# We want to follow an image through the network. Three separate fits put it wherever they like. The library scales every exit,
# turns it to fit the deepest as well as a rotation can, and then fits all 600 points **jointly**.
#
# **Predict:** how far does an image move from exit 1 to exit 3, as a share of the distance between two random images? In
# separate fits, and in the joint one?

# %%
joint = stage_embedding(run)
separate = torch.stack([scaled_embedding(joint_projection(e, "umap", seed=seed)) for e in exits])


# %%
def moved(pictures):
    return ((pictures[0] - pictures[-1]).norm(dim=1).mean() / torch.pdist(pictures[-1]).mean()).item()


for name, pictures in {"three fits": separate, "joint fit": joint.coordinates[0]}.items():
    print(f"{name}: an image moves {moved(pictures):.0%} of the way between two random images")

# %% [markdown]
# Only in the joint fit is "where did this image go?" a question at all. But is the answer true? Here is the way in the
# *embedding*, after the rotation and before any projection. As a control we turn a set of random vectors towards exit 3 in the
# same manner.

# %%
for name, e in {"exit 1": exits[0], "pure noise": scaled_embedding(static)}.items():
    way = (aligned_embedding(e, x) - x).norm(dim=1).mean() / torch.pdist(x).mean()
    print(f"{name}: an image lies {way:.0%} of that way from itself at exit 3")

# %% [markdown]
# Exit 1 and exit 3 agree far better than noise would, so it is right to draw them together. But compare the first line with
# the joint fit above: does the picture make the way look shorter than it is?
#
# ### The price of a joint fit
#
# If it does, there is a reason. Each image is there three times, and finds *itself* at another exit among its neighbours. UMAP
# draws neighbours together, and so a shallow exit is pulled towards the order of the deep one. The purity in the embedding
# tells what the exit really has.

# %%
joint.table().round(3)

# %% [markdown]
# In which rows is `knn_purity` (the picture) above `embedding_purity` (the exit itself)? There the picture is tidier than the
# exit. If a shallow exit looks as tidy as the deepest one, believe the last column, not your eyes.
#
# ## Explore it
#
# A panel an exit, all of one joint fit, with the numbers underneath. Below it are the relations of the same images.
#
# - **Draw a lasso** around a clump at exit 1: the same images light up at every exit, and their classes in the relation matrix.
# - **Click a point**: rings show its nearest neighbours *in the embedding*. Do they lie nearby in the picture?
# - Colour by "right or wrong at that exit". Are the wrong ones at the rims?
#
# From code it is `explorer.selection`. Here we mark the images of the digit 8 that exit 1 gets wrong.

# %%
relations = RelationExplorer(run)
explorer = StageExplorer(run, relations)
wrong = run.probes[epochs].logits[0].argmax(dim=1) != labels
explorer.selection = ((labels == 8) & wrong).nonzero().flatten().tolist()
display(explorer)
display(relations)

# %% [markdown]
# ![The stage explorer: three panels of coloured points, one an exit, in nearly the same clumps, about one a digit. A few
# points are marked, all others are pale. From one image thin lines lead to its neighbours, some of them in other clumps. Below
# each panel stand trustworthiness and purity.](images/09_stage_explorer.png)
#
# *The explorer as a picture.* The marked images are in full colour: one that exit 1 gets wrong need not lie far from its class.
# The thin lines lead from one image to its eight nearest *in the embedding*. Some end in other clumps. The white space that
# they cross was put there by UMAP.
#
# ## A hundred classes
#
# CIFAR-100, from a run that travels with the repository: CORSD, one seed, 300 probe images, three of each class. With three
# images a class the highest possible purity is low, so the limit has to stand beside the number. Superclasses, fifteen images
# each, are easier to see.

# %% tags=["nbval-check-output"]
photos = committed_run("cifar100_small/corsd")
classes = photos.probes.labels
superclass = torch.tensor(photos.data.superclass_of_class)[classes]
print(f"highest possible purity: {purity_limit(classes):.0%} by class, {purity_limit(superclass):.0%} by superclass")

# %% [markdown]
# **Predict:** of the ten nearest, how many are of the same superclass at the deepest exit? Blind chance is about 5 %.

# %%
deep = scaled_embedding(photos.probes[60].embeddings[-1].float())
views = torch.stack([scaled_embedding(joint_projection(deep, method, seed=seed)) for method in ("pca", "umap")])
shown = [photos.data.superclass_names[s] for s in superclass]
title = f"20 superclasses: {knn_purity(deep, superclass):.0%} of the ten nearest are of the same one (in the embedding)"
under = [quality(v, deep, superclass) for v in views]
embedding_scatter(views, classes, photos.data.class_names, ["PCA", "UMAP"], title, colour_by=shown, quality=under)

# %% [markdown]
# This is what most real pictures look like: a cloud. Which of the two is purer than the embedding that it shows?
#
# It would be easy to colour three tidy superclasses, grey the rest, and publish islands. Here is how much that choice matters,
# with nothing else changed:

# %%
pure = {s: (superclass[nearest_images(deep)] == s)[superclass == s].double().mean().item() for s in range(20)}
ranked = sorted(pure, key=pure.get)
for s in ranked[-1:-4:-1] + ranked[:3]:
    print(f"{photos.data.superclass_names[s]:32} {pure[s]:.0%} of the ten nearest are of it")

# %% [markdown]
# The first three would make a fine figure, and the last three would make the opposite point. When you read a picture with some
# groups in colour, ask who chose them. (Of many groups, the explorer colours the tidiest first, too, so that there is something
# to see.)
#
# ## Recap
#
# - **PCA** is a shadow: distances are true or too short, never invented. It leaves most directions out.
# - **UMAP** is a drawing of neighbourhoods: who is near whom can mostly be trusted. Distances between groups, sizes of
#   groups and positions cannot, and noise may clump.
# - Put **trustworthiness** and **purity** beside every picture, with the purity of the embedding and its limit.
# - Draw several **seeds**. What changes is not a finding.
# - To follow images, make **one joint fit**, and beware: it lends shallow exits some of the order of deep ones.

# %% [markdown]
# ## Exercise 1: purity by hand
#
# `points` (N, D) have `labels` (N,). Of the `k` *other* points nearest to a point, some share have its label. Return the mean
# of that share, a number. `torch.cdist` gives distances; a point must not be its own neighbour.


# %% tags=["exercise"]
def purity_by_hand(points, labels, k):
    return ...


# %% tags=["solution"]
def purity_by_hand(points, labels, k):
    distance = torch.cdist(points, points).fill_diagonal_(torch.inf)
    near = distance.topk(k, largest=False).indices  # (N, k)
    return (labels[near] == labels[:, None]).double().mean().item()


# %% tags=["check"]
line, two = torch.tensor([[0.0], [1.0], [2.1], [10.0], [11.0], [12.1]]), torch.tensor([0, 0, 0, 1, 1, 1])
answer = purity_by_hand(line, two, 2)
assert answer is not ..., "there is no answer yet: write yours in place of the `...`"
assert answer == 1.0, "two groups of three, far apart: the two nearest others are always of the same label"
assert purity_by_hand(line, torch.arange(6), 2) == 0.0, "all labels differ: is a point its own neighbour?"
cloud = torch.randn(60, 5, generator=torch.Generator().manual_seed(1))
kinds = torch.arange(60) % 3
assert abs(purity_by_hand(cloud, kinds, 7) - knn_purity(cloud, kinds, 7)) < 1e-6, "another value than the library's"
print("Exercise 1: right.")

# %% [markdown]
# The number of neighbours is a choice, too. How does it change the verdict on UMAP?

# %% tags=["uses-answer"]
for k in (1, 5, 10, 19):
    here, there = (purity_by_hand(points, labels, k) for points in (drawing, x))
    print(f"{k:2} nearest: {here:.0%} in the UMAP, {there:.0%} in the embedding")

# %% [markdown]
# ## Exercise 2: which neighbours are kept?
#
# `first` and `second` hold the same images in two spaces, (N, D) and (N, E). Of the `k` neighbours that an image has in
# one, some share are its neighbours in the other, too. Return the mean of that share, a number. `nearest_images(points, k)`
# gives the neighbours (N, k) in order of distance; the order must not matter.


# %% tags=["exercise"]
def neighbours_kept(first, second, k):
    return ...


# %% tags=["solution"]
def neighbours_kept(first, second, k):
    a, b = nearest_images(first, k), nearest_images(second, k)
    return (a[:, :, None] == b[:, None, :]).any(dim=2).double().mean().item()


# %% tags=["check"]
cloud = torch.randn(50, 4, generator=torch.Generator().manual_seed(2))
share = neighbours_kept(cloud, 3 * cloud + 1, 5)
assert share is not ..., "there is no answer yet: write yours in place of the `...`"
assert abs(share - 1) < 1e-6, "larger and moved away, all neighbours are the same: the answer is 1"
here, there = torch.tensor([[0.0], [1.0], [3.0], [10.0]]), torch.tensor([[0.0], [3.0], [1.0], [10.0]])
assert abs(neighbours_kept(here, there, 2) - 1) < 1e-6, "the nearest two change places for image 0: does the order matter?"
assert neighbours_kept(here, there, 1) == 0, "each image has another nearest one in the second space: nothing is kept"
assert 0.1 < neighbours_kept(cloud, cloud[:, :2], 5) < 0.9, "with half of the dimensions, some neighbours are kept"
print("Exercise 2: right.")

# %% [markdown]
# How many of ten neighbours survive the drawing? How many are common to two drawings of different seeds?

# %% tags=["uses-answer"]
print(f"PCA and embedding:  {neighbours_kept(shadow, x, 10):.0%}")
print(f"UMAP and embedding: {neighbours_kept(drawing, x, 10):.0%}")
print(f"UMAP of two seeds:  {neighbours_kept(drawings[0], drawings[1], 10):.0%}")

# %% [markdown]
# A trustworthiness near 1 does not mean that all neighbours are kept: a false neighbour that was *nearly* a true one costs
# little. Report what you mean.
#
# ## Where next
#
# - Call `stage_embedding(run, epochs=[0, 6, 60])`, then `StageExplorer(run, epochs=[0, 6, 60])`, and press play: one joint fit
#   over exits *and* time.
# - Set `min_dist=0.5` or `neighbours=50` in `stage_embedding`. Which of your findings survive?
# - [07_relation_explorer](07_relation_explorer.ipynb): relations need no projection, so nothing is made up in them.
# - [08_class_structure](08_class_structure.ipynb): numbers for what the clumps here suggest.
# - [10_attribution](10_attribution.ipynb): which pixels put an image among its neighbours?
# - Read the code that you have used: `corsd_lib/analysis/embedding.py`.
