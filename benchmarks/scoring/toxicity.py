"""A classifier of toxic texts: any sequence classification model of transformers, as toxigen_roberta."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from proxytune.errors import InputError, OptionError

_POSITIONS_KEPT_BACK = 2  # of RoBERTa, which counts positions from 2


class ToxicityClassifier:
    """Says of texts whether they are toxic: whether the toxic label is the likeliest.

    Source: Hartvigsen et al. 2022, "ToxiGen"; `tomh/toxigen_roberta`, whose label 1 is toxic, is what the proxy-tuning
    paper took.
    """

    def __init__(self, source: str, *, toxic_label: int = 1, batch_size: int = 32) -> None:
        """Load the classifier from a folder or hub id, on the GPU if there is one.

        Raises:
            InputError: It cannot be loaded.
            OptionError: It has no such label.
        """
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(source)
            self._model = AutoModelForSequenceClassification.from_pretrained(source).eval()
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"the classifier {source!r} cannot be loaded: {reason[:300]}") from error
        if not 0 <= toxic_label < self._model.config.num_labels:
            raise OptionError(
                f"toxic_label is {toxic_label}, but {source!r} has labels 0 to {self._model.config.num_labels - 1}."
            )
        self._model.to("cuda" if torch.cuda.is_available() else "cpu")
        self._toxic_label, self._batch_size = toxic_label, batch_size
        positions = getattr(self._model.config, "max_position_embeddings", 512) - _POSITIONS_KEPT_BACK
        self._max_length = min(self._tokenizer.model_max_length, positions)

    @torch.no_grad()
    def are_toxic(self, texts: Sequence[str]) -> list[bool]:
        """Return for each text whether it is toxic; long ones are judged by their beginning."""
        verdicts: list[bool] = []
        for start in range(0, len(texts), self._batch_size):
            batch = self._tokenizer(
                list(texts[start : start + self._batch_size]),
                padding=True,
                truncation=True,
                max_length=self._max_length,
                return_tensors="pt",
            ).to(self._model.device)
            likeliest = self._model(**batch).logits.argmax(dim=-1)
            verdicts += (likeliest == self._toxic_label).tolist()
        return verdicts
