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
# # 08 How do classes become compact and separate?
#
# Training is said to move the embeddings of a class together and different classes
# apart. How is that measured, does it happen, and does a tighter class mean a better
# classifier?
#
# **You will learn**
#
# - five measures with their formulas: variance explained, silhouette, nearest class
#   mean, neural collapse (NC1) and the simplex gap;
# - what each measure gives for **noise**, and why you have to know that first;
# - how to compare two exits or two networks with CKA;
# - what the committed runs on CIFAR-100 say about tight classes and accuracy.

# %% [markdown]
# **You need** PyTorch basics; [01_walkthrough](01_walkthrough.ipynb) helps.
# **Run time:** about 1 minute on two CPU cores. **Learning time:** 35 minutes of
# reading, 45 minutes for the four exercises. Nothing is downloaded.

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
import math

import plotly.express as px
import torch
from IPython.display import display
from scipy.stats import spearmanr
from torch.nn import functional as F

from corsd_lib import RelationExplorer, class_structure, committed_run
from corsd_lib import committed_summary, load_dataset, train
from corsd_lib.analysis import cka_matrix, linear_cka, mean_angles
from corsd_lib.analysis import nearest_mean_accuracy, run_pixels, scatter, silhouette
from corsd_lib.analysis import variance_collapse
from corsd_lib.batches import evaluation_batches
from corsd_lib.course import answered, compare, expect
from corsd_lib.figures import SCALE, embedding_scatter, image_strip
from corsd_lib.figures import structure_over_depth, structure_over_epochs, template
from corsd_lib.walkthrough import plan

torch.set_num_threads(1)  # one thread is faster for images this small

# %% [markdown]
# The settings of this notebook. Each combination has its own run directory, so a
# finished training is opened and not repeated.

# %% tags=["parameters"]
epochs = 60  # passes over the training images
per_class = 10  # labelled images of each digit
seed = 0  # of the weights, the choice of images and their order
run_directory = "runs/digits"  # finished trainings are found here again

# %% [markdown]
# **How predictions work.** Some cells ask for a prediction before a result. Replace
# `None` by your value and run on: the notebook prints it beside the outcome.

# %% [markdown]
# ## Variance within and between classes
#
# $N$ embeddings $x_i$ have labels $y_i$. Class $c$ has $n_c$ images and the mean
# $\mu_c$; $\mu$ is the mean of all. The **within** and **between** variance are
#
# $$V_W = \frac{1}{N} \sum_{i=1}^{N} \| x_i - \mu_{y_i} \|^2, \qquad
# V_B = \frac{1}{N} \sum_{c=1}^{C} n_c \, \| \mu_c - \mu \|^2$$
#
# They add up to the total variance. The **variance explained** by the classes is the
# share
#
# $$s = \frac{V_B}{V_W + V_B}$$
#
# It is 1 if each class is a single point and 0 if all classes have the same mean.
#
# **Predict:** four images on a line, class 0 at 0 and 2, class 1 at 10 and 12. What are
# $V_W$ and $V_B$?

# %% tags=["nbval-check-output"]
my_within, my_between = None, None

places = torch.tensor([[0.0], [2.0], [10.0], [12.0]])
found = scatter(places, torch.tensor([0, 0, 1, 1]))
compare("Within", my_within, found["within"])
compare("Between", my_between, found["between"])

# %% [markdown]
# **Answer.** Every image is 1 from its class mean, so $V_W = 1$. The class means 1 and
# 11 are 5 from the mean 6, so $V_B = 25$.

# %% [markdown]
# ### Exercise 1, implement: variance explained
#
# Return $s$ as a Python number for embeddings `x` (N, D) and `labels` (N,). Classes may
# have different numbers of images.


# %% tags=["exercise"]
def variance_explained(x, labels):
    return ...


# %% tags=["solution"]
def variance_explained(x, labels):
    means = torch.zeros_like(x)
    for c in labels.unique():
        means[labels == c] = x[labels == c].mean(dim=0)
    within = (x - means).square().sum()
    between = (means - x.mean(dim=0)).square().sum()
    return (between / (within + between)).item()


# %% tags=["check"]
x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
y = torch.arange(30) // 10 * (torch.arange(30) % 2)  # classes of unequal size
x = x + 2 * y[:, None]
share, wanted = variance_explained(x, y), scatter(x, y)["between_fraction"]
answered(share)
expect(not isinstance(share, torch.Tensor), "return a Python number: `.item()`")
expect(0 <= share <= 1, f"{share:.2f} is no share: divide by the total variance")
expect(abs(share - (1 - wanted)) > 1e-4, "this is the share *within* classes")
expect(
    abs(share - wanted) < 1e-4, f"{share:.4f}, not {wanted:.4f}: weights n_c? squares?"
)
expect(abs(variance_explained(x + 7, y) - share) < 1e-4, "moving all points changes it")
print("Exercise 1: correct.")

# %% [markdown]
# ### Tighter or farther apart?
#
# Three classes, drawn three times. In the middle the means are **twice as far apart**.
# On the right each class has **half its size**.
#
# **Predict:** which has the larger variance explained: `parted`, `tightened` or
# `equal`?

# %%
my_larger = None

# %%
which = torch.arange(60) % 3
noise = torch.randn(60, 2, generator=torch.Generator().manual_seed(seed))
corners = torch.tensor([[0.0, 0.0], [4.0, 0.0], [2.0, 3.5]])[which]
drawn = torch.stack([corners + noise, 2 * corners + noise, corners + noise / 2])
shares = [scatter(points, which)["between_fraction"] for points in drawn]
equal = "equal" if abs(shares[1] - shares[2]) < 1e-3 else "not equal"
compare("Larger", my_larger, equal)
below = [f"explained {share:.3f}" for share in shares]
panels = ["as drawn", "parted", "tightened"]
title = "Three classes, drawn three times"
embedding_scatter(
    drawn, which, ["A", "B", "C"], panels, title, quality=below
).update_layout(width=900, height=400)

# %% [markdown]
# **Answer.** Equal: the middle picture is the right one enlarged, and the share does
# not depend on the scale. That is intended, because a network can multiply its
# embeddings by ten, divide the weights of its classifier by ten, and predict the same.
# As long as the scale has no meaning of its own, tightening a class and moving classes
# apart are the same thing.

# %% [markdown]
# ## Two networks
#
# The plain network, whose shallow exits only watch, and CORSD without class KD. Both
# are trained on a hundred digits with the recipe of
# [01_walkthrough](01_walkthrough.ipynb). After every third epoch each run recorded the
# embeddings of 200 *probe images* that it does not learn from.
#
# **Predict:** during training, does the variance *within* classes `rise` or `fall`? And
# *between* classes?

# %%
my_within, my_between = None, None  # "rise" or "fall"

# %%
recipe = (run_directory, epochs, per_class, seed)
plain, corsd = (train(plan(m, *recipe), progress=False) for m in ("probe", "corsd"))
structure = {"plain": class_structure(plain), "CORSD": class_structure(corsd)}
deepest = structure["plain"].query("exit == exit.max()").sort_values("epoch")
for name, mine in (("within", my_within), ("between", my_between)):
    ends = deepest[name].iloc[[0, -1]].tolist()
    compare(f"Variance {name}", mine, "rise" if ends[1] > ends[0] else "fall")
    most = deepest[name].max()
    print(f"  {ends[0]:.2f} at first, at most {most:.0f}, {ends[1]:.0f} at the end")

# %%
share = deepest.between_fraction.iloc[[0, -1]].tolist()
print(f"share between: {share[0]:.2f} at first, {share[1]:.2f} at the end")

# %%
title = "Plain network: variance within and between classes, and the share between"
measures = ("within", "between", "between_fraction")
structure_over_epochs(structure["plain"], measures, title)

# %% [markdown]
# **Answer.** From the first to the last epoch both rise. But look at the path (the axes
# of the two left panels are logarithmic): both peak near epoch 15 and then shrink,
# within (53 to 9) more than between (86 to 27). So classes get tighter *relative to the
# distance between them*, which the right panel shows. In the first epochs this share
# even falls. Already before training it is far from 0; the section on noise says why.

# %% [markdown]
# ## Silhouette: one image at a time
#
# For image $i$, $a_i$ is its mean distance to the other images of its class and $b_i$
# the smallest mean distance to the images of another class:
#
# $$S_i = \frac{b_i - a_i}{\max(a_i, b_i)}$$
#
# It is near 1 inside a separated class, 0 on a border, and negative if another class is
# closer.


# %%
def silhouette_by_hand(x, labels, i):
    distance = (x - x[i]).norm(dim=1)
    own = labels == labels[i]
    a = distance[own].sum() / (own.sum() - 1)  # the distance to itself is 0
    b = min(distance[labels == c].mean() for c in labels.unique() if c != labels[i])
    return ((b - a) / max(a, b)).item()


# %%
labels = plain.probes.labels
x = plain.probes[epochs].embeddings[-1].float()  # (200, D), the deepest exit
each = torch.tensor([silhouette_by_hand(x, labels, i) for i in range(len(x))])
assert abs(each.mean().item() - silhouette(x, labels)) < 1e-4  # the library's mean
odd = each.argsort()[:8].tolist()
names = [f"{labels[i]}: {each[i]:+.2f}" for i in odd]
below_0 = int((each < 0).sum())
title = f"{below_0} of {len(each)} are negative; the lowest eight (digit: silhouette)"
image_strip(run_pixels(plain, odd), names, title, columns=8)

# %% [markdown]
# Eleven percent of the images are on average nearer to the images of another class than
# to those of their own. Would you have recognised these eight digits?

# %% [markdown]
# ## Nearest class mean
#
# Replace the classifier: assign each image to the class with the nearest mean,
#
# $$\hat y_i = \operatorname*{argmin}_c \| x_i - \mu_c \|$$
#
# There is a trap. An image is part of its own class mean and pulls it closer.
#
# **Predict:** on 100 *random* vectors with random labels of 10 classes, chance is 10 %.
# What percentage does the naive version get right?


# %%
def nearest_mean_naive(x, labels):
    means = torch.stack([x[labels == c].mean(dim=0) for c in range(10)])
    right = torch.cdist(x, means).argmin(dim=1) == labels
    return 100 * right.double().mean().item()


# %% tags=["nbval-check-output"]
my_naive = None  # percent

static = torch.randn(100, 64, generator=torch.Generator().manual_seed(0))
static_labels = torch.arange(100) % 10
naive = nearest_mean_naive(static, static_labels)
honest = nearest_mean_accuracy(static, static_labels)
compare("Naive, on noise", my_naive, naive, " %", atol=10)
compare("Leave-one-out, on noise", None, honest, " %")

# %% [markdown]
# **Answer.** The naive version finds classes in noise: it gets 84 % right. The library
# leaves each image out of its own mean (*leave-one-out*). The 7 % is one draw. On
# average leave-one-out gets a little less than 10 % on noise, because an image's own
# class mean is computed from one image fewer.
#
# Now the two networks, with the library's version:

# %%
for name, run in {"plain": plain, "CORSD": corsd}.items():
    snapshot = run.probes[epochs]
    e, predicted = snapshot.embeddings[-1].float(), snapshot.logits[-1].argmax(dim=1)
    nearest, own = nearest_mean_accuracy(e, labels), (predicted == labels).double()
    print(f"{name}: nearest class mean {nearest:.1f} %", end=", ")
    print(f"the exit's own classifier {100 * own.mean():.1f} %")

# %% [markdown]
# The nearest mean is right two points more often than the classifier. With 200
# images this may be chance. The comparison is not quite fair, because the means come
# from the labels of these 200 images and the classifier from 100 training images.


# %% [markdown]
# ### What does noise score on variance explained?
#
# The mean of a few random vectors is not exactly at the centre, so random labels
# "explain" some variance.
#
# **Predict:** what share of the variance do shuffled labels explain, for 200 images of
# 10 classes? And for 300 random vectors of 100 classes?

# %%
my_few, my_many = None, None  # percent

generator = torch.Generator().manual_seed(seed)
shuffled = [labels[torch.randperm(len(labels), generator=generator)] for _ in range(20)]
found = [scatter(x, y)["between_fraction"] for y in shuffled]
few_share = 100 * sum(found) / len(found)
compare("10 classes, shuffled", my_few, few_share, " %", atol=2, digits=1)
raw = run_pixels(plain, list(range(len(labels)))).flatten(1).float()
share = 100 * scatter(raw, labels)["between_fraction"]
print(f"raw pixels, true labels: {share:.1f} %")
print(f"10 classes, true labels: {100 * scatter(x, labels)['between_fraction']:.1f} %")
clouds = torch.randn(20, 300, 64, generator=torch.Generator().manual_seed(seed))
found = [scatter(c, torch.arange(300) % 100)["between_fraction"] for c in clouds]
compare("100 classes", my_many, 100 * sum(found) / len(found), " %", atol=5)

# %%
for n, classes in ((200, 10), (300, 100)):
    share = 100 * (classes - 1) / (n - 1)
    print(f"{n} images of {classes} classes, by the formula below: {share:.1f} %")
found = [silhouette(x, y) for y in shuffled]
print(f"silhouette, shuffled {sum(found) / 20:.2f}, true {silhouette(x, labels):.2f}")

# %% [markdown]
# **Answer.** For $N$ images and $C$ classes the expected share is
#
# $$\mathbb{E}[s] = \frac{C - 1}{N - 1}$$
#
# With twenty images a class chance is small. So the share before training (0.31 to 0.39
# in the figure above) was *not* chance, which is 0.05: images of a digit resemble each
# other (raw pixels have a share of 45.5 %), and random layers keep part of that. With
# three images a class chance explains a third. Chance need not be 0: the silhouette of
# shuffled labels is negative. **Shuffle the labels before you believe a structure.**

# %% [markdown]
# ## Neural collapse
#
# After long training, Papyan, Han and Donoho (2020, [arXiv
# 2008.08186](https://arxiv.org/abs/2008.08186)) observed on *training* images: all
# embeddings of a class approach one point (NC1), and the class means become equally
# long and point in directions that are as far apart as possible (NC2).
#
# ![Three sketches of three classes: overlapping clouds before training, smaller
# separate clouds during training, and one point a class at equal angles after a full
# collapse.](images/concept_collapse.svg)
#
# The covariance matrices within and between classes, whose traces are $V_W$ and $V_B$:
#
# $$\Sigma_W = \frac{1}{N} \sum_i (x_i - \mu_{y_i})(x_i - \mu_{y_i})^\top, \quad
# \Sigma_B = \frac{1}{N} \sum_c n_c (\mu_c - \mu)(\mu_c - \mu)^\top$$
#
# With the pseudo-inverse $^+$:
#
# $$\mathrm{NC1} = \frac{1}{C} \, \mathrm{tr}\left( \Sigma_W \Sigma_B^{+} \right)$$


# %%
def nc1_by_hand(x, labels):
    x = x.double() - x.double().mean(dim=0)
    _, y, counts = labels.unique(return_inverse=True, return_counts=True)
    means = torch.stack([x[y == c].mean(dim=0) for c in range(len(counts))])  # (C, D)
    noise = x - means[y]
    s_within = noise.T @ noise / len(x)  # (D, D)
    s_between = (means.T * counts / len(x)) @ means  # (D, D), of rank C - 1
    product = s_within @ torch.linalg.pinv(s_between, rtol=1e-9)
    return product.trace().item() / len(counts)


# %% tags=["nbval-check-output"]
library = variance_collapse(x, labels)
assert math.isclose(nc1_by_hand(x, labels), library, rel_tol=1e-3)
print("by hand and the library agree for", len(x), "images")

# %% [markdown]
# First the chance level. Shuffled class means almost coincide, so chance is a *large*
# NC1. How large depends on the number of images and on the embeddings.


# %%
def chance_of(measure, run):  # at the deepest exit, with shuffled labels
    e = run.probes[epochs].embeddings[-1].float()
    return sum(measure(e, y) for y in shuffled) / len(shuffled)


chance = chance_of(variance_collapse, plain)
print(f"NC1: labels shuffled {chance:.1f}, true labels {library:.2f}")

# %% [markdown]
# ### The simplex
#
# $C$ directions that are as far apart as possible form a *simplex*: every two have the
# cosine $-1/(C-1)$.
#
# **Predict:** the angle in degrees between two directions of a simplex of 3 classes,
# and of 100.

# %% tags=["nbval-check-output"]
my_three, my_hundred = None, None  # degrees

for classes, mine in ((2, None), (3, my_three), (10, None), (100, my_hundred)):
    corners = torch.eye(classes) - 1 / classes  # one direction a class, from the mean
    cosine = torch.cosine_similarity(corners[0], corners[1], dim=0).item()
    angle = math.degrees(math.acos(cosine))
    compare(f"{classes} classes", mine, angle, " degrees", atol=2)

# %% [markdown]
# **Answer.** 120 degrees for three classes, and little more than a right angle for a
# hundred.

# %% [markdown]
# ### Exercise 2, implement: the simplex gap
#
# For the class `means` (C, D) return the mean, over all pairs of *different* classes,
# of
#
# $$\Big| \cos(\mu_c - \mu, \; \mu_d - \mu) + \frac{1}{C - 1} \Big|$$
#
# where $\mu$ is the mean of the class means. Return a Python number.


# %% tags=["exercise"]
def simplex_gap(means):
    return ...


# %% tags=["solution"]
def simplex_gap(means):
    unit = F.normalize(means - means.mean(dim=0), dim=1)
    different = ~torch.eye(len(means), dtype=torch.bool)
    gaps = (unit @ unit.T)[different] + 1 / (len(means) - 1)
    return gaps.abs().mean().item()


# %% tags=["check"]
perfect = 5 * torch.eye(4) + 3.0  # a simplex, moved away from the origin
gap = simplex_gap(perfect)
answered(gap)
expect(gap < 0.9, "a simplex away from the origin must give 0: subtract the mean first")
expect(gap < 1e-5, f"a simplex must give 0, not {gap:.2f}: is the diagonal left out?")
some = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
wanted = mean_angles(some, torch.arange(6))["simplex_gap"]
found = simplex_gap(some)
expect(abs(found) > 1e-4, "too large and too small cancel: take |...| before the mean")
expect(abs(found - wanted) < 1e-4, f"{found:.3f} instead of {wanted:.3f}")
print("Exercise 2: correct.")

# %% [markdown]
# Random directions in many dimensions are nearly orthogonal, and so is a large simplex.
# A small gap alone is therefore no sign of a collapse. Shuffled labels are the other
# chance level:


# %%
def gap_of(x, labels):
    return mean_angles(x, labels)["simplex_gap"]


# %%
for name, run in {"plain": plain, "CORSD": corsd}.items():
    e = run.probes[epochs].embeddings[-1].float()
    print(f"{name}: {gap_of(e, labels):.3f}")
directions = torch.randn(10, 64, generator=generator)  # one a class
print(f"random directions: {gap_of(directions, torch.arange(10)):.3f}")
print(f"plain, labels shuffled: {chance_of(gap_of, plain):.3f}")

# %% [markdown]
# Both networks have about 0.2. That is closer to a simplex than shuffled labels (0.3),
# but random directions have 0.1: by this measure neither network is near a simplex.
#
# **Predict:** the plain network ends with an NC1 of 0.34 on probe images. What is
# CORSD's NC1 at the end?

# %%
my_nc1 = None

ends = structure["CORSD"].query("exit == exit.max()").sort_values("epoch").nc1
compare("NC1 of CORSD", my_nc1, ends.iloc[-1], atol=0.1, digits=2)
print(f"both networks before training: {ends.iloc[0]:.2f}")
title = "Probe images; dotted: shuffled labels, deepest exit"
figure = structure_over_epochs(structure, ("nc1", "simplex_gap"), title)
grey = {"line_dash": "dot", "line_color": "grey"}
for row, run in enumerate((plain, corsd), 1):
    figure.add_hline(y=chance_of(variance_collapse, run), row=row, col=1, **grey)
    figure.add_hline(y=chance_of(gap_of, run), row=row, col=2, **grey)
figure.update_layout(width=900)

# %% [markdown]
# **Answer.** At the deepest exit of both networks NC1 falls from 1.5 before training
# and levels off near 0.3 (a full collapse is 0, which a logarithmic axis cannot show).
# With one seed a difference between the two networks is not a finding.
#
# ### Collapsed on which images?
#
# **Predict:** by what factor is NC1 on new images larger than on the training images?

# %%
my_factor = None

data = load_dataset("digits", per_class=per_class, validation_fraction=0.5, seed=seed)
images, truth = next(evaluation_batches(data, data.train, batch_size=len(data.train)))


def nc1_of(run):  # on the training images, and on as many new ones
    with torch.no_grad():
        seen = variance_collapse(run.network()(images).embeddings[-1], truth)
    last = run.probes[max(run.probes)].embeddings[-1]
    return seen, variance_collapse(last[::2], labels[::2])


def gap_on_training(run):
    with torch.no_grad():
        return gap_of(run.network()(images).embeddings[-1], truth)


for name, run in {"plain": plain, "CORSD": corsd}.items():
    seen, new = nc1_of(run)
    print(f"{name}: NC1 {seen:.3f} on training images, {new:.3f} on as many new ones")
    compare(f"{name}, factor", my_factor, new / seen, atol=0.5, digits=1)
    print(f"{name}: simplex gap {gap_on_training(run):.3f} on training images")

# %% [markdown]
# **Answer.** NC1 is about three times larger on new images. The simplex gap is 0.19 and
# 0.18 on training images, about as large as on new ones. Collapse on training images
# says little about new ones, so **say on which images you measured**. All other
# measurements of trained networks here use probe images.

# %% [markdown]
# ## With depth
#
# Solid lines: after training. Dotted: before training, the same for both networks,
# because they start from the same weights. Dashed: shuffled labels, at the deepest exit
# of the plain network. The axis of NC1 is logarithmic; a small NC1 means collapsed
# classes.
#
# **Predict:** at which exit do the two trained networks differ most in the share of the
# variance?

# %%
my_exit = None  # 1, 2 or 3

ends = [t[t.epoch == t.epoch.max()].sort_values("exit") for t in structure.values()]
apart = ends[1].between_fraction.to_numpy() - ends[0].between_fraction.to_numpy()
compare("They differ most at exit", my_exit, abs(apart).argmax() + 1)

# %%
title = "Share between classes, silhouette and NC1; dashed: shuffled labels"
measures = ("between_fraction", "silhouette", "nc1")
figure = structure_over_depth(structure, measures, title)
levels = few_share / 100, chance_of(silhouette, plain), chance
for column, level in enumerate(levels, 1):
    figure.add_hline(y=level, col=column, line_dash="dash", line_color="grey")
figure.update_yaxes(range=[-0.8, 1.7], col=3)  # powers of ten, wider than the lines
figure.update_layout(height=400)

# %% [markdown]
# **Answer.** At exit 2 in the saved runs. CORSD is ahead at all three exits in all
# three panels, in this one seed. After training every exit is far from the level of
# shuffled labels.
#
# In the plain network the stages are trained for the deepest exit alone: a shallow exit
# trains layers of its own and sends no gradient to the backbone. In CORSD the losses of
# the exits, from labels and from the teacher, also train the stages below them. Whether
# this is why the two networks differ, one seed cannot tell. Share, silhouette and NC1
# weigh directions and classes differently: a claim that holds in one panel only is
# weak.

# %% [markdown]
# ## Which classes?
#
# All of these numbers summarise all classes. The explorer shows single classes with
# the L2 relation of two images, $\exp(-d_{ij} / \bar d)$, where $\bar d$ is the mean
# distance: a brighter cell is a smaller distance. The diagonal shows how tight a class
# is, other cells how close two classes are.
#
# **Find** the tightest and the loosest class, and the closest two. Then set "subtract"
# to the other run: which of these differ between the two runs? (One seed: a difference
# is not yet due to CORSD.)

# %%
explorer = RelationExplorer(corsd, plain)
explorer.kind = "l2"
apart = torch.as_tensor(explorer.matrix) - 2 * torch.eye(10)  # without the diagonal
explorer.selection = divmod(apart.argmax().item(), 10)  # the closest two classes
display(explorer)

# %% [markdown]
# ![The relation explorer with a ten by ten heatmap of the L2 relation of digits at the
# deepest exit of CORSD: a brighter diagonal of uneven brightness on a darker ground
# with some lighter cells.](images/08_relation_explorer.png)
#
# *The deepest exit of CORSD.* Some digits are tighter than others: the diagonal is not
# one colour. A lighter cell elsewhere is a pair of digits that are closer than most.
# The frame marks the selected pair, here the closest two classes.
#
# The same numbers for both runs:

# %%
for name, run in {"CORSD": corsd, "plain": plain}.items():
    other = RelationExplorer(run)
    other.kind = "l2"
    matrix = torch.as_tensor(other.matrix)
    own, pairs = matrix.diagonal(), matrix.triu(1).flatten().topk(3)  # of 45 pairs
    print(f"{name}: tightest {own.argmax()} ({own.max():.2f}),", end=" ")
    print(f"loosest {own.argmin()} ({own.min():.2f}); closest", end=" ")
    said = [divmod(place, 10) for place in pairs.indices.tolist()]
    found = zip(said, pairs.values.tolist(), strict=True)
    print(", ".join(f"{a} and {b} ({value:.2f})" for (a, b), value in found))

# %% [markdown]
# **Answer.** The 0 is the tightest and the 9 the loosest class in both runs. The
# closest pair differs: 3 and 5 in CORSD (0.48), 3 and 8 in the plain network (0.47).
# But the second closest pair is only 0.01 to 0.02 behind, and the closest of 45 pairs
# is an extreme value that changes easily. With one seed this difference is no finding.

# %% [markdown]
# ## Do two networks learn the same?
#
# Dimension 7 of one embedding has nothing to do with dimension 7 of another. **Linear
# CKA** (Kornblith et al. 2019, [arXiv 1905.00414](https://arxiv.org/abs/1905.00414))
# compares two embeddings of the same images up to rotation and scale. For centred
# matrices $X$ and $Y$ with one image a row:
#
# $$\mathrm{CKA}(X, Y) = \frac{\| Y^\top X \|_F^2}{\| X^\top X \|_F \,
# \| Y^\top Y \|_F}$$


# %%
def cka_by_hand(first, second):  # (N, D), (N, E)
    a, b = first - first.mean(dim=0), second - second.mean(dim=0)
    return ((b.T @ a).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm())).item()


# %% tags=["nbval-check-output"]
turn = torch.linalg.qr(torch.randn(x.shape[1], x.shape[1], generator=generator)).Q
assert math.isclose(cka_by_hand(x, x[:, :3]), linear_cka(x, x[:, :3]), rel_tol=1e-3)
print(f"with itself, rotated and enlarged: {100 * linear_cka(x, 3 * x @ turn):.0f} %")

# %% [markdown]
# **Predict:** two sets of random vectors have nothing in common. What is their CKA with
# 20 images in 64 dimensions, and with 2,000?

# %%
my_small, my_large = None, None  # from 0 to 1

for n, mine in ((20, my_small), (200, None), (2000, my_large)):
    first, second = torch.randn(2, n, 64, generator=generator)
    value = linear_cka(first, second)
    compare(f"{n} images of noise", mine, value, atol=0.05, digits=2)
wrong = torch.randperm(len(x), generator=generator)
value = linear_cka(x, corsd.probes[epochs].embeddings[-1].float()[wrong])
print(f"the two networks, images shuffled in one: {value:.2f}")

# %% [markdown]
# **Answer.** With few images and many dimensions even noise agrees with noise: 0.24 for
# 200 images. The shuffled pair has only 0.03, probably because trained embeddings use
# few of their 64 directions. Shuffling the images keeps the embeddings as they are, so
# it gives the right chance level for these two exits.
#
# **Predict:** which pair is more alike: exits 1 and 3 of `one` network (plain), or the
# two exits 3 of `both` networks?

# %%
my_closer = None  # "one" or "both"

six = [e for run in (plain, corsd) for e in run.probes[epochs].embeddings]
cka = cka_matrix(six)
names = [f"{name} {k}" for name in ("plain", "CORSD") for k in (1, 2, 3)]
compare("More alike", my_closer, "one" if cka[0, 2] > cka[2, 5] else "both")
look = {"color_continuous_scale": SCALE, "template": template(), "text_auto": ".2f"}
size = {"width": 620, "height": 520, "labels": {"color": "CKA"}}
title = f"CKA of all exits, colours from 0.7; images shuffled: {value:.2f}"
px.imshow(cka, x=names, y=names, zmin=0.7, zmax=1, title=title, **look, **size)

# %% [markdown]
# **Answer.** `both`: 0.89, against 0.84 for exits 1 and 3 of the plain network. The two
# started from the same weights and saw the same images, which may be why. It is no
# rule: exits 2 and 3 of the plain network have 0.93, exits 1 and 3 of CORSD 0.90.

# %% [markdown]
# ## CIFAR-100: tight classes and accuracy
#
# The committed runs: 100 images of each of 100 classes, a small ResNet, **one seed**,
# 300 probe images, three a class. Chance explains 33 % of the variance here, as
# computed above. There are nine rows: the plain network and eight methods. CORSD has
# class KD here; its *release* has the weights and triplets of the authors' code
# ([11](11_compare_methods.ipynb)). They lie within two points of accuracy;
# [11_compare_methods](11_compare_methods.ipynb) explains why one seed cannot rank such
# methods.
#
# **Predict:** the rank correlation between tightness (small NC1) and test accuracy over
# the rows: 1 means that the tightest is the most accurate.

# %%
my_correlation = None  # from -1 to 1

# %%
rows = committed_summary("cifar100_small")["methods"]
study = {row: committed_run(f"cifar100_small/{row}") for row in rows}
last = {r: class_structure(run, [max(run.probes)]).iloc[-1] for r, run in study.items()}
top1 = {row: methods["top1"][-1] for row, methods in rows.items()}  # of the records
for row, m in sorted(last.items(), key=lambda item: item[1].nc1):
    explained = f"explained {m.between_fraction:.2f}"
    print(f"{rows[row]['label']:36} NC1 {m.nc1:.2f}, {explained}, {top1[row]:.1f} %")
before = class_structure(study["baseline"], [0]).iloc[-1]
of_before = f"NC1 {before.nc1:.2f}, explained {before.between_fraction:.2f}"
print(f"{'before training':36} {of_before}")

# %%
probes = study["baseline"].probes
fine, photos = probes.labels, probes[max(probes)].embeddings[-1].float()
mixed = [fine[torch.randperm(len(fine), generator=generator)] for _ in range(20)]
for name, measure in {"NC1": variance_collapse, "silhouette": silhouette}.items():
    chance = sum(measure(photos, y) for y in mixed) / 20
    print(f"{name}: shuffled {chance:.2f}, true labels {measure(photos, fine):.2f}")

# %%
untrained = probes[0].embeddings[-1].float()
chance = sum(variance_collapse(untrained, y) for y in mixed) / 20
print(f"NC1 before training: shuffled {chance:.2f}")

# %%
tightness, accuracy = [-last[row].nc1 for row in rows], list(top1.values())
found = spearmanr(tightness, accuracy)
compare("Rank correlation", my_correlation, found.statistic, atol=0.2, digits=2)
print(f"p = {found.pvalue:.2f} (chance of a correlation this far from 0, or farther)")
kept = [k for k, value in enumerate(accuracy) if value > min(accuracy)]
fewer = spearmanr([tightness[k] for k in kept], [accuracy[k] for k in kept])
print(f"without the worst row: {fewer.statistic:.2f}")
close = sum(abs(top1[r] - top1["baseline"]) < 0.5 for r in rows if r != "baseline")
print(f"within half a point of the plain network: {close} of {len(rows) - 1} methods")

# %%
names = {"x": "NC1 of probe images", "y": "accuracy, % of test images"}
nc1 = [last[row].nc1 for row in rows]
said = [rows[row]["label"] for row in rows]
figure = px.scatter(x=nc1, y=accuracy, text=said, labels=names, template=template())
sides = ["bottom" if row == "deep_supervision" else "top" for row in rows]
sides = [f"{side} center" for side in sides]  # else two names would touch
worst = min(top1, key=top1.get)
colours = ["#d55e00" if row == worst else "#0072b2" for row in rows]
figure.update_traces(textposition=sides, marker_size=9, marker_color=colours)
figure.update_xaxes(range=[min(nc1) - 0.15, max(nc1) + 0.15])
title = "Nine rows, one seed: small NC1 is on the left; orange: the worst row"
figure.update_layout(title=title, width=760, height=440)

# %% [markdown]
# **Answer.** The correlation is positive (0.40), but nine rows cannot tell it from 0 (p
# = 0.29). Without the worst row it is 0.14: that row makes most of the correlation.
# Five of the eight methods are within half a point of the plain network. With one seed
# such a difference means nothing, so the table cannot rank them.

# %% [markdown]
# NC1 and the silhouette mean little without their chance levels. Before training NC1 is
# 3.15, where shuffled labels give 3.80. In the trained plain network it is 2.58, where
# shuffled labels give 3.71. With three images a class much of NC1 is noise.
#
# The silhouette of the plain network is *negative* with the true labels (-0.10). It
# compares an image's own class with the nearest of 99 others, and among so many one is
# near by chance. With shuffled labels it is lower still (-0.20).

# %% [markdown]
# ## Answer: how do classes become compact and separate?
#
# > **What we found.** On digits both variances of the plain network first grow. After
# > epoch 15 the variance within classes shrinks more than the variance between them.
# > NC1 of new digits falls from 1.5 before training to 0.34 (plain) and 0.27 (CORSD);
# > on training images it is about three times smaller. Class means do not form a
# > simplex, not even on training images. On CIFAR-100 NC1 of the plain network falls
# > from 3.15 to 2.58 (shuffled labels: 3.80 and 3.71).
# >
# > **How sure we are.** The fall on digits is clear in both networks. Differences
# > between the networks may be chance (one seed). Whether tighter classes are more
# > accurate is open (p = 0.29).
# >
# > **What it does not show.** We did not test causes, or compare the two networks with
# > other seeds, and on CIFAR-100 we measured three probe images a class.

# %% [markdown]
# ## Exercise 3, predict and experiment: longer training
#
# Predict for the plain network, from 60 to 240 epochs: by what factor does NC1 fall on
# *training* images, and on probe images (2 means that it halves)? Is it the same for
# both sets? Write both down, set
# `longer = 240` and run the cell, which takes about a minute. Then set another `seed`
# at the top, run all, and repeat. Set both back at the end. Explain what you find.
# (Hint: which images does the loss contain?)

# %%
my_factor, my_probe = None, None  # two numbers such as 2

longer = epochs  # 240 for the exercise

long = train(plan("probe", run_directory, longer, per_class, seed), progress=False)
(seen, new), (seen_now, new_now) = nc1_of(plain), nc1_of(long)
print(f"training images: NC1 {seen:.3f} after {epochs} epochs,", end=" ")
print(f"{seen_now:.3f} after {longer}")
print(f"new images: NC1 {new:.3f} after {epochs} epochs, {new_now:.3f} after {longer}")
if longer > epochs:
    compare("Factor, training images", my_factor, seen / seen_now, atol=0.5, digits=1)
    compare("Factor, new images", my_probe, new / new_now, atol=0.2, digits=1)

# %% [markdown] tags=["solution"]
# *A good answer* reports four numbers a seed (two lengths, two sets of images), uses
# the same number of images a class in both sets, and says how much two seeds differ
# before it interprets the change. The loss pulls only training images to their class;
# new images follow only as far as they look alike to the network. On one machine NC1
# fell on training images by a factor of 2.2 with `seed = 0` and 1.6 with `seed = 1`, on
# new images by 1.4 and 1.3. In both seeds the factor is larger on training images.

# %% [markdown]
# ## Exercise 4, explain (open)
#
# An abstract: "Our method raises the silhouette of CIFAR-100 embeddings from 0.12 to
# 0.21, which shows that it learns better representations." You review the paper. Write
# six sentences: what you would have to see before you believe the first half, which
# experiment the second half needs, and a case in which the second half is false
# although the first is true. (Hint: what would a user do with the embeddings?)

# %% [markdown] tags=["answer"]
# *Write your answer here.*

# %% [markdown] tags=["solution"]
# *A good answer* asks for shuffled labels, for images outside the training set, for
# several seeds with an interval, and for a task: accuracy, or transfer to other
# classes. A case: a loss that pulls images of a class together (class KD) raises the
# silhouette for the trained classes and can remove what distinguishes images within a
# class, which another task needs.

# %% [markdown]
# ## Where next
#
# - [09_stage_embeddings](09_stage_embeddings.ipynb): the same embeddings as a picture.
# - [11_compare_methods](11_compare_methods.ipynb): when is a difference between methods
#   more than chance?
# - The code: `corsd_lib/analysis/structure.py` gives the source of each measure.
