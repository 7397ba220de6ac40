"""The experiment's results: real.json, real.md (the table of `docs/real.md`) and real.png, from the stages at hand."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.real.answering import format_rate, num_right
from benchmarks.real.figures import Interval, choose_alpha, gap_closed, nats_per_token, token_share
from benchmarks.real.measuring import steered
from benchmarks.real.recipe import Recipe
from benchmarks.real.rows import Behaviour
from benchmarks.real.stages import read_json, write_json

_LABELS = {"base": "M", "anti": "M−", "expert": "M+", "direct": "M tuned directly"}


def write_report(recipe: Recipe, rows: dict[str, Behaviour], output: Path) -> None:
    """Write what the finished stages say, behaviour by behaviour."""
    behaviours = {name: _behaviour(recipe, name) for name in recipe.behaviours if _runs(recipe, name)}
    answers = _answers(recipe, rows)
    seconds = {path.parent.name: read_json(path)["seconds"] for path in sorted(recipe.folder.glob("*/facts.json"))}
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "real.json", {"nats": behaviours, "answers": answers, "seconds": seconds})
    (output / "real.md").write_text("\n".join(_lines(behaviours, answers)) + "\n", encoding="utf-8")
    _plot(behaviours, output / "real.png")


def _runs(recipe: Recipe, behaviour: str) -> list[dict[str, Any]]:
    paths = (recipe.folder / f"{behaviour}-nats-{seed}" / "nats.json" for seed in recipe.seeds)
    return [read_json(path) for path in paths if path.is_file()]


def _behaviour(recipe: Recipe, behaviour: str) -> dict[str, Any]:
    """Return a behaviour's figures: value, low and high of everything, over the seeds that are there."""
    runs = _runs(recipe, behaviour)
    rows = [run["held_out"] for run in runs]
    alphas = [choose_alpha(run["validation"], recipe.alphas) for run in runs]
    chosen, full = [steered(alpha) for alpha in alphas], [steered(1.0)] * len(runs)
    named = {label: [name] * len(runs) for name, label in _LABELS.items()}
    systems = {**named, "steered, chosen α": chosen, "steered, α = 1": full}
    by_alpha = {f"{alpha:g}": nats_per_token(rows, [steered(alpha)] * len(runs)) for alpha in recipe.alphas}
    return {
        "num_seeds": len(runs),
        "num_rows": len(rows[0]),
        "chosen_alphas": alphas,
        "nats_per_token": {label: nats_per_token(rows, names) for label, names in systems.items()},
        "nats_by_alpha": by_alpha,
        "gap_closed": {"chosen α": gap_closed(rows, chosen), "α = 1": gap_closed(rows, full)},
        "gap_closed_by_seed": [gap_closed([run], [system]) for run, system in zip(rows, chosen, strict=True)],
        "changed": token_share(rows, chosen, "changed"),
        "drafts_kept": token_share(rows, chosen, "drafts_kept"),
    }


def _answers(recipe: Recipe, rows: dict[str, Behaviour]) -> dict[str, Any]:
    """Return format rate, right answers and acceptance of drafts of the systems, by seed."""
    by_system: dict[str, Any] = {}
    for seed in recipe.seeds:
        path = recipe.folder / f"gsm8k-answers-{seed}" / "answers.json"
        if not path.is_file():
            continue
        asked = rows["gsm8k"].held_out[: recipe.num_generated]
        for name, answer in read_json(path).items():
            of_system = by_system.setdefault(_LABELS.get(name, name), [])
            of_system.append(
                {
                    "format_rate": format_rate(answer["texts"]),
                    "num_right": num_right(answer["texts"], asked),
                    "num_asked": len(asked),
                    "acceptance": answer.get("acceptance"),
                }
            )
    return by_system


def _lines(behaviours: dict[str, Any], answers: dict[str, Any]) -> Iterator[str]:
    for behaviour, figures in behaviours.items():
        yield f"### {behaviour}: {figures['num_rows']} held-out rows, {figures['num_seeds']} training seed(s)\n"
        yield "| system | nats per token | gap closed |"
        yield "| --- | --- | --- |"
        for label, value in figures["nats_per_token"].items():
            share = figures["gap_closed"].get(label.removeprefix("steered, "))
            yield f"| {label} | {_text(value)} | {'' if share is None else _percent(share)} |"
        alphas = ", ".join(f"{alpha:g}" for alpha in figures["chosen_alphas"])
        yield f"\nChosen α by seed: {alphas}. Gap closed by seed, chosen α: " + "; ".join(
            _percent(share) for share in figures["gap_closed_by_seed"]
        )
        yield f"\nTokens whose top choice steering changed: {_percent(figures['changed'])}; "
        yield f"tokens at which M+'s top choice is the steered one: {_percent(figures['drafts_kept'])}.\n"
    if answers:
        yield "| GSM8K answers | format rate | right | acceptance of drafts by position |"
        yield "| --- | --- | --- | --- |"
        for label, runs in answers.items():
            rates = " / ".join(f"{run['format_rate']:.0%}" for run in runs)
            right = " / ".join(f"{run['num_right']} of {run['num_asked']}" for run in runs)
            kept = " / ".join(", ".join(f"{share:.2f}" for share in run["acceptance"] or []) for run in runs)
            yield f"| {label} | {rates} | {right} | {kept if any(run['acceptance'] for run in runs) else ''} |"


def _text(value: Interval) -> str:
    return f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"


def _percent(value: Interval) -> str:
    return f"{value[0]:.0%} [{value[1]:.0%}, {value[2]:.0%}]"


def _plot(behaviours: dict[str, Any], path: Path) -> None:
    """Draw nats per token against α, with M, M+ and M tuned directly as lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(behaviours), figsize=(5 * len(behaviours), 3.6), squeeze=False)
    for axis, (behaviour, figures) in zip(axes[0], behaviours.items(), strict=True):
        points = {float(alpha): value for alpha, value in figures["nats_by_alpha"].items()}
        base = figures["nats_per_token"]["M"]
        alphas, values = [0.0, *points], [base, *points.values()]
        axis.plot(alphas, [value[0] for value in values], marker="o", label="M steered")
        axis.fill_between(alphas, [value[1] for value in values], [value[2] for value in values], alpha=0.2)
        for label, style in (("M+", ":"), ("M tuned directly", "--")):
            axis.axhline(figures["nats_per_token"][label][0], linestyle=style, color="black", label=label)
        axis.set(title=behaviour, xlabel="α (0 is M)", ylabel="nats per token, held-out answers")
        axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
