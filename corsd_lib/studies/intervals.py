"""Means over seeds with their confidence intervals."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["mean_interval", "with_interval"]

MIN_VALUES = 3  # fewer values have no interval
Interval = tuple[float | None, float | None, float | None]  # mean, lower end, upper end


def mean_interval(values: Iterable[float]) -> Interval:
    """Mean of `values` and the ends of its 95 % Student-t confidence interval: (mean, low, high).

    (mean, None, None) for fewer than three values and for values that are all equal: two values may agree by chance, and the
    interval of equal values would have no width. (None, None, None) without values.
    """
    from scipy.stats import t

    x = list(values)
    if not x:
        return None, None, None
    mean = sum(x) / len(x)
    rounding = 1e-9 * max(1.0, abs(mean))  # differences of equal accuracies may differ in the last digit
    if len(x) < MIN_VALUES or max(x) - min(x) <= rounding:
        return mean, None, None
    variance = sum((v - mean) ** 2 for v in x) / (len(x) - 1)
    half = float(t.ppf(0.975, len(x) - 1)) * (variance / len(x)) ** 0.5
    return mean, mean - half, mean + half


def with_interval(mean: float | None, low: float | None, high: float | None, sign: str = "") -> str:
    """A mean and half of its interval, as in "47.2 ± 0.4"; "47.2 ± –" without an interval, "–" without a mean.

    `sign` is the sign option of the format of the mean, such as "+".
    """
    if mean is None:
        return "–"
    if low is None or high is None:
        return f"{mean:{sign}.1f} ± –"
    half = f"{(high - low) / 2:.1f}"
    return f"{mean:{sign}.1f} ± {'<0.1' if half == '0.0' else half}"
