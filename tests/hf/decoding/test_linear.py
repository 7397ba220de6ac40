"""oneDNN's kernel for linear layers on the CPU."""

import pytest
import torch
from torch.nn.functional import linear
from torch.profiler import ProfilerActivity, profile

from proxytune.hf.decoding.linear import is_for_onednn, onednn_linear

CPU = torch.device("cpu")


def _kernels(states: torch.Tensor, layer: torch.nn.Module) -> set[str]:
    with profile(activities=[ProfilerActivity.CPU]) as profiled, torch.no_grad(), onednn_linear(CPU):
        layer(states)
    return {event.key for event in profiled.key_averages()}


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("shape", [(1, 1, 96), (1, 8, 96), (5, 3, 96), (7, 96)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_the_same_products(shape: tuple[int, ...], has_bias: bool) -> None:
    """A layer gives its float64 result to float32 rounding, also for states that lie crosswise."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(96, 160, bias=has_bias)
    for states in (torch.randn(shape), torch.randn(*shape[:-2], shape[-1], shape[-2]).transpose(-1, -2)):
        with torch.no_grad(), onednn_linear(CPU):
            found = layer(states)
        exact = linear(states.double(), layer.weight.double(), layer.bias.double() if has_bias else None)
        torch.testing.assert_close(found.double(), exact, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_oneDNN_runs_within_the_mode_only() -> None:  # noqa: N802
    """Inside the mode the layer's kernel is oneDNN's; what runs outside keeps torch's own."""
    layer, states = torch.nn.Linear(96, 160), torch.randn(1, 4, 96)
    assert "mkldnn::_linear_pointwise" in _kernels(states, layer)
    with profile(activities=[ProfilerActivity.CPU]) as outside, torch.no_grad():
        layer(states)
    assert "mkldnn::_linear_pointwise" not in {event.key for event in outside.key_averages()}


@pytest.mark.parametrize(
    ("states", "weight"),
    [
        (torch.ones(2, 4, dtype=torch.bfloat16), torch.ones(3, 4, dtype=torch.bfloat16)),
        (torch.ones(2, 4), torch.ones(4, 3).t()),
        (torch.ones(0, 4), torch.ones(3, 4)),
        (torch.ones(2, 4, device="meta"), torch.ones(3, 4, device="meta")),
    ],
    ids=["bfloat16", "a transposed weight", "no rows", "another device"],
)
def test_what_it_leaves_to_torch(states: torch.Tensor, weight: torch.Tensor) -> None:
    """Other dtypes, devices and layouts take torch's way."""
    with torch.no_grad():
        assert not is_for_onednn(states, weight)


def test_gradients_keep_torchs_kernel() -> None:
    """Where a gradient may be asked for, it still comes."""
    layer, states = torch.nn.Linear(4, 3), torch.ones(2, 4, requires_grad=True)
    with onednn_linear(CPU):
        layer(states).sum().backward()
    assert states.grad is not None


def test_nothing_changes_on_other_devices() -> None:
    """Off the CPU there is no mode at all."""
    with onednn_linear(torch.device("cuda")):
        assert torch.overrides._len_torch_function_stack() == 0
