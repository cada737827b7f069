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
# # 11 Does CORSD beat its peers?
#
# Every paper on self-distillation has a table, and in it one row is bold. But train *one* method with two seeds, and you get
# two different numbers. **How do you read a comparison, and how do you make one that deserves to be read?**
#
# **You will learn**
#
# - what a *95 % interval* over seeds is: you write one out, and see why a few seeds make it so wide;
# - why methods are compared *seed by seed*, and what they have to be given alike;
# - why the best of many methods looks better than it is, even when nothing is there;
# - how a method is compared with its *peers*, and with itself less one part;
# - how to run a small study of your own and to say no more than it shows.
#
# **You need** the first notebook, [01_walkthrough](01_walkthrough.ipynb): what a baseline is, and what CORSD adds to it. For
# the part about CORSD's own parts, [04_class_oriented](04_class_oriented.ipynb). **Time:** the notebook runs in about half a
# minute on two CPU cores; reading and the two exercises take about forty minutes. Nothing is downloaded.

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
import numpy as np
import pandas as pd
import plotly.express as px
import torch
from IPython.display import display
from scipy.stats import t as student_t

from corsd_lib import TrainingMonitor, committed_run, load_run, run_study
from corsd_lib.compare import new_study
from corsd_lib.figures import accuracy_by_method, gain_by_method, template
from corsd_lib.files import read_json
from corsd_lib.tables import against, mean_interval, summarise, with_interval

torch.set_num_threads(1)  # the images are tiny: a second thread would wait more than it works

# %% [markdown]
# These are the knobs of your own study at the end. Each setting gets a folder of its own, and what is trained is never
# trained again.

# %% tags=["parameters"]
methods = ["baseline", "corsd"]  # others: deep_supervision, byot, rkd, cs_kd, ps_kd, label_smoothing
epochs = 30  # how often each training image is seen
per_class = 10  # labelled images of each digit
seed = 0  # the first of them
seeds = 3  # so many trainings a method
run_directory = "runs/11_compare_methods"  # the study and its trainings

# %% [markdown]
# ## The records
#
# The repository holds studies, as records: one small file for each training that was finished, with its settings, its
# accuracy on test and its cost. `summary.json` is what they come to. Nothing below is typed in by hand.
#
# The studies grow: seeds and methods join as they are trained. So **the text leaves the numbers to the cells**.
#
# These are CORSD's *peers*, other ways for a network to teach itself or to be taught more softly:
#
# | row | what it adds to the plain network |
# | --- | --- |
# | label smoothing | the right class gets a little less than all of the target, the others share the rest |
# | CS-KD | the target is softened by the network's own answer for *another image of the class* |
# | PS-KD | the target is softened by its own answer for the same image *an epoch ago* |
# | deep supervision | an exit at every stage, each trained on the labels |
# | BYOT | the same, and the deepest exit teaches its answer and its embedding to the others |
# | RKD | the same, and the deepest exit teaches *distances and angles* between images: relations by a formula |

# %%
results = committed_run("cifar100_small/corsd").path.parents[2]
summaries = {file.parent.name: read_json(file) for file in sorted(results.glob("*/summary.json"))}
for name, summary in summaries.items():
    counts = [m["n"] for m in summary["methods"].values()]
    print(f"{name}: {summary['title']}. Rows: {len(counts)}, seeds of each: {min(counts)} to {max(counts)}")

# %% [markdown]
# We begin with `cifar100_small`. It is so small that no number here can be set beside one of a paper, and that you could train
# all of it again.
#
# **Predict:** will CORSD have the highest accuracy? By how many points over the plain network? Write both down.

# %%
my_guess = 1.0  # points over the plain network

# %%
small = summaries["cifar100_small"]
used = small["train"]
print(f"{used['network']} of width {used['width']}, {used['per_class']} images of each class, {used['epochs']} epochs")
accuracy_by_method(small)

# %% [markdown]
# Each row is a method, each mark an exit; a method without shallow exits has one mark. The title names the row that is
# furthest to the right, as the bold row of a table does. **That is all that it says.** Two questions come first:
#
# 1. Where are the bars of the intervals? A row with fewer than three seeds has none.
# 2. How far apart are the rows, and would they stay in this order with another seed?

# %% [markdown]
# ## An interval, by hand
#
# Train one method with `n` seeds and you get `n` accuracies. Their mean is your estimate. The *standard error*, deviation
# divided by the root of `n`, says how much that mean would scatter if you did it all again. A 95 % interval reaches some
# standard errors to both sides. How many, Student's t distribution tells: the fewer seeds, the less you know about the
# scatter itself, so the further it must reach.


# %%
def interval_by_hand(values):
    n, mean = len(values), sum(values) / len(values)
    deviation = (sum((v - mean) ** 2 for v in values) / (n - 1)) ** 0.5
    reach = student_t.ppf(0.975, n - 1) * deviation / n**0.5
    return mean, mean - reach, mean + reach


# %% [markdown]
# The library's tables use the same few lines. One seed has no interval at all: the library says `None`, and its figures
# draw no bar. The same goes for two seeds, and for seeds that all agree: they may do so by luck.

# %% tags=["nbval-check-output"]
three = [70, 72, 77]
assert np.allclose(interval_by_hand(three), mean_interval(three))
print("three seeds:", " to ".join(f"{end:.0f}" for end in mean_interval(three)[1:]))
print("one seed:   ", " to ".join(str(end) for end in mean_interval([70])[1:]))

# %% [markdown]
# Three accuracies between 70 and 77, and an interval that is more than twice as wide as they are apart. **Predict:** how
# many standard errors does it reach with 2, 3, 5 and 20 seeds?

# %% tags=["nbval-check-output"]
for n in (2, 3, 5, 20):
    print(f"{n:2} seeds: the interval reaches {student_t.ppf(0.975, n - 1):.0f} standard errors to each side")

# %% [markdown]
# The rule "plus or minus two" holds for many seeds. With two seeds it is off by a factor of six.
#
# ### Does it matter?
#
# Let us imagine a hundred thousand studies of three seeds each, where we *know* the truth: it is 0. An honest 95 % interval
# holds it in 95 of 100 studies.

# %% tags=["nbval-check-output"]
imagined = np.random.default_rng(0).normal(size=(100_000, 3))
distance = abs(imagined.mean(axis=1)) / (imagined.std(axis=1, ddof=1) / 3**0.5)
two, student = ((distance <= reach).mean() for reach in (2.0, student_t.ppf(0.975, 2)))
print(f"{two:.0%} of the intervals of two standard errors hold the truth, {student:.0%} of Student's")

# %% [markdown]
# With three seeds, "mean plus or minus two standard errors" is wrong almost four times as often as it claims.

# %% [markdown]
# ## Compare seed by seed
#
# A seed decides the first weights, the order of images, and here also *which* images are learned from. A lucky choice lifts
# every method. So the scatter of two methods is partly the same scatter, and it cancels when you subtract **before** you
# average: method minus baseline, for each seed, then the interval of these differences.
#
# **Predict:** below, the other method is ahead with every seed. Do the intervals of the two methods overlap? Does the
# interval of their differences hold zero?

# %% tags=["nbval-check-output"]
plain, other = [60, 66, 72], [62, 68, 75]  # made up: three seeds, in the same order
differences = [b - a for a, b in zip(plain, other, strict=True)]
for name, values in {"plain": plain, "other": other, "difference": differences}.items():
    mean, low, high = interval_by_hand(values)
    print(f"{name:10} {mean:3.0f}, interval reaches {round(high - mean)} to each side")

# %% [markdown]
# Alone, each mean is known within fifteen points or so, and the two intervals overlap almost wholly. The difference is
# known within two, and its interval lies above zero. *Overlapping intervals do not mean that there is no difference*, when
# the runs are paired.
#
# The same for the records: gains over the plain network, paired by seed. Rings are single seeds, a bar is an interval, and
# a row is grey if its interval holds zero or if it has none.

# %%
gain_by_method(small)

# %% [markdown]
# Let us put that into words, once and for all studies of this notebook.


# %%
def verdict(row):
    low, high = row["gain_low"], row["gain_high"]
    if low is None:
        return "it has no interval (that takes three seeds that differ)"
    return "its interval holds zero" if low <= 0 <= high else f"its interval is {'above' if low > 0 else 'below'} zero"


# %%
for row in small["methods"].values():
    if row["gain"] is not None:
        gain = with_interval(row["gain"], row["gain_low"], row["gain_high"], sign="+")
        print(f"{row['label']:18} {gain:>10} points (seeds: {row['n']}): {verdict(row)}")
print(f"Your guess for CORSD: {my_guess:+.1f} points")

# %% [markdown]
# ## Alike in what?
#
# A comparison is fair if everything but the method is alike. That is harder than it sounds. *Epochs* are not alike if a
# method looks at three images a step where another looks at one: the authors' release of CORSD draws triplets, and three
# times the images is three times the training. **The study gives every row the same number of images.** Read off which row
# gets fewer epochs for it.

# %%
cost = pd.DataFrame(small["methods"].values())[["label", "epochs", "images", "macs_ratio", "time_ratio"]]
cost.astype({"images": int}).round(2)

# %% [markdown]
# Equal images are not equal *cost*. `macs_ratio` is the arithmetic of the whole training, relative to the plain network:
# exits and relation networks are paid for while training. `time_ratio` is the same for the clock, of the fastest training,
# and depends on the machine and on what else it did. Could the plain network have used that time, for more epochs, or more
# channels? A study of equal images does not answer it, and it is honest to say so.

# %% [markdown]
# ## The best of many
#
# Here is the trap that catches most. Imagine methods that are all *exactly as good as the baseline*. Each is trained once,
# and a training scatters by one point. You print the table and look at the best row.
#
# **Predict:** with eight such methods, how often is the best row ahead of the baseline? By how much, on average?

# %%
scatter = np.random.default_rng(1).normal(size=(20_000, 21))  # studies x (baseline and 20 methods), in points
best = np.array([scatter[:, 1 : 1 + n].max(axis=1) - scatter[:, 0] for n in range(1, 21)])  # (20, studies)
print(f"The best of 8 methods is ahead in {(best[7] > 0).mean():.0%} of the studies.")

# %%
lead = pd.DataFrame({"methods tried": range(1, 21), "lead of the best (points)": best.mean(axis=1)})
title = f"Nothing is there, yet the best of 8 leads by {best[7].mean():.1f} points on average"
px.line(lead, x="methods tried", y="lead of the best (points)", markers=True, title=title, template=template(), height=380)

# %% [markdown]
# The more you try, the better the best one looks. What was tried may be methods, weights of a loss, seeds ("the best of five
# runs"), or *epochs*: the best epoch on the test images is the best of many, too.
#
# Intervals do not save you by themselves. **Predict:** three seeds, eight equal methods, honest paired intervals. In how many
# studies does *at least one* interval miss zero?

# %%
runs = np.random.default_rng(3).normal(size=(20_000, 9, 3))  # studies x (baseline and 8 methods) x seeds
gains = runs[:, 1:] - runs[:, :1]
error = gains.std(axis=2, ddof=1) / 3**0.5
clear = abs(gains.mean(axis=2)) > student_t.ppf(0.975, 2) * error  # (studies, 8)
print(f"One method's interval misses zero in {clear.mean():.0%} of the studies.")
print(f"At least one of eight does in {clear.any(axis=1).mean():.0%}.")

# %% [markdown]
# The remedies are few:
#
# - **Choose** on validation images, **report** on test images, once, after the last epoch. The studies here do.
# - Report the **mean** over seeds that were fixed beforehand, never the best.
# - Say how many things were tried.
# - If a row looks good, train it again with *new* seeds. What luck gave, new seeds take away.

# %% [markdown]
# ## The main study
#
# `cifar100` has a larger network, as many images, and several seeds. Its `study.json` says beforehand which weights of a loss
# are searched, on images held out from train. While it grows, rows and seeds are missing.
#
# **Predict:** more room in the network, more to gain or less? Will a method's interval lie above zero now?

# %%
full = summaries["cifar100"]


def rows_of(summary, group):
    kept = {name: m for name, m in summary["methods"].items() if m["group"] == group or name == summary["baseline"]}
    return {**summary, "methods": kept}


# %%
main, used = rows_of(full, "methods"), full["train"]
print(f"{used['network']} of width {used['width']}, {used['per_class']} images of each class, {used['epochs']} epochs")
print("seeds:", "; ".join(f"{m['label']} {m['n']}" for m in main["methods"].values()))
accuracy_by_method(main)

# %%
gain_by_method(main)

# %% [markdown]
# **Before you believe these titles**, go through the list: how many seeds has the best row? Has it an interval, and does the
# interval of its *paired gain* lie above zero? How many rows were there to choose from? The same from the records, in words:


# %%
def decided(summary):
    """Rows that have a gain, and labels of those whose interval lies below zero, and above it."""
    rows = [m for m in summary["methods"].values() if m["gain"] is not None]
    below = [m["label"] for m in rows if m["gain_high"] is not None and m["gain_high"] < 0]
    above = [m["label"] for m in rows if m["gain_low"] is not None and m["gain_low"] > 0]
    return rows, below, above


# %%
gains, below, above = decided(main)
best = max(gains, key=lambda m: m["gain"])
size = with_interval(best["gain"], best["gain_low"], best["gain_high"], sign="+")
print(f"largest of {len(gains)} gains: {best['label']}, {size} points, seeds: {best['n']}; {verdict(best)}")
print(f"intervals above zero: {len(above)}, below: {len(below)}, not decided: {len(gains) - len(above) - len(below)}")

# %% [markdown]
# ### CORSD against its peers
#
# A gain over the plain network is not what the title of this notebook asks for. Two intervals that both lie above zero do not
# say which of the two methods is ahead, for the reason that you saw above. So pair CORSD with each *peer*, by seed. `against`
# does it: the same records, another row to measure against. Zero is now CORSD, and **left of it a row is worse**.
#
# **What is "CORSD" here?** The library's: the terms of the paper, *and* class KD at every exit, which is an idea of CS-KD, on
# batches of two images a class; tables say *CORSD with class KD*. The first notebook trained the paper's terms alone. They
# have a row of their own. What their weights came to on validation, where the weights of all rows were searched, says what to
# expect:

# %%
searches = [read_json(file) for file in sorted((results / "cifar100" / "tuning").glob("*.json"))]
labels = {name: m["label"] for name, m in full["methods"].items()}
rows = [
    {
        "row": labels.get(search["row"], search["row"]),
        "best on validation, %": search["best"]["value"],
        "trials": sum(trial["state"] != "failed" for trial in search["trials"]),
    }
    for search in searches
]
pd.DataFrame(rows).set_index("row").sort_values("best on validation, %", ascending=False).round(1)

# %% [markdown]
# Two things in this table are worth a line in your notes. What follows is about the *sum* of paper and class KD, so it says
# little about the paper. And the trials are few, with one seed each: the best of a few is a little lucky, too.
#
# **Predict:** which rows will be clearly behind CORSD on test, so that their interval lies wholly on the left?

# %%
versus = against(full, "corsd")
peers, behind, ahead = decided(rows_of(versus, "methods"))
title = f"{len(behind)} of {len(peers)} other rows are clearly behind CORSD, {len(ahead)} clearly ahead"
gain_by_method(rows_of(versus, "methods")).update_layout(title_text=title)

# %%
print("clearly behind:", "; ".join(behind) or "none")
print("clearly ahead:", "; ".join(ahead) or "none")
for m in peers:
    if m["label"] not in behind + ahead:
        print(f"not decided: {m['label']}, {with_interval(m['gain'], m['gain_low'], m['gain_high'], '+')}, seeds: {m['n']}")

# %% [markdown]
# **Clearly** means here: the interval of the paired difference lies on one side of zero. *Not decided* is not *equal*: look
# at how wide the interval is. With two seeds nothing is decided: two differences may agree by luck. And
# CORSD has more weights than its peers, and its search got more trials; a careful reader holds that against it. The best
# weight of several peers lies at the *end* of what was tried, so more might be had from them. Even what is decided holds for
# one data set, few images of each class, a small network. It says nothing about the numbers of the paper.
#
# ### And on other images?
#
# What holds twice weighs more than what holds once. `cub200` is a study of birds, compared in the same way.
#
# **Predict:** will the same rows be behind, fewer, or none?

# %%
birds = summaries["cub200"]
elsewhere, behind_too, ahead_too = decided(against(birds, "corsd"))
title = f"{birds['data']}, {len(elsewhere)} rows: {len(behind_too)} clearly behind CORSD, {len(ahead_too)} clearly ahead"
gain_by_method(against(birds, "corsd")).update_layout(title_text=title)

# %%
print("clearly behind in both studies:", "; ".join(label for label in behind if label in behind_too) or "none")

# %% [markdown]
# ### Which part of CORSD does it?
#
# An *ablation* changes one thing and leaves the rest, as in [04_class_oriented](04_class_oriented.ipynb). The main study has
# rows for that. Again zero is CORSD as it is, and a row left of it has lost by its change.
#
# **Predict:** what will be missed most: the exits' own classifiers, the pull between images of one class (*class KD*), the
# auxiliary classifiers, the margin, the transfer? Which change will make no difference? And the row *without any relation term*
# keeps exits and class KD and nothing else: how much of CORSD's lead over the plain network is left in it? One row is a
# *control*: the plain network on CORSD's batches, two images of each class. Do the batches alone gain anything?

# %%
parts, worse, better = decided(rows_of(versus, "ablation"))
title = f"{len(parts)} other rows: {len(worse)} clearly worse than CORSD, {len(better)} clearly better"
gain_by_method(rows_of(versus, "ablation")).update_layout(title_text=title)

# %%
for name in ("baseline", "balanced_baseline", "no_relations"):
    m = versus["methods"][name]
    print(f"{m['label']}: {with_interval(m['gain'], m['gain_low'], m['gain_high'], '+')} points, measured from CORSD")
print("clearly worse than CORSD:", "; ".join(worse) or "none")
print("clearly better:", "; ".join(better) or "none")

# %% [markdown]
# A change that is *clearly worse* took away something that matters, with these images and this network. A change that is not
# decided may matter all the same: the scatter hides whatever is smaller than half an interval. And the rows are many, so
# remember the best of many, and the *worst* of many, too.
#
# Is the row without any relation term clearly worse? If it is not, say it as it is: **in this study the relation networks are
# not the reason of the gain**, whatever the method is named after. They are still a window into the network, and that is how
# most of this course uses them. An ablation that takes *everything* of the name away is the first one to ask for, and papers
# do not always print it.

# %% [markdown]
# ## Your own study
#
# A study is a list of methods and of seeds, and what they have in common. `new_study` writes it down *before* anything is
# trained. That is not bureaucracy: what is fixed beforehand cannot be bent afterwards.

# %%
settings = {"data": "digits", "per_class": per_class, "epochs": epochs, "batch_size": 25, "probe_every": 20, "probe_size": 100}
place = f"{run_directory}/{'-'.join(methods)}-{per_class}-a-class-{epochs}-epochs-{seeds}-seeds-from-{seed}"
study = new_study(place, methods, range(seed, seed + seeds), settings, equal="images")
print(f"{len(study.jobs())} trainings; gains are measured against {study.baseline}")

# %% [markdown]
# `run_study` trains what has no record yet, each training in a process of its own and as many at a time as you have cores.
# Stop it whenever you like; run the cell again, and it goes on. From a terminal: `corsd compare FOLDER`.

# %%
done = run_study(study, runs=f"{place}/runs")

# %% [markdown]
# ### Look before you count
#
# A number in a table may come from a training that went wrong. So look at one first: did it end where its curve is flat? Is
# an exit left behind? Is a loss still falling?

# %%
watched = load_run(f"{place}/runs/{methods[-1]}/seed{seed}")
monitor = TrainingMonitor()
display(monitor)
monitor(watched)

# %% [markdown]
# ![The training monitor after a CORSD training of 30 epochs on digits. Left: the train accuracy of three exits climbs. Right:
# the relation matrix of the deepest exit with a diagonal brighter than the rest.](images/11_monitor.png)
#
# *The monitor as a picture*, for the last method of the list and its first seed: all three exits are drawn, the parts of the
# loss, and how related the network finds each pair of digits.
#
# ### And now the count
#
# **Predict:** will the interval of your gain hold zero?

# %%
mine = summarise(study, study.records())
gain_by_method(mine)

# %% [markdown]
# Did pairing help here? That depends on how much of the scatter both methods share. If they shared none, the two scatters
# would add up in the difference: an interval that reaches `a` points and one that reaches `b` give one that reaches √(a² +
# b²). Compare the paired interval with *that*, not with either alone.

# %%
alone = [row["top1_high"][-1] - row["top1"][-1] for row in mine["methods"].values() if row["top1_high"][-1] is not None]
if len(alone) == 2:
    print(f"If nothing were shared, the interval of the difference would reach {sum(a**2 for a in alone) ** 0.5:.1f} points.")
for row in mine["methods"].values():
    accuracy = with_interval(row["top1"][-1], row["top1_low"][-1], row["top1_high"][-1])
    print(f"{row['label']:18} {accuracy} % of the test images right")
    if row["gain"] is not None:
        gain = with_interval(row["gain"], row["gain_low"], row["gain_high"], sign="+")
        print(f"{'':18} {gain} points, paired: {verdict(row)}")

# %% [markdown]
# **Read it with care.** Whatever came out, it holds for these digits, this network, these epochs. If the interval holds zero,
# it does *not* say that the methods are equal: it says that so few seeds cannot tell. Set `seeds = 10` and run again.

# %% [markdown]
# ## Recap
#
# - One number is no result. **Mean, interval, number of seeds**: these three belong together.
# - With few seeds the interval comes from **Student's t**, and it is wide.
# - Methods are compared **seed by seed**; what both share cancels.
# - Say what was **alike** (images, epochs, time, tuning) and what was not.
# - The **best of many** looks good by luck. Choose on validation, report on test, repeat with new seeds.
# - "No difference was found" and "there is no difference" are two statements.

# %% [markdown]
# ## Exercise 1: pair by seed
#
# Two methods were trained, but not with all the same seeds. `ours` and `theirs` are dictionaries, seed -> accuracy. Return
# the *list* of differences, ours minus theirs, for the seeds that **both** have, in ascending order of the seed.


# %% tags=["exercise"]
def paired_differences(ours, theirs):
    return ...


# %% tags=["solution"]
def paired_differences(ours, theirs):
    return [ours[s] - theirs[s] for s in sorted(ours.keys() & theirs.keys())]


# %% tags=["check"]
ours, theirs = {2: 75, 0: 62, 1: 68, 7: 99}, {0: 60, 1: 66, 2: 72, 5: 10}
found = paired_differences(ours, theirs)
assert isinstance(found, list), "there is no answer yet: write yours in place of the `...`"
assert len(found) == 3, "only three seeds are in both"
assert found == [2, 2, 3], "is each seed compared with itself, ours minus theirs, in order of the seeds?"
print("Exercise 1: right.")

# %% [markdown]
# Your function on the records of the small study. Is the list as long as you hoped? Replace `"corsd"` by another row.

# %% tags=["uses-answer"]
deepest = {name: {s: top1[-1] for s, top1 in m["top1_by_seed"].items()} for name, m in small["methods"].items()}
gains = paired_differences(deepest["corsd"], deepest["baseline"])
print("by seed:", [f"{gain:+.2f}" for gain in gains], "mean and interval:", with_interval(*mean_interval(gains), "+"))

# %% [markdown]
# ## Exercise 2: choose here, report there
#
# Some settings of a method were trained. `validation` and `test` are dictionaries, setting -> accuracy. Return the accuracy
# that you may report: that of the *one* setting you would have chosen without looking at the test images.


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
assert score is not ..., "there is no answer yet: write yours in place of the `...`"
assert score != 72, "that is the best on test: nobody would have known to choose it"
assert score == 69, "which setting is best on validation, and what is *its* accuracy on test?"
print("Exercise 2: right.")

# %% [markdown]
# What does it cost to look? Below, 20 settings are all equally good, 70 %, and both splits scatter by one point. An honest
# report should come out at 70.

# %% tags=["uses-answer"]
draws = 70 + np.random.default_rng(2).normal(size=(2000, 2, 20))
honest = np.mean([honest_score(dict(enumerate(v)), dict(enumerate(t))) for v, t in draws])
print(f"chosen on validation: {honest:.1f} %; chosen on test: {draws[:, 1].max(axis=1).mean():.1f} %; truth: 70 %")

# %% [markdown]
# ## Where next
#
# - [04_class_oriented](04_class_oriented.ipynb) leaves parts of CORSD out by hand: an ablation, to be read as you read here.
# - [05_cifar100](05_cifar100.ipynb) opens the runs behind the records, and has the recipe for a GPU.
# - [12_your_own](12_your_own.ipynb): your data, your network, your loss. Then come back and compare.
# - A study of your own from a terminal: `corsd compare my_study --methods baseline byot corsd --seeds 0 1 2 3 4 --data digits
#   --per-class 10 --epochs 30`. Its tables and figures are written into the folder `my_study`.
