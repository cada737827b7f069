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
# # 04 Why auxiliary classifiers?
#
# A relation network learns from "same class" and "other class". That is one bit a pair. The *class-oriented* in CORSD means
# that it has to say more: a second output, the **auxiliary classifier**, names the class or the two classes in the pair. What
# would go wrong without it? And does anything?
#
# **You will learn**
#
# - what a relation network could satisfy itself with when nothing names classes;
# - the labels of pairs: one class for an intra pair, half and half for an inter pair;
# - how one softmax too many turns that label into mush, as it happened in a published code release;
# - the one term of the library's CORSD that is not the paper's: images of a class that agree;
# - how to do an ablation by hand: one change, several seeds, several judges, and words for what it does *not* show.
#
# **You need** [03_relations](03_relations.ipynb): the relation network and the AUC. **Time:** it runs in less than a minute
# on two CPU cores; reading and the two exercises take about 40 minutes. Nothing is downloaded.

# %% [markdown]
# ## Set-up
#
# In a clone, in an installed package and on Binder everything is there already. On Colab, clone the repository first and open
# this notebook's folder.

# %%
from importlib.util import find_spec

if find_spec("corsd_lib") is None:
    print("installing corsd_lib from this clone, which takes some minutes")
    # %pip install --quiet "..[notebooks]"

# %%
from dataclasses import replace

import pandas as pd
import plotly.express as px
import torch
from IPython.display import display
from torch.nn import functional as F

from corsd_lib import RelationExplorer, load_dataset, train
from corsd_lib.analysis import class_structure, relation_quality, term_gradients
from corsd_lib.analysis.images import run_pixels
from corsd_lib.analysis.relations import relation_networks_at, same_class_auc
from corsd_lib.analysis.structure import nearest_mean_accuracy
from corsd_lib.figures import exit_accuracy_bars, image_strip, structure_over_depth, template
from corsd_lib.losses import auxiliary_cross_entropy, class_distillation, distillation, margin_over_batch
from corsd_lib.relation import sample_pairs
from corsd_lib.tables import mean_interval
from corsd_lib.walkthrough import plan

torch.set_num_threads(1)  # the images are tiny: a second thread would wait more than it works

# %% [markdown]
# These are the knobs of this notebook. More seeds take longer and say more.

# %% tags=["parameters"]
epochs = 40  # how often each training image is seen
per_class = 10  # labelled images of each digit
seeds = 3  # trainings of each variant
seed = 0  # the first of them
run_directory = "runs/digits"  # finished trainings are found here again

# %% [markdown]
# ## What the margin cannot see
#
# The margin loss asks that images of one class are more related than images of two. It reads labels only to ask: *the same?*
#
# **Predict:** with ten digits, how many *kinds* of pairs are there, if (3, 8) and (8, 3) count as one? How many kinds does
# the margin know?

# %% tags=["nbval-check-output"]
classes = 10
intra_kinds, inter_kinds = classes, classes * (classes - 1) // 2
print(f"{intra_kinds} kinds of intra pairs and {inter_kinds} of inter pairs, {intra_kinds + inter_kinds} in all")
print("kinds that the margin tells apart: 2")

# %% [markdown]
# So names do not matter to it. Call every three a seven, every seven a one, and so on, all around: the margin loss stays what
# it was.

# %% tags=["nbval-check-output"]
generator = torch.Generator().manual_seed(0)
labels, scores = torch.arange(20) % classes, torch.rand(20, 20, generator=generator)
renamed = (labels + 4) % classes
same_loss = torch.allclose(margin_over_batch(scores, labels), margin_over_batch(scores, renamed))
print(f"{(labels != renamed).sum()} of 20 labels renamed; the margin loss is {'the same' if same_loss else 'another'}")

# %% [markdown]
# ### A relation that knows almost nothing
#
# What could earn something from the margin without knowing a class? Look at four pixels of the 64, those in the middle. A
# zero is empty there, many others are not. Call two images related when their middles are about as bright.

# %%
data = load_dataset("digits", per_class=per_class, validation_fraction=0.5, seed=seed)
pixels, labels = data.validation.images.float() / 255, data.validation.labels
middle = pixels[:, 0, 3:5, 3:5].mean(dim=(1, 2))  # (N,) one number an image
gap = (middle[:, None] - middle[None, :]).abs()
by_middle = torch.exp(-gap / gap.mean())  # (N, N), 1 = as bright

# %% [markdown]
# **Predict:** how well do four pixels detect that two images show the same digit? As an AUC: 0.5 is a coin, 1 is perfect. And
# how many digits can be *named* when this one number is all one knows? A die with ten sides gets 10 %.

# %%
auc, named = same_class_auc(by_middle, labels), nearest_mean_accuracy(middle[:, None], labels)
loss, blind = (margin_over_batch(r, labels) for r in (by_middle, torch.full_like(by_middle, 0.5)))
print(f"AUC {auc:.2f}; margin loss {loss:.2f}, where the same score for all pairs costs {blind:.2f}")
print(f"digits named by four pixels: {named:.0f} %")

# %% [markdown]
# Is the AUC above 0.5, and the loss below that of knowing nothing? Then the margin *pays* for four pixels. Any cue is paid
# for that is right a little more often than wrong: thickness, slant, on photographs the background. And look at what it takes
# for the same:

# %%
close = by_middle.masked_fill(labels[:, None] == labels[None, :], 0)
pairs = [divmod(cell, len(labels)) for cell in close.triu().flatten().topk(5).indices.tolist()]
found = torch.tensor(pairs).flatten()
captions = [data.class_names[c] for c in labels[found]]
title = f"Five pairs that this relation takes for the same: {close.max():.2f}"
image_strip(data.validation.images[found], captions, title)

# %% [markdown]
# This shows what a relation *could* settle for. It does not show that one does: in CORSD the exits learn classes at the same
# time, and the embeddings a relation reads are full of them. That is what the ablation below is for.
#
# ## The second answer
#
# A relation network ends in a relation embedding `h` of each pair. The score is one linear layer on `h`. The **auxiliary
# classifier** is another, with one output a class. What should it say?
#
# - Of an **intra** pair, two threes: all weight on 3.
# - Of an **inter** pair, a three and an eight: one half on 3, one half on 8.
#
# One line covers both.


# %%
def pair_label(first, second, classes=10):
    return (F.one_hot(first, classes) + F.one_hot(second, classes)) / 2  # (P, C)


# %% tags=["nbval-check-output"]
first, second = torch.tensor([3, 3]), torch.tensor([3, 8])
for name, row in zip(("3 with 3", "3 with 8"), pair_label(first, second), strict=True):
    print(f"{name}: " + " ".join(f"{100 * share:3.0f}" for share in row), "%")

# %% [markdown]
# The loss is the cross-entropy between this label and what the classifier says.


# %%
def auxiliary_by_hand(logits, first, second):
    target = pair_label(first, second, logits.shape[1])
    return -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()


# %% [markdown]
# Is it the library's? And now the renamed classes from above: does *this* loss notice?

# %% tags=["nbval-check-output"]
answers = torch.randn(50, classes, generator=generator)
first, second = torch.randint(0, classes, (2, 50), generator=generator)
loss = auxiliary_by_hand(answers, first, second)
assert torch.allclose(loss, auxiliary_cross_entropy(answers, first, second))
names = torch.arange(classes).roll(1)
noticed = (auxiliary_by_hand(answers, names[first], names[second]) - loss).abs() > 1e-3
print("the library's loss: the same; renamed classes:", "noticed" if noticed else "not noticed")

# %% [markdown]
# ### How low can it go?
#
# **Predict:** the classifier is perfect. What is left of the loss for an intra pair, and for an inter pair? (In bits: how
# many yes-or-no questions does the *label* leave open?)

# %% tags=["nbval-check-output"]
for name, label in zip(("intra", "inter"), pair_label(torch.tensor([3, 3]), torch.tensor([3, 8])), strict=True):
    bits = torch.special.xlogy(label, 1 / label.clamp_min(1e-9)).sum() / torch.tensor(2.0).log()
    print(f"{name}: bits left for a perfect answer: {bits:.0f}")

# %% [markdown]
# So do not wait for the curve of `auxiliary_inter` to reach zero. It ends at one bit, which is 0.69 in the nats that are
# recorded.
#
# ## One softmax too many
#
# The half/half label is a probability already. In the code that the paper's authors released in 2023 it is treated as if it
# were logits, and a softmax is put on it. That raises no error: the loss is finite, it falls, and nothing complains.
#
# **Predict:** what does `softmax([0, 0, 0, 0.5, 0, 0, 0, 0, 0.5, 0])` look like?

# %% tags=["nbval-check-output"]
right = pair_label(torch.tensor([3]), torch.tensor([8])).squeeze(0)
wrong = right.softmax(dim=0)
for name, row in {"as it should be": right, "with a softmax ": wrong}.items():
    print(f"{name}: " + " ".join(f"{100 * share:3.0f}" for share in row), "%")

# %% [markdown]
# Nearly the same for everybody. A softmax turns *differences* into ratios, and 0.5 is a small difference: `exp(0.5)` is 1.65.
# A pair's own classes get 1.65 times the weight of each of the others, of which there are many.
#
# What does that do to learning? Take a classifier that knows nothing yet, all logits zero, and look at the gradient: how hard
# does the label pull? With a hundred classes, as in CIFAR-100, it is worse.


# %% tags=["nbval-check-output"]
def pull(label):
    logits = torch.zeros_like(label, requires_grad=True)
    F.cross_entropy(logits, label).backward()
    return logits.grad.norm()


for classes_here in (10, 100):
    label = pair_label(torch.tensor([3]), torch.tensor([8]), classes_here)
    weaker = pull(label) / pull(label.softmax(dim=1))
    print(f"{classes_here} classes: the softmax makes the pull {weaker:.0f} times weaker")

# %% [markdown]
# And it pulls to the wrong place: a classifier that has learned this label perfectly says 15 % and 15 %, and 9 % to each of
# the eight classes that are *not* in the pair. A confident right answer is punished. The library uses the label as it is, and
# a test keeps it so.
#
# **A rule to take home:** print one row of every target before you train on it.
#
# ## Auxiliary distillation
#
# The deepest stage knows most, so it hands down its auxiliary answers too. What does an answer hold beyond the label? Let us
# train CORSD and ask it. (Exercise 1 lets you write the loss that hands the answer down.)
#
# ## One term more, which is ours
#
# The paper's terms end here. The library's CORSD has one more in its default, `class_kd`, which the method *CS-KD* ([arXiv
# 2003.13964](https://arxiv.org/abs/2003.13964)) brought up. It is class-oriented without any relation network: **two images of
# one class should get the same answer**. Each of the two teaches the other, at every exit; the one that teaches is detached.


# %%
def class_kd_by_hand(logits, labels, temperature=4.0):
    log_q = (logits / temperature).log_softmax(dim=1)  # (B, C)
    log_p = log_q.detach()  # the same answers, as teachers
    kl = (log_p.exp()[:, None] * (log_p[:, None] - log_q[None, :])).sum(dim=2)  # (B, B): row teaches column
    partners = (labels[:, None] == labels[None, :]) & ~torch.eye(len(labels), dtype=torch.bool)
    return kl[partners].mean() * temperature**2


# %% [markdown]
# **Predict:** what does it cost when all images of a class get the same answer, and that answer is *wrong*?

# %% tags=["nbval-check-output"]
answers, truth = torch.randn(20, classes, generator=generator), torch.arange(20) % classes
assert torch.allclose(class_kd_by_hand(answers, truth), class_distillation(answers, answers, truth, 4.0), atol=1e-5)
wrong = 10 * F.one_hot((truth + 1) % classes, classes).float()  # every three is taken for a four, and so on
print("the library's loss: the same")
print(f"all wrong, and of one mind: {class_kd_by_hand(wrong, truth):.0f}")

# %% [markdown]
# Agreement is not truth, so this term needs the cross-entropy beside it. And it needs a partner for each image, which is why
# batches with two images of each class go with it. In this notebook it has weight 0: one question at a time.
#
# ## An ablation by hand
#
# **One change.** Two variants of CORSD, with the same images, the same first weights and the same batches. In the second the
# four auxiliary terms have weight zero. Everything else stays, the margin and its labels included.

# %%
terms = ("auxiliary_intra", "auxiliary_inter", "auxiliary_kd_intra", "auxiliary_kd_inter")
variants = {"with": {}, "without": dict.fromkeys(terms, 0.0)}


def ablation(variant, number):
    recipe = plan("corsd", run_directory, epochs, per_class, number)
    options = {**recipe.method_options, **variants[variant]}
    return replace(recipe, method_options=options, probe_every=0, out=f"{recipe.out}-{variant}-auxiliary")


# %% [markdown]
# **Several seeds.** One training a variant says nothing: two seeds of the *same* variant differ, too. We train each variant
# with the same few seeds and compare seed by seed, so that what a seed does to both drops out.
#
# **Predict**, before you run it: without auxiliary terms, will (a) accuracy, (b) the AUC of the relation score, (c) the
# structure of the embeddings, (d) what `h` knows about the *kind* of a pair be better, worse, or the same?

# %%
numbers = range(seed, seed + seeds)
runs = {"with": [train(ablation("with", n), progress=False) for n in numbers]}

# %%
runs["without"] = [train(ablation("without", n), progress=False) for n in numbers]

# %% [markdown]
# ### What an auxiliary answer says
#
# First the question from above. Here is the inter pair of probe images whose answer at the deepest exit is *least* like half
# and half: the most weight on classes that are not in the pair.

# %%
run = runs["with"][0]
snapshot, labels = run.probes[epochs], run.probes.labels
i, j = sample_pairs(labels, torch.Generator().manual_seed(0)).inter
networks = relation_networks_at(run, snapshot)
with torch.no_grad():
    deepest = snapshot.embeddings[-1].float()
    said = networks[-1].auxiliary_logits(deepest[i], deepest[j]).softmax(dim=1)  # (3800, 10)
inside = said.gather(1, torch.stack([labels[i], labels[j]], dim=1)).sum(dim=1)
worst = inside.argmin()

# %%
shares, guesses = said[worst].topk(3)
words = ", ".join(f"{100 * s:.0f} % {run.data.class_names[c]}" for s, c in zip(shares, guesses.tolist(), strict=True))
two = [i[worst].item(), j[worst].item()]
image_strip(run_pixels(run, two), [run.data.class_names[labels[k]] for k in two], f"The deepest stage says {words}", columns=6)

# %% [markdown]
# Does the title name the two digits of the pair at all? The label names two classes and calls all others equally wrong. The
# answer prefers some of the others: look at the pixels, is it clear why? That preference is what a shallow stage can learn
# from the deepest one and not from the label. We have picked the worst pair, so here it is a mistake, too. A teacher hands
# down its mistakes as well.
#
# ### Judge 1: accuracy of the exits
#
# Bars are means over the seeds. The thin bars are as long as the way from the worst seed to the best.

# %%
accuracy = {v: torch.tensor([[e["top1"] for e in run.test["exits"]] for run in runs[v]]) for v in variants}
means = {f"{v} auxiliary": a.mean(dim=0).tolist() for v, a in accuracy.items()}
spread = {f"{v} auxiliary": ((a.amax(dim=0) - a.amin(dim=0)) / 2).tolist() for v, a in accuracy.items()}
gain = (accuracy["with"] - accuracy["without"]).mean(dim=0)
title = "With minus without: " + ", ".join(f"exit {k} {g:+.1f}" for k, g in enumerate(gain, 1)) + f" points, {seeds} seeds"
exit_accuracy_bars(means, title, error=spread)

# %% [markdown]
# Compare the difference between two neighbouring bars with their thin bars. We come back to it with an interval.
#
# ### Judge 2: is the score a better detector?
#
# The AUC of the trained score on probe images, a row a seed. It asks: same or other? That is what the margin trains, with or
# without auxiliary terms.

# %%
auc = {v: [relation_quality(run, epochs)["auc"].tolist() for run in runs[v]] for v in variants}
by_exit = {(v, f"exit {k}"): [seed_row[k - 1] for seed_row in auc[v]] for v in variants for k in (1, 2, 3)}
pd.DataFrame(by_exit, index=[f"seed {n}" for n in numbers]).round(3)

# %% [markdown]
# ### Judge 3: are the classes tighter?
#
# This one does not ask the relation networks at all but the embeddings below them. How much of their variance is explained by
# the class? How clearly do classes part (silhouette)? Does the nearest class mean name the digit? The figure shows the first
# seed. Mind its axes, which do not begin at 0: the lines look further apart than they are.

# %%
tables = {f"{v} auxiliary": class_structure(runs[v][0], [epochs]) for v in variants}
structure_over_depth(tables, ("between_share", "silhouette", "nearest_mean_top1"))

# %% [markdown]
# ### Judge 4: what does the relation embedding know?
#
# The last judge looks where the auxiliary classifier sits, at `h`. There are 55 kinds of pairs. We give every pair to the
# nearest *mean* of a kind: how often is it the right kind? Guessing gets 2 %. No classifier is trained for that, so both
# variants get the same chance.


# %%
def kinds_named(run):
    labels, snapshot = run.probes.labels, run.probes[epochs]
    i, j = torch.cat(sample_pairs(labels, torch.Generator().manual_seed(0)), dim=1)  # 7,600 pairs
    kind = torch.minimum(labels[i], labels[j]) * classes + torch.maximum(labels[i], labels[j])
    stages = zip(relation_networks_at(run, snapshot), snapshot.embeddings, strict=True)
    with torch.no_grad():
        return [nearest_mean_accuracy(net.pair_embeddings(e[i].float(), e[j].float()), kind) for net, e in stages]


# %%
kinds = {v: torch.tensor([kinds_named(run) for run in runs[v]]) for v in variants}
means = {f"{v} auxiliary": k.mean(dim=0).tolist() for v, k in kinds.items()}
spread = {f"{v} auxiliary": ((k.amax(dim=0) - k.amin(dim=0)) / 2).tolist() for v, k in kinds.items()}
title = "Pairs given the right kind, deepest: " + ", ".join(f"{v} {m[-1]:.0f} %" for v, m in means.items())
exit_accuracy_bars(means, title, error=spread, ylabel="pairs given the right kind (%)")

# %% [markdown]
# Note how much `h` knows *without* auxiliary terms. Nobody asked it for kinds, but the embeddings that go in are full of
# classes, and a random matrix would let much of that through. The question is only whether the terms add to it.
#
# ### All judges at one table
#
# For each judge: with minus without, seed by seed; the mean; and half of its 95 % interval. When the mean is smaller than
# that half, no difference is all we can say.

# %%
structure = {v: [class_structure(run, [epochs])["between_share"].tolist() for run in runs[v]] for v in variants}
judges = {"accuracy": accuracy, "AUC, %": auc, "variance explained, %": structure, "right kind, %": kinds}
rows = {}
for judge, found in judges.items():
    scale = 100 if judge in ("AUC, %", "variance explained, %") else 1
    differences = scale * (torch.as_tensor(found["with"]) - torch.as_tensor(found["without"]))  # (seeds, exits)
    for k, values in enumerate(differences.T.tolist(), 1):
        mean, low, high = mean_interval(values)
        half = float("nan") if low is None else (high - low) / 2
        rows[judge, f"exit {k}"] = {"mean": mean, "half interval": half, "clear": abs(mean) > half}
summary = pd.DataFrame.from_dict(rows, orient="index")
summary.round(2)

# %%
for judge in judges:
    clear = summary.loc[judge]["clear"].sum()
    signs = ", ".join(f"{mean:+.1f}" for mean in summary.loc[judge]["mean"])
    print(f"{judge.removesuffix(', %')}: {signs}; a clear difference at {clear} of 3 exits")

# %% [markdown]
# **How to read it.** There are twelve intervals. If the terms did nothing at all, one in twenty would still look clear by
# chance, so a single "clear" among twelve weighs little. A judge that is clear at *all* exits, in the same direction, weighs
# more. And with three seeds an interval is wide: not clear means *not known*, not *no effect*.
#
# **Did you see judges disagree?** Look at the signs of AUC and "right kind". A relation network with a second task may need
# longer for its first one. That is a guess, and you can test it: set `epochs` to 60 in the parameters cell, run all again,
# and see which judge changes its mind. A result that hangs on a setting has to be told with the setting.
#
# **What this ablation can show, and what not.** It is ten digits, a hundred images, a tiny network, few seeds. Whether `h`
# comes to know the kinds of pairs is the mechanism, and judge 4 looks at it. Whether that makes *exits* more accurate is
# another question: compare the row of the last judge with the rows of the first. On a hundred classes it is a row of this
# repository's [main study](../results/cifar100/study.json), "without auxiliary classifiers";
# [11_compare_methods](11_compare_methods.ipynb) shows what the study has of it.
#
# ### Who pulls at the backbone?
#
# All terms end in one sum, but they do not pull alike. Below is the gradient of every part of the loss, times its weight, that
# arrives in the *backbone* of the first CORSD run, at its last weights: how long it is, and its cosine with the gradient of
# cross-entropy, the labels. A cosine near 1 says "the same once more"; near 0, "something else".
#
# **Predict:** which term pulls most, after cross-entropy itself? And the terms that carry a relation, `relation_margin` and
# `relation_transfer`?

# %%
pull = term_gradients(runs["with"][0], batches=4)
of_labels = pull[pull["term"].isin(["task", "exit_ce"]) & (pull["place"] == "backbone")]["norm"].sum()
arrives = pull[pull["place"] == "backbone"].assign(share=lambda t: t["norm"] / of_labels).sort_values("share")
relations = arrives[arrives["term"].str.startswith("relation")]["share"].sum()
title = f"Margin and transfer together pull {relations:.2f} times as hard as cross-entropy"
look = {"labels": {"share": "pull, cross-entropy of all exits = 1", "cosine": "cosine with labels"}, "template": template()}
px.bar(arrives, x="share", y="term", color="cosine", range_color=[0, 1], title=title, height=420, **look)

# %% [markdown]
# The margin and the transfer, the terms that are about relations proper, hardly move this backbone. The auxiliary classifiers
# do, mostly the way the labels do: to name what is in a pair, an embedding must know its own class first. In the main study
# *all* relation terms were taken away, and nothing was lost that can be seen
# ([11_compare_methods](11_compare_methods.ipynb)): a pull can be strong and add little to the labels. What would you watch,
# before you call a larger weight of margin and transfer better?

# %% [markdown]
# ## Explore it
#
# The relation matrix *with* auxiliary terms minus the one *without* (first seed). Vermilion: more related with them. Blue:
# less.
#
# **Look for:** is the diagonal as strong in both? Which pairs of *different* digits have changed most? A network that has to
# name both digits of a pair keeps something of each in `h`, and its score may become less extreme.

# %%
explorer = RelationExplorer(runs["with"][0], other=runs["without"][0], labels=("with", "without"))
explorer.against = "other run"
display(explorer)

# %% [markdown]
# ![A heatmap of ten by ten digits, the relation with auxiliary terms minus the relation without them at the deepest exit:
# most cells between different digits are vermilion, and much of the diagonal is close to
# grey.](images/04_relation_difference.png)
#
# *The difference as a picture, after 40 epochs.* Grey cells are alike in both. The title says by how much relations differ
# within classes and between them: here the network with auxiliary terms calls different digits *more* related. Its score has
# not got as far.
#
# ## Recap
#
# - The margin knows two kinds of pairs, **same** and **other**. Even four pixels earn something from it: any cue that is
#   right more often than wrong does.
# - The **auxiliary classifier** reads the same `h` and must name what is in the pair: one class, or two, half and half.
# - Half and half is a probability **already**. A softmax on it pulls an order of magnitude less, and to the wrong place.
# - An **ablation** is one change, the same seeds, several judges, and an interval. Judges can disagree: a mechanism can be at
#   work and the accuracy not notice.

# %% [markdown]
# ## Exercise 1: hand down the answer
#
# Auxiliary distillation is the KL divergence from the deepest stage's answer to a shallow one's, both softened by a
# temperature T: `T² · KL(softmax(teacher / T) ‖ softmax(student / T))`, mean over the pairs. No gradient may reach the
# teacher. `F.kl_div(log_q, p, reduction="batchmean")` wants the *log-probabilities* of the student first, then the
# *probabilities* of the teacher.


# %% tags=["exercise"]
def hand_down(teacher, student, temperature=3.0):
    return ...


# %% tags=["solution"]
def hand_down(teacher, student, temperature=3.0):
    p = (teacher.detach() / temperature).softmax(dim=1)
    log_q = (student / temperature).log_softmax(dim=1)
    return F.kl_div(log_q, p, reduction="batchmean") * temperature**2


# %% tags=["check"]
rows = torch.Generator().manual_seed(0)
teacher, student = (torch.randn(4, 10, generator=rows).requires_grad_() for _ in range(2))
loss = hand_down(teacher, student)
assert isinstance(loss, torch.Tensor), "there is no answer yet: write yours in place of the `...`"
assert hand_down(student, student).abs() < 1e-6, "two equal answers should cost nothing: are both sides probabilities?"
assert torch.allclose(loss, distillation(teacher, student, 3.0)), "another value than the library's: is T² there, and T twice?"
assert torch.allclose(hand_down(teacher, student, 1.0), distillation(teacher, student, 1.0)), "does it depend on T?"
loss.backward()
assert teacher.grad is None, "the teacher gets a gradient: which tensor has to be detached?"
print("Exercise 1: right.")

# %% [markdown]
# ## Exercise 2: a relation out of class answers
#
# If a network can name classes, is a relation network needed at all? Let `logits` (N, C) be the answers of an exit for N
# images. Give a table (N, N): the probability that i and j are of the *same* class, if both are drawn from what the exit
# believes. That is the sum over classes c of `p_i[c] * p_j[c]`.


# %% tags=["exercise"]
def same_class_belief(logits):
    return ...


# %% tags=["solution"]
def same_class_belief(logits):
    p = logits.softmax(dim=1)
    return p @ p.T


# %% tags=["check"]
sure, torn = [9.0, 0.0, 0.0], [9.0, 9.0, 0.0]  # surely class 0; class 0 or class 1
belief = same_class_belief(torch.tensor([sure, sure, torn]))
assert isinstance(belief, torch.Tensor), "there is no answer yet: write yours in place of the `...`"
assert belief.shape == (3, 3), "a table of all images against all images is wanted"
assert abs(belief[0, 1] - 1) < 0.01, "two images that are surely of class 0 should get about 1; did you take probabilities?"
assert abs(belief[0, 2] - 0.5) < 0.01, "surely class 0 with class 0 or 1 should get about one half"
print("Exercise 2: right.")

# %% [markdown]
# Now it competes: your relation from the answers of the deepest exit, against the trained relation, on the same probe images.
# **Predict** who orders pairs better.

# %% tags=["uses-answer"]
for variant in variants:
    run = runs[variant][0]
    beliefs = same_class_belief(run.probes[epochs].logits[-1].float())
    trained = relation_quality(run, epochs)["auc"].iloc[-1]
    print(f"{variant} auxiliary: trained relation {trained:.3f}, from class answers {same_class_auc(beliefs, labels):.3f}")

# %% [markdown]
# Is your table ahead? Then do not ask a relation network to recognise things: a classifier that was told every name does it
# better. What a relation network is for is the way *there*, the gradients it sends while the stages learn.
#
# ## Where next
#
# - [05_cifar100](05_cifar100.ipynb): a hundred classes, where most pairs are inter pairs.
# - [08_class_structure](08_class_structure.ipynb): more about judge 3, over depth and time.
# - [11_compare_methods](11_compare_methods.ipynb): more about seeds, intervals and equal images.
# - Leave out one term at a time: `train(TrainConfig(method_options={"auxiliary_inter": 0.0}))`. Which of the four matters?
