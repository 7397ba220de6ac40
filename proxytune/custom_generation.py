"""transformers' `generate(..., custom_generate=folder)`: a model that is loaded already, steered by small ones."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from proxytune.errors import OptionError
from proxytune.generator import ProxyGenerator

_STEERING = (
    "expert",
    "anti",
    "pairs",
    "alpha",
    "rule",
    "amateur",
    "domain",
    "reward_model",
    "dtype",
    "device_map",
    "quantization",
    "speculation",
    "tokenizer",
)
# Fields of a GenerationConfig that are options here under the same name, and what transformers takes for None.
_OPTIONS = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 50,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "num_beams": 1,
    "length_penalty": 1.0,
    "num_return_sequences": 1,
}
_SAMPLING = ("temperature", "top_p", "top_k", "min_p")
_KNOWN = {*_OPTIONS, "do_sample", "max_new_tokens", "max_length", "stop_strings", "use_cache", "transformers_version"}
_KNOWN |= {"bos_token_id", "eos_token_id", "pad_token_id", "_from_model_config"}
_MAX_NEW_TOKENS = 20  # transformers' own default
_GENERATOR = "_proxytune_generator"


def custom_generate_folder() -> str:
    """Return the folder that `model.generate(ids, custom_generate=folder, trust_remote_code=True, …)` takes."""
    return str(Path(__file__).parent / "custom_generate")


def generate(
    model: Any,
    inputs: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    **kwargs: Any,
) -> Tensor:
    """Return prompts and answers `[B, T]`, the tokens of `ProxyGenerator(model, …).generate`; prompts as they came.

    Args:
        model: The base, loaded.
        inputs: `[B, T]` token ids, left-padded where `attention_mask` says so; or `input_ids=`.
        generation_config: As in transformers; keyword arguments go before it.
        **kwargs: `expert`, `anti`, `alpha` and more of `ProxyGenerator`, `seed`, and generation's own.

    Raises:
        OptionError: An argument that only the composite's own `generate` takes.
    """
    steering = {name: kwargs.pop(name) for name in _STEERING if name in kwargs}
    seed = kwargs.pop("seed", None)
    given_ids = kwargs.pop("input_ids", None)
    input_ids = given_ids if inputs is None else inputs
    mask = kwargs.pop("attention_mask", None)
    if input_ids is None:
        raise OptionError("generate was given no token ids: pass input_ids, a tensor [B, T].")
    if generation_config is not None or kwargs.get("eos_token_id") is not None:
        ends = kwargs.get("eos_token_id", getattr(generation_config, "eos_token_id", None))
        steering["eos_token_ids"] = [ends] if isinstance(ends, int) else ends
    config = copy.deepcopy(model.generation_config if generation_config is None else generation_config)
    unused = config.update(**kwargs)
    _refuse_unknown(config, unused)
    generator = _generator_of(model, steering)
    kept = torch.ones_like(input_ids) if mask is None else mask.to(input_ids.device)
    prompts = [row[is_text.bool()].tolist() for row, is_text in zip(input_ids, kept, strict=True)]
    options = _options(config, input_ids.shape[1])
    rows = generator.generate(prompts, seed=seed, batch_size=len(prompts), **options)
    pad = generator.model.generation_config.pad_token_id
    width = max(len(row.token_ids) for row in rows)
    answers = [[*row.token_ids, *[pad] * (width - len(row.token_ids))] for row in rows]
    before = input_ids.repeat_interleave(len(rows) // len(prompts), dim=0)
    return torch.cat([before, torch.tensor(answers, dtype=before.dtype, device=before.device)], dim=1)


def _options(config: GenerationConfig, prompt_width: int) -> dict[str, Any]:
    """Return a generation config as options of `ProxyGenerator.generate`."""
    values = {name: getattr(config, name, None) for name in _OPTIONS}
    options = {name: _OPTIONS[name] if value is None else value for name, value in values.items()}
    if not config.do_sample:
        options = {name: value for name, value in options.items() if name not in _SAMPLING}
    options["max_new_tokens"] = _MAX_NEW_TOKENS
    if config.max_new_tokens is not None:
        options["max_new_tokens"] = config.max_new_tokens
    elif config.max_length is not None and config.max_length != _MAX_NEW_TOKENS:
        options["max_new_tokens"] = config.max_length - prompt_width
    return options | {"stop": config.stop_strings or ()}


def _refuse_unknown(config: GenerationConfig, unused: Mapping[str, Any]) -> None:
    """Raise OptionError for what was asked for and is not done here."""
    asked = [name for name, value in config.to_diff_dict().items() if value and name not in _KNOWN]
    asked += [name for name, value in unused.items() if value not in (None, False)]
    if asked:
        raise OptionError(
            f"{asked[0]} is not an option of steering by custom_generate: load the three as one model, "
            "ProxyTunedForCausalLM.from_roles or ProxyGenerator(...).model, whose generate takes it."
        )


def _generator_of(model: Any, steering: Mapping[str, Any]) -> ProxyGenerator:
    """Return the generator of a base and what steers it; the last one is kept with the model."""
    if model.__dict__.get(_GENERATOR, (None,))[0] != steering:
        # Not by setattr: torch would count the small models among the base's own.
        model.__dict__[_GENERATOR] = dict(steering), ProxyGenerator(model, **steering)
    generator: ProxyGenerator = model.__dict__[_GENERATOR][1]
    return generator
