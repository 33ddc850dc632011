"""Goes through recorded calls: runs those on constants, keeps those on conditions, lowers the rest.

A call that has no place in a program is refused only if the output needs its result.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pixelcnn_fast.capture.lower import advice
from pixelcnn_fast.capture.lower.advice import friendly_name
from pixelcnn_fast.capture.lower.calls import LOWERINGS
from pixelcnn_fast.capture.lower.calls.attention import on_pairs
from pixelcnn_fast.capture.lower.calls.levels import by_table, cast, has_table
from pixelcnn_fast.capture.lower.calls.registry import FRESH, MASKED, MOVEMENTS, PLACES, LoweringContext
from pixelcnn_fast.capture.lower.final_softmax import made_by, refuse_softmaxes, without_log_softmax
from pixelcnn_fast.capture.lower.materialize import gathered
from pixelcnn_fast.capture.record.recorder import IMAGE
from pixelcnn_fast.capture.record.shadow_memory import (
    Constant,
    Map,
    OfCondition,
    ShadowStorage,
    Unknown,
    beside,
    unrecorded,
)
from pixelcnn_fast.capture.record.weight_recorder import WeightRecorder
from pixelcnn_fast.errors import NotCausal, Unsupported
from pixelcnn_fast.heads import Head
from pixelcnn_fast.program.calls import (
    Call,
    View,
    functional,
    leaves,
    map_leaves,
    needed,
    out_of_place,
    plain_name,
    size_at,
    unread,
    written_by,
)
from pixelcnn_fast.program.grids import WHOLE
from pixelcnn_fast.program.instructions import Pointwise
from pixelcnn_fast.program.operands import Read
from pixelcnn_fast.program.program import Program
from pixelcnn_fast.program.program import needed as needed_instructions
from pixelcnn_fast.program.steps import KINDS

PRODUCTS = frozenset(("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "convolution"))


class Translation(LoweringContext):
    def run(self, outputs: Sequence[int], recorder: WeightRecorder) -> None:
        """Takes the calls in order. outputs: the slots that are needed; recorder: guards what Python read."""
        recording, reads = self.recording, defaultdict(list)
        for at, view in recording.constants_read:
            reads[at].append(view)
        wanted = needed(recording.calls, [*outputs, *(view.slot for _, view in recording.constants_read)])
        decisive = {*needed(recording.calls, outputs)}
        gone = dict(zip(wanted, unread(wanted, outputs), strict=True))
        read_again = {view.slot for _, view in recording.constants_read} | recording.leaves.keys()
        for at, call in enumerate([*recording.calls, None]):
            for view in reads[at]:
                with recorder.without_guards():
                    found = self.imageless.memory.tensor(view)
                recorder.guard(found)
            if call in gone:
                with nullcontext() if call in decisive else recorder.without_guards():
                    self._run_or_lower(call)
                for slot in gone[call]:
                    self.storages.pop(slot, None)
                self.imageless.memory.forget({*gone[call]} - read_again)
        changed = written_by(recording.calls)
        with recorder.without_guards():
            for slot, leaf in recording.leaves.items():
                for name, view in leaf.parameters if slot in changed else ():
                    recorder.written[name] = self.imageless.memory.tensor(replace(view, slot=slot))

    def _run_or_lower(self, call: Call) -> None:
        if not self.storages.keys().isdisjoint(call.read | call.written) or call.is_random:
            return self._lower(call)
        self.as_is.add(call)
        try:
            self.imageless.run(call)
        except Unsupported:
            raise
        except Exception as error:  # such as a tensor that was resized
            what = f"it can't be run again ({type(error).__name__}: {error}): make a new tensor instead"
            raise Unsupported(f"{call.where}: {friendly_name(call)}: {what}") from error

    def _lower(self, call: Call) -> None:
        self.builder.where, name = call.where, friendly_name(call)
        try:
            results = self._results(call)
            if 0 < len(results) < len(call.results):
                what = f"{call.where}: {name}: only the first of its results is followed"
                results = [*results, *self._unknown(call, what)[len(results) :]]
            self._write(call, results)
        except Unsupported as error:
            self._write_refusal(call, f"{call.where}: {name}: {error}. {advice.instead(name)}")
        except NotCausal:
            raise
        except Exception as error:  # never the user's fault
            what = f"capture does not understand it ({type(error).__name__}: {error}): please report it with the model"
            self._write_refusal(call, f"{call.where}: {name}: {what}")
        for view in call.inputs:
            if view.slot in call.written and view.slot not in {result.slot for result in call.outputs}:
                what = f"it writes into tensors that it does not return. {advice.instead(name)}"
                self._write_refusal(replace(call, results=(view,)), f"{call.where}: {name}: {what}")

    def _write_refusal(self, call: Call, reason: str) -> None:
        """Marks the call's results as refused: what needs them raises ``reason``."""
        try:
            self._write(call, self._unknown(call, reason))
        except Exception:  # their memory is not what it was, such as a resized tensor's
            raise Unsupported(f"cannot sample from this model: {reason}") from None

    def _results(self, call: Call) -> Sequence[Map]:
        name = plain_name(call.name)
        if name in FRESH:
            return self._fresh(call, FRESH[name])
        if (reason := self._refused_for(call.inputs)) is not None:
            return self._unknown(call, reason)
        if any(self.map(view).is_symbolic for view in call.inputs if view.slot in self.storages):
            return on_pairs(self, call)
        if (
            name in MOVEMENTS
            and not self._has_places(call, self.depends_on_image)
            and not (name in MASKED and self._has_places(call, self.imageless.is_given))
        ):
            return self._moved(call)
        kinds = self._kinds(call)
        if kinds <= {Constant} and not call.is_random:
            return self._computed(call)
        if OfCondition in kinds and kinds <= {Constant, OfCondition}:
            self.as_is.add(call)  # they were written into the same storage as features
            return [self._on_condition(call, call.outputs[0])]
        if "out" in call.kwargs:
            raise Unsupported("out= is not supported: use what the call returns")
        table = self._table(call, is_needed=name in MASKED or name not in LOWERINGS)
        if name == "_to_copy":
            return [cast(self, call.args[0], call.outputs[0].dtype, table)]
        if table is not None:
            return [table]
        if name not in LOWERINGS or self._is_exact(call):
            return [by_table(self, call)]  # which says why there is none
        try:
            result = LOWERINGS[name](self, *call.args, **call.kwargs)
        except TypeError as error:
            raise Unsupported(f"it is not supported with these arguments ({error})") from None
        except Unsupported:
            if (table := self._table(call)) is None:  # a large one is better than none
                raise
            return [table]
        return result if isinstance(result, list) else [result]

    def _table(self, call: Call, is_needed: bool = True, of: Call | None = None) -> Map | None:
        """The map of a call on levels, as the model rounds it, if any. of: the recorded call."""
        if has_table(self, call):
            with suppress(Unsupported):
                result = by_table(self, call, is_needed)
                self.as_is.add(of or call)
                return result
        return None

    def _kinds(self, call: Call) -> set[type]:
        """What a call computes with, up to its first features: weights take long to look at."""
        kinds = set[type]()
        for view in call.inputs:
            kinds |= self.map(view).kinds
            if not kinds <= {Constant, OfCondition}:
                break
        return kinds

    def _on_condition(self, call: Call, result: View) -> Map:
        """The map of a call on conditions, made again for each batch. result: what it gave."""
        given = (call.args, call.kwargs)
        args, kwargs = map_leaves(lambda x: self._given(x) if isinstance(x, View) else x, given)
        made = self.imageless.record(out_of_place(call.name), args, result.size, result.dtype, **kwargs)
        return self.imageless.map(made)

    def _given(self, view: View) -> View:
        """A condition that was written into a storage of features, as a tensor of its own."""
        if view.slot not in self.storages:
            return view
        elements, first = self.map(view), self.space.relative(self.map(view).addresses)
        images = self.space.decode(self.space.only(elements.addresses, OfCondition))
        own = torch.arange(len(first)).view(-1, *[1] * (first.dim() - 1))
        if bool((first != first[:1]).any()) or bool(((images.image != own) & (images.source >= 0)).any()):
            raise Unsupported("it mixes the conditions of several images")
        return self.imageless.tensor_of(first[0], view.dtype)

    def _computed(self, call: Call) -> list[Map]:
        """The maps of a call on constants in a storage of features: exact for products,
        which another batch may round otherwise, and for what is made of them; else rounded
        as the model does, lest rounding tip a jump, such as floor's."""
        sources = [self.space.sources[s] for view in call.inputs for s in self.map(view).sources]
        is_exact = plain_name(call.name) in PRODUCTS or any(
            isinstance(s, Constant) and s.is_exact for s in sources
        )
        is_exact &= all(
            view.dtype.is_floating_point and not self.rounds_to(view.dtype) for view in call.outputs
        )
        dtypes = self._as_exact if is_exact else ()

        def argument(x: Any) -> Any:
            if isinstance(x, View):
                constant = self.imageless.constants(self.map(x).addresses)
                return constant.to(self.builder.dtype if x.dtype in dtypes else x.dtype)
            return self.builder.dtype if x in dtypes else size_at(x, self.n)

        args, kwargs = map_leaves(argument, (call.args, call.kwargs))
        results = functional(call.name)(*args, **kwargs)
        if not is_exact:
            self.as_is.add(call)
        made = zip(leaves(results), call.results, strict=True)
        addresses = (
            self.imageless.of_images(x, view, is_exact=is_exact)
            if view
            else self.imageless.of_constant(x, is_exact=is_exact)
            for x, view in made
        )
        return [*map(self.builder.map, addresses)]

    def _is_exact(self, call: Call) -> bool:
        """Whether a call computes truth values, or integers that wrap round."""
        dtypes = {view.dtype for view in call.outputs}
        is_pointwise = torch.Tag.pointwise in call.operator.tags
        return is_pointwise and not any(
            d.is_floating_point or d in (torch.int32, torch.int64) for d in dtypes
        )

    def _refused_for(self, views: Iterable[View]) -> str | None:
        found = (s for view in views if view.slot in self.storages for s in self.map(view).sources)
        sources = (self.space.sources[s] for s in found)
        return next((source.reason for source in sources if isinstance(source, Unknown)), None)

    def _unknown(self, call: Call, reason: str) -> list[Map]:
        """What stands for the results of a call that is refused."""
        address = self.space.at(self.space.allot(Unknown(reason), 1), 0, 0)
        return [
            self.builder.map(torch.full(view.at(self.n)[0] if view else (), int(address)))
            for view in call.results
        ]

    def _fresh(self, call: Call, value: Any) -> list[Map]:
        view = call.outputs[0]
        if value is None:
            value = call.kwargs.get("fill_value", call.args[-1])
        settings = dict(dtype=view.dtype, device=self.builder.device)
        self.imageless.run(Call("aten::full", (list(view.size), value), settings, (view,), call.where))
        return []

    def _has_places(self, call: Call, of: Callable[[View], bool]) -> bool:
        places = [x for argument, x in call.given if argument.name in PLACES]
        return any(of(x) for x in leaves(places) if isinstance(x, View))

    def _moved(self, call: Call) -> list[Map]:
        """The map of a call that only moves elements: it is made on their addresses."""

        def moved(argument: Any, x: Any) -> Any:
            if argument.name in PLACES:
                return map_leaves(lambda i: i.cpu() if isinstance(i, Tensor) else i, self.constant(x))
            if argument.name == "value" and isinstance(x, (int, float)):
                return int(self.map(x).addresses)
            return map_leaves(
                lambda i: self._addresses(call, i) if isinstance(i, View) else size_at(i, self.n), x
            )

        if any(a.name == "accumulate" and x is True for a, x in call.given):
            raise Unsupported("it adds to what is there: add a map instead")
        if (windowed := self._of_windows(call)) is not None:
            return [windowed]
        made, count = [(a.name, moved(a, x)) for a, x in call.given], len(call.args)
        result = unrecorded(functional(call.name))(*(x for _, x in made[:count]), **dict(made[count:]))
        return [self.builder.map(x) for x in leaves(result)]

    def _of_windows(self, call: Call) -> Map | None:
        """The map of a call that moves whole channels, or all of them alike, if it is one."""
        name, given = plain_name(call.name), {argument.name: x for argument, x in call.given}
        if any(view.dtype != call.outputs[0].dtype for view in call.inputs):
            return None
        if name == "cat" and given.get("dim", 0) == 1:
            return beside(self.space, [self.map(x) for x in given["tensors"]])
        if name == "constant_pad_nd" and given.get("value", 0) == 0 and len(given["pad"]) <= 4:
            if (window := self.map(given["self"]).window) is not None:
                return Map(self.space, window=window.padded(given["pad"]))
        return None

    def _addresses(self, call: Call, view: View) -> Tensor:
        """The addresses of a tensor that a call moves into its result, perhaps of another dtype."""
        dtype = call.outputs[0].dtype
        if view.dtype == dtype:
            return self.map(view).addresses
        copy = Call("aten::_to_copy", (view,), {"dtype": dtype}, (None,), call.where)
        if self.depends_on_image(view):
            return cast(self, view, dtype, self._table(copy, of=call)).addresses
        if self._kinds(copy) <= {Constant}:
            return self._computed(copy)[0].addresses
        return self._on_condition(copy, replace(view, dtype=dtype)).addresses

    def _write(self, call: Call, results: Sequence[Map]) -> None:
        for view, result in zip(call.results, results, strict=False):
            if view is None:
                continue
            is_known = view.slot in self.imageless.memory or self.imageless.is_given(view)
            if view.slot not in self.storages and is_known:
                whole = self.imageless.whole[view.slot]
                self.storages[view.slot] = ShadowStorage(whole, self.n, self.map(whole))
            if view.slot in self.storages:
                self.storages[view.slot].write(view, self.n, result)
            else:
                is_light = result.window is not None or result.is_symbolic
                own = result if is_light else self.builder.map(result.addresses.clone())
                self.storages[view.slot] = ShadowStorage(view, self.n, own)

    def finished(self, returned: View, output: View, head: Head, doubt: str = "") -> Program:
        """The program of a model of whose result the head reads ``output``. doubt: what to add if it can't."""
        if not self.depends_on_image(output):
            raise Unsupported("cannot sample from this model: its output does not depend on the image")
        for kind in KINDS:  # the last call may show that the head misreads it
            if (misread := head.misread(kind)) and made_by(
                self.builder, kind, self.map(returned)
            ) is not None:
                raise Unsupported(f"cannot sample from this model: {misread}")
        found = self.map(output)
        if (reason := self._refused_for([output])) is not None:
            raise Unsupported(f"cannot sample from this model: {reason}")
        n, c, height, width = self.shape
        shape = list(found.addresses.shape)
        expected = [n, head.distributions(c), height, width]
        if len(shape) != 5 or shape[:4] != expected:
            raise Unsupported(
                f"cannot sample from this model: its output has shape {shape}, expected "
                f"[N, distributions, H, W, parameters] = [{', '.join(map(str, expected))}, parameters]"
            )
        parameters, normalised = found.addresses.permute(0, 1, 4, 2, 3), False
        if head.of_logits:
            parameters, normalised = without_log_softmax(self.builder, parameters)
        self.builder.where = "model"
        try:
            last = gathered(self.builder, self.builder.map(parameters.flatten(1, 2)), WHOLE)
        except Unsupported as error:
            raise Unsupported(f"cannot sample from this model: its output: {error}{doubt}") from None
        result = self.builder.out(last)
        if any(read.value == result for i in self.builder.instructions for read in i.reads()):
            # Runtimes do not keep logits for other instructions to read.
            last = self.builder.emit(Pointwise, self.space.channels(last), base=Read(result))
            result = self.builder.out(last)
        instructions = needed_instructions(self.builder.instructions, [result])
        refuse_softmaxes(self.builder, instructions, self.builder.map(parameters), head)
        return Program(
            (c, height, width),
            shape[4],
            tuple(instructions),
            (result,),
            self.builder.dtype,
            self.builder.device,
            normalised,
            head.joint,
            tuple(e.taken_for_granted for e in self.recording.escapes if IMAGE in e.of),
        )
