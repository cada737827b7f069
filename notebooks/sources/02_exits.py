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
# # 02 What do shallow layers already know?
#
# A network is asked for its answer at the very end, after the last layer. What would it say if you asked *earlier*, after a
# third of its layers? An **exit** is that question as a module: a small classifier on a shallow layer.
#
# **You will learn**
#
# - what an exit is made of, and what it costs;
# - the difference between exits that *watch* (a probe), exits that *learn* (deep supervision) and exits that are *taught*
#   (Be Your Own Teacher, BYOT): you write both losses out;
# - which images shallow exits get right and deep ones get wrong, called *overthinking*;
# - how to let easy images leave early, and how to choose the threshold without fooling yourself.
#
# **You need** PyTorch basics; [the walkthrough](01_walkthrough.ipynb) helps. **Time:** the notebook runs in about half a minute
# on two CPU cores; reading and the two exercises take 30 to 40 minutes. Nothing is downloaded.

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
import pandas as pd
import torch
from IPython.display import display
from torch import nn
from torch.nn import functional as F

from corsd_lib import ExitExplorer, build_method, build_network, committed_run, count_macs, early_exit, load_dataset, train
from corsd_lib.analysis.exits import early_exit_curve, exit_accuracy, exit_agreement, first_right, overthinking
from corsd_lib.batches import Batch, evaluation_batches
from corsd_lib.costs import cumulative_macs
from corsd_lib.evaluation import exit_logits
from corsd_lib.figures import early_exit_plot, exit_accuracy_bars, image_strip
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
# ## An exit, written out
#
# The data are the digits of the walkthrough, and the network is the same small ResNet in three stages. We keep half of the
# training images out of the training. These are the **validation** images: every choice in this notebook is made on them.
# The test images are for reading off a result.

# %%
data = load_dataset("digits", per_class=per_class, validation_fraction=0.5, seed=seed)
torch.manual_seed(seed)
network = build_network("resnet8", data.num_classes, in_channels=data.channels, image_size=data.image_size).eval()
images, labels = next(evaluation_batches(data, data.validation, batch_size=100))

# %% [markdown]
# Each stage gives a feature map. Deep maps are wide and small, shallow ones narrow and large. So an exit first **shrinks** its
# map to the shape of the deepest one (the *bottleneck*: convolutions of stride 2), then **averages** over all places, then
# **classifies**. That is the whole module:


# %%
class PlainExit(nn.Module):
    def __init__(self, bottleneck, width, classes):
        super().__init__()
        self.bottleneck = bottleneck
        self.classifier = nn.Linear(width, classes)

    def forward(self, feature):  # (B, C_k, H_k, W_k): the map of stage k
        shrunk = self.bottleneck(feature)  # (B, D, H, W): the shape of the deepest map
        embedding = shrunk.mean(dim=(2, 3))  # (B, D)
        return embedding, self.classifier(embedding)  # (B, C)


# %% [markdown]
# Does it say the same as the exits of the library? We give ours the same weights and ask both.

# %%
# NBVAL_CHECK_OUTPUT
with torch.no_grad():
    out = network(images)
    for k, head in enumerate(network.exits):
        plain = PlainExit(head.bottleneck, network.embedding_dim, data.num_classes)
        plain.classifier.load_state_dict(head.classifier.state_dict())
        _, logits = plain(out.features[k])
        assert torch.allclose(logits, out.logits[k], atol=1e-5)
        print(f"exit {k + 1}: map {tuple(out.features[k].shape[1:])}, logits {tuple(logits.shape)}, the same as the library's")

# %% [markdown]
# ### What does an exit cost?
#
# An image that leaves at exit 1 spares stages 2 and 3. But exits are not free, and an image that goes on has paid for every
# exit that it passed. We count multiply-accumulates (MACs) of convolutions and linear layers, and compare with the plain
# network, which has one exit at its end.
#
# **Predict:** what does an image cost that passes exits 1 and 2 in vain: less than the plain network, the same, or more?

# %%
# NBVAL_CHECK_OUTPUT
costs = cumulative_macs(network, data)
plain_cost = count_macs(network.truncated(2), (1, data.channels, data.image_size, data.image_size))
for k, macs in enumerate(costs, 1):
    print(f"leaving at exit {k}: {macs:,} MACs, {100 * macs / plain_cost:.0f} % of the plain network's")

# %% [markdown]
# Read off the last line: what is above 100 % is what the exits themselves cost. Leaving early pays only when enough images do.

# %% [markdown]
# ## Exits that watch
#
# What do shallow layers know when *nobody asks them to know anything*? To find out we train the plain network, and let
# shallow exits look on: they learn to classify, but their gradient is cut off before it reaches the backbone
# (`detach_exits`). This is called a **probe**.
#
# Let us see how far a gradient gets. Take the loss of one exit, go backward, and list the stages that got a gradient.


# %%
def stages_reached(k, watching):
    network.zero_grad()
    logits = network(images, detach_exits=watching).logits[k]
    F.cross_entropy(logits, labels).backward()
    stages = network.backbone.stages
    return [s + 1 for s, stage in enumerate(stages) if any(p.grad is not None for p in stage.parameters())]


# %% [markdown]
# **Predict:** exit 2 has a loss. Which stages does it change when it watches? Which when it learns?

# %%
# NBVAL_CHECK_OUTPUT
for k in range(3):
    watching, learning = stages_reached(k, True), stages_reached(k, False)
    print(f"exit {k + 1}: watching it changes stages {watching or 'none'}, learning {learning}")

# %% [markdown]
# A watching shallow exit changes nothing below it, so backbone and last exit train as if it was not there. A learning one
# shapes its own stage and all before it, never the stages after it.
#
# Now train. `plan` is the recipe of the walkthrough: the same network, images and number of epochs for every method here.
#
# **Predict:** the deepest exit will be right on about nine test images of ten. How many will exit 1 get right, after a third
# of the stages that were never asked to be of use to it?

# %%
my_guess = 50  # per cent right at exit 1

# %%
runs = {"watching (probe)": train(plan("probe", run_directory, epochs, per_class, seed), progress=False)}
accuracy = {name: [e["top1"] for e in run.test["exits"]] for name, run in runs.items()}
known = accuracy["watching (probe)"]
title = f"Exit 1, which only watches: {known[0]:.0f} % right (you said {my_guess} %), the deepest {known[-1]:.0f} %"
exit_accuracy_bars(accuracy, title)

# %% [markdown]
# Blind guessing would be right on 10 %. Compare the first bar with that, and with your guess: much of what tells digits apart
# is there after one stage.

# %% [markdown]
# ## Exits that learn: deep supervision
#
# Now every exit may change the backbone. The loss is the sum of the cross-entropies of all exits (Lee et al. 2015,
# [arXiv 1409.5185](https://arxiv.org/abs/1409.5185)).


# %%
def deep_supervision_by_hand(out, labels):
    return sum(F.cross_entropy(logits, labels) for logits in out.logits)


# %% [markdown]
# ## Exits that are taught: Be Your Own Teacher
#
# BYOT (Zhang et al. 2019, [arXiv 1905.08094](https://arxiv.org/abs/1905.08094)) adds two things. The deepest exit is the
# **teacher**, and a shallow exit is asked to
#
# - give the same *probabilities* as the teacher, not only the same winner. A **temperature** above 1 flattens both first, so
#   that "an 8, though a bit like a 3" is heard. The distance is a Kullback-Leibler divergence; the factor `T²` keeps its
#   gradient at the size it had before flattening;
# - have an *embedding* close to the teacher's: the **hint**, with a tiny weight.
#
# The teacher is detached. Otherwise the loss could be made smaller by teaching worse.


# %%
def byot_by_hand(out, labels, a=0.1, temperature=3.0, hint=1e-6):
    teacher = F.softmax(out.logits[-1].detach() / temperature, dim=1)
    goal = out.embeddings[-1].detach()
    loss = F.cross_entropy(out.logits[-1], labels)  # the teacher learns from the labels alone
    for embedding, logits in zip(out.embeddings[:-1], out.logits[:-1], strict=True):
        flat = F.log_softmax(logits / temperature, dim=1)
        divergence = F.kl_div(flat, teacher, reduction="batchmean") * temperature**2
        loss = loss + (1 - a) * F.cross_entropy(logits, labels) + a * divergence
        loss = loss + hint * (embedding - goal).square().sum()
    return loss


# %% [markdown]
# From here on we use the library's versions, after a check that they are the same numbers.

# %%
# NBVAL_CHECK_OUTPUT
batch = Batch(images, labels, rows=torch.arange(len(labels)))
for name, by_hand in {"deep_supervision": deep_supervision_by_hand, "byot": byot_by_hand}.items():
    parts = build_method(name)(out, batch)
    assert torch.isclose(parts["total"], by_hand(out, labels), rtol=1e-4)
    print(f"{name}: the same total, made of {', '.join(part for part in parts if part != 'total')}")

# %% [markdown]
# **Predict:** two more trainings follow. Which of the three will have the best exit 1? And will the *deepest* exit gain, lose
# or stay where it was, now that shallow exits pull at the stages below it?

# %%
for name, method in {"learning (deep supervision)": "deep_supervision", "taught (BYOT)": "byot"}.items():
    runs[name] = train(plan(method, run_directory, epochs, per_class, seed), progress=False)
accuracy = {name: [e["top1"] for e in run.test["exits"]] for name, run in runs.items()}

# %% [markdown]
# The thin bars are 95 % intervals for a test set of this size.

# %%
interval = {name: [1.96 * (p * (100 - p) / len(data.test)) ** 0.5 for p in values] for name, values in accuracy.items()}
firsts, lasts = ([f"{values[k]:.1f}" for values in accuracy.values()] for k in (0, -1))
title = f"Watching, learning, taught: exit 1 {' / '.join(firsts)} %, deepest exit {' / '.join(lasts)} %"
exit_accuracy_bars(accuracy, title, error=interval)

# %% [markdown]
# Look at exit 1 first. Are the bars of the exits that learn above the one that watches, and by more than the thin bars are
# long? Then look at the deepest exit, and ask the same. A difference inside the thin bars is one that another set of test
# images could turn round.
#
# ### The same on CIFAR-100
#
# Ten digits are easy. The repository also holds a small study on CIFAR-100: 100 images of each of 100 classes, a ResNet-8,
# one seed. Its runs can be opened without the images.

# %%
rows = {"plain": "baseline", "deep supervision": "deep_supervision", "BYOT": "byot"}
study = {name: committed_run(f"cifar100_small/{row}") for name, row in rows.items()}
for name, run in study.items():
    top1 = [e["top1"] for e in run.test["exits"]]
    change = top1[-1] - study["plain"].test["exits"][-1]["top1"]
    print(f"{name:17}", ", ".join(f"{value:.2f} %" for value in top1), f"; deepest exit minus plain: {change:+.2f} points")

# %% [markdown]
# The plain network has one exit. By how much do exits that learn or are taught change the *deepest* exit? With a single seed a
# few tenths of a point are nothing. What you get for certain is two more classifiers at a lower cost: read off how good they
# are. Larger networks and longer trainings may differ; that is a question for [several seeds](11_compare_methods.ipynb).

# %% [markdown]
# ## Who knows what?
#
# Two exits with the same accuracy need not be right about the *same* images. From here on we look at one run, on its
# validation images.

# %%
run = runs["learning (deep supervision)"]
network = run.network()
logits, labels = exit_logits(network, data, data.validation)  # a list of (N, C), one an exit

# %% [markdown]
# **Agreement** is the share of images on which two exits give the same answer, right or wrong. *Which pair should agree
# least?*

# %%
names = [f"exit {k}" for k in (1, 2, 3)]
pd.DataFrame(exit_agreement(logits).numpy(), names, names).map("{:.0%}".format)

# %% [markdown]
# One would think that neighbours are more of one mind than exit 1 and exit 3. Is it so in your table? Now ask for each
# image how deep one has to go until *some* exit is right about it.

# %%
counts = first_right(logits, labels).bincount(minlength=4).tolist()
for k, count in enumerate(counts[1:], 1):
    print(f"right at exit {k} for the first time: {count} images")
print(f"right at no exit: {counts[0]} images")

# %% [markdown]
# Most images are settled at exit 1. For them the rest of the network is spent in vain, unless it spoils the answer.
#
# ### Overthinking
#
# It can. An image is **overthought** when a shallow exit is right and the deepest one is wrong (Kaya et al. 2019, [arXiv
# 1810.07052](https://arxiv.org/abs/1810.07052)). If somebody told you for every image which exit to trust, you would gain
# that share of images over the deepest exit.

# %%
deepest = exit_accuracy(logits, labels)[-1]
lost = 100 * overthinking(logits, labels)
print(f"digits: the deepest exit is right on {deepest:.1f} %; shallow exits know {lost:.1f} % more")

# %% [markdown]
# Which images are these? The caption says what the digit is, and what the three exits took it for: `9: 994` is a 9 that
# only the deepest exit took for a 4.

# %%
guesses = torch.stack([z.argmax(dim=1) for z in logits])  # (K, N)
spoiled = ((guesses[:-1] == labels).any(dim=0) & (guesses[-1] != labels)).nonzero().flatten()[:8].tolist()
captions = [f"{labels[i]}: {''.join(str(g) for g in guesses[:, i].tolist())}" for i in spoiled]
title = f"{lost:.1f} % are overthought; the first {len(spoiled)}"
image_strip(data.validation.images[spoiled], captions, title, columns=8)

# %% [markdown]
# Would you have been sure? See whether the wrong answer resembles the digit, and whether both shallow exits were right or only
# one of them.
#
# **Predict:** on CIFAR-100, where the deepest exit is right on fewer than half of the images, is the share larger or smaller?
# A run keeps the answers of all exits on some validation images, its *probe images*.

# %%
for name in ("deep supervision", "BYOT"):
    probes = study[name].probes
    answers = [z.float() for z in probes[max(probes)].logits]
    share = 100 * overthinking(answers, probes.labels)
    print(f"CIFAR-100, {name}: {share:.1f} % of {len(probes.labels)} images are overthought")

# %% [markdown]
# ## Leaving early
#
# If exit 1 is sure, why go on? Here is early exit as it would run on a device: one image, stage by stage, and out as soon
# as the largest probability reaches a threshold. Deeper stages are never computed.


# %%
@torch.no_grad()
def classify(image, threshold):
    feature = network.backbone.stem(image[None])
    for k, stage in enumerate(network.backbone.stages):
        feature = stage(feature)
        _, logits = network.exits[k](feature)
        probabilities = logits.softmax(dim=1)
        if probabilities.max() >= threshold:
            break
    return probabilities.argmax().item(), k + 1


# %% [markdown]
# The deepest exit has to answer, sure or not. Let us send the first eight images through.

# %%
left = [classify(image, threshold=0.9) for image in images[:8]]
captions = [f"{guess}, at {k}" for guess, k in left]
early = sum(k < 3 for _, k in left)
image_strip(data.validation.images[:8], captions, f"{early} of 8 leave early: answer, and exit it was given at", columns=8)

# %% [markdown]
# ### The price of a threshold
#
# A low threshold is cheap, for nearly all images leave at exit 1. A high one is safe, for nearly all go to the end and pay
# for the exits on the way. In between lies a curve. To draw it no image has to be sent again: the logits of all exits say
# where each image *would* leave.
#
# On the digits there is little to trade, because exit 1 is nearly as good as the last one. So open the CIFAR-100 run of
# BYOT, where the exits are further apart. Drag the threshold. Each point of the curve is a threshold; the bars say how many
# leave where, and the lines below them how many of those are correct.
#
# **Look for:** the threshold at which half of the images leave at exit 1. Are those that stay to the end harder? Compare how
# many are correct in the first and in the last line. Then press *cheapest threshold*: it takes the one that loses at most a
# point.

# %%
explorer = ExitExplorer(study["BYOT"])
display(explorer)

# %% [markdown]
# ![The curve of the exit explorer: per cent of images right over the mean cost of an image. It climbs steeply from the lower
# left, then flattens. A star marks the chosen threshold on its flat part, a ring farther right the plain
# network.](images/02_exit_explorer.png)
#
# *The explorer's curve as a picture*, at the threshold it opens with. At the left end everybody leaves at exit 1, at the
# right end nobody leaves early. The star is the cheapest threshold that loses at most a point; the ring is the plain
# network. The right end lies beyond the ring: there the exits cost more than they spare.
#
# All of it can be read, and set, from code. Try `explorer.rule = "entropy"` in a new cell.

# %%
print(f"{explorer.rule} at {explorer.threshold:.2f}: {explorer.saved:.0f} % of the plain network's cost is saved,")
print(f"{explorer.figures['loss']:.1f} points lost on {len(explorer.left_at)} images")

# %% [markdown]
# There are three rules to choose from:
#
# - **confidence:** the largest probability is high enough;
# - **entropy:** the probabilities are concentrated enough, all of them counted;
# - **patience:** so many exits in a row gave the same answer.

# %%
probes = study["BYOT"].probes
answers = [z.float() for z in probes[max(probes)].logits]
costs = cumulative_macs(study["BYOT"].network(), study["BYOT"].data)
rules = ("confidence", "entropy", "patience")
curves = {rule: early_exit_curve(answers, probes.labels, costs, rule) for rule in rules}
early_exit_plot(curves)

# %% [markdown]
# Is there a rule whose curve lies above the others everywhere? With three exits patience has three settings only. And mind the
# number of images: with 300 of them one image is a third of a point, so small wiggles mean nothing.
#
# ### Chosen on validation, read off on test
#
# The chosen threshold is the best of about a hundred *for these images*, and the best of many tries looks better than it
# is. So its price has to be read off on images that had no part in the choice. `early_exit` does both. Back to the digits,
# where we have test images: at most one point may be lost on validation.
#
# **Predict:** will the loss on test be less, the same, or more?

# %%
chosen = {name: early_exit(run, data, rule="confidence", loss=1.0) for name, run in runs.items()}
for name, result in chosen.items():
    losses = f"{result.validation['loss']:+.1f} points lost on validation, {result.test['loss']:+.1f} on test"
    print(f"{name:27} threshold {result.threshold:.2f}: {losses}, {result.saved:.0f} % of the cost saved")

# %% [markdown]
# The loss on test is the one to quote, together with the number of images. In how many of your three lines is it larger
# than on validation? A **negative** loss means that leaving early was *better* than going to the end: the shallow exits
# kept right what the deepest would have spoiled. Is a threshold as low as 0.3? Then
# nearly everybody leaves at exit 1, and that is a finding, too: a network cut off after its first stage would do.

# %% [markdown]
# ## Recap
#
# - An exit shrinks a feature map, averages it and classifies. Passing exits costs something, too.
# - A **probe** watches and changes nothing. **Deep supervision** adds a loss at every exit. **BYOT** lets the deepest exit
#   teach the others its probabilities and its embedding, with the teacher detached.
# - Shallow exits know more than one might expect, and some things that the deepest one has unlearned: **overthinking**.
# - **Early exit** trades accuracy for cost. Choose the threshold on validation and read it off on test, once.
# - Whether learning exits make the deepest one better is a different question, and one small study says nothing on it.

# %% [markdown]
# ## Exercise 1: find the overthought images
#
# `guesses` (K, N) are the answers of K exits, shallow to deep, and `labels` (N,) the truth. Return a boolean tensor (N,): true
# where *some* shallow exit is right and the deepest is wrong.


# %% tags=["exercise"]
def overthought(guesses, labels):
    return ...


# %% tags=["solution"]
def overthought(guesses, labels):
    right = guesses == labels
    return right[:-1].any(dim=0) & ~right[-1]


# %% tags=["check"]
guessed = torch.tensor([[0, 1, 2, 0, 2, 1], [0, 1, 0, 1, 0, 1], [0, 0, 2, 1, 1, 1]])
truth = torch.tensor([0, 1, 2, 0, 0, 2])
found = overthought(guessed, truth)
assert isinstance(found, torch.Tensor), "there is no answer yet: write yours in place of the `...`"
assert found.dtype == torch.bool and found.shape == truth.shape, "wanted: one boolean an image"
assert not found[[0, 2]].any(), "the deepest exit is right about images 0 and 2: they are not overthought"
assert not found[5], "no exit is right about image 5: nothing was lost"
assert found[[1, 3, 4]].all(), "images 1, 3 and 4 are overthought; did you look at every shallow exit?"
print("Exercise 1: right.")

# %% [markdown]
# ## Exercise 2: who leaves where?
#
# `classify` above sends one image. Do it for all at once: `confidence` (K, N) holds the largest probability of each exit
# for each image. Return the number of the exit (N,), 1 to K, at which each image leaves: the *first* with a confidence of
# at least `threshold`. The deepest takes whoever is left.


# %% tags=["exercise"]
def leave_at(confidence, threshold):
    return ...


# %% tags=["solution"]
def leave_at(confidence, threshold):
    waiting = (confidence[:-1] < threshold).cumprod(dim=0)  # 1 as long as no exit was sure
    return waiting.sum(dim=0) + 1


# %% tags=["check"]
sure = torch.tensor([[0.95, 0.5, 0.2, 0.9], [0.6, 0.9, 0.3, 0.4], [0.99, 0.7, 0.6, 0.99]])
answer = leave_at(sure, 0.9)
assert isinstance(answer, torch.Tensor), "there is no answer yet: write yours in place of the `...`"
assert answer.shape == (4,), "wanted: one exit an image"
assert answer[2] == 3, "no exit is sure about image 2: the deepest, exit 3, has to take it"
assert answer.tolist() == [1, 2, 3, 1], "the first exit that is sure counts; a confidence of exactly 0.9 is enough"
assert leave_at(sure, 0.0).tolist() == [1] * 4 and leave_at(sure, 1.1).tolist() == [3] * 4, "does it depend on the threshold?"
print("Exercise 2: right.")

# %% [markdown]
# With your function you can do by hand what `early_exit` did, on test:

# %% tags=["uses-answer"]
by_library = chosen["learning (deep supervision)"]
answers, truth = exit_logits(network, data, data.test)
probabilities = torch.stack(answers).softmax(dim=2)  # (K, N, C)
confidence, guesses = probabilities.max(dim=2)
exits = leave_at(confidence, by_library.threshold)
final = guesses.gather(0, exits[None] - 1)[0]
print(f"{(final == truth).double().mean():.1%} right by hand, {by_library.test['accuracy']:.1f} % by the library")

# %% [markdown]
# ## Where next
#
# - Set `run = runs["watching (probe)"]` and run on from "Who knows what?". Is a network that was never asked to leave early
#   worth leaving early?
# - Open the explorer on a run of yours, with its images: `ExitExplorer(run, data=data, split="validation")`.
# - [03_relations](03_relations.ipynb): BYOT hands down answers about single images. What about the relation of two?
# - [12_your_own](12_your_own.ipynb): put exits on your own network, and write a loss of your own.
# - Read the code that you have used: `corsd_lib/network.py`, `corsd_lib/methods/classic.py` and `corsd_lib/analysis/exits.py`.
