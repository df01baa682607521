"""scipy's exact two-sample test, also where it gives up."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from scipy import stats


def ks_exact(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Statistic and p-value; scipy gives up where rounding makes the latter more than 1."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = stats.ks_2samp(one, other, method="exact")
    if any("unsuccessful" in str(one.message) for one in caught):
        return float(found.statistic), 1.0
    return float(found.statistic), float(found.pvalue)
