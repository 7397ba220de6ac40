"""Closed sets of option values."""

from __future__ import annotations

from typing import Literal

NoiseKind = Literal["uniform", "gaussian", "gaussian-l2"]
Schedule = Literal["cosine", "linear", "constant"]
Overlong = Literal["drop", "error", "truncate"]
OnBadRow = Literal["error", "skip"]
LossOn = Literal["completion", "all"]
DType = Literal["float32", "bfloat16", "float16", "auto"]
MixedPrecision = Literal["no", "bf16", "fp16"]
Quantization = Literal["4bit", "8bit"]
