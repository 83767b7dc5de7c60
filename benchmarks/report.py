"""From raw results to a table: medians, ranges, ratios, targets."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from benchmarks.figures import FIGURES, Figure
from benchmarks.runner import Outcome
from benchmarks.scale import Scale
from benchmarks.sides import VARIANTS

__all__ = ["summarize", "table", "variants_table"]

HEADINGS = ("figure", "unit", "academy", "academy_hpc", "ratio", "target", "met")
VARIANT_HEADINGS = ("figure", "unit", "academy_hpc", *(name.partition("+")[2] for name in VARIANTS), "target", "met")


def summarize(outcomes: Iterable[Outcome]) -> dict[tuple[str, str, str], list[float]]:
    """Return the values of all repetitions by (side, workload, key)."""
    values: dict[tuple[str, str, str], list[float]] = {}
    for outcome in outcomes:
        for key, value in outcome.figures.items():
            values.setdefault((outcome.side, outcome.workload, key), []).append(value)
    return values


def table(outcomes: Sequence[Outcome], scale: Scale) -> str:
    """Return the figures that were measured as aligned text, with every distinct error below."""
    values = summarize(outcomes)
    rows: list[tuple[str, ...]] = [HEADINGS]
    for figure in FIGURES:
        theirs, ours = (values.get((side, figure.workload, figure.key), []) for side in ("academy", "academy_hpc"))
        if theirs or ours:
            rows.append(_row(figure, scale, theirs, ours))
    return "\n".join([*_aligned(rows), *_errors(outcomes)])


def variants_table(outcomes: Iterable[Outcome], scale: Scale) -> str:
    """Return what was measured with other options of the exchange, each median with its ratio to the one without."""
    values = summarize(outcomes)
    rows: list[tuple[str, ...]] = [VARIANT_HEADINGS]
    for figure in FIGURES:
        found = [values.get((side, figure.workload, figure.key), []) for side in ("academy_hpc", *VARIANTS)]
        if any(found[1:]):
            medians = [statistics.median(each) if each else None for each in found]
            rows.append(_variant_row(figure, scale, medians))
    return "\n".join(["", *_aligned(rows)]) if rows[1:] else ""


def _variant_row(figure: Figure, scale: Scale, medians: list[float | None]) -> tuple[str, ...]:
    plain = medians[0]
    durable = dict(zip(("plain", *VARIANTS), medians, strict=True))["academy_hpc+durable"]
    cells = ["-" if plain is None else _number(plain)]
    for median in medians[1:]:
        share = f" ({median / plain:.2f}x)" if median is not None and plain else ""
        cells.append("-" if median is None else _number(median) + share)
    target, met = "", ""
    if figure.durable_at_least is not None:
        target = f"durable >= {figure.durable_at_least:.2f}x"
        if plain is not None and durable is not None:
            met = "yes" if durable >= plain * figure.durable_at_least else "NO"
    return (figure.label.format(**asdict(scale)), figure.unit, *cells, target, met)


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "-" * max(map(len, lines)))
    return lines


def _row(figure: Figure, scale: Scale, theirs: list[float], ours: list[float]) -> tuple[str, ...]:
    their_median, our_median = (statistics.median(values) if values else None for values in (theirs, ours))
    met = {True: "yes", False: "NO", None: ""}[figure.met(their_median, our_median)]
    ratio = _ratio(their_median, our_median)
    label = figure.label.format(**asdict(scale))
    return (label, figure.unit, _spread(theirs), _spread(ours), ratio, figure.target, met)


def _spread(values: list[float]) -> str:
    if not values:
        return "-"
    return f"{_number(statistics.median(values))} [{_number(min(values))} - {_number(max(values))}]"


def _number(value: float) -> str:
    """Return about three digits: 12,345 or 123 or 12.3 or 0.123."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def _ratio(theirs: float | None, ours: float | None) -> str:
    if not theirs or ours is None or ours <= 0:
        return ""
    return f"{ours / theirs:.1f}x" if ours >= theirs else f"1/{theirs / ours:.1f}"


def _errors(outcomes: Sequence[Outcome]) -> list[str]:
    counts: dict[str, int] = {}
    for outcome in outcomes:
        for name, text in outcome.errors.items():
            line = f"{outcome.side} {outcome.workload} {name}: {text}"
            counts[line] = counts.get(line, 0) + 1
    return ["", "errors:", *(f"  {count} x {line}" for line, count in counts.items())] if counts else []
