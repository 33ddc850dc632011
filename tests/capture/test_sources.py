"""Which sources addresses are of is looked up once, until their memory is written into."""

import pytest
import torch

from pixelcnn_fast.capture.record.shadow_memory import AddressSpace, Constant, Value


@pytest.fixture
def space() -> AddressSpace:
    space = AddressSpace(2, 3, 3)
    for number in range(2):
        space.allot(Value(number), 4, (3, 3))
    space.allot(Constant(torch.zeros(5)), 5)
    return space


def test_what_is_written_into_memory_is_seen_in_its_views(space: AddressSpace) -> None:
    memory = space.of(0).clone()
    assert space.found(memory) == space.found(memory.flatten(1)) == [0]
    memory.view(2, 2, 2, 9)[:, 1].copy_(space.of(1).view(2, 2, 2, 9)[:, 0])
    assert space.found(memory.flatten(1)) == [0, 1]
    assert space.found(memory[:, :2]) == [0] and space.found(memory[:, 2:]) == [1]


@pytest.mark.parametrize("turned", [False, True])
def test_zeros_are_of_no_source(space: AddressSpace, turned: bool) -> None:
    memory = space.of(1).clone()
    memory[0, 0, 0, 0] = 0
    memory = memory.permute(3, 1, 0, 2) if turned else memory
    assert space.found(memory) == [1] and space.found(torch.zeros_like(memory)) == []
    assert torch.equal(space.only(memory, Value), memory)
    assert not space.only(memory, Constant).any()
    own = space.source_of(memory)
    assert torch.equal(space.is_of(own, Value), memory != 0) and not space.is_of(own, Constant).any()
    whole = space.source_of(space.of(2))  # of one source, once for all
    assert bool(space.is_of(whole, Constant).all()) and space.is_of(whole, Value).shape == whole.shape
