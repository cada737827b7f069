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
# # 14 Can you answer a question of your own?
#
# You have seen how others measure. Now you choose a question, write down how it will be
# decided, train, and report what came out. Five things are fixed before the first
# training: rows, measure, smallest gain that matters, seeds, and the rule.
#
# **You will learn**
#
# - to turn an idea into a comparison of two rows that differ in one thing;
# - to decide *beforehand* which result means what, with three possible verdicts;
# - to calculate how many seeds that takes;
# - to write a report page that shows the plan beside the result;
# - how such a project is judged.

# %% [markdown]
# **You need** [11_compare_methods](11_compare_methods.ipynb) and
# [12_your_own](12_your_own.ipynb). **Run time:** about 1 minute on two CPU cores.
# **Learning time:** 30 minutes of reading, 45 minutes for exercises 1 to 3. Exercise 4
# is the project: one or two days. Nothing is downloaded.

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
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.express as px
import torch
from IPython.display import display
from scipy.stats import t as student_t

from corsd_lib import TrainingMonitor, committed_summary, load_run, run_study
from corsd_lib.course import answered, compare, expect
from corsd_lib.figures import template
from corsd_lib.runs import differences
from corsd_lib.sharing.pages import figure_panel, table_panel, text_panel, write_page
from corsd_lib.studies.intervals import mean_interval
from corsd_lib.studies.study import Study
from corsd_lib.studies.summary import summarise

torch.set_num_threads(1)  # one thread is faster for images this small

# %% [markdown]
# The settings of the worked example. Each combination has its own folder, and a
# finished training is opened and not repeated.

# %% tags=["parameters"]
label_noise = 0.2  # share of the training images with a wrong label
smallest = 3  # points: the smallest gain that would matter to us
seeds = 5  # trainings of each variant: see section 3
seed = 100  # the first of them; the pilot used 0 to 9
epochs = 30  # passes over the training images
per_class = 10  # labelled images of each digit
run_directory = "runs/14_capstone"  # the study, its trainings and its page

# %% [markdown]
# **How predictions work.** Some cells ask for a prediction before a result. Replace
# `None` by your value and run on: the notebook prints it beside the outcome.

# %% [markdown]
# ## 1. A question with one change
#
# | kind of question | example | trap |
# | --- | --- | --- |
# | own data | Does it help on my photographs? | one scene in train *and* test |
# | a new term | Does my term help exit 1? | no variant with its weight at 0 |
# | another backbone | Does it help without shortcuts? | more parameters, too |
#
# A good question names two rows that differ in **one** thing, a measure, and data. It
# can be answered with what you have. And you do not know the answer yet.

# %% [markdown]
# **Our example.** Wrong labels mislead a network. In BYOT the shallow exits learn from
# labels *and* from the predictions of the deepest exit. Self-distillation can be
# described as averaging labels over similar images
# ([arXiv 2402.10482](https://arxiv.org/abs/2402.10482)), so a prediction may be right
# where a label is wrong.
#
# *Does teaching help the first exit when a fifth of the labels is wrong?*
#
# - Row `untaught`: BYOT with the weights of its two teaching terms at 0: its exits
#   learn from the labels alone.
# - Row `taught`: BYOT, the same exits with teaching by the deepest exit.
# - Measure: test accuracy of exit 1; test labels are right.

# %% [markdown]
# ## 2. A verdict with three outcomes
#
# "Significant or not" is a poor rule: a gain can be significant and useless, and a gain
# that is not significant may only mean too few seeds. Choose the smallest gain $\delta$
# that would matter to you, and compare the 95 % interval $[l, h]$ of the paired
# difference with 0 *and* with $\delta$:
#
# $$\mathrm{verdict} = \begin{cases} \mathrm{no\ useful\ gain} & h < \delta \\
# \mathrm{helps} & l > 0 \;\mathrm{and}\; h \ge \delta \\ \mathrm{undecided} &
# \mathrm{otherwise} \end{cases}$$
#
# ![Four intervals over a line with marks at 0 and at delta. One lies right of 0 and
# reaches delta, with its middle below delta: helps. Two lie left of delta: no useful
# gain. One contains 0 and delta: undecided.](images/concept_verdict.svg)
#
# *Helps* means that the gain is above 0 and may reach $\delta$, not that it does. The
# edge is sharp: for $\delta = 3$, [0.1, 3.0] helps and [0.5, 2.9] is no useful gain. So
# report the interval, too. *No useful gain* includes harm: the report says so if the
# whole interval lies below 0. We take $\delta = 3$ points, a judgement made now.

# %% [markdown]
# ### Exercise 1, implement: the verdict
#
# Return `"helps"`, `"no useful gain"` or `"undecided"` for the ends `low` and `high` of
# an interval and for `smallest`, which is $\delta$. (Hint: a common mistake is to test
# `low > 0` first.)


# %% tags=["exercise"]
def verdict(low, high, smallest):
    return ...


# %% tags=["solution"]
def verdict(low, high, smallest):
    if high < smallest:
        return "no useful gain"
    return "helps" if low > 0 else "undecided"


# %% tags=["check"]
answered(verdict(1, 5, 2))
expect(verdict(1, 5, 2) == "helps", "all values from 1 to 5 are above 0")
expect(
    verdict(-1, 5, 2) == "undecided",
    "-1 to 5 contains 0, and gains above 2, too",
)
expect(
    verdict(-3, -1, 2) == "no useful gain",
    "a loss is no gain, however large it is",
)
expect(verdict(-1, 1, 2) == "no useful gain", "no value from -1 to 1 reaches 2")
expect(
    verdict(0.5, 1.5, 2) == "no useful gain",
    "0.5 to 1.5 is above 0 but below 2",
)
print("Exercise 1: correct.")

# %% [markdown]
# ## 3. How many seeds?
#
# With $n$ differences of standard deviation $s$ the interval has the length
# $2\, t_{n-1}\, s / \sqrt n$. If it is *shorter than $\delta$*, it cannot contain both
# 0 and $\delta$, and the verdict is never "undecided". Treating $s$ as exact, we look
# for the smallest $n$ with
#
# $$2 \, t_{n-1} \frac{s}{\sqrt n} < \delta$$
#
# An interval takes at least three seeds. The deviation $s$ comes from a **pilot**:
# trainings that are not used again. Ours is a substitute, the committed study of digits
# with ten seeds. It has right labels and more epochs, and compares BYOT with deep
# supervision, so $s$ may be different here.

# %%
pilot = committed_summary("digits")["methods"]
rows = [pilot[row]["top1_by_seed"] for row in ("byot", "deep_supervision")]
gaps = [rows[0][s][0] - rows[1][s][0] for s in rows[0]]
deviation = np.std(gaps, ddof=1)

# %%
mean, low, high = mean_interval(gaps)
print(f"pilot, exit 1: {mean:+.1f} [{low:+.1f}, {high:+.1f}] points with right labels")
print(f"standard deviation of a paired difference: {deviation:.2f} points")

# %% [markdown]
# ### Exercise 2, implement: seeds needed
#
# Return the smallest whole number $n \ge 3$ for which the length of the interval is
# below `smallest`. `student_t.ppf(0.975, n - 1)` is $t_{n-1}$. (Hint: common mistakes
# are half of the length, and 1.96 in place of $t_{n-1}$.)


# %% tags=["exercise"]
def seeds_needed(deviation, smallest):
    return ...


# %% tags=["solution"]
def seeds_needed(deviation, smallest):
    def length(n):
        return 2 * student_t.ppf(0.975, n - 1) * deviation / n**0.5

    return next(n for n in range(3, 10_000) if length(n) < smallest)


# %% tags=["check"]
need = seeds_needed(2, 4)
answered(need)
expect(need != 4, "4: the *length* of the interval is asked for, not half of it")
expect(need != 5, "5 is for another quantile: 97.5 % of Student's, n - 1 degrees")
expect(
    need == 7,
    f"{need} instead of 7 for a deviation of 2 and 4 points: did you forget the square "
    "root of n?",
)
expect(seeds_needed(0.01, 4) == 3, "an interval takes at least three seeds")
expect(seeds_needed(2, 2) == 18, "half the length takes 18 seeds here")
print("Exercise 2: correct.")

# %% [markdown]
# **Predict:** the parameters have five seeds for 3 points. How many seeds are needed
# for an interval shorter than 1 point, with the deviation of the pilot? And for 4.5
# points with twice that deviation?

# %% tags=["uses-answer"]
my_one, my_twice = None, None

compare("Seeds for 3 points", None, seeds_needed(deviation, 3))
compare("Seeds for 1 point", my_one, seeds_needed(deviation, 1))
twice = seeds_needed(2 * deviation, 4.5)
compare("Seeds for 4.5 points, twice the deviation", my_twice, twice)

# %% [markdown]
# **Answer.** 20 seeds for 1 point, and 6 for 4.5 points with twice the deviation. Only
# the ratio of $\delta$ to $s$ counts. Halve both: 4.5 points with twice the deviation
# are the same as 2.25 points with the deviation of the pilot. That is less than 3, so
# it takes more than 5 seeds.
#
# The calculation treats $s$ as exact. The studies that you train have a deviation of
# their own, which scatters around $s$.
#
# **Predict:** in what percentage of studies with five seeds is the interval longer than
# 3 points, although the pilot is right? And with seven seeds?

# %%
my_five, my_seven = None, None  # percent

rng = np.random.default_rng(0)
for n, mine in ((5, my_five), (7, my_seven)):
    found = rng.normal(0, deviation, (100_000, n)).std(axis=1, ddof=1)
    length = 2 * student_t.ppf(0.975, n - 1) * found / n**0.5
    share = 100 * (length > smallest).mean()
    compare(f"{n} seeds, too long", mine, share, " %", atol=5, digits=1)

# %% [markdown]
# **Answer.** In one study of four with five seeds, in one of forty with seven. So take
# a seed or two more than the calculation says. (The example does not follow this
# advice, and you will see what happens.) If you cannot afford the seeds, choose a
# larger $\delta$ or another question now, not later.

# %% [markdown]
# ## 4. Register the plan
#
# A study is a file, `study.json`: the rows, the seeds and the shared recipe. The seeds
# are new, so that the pilot cannot leak into the result. All rows see equally many
# images.

# %% tags=["nbval-check-output"]
recipe = {"data": "digits", "per_class": per_class, "label_noise": label_noise}
recipe |= {"epochs": epochs, "batch_size": 25, "validation_fraction": 0.1}
recipe |= {"network": "resnet8", "probe_every": 10, "probe_size": 100}
labels_alone = {"exit_kd": 0.0, "hint": 0.0}
plan = {
    "title": "Does teaching help exit 1 when labels are wrong?",
    "equal": "images",
    "baseline": "untaught",
    "seeds": list(range(seed, seed + seeds)),
    "train": recipe,
    "variants": {
        "untaught": {"train": {"method": "byot", "method_options": labels_alone}},
        "taught": {"train": {"method": "byot"}},
    },
}
print(len(plan["variants"]), "variants,", len(plan["seeds"]), "seeds each")

# %% [markdown]
# The file has no field for the decision rule. It goes into a text beside it. When
# the study is read, every field is checked: a misspelt method gives an error now, not
# after a night of training.

# %% tags=["nbval-check-output"]
rule = f"""Question: {plan["title"]}
Rows: BYOT (taught), and BYOT with its teaching terms at weight 0 (untaught).
Data: digits, {per_class} training images of each, {label_noise:.0%} wrong labels.
Training: {epochs} epochs, seeds {seed} to {seed + seeds - 1}.
Measure: test accuracy of exit 1, taught minus untaught, paired by seed.
Smallest gain that matters: {smallest} points.
Verdict: "no useful gain" if the 95 % interval ends below {smallest} points.
Otherwise "helps" if it begins above 0. Otherwise "undecided".
The result is looked at one time only, after the last training.
No seed is added or left out.
Check: all exits of the first taught run end above 20 % on train (chance: 10 %).
If not, the fault is mended under a new plan with new seeds.
The other exits are reported and decide nothing."""

name = f"noise-{label_noise}-{per_class}-{epochs}-delta-{smallest}-{seeds}-from-{seed}"
place = Path(run_directory) / name
place.mkdir(parents=True, exist_ok=True)
(place / "study.json").write_text(json.dumps(plan, indent=1))
(place / "plan.txt").write_text(rule)
study = Study.from_file(place)
print(len(study.jobs()), "trainings are planned")

# %% [markdown]
# **One change?** `differences` lists the settings in which two configurations differ.
#
# **Predict:** which settings differ between the two rows? Write their names with commas
# between them, for example `lr, width`.

# %% tags=["nbval-check-output"]
my_settings = None

configs = [study.config(row, seed) for row in ("untaught", "taught")]
found = differences(*configs)  # "NAME was OLD, is NEW", for every setting that differs
named = sorted(name.split(".")[-1] for name in re.findall(r"(\S+) was ", found))
mine = my_settings and ", ".join(sorted(re.findall(r"\w+", my_settings)))
compare("Settings that differ", mine, ", ".join(named))
assert named == ["exit_kd", "hint"], "the rows differ in something else than teaching"

# %%
print(found.replace(", method", "\nmethod"))

# %% [markdown]
# **Answer.** Two, both weights of teaching terms. In the row `taught` the weight of the
# deepest exit's predictions (`exit_kd`) is 0.1, and that of its embedding (`hint`) is
# one millionth. Network, images, first weights, order and the weight of the labels at
# the exits (0.9) are the same. Together they are one thing, the teaching; which of
# the two matters, this study cannot say. If deep supervision were the other row, its
# weight of the labels would differ, too (1 in place of 0.9).

# %% [markdown]
# **Register the plan now.** Push both files to a server that you do not control, or
# send the *fingerprint* below to a colleague: it changes with every letter of the
# files. A local commit alone proves nothing, because its date can be changed. (The
# planned test of [13_unseen_classes](13_unseen_classes.ipynb) has only such a commit.)

# %%
both = (place / "study.json").read_bytes() + (place / "plan.txt").read_bytes()
fingerprint = hashlib.sha256(both).hexdigest()[:32]
print("fingerprint of the plan:", fingerprint)

# %% [markdown]
# **Predict:** the difference at exit 1 in points, the verdict, and whether its interval
# will be `shorter` or `longer` than the pilot promised (2.6 points with five seeds).

# %%
my_gain, my_verdict = None, None  # points; "helps", "no useful gain" or "undecided"
my_length = None  # "shorter" or "longer"
my_next = None  # exercise 3 only: the verdict with its share of wrong labels

# %% [markdown]
# ## 5. Train
#
# Each training runs in its own process and leaves a record. Stop the cell at any time;
# running it again continues.

# %%
done = run_study(study, runs=f"{place}/runs")

# %% [markdown]
# Before any result: did the first training work? This check was planned for one run,
# the first taught one. The plan says what it takes to pass, above 20 % at every exit,
# and what happens otherwise: a new plan with new seeds. The limit is low on purpose: at
# twice chance it finds a training that failed, not one that is merely poor. A higher
# limit, such as 50 %, could exclude a run because of the very effect that the study
# measures.

# %%
watched = load_run(f"{place}/runs/taught/seed{seed}")
last = watched.metrics.iloc[-1].filter(like="train_top1")
print("check:", "passed" if (last > 20).all() else "failed")

# %%
weights, final = watched.config.method_options, watched.metrics.iloc[-1]
for term in ("exit_kd", "hint"):
    part = weights[term] * final[f"loss.{term}"]
    print(f"{term}: {part:.4f} of the total loss, {final['loss.total']:.2f}")

# %%
monitor = TrainingMonitor()
display(monitor)
monitor(watched)

# %% [markdown]
# ![The training monitor after a BYOT training on digits with a fifth of wrong labels.
# Left: the accuracy of three exits climbs and flattens. Right: a matrix of the cosine
# between embeddings with a bright diagonal.](images/14_monitor.png)
#
# *The first taught run.* BYOT has no relation network, so the matrix shows the cosine
# of embeddings, rescaled to the range 0 to 1. The train accuracy counts the wrong
# labels as the truth. A network that reaches 100 % has also memorised the wrong labels.
# Terms of the loss are shown unweighted: the weight of the hint is $10^{-6}$. With
# their weights, the two terms of teaching are about 6 % of the loss at the end: the
# treatment is weak.

# %% [markdown]
# ## 6. The result, once

# %%
result = summarise(study, study.records())["methods"]
taught, untaught = (result[row]["top1_by_seed"] for row in ("taught", "untaught"))
ends = [
    mean_interval(taught[s][k] - untaught[s][k] for s in taught)
    for k in range(len(result["taught"]["top1"]))
]
for k, (mean, low, high) in enumerate(ends, 1):
    accuracy = [result[row]["top1"][k - 1] for row in ("untaught", "taught")]
    print(f"exit {k}: {accuracy[0]:.1f} % untaught, {accuracy[1]:.1f} % taught,")
    print(f"  difference {mean:+.2f} [{low:+.2f}, {high:+.2f}] points")
compare("Difference at exit 1", my_gain, ends[0][0], " points", atol=1, digits=2)

# %%
table = pd.DataFrame(ends, columns=["points", "low", "high"])
table["exit"] = [f"exit {k}" for k in range(1, len(ends) + 1)]
table["half"], table["row"] = (table["high"] - table["low"]) / 2, range(len(ends))
table["role"] = ["decides"] + ["reported only"] * (len(ends) - 1)
title = f"Taught minus untaught, {seeds} seeds, 95 % intervals"
look = {"template": template(), "height": 340, "title": title}
figure = px.scatter(table, x="points", y="row", error_x="half", symbol="role", **look)

# %%
figure.update_traces(marker_size=10).add_vline(x=0)
figure.add_vline(x=smallest, line_dash="dash")
gaps = [(taught[s][k] - untaught[s][k], k + 0.2) for s in taught for k in table["row"]]
x, y = zip(*gaps, strict=True)
rings = {"symbol": "circle-open", "color": "grey", "size": 7}
figure.add_scatter(x=x, y=y, mode="markers", marker=rings, name="single seeds")
for _, line in table.iterrows():
    end = {"x": line["high"], "y": line["row"], "text": f"{line['high']:.2f}"}
    figure.add_annotation(**end, xanchor="right", yshift=10, showarrow=False)
axis = "points, taught minus untaught; dashed: the smallest useful gain"
figure.update_xaxes(title=axis).update_layout(legend_title="")
ticks = {"tickvals": table["row"], "ticktext": table["exit"]}
figure.update_yaxes(title="", **ticks, range=[len(ends) - 0.5, -0.5])

# %% [markdown]
# Your rule from exercise 1 gives the verdict. Only exit 1 decides: with three exits
# there are three chances to find something.

# %% tags=["uses-answer"]
low, high = ends[0][1:]
decision = verdict(low, high, smallest)
compare("Verdict", my_verdict if label_noise == 0.2 else my_next, decision)
if high < 0:
    print("the whole interval lies below 0: teaching harms exit 1")

# %%
planned = 2 * student_t.ppf(0.975, seeds - 1) * deviation / seeds**0.5
print(f"length: {planned:.1f} points planned, {high - low:.1f} found")
compare("The interval is", my_length, "longer" if high - low > planned else "shorter")

# %% [markdown]
# **Answer.** In the outputs saved here the interval of exit 1 contains 0 and ends at
# 2.76, below 3 points: no useful gain, narrowly. On another machine the verdict may be
# "undecided". At exit 2 the difference is -1.36 points [-3.55, 0.84]. The verdict would
# be the same here. That is luck: if it differed, whoever chooses the exit afterwards
# could tell another story; the plan says that exit 2 decides nothing.

# %% [markdown]
# The interval is more than twice as long as planned. The pilot differs from the study
# in four things: it has right labels, more epochs, more images held out, and **other
# rows**. It compares BYOT with deep supervision, whose labels have the weight 1 at the
# exits in place of 0.9. Which of the four made the interval longer, we do not know;
# chance alone is unlikely (an F test of the two variances has p = 0.01). A pilot should
# have the rows and the conditions of the study.

# %% [markdown]
# With a slightly longer interval the verdict would be "undecided", and that would be
# the report. **Do not add seeds until the verdict changes:** every look at the result
# is another chance of a false alarm. A new plan with *new* seeds is allowed.

# %% [markdown]
# ## 7. The page
#
# A report has the plan beside the result, all planned measures, and what it does not
# show. This one is a file that needs no kernel and no network.

# %% tags=["uses-answer"]
rows = [
    [e, f"{m:+.2f}", f"[{a:+.2f}, {b:+.2f}]"]
    for e, (m, a, b) in zip(table["exit"], ends, strict=True)
]
my_deviations = "none"  # what you did differently from the plan, and why
length = f"The interval is {high - low:.1f} points long, {planned:.1f} were expected."
limits = "Other weights of the teaching: here it is about 6 % of the loss at the end."
more = "Digits, one small network, one share of wrong labels, drawn at random."
panels = [
    text_panel("Plan", *rule.splitlines(), f"Fingerprint: {fingerprint}"),
    text_panel("Verdict", decision),
    table_panel("Result", ["taught minus untaught", "points", "95 % interval"], rows),
    figure_panel(figure),
    text_panel("Deviations from the plan", my_deviations),
    text_panel("Precision", length),
    text_panel("What this does not show", limits, more),
]
page = write_page(place / "report.html", panels, plan["title"])
print(page.name, "has", len(panels), "parts")

# %% [markdown]
# ![The report page: the plan with its rule and fingerprint, the verdict, a table of
# the three differences with their intervals, the figure of the intervals, the
# deviations from the plan, the precision, and what this does not
# show.](images/14_report.png)
#
# *The page of the worked example.* The plan and its fingerprint stand above the result,
# and all three exits are reported, although only the first decides. Deviations,
# precision and limits stand at the end: the interval was longer than planned.

# %% [markdown]
# ## 8. How a project is judged
#
# | criterion | 0 points | 2 points | 4 points |
# | --- | --- | --- | --- |
# | question | vague | measurable | measurable, answer open |
# | plan | none | incomplete | measure, rule, reason for seeds |
# | comparison | unpaired | paired, equal images | one change, or an ablation |
# | report | the best number | all rows, intervals | also deviations, limits |
# | code | does not run | runs again | from a clean clone, tested |
#
# An "undecided" from a good plan earns full points. A "helps" that was picked from ten
# attempts earns none for the plan.

# %% [markdown]
# ## Answer: can you answer a question of your own?
#
# > **What we found.** You can answer a question of your own if rows, measure, smallest
# > gain, seeds and rule are fixed before training. In the example, with a fifth of the
# > labels wrong, BYOT's teaching changed exit 1 by -0.45 points [-3.66, 2.76]. This
# > interval ends below 3: "no useful gain".
# >
# > **How sure we are.** We are not very sure: with five paired seeds the interval is
# > 6.4 points long, not 2.6 as planned. Other seeds or another machine may give
# > "undecided".
# >
# > **What it does not show.** We did not test stronger teaching (here 6 % of the loss),
# > other label noise or larger networks.

# %% [markdown]
# ## Exercise 3, predict and experiment: more wrong labels
#
# Predict the verdict with `label_noise = 0.4`: set `my_next`, in the cell of the
# predictions at the end of section 4, and the parameter. Then run all again. The folder
# has a new name: register the new plan. Report both intervals, say how many seeds the
# deviation that you *found* would have asked for, and set the parameter back. (Hint: do
# not use the deviation of the pilot here, and do not merge the two studies.)

# %%
found = np.std([taught[s][0] - untaught[s][0] for s in taught], ddof=1)
print(f"standard deviation: {deviation:.2f} in the pilot, {found:.2f} found")

# %% [markdown] tags=["solution"]
# *A good answer* reports both intervals and verdicts, does not merge the two studies,
# and calculates the seeds from the larger of the deviations. It says that the share of
# wrong labels was changed after the first result, so the second study is a new
# question.

# %% [markdown]
# ## Exercise 4, explain: your project (open)
#
# 1. Choose a question of the kinds in section 1, and write a page: rows, measure,
#    $\delta$, seeds with the calculation, verdict rule, cost in minutes.
# 2. Ask somebody to look for a second difference between your rows.
# 3. Push `study.json` and `plan.txt` to a server that you do not control, or send their
#    fingerprint to your teacher. Then train with `corsd compare FOLDER`.
# 4. Hand in the page, the folder of the study without `runs`, and your new code, with a
#    test.
#
# Below: your question, your plan and, later, your verdict in three sentences. You get
# up to 20 points by section 8; nbgrader records half of them (10).

# %% [markdown] tags=["answer"]
# *Write your plan here.*

# %% [markdown] tags=["solution"]
# *A good project* can be judged by the table in section 8 from its files alone: the
# plan or its fingerprint was received before the first record, the number of records is
# the number of planned trainings, and the verdict follows from the rule. Its limits
# name the nearest data or network for which the answer may differ.

# %% [markdown]
# ## Where next
#
# - [11_compare_methods](11_compare_methods.ipynb): intervals and the best of many.
# - [12_your_own](12_your_own.ipynb): own data, backbone and term.
# - `study.json` can say more, such as searches on validation images: see the
#   [notes on studies](../results/README.md).
