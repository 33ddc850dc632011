"""Finding the tensor of logits in what a model returns, if it returns more than that."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from torch import Tensor

from pixelcnn_fast.errors import UnknownLayout

# A key, an index, the name of an attribute, or a function of what is returned; None: it is one tensor.
Output = Hashable | Callable[[Any], Tensor] | None


def picked(returned: Any, output: Output) -> Tensor:
    """The tensor that ``output`` names. Raises UnknownLayout, listing what there is."""
    found = returned
    if callable(output):
        try:
            found = output(returned)
        except Exception as error:
            raise UnknownLayout(
                f"output= raised {type(error).__name__}: {error}; the model returned {described(returned)}"
            ) from error
    elif output is not None:
        try:
            by_name = isinstance(output, str) and not isinstance(returned, Mapping)
            found = getattr(returned, str(output)) if by_name else returned[output]
        except (AttributeError, IndexError, KeyError, TypeError):
            raise UnknownLayout(f"output={output!r}, but the model returned {described(returned)}") from None
    if isinstance(found, Tensor):
        return found
    if output is not None:
        raise UnknownLayout(
            f"output={output!r} is {described(found)}, not a tensor; the model returned {described(returned)}"
        )
    raise UnknownLayout(
        f"the model returned {described(returned)}; say with output= which of them holds the logits: its key or index, "
        "or a function that takes what the model returns"
    )


def described(x: Any) -> str:
    """What x is, with the names and shapes of what it holds."""
    if isinstance(x, Tensor):
        return f"a tensor {list(x.shape)}"
    kind = f"{'an' if type(x).__name__[0] in 'aeiouAEIOU' else 'a'} {type(x).__name__}"
    if isinstance(x, Mapping):
        parts = [f"{key!r}: {described(part)}" for key, part in x.items()]
    elif isinstance(x, Sequence) and not isinstance(x, str):
        parts = [f"{index}: {described(part)}" for index, part in enumerate(x)]
    elif hasattr(x, "__dict__"):
        parts = [f"{name!r}: {described(part)}" for name, part in vars(x).items() if isinstance(part, Tensor)]
    else:
        return kind
    return f"{kind} of {', '.join(parts) or 'nothing'}"
