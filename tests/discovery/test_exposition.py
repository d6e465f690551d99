"""discovery.exposition: Prometheus' text format."""

from __future__ import annotations

import pytest

from discovery.exposition import counter, gauge, histogram, render


def test_counters_and_gauges_are_written_in_order_with_their_labels_escaped() -> None:
    text = render(
        [
            counter("a_total", "As.", {(("kind", "y"),): 2, (("kind", "x"),): 1}),
            counter("b_total", "Bs.", 0),
            gauge("c", "Cs.", {'say "hi"\\\n': 0.5}, label="word"),
        ],
        "p_",
    )
    assert text.splitlines() == [
        "# HELP p_a_total As.",
        "# TYPE p_a_total counter",
        'p_a_total{kind="x"} 1',
        'p_a_total{kind="y"} 2',
        "# HELP p_b_total Bs.",
        "# TYPE p_b_total counter",
        "p_b_total 0",
        "# HELP p_c Cs.",
        "# TYPE p_c gauge",
        'p_c{word="say \\"hi\\"\\\\\\n"} 0.5',
    ]
    assert text.endswith("\n")


def test_a_histogram_counts_what_lies_at_or_below_each_bound() -> None:
    assert render([histogram("s", "Seconds.", (0.5, 1.0), [1, 0, 2], 7.25)], "p_").splitlines()[2:] == [
        'p_s_bucket{le="0.5"} 1',
        'p_s_bucket{le="1.0"} 1',
        'p_s_bucket{le="+Inf"} 3',
        "p_s_sum 7.25",
        "p_s_count 3",
    ]
    with pytest.raises(ValueError):
        histogram("s", "Seconds.", (0.5, 1.0), [1, 0], 7.25)
