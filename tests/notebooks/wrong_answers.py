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
}
