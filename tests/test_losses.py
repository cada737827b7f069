"""Every loss against a loop written out by hand: value and gradient, float32 and float64, random sizes and edge cases."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from corsd_lib import losses
from corsd_lib.relation import cosine_scores, distance_scores

DTYPES = [torch.float32, torch.float64]
SIZES = st.tuples(st.integers(1, 9), st.integers(2, 6), st.integers(0, 10_000))


def check_equal(fast: Callable[..., Tensor], slow: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Same value and same gradient of every input."""
    a, b = ([x.clone().requires_grad_() for x in inputs] for _ in range(2))
    left, right = fast(*a), slow(*b)
    tolerance = 1e-4 if inputs[0].dtype == torch.float32 else 1e-9
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)
    for x, y in zip(
        torch.autograd.grad(left, a, allow_unused=True),
        torch.autograd.grad(right, b, allow_unused=True),
        strict=True,
    ):
        zero = torch.zeros_like(inputs[0]) if x is None or y is None else None
        left_grad, right_grad = (zero if g is None else g for g in (x, y))
        # Gradients of correlations divide by small deviations, which float32 rounds.
        torch.testing.assert_close(left_grad, right_grad, rtol=10 * tolerance, atol=tolerance)


def softmax(row: Tensor, temperature: float = 1.0) -> Tensor:
    e = [(v / temperature).exp() for v in row]
    return torch.stack(e) / sum(e)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=20, deadline=None)
@given(sizes=SIZES)
def test_class_distillation_is_the_loop_over_pairs_of_a_class(dtype: torch.dtype, sizes: tuple[int, ...]) -> None:
    b, c, seed = sizes
    g = torch.Generator().manual_seed(seed)
    teacher, student = torch.randn(2, b, c, generator=g, dtype=dtype)
    labels = torch.randint(3, (b,), generator=g)

    def slow(student: Tensor) -> Tensor:
        total, pairs = student.sum() * 0.0, 0
        for i in range(b):
            for j in range(b):
                if i != j and labels[i] == labels[j]:
                    p, q = softmax(teacher[j], 4.0), softmax(student[i], 4.0)
                    total, pairs = total + 16 * sum(p[k] * (p[k].log() - q[k].log()) for k in range(c)), pairs + 1
        return total / max(pairs, 1)

    check_equal(lambda s: losses.class_distillation(teacher, s, labels), slow, student)


def test_class_distillation_of_a_batch_with_itself_stops_at_the_teacher() -> None:
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 0, 1, 2])
    (itself,) = torch.autograd.grad(losses.class_distillation(logits, logits, labels), logits)
    (student,) = torch.autograd.grad(losses.class_distillation(logits.detach(), logits, labels), logits)
    assert torch.equal(itself, student) and (itself[:2] != 0).all() and (itself[2:] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=20, deadline=None)
@given(sizes=SIZES, smoothing=st.sampled_from([0.0, 0.1]))
def test_mixed_cross_entropy_is_that_of_the_mixed_target(dtype: torch.dtype, sizes: tuple[int, ...], smoothing: float) -> None:
    b, c, seed = sizes
    g = torch.Generator().manual_seed(seed)
    logits, past = torch.randn(2, b, c, generator=g, dtype=dtype)
    past, share = past.softmax(1), torch.rand(b, generator=g, dtype=dtype)
    labels = torch.randint(c, (b,), generator=g)

    def slow(logits: Tensor) -> Tensor:
        total = torch.zeros((), dtype=dtype)
        for i in range(b):
            q = softmax(logits[i])
            for k in range(c):
                hard = (1 - smoothing) * float(k == labels[i]) + smoothing / c
                total = total - ((1 - share[i]) * hard + share[i] * past[i, k]) * q[k].log()
        return total / b

    check_equal(lambda z: losses.mixed_cross_entropy(z, labels, past, share, smoothing), slow, logits)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=20, deadline=None)
@given(sizes=SIZES, temperature=st.sampled_from([1.0, 3.0]))
def test_distillation_is_the_kl_of_softened_outputs(dtype: torch.dtype, sizes: tuple[int, ...], temperature: float) -> None:
    b, c, seed = sizes
    g = torch.Generator().manual_seed(seed)
    teacher, student = torch.randn(2, b, c, generator=g, dtype=dtype)

    def slow(student: Tensor) -> Tensor:
        total = torch.zeros((), dtype=dtype)
        for i in range(b):
            p, q = softmax(teacher[i], temperature), softmax(student[i], temperature)
            for k in range(c):
                total = total + p[k] * (p[k].log() - q[k].log())
        return temperature**2 * total / b

    check_equal(lambda s: losses.distillation(teacher, s, temperature), slow, student)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=20, deadline=None)
@given(sizes=SIZES)
def test_auxiliary_cross_entropy_is_against_the_half_half_label(dtype: torch.dtype, sizes: tuple[int, ...]) -> None:
    p, c, seed = sizes
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(p, c, generator=g, dtype=dtype)
    first, second = torch.randint(c, (2, p), generator=g)

    def slow(logits: Tensor) -> Tensor:
        total = torch.zeros((), dtype=dtype)
        for i in range(p):
            target = torch.zeros(c, dtype=dtype)
            target[first[i]] += 0.5
            target[second[i]] += 0.5
            for k in range(c):
                total = total - target[k] * softmax(logits[i])[k].log()
        return total / p

    check_equal(lambda x: losses.auxiliary_cross_entropy(x, first, second), slow, logits)


def test_auxiliary_label_is_not_softened_as_in_the_release() -> None:
    """The authors' code pushed the label through a softmax: then even a perfect answer costs almost log C. Ours costs log 2."""
    classes = 100
    first, second = torch.tensor([3]), torch.tensor([7])
    perfect = torch.full((1, classes), -40.0)
    perfect[0, [3, 7]] = 0.0
    assert losses.auxiliary_cross_entropy(perfect, first, second).item() == pytest.approx(math.log(2), abs=1e-6)
    assert losses.auxiliary_cross_entropy(perfect, first, first).item() == pytest.approx(math.log(2), abs=1e-6)


def test_distillation_reads_log_probabilities_not_raw_logits() -> None:
    """KL of a distribution with itself is 0 and ignores a shift of the logits; for raw logits (authors' code) neither holds."""
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    assert losses.distillation(logits, logits + 3.0).item() == pytest.approx(0.0, abs=1e-6)
    assert losses.distillation(logits, logits.roll(1, 1)).item() > 0


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=20, deadline=None)
@given(p=st.integers(0, 6), q=st.integers(0, 6), seed=st.integers(0, 10_000))
def test_relation_transfer_weighs_intra_and_inter_one_half_each(dtype: torch.dtype, p: int, q: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    t1, s1 = torch.rand(2, p, generator=g, dtype=dtype)
    t2, s2 = torch.rand(2, q, generator=g, dtype=dtype)

    def slow(s1: Tensor, s2: Tensor) -> Tensor:
        kinds = []
        for teacher, student in ((t1, s1), (t2, s2)):
            if len(teacher):
                kinds.append(sum((student[i] - teacher[i]) ** 2 for i in range(len(teacher))) / len(teacher))
        return sum(kinds) / len(kinds) if kinds else (s1.sum() + s2.sum()) * 0

    check_equal(lambda a, b: losses.relation_transfer((t1, t2), (a, b)), slow, s1, s2)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=20, deadline=None)
@given(sizes=SIZES, classes=st.integers(1, 4))
def test_relation_transfer_over_batch_is_that_of_all_pairs(dtype: torch.dtype, sizes: tuple[int, ...], classes: int) -> None:
    b, _, seed = sizes
    g = torch.Generator().manual_seed(seed)
    teacher, student = torch.rand(2, b, b, generator=g, dtype=dtype)
    labels = torch.randint(classes, (b,), generator=g)

    def slow(student: Tensor) -> Tensor:
        kinds: dict[bool, list[Tensor]] = {}
        for i in range(b):
            for j in range(b):
                if i != j:
                    kinds.setdefault(bool(labels[i] == labels[j]), []).append((student[i, j] - teacher[i, j]) ** 2)
        means = [sum(square) / len(square) for square in kinds.values()]
        return sum(means) / len(means) if means else student.sum() * 0

    check_equal(lambda s: losses.relation_transfer_over_batch(teacher, s, labels), slow, student)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=30, deadline=None)
@given(sizes=SIZES, margin=st.sampled_from([0.0, 0.1, 0.37, 1.0, 1.5]), classes=st.integers(1, 4))
def test_margin_over_batch_is_the_mean_over_all_triplets(
    dtype: torch.dtype, sizes: tuple[int, ...], margin: float, classes: int
) -> None:
    b, _, seed = sizes
    g = torch.Generator().manual_seed(seed)
    scores = torch.rand(b, b, generator=g, dtype=dtype)
    labels = torch.randint(classes, (b,), generator=g)

    def slow(scores: Tensor) -> Tensor:
        terms = []
        for i in range(b):
            for j in range(b):
                for k in range(b):
                    if i != j and labels[i] == labels[j] and labels[i] != labels[k]:
                        terms.append((margin - scores[i, j] + scores[i, k]).clamp_min(0))
        return sum(terms) / len(terms) if terms else scores.sum() * 0

    check_equal(lambda s: losses.margin_over_batch(s, labels, margin), slow, scores)


def test_margin_over_aligned_triplets() -> None:
    intra, inter = torch.tensor([0.9, 0.2]), torch.tensor([0.1, 0.6])
    assert losses.margin_over_triplets(intra, inter, 1.0).item() == pytest.approx((0.2 + 1.4) / 2)
    assert losses.margin_over_triplets(intra, inter, 0.5).item() == pytest.approx((0.0 + 0.9) / 2)


def test_feature_hint_is_the_summed_squared_distance() -> None:
    teacher, student = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 4.0], [1.0, 0.0]])
    assert losses.feature_hint(teacher, student).item() == pytest.approx(1 + 4 + 1)


def test_cross_entropy_against_smoothed_labels() -> None:
    logits, labels = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0])
    log_p = logits.log_softmax(1)[0]
    target = torch.tensor([0.7 + 0.1, 0.1, 0.1])
    assert losses.cross_entropy(logits, labels, 0.3).item() == pytest.approx(-(target * log_p).sum().item())


@pytest.mark.parametrize(
    "loss",
    [
        lambda t, s: losses.distillation(t, s),
        lambda t, s: losses.feature_hint(t, s),
        lambda t, s: losses.relation_transfer((t[0].sigmoid(), t[1].sigmoid()), (s[0].sigmoid(), s[1].sigmoid())),
    ],
    ids=["distillation", "feature_hint", "relation_transfer"],
)
def test_no_gradient_reaches_the_teacher(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    teacher, student = torch.randn(2, 4, 5).unbind(0)
    teacher.requires_grad_()
    student.requires_grad_()
    loss(teacher, student).backward()
    assert teacher.grad is None
    assert student.grad is not None and student.grad.abs().sum() > 0


def test_empty_sets_of_pairs_give_zero_with_zero_gradient() -> None:
    none, labels = torch.zeros(0, 5, requires_grad=True), torch.zeros(0, dtype=torch.long)
    score = torch.zeros(0, requires_grad=True)
    values = [
        losses.cross_entropy(none, labels),
        losses.distillation(none, none),
        losses.auxiliary_cross_entropy(none, labels, labels),
        losses.relation_transfer((score, score), (score, score)),
        losses.margin_over_triplets(score, score),
        losses.margin_over_batch(torch.rand(1, 1, requires_grad=True), torch.zeros(1, dtype=torch.long)),
        losses.relation_transfer_over_batch(
            torch.rand(1, 1), torch.rand(1, 1, requires_grad=True), torch.zeros(1, dtype=torch.long)
        ),
    ]
    for value in values:
        assert value.item() == 0.0
        value.backward()


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=15, deadline=None)
@given(b=st.integers(2, 6), widths=st.tuples(st.integers(2, 5), st.integers(2, 5)), seed=st.integers(0, 10_000))
def test_rkd_distance_and_angle_are_those_of_every_pair_and_triplet(
    dtype: torch.dtype, b: int, widths: tuple[int, int], seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    teacher, student = (torch.randn(b, d, generator=g, dtype=dtype) for d in widths)

    def huber(x: Tensor, y: Tensor) -> Tensor:
        gap = (x - y).abs()
        return gap * gap / 2 if gap < 1 else gap - 0.5

    def distance(e: Tensor, i: int, j: int) -> Tensor:
        every = [(e[p] - e[q]).square().sum().sqrt() for p in range(b) for q in range(b) if p != q]
        return (e[i] - e[j]).square().sum().sqrt() / (sum(every) / len(every))

    def slow_distance(student: Tensor) -> Tensor:
        gaps = [huber(distance(student, i, j), distance(teacher, i, j)) for i in range(b) for j in range(b) if i != j]
        return sum(gaps) / (b * b)

    def angle(e: Tensor, i: int, j: int, k: int) -> Tensor:
        x, y = e[j] - e[i], e[k] - e[i]
        return (x @ y) / (x @ x).sqrt() / (y @ y).sqrt()

    def slow_angle(student: Tensor) -> Tensor:
        gaps = [
            huber(angle(student, i, j, k), angle(teacher, i, j, k))
            for i in range(b)
            for j in range(b)
            for k in range(b)
            if i not in (j, k)
        ]
        return sum(gaps) / b**3

    check_equal(lambda s: losses.rkd_distance(teacher, s), slow_distance, student)
    check_equal(lambda s: losses.rkd_angle(teacher, s), slow_angle, student)


def test_rkd_of_one_image_or_of_equal_images_is_finite() -> None:
    one = torch.ones(1, 3, requires_grad=True)
    assert losses.rkd_distance(one, one).item() == 0.0 and losses.rkd_angle(one, one).item() == 0.0
    equal = torch.ones(3, 4, requires_grad=True)
    loss = losses.rkd_distance(torch.randn(3, 4), equal) + losses.rkd_angle(torch.randn(3, 4), equal)
    loss.backward()
    assert loss.isfinite() and equal.grad is not None and equal.grad.isfinite().all()


@pytest.mark.parametrize("apart", [0.0, 1e-7, 1e-6])
def test_rkd_of_two_images_that_all_but_coincide_has_an_ordinary_gradient(apart: float) -> None:
    g = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, 6, 4, generator=g)
    student[1] = student[0] + apart
    student.requires_grad_()
    for loss in (losses.rkd_distance, losses.rkd_angle):
        (grad,) = torch.autograd.grad(loss(teacher, student), student)
        assert 0 < grad.norm() < 1


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "loss",
    [
        losses.distillation,
        lambda a, b: losses.class_distillation(a, b, torch.arange(24) // 2),
        losses.rkd_distance,
        losses.rkd_angle,
        losses.feature_hint,
        lambda a, b: losses.relation_transfer_over_batch(cosine_scores(a), cosine_scores(b), torch.arange(24) // 2),
        lambda a, b: losses.relation_transfer_over_batch(distance_scores(a), distance_scores(b), torch.arange(24) // 2),
    ],
    ids=["distillation", "class_distillation", "rkd_distance", "rkd_angle", "feature_hint", "cosine", "l2"],
)
def test_mixed_precision_does_not_blur_a_loss(loss: Callable[[Tensor, Tensor], Tensor], half: torch.dtype) -> None:
    """Nearly equal rows, far from the origin: what half precision would make of their small differences is noise."""
    g = torch.Generator().manual_seed(0)
    a = (3 + 0.1 * torch.randn(24, 32, generator=g)).to(half)
    b = (a + 0.05 * torch.randn(24, 32, generator=g)).to(half)
    exact = b.double().requires_grad_()
    mixed = b.clone().requires_grad_()
    with torch.autocast("cpu", half):
        value = loss(a, mixed)
    reference = loss(a.double(), exact)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), reference, rtol=1e-3, atol=0)
    scale = 2.0**12  # float16 wants one, as in training
    (left,), (right,) = torch.autograd.grad(value * scale, mixed), torch.autograd.grad(reference * scale, exact)
    assert (left.double() - right).norm() < 5e-3 * right.norm()


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=20, deadline=None)
@given(sizes=SIZES, smoothing=st.sampled_from([0.0, 0.1]))
def test_two_label_cross_entropy_is_that_of_the_mixed_label(
    dtype: torch.dtype, sizes: tuple[int, ...], smoothing: float
) -> None:
    b, c, seed = sizes
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(b, c, generator=g, dtype=dtype)
    first, second = torch.randint(c, (2, b), generator=g)
    share = torch.rand((), generator=g, dtype=dtype)

    def slow(logits: Tensor) -> Tensor:
        total = torch.zeros((), dtype=dtype)
        for i in range(b):
            q = softmax(logits[i])
            for k in range(c):
                hard = share * float(k == first[i]) + (1 - share) * float(k == second[i])
                total = total - ((1 - smoothing) * hard + smoothing / c) * q[k].log()
        return total / b

    check_equal(lambda z: losses.two_label_cross_entropy(z, first, second, share, smoothing), slow, logits)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=20, deadline=None)
@given(sizes=SIZES, temperature=st.sampled_from([1.0, 4.0]))
def test_partner_distillation_is_the_loop_over_images_that_learn(
    dtype: torch.dtype, sizes: tuple[int, ...], temperature: float
) -> None:
    b, c, seed = sizes
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(b, c, generator=g, dtype=dtype)
    partner, learns = torch.randint(b, (b,), generator=g), torch.rand(b, generator=g) < 0.5

    def slow(student: Tensor) -> Tensor:
        total = student.sum() * 0.0
        for i in range(b):
            if learns[i]:
                p, q = softmax(logits[partner[i]], temperature), softmax(student[i], temperature)
                total = total + sum(p[k] * (p[k].log() - q[k].log()) for k in range(c))
        return temperature**2 * total / max(int(learns.sum()), 1)

    check_equal(lambda z: losses.partner_distillation(z, partner, learns, temperature), slow, logits)


# --- batch knowledge ensembling ---


def slow_affinity(embeddings: Tensor) -> Tensor:
    b = len(embeddings)
    shares = torch.zeros(b, b, dtype=embeddings.dtype)
    for i in range(b):
        for j in range(b):
            if i != j:
                a, other = embeddings[i], embeddings[j]
                shares[i, j] = (sum(a * other) / (sum(a * a).sqrt() * sum(other * other).sqrt())).exp()
    return torch.stack([row / sum(row) for row in shares]) if b > 1 else torch.ones_like(shares)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=20, deadline=None)
@given(sizes=SIZES)
def test_batch_affinity_is_the_softmax_of_cosines_with_others(dtype: torch.dtype, sizes: tuple[int, ...]) -> None:
    b, d, seed = sizes
    embeddings = torch.randn(b, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    affinity = losses.batch_affinity(embeddings)
    torch.testing.assert_close(affinity, slow_affinity(embeddings))
    assert (affinity.diagonal() == float(b == 1)).all() and affinity.sum(1).tolist() == pytest.approx([1.0] * b)


def test_batch_affinity_of_an_embedding_of_zeros_is_finite() -> None:
    affinity = losses.batch_affinity(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    torch.testing.assert_close(affinity, torch.tensor([[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]]))


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=20, deadline=None)
@given(sizes=SIZES, omega=st.sampled_from([0.0, 0.3, 0.9]))
def test_ensembled_targets_are_the_sum_over_ever_more_distant_neighbours(
    dtype: torch.dtype, sizes: tuple[int, ...], omega: float
) -> None:
    """(1 - w) Σ_t (wA)^t P, as propagation step by step has it; and so is its gradient."""
    b, c, seed = sizes
    g = torch.Generator().manual_seed(seed)
    probabilities = torch.randn(b + 1, c, generator=g, dtype=dtype).softmax(1)
    affinity = losses.batch_affinity(torch.randn(b + 1, 3, generator=g, dtype=dtype))

    def summed(targets: Tensor) -> Tensor:
        return (targets * torch.linspace(-1, 1, targets.numel(), dtype=dtype).view_as(targets)).sum()

    def slow(p: Tensor, a: Tensor) -> Tensor:
        targets = p
        for _ in range(200):
            targets = (1 - omega) * p + omega * a @ targets
        return summed(targets)

    targets = losses.ensembled_targets(probabilities, affinity, omega)
    assert targets.sum(1).tolist() == pytest.approx([1.0] * (b + 1), abs=1e-5) and targets.min() > 0
    check_equal(lambda p, a: summed(losses.ensembled_targets(p, a, omega)), slow, probabilities, affinity)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=20, deadline=None)
@given(sizes=SIZES, temperature=st.sampled_from([1.0, 4.0]))
def test_ensembled_distillation_is_the_kl_from_the_targets(
    dtype: torch.dtype, sizes: tuple[int, ...], temperature: float
) -> None:
    b, c, seed = sizes
    g = torch.Generator().manual_seed(seed)
    logits, embeddings = torch.randn(b, c, generator=g, dtype=dtype), torch.randn(b, 5, generator=g, dtype=dtype)

    def slow(student: Tensor) -> Tensor:
        total = student.sum() * 0.0
        p = torch.stack([softmax(z, temperature) for z in logits])
        inverse = torch.linalg.inv(torch.eye(b, dtype=dtype) - 0.5 * slow_affinity(embeddings))
        for i in range(b if b > 1 else 0):
            q = 0.5 * sum(inverse[i, j] * p[j] for j in range(b))
            total = total + sum(q[k] * (q[k].log() - softmax(student[i], temperature)[k].log()) for k in range(c))
        return temperature**2 * total / b

    check_equal(lambda z: losses.ensembled_distillation(z, embeddings, 0.5, temperature), slow, logits)
    assert not losses.ensembled_distillation(logits, embeddings.requires_grad_()).requires_grad


def test_ensembled_distillation_of_certain_predictions_is_finite() -> None:
    """Probabilities of 0 in float32: no logarithm of 0, no gradient without a value."""
    logits = (torch.eye(6, 4) * 1e4).requires_grad_()
    loss = losses.ensembled_distillation(logits, torch.randn(6, 3), 0.5, 1.0)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite() and gradient.isfinite().all()


def test_the_targets_are_solved_in_full_precision_under_autocast() -> None:
    g = torch.Generator().manual_seed(0)
    logits, embeddings = torch.randn(8, 5, generator=g), torch.randn(8, 3, generator=g)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = losses.ensembled_distillation(logits, embeddings)
    assert mixed.dtype == torch.float32 and torch.equal(mixed, losses.ensembled_distillation(logits, embeddings))


# --- DIST ---


def slow_correlation(a: list[Tensor], b: list[Tensor]) -> Tensor:
    a, b = ([x - sum(values) / len(values) for x in values] for values in (a, b))
    products = (sum(x * y for x, y in zip(u, v, strict=True)) for u, v in ((a, b), (a, a), (b, b)))
    together, one, other = products
    return together / (one.sqrt() * other.sqrt())


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=20, deadline=None)
@given(sizes=SIZES, temperature=st.sampled_from([1.0, 4.0]), weights=st.sampled_from([(1.0, 1.0), (0.0, 2.0), (0.5, 0.0)]))
def test_correlation_distillation_is_pearsons_over_rows_and_columns(
    dtype: torch.dtype, sizes: tuple[int, ...], temperature: float, weights: tuple[float, float]
) -> None:
    b, c, seed = sizes
    g = torch.Generator().manual_seed(seed)
    teacher, student = torch.randn(2, b, c + 1, generator=g, dtype=dtype)

    def slow(student: Tensor) -> Tensor:
        p, q = ([list(softmax(z, temperature)) for z in logits] for logits in (teacher, student))
        rows = sum(slow_correlation(p[i], q[i]) for i in range(b)) / b
        loss = weights[0] * (1 - rows)
        if b > 1:
            columns = [([p[i][k] for i in range(b)], [q[i][k] for i in range(b)]) for k in range(c + 1)]
            loss = loss + weights[1] * (1 - sum(slow_correlation(*column) for column in columns) / (c + 1))
        return temperature**2 * loss

    check_equal(lambda s: losses.correlation_distillation(teacher, s, temperature, *weights), slow, student)


def test_correlation_distillation_ignores_scale_and_is_finite_where_nothing_varies() -> None:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=g, dtype=torch.float64)
    assert losses.correlation_distillation(logits, logits + 3.0).item() == pytest.approx(0.0, abs=1e-9)
    for teacher in (torch.zeros(6, 4), torch.randn(6, 4, generator=g)):
        for constant in (torch.zeros(6, 4), torch.randn(1, 4, generator=g).expand(6, 4), torch.eye(6, 4) * 1e4):
            student = constant.clone().requires_grad_()
            loss = losses.correlation_distillation(teacher, student, 1.0)
            (gradient,) = torch.autograd.grad(loss, student)
            assert loss.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=20, deadline=None)
@given(sizes=SIZES)
def test_relation_cross_entropy_is_the_balanced_loop_over_pairs(dtype: torch.dtype, sizes: tuple[int, ...]) -> None:
    b, _, seed = sizes
    g = torch.Generator().manual_seed(seed)
    log_odds = 3 * torch.randn(b, b, generator=g, dtype=dtype)
    labels = torch.randint(3, (b,), generator=g)

    def slow(log_odds: Tensor) -> Tensor:
        nats: dict[bool, list[Tensor]] = {True: [], False: []}
        for i in range(b):
            for j in range(b):
                if i != j:
                    same = bool(labels[i] == labels[j])
                    score = 1 / (1 + (-log_odds[i, j]).exp())
                    nats[same].append(-(score if same else 1 - score).log())
        means = [torch.stack(v).mean() for v in nats.values() if v]
        return sum(means, log_odds.sum() * 0.0) / max(len(means), 1)

    check_equal(lambda m: losses.relation_cross_entropy(m, labels), slow, log_odds)


def test_relation_cross_entropy_is_least_where_the_score_is_the_probability_of_one_class() -> None:
    """Two kinds of pairs that look alike are told apart at best by how frequent they are, each kind weighing one half."""
    labels = torch.tensor([0, 0, 0, 1])  # 6 ordered intra pairs, 6 inter: one score for all pairs is at best 1/2
    scores = torch.linspace(-2, 2, 41)
    values = [losses.relation_cross_entropy(torch.full((4, 4), s.item()), labels) for s in scores]
    assert scores[torch.stack(values).argmin()].abs() < 1e-6


def test_class_affinity_shares_evenly_among_the_other_images_of_a_class() -> None:
    wanted = [[0, 0.5, 0, 0.5], [0.5, 0, 0, 0.5], [0, 0, 1, 0], [0.5, 0.5, 0, 0]]
    assert losses.class_affinity(torch.tensor([4, 4, 2, 4])).tolist() == wanted


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=20, deadline=None)
@given(sizes=SIZES)
def test_target_divergence_is_the_loop_over_classes(dtype: torch.dtype, sizes: tuple[int, ...]) -> None:
    b, c, seed = sizes
    g = torch.Generator().manual_seed(seed)
    target = torch.randn(b, c, generator=g, dtype=dtype).softmax(1)
    target[0] = torch.eye(c, dtype=dtype)[0]  # a target of probability 0 adds nothing
    logits = torch.randn(b, c, generator=g, dtype=dtype)

    def slow(logits: Tensor) -> Tensor:
        total = torch.zeros((), dtype=dtype)
        for i in range(b):
            q = softmax(logits[i], 4.0)
            for k in range(c):
                if target[i, k] > 0:
                    total = total + target[i, k] * (target[i, k].log() - q[k].log())
        return 16 * total / b

    check_equal(lambda z: losses.target_divergence(target, z), slow, logits)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=20, deadline=None)
@given(sizes=SIZES)
def test_transfers_of_rows_are_loops_over_rows_without_the_diagonal(dtype: torch.dtype, sizes: tuple[int, ...]) -> None:
    b, _, seed = sizes
    g = torch.Generator().manual_seed(seed)
    teacher, student = torch.randn(2, b, b, generator=g, dtype=dtype)

    def without(matrix: Tensor, i: int) -> Tensor:
        return torch.stack([matrix[i, j] for j in range(b) if j != i])

    def divergence(student: Tensor) -> Tensor:
        total = student.sum() * 0.0
        for i in range(b if b > 1 else 0):
            p, q = softmax(without(teacher, i)), softmax(without(student, i))
            total = total + sum(p[k] * (p[k].log() - q[k].log()) for k in range(b - 1)) / b
        return total

    def correlation(student: Tensor) -> Tensor:
        total = student.sum() * 0.0
        for i in range(b if b > 2 else 0):
            both = torch.stack([without(teacher, i), without(student, i)])
            total = total + (1 - torch.corrcoef(both)[0, 1]) / b
        return total

    check_equal(lambda s: losses.relation_transfer_by_row_divergence(teacher, s), divergence, student)
    check_equal(lambda s: losses.relation_transfer_by_row_correlation(teacher, s), correlation, student)
    attached = teacher.clone().requires_grad_()
    both = losses.relation_transfer_by_row_divergence(attached, student) + losses.relation_transfer_by_row_correlation(
        attached, student
    )
    assert not both.requires_grad
