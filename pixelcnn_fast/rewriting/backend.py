"""A backend of ``torch.compile`` that rewrites the graph it is given."""

from __future__ import annotations

import copy
import functools
import hashlib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensor
from torch.autograd import forward_ad

from pixelcnn_fast import ops
from pixelcnn_fast.ops.library import have_tangents
from pixelcnn_fast.rewriting import pipeline
from pixelcnn_fast.rewriting.captured_graph import CapturedGraph
from pixelcnn_fast.rewriting.nodes import Writes, argument, line, name_of, value
from pixelcnn_fast.rewriting.report import Report

Mode = Literal["eager", "inductor"]
Real = Mapping[fx.Node, Tensor]


class Backend:
    """``torch.compile(model, backend=Backend())``: calls that this library has faster ops
    for are rewritten, before autograd, so for training and inference.

    mode: what runs the graph: 'eager', or 'inductor', which compiles the rest of it.
    live_gradients: whether weights that are masked in place (``weight.data *= mask``) get
    gradients at live taps only. report: what was rewritten, and what was left and why; it
    fills at each compilation.
    """

    def __init__(self, mode: Mode = "eager", live_gradients: bool = False) -> None:
        if mode not in get_args(Mode):
            raise ValueError(f"mode is {mode!r}, expected 'eager' or 'inductor'")
        self.mode, self.live_gradients, self.report = mode, live_gradients, Report()

    def __call__(self, module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        parts = list(_parts(module, _real(module, inputs)))
        for body, _ in parts[1:]:
            writing = [*filter(_updates_statistics, body.graph.nodes), *Writes(body.graph, False).into_inputs]
            if writing:
                from torch._dynamo.exc import SkipFrame  # here, or importing it takes a second

                # PyTorch takes its body for pure, and may compute it several times.
                what = "a checkpoint around what writes into a buffer, as a batch norm in training does"
                self.report.left[what, line(writing[0])] += 1
                raise SkipFrame(what)
        before = sum(self.report.rewritten.values())
        enabling = {"_set_grad_enabled": (True,), "_enter_inference_mode": (False,)}
        calls = [node for part, _ in parts for node in part.graph.nodes]
        enables_gradients = any(enabling.get(name_of(node)) == node.args for node in calls)
        inference = not torch.is_grad_enabled() and not enables_gradients
        for part, real in parts:
            if (why := _why_not(part.graph)) is not None:
                last_call = [node for node in part.graph.nodes if node.op != "output"][-1]
                self.report.left[f"a graph {why}", line(last_call)] += 1
                continue
            plain = _copied(part.graph)
            try:
                with self.report.undone_on_error():
                    settings = (inference, self.live_gradients, self.mode == "inductor")
                    pipeline.rewrite(CapturedGraph(part.graph, real, *settings, self.report))
            except Exception as error:  # must not cost a model that PyTorch can run
                part.graph = plain
                text = f"a graph stays as it is, since rewriting it failed ({type(error).__name__}: {error})"
                self.report.warnings.append(text)
                warnings.warn(f"pixelcnn_fast: {text}. Please report it", stacklevel=2)
            part.recompile()
        run = _by_inductor(module, inputs) if self.mode == "inductor" else module.forward
        return run if sum(self.report.rewritten.values()) == before else _without_tangents(run)


def _by_inductor(module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    from torch._inductor.compile_fx import compile_fx

    config: Any = torch.compiler.config
    tag = getattr(config, "cache_key_tag", None)  # older PyTorch has none
    if tag is not None and _digest_of_ops() not in tag:  # its cache is for these ops
        config.cache_key_tag = f"{tag} pixelcnn_fast {_digest_of_ops()}"
    return cast(Callable[..., Any], compile_fx(module, inputs))


@functools.cache
def _digest_of_ops() -> str:
    sources = sorted(Path(ops.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


def _without_tangents(run: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, which refuses tangents, as PyTorch would drop them."""

    def checked(*args: Any) -> Any:
        if forward_ad._current_level >= 0 and have_tangents(args):
            raise NotImplementedError(
                "what accelerate has rewritten has no forward-mode derivative (jvp, jacfwd, hessian): "
                "accelerated(model).undo() it, or take the gradient backwards"
            )
        return run(*args)

    return checked


def _copied(graph: fx.Graph) -> fx.Graph:
    """With the attributes that Dynamo has put on inputs, which Inductor asks for."""
    copied = copy.deepcopy(graph)
    for node, twin in zip(graph.nodes, copied.nodes, strict=True):
        if hasattr(node, "_dynamo_source"):
            twin._dynamo_source = node._dynamo_source
    return copied


_RESHAPING = re.compile(r"(transpose|t|swapaxes|swapdims|squeeze|unsqueeze|as_strided|resize|resize_as)_")


def _why_not(graph: fx.Graph) -> str | None:
    values = (value(node) for node in graph.nodes)
    if any(x is not None and torch._C._functorch.is_functorch_wrapped_tensor(x) for x in values):
        return "within a transformation of torch.func"  # whose tensors have no memory of their own
    if any(_RESHAPING.fullmatch(name_of(node)) for node in graph.nodes):
        return "that reshapes a tensor in place"  # which its fake tensor has been since before
    return None


def _updates_statistics(node: fx.Node) -> bool:
    flag = {"batch_norm": "training", "instance_norm": "use_input_stats"}.get(name_of(node))
    if flag is None or argument(node, 1, "running_mean") is None:
        return False
    return bool(argument(node, 5, flag, True))


def _real(module: fx.GraphModule, inputs: Sequence[Any]) -> Real:
    """The inputs' tensors, also where DistributedDataParallel gives fake ones."""
    found = {}
    placeholders = (node for node in module.graph.nodes if node.op == "placeholder")
    for node, given in zip(placeholders, inputs, strict=False):
        if isinstance(given, FakeTensor):
            given = getattr(node.meta.get("grapharg"), "example", None)
        if isinstance(given, Tensor) and not isinstance(given, FakeTensor):
            found[node] = given
    return found


def _parts(module: fx.GraphModule, real: Real) -> Iterator[tuple[fx.GraphModule, Real]]:
    """The graph, and the bodies of its checkpoints."""
    yield module, real
    for node in list(module.graph.nodes):
        body = node.args[0] if isinstance(node.target, torch._ops.HigherOrderOperator) and node.args else None
        if isinstance(body, fx.Node) and body.op == "get_attr":
            inside = getattr(module, str(body.target), None)
            if isinstance(inside, fx.GraphModule):
                placeholders = [each for each in inside.graph.nodes if each.op == "placeholder"]
                pairs = zip(placeholders, node.args[1:], strict=False)
                yield from _parts(inside, {each: real[given] for each, given in pairs if given in real})


shared = functools.cache(Backend)  # one for all models with the same settings


def named(
    module: fx.GraphModule, inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """What ``torch.compile(model, backend="pixelcnn_fast", options={"mode": "inductor",
    "live_gradients": True})`` calls; options are those of ``Backend``. Raises ValueError
    for others."""
    given = {"mode": "eager", "live_gradients": False, **(options or {})}
    if len(given) > 2 or given["mode"] not in get_args(Mode) or not isinstance(given["live_gradients"], bool):
        raise ValueError(
            f"options is {options!r}, expected {{'mode': 'eager'}} or {{'mode': 'inductor'}}, and "
            "{'live_gradients': True} or False"
        )
    return shared(given["mode"], given["live_gradients"])(module, inputs)
