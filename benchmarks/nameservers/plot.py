"""The picture of a run: CPU time per answer of each server, as bars."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # a file, not a window

from matplotlib import pyplot as plt

__all__ = ["plot"]

_OURS = "#1f6f8b"
_OTHERS = "#b8c4cc"


def plot(costs: Sequence[tuple[str, float, float, float]], subtitle: str, path: Path) -> None:
    """Draw *costs* into the PNG *path*.

    Args:
        costs: name, median, least and greatest of each server, in microseconds; ours is the first.
        subtitle: what was measured, in a line.
    """
    ours = costs[0][0]
    rows = sorted(costs, key=lambda one: one[1], reverse=True)
    figure, axes = plt.subplots(figsize=(8, 0.55 * len(rows) + 1.4))
    bars = axes.barh(
        [name for name, *_ in rows],
        [cost for _, cost, _, _ in rows],
        xerr=[[cost - least for _, cost, least, _ in rows], [most - cost for _, cost, _, most in rows]],
        color=[_OURS if name == ours else _OTHERS for name, *_ in rows],
        error_kw={"ecolor": "#555555", "capsize": 3, "lw": 1},
    )
    # From 1 us to 100 us: without a logarithm all but the slowest would look the same.
    axes.set_xscale("log")
    axes.set_xlim(1, 2 * max(most for *_, most in rows))
    axes.bar_label(bars, [f"{cost:.1f}" for _, cost, _, _ in rows], padding=12)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("CPU microseconds per answer (logarithmic); less is better")
    axes.set_title(subtitle, fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
