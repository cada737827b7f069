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

# %% [markdown] slideshow={"slide_type": "slide"}
# # 01 Can a network teach itself?
#
# In distillation, a small network usually learns from a large one that was trained
# before. Here there is no large one: the **deepest layers teach the shallow layers of
# the same network**, while all of them are being trained. They pass on predictions
# ("this is a 3") and *relations* ("these two images have the same class").
#
# **You will learn**
#
# - what an *exit* and a *relation network* are, with code and formulas;
# - how to train the plain network and CORSD side by side and watch relations form;
# - how to read a relation matrix;
# - how to tell a difference in accuracy from chance.

# %% [markdown]
# **You need** Python, PyTorch and an idea of what cross-entropy does.
# **Run time:** about 1 minute on two CPU cores. **Learning time:** 30 minutes of
# reading, 40 minutes for the four exercises. Nothing is downloaded.
#
# The method is *Class-Oriented Relational Self Distillation* (CORSD,
# [arXiv 2305.00918](https://arxiv.org/abs/2305.00918)).

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

import plotly.express as px
import torch
from IPython.display import display
from torch import nn
from torch.nn import functional as F

from corsd_lib import RelationExplorer, TrainConfig, TrainingMonitor, build_network
from corsd_lib import committed_summary, load_dataset, relation_matrix, train
from corsd_lib.batches import evaluation_batches
from corsd_lib.course import answered, compare, expect, with_ends
from corsd_lib.figures import SCALE, differences_by_exit, exit_accuracy_points
from corsd_lib.figures import image_strip, relation_heatmap, template
from corsd_lib.losses import margin_over_batch, relation_transfer
from corsd_lib.relation import VectorRelation, sample_pairs
from corsd_lib.studies.intervals import mean_interval

torch.set_num_threads(1)  # one thread is faster for images this small

# %% [markdown]
# The settings of this notebook. Change them, run all cells again and compare. Each
# combination has its own run directories, and later notebooks open what was trained
# here.

# %% tags=["parameters"]
epochs = 120  # passes over the training images
per_class = 10  # labelled images of each digit
seed = 0  # of the weights, the choice of images and their order
run_directory = "runs/digits"  # finished trainings are found here again

# %% [markdown]
# **How predictions work.** Some cells ask for a prediction before a result. Replace
# `None` by your value and run on: the notebook prints it beside the outcome. Nothing is
# graded, and `None` is allowed.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The idea in one picture
#
# ![A backbone in three stages. Below each stage an exit classifies the image. Above
# each stage a relation network reads pairs of images and scores them from 0 to 1, and
# an auxiliary classifier predicts the classes in the pair. Dashed arrows lead from the
# deepest relation network and the deepest exit to the shallow ones.](images/corsd.svg)
#
# - The network is divided into **stages**. Each stage gets an **exit**, a small
#   classifier.
# - At each stage a **relation network** gives a *pair* of images a score from 0
#   (unrelated) to 1 (related).
# - An **auxiliary classifier** reads the same pair and predicts the classes in it. This
#   makes the relation *class-oriented*.
# - **Dashed arrows are the self-distillation:** the deepest stage teaches the others.
#   No gradient flows back along them.
#
# After training, everything inside the dashed frame is removed.

# %% [markdown]
# ## The data
#
# Handwritten digits of 8 x 8 pixels. Only a few labelled images of each digit are used
# for training, because self-distillation is of interest where labels are scarce.

# %% tags=["nbval-check-output"]
data = load_dataset("digits", per_class=per_class, validation_fraction=0.5, seed=seed)
print(f"{len(data.train)} training, {len(data.validation)} validation images,")
print(f"{len(data.test)} test images, {data.num_classes} classes")

# %%
one_of_each = [
    (data.train.labels == c).nonzero()[0].item() for c in range(data.num_classes)
]
title = "One training image of each digit"
image_strip(data.train.images[one_of_each], data.class_names, title)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## A network with exits
#
# The network is a ResNet with three stages. Each exit reduces the feature map of its
# stage to a vector, the **embedding** $e$, and classifies it with a linear layer.
# `network.truncated(k)` is the smaller network that ends at exit $k + 1$ (Python counts
# from 0).

# %% tags=["nbval-check-output"] slideshow={"slide_type": "-"}
torch.manual_seed(seed)
network = build_network(
    "resnet8", data.num_classes, in_channels=data.channels, image_size=data.image_size
).eval()
for k, stage in enumerate(network.backbone.feature_info):
    side = data.image_size // stage.reduction
    count = sum(p.numel() for p in network.truncated(k).parameters())
    print(f"exit {k + 1}: {stage.channels} x {side} x {side}, {count:,} parameters")

# %% [markdown]
# Send validation images through the untrained network. All exits have embeddings of the
# same width, so that relations of different stages can be compared.

# %% tags=["nbval-check-output"]
images, labels = next(evaluation_batches(data, data.validation, batch_size=200))
with torch.no_grad():
    out = network(images)
print("embeddings", [tuple(e.shape) for e in out.embeddings])
print("logits    ", [tuple(z.shape) for z in out.logits])

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What is a relation?
#
# Two images go in, a number between 0 and 1 comes out. Many methods *define* this
# number, for example by a distance. CORSD *trains* it.
#
# ![Images i and j pass the same network. Their embeddings are multiplied by U and V,
# added and passed through a ReLU. A score and class logits are read from the
# result.](images/concept_pair.svg)
#
# With $[e_i; e_j]$, the two layer-normalised embeddings side by side, the relation
# embedding $h$, the score $r$ and the auxiliary logits $q$ are
#
# $$h_{ij} = \mathrm{ReLU}(W [e_i; e_j] + b), \qquad r_{ij} = \sigma(w \cdot h_{ij}
# + c), \qquad q_{ij} = A\, h_{ij} + a$$
#
# $W$, $w$, $A$ and $b$, $c$, $a$ are trained weights and biases; $\sigma$ is the
# logistic function. The picture shows $W$ as its two halves $U$ and $V$ (below). The
# softmax of $q$ says which class or classes are in the pair;
# [04](04_class_oriented.ipynb) has the details.


# %% slideshow={"slide_type": "subslide"}
class PlainRelation(nn.Module):
    def __init__(self, width, classes, hidden=128):
        super().__init__()
        self.pair = nn.Linear(2 * width, hidden)
        self.score = nn.Linear(hidden, 1)
        self.auxiliary = nn.Linear(hidden, classes)

    def forward(self, first, second):  # (P, D) each: P pairs
        first, second = (F.layer_norm(e, e.shape[1:]) for e in (first, second))
        h = F.relu(self.pair(torch.cat([first, second], dim=1)))  # (P, H)
        return self.score(h).sigmoid().squeeze(1), self.auxiliary(h)  # (P,), (P, C)


# %% [markdown]
# The library's `VectorRelation` computes the same at lower cost. A linear layer on two
# vectors side by side is a sum of two linear layers, $W [e_i; e_j] = U e_i + V e_j$. So
# each image passes $U$ and $V$ once, and all pairs of a batch are sums. With the same
# weights both agree:

# %% tags=["nbval-check-output"]
relation = VectorRelation(network.embedding_dim, data.num_classes)
plain = PlainRelation(network.embedding_dim, data.num_classes)
halves = [relation.first.weight, relation.second.weight]
plain.pair.weight.data = torch.cat(halves, dim=1).detach()
plain.pair.bias = relation.first.bias
plain.score, plain.auxiliary = relation.score, relation.auxiliary
a, b = out.embeddings[-1][:100], out.embeddings[-1][100:]
with torch.no_grad():
    r, q = plain(a, b)
    assert torch.allclose(r, relation.pair_scores(a, b), atol=1e-5)
    assert torch.allclose(q, relation.auxiliary_logits(a, b), atol=1e-4)
print("same scores and same auxiliary logits for", len(r), "pairs")

# %% [markdown] slideshow={"slide_type": "slide"}
# ### A batch contains many pairs
#
# No image passes the backbone twice: the pairs are formed from the embeddings of a
# batch.
#
# **Predict:** a batch has 5 images of each of 5 classes. How many ordered pairs of two
# different images have the *same* class, and how many have different classes?

# %% tags=["nbval-check-output"] slideshow={"slide_type": "fragment"}
my_same, my_different = None, None

batch = torch.arange(25) % 5  # labels of 25 images
pairs = sample_pairs(batch)
compare("Same class", my_same, pairs.intra.shape[1], " pairs")
different = (batch[:, None] != batch[None, :]).sum().item()
compare("Different classes", my_different, different, " pairs")

# %% [markdown] slideshow={"slide_type": "fragment"}
# **Answer.** $25 \cdot 4 = 100$ and $25 \cdot 20 = 500$. To balance the two kinds, the
# auxiliary classifier gets all 100 same-class pairs and a random 100 of the 500 others.

# %% [markdown] slideshow={"slide_type": "slide"}
# ### A relation matrix before training
#
# The mean score of all pairs of class $c$ with class $d$ is one cell of a **relation
# matrix**. A good relation is bright on the diagonal and dark elsewhere. Its
# **contrast** is the mean within classes minus the mean between classes. A row is the
# class of the first image, a column that of the second. Both orders may differ
# ([03](03_relations.ipynb) shows why).


# %%
def contrast(matrix):
    other = ~torch.eye(len(matrix), dtype=torch.bool)
    return (matrix.diag().mean() - matrix[other].mean()).item()


# %% slideshow={"slide_type": "-"}
with torch.no_grad():
    scores = relation.scores(out.embeddings[-1])
untrained = relation_matrix(scores, labels, data.num_classes)
title = f"Untrained: contrast {contrast(untrained):z.2f}"  # z: 0.00, not -0.00
relation_heatmap(untrained, data.class_names, title)

# %% [markdown]
# Nearly one colour: before training the score is about the same for all pairs.

# %% [markdown] slideshow={"slide_type": "slide"}
# ### The margin loss
#
# For every triplet of an image $i$, an image $j$ of its class and an image $k$ of
# another class, the score $r_{ij}$ should exceed $r_{ik}$ by a margin $m$.
# $\mathcal{T}$ is the set of all triplets:
#
# $$\mathcal{L}_m = \frac{1}{|\mathcal{T}|} \sum_{(i,j,k) \in \mathcal{T}}
# \max(0, \; m - r_{ij} + r_{ik})$$
#
# ![Three number lines from 0 to 1 with the scores of a triplet. The loss is positive
# when the order is wrong or the distance is smaller than the margin, and zero when the
# scores are far enough apart.](images/concept_margin.svg)
#
# The figure uses a margin of 0.3. CORSD uses 1, and scores never quite reach 0 or 1, so
# the loss of a triplet never quite reaches 0.


# %%
def margin_by_hand(r, labels, m=1.0):
    r, labels, images = r.tolist(), labels.tolist(), range(len(labels))
    losses = [
        max(0.0, m - r[i][j] + r[i][k])
        for i in images
        for j in images
        for k in images
        if i != j and labels[i] == labels[j] and labels[i] != labels[k]
    ]
    return sum(losses) / len(losses)


# %% [markdown]
# The loops are clear and slow. The library sorts each row instead and gets the same
# value:

# %% tags=["nbval-check-output"]
scores = torch.rand(25, 25)
library = margin_over_batch(scores, batch).item()
assert abs(margin_by_hand(scores, batch) - library) < 1e-5
print("same value, by loops and by sorting")

# %% [markdown]
# ### Exercise 1, implement: relation transfer
#
# ![Three exits. Arrows lead from exit 3, the teacher, to exits 1 and 2, the students.
# Two bars across the arrows mark the stop-gradient. Only the students get a
# gradient.](images/concept_teaching.svg)
#
# A shallow stage should score pairs as the deepest stage does. For each shallow stage
# $k < K$, with teacher scores $r^K$, student scores $r^k$, $P$ pairs and the
# stop-gradient $\mathrm{sg}$:
#
# $$\mathcal{L}_t = \frac{1}{P} \sum_{(i,j)} \big( r^k_{ij} - \mathrm{sg}[r^K_{ij}]
# \big)^2$$
#
# The losses of the shallow stages are added.
#
# Replace the `...` by one line. The check below it fails until then, and it gives a
# hint. Solved notebooks are in `notebooks/solutions`.


# %% tags=["exercise"]
def transfer_by_hand(teacher, student):
    return ...


# %% tags=["solution"]
def transfer_by_hand(teacher, student):
    return (student - teacher.detach()).square().mean()


# %% tags=["check"]
answered(transfer_by_hand(torch.zeros(1), torch.zeros(1)))
generator = torch.Generator().manual_seed(0)
t, s = torch.rand(2, 6, generator=generator).unbind()
t.requires_grad_(), s.requires_grad_()
loss, wanted = transfer_by_hand(t, s), relation_transfer((t, t), (s, s))
expect(loss.ndim == 0, "a single number is asked for: the mean over the pairs")
expect(
    loss < 2 * wanted, f"{loss:.3f} instead of {wanted:.3f}: squared? mean, not sum?"
)
expect(torch.allclose(loss, wanted), f"{loss:.3f} instead of {wanted:.3f}")
expect(loss.requires_grad, "nothing gets a gradient: the student must not be detached")
loss.backward()
expect(t.grad is None, "the teacher got a gradient. Which tensor must be detached?")
expect(s.grad is not None, "the student got no gradient")
print("Exercise 1: correct.")

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Two trainings
#
# Both use the same data, initial weights and number of images.
#
# - **Baseline:** only the last exit trains the backbone. Shallow exits *watch*: they
#   learn to classify, but their gradient stops before the backbone. (The library calls
#   this method `probe`.)
# - **CORSD:** every exit trains the backbone, and the deepest exit teaches the others
#   its predictions and its relations. In this course *CORSD* means the terms of the
#   paper, and *CORSD with class KD* those and one more term, which the library adds
#   (04).
#
# **Predict:** which exit will CORSD change most, and by how many points of test
# accuracy?

# %%
my_exit, my_gain = None, None  # the exit, 1 to 3; points

# %%
recipe = TrainConfig(
    data="digits",
    per_class=per_class,
    validation_fraction=0.5,  # held out, to observe the relations on
    network="resnet8",
    epochs=epochs,
    batch_size=25,
    probe_size=200,  # held-out images with recorded outputs; not the method "probe"
    probe_every=3,  # recorded after every third epoch
    seed=seed,
    resume=True,  # a finished training is opened, not repeated
)


def plan(method, **changes):
    name = f"{method}-{per_class}-a-class-{epochs}-epochs-seed-{seed}"
    return replace(recipe, method=method, out=f"{run_directory}/{name}", **changes)


# %% [markdown]
# The figure grows while the cell runs. (On a static page you see one picture, below the
# second training.) Its stop button ends the training early and keeps the run.
# The baseline has no relation network, so its matrix shows the cosine between
# embeddings, moved to the range from 0 to 1. Among the losses, `total` is the weighted
# sum; its parts are drawn without their weights.

# %%
monitor = TrainingMonitor()
display(monitor)
baseline = train(plan("probe"), on_epoch=monitor, progress=False)
monitor(baseline)  # shows a run that was finished before, too

# %% [markdown]
# Now CORSD on plain batches, which are shuffled images ([03](03_relations.ipynb) has
# another way). The library's own term, `class_kd`, is switched off.

# %%
monitor = TrainingMonitor()
display(monitor)
corsd = train(
    plan("corsd", sampling="plain", method_options={"class_kd": 0.0}),
    on_epoch=monitor,
    progress=False,
)
monitor(corsd)

# %% [markdown] slideshow={"slide_type": "slide"}
# ![The training monitor after a CORSD training. Left: the train accuracy of three exits
# climbs towards 100 percent, and dotted curves for validation end at 92 to 94 percent.
# Right: the relation matrix of the deepest exit with a bright
# diagonal.](images/01_training_monitor.png)
#
# *The monitor after the CORSD training* (solid: training, dotted: validation). The
# accuracy of every exit rises, and the diagonal of the relation matrix becomes bright.
# Until about epoch 55 validation jumps far below training. We think that the cause is
# batch normalisation: validation uses running means of its statistics, which may lag
# behind while the learning rate is high. No cell here tests this. The dotted
# curves are stable only at the end, so compare the end values.

# %% [markdown]
# ### The terms of the loss
#
# With the weights $w_n$, CORSD's loss is the sum of ten terms:
#
# $$\mathcal{L} = \sum_n w_n \mathcal{L}_n$$

# %% [markdown]
# | term | library's name | $w_n$ |
# | --- | --- | ---: |
# | cross-entropy of the deepest exit | `task` | 1 |
# | cross-entropy of each shallow exit | `exit_ce` | 1 |
# | predictions of the deepest exit, taught to the others (02) | `exit_kd` | 0.1 |
# | auxiliary classifier, pairs of one class | `auxiliary_intra` | 0.5 |
# | auxiliary classifier, pairs of two classes | `auxiliary_inter` | 0.5 |
# | predictions, deepest to others | `auxiliary_kd_intra`, `..._inter` | 0.1 each |
# | margin loss $\mathcal{L}_m$ | `relation_margin` | 0.1 |
# | transfer $\mathcal{L}_t$ | `relation_transfer` | 0.1 |
# | image and class means (03) | `logit_relation` | 0.01 |
#
# %% [markdown]
# (*CORSD with class KD* adds `class_kd` with weight 1.) The figure shows the terms
# *before* they are multiplied by their weights.

# %%
parts = corsd.metrics.filter(regex="^epoch$|^loss").drop(columns="loss.total")
parts = parts.rename(columns=lambda name: name.removeprefix("loss."))
kinds = {"exits": ["task", "exit_ce", "exit_kd"]}
kinds["auxiliary"] = parts.filter(like="auxiliary").columns.tolist()
kinds["relation"] = ["relation_margin", "relation_transfer", "logit_relation"]
panel = {term: kind for kind, terms in kinds.items() for term in terms}
colour = dict(zip(panel, px.colors.qualitative.Safe, strict=False))  # one each

# %%
parts = parts.melt("epoch", list(panel), "term")
parts["panel"] = parts["term"].map(panel)
look = {"color_discrete_map": colour, "template": template()}
look["title"] = "CORSD: terms of the loss, before they are multiplied by weights"
axes = {"x": "epoch", "y": "value", "color": "term", "facet_col": "panel"}
figure = px.line(parts, log_y=True, **axes, **look)
figure.update_layout(margin_t=75, legend_title_text="", height=450)
figure.update_yaxes(dtick=1)  # powers of ten
figure.for_each_annotation(lambda a: a.update(text=a.text.removeprefix("panel=")))
figure.for_each_trace(lambda t: t.update(legendgroup=panel[t.name]))
figure.for_each_trace(lambda t: t.update(legendgrouptitle_text=panel[t.name]))

# %% [markdown]
# Each term is summed over its exits. The margin loss starts near 3: equal scores cost
# $m = 1$ per triplet, at each of three exits. The baseline has only `task` and
# `exit_ce`. `exit_kd` compares the softmax of a shallow exit with that of the deepest
# ([02](02_exits.ipynb) has the formula). `logit_relation` asks that an image is more
# related to the mean logits of its own class than to those of another class. It stays
# near 1 and is kept, with its small weight, because it is in the paper.

# %% [markdown]
# The distances to the teacher (`exit_kd`, `auxiliary_kd_...`, `relation_transfer`) fall
# a little, rise, and fall again. A possible reason, which we did not test: an untrained
# network gives nearly the same output for everything, so these differences begin small
# and grow while the outputs become different. `auxiliary_inter` cannot fall below 2.08,
# three exits times $\ln 2$, because its target is one half on each of two classes (04).

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Did it help?
#
# The accuracy $p$ of every exit on the $n = 797$ test images, in percent. Thin bars are
# 95 % intervals, $p \pm 1.96\sqrt{p(100-p)/n}$. If we tested on very many such digits,
# the accuracy would probably lie within this bar.
#
# Below the figure we compare each difference with $\sqrt{h_1^2 + h_2^2}$, where $h_1$
# and $h_2$ are the two half-widths. Both runs see the same test images. So the rule is
# stricter than needed: a difference below the limit can be real, too. The rule covers
# the choice of test images only, not other training images or other initial weights.

# %% slideshow={"slide_type": "-"}
runs = {"baseline": baseline, "CORSD": corsd}
accuracy = {name: [e["top1"] for e in run.test["exits"]] for name, run in runs.items()}
half = {
    name: [1.96 * (p * (100 - p) / len(data.test)) ** 0.5 for p in values]
    for name, values in accuracy.items()
}
exit_accuracy_points(accuracy, "Test accuracy of every exit, one seed", error=half)

# %% slideshow={"slide_type": "subslide"}
gain = [after - before for before, after in zip(*accuracy.values(), strict=True)]
most = max(range(len(gain)), key=lambda k: abs(gain[k]))
compare("Exit that changed most", my_exit, most + 1)
compare("CORSD minus baseline there", my_gain, gain[most], " points", 0.5, digits=1)
for k, (g, one, other) in enumerate(zip(gain, *half.values(), strict=True), 1):
    chance = (one**2 + other**2) ** 0.5
    verdict = "more than" if abs(g) > chance else "within"
    points = f"{verdict} the {chance:.1f} points"
    print(f"exit {k}: {g:+.1f}, {points} that the choice of test images can explain")

# %% [markdown] slideshow={"slide_type": "fragment"}
# **Answer.** At exits 1 and 2 the difference is larger than the choice of test images
# explains. But one training cannot answer the question: another seed has other training
# images and other initial weights.

# %% [markdown] slideshow={"slide_type": "slide"}
# ### The same with ten seeds
#
# This repository contains the same experiment with ten seeds, each with its own images,
# weights and order. Differences are taken **seed by seed**: what makes one seed easy or
# hard for both methods cancels.
#
# ![Left: accuracies of two methods, one line per seed. Right: the differences of the
# seeds, their mean and its 95 percent interval, which excludes
# 0.](images/concept_interval.svg)
#
# With $n$ differences of mean $\bar d$ and standard deviation $s$, and the 97.5 %
# quantile $t_{n-1}$ of Student's t distribution (2.26 for ten seeds), the 95 % interval
# is
#
# $$\bar d \; \pm \; t_{n-1} \, \frac{s}{\sqrt{n}}$$
#
# **Predict:** at which exits will the interval exclude 0? Write their numbers, such as
# `3`, or `none`.

# %% slideshow={"slide_type": "subslide"}
my_exits = None

# The variant "baseline" of this study is the method "probe".
study = committed_summary("digits")["methods"]
plain, ours = (study[name]["top1_by_seed"] for name in ("baseline", "corsd_paper"))
excluded = []
for k, mine in enumerate(gain):
    mean, low, high = mean_interval(ours[s][k] - plain[s][k] for s in plain)
    excluded += [str(k + 1)] * (low * high > 0)
    print(f"exit {k + 1}: {with_ends(mean, low, high)}; yours: {mine:+.1f}")
compare("Intervals that exclude 0, exits", my_exits, ", ".join(excluded))

# %% [markdown] slideshow={"slide_type": "fragment"}
# **Answer.** The shallow exits gain one or two points; the lower end of the first
# interval is close to 0, at 0.05. At the deepest exit no effect was detected. Seed 0
# exaggerates the gain, because its baseline is unusually weak at exit 1 (88.0 %, the
# lowest of ten; their mean is 92.3 %). The interval is for the *mean* gain; single
# seeds may lie far outside.

# %% [markdown] slideshow={"slide_type": "slide"}
# ### Is it the teaching?
#
# In CORSD the exits also *train* the backbone. Two other [variants](GLOSSARY.md#row) of
# the study separate the causes: *deep supervision* (exits and labels, no teacher) and
# CORSD *without relations* (as deep supervision, plus exit KD: the predictions of the
# deepest exit as a teacher).
#
# **Predict:** by how many points does CORSD lead deep supervision at exit 1?

# %% slideshow={"slide_type": "subslide"}
my_lead = None  # points

names = {"CORSD": "corsd_paper", "baseline": "baseline"}
names |= {"deep supervision": "deep_supervision", "no relations": "paper_no_relations"}

# %% slideshow={"slide_type": "-"}
differences = {}
for pair in (
    ("deep supervision", "baseline"),
    ("no relations", "deep supervision"),
    ("CORSD", "deep supervision"),
    ("CORSD", "no relations"),
):
    a, b = (study[names[label]]["top1_by_seed"] for label in pair)
    by_exit = [[x - y for x, y in zip(a[s], b[s], strict=True)] for s in a]
    differences[" minus ".join(pair)] = by_exit
differences_by_exit(differences, "Digits, ten seeds: which part adds what?")

# %% slideshow={"slide_type": "subslide"}
for name, seeds in differences.items():
    last = 3 if name == "CORSD minus no relations" else 1  # the exits quoted below
    for k in range(last + (name == "deep supervision minus baseline")):
        mean, low, high = mean_interval(by_exit[k] for by_exit in seeds)
        print(f"{name}, exit {k + 1}: {with_ends(mean, low, high)}")

# %% slideshow={"slide_type": "-"}
seeds = differences["CORSD minus deep supervision"]
lead = sum(by_exit[0] for by_exit in seeds) / len(seeds)
compare("Over deep supervision, exit 1", my_lead, lead, " points", 0.3, digits=1)

# %% [markdown] slideshow={"slide_type": "fragment"}
# **Answer.** Training the exits on labels alone gains 1.2 points at exit 1 and 1.0 at
# exit 2. Teaching predictions alone (no relations minus deep supervision) changes exit
# 1 by -0.45 [-0.91, 0.01]: no gain was detected, and a small drop in accuracy is not
# excluded. Everything that CORSD adds to deep supervision, taken together, changes exit
# 1 by 0.3 [-0.4, 1.0].

# %% [markdown] slideshow={"slide_type": "fragment"}
# The relation terms, auxiliary classifiers included, add 0.7 [0.1, 1.4] at exit
# 1; at exits 2 and 3 no effect was detected (-0.1 [-1.0, 0.9], 0.3 [-0.6, 1.3]). The
# last two rows of the figure have six intervals; one of them excludes 0. If nothing had
# an effect and the six were independent, at least one would exclude 0 in 26 % of
# studies ($1 - 0.95^6$). They are not independent, so this is a rough guide.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The relation after training
#
# The same matrix for held-out images, from the trained relation networks of the three
# stages:

# %% slideshow={"slide_type": "-"}
after = corsd.probes[epochs].relations
for k, matrix in enumerate(after, 1):
    print(f"exit {k}: contrast {contrast(matrix):.2f}")

# %% slideshow={"slide_type": "-"}
look = {"zmin": 0, "zmax": 1, "color_continuous_scale": SCALE, "template": template()}
look |= {"labels": {"color": "relation"}, "height": 380, "width": 900, "facet_col": 0}
figure = px.imshow(torch.stack([*after]).numpy(), title="Trained relations", **look)
for k, panel in enumerate(figure.layout.annotations, 1):
    panel.text = f"exit {k}: contrast {contrast(after[k - 1]):.2f}"
figure.update_xaxes(title="digit of the second image", dtick=1)
figure.update_yaxes(title="digit of the first image", dtick=1, col=1)
figure.update_layout(margin_t=80)

# %% [markdown]
# The contrasts are between 0.79 and 0.83, in one seed. These numbers do not tell
# whether the shallow stages copied the relation or learned it from their own margin
# loss. A run without transfer would tell.

# %% [markdown]
# ## Explore it
#
# Choose an exit. Press play or drag the slider to see the relation from epoch 0 on.
# Click a cell, or use the arrow keys: curve and table show the relation of these two
# classes at every exit.
#
# The explorer opens on the brightest cell of two *different* digits at the deepest
# exit. **Find** the most related pair of different digits at exit 1, by the mean of
# both orders. Is it the same pair?

# %%
explorer = RelationExplorer(corsd)
display(explorer)

# %% [markdown] slideshow={"slide_type": "slide"}
# ![The heatmap of the relation explorer: ten by ten digits, a bright diagonal, nearly
# all other cells dark, and an orange frame around the brightest cell beside the
# diagonal.](images/01_relation_explorer.png)
#
# *The deepest exit after the last epoch.* The frame marks the selected pair. Nearly all
# cells beside the diagonal are dark.
#
# A selection can be read and set from code. Try `explorer.selection = ("3", "8")`.

# %% [markdown] tags=["solution"]
# *An answer.* In the run saved here it is another pair: 4 with 9 (0.20) at exit 1, and
# 0 with 6 (0.32) at the deepest exit. Each is near the top at the other exit, too: 0
# with 6 has 0.18 at exit 1, and 4 with 9 has 0.16 at the deepest exit.

# %%
first, second = explorer.selection or (0, 0)
names = f"{data.class_names[first]} with {data.class_names[second]}"
print(f"Selected: {names}, relation {explorer.matrix[first, second]:.2f}")

# %% [markdown]
# ## Exercise 2, implement: leave early
#
# An image that a shallow exit is sure of need not go deeper. For `logits` (N, C) return
# a boolean tensor (N,): is the largest *probability* of the row at least `threshold`?


# %% tags=["exercise"]
def is_sure(logits, threshold):
    return ...


# %% tags=["solution"]
def is_sure(logits, threshold):
    return logits.softmax(dim=1).max(dim=1).values >= threshold


# %% tags=["check"]
toy = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 2.0]])  # at most 0.50, 0.98, 0.88
sure = is_sure(toy, 0.9)
answered(sure)
expect(sure.shape == (3,), f"one boolean per row, not {tuple(sure.shape)}")
hint = "did you compare logits, or take the softmax over the wrong dimension?"
expect(not sure[2], f"row 2 has a probability of 0.88, below 0.9: {hint}")
expect(sure.tolist() == [False, True, False], "only row 1 is sure at 0.9")
expect(is_sure(toy, 0.8).tolist() == [False, True, True], "`threshold` is not used")
expect(
    is_sure(toy, 0.5).all(), "a probability of exactly 0.5 reaches a threshold of 0.5"
)
print("Exercise 2: correct.")

# %% [markdown]
# Your function on the CORSD run:

# %% tags=["uses-answer"]
logits, truth = corsd.probes[epochs].logits[0].float(), corsd.probes.labels
early = is_sure(logits, 0.9)
right = (logits.argmax(dim=1) == truth)[early].float().mean()
print(
    f"{early.float().mean():.0%} could leave at exit 1; {right:.0%} of them are right"
)

# %% [markdown]
# In the run saved here, 88 % of the images could leave at exit 1, and 98 % of those are
# classified correctly there. Notebook [02_exits](02_exits.ipynb) continues from here.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Answer: can a network teach itself?
#
# > **What we found.** On these digits we could not show a gain from the teaching. Over
# > the baseline CORSD gains 1.52 [0.05, 2.99] points at exit 1 and 1.3 [0.5, 2.1] at
# > exit 2. But deep supervision, without a teacher, gains 1.2 [0.1, 2.4] and 1.0 [0.1,
# > 1.9]. CORSD minus deep supervision is 0.3 [-0.4, 1.0] at exit 1. The relation terms
# > add 0.7 [0.1, 1.4] there. Of the six intervals in the last two rows of the figure,
# > only this one excludes 0, so it may be chance. The relations do form (contrast 0.79
# > to 0.83).
# >
# > **How sure we are.** Ten paired seeds exclude that CORSD gains more than about one
# > point over deep supervision at exit 1. Several intervals begin near 0; the contrast
# > is of one seed.
# >
# > **What it does not show.** Digits are easy; [03](03_relations.ipynb) and
# > [11](11_compare_methods.ipynb) have harder data.

# %% [markdown]
# ## Exercise 3, predict and experiment: more or fewer labels
#
# Predict: does CORSD gain more at exit 1 with 5 images per digit, or with 50? Then set
# `per_class` in the parameters cell, run all again, and fill in what `exit 1:` prints
# in "Did it help?". Set `epochs` to 240 for 5 images and to 24 for 50: then all
# trainings have as many steps as the one above. Repeat with two more values of `seed`:
# six runs of the notebook, about a minute each on free cores. Use the same seeds for
# both settings, in the same order: the cell subtracts them seed by seed. With three
# seeds expect a wide interval; more seeds make it narrower.

# %%
my_more = None  # 5 or 50
gain_at_exit_1 = {5: [], 50: []}  # points, one value per seed

few, many = gain_at_exit_1[5], gain_at_exit_1[50]
difference = [b - a for a, b in zip(few, many, strict=False)]  # seeds that both have
mean, low, high = mean_interval(difference)
if low is not None:
    print(f"50 images minus 5: {with_ends(mean, low, high)} points")
    if low <= 0 <= high:
        print("The interval includes 0: undecided.")
    else:
        compare("Gains more with", my_more, 50 if mean > 0 else 5, " images")

# %% [markdown] tags=["solution"]
# *A good answer* gives all six differences and their interval. Here, seeds 0, 1, 2:
# 4.1, 0.8 and 3.3 points with 5 images per digit, 0.4, 0.6 and 1.5 with 50. The
# difference is -1.9 [-6.4, 2.6]: undecided, although every seed gains more with 5. It
# compares like with like: as many steps with 5 images per digit as with 50.

# %% [markdown]
# ## Exercise 4, explain (open)
#
# A paper reports: "Our method improves accuracy from 90.6 % to 92.1 % on a test set of
# 797 images." Write down three questions you would ask before you believe the claim.
# For each say which number or experiment would answer it.

# %% [markdown] tags=["answer"]
# *Write your answer here.*

# %% [markdown] tags=["solution"]
# *A good answer* asks about (1) the sampling of the test set: about two points either
# way for each value; (2) seeds: how many, paired, which interval; (3) the baseline:
# same images, same tuning effort, and the ablation that separates the causes. Also: was
# the epoch chosen on the test set?

# %% [markdown]
# ## Where next
#
# - [02_exits](02_exits.ipynb) and [03_relations](03_relations.ipynb) take both ideas
#   further.
# - From a terminal: `corsd train --help` lists everything that can be set.
# - Open a run later: `from corsd_lib import load_run`, then
#   `RelationExplorer(load_run("runs/..."))`.
# - The code: `corsd_lib/relation.py` and `corsd_lib/losses.py` are short.
