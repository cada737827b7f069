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
# # 08 How do classes tighten and part?
#
# A network turns an image into a vector. At first the vectors of all classes lie mixed. At the end each class keeps to itself.
# What happened in between? Did classes *tighten*, did they *part*, or both? And is a network whose classes are tighter a
# better one?
#
# **You will learn**
#
# - to split the variance of embeddings into a part *within* classes and a part *between* them, by hand;
# - four more measures: silhouette, nearest class mean, neural collapse (NC1) and the simplex; what each one sees and what it
#   misses;
# - how much structure **noise** has, and why you must know that before you read any of them;
# - to compare what two exits, or two networks, have learned with CKA;
# - what the committed runs on CIFAR-100 say about tight classes and accuracy.
#
# **You need** PyTorch basics; [the walkthrough](01_walkthrough.ipynb) helps. **Time:** the notebook runs in about half a
# minute on two CPU cores; reading and the two exercises take about 40 minutes. Nothing is downloaded.

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
import math

import plotly.express as px
import torch
from IPython.display import display

from corsd_lib import RelationExplorer, class_structure, committed_run, committed_summary, train
from corsd_lib.analysis import run_pixels
from corsd_lib.analysis.relations import spearman
from corsd_lib.analysis.structure import (
    cka_matrix,
    linear_cka,
    mean_angles,
    nearest_mean_accuracy,
    scatter,
    silhouette,
    variance_collapse,
)
from corsd_lib.batches import evaluation_batches
from corsd_lib.evaluation import load_data
from corsd_lib.figures import SCALE, embedding_scatter, image_strip, structure_over_depth, structure_over_epochs, template
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
# ## Within and between
#
# Take the mean of each class. **Within** is how far images lie from the mean of their own class, squared and averaged over
# all images. **Between** is how far the class means lie from the mean of everything, squared and averaged in the same way.


# %%
def scatter_by_hand(x, labels):
    centre, within, between = x.mean(dim=0), 0.0, 0.0
    for c in labels.unique():
        members = x[labels == c]  # (n_c, D)
        mean = members.mean(dim=0)
        within += (members - mean).square().sum().item() / len(x)
        between += (mean - centre).square().sum().item() * len(members) / len(x)
    return within, between


# %% [markdown]
# **Predict:** four images on a line. Two of class 0 at places 0 and 2, two of class 1 at 10 and 12. The class means are 1 and
# 11, the mean of all is 6. What is within, what is between, and what do they have to do with the variance of all four?

# %% tags=["nbval-check-output"]
places, line_labels = torch.tensor([[0.0], [2.0], [10.0], [12.0]]), torch.tensor([0, 0, 1, 1])
within, between = scatter_by_hand(places, line_labels)
print(f"within {within:.0f}, between {between:.0f}, variance of all {places.var(correction=0).item():.0f}")

# %% [markdown]
# The two add up to the whole variance, always. So one number says it: the **share** of the variance that the class explains,
# between / (within + between). It is 1 when each class is a single point, and 0 when all classes have the same mean.
#
# ### Tightening or parting?
#
# Here are three classes, drawn three times. In the middle they stand **twice as far apart**. At the right each class has shrunk
# to **half its size**.
#
# **Predict:** which of these two has the larger share?

# %%
which, noise = torch.arange(60) % 3, torch.randn(60, 2, generator=torch.Generator().manual_seed(seed))
corners = torch.tensor([[0.0, 0.0], [4.0, 0.0], [2.0, 3.5]])[which]
drawn = torch.stack([corners + noise, 2 * corners + noise, corners + noise / 2])
shares = [f"share {scatter(x, which)['between_share']:.3f}" for x in drawn]
title = f"Parted or tightened: {shares[1]} and {shares[2]}"
panels = ["as it was", "parted", "tightened"]
embedding_scatter(drawn, which, ["A", "B", "C"], panels, title, quality=shares).update_layout(width=900, height=400)

# %% [markdown]
# They are equal. The middle picture is the right one under a magnifying glass, and the share does not see the scale. That is
# what we want: a network can multiply all its embeddings by ten, divide the weights of its classifier by ten, and give the
# same answers. **Tightening and parting are one thing, unless the scale itself means something.**
#
# From here on we use the library's `scatter`, after a check that it is the same.

# %% tags=["nbval-check-output"]
found = scatter(drawn[0], which)
assert all(abs(a - found[name]) < 1e-5 for a, name in zip(scatter_by_hand(drawn[0], which), ("within", "between"), strict=True))
print("the same within and between as the library's, by the way its names:", ", ".join(found))

# %% [markdown]
# ## Two networks
#
# The plain network, whose shallow exits only watch, and CORSD, whose exits learn and are taught. Both are trained on a hundred
# digits by the recipe of [01_walkthrough](01_walkthrough.ipynb). After every third epoch each run noted the embeddings of
# 200 *probe images*, which neither learns from.

# %%
plain, corsd = (train(plan(m, run_directory, epochs, per_class, seed), progress=False) for m in ("probe", "corsd"))
structure = {"plain": class_structure(plain), "CORSD": class_structure(corsd)}

# %% [markdown]
# **Predict:** in the course of the training, does the variance *within* classes fall or rise? And the one *between* them?

# %%
structure_over_epochs(structure["plain"], ("within", "between", "between_share"))

# %% [markdown]
# The two axes on the left are logarithmic. Follow the curves, not only their ends: there may be a rise and then a fall, and the
# title names the ends alone. Compare the end with epoch 0: did the classes get smaller, in the units of the
# embedding? If both curves end higher than they began, the network blew up everything, and the class means more than the
# rest. Then "classes tighten" is true only *relative to how far apart they are*, which is what the right panel shows.
#
# Look at epoch 0 in the right panel, too. Nothing was learned, and yet the share is far from 0. We come back to that.
#
# ## Three more opinions
#
# ### Silhouette: one image at a time
#
# For one image, `a` is its mean distance to the others of its class. `b` is its mean distance to the images of the
# *nearest other* class. Its silhouette is `(b - a) / max(a, b)`: near 1 when it is among its own, 0 on the border, negative
# when another class is nearer than its own.


# %%
def silhouette_by_hand(x, labels, i):
    distance = (x - x[i]).norm(dim=1)
    own = labels == labels[i]
    a = distance[own].sum() / (own.sum() - 1)  # the distance to itself is 0
    b = min(distance[labels == c].mean() for c in labels.unique() if c != labels[i])
    return ((b - a) / max(a, b)).item()


# %% [markdown]
# The mean over all images is the library's `silhouette`. Which probe image has the lowest, and what does it look like?

# %%
labels = plain.probes.labels
x = plain.probes[epochs].embeddings[-1].float()  # (200, D) the deepest exit
each = torch.tensor([silhouette_by_hand(x, labels, i) for i in range(len(x))])
assert abs(each.mean().item() - silhouette(x, labels)) < 1e-4
odd = each.argsort()[:8].tolist()

# %%
names = [f"{labels[i]}: {each[i]:+.2f}" for i in odd]
title = f"{int((each < 0).sum())} of {len(each)} images have a negative silhouette; the lowest eight"
image_strip(run_pixels(plain, odd), names, title, columns=8)

# %% [markdown]
# The caption is the digit and its silhouette. Would you have drawn them so?
#
# ### Nearest class mean: would it do as a classifier?
#
# Throw the trained classifier away. Give each image to the class whose mean is nearest. How often is that right? The question
# has a trap: an image is *part of* its class mean, and pulls it towards itself. To see how much that matters, we
# try it on **noise**: 100 random vectors with random labels.
#
# **Predict:** there are 10 classes, so blind guessing is right on 10 %. What will nearest-mean score on noise?


# %%
def nearest_mean_naive(x, labels):
    means = torch.stack([x[labels == c].mean(dim=0) for c in range(10)])
    return 100 * (torch.cdist(x, means).argmin(dim=1) == labels).double().mean().item()


# %% tags=["nbval-check-output"]
static, static_labels = torch.randn(100, 64, generator=torch.Generator().manual_seed(0)), torch.arange(100) % 10
naive, honest = nearest_mean_naive(static, static_labels), nearest_mean_accuracy(static, static_labels)
print("naive, on noise: ", "more than half are right" if naive > 50 else "fewer than half are right")
print("honest, on noise:", "more than half are right" if honest > 50 else "fewer than half are right")

# %% [markdown]
# The naive one finds classes where there are none. The library's leaves each image out of its own mean (*leave-one-out*), and
# noise scores what noise should.
#
# ### What does noise score on the share?
#
# The same trap waits in the share. A class mean of a few random vectors is not at the centre, so random labels "explain" some
# variance, too. With N images and C classes the expected share of random labels is `(C - 1) / (N - 1)`. Is it? We keep the
# embeddings and shuffle their labels.

# %%
generator = torch.Generator().manual_seed(seed)
shuffled = [scatter(x, labels[torch.randperm(len(labels), generator=generator)])["between_share"] for _ in range(20)]
print(f"shuffled labels {sum(shuffled) / 20:.3f}, expected (10 - 1) / (200 - 1) = {9 / 199:.3f}")
print(f"true labels     {scatter(x, labels)['between_share']:.3f}")

# %% [markdown]
# Twenty images a class leave little room for chance. So the share at epoch 0 was *not* chance: pixels of a digit look alike
# already, and random layers keep some of that. **Shuffle the labels before you believe a structure.** Below, with three images
# a class, it will matter.
#
# ## Neural collapse
#
# Train long enough, and something remarkable is reported (Papyan, Han and Donoho 2020, [arXiv
# 2008.08186](https://arxiv.org/abs/2008.08186)): on *training* images all embeddings of a class fall onto one point (NC1), and
# the class means point in directions that are as far apart as they can be (NC2).
#
# **NC1** is within divided by between again, but as matrices: noise counts only along the directions in which class means
# differ, each measured in units of the difference there. It is 0 after a full collapse.


# %%
def nc1_by_hand(x, labels):
    x = x.double() - x.double().mean(dim=0)
    _, y, counts = labels.unique(return_inverse=True, return_counts=True)
    means = torch.stack([x[y == c].mean(dim=0) for c in range(len(counts))])  # (C, D)
    noise = x - means[y]
    s_within = noise.T @ noise / len(x)  # (D, D)
    s_between = (means.T * counts / len(x)) @ means  # (D, D), of rank C - 1
    return (s_within @ torch.linalg.pinv(s_between, rtol=1e-9)).trace().item() / len(counts)


# %% tags=["nbval-check-output"]
assert math.isclose(nc1_by_hand(x, labels), variance_collapse(x, labels), rel_tol=1e-3)
print("the same NC1 as the library's for", len(x), "images")

# %% [markdown]
# **NC2.** How far apart can C directions be? Two can be opposite, at 180 degrees. **Predict:** three? Ten? And a hundred? The
# best arrangement is a *simplex*: the C points at 1 on each axis, seen from their own mean.

# %% tags=["nbval-check-output"]
for classes in (2, 3, 10, 100):
    corners = torch.eye(classes) - 1 / classes  # one direction a class, seen from the mean
    cosine = torch.cosine_similarity(corners[0], corners[1], dim=0).item()
    print(f"{classes} classes: every two are {math.degrees(math.acos(cosine)):.0f} degrees apart")

# %% [markdown]
# The cosine is `-1 / (C - 1)`. With many classes the best that there is is hardly more than a right angle. `simplex_gap` is how
# far the cosines of the real class means are from that, on average.
#
# **Predict:** which of the two networks gets nearer to a collapse on the probe images? At which exit?

# %%
ends = ", ".join(f"{table.nc1.iloc[-1]:.2f} in {name}" for name, table in structure.items())
structure_over_epochs(structure, ("nc1", "simplex_gap"), f"NC1 of the deepest exit at the end: {ends}")

# %% [markdown]
# The NC1 axis is logarithmic. Where are the curves at the end: at 0, or has the fall stopped well above it? Do shallow exits
# lag behind?
#
# ### Collapsed where?
#
# These were images that no network learned from. Now the *training* images, as many of each digit. **Predict:** NC1 larger,
# smaller or the same?


# %%
def nc1_of_training_images(run):
    data = load_data(run.config)
    images, truth = next(evaluation_batches(data, data.train, batch_size=len(data.train)))
    with torch.no_grad():
        return variance_collapse(run.network()(images).embeddings[-1], truth)


# %%
for name, run in {"plain": plain, "CORSD": corsd}.items():
    seen = nc1_of_training_images(run)
    new = variance_collapse(run.probes[epochs].embeddings[-1][::2], labels[::2])  # every second of 20 of a digit
    print(f"{name:5}: NC1 {seen:.3f} on training images, {new:.3f} on as many new ones: {new / seen:.0f} times as loose")

# %% [markdown]
# A network that has collapsed on what it was shown has not collapsed on what it will be asked. **Say which images a measure was
# taken on.** All other figures here are of probe images.
#
# ## With depth
#
# Solid: at the end. Dotted: before training, one line for both networks, which began with the same weights. *Is the deepest
# exit the tidiest in every panel?*

# %%
structure_over_depth(structure, ("between_share", "silhouette", "nc1"))

# %% [markdown]
# Compare the shallow exits of the two networks first. In the plain one no gradient of an exit reached the backbone, but each
# exit has layers of its own, and these were trained: what you see is what they could make of the stage. In CORSD exit and
# teacher shaped the stage, too. Then look at the *dotted* lines: do share and silhouette agree on which exit is best before any
# training? Share, silhouette and NC1 weigh directions and classes differently, so a claim that holds in one panel only is weak.
#
# ## Which classes?
#
# All these numbers are means over classes. A mean hides the pair that went wrong. The explorer below shows the plain L2
# relation: near 1 when images of two classes lie close in the embedding, near 0 when they are far. Diagonal: how tight a class
# is. Elsewhere: how near two classes are.
#
# **Look for:** the tightest class, and the loosest. The two classes that lie nearest to each other. Then set "subtract" to the
# other run, the plain network: how much of what you found is CORSD's doing?

# %%
explorer = RelationExplorer(corsd, plain)
explorer.kind = "l2"
display(explorer)

# %% [markdown]
# ![The relation explorer with a ten by ten heatmap of the L2 relation of digits at the deepest exit of CORSD: a brighter
# diagonal of uneven brightness on a darker ground with some lighter cells.](images/08_relation_explorer.png)
#
# *The explorer as a picture.* The diagonal is not one colour: some digits are tighter than others. Off it a lighter cell is a
# pair of digits that lie nearer than most. The two numbers in the title are all that a mean leaves of it.
#
# ## Do two networks learn the same thing?
#
# Dimension 7 of one embedding has nothing to do with dimension 7 of another. But we can ask whether they see the same images as
# alike. **Linear CKA** compares, up to rotation and scale (Kornblith et al. 2019, [arXiv
# 1905.00414](https://arxiv.org/abs/1905.00414)).


# %%
def cka_by_hand(first, second):  # (N, D), (N, E): the same N images
    a, b = first - first.mean(dim=0), second - second.mean(dim=0)
    return ((b.T @ a).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm())).item()


# %% tags=["nbval-check-output"]
turn = torch.linalg.qr(torch.randn(x.shape[1], x.shape[1], generator=generator)).Q  # a random rotation
assert math.isclose(cka_by_hand(x, x[:, :3]), linear_cka(x, x[:, :3]), rel_tol=1e-3)
print(f"with itself, turned and three times as large: {100 * linear_cka(x, 3 * x @ turn):.0f} %")

# %% [markdown]
# And noise? Two sets of random vectors have nothing in common. **Predict:** their CKA, with 20 images and with 2,000?

# %%
for n in (20, 200, 2000):
    first, second = torch.randn(2, n, 64, generator=generator)
    print(f"{n:5} images of 64 dimensions: {linear_cka(first, second):.2f}")

# %% [markdown]
# The same lesson a third time: with few images for its dimensions, noise agrees with noise. And real embeddings are no such
# noise: they fill fewer directions. *Their* zero is found by a shuffle: pair the images of one network with the wrong ones of
# the other.

# %%
wrong = torch.randperm(len(x), generator=generator)
value = linear_cka(x, corsd.probes[epochs].embeddings[-1].float()[wrong])
print(f"the deepest embeddings of both networks, images shuffled in one: {value:.2f}")

# %% [markdown]
# Take that as the zero of the next figure.
#
# **Predict:** which is larger, the CKA of exit 1 and exit 3 of *one* network, or that of exit 3 of *both*?

# %%
six = [e for run in (plain, corsd) for e in run.probes[epochs].embeddings]
cka = cka_matrix(six)
names = [f"{name} {k}" for name in ("plain", "CORSD") for k in (1, 2, 3)]
title = f"Exits 1 and 3: {cka[0, 2]:.2f} in plain, {cka[3, 5]:.2f} in CORSD. Both exits 3: {cka[2, 5]:.2f}"
look = {"color_continuous_scale": SCALE, "template": template(), "text_auto": ".2f", "width": 620, "height": 520}
px.imshow(cka, x=names, y=names, zmin=0, zmax=1, title=title, labels={"color": "CKA"}, **look)

# %% [markdown]
# Look at the two blocks on the diagonal, one a network, and at the block beside them. Neighbouring exits share most of their
# layers. The two networks share none, only images, labels and first weights. Are their deepest exits closer than an exit 1
# and an exit 3 in the same network?
#
# ## CIFAR-100: many methods, one seed
#
# Now the real thing, from the repository's own runs: 100 images of each of 100 classes, a small ResNet, all methods of the
# library, **one seed**. Of each run 300 probe images are kept, three a class. That is few.
#
# **Predict:** what share of the variance would random labels explain here?

# %% tags=["nbval-check-output"]
kept = committed_run("cifar100_small/corsd").probes
images, classes = len(kept.labels), len(kept.labels.unique())
print(f"{images} images, {classes} classes: random labels explain {100 * (classes - 1) / (images - 1):.0f} % of the variance")

# %% [markdown]
# Keep that number in mind. Now all of them, with CORSD's own curve first: it has five snapshots.

# %%
measures = ("between_share", "silhouette", "nearest_mean_top1")
structure_over_epochs(class_structure(committed_run("cifar100_small/corsd")), measures)

# %% [markdown]
# Compare where the share begins with what chance gives. The silhouette stays below 0: with three images a class, one of the 99
# other classes is often nearer by luck alone. The nearest class mean is the most careful measure here, because it leaves each
# image out. It begins at a few per cent, where chance is one.
#
# **Predict:** order the methods by how tight their classes are in the end. Will the tightest be the most accurate?

# %%
rows = committed_summary("cifar100_small")["methods"]
study = {row: committed_run(f"cifar100_small/{row}") for row in rows}
last = {row: class_structure(run, [max(run.probes)]).iloc[-1] for row, run in study.items()}
top1 = {row: run.test["exits"][-1]["top1"] for row, run in study.items()}
for row, m in sorted(last.items(), key=lambda item: item[1].nc1):
    values = f"NC1 {m.nc1:.2f}, share {m.between_share:.2f}, silhouette {m.silhouette:+.2f}, test accuracy {top1[row]:.1f} %"
    print(f"{row:16} {values}")
before = class_structure(study["baseline"], [0]).iloc[-1]
kept, shown = study["baseline"].probes, max(study["baseline"].probes)
dealt = kept.labels[torch.randperm(len(kept.labels), generator=generator)]
print(f"before training  NC1 {before.nc1:.2f}, share {before.between_share:.2f}, silhouette {before.silhouette:+.2f}")
print(f"labels shuffled  NC1 {variance_collapse(kept[shown].embeddings[-1].float(), dealt):.2f}")

# %% [markdown]
# First the two lines at the bottom, the plain network untrained, and trained but with its labels dealt at random. How much of
# the way from there to 0, the full collapse, has any method gone? These are images it has not learned from.
#
# The tightest stand on top. Do the three measures agree on who they are? CS-KD asks two images of one class for the same
# answer; is it where you would expect it? Now the last column. (The weights travel in half precision, so it may differ by a
# tenth from the study's table.) Does accuracy fall from top to bottom, as NC1 rises?

# %%
tightness = torch.tensor([-last[row].nc1 for row in rows])
agreement = spearman(tightness, torch.tensor([top1[row] for row in rows]))
close = sum(abs(top1[row] - top1["baseline"]) < 0.5 for row in rows if row != "baseline")
print(f"tightness and accuracy: rank correlation {agreement:.2f} over {len(rows)} methods, one seed each")
print(f"within half a point of the plain network's accuracy: {close} of {len(rows) - 1} other methods")

# %% [markdown]
# A correlation over so few methods moves a lot when one of them changes place, and differences of half a point are no
# differences with one seed. So this table cannot rank methods, neither by tightness nor by accuracy. **Tighter classes need not
# be better answers: measure both.** What a study needs for a ranking is in [11_compare_methods](11_compare_methods.ipynb).
#
# ## Recap
#
# - Variance splits into **within** and **between**. Their share does not see the scale, so tightening and parting are one.
# - **Silhouette** judges images, **nearest mean** judges the embedding as a classifier, **NC1** judges noise along the
#   directions that matter, the **simplex** judges angles.
# - **Noise has structure, too**, the more the fewer images a class there are. Shuffle labels, leave out the image itself.
# - Collapse on training images says little about new ones.
# - **CKA** compares embeddings up to rotation and scale. Know its value for noise.
# - Tightness and accuracy are two questions. One small study cannot rank methods by either.

# %% [markdown]
# ## Exercise 1: how close was it?
#
# For each image (row of `x`, (N, D)) return its *margin* (N,): the distance to the nearest mean of **another** class minus the
# distance to the mean of its **own**. `means` (C, D) holds the class means, `labels` (N,) the classes. A positive margin:
# nearest-mean is right. Use `torch.cdist`, and hide the own class before you look for the nearest.


# %% tags=["exercise"]
def mean_margin(x, means, labels):
    return ...


# %% tags=["solution"]
def mean_margin(x, means, labels):
    distance = torch.cdist(x, means)  # (N, C)
    own = distance.gather(1, labels[:, None])[:, 0]
    others = distance.scatter(1, labels[:, None], torch.inf)
    return others.min(dim=1).values - own


# %% tags=["check"]
toy_means = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 30.0]])
toy = torch.tensor([[1.0, 0.0], [4.0, 0.0], [0.0, 29.0]])
margin = mean_margin(toy, toy_means, torch.tensor([0, 1, 2]))
assert isinstance(margin, torch.Tensor), "there is no answer yet: write yours in place of the `...`"
assert margin.shape == (3,), "wanted: one margin an image"
assert margin[0] == 8, "image 0 is 1 from its own mean and 9 from the next: its margin is 8"
assert margin[1] == -2, "image 1 is nearer to another class: its margin is negative"
assert margin[2] == 28, "image 2 is 1 from its own mean, 29 from the nearest other; are distances squared?"
print("Exercise 1: right.")

# %% [markdown]
# Which digit lies closest to a border in the CORSD run?

# %% tags=["uses-answer"]
deep = corsd.probes[epochs].embeddings[-1].float()
means = torch.stack([deep[labels == c].mean(dim=0) for c in range(10)])
margins = mean_margin(deep, means, labels)
average = [margins[labels == c].mean().item() for c in range(10)]
print(f"mean margin: smallest for the digit {average.index(min(average))}, largest for the digit {average.index(max(average))}")

# %% [markdown]
# ## Exercise 2: how far from a simplex?
#
# Given the `means` of C classes (C, D), return a number: the mean, over all pairs of *different* classes, of
# `|cosine + 1 / (C - 1)|`, where the cosine is between the two means **seen from the mean of the means**.


# %% tags=["exercise"]
def simplex_gap(means):
    return ...


# %% tags=["solution"]
def simplex_gap(means):
    unit = torch.nn.functional.normalize(means - means.mean(dim=0), dim=1)
    different = ~torch.eye(len(means), dtype=torch.bool)
    return ((unit @ unit.T)[different] + 1 / (len(means) - 1)).abs().mean().item()


# %% tags=["check"]
perfect = 5 * torch.eye(4) + 3.0  # a simplex, moved away from the origin
gap = simplex_gap(perfect)
assert gap is not ..., "there is no answer yet: write yours in place of the `...`"
assert abs(gap) < 1e-5, "a simplex has a gap of 0 wherever it lies; did you take off the mean, and leave out the diagonal?"
some = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
wanted = mean_angles(some, torch.arange(6))["simplex_gap"]  # one image a class: it is its own mean
assert abs(simplex_gap(some) - wanted) < 1e-4, f"{simplex_gap(some):.3f}; the library says {wanted:.3f}"
print("Exercise 2: right.")

# %% [markdown]
# What would *random* directions score? With many dimensions they are nearly at right angles, and so is a large simplex.

# %% tags=["uses-answer"]
real = {"plain": plain, "CORSD": corsd}
for name, run in real.items():
    e = run.probes[epochs].embeddings[-1].float()
    print(f"{name}: {simplex_gap(torch.stack([e[labels == c].mean(dim=0) for c in range(10)])):.3f}")
print(f"random directions: {simplex_gap(torch.randn(10, 64, generator=generator)):.3f}")

# %% [markdown]
# Are the trained means nearer to a simplex than random directions are? A small gap alone is no sign of a collapse.
#
# ## Where next
#
# - Set `epochs` to 240 and run all again. Does NC1 on training images go on falling? Does it on probe images?
# - Load `baseline` and `byot` from `cifar100_small` and draw their CKA. How much do two methods differ?
# - [09_stage_embeddings](09_stage_embeddings.ipynb): the same embeddings as a picture, and what the picture does to them.
# - [11_compare_methods](11_compare_methods.ipynb): when is a difference between two methods more than chance?
# - Read the code that you have used: `corsd_lib/analysis/structure.py` is short, and gives the source of each measure.
