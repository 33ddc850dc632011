from collections.abc import Callable


def interrupted_at_its_second_call(function: Callable[..., float]) -> Callable[..., float]:
    """The function, whose second call ends as if the user had pressed Ctrl-C."""
    calls = 0

    def interrupted(*args: object, **kwargs: object) -> float:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    return interrupted
