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
# # 10 Which pixels made it related?
#
# An exit says "this is a 3". A relation network says "these two belong together". **Which pixels made them say so?** A map
# that colours the pixels always looks like an answer. This notebook makes such maps, checks their arithmetic, and then spends
# as much care on distrusting them.
#
# **You will learn**
#
# - *integrated gradients*, written out in full and equal to the library's;
# - *completeness*: a sum that tells whether a map accounts for what it claims to explain;
# - why every map depends on what you call an *empty image*, and why an empty image can score high;
# - *Grad-CAM*, and what it cannot see;
# - to attribute a *relation* to the pixels of two images;
# - two tests before you believe a heatmap: draw the weights anew, and delete pixels.
#
# **You need** [01_walkthrough](01_walkthrough.ipynb), and an idea of what a gradient is. **Time:** the notebook runs in half a
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
from dataclasses import replace

import numpy as np
import pandas as pd
import plotly.express as px
import torch
from captum.attr import IntegratedGradients
from IPython.display import display
from torch.nn import functional as F

from corsd_lib import AttributionExplorer, attribute_exit, attribute_pair, run_images, train
from corsd_lib.analysis import run_pixels, snapshot_scores
from corsd_lib.analysis.relations import spearman
from corsd_lib.attribution import deletion_curve
from corsd_lib.attribution.checks import redrawn
from corsd_lib.batches import Normalise
from corsd_lib.figures import image_attribution, image_strip, template
from corsd_lib.walkthrough import plan

torch.set_num_threads(1)  # the images are tiny: a second thread would wait more than it works

# %% tags=["parameters"]
epochs = 120  # how often each training image is seen
per_class = 10  # labelled images of each digit
seed = 0
digit = 3  # the first validation image of this digit is explained
run_directory = "runs/digits"  # finished trainings are found here again

# %% [markdown]
# ## A network to question
#
# CORSD on a hundred handwritten digits, as in the walkthrough; a finished run is opened, not trained again. We question it
# about images that it has not learned from.

# %%
run = train(plan("corsd", run_directory, epochs, per_class, seed), progress=False)
network, labels = run.network().eval(), run.probes.labels

# %% tags=["nbval-check-output"]
position = (labels == digit).nonzero()[0].item()
pixels, image = run_pixels(run, [position])[0], run_images(run, [position])[0]
print(f"image {position} of {len(labels)} is a {labels[position]}")
print("for people:", tuple(pixels.shape), pixels.dtype, "  for the network:", tuple(image.shape), image.dtype)

# %% [markdown]
# Explained is one number. We take the **logit** of the class that exit 3 decides for. Not its probability: that is flat near
# 1, and it changes when another class does.

# %%
with torch.no_grad():
    answer = network(image[None]).logits[2].softmax(dim=1)[0]
target = answer.argmax().item()
image_strip(pixels[None], [f"a {digit}"], f"Exit 3 says {target}, {answer[target]:.0%} sure")


# %%
def logit(images):  # (n, 1, 8, 8) -> (n,)
    return network(images).logits[2][:, target]


# %% [markdown]
# ## Integrated gradients
#
# The gradient of the logit says what a *tiny* change of each pixel would do, here. That is not what made the score: where the
# network is sure, hardly anything changes it. So start from an **empty image** and walk to the real one in a straight line.
# On the way, add up what each pixel gives: its gradient at every point of the line, times how far that pixel travels.
#
# `attribution = (image - empty) * mean over the line of gradient(logit)`
#
# The mean over a line is an integral. It is measured best not at evenly spread points but at those of Gauss and Legendre, which
# numpy knows, each with its weight. **Predict:** which shape has the answer?


# %%
def integrated_gradients(score, image, empty, steps=50):
    points, weights = (torch.tensor(v).float() for v in np.polynomial.legendre.leggauss(steps))  # on -1 .. 1
    share = ((points + 1) / 2)[:, None, None, None]  # (steps, 1, 1, 1): 0 at the empty image, 1 at the real one
    line = (empty + share * (image - empty)).requires_grad_()  # (steps, C, H, W)
    (gradient,) = torch.autograd.grad(score(line).sum(), line)
    mean = (weights[:, None, None, None] / 2 * gradient).sum(dim=0)
    return (image - empty) * mean  # (C, H, W): how much each pixel gave


# %% [markdown]
# That is all of it. Does the package `captum`, which many use, say the same? And the library, which calls captum? The empty
# image is zero everywhere: once normalised, that is the mean colour.

# %% tags=["nbval-check-output"]
empty = torch.zeros_like(image)
by_hand = integrated_gradients(logit, image, empty)
captums = IntegratedGradients(logit).attribute(image[None], empty[None], n_steps=50)[0]
found = attribute_exit(network, image, exit=3, target=target)
assert torch.allclose(by_hand, captums.float(), atol=1e-3)
assert torch.allclose(by_hand, found.values, atol=1e-3)
print("the same for all", by_hand.numel(), "pixels")

# %%
most = found.map.flatten().abs().sort(descending=True).values
few = ((most.cumsum(0) < most.sum() / 2).sum() + 1).item()
title = f"Half of what speaks for or against {target} lies on {few} of {len(most)} pixels"
image_attribution(pixels[None].numpy(), found.map[None].numpy(), [f"a {digit}"], title)

# %% [markdown]
# Orange pixels raised the logit, blue ones lowered it. Note that an *empty* place can be orange: that there is no ink can speak
# for a 3. Does the map look plausible to you? Hold that thought; plausible is not a test.
#
# ## Completeness
#
# The walk begins at `logit(empty)` and ends at `logit(image)`. All that is gained on the way was shared out among the pixels.
# So the map must add up to the difference. What is missing, as a share of the difference, is the *completeness gap*.
# **Predict:** how many steps are enough?

# %%
with torch.no_grad():
    gained = (logit(image[None]) - logit(empty[None])).item()
print(f"from the empty image to the real one the logit gains {gained:.2f}")
for steps in (1, 2, 5, 10, 20, 50):
    total = integrated_gradients(logit, image, empty, steps).sum().item()
    print(f"{steps:2} steps: the map adds up to {total:6.2f}, gap {abs(total - gained) / abs(gained):.1%}")

# %% [markdown]
# Every attribution of the library carries its gap. Above 5 %, take more steps before you read the map. The gap says that the
# *sum* is right. It does not say that the shares are.
#
# ## What is an empty image?
#
# "What each pixel gave" means: compared with what? Three candidates: the mean colour, black, and the image itself blurred.
# **Predict:** what does the network say of a black image?

# %%
black = Normalise(run.data)(torch.zeros(1, *pixels.shape, dtype=torch.uint8))[0]
with torch.no_grad():
    said = network(torch.stack([empty, black])).logits[2].softmax(dim=1)
for name, p in zip(("mean colour", "black"), said, strict=True):
    print(f"{name}: exit 3 says {p.argmax().item()} with {p.max():.0%}, and {target} with {p[target]:.0%}")

# %% [markdown]
# Nothing is there, and the network names a digit all the same. It has to: its probabilities add up to 1, and no training image
# was empty. How sure is it? If the empty image scores high already, a map that starts there has little left to explain. So
# **look at the baseline's score first**; the library states it in `baseline_score`.
#
# Now the maps. Paper is black in these scans and ink is bright. **Predict:** what does the map say about paper when the
# baseline is black?

# %%
maps = {
    kind: attribute_exit(network, image, 3, target, baseline=kind, normalise=Normalise(run.data))
    for kind in ("mean", "black", "blur")
}
heads = [f"{kind}: from {a.baseline_score:.1f} to {a.score:.1f}" for kind, a in maps.items()]
title = "Gained on the way: " + ", ".join(f"from {kind} {a.score - a.baseline_score:.1f}" for kind, a in maps.items())
image_attribution(pixels.expand(3, -1, -1, -1).numpy(), torch.stack([a.map for a in maps.values()]).numpy(), heads, title)

# %% tags=["nbval-check-output"]
paper = pixels[0] == 0
blind = {kind: (a.map[paper] == 0).sum().item() for kind, a in maps.items() if kind != "blur"}
print(f"{paper.sum().item()} of {paper.numel()} pixels are paper")
for kind, count in blind.items():
    print(f"baseline {kind}: {count} of these got exactly nothing")

# %% [markdown]
# A pixel that equals the baseline does not travel, and so it gets nothing, whatever it means. Black paper cannot matter when
# empty means black. Neither map is wrong: they answer different questions. **A heatmap without its baseline is half a
# sentence.**
#
# ## Grad-CAM
#
# Another way: do not ask pixels, ask the places of a stage's *feature map*. At the last exit it is short. The exit averages
# over all places and then takes a weighted sum over channels; so every place contributes its own weighted sum.
# Added up, with the bias, that is the logit.

# %%
with torch.no_grad():
    feature = network(image[None]).features[2][0]  # (D, h, w)
    weight, bias = network.exits[2].classifier.weight[target], network.exits[2].classifier.bias[target]
    places = torch.einsum("d,dhw->hw", weight, feature) / feature[0].numel()  # (h, w)
    assert torch.allclose(places.sum() + bias, logit(image[None])[0], atol=1e-4)
cam = attribute_exit(network, image, 3, target, method="grad_cam")
stretched = F.interpolate(places[None, None], image.shape[1:], mode="bilinear")[0, 0]
assert torch.allclose(stretched, cam.map, atol=1e-4)
print("the places add up to the logit, and stretched to the image they are the library's map")

# %% [markdown]
# At shallow exits the gradient stands in for the weight: *Grad*-CAM. **Predict:** how many places does the map of each stage
# have, of an image of 8 x 8 pixels?

# %% tags=["nbval-check-output"]
for k, feature in enumerate(network(image[None]).features, 1):
    print(f"exit {k}: {feature.shape[2]} x {feature.shape[3]} places, {feature.shape[1]} channels")

# %%
cams = [attribute_exit(network, image, k, target, method="grad_cam") for k in (1, 2, 3)]
heads = [f"exit {a.exit}" for a in cams]
title = f"The logit of {target} at the three exits: " + ", ".join(f"{a.score:.1f}" for a in cams)
three = torch.stack([a.map / a.map.abs().max() for a in cams])  # each on a scale of its own
image_attribution(pixels.expand(3, -1, -1, -1).numpy(), three.numpy(), heads, title)

# %% [markdown]
# The deepest map has so few places that stretching it to the image draws a soft cloud. It looks smooth; it is coarse. And
# Grad-CAM says nothing about how a place came to its features: each of them has seen a large part of the image.
#
# ## Which pixels made two images related?
#
# A relation reads two images, so the walk is from two empty images to two real ones, at once. Both maps together add up to the
# gain. Explained is the relation's logit, before the sigmoid, for the same reason as above.
#
# An interesting pair: the two *different* digits that the deepest relation finds most related.

# %%
scores = snapshot_scores(run, epochs, exit=3)
same = labels[:, None] == labels
a, b = divmod(scores.masked_fill(same, -1).argmax().item(), len(labels))
both, seen = run_images(run, [a, b]), run_pixels(run, [a, b])
relations = run.method().relation_networks()
of_a, of_b = attribute_pair(network, relations, *both, exit=3)
heads = [f"first: a {labels[a]}", f"second: a {labels[b]}"]
title = f"A {labels[a]} and a {labels[b]}: relation {scores[a, b]:.2f}"
image_attribution(seen.numpy(), torch.stack([of_a.map, of_b.map]).numpy(), heads, title)

# %% [markdown]
# Orange pixels made the two related, blue ones spoke against it. Look at strokes that both images have, and at strokes that
# only one has. Would you have taken these two for the same digit?
#
# Three checks. Do the maps add up? What is the relation of two empty images? And the other way round, `(second, first)`?

# %%
back, _ = attribute_pair(network, relations, *both.flip(0), exit=3)
as_relation = {name: torch.tensor(value).sigmoid().item() for name, value in (("pair", of_a.score), ("back", back.score))}
print(f"both maps add up to {of_a.map.sum() + of_b.map.sum():.2f}, the gain is {of_a.score - of_a.baseline_score:.2f}")
print(f"two empty images: logit {of_a.baseline_score:.2f}; the pair: {of_a.score:.2f}")
print(f"relation of the pair {as_relation['pair']:.2f}, the other way round {as_relation['back']:.2f}")

# %% [markdown]
# Two empty images are as alike as two images can be. If their logit is high, the walk starts high: much of the relation was
# there before any ink was. Read this number before you read the maps.

# %% [markdown]
# ## Distrust it, first test: draw the weights anew
#
# A network whose weights are drawn at random knows nothing. If its map looks like yours, then yours shows the *image*, not
# what was learned. **Predict:** will the two maps below look alike?

# %%
untrained = attribute_exit(redrawn(network, seed), image, 3, target)
likeness = spearman(found.map.flatten(), untrained.map.flatten())
two = torch.stack([m.map / m.map.abs().max() for m in (found, untrained)])  # each on a scale of its own
title = f"Rank correlation of the two maps: {likeness:.2f}"
image_attribution(pixels.expand(2, -1, -1, -1).numpy(), two.numpy(), ["trained", "weights drawn anew"], title)

# %% [markdown]
# One draw is luck; take twenty. And ask twice: do the *signed* maps agree, and does their *strength*, what one sees in a
# heatmap of one colour?

# %%
draws = []
for number in range(20):
    other = attribute_exit(redrawn(network, number), image, 3, target).map.flatten()
    mine = found.map.flatten()
    draws.append({"signed": spearman(mine, other), "strength": spearman(mine.abs(), other.abs())})
draws = pd.DataFrame(draws)
title = f"Mean over 20 networks: signed {draws['signed'].mean():.2f}, strength {draws['strength'].mean():.2f}"
look = {"labels": {"value": "rank correlation", "variable": "map"}, "template": template(), "height": 320}
px.strip(draws, orientation="h", title=title, **look)

# %% [markdown]
# Near 0 means that the map depends on what was learned. Is the strength further from 0 than the sign? Each attribution is
# multiplied by `image - empty`, which every network shares: part of any such map is the image itself. **A one-coloured heatmap
# hides the half that was learned.** The library has this test as `randomisation_check`.

# %% [markdown]
# ## Distrust it, second test: delete pixels
#
# If the map is right, then taking away its most orange pixels should hurt most. Take away more and more of them, and watch the
# probability. But a digit with holes is unlike any training image, and the probability falls *whatever* you delete. So compare
# with pixels in random order, and with a map that asks no network: brightest ink first.

# %%
ink = replace(found, map=pixels[0].float())
by_map = deletion_curve(network, image, 3, found, seed=seed)
by_ink = deletion_curve(network, image, 3, ink, seed=seed)
curves = {"by the map": by_map.probability, "brightest first": by_ink.probability, "random order": by_map.random}
areas = {"map": by_map.area, "brightest": by_ink.area, "random": by_map.random_area}
title = "Area under the curve: " + ", ".join(f"{name} {area:.2f}" for name, area in areas.items())
look = {"labels": {"x": "share of the pixels deleted", "value": f"probability of {target}", "variable": ""}, "height": 400}
px.line(pd.DataFrame(curves), x=by_map.fraction.numpy(), y=list(curves), title=title, template=template(), **look)

# %% [markdown]
# The lower the curve, the better the map has found what matters. Which of the three is lowest here? One image is an anecdote,
# so take one of every digit.

# %%
rows = []
for number in range(10):
    each = (labels == number).nonzero()[0].item()
    normal, bright = run_images(run, [each])[0], run_pixels(run, [each])[0, 0].float()
    its_map = attribute_exit(network, normal, 3)
    mine, inks = (deletion_curve(network, normal, 3, m, draws=5) for m in (its_map, replace(its_map, map=bright)))
    rows.append({"digit": number, "map": mine.area, "brightest first": inks.area, "random order": mine.random_area})
table = pd.DataFrame(rows).set_index("digit")
table.round(2)

# %%
print(f"the map beats a random order for {(table['map'] < table['random order']).sum()} of 10 digits")
print(f"brightest first beats it for     {(table['brightest first'] < table['random order']).sum()} of 10")
print(f"the map beats brightest first for {(table['map'] < table['brightest first']).sum()} of 10")

# %% [markdown]
# Is there a digit whose probability hardly falls in random order? Look back at what the network said of the empty image:
# deleting leads there, and that digit is what the network sees in nothing. The baseline is part of this test, too.
#
# Random order is a low bar. If *brightest first* beats it too, then beating it needs no knowledge of the network. The last line
# is the comparison that counts: does the map know more than where the ink is?
#
# **Both tests are needed, and neither proves a map right.** The first finds maps that ignore the network, the second maps that
# ignore what matters to it. A map that passes both has earned a closer look.

# %% [markdown]
# ## Explore it
#
# Choose an image by its digit, or *one it gets wrong*. Change exit, class to explain, method and baseline; choose a partner to
# attribute the relation of two images. The two buttons make the tests of this notebook.
#
# **Look for:** an image that exit 1 gets wrong and exit 3 gets right. Explain the *true label* at both exits. Which pixels did
# the shallow exit hold against it?

# %%
explorer = AttributionExplorer(run, image=a, partner=b)
display(explorer)

# %% [markdown]
# ![The attribution explorer's figure: two rows, one for each digit of a pair, with the image, a signed map in orange and blue,
# and the map laid over the image in grey.](images/10_attribution_explorer.png)
#
# *The explorer's figure as a picture: the most related pair of different digits.* A row is an image of the pair. The map in the
# middle is orange where a pixel made the two related and blue where it spoke against it; at its right it lies over the image.
# The title says how related the pair is.
#
# ## Recap
#
# - **Integrated gradients** walk from an empty image to the real one and share out the gain among the pixels.
# - **Completeness**: the map adds up to the gain. It checks the arithmetic, not the meaning.
# - The **baseline** is part of the question. An empty image can score high, and a pixel that equals it gets nothing.
# - **Grad-CAM** asks places of a feature map: smooth to look at, coarse in truth.
# - A **relation** has two maps with one sum. Two empty images are related too.
# - Before believing a map: **draw the weights anew**, and **delete pixels** against a random order and against the ink.

# %% [markdown]
# ## Exercise 1: does the map account for it?
#
# Give the completeness gap of a map: how far the sum of its `values` is from `score - baseline_score`, as a share of that
# difference. A float of at least 0. The answers are in `notebooks/solutions`.


# %% tags=["exercise"]
def completeness_gap(values, score, baseline_score):
    return ...


# %% tags=["solution"]
def completeness_gap(values, score, baseline_score):
    gain = score - baseline_score
    return abs(values.sum().item() - gain) / abs(gain)


# %% tags=["check"]
toy = torch.tensor([[1.0, -2.0], [3.0, 0.5]])  # adds up to 2.5
gap = completeness_gap(toy, 3.0, 1.0)
assert gap is not ..., "there is no answer yet: write yours in place of the `...`"
assert abs(gap - 0.25) < 1e-6, "2.5 where 2 was gained: a gap of one quarter of the gain"
assert abs(completeness_gap(toy, 5.0, 0.0) - 0.5) < 1e-6, "too little is a gap, too: it should not be negative"
assert abs(completeness_gap(-toy, 1.0, 3.0) - 0.25) < 1e-6, "a score that falls has a gap of at least 0, too"
print("Exercise 1: right.")

# %% [markdown]
# And for the maps of this notebook: are your gaps those that the library states?

# %% tags=["uses-answer"]
for kind, m in maps.items():
    yours = completeness_gap(m.values, m.score, m.baseline_score)
    print(f"baseline {kind}: yours {yours:.4f}, the library's {m.completeness_gap:.4f}")

# %% [markdown]
# ## Exercise 2: delete what matters most
#
# Give the `image` (C, H, W) with its `count` most attributed pixels replaced by those of `empty` (C, H, W). The
# `attribution` (H, W) is signed, and "most" means largest, not strongest. Ties may fall as they like.


# %% tags=["exercise"]
def delete_most(image, attribution, empty, count):
    return ...


# %% tags=["solution"]
def delete_most(image, attribution, empty, count):
    rank = attribution.flatten().argsort(descending=True).argsort().view_as(attribution)  # 0 for the largest
    return torch.where(rank < count, empty, image)


# %% tags=["check"]
toy, none = torch.arange(1.0, 9.0).view(2, 2, 2), torch.zeros(2, 2, 2)
holes = delete_most(toy, torch.tensor([[0.3, -0.9], [0.7, 0.1]]), none, 2)
assert isinstance(holes, torch.Tensor), "there is no answer yet: write yours in place of the `...`"
assert holes.shape == toy.shape, f"the answer should be (2, 2, 2), yours is {tuple(holes.shape)}"
assert (holes == 0).sum() == 4, "two pixels of two channels should be gone"
assert holes[0].tolist() == [[0.0, 2.0], [0.0, 4.0]], "0.7 and 0.3 are the largest; -0.9 is strong, but it speaks against"
assert torch.equal(delete_most(toy, torch.rand(2, 2), none, 0), toy), "with count 0 the image stays as it is"
assert torch.equal(delete_most(toy, torch.rand(2, 2), none + 9, 4), none + 9), "with all deleted it is the empty image"
print("Exercise 2: right.")

# %% [markdown]
# What is left of the digit when the map has had its say? Can *you* still read it, and can the network?

# %% tags=["uses-answer"]
counts = [0, 4, 8, 16, 32]
holes = torch.stack([delete_most(image, found.map, empty, n) for n in counts])
with torch.no_grad():
    left = network(holes).logits[2].softmax(dim=1)[:, target]
shown = torch.stack([delete_most(pixels, found.map, torch.zeros_like(pixels), n) for n in counts])
image_strip(shown, [f"{n}: {p:.0%}" for n, p in zip(counts, left, strict=True)], "Pixels gone, and how sure exit 3 is")

# %% [markdown]
# ## Where next
#
# - Change `digit` or `seed` in the parameters cell and run all again. Which of your conclusions survive?
# - [07_relation_explorer](07_relation_explorer.ipynb): find a pair worth asking about; its button *which pixels relate them?*
#   draws these maps where the images are.
# - [08_class_structure](08_class_structure.ipynb) and [09_stage_embeddings](09_stage_embeddings.ipynb): what the stages make
#   of whole classes, not of pixels.
# - Explain a network of your own: [12_your_own](12_your_own.ipynb).
