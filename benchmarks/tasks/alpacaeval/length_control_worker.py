"""A process of its own that fits AlpacaEval's length-controlled regression by the alpaca-eval package's own code.

The file on the command line holds one JSON object. For each column it has `annotations` in AlpacaEval's order, those
without verdict included; and `difficulties` of their instructions for a fit on them alone, or null for the published
form, whose `df_gamed.csv` the package then takes from the hub's cache. Each column's answer is one line: its name, and
the predicted preference (0 to 1) of each annotation as if both outputs were equally long, or the `error` that stood in
the way.
"""

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Fit each column, and print the preferences."""
    columns = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for column, asked in columns.items():
        sys.stdout.write(json.dumps({"column": column, **fitted(**asked)}) + "\n")
        sys.stdout.flush()


def fitted(annotations: list[dict[str, Any]], difficulties: list[float] | None) -> dict[str, Any]:
    """Return one column's preferences, or the error."""
    import pandas  # type: ignore[import-untyped]

    frame = pandas.DataFrame(annotations)
    try:
        preferences = published(frame) if difficulties is None else alone(frame, difficulties)
    except Exception as error:  # noqa: BLE001 - whatever the package raises is a rate that is missing
        return {"error": f"{type(error).__name__}: {error}"}
    return {"preferences": [float(value) for value in preferences]}


def published(frame: Any) -> Any:
    """Return the preferences by the package's length_controlled_v1."""
    from alpaca_eval.metrics import get_length_controlled_winrate

    get_length_controlled_winrate(frame, save_weights_dir=None, is_warn_extreme_changes=False)
    return frame["glm_preference"]


def alone(frame: Any, difficulties: list[float]) -> Any:
    """Return the preferences by the package's length_controlled_noreg: its fit without the gamed baselines' rows."""
    from alpaca_eval.metrics.glm_winrate import GLM_INFO, fit_LogisticRegressionCV, make_dmatrix_for_model

    form = GLM_INFO["length_controlled_noreg"]
    longer = frame["output_1"].str.len() - frame["output_2"].str.len()
    features = frame.assign(
        preference=frame["preference"].astype(float) - 1,
        std_delta_len=longer / longer.std(),
        instruction_difficulty=difficulties,
        not_gamed_baseline=True,
    )
    equal = features.assign(std_delta_len=0.0)
    known, asked = make_dmatrix_for_model(features, equal, formula=form["formula"])
    model = fit_LogisticRegressionCV(
        known[known["preference"].notna()], "preference", is_ytrue_proba=True, sample_weight=None, **form["kwargs"]
    )
    return model.predict_proba(asked)[:, 1]


if __name__ == "__main__":
    main()
