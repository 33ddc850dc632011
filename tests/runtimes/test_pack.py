"""What the compiled runtimes are told of a program; that they then do it, other tests see by the images."""

from __future__ import annotations

from unittest.mock import MagicMock

import torch

from pixelcnn_fast import Sampler
from pixelcnn_fast.runtimes import pack
from tests.system.networks import pixelcnn


def test_the_wavefront_and_the_head_are_handed_over(monkeypatch):
    """Without a wavefront the images would be the same, only later."""
    sampler = Sampler(pixelcnn(kernel=3), (1, 9, 12))
    program, module = sampler._engine.captured.program, MagicMock()
    monkeypatch.setattr(pack, "required", lambda: module)
    pack.described(program, sampler.head, [], torch.float32)
    front, told = program.wavefront, module.Program.call_args.kwargs
    assert front is not None and front.lag > 0 and told["lag"] == front.lag
    leads = [call.kwargs["lead"] for call in module.Instruction.call_args_list]
    assert leads == [front.leads[i.out] for i in program.instructions]
    assert module.Head.call_args.args == (module.HeadKind.categorical,)
    assert module.Head.call_args.kwargs == {"distributions": 1, "parameters": 256, "uniforms": 1, "levels": 256}
