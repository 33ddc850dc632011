"""Knows what a model's forward does, and tells whether another module does the same."""

from __future__ import annotations

import copy
from collections.abc import Container, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import chain

import torch
from torch import Tensor, nn

from pixelcnn_fast.capture.record.forward import Forward, shared
from pixelcnn_fast.capture.record.recorder import CONDITION, IMAGE, LABELS, Leaf, Recording
from pixelcnn_fast.capture.record.transcript import are_alike
from pixelcnn_fast.errors import PixelCNNFastError
from pixelcnn_fast.program.conditions import Conditioning
from pixelcnn_fast.user_model.conditioning import trial, with_label
from pixelcnn_fast.user_model.contents import Contents
from pixelcnn_fast.user_model.private_copy import eagerly
from pixelcnn_fast.user_model.random_state import random_state_kept
from pixelcnn_fast.user_model.tensors import are_equal, duplicate
from pixelcnn_fast.user_model.wrapped_model import MOST_DIFFERENT, WrappedModel

MOST_LABELS = 64  # for all of which models are compared, if Python reads numbers off them


class Behaviour:
    """What a model's forward does.

    first_recording: of the first forward, if it can be recorded; outside: tensors that it
    reads and the model does not hold; is_captured: whether there is a program, which does
    for all images what the model did for one.
    """

    def __init__(
        self,
        model: WrappedModel,
        recording: Recording | None = None,
        outside: Sequence[Tensor] = (),
        is_captured: bool = False,
    ) -> None:
        self._model, self.first_recording, self.is_captured = model, recording, is_captured
        read = {} if recording is None else recording.read()
        unnamed = [leaf.tensor for leaf in read.values() if not leaf.parameters]
        # What no path leads to, although the module holds it.
        hidden = [x for x in model.hidden if any(are_equal(x.detach(), y) for y in unnamed)]
        self.outside = [*outside, *hidden]

    @classmethod
    def without_program(cls, model: WrappedModel) -> Behaviour:
        """The behaviour of a model without a program, recorded if that is possible."""
        found = cls(model)
        with suppress(PixelCNNFastError, RuntimeError), random_state_kept(model.device):
            one, two = (found._forward(found._another()).recording for _ in range(2))
            if not are_alike(one, two):
                return found
            found = cls(model, one, shared(one, two))
            model.reads_images = IMAGE in found.read_by_python
        if LABELS in found.read_by_python and model.can_try:
            model.labels.explore(trial(model))
        return found

    def of(self, model: WrappedModel) -> Behaviour:
        """The same behaviour, for the model with other weights."""
        other = copy.copy(self)
        other._model = model
        return other

    @property
    def read_by_python(self) -> frozenset[str]:
        """What the numbers depend on that Python has read; images matter only without a program."""
        escapes = () if self.first_recording is None else self.first_recording.escapes
        taken = (x.of for x in escapes if IMAGE not in x.of or not self.is_captured)
        return frozenset[str]().union(*taken)

    def read(self, by_python: bool = False) -> dict[str, Leaf]:
        """The tensors that the forward reads, by path; by_python: also those that Python alone reads."""
        recordings = [*filter(None, [self.first_recording]), *(self.decisive_others or ())]
        leaves = chain.from_iterable(each.read(by_python).values() for each in recordings)
        return {name: leaf for leaf in leaves for name, _ in leaf.parameters}

    # -- for other examples

    @property
    def decisive_others(self) -> list[Recording] | None:
        """As ``other_recordings``; [] with a program, which does the same for all examples, or raises."""
        return [] if self.is_captured else self.other_recordings

    @cached_property
    def other_recordings(self) -> list[Recording] | None:
        """What the forward does for other examples, where that may differ; None if it can't be tried."""
        if not self._other_examples:
            return []
        with random_state_kept(self._model.device), suppress(PixelCNNFastError, RuntimeError):
            self._forward(module := self._another())
            return [self._forward(module, each).recording for each in self._other_examples]
        return None

    @cached_property
    def _other_examples(self) -> list[tuple[Tensor, Conditioning]]:
        read, model = self.read_by_python, self._model
        found = model.examples_to_check() if model.reads_images or CONDITION in read else []
        if CONDITION in read:
            found += [model.example(seed, n=1) for seed in range(MOST_DIFFERENT)]
        if LABELS in read:
            labels = range(model.labels.accepted)
            spread = labels[:: -(-len(labels) // MOST_LABELS)]
            found += [with_label(model, label) for label in sorted({*spread, labels[-1]})]
        return found

    # -- of a module that has run before

    @cached_property
    def _second_recording(self) -> Recording | None:
        """The recording of a module that has run before; None if it has kept what was made of weights."""
        module, other = self._another(), self._another()
        # Such as the user's own, in a function.
        shared = {id(x) for x in Contents(module).tensors.values()}
        with torch.no_grad():
            for x in Contents(other).tensors.values():
                if x.is_floating_point() and id(x) not in shared:
                    x.mul_(1.5).add_(0.1)
        had = Contents(module).tensors
        for each in (module, other):
            self._forward(each)
        again, kept = self._forward(module).recording, Contents(other).tensors
        for leaf in again.read().values():
            for name in {name for name, _ in leaf.parameters} - had.keys():
                if name not in kept or not are_equal(kept[name], leaf.tensor):
                    return None
        return again

    def steady_recording(self) -> Recording | None:
        """The recording of a module that has run before, if it keeps anything from its first forward."""
        if self.first_recording is None or self._model.held.is_uncopyable:
            return self.first_recording
        module = self._another()
        had = Contents(module).tensors.keys()
        with random_state_kept(self._model.device), suppress(PixelCNNFastError, RuntimeError):
            self._forward(module)
            if Contents(module).tensors.keys() != had:
                return self._second_recording or self.first_recording
        return self.first_recording

    # -- of another module

    def does_the_same(self, module: nn.Module, weights: Container[str], same_settings: bool = False) -> bool:
        """Whether another module, in eval mode, makes the recorded calls with its own
        tensors or, without a recording, gives the same for an example. weights: the paths
        of tensors that may differ; same_settings: whether all else is known to be the same."""
        try:
            with random_state_kept(self._model.device):
                if self.first_recording is None:
                    return self._gives_the_same(module)
                now = self._forward(module).recording
                is_first = are_alike(self.first_recording, now, weights)
                if not is_first and not self._matches_second_recording(now, weights):
                    return False
                if same_settings and not self._model.branches:
                    return True
                if (others := self.other_recordings) is None:
                    return False
                present = (self._forward(module, each).recording for each in self._other_examples)
                return all(are_alike(one, two, weights) for one, two in zip(others, present, strict=True))
        except (PixelCNNFastError, RuntimeError):
            return False

    def _matches_second_recording(self, now: Recording, weights: Container[str]) -> bool:
        """Whether a module that has run before does what this model would do then."""
        assert self.first_recording is not None
        if self._model.held.is_uncopyable:
            return False
        # Copies share what a function holds, which must still be what it was.
        if not are_alike(self.first_recording, self._forward(self._another()).recording):
            return False
        return self._second_recording is not None and are_alike(self._second_recording, now, weights)

    def _gives_the_same(self, module: nn.Module) -> bool:
        """Whether another module gives, bit by bit, what this model would with its tensors."""
        if self._model.held.is_uncopyable:
            return False
        both = self._model.with_weights(Contents(module).tensors), self._model.run_by(module)
        with eagerly:
            return torch.equal(*(each.distribution_parameters(*self._model.example()) for each in both))

    def _another(self) -> nn.Module:
        """A copy of the module that has never run; the module itself if it can't be copied."""
        held = self._model.held
        return held.module if held.is_uncopyable else duplicate(held.untouched)

    def _forward(self, module: nn.Module, example: tuple[Tensor, Conditioning] | None = None) -> Forward:
        model = self._model
        values, given = example or model.example()
        with eagerly:
            encoded, given = model.encode(values), given.in_dtype(model.dtype)
            allows_autocast = not self.is_captured
            return Forward(module, encoded, given, model.head, model.output, model.form, allows_autocast)
