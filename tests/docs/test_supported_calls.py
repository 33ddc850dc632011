"""docs/supported_calls.md agrees with capture: what it lists is sampled, or refused with advice; nothing is missing."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import supported_calls as calls
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pixelcnn_fast import Sampler, Unsupported, heads
from pixelcnn_fast.capture.lower import advice
from pixelcnn_fast.capture.lower.calls import registry
from pixelcnn_fast.capture.record.recorder import IMAGE, Recorder
from pixelcnn_fast.nn import MaskedConv2d
from pixelcnn_fast.program.calls import plain_name

SHAPE = (1, 5, 5)
EXAMPLES = {
    name: (group, example)
    for group, rows in calls.GROUPS.items()
    for row in rows
    for name, example in row.examples.items()
}
Call = Callable[[Tensor], Tensor]


def same(x: Tensor) -> Tensor:
    return x


class Around(nn.Module):
    """A causal model of one channel and three levels, with a call on levels [N, 1, 5, 5] at its start, on features
    [N, 4, 5, 5] in its middle, or on logits [N, 3, 5, 5] at its end."""

    def __init__(self, middle: Call = same, *, start: Call = same, end: Call = same) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = MaskedConv2d(1, 4, 3, mask_type="A")
        self.last = nn.Conv2d(4, 3, 1)
        self.start, self.middle, self.end = start, middle, end
        self.double()

    def forward(self, images: Tensor) -> Tensor:
        return self.end(self.last(self.middle(self.first(self.start(images).double()))))


def around(group: str, example: Call) -> Around:
    place = {"levels": "start", "ends": "end"}.get(group, "middle")
    return Around(**{place: example})


def sampler(model: Around) -> Sampler:
    logits = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    gives_shares = torch.allclose(model.end(logits).sum(1), torch.ones_like(logits[:, 0]))
    head = heads.Categorical(3, probabilities=True) if gives_shares else None
    return Sampler(model, SHAPE, levels=3, head=head)


def assert_sampled(model: Around) -> None:
    u = torch.rand(2, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    built = sampler(model)
    images = built.sample(2, noise=u, runtime="eager")
    assert torch.equal(images, built.sample(2, noise=u, runtime="reference"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_listed_call_draws_what_the_model_draws(name: str) -> None:
    assert_sampled(around(*EXAMPLES[name]))


class Names(TorchFunctionMode):
    """Collects the names of the Python functions that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.found.add(func.__name__.removesuffix(".default"))
        return func(*args, **(kwargs or {}))


NAMES = {
    "conv1d(columns)": "conv1d",
    "matmul(pixels)": "matmul",
    "pad(circular)": "pad",
    "cat([row, x[:, :, :-1]], 2)": "cat",
    "unfold(x, 3).view(N * C, 9, -1) * masks": "unfold",
    "cat([x + label, x])": "cat",
    "x.squeeze()": "squeeze",
    "kept(len(x))": "add",
    "softmax(features)": "softmax",
    "log_softmax(features)": "log_softmax",
    **dict.fromkeys(("x[…]", "weight[levels]", "x[:, :, 1::2, 1::2]"), "__getitem__"),
    "x.view(n, c, h, 2, w, 2).mean((3, 5))": "mean",
    "x.view(n, c, h, 2, w, 2).amax((3, 5))": "amax",
    **dict.fromkeys(("x.T", "x.mT", "x.data"), "__get__"),
    "x[…] = y": "__setitem__",
    "x.data = y": "__set__",
    "x.unfold": "unfold",
    "logsigmoid": "log_sigmoid",
    "vector_norm": "linalg_vector_norm",
    "vecdot": "linalg_vecdot",
    "weight.index_select": "index_select",
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_makes_its_call(name: str) -> None:
    with torch.no_grad(), Names() as names:
        around(*EXAMPLES[name])(torch.zeros(2, *SHAPE, dtype=torch.uint8))
    assert NAMES.get(name, name) in names.found


def test_every_call_is_listed_once() -> None:
    """Calls that are refused on features may be supported on levels."""
    refused = [name for refused in advice.REFUSED for name in refused.names]
    listed = [(group, name) for group, rows in calls.GROUPS.items() for row in rows for name in row.examples]
    on_features = [name for group, name in listed if group != "levels"]
    for names in ([name for _, name in listed], [*on_features, *refused]):
        assert [name for name, count in Counter(names).items() if count > 1] == []


def recorded(model: nn.Module) -> set[str]:
    """The names of the calls that capture sees."""
    images = torch.zeros(2, *SHAPE, dtype=torch.uint8)
    recorder = Recorder(len(images))
    recorder.input(images, IMAGE)
    with torch.no_grad(), recorder:
        model(images)
    return {plain_name(call.name) for call in recorder.recording.calls}


# What calls on the page become on other devices, or in other versions of PyTorch.
ELSEWHERE = {"linear", "cudnn_batch_norm", "_native_batch_norm_legit_no_training", "_batch_norm_no_update"}


def test_every_call_in_the_code_has_an_example() -> None:
    known = {*registry.LOWERINGS, *registry.MOVEMENTS, *registry.FRESH}
    reached = set().union(*(recorded(around(*example)) for example in EXAMPLES.values()))
    assert known - reached - ELSEWHERE == set(), (
        "put a call that becomes this into a group in docs/supported_calls.py"
    )


def test_a_new_call_in_the_code_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.LOWERINGS, "erfinv", lambda *_: None)
    with pytest.raises(AssertionError, match="erfinv"):
        test_every_call_in_the_code_has_an_example()


# -- what is refused

KERNEL = torch.ones(4, 4, 3, 3, dtype=torch.float64)


def masked(call: Call) -> Call:
    return lambda x: x * call(x)


def with_itself(names: str) -> dict[str, Call]:
    def example(call: Callable[[Tensor, Tensor], Tensor]) -> Call:
        return lambda x: call(x, x)

    return {name: example(getattr(torch, name)) for name in names.split()}


# An example of each refused call, on features.
REFUSED: dict[str, Call] = {
    "max_pool2d": lambda x: F.max_pool2d(x, 3, 1, 1),
    "adaptive_avg_pool2d": lambda x: F.pad(F.adaptive_avg_pool2d(x, 3), (1, 1, 1, 1)),
    "adaptive_max_pool2d": lambda x: F.pad(F.adaptive_max_pool2d(x, 3), (1, 1, 1, 1)),
    "interpolate(x,mode='bilinear')": lambda x: F.interpolate(
        F.avg_pool2d(F.pad(x, (1, 0, 1, 0)), 2), scale_factor=2, mode="bilinear"
    )[:, :, :5, :5],
    "grid_sample": lambda x: F.grid_sample(
        x, torch.zeros(len(x), 5, 5, 2, dtype=x.dtype), align_corners=True
    ),
    "conv3d": lambda x: F.conv3d(x[:, :, None], KERNEL[:, :, :1, :1, None])[:, :, 0],
    "group_norm(x,groups)": lambda x: F.group_norm(x, 2),
    "instance_norm": lambda x: F.instance_norm(x),
    "batch_norm(x,training=True)": lambda x: F.batch_norm(x, None, None, training=True),
    "layer_norm(x,(C,H,W))": lambda x: F.layer_norm(x, (4, 5, 5)),
    "mean(x,(2,3))": lambda x: x - x.mean((2, 3), keepdim=True),
    "sum(x,(2,3))": lambda x: x - x.sum(),
    "local_response_norm": lambda x: F.local_response_norm(x, 2),
    "matmul(x,y)": lambda x: x @ x,
    "bilinear": calls.channels_last(lambda x: F.bilinear(x, x, KERNEL[:, :, 0, :1].expand(4, 4, 4))),
    "cdist": lambda x: torch.cdist(x, x),
    "dot": lambda x: x * torch.dot(x.flatten(), x.flatten()),
    "argmax": lambda x: x.argmax(1, keepdim=True) + x,
    "argmin": lambda x: x.argmin(1, keepdim=True) + x,
    "median": lambda x: x.median(1, keepdim=True).values + x,
    "sort": lambda x: x.sort(1).values,
    "topk": lambda x: x.topk(1, 1).values + x,
    "cummax": lambda x: x.cummax(1).values,
    **calls.named(torch, "logcumsumexp cumprod", 1),
    **calls.named(torch, "gt ge lt le eq ne logical_and logical_or", KERNEL[0, 0, 0, 0], around=masked),
    **calls.named(torch, "logical_not isnan isfinite", around=masked),
    **calls.named(torch, "round floor ceil trunc frac sign"),
    **with_itself("heaviside atan2 logaddexp hypot fmax fmin"),
    **calls.named(torch, "floor_divide remainder fmod", 2),
    "div(x,rounding_mode='floor')": lambda x: x.div(2, rounding_mode="floor"),
    **calls.named(torch, "sin cos tan sinh cosh atan log1p expm1 log2 log10"),
    "pow(x,y)": lambda x: x**x,
    "threshold": lambda x: F.threshold(x, 0.1, 0.0),
    "hardshrink": F.hardshrink,
    "nan_to_num": torch.nan_to_num,
    "copysign": lambda x: x.copysign(1.0),
    "mse_loss": lambda x: F.mse_loss(x, 2 * x) + x,
    "cross_entropy": lambda x: F.cross_entropy(x, torch.zeros(len(x), 5, 5, dtype=torch.long)) + x,
    "rrelu(x,training=True)": lambda x: F.rrelu(x, training=True),
    "bernoulli": lambda x: torch.bernoulli(x.sigmoid()) * x,
    "rand_like": lambda x: torch.rand_like(x) + x,
    "randn_like": lambda x: torch.randn_like(x) + x,
    "randint_like": lambda x: torch.randint_like(x, 3) + x,
    "multinomial": lambda x: x.flatten(1).softmax(1).multinomial(1)[:, :, None, None] + x,
    "index_add": lambda x: x.index_add(1, calls.FIRST, x[:, :2]),
    "index_reduce": lambda x: x.index_reduce(1, calls.FIRST, x[:, :2], "amax"),
    "masked_scatter": lambda x: x.masked_scatter(calls.EVEN, x),
    "bucketize": lambda x: torch.bucketize(x, calls.VECTOR) + x,
    "searchsorted": lambda x: torch.searchsorted(calls.VECTOR, x) + x,
    "isin": lambda x: torch.isin(x, calls.VECTOR) + x,
    "count_nonzero": lambda x: x.count_nonzero() + x,
    "any": lambda x: x.any() + x,
    "all": lambda x: x.all() + x,
    "pad(reflect)": lambda x: F.pad(x, (0, 0, 1, 0), mode="reflect")[:, :, :-1],
    "pad(replicate)": lambda x: F.pad(x, (0, 0, 1, 0), mode="replicate")[:, :, :-1],
    "fold": lambda x: F.fold(F.unfold(x, 1), (5, 5), 1),
    "complex": lambda x: torch.complex(x, x).real,
    "fft": lambda x: torch.fft.fft(x).real,
    "to(x,half)": lambda x: x.half().double(),
}
# And of those that take levels [N, 1, 5, 5] for indices.
REFUSED_ON_LEVELS: dict[str, Call] = {
    "embedding(max_norm=1)": calls.of_codes(lambda x: F.embedding(x, calls.WEIGHT.clone(), max_norm=1.0)),
    "embedding_bag": lambda x: F.embedding_bag(x.flatten(1).long(), calls.MATRIX)[:, :1, None, None].expand(
        x.shape
    ),
    "gather(x,1,y)": lambda x: calls.VECTOR.expand(len(x), 4).gather(1, x.flatten(1).long()).view(x.shape),
    "take(x,y)": lambda x: calls.VECTOR.take(x.long()),
    "scatter(x,1,y,z)": lambda x: torch.zeros(len(x), 3, 5, 5).scatter(1, x.long(), x.float())[:, :1],
    "scatter_add": lambda x: torch.zeros(len(x), 3, 5, 5).scatter_add(1, x.long(), x.float())[:, :1],
    "index_put(x,y,z)": lambda x: x.double().index_put((x > 1,), torch.zeros((), dtype=torch.float64)),
}
EVERY_REFUSED = [(name, refused.instead) for refused in advice.REFUSED for name in refused.names]


@pytest.mark.parametrize("name, instead", EVERY_REFUSED)
def test_a_refused_call_says_what_to_do_instead(name: str, instead: str) -> None:
    model = Around(start=REFUSED_ON_LEVELS[name]) if name in REFUSED_ON_LEVELS else Around(REFUSED[name])
    model(torch.zeros(2, *SHAPE, dtype=torch.uint8))
    with pytest.raises(Unsupported) as refusal:
        sampler(model)
    assert instead.removesuffix(".").replace("`", "") in str(refusal.value)


def test_every_example_of_a_refused_call_is_listed() -> None:
    assert {*REFUSED, *REFUSED_ON_LEVELS} == {name for name, _ in EVERY_REFUSED}


def test_any_other_call_is_refused_with_the_page() -> None:
    with pytest.raises(Unsupported, match=r"model: renorm: .*docs/supported_calls\.md"):
        sampler(Around(lambda x: x.renorm(2, 1, 1.0)))


# -- limits

POSITION = torch.arange(5)
GROUPED = calls.MATRIX.view(4, 2, 2)[:2]


# For a row whose limits the page states, a use beyond them, with a word of the refusal's reason.
BEYOND_LIMITS: dict[str, tuple[Call, str]] = {
    "conv2d": (
        lambda x: F.conv_transpose2d(x, KERNEL, stride=2, padding=1)[..., :5, :5],
        "more pixels than the image",
    ),
    "conv1d": (lambda x: F.conv1d(x.flatten(2), KERNEL[..., :1, 0]).view(x.shape), "one row or one column"),
    "pad(circular)": (lambda x: F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), KERNEL), "rearrangement"),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), "fewer pixels"),
    "linear": (lambda x: F.linear(x, torch.ones(6, 5).double())[..., :5], "makes 6 pixels of 5"),
    "matmul": (lambda x: x @ x, "features of one pixel"),
    "matmul(pixels)": (
        lambda x: (x.flatten(2) @ torch.ones(25, 27).double())[..., :25].view(x.shape),
        "makes 27 features of all 5×5 pixels",
    ),
    "scaled_dot_product_attention": (
        lambda x: F.scaled_dot_product_attention(x, x, x),
        "features of one pixel",
    ),
    "unfold": (lambda x: F.unfold(x, 3, stride=2)[:, :4, :1, None] + x, "pixels"),
    "batch_norm": (REFUSED["batch_norm(x,training=True)"], "eval"),
    "layer_norm": (REFUSED["layer_norm(x,(C,H,W))"], "pixels lie along"),
    "normalize": (lambda x: F.normalize(x, dim=2), "pixels lie along"),
    "dropout": (lambda x: F.dropout(x, 0.5, training=True), "bernoulli: .*self.training"),
    "softplus": (lambda x: F.softplus(x, threshold=10), "threshold"),
    "rrelu": (REFUSED["rrelu(x,training=True)"], "random"),
    "div": (REFUSED["div(x,rounding_mode='floor')"], "rounding_mode"),
    "pow": (lambda x: x**x, "exponent"),
    "mean": (lambda x: x - x.mean(), "pixels"),
    "norm": (lambda x: x + x.norm(3, dim=1, keepdim=True), "order 3"),
    "amax": (lambda x: x.repeat(1, 17, 1, 1).amax(1, keepdim=True) + x, "68 elements"),
    "cumsum": (lambda x: x.flatten(1).cumsum(1).view(x.shape), "rearrangement of pixels|another feature"),
    "roll": (lambda x: x.flip(2), "rearrangement"),
    "flip": (lambda x: x.flip(3), "rearrangement"),
    "where": (lambda x: torch.where(x > 0, x, 0.5), "gt: .*not a function of one level"),
    "to": (lambda x: x.float().double(), "rounds"),
    "softmax": (lambda x: x.repeat(1, 17, 1, 1).softmax(1)[:, :4], "up to 64 channels"),
}
BEYOND_LIMITS_ON_LEVELS: dict[str, tuple[Call, str]] = {
    "gather": (REFUSED_ON_LEVELS["gather(x,1,y)"], "gather"),
    "scatter": (REFUSED_ON_LEVELS["scatter(x,1,y,z)"], "scatter: .*depends on the image"),
    "one_hot": (calls.of_codes(lambda x: F.one_hot(x)[..., :1]), "two examples"),
    "long": (lambda x: (x / 2).long(), "levels become alike"),
}
# And a use within them, where it is another than the row's example.
WITHIN_LIMITS: dict[str, Call] = {
    "conv2d": lambda x: F.conv2d(x, calls.ABOVE[:, :2], padding=2, groups=2)[:, :, 1:-1, 1:-1],
    "linear": lambda x: F.linear(x.flatten(2).permute(2, 0, 1), calls.MATRIX).permute(1, 2, 0).view(x.shape),
    "einsum": lambda x: torch.einsum("ngchw,gco->ngohw", x.view(-1, 2, 2, 5, 5), GROUPED).flatten(1, 2),
    "group_norm": calls.by_pixel(lambda x: F.group_norm(x[..., None, None], 2, calls.VECTOR, calls.VECTOR)),
    "softplus": lambda x: F.softplus(x, 2.0),
    "mean": lambda x: x - x.view(-1, 2, 2, 5, 5).mean((1, 2))[:, None],
    "roll": lambda x: F.pad(x.roll(1, 2)[:, :, 1:], (0, 0, 1, 0)),
    "flip": lambda x: x.flip(3).flip(3),
    "masked_fill": lambda x: x.masked_fill(POSITION[:, None] % 2 == POSITION % 2, -1e9),
    "rand_like": lambda x: x if torch.rand_like(x).min() >= 0 else -x,
    "coordinates": lambda x: torch.cat([x[:, :3], torch.linspace(-1, 1, 5).expand(len(x), 1, 5, 5)], 1),
    "an if that falls alike": lambda x: -x if x.abs().max() < 1e9 else x,
}


def test_every_limit_has_a_use_beyond_it() -> None:
    limited = [set(row.examples) for rows in calls.GROUPS.values() for row in rows if row.limits]
    unlimited = {"cat", "pad", "zeros_like", "round"}  # whose rows say what else there is
    assert [row for row in limited if not row & {*BEYOND_LIMITS, *BEYOND_LIMITS_ON_LEVELS, *unlimited}] == []


@pytest.mark.parametrize("name", [*BEYOND_LIMITS, *BEYOND_LIMITS_ON_LEVELS])
def test_a_stated_limit_is_a_limit(name: str) -> None:
    on_levels = name in BEYOND_LIMITS_ON_LEVELS
    call, reason = (BEYOND_LIMITS_ON_LEVELS if on_levels else BEYOND_LIMITS)[name]
    with pytest.raises(Unsupported, match=reason):
        sampler(Around(start=call) if on_levels else Around(call))


@pytest.mark.parametrize("name", WITHIN_LIMITS)
def test_what_keeps_to_the_limits_draws_what_the_model_draws(name: str) -> None:
    assert_sampled(Around(WITHIN_LIMITS[name]))


ENDS: dict[str, Call] = {
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: x.log_softmax(1),
    "log": lambda x: x.softmax(1).log(),
    "exp": lambda x: x.log_softmax(1).exp(),
    "softmin": lambda x: F.softmin(x, 1),
}


@pytest.mark.parametrize("name", ENDS)
def test_an_end_over_the_levels_is_supported_and_another_is_not(name: str) -> None:
    end = ENDS[name]
    assert_sampled(Around(end=end))
    with pytest.raises(Unsupported, match="not over the levels|last call"):
        sampler(Around(end=lambda x: end(x.movedim(1, 2)).movedim(2, 1)))
    assert_sampled(Around(end))  # of features


def added_at_indices(x: Tensor) -> None:
    x[:, calls.FIRST] += x[:, 2:]


# What the page advises in place of refused calls.
INSTEAD: dict[str, Call] = {
    "conv1d": lambda x: F.conv2d(F.pad(x, (1, 0)), KERNEL[:, :, :1, :2]),
    "product of two features": lambda x: x + (x * x.exp()).sum(1, keepdim=True),
    "distance": lambda x: x + (x - x.exp()).square().sum(1, keepdim=True).sqrt(),
    "logcumsumexp": lambda x: x + x.exp().cumsum(1).log(),
    "pow": lambda x: (x * (x * x + 1).log()).exp(),
    "log1p": lambda x: (1 + x * x).log(),
    "softmax": lambda x: x.exp() / x.exp().sum(1, keepdim=True),
    "index_add": calls.changed(added_at_indices),
    "threshold": lambda x: F.relu(x),
}
INSTEAD_ON_LEVELS: dict[str, Call] = {
    "bucketize": lambda x: (x[..., None] >= torch.tensor([1, 2])).float().sum(-1),
    "isin": lambda x: (x[..., None] == torch.tensor([1, 2])).float().sum(-1),
    "index_put": lambda x: torch.where(x > 1, 0.0, x.double()),
}


@pytest.mark.parametrize("name", INSTEAD)
def test_what_is_advised_is_supported(name: str) -> None:
    assert_sampled(Around(INSTEAD[name]))


@pytest.mark.parametrize("name", INSTEAD_ON_LEVELS)
def test_what_is_advised_for_levels_is_supported(name: str) -> None:
    assert_sampled(Around(start=INSTEAD_ON_LEVELS[name]))
