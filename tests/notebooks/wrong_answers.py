"""Typical mistakes in the exercises: what a check must find, in place of the `...` of its stub."""

WRONG_ANSWERS = {
    "01_walkthrough": {
        "transfer_by_hand": [
            "(student - teacher).square().mean()",  # the teacher learns
            "(student.detach() - teacher.detach()).square().mean()",
            "(student - teacher.detach()).abs().mean()",
        ],
        "is_sure": [
            "logits.max(dim=1).values >= threshold",
            "logits.softmax(dim=1).max(dim=1).values >= 0.9",
            "logits[:, 0] > 0",
        ],
    },
    "02_exits": {
        "kd": [
            # logits where log-probabilities are wanted, as in the authors' code
            "F.kl_div(student / temperature, teacher.detach() / temperature, reduction='batchmean') * temperature**2",
            "F.kl_div(student.log_softmax(1), teacher.detach().softmax(1), reduction='batchmean')",  # no temperature
            "distillation(student, teacher, temperature)",  # swapped
            "distillation(teacher, student, temperature) / temperature**2",
            "distillation(teacher, student, 3.0)",
            # the teacher gets a gradient
            "F.kl_div((student / temperature).log_softmax(1), (teacher / temperature).softmax(1), reduction='batchmean')"
            " * temperature**2",
        ],
        "ideal_accuracy": [
            "100 * (guesses[-1] == labels).double().mean().item()",  # the deepest exit
            "100 * (guesses == labels).all(dim=0).double().mean().item()",
            "(guesses == labels).any(dim=0).double().mean().item()",
            "100 * (guesses == labels).double().mean().item()",  # the mean over the exits
            "100 * (guesses == labels).any(dim=0).double().mean()",
        ],
        "leave_at": [
            "(confidence >= threshold).int().argmax(dim=0) + 1",  # nobody sure: exit 1
            "(confidence < threshold).cumprod(dim=0).sum(dim=0) + 1",  # an exit behind the last
            "(confidence[:-1] <= threshold).cumprod(dim=0).sum(dim=0) + 1",
            "(confidence[:-1] < threshold).sum(dim=0) + 0",
            "confidence.argmax(dim=0) + 1",
        ],
    },
    "05_cifar100": {
        "lift_by_hand": [
            "(matrix[superclass[:, None] == superclass].mean() / matrix[superclass[:, None] != superclass].mean()).item()",
            "(matrix.diag().mean() / matrix[superclass[:, None] != superclass].mean()).item()",  # within a class
            "(matrix[~torch.eye(len(matrix), dtype=torch.bool)].mean() / matrix.mean()).item()",
        ],
        "good_mistakes": [
            "(superclass[logits.argmax(1)] == superclass[labels]).float().mean().item()",  # right answers are no mistakes
            "((superclass[logits.argmax(1)] == superclass[labels]) & (logits.argmax(1) != labels)).float().mean().item()",
            "(superclass[logits.argmax(1)] != superclass[labels]).float().mean().item()",
        ],
    },
    "06_cub200": {
        "p_value": [
            "sum(value >= observed for value in shuffled) / len(shuffled)",
            "(1 + sum(value > observed for value in shuffled)) / (1 + len(shuffled))",
            "(1 + sum(value <= observed for value in shuffled)) / (1 + len(shuffled))",
            "(1 + sum(value >= observed for value in shuffled)) / len(shuffled)",
        ],
        "shuffled_species": [
            "table[torch.randperm(len(table), generator=generator)]",  # rows only
            "table[torch.randperm(len(table), generator=generator)][:, torch.randperm(len(table), generator=generator)]",
            "table.flatten()[torch.randperm(table.numel(), generator=generator)].view_as(table)",
            "table.flip(0).flip(1)",  # no chance in it
            "table",
        ],
    },
    "11_compare_methods": {
        "paired_differences": [
            "[a - b for a, b in zip(ours.values(), theirs.values())]",  # in the order they were written down
            "[theirs[s] - ours[s] for s in sorted(ours.keys() & theirs.keys())]",
            "[ours[s] - theirs[s] for s in ours if s in theirs]",  # not in order
            "[ours[s] - theirs.get(s, 0) for s in sorted(ours)]",
        ],
        "honest_score": [
            "max(test.values())",
            "max(validation.values())",
            "sum(test.values()) / len(test)",
            "list(test.values())[list(validation.values()).index(max(validation.values()))]",
        ],
    },
    "12_your_own": {
        "reductions": [
            "strides[1:]",
            "torch.tensor(strides).cumprod(dim=0).tolist()",  # the stem is no stage
            "torch.tensor(strides[1:]).cumprod(dim=0).tolist()",  # but it reduces
            "[2**k for k in range(1, len(strides))]",
        ],
        "mean_entropy": [
            "-(logits.softmax(1) * logits.softmax(1).log()).sum(1).mean()",  # not a number for a sure network
            "(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()",
            "-(logits.softmax(1) * logits.log_softmax(1)).mean()",
            "-(logits.softmax(1) * logits.log_softmax(1)).sum()",
        ],
    },
    "13_unseen_classes": {
        "recall": [
            "100 * (labels[scores.argmax(dim=1)] == labels).double().mean().item()",  # each image finds itself
            "(labels[scores.clone().fill_diagonal_(-1).argmax(dim=1)] == labels).double().mean().item()",  # a share
            "100 * (labels[scores.clone().fill_diagonal_(-1).argmax(dim=0)] == labels).double().mean().item()",  # columns
            "100 * (labels[scores.fill_diagonal_(-1).argmax(dim=1)] == labels).double().mean().item()",  # in place
        ],
        "episode": [
            "100 * (F.cosine_similarity(queries[:, :, None], examples.mean(1), dim=-1).argmax(-1)"
            " == torch.arange(len(examples))[:, None]).double().mean().item()",  # long examples outweigh the others
            "(F.cosine_similarity(queries[:, :, None], F.normalize(examples, dim=-1).mean(1), dim=-1).argmax(-1)"
            " == torch.arange(len(examples))[:, None]).double().mean().item()",  # a share
            "100 * (F.cosine_similarity(queries[:, :, None], F.normalize(examples, dim=-1).mean(1), dim=-1).argmax(-1)"
            " == 0).double().mean().item()",
        ],
    },
    "14_capstone": {
        "verdict": [
            "'helps' if low > 0 else 'no useful gain'",  # significant or not
            "'helps' if low > 0 else 'no useful gain' if high < smallest else 'undecided'",  # small gains help
            "'helps' if (low + high) / 2 > smallest else 'no useful gain'",  # the mean decides
        ],
        "seeds_needed": [
            "next(n for n in range(3, 10_000) if student_t.ppf(0.975, n - 1) * deviation / n**0.5 < smallest)",  # half of it
            "next(n for n in range(3, 10_000) if 2 * 1.96 * deviation / n**0.5 < smallest)",
            "next(n for n in range(3, 10_000) if 2 * student_t.ppf(0.975, n - 1) * deviation / n < smallest)",
            "next(n for n in range(2, 10_000) if 2 * student_t.ppf(0.975, n - 1) * deviation / n**0.5 < smallest)",
        ],
    },
    "03_relations": {
        "rkd_angle_by_hand": [
            # directions that are not normalised
            "F.smooth_l1_loss(*[(d := e[None, :] - e[:, None]) @ d.transpose(1, 2) for e in (student, teacher.detach())])",
            # angles at the origin
            "F.smooth_l1_loss(*[(d := F.normalize(e, dim=1)) @ d.T for e in (student, teacher.detach())])",
            "rkd_angle(teacher, student) + 0 * teacher.sum()",  # the teacher gets a gradient
            "rkd_distance(teacher, student)",
        ],
        "margin_by_hand": [
            "margin_over_batch(r.T, labels, m)",  # anchor and partner swapped
            "margin_over_batch(r, labels, 1.0)",
            "margin_over_batch(1 - r, labels, m)",  # the wrong sign
            "(m - r[:, :, None] + r[:, None, :])[(labels[:, None] == labels)[:, :, None]"
            " & (labels[:, None] != labels)[:, None, :]].relu().mean()",  # an image with itself
            "F.relu(m - r[labels[:, None] == labels].mean() + r[labels[:, None] != labels].mean())",
        ],
        "auc_by_hand": [
            "(intra > inter).float().mean()",  # only aligned ones are compared
            "(intra[:, None] > inter[None, :]).float().mean()",  # ties count nothing
            "(intra.mean() > inter.mean()).float()",
        ],
    },
    "04_class_oriented": {
        "auxiliary_loss": [
            "F.cross_entropy(logits, first)",  # the second image is forgotten
            # a softmax on the label, as in the authors' code
            "F.cross_entropy(logits, ((F.one_hot(first, 10) + F.one_hot(second, 10)) / 2).softmax(dim=1))",
            "F.cross_entropy(logits, first) + F.cross_entropy(logits, second)",  # not halved
            "auxiliary_cross_entropy(logits, first, second) * len(logits)",  # a sum over the pairs
            "-((F.one_hot(first, 10) + F.one_hot(second, 10)) / 2 * logits.log_softmax(0)).sum(1).mean()",
        ],
        "nearest_mean_share": [
            "(torch.cdist(x, torch.zeros(20, 200).index_add(0, labels, x) / 6).argmin(1) == labels).float().mean().item()",
            "nearest_mean_accuracy(x, labels)",
            "torch.tensor(nearest_mean_accuracy(x, labels) / 100)",
            "0.05",
        ],
    },
    "08_class_structure": {
        "variance_explained": [
            "1 - scatter(x, labels)['between_fraction']",
            "scatter(x, labels)['between']",  # not a share
            "torch.tensor(scatter(x, labels)['between_fraction'])",
            # every class counts the same, whatever its size
            "(torch.stack([x[labels == c].mean(0) for c in labels.unique()]) - x.mean(0)).square().sum(1).mean().item()"
            " / (x - x.mean(0)).square().sum(1).mean().item()",
            "scatter(x, labels)['between'] / scatter(x, labels)['within']",
        ],
        "simplex_gap": [
            "mean_angles(means, torch.arange(len(means)))['mean_cosine']",
            # as seen from the origin
            "(torch.cosine_similarity(means[:, None], means[None], dim=2) + 1 / (len(means) - 1)).abs().mean().item()",
            # too high and too low cancel
            "abs(mean_angles(means, torch.arange(len(means)))['mean_cosine'] + 1 / (len(means) - 1))",
        ],
    },
    "09_stage_embeddings": {
        "purity_by_hand": [
            # each point is its own neighbour
            "(labels[torch.cdist(points, points).topk(k, largest=False).indices] == labels[:, None]).double().mean().item()",
            "(labels[torch.cdist(points, points).topk(k).indices] == labels[:, None]).double().mean().item()",  # the farthest
            "knn_purity(points, labels)",  # of ten
        ],
        "neighbours_kept": [
            "(nearest_images(first, k) == nearest_images(second, k)).double().mean().item()",  # the order matters
            "trustworthiness(first, second, k)",
            "float(nearest_images(first, k).unique().equal(nearest_images(second, k).unique()))",
        ],
    },
    "07_relation_explorer": {
        "without_popularity": [
            "matrix - matrix.mean(dim=1) - matrix.mean(dim=0) + matrix.mean()",  # row means taken from columns
            "matrix - matrix.mean(dim=1, keepdim=True) - matrix.mean(dim=0, keepdim=True)",
            "matrix - matrix.mean()",
            "matrix - matrix.mean(dim=1, keepdim=True)",
        ],
        "same_superclass_share": [
            "(superclass[matrix.argmax(dim=1)] == superclass).float().mean().item()",  # finds the class itself
            "(superclass[matrix.clone().fill_diagonal_(-1).argmax(dim=0)] == superclass).float().mean().item()",  # columns
            "(superclass[matrix.clone().fill_diagonal_(-1).argmax(dim=1)] == superclass).float().mean()",
            "(matrix.clone().fill_diagonal_(-1).argmax(dim=1) == superclass).float().mean().item()",
        ],
    },
    "10_attribution": {
        "completeness_gap": [
            "abs(values.sum().item() - (score - baseline_score))",  # in units of the score
            "(values.sum().item() - (score - baseline_score)) / (score - baseline_score)",  # negative
            "abs(values.sum().item() - (score - baseline_score)) / (score - baseline_score)",  # where the score falls
            "abs(values.sum().item() - score) / abs(score)",
            "abs(values.mean().item() - (score - baseline_score)) / abs(score - baseline_score)",
        ],
        "delete_most": [
            "torch.where(attribution.abs() >= attribution.abs().flatten().sort().values[-count], baseline, image)",
            "torch.where(attribution > attribution.flatten().sort().values[-count], baseline, image)",  # one pixel too few
            "torch.where(attribution.flatten().argsort().argsort().view_as(attribution) < count, baseline, image)",  # the least
            "torch.where(attribution.flatten().argsort(descending=True).view_as(attribution) < count, baseline, image)",
            "torch.where(attribution > 0, baseline, image)",
        ],
    },
}
