"""Feature maps with fewer pixels than the image: what is captured of them, what it sees, and how it is sampled."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast import NotCausal, Sampler, Unsupported
from pixelcnn_fast.capture.capture import capture
from pixelcnn_fast.heads import Categorical
from pixelcnn_fast.nn import MaskedConv2d
from pixelcnn_fast.passes.pipeline import simplified
from pixelcnn_fast.program.conditions import Conditioning
from pixelcnn_fast.program.grids import cell, count, meeting
from pixelcnn_fast.program.receptive_field.fields import output_fields
from tests.system.agreement import assert_runtimes_agree
from tests.tiers import tiered

LEVELS, HIDDEN = 5, 4
Middle = Callable[["Net", Tensor], Tensor]


def conv(*kernel: int, stride: Any = 1, of: int = HIDDEN, to: int = HIDDEN) -> nn.Conv2d:
    return nn.Conv2d(of, to, (kernel[0], kernel[1]), stride)


def up(*kernel: int, stride: Any = 2, padding: int = 0, groups: int = 1) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(HIDDEN, HIDDEN, (kernel[0], kernel[1]), stride, padding, groups=groups)


def earlier(x: Tensor, rows: int, columns: int) -> Tensor:
    """With zeros above and to the left, so that a window of so many pixels ends at the present one."""
    return F.pad(x, (columns - 1, 0, rows - 1, 0))


def like(x: Tensor, h: Tensor) -> Tensor:
    return x[..., : h.shape[2], : h.shape[3]]


def below(x: Tensor, rows: int = 1) -> Tensor:
    return F.pad(x, (0, 0, rows, 0))[:, :, : x.shape[2]]


class Net(nn.Module):
    """A masked layer, whatever is tried with its features, and a layer that reads both."""

    def __init__(self, middle: Middle, *layers: nn.Module) -> None:
        super().__init__()
        self.first, self.layers, self.middle = MaskedConv2d(1, HIDDEN, 3, "A"), nn.ModuleList(layers), middle
        self.last = nn.Conv2d(HIDDEN, LEVELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.elu(self.first(x))
        return self.last(torch.tanh(h + like(self.middle(self, h), h)))


def and_back(rows: int, columns: int) -> Middle:
    return lambda net, h: net.layers[1](net.layers[0](earlier(h, rows, columns)))


def cropped(net: Net, h: Tensor) -> Tensor:
    """As in PixelCNN++: a stream of the rows above, and back, with a residual layer between."""
    c = net.layers[0](F.pad(below(h), (1, 1, 1, 0)))
    c = c + F.elu(net.layers[1](F.pad(c, (1, 1, 1, 0))))
    return net.layers[2](c)[:, :, :, 1:]


def twice(net: Net, h: Tensor) -> Tensor:
    """Down and up twice, with a skip in the middle."""
    down, more, back, last = net.layers
    one = down(earlier(h, 2, 2))
    two = F.elu(more(earlier(one, 2, 2)))
    return last(one + like(back(two), one))


def repeated(net: Net, h: Tensor) -> Tensor:
    """Down and up, and again."""
    down, back, again, last = net.layers
    one = F.elu(like(back(down(earlier(h, 2, 2))), h))
    return last(again(earlier(one, 3, 3)))


def beside_finer(net: Net, h: Tensor) -> Tensor:
    c = net.layers[0](earlier(h, 2, 2))
    enlarged = like(F.interpolate(c, scale_factor=2), h)
    return net.layers[1](F.pad(torch.cat([enlarged, -enlarged, h], 1), (1, 0)))


def late(net: Net, h: Tensor) -> Tensor:
    """Cells that read all of their own pixels, and are moved down by one cell afterwards."""
    c = F.elu(net.layers[0](F.pad(h, (0, 1, 0, 1))))
    return net.layers[1](below(c))


def late_in_its_row(net: Net, h: Tensor) -> Tensor:
    """Cells that read the pixels to their right, and are moved to the right by one cell afterwards."""
    c = F.elu(net.layers[0](F.pad(h, (0, 2))))
    return net.layers[1](F.pad(c, (1, 0))[..., :-1])


def in_parts(net: Net, h: Tensor) -> Tensor:
    """A gate of halves, and a norm of the whole."""
    c = net.layers[0](earlier(h, 2, 2))
    a, b = c.chunk(2, 1)
    normed = F.layer_norm(c.permute(0, 2, 3, 1), (2 * HIDDEN,)).permute(0, 3, 1, 2)
    return net.layers[1](a * torch.sigmoid(b) + net.layers[2](normed))


def shifted_first(rows: int) -> Middle:
    """Moved down by whole cells of the coarsest grid before all layers; what they leave out is zero."""

    def middle(net: Net, h: Tensor) -> Tensor:
        first, *rest = net.layers
        height, width = h.shape[2:]
        c = torch.exp(first(F.pad(below(h, rows), (0, width % 2, 0, height % 2)))).rsqrt()  # of zero, outside
        for layer in rest:
            c = F.elu(layer(c))
        c = like(c, h)
        return F.pad(c, (0, width - c.shape[3], 0, height - c.shape[2]))

    return middle


def under_a_start_row(net: Net, h: Tensor) -> Tensor:
    shifted = F.pad(h[:, :, :-1], (0, 0, 1, 0), value=0.5)
    return net.layers[1](net.layers[0](F.pad(shifted, (1, h.shape[3] % 2, 0, h.shape[2] % 2))))


def stuffed(net: Net, h: Tensor) -> Tensor:
    """Zeros between the pixels of a sum, which two layers make at once."""
    return net.layers[1](net.layers[0](earlier(h, 2, 2)))


def of_slices(net: Net, h: Tensor) -> Tensor:
    return net.layers[1](F.elu(net.layers[0](earlier(h, 2, 2))[:, :, ::2, ::2]))


def with_positions(net: Net, h: Tensor) -> Tensor:
    c = net.layers[0](earlier(h, 2, 2))
    at = torch.arange(c.shape[2] * c.shape[3], dtype=c.dtype).view(c.shape[2:]) / 7
    return net.layers[1](torch.cat([c * at, torch.ones_like(c[:, :1])], 1)[:, :HIDDEN])


def averaged(net: Net, h: Tensor) -> Tensor:
    return F.interpolate(F.avg_pool2d(earlier(h, 2, 2), 2), scale_factor=2, mode="nearest-exact")


def shuffled(net: Net, h: Tensor) -> Tensor:
    return F.pixel_shuffle(net.layers[0](earlier(h, 2, 2)), 2)


def unshuffled(net: Net, h: Tensor) -> Tensor:
    cells = F.pixel_unshuffle(F.pad(h, (1, h.shape[3] % 2 + 1, 1, h.shape[2] % 2 + 1)), 2)
    return F.pixel_shuffle(net.layers[0](cells), 2)


def unshuffled_below(net: Net, h: Tensor) -> Tensor:
    """All of a cell's pixels, one row of cells later: of two rows of cells, the first sees none."""
    cells = F.pixel_unshuffle(below(h, 2), 2)
    return F.pixel_shuffle(torch.tanh(net.layers[0](cells)), 2)


def largest_below(net: Net, h: Tensor) -> Tensor:
    cells = below(h, 2).unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    return F.interpolate(cells.amax((3, 5)), scale_factor=2)


def mean_below(net: Net, h: Tensor) -> Tensor:
    cells = below(h, 2).unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    return F.interpolate(cells.mean((3, 5)), scale_factor=2)


def sliced_below(net: Net, h: Tensor) -> Tensor:
    """One pixel of each cell, taken as it is and repeated."""
    x = below(F.pad(h, (0, h.shape[3] % 2, 0, h.shape[2] % 2)), 2)
    enlarged = x[:, :, ::2, ::2].repeat_interleave(2, 2).repeat_interleave(2, 3)
    return like(enlarged, h) + like(F.interpolate(x[:, :, 1::2, 1::2], scale_factor=2), h)


def residual_of_cells(net: Net, h: Tensor) -> Tensor:
    """A norm over each cell's channels, a gate, and a layer that looks at cells around, but not at later ones."""
    c = net.layers[0](earlier(h, 2, 2))
    gate = torch.sigmoid(net.layers[1](F.layer_norm(c.permute(0, 2, 3, 1), (HIDDEN,)).permute(0, 3, 1, 2)))
    return net.layers[3](gate * net.layers[2](earlier(c, 2, 2)))


def normed_where_they_fit(net: Net, h: Tensor) -> Tensor:
    """A norm of fewer cells than the grid has."""
    c = net.layers[0](below(h, 2))
    normed = F.layer_norm(c.permute(0, 2, 3, 1), (HIDDEN,)).permute(0, 3, 1, 2)
    return like(F.pad(net.layers[1](normed), (0, 1, 0, 1)), h)


NETWORKS: dict[str, Callable[[], Net]] = {
    "cropped": lambda: Net(cropped, conv(2, 3, stride=2), conv(2, 3), up(2, 3)),
    "by three": lambda: Net(and_back(3, 2), conv(3, 2, stride=3), up(3, 3, stride=3)),
    "rows only": lambda: Net(and_back(2, 2), conv(2, 2, stride=(2, 1)), up(2, 1, stride=(2, 1))),
    "columns by two, rows by three": lambda: Net(
        and_back(1, 2), conv(1, 2, stride=(3, 2)), up(3, 2, stride=(3, 2))
    ),
    "twice": lambda: Net(twice, conv(2, 2, stride=2), conv(2, 2, stride=2), up(2, 2), up(2, 2)),
    "three, then two": lambda: Net(twice, conv(2, 2, stride=3), conv(2, 2, stride=2), up(2, 2), up(3, 3, stride=3)),
    "again": lambda: Net(repeated, conv(2, 2, stride=2), up(2, 2), conv(3, 3, stride=3), up(3, 3, stride=3)),
    "beside finer": lambda: Net(beside_finer, conv(2, 2, stride=2), conv(1, 2, of=3 * HIDDEN)),
    "late in its row": lambda: Net(late_in_its_row, conv(1, 3, stride=(1, 2)), up(1, 2, stride=(1, 2))),
    "under a start row": lambda: Net(under_a_start_row, conv(2, 2, stride=2), up(2, 2)),
    "shifted first": lambda: Net(
        shifted_first(4), conv(2, 2, stride=2), conv(2, 2, stride=2), up(2, 2), up(2, 2)
    ),
    "shifted and averaged": lambda: Net(
        shifted_first(4), nn.AvgPool2d(2), nn.AvgPool2d(2), nn.Upsample(scale_factor=4)
    ),
    "by two cells": lambda: Net(
        shifted_first(4), conv(2, 2, stride=2), nn.Conv2d(HIDDEN, HIDDEN, 3, padding=1), up(2, 2)
    ),
    "stuffed": lambda: Net(stuffed, conv(2, 2, stride=2), nn.ConvTranspose2d(HIDDEN, HIDDEN, 1, 2, output_padding=1)),
    "in parts": lambda: Net(in_parts, conv(2, 2, stride=2, to=2 * HIDDEN), up(2, 2), conv(1, 1, of=2 * HIDDEN)),
    "late": lambda: Net(late, conv(2, 2, stride=2), up(2, 2)),
    "normed where they fit": lambda: Net(normed_where_they_fit, conv(2, 2, stride=2), up(2, 2)),
    "slices": lambda: Net(of_slices, conv(2, 2), up(2, 2)),
    "positions": lambda: Net(with_positions, conv(2, 2, stride=2), up(2, 2)),
    "averaged": lambda: Net(averaged),
    "shuffled": lambda: Net(shuffled, conv(2, 2, stride=2, to=4 * HIDDEN)),
    "unshuffled": lambda: Net(unshuffled, conv(1, 1, of=4 * HIDDEN, to=4 * HIDDEN)),
    "groups": lambda: Net(and_back(2, 2), conv(2, 2, stride=2), up(2, 2, groups=2)),
    "cells": lambda: Net(residual_of_cells, conv(2, 2, stride=2), conv(1, 1), conv(2, 2), up(2, 2)),
}  # fmt: skip
SIZES = [(8, 8), (7, 5), (6, 9)]


def network(name: str) -> Net:
    torch.manual_seed(0)
    return NETWORKS[name]().double().eval()


def sampler(net: nn.Module, size: tuple[int, int]) -> Sampler:
    return Sampler(net, (1, *size), levels=LEVELS, image_form="levels")


# Each network in one size.
ONCE = [(name, SIZES[at % len(SIZES)]) for at, name in enumerate(NETWORKS)]


@pytest.mark.parametrize(
    ("name", "size"),
    tiered([*ONCE, *((n, s) for n in NETWORKS for s in SIZES if (n, s) not in ONCE)], ONCE.__contains__),
)
def test_all_runtimes_draw_what_the_model_draws(name: str, size: tuple[int, int]) -> None:
    built = sampler(network(name), size)
    assert any(i.instruction.every != (1, 1) for i in built._engine.require_compiled().program.instructions)
    assert_runtimes_agree(built, batch_sizes=(2,))


@pytest.mark.parametrize(
    ("middle", "size"),
    [
        (unshuffled_below, (4, 8)),
        (largest_below, (4, 4)),
        (mean_below, (4, 8)),
        (mean_below, (8, 6)),
        (sliced_below, (4, 4)),
        (sliced_below, (7, 5)),
    ],
)
def test_cells_are_seen_one_row_of_them_later(middle: Middle, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    net = Net(middle, conv(1, 1, of=4 * HIDDEN, to=4 * HIDDEN)).double().eval()
    assert_runtimes_agree(sampler(net, size), batch_sizes=(2,))


def test_likelihoods_completions_and_other_weights_are_the_model_s() -> None:
    net = network("twice")
    built = sampler(net, (7, 5))
    for _ in range(2):
        images = assert_runtimes_agree(built)
        known = torch.rand(7, 5, generator=torch.Generator().manual_seed(1)) < 0.5
        u = torch.rand(3, *built.noise_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        naive = built.complete(images, known, noise=u, runtime="reference")
        for runtime in ("eager", "auto"):
            assert torch.equal(built.complete(images, known, noise=u, runtime=runtime), naive)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(-1.3)
        built.refresh()


# -- what is seen


@pytest.mark.parametrize(
    "name",
    ["cropped", "by three", "three, then two", "again", "beside finer", "late", "shuffled", "by two cells"],
)
@pytest.mark.parametrize("size", SIZES)
def test_fields_are_exact_at_each_place(name: str, size: tuple[int, int]) -> None:
    net, (height, width) = network(name), size
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.abs_().add_(0.01)
    images = [(torch.randint(LEVELS, (n, 1, *size)).double(), Conditioning()) for n in (2, 3)]
    program = capture(net, images, Categorical(LEVELS)).program
    x = torch.rand(1, 1, *size, dtype=torch.float64, requires_grad=True)
    # Increasing functions keep positive gradients apart from zeros.
    sums = net(x).sum(1)[0]
    for form in (program, simplified(program)):
        fields, (rows, columns) = output_fields(form), cell(i.every for i in form.instructions)
        for y, x0 in [(0, 0), (1, 0), (2, 1), (3, 2), (3, width - 1), (height - 1, width - 1)]:
            expected = torch.autograd.grad(sums[y, x0], x, retain_graph=True)[0][0, 0] != 0
            field = fields[y % rows, x0 % columns][0, 0]
            window = field[height - 1 - y : 2 * height - 1 - y, width - 1 - x0 : 2 * width - 1 - x0]
            if width > 5 and x0 < width - 1:
                assert torch.equal(window, expected), (y, x0)
            assert not (expected & ~window).any()  # at the border, some ways lead past the image


@pytest.mark.parametrize(
    ("middle", "layers"),
    [
        (lambda net, h: net.layers[1](net.layers[0](F.pad(h, (0, 1, 0, 1)))), (conv(2, 2, stride=2), up(2, 2))),
        # One row too far up: only odd rows see their own pixel, and later ones.
        (lambda net, h: net.layers[1](net.layers[0](earlier(h, 2, 2)))[:, :, 1:], (conv(2, 2, stride=2), up(2, 2))),
        (lambda net, h: F.interpolate(net.layers[0](F.pad(h, (0, 1))), scale_factor=2), (conv(1, 2, stride=2),)),
        (
            lambda net, h: F.pixel_shuffle(net.layers[0](F.pixel_unshuffle(F.pad(h, (0, 1, 0, 1)), 2)), 2),
            (conv(1, 1, of=4 * HIDDEN, to=4 * HIDDEN),),
        ),
    ],
)  # fmt: skip
def test_a_cell_that_shows_later_pixels_is_a_leak(middle: Middle, layers: tuple[nn.Module, ...]) -> None:
    torch.manual_seed(0)
    with pytest.raises(NotCausal, match="tap"):
        sampler(Net(middle, *layers).double().eval(), (7, 7))


@pytest.mark.parametrize("size", [(5, 5), (6, 6)])
def test_a_tap_leaks_only_if_it_finds_a_cell(size: tuple[int, int]) -> None:
    """Of 5 rows, a layer with stride 4 makes one, beside which the next layer finds zeros alone; of 6 rows, two."""

    def middle(net: Net, h: Tensor) -> Tensor:
        first, down, more, back = net.layers
        c = back(more(down(first(below(h, 4)))))
        return like(F.pad(c, (0, 1, 0, 1)), h)

    more = nn.Conv2d(HIDDEN, HIDDEN, 3, padding=1)
    net = Net(middle, conv(1, 1), conv(2, 2, stride=4), more, up(4, 4, stride=4)).double().eval()
    with nullcontext() if size == (5, 5) else pytest.raises(NotCausal, match=r"tap \(\+4, "):
        assert_runtimes_agree(sampler(net, size), batch_sizes=(2,))


def test_a_map_with_more_pixels_than_the_image_is_refused() -> None:
    net = Net(lambda net, h: net.layers[0](h)[..., ::2, ::2], up(2, 2)).double().eval()
    with pytest.raises(Unsupported, match="conv_transpose2d: it computes more pixels than the image has"):
        sampler(net, (6, 6))


# -- the arithmetic


def test_where_grids_meet() -> None:
    for size in (1, 2, 5, 7, 12):
        for reader in (1, 2, 3, 4):
            for source in (1, 2, 3, 6):
                for offset in range(-size - 1, size + 2):
                    pairs = [
                        (q // reader, (q + offset) // source)
                        for q in range(0, size, reader)
                        if (q + offset) % source == 0
                    ]
                    met = meeting(size, reader, source, offset)
                    assert [*zip(*met, strict=True)] == pairs
                    inside = met.inside(count(size, source))
                    assert [*zip(*inside, strict=True)] == [p for p in pairs if 0 <= p[1] * source < size]
