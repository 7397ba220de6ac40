"""An inspection as tables."""

from __future__ import annotations

from neft.analysis.tables import markdown_table, number
from neft.inspecting.inspecting import Inspection


def inspection_tables(inspection: Inspection) -> str:
    """Returns the tables and notes of an inspection, as markdown."""
    parts = [_model(inspection), _ratios(inspection), _effective(inspection), _live(inspection)]
    return "\n\n".join(parts + ([_scaling_note(inspection)] if inspection.is_scaled else []))


def _model(inspection: Inspection) -> str:
    lengths = ", ".join(f"p{percent} {length}" for percent, length in inspection.lengths.percentiles.items())
    rows = [
        ["model", inspection.model],
        ["embedding", f"width {inspection.dim}, standard deviation {inspection.sigma:.4g}"],
        [
            "rows",
            f"{inspection.data['num_kept']} of {inspection.data['num_rows']} in a window of {inspection.max_length}",
        ],
        ["tokens per document", f"mean {inspection.lengths.mean:.1f}, {lengths}, longest {inspection.lengths.longest}"],
    ]
    return "\n".join(f"- {name}: {value}" for name, value in rows)


def _ratios(inspection: Inspection) -> str:
    points = list(next(iter(inspection.ratios.values())))
    header = ["noise to signal", *(f"at {point}" for point in points)]
    rows = [
        [f"α = {alpha:g}", *(number(ratios[point]) for point in points)] for alpha, ratios in inspection.ratios.items()
    ]
    return markdown_table(header, rows)


def _effective(inspection: Inspection) -> str:
    header = [f"α = {inspection.alpha:g} acts as", "mean", "lowest", "highest", "padding noised, %"]
    rows = [
        [
            one.name,
            number(one.mean, 2),
            number(one.lowest, 2),
            number(one.highest, 2),
            number(100 * one.noised_padding, 1),
        ]
        for one in inspection.effective
    ]
    note = "The paper's own training code takes each row's real length, but adds no noise at all without FSDP."
    return f"{markdown_table(header, rows)}\n\n{note}"


def _live(inspection: Inspection) -> str:
    live = inspection.live
    facts = {
        "on in training": live.is_on_in_training,
        "fresh in every pass": live.is_fresh,
        "off in evaluation": live.is_off_in_evaluation,
        "padding without noise": live.is_padding_clean,
        "gone when detached": live.is_detached,
    }
    rows = [[name, "yes" if is_so else "NO"] for name, is_so in facts.items()]
    rows.append(["α measured on the embeddings", number(live.measured_alpha, 2)])
    rows.append(["largest change of a logit", number(live.logit_shift)])
    return markdown_table([f"on this model, α = {live.alpha:g}", "found"], rows)


def _scaling_note(inspection: Inspection) -> str:
    return (
        f"This model's embedding module scales its weights by {inspection.scale:.4g} (Gemma does, by √d). The noise is "
        f"added after that and is not scaled, so the same α is {inspection.scale:.4g} times weaker than on a model "
        "without the scale; the ratios above count it in. Fix the ratio instead with alpha_rel."
    )
