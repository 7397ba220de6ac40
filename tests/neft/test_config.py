"""The configuration checks itself."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest

from neft import InputError, TrainingConfig

FILES = {"model": "m", "data": "d.jsonl", "output": "o"}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"alpha": -1.0}, "alpha is -1.0; give at least 0"),
        ({"alpha": math.nan}, "alpha is nan; give a finite"),
        ({"alpha": "5"}, "alpha is '5'; give a number"),
        ({"batch_size": 0}, "batch_size is 0; give at least 1"),
        ({"max_steps": 1.5}, "max_steps is 1.5; give a whole"),
        ({"seed": True}, "seed is True"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; give more"),
        ({"eval_fraction": 1.0}, "eval_fraction is 1.0; it is a share"),
        ({"noise": "pink"}, "noise is 'pink'; choose one of uniform"),
        ({"schedule": "step"}, "schedule is 'step'; choose"),
        ({"epochs": 1, "max_steps": 2}, "give one"),
        ({"eval_data": "e", "eval_fraction": 0.1}, "give one"),
        ({"eval_every": 5}, "eval_every needs held-out rows"),
        ({"early_stopping_patience": 1}, "early_stopping_patience needs held-out rows"),
        ({"model": ""}, "model is empty"),
        ({"alpha_rel": -0.1}, "alpha_rel is -0.1; give at least 0"),
        ({"alpha": 5.0, "alpha_rel": 0.1}, "alpha=5.0 and alpha_rel=0.1 both"),
        ({"save_every": 0}, "save_every is 0"),
        ({"keep_checkpoints": 0}, "keep_checkpoints is 0"),
        ({"resume": True, "overwrite": True}, "resume goes on"),
        ({"quantize": "2bit"}, "quantize is '2bit'; choose one of 4bit, 8bit"),
        ({"quantize": "4bit"}, "quantize is an option of an adapter; add lora_r"),
        ({"use_dora": True}, "use_dora is an option of an adapter"),
        ({"mixed_precision": "fp8"}, "mixed_precision is 'fp8'"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"loss_on": "prompt"}, "loss_on is 'prompt'"),
        ({"deepspeed": "/nowhere.json"}, "deepspeed is /nowhere.json, which cannot be read"),
        ({"lora_targets": ()}, "lora_targets is empty"),
    ],
)
def test_wrong_values_are_named(options, complaint):
    """The message has the option, the value and the limit."""
    with pytest.raises(InputError, match=complaint):
        TrainingConfig(**{**FILES, **options})


def test_unknown_options_are_errors():
    """A misspelt option never vanishes."""
    with pytest.raises(TypeError, match="alhpa"):
        TrainingConfig(**FILES, alhpa=5.0)


def test_a_configuration_cannot_change():
    """It is frozen."""
    with pytest.raises(FrozenInstanceError):
        TrainingConfig(**FILES).alpha = 1.0


def test_importing_neft_is_light():
    """`import neft` and building a configuration import neither torch nor transformers."""
    code = (
        "import sys, neft; neft.TrainingConfig(model='m', data='d', output='o'); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'peft', 'proxytune')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_exported_name_exists():
    """Each name of `__all__` can be had, `neft.noise` is the context manager, and others are errors."""
    import neft

    assert all(getattr(neft, name) is not None for name in neft.__all__)
    assert callable(neft.noise)
    with pytest.raises(AttributeError, match="nosie"):
        _ = neft.nosie
