"""Levels become what a model takes as an image, and come back."""

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast import ModelFailed, Sampler, UnknownLayout, Unsupported, check_causal
from pixelcnn_fast.heads import Categorical, GaussianMixture
from pixelcnn_fast.image_forms import (
    IMAGE_FORMS,
    ChannelsLast,
    ImageForm,
    Normalize,
    check_levels,
    from_levels,
    to_levels,
    with_channels,
)
from pixelcnn_fast.likelihood import bits_per_dim, nll
from pixelcnn_fast.nn import MaskedConv2d
from tests.system.agreement import assert_runtimes_agree

LEVELS = torch.tensor([[[[0, 1, 3], [4, 2, 0]]]])
EXPECTED = {
    "uint8": LEVELS.to(torch.uint8),
    "int64": LEVELS,
    "codes": LEVELS[:, 0],
    "unit": torch.tensor([[[[0, 0.25, 0.75], [1, 0.5, 0]]]], dtype=torch.float64),
    "centred": torch.tensor([[[[-1, -0.5, 0.5], [1, 0, -1]]]], dtype=torch.float64),
    "levels": LEVELS.double(),
}


@pytest.mark.parametrize("form", IMAGE_FORMS)
def test_every_form(form):
    images, expected = from_levels(LEVELS.int(), form, 5, torch.float64), EXPECTED[form]
    assert images.dtype == expected.dtype and torch.equal(images, expected)


@pytest.mark.parametrize("n", [1, 0])
@pytest.mark.parametrize("form", IMAGE_FORMS)
def test_there_and_back(form, n):
    levels = LEVELS[:n]
    found = to_levels(from_levels(levels, form, 5, torch.float32), 5, form)
    assert torch.equal(found.view(levels.shape), levels)


def test_a_form_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="image_form is 'grey', expected one of 'uint8', 'int64'"):
        to_levels(LEVELS, 5, "grey")  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize("bad", [-1, 5])
def test_values_that_are_not_levels_are_refused(bad):
    with pytest.raises(ValueError, match=r"levels span .*, expected 0\.\.\.4"):
        check_levels(torch.tensor([2, bad]), 5)
    check_levels(torch.tensor([0, 4]), 5)
    check_levels(torch.zeros(0, dtype=torch.long), 5)


def test_one_channel_may_have_no_axis():
    assert with_channels((2, 3, 4, 5)) == (2, 3, 4, 5)
    assert with_channels((2, 4, 5)) == (2, 1, 4, 5)
    for shape in ((4, 5), (1, 2, 3, 4, 5)):
        with pytest.raises(ValueError, match="expected"):
            with_channels(shape)


# -- forms that are made from others

MEAN, STD = (0.4, 0.5, 0.61), (0.2, 0.3, 0.25)
STANDARD = Normalize(MEAN, STD)
MADE: dict[str, ImageForm] = {
    "normalised": STANDARD,
    "normalised alike": Normalize(0.5, 0.25),
    "channels last": ChannelsLast("unit"),
    "integers, channels last": ChannelsLast("uint8"),
    "normalised, channels last": ChannelsLast(STANDARD),
}


def images(form: ImageForm, levels: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """The form of images of 8 levels, written out."""
    inner = form.form if isinstance(form, ChannelsLast) else form
    made = levels.to(torch.uint8) if inner == "uint8" else levels.to(dtype) / 7
    if isinstance(inner, Normalize):
        for c in range(3):
            own = [x[c if len(x) > 1 else 0] for x in (inner.mean, inner.std) if isinstance(x, tuple)]
            made[:, c] = (made[:, c] - own[0]) / own[1]
    return made.permute(0, 2, 3, 1) if isinstance(form, ChannelsLast) else made


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("name", MADE)
def test_made_forms_and_back(name: str, dtype: torch.dtype) -> None:
    levels = torch.randint(0, 8, (2, 3, 4, 5))
    expected = images(MADE[name], levels)
    found = from_levels(levels, MADE[name], 8, torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)
    cast = found.to(dtype) if found.is_floating_point() else found
    assert torch.equal(to_levels(cast, 8, MADE[name]), levels)


def test_what_is_not_normalised_so_is_refused() -> None:
    levels = torch.randint(0, 256, (2, 3, 4, 5))
    standardised = from_levels(levels, STANDARD, 256, torch.float32)
    assert torch.equal(to_levels(standardised.half(), 256, STANDARD), levels)
    for form in (Normalize(MEAN, 0.25), "unit", ChannelsLast("uint8")):
        with pytest.raises(ValueError, match="They fit no form .* unless they were standardised"):
            to_levels(standardised, 256, form)
    with pytest.raises(
        ValueError, match=r"expected: image_form=Normalize\(.*\), made from .*They fit .*'uint8'"
    ):
        to_levels(levels.to(torch.uint8), 256, STANDARD)
    with pytest.raises(ValueError, match="a dtype needs digits enough"):
        to_levels(standardised.bfloat16(), 256, STANDARD)


def test_the_numbers_may_be_in_a_tensor_or_an_array() -> None:
    given: list[Any] = [torch.tensor([0.25, 0.5]), np.array([0.25, 0.5]), [0.25, 0.5], (0.25, 0.5)]
    assert {Normalize(x, 1) for x in given} == {Normalize((0.25, 0.5), (1.0,))}


@pytest.mark.parametrize("bad", [(), "0.5", None, (0.5, math.nan), (0.5, "a"), [[0.5]]])
def test_numbers_that_do_not_do_are_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="^mean is .*: expected a number for each channel, or one for all"):
        Normalize(bad, 1)
    for std in (bad, 0, (0.5, 0), -1, math.inf):
        with pytest.raises(ValueError, match="^std is .*: expected a positive number for each"):
            Normalize(0, std)


class Net(nn.Module):
    """Causal in the images that it is given: rows above, and to the left."""

    def __init__(self, is_last: bool = False, output: str = "N,C,L,H,W") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.above, self.left, self.out = (
            nn.Conv2d(3, 8, (2, 3)),
            nn.Conv2d(3, 8, (1, 2)),
            nn.Conv2d(8, 24, 1),
        )
        self.is_last, self.output = is_last, output

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.out.weight.dtype)
        x = x.permute(0, 3, 1, 2) if self.is_last else x
        h = self.above(F.pad(x, (1, 1, 2, 0)))[:, :, :-1] + self.left(F.pad(x, (2, 0)))[..., :-1]
        found = 4 * self.out(torch.tanh(h)).unflatten(1, (3, 8))
        axes = self.output.replace("*", ",").split(",")
        found = found.permute(["NCLHW".index(axis) for axis in axes])
        return found.flatten(3) if "*" in self.output else found


@pytest.mark.parametrize("name", MADE)
def test_models_that_take_made_forms(name: str) -> None:
    form = MADE[name]
    model = Net(isinstance(form, ChannelsLast)).double().eval()
    arguments: dict[str, Any] = dict(levels=8, image_form=form)
    sampler = Sampler(model, (3, 4, 5), **arguments)
    drawn = assert_runtimes_agree(sampler)
    assert drawn.shape == (3, 3, 4, 5) and len(drawn.unique()) == 8
    with torch.no_grad():
        logits = model(images(form, drawn.long()))
    expected = F.cross_entropy(logits.movedim(2, 1), drawn.long(), reduction="none").sum((1, 2, 3))
    torch.testing.assert_close(sampler.log_prob(drawn), -expected)
    given = images(form, drawn.long(), torch.float32)
    torch.testing.assert_close(nll(model, given, **arguments), expected, rtol=1e-5, atol=0)
    bits = float(expected.sum()) / drawn.numel() / math.log(2)
    assert bits_per_dim(model, [given], **arguments) == pytest.approx(bits, rel=1e-5)
    check_causal(model, (3, 4, 5), **arguments)
    known = torch.eye(4, 5) > 0
    assert torch.equal(sampler.complete(drawn, known)[..., known], drawn[..., known])
    u = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    by_hand = Sampler(model, (3, 4, 5), runtime="reference", **arguments).sample(2, noise=u)
    for other in (copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler)), sampler.refresh()):
        assert torch.equal(other.sample(2, noise=u), by_hand)


class RowsLast(nn.Module):
    """Takes [N, H, W, 1] and gives [N, L, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        self.first = MaskedConv2d(1, 5, 3, "A")

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x.permute(0, 3, 1, 2))


def test_a_square_output_may_be_read_in_two_ways() -> None:
    model, arguments = RowsLast().double(), dict[str, Any](levels=5, image_form=ChannelsLast("unit"))
    with pytest.raises(
        Unsupported, match=r"\[2, 5, 5, 5\] are read as \[N, H, W, ...\]: if rows and columns come"
    ):
        Sampler(model, (1, 5, 5), **arguments)
    assert_runtimes_agree(
        Sampler(model, (1, 5, 5), output=lambda x: x.movedim((-2, -1), (1, 2)), **arguments)
    )


@pytest.mark.parametrize("output", ["N,H,W,C,L", "N,H,W,L,C", "N,H,W,C*L", "N,H,W,L*C"])
def test_rows_of_logits_may_come_first(output: str) -> None:
    model = Net(True, output).double()
    head = Categorical(8, "N,C*L,H,W" if output.endswith("C*L") else "N,L*C,H,W" if "*" in output else None)
    sampler = Sampler(model, (3, 4, 5), head=head, image_form=ChannelsLast("unit"))
    plain = Sampler(Net().double(), (3, 4, 5), levels=8, image_form="unit")
    u = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    assert torch.equal(sampler.sample(2, noise=u), plain.sample(2, noise=u))
    rows_first = Sampler(model, (3, 4, 5), head=head, image_form=ChannelsLast("unit"), runtime="reference")
    assert torch.equal(rows_first.sample(2, noise=u), plain.sample(2, noise=u))
    with pytest.raises(UnknownLayout):  # nobody said that channels are last
        Sampler(Net(False, output).double(), (3, 4, 5), head=head, image_form="unit")


def test_real_numbers_may_have_channels_last() -> None:
    class Means(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).flatten(1, 2)[:, :9].permute(0, 2, 3, 1)

    head = GaussianMixture(1)
    arguments: dict[str, Any] = dict(head=head, image_form=ChannelsLast("levels"))
    sampler = Sampler(Means(True).double(), (3, 4, 5), **arguments)
    drawn, log_p = sampler.sample(2, log_probability=True)
    given = drawn.permute(0, 2, 3, 1).double()
    torch.testing.assert_close(-nll(Means(True).double(), given, **arguments), log_p, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="takes as they are: pass image_form='levels'"):
        Sampler(Means(True).double(), (3, 4, 5), head=head, image_form=ChannelsLast("unit"))


def test_made_forms_that_do_not_fit_are_refused() -> None:
    for form, message in (
        (Normalize((0.5, 0.5), 1), r"has 2 numbers as its mean, but images have 3 channels"),
        (Normalize(0.5, (1, 1)), r"has 2 numbers as its std"),
        (ChannelsLast(Normalize((0.5, 0.5), 1)), "has 2 numbers as its mean"),
        (ChannelsLast("codes"), "no channels before their rows"),
        (ChannelsLast(ChannelsLast("unit")), "no channels before their rows"),  # type: ignore[arg-type]  # on purpose
        (ChannelsLast("grey"), "image_form is 'grey', expected one of"),  # type: ignore[arg-type]  # on purpose
    ):
        with pytest.raises(ValueError, match=message):
            Sampler(Net(), (3, 4, 5), levels=8, image_form=form)
    with pytest.raises(ValueError, match=r"shape \[2, 3, 4\], expected \[N, H, W, C\]"):
        nll(Net(True), torch.zeros(2, 3, 4), levels=8, image_form=ChannelsLast("unit"))
    with pytest.raises(ModelFailed, match=r"given images of torch.uint8 \[2, 4, 5, 3\]. image_form= says"):
        Sampler(Net(), (3, 4, 5), levels=8, image_form=ChannelsLast("uint8"))


def test_forms_tell_jobs_apart() -> None:
    forms: list[ImageForm] = ["unit", Normalize(0.0, 1.0), Normalize(0.5, 1.0)]
    found = {Sampler(Net(), (3, 4, 5), levels=8, image_form=form).fingerprint() for form in forms}
    assert len(found) == 3
