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
# # 01 Can a network teach itself?
#
# Usually a small network learns from a large one that was trained before. Here there is no large one: the **deepest layers
# of a network teach its own shallow layers**, while all of them are still learning. What they hand down is not only an
# answer ("this is a 3") but a *relation* ("these two images belong together").
#
# **You will learn**
#
# - what an *exit* is, and what shallow layers know when nobody asks them;
# - what a *relation network* is: you see one written out in full, and the loss that trains it;
# - how to train the plain network and CORSD side by side and watch relations form;
# - how to read a relation matrix, and how *not* to read a small difference in accuracy.
#
# **You need** Python, PyTorch, and an idea of what cross-entropy does. **Time:** the notebook runs in less than a minute on
# two CPU cores; reading and the two exercises take about half an hour. Nothing is downloaded.
#
# The method is *Class-Oriented Relational Self Distillation* (CORSD, [arXiv 2305.00918](https://arxiv.org/abs/2305.00918)).

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

import torch
from IPython.display import display
from torch import nn
from torch.nn import functional as F

from corsd_lib import (
    RelationExplorer,
    TrainConfig,
    TrainingMonitor,
    build_network,
    committed_summary,
    load_dataset,
    relation_matrix,
    train,
)
from corsd_lib.batches import evaluation_batches
from corsd_lib.figures import exit_accuracy_bars, image_strip, relation_heatmap, training_curves
from corsd_lib.losses import margin_over_batch, relation_transfer
from corsd_lib.relation import VectorRelation, sample_pairs
from corsd_lib.tables import mean_interval

torch.set_num_threads(1)  # the images are tiny: a second thread would wait more than it works

# %% [markdown]
# These are the knobs of this notebook. Change them, run all cells again, and compare: each setting gets run directories of
# its own. Later notebooks open what was trained here instead of training it again.

# %% tags=["parameters"]
epochs = 120  # how often each training image is seen
per_class = 10  # labelled images of each digit
seed = 0  # of the weights, the choice of images and their order
run_directory = "runs/digits"  # finished trainings are found here again

# %% [markdown]
# ## The idea in one picture
#
# ![A backbone in three stages. Below each stage an exit classifies the image. Above each stage a relation network reads
# pairs of images, says how related they are from 0 to 1, and an auxiliary classifier names the classes in the pair. Dashed
# arrows lead from the deepest relation network and the deepest exit to the shallow ones.](images/corsd.svg)
#
# - The network is cut into **stages**, and every stage gets an **exit**: a small classifier of its own.
# - At every stage a **relation network** looks at *pairs* of images and gives a score between 0 (unrelated) and 1
#   (related).
# - An **auxiliary classifier** reads the same pair and says which class or classes are in it. That makes the relation
#   *class-oriented*: it cannot be satisfied with "these look alike".
# - **Dashed arrows are the self-distillation.** The deepest stage sees most, so it teaches the others. Nothing flows back
#   along them: a teacher should not come down to its pupil's level.
#
# When training is over, everything inside the grey frame is thrown away.

# %% [markdown]
# ## The data
#
# Handwritten digits, 8 x 8 pixels. We keep only a few labelled images of each, since self-distillation is asked for where
# labels are scarce. *How good will a network be that has seen ten examples of each digit?*

# %% tags=["nbval-check-output"]
data = load_dataset("digits", per_class=per_class, validation_fraction=0.5, seed=seed)
print(f"{len(data.train)} images to learn from, {len(data.validation)} to watch, {len(data.test)} to be tested on")
print(f"{data.num_classes} classes, {data.image_size} x {data.image_size} pixels")

# %%
one_of_each = [(data.train.labels == c).nonzero()[0].item() for c in range(data.num_classes)]
image_strip(data.train.images[one_of_each], data.class_names, "One training image of each digit")

# %% [markdown]
# ## A network with exits
#
# A ResNet with three stages. Each exit shrinks its stage's feature map to a vector (the *embedding*) and puts a linear
# classifier on it. If you stop at an exit, you need only the stages before it: `network.truncated(k)` is that smaller
# network.

# %% tags=["nbval-check-output"]
torch.manual_seed(seed)
network = build_network("resnet8", data.num_classes, in_channels=data.channels, image_size=data.image_size).eval()
for k, stage in enumerate(network.backbone.feature_info):
    side = data.image_size // stage.reduction
    parameters = sum(p.numel() for p in network.truncated(k).parameters())
    print(f"exit {k + 1} sees {stage.channels} channels of {side} x {side} and needs {parameters:,} parameters")

# %% [markdown]
# We show it some of the images to watch: no network learns from them, and the test images wait for the end. It has learned
# nothing yet, but shapes can be checked: every exit gives an embedding of the same width, so that one stage's relation can be
# compared with another's.

# %% tags=["nbval-check-output"]
images, labels = next(evaluation_batches(data, data.validation, batch_size=200))
with torch.no_grad():
    out = network(images)
print("embeddings", [tuple(e.shape) for e in out.embeddings])
print("logits    ", [tuple(z.shape) for z in out.logits])

# %% [markdown]
# ## What is a relation?
#
# Two images go in, a number between 0 and 1 comes out. Many methods *define* that number, for example as a distance between
# embeddings. CORSD *learns* it. Here is the whole relation network: put the two embeddings side by side, one hidden layer,
# and two answers read off it.


# %%
class PlainRelation(nn.Module):
    def __init__(self, width, classes, hidden=128):
        super().__init__()
        self.pair = nn.Linear(2 * width, hidden)
        self.score = nn.Linear(hidden, 1)
        self.auxiliary = nn.Linear(hidden, classes)

    def forward(self, first, second):  # (P, D) each: P pairs
        first, second = (F.layer_norm(e, e.shape[1:]) for e in (first, second))
        h = F.relu(self.pair(torch.cat([first, second], dim=1)))  # (P, H): the relation embedding
        return self.score(h).sigmoid().squeeze(1), self.auxiliary(h)  # (P,) related? (P, C) which classes?


# %% [markdown]
# The library's `VectorRelation` is the same function, only cheaper. A linear layer on two vectors side by side is the sum
# of two linear layers, `W [a; b] = U a + V b`. So each image goes through `U` and `V` once, and *all* pairs of a batch are
# sums. Let us give both the same weights and ask whether they agree.

# %% tags=["nbval-check-output"]
relation = VectorRelation(network.embedding_dim, data.num_classes)
plain = PlainRelation(network.embedding_dim, data.num_classes)
plain.pair.weight.data = torch.cat([relation.first.weight, relation.second.weight], dim=1).detach()
plain.pair.bias, plain.score, plain.auxiliary = relation.first.bias, relation.score, relation.auxiliary

a, b = out.embeddings[-1][:100], out.embeddings[-1][100:]
with torch.no_grad():
    score, answer = plain(a, b)
    assert torch.allclose(score, relation.pair_scores(a, b), atol=1e-5)
    assert torch.allclose(answer, relation.auxiliary_logits(a, b), atol=1e-4)
print("same scores and same auxiliary answers for", len(score), "pairs")

# %% [markdown]
# ### Pairs come for free
#
# A batch of images already holds all pairs of its images, so no image goes through the backbone twice.
#
# **Predict:** a batch has 5 images of each of 5 classes. How many ordered pairs of two *different* images of the *same*
# class are in it? How many pairs of different classes? Then run the cell.

# %% tags=["nbval-check-output"]
batch = torch.arange(25) % 5  # labels of 25 images
same = batch[:, None] == batch[None, :]
pairs = sample_pairs(batch)
print("same class: ", pairs.intra.shape[1], "pairs")
print("other class:", (~same).sum().item(), "pairs")
print("drawn of the latter, for the auxiliary classifier:", pairs.inter.shape[1])

# %% [markdown]
# ### A relation matrix, before training
#
# Averaging the scores of all pairs of class c with class d gives one cell of a *relation matrix*. A good relation is bright
# on the diagonal (same class) and dark elsewhere. We write that down as two numbers.


# %%
def contrast(matrix):
    """Mean relation within a class, and between classes."""
    other = ~torch.eye(len(matrix), dtype=torch.bool)
    return matrix.diag().mean().item(), matrix[other].mean().item()


# %%
with torch.no_grad():
    untrained = relation_matrix(relation.scores(out.embeddings[-1]), labels, data.num_classes)
within, between = contrast(untrained)
relation_heatmap(untrained, data.class_names, f"Untrained: {within:.2f} within a class, {between:.2f} between classes")

# %% [markdown]
# Nearly one colour everywhere: before training the relation says much the same about every pair.
#
# ### The loss that trains it
#
# For every image `i`, every image `j` of its class and every image `k` of another class, the score of `(i, j)` should be
# above the score of `(i, k)` by a margin `m`. What is missing is the loss, `max(0, m - r_ij + r_ik)`, averaged over all
# such triplets.


# %%
def margin_by_hand(scores, labels, margin=1.0):
    scores, labels, images = scores.tolist(), labels.tolist(), range(len(labels))
    missing = [
        max(0.0, margin - scores[i][j] + scores[i][k])
        for i in images
        for j in images
        for k in images
        if i != j and labels[i] == labels[j] and labels[i] != labels[k]
    ]
    return sum(missing) / len(missing)


# %% [markdown]
# Three nested loops are clear but slow. The library sorts each row instead and gets the same number.

# %%
scores = torch.rand(25, 25)
assert abs(margin_by_hand(scores, batch) - margin_over_batch(scores, batch).item()) < 1e-5

# %% [markdown]
# ## Before you run: what do you expect?
#
# Two trainings follow, with the same data, the same first weights and the same number of images seen.
#
# - **Baseline:** only the last exit trains the backbone. So that we can compare, shallow exits *watch*: they learn to
#   classify, but their gradient stops before it reaches the backbone. (The library calls this method `probe`.)
# - **CORSD:** every exit learns, and the deepest one teaches the others its answers and its relations.
#
# **Which exit will CORSD change most, and in which direction?** Write your guess down before you go on.

# %%
my_guess = 1  # the exit, 1 to 3

# %%
recipe = TrainConfig(
    data="digits",
    per_class=per_class,
    validation_fraction=0.5,  # kept from training, to watch the relations on
    network="resnet8",
    epochs=epochs,
    batch_size=25,
    probe_size=200,  # so many of them,
    probe_every=3,  # after every third epoch
    seed=seed,
    resume=True,  # a finished training is opened, not repeated
)


def plan(method, **changes):
    name = f"{method}-{per_class}-a-class-{epochs}-epochs-seed-{seed}"
    return replace(recipe, method=method, out=f"{run_directory}/{name}", **changes)


# %% [markdown]
# ## Train the baseline, live
#
# The figure grows while the cell runs, and its stop button ends the training early and keeps the run. The baseline has no
# relation network, so its matrix shows a handcrafted relation instead: the cosine between embeddings, moved to 0 to 1.

# %%
monitor = TrainingMonitor()
display(monitor)
baseline = train(plan("probe"), on_epoch=monitor, progress=False)
monitor(baseline)  # what was trained before is shown too

# %% [markdown]
# ## Train CORSD, live
#
# Same images, same backbone, more to learn from: the terms of the paper on plain batches. (The library adds one of its own,
# which pays where classes are many; it is switched off here.) Watch the diagonal.

# %%
monitor = TrainingMonitor()
display(monitor)
corsd = train(plan("corsd", sampling="plain", method_options={"class_kd": 0.0}), on_epoch=monitor, progress=False)
monitor(corsd)

# %% [markdown]
# ![The training monitor after a CORSD training. Left: the train accuracy of three exits climbs towards 100 percent. Right:
# the relation matrix of the deepest exit with a bright diagonal.](images/01_training_monitor.png)
#
# *The monitor at the end of a CORSD training, as a picture.* Every exit climbs, and the diagonal of the relation matrix
# lights up.
#
# What was each of them busy with? Below are all parts of both losses.

# %%
parts = {name: len(run.metrics.filter(like="loss.").columns) - 1 for name, run in (("baseline", baseline), ("CORSD", corsd))}
title = f"The baseline works on {parts['baseline']} parts of a loss, CORSD on {parts['CORSD']}, of which one has weight 0"
training_curves({"baseline": baseline.metrics, "CORSD": corsd.metrics}, title)

# %% [markdown]
# The baseline has two parts: `task` for the last exit and `exit_ce` for the watching ones. CORSD has more: `exit_kd`
# compares the answers of exits, `auxiliary_...` are the pair classifiers and what is handed down between them,
# `relation_margin` is the loss you saw above, `logit_relation` relates an image to the mean of its class, and
# `relation_transfer` asks shallow scores to match the deepest ones. It can *rise* at first: the teacher has begun to say
# something, and the pupils have yet to follow. `class_kd` is what was switched off: it is measured, as all parts are, before
# it is multiplied by its weight, and that is 0 here.

# %% [markdown]
# ## Did it help?
#
# Accuracy of every exit on test images that neither network has seen. The thin bars are 95 % intervals for a test set of
# this size: with another 797 digits, each number could have come out anywhere in there.

# %%
runs = {"baseline": baseline, "CORSD": corsd}
accuracy = {name: [e["top1"] for e in run.test["exits"]] for name, run in runs.items()}
interval = {name: [1.96 * (p * (100 - p) / len(data.test)) ** 0.5 for p in values] for name, values in accuracy.items()}
gain = [after - before for before, after in zip(*accuracy.values(), strict=True)]
title = "CORSD minus baseline: " + ", ".join(f"exit {k} {g:+.1f}" for k, g in enumerate(gain, 1)) + " points"
exit_accuracy_bars(accuracy, title, error=interval)

# %% [markdown]
# And now in words, from your numbers. Two intervals together tell how large a difference must be before it says anything.

# %%
for k, (g, one, other) in enumerate(zip(gain, *interval.values(), strict=True), 1):
    needed = (one**2 + other**2) ** 0.5
    verdict = "too small to tell from chance" if abs(g) < needed else "gained by CORSD" if g > 0 else "lost by CORSD"
    print(f"exit {k}: {g:+.1f} points, {needed:.1f} needed: {verdict}")
most = max(range(len(gain)), key=lambda k: abs(gain[k])) + 1
print(f"Exit {most} changed most. Your guess was exit {my_guess}.")

# %% [markdown]
# **Read this with care.** It is *one* training on *one* choice of a hundred tiny images. The bars speak of other *test*
# images; they know nothing of another hundred to learn from, or of other first weights.
#
# ### The same with ten seeds
#
# The repository keeps this very experiment, ten times over, as records: seed 0 is the one that comes with this notebook, and
# each seed draws its own images, weights and order. Below is the difference between CORSD and the baseline, *of the same
# seed*, as a mean over seeds with its 95 % interval.
#
# **Predict:** which of the gains above will be left?

# %%
study = committed_summary("digits")["methods"]
plain, ours = (study[row]["top1_by_seed"] for row in ("baseline", "corsd_paper"))
for k, mine in enumerate(gain):
    mean, low, high = mean_interval(ours[s][k] - plain[s][k] for s in plain)
    print(f"exit {k + 1}: {mean:+.1f} points, interval [{low:+.1f}, {high:+.1f}], {len(plain)} seeds; your seed: {mine:+.1f}")

# %% [markdown]
# An interval that holds 0 says: no gain that ten seeds can show; that of exit 1 ends just above it. So the *shallow* exits are
# better, by a point or two, and at the deepest no change is seen. Seed 0 flattered CORSD: its baseline is four points below the
# mean at exit 1. Nobody could have told from a single training, however small its error bars.
#
# But is it the *teacher* that helps? In CORSD the exits also train the backbone, which those of the baseline do not. The study
# has a row that does that alone, *deep supervision*: exits and labels, no teacher. And it has CORSD *without relations*: exits,
# labels and the answers of the deepest exit. **Predict** again: how much of the gains is left over each of them?

# %%
for label, row in {"deep supervision": "deep_supervision", "CORSD without relations": "paper_no_relations"}.items():
    theirs = study[row]["top1_by_seed"]
    for k in range(len(gain)):
        mean, low, high = mean_interval(ours[s][k] - theirs[s][k] for s in ours)
        print(f"CORSD minus {label}, exit {k + 1}: {mean:+.1f} points, interval [{low:+.1f}, {high:+.1f}]")

# %% [markdown]
# One of six intervals lies above 0, at the first exit, and of six at 95 % one may well miss by luck. So on these digits most of
# the gain comes with the exits, and relations are first of all a way to *look* into a network, which is what the rest of this
# notebook does. The paper's claims are about CIFAR-100, ImageNet and CUB-200-2011;
# [11_compare_methods](11_compare_methods.ipynb) asks what our far smaller studies can say.

# %% [markdown]
# ## The relation, after training
#
# The same matrix as above, on images that were never learned from, now from the trained relation network of the deepest stage.

# %%
after = corsd.probes[epochs].relations
within, between = contrast(after[-1])
relation_heatmap(after[-1], data.class_names, f"Trained: {within:.2f} within a class, {between:.2f} between classes")

# %% [markdown]
# How well did the pupils learn it? The gap between the two numbers is the relation's *contrast*.

# %%
for k, matrix in enumerate(after, 1):
    within, between = contrast(matrix)
    print(f"exit {k}: {within:.2f} within a class, {between:.2f} between classes, contrast {within - between:.2f}")

# %% [markdown]
# ## Explore it
#
# Choose an exit. Press play, or drag the slider, and watch the relation form from epoch 0 on. Click a cell, or move with the
# arrow keys: curve and table show how related these two classes are at every exit.
#
# **Look for:** a pair of *different* digits that stays related to the end. Would you confuse them, too? Is it the same pair
# at the shallowest exit?

# %%
explorer = RelationExplorer(corsd)
display(explorer)

# %% [markdown]
# ![The heatmap of the relation explorer: ten by ten digits, a bright diagonal, nearly all the rest dark, and an orange frame
# around the brightest cell beside the diagonal.](images/01_relation_explorer.png)
#
# *The explorer's heatmap as a picture.* It opens at the deepest exit and the last epoch, on the two different classes that are
# most related: the framed cell. Nearly all cells beside the diagonal are dark, so few pairs of digits stay related.
#
# What you select can be read, and set, from code. Try `explorer.selection = ("3", "8")` or `explorer.epoch = 0` in a new
# cell.

# %%
first, second = explorer.selection or (0, 0)
names = f"{data.class_names[first]} with {data.class_names[second]}"
print(f"Selected: {names}, relation {explorer.matrix[first, second]:.2f}")

# %% [markdown]
# ## Recap
#
# - Every stage of a network can have an **exit**; shallow ones know more than one might expect.
# - A **relation network** reads two embeddings and says how related they are, and which classes are there. All pairs of a
#   batch come from two small matrix products.
# - **Self-distillation** is a set of losses that pull shallow exits towards the deepest one, with the gradient stopped at
#   the teacher.
# - Relations form visibly, from one colour to a bright diagonal.
# - A gain in one training is **not a finding**, whatever its error bars: count seeds first.

# %% [markdown]
# ## Exercise 1: the teacher must not learn from its pupil
#
# `relation_transfer` is the mean squared difference between the scores of the deepest stage (`teacher`) and of a shallow
# stage (`student`), *with no gradient to the teacher*. Replace the `...` by one line. The check below it fails
# until then, and so does a cell that uses your answer; the answers are in `notebooks/solutions`.


# %% tags=["exercise"]
def transfer_by_hand(teacher, student):
    return ...


# %% tags=["solution"]
def transfer_by_hand(teacher, student):
    return (student - teacher.detach()).square().mean()


# %% tags=["check"]
teacher, student = torch.rand(6, requires_grad=True), torch.rand(6, requires_grad=True)
loss = transfer_by_hand(teacher, student)
assert isinstance(loss, torch.Tensor), "there is no answer yet: write yours in place of the `...`"
assert torch.allclose(loss, relation_transfer((teacher, teacher), (student, student))), "another value than the library's"
loss.backward()
assert teacher.grad is None, "the teacher gets a gradient: which tensor has to be detached?"
assert student.grad is not None, "the student gets no gradient: it would learn nothing"
print("Exercise 1: right.")

# %% [markdown]
# ## Exercise 2: leave early
#
# An image that a shallow exit is sure about need not go deeper. Write a function that says for each row of `logits` (N, C)
# whether its largest *probability* is at least `threshold`: a boolean tensor (N,).


# %% tags=["exercise"]
def is_sure(logits, threshold):
    return ...


# %% tags=["solution"]
def is_sure(logits, threshold):
    return logits.softmax(dim=1).max(dim=1).values >= threshold


# %% tags=["check"]
toy = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 2.0]])  # largest probabilities 0.50, 0.98, 0.88
sure = is_sure(toy, 0.9)
assert isinstance(sure, torch.Tensor), "there is no answer yet: write yours in place of the `...`"
assert sure.tolist() == [False, True, False], "only the second row is sure at 0.9; did you take probabilities, not logits?"
assert is_sure(toy, 0.8).tolist() == [False, True, True], "does it depend on the threshold?"
print("Exercise 2: right.")

# %% [markdown]
# And this is what your function says about the CORSD run. How far can you lower the threshold before accuracy suffers?

# %% tags=["uses-answer"]
logits, truth = corsd.probes[epochs].logits[0].float(), corsd.probes.labels
early = is_sure(logits, 0.9)
right = (logits.argmax(dim=1) == truth)[early].float().mean()
print(f"{early.float().mean():.0%} of the images could leave at exit 1; {right:.0%} of those would be right.")

# %% [markdown]
# ## Where next
#
# - Change `per_class` to 5 or 50, or `seed`, in the parameters cell, and run all again. Does the winner change?
# - Train from a terminal: `corsd train --data digits --per-class 10 --validation-fraction 0.5 --epochs 120 --batch-size 25
#   --method corsd --sampling plain --method-options class_kd=0` is the training above, and `corsd train --help` lists
#   everything else. Other methods to compare with: `deep_supervision` and `byot`.
# - Open any run later: `from corsd_lib import load_run`, then `RelationExplorer(load_run("runs/..."))`.
# - Read the code that you have just used: `corsd_lib/relation.py` and `corsd_lib/losses.py` are short.
