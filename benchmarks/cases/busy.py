"""Samplers on cores that other processes keep busy: one image of three models.

The load is a process for each core that does nothing but loop. There, all threads take turns with one thread. With
--baseline FOLDER, a built checkout of another commit, they are also measured on quiet cores: this package and the
baseline's take turns, each in a process of its own.
"""

from __future__ import annotations

from functools import partial

import torch
from drawing_when_asked import drawing, sampler_of
from elsewhere import share_of_baseline
from measuring import Cases, Found, Settings, Target, busy_cores, interleaved, ratio

TITLE = "Targets of samplers on busy cores"
MODELS = "Row LSTM", "Diagonal BiLSTM", "default PixelCNN"


def cases(how: Settings) -> Cases:
    if how.baseline is None:
        print("not measured: quiet cores, against a built checkout of another commit (--baseline FOLDER)")
    return {f"busy: {name}": partial(measured, name, how) for name in MODELS}


def measured(name: str, how: Settings) -> Found:
    if how.baseline:
        yield on_quiet_cores(name, how)
    yield on_busy_cores(name, how)


def on_busy_cores(name: str, how: Settings) -> Target:
    draw = drawing(sampler_of(name, how.quick))

    def on(threads: int) -> None:
        torch.set_num_threads(threads)
        draw()

    with busy_cores():
        seconds = interleaved({"one": lambda: on(1), "all": lambda: on(how.threads)}, how.repeats)
    torch.set_num_threads(how.threads)
    value, values = ratio(seconds["all"], seconds["one"])
    what = f"{name}, busy cores: {how.threads} threads, of the time of one"
    return Target(what, 1.3, 1.1, value, values, "{:.2f}".format, at_most=True)


def on_quiet_cores(name: str, how: Settings) -> Target:
    value, values, _ = share_of_baseline(name, how)
    what = f"{name}, quiet cores: of the baseline's time"
    return Target(what, 1.03, 1.0, value, values, "{:.3f}".format, at_most=True)
