"""What a model sees: compared with autograd, described in words and drawn as a picture."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast import check_causal, receptive_field
from pixelcnn_fast.__main__ import main
from pixelcnn_fast.errors import CaptureMismatch, NotCausal, UnknownLayout, Unsupported
from pixelcnn_fast.heads import Categorical
from pixelcnn_fast.models import GatedPixelCNN, PixelCNN
from pixelcnn_fast.nn import GatedBlock, MaskedConv2d
from pixelcnn_fast.receptive_field import COLOURS, ReceptiveField
from tests.leaks import HIDDEN
from tests.sampler_life.common import silence
from tests.system.networks import pixelcnn, positive
from tests.tiers import few

Model = PixelCNN | GatedPixelCNN
MODELS: dict[str, Callable[[], Model]] = {
    "convolutional": lambda: PixelCNN(2, 5, 1, kernel_size=3),
    "thirds": lambda: PixelCNN(3, 7, 1, kernel_size=3, channel_order="thirds"),
    "gated": lambda: GatedPixelCNN(1, 4, [1, 1, 2], levels=4),
    "gated, interleaved": lambda: GatedPixelCNN(3, 4, [1, 1], channel_order="interleaved", levels=4),
}


def small(name: str) -> Model:
    torch.manual_seed(0)
    return MODELS[name]().eval()


SIZES = [(5, 7), (1, 9), (8, 2)]


@pytest.mark.parametrize(("size", "name"), few([(size, name) for size in SIZES for name in MODELS], 5))
def test_is_what_autograd_sees(size, name):
    model, (height, width) = small(name), size
    c = model.input_channels
    field = receptive_field(model, (c, height, width))
    images = torch.rand(1, c, height, width, requires_grad=True)
    logits = positive(model)(images)
    for y, x in [(0, 0), (height // 2, width // 2), (height - 1, width - 1)]:
        for channel in range(c):
            expected = (
                torch.autograd.grad(logits[0, channel, y, x].sum(), images, retain_graph=True)[0][0] != 0
            )
            rows, columns = (slice(n - 1 - at, 2 * n - 1 - at) for n, at in ((height, y), (width, x)))
            window = field.seen[channel, :, rows, columns]
            assert torch.equal(window, expected), (y, x, channel)


@pytest.mark.parametrize("name", MODELS)
def test_only_the_gated_networks_have_no_blind_spot(name):
    model = small(name)
    field = receptive_field(model, (model.input_channels, 6, 7))
    assert field.causal and bool(field.blind_spots.any()) != name.startswith("gated")


def test_a_starved_mask_is_a_blind_spot():
    model = small("gated")
    for block in model.blocks:
        assert isinstance(block, GatedBlock)
        block.horizontal.mask[:, :, :, 0] = 0  # hides the present row
    field = receptive_field(model, (1, 5, 7))
    assert field.causal and field.blind_spots[0, 0, 4, :6].any() and not field.blind_spots[0, 0, 4, 6:].any()


# By name: the model, the layer and where its mask is one, the message.
LEAKS: dict[str, tuple[str, str, tuple[Any, ...], str]] = {
    "mask B first": ("convolutional", "conv_in", np.s_[:, :, 1, 1], r"conv_in: .*\(\+0, \+0\).*mask A"),
    "a later pixel": (
        "convolutional",
        "tail.0",
        (0, 0, 1, 2),
        r"tail.0: .*\(\+0, \+1\).*is the mask applied",
    ),
    "horizontal stack": (
        "gated",
        "blocks.2.horizontal",
        (0, 0, 0, 2),
        r"blocks.2.horizontal: .*\(\+0, \+2\)",
    ),
    "vertical stack": ("gated", "blocks.0.vertical", (0, 0, 1), r"blocks.0.vertical: .*\(\+0, \+1\)"),
    "green feeds red": (
        "thirds",
        "blocks.0.conv1",
        (0, 4, 1, 1),
        "channel 0 sees its own channel.*blocks.0.conv1",
    ),
    "blue feeds green": (
        "thirds",
        "blocks.0.conv1",
        (3, 5, 1, 1),
        "channel 1 sees its own channel.*blocks.0.conv1",
    ),
}


@pytest.mark.parametrize("name", LEAKS)
def test_leaks_are_named(name):
    which, layer, at, message = LEAKS[name]
    model = small(which).train()
    model.get_submodule(layer).get_buffer("mask")[at] = 1
    field = receptive_field(model, (model.input_channels, 3, 4))
    assert not field.causal and "NOT CAUSAL" in str(field) and "!" in str(field) and model.training
    assert re.search(message, str(field.leak))


def test_the_field_in_words():
    text = str(receptive_field(pixelcnn(blocks=1, kernel=3), (1, 9, 12)))
    assert "receptive field in 1x9x12 images: causal" in text
    assert (
        "up to 5 rows above, 5 columns to the left and 5 to the right; 10 sub-pixels in blind spots" in text
    )
    assert "\n  ##########?\n" in text and "\n  #####@.....\n" in text  # the rows next to the pixel


@pytest.mark.parametrize(
    ("dx", "words"), [(-1, "1 columns to the left and 0"), (1, "0 columns to the left and 1")]
)
def test_a_field_on_one_side_in_words(dx, words):
    model = Outputs(1, 10, lambda x: x)
    model.conv.mask[..., [1, 1 - dx]] = 0
    model.conv.mask[..., 1, :] = 0
    text = str(receptive_field(model, (1, 5, 7)))
    assert f"sees 1 earlier sub-pixels, up to 1 rows above, {words} to the right;" in text


def test_an_image_of_one_pixel():
    text = str(receptive_field(small("convolutional"), (2, 1, 1)))
    assert "causal" in text and "sees no earlier pixel\n  @\n" in text and "!" not in text


@pytest.fixture(scope="module")
def different_channels() -> ReceptiveField:
    model = small("thirds")
    assert isinstance(model, PixelCNN)
    model.conv_in.mask[:, 1] = 0  # nobody looks at green
    model.conv_out.mask[:256] = 0  # red looks at nothing
    return receptive_field(model, (3, 5, 5))


def test_channels_that_see_different_things_are_told_apart(different_channels):
    text = str(different_channels)
    assert "channel 0: sees no earlier pixel" in text
    assert "channel 1, 2: sees" in text and "  ++++@....\n" in text and "+ some channels seen" in text
    assert f"{int(different_channels.blind_spots[1].sum())} sub-pixels in blind spots" in text


def test_the_picture_shows_the_maps_of_the_channels_side_by_side(different_channels, tmp_path):
    different_channels.picture(tmp_path / "field.png", scale=3)
    picture = (matplotlib.image.imread(tmp_path / "field.png")[1::3, 1::3, :3] * 255).round()
    _, *blocks, _ = str(different_channels).split("\n\n")
    of_none, of_many = ([row.strip() for row in block.split("\n")[1:]] for block in blocks)
    left = 0
    for rows in (of_none, of_many, of_many):
        for y, row in enumerate(rows):
            assert [tuple(p) for p in picture[y, left : left + len(row)]] == [COLOURS[c] for c in row]
        left += len(rows[0]) + 1  # a white line between two
    assert picture.shape[:2] == (len(of_many), left - 1)


def test_maps_of_other_heights_have_white_below(tmp_path):
    seen = torch.zeros(2, 2, 5, 7, dtype=torch.bool)
    seen[0, :, 2, 1:3] = seen[1, :, 1, 3] = True  # two to the left, and one above
    ReceptiveField((2, 3, 4), seen, None).picture(tmp_path / "field.png", scale=2)
    picture = (matplotlib.image.imread(tmp_path / "field.png")[1::2, 1::2, :3] * 255).round()
    assert picture.shape == (2, 3 + 1 + 1, 3) and (picture[1, :4] == 255).all()


def test_command_line(tmp_path, capsys):
    out = tmp_path / "new" / "field.png"
    assert main(["receptive-field", "--size", "6x8", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "1x6x8 images: causal" in text and str(out) in text
    picture = matplotlib.image.imread(out)
    assert picture.ndim == 3 and picture.shape[0] == 6 * 9  # rows of the map
    with pytest.raises(SystemExit, match="2"):
        main(["receptive-field", "--out", "field.jpg"])


def test_the_command_s_status_says_whether_the_model_is_causal(monkeypatch, capsys):
    """A checkpoint's masks are checked when it is loaded, so here it is not loaded."""
    model: Any = small("gated")
    model.blocks[0].vertical.mask[0, 0, 1].fill_(1)
    monkeypatch.setattr("pixelcnn_fast.checkpoint.load", lambda name: model)
    assert main(["receptive-field", "--size", "5x7"]) == 1
    assert "1x5x7 images: NOT CAUSAL\n  blocks.0.vertical: " in capsys.readouterr().out


# -- compared with the model


class Shifted(nn.Module):
    """One causal layer on what ``before`` makes of the images."""

    levels = 4

    def __init__(self, before: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.before = nn.Conv2d(1, 4, (2, 3)), before

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x.float())
        return self.conv(nn.functional.pad(x, (3, 0, 1, 0))[..., :-1])


@pytest.mark.parametrize("function", [receptive_field, check_causal])
@pytest.mark.parametrize("name", HIDDEN)
def test_what_a_model_sees_behind_the_program_s_back_is_found(name, function):
    with pytest.raises((CaptureMismatch, Unsupported), match="runtime='reference'"):
        function(Shifted(HIDDEN[name]), (1, 4, 4), image_form="levels")
    function(Shifted(lambda x: x), (1, 4, 4), image_form="levels")


# -- without a head


class Outputs(nn.Module):
    """A masked layer whose output only ``read`` understands."""

    def __init__(self, channels: int, numbers: int, read: Callable[[Tensor], Tensor], leak=False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.read = MaskedConv2d(channels, numbers, 3, "A"), read
        if leak:
            self.conv.mask[0, 0, 1, 2] = 1

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.conv(x / 255))


READINGS = {
    "N,K,H,W": (1, 10, lambda x: x),
    "N,H,W,K": (1, 10, lambda x: x.permute(0, 2, 3, 1)),
    "N,a,H,W,b": (2, 12, lambda x: x.unflatten(1, (3, 4)).permute(0, 1, 3, 4, 2)),
    "N,a,b,H,W": (2, 12, lambda x: x.unflatten(1, (3, 4))),
    "N,C*L,H,W or N,L*C,H,W": (2, 512, lambda x: x),
    "N,H,W": (1, 1, lambda x: x[:, 0]),
}


@pytest.mark.parametrize("name", READINGS)
def test_a_model_whose_output_is_not_known_is_seen_all_the_same(name):
    channels, numbers, read = READINGS[name]
    shape, above = (channels, 5, 7), slice(3, 4)
    field = receptive_field(Outputs(channels, numbers, read), shape)
    assert field.causal and field.seen[:, :, above, 5:8].all() and field.seen[:, :, 4, 5].all()
    assert int(field.seen.sum()) == channels * channels * 4  # the neighbours that mask A shows
    with pytest.raises(NotCausal, match=r"conv: kernel tap \(\+0, \+1\)"):
        check_causal(Outputs(channels, numbers, read, leak=True), shape)


def test_where_channels_are_ordered_the_head_is_asked_for():
    class TwoReadings(PixelCNN):
        def forward(self, images, labels=None):
            return super().forward(images).permute(0, 1, 4, 2, 3).flatten(1, 2)  # [N, C * 256, H, W]

    model = TwoReadings(3, 7, 1, kernel_size=3, channel_order="thirds").eval()
    with pytest.raises(UnknownLayout, match=r"(?s)several ways.*sees its own pixel.*: pass head="):
        receptive_field(model, (3, 3, 4))
    check_causal(model, (3, 3, 4), head=Categorical(256, "N,C*L,H,W"))
    with pytest.raises(NotCausal):
        check_causal(model, (3, 3, 4), head=Categorical(256, "N,L*C,H,W"))
    with pytest.raises(UnknownLayout, match=r"expects \[[^]]*\]$"):  # a head that was given is not left aside
        check_causal(model, (3, 3, 4), head=Categorical(256, "N,C,H,W,L"))


def test_of_one_channel_an_output_that_sees_its_own_pixel_leaks_whatever_the_head():
    model = Outputs(1, 10, lambda x: x)
    model.conv.mask[0, 0, 1, 1] = 1
    with pytest.raises(NotCausal, match=r"conv: kernel tap \(\+0, \+0\)"):
        check_causal(model, (1, 5, 7))


@pytest.mark.parametrize("name", HIDDEN)
def test_without_a_head_too_the_reason_is_why_the_model_can_t_be_captured(name):
    class Unread(Shifted):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).flatten(1, -3).repeat(1, 3, 1, 1)

    with pytest.raises((CaptureMismatch, Unsupported)):
        check_causal(Unread(HIDDEN[name]), (1, 4, 4), image_form="levels")
    check_causal(Unread(lambda x: x), (1, 4, 4), image_form="levels")


def test_an_output_that_is_no_image_is_refused():
    with pytest.raises(UnknownLayout, match=r"shape \[2, 4\]"):
        receptive_field(Outputs(1, 4, lambda x: x.mean((2, 3))), (1, 5, 5))


class Behind(nn.Module):
    """A convolution behind something that is zero before training."""

    levels = 8

    def __init__(self, kind: str, mask: str = "B") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.first = kind, MaskedConv2d(1, 6, 5, "A")
        self.inside = nn.Conv2d(6, 6, 3, padding=1) if mask == "none" else MaskedConv2d(6, 6, 3, "B")
        self.gain, self.norm = nn.Parameter(torch.zeros(1)), nn.BatchNorm2d(6)
        self.low, self.high, self.last = nn.Conv2d(6, 2, 1), nn.Conv2d(2, 6, 1), nn.Conv2d(6, 8, 1)
        zero = {"last": "last", "adapter": "high", "norm": "norm", "itself": "inside"}.get(kind)
        if zero is not None:
            nn.init.zeros_(self.get_parameter(f"{zero}.weight"))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x.float() / 8))
        y = torch.tanh(self.inside(x))
        match self.kind:
            case "gain":
                x = x + self.gain * y
            case "adapter":
                x = x + self.high(self.low(y))
            case "norm":
                x = x + self.norm(y)
            case _:
                x = x + y
        return self.last(x)


@pytest.mark.parametrize("kind", ["last", "gain", "adapter", "norm"])
def test_a_leak_behind_a_zero_is_seen(kind: str) -> None:
    with pytest.raises(NotCausal, match=r"inside: kernel tap \(\+1, -1\)"):
        check_causal(Behind(kind, "none"), (1, 6, 6))
    model = Behind(kind).train()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with silence():
        check_causal(model, (1, 6, 6))
        assert "sees no earlier pixel" not in str(receptive_field(model, (1, 6, 6)))
    assert model.training and all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


class Own(nn.Conv2d):
    """Its copies know of no memo."""

    def __deepcopy__(self, memo):
        other = Own(2, 6, 1)
        other.load_state_dict(self.state_dict())
        return other


def test_a_leak_behind_a_zero_that_copies_itself_is_seen():
    model = Behind("adapter", "none")
    model.high = Own(2, 6, 1)
    nn.init.zeros_(model.high.weight)
    with pytest.raises(NotCausal, match=r"inside: kernel tap"):
        check_causal(model, (1, 6, 6))


class ChannelsLast(nn.Module):
    """What is zero before training comes after a norm over the last axis, of the channels."""

    levels = 8

    def __init__(self, zero: str, is_plain: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = MaskedConv2d(1, 6, 5, "A"), nn.Conv2d(6, 8, 1)
        self.norm, self.wide, self.narrow = nn.LayerNorm(6), nn.Linear(6, 12), nn.Linear(12, 6)
        self.is_plain = is_plain
        nn.init.zeros_(self.get_parameter(zero))

    def forward(self, x):
        x = self.first(x.float() / 8)
        y = self.norm(x.movedim(1, -1))
        if not self.is_plain:
            y = self.narrow(F.gelu(self.wide(y)))
        return self.last(torch.tanh(x + y.movedim(-1, 1)))


@pytest.mark.parametrize("is_plain", few([False, True], 1))
@pytest.mark.parametrize("zero", ["norm.weight", "norm.bias", "wide.weight", "narrow.weight"])
def test_a_causal_model_that_begins_with_zeros_passes_whatever_the_size(zero, is_plain):
    for size in ((6, 6), (4, 5)):
        with silence():
            check_causal(ChannelsLast(zero, is_plain), (1, *size))


def test_a_zero_that_may_be_masked_outside_of_the_model_is_told() -> None:
    message = r"^inside.weight is zero now; unless .* inside: kernel tap \(\+1, -1\)"
    with pytest.warns(UserWarning, match=message):
        check_causal(Behind("itself", "none"), (1, 6, 6))
    with silence():
        check_causal(Behind("itself"), (1, 6, 6))


class Merged(nn.Module):
    """An adapter that leaks, as its product is not masked, and is zero before training."""

    levels = 5

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.merged = MaskedConv2d(1, 5, 3, "A"), nn.Conv2d(5, 5, 1), False
        self.first.weight.data *= self.first.get_buffer("mask")
        self.a, self.b = nn.Parameter(torch.zeros(5, 2)), nn.Parameter(torch.randn(2, 9))

    def delta(self) -> Tensor:
        return (self.a @ self.b).view(5, 1, 3, 3)

    def train(self, mode: bool = True) -> Merged:
        super().train(mode)
        if self.merged == mode:
            self.first.weight.data += self.delta() * (-1 if mode else 1)
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        weight = self.first.weight if self.merged else self.first.weight + self.delta()
        return self.last(nn.functional.conv2d(x.float(), weight, padding=1).relu())


@pytest.mark.parametrize("mode", [True, False])
def test_an_adapter_that_is_zero_and_perhaps_merged(mode: bool) -> None:
    model = Merged().train(mode)
    with pytest.raises(NotCausal, match=r"kernel tap \("):
        check_causal(model, (1, 6, 6))
    assert model.merged != mode and model.training == mode


class Beside(nn.Module):
    """A first layer of mask B beside one whose weights are zero, and a last one of zeros."""

    levels = 5

    def __init__(self, is_first: bool) -> None:
        super().__init__()
        self.zero, self.wrong, self.is_first = (
            MaskedConv2d(1, 6, 3, "B"),
            MaskedConv2d(1, 6, 3, "B"),
            is_first,
        )
        self.last = nn.Conv2d(6, 5, 1)
        for each in (self.zero, self.last):
            nn.init.zeros_(each.weight)

    def forward(self, x: Tensor) -> Tensor:
        found = [self.zero(x.float()), self.wrong(x.float())]
        return self.last(sum(found if self.is_first else found[::-1]))


@pytest.mark.parametrize("is_first", [False, True])
def test_a_leak_beside_a_zero_that_would_leak_is_seen(is_first: bool) -> None:
    with pytest.raises(NotCausal, match=r"wrong: kernel tap \(\+0, \+0\) .* sees its own pixel"):
        check_causal(Beside(is_first), (1, 4, 4))


def test_that_a_model_fails_without_its_zeros_is_told() -> None:
    class Strict(Behind):
        def forward(self, x: Tensor) -> Tensor:
            if bool(self.gain != 0):
                raise ValueError("no such gain")
            return super().forward(x)

    with pytest.warns(UserWarning, match="^gain and norm.bias: zero now, and .* no such gain"):
        check_causal(Strict("gain"), (1, 6, 6))


def test_zeros_that_are_not_trained_stay_zero() -> None:
    model = Behind("gain", "none")
    model.gain.requires_grad_(False)
    with silence():
        check_causal(model, (1, 6, 6))
