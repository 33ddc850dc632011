from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pixelcnn_fast import NotCausal, Sampler, Unsupported, check_causal, native, ops, receptive_field
from pixelcnn_fast.heads import Categorical
from pixelcnn_fast.likelihood import nll
from pixelcnn_fast.models import PixelRNN, reference
from pixelcnn_fast.models.pixel_rnn import KINDS
from pixelcnn_fast.nn import DiagonalBiLSTM, DiagonalLSTM, MaskedConv2d, RowLSTM, channel_groups
from pixelcnn_fast.nn.recurrence import Recurrence
from tests.tolerances import assert_identical_up_to_rounding

ORDERS = [None, "thirds", "interleaved"]
SHAPE = (3, 5, 6)
COMPILED: list[Any] = ["cpu"] if native.native() else []


def pixel_rnn(kind: Any, **settings: Any) -> PixelRNN:
    """With lively weights, and channels that three does not divide."""
    torch.manual_seed(0)
    model = PixelRNN(kind, **{"hidden_channels": 7, "n_layers": 2, "kernel_size": 3, "levels": 4, **settings})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.double().eval()


def images(n: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(4, (n, *SHAPE), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_reference(kind, order, learned):
    fast = pixel_rnn(kind, n_classes=3, channel_order=order, learn_initial_state=learned)
    plain = reference.PixelRNN(**fast.config).double()
    for (key, a), b in zip(fast.state_dict().items(), plain.state_dict().values(), strict=True):
        assert not key.endswith("mask") or torch.equal(a, b), key
    plain.load_state_dict(fast.state_dict())
    fast.load_state_dict(plain.state_dict())
    labels = torch.tensor([0, 2])
    for x in (images(), images().double() / 3):
        got, expected = fast(x, labels), plain(x, labels)
        assert got.shape == (2, *SHAPE, 4)
        assert_identical_up_to_rounding(got.detach(), expected.detach())
        both = ((got, fast), (expected, plain))
        gradients = (torch.autograd.grad(y.square().sum(), [*m.parameters()]) for y, m in both)
        for one, other in zip(*gradients, strict=True):
            assert_identical_up_to_rounding(one, other)


def test_dark_images_are_not_read_in_another_way():
    """0 and 1 are levels in uint8, and the ends of the range in floating point."""
    model = pixel_rnn("row_lstm")
    dark = images().clamp_max(1)
    assert torch.equal(model(dark), model(dark.double() / 3))
    assert not torch.equal(model(dark), model(dark.double()))


def test_two_levels_have_two_logits_and_the_model_says_how_many_levels_there_are():
    model = pixel_rnn("diagonal_bilstm", levels=2, input_channels=1)
    assert model.levels == 2 and model(torch.ones(1, 1, 4, 4, dtype=torch.uint8)).shape == (1, 1, 4, 4, 2)


def sees(kind: str, dy: int, dx: int) -> bool:
    """What two layers see after a 3x3 convolution. Row LSTM: a triangle above, and one pixel of its row for each layer
    and for the convolution; Diagonal BiLSTM: all that comes before."""
    if kind == "diagonal_bilstm" or (dy, dx) >= (0, 0):
        return (dy, dx) < (0, 0)
    return dx >= -3 if dy == 0 else dx <= -dy


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_pixel_sees(kind, order):
    field = receptive_field(pixel_rnn(kind, channel_order=order), SHAPE)
    assert field.causal
    _, height, width = SHAPE
    for dy in range(1 - height, height):
        for dx in range(1 - width, width):
            seen = field.seen[:, :, dy + height - 1, dx + width - 1]
            if (dy, dx) == (0, 0):
                earlier = torch.ones(3, 3, dtype=torch.bool).tril(-1)
                assert torch.equal(seen, earlier if order else earlier & False)
            elif dy == 0 or kind == "diagonal_bilstm":
                assert bool(seen.all()) == bool(seen.any()) == sees(kind, dy, dx), (dy, dx)
            else:  # on the left, the triangle begins where the weights of the row above do
                assert not seen.any() or sees(kind, dy, dx)
                assert seen.all() or not -2 <= dx <= -dy or dy > 0


@pytest.mark.parametrize("hidden", [7, 8])
@pytest.mark.parametrize("layer", [RowLSTM, DiagonalLSTM, DiagonalBiLSTM])
def test_each_gate_has_all_colours(layer, hidden):
    """One pattern over all four gates would show later colours to earlier ones."""
    groups = tuple(channel_groups(channels, 3, "thirds") for channels in (6, hidden))
    torch.manual_seed(0)
    module = layer(6, hidden, channel_groups=groups).double()
    x = torch.rand(1, 6, 1, 1, dtype=torch.float64, requires_grad=True)
    h = (module.left if layer is DiagonalBiLSTM else module)(x)
    for channel in range(hidden):
        seen = torch.autograd.grad(h[0, channel, 0, 0], x, retain_graph=True)[0][0, :, 0, 0] != 0
        assert torch.equal(seen, groups[0] <= groups[1][channel])


# -- what public implementations get wrong


def with_shared_colours(model: PixelRNN) -> PixelRNN:
    """One colour pattern over the four gates."""
    for module in model.modules():
        if isinstance(module, Recurrence):
            mask = module.input_to_state.mask
            of_input, of_gates = (channel_groups(mask.shape[axis], 3, "thirds") for axis in (1, 0))
            mask[:, :, 0, mask.shape[3] // 2] = (of_input <= of_gates[:, None]).to(mask)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_one_colour_pattern_over_all_gates_leaks(kind):
    model = with_shared_colours(PixelRNN(kind, 3, 7, 1, kernel_size=3, levels=4, channel_order="thirds"))
    with pytest.raises(NotCausal, match="sees channel . of its own pixel|sees its own|drawn later"):
        check_causal(model, SHAPE)


def shifted(*padding: int) -> type[DiagonalBiLSTM]:
    """A Diagonal BiLSTM whose right half is moved in another way."""

    class Shifted(DiagonalBiLSTM):
        def forward(self, x: Tensor) -> Tensor:
            return self.left(x) + nn.functional.pad(self.right(x), padding)

    return Shifted


class SeesTheRowBelow(RowLSTM):
    """Its input is moved up."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(x, (0, 0, -1, 1)))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (shifted(), "layers.1.*it walks rows from the right: shift what it gives down by a row"),
        (shifted(1, -1), "layers.1"),
        (shifted(0, 0, -1, 1), "layers.1"),
        (SeesTheRowBelow, "layers.1|conv"),
    ],
)
def test_leaks_are_refused(layer, message):
    model = pixel_rnn("row_lstm")
    model.layers[1] = layer(14, 7).double()
    with pytest.raises(NotCausal, match=message):
        check_causal(model, SHAPE)


class LeftAlone(DiagonalBiLSTM):
    def forward(self, x: Tensor) -> Tensor:
        return self.left(x)


class TapBesideAlone(RowLSTM):
    """Its triangle has one side."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.state_to_state.weight
        return ops.row_lstm(self.input_to_state(x), weight * torch.tensor([1.0, 0, 0]).to(weight))


@pytest.mark.parametrize("layer", [shifted(0, 0, 2, -2), LeftAlone, TapBesideAlone])
def test_starvation_is_seen(layer):
    """No leak, but the receptive field is smaller than that of the layer as it should be."""
    models = [pixel_rnn("row_lstm"), pixel_rnn("row_lstm")]
    for model, kind in zip(models, (layer, layer.__base__), strict=True):
        model.layers = nn.ModuleList([kind(14, 7).double() for _ in model.layers])
    starved, whole = (receptive_field(model, SHAPE) for model in models)
    assert starved.seen.sum() < whole.seen.sum()
    assert not (starved.seen & ~whole.seen).any()


@pytest.mark.parametrize("axes", [(1, 2), (2, 3)], ids=["gates split across rows", "columns scrambled"])
@pytest.mark.parametrize("layer", [RowLSTM, DiagonalLSTM])
def test_views_that_mix_up_pixels_are_refused(layer, axes):
    class MixedUp(layer):  # type: ignore[valid-type, misc]  # each of two
        def recur(self, sums: Tensor) -> Tensor:
            return super().recur(sums.transpose(*axes).reshape(sums.shape))

    model = pixel_rnn("row_lstm")
    model.layers[1] = MixedUp(14, 7).double()
    with pytest.raises((NotCausal, Unsupported)):
        check_causal(model, SHAPE)
    with pytest.raises(NotCausal):
        Sampler(model, SHAPE, runtime="reference")


class Skewed(DiagonalLSTM):
    """As most implementations are written: each row is moved one column further to the right, so that what a column
    needs lies in the one before. padding: of that column; candidate: the activation of g."""

    padding = (1, 0)
    candidate = staticmethod(torch.tanh)

    def recur(self, sums: Tensor) -> Tensor:
        n, _, height, width = sums.shape
        rows, columns = torch.arange(height)[:, None], torch.arange(width)
        skewed = sums.new_zeros(n, sums.shape[1], height, height + width - 1)
        skewed[:, :, rows, rows + columns] = sums
        inside = torch.zeros(height, height + width - 1).to(sums)
        inside[rows, rows + columns] = 1
        h = c = sums.new_zeros(n, self.hidden_channels, height)
        states = []
        for t in range(height + width - 1):
            before = nn.functional.conv1d(nn.functional.pad(h, self.padding), self.state_to_state.weight)
            i, f, g, o = (skewed[..., t] + before).chunk(4, 1)
            c = inside[:, t] * (f.sigmoid() * c + i.sigmoid() * self.candidate(g))
            h = inside[:, t] * (o.sigmoid() * c.tanh())
            states.append(h)
        return torch.stack(states, -1)[:, :, rows, rows + columns]


class LooksAtTheRowBelow(Skewed):
    """Padded as SAME pads a kernel of two."""

    padding = (0, 1)


class SigmoidCandidate(Skewed):
    candidate = staticmethod(torch.sigmoid)


def test_mutants_of_a_skewed_layer():
    model, x = pixel_rnn("diagonal_bilstm"), torch.randn(2, 14, 5, 6, dtype=torch.float64)
    plain = reference.DiagonalLSTM(14, 7).double()
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.4)
    for layer in (DiagonalLSTM, Skewed, LooksAtTheRowBelow, SigmoidCandidate):
        module = layer(14, 7).double()
        module.load_state_dict(plain.state_dict())
        assert torch.allclose(module(x), plain(x)) is (layer in (DiagonalLSTM, Skewed)), layer
        model.layers[1] = module
        if layer is LooksAtTheRowBelow:
            with pytest.raises(NotCausal):
                Sampler(model, SHAPE, runtime="reference")
        else:
            Sampler(model, SHAPE, runtime="reference")


@pytest.mark.parametrize("layer", [RowLSTM, DiagonalLSTM, DiagonalBiLSTM])
def test_layers_keep_the_memory_format(layer):
    module, x = layer(6, 4).double(), torch.randn(2, 6, 3, 5, dtype=torch.float64)
    last = x.to(memory_format=torch.channels_last)
    assert module(x).is_contiguous()
    assert module(last).is_contiguous(memory_format=torch.channels_last)
    assert_identical_up_to_rounding(module(last), module(x))


THIRDS = {channels: channel_groups(channels, 3, "thirds") for channels in (4, 6)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(kernel_size=-1), "kernel_size is -1, expected an integer of 1 or more"),
        (dict(kernel_size=2), "needs odd sizes"),
        (dict(hidden_channels=0), "hidden_channels is 0, expected an integer"),
        (dict(in_channels="6"), "in_channels is '6', expected an integer"),
        (dict(learn_initial_state="no"), "learn_initial_state is 'no', expected True or False"),
        (dict(channel_groups=(THIRDS[4], THIRDS[6])), r"shapes \[4\] and \[6\], expected \[6\] and \[4\]"),
        (dict(channel_groups=THIRDS[6]), "expected two tensors of integers"),
        (dict(channel_groups=([0] * 6, [0] * 4)), "expected two tensors of integers"),
        (dict(channel_groups=(THIRDS[6], THIRDS[4].float())), "expected two tensors of integers"),
        (dict(in_channels=True), "in_channels is True, expected an integer"),
    ],
)
def test_refusals_of_a_layer(settings, message):
    with pytest.raises(ValueError, match=message):
        RowLSTM(**{"in_channels": 6, "hidden_channels": 4, **settings})
    if "kernel_size" not in settings:
        with pytest.raises(ValueError, match=message):
            DiagonalBiLSTM(**{"in_channels": 6, "hidden_channels": 4, **settings})


def test_compiled_with_labels():
    model = pixel_rnn("row_lstm", n_classes=3, n_layers=1)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    labels = torch.tensor([0, 2])
    assert_identical_up_to_rounding(compiled(images(), labels), model(images(), labels))


class Own(nn.Module):
    """A user's module from the layers."""

    def __init__(self, between: Callable[[Own, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv_in = MaskedConv2d(3, 7, 3, "A")
        self.row, self.left, self.right = RowLSTM(7, 7), DiagonalLSTM(7, 7), DiagonalLSTM(7, 7, reverse=True)
        self.across = nn.Conv2d(7, 7, (1, 3), padding=(0, 1))
        self.conv_out = nn.Conv2d(7, 12, 1)
        self.between = between
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x / 3)
        h = h + self.between(self, h)
        return self.conv_out(torch.relu(4 * h)).unflatten(1, (3, 4)).movedim(2, -1)


def down(h: Tensor) -> Tensor:
    return nn.functional.pad(h, (0, 0, 1, -1))


OWN: dict[str, Callable[[Own, Tensor], Tensor]] = {
    "left of right, then down": lambda m, h: down(m.left(m.right(h))),
    "left of a finished row": lambda m, h: down(m.left(m.across(h))),
    "right of left of right": lambda m, h: down(m.right(torch.relu(m.left(m.across(m.right(h)))))),
    "rows of right": lambda m, h: down(m.row(m.across(m.right(h)))),
    "left of left and right": lambda m, h: m.left(m.left(h) + down(m.right(h))),
    "right of a row above": lambda m, h: m.right(down(h)),
    "a convolution over left of a row above": lambda m, h: m.across(m.left(down(h))),
    "before, in and after a row": lambda m, h: (
        m.left(h + m.right(m.across(m.right(down(h))))) + down(m.right(h))
    ),
    "right of the row above's right": lambda m, h: h * m.right(down(m.left(m.right(h))) + m.left(down(h))),
    "shifted right": lambda m, h: nn.functional.pad(m.across(h + m.right(down(h))), (1, -1)),
    "rows of right of a row above": lambda m, h: m.row(m.across(m.right(down(h))) + h),
}


OF_OWN: dict[str, Any] = dict(shape=(3, 4, 5), image_form="levels", head=Categorical(4))


def own(between: Callable[[Own, Tensor], Tensor]) -> Own:
    torch.manual_seed(0)
    return Own(between)


def sampled(model: Own, runtimes: list[Any]) -> Tensor:
    """Images that are the same on all runtimes, and for one image alone."""
    sampler, noise = Sampler(model, **OF_OWN), torch.rand(6, 3, 4, 5, dtype=torch.float64)
    images = sampler.sample(6, noise=noise, runtime="reference")
    for runtime in runtimes:
        assert torch.equal(sampler.sample(6, noise=noise, runtime=runtime), images)
        assert torch.equal(sampler.sample(1, noise=noise[:1], runtime=runtime), images[:1])
    return images


@pytest.mark.parametrize("name", OWN)
def test_own_modules_give_the_same_images(name):
    assert len(sampled(own(OWN[name]), ["eager", *COMPILED]).unique()) == 4


def test_a_recurrence_over_a_part_of_the_image_is_refused():
    model = own(lambda m, h: nn.functional.pad(m.row(h[:, :, :-1]), (0, 0, 1, 0)))
    with pytest.raises(Unsupported, match="over 3×5 pixels of an image of 4×5: let it see the whole map"):
        Sampler(model, **OF_OWN)


@pytest.mark.parametrize("dead", ["all", 0, 1])
def test_dead_taps_of_a_diagonal_lstm(dead):
    model = own(lambda m, h: m.left(h))
    model.left.state_to_state.weight.data[..., slice(None) if dead == "all" else dead] = 0
    sampled(model, ["eager"])
    check_causal(model, **OF_OWN)


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_see_what_the_modules_give(kind):
    """The model writes in place where nobody looks."""
    fast, plain = pixel_rnn(kind), reference.PixelRNN(**pixel_rnn(kind).config).double()
    plain.load_state_dict(fast.state_dict())
    names = ["conv_in", "layers.0", "upsample.0", "upsample.1", "conv_out1", "conv_out2", "conv_out3"]

    def seen(model: nn.Module) -> list[Tensor]:
        outputs: list[Tensor] = []

        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            output.retain_grad()
            outputs.append(output)

        for name in names:
            model.get_submodule(name).register_forward_hook(hook)
        model(images()).square().sum().backward()
        assert all(x.grad is not None for x in outputs)
        return [y for x in outputs for y in (x.detach(), x.grad) if y is not None]

    for got, expected in zip(seen(fast), seen(plain), strict=True):
        assert_identical_up_to_rounding(got, expected)
    for name in names:
        for hooks in ("register_full_backward_hook", "register_full_backward_pre_hook"):
            fast = pixel_rnn(kind)
            getattr(fast.get_submodule(name), hooks)(lambda *_: None)
            fast(images()).sum().backward()
    fast = pixel_rnn(kind)
    fast.upsample[1] = nn.Sequential(fast.upsample[1], nn.Sigmoid())
    fast.conv_out1 = nn.Sequential(fast.conv_out1, nn.Tanh())  # type: ignore[assignment]  # as users replace modules
    fast(images()).sum().backward()


def test_a_hook_on_all_modules_keeps_what_they_give():
    kept: list[tuple[Tensor, Tensor]] = []
    hook = nn.modules.module.register_module_forward_hook(
        lambda m, a, x: kept.append((x, x.detach().clone()))
    )
    try:
        pixel_rnn("row_lstm")(images())
    finally:
        hook.remove()
    assert kept and all(torch.equal(x, as_it_was) for x, as_it_was in kept)


def test_as_many_pixels_as_levels():
    """The shape of the output does not tell the levels' axis."""
    model = PixelRNN("row_lstm", 1, 3, 1, kernel_size=3, levels=4).double()
    sampler = Sampler(model, (1, 4, 4))
    images, log_probability = sampler.sample(2, log_probability=True)
    assert_identical_up_to_rounding(-nll(model, images), log_probability)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(n_layers=0), "n_layers is 0, expected an integer of 1 or more"),
        (dict(levels=1), "levels is 1, expected an integer of 2 or more"),
        (dict(hidden_channels=-1), "hidden_channels is -1"),
        (dict(n_classes=0), "n_classes is 0"),
        (dict(levels="4"), "levels is '4', expected an integer"),
        (dict(n_layers=1.5), "n_layers is 1.5, expected an integer"),
        (dict(kernel_size=-3), "kernel_size is -3"),
        (dict(learn_initial_state=3), "learn_initial_state is 3, expected True or False"),
        (dict(kind="lstm"), "kind is 'lstm', expected 'row_lstm' or 'diagonal_bilstm'"),
        (dict(kernel_size=4), "needs odd sizes"),
        (dict(channel_order="rgb"), "channel_order is 'rgb'"),
        (dict(channel_order="thirds", hidden_channels=2), "each colour needs at least one"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        PixelRNN(**{"kind": "row_lstm", **settings})


def test_bad_input_is_refused():
    model = pixel_rnn("row_lstm", n_classes=3)
    with pytest.raises(ValueError, match=r"expected \[N, 3, H, W\]"):
        model(torch.zeros(1, 1, 4, 4), torch.zeros(1, dtype=torch.long))
    with pytest.raises(ValueError, match="class-conditional"):
        model(images())
