"""The report for people: as tables in a terminal (rich) and as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from optiacts.held.sharing import ActivationSite
from optiacts.reporting.data import MemoryReport, Stage
from optiacts.reporting.peak import OPTIMIZER_STEP, PARTS
from optiacts.reporting.sizes import GIB, MIB, Unit, in_words

_WORDS = ("", "kind", "layer", "activation", "because")  # columns of words; numbers are set to the right


class Section(NamedTuple):
    """One table: a title, the names of the columns, the rows."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def sections(report: MemoryReport, all_layers: bool = True) -> list[Section]:
    """The tables of ``report``."""
    found = [_held(report), _card(report)]
    if report.options:
        found.append(_choices(report))
    if all_layers:
        found.append(_layers(report))
    if report.sites:
        found.append(_activations(report))
    if report.measured:
        found.append(_measured(report))
    return found


def headline(report: MemoryReport) -> str:
    """One sentence with the result."""
    best, unit = min(report.stages, key=lambda stage: stage.bytes), unit_of(report)
    setting = ", ".join(
        f"{value}" if key in ("batch", "model") else f"{key} {value}" for key, value in report.setting.items()
    )
    words = (
        f"{report.name}{f' ({setting})' if setting else ''}: {unit(report.now.bytes)} -> {unit.named(best.bytes)} "
        f"held for backward, {report.change(best):+.1%}"
    )
    before, after = report.now.peak, best.peak
    if before is not None and after is not None:
        words += f"; peak {unit(before.bytes)} -> {unit.named(after.bytes)}, {after.bytes / before.bytes - 1:+.1%}"
    return words


def notes(report: MemoryReport) -> str:
    """What the tables do not say."""
    found, peak = [], report.now.peak
    if peak is not None and peak.largest:
        found.append(f"Largest temporaries at the peak, now: {'; '.join(_numberless(t) for t in peak.largest)}.")
    if peak is not None:
        found += [f"Not counted of {op}: {why}." for op, why in peak.unknown.items()]
    found.append(
        "Not counted: the CUDA context (0.3 to 0.6 GiB), the allocator's fragmentation, the workspace of cuBLAS "
        "(8 to 32 MiB), and what else runs on the card."
    )
    if report.gpu_memory is not None and peak is not None:
        found.append(f"{report.name}: {report.fits()}")
    return "\n".join(found)


def markdown(report: MemoryReport, all_layers: bool = True) -> str:
    """The report as Markdown."""
    parts = [headline(report)]
    for section in sections(report, all_layers):
        lines = [
            f"**{section.title}**",
            "",
            "| " + " | ".join(section.columns) + " |",
            "|" + "".join("---|" if column in _WORDS else "---:|" for column in section.columns),
            *("| " + " | ".join(row) + " |" for row in section.rows),
        ]
        parts.append("\n".join(lines))
    parts.append(notes(report))
    return "\n\n".join(parts) + "\n"


def rich_tables(report: MemoryReport) -> list[Any]:
    """The report as ``rich`` renderables."""
    from rich.table import Table

    tables: list[Any] = [headline(report)]
    for section in sections(report):
        table = Table(title=section.title, title_justify="left")
        for number, column in enumerate(section.columns):
            named = (
                number == 0 and len(section.columns) > 4
            )  # of many columns the first names the rows: it stays whole
            justify = "left" if column in _WORDS else "right"
            table.add_column(column, justify=justify, overflow="fold", no_wrap=named)  # type: ignore[arg-type]
        for row in section.rows:
            table.add_row(*row)
        tables.append(table)
    tables.append(notes(report))
    return tables


def unit_of(report: MemoryReport) -> Unit:
    """The unit in which the sizes of ``report`` are easy to read."""
    return GIB if report.now.bytes + report.states.bytes >= GIB.bytes else MIB


def _stage_columns(report: MemoryReport) -> tuple[str, ...]:
    return tuple(stage.name for stage in report.stages)


def _cells(report: MemoryReport, sizes: Sequence[int]) -> tuple[str, ...]:
    unit = unit_of(report)
    return tuple(
        f"{unit(size)} ({size / report.now.bytes:.0%})" if report.now.bytes else unit(size) for size in sizes
    )


def _held(report: MemoryReport) -> Section:
    rows, unit = [], unit_of(report)
    for kind in report.now.kinds:
        sizes = [stage.kinds[kind] for stage in report.stages]
        if any(sizes):
            rows.append((kind, *_cells(report, sizes)))
    rows.append(("total", *(unit(stage.bytes) for stage in report.stages)))
    rows.append(("change", *(f"{report.change(stage):+.1%}" for stage in report.stages)))
    return Section(f"Held for backward, {unit.name}", ("kind", *_stage_columns(report)), tuple(rows))


def _card(report: MemoryReport) -> Section:
    unit, peaks = unit_of(report), [stage.peak for stage in report.stages]
    known = [peak for peak in peaks if peak is not None]
    if len(known) < len(peaks):
        return _without_peak(report)
    whole = report.gpu_memory or known[0].bytes

    def share(size: int) -> str:
        return f"{unit(size)} ({size / whole:.0%})" if whole else unit(size)

    rows = [(part, *(share(peak.parts[part]) for peak in known)) for part in PARTS]
    rows.append(("peak", *(share(peak.bytes) for peak in known)))
    rows.append(("change", *(f"{peak.bytes / known[0].bytes - 1:+.1%}" if known[0].bytes else "" for peak in known)))
    rows.append(("when", *(peak.phase for peak in known)))
    rows.append(("where", *("" if peak.phase == OPTIMIZER_STEP else _numberless(peak.where) for peak in known)))
    if report.gpu_memory is not None:
        title = f"largest batch in {GIB(report.gpu_memory)} GiB"
        rows.append((title, *(_largest(report, stage) for stage in report.stages)))
    of = "the card" if report.gpu_memory is not None else "the peak now"
    title = f"The whole card at the peak of a step, {unit.name} (and of {of})"
    return Section(title, ("", *_stage_columns(report)), tuple(rows))


def _without_peak(report: MemoryReport) -> Section:
    states, unit = report.states, unit_of(report)
    named = (
        ("parameters", states.parameters),
        ("gradients", states.gradients),
        ("optimizer state", states.optimizer),
    )
    rows = [(name, *(unit(size) for _ in report.stages)) for name, size in named]
    rows.append(("held for backward", *(unit(stage.bytes) for stage in report.stages)))
    rows.append(("total, below the peak", *(unit(states.bytes + stage.bytes) for stage in report.stages)))
    return Section(f"The whole card, {unit.name}", ("", *_stage_columns(report)), tuple(rows))


def _choices(report: MemoryReport) -> Section:
    unit, now, card = unit_of(report), report.options[0], report.gpu_memory
    rows = []
    for option in report.options:
        more = "" if option.more_work is None else f"{option.more_work:+.0%}"
        cells = [option.choice.words, unit(option.peak), f"{option.peak / now.peak - 1:+.0%}", more]
        rows.append((*cells, *([str(option.largest_batch(card))] if card is not None else [])))
    titles = ("kind", "peak", "change", "more work", *([f"largest batch in {in_words(card)}"] if card else []))
    return Section(f"What there is to choose from, {unit.name}", titles, tuple(rows))


def _largest(report: MemoryReport, stage: Stage) -> str:
    largest = report.largest_batch(stage)
    if largest is None:
        return ""
    if largest == 0 and report.states.parameters + report.states.optimizer > (report.gpu_memory or 0):
        return "0 (states alone exceed it)"
    return str(largest)


def _layers(report: MemoryReport) -> Section:
    names = list(dict.fromkeys(name for stage in report.stages for name in stage.layers))
    rows = [
        (name, *_cells(report, sizes))
        for name in names
        if max(sizes := [stage.layers.get(name, 0) for stage in report.stages]) >= 0.001 * report.now.bytes
    ]
    return Section(
        f"By the class of the layer that holds it, {unit_of(report).name}",
        ("layer", *_stage_columns(report)),
        tuple(rows),
    )


def _activations(report: MemoryReport) -> Section:
    groups: dict[tuple[str, ...], list[ActivationSite]] = {}
    for site in report.sites:
        key = (_numberless(site.path), site.activation, _numberless(site.reason))
        groups.setdefault(key, []).append(site)
    rows, unit = [], unit_of(report)
    for (path, name, reason), members in groups.items():
        gain = sum(site.gain for site in members)
        how = "" if members[0].is_module else " (a function: call optiacts' own)"
        rows.append((f"{path or 'the model'}: {name}{how}", str(len(members)), unit(gain), reason))
    return Section(
        f"What converting each activation alone saves, {unit.name}",
        ("activation", "count", "saves", "because"),
        tuple(rows),
    )


def _measured(report: MemoryReport) -> Section:
    predicted = {stage.name: stage for stage in report.stages}
    rows: list[tuple[str, ...]] = []
    for m in report.measured:
        said = predicted[m.stage].peak
        peak = (GIB(said.bytes), GIB(m.peak), f"{said.bytes / m.peak - 1:+.1%}") if said else ("", GIB(m.peak), "")
        rows.append((m.stage, GIB(predicted[m.stage].bytes), GIB(m.after_forward), *peak))
    return Section(
        "Measured on this GPU, GiB",
        (
            "",
            "held for backward, predicted",
            "left allocated by a forward",
            "peak, predicted",
            "max_memory_allocated of a step",
            "error",
        ),
        tuple(rows),
    )


def _numberless(path: str) -> str:
    """encoder.layer.11.act -> encoder.layer.*.act, so that the layers of a stack make one row."""
    return re.sub(r"(?<=\.)\d+(?=\.|\s|$)|^\d+(?=\.)", "*", path)
