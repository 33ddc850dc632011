"""What capture follows, and what it refuses with the module and the call."""

import math
from contextlib import suppress
from copy import deepcopy
from itertools import count

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pixelcnn_fast import Sampler
from pixelcnn_fast.capture.capture import capture
from pixelcnn_fast.errors import CaptureMismatch, NotCausal, Unsupported
from pixelcnn_fast.heads import Categorical
from pixelcnn_fast.nn import MaskedConv2d
from pixelcnn_fast.ops import masked_conv_block
from pixelcnn_fast.passes.pipeline import simplified
from pixelcnn_fast.program.conditions import Conditioning
from pixelcnn_fast.program.evaluate import evaluate
from pixelcnn_fast.program.program import condition_operands
from tests.needs import needs_native
from tests.system.agreement import assert_runtimes_agree
from tests.system.networks import ABOVE, HERE, LEFT, Masked, Written, pixelcnn, two_stacks
from tests.tolerances import assert_identical_up_to_rounding, assert_right

SHAPE = (1, 3, 4)


class Net(nn.Module):
    """conv_in -> body(h) -> conv_out; tests choose its body and taps, wrong ones too."""

    def __init__(self, body=lambda net, h, x: h, taps=(*ABOVE, *LEFT)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv_in = Masked(1, 6, list(taps))
        self.middle = Masked(6, 6, [*ABOVE, *LEFT, *HERE])
        self.norm = nn.BatchNorm2d(6)
        self.conv_out = nn.Conv2d(6, 256, 1)
        self.body = body

    def forward(self, images):
        x = images.to(self.conv_in.weight.dtype) / 255
        h = self.body(self, self.conv_in(x), x)
        n, _, height, width = images.shape
        return self.conv_out(h).view(n, 1, 256, height, width).permute(0, 1, 3, 4, 2)


@pytest.mark.parametrize(
    "model", [pixelcnn(channels=3, classes=4), two_stacks()], ids=["PixelCNN", "TwoStacks"]
)
def test_the_fused_program_computes_what_the_model_computes(model):
    model = model.double()
    c = 3 if hasattr(model, "blocks") else 2
    images, labels = torch.randint(0, 256, (2, c, 5, 6), dtype=torch.uint8), torch.tensor([1, 3])
    others, other_labels = torch.randint(0, 256, (3, c, 5, 6), dtype=torch.uint8), torch.tensor([2, 0, 1])
    examples = [(images, Conditioning(labels)), (others, Conditioning(other_labels))]
    program, conditions, *_ = capture(model, examples, Categorical())
    for form in (program, simplified(program)):
        operands, expected = condition_operands(form.instructions), model(others, other_labels).detach()
        operand = conditions(operands, Conditioning(labels), 2).__getitem__
        assert_identical_up_to_rounding(evaluate(form, images, operand), model(images, labels).detach())
        operand = conditions(operands, Conditioning(other_labels), 3).__getitem__
        assert_identical_up_to_rounding(evaluate(form, others, operand), expected)
    assert len(simplified(program).instructions) < len(program.instructions) / 2


EVEN = torch.arange(6)[:, None, None] % 2 == 0
ONE_TAP = torch.ones(4, 1, 1, dtype=torch.float64)
PER_CHANNEL = torch.linspace(-0.5, 0.5, 6, dtype=torch.float64)[:, None, None]


def down(h):
    return F.pad(h, (0, 0, 1, 0))[:, :, :-1]


def a_copy_changed_in_place(net, h, x):
    last = h.permute(0, 2, 3, 1)
    last = last + 0.5 * last
    copy = last.contiguous()
    copy.mul_(2)
    return (last - 0.3 * copy).permute(0, 3, 1, 2)


BODIES = {
    "activations": lambda net, h, x: torch.tanh(
        F.silu(torch.sigmoid(F.elu(F.leaky_relu(F.relu(h - 0.1), 0.3), 1.5)))
    ),
    "activations spelled out": lambda net, h, x: F.softsign(
        F.mish(F.selu(F.celu(F.hardtanh(h, -0.2, 0.3) * 9, 0.7)))
    ),
    "more activations": lambda net, h, x: (
        F.hardswish(h * 5) - F.logsigmoid(h) * F.hardsigmoid(h * 4) + F.relu6(h * 20)
    ),
    "yet more activations": lambda net, h, x: torch.exp(-abs(h)) + F.tanhshrink(h) + h.clamp(-0.1, 0.1),
    "clamped in place": lambda net, h, x: net.middle(h).clamp_(min=-0.1).clamp_max_(0.1),
    "larger and smaller": lambda net, h, x: torch.maximum(h, net.middle(h)) - torch.minimum(h, net.middle(h)),
    "smaller than a number": lambda net, h, x: torch.minimum(h, torch.tensor(-0.05)) * h,
    "variances": lambda net, h, x: (
        h.var(1, correction=2, keepdim=True) + h * h.std(1, correction=0, keepdim=True)
    ),
    "summed up along the last axis": lambda net, h, x: h.permute(0, 2, 3, 1).cumsum(-1).permute(0, 3, 1, 2),
    "powers of numbers": lambda net, h, x: 0.5**h - 2**h,
    "a fused block": lambda net, h, x: masked_conv_block(
        h,
        net.middle.weight,
        net.middle.bias,
        net.middle.mask,
        scale=1 - PER_CHANNEL.flatten(),
        shift=PER_CHANNEL.flatten(),
        residual=h,
        activation="elu",
        alpha=0.3,
        padding=1,
    ),
    "random numbers of a seed of its own": lambda net, h, x: (
        torch.manual_seed(0),
        h * torch.empty(6, 1, 1, dtype=h.dtype).uniform_(1, 2),
    )[1],
    "larger than constants": lambda net, h, x: (
        net.middle(torch.maximum(torch.zeros_like(h), h[:, :1]))
        + torch.maximum(h[:, :1], PER_CHANNEL)
        + torch.maximum(h.permute(0, 2, 3, 1), PER_CHANNEL.flatten()).permute(0, 3, 1, 2)
    ),
    "clamped between tensors": lambda net, h, x: h.clamp(-net.middle(h).abs(), torch.tensor(0.1).to(h)).clip(
        max=torch.linspace(-0.1, 0.1, 12).view(SHAPE[1:]).to(h)
    ),
    "a constant clamped": lambda net, h, x: PER_CHANNEL.expand_as(h).clamp(max=h),
    "clamped where zeros were moved in": lambda net, h, x: (
        down(h).clamp(min=0.15) + down(h).clamp(max=-0.1) + down(h).clamp_(-0.2, 0.3)
    ),
    "exp and log": lambda net, h, x: h.exp() + (h * h + 0.1).log(),
    "layers stacked and summed": lambda net, h, x: torch.stack([h, net.middle(h), h * 2]).sum(0),
    "layers stacked last": lambda net, h, x: torch.stack([h, net.middle(h)], -1).mean(-1),
    "chosen by channel": lambda net, h, x: torch.where(EVEN, h, net.middle(h)).masked_fill(~EVEN, 0.3),
    "chosen by a method": lambda net, h, x: (
        h.where(EVEN, 0.5) + net.conv_in.bias[:, None, None].where(~EVEN, h)
    ),
    "shifted beside itself": lambda net, h, x: torch.cat([h, down(h)], 1).sigmoid()[:, 3:9] + h,
    "shifted beside itself, normed": lambda net, h, x: (
        lambda both: F.batch_norm(both, torch.arange(12.0).to(h), torch.arange(1.0, 13).to(h))[:, 3:9] * h
    )(torch.cat([h, down(h)], 1)),
    "stacked and shifted": lambda net, h, x: (
        torch.stack([h, down(h)]).sum(0) - torch.stack([h, down(h)], 1).mean(1)
    ),
    "viewed, after another memory layout": lambda net, h, x: (
        F.linear(h.permute(0, 2, 3, 1), net.conv_out.weight[:6, :, 0, 0])
        .view(h.shape[0], -1)
        .view(h.shape[0], *h.shape[2:], 6)
        .permute(0, 3, 1, 2)
    ),
    "a copy changed in place": a_copy_changed_in_place,
    "RMS norm": lambda net, h, x: F.rms_norm(h.permute(0, 2, 3, 1), (6,)).permute(0, 3, 1, 2),
    "lerp": lambda net, h, x: torch.lerp(h, net.middle(h), 0.3) + torch.addcmul(h, h, h, value=0.2),
    "in place": lambda net, h, x: F.relu(net.middle(h).add_(1).mul_(2), inplace=True),
    "residual added twice": lambda net, h, x: (net.middle(h) + h) + h,
    "product of two layers": lambda net, h, x: net.middle(h) * torch.sigmoid(net.middle(h)),
    "difference of two layers": lambda net, h, x: net.middle(h) - net.middle(F.relu(h)),
    "sum of two linear layers": lambda net, h, x: torch.add(net.middle(h), net.middle(h * 2), alpha=0.5),
    "constants per channel": lambda net, h, x: h * torch.arange(6.0, dtype=h.dtype)[:, None, None] + 1 / 3,
    "batch norm twice": lambda net, h, x: net.norm(F.relu(net.norm(net.middle(h)))),
    "reversed arithmetic": lambda net, h, x: torch.rsub(-(2 - 3 * h) / 4, net.middle(h), alpha=0.5),
    "slopes between bounds": lambda net, h, x: F.rrelu(h, 0.2, 0.6),
    "a branch": lambda net, h, x: net.middle(h) if x.mean() < 10 and x.shape[1] == 1 else h,
    "unread work": lambda net, h, x: (x.sum(), h.mean(), h.flatten(), h)[3],
    "filled by column": lambda net, h, x: h.masked_fill(torch.arange(4) > 1, 0.3),
    "changed through another name": lambda net, h, x: (h.detach().clamp_(max=0.0), h)[1],
    "no-ops": lambda net, h, x: F.dropout(h.contiguous().clone(), training=net.training).to(h.dtype),
    "a constant that is NaN in part": lambda net, h, x: (
        h + torch.tensor([0.1, math.nan, 0.3]).nan_to_num(0.2).repeat(2)[:, None, None]
    ),
    "a constant that is NaN everywhere": lambda net, h, x: (
        h + torch.full((6, 1, 1), math.nan).nan_to_num(0.2)
    ),
    "no body": lambda net, h, x: h,
}


@pytest.mark.parametrize("name", BODIES)
def test_what_is_followed(name):
    assert_runtimes_agree(Sampler(Net(BODIES[name]).double(), SHAPE))


MASKED = torch.arange(8)[:, None, None] % 2 == 0
WITH_MASKED_LEVELS = {
    "maximum": lambda x: torch.maximum(x.masked_fill(MASKED, -1e9), x.flip(1)),
    "minimum": lambda x: torch.minimum(x.masked_fill(MASKED, 1e9), x.flip(1)),
    "clamp": lambda x: x.masked_fill(MASKED, -1e9).clamp(min=-5.3),
    "clamp by a map": lambda x: x.masked_fill(MASKED, -1e9).clamp(min=x.flip(1)),
    "hardtanh": lambda x: F.hardtanh(x.masked_fill(MASKED, 1e9), -5.3, 5.3),
}


@pytest.mark.parametrize("runtime", ["eager", pytest.param("cpu", marks=needs_native)])
@pytest.mark.parametrize("name", WITH_MASKED_LEVELS)
def test_logits_beside_masked_ones_are_as_exact_as_the_model(name, runtime):
    conv = Masked(1, 8, [*ABOVE, *LEFT])
    model = Written(lambda net, x: WITH_MASKED_LEVELS[name](net.conv(x.to(net.conv.weight.dtype))), conv=conv)
    images = torch.randint(0, 8, (3, *SHAPE))
    found = Sampler(model, SHAPE, levels=8).logits(images, runtime=runtime)
    plain, exact = (m(images).detach().movedim(1, -1)[:, None] for m in (model, deepcopy(model).double()))
    assert_right(found, plain, exact)


def first_doubled(x, start):
    x[0, start:] *= 2
    return x


REFUSED = {
    "mean over space": (
        lambda net, h, x: h - h.mean((2, 3), keepdim=True),
        "model: mean: only the channels of a pixel",
    ),
    "pooling": (lambda net, h, x: F.max_pool2d(h, 3, 1, 1), "max_pool2d"),
    "batch statistics": (lambda net, h, x: F.batch_norm(h, None, None, training=True), "statistics"),
    "a stride within pixels": (
        lambda net, h, x: F.conv_transpose2d(h, net.middle.weight, stride=2)[:, :, :4, :3],
        "conv_transpose2d: it computes more pixels than the image has",
    ),
    "weights from the image": (
        lambda net, h, x: F.conv2d(h, net.middle.weight * h.mean(), padding=1),
        "conv2d|mean",
    ),
    "chosen by the image": (lambda net, h, x: torch.where(h > 0, h, h * 2), "gt"),
    "rounding": (lambda net, h, x: h.long().to(h.dtype), "round"),
    "a sparse tensor": (lambda net, h, x: h.to_sparse().to_dense(), "layout torch.sparse_coo; only dense"),
    "nested tensors": (
        lambda net, h, x: torch.nested.nested_tensor(list(h)).to_padded_tensor(0.0),
        "is nested; only dense",
    ),
    "written elsewhere": (
        lambda net, h, x: torch.mul(h, 2, out=torch.empty_like(h)),
        "mul: out= is not supported",
    ),
    "written into nothing": (
        lambda net, h, x: torch.mul(h, 2, out=torch.empty(0, dtype=h.dtype)),
        "mul: out= is not supported",
    ),
    "the cells of an LSTM": (
        lambda net, h, x: (
            h * torch.ops.pixelcnn_fast.row_lstm(h[:, :4], ONE_TAP, None, None, True, "auto")[1][:, :1]
        ),
        "row_lstm: only the first of its results is followed",
    ),
    "several maps changed at once": (
        lambda net, h, x: (torch._foreach_mul_([h], 2.0), h)[1],
        "model: _?foreach_mul: it writes into tensors that it does not return",
    ),
    "control flow of tensors": (
        lambda net, h, x: torch.cond(torch.tensor(True), torch.sin, torch.cos, (h,)),
        "compiles a part of itself when it is called, as torch.cond|model: cond: it takes functions",
    ),
    "a loop over the images": (
        lambda net, h, x: torch.stack([image * 2 for image in h]),
        "loop over the images",
    ),
    "dropout": (lambda net, h, x: F.dropout(h, 0.5), "training=self.training"),
    "a conjugate": (
        lambda net, h, x: h * (torch.complex(PER_CHANNEL, PER_CHANNEL).conj() * 1j).real,
        "the conjugate of complex numbers",
    ),
    "many groups of features": (
        lambda net, h, x: F.layer_norm(h.repeat(1, 43, 1, 1)[..., None], (1,))[:, :6, ..., 0],
        "layer_norm: it works on 258 groups of features of a pixel",
    ),
    "added where indices repeat": (
        lambda net, h, x: (
            h.permute(1, 0, 2, 3)
            .index_put((torch.tensor([0, 0]),), h.permute(1, 0, 2, 3)[:2], accumulate=True)
            .permute(1, 0, 2, 3)
        ),
        "index_put: it adds to what is there: add a map instead",
    ),
    "numbered images": (
        lambda net, h, x: h * torch.arange(len(x)).to(h)[:, None, None, None],
        "mul: a constant differs from image to image",
    ),
    "a constant of the first image": (
        lambda net, h, x: (
            h + first_doubled(torch.cat([h, torch.ones_like(h)], 1), h.shape[1])[:, h.shape[1] :]
        ),
        "add: a constant differs from image to image",
    ),
    "attention of rows": (
        lambda net, h, x: F.scaled_dot_product_attention(h, h, h, is_causal=True),
        "matmul: two maps are multiplied.*across pixels, attention is",
    ),
}


def flipped(net, h, x):
    return h.flip(1) * h


def cropped(net, h, x):
    return h[:, :, 1:-1, 1:-1]


@pytest.mark.parametrize(("last", "padding"), [(flipped, 0), (cropped, 1)])
def test_a_thousand_steps_may_follow_one_another(last, padding):
    def body(net, h, x):
        h = F.conv2d(h, net.middle.weight[:, :, 1:2, 1:2], padding=padding)
        for _ in range(1000):
            h = F.leaky_relu(h, 0.99)
        return last(net, h, x)

    examples = [(torch.zeros(n, 1, 3, 2, dtype=torch.uint8), Conditioning()) for n in (2, 3)]
    levels = torch.arange(256, dtype=torch.float64)
    assert len(capture(Net(body).double(), examples, Categorical(), levels).program.instructions) > 1000


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_what_and_where(name):
    body, message = REFUSED[name]
    with pytest.raises(Unsupported, match=message):
        Sampler(Net(body).double(), SHAPE)


@pytest.mark.parametrize(
    ("arithmetic", "levels"),
    [(lambda x: x * 2, 200), (lambda x: -x, 3), (lambda x: x.to(torch.int8), 200), (lambda x: x.bool(), 3)],
)
def test_small_integers_wrap_around_as_in_the_model(arithmetic, levels):
    conv = Masked(1, levels, [*ABOVE, *LEFT])
    model = Written(lambda net, x: net.conv(arithmetic(x).double() / 16), conv=conv)
    assert_runtimes_agree(Sampler(model.double(), (1, 2, 3), levels=levels), 9)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_wide_integers_of_several_pixels_are_followed(dtype):
    """They don't wrap around, as smaller ones may, so they are added up like real numbers."""

    def summed(net, images):
        rows = [F.pad(images, (0, 0, n, 0))[:, :, :-n].to(dtype) for n in (1, 2)]
        return net.conv((3 * rows[0] + rows[1]).to(net.conv.weight.dtype) / 8)

    model = Written(summed, conv=nn.Conv2d(1, 8, 1), levels=8).double()
    assert_runtimes_agree(Sampler(model, (1, 4, 3), runtime="eager"), 9, runtimes=["eager"])


def test_a_refusal_names_the_module():
    net = Net(lambda net, h, x: net.pool(h))
    net.pool = nn.MaxPool2d(3, 1, 1)
    with pytest.raises(Unsupported, match=r"pool: .*max_pool2d"):
        Sampler(net, SHAPE)


def test_a_refusal_names_no_module_whose_forward_has_raised():
    class Optional(nn.Module):
        def forward(self, h):
            raise ValueError

    def body(net, h, x):
        with suppress(ValueError):
            return net.optional(h)
        return F.max_pool2d(h, 3, 1, 1)

    net = Net(body)
    net.optional = Optional()
    with pytest.raises(Unsupported, match=r"model: model: max_pool2d"):
        Sampler(net, SHAPE)


def test_levels_first_in_the_channels_are_followed():
    """[N, L * C, H, W] with the level as the slower index, brought into [N, C, H, W, L]."""

    def levels_first(net, x):
        n, c, height, width = x.shape
        return 4 * net.conv(x.double() / 255).view(n, 256, c, height, width).permute(0, 2, 3, 4, 1)

    assert_runtimes_agree(
        Sampler(Written(levels_first, conv=MaskedConv2d(2, 512, 3, "A")).double(), (2, 4, 4))
    )


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        ([*ABOVE, *LEFT, *HERE], r"conv_in: kernel tap \(\+0, \+0\) has weight .* sees its own pixel"),
        ([*ABOVE, *LEFT, (0, 1)], r"conv_in: kernel tap \(\+0, \+1\) has weight .* sees a later pixel"),
        ([*ABOVE, *LEFT, (1, -1)], r"conv_in: kernel tap \(\+1, -1\) has weight .* sees a later pixel"),
    ],
)
def test_leaking_masks_are_refused_naming_layer_and_tap(taps, message):
    with pytest.raises(NotCausal, match=message):
        Sampler(Net(taps=taps), SHAPE)


def test_a_leak_in_a_later_layer_is_refused():
    net = Net(lambda net, h, x: net.middle(h))
    net.middle.mask[0, 0, 1, 2] = 1
    with pytest.raises(NotCausal, match=r"middle: kernel tap \(\+0, \+1\)"):
        Sampler(net, SHAPE)
    net.middle.weight.data[0, 0, 1, 2] = 0  # a live mask over a weight of zero leaks nothing
    Sampler(net, SHAPE)


def test_a_skip_around_the_first_mask_is_refused():
    with pytest.raises(NotCausal, match="own"):
        Sampler(Net(lambda net, h, x: h + F.conv2d(x, torch.ones(6, 1, 1, 1))), SHAPE)


# In what PyTorch leaves out where it is 1, too.
COUNTING = {
    "mul": lambda h, calls: h * calls,
    "add": lambda h, calls: torch.add(h, h, alpha=1 + calls % 2),
    "elu": lambda h, calls: F.elu(h, 2 - calls % 2),
}


@pytest.mark.parametrize("name", COUNTING)
def test_a_model_that_computes_something_else_the_next_time_is_an_error(name):
    calls = []

    def body(net, h, x):
        calls.append(h)
        return COUNTING[name](h, len(calls))

    with pytest.raises(Unsupported, match=rf"{name}.*was given [\d.]+ and [\d.]+.*from call to call"):
        Sampler(Net(body), SHAPE)


@pytest.mark.parametrize("is_longer", [lambda calls: calls % 2, lambda calls: calls % 2 == 0])
def test_a_model_that_goes_on_in_some_calls_alone_is_an_error(is_longer):
    calls = count()

    class Longer(Net):
        def forward(self, images):
            logits = super().forward(images)
            return -logits if is_longer(next(calls)) else logits

    with pytest.raises(Unsupported, match="only one of them called aten::neg"):
        Sampler(Longer(), SHAPE)


def test_a_model_whose_constants_are_drawn_by_others_is_an_error():
    drawn = np.random.default_rng(0)
    with pytest.raises(Unsupported, match="random numbers, or constants that were made outside of PyTorch"):
        Sampler(Net(lambda net, h, x: h * torch.from_numpy(drawn.random((6, 1, 1)))).double(), SHAPE)


def test_a_model_that_calls_another_module_the_next_time_is_an_error():
    calls = []

    def body(net, h, x):
        calls.append(h)
        return (net.middle, net.other)[len(calls) % 2](h)

    net = Net(body)
    net.other = deepcopy(net.middle)
    with pytest.raises(Unsupported, match="mul.* was called in (middle and in other|other and in middle)"):
        Sampler(net, SHAPE)


def test_numpy_on_features_is_refused():
    net = Net(lambda net, h, x: (h, h.detach().numpy().__imul__(2))[0])
    with pytest.raises(CaptureMismatch, match=r"model: numpy\(\) reads a number off the image"):
        Sampler(net, SHAPE)


def test_a_model_that_compiles_a_part_of_itself_is_told_what_to_do() -> None:
    """As some versions of PyTorch let ``torch.cond`` do."""
    refused = type("Unsupported", (RuntimeError,), {"__module__": "torch._dynamo.exc"})

    class Compiling(Masked):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise refused("no")

    with pytest.raises(Unsupported, match="compiles a part of itself .* call the functions themselves"):
        Sampler(Compiling(1, 4, [*ABOVE, *LEFT]), (1, 3, 4), levels=4)
