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
# # 11 Does CORSD beat its peers?
#
# Every paper on self-distillation has a table with one bold row. But *one* method
# trained with two seeds gives two different numbers. **Is CORSD's row the bold one in
# our studies, and which part of CORSD makes it so?**
#
# **You will learn**
#
# - what a 95 % interval over seeds is, and why few seeds make it wide;
# - why methods are compared *seed by seed* and get equal images;
# - why the best of many methods looks better than it is;
# - what the committed studies say about CORSD, its peers and its parts;
# - how to run a small study of your own.

# %% [markdown]
# **You need** [01_walkthrough](01_walkthrough.ipynb), and for the ablations
# [04_class_oriented](04_class_oriented.ipynb). **Run time:** about 1 minute on two CPU
# cores. **Learning time:** 45 minutes of reading, 50 minutes for exercises 1 to 3;
# exercise 4 is homework. Nothing is downloaded.

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
import json

import numpy as np
import pandas as pd
import plotly.express as px
import torch
from scipy.stats import t as student_t
from scipy.stats import ttest_1samp

from corsd_lib import committed_summary, load_run, run_study
from corsd_lib.bundle import find_result
from corsd_lib.course import answered, compare, expect, with_ends
from corsd_lib.figures import accuracy_by_method, gain_by_method, template
from corsd_lib.studies.intervals import mean_interval, with_interval
from corsd_lib.studies.study import new_study
from corsd_lib.studies.summary import relative_to, summarise

torch.set_num_threads(1)  # one thread is faster for images this small

# %% [markdown]
# The settings of your own study at the end. In a study `corsd` is CORSD *with* class
# KD; `plan("corsd")` of 08 to 10 leaves class KD out. Each combination has its own
# folder, and a finished training is opened and not repeated.

# %% tags=["parameters"]
methods = ["baseline", "corsd"]  # others: deep_supervision, byot, rkd, cs_kd, ps_kd
epochs = 30  # passes over the training images
per_class = 10  # labelled images of each digit
seed = 0  # the first of them
seeds = 3  # trainings of each method
run_directory = "runs/11_compare_methods"  # the study and its trainings

# %% [markdown]
# **How predictions work.** Some cells ask for a prediction before a result. Replace
# `None` by your value and run on: the notebook prints it beside the outcome.

# %% [markdown]
# ## The records
#
# The repository contains studies as records: one small file for each finished training,
# with settings, test accuracy and cost. No number in an output is typed by hand.

# %% [markdown] slideshow={"slide_type": "slide"}
# The rows of the studies, and what each adds to the plain network:
#
# | row | what it adds |
# | --- | --- |
# | label smoothing | a part of every label is spread over all classes |
# | CS-KD | another image of the class is the soft target |
# | PS-KD | the network's prediction an epoch ago is part of the target |
# | deep supervision | an exit at every stage, trained on the labels |
# | BYOT | deep supervision, and the deepest exit teaches predictions and embeddings |
# | RKD | deep supervision, and the deepest exit teaches distances and angles |

# %% [markdown] slideshow={"slide_type": "fragment"}
# Three rows are CORSD:
#
# | row | what it adds |
# | --- | --- |
# | CORSD, the paper's terms | exits and relations; the deepest stage teaches both |
# | CORSD with class KD | the paper's terms, and class KD, a term of ours after CS-KD |
# | CORSD, release | the terms, weights and triplets of the authors' code |
#
# The weights of the first two come from two searches. The second also has other
# batches: two images of each class that was drawn.

# %%
names = ("digits", "cifar100_small", "cifar100", "cub200")
summaries = {name: committed_summary(name) for name in names}
for name, summary in summaries.items():
    counts = [m["n"] for m in summary["methods"].values()]
    seeds_of = "-".join(map(str, sorted({min(counts), max(counts)})))
    print(f"{name}: {len(counts)} rows, {seeds_of} seeds in each")

# %% [markdown] slideshow={"slide_type": "slide"}
# ### A table without intervals
#
# `cifar100_small` is the smallest study on photographs, with one seed.

# %% slideshow={"slide_type": "-"}
small = summaries["cifar100_small"]
no_interval = "test top-1 (%), one seed, no interval; dotted: plain network"
accuracy_by_method(small).update_xaxes(title_text=no_interval)

# %% [markdown] slideshow={"slide_type": "fragment"}
# Each row is a method and each mark an exit. The title names the winner, as bold type
# does in a paper. Ask two questions first: how wide are the intervals, and would the
# rows stay in this order with another seed? One seed cannot answer either question.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The interval of a mean
#
# $n$ seeds give $n$ accuracies $a_1, \dots, a_n$ with the mean $\bar a$ and the
# standard deviation $s$. The 95 % interval of the mean is
#
# $$\bar a \; \pm \; t_{n-1} \frac{s}{\sqrt n}, \qquad s^2 = \frac{1}{n-1}
# \sum_{i=1}^{n} (a_i - \bar a)^2$$
#
# $t_{n-1}$ is the 97.5 % quantile of Student's distribution with $n - 1$ degrees of
# freedom. It is large for few seeds, because then $s$ itself is uncertain.


# %%
def interval_by_hand(values):
    n, mean = len(values), sum(values) / len(values)
    deviation = (sum((v - mean) ** 2 for v in values) / (n - 1)) ** 0.5
    reach = student_t.ppf(0.975, n - 1) * deviation / n**0.5
    return mean, mean - reach, mean + reach


# %% tags=["nbval-check-output"]
three = [70, 72, 77]
assert np.allclose(interval_by_hand(three), mean_interval(three))
low, high = interval_by_hand(three)[1:]
print(f"70, 72 and 77: the interval is {low:.0f} to {high:.0f}")
print("one seed:", mean_interval([70])[1:])

# %% [markdown] slideshow={"slide_type": "slide"}
# **Predict:** how many standard errors $s / \sqrt n$ does the interval reach to each
# side with 2 seeds, and with 20? (The formula exists for two; the library gives no
# interval below three, because two seeds may agree by luck.)

# %% tags=["nbval-check-output"] slideshow={"slide_type": "fragment"}
my_two, my_twenty = None, None

for n, mine in ((2, my_two), (3, None), (5, None), (20, my_twenty)):
    quantile = student_t.ppf(0.975, n - 1)
    compare(f"{n} seeds", mine, quantile, " standard errors", atol=1)

# %% [markdown] slideshow={"slide_type": "fragment"}
# **Answer.** "Plus or minus two" holds for many seeds. With two seeds it is off by a
# factor of six. A simulation shows the effect: 100,000 studies of three seeds, where
# the true value is 0.
#
# **Predict:** in what percentage of the studies does "mean plus or minus two standard
# errors" contain the true value?

# %% tags=["nbval-check-output"]
my_coverage = None  # percent; 95 is promised

simulated = np.random.default_rng(0).normal(size=(100_000, 3))
error = simulated.std(axis=1, ddof=1) / 3**0.5
distance = abs(simulated.mean(axis=1)) / error
compare("Two standard errors", my_coverage, 100 * (distance <= 2).mean(), " %", atol=3)
honest = 100 * (distance <= student_t.ppf(0.975, 2)).mean()
compare("Student's interval", None, honest, " %")

# %% [markdown]
# **Answer.** With three seeds, two standard errors miss the truth almost four times as
# often as promised.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Compare seed by seed
#
# A seed decides the first weights, the order of images, and here also *which* images
# are labelled. A lucky choice lifts every method. This common part cancels if you
# subtract
# **before** you average.
#
# ![Left: accuracies of two methods, one line per seed. Right: the differences of the
# seeds, their mean and its 95 percent interval, which excludes
# 0.](images/concept_interval.svg)

# %% [markdown]
# ### Exercise 1, implement: pair by seed
#
# `ours` and `theirs` are dictionaries from seed to accuracy; not all seeds are in both.
# Return the *list* of differences, ours minus theirs, for the seeds that **both** have,
# in ascending order of the seed.


# %% tags=["exercise"]
def paired_differences(ours, theirs):
    return ...


# %% tags=["solution"]
def paired_differences(ours, theirs):
    return [ours[s] - theirs[s] for s in sorted(ours.keys() & theirs.keys())]


# %% tags=["check"]
ours, theirs = {2: 75, 0: 62, 1: 68, 7: 99}, {0: 60, 1: 66, 2: 72, 5: 10}
found = paired_differences(ours, theirs)
answered(found)
expect(len(found) == 3, f"three seeds are in both, your list has {len(found)} values")
expect(sorted(found) != [-3, -2, -2], "the sign: ours minus theirs")
expect(sorted(found) == [2, 2, 3], f"{found}: each seed is compared with itself")
expect(list(found) == [2, 2, 3], "the order of the seeds: 0, 1, 2")
print("Exercise 1: correct.")

# %% [markdown] slideshow={"slide_type": "slide"}
# **Predict:** made-up accuracies of three seeds, plain 60, 66, 72 and another method
# 62, 68, 75. How far does the interval of each mean reach to one side, and that of the
# paired difference?

# %% slideshow={"slide_type": "fragment"}
my_alone, my_paired = None, None  # points

plain, other = np.array([60, 66, 72]), np.array([62, 68, 75])
for name, values, mine in (
    ("plain", plain, my_alone),
    ("other", other, None),
    ("paired difference", other - plain, my_paired),
):
    mean, _, high = interval_by_hand(values.tolist())
    reach = round(high - mean, 1)
    compare(f"{name}, mean {mean:.0f}", mine, reach, " points", atol=1, digits=1)

# %% [markdown] slideshow={"slide_type": "fragment"}
# **Answer.** Each mean is uncertain by about fifteen points, and the two intervals
# overlap almost completely. The difference is uncertain by less than two, and its
# interval excludes 0. Overlapping intervals do not mean that there is no difference if
# the runs are paired.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Equal images
#
# A comparison is fair if everything but the method is equal. *Epochs* are not equal if
# a method uses three images where another uses one. The studies give every row the same
# number of images.
#
# **Predict:** The release of CORSD draws triplets. How many epochs does it get if the
# plain network gets 60? And by which factor does CORSD with class KD need more
# arithmetic than the plain network? (The table is that of `cifar100_small`.)

# %% slideshow={"slide_type": "subslide"}
my_epochs, my_macs = None, None

columns = ["label", "epochs", "images", "macs_ratio", "time_ratio"]
cost = pd.DataFrame(small["methods"]).T[columns]
compare("Epochs of the release", my_epochs, int(cost.loc["corsd_release", "epochs"]))
macs = float(cost.loc["corsd", "macs_ratio"])
compare("Arithmetic of CORSD", my_macs, macs, " times", atol=0.1, digits=2)
cost = cost.astype({"macs_ratio": float, "time_ratio": float}).round(2)
cost["images"] = cost["images"].map("{:,.0f}".format)
terms = {"macs_ratio": "MACs, times plain", "time_ratio": "time, times plain"}
cost = cost.rename(columns=terms).set_index("label").rename_axis("row")
cost.astype(object).fillna("-")

# %% [markdown] slideshow={"slide_type": "subslide"}
# **Answer.** 20 epochs: a triplet is an image, its *anchor*, with one of its class and
# one of another. (DLB in the picture is no row here: it shows half of each batch again
# in the next.)
#
# ![Three bars of equal length: the plain network passes 60 epochs of single images; DLB
# 30 epochs with each image twice; triplets 20 epochs of three images an
# anchor.](images/concept_images.svg)
#
# Rows with two images a class have 600,000 images instead of 599,040, because their
# batches are always full.

# %% [markdown]
# Equal images are not equal *cost*. CORSD takes 1.14 times the arithmetic of the plain
# network, but about twice its *time*: many small operations take longer than their
# arithmetic suggests. The times of this table are rough, because trainings shared a
# machine. With a larger network (ResNet-10 of width 32), timed alone, a step takes [1.7
# to 1.9 times](../results/README.md#speed) as long. We give no time for PS-KD, because
# it ran with another number of threads. Would more epochs in that time help the plain
# network as much? These studies do not say.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The best of many
#
# Suppose eight methods are all *exactly as good as the baseline*, and each training
# scatters by one point. You train each once and look at the best row.
#
# **Predict:** in what percentage of such studies is the best row ahead of the baseline,
# and by how many points on average?

# %% slideshow={"slide_type": "subslide"}
my_ahead, my_lead = None, None  # percent, points

rng = np.random.default_rng(1)
draws = rng.normal(size=(20_000, 21))  # studies x (baseline and 20 methods)
lead = np.array([draws[:, 1 : 1 + n].max(axis=1) - draws[:, 0] for n in range(1, 21)])
compare("Best of 8 is ahead", my_ahead, 100 * (lead[7] > 0).mean(), " %", atol=5)
compare("Mean lead", my_lead, lead[7].mean(), " points", atol=0.3, digits=1)
table = pd.DataFrame({"methods tried": range(1, 21), "mean lead": lead.mean(axis=1)})
look = {"markers": True, "template": template(), "height": 360}
title = "The lead of the best grows with the number of equally good methods"
figure = px.line(table, x="methods tried", y="mean lead", title=title, **look)
figure.update_yaxes(title_text="mean lead (points)")

# %% [markdown] slideshow={"slide_type": "fragment"}
# **Answer.** In about nine of ten studies, by well over a point on average, although
# there is no difference. What was tried may be methods, weights, seeds ("best of five
# runs") or epochs: the best epoch on the test set is the best of many, too.

# %% [markdown] slideshow={"slide_type": "slide"}
# **Predict:** three seeds, eight equal methods, correct paired intervals. In what
# percentage of the studies does *at least one* interval exclude 0?

# %% slideshow={"slide_type": "fragment"}
my_any = None  # percent

runs = np.random.default_rng(3).normal(size=(20_000, 9, 3))
gains = runs[:, 1:] - runs[:, :1]  # studies x methods x seeds
error = gains.std(axis=2, ddof=1) / 3**0.5
clear = abs(gains.mean(axis=2)) > student_t.ppf(0.975, 2) * error
compare("One given method", None, 100 * clear.mean(), " %")
compare("At least one of eight", my_any, 100 * clear.any(axis=1).mean(), " %", atol=5)

# %% [markdown] slideshow={"slide_type": "fragment"}
# **Answer.** Almost one study in three.

# %% [markdown]
# ### Exercise 2, implement: the accuracy that you may report
#
# Several settings of a method were trained. `validation` and `test` are dictionaries
# from setting to accuracy. Return the accuracy that you may report.


# %% tags=["exercise"]
def honest_score(validation, test):
    return ...


# %% tags=["solution"]
def honest_score(validation, test):
    return test[max(validation, key=validation.get)]


# %% tags=["check"]
validation = {"weight 0.1": 71, "weight 0.3": 74, "weight 1": 73, "weight 3": 70}
test = {"weight 1": 72, "weight 3": 66, "weight 0.3": 69, "weight 0.1": 70}
score = honest_score(validation, test)
answered(score)
expect(score in {*validation.values(), *test.values()}, f"no setting has {score}")
expect(score != 72, "no other setting has a higher test accuracy: is this your choice?")
expect(score not in validation.values(), "these images were used for the choice")
hint = "`max` of a dictionary is its largest *key*; settings may come in any order"
expect(score == 69, f"{score} is of another setting: {hint}")
print("Exercise 2: correct.")

# %% [markdown]
# The price of choosing on test: 20 settings that are all equally good, 70 %, with both
# splits scattering by one point.

# %% tags=["uses-answer"]
draws = 70 + np.random.default_rng(2).normal(size=(2000, 2, 20))
honest = [honest_score(dict(enumerate(v)), dict(enumerate(t))) for v, t in draws]
print(f"chosen on validation {np.mean(honest):.1f} %, truth 70 %")
print(f"chosen on test {draws[:, 1].max(axis=1).mean():.1f} %")

# %% [markdown] slideshow={"slide_type": "fragment"}
# The remedies against the best of many:
#
# - **Choose** on validation images, **report** on test images, once, after the last
#   epoch.
# - Report the **mean** over seeds that were fixed before, never the best.
# - State how many things were tried.
# - If a row looks good, train it again with *new* seeds.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The main study: CIFAR-100
#
# 100 images of each of 100 classes, a larger network, several seeds. The weights of
# each method but the release were searched on images held out of train.
#
# **Predict:** the gain of `CORSD with class KD` over the plain network at the deepest
# exit, and that of the best of its six peers.

# %%
my_corsd, my_peer = None, None  # points


def rows_of(summary, group):
    rows = summary["methods"].items()
    kept = {n: m for n, m in rows if m["group"] == group or n == summary["baseline"]}
    return {**summary, "methods": kept}


def gain_text(m):
    return with_interval(m["gain"], m["gain_low"], m["gain_high"], "+")


# %% slideshow={"slide_type": "subslide"}
full = summaries["cifar100"]
main = rows_of(full, "methods")
peers = ("label_smoothing", "cs_kd", "ps_kd", "deep_supervision", "byot", "rkd")
for m in main["methods"].values():
    if m["gain"] is not None:
        print(f"{m['label']:28} {gain_text(m)} points, {m['n']} seeds")
found = [
    main["methods"]["corsd"]["gain"],
    max(main["methods"][p]["gain"] for p in peers),
]
compare("CORSD with class KD", my_corsd, found[0], " points", atol=1, digits=1)
compare("Best of six peers", my_peer, found[1], " points", atol=1, digits=1)

# %% slideshow={"slide_type": "subslide"}
gain_by_method(main, sort=False)  # in the order of the list above

# %% [markdown]
# The interval of a blue row lies above 0, that of an orange row below 0, and that of a
# grey row includes 0. Rings are single seeds.

# %% [markdown] slideshow={"slide_type": "fragment"}
# **Answer.** CORSD with class KD gains most. It has more loss weights to search than
# its peers, and its search had more trials. The release of the authors loses. Its
# weights alone are not the reason: with them and our batches (the row *weights of the
# release* below) the network has 45.3 %, and no loss was detected (+0.6 [-1.6, 2.9]).
# Triplets, or half the optimiser steps (its batches hold 129 images, 43 triplets), may
# be; neither was tested.
#
# **Which CORSD?** The row `CORSD with class KD` has the terms of the paper *and* class
# KD, a term of ours that comes from CS-KD. The paper's terms alone have their own row.

# %%
tuning = find_result("cifar100/tuning")
rows = []
for file in sorted(tuning.glob("*.json")):
    search = json.loads(file.read_text())
    done = sum(trial["state"] != "failed" for trial in search["trials"])
    label = full["methods"][search["row"]]["label"]
    rows.append(
        {"row": label, "best on validation": search["best"]["value"], "trials": done}
    )
table = pd.DataFrame(rows).sort_values("best on validation", ascending=False)
table.set_index("row").round(1)

# %% [markdown]
# With one seed and 5,000 images the standard error is 0.7 points: this search cannot
# rank methods. The paper's terms are seventh of eight here; on test only CORSD with
# class KD gains more. And the search was not equal: CORSD with class KD had six trials,
# two of them stopped early, its peers three or four. Before the search, class KD and
# its batches were chosen in pilots on the same validation images.

# %% [markdown] slideshow={"slide_type": "slide"}
# ### CORSD against its peers
#
# To compare two methods, subtract them from each other, seed by seed.
# `relative_to` measures the same records against another row: zero is now CORSD with
# class KD, and **left of zero a row is worse**.
#
# **Predict:** how many of the six peers are significantly worse, that is, have an
# interval below 0?

# %% slideshow={"slide_type": "subslide"}
my_worse = None  # 0 to 6

versus = relative_to(full, "corsd")
below = [p for p in peers if versus["methods"][p]["gain_high"] < 0]
compare("Significantly worse than CORSD", my_worse, len(below), " of 6 peers")
leads = [-versus["methods"][p]["gain"] for p in peers]
print(f"CORSD with class KD leads them by {min(leads):.1f} to {max(leads):.1f} points")
title = "CIFAR-100: difference of each method from CORSD with class KD"
theirs = rows_of(versus, "methods")
gain_by_method(theirs, sort=False).update_layout(title_text=title)

# %% [markdown] slideshow={"slide_type": "subslide"}
# **Answer.** Six of six, by 2.5 to 4.5 points. If the comparisons were independent,
# chance would rarely give that. They are not independent: all use the same CORSD runs,
# and if those were lucky, all six peers look worse. Only new seeds of CORSD could rule
# that out.
#
# Six comparisons are also six chances to be lucky. *Bonferroni's correction* divides
# the limit of the p-value by their number: 0.05 / 6.


# %% slideshow={"slide_type": "skip"}
def corrected(summary, others, row="corsd"):  # which leads stay significant
    methods, limit = summary["methods"], 0.05 / len(others)
    ours = methods[row]["top1_by_seed"]
    for p in others:
        theirs = methods[p]["top1_by_seed"]
        gap = [ours[s][-1] - theirs[s][-1] for s in theirs if s in ours]
        p_value = ttest_1samp(gap, 0).pvalue
        stays = "significant" if p_value < limit else "not significant"
        print(f"{methods[p]['label']:18} p = {p_value:.3f}: {stays} at {limit:.4f}")


corrected(full, peers)

# %% [markdown] slideshow={"slide_type": "skip"}
# After the correction five of six leads stay; that over PS-KD does not.

# %% [markdown]
# Why 2.5 points over the best peer, and not 4.2 - 2.3 = 1.9? The 4.2 is a mean over
# five seeds. Peers have three of them. What does CORSD gain on these three?

# %%
ours, theirs = (full["methods"][row]["top1_by_seed"] for row in ("corsd", "baseline"))
gains = [ours[s][-1] - theirs[s][-1] for s in full["methods"]["byot"]["top1_by_seed"]]
found = with_ends(*mean_interval(gains))
print(f"CORSD with class KD minus plain: {found} points, {len(gains)} seeds")

# %% [markdown]
# 4.8 points [2.9, 6.7], and 4.8 - 2.3 = 2.5. Compare methods on the same seeds.

# %% [markdown] slideshow={"slide_type": "fragment"}
# ### And the paper's terms alone?
#
# The title asks about CORSD, and class KD is not part of it.
#
# **Predict:** ahead of how many of the six peers are the paper's terms on CIFAR-100,
# with an interval above 0?

# %% slideshow={"slide_type": "fragment"}
my_paper = None  # 0 to 6


# %%
def lead(m):  # the same difference the other way round, with its interval
    return with_ends(-m["gain"], -m["gain_high"], -m["gain_low"])


# %% slideshow={"slide_type": "subslide"}
paper = relative_to(full, "corsd_paper")["methods"]
above = [p for p in peers if paper[p]["gain_high"] < 0]  # the peer is behind
compare("Paper's terms significantly ahead of", my_paper, len(above), " of 6 peers")
for p in peers:
    print(f"CIFAR-100: the paper's terms minus {paper[p]['label']}: {lead(paper[p])}")
corrected(full, peers, "corsd_paper")

# %% [markdown] slideshow={"slide_type": "fragment"}
# **Answer.** Two of six, label smoothing and RKD. With the correction neither stays (p
# = 0.0497 and 0.029; the limit is 0.0083). No lead over deep supervision was detected:
# 0.4 [-0.7, 1.6] points.

# %% [markdown] slideshow={"slide_type": "fragment"}
# ### With class KD, on birds
#
# A result that holds twice is stronger. `cub200` has three of the six peers, deep
# supervision, BYOT and CS-KD, and three new ones. In DKS ([arXiv
# 1906.00675](https://arxiv.org/abs/1906.00675)) every exit teaches every other, without
# relations and without class KD. *Patch swap* ([arXiv
# 2505.14124](https://arxiv.org/abs/2505.14124)) has no exits: two images of a class
# swap patches, and the network teaches itself on the mixed images. *BAKE* ([arXiv
# 2104.13298](https://arxiv.org/abs/2104.13298)) has none, either: the predictions for
# similar images of a batch are mixed into soft targets.
#
# **Predict:** how many of the six peers are significantly worse at the deepest exit?

# %%
my_worse_birds = None  # 0 to 6

birds = relative_to(summaries["cub200"], "corsd")
peers_of_birds = rows_of(birds, "methods")
for m in peers_of_birds["methods"].values():
    if m["gain"] is not None:
        gap = with_ends(m["gain"], m["gain_low"], m["gain_high"])
        print(f"{m['label']} minus CORSD: {gap} points, {m['gain_n']} seeds")

# %% slideshow={"slide_type": "slide"}
of_birds = peers_of_birds["methods"]
kept = [p for p in (*peers, "dks", "ips", "bake") if p in of_birds]
behind = [p for p in kept if of_birds[p]["gain_high"] < 0]
compare(
    "Significantly worse on birds",
    my_worse_birds,
    len(behind),
    f" of {len(kept)} peers",
)
of_exit_1 = summaries["cub200"]["methods"]
for row in ("corsd", "corsd_cpu"):  # the second has the same seeds on a CPU
    a, b = of_exit_1["dks"]["top1_by_seed"], of_exit_1[row]["top1_by_seed"]
    gap = with_ends(*mean_interval(a[s][0] - b[s][0] for s in a))
    print(f"exit 1: DKS minus {row}: {gap}")
title = "Birds: difference of each method from CORSD with class KD"
gain_by_method(peers_of_birds, sort=False).update_layout(title_text=title)

# %% [markdown] slideshow={"slide_type": "fragment"}
# **Answer.** Five. Deep supervision, BYOT and CS-KD are behind here, too; they and
# CORSD ran on the same kind of GPU in these seeds. Patch swap is behind by 8.1 [7.0,
# 9.3] and BAKE by 7.7 [6.1, 9.2]; no gain of the two over the plain network was
# detected. Patch swap, BAKE and DKS ran on a CPU. No lead of CORSD over DKS was
# detected at the deepest exit: 0.3 [-1.0, 1.5]. **At exit 1 DKS is ahead** by 2.1 [0.6,
# 3.6] points (both on a CPU: 2.0 [0.7, 3.4]). One reason: class KD lowers exit 1 of
# CORSD by 3.3 [1.1, 5.4] ([04](04_class_oriented.ipynb)). After Bonferroni's correction
# the lead over deep supervision is lost, too:

# %% slideshow={"slide_type": "skip"}
corrected(summaries["cub200"], kept)

# %% [markdown] slideshow={"slide_type": "skip"}
# And without class KD? The paper's terms were not trained on birds as a row of their
# own. We take CORSD *without class KD*, an ablation:

# %% slideshow={"slide_type": "skip"}
no_class_kd = relative_to(summaries["cub200"], "no_class_kd")["methods"]
for p in ("baseline", "deep_supervision", "byot", "cs_kd"):
    row = no_class_kd[p]
    print(f"CUB-200-2011: CORSD without class KD minus {row['label']}: {lead(row)}")

# %% [markdown] slideshow={"slide_type": "skip"}
# It is ahead of deep supervision by 2.0 [0.2, 3.8], but the relation terms are not all
# that differs: it has batches of two images a class, a little teaching by the deepest
# exit (weight 0.1), exit weights that were searched *with* class KD, and it ran on a
# CPU; deep supervision ran on a GPU.
#
# What does the study with the most seeds, of digits, say?

# %%
for m in rows_of(summaries["digits"], "methods")["methods"].values():
    if m["gain"] is not None:
        print(f"digits, over plain: {m['label']:28} {gain_text(m)}, {m['n']} seeds")

# %% [markdown]
# On digits no method gains or loses detectably over the plain network, which is right
# for 94 % of the test images.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Which part of CORSD does it?
#
# An *ablation* changes one part and keeps the rest. The row *without any relation term*
# keeps exits, class KD and a little teaching by the deepest exit (exit KD, weight 0.1).
# *Plain batches* are shuffled images; CORSD's have two images of each class that was
# drawn.
#
# **Predict:** how many points are lost on CIFAR-100 without class KD, and without any
# relation term? And how many do the relation terms add on CUB-200-2011, together with
# class KD?

# %% slideshow={"slide_type": "fragment"}
my_kd, my_relations, my_birds = None, None, None  # points at the deepest exit

lost = {
    "CIFAR-100, no class KD": (versus["methods"]["no_class_kd"], my_kd),
    "CIFAR-100, no relations": (versus["methods"]["no_relations"], my_relations),
    "CUB-200-2011, no relations": (birds["methods"]["no_relations"], my_birds),
}
for name, (m, mine) in lost.items():
    compare(name, mine, -m["gain"], " points", atol=0.3, digits=1)
    print(f"  interval [{-m['gain_high']:+.1f}, {-m['gain_low']:+.1f}], {m['n']} seeds")

# %% slideshow={"slide_type": "fragment"}
row = relative_to(summaries["cub200"], "exits_alone")["methods"]["no_class_kd"]
low, high = row["gain_low"], row["gain_high"]
print("CUB-200-2011, relation terms added without class KD:", end=" ")
print(f"{row['gain']:+.1f} [{low:+.1f}, {high:+.1f}] points")
print(f"CIFAR-100, plain batches: lost {lead(versus['methods']['plain_batches'])}")

# %% [markdown] slideshow={"slide_type": "subslide"}
# Rows of the next two figures that need an explanation:
#
# | row | what is changed |
# | --- | --- |
# | exit classifiers | shallow exits have no loss of their own |
# | feature maps | the relation network reads feature maps, not averaged embeddings |
# | weights of the release | its smaller loss weights; no exit losses, no class KD |
# | batches as CORSD's | the plain network on two images a class |
# | relation KD | soft targets mix the predictions of related images |
# | neither, labels twice | an earlier control with other label weights |
# | neither, control | see the next section |

# %% [markdown] slideshow={"slide_type": "-"}
# Relation KD takes the trained relations as the weights of the mixture or, *along
# labels*, 1 for the same class, else 0.

# %% slideshow={"slide_type": "subslide"}
parts = rows_of(versus, "ablation")
title = "CIFAR-100: changes to CORSD with class KD, the smallest loss on top"
gain_by_method(parts).update_layout(title_text=title)

# %% [markdown] slideshow={"slide_type": "fragment"}
# **Answer.** On CIFAR-100 class KD matters. No effect of all relation terms together
# was detected. Plain batches cost about as much as no class KD (2.7 and 2.2). The
# likely reason: class KD needs two images of a class in a batch. Two rows that each
# change one part of the relations lie below 0: *without margin* and *one relation
# network for all stages*. With thirteen rows, that may be chance.
#
# Always ask for the ablation that removes *everything* the method is named after.

# %% slideshow={"slide_type": "subslide"}
title = "CUB-200-2011: changes to CORSD with class KD, the smallest loss on top"
parts = rows_of(birds, "ablation")
again = relative_to(summaries["cub200"], "no_relations")["methods"]["corsd_cpu"]
print(f"relation terms with class KD, both on a CPU: {gain_text(again)}")
short = {  # shorter names than in the record
    "corsd_cpu": "the same seeds on a CPU",
    "auxiliary_alone": "no class KD, auxiliary classifiers alone",
    "relations_alone": "no class KD, other relation terms alone",
    "exits_alone": "neither class KD nor relation terms",
    "double_ce": "neither, labels twice",
    "matched_ce": "neither, control",
}
kept = {r: m | {"label": short.get(r, m["label"])} for r, m in parts["methods"].items()}
gain_by_method({**parts, "methods": kept}).update_layout(title_text=title)

# %% [markdown] slideshow={"slide_type": "fragment"}
# On CUB-200-2011 relation terms add to the accuracy of the deepest exit where class KD
# is absent ([03_relations](03_relations.ipynb) has the other exits). The zero line of
# this figure, CORSD with class KD, ran on a GPU; all its rows ran on a CPU. *The same
# seeds on a CPU* repeat CORSD with class KD: no difference was detected, 0.1 [-1.4,
# 1.6]. But the gain of the relation terms together with class KD depends on the runs:
# 0.8 [0.4, 1.2] measured from the GPU, 0.9 [-0.6, 2.5] with both on a CPU.

# %% [markdown] slideshow={"slide_type": "-"}
# The gain of 2.7 without class KD is the difference between two rows of this figure,
# *without class KD* and *neither class KD nor relation terms*. *Relation KD along
# labels* has the highest mean, but no difference from CORSD with class KD was detected
# (0.3 [-1.3, 1.9]).

# %% [markdown] slideshow={"slide_type": "slide"}
# ### Which of the relation terms, on birds?
#
# Relation terms are of two kinds: *auxiliary classifiers*, which classify the images of
# a pair, and the others (margin, transfer, logit relation). The figure has rows without
# class KD that keep both kinds, one of them, or neither.
#
# Auxiliary classifiers also learn from the labels. So there is a **control**: neither
# class KD nor relation terms, but the label weight of the auxiliary classifiers, 0.75,
# on every exit. All these rows ran on a CPU.
#
# **Predict:** all relation terms add 2.7 points. How many do the auxiliary classifiers
# add alone, and how many the control?

# %% slideshow={"slide_type": "subslide"}
my_auxiliary, my_control = None, None  # points at the deepest exit

added = {
    "auxiliary classifiers alone": ("auxiliary_alone", "exits_alone", my_auxiliary),
    "control": ("matched_ce", "exits_alone", my_control),
    "other relation terms alone": ("relations_alone", "exits_alone", None),
    "auxiliary classifiers minus control": ("auxiliary_alone", "matched_ce", None),
    "all relation terms minus auxiliary": ("no_class_kd", "auxiliary_alone", None),
}
for name, (row, other, mine) in added.items():
    m = relative_to(summaries["cub200"], other)["methods"][row]
    compare(name, mine, m["gain"], " points", atol=0.5, digits=1)
    print(f"  [{m['gain_low']:+.1f}, {m['gain_high']:+.1f}], {m['gain_n']} seeds")

# %% [markdown] slideshow={"slide_type": "fragment"}
# **Answer.** The auxiliary classifiers alone add 2.3 [1.9, 2.7] points, most of the
# 2.7. A larger weight of the labels does not explain this: no gain of the control was
# detected (-0.8 [-2.5, 0.9]), and the auxiliary classifiers are 3.1 [1.5, 4.6] points
# above it. No effect of the other relation terms alone was detected (0.1 [-2.0, 2.2]).
# On top of the auxiliary classifiers they add 0.5 [0.4, 0.6]. That interval may be
# narrow by chance, and at no other exit was a gain detected.
#
# There are three seeds. Together with class KD these parts were not separated on birds.
# On drawn shapes no difference between such a control and the auxiliary classifiers was
# detected ([04_class_oriented](04_class_oriented.ipynb)).

# %% [markdown]
# ## Your own study
#
# A study is a list of methods and seeds, and what they have in common. `new_study`
# writes it down *before* anything is trained. Fixing the plan first prevents
# cherry-picking.

# %%
settings = {"data": "digits", "per_class": per_class, "epochs": epochs}
settings |= {"batch_size": 25, "probe_every": 20, "probe_size": 100}
names = "-".join([*methods, f"{per_class}", f"{epochs}", f"{seeds}-from-{seed}"])
place = f"{run_directory}/{names}"
numbers = range(seed, seed + seeds)
study = new_study(place, methods, numbers, settings, equal="images")
print(f"{len(study.jobs())} trainings; the baseline is {study.baseline}")

# %% [markdown]
# `run_study` trains what has no record yet, each training in its own process. Stop it
# at any time; running the cell again continues.

# %%
done = run_study(study, runs=f"{place}/runs")

# %% [markdown]
# A number in a table may come from a training that failed. So look at one training
# first. Does the train accuracy end flat, and is it high at every exit?

# %%
watched = load_run(f"{place}/runs/{methods[-1]}/seed{seed}")
last = watched.metrics.iloc[-1].filter(like="train_top1")
print("train accuracy:", ", ".join(f"{value:.0f} %" for value in last))
curves = watched.metrics.set_index("epoch").filter(like="train_top1")
curves.columns = [f"exit {k}" for k in range(1, len(curves.columns) + 1)]
look = {"template": template(), "height": 360}
figure = px.line(curves, title="Train accuracy by exit, the last method", **look)
figure.update_layout(legend_title_text="").update_yaxes(title_text="train top-1 (%)")
figure.update_xaxes(title_text="epoch")

# %% [markdown]
# *The last method and the first seed of your study.* The accuracies of all exits end
# near 100 %, so this training did not fail.
#
# **Predict:** does the interval of your gain exclude 0: `yes` or `no`?

# %%
my_interval = None

mine = summarise(study, study.records())
for row, m in mine["methods"].items():
    m["label"] = full["methods"][row]["label"] if row in full["methods"] else row
    if m["gain"] is not None:
        print(f"{m['label']}: {gain_text(m)} points, {m['n']} seeds")
        excludes = m["gain_low"] is not None and m["gain_low"] * m["gain_high"] > 0
compare("The interval excludes 0", my_interval, "yes" if excludes else "no")

# %%
gain_by_method(mine, sort=False)

# %% [markdown]
# **Answer.** No: +0.8 ± 2.9. Three seeds cannot tell. An interval that includes 0 does
# *not* say that the methods are equal. Set `seeds = 10` and run again, which takes
# about three times as long. The committed study of digits has ten seeds, and 120 epochs
# in place of 30: 0.0 [-0.8, 0.8].

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Answer: does CORSD beat its peers?
#
# > **What we found.** At the deepest exit, with class KD, CORSD beats six of six peers
# > on CIFAR-100 and five of six on birds (after Bonferroni's correction: five and
# > four); over DKS no lead was detected (0.3 [-1.0, 1.5]), and at exit 1 DKS leads by
# > 2.1 [0.6, 3.6]. On digits no gain was detected. *Which part is responsible?* On
# > CIFAR-100 it is class KD, which adds 2.2 [0.8, 3.6]; no effect of the relation terms
# > was detected (0.1 [-0.5, 0.8]). The paper's terms alone lead two of six peers, none
# > after correction. On birds the relation terms add 2.7 without class KD (auxiliary
# > classifiers alone: 2.3).
# >
# > **How sure we are.** We are sure of the gain over the plain network (five seeds).
# > Leads over peers use the same CORSD runs, and its search had more trials.
# >
# > **What it does not show.** Larger networks, equal time, mixup, DKS on CIFAR-100.

# %% [markdown]
# ## Exercise 3, predict and experiment: how many seeds?
#
# From the records of CIFAR-100, estimate how many seeds are needed until a true gain of
# 0.5 points has an interval above 0 in 80 % of the studies. Write down a prediction
# first. Then run the cells, which print standard deviations of paired differences. Draw
# `n` differences with mean 0.5 and the first deviation that was printed; do that 2,000
# times for each `n` from 3 on. For which `n` do 80 % of the intervals lie above 0? Put
# it into `my_answer`. Repeat with the largest deviation. (Hint: `rng.normal(0.5, s,
# (2000, n))`. A common mistake is to use the deviation of accuracies, not of paired
# differences.)

# %%
my_seeds, my_answer = None, None  # predicted, and simulated; for a share of 80 %

ours, theirs = (
    full["methods"][row]["top1_by_seed"] for row in ("corsd", "no_relations")
)
differences = [ours[s][-1] - theirs[s][-1] for s in ours.keys() & theirs.keys()]
print(f"standard deviation of a paired difference: {np.std(differences, ddof=1):.2f}")

# %%
others = []
for row in full["methods"].keys() - {"corsd"}:
    theirs = full["methods"][row]["top1_by_seed"]
    pairs = [ours[s][-1] - theirs[s][-1] for s in ours.keys() & theirs.keys()]
    others.append(np.std(pairs, ddof=1))
print(f"against all rows: {min(others):.2f} to {max(others):.2f}")

# %%
if my_answer is not None:
    compare("Seeds needed", my_seeds, my_answer, "", atol=1)

# %% [markdown] tags=["solution"]
# *A good answer* plots the share against `n`: about 5 seeds with the first deviation,
# which is itself uncertain (three differences), and about 30 with the largest. The
# number of seeds rises about with the square of the standard deviation.

# %% [markdown]
# ## Exercise 4, explain (open)
#
# Choose a table from a paper on distillation. Write one page: are the rows paired, over
# how many seeds, with equal images and equal tuning? Was the epoch chosen on test?
# Which ablation is missing? Which claim of the abstract does the table support? (Hint:
# begin with the caption and the appendix; most tables say there what they average.)

# %% [markdown] tags=["answer"]
# *Write your answer here.*

# %% [markdown] tags=["solution"]
# *A good answer* quotes the numbers, separates what the paper states from what it
# leaves open, computes an interval where the seeds are given, and ends with one
# sentence that the table does support.

# %% [markdown]
# ## Where next
#
# - [05_cifar100](05_cifar100.ipynb) opens the runs behind the records.
# - [12_your_own](12_your_own.ipynb): your data, your network, your loss.
# - From a terminal: `corsd compare my_study --methods baseline byot corsd --seeds 0 1 2
#   --data digits --per-class 10 --epochs 30`. Tables and figures go into `my_study`.
