"""The picture: time per token against the base alone's, beside what the bytes demand."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.decoding.rows import Row, RowsError


def plot_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write a PNG: per workload a bar for each variant's ratio to the base, with its floor marked.

    Raises:
        RowsError: There is nothing to draw, matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RowsError("a picture needs matplotlib: pip install 'proxytune[bench]'.") from error
    drawn = [row for row in rows if row.ratio_to_base is not None]
    if not drawn:
        raise RowsError("there is nothing to draw: measure the base too.")
    workloads = list(dict.fromkeys(_label(row) for row in drawn))
    variants = list(dict.fromkeys(row.variant for row in drawn))
    figure = Figure(figsize=(2 + 2.2 * len(workloads), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    width = 0.8 / len(variants)
    for number, variant in enumerate(variants):
        variant_rows = [row for row in drawn if row.variant == variant]
        positions = [workloads.index(_label(row)) + (number - (len(variants) - 1) / 2) * width for row in variant_rows]
        axes.bar(positions, [row.ratio_to_base or 0.0 for row in variant_rows], width * 0.92, label=variant)
        for position, row in zip(positions, variant_rows, strict=True):
            if row.floor_ratio is not None:
                axes.hlines(row.floor_ratio, position - width / 2, position + width / 2, color="black", linewidth=1.5)
    axes.set_xticks(range(len(workloads)), workloads)
    axes.set_ylabel("time per token ÷ the base's (line: floor by bytes)")
    axes.set_title(f"{drawn[0].models}\n{drawn[0].hardware}; {drawn[0].dtype}; {drawn[0].date}", fontsize=9)
    axes.legend(fontsize=8, ncols=2)
    axes.grid(axis="y", alpha=0.3)
    try:
        figure.savefig(path, dpi=140)
    except (OSError, ValueError) as error:
        raise RowsError(f"cannot write {str(path)!r}: {error}.") from error


def _label(row: Row) -> str:
    return f"{row.prompt_tokens:g} → {row.new_tokens:g}\nbatch {row.batch}, {row.dtype}"
