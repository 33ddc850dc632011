"""What the compiled runtimes are told of a program; that they then do it, other tests see by the images."""

from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch

from pixelcnn_fast import Sampler
from pixelcnn_fast.heads import Categorical, SamplingOptions
from pixelcnn_fast.native import required
from pixelcnn_fast.program import schema
from pixelcnn_fast.program.steps import KINDS
from pixelcnn_fast.runtimes import DTYPES, ON_CPU, PRECISIONS, native_program
from tests.needs import needs_native
from tests.system.networks import attending, pixelcnn, two_stacks


def told(sampler: Sampler) -> schema.Program:
    return native_program.native_program(
        sampler._engine.require_compiled().program, sampler.head, [], torch.float32
    )


def test_the_wavefront_and_the_head_are_handed_over():
    """Without a wavefront the images would be the same, only later."""
    sampler = Sampler(pixelcnn(kernel=3), (1, 9, 12))
    program, found = sampler._engine.require_compiled().program, told(sampler)
    front = program.wavefront
    assert front is not None and front.lag > 0 and found.lag == front.lag
    assert [i.lead for i in found.instructions] == [front.leads[i.out] for i in program.instructions]
    assert found.head == schema.Head("categorical", distributions=1, parameters=256, uniforms=1, levels=256)


def without(x: object, struct: type, name: str) -> object:
    """What is told of a program, in which this struct lacks a field."""
    if isinstance(x, list):
        return [without(each, struct, name) for each in x]
    if not isinstance(x, schema.STRUCTS):
        return x
    names = [field.name for field in fields(x) if not (isinstance(x, struct) and field.name == name)]
    return SimpleNamespace(**{kept: without(getattr(x, kept), struct, name) for kept in names})


@needs_native
@pytest.mark.parametrize("struct", schema.STRUCTS)
def test_every_field_is_read(struct):
    """The compiled module names the one that is missing."""
    whole = told(Sampler(attending(2) if struct is schema.KeyRange else two_stacks(), (2, 7, 5)))
    conditions = [0] * len(whole.conditions)
    job = schema.Job(images=0, values=0, noise=0, conditions=conditions, options=SamplingOptions())

    def handed_over(name: str) -> None:
        sampler = required().CpuSampler(without(whole, struct, name), False, "same")
        sampler.run(without(job, struct, name), 1, lambda row: None)

    handed_over("nothing")
    for field in fields(struct):
        with pytest.raises(AttributeError, match=f"'{field.name}'"):
            handed_over(field.name)


@needs_native
@pytest.mark.parametrize("field, value", [("kind", "pooling"), ("phase", "afterwards")])
def test_an_unknown_name_is_refused(field, value):
    whole = told(Sampler(pixelcnn(kernel=3), (1, 9, 12)))
    changed = replace(whole, instructions=[replace(whole.instructions[0], **{field: value})])
    with pytest.raises(ValueError, match=value):
        required().CpuSampler(changed, False, "same")


def test_each_precision_is_in_the_schema():
    assert set(PRECISIONS) == {"same", *DTYPES} - {"fp32"} and set(PRECISIONS) >= ON_CPU


@needs_native
def test_a_module_of_another_schema_is_refused(monkeypatch):
    program = Sampler(pixelcnn(kernel=3), (1, 9, 12))._engine.require_compiled().program
    assert native_program.why_no_native_program(program, Categorical(256)) is None, "run make native"
    structs = (*schema.STRUCTS, SamplingOptions)
    others = [schema.signature(KINDS, *structs[1:]), schema.signature(list(KINDS)[1:], *structs)]
    monkeypatch.setitem(schema.CONSTANTS, "LANE_BITS", schema.LANE_BITS + 1)
    for other in (*others, schema.signature(KINDS, *structs)):
        monkeypatch.setattr(native_program, "SIGNATURE", other)
        assert "make native" in str(native_program.why_no_native_program(program, Categorical(256)))
