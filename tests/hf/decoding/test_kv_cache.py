"""The slot cache: destinations of states, what is visible, and that nothing is copied."""

import torch

from proxytune.hf.decoding.kv_cache import SlotCache, SlotMapping, flat_slots


def states(num_rows: int, length: int, value: float) -> torch.Tensor:
    """Return states `[B, 2 heads, T, 3]` of one value."""
    return torch.full((num_rows, 2, length, 3), value)


def test_rows_write_at_their_own_positions() -> None:
    """Two rows of lengths 1 and 3 write side by side; what a row had before and behind stays."""
    cache = SlotCache(1, 2, 10)
    cache.set_slot_mapping(SlotMapping(rows=slice(0, 2), kv_len=4, start=0))
    cache.update(states(2, 4, 1.0), states(2, 4, 1.0), 0)
    positions = torch.tensor([[1, 2], [3, 4]])
    cache.set_slot_mapping(SlotMapping(rows=slice(0, 2), kv_len=5, slots=flat_slots(positions, cache.capacity)))
    keys, values = cache.update(states(2, 2, 7.0), states(2, 2, 8.0), 0)
    assert keys[:, 0, :, 0].tolist() == [[1, 7, 7, 1, 0], [1, 1, 1, 7, 7]]
    assert values[:, 1, :, 2].tolist() == [[1, 8, 8, 1, 0], [1, 1, 1, 8, 8]]


def test_some_rows_may_be_run_alone() -> None:
    """A forward over the second half of the rows leaves the first as it was."""
    cache = SlotCache(1, 4, 10)
    cache.set_slot_mapping(SlotMapping(rows=slice(2, 4), kv_len=1, start=0))
    keys, _ = cache.update(states(2, 1, 5.0), states(2, 1, 5.0), 0)
    assert keys.shape == (2, 2, 1, 3)
    assert cache.layers[0].keys[:, 0, 0, 0].tolist() == [0, 0, 5, 5]
    slots = flat_slots(torch.tensor([[1], [2]]), cache.capacity, 2)
    cache.set_slot_mapping(SlotMapping(rows=slice(2, 4), kv_len=3, slots=slots))
    keys, _ = cache.update(states(2, 1, 6.0), states(2, 1, 6.0), 0)
    assert keys[:, 0, :, 0].tolist() == [[5, 6, 0], [5, 0, 6]]


def test_what_is_seen_is_the_buffer_itself() -> None:
    """A step returns views: the cache is written in place, at the same address, and never copied."""
    cache = SlotCache(1, 2, 100)
    addresses = set()
    for step in range(100):
        cache.set_slot_mapping(SlotMapping(rows=slice(0, 2), kv_len=step + 1, start=step))
        keys, _ = cache.update(states(2, 1, float(step)), states(2, 1, 0.0), 0)
        addresses.add(keys.data_ptr())
    assert len(addresses) == 1
    assert keys[0, 0, :, 0].tolist() == list(range(100))


def test_growing_is_rare_and_keeps_what_was_there() -> None:
    """From 64 to over 2,000 columns it happens a few times, not at every token."""
    cache = SlotCache(1, 1, 1)
    capacities = []
    for step in range(2000):
        cache.require(step + 1)
        capacities.append(cache.capacity)
        cache.set_slot_mapping(SlotMapping(rows=slice(0, 1), kv_len=step + 1, start=step))
        keys, _ = cache.update(states(1, 1, float(step)), states(1, 1, 0.0), 0)
    assert len(set(capacities)) <= 12
    assert keys[0, 1, :, 2].tolist() == list(range(2000))


def test_keeping_rows() -> None:
    """The rows that stay are moved up in the order given, at the same addresses."""
    cache = SlotCache(1, 3, 4)
    cache.set_slot_mapping(SlotMapping(rows=slice(0, 3), kv_len=1, start=0))
    cache.update(torch.arange(3.0)[:, None, None, None].expand(3, 2, 1, 3), states(3, 1, 0.0), 0)
    address = cache.layers[0].keys.data_ptr()
    cache.select_rows(torch.tensor([2, 0]))
    assert cache.layers[0].keys.data_ptr() == address
    assert cache.layers[0].keys[:2, 0, 0, 0].tolist() == [2, 0]
