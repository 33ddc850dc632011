"""Labels and conditions that decide something, or count for other images: refused, however Python reads them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast import Sampler
from pixelcnn_fast.check.conditioning import MOST_AT_ONCE
from pixelcnn_fast.errors import CaptureMismatch, NonFiniteLogits, Unsupported
from pixelcnn_fast.runtimes import RuntimeName
from tests.needs import RUNTIMES
from tests.system.agreement import assert_runtimes_agree

LEVELS, CLASSES, SHAPE = 4, 10, (1, 4, 5)


class Net(nn.Module):
    """Three rows of features, to which ``body`` does something."""

    def __init__(self, body: Callable[..., Tensor], n_classes: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.n_classes, self.levels, self.body = n_classes, LEVELS, body
        self.above, self.embedding = nn.Conv2d(1, LEVELS, (2, 3)), nn.Embedding(CLASSES, LEVELS)
        self.double()

    def features(self, x: Tensor) -> Tensor:
        return self.above(F.pad(x, (1, 1, 2, 0)))[:, :, :-1]


class OfLabels(Net):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.features(x) + self.body(self.embedding(y), y)[:, :, None, None]


class OfCondition(Net):
    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.features(x) + self.body(condition)[:, :, None, None]


class OfImage(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.features(x), x)


class OfBoth(Net):
    def forward(self, x: Tensor, y: Tensor, condition: Tensor) -> Tensor:
        return self.features(x) + self.body(self.embedding(y), y, condition)[:, :, None, None]


def masked(e: Tensor, y: Tensor) -> Tensor:
    e[y == 7] = e[y == 7] * 5
    return e


def twice_decided(e: Tensor, y: Tensor) -> Tensor:
    """The first branch falls alike for all labels."""
    e = e * 2 if (y < CLASSES).all() else e
    return e * 5 if (y == 7).any() else e


LABELS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "the second of two branches": (twice_decided, "it falls otherwise for label 7"),
    "the mean, beside a mask": (
        lambda e, y: (e - e.mean(0)).masked_fill((y % 2 == 0)[:, None] & (torch.arange(LEVELS) == 0), -1e9),
        "other images of the batch",
    ),
    "any of them": (lambda e, y: e * (1 + 4 * (y == 7).any()), "other images of the batch"),
    "the last of them": (lambda e, y: e * (1 + 4 * (y == CLASSES - 1).any()), "other images of the batch"),
    "the largest": (lambda e, y: e + (y.max() >= 7), "other images of the batch"),
    "int()": (lambda e, y: e * 2 if int(y[0]) == 7 else e, r"Python took int\(\)"),
    "float()": (lambda e, y: e * 2 if float(y[0]) == 7 else e, r"Python took float\(\)"),
    "item()": (lambda e, y: e * 2 if y.max().item() == 7 else e, r"Python took item\(\)"),
    "whether it is zero": (
        lambda e, y: e if (y[0] - 7).is_nonzero() else e * 2,
        "it falls otherwise for label 7",
    ),
    "whether one is zero": (
        lambda e, y: e if torch.is_nonzero(y[0] - 7) else e * 2,
        "it falls otherwise for label 7",
    ),
    "item(), for what is 1 if it is left out": (
        lambda e, y: torch.add(e, e, alpha=5 if y.max().item() == 7 else 1),
        r"Python took item\(\)",
    ),
    "an index": (lambda e, y: (e, e * 2)[(y[0] == 7).long()], "Python took an index"),
    "NumPy": (lambda e, y: e * 2 if (y.numpy() == 7).all() else e, "Python took numpy"),
    "a size": (lambda e, y: e * 2 if len((y == 7).nonzero()) else e, "Python took the size"),
    "a masked part": (masked, "size of its result depends on the labels"),
    "their order": (lambda e, y: e.gather(0, y.argsort()[:, None].expand_as(e)), "other images of the batch"),
    "how many": (lambda e, y: e * (1 + ((y == 7).sum() > 2)), "other images of the batch"),
    "distinct ones": (
        lambda e, y: e[y.unique(return_inverse=True)[1]],
        "size of its result depends on the labels",
    ),
}


@pytest.mark.parametrize("name", LABELS)
def test_what_labels_must_not_do(name: str) -> None:
    body, message = LABELS[name]
    with pytest.raises(Unsupported, match=message):
        Sampler(OfLabels(body, CLASSES), SHAPE, image_form="unit")


def test_labels_and_a_condition_must_not_decide_together() -> None:
    body = lambda e, y, c: e + c if (y[:, None] + c).max() < 1e9 else e  # noqa: E731
    with pytest.raises(
        Unsupported, match="depends on the condition and the labels: .* for another condition"
    ):
        Sampler(OfBoth(body, CLASSES), SHAPE, image_form="unit", condition_shape=(LEVELS,))


def test_a_label_whose_weights_are_nan_does_not_depend_on_other_images() -> None:
    model = OfLabels(lambda e, y: e, CLASSES)
    model.embedding.weight.data[7] = torch.nan
    with pytest.raises(NonFiniteLogits):
        Sampler(model, SHAPE, image_form="unit")


NOTHING = torch.tensor(0)


def changed_after_the_branch(e: Tensor, y: Tensor) -> Tensor:
    are_known = (y < CLASSES).all()
    e = 2 * e if are_known else e
    return e + are_known.logical_not_()


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    "body",
    [
        changed_after_the_branch,
        lambda e, y: e + F.one_hot(y, CLASSES)[:, :LEVELS],
        lambda e, y: e if y.max().item() < CLASSES else 0 * e,
        lambda e, y: torch.where((y == 7)[:, None], 5 * e, e),
        lambda e, y: 2 * e if torch.equal(y.amin().clamp(max=0), NOTHING) else e,
        lambda e, y: 2 * e if (y < CLASSES).sum() else e,  # how many there are does not matter
    ],
)
def test_what_labels_may_do(body: Callable[[Tensor, Tensor], Tensor], runtime: RuntimeName) -> None:
    sampler = Sampler(OfLabels(body, CLASSES), SHAPE, image_form="unit")
    labels, u = torch.arange(CLASSES), torch.rand(CLASSES, *SHAPE, dtype=torch.float64)
    naive = sampler.sample(CLASSES, labels, noise=u, runtime="reference")
    for size in (1, 10):
        found = sampler.sample(CLASSES, labels, noise=u, batch_size=size, runtime=runtime)
        assert torch.equal(found, naive)


@pytest.mark.parametrize(
    "decides", [lambda x, y: x.min() >= 0, lambda x, y: (x.amax((1, 2, 3)) + y).max() < 1e9]
)
def test_the_image_may_decide_beside_labels_if_it_falls_alike(decides):
    class Deciding(OfLabels):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            logits = super().forward(x, y)
            return 2 * logits if decides(x, y) else logits

    sampler = Sampler(Deciding(lambda e, y: e, CLASSES), SHAPE, image_form="unit")
    assert_runtimes_agree(sampler, CLASSES, labels=torch.arange(CLASSES))


MANY = 1000  # labels, more than are tried one by one


def of_many(body: Callable[[Tensor, Tensor], Tensor], n_classes: int | None = MANY) -> OfLabels:
    model = OfLabels(body, n_classes)
    model.embedding = nn.Embedding(MANY, LEVELS).double()
    return model


OF_MANY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a branch": lambda e, y: e * 5 if (y == 778).any() else e,
    "item()": lambda e, y: e * 5 if y[0].item() == 778 else e,
    "NumPy": lambda e, y: e * 5 if (y.numpy() == 778).all() else e,
}


@pytest.mark.parametrize("n_classes", [MANY, None])
@pytest.mark.parametrize("name", OF_MANY)
def test_labels_that_were_not_tried_must_not_decide_either(name: str, n_classes: int | None) -> None:
    """What the model does with them is compared when they are given."""
    model, labels = of_many(OF_MANY[name], n_classes), torch.full((8,), 777)
    sampler = Sampler(model, SHAPE, image_form="unit", conditional=True)
    u = torch.rand(8, *SHAPE, dtype=torch.float64)
    naive = sampler.sample(8, labels, noise=u, runtime="reference")
    assert torch.equal(sampler.sample(8, labels, noise=u), naive)
    message = (
        "does something else than when it was captured. Python took .* of a tensor that depends on the labels"
    )
    if name == "a branch":
        message = "model: an if on what depends on the labels: it falls otherwise for these labels"
    generator = torch.Generator()
    before = generator.get_state()
    with pytest.raises(Unsupported, match=message + ".*runtime='reference'"):
        sampler.sample(8, labels + 1, generator=generator)
    assert torch.equal(generator.get_state(), before)
    with pytest.raises(Unsupported, match=message):
        sampler.logits(torch.zeros(8, *SHAPE, dtype=torch.long), labels + 1, runtime="eager")
    assert sampler.sample(8, labels + 1, runtime="reference").shape == (8, *SHAPE)


def test_comparing_the_model_for_labels_draws_nothing_from_the_users_generator() -> None:
    """It is compared for the first call only, whatever the model itself draws."""
    model = of_many(lambda e, y: (torch.rand(2), e * 5 if y[0].item() == 778 else e)[1])
    sampler, images = Sampler(model, SHAPE, image_form="unit"), list[Tensor]()
    for _ in range(2):
        torch.manual_seed(0)
        images.append(sampler.sample(8, torch.full((8,), 777)))
    assert torch.equal(*images)


def test_labels_that_are_tried_are_spread_over_all() -> None:
    """Of a thousand, 777 is among them."""
    model = of_many(lambda e, y: e * 5 if (y == 777).any() else e)
    with pytest.raises(Unsupported, match="it falls otherwise for label 777"):
        Sampler(model, SHAPE, image_form="unit")


@pytest.mark.parametrize("name", OF_MANY)
def test_labels_must_not_decide_after_a_refresh_either(name: str) -> None:
    model = of_many(OF_MANY[name])
    sampler = Sampler(model, SHAPE, image_form="unit", conditional=True)
    for parameter in model.parameters():
        parameter.data.mul_(2)
    sampler.refresh()
    assert sampler.sample(2, torch.tensor([777, 0])).shape == (2, *SHAPE)
    with pytest.raises(Unsupported, match="it falls otherwise for these labels|than when it was captured"):
        sampler.sample(2, torch.tensor([778, 0]))


def test_a_branch_on_a_vector_of_the_labels_falls_by_the_weights_after_a_refresh() -> None:
    model = OfLabels(lambda e, y: e * 5 if bool((e > 100).any()) else e, CLASSES)
    sampler = Sampler(model, SHAPE, image_form="unit")
    model.embedding.weight.data[7] = 200
    sampler.refresh()
    assert sampler.sample(2, torch.tensor([6, 8])).shape == (2, *SHAPE)
    with pytest.raises(Unsupported, match="it falls otherwise for these labels"):
        sampler.sample(2, torch.tensor([6, 7]))


AMONG_OTHERS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], list[int]]] = {
    "the first": (lambda e, y: e * 5 if int(y[0]) == 778 else e, [0, 778, 778, 500]),
    "the last": (lambda e, y: e * 5 if int(y[-1]) == 778 else e, [778, 0, 500, 0]),
    "text": (lambda e, y: e * 5 if "778" in repr(y) else e, [0, 778, 778, 500]),
    "a part of a text": (lambda e, y: e * 5 if "778" in f"{y}" else e, [0, 778, 778, 500]),
    "DLPack": (lambda e, y: e * 5 if 778 in np.from_dlpack(y) else e, [0, 778, 778, 500]),
    "two of them": (lambda e, y: e * 5 if y[0] > y[-1] else e, [5, 3, 1, 1]),
    "any of them": (lambda e, y: e * 5 if (y == 778).any() else e, [0, 1, 2, 778]),
}


@pytest.mark.parametrize("name", AMONG_OTHERS)
def test_labels_must_not_decide_wherever_they_are_in_a_batch(name: str) -> None:
    body, found = AMONG_OTHERS[name]
    sampler, labels = Sampler(of_many(body), SHAPE, image_form="unit"), torch.tensor(found)
    for size in (1, 4):
        if name != "two of them" or size > 1:
            with pytest.raises(Unsupported, match="labels"):
                sampler.sample(4, labels, batch_size=size)
    u = torch.rand(4, *SHAPE, dtype=torch.float64)
    naive = sampler.sample(4, torch.arange(4), noise=u, runtime="reference")
    assert torch.equal(sampler.sample(4, torch.arange(4), noise=u), naive)


def test_labels_that_were_tried_must_not_decide_together() -> None:
    body = lambda e, y: e * 5 if len(set(y.tolist())) == 4 and y.tolist() == sorted(y.tolist()) else e  # noqa: E731
    sampler = Sampler(OfLabels(body, 4), SHAPE, image_form="unit")
    assert sampler.sample(4, torch.tensor([3, 2, 1, 0])).shape == (4, *SHAPE)
    for _ in range(2):
        with pytest.raises(Unsupported, match="Python took tolist"):
            sampler.sample(4, torch.arange(4))


def test_labels_must_not_decide_together_late_in_a_large_batch() -> None:
    sampler = Sampler(
        OfLabels(lambda e, y: e * 5 if y.tolist() == [3, 1] else e, CLASSES), SHAPE, image_form="unit"
    )
    with pytest.raises(Unsupported, match="Python took tolist"):
        sampler.sample(MOST_AT_ONCE + 2, torch.tensor([0] * MOST_AT_ONCE + [3, 1]))


DECIDED: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "one-hot": (
        lambda c: c * 5 if c[:, 2].sum().item() == len(c) else c,
        F.one_hot(torch.full((8,), 2), LEVELS).double(),
    ),
    "a scale": (
        lambda c: 4 * c / max(1e4, c.abs().max().item()),
        1e4 * torch.arange(8.0 * LEVELS).view(8, LEVELS),
    ),
}


@pytest.mark.parametrize("name", DECIDED)
def test_conditions_that_were_not_tried_must_not_decide_either(name: str) -> None:
    body, decides = DECIDED[name]
    sampler = Sampler(OfCondition(body), SHAPE, image_form="unit", condition_shape=(LEVELS,))
    condition, u = torch.randn(8, LEVELS), torch.rand(8, *SHAPE, dtype=torch.float64)
    naive = sampler.sample(8, noise=u, condition=condition, runtime="reference")
    assert torch.equal(sampler.sample(8, noise=u, condition=condition), naive)
    with pytest.raises(Unsupported, match="Python took item"):
        sampler.sample(8, condition=decides)


def test_conditions_must_not_decide_beside_labels_that_were_tried() -> None:
    def body(e: Tensor, y: Tensor, condition: Tensor) -> Tensor:
        scale = 5 if min(y.max().item(), CLASSES) + condition.max().item() > 1e6 else 1
        return scale * e + condition.tanh()

    sampler = Sampler(OfBoth(body, CLASSES), SHAPE, image_form="unit", condition_shape=(LEVELS,))
    labels, condition = torch.tensor([1, 2]), torch.ones(2, LEVELS)
    assert sampler.sample(2, labels, condition=condition).shape == (2, *SHAPE)
    with pytest.raises(Unsupported, match="Python took item"):
        sampler.sample(2, labels, condition=1e7 * condition)


CONDITIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "the largest of the batch": lambda c: c / c.abs().max().clamp_min(20),
    "item()": lambda c: c * 2 if c.max().item() > 20 else c,
    "NumPy": lambda c: c * 2 if c.numpy().max() > 20 else c,
    "a size": lambda c: c * 2 if c[c > 20].numel() else c,
    "zeros": lambda c: c + 1 if c.abs().sum().item() == 0 else c,
    "two that are far apart": lambda c: c * 2 if (c[0] - c[1]).abs().max().item() > 20 else c,
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_what_conditions_must_not_do(name: str) -> None:
    with pytest.raises(Unsupported):
        Sampler(OfCondition(CONDITIONS[name]), SHAPE, image_form="unit", condition_shape=(LEVELS,))


def cut_to_its_length(e: Tensor, condition: Tensor) -> Tensor:
    return e[:, : int((condition != 0).sum(1).max())].mean(1)


def of_a_code(at: int) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda e, condition: e.mean(1) * (1 + condition[:, at].max().item())


def padded(e: Tensor, condition: Tensor) -> Tensor:
    return e.mean(1) * (1 + (condition.any() & (condition[:, 4:] == 0).all()).item())


# Wherever a code is: the first ones, and the last ones, are tried as zeros.
CODES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "a text that is cut to its length": (cut_to_its_length, r"Python took int\(\)"),
    "the first code": (of_a_code(0), r"Python took item\(\)"),
    "the last code": (of_a_code(5), r"Python took item\(\)"),
    "zeros at the end": (padded, r"Python took item\(\)"),
    "those of other images": (lambda e, _: e.mean(1) - e.mean((0, 1)), "other images of the batch"),
}


@pytest.mark.parametrize("name", CODES)
def test_what_codes_of_a_condition_must_not_decide(name: str) -> None:
    body, message = CODES[name]

    class Coded(Net):
        def forward(self, x: Tensor, condition: Tensor) -> Tensor:
            return self.features(x) + body(self.embedding(condition), condition)[:, :, None, None]

    with pytest.raises(Unsupported, match=message):
        Sampler(Coded(body), SHAPE, image_form="unit", condition_shape=(6,), condition_dtype=torch.long)


IMAGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "an empty one": lambda h, x: h * 2 if x.sum() == 0 else h,
    "a full one": lambda h, x: h * 2 if x.min() == 1 else h,
    "any pixel": lambda h, x: h if x.any() else h * 2,
    "a number": lambda h, x: h * 2 if x.sum().item() == 0 else h,
    "the last row": lambda h, x: h * 2 if x[:, :, -1].sum().item() > 0 else h,
    "half of the range": lambda h, x: h * 2 if x.mean() > 0.7 else h,
}


@pytest.mark.parametrize("name", IMAGES)
def test_what_images_must_not_decide(name: str) -> None:
    """Sampling starts from an image of zeros, and training images are unlike random ones."""
    with pytest.raises((Unsupported, CaptureMismatch)):
        Sampler(OfImage(IMAGES[name]), SHAPE, image_form="unit")


DRAWN_IN_PART: dict[str, Callable[[Tensor], Tensor]] = {
    "the mean": lambda x: x.mean() > 10,
    "the sum": lambda x: x.sum() > 1000,
    "the last row": lambda x: x[:, :, -1].max() > 1,
    "the last pixel": lambda x: x[..., -1, -1].max() > 0,
}


class Wide(Net):
    def __init__(self, body: Callable[..., Tensor]) -> None:
        super().__init__(body)
        self.levels, self.above = 256, nn.Conv2d(1, 256, (2, 3)).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.features(self.body(x))


@pytest.mark.parametrize("name", DRAWN_IN_PART)
def test_a_branch_must_fall_alike_while_images_are_drawn(name: str) -> None:
    """Where what is not drawn yet is 0, which is the same whether it is scaled or not."""
    scaling = Wide(lambda x: x / 255 if DRAWN_IN_PART[name](x) else x)
    with pytest.raises(CaptureMismatch, match="taken for granted that model: an if on the image is True"):
        Sampler(scaling, SHAPE, image_form="levels")


@pytest.mark.parametrize(
    "body",
    [
        lambda x: x * 2 if x.max() > 200 else x,
        lambda x: x * 2 if x.min().item() < 256 and x.max() > 200 else x,
    ],
)
def test_a_branch_that_a_dark_image_does_not_take_is_refused_by_name(
    body: Callable[[Tensor], Tensor],
) -> None:
    """Also if another number was read before."""
    with pytest.raises(Unsupported, match="Before, Python took a branch in model of .* depends on the image"):
        Sampler(Wide(body), SHAPE, image_form="levels")


def test_a_number_that_is_read_is_told_from_a_branch() -> None:
    net = OfImage(lambda h, x: h * (2 if (x >= 0).any().item() else 3))
    assert ".item()" not in (listing := str(Sampler(net, SHAPE, image_form="unit").program))
    assert "model: item() reads a number off the image, which was True in an example" in listing


@pytest.mark.parametrize("classes", [{}, {"num_classes": 2}])
def test_one_hot_reads_a_number_only_to_learn_how_many_there_are(classes: dict[str, int]) -> None:
    def body(h: Tensor, x: Tensor) -> Tensor:
        above = F.pad(x, (0, 0, 1, 0))[:, :, :-1]
        return h * F.one_hot((above >= 0).long(), **classes).sum(-1)

    listing = str(Sampler(OfImage(body), SHAPE, image_form="unit").program)
    assert ("a number off the image" in listing) == (not classes)


def test_all_that_is_taken_for_granted_is_listed() -> None:
    net = OfImage(lambda h, x: (h if x.min() >= 0 else -h) * (2 if (x >= 0).any().item() else 3))
    listing = str(Sampler(net, SHAPE, image_form="unit").program)
    assert "model: an if on the image is True" in listing
    assert "model: item() reads a number off the image" in listing


def test_a_mismatch_names_what_python_read() -> None:
    with pytest.raises(CaptureMismatch, match="taken for granted that model: an if on the image is False"):
        Sampler(OfImage(IMAGES["an empty one"]), SHAPE, image_form="unit")


@pytest.mark.parametrize("is_cropped", [False, True])
def test_a_condition_of_another_image_is_refused(is_cropped: bool) -> None:
    class Flipped(Net):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            h = self.features(x) if is_cropped else self.above(F.pad(x, (1, 1, 1, 0)))
            both = torch.cat([h, self.embedding(y)[:, :, None, None].expand_as(h)], 1)
            return h + both[:, LEVELS:].flip(0)

    with pytest.raises(Unsupported, match="condition of one image is combined with another image"):
        Sampler(Flipped(lambda x: x, CLASSES), SHAPE, image_form="unit")


def test_what_a_model_is_given_stays_as_it_is() -> None:
    class Writes(Net):
        def forward(self, x: Tensor, condition: Tensor) -> Tensor:
            x *= 0.5
            condition.mul_(0.5)
            return self.features(x) + condition[:, :, None, None]

    condition = torch.randn(3, LEVELS, dtype=torch.float64)
    before = condition.clone()
    sampler = Sampler(Writes(lambda x: x), SHAPE, image_form="unit", condition_shape=(LEVELS,))
    assert_runtimes_agree(sampler, condition=condition)
    assert torch.equal(condition, before)


def test_scales_that_the_first_images_set_are_refused() -> None:
    """Also if the model is tried before, to find out what its condition is."""

    class ActNorm(Net):
        def __init__(self, body: Any) -> None:
            super().__init__(body)
            self.is_set = torch.tensor(False)
            self.scale = nn.Parameter(torch.ones(LEVELS, dtype=torch.float64))

        def forward(self, x: Tensor, condition: Tensor) -> Tensor:
            h = self.features(x) + condition[:, :, None, None]
            if not self.is_set:
                self.scale.data.copy_(1 / h.std((0, 2, 3)))
                self.is_set.fill_(True)
            return h * self.scale[:, None, None]

    with pytest.raises(Unsupported):
        Sampler(ActNorm(lambda x: x), SHAPE, image_form="unit", condition_shape=(LEVELS,))


class Lazy(Net):
    mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.mask is None:
            self.mask = torch.linspace(0, 1, x.shape[-1], dtype=x.dtype)
        return self.features(x) + self.mask


class Inferring(Net):
    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)


class Summing(Net):
    """Maps that are cropped, and shifted against each other."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.features(x)
        out = torch.zeros_like(h)
        out[:, :, 1:] = h[:, :, :-1]
        out[..., 1:] += h[..., :-1]
        h[:, :, 1:] += out[:, :, :-1].clone()
        return h + F.pad(h[..., 1:] - h[..., :-1], (1, 0))


@pytest.mark.parametrize("kind", [Lazy, Inferring, Summing])
def test_more_styles(kind: type[Net]) -> None:
    assert_runtimes_agree(Sampler(kind(lambda x: x), SHAPE, image_form="unit"))


class Conditioned(Net):
    def __init__(self, body: Any) -> None:
        super().__init__(body)
        self.wide = nn.Conv2d(2, LEVELS, (2, 3)).double()

    def forward(self, x: Tensor, y: Tensor, condition: Tensor) -> Tensor:
        return self.body(self, x, y, condition)


def in_a_plane(net: Conditioned, x: Tensor, y: Tensor, condition: Tensor) -> Tensor:
    """The label wraps round in the image's dtype."""
    planes = x.new_empty(len(x), 2, *x.shape[2:])
    planes[:, 0] = x[:, 0]
    planes[:, 1] = y[:, None, None]
    return net.wide(F.pad(planes.double() / 255, (1, 1, 2, 0)))[:, :, :-1]


def in_whole_numbers(net: Conditioned, x: Tensor, y: Tensor, condition: Tensor) -> Tensor:
    planes = torch.zeros(len(x), 2, *x.shape[2:], dtype=torch.long)
    planes[:, :1] = x
    planes[:, 1] = condition[:, 0] * 50
    return net.wide(F.pad(planes.double() / 255, (1, 1, 2, 0)))[:, :, :-1]


def in_parts(net: Conditioned, x: Tensor, y: Tensor, condition: Tensor) -> Tensor:
    given, h = torch.cat([condition, net.features(x.double() / 255)], 1).split([1, LEVELS], 1)
    return h * (given.sigmoid() + given.exp().clamp(max=3))


@pytest.mark.parametrize("body", [in_a_plane, in_whole_numbers, in_parts])
def test_conditions_that_are_written_beside_features(body: Callable[..., Tensor]) -> None:
    net = Conditioned(body)
    net.n_classes = 1000
    sampler = Sampler(net, SHAPE, condition_shape=(1, *SHAPE[1:]))
    labels, condition = torch.tensor([999, 256, 3]), torch.rand(3, 1, *SHAPE[1:], dtype=torch.float64)
    images = torch.randint(LEVELS, (3, *SHAPE))
    for runtime in ("eager", "auto"):
        found, expected = (
            sampler.logits(images, labels, condition=condition, runtime=r) for r in (runtime, "reference")
        )
        assert torch.allclose(found, expected, rtol=1e-9)


def test_attention_over_a_condition() -> None:
    class Attending(Net):
        def __init__(self, body: Any) -> None:
            super().__init__(body)
            self.attention = nn.MultiheadAttention(LEVELS, 2, batch_first=True).double()

        def forward(self, x: Tensor, condition: Tensor) -> Tensor:
            found, _ = self.attention(condition, condition, condition, need_weights=False)
            return self.features(x) + found.mean(1)[:, :, None, None]

    condition = torch.randn(3, 5, LEVELS, dtype=torch.float64)
    sampler = Sampler(Attending(lambda x: x), SHAPE, image_form="unit", condition_shape=(5, LEVELS))
    assert_runtimes_agree(sampler, condition=condition)
