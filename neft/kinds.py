"""The closed sets of words that options take."""

from __future__ import annotations

from typing import Literal

NoiseKind = Literal["uniform", "gaussian", "gaussian-l2"]
Schedule = Literal["cosine", "linear", "constant"]
Overlong = Literal["drop", "error", "truncate"]
LossOn = Literal["completion", "all"]
DType = Literal["float32", "bfloat16", "float16", "auto"]
MixedPrecision = Literal["no", "bf16", "fp16"]
Quantization = Literal["4bit", "8bit"]
