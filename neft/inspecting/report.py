"""An inspection as tables."""

from __future__ import annotations

from neft.analysis.tables import markdown_table, number
from neft.inspecting.inspecting import Inspection


def inspection_tables(found: Inspection) -> str:
    """Returns the tables and notes of an inspection, as markdown."""
    parts = [_model(found), _ratios(found), _effective(found), _live(found)]
    return "\n\n".join(parts + ([_scaling_note(found)] if found.is_scaled else []))


def _model(found: Inspection) -> str:
    lengths = ", ".join(f"p{percent} {length}" for percent, length in found.lengths.percentiles.items())
    rows = [
        ["model", found.model],
        ["embedding", f"width {found.dim}, standard deviation {found.sigma:.4g}"],
        ["rows", f"{found.data['num_kept']} of {found.data['num_rows']} in a window of {found.max_length}"],
        ["tokens per document", f"mean {found.lengths.mean:.1f}, {lengths}, longest {found.lengths.longest}"],
    ]
    return "\n".join(f"- {name}: {value}" for name, value in rows)


def _ratios(found: Inspection) -> str:
    places = list(next(iter(found.ratios.values())))
    header = ["noise to signal", *(f"at {place}" for place in places)]
    rows = [[f"α = {alpha:g}", *(number(ratios[place]) for place in places)] for alpha, ratios in found.ratios.items()]
    return markdown_table(header, rows)


def _effective(found: Inspection) -> str:
    header = [f"α = {found.alpha:g} acts as", "mean", "lowest", "highest", "padding noised, %"]
    rows = [
        [
            one.name,
            number(one.mean, 2),
            number(one.lowest, 2),
            number(one.highest, 2),
            number(100 * one.noised_padding, 1),
        ]
        for one in found.effective
    ]
    note = "The paper's own training code takes each row's real length, but adds no noise at all without FSDP."
    return f"{markdown_table(header, rows)}\n\n{note}"


def _live(found: Inspection) -> str:
    live = found.live
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


def _scaling_note(found: Inspection) -> str:
    return (
        f"This model's embedding module scales its weights by {found.scale:.4g} (Gemma does, by √d). The noise is "
        f"added after that and is not scaled, so the same α is {found.scale:.4g} times weaker than on a model without "
        "the scale; the ratios above count it in. Fix the ratio instead with alpha_rel."
    )
