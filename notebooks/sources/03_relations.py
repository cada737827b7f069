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
# # 03 What is the relation of two images?
#
# "These two belong together." A person says it at a glance. A network can be asked for it in two ways: with a **formula** on
# what it sees (how far apart, in which direction), or with a small network that **learns** what to answer. CORSD learns it.
# Is that better? And what exactly is learned?
#
# **You will learn**
#
# - the formulas of earlier methods: distance, cosine, and RKD's distances and angles, each in a few lines;
# - the relation network and its three losses, written out in full and then compared with the library's;
# - why two small matrix products are enough for *all* pairs of a batch;
# - how to judge a relation with one number, the AUC, and what that number does not see.
#
# **You need** [01_walkthrough](01_walkthrough.ipynb), which says what an exit is. **Time:** it runs in less than a minute on
# two CPU cores; reading and the two exercises take about 40 minutes. Nothing is downloaded.

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
import pandas as pd
import torch
from IPython.display import display
from torch import nn
from torch.nn import functional as F

from corsd_lib import RelationExplorer, committed_run, train
from corsd_lib.analysis import relation_quality, snapshot_scores
from corsd_lib.analysis.images import run_pixels
from corsd_lib.analysis.relations import relation_networks_at, same_class_auc
from corsd_lib.figures import image_strip, relation_heatmap
from corsd_lib.losses import margin_over_batch, relation_transfer, rkd_angle, rkd_distance
from corsd_lib.methods import LogitRelation
from corsd_lib.relation import cosine_scores, distance_scores, sample_pairs
from corsd_lib.walkthrough import plan

torch.set_num_threads(1)  # the images are tiny: a second thread would wait more than it works

# %% [markdown]
# These are the knobs of this notebook.

# %% tags=["parameters"]
epochs = 120  # how often each training image is seen
per_class = 10  # labelled images of each digit
seed = 0  # of the weights, the choice of images and their order
run_directory = "runs/digits"  # finished trainings are found here again

# %% [markdown]
# ## Somebody to ask
#
# We need a network that has seen something. This trains CORSD on a hundred digits, by the recipe that
# [01_walkthrough](01_walkthrough.ipynb) spells out. If the run is there already, it is opened.

# %%
run = train(plan("corsd", run_directory, epochs, per_class, seed), progress=False)

# %% [markdown]
# While it trained, the run noted what the network makes of 200 images that it does not learn from, the *probe images*. All
# relations below are relations of these images. We take what the deepest exit sees: one vector an image, its *embedding*.

# %%
# NBVAL_CHECK_OUTPUT
labels = run.probes.labels
embeddings = run.probes[epochs].embeddings[-1].float()
print(f"{len(labels)} images, 20 of each digit, in the order of their labels")
print(f"each of them a vector of {embeddings.shape[1]} numbers")

# %% [markdown]
# Here are six of them.
#
# **Predict:** which pairs would you call related? You can go by what they *look* like, or by what they *are*. Is there a pair
# where the two answers differ?

# %%
six = [60, 61, 160, 161, 20, 21]
names = [run.data.class_names[labels[i]] for i in six]
image_strip(run_pixels(run, six), names, "Six of the probe images", columns=6)

# %% [markdown]
# ## Relations by a formula
#
# ### How far apart?
#
# The oldest idea: two images are related when their embeddings are near each other, in the L2 (Euclidean) distance `d`. We
# want a score from 0 to 1 where 1 is related. So we take `exp(-d)`, with `d` in units of the mean distance.


# %%
def l2_relation(e):
    d = (e[:, None] - e[None, :]).norm(dim=2)  # (N, D) -> (N, N): all distances
    return torch.exp(-d / d[d > 0].mean())


# %% [markdown]
# ### In which direction?
#
# The cosine asks for the angle between two embeddings and forgets how long they are. It lies between -1 and 1; we move it to
# 0 to 1.


# %%
def cosine_relation(e):
    e = e / e.norm(dim=1, keepdim=True)
    return (1 + e @ e.T) / 2


# %% [markdown]
# The library has both. Do they agree with what we wrote?

# %%
# NBVAL_CHECK_OUTPUT
l2, cosine = l2_relation(embeddings), cosine_relation(embeddings)
assert torch.allclose(l2, distance_scores(embeddings), atol=1e-3)
assert torch.allclose(cosine, cosine_scores(embeddings), atol=1e-4)
print("L2 and cosine: the same", len(l2), "x", len(l2), "scores as the library's")

# %% [markdown]
# And what do they say of the six images? Row i, column j: how related is j to i?

# %%
some = torch.tensor(six)
near, far = cosine[60, 61], cosine[60, 160]
title = f"Cosine: the two threes {near:.2f}, a three with an eight {far:.2f}"
relation_heatmap(cosine[some][:, some], names, title, unit="image")

# %% [markdown]
# Look for blocks of two by two along the diagonal. Are all three as bright? Compare the smallest number inside them with the
# largest outside (hover, or read the colours).
#
# ### RKD: match the whole constellation
#
# *Relational knowledge distillation* ([arXiv 1904.05068](https://arxiv.org/abs/1904.05068)) does not score pairs. It asks the
# pupil to copy the **constellation** of a batch: the same distances between images, up to one common scale.


# %%
def rkd_distance_by_hand(teacher, student):
    def distances(e):
        d = (e[:, None] - e[None, :]).norm(dim=2)
        return d / d[d > 0].mean()  # in units of their mean: the scale is free

    return F.smooth_l1_loss(distances(student), distances(teacher.detach()))


# %% [markdown]
# Its second half looks at *triples*: stand at image i and look at j and at k. What is the cosine of the angle between the two
# directions? The pupil should see the same angle.


# %%
def rkd_angle_by_hand(teacher, student):
    def angles(e):
        towards = F.normalize(e[None, :] - e[:, None], dim=2)  # (B, B, D): from i to j
        return towards @ towards.transpose(1, 2)  # (B, B, B): at i, between j and k

    return F.smooth_l1_loss(angles(student), angles(teacher.detach()))


# %% [markdown]
# **Predict:** the pupil is the teacher, but (a) three times as large, (b) turned by a random rotation, (c) with one image
# moved far away. Where does RKD see a difference?

# %%
# NBVAL_CHECK_OUTPUT
teacher = embeddings[::8]  # 25 images, as in a batch
rotation = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0))).Q
moved = teacher.clone()
moved[0] += 5 * teacher.std()
for what, student in {"larger": 3 * teacher, "turned": teacher @ rotation, "one image moved": moved}.items():
    ours = rkd_distance_by_hand(teacher, student), rkd_angle_by_hand(teacher, student)
    library = rkd_distance(teacher, student), rkd_angle(teacher, student)
    assert torch.allclose(torch.stack(ours), torch.stack(library), atol=1e-4)
    print(f"{what}: {'a difference' if sum(ours) > 1e-4 else 'no difference'}")

# %% [markdown]
# RKD asks for a *shape*, wherever it stands. That is a strength: teacher and pupil need not have the same axes.
#
# But notice what none of the four formulas contains: **a class**. Nobody tells them that a three written like an eight is
# still a three. And they have nothing to train: if the formula weighs the wrong directions, it goes on doing so.

# %% [markdown]
# ## Relations that are learned
#
# ### First: which pairs?
#
# CORSD reads *structured* pairs. Structured means: chosen by class. For every **intra** pair (two images of one class) there
# is an **inter** pair with the same first image, its *anchor*, and an image of another class.
#
# **Predict:** a batch has the labels 3, 3, 8, 8, 1. How many ordered intra pairs are there? Which image is never an anchor?

# %%
# NBVAL_CHECK_OUTPUT
batch = torch.tensor([3, 3, 8, 8, 1])
pairs = sample_pairs(batch, torch.Generator().manual_seed(0))
for (anchor, same), (_, other) in zip(pairs.intra.T.tolist(), pairs.inter.T.tolist(), strict=True):
    assert batch[anchor] == batch[same] != batch[other]
    print(f"anchor: image {anchor}, class {batch[anchor]}; with image {same}, class {batch[same]}; other class: image {other}")

# %% [markdown]
# The only image of class 1 stays alone: it can be the *other* image of a pair, never an anchor. That matters when classes are
# many.
#
# **Predict:** CIFAR-100 has 100 classes. In a batch of 128 images drawn at random, what share of the images has nobody of its
# own class beside it?

# %%
# NBVAL_CHECK_OUTPUT
alone = (1 - 1 / 100) ** 127  # none of the 127 others is of the class
print(f"about {100 * alone:.0f} of 100 images have no partner")

# %% [markdown]
# That is why the library's CORSD fills its batches with two images of each class it draws. With ten digits it hardly matters:
# the recipe here uses plain batches.
#
# ### The relation network, in full
#
# Two images go in. `U` reads the first, `V` reads the second; their sum goes through a ReLU and becomes the *relation
# embedding* `h`. One number is read off `h`, the **score**. One more linear layer names the classes in the pair: the
# **auxiliary classifier**, to which the next notebook belongs.


# %%
class RelationByHand(nn.Module):
    def __init__(self, width=64, classes=10, hidden=128):
        super().__init__()
        self.first = nn.Linear(width, hidden)  # U, and a bias
        self.second = nn.Linear(width, hidden, bias=False)  # V
        self.score = nn.Linear(hidden, 1)
        self.auxiliary = nn.Linear(hidden, classes)

    def forward(self, e):  # (B, D)
        e = F.layer_norm(e, e.shape[1:])  # scales differ from stage to stage
        h = F.relu(self.first(e)[:, None] + self.second(e)[None, :])  # (B, B, H): all pairs
        return self.score(h).sigmoid().squeeze(2), self.auxiliary(h)  # (B, B), (B, B, C)


# %% [markdown]
# The run has kept its trained relation networks, one a stage. We put the weights of the deepest one into ours. Do both give
# the same scores to all pairs of probe images?

# %%
# NBVAL_CHECK_OUTPUT
library = relation_networks_at(run, run.probes[epochs])[-1]
relation = RelationByHand()
relation.load_state_dict(library.state_dict())
with torch.no_grad():
    trained, answers = relation(embeddings)
    assert torch.allclose(trained, library.scores(embeddings), atol=1e-5)
print("the same scores for", trained.numel(), "pairs")

# %% [markdown]
# ### Why U e_i + V e_j is enough
#
# The plain way to show a pair to a network is to put both vectors side by side and multiply by one wide matrix `W`. Cut `W`
# in the middle, and it is a sum: `W [e_i; e_j] = U e_i + V e_j`. So `U e` and `V e` are computed *once an image*, and a pair
# costs an addition. Nothing is approximated.

# %%
e = F.layer_norm(embeddings, embeddings.shape[1:])
u, v = relation.first(e).detach(), relation.second(e).detach()  # (200, 128) each
w = torch.cat([relation.first.weight, relation.second.weight], dim=1).detach()  # (128, 2 x 64)
wide = torch.cat([e[3], e[70]]) @ w.T + relation.first.bias.detach()  # one pair, the plain way
assert torch.allclose(wide, u[3] + v[70], atol=1e-4)

# %% [markdown]
# **Predict:** how many times fewer multiplications are that for all pairs of 200 images?

# %%
# NBVAL_CHECK_OUTPUT
images, width, hidden = len(e), e.shape[1], 128
side_by_side = images**2 * (2 * width) * hidden
cut_in_two = 2 * images * width * hidden
print(f"side by side: {side_by_side:,} multiplications")
print(f"cut in two:   {cut_in_two:,}, {side_by_side // cut_in_two} times fewer")

# %% [markdown]
# As many times fewer as there are images in the batch.
#
# #### But does a *sum* see a pair at all?
#
# A good doubt. If the score were read off `U e_i + V e_j` directly, it would be "how nice is i" plus "how nice is j". Then
# every image would have the *same* favourite partner. What saves it is the **ReLU** between the sum and the score: whether `V
# e_j` counts depends on what `U e_i` has added to it. Let us look for the favourite partner of each of the 200 images.

# %%
# NBVAL_CHECK_OUTPUT
weight = relation.score.weight.detach().double()
pair_sums = u.double()[:, None] + v.double()[None, :]  # (200, 200, 128)
for what, h in {"without ReLU": pair_sums, "with ReLU": pair_sums.relu()}.items():
    favourites = (h @ weight.T).squeeze(2).argmax(dim=1).unique()
    print(f"{what}: {'one image is' if len(favourites) == 1 else 'several images are'} somebody's favourite")

# %% [markdown]
# One more thing to know: `U` and `V` are different matrices, so the relation of i to j need not be that of j to i. How
# different are they?

# %%
gap = (trained - trained.T).abs()
print(f"r_ij and r_ji differ by {gap.mean():.3f} on average, and by {gap.max():.2f} at most")

# %% [markdown]
# ## The losses, in full
#
# ### Margin: what makes it a relation
#
# For every triple of an anchor i, an image j of its class and an image k of another, `r_ij` should lie above `r_ik` by a
# margin m. What is missing is the loss. All triples of a batch at once:


# %%
def margin_by_hand(r, labels, m=1.0):
    same = labels[:, None] == labels[None, :]
    intra = same & ~torch.eye(len(labels), dtype=torch.bool)  # an image is no partner of itself
    missing = F.relu(m - r[:, :, None] + r[:, None, :])  # (B, B, B): i, j, k
    triples = intra[:, :, None] & ~same[:, None, :]
    return missing[triples].mean()


# %% [markdown]
# This table grows with B³: for the 200 probe images it has eight million entries. The library sorts each row instead and
# never makes it. The number is the same.

# %%
# NBVAL_CHECK_OUTPUT
few = slice(0, 200, 4)  # 50 images, 5 of each digit
r, y = trained[few, few], labels[few]
for m in (1.0, 0.3):
    assert torch.allclose(margin_by_hand(r, y, m), margin_over_batch(r, y, m), atol=1e-5)
print("the same loss for", 50 * 4 * 45, "triples, with a large and with a small margin")

# %% [markdown]
# **A detail worth knowing.** CORSD's margin is m = 1, and scores lie between 0 and 1. So `1 - r_ij + r_ik` is never below 0,
# and the ReLU never cuts anything: no triple is ever *good enough*. With m = 1 this is a steady pull, same classes up, others
# down. With a smaller m most triples rest after a while:

# %%
missing = {m: m - r[:, :, None] + r[:, None, :] for m in (1.0, 0.3)}
same = y[:, None] == y[None, :]
triples = (same & ~torch.eye(len(y), dtype=torch.bool))[:, :, None] & ~same[:, None, :]
resting = {m: (values[triples] <= 0).float().mean() for m, values in missing.items()}
print(", ".join(f"margin {m}: {share:.0%} of the triples rest" for m, share in resting.items()))

# %% [markdown]
# ### Transfer: what makes it a distillation
#
# A shallow stage has a relation network of its own, and should score a pair as the deepest one does. The loss is the mean
# squared difference. Intra pairs are few and inter pairs many, so each kind weighs one half.


# %%
def transfer_by_hand(teacher, student, labels):
    same = labels[:, None] == labels[None, :]
    intra = same & ~torch.eye(len(labels), dtype=torch.bool)
    gap = (student - teacher.detach()).square()  # detach: the teacher gets no gradient
    return (gap[intra].mean() + gap[~same].mean()) / 2


# %%
# NBVAL_CHECK_OUTPUT
shallow = snapshot_scores(run, epochs, exit=1)[few, few]
intra = same & ~torch.eye(len(y), dtype=torch.bool)
expected = relation_transfer((r[intra], r[~same]), (shallow[intra], shallow[~same]))
assert torch.allclose(transfer_by_hand(r, shallow, y), expected, atol=1e-6)
print("the same loss:", intra.sum().item(), "intra and", (~same).sum().item(), "inter pairs, half and half")

# %% [markdown]
# **Why stop the gradient?** Take one pair. The teacher says 90 %, the pupil 10 %, and both follow the gradient of the squared
# difference.
#
# **Predict:** where do they meet, with the stop and without it?

# %%
# NBVAL_CHECK_OUTPUT
for stop in (True, False):
    teacher, student = torch.tensor(0.9, requires_grad=True), torch.tensor(0.1, requires_grad=True)
    descent = torch.optim.SGD([teacher, student], lr=0.1)
    for _ in range(100):
        descent.zero_grad()
        (student - (teacher.detach() if stop else teacher)).square().backward()
        descent.step()
    print(f"{'with' if stop else 'without'} stop: teacher {100 * teacher:.0f} %, pupil {100 * student:.0f} %")

# %% [markdown]
# Without the stop the teacher comes half-way down to its pupil. The release of the paper's authors had no stop here; the
# library mends that, with a test.
#
# ### Logit relation: an image and its class
#
# The last relational loss relates an image to a whole *class*. The partner is not an image but the running mean of the logits
# `z` of a class. An image should be related to the mean of its own class, and less to the mean of one other.


# %%
class LogitRelationByHand:
    def __init__(self, score, classes, keep=0.9):
        self.score, self.keep = score, keep
        self.mean, self.seen = torch.zeros(classes, classes), torch.zeros(classes)

    def loss(self, z, labels, other, m=1.0):
        mean = self.mean / self.seen[:, None]  # corrects for the zeros it began with
        own, another = self.score(z, mean[labels]), self.score(z, mean[other])
        return F.relu(m - own + another).mean()

    def remember(self, z, labels):
        for c in labels.unique():
            here = z[labels == c].mean(dim=0)
            self.mean[c] = self.keep * self.mean[c] + (1 - self.keep) * here
            self.seen[c] = self.keep * self.seen[c] + (1 - self.keep)


# %% [markdown]
# Both see a first batch to remember and a second one to judge. The *other* class of each image is drawn at random, so both get
# the same draw.

# %%
# NBVAL_CHECK_OUTPUT
z = run.probes[epochs].logits[-1].float()
first, second = torch.arange(0, 200, 2), torch.arange(1, 200, 2)
library = LogitRelation(10, hidden=16, momentum=0.9)
ours = LogitRelationByHand(library.relation.pair_scores, classes=10)
other = library.draw(labels[second], torch.Generator().manual_seed(1))
with torch.no_grad():
    library(z[first], labels[first], library.draw(labels[first], None), 1.0)
    ours.remember(z[first], labels[first])
    expected = library(z[second], labels[second], other, 1.0)
    assert torch.allclose(ours.loss(z[second], labels[second], other), expected, atol=1e-6)
print("the same loss for", len(second), "images and", len(ours.mean), "class means")

# %% [markdown]
# ## Formula against training
#
# ### Look at both
#
# The same 60 probe images, six of each digit, sorted by digit. First the formula, then the trained score. Colours run from 0
# to 1 in both.
#
# **Predict:** which of the two has the sharper blocks? Is that the same as being *right* more often?

# %%
shown = (torch.arange(200) % 20 < 6).nonzero().flatten()
digit = [run.data.class_names[c] for c in labels[shown]]
blocks = {"groups": labels[shown], "group_names": run.data.class_names, "unit": "image"}

# %%
title = f"Cosine: detects the same digit with an AUC of {same_class_auc(cosine, labels):.3f}"
relation_heatmap(cosine[shown][:, shown], digit, title, **blocks)

# %%
title = f"Trained: detects the same digit with an AUC of {same_class_auc(trained, labels):.3f}"
relation_heatmap(trained[shown][:, shown], digit, title, **blocks)

# %% [markdown]
# The trained picture has more *contrast*: nearly all of the range from 0 to 1 is used. But contrast is about the scale of a
# score. Sharper colours could be had by stretching any score.
#
# ### Judge both by one number
#
# The titles hold the **AUC**: draw one intra and one inter pair at random. How often does the intra pair have the higher
# score? 1 is always, 0.5 is a coin. Only the *order* of the scores counts, so that stretching changes nothing. That makes it
# a fair judge between a formula and a trained score.
#
# A fair judge needs a fair trial. The embeddings above come from a network that was trained *with* relations. So we also ask
# the formulas about a plain network, which never heard of them.

# %%
plain = train(plan("probe", run_directory, epochs, per_class, seed), progress=False)

# %%
asked = {"plain network": (plain, ["cosine", "l2"]), "CORSD": (run, ["cosine", "l2", "trained"])}
judged = {
    (network, kind): relation_quality(one, epochs, kind).set_index("exit")["auc"]
    for network, (one, kinds) in asked.items()
    for kind in kinds
}
pd.DataFrame(judged).T.rename(columns="exit {}".format).round(3)

# %% [markdown]
# Read it row by row, then answer three questions from *your* numbers:
#
# 1. Within CORSD: is the trained score ahead of the cosine, level with it, or behind, and does that change with the exit?
# 2. Between the networks: is the *cosine* ahead on CORSD's embeddings or on the plain ones? (They differ in more than
#    relations: CORSD's exits learn and are taught, too.)
# 3. How large are these differences, for one seed and 200 images?

# %%
best = {k: max(judged, key=lambda who, k=k: judged[who][k]) for k in (1, 2, 3)}
for k, (network, kind) in best.items():
    lead = judged[network, kind][k] - judged["CORSD", "trained"][k]
    print(f"exit {k}: best is {kind} on the {network.removesuffix(' network')} network, {lead:.3f} ahead of trained")

# %% [markdown]
# ### Where they disagree
#
# Numbers hide the cases. Here is the pair of *different* digits that each of them finds most related.

# %%
other = labels[:, None] != labels[None, :]
scores = {"cosine": cosine, "trained": trained}
fooled = [divmod((s * other).argmax().item(), 200) for s in scores.values()]
captions = [run.data.class_names[labels[i]] for pair in fooled for i in pair]
title = ", ".join(f"{name} {s[pair]:.2f}" for (name, s), pair in zip(scores.items(), fooled, strict=True))
image_strip(run_pixels(run, [i for pair in fooled for i in pair]), captions, f"Fooled most: {title}", columns=4)

# %% [markdown]
# The left two fooled the cosine most, the right two the trained score; the title has the relation of each pair, where 1 would
# be *the same digit*. Would they have fooled you?
#
# ### A harder case: a hundred classes
#
# Digits are easy. The repository carries a small CORSD training on CIFAR-100 (100 images a class, 60 epochs, *one* seed) with
# what it made of 300 photographs of its validation split. The photographs stay away, the embeddings are enough.

# %%
photos = committed_run("cifar100_small/corsd")
found = pd.concat(relation_quality(photos, 60, kind) for kind in ("l2", "cosine", "trained"))
found.pivot(index="kind", columns="exit", values=["auc", "margin"]).round(3)

# %% [markdown]
# `auc` you know. `margin` is the contrast: mean score within a class minus mean score between classes.

# %%
# NBVAL_CHECK_OUTPUT
by_kind = {kind: rows.set_index("exit") for kind, rows in found.groupby("kind")}
order = (by_kind["cosine"]["auc"] > by_kind["trained"]["auc"]).sum()
contrast = (by_kind["trained"]["margin"] > by_kind["cosine"]["margin"]).sum()
print(f"the cosine orders pairs better at {order} of 3 exits")
print(f"the trained score has more contrast at {contrast} of 3 exits")

# %% [markdown]
# Who *orders* pairs of new photographs better, and who says the answer louder? The two need not be the same one: a formula can
# be ahead in order of the very network that was trained for it. A possible reason, which nobody has tested here: the relation
# network has seen 10,000 training images and can overfit to them, while a cosine has nothing to overfit with. Read off the
# table how small the lead is. It is one seed, and the AUC rests on 300 images.
#
# **What follows?** A relation network is a *teaching device*: it sends gradients into the stages and is thrown away. It need
# not be the best detector to be a useful teacher. Whether it is one is a question for accuracies and seeds; see
# [11_compare_methods](11_compare_methods.ipynb).

# %% [markdown]
# ## Explore it
#
# Choose a relation ("trained", "cosine", "l2"), an exit and an epoch. "image x image" shows single pairs, and a click opens
# them.
#
# **Look for:** the epoch at which the trained relation overtakes the cosine in contrast. Does the cosine change at all while
# the network trains?

# %%
explorer = RelationExplorer(run)
explorer.level = "image"
display(explorer)

# %% [markdown]
# ![The relation explorer set to single images: a heatmap of 200 by 200 probe digits, sorted by class, with ten bright squares
# along its diagonal and some bright specks elsewhere.](images/03_relation_explorer.png)
#
# *The explorer's heatmap as a picture, at the deepest exit after the last epoch.* Ten bright squares are the ten digits. A
# bright speck outside them is a pair of different digits that is taken for related. A dark line across a square is an image
# that is related to few others of its digit. The thin blank diagonal is every image with itself, which is no pair.
#
# ## Recap
#
# - **Formulas** (L2, cosine, RKD's distances and angles) need no training and name no class.
# - A **relation network** is `ReLU(U e_i + V e_j)` and a score. The cut saves a factor of the batch size; the ReLU makes it
#   see pairs.
# - **Margin** makes the score a relation, **transfer** hands it down with the gradient stopped at the teacher, and the
#   **logit relation** ties an image to its class.
# - The **AUC** judges the order of scores, contrast their scale. A trained score wins in contrast; whether it wins in order
#   is to be measured each time.
# - A relation network is there to **teach**, and is thrown away. It need not be the best detector.

# %% [markdown]
# ## Exercise 1: all pairs from two tables
#
# `u` and `v` are tables (B, H). Give the table (B, B, H) whose entry `[i, j]` is `u[i] + v[j]`, without a loop. The answers
# are in `notebooks/solutions`.


# %% tags=["exercise"]
def all_pair_sums(u, v):
    return ...


# %% tags=["solution"]
def all_pair_sums(u, v):
    return u[:, None, :] + v[None, :, :]


# %% tags=["check"]
a, b = torch.arange(6.0).view(3, 2), 10 * torch.arange(6.0).view(3, 2)
sums = all_pair_sums(a, b)
assert isinstance(sums, torch.Tensor), "there is no answer yet: write yours in place of the `...`"
assert sums.shape == (3, 3, 2), f"the table should be (3, 3, 2), yours is {tuple(sums.shape)}"
assert torch.equal(sums[0, 2], a[0] + b[2]), "entry [0, 2] should be u[0] + v[2]: is it the other way round?"
assert all(torch.equal(sums[i, j], a[i] + b[j]) for i in range(3) for j in range(3)), "another entry is wrong"
print("Exercise 1: right.")

# %% [markdown]
# ## Exercise 2: the AUC by hand
#
# `intra` holds the scores of same-class pairs, `inter` those of other pairs; there may be more of one than of the other. Give
# the share of all combinations in which the intra score is higher. A tie counts one half.


# %% tags=["exercise"]
def auc_by_hand(intra, inter):
    return ...


# %% tags=["solution"]
def auc_by_hand(intra, inter):
    higher = (intra[:, None] > inter[None, :]).float()
    tie = (intra[:, None] == inter[None, :]).float()
    return (higher + tie / 2).mean()


# %% tags=["check"]
share = auc_by_hand(torch.tensor([0.9, 0.5]), torch.tensor([0.1, 0.6, 0.2]))
assert share is not ..., "there is no answer yet: write yours in place of the `...`"
assert abs(share - 5 / 6) < 1e-6, "5 of the 6 combinations are in order here"
assert abs(auc_by_hand(torch.tensor([0.5]), torch.tensor([0.5, 0.1])) - 3 / 4) < 1e-6, "a tie counts one half"
print("Exercise 2: right.")

# %% [markdown]
# With your function: does it give what the library said of the trained relation?

# %% tags=["uses-answer"]
same = labels[:, None] == labels[None, :]
intra = same & ~torch.eye(200, dtype=torch.bool)
print(f"yours {auc_by_hand(trained[intra], trained[~same]):.4f}, the library's {same_class_auc(trained, labels):.4f}")

# %% [markdown]
# ## Where next
#
# - [04_class_oriented](04_class_oriented.ipynb): the second answer of a relation network, *which* classes are in the pair,
#   and what goes wrong without it.
# - [07_relation_explorer](07_relation_explorer.ipynb): findings to discover in the matrices of a hundred classes.
# - [11_compare_methods](11_compare_methods.ipynb): CORSD beside RKD and the others, with seeds and intervals.
# - Try a formula as CORSD's relation: `train(TrainConfig(method="corsd", method_options={"relation": "cosine"}))`.
