"""Changes of an adapter's folder."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from tests.hostile.changes import (
    BAD_JSON,
    BAD_WEIGHTS,
    PICKLES,
    SPECIAL_FILES,
    Change,
    edited,
    other_names,
    other_shapes,
    pickled,
    removed,
    replaced,
    weights,
    without,
    written,
)

_WEIGHTS = "adapter_model.safetensors"
SETTINGS: dict[str, tuple[Any, ...]] = {
    "peft_type": (None, 7, "NOTHING", "lora", ["LORA"]),
    "r": (None, 0, -1, "four", 10**9, 2.5, [4], {}),
    "lora_alpha": ("big", [8], {}),
    "target_modules": (7, [], ["nothing"], [7], "nothing", {"a": 1}, "(a+)+$("),
    "init_lora_weights": ("pissa_niter_99999999", "nothing", 7, "corda", "loftq"),
    "rank_pattern": ("none", {"q_proj": 10**9}, {"q_proj": "a"}, {"q_proj": -1}, [1]),
    "alpha_pattern": ("none", {"q_proj": "a"}),
    "base_model_name_or_path": (7, "/nowhere", ["a"], "nobody/nothing"),
    "layer_replication": ([[0, 10**7]], "all", [[5, 9]], [7]),
    "layers_to_transform": ("all", [99], [[0]]),
    "modules_to_save": (7, ["nothing"], "lm_head"),
    "task_type": ("NOTHING", 7),
    "trainable_token_indices": ([10**9], "all", [-99]),
    "auto_mapping": ({"base_model_class": "os", "parent_library": "os"},),
    "fan_in_fan_out": ("maybe",),
    "bias": ("nothing", 7),
    "megatron_config": ({"a": 1},),
    "use_dora": ("maybe",),
    "alora_invocation_tokens": ([1], "text"),
    "exclude_modules": ("q_proj|v_proj|up_proj",),
}


def adapter_cases() -> Iterator[tuple[str, Change]]:
    """Yield changes of an adapter's folder."""
    for key, values in SETTINGS.items():
        for number, value in enumerate(values):
            yield f"adapter {key} {number}", edited("adapter_config.json", **{key: value})
    for name, data in BAD_JSON.items():
        yield f"adapter_config.json {name}", written("adapter_config.json", data)
    for name, data in BAD_WEIGHTS.items():
        yield f"adapter weights {name}", written(_WEIGHTS, data)
    for name, make in SPECIAL_FILES.items():
        yield f"adapter weights are {name}", replaced(_WEIGHTS, make)
    yield "adapter without weights", removed(_WEIGHTS)
    yield "adapter without a layer", weights(partial(without, part="layers.1"), _WEIGHTS)
    yield "adapter of other names", weights(other_names, _WEIGHTS)
    yield "adapter of other shapes", weights(other_shapes, _WEIGHTS)
    for name, make in PICKLES.items():
        yield f"adapter pickle of {name}", pickled(make, "adapter_model", _WEIGHTS)
