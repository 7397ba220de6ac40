"""A process of its own that asks the judge by the alpaca-eval package: a file of rows in, verdicts out on stdout.

Apart, because the package's import changes logging, environment and warnings of whoever imports it. It imports nothing
else of this project. The file's first line holds `annotators_config` and `max_concurrency`; each further line a row:
`id`, and `reference` and `output` as AlpacaEval's files have them. Each answer has the row's `id`, and the package's
`annotation` or the `error` that stood in its way. When stdin closes, whoever asked is gone, and so is this process.
"""

import json
import math
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any


def main() -> None:
    """Judge every row, and write each verdict when it is there."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the package prints is no answer
    settings, *rows = (json.loads(line) for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines())
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    import alpaca_eval.annotators  # noqa: F401 - once, before threads do

    with ThreadPoolExecutor(settings["max_concurrency"]) as pool:
        for done in as_completed([pool.submit(judged, row, settings["annotators_config"]) for row in rows]):
            answers.write(json.dumps(done.result(), allow_nan=False) + "\n")
            answers.flush()


def judged(row: dict[str, Any], annotators_config: str) -> dict[str, Any]:
    """Return the package's annotation of one row, or the error."""
    from alpaca_eval.annotators import PairwiseAnnotator

    try:
        # One annotator per row: it keeps in memory what it has annotated, and its calls are not made for threads.
        annotator = PairwiseAnnotator(annotators_config=annotators_config, caching_path=None)
        [annotation] = annotator.annotate_head2head([row["reference"]], [row["output"]])
    except Exception as error:  # noqa: BLE001 - the package raises what it meets, and a failure is a missing verdict
        return {"id": row["id"], "error": f"{type(error).__name__}: {error}"}
    return {"id": row["id"], "annotation": plain(annotation)}


def plain(value: Any) -> Any:
    """Return a value as JSON has it; NaN and infinities are null."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if hasattr(value, "item"):  # numpy's numbers
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)


def _end_with_stdin() -> None:
    # Not by sys.stdin, whose lock this thread would still hold when the process ends of itself.
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
