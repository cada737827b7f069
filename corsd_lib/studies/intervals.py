"""Means over seeds with their confidence intervals."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["mean_interval", "with_interval"]

MIN_VALUES = 3  # fewer values have no interval
Interval = tuple[float | None, float | None, float | None]  # mean, lower end, upper end


def mean_interval(values: Iterable[float]) -> Interval:
    """Mean of `values` and the ends of its 95 % Student-t confidence interval, as (mean, low, high).

    The ends are None for fewer than three values, because two may agree by chance, and for values that are all equal, whose
    interval would have no width. All three are None if there are no values.
    """
    from scipy.stats import t

    x = list(values)
    if not x:
        return None, None, None
    mean = sum(x) / len(x)
    rounding = 1e-9 * max(1.0, abs(mean))  # equal gains may differ by rounding errors; then there is no interval
    if len(x) < MIN_VALUES or max(x) - min(x) <= rounding:
        return mean, None, None
    variance = sum((v - mean) ** 2 for v in x) / (len(x) - 1)
    half = float(t.ppf(0.975, len(x) - 1)) * (variance / len(x)) ** 0.5
    return mean, mean - half, mean + half


def with_interval(mean: float | None, low: float | None, high: float | None, sign: str = "") -> str:
    """A mean and half the width of its interval as text, such as "47.2 ± 0.4"; "47.2 ± –" if there is no interval, "–" if there
    is no mean.

    `sign`: sign option in the format of the mean, such as "+".
    """
    if mean is None:
        return "–"
    mean = 0.0 if round(mean, 1) == 0 else mean  # never "-0.0"
    if low is None or high is None:
        return f"{mean:{sign}.1f} ± –"
    half = f"{(high - low) / 2:.1f}"
    return f"{mean:{sign}.1f} ± {'<0.1' if half == '0.0' else half}"
