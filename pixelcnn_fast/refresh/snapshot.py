"""Keeps a model as it was when a sampler took it, and finds out what has changed since."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from pixelcnn_fast.refresh.behaviour import Behaviour
from pixelcnn_fast.telling import tell
from pixelcnn_fast.user_model.contents import Contents, are_same, unwrapped
from pixelcnn_fast.user_model.private_copy import changes_with_its_mode, copy_or_why_not, drifting
from pixelcnn_fast.user_model.tensors import are_as_good_as_equal, are_equal, overlapping
from pixelcnn_fast.user_model.wrapped_model import WrappedModel


@dataclass(frozen=True)
class Snapshot:
    """A model as it was when it was taken.

    weights: by path, the tensors that it holds and its forward reads; settings: by path, what
    else it holds; outside: copies of tensors that its forward reads and it does not hold;
    overlaps: pairs of a weight and another tensor that share memory; sources: parameters of
    which eval mode may make weights.
    """

    model: WrappedModel
    behaviour: Behaviour
    weights: Mapping[str, Tensor]
    settings: Mapping[str, object]
    outside: Sequence[Tensor] = ()
    overlaps: Sequence[tuple[str, str]] = ()
    sources: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def taken(
        cls, model: WrappedModel, behaviour: Behaviour, held: Contents, weights: Mapping[str, Tensor]
    ) -> Snapshot:
        """Takes a model whose ``contents`` were ``held`` and ``weights`` before it was run,
        and warns if its forward reads tensors that it does not hold. Its behaviour then
        knows what its first call has kept."""
        if model.held.is_uncopyable:
            with model.in_use():
                _ = behaviour.other_recordings  # while it is what it was
        outside = [*behaviour.outside]
        if behaviour.first_recording is not None:
            read = behaviour.read(by_python=True)
            kept = model.paths & (weights.keys() if behaviour.decisive_others is None else read.keys())
            weights = {path: x for path, x in weights.items() if path in kept}
            # What a first call that can't be copied has kept was not there before.
            outside += [leaf.tensor for name, leaf in read.items() if name not in weights]
        if not model.held.is_uncopyable:
            behaviour.outside = outside
        if behaviour.outside:
            first = [f"{x.dtype} {list(x.shape)}".removeprefix("torch.") for x in behaviour.outside[:4]]
            what = f"what the model does not hold, as a global variable ({', '.join(first)})"
            tell(
                f"the model's forward reads {what}: refresh() "
                "and the warning of changes see whether that is written into, and not whether it is replaced. Make it "
                "a buffer, by register_buffer, or an attribute of the model"
            )
        outside = [x.detach().clone() for x in outside]
        overlaps = _between(model, model.overlaps, weights)
        sources = _parameters(held, weights) if model.drifting else {}
        if model.held.is_uncopyable:  # it gets weights of its own
            model = model.with_weights(weights)
        return cls(model, behaviour.of(model), weights, held.settings, outside, overlaps, sources)

    def is_still(self, module: nn.Module) -> bool:
        """Whether a model is what it was: it holds the same, or else it does the same."""
        now = Present(self, module)
        tensors, recording = now.held.tensors, self.behaviour.first_recording
        if not self.weights.keys() <= tensors.keys() or not self.overlaps_alike(now.held):
            return False
        if not self._surroundings_are_alike:
            return False
        different = self._different(tensors)  # which may only be read as numbers
        if different and (recording is None or not different.isdisjoint(self.behaviour.read())):
            return False
        holds_the_same = now.same_settings and not different and tensors.keys() <= self.model.paths
        return holds_the_same or now.does_the_same()

    def overlaps_alike(self, now: Contents) -> bool:
        """Whether the same tensors share memory as before, but for those that are gone."""
        there = [pair for pair in self.overlaps if now.tensors.keys() >= {*pair}]
        return _between(self.model, overlapping(now.tensors), self.weights) == there

    @property
    def _surroundings_are_alike(self) -> bool:
        """Whether what the forward reads and the model does not hold is what it was."""
        return all(map(are_equal, self.behaviour.outside, self.outside))

    def _different(self, present: Mapping[str, Tensor]) -> set[str]:
        """The paths of weights that have changed, not just by rounding when they were merged and taken apart."""
        found = {path for path, x in self.weights.items() if not are_equal(present[path], x)}
        if not found or not self.sources:
            return found
        drifting = self.model.drifting
        made_of = ((path, x) for path, x in self.sources.items() if path not in drifting)
        if not all(path in present and are_equal(present[path], x) for path, x in made_of):
            return found
        drifted = found & drifting
        return found - {path for path in drifted if are_as_good_as_equal(present[path], self.weights[path])}

    def follow(self, module: nn.Module) -> Present | str:
        """A model as it is now, or why only a new sampler can have its weights; guards
        check what Python has read of weights."""
        if not self.settings:
            return "it is a copy, or comes out of a pickle"
        if self.model.held.uncopyable not in (None, unwrapped(module)):
            return "its model can't be copied"
        now = Present(self, module)
        if now.is_copied and ".modes" not in self.model.told:
            self.model.told.add(".modes")
            tell(
                f"parts of {type(unwrapped(module)).__name__} may set other weights in train() or eval(), so each "
                "refresh() copies the model, which takes longer"
            )
        if (why := self._why_not_followed(now.held)) is not None:
            return why
        is_guarded = (
            not self.runs_module and now.same_settings and now.held.tensors.keys() <= self.model.paths
        )
        if not is_guarded and not now.does_the_same(now.same_settings):
            what = "" if now.same_settings else f": {_differences(now.held.settings, self.settings)}"
            return f"the model does something else now{what}"
        tensors = now.held.tensors
        apart = any(tensors.get(a) is not tensors.get(b) for a, b in self.overlaps)
        if apart and not self.behaviour.is_captured:
            return "weights of the model lie in the same memory"
        return now

    @property
    def runs_module(self) -> bool:
        """Whether images depend on what the module's Python code does, besides a program."""
        return not self.behaviour.is_captured or bool(self.model.branches)

    def _why_not_followed(self, now: Contents) -> str | None:
        """Why only a new sampler can have the present weights, as far as it shows at once."""
        missing = [path for path in self.weights if path not in now.tensors]
        if missing or any(now.tensors[path].shape != x.shape for path, x in self.weights.items()):
            return "the model's parameters and buffers have other names or shapes now"
        if not self.overlaps_alike(now):
            return "other weights of the model lie in the same memory now"
        present = [(now.tensors[path], x) for path, x in self.weights.items()]
        if any((x.dtype, x.device) != (y.dtype, y.device) for x, y in present):
            return "the model has another dtype or device now"
        if self.model.held.is_uncopyable and self.outside:
            return "it can't be copied, and its first call may have kept something"
        if not self._surroundings_are_alike:
            return "a tensor that the model reads, and does not have, is another now"
        return None


class Present:
    """A module as it is now, beside its snapshot.

    held: what it holds in eval mode; same_settings: whether all but its tensors is what it
    was; weights: copies of those by path; is_copied: whether a copy was looked at.
    """

    def __init__(self, before: Snapshot, module: nn.Module) -> None:
        self._before, self._seen, self.held, self.is_copied = before, module, Contents(module), False
        if not before.model.held.is_uncopyable and changes_with_its_mode(self.held):
            if isinstance(copied := copy_or_why_not(module), nn.Module):
                self._seen, self.held, self.is_copied = copied, Contents(copied), True
        self.same_settings = are_same(self.held.settings, before.settings)
        self.weights = _CopiesOnDemand(self.held.tensors, before.weights)
        self._same: WrappedModel | None = None  # the model as it is now, if its forward does what it did

    def does_the_same(self, same_settings: bool = False) -> bool:
        """Whether the forward does what it did. same_settings: as for ``Behaviour.does_the_same``."""
        if self._same is None:
            before, copied = self._before, self._seen
            if not self.is_copied and not before.model.held.is_uncopyable:
                if isinstance(found := copy_or_why_not(copied, is_separate=False), str):
                    return False
                copied = found
            if before.behaviour.does_the_same(copied, before.weights, same_settings):
                self._same = before.model.run_by(copied)
        return self._same is not None

    def does_the_same_with_other_numbers(self) -> bool:
        """Whether it does what it did, although Python reads another number off weights."""
        recording = self._before.behaviour.first_recording
        return bool(recording and recording.constants_read) and self.does_the_same(self.same_settings)

    def snapshot(self) -> Snapshot:
        before, behaviour = self._before, self._before.behaviour
        weights = {path: self.weights[path] for path in before.weights}
        others: dict[str, Tensor] = {}
        if (
            behaviour.first_recording is None or behaviour.read_by_python
        ):  # what else the forward reads is not known
            others = {
                path: x.detach().clone() for path, x in self.held.tensors.items() if path not in weights
            }
        model = before.model
        if not self.same_settings and before.runs_module and not model.held.is_uncopyable:
            model = self._same or model
        model = model.with_weights({**weights, **others})
        model.drifting = drifting(self._seen, self.held)
        sources = _parameters(self.held, weights) if model.drifting else {}
        behaviour, settings = behaviour.of(model), self.held.settings
        return replace(
            before, model=model, behaviour=behaviour, weights=weights, settings=settings, sources=sources
        )


def _between(
    model: WrappedModel, overlaps: Sequence[tuple[str, str]], weights: Container[str]
) -> list[tuple[str, str]]:
    """The pairs of which one is a weight, and both were there from the start."""
    return [(a, b) for a, b in overlaps if {a, b} <= model.paths and (a in weights or b in weights)]


def _parameters(held: Contents, but: Container[str]) -> dict[str, Tensor]:
    """Copies of the parameters, by path, that are not among ``but``."""
    found = {path: x for path, x in held.tensors.items() if isinstance(x, nn.Parameter) and path not in but}
    return {path: x.detach().clone() for path, x in found.items()}


def _differences(now: Mapping[str, object], before: Mapping[str, object]) -> str:
    """Says at which path two modules differ first, and at how many more."""
    paths = [path for path in {**before, **now} if now.get(path, now) != before.get(path, now)]
    first = (paths or ["order"])[0].replace(":", ".").strip(".") or "type"
    return f"its {first} is another" + (
        f", as is what is at {len(paths) - 1} more paths" if paths[1:] else ""
    )


class _CopiesOnDemand(dict[str, Tensor]):
    """Copies of tensors, each made when it is first asked for: what reads it next finds it
    in the processor's caches."""

    def __init__(self, present: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> None:
        self._present, self._before = present, before

    def __missing__(self, name: str) -> Tensor:
        """The tensor before, if it is the same, which masks mostly are; else a copy. Raises
        RuntimeError if it is gone."""
        if (x := self._present.get(name)) is None:
            raise RuntimeError(f"{name} is gone")
        before = self._before.get(name)
        is_kept = before is not None and not x.requires_grad and are_equal(x, before)
        self[name] = found = before if is_kept and before is not None else x.detach().clone()
        return found
