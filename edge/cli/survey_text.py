"""A survey as text for a terminal: tables that line up, long lists cut with a count."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from edge.recording.oddities import Oddity
from edge.recording.survey import ChannelRange, Survey

_SHOWN_SIZES = 6
_SHOWN_IDS = 3


def survey_lines(survey: Survey, limit: int) -> list[str]:
    """Return what `edge recordings show` prints, with at most `limit` oddities of each kind."""
    lines = [
        f"{survey.name}: {survey.samples:,} samples of {survey.parts:,} parts",
        f"made by   {survey.source}",
        f"digest    {survey.digest}",
        f"captured  {_captured(survey)}",
        f"images    {_sizes(survey)}; {survey.masks:,} with a defect mask",
        f"windows   {_windows(survey)}",
        "",
        *_count_table(survey),
    ]
    if survey.channels:
        lines += ["", *_channel_table(survey.channels)]
    return [*lines, "", *oddity_lines(survey, limit)]


def oddity_lines(survey: Survey, limit: int) -> list[str]:
    """Return the oddities by kind, at most `limit` of each; 0 gives the counts only."""
    if not survey.oddities:
        return ["oddities  none"]
    lines = [f"oddities  {len(survey.oddities):,}"]
    for kind, members in groupby(survey.oddities, key=lambda oddity: oddity.kind):
        found = list(members)
        lines.append(f"  {kind}: {len(found):,}")
        lines += [f"    {_oddity(oddity)}" for oddity in found[:limit]]
        if limit and len(found) > limit:
            lines.append(f"    ... and {len(found) - limit:,} more (all with --json)")
    return lines


def table_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Line up cells in columns: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _oddity(oddity: Oddity) -> str:
    ids = ", ".join(oddity.sample_ids[:_SHOWN_IDS])
    if len(oddity.sample_ids) > _SHOWN_IDS:
        ids += f" and {len(oddity.sample_ids) - _SHOWN_IDS} more"
    return f"{ids}: {oddity.detail}" if ids else oddity.detail


def _captured(survey: Survey) -> str:
    pace = f"{survey.parts_per_second:g} parts/s in playback"
    if survey.captured_from is None:
        return f"(no times); {pace}"
    return f"{survey.captured_from} to {survey.captured_to}; {pace}"


def _sizes(survey: Survey) -> str:
    sizes = list(survey.image_sizes.items())
    text = ", ".join(f"{count:,} of {size}" for size, count in sizes[:_SHOWN_SIZES])
    if len(sizes) > _SHOWN_SIZES:
        rest = sum(count for _, count in sizes[_SHOWN_SIZES:])
        text += f", {rest:,} of {len(sizes) - _SHOWN_SIZES} other sizes"
    return text or "none readable"


def _windows(survey: Survey) -> str:
    if not survey.channels:
        return "no sensor"
    lengths = (
        f"{count:,} of {length} readings" for length, count in survey.window_readings.items()
    )
    absent = survey.samples - survey.windows
    text = ", ".join(lengths) or "none readable"
    return f"{text}; {absent:,} samples without" if absent else text


def _count_table(survey: Survey) -> list[str]:
    labels = list(dict.fromkeys(label for counts in survey.counts.values() for label in counts))
    rows = [["split", *labels, "all"]]
    for split, counts in survey.counts.items():
        numbers = [counts[label] for label in labels]
        rows.append([split, *(f"{number:,}" for number in numbers), f"{sum(numbers):,}"])
    totals = [sum(counts[label] for counts in survey.counts.values()) for label in labels]
    rows.append(["all", *(f"{total:,}" for total in totals), f"{sum(totals):,}"])
    return table_lines(rows)


def _channel_table(channels: Sequence[ChannelRange]) -> list[str]:
    rows = [["channel", "unit", "rate Hz", "min", "mean", "std", "max"]]
    for channel in channels:
        figures = (channel.min, channel.mean, channel.std, channel.max)
        rows.append(
            [
                channel.name,
                channel.unit,
                f"{channel.rate_hz:g}",
                *("-" if figure is None else f"{figure:.4g}" for figure in figures),
            ]
        )
    return table_lines(rows)
