"""PixelCNN++: two streams on three grids, with a mixture of logistics for each pixel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast.models.hub import OnHub
from pixelcnn_fast.models.inputs import check_inputs, config_of
from pixelcnn_fast.nn import GatedResnet, ShiftedConv2d, ShiftedConvTranspose2d
from pixelcnn_fast.nn.settings import check_sizes
from pixelcnn_fast.nn.shifted_conv2d import initialise, shifted
from pixelcnn_fast.ops import concat_elu

PARAMETERS = {1: 3, 3: 10}  # of a component, by how many colours there are
GRIDS = 3
U, UL = (2, 3), (2, 2)  # kernels of the streams
Seen = list[tuple[Tensor, Tensor]]


class Streams(nn.Module):
    """The layers of both streams on one grid. skips: maps of other layers that those of the
    u-stream read; the ul-stream's read one more, of the u-stream.

    seen: ``concat_elu`` of both streams after each layer so far.
    """

    def __init__(self, n: int, skips: int, n_filters: int, dropout: float, n_classes: int | None) -> None:
        super().__init__()
        self.u_stream, self.ul_stream = nn.ModuleList(), nn.ModuleList()
        for _ in range(n):
            self.u_stream.append(GatedResnet(n_filters, U, skips, dropout, n_classes))
            self.ul_stream.append(GatedResnet(n_filters, UL, skips + 1, dropout, n_classes))


class UpStreams(Streams):
    def forward(self, u: Tensor, ul: Tensor, seen: Seen, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        for u_layer, ul_layer in zip(self.u_stream, self.ul_stream, strict=True):
            activated_u, activated_ul = seen[-1]
            u, activated_u = u_layer(u, activated_u, None, labels)
            ul, activated_ul = ul_layer(ul, activated_ul, activated_u, labels)
            seen.append((activated_u, activated_ul))
        return u, ul


class DownStreams(Streams):
    def forward(self, u: Tensor, ul: Tensor, seen: Seen, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        activated_u, activated_ul = concat_elu(u), concat_elu(ul)
        for u_layer, ul_layer in zip(self.u_stream, self.ul_stream, strict=True):
            skip_u, skip_ul = seen.pop()
            u, activated_u = u_layer(u, activated_u, skip_u, labels)
            skip = torch.cat([activated_u, skip_ul], dim=1)
            ul, activated_ul = ul_layer(ul, activated_ul, skip, labels)
        return u, ul


class PixelCNNpp(OnHub):
    """PixelCNN++: p(image) as a product over pixels in raster order, whose colours are drawn from one mixture.

    images: [N, input_channels, H, W], uint8 levels 0...255, or floating point in -1...1;
    labels: [N] integers, needed with ``n_classes`` -> [N, 10 * n_mixtures, H, W], or 3 *
    n_mixtures for one colour. With K components, channel k < K is the logit of component k,
    and then, for colour c, K + 3cK + k its mean, + K the logarithm of its scale, and + 2K a
    coefficient before its tanh (for one colour: K + k and 2K + k, and no coefficients).
    Height and width may be any: halves are rounded up, and what is too much is cut off again.
    n_resnets: layers of each stream on each of three grids, to the coarsest and back; one more
    on the finer two on the way back.
    Raises ValueError for other than 1 or 3 colours, a wrong shape or dtype, and missing,
    unexpected or out-of-range labels. Source: Salimans et al. 2017, "PixelCNN++: Improving the
    PixelCNN with Discretized Logistic Mixture Likelihood and Other Modifications", and its
    published code.
    """

    def __init__(
        self, input_channels: int = 3, n_filters: int = 160, n_resnets: int = 5, n_mixtures: int = 10,
        dropout: float = 0.5, n_classes: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.config = config_of(locals())
        if input_channels not in PARAMETERS:
            raise ValueError(f"input_channels is {input_channels!r}, expected 1 or 3")
        check_sizes(n_filters=n_filters, n_resnets=n_resnets, n_mixtures=n_mixtures)
        if n_classes is not None:
            check_sizes(n_classes=n_classes)
        self.input_channels, self.n_classes, self.n_mixtures = input_channels, n_classes, n_mixtures
        f, layers, between = n_filters, (n_filters, dropout, n_classes), range(GRIDS - 1)
        self.u_init = ShiftedConv2d(input_channels + 1, f, U)
        self.ul_init = nn.ModuleList(ShiftedConv2d(input_channels + 1, f, size) for size in ((1, 3), (2, 1)))
        self.up_layers = nn.ModuleList(UpStreams(n_resnets, 0, *layers) for _ in range(GRIDS))
        self.downsize_u_stream = nn.ModuleList(ShiftedConv2d(f, f, U, 2) for _ in between)
        self.downsize_ul_stream = nn.ModuleList(ShiftedConv2d(f, f, UL, 2) for _ in between)
        self.down_layers = nn.ModuleList(DownStreams(n_resnets + (i > 0), 1, *layers) for i in range(GRIDS))
        self.upsize_u_stream = nn.ModuleList(ShiftedConvTranspose2d(f, f, U, 2) for _ in between)
        self.upsize_ul_stream = nn.ModuleList(ShiftedConvTranspose2d(f, f, UL, 2) for _ in between)
        self.nin_out = ShiftedConv2d(f, PARAMETERS[input_channels] * n_mixtures, (1, 1))

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        check_inputs(images, self.input_channels, labels, self.n_classes, "-1...1")
        x = images.to(self.nin_out.weight_v.dtype)
        if images.dtype == torch.uint8:
            x = x / 127.5 - 1
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)  # tells the image from zeros around it
        x = x.contiguous(memory_format=torch.channels_last)
        u = shifted(self.u_init(x), 1, 0)
        ul = shifted(self.ul_init[0](x), 1, 0) + shifted(self.ul_init[1](x), 0, 1)
        seen = [(concat_elu(u), concat_elu(ul))]
        for grid, up in enumerate(self.up_layers):
            if grid > 0:
                u, ul = self.downsize_u_stream[grid - 1](u), self.downsize_ul_stream[grid - 1](ul)
                seen.append((concat_elu(u), concat_elu(ul)))
            u, ul = up(u, ul, seen, labels)
        seen.pop()  # that of u and ul, where the way back begins
        for grid, down in enumerate(self.down_layers):
            if grid > 0:
                size = seen[-1][0].shape[2:]
                u, ul = self.upsize_u_stream[grid - 1](u, size), self.upsize_ul_stream[grid - 1](ul, size)
            u, ul = down(u, ul, seen, labels)
        return self.nin_out(F.elu(ul))

    def initialise_from(self, images: Tensor, labels: Tensor | None = None) -> None:
        """Sets scales and biases before training, by images as ``forward`` takes them: over these, each
        channel of each convolution's result gets mean 0 and standard deviation 1 or, before a gate, 0.1.

        Dropout takes part in training mode. Raises ValueError without any images, and as
        ``forward`` does. Source: Salimans and Kingma 2016, "Weight Normalization", section 3.
        """
        check_inputs(images, self.input_channels, labels, self.n_classes, "-1...1")
        if not len(images):
            raise ValueError("there are no images to initialise from: give a batch as in training")
        initialise(self, images, labels)
