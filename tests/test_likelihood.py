import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from pixelcnn_fast.errors import ModelFailed, Unsupported
from pixelcnn_fast.heads import Bernoulli, Categorical
from pixelcnn_fast.image_forms import ImageForm, from_levels
from pixelcnn_fast.likelihood import bits_per_dim, nll, to_levels
from pixelcnn_fast.models import GatedPixelCNN, PixelRNN
from pixelcnn_fast.models.pixel_rnn import KINDS
from tests.system.networks import Written, pixelcnn


class Uniform(nn.Module):
    def forward(self, images):
        return torch.zeros(*images.shape, 256)


def test_uniform_logits_cost_eight_bits():
    images = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    assert bits_per_dim(Uniform(), [images]) == pytest.approx(8)
    assert nll(Uniform(), images).tolist() == pytest.approx([3 * 16 * math.log(256)] * 5)


@pytest.mark.parametrize("kind", KINDS)
def test_bits_per_dim_of_a_pixel_rnn(kind):
    model = PixelRNN(kind, 2, 4, 1, kernel_size=3, levels=2)
    images = torch.randint(0, 2, (3, 2, 3, 4), dtype=torch.uint8)
    chosen = model(images).log_softmax(-1).gather(-1, images.long()[..., None])
    assert bits_per_dim(model, [images[:1], images[1:]]) == pytest.approx(-float(chosen.mean()) / math.log(2))


def test_equals_a_loop_over_sub_pixels():
    model, images = pixelcnn(channels=2, classes=3), torch.randint(0, 256, (2, 2, 3, 4), dtype=torch.uint8)
    labels = torch.tensor([2, 0])
    probabilities = model(images, labels).softmax(-1).detach()
    for n in range(2):
        expected = -sum(
            math.log(probabilities[n, c, y, x, int(images[n, c, y, x])])
            for c in range(2)
            for y in range(3)
            for x in range(4)
        )
        assert nll(model, images, labels)[n].item() == pytest.approx(expected, rel=1e-4)


def test_batches_of_unequal_size_do_not_change_the_mean_and_the_mode_stays():
    model, images = pixelcnn(), torch.randint(0, 256, (7, 1, 5, 5), dtype=torch.uint8)
    whole = bits_per_dim(model, [images])
    assert bits_per_dim(model.train(), [images]) == whole and model.training
    assert bits_per_dim(model, [images[:4], images[4:6], images[6:]]) == pytest.approx(whole, rel=1e-6)
    assert bits_per_dim(model, [images[:1], images[1:]]) == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_levels_are_rounded(dtype):
    levels = torch.arange(256)
    assert torch.equal(to_levels((levels / 255).to(dtype), image_form="unit"), levels)
    assert torch.equal(to_levels((levels / 255).half().to(dtype), image_form="unit"), levels)
    assert torch.equal(to_levels((levels / 127.5 - 1).to(dtype), image_form="centred"), levels)
    assert torch.equal(to_levels(levels.to(dtype), image_form="levels"), levels)
    assert torch.equal(to_levels(levels.to(torch.uint8)), levels)


@pytest.mark.parametrize("form", ["unit", "centred", "levels"])
def test_levels_of_few_digits_are_rounded(form: ImageForm) -> None:
    levels = torch.arange(200)
    assert torch.equal(to_levels(from_levels(levels, form, 200, torch.bfloat16), 200, form), levels)


DARK = torch.tensor([[0.0, 1.0, 1.0]])
LONG, COMPLEX = torch.zeros(1, 1, 3, 4, dtype=torch.long), torch.zeros(2, dtype=torch.complex128)
REFUSED: dict[str, tuple[Tensor, ImageForm | None, str]] = {
    "floats, and nothing said": (DARK, None, "They fit image_form='unit' and image_form='levels': say"),
    "floats for uint8": (torch.tensor([0, 3 / 255]), "uint8", "They fit image_form='unit': say which it is"),
    "int64 for uint8": (LONG[0], "uint8", "They fit image_form='int64' and image_form='codes'"),
    "0...255 for unit": (torch.tensor([0.0, 7.0]), "unit", "They fit image_form='levels': say"),
    "-1...1 for unit": (torch.tensor([-1.0, 1.0]), "unit", "They fit image_form='centred': say"),
    "a little too much": (torch.tensor([0.0, 1.01]), "unit", "They fit no form of 256 levels"),
    "standardised": (torch.tensor([-0.42, 2.82]), "centred", "They fit no form of 256 levels"),
    "channels for codes": (LONG, "codes", "They fit image_form='int64': say which"),
    "no images, in another dtype": (torch.zeros(0, 3, 4), "uint8", r"float32 \[0, 3, 4\], which is not"),
    "a half": (torch.tensor([0.5]), "levels", "They fit no form of 256 levels"),
    "NaN": (torch.tensor([0.0, math.nan]), "unit", "They fit no form of 256 levels"),
    "infinite": (torch.tensor([0.0, math.inf]), "levels", "They fit no form of 256 levels"),
    "a level too many": (torch.tensor([0, 256]), None, r"span 0\.\.\.256"),
    "complex": (COMPLEX, "unit", "torch.complex128"),
    "complex, and nothing said": (COMPLEX, None, "torch.complex128 .*expected: integers, with L = 256"),
    "booleans": (torch.tensor([True]), None, "torch.bool"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_the_form_is_refused_with_what_does(name):
    images, form, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        to_levels(images, image_form=form)


def test_a_pixel_that_rounding_has_made_too_bright_is_the_brightest():
    assert to_levels(torch.tensor([0.0, 0.2, 1.0000001]), image_form="unit").tolist() == [0, 51, 255]


def test_values_do_not_decide_how_they_are_read():
    """A dark image of 0...4, all of whose pixels are 0 or 1, and one of 0...1."""
    net = Read(lambda x: x).double()
    levels = torch.randint(0, 2, (3, 2, 4, 6))
    by_form = {form: nll(net, levels.double(), levels=LEVELS, image_form=form) for form in ("unit", "levels")}
    assert not torch.allclose(by_form["unit"], by_form["levels"])
    net.conv.weight.data.zero_()  # so that it makes no difference how the model sees them
    flat = torch.log_softmax(net.get_parameter("conv.bias").view(2, LEVELS), 1)
    factors: dict[ImageForm, int] = {"unit": LEVELS - 1, "levels": 1}
    for form, factor in factors.items():
        chosen = flat[:, levels[0] * factor]
        expected = -(chosen[0, 0].sum() + chosen[1, 1].sum())
        assert torch.allclose(nll(net, levels[:1].double(), levels=LEVELS, image_form=form)[0], expected)


def test_a_batch_norm_that_was_frozen_stays_so_and_another_thread_may_train():
    model = pixelcnn().train()
    model.norm_in.eval()
    modes = [module.training for module in model.modules()]
    seen = []

    def loader():
        for _ in range(2):
            seen.append([module.training for module in model.modules()])
            yield torch.zeros(1, 1, 4, 4, dtype=torch.uint8)

    bits_per_dim(model, loader())
    assert seen == [modes, modes] and [module.training for module in model.modules()] == modes


def converting(model: nn.Module, form: Callable[[Tensor], Tensor]) -> Written:
    """A model whose images are converted before it sees them."""
    return Written(lambda net, x: net.model(form(x)), model=model)


def test_images_of_one_channel_may_leave_its_axis_out():
    model, images = pixelcnn(), torch.randint(0, 256, (3, 1, 4, 5), dtype=torch.uint8)
    codes = converting(model, lambda x: x[:, None])
    assert torch.equal(nll(codes, images[:, 0]), nll(model, images))
    with pytest.raises(ValueError, match=r"\[3, 1, 1, 4, 5\], expected \[N, C, H, W\]"):
        nll(converting(model, lambda x: x[:, 0]), images[:, None])


@pytest.mark.parametrize("levels", [257, 300, 511, 1024])
def test_a_dtype_that_can_t_tell_levels_apart_is_refused(levels):
    for form in ("unit", "centred", "levels"):
        images = from_levels(torch.arange(levels).view(1, 1, 1, -1), form, levels, torch.bfloat16)
        if (form, levels) == ("levels", 257):  # whole numbers up to 256 are exact
            assert torch.equal(to_levels(images, levels, form).flatten(), torch.arange(levels))
            continue
        with pytest.raises(ValueError, match="a dtype needs digits enough"):
            to_levels(images, levels, form)


IMAGE = torch.zeros(1, 1, 2, 2)
NO_BATCHES = ["x", 5, {"images": IMAGE}, (IMAGE, 3), (IMAGE, {"condition": 3}), (None, IMAGE)]


@pytest.mark.parametrize("batch", NO_BATCHES)
def test_a_loader_of_something_else_is_refused(batch):
    with pytest.raises(ValueError, match="the loader must yield images"):
        bits_per_dim(pixelcnn(), [batch])


def test_an_empty_loader_is_an_error():
    with pytest.raises(ValueError, match="no image"):
        bits_per_dim(pixelcnn(), [])


LEVELS = 5
READINGS = {  # from [N, C, L, H, W]
    "levels last, inferred": (lambda x: x.permute(0, 1, 3, 4, 2), None),
    "log-probabilities": (lambda x: x.log_softmax(2), Categorical(LEVELS, "N,C,L,H,W")),
    "probabilities": (lambda x: x.softmax(2).transpose(1, 2), Categorical(LEVELS, "N,L,C,H,W", True)),
    "channels first": (lambda x: x.flatten(1, 2), Categorical(LEVELS, "N,C*L,H,W")),
    "levels first": (lambda x: x.transpose(1, 2).flatten(1, 2), Categorical(LEVELS, "N,L*C,H,W")),
}


class Read(nn.Module):
    def __init__(self, reading):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.reading = nn.Conv2d(2, 2 * LEVELS, 3, padding=1).double(), reading

    def forward(self, images):
        return self.reading(self.conv(images.double()).unflatten(1, (2, LEVELS)))


@pytest.mark.parametrize("name", READINGS)
def test_every_head_gives_the_same_likelihood(name):
    reading, head = READINGS[name]
    images = torch.randint(0, LEVELS, (3, 2, 4, 6), dtype=torch.uint8)
    p = Read(lambda x: x)(images).log_softmax(2).gather(2, images.long()[:, :, None])[:, :, 0]
    how = {"levels": LEVELS} if head is None else {"head": head}
    assert torch.allclose(nll(Read(reading), images, **how), -p.sum((1, 2, 3)), rtol=1e-12)
    bits = bits_per_dim(Read(reading), [images[:1], images[1:]], **how)
    assert bits == pytest.approx(-p.mean().item() / math.log(2))


@pytest.mark.parametrize("probabilities", [False, True])
def test_binary_images(probabilities):
    last = nn.Sigmoid() if probabilities else nn.Identity()
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), last).double()
    images = torch.randint(0, 2, (3, 1, 4, 6)).double()
    p = model(images) if probabilities else model(images).sigmoid()
    expected = nn.functional.binary_cross_entropy(p, images, reduction="none").sum((1, 2, 3))
    found = nll(model, images, image_form="levels", head=Bernoulli(probabilities))
    assert torch.allclose(found, expected, rtol=1e-9)
    bits = bits_per_dim(model, [images], image_form="levels", head=Bernoulli(probabilities))
    assert bits == pytest.approx(expected.mean().item() / 24 / math.log(2))


def test_whatever_the_model_takes():
    model = GatedPixelCNN(1, 4, [1], n_classes=3, condition_channels=2, levels=LEVELS)
    images, labels = torch.randint(0, LEVELS, (3, 1, 4, 6), dtype=torch.uint8), torch.tensor([2, 0, 1])
    condition = torch.randn(3, 2, 4, 6)
    expected = nll(model, images, labels, condition)
    assert not torch.allclose(expected, nll(model, images, labels, -condition))
    assert torch.equal(nll(model, images, labels, condition=condition), expected)
    mean = expected.mean().item() / 24 / math.log(2)
    for batch in ((images, labels, condition), [images, labels, condition]):  # a DataLoader gives lists
        assert bits_per_dim(model, [batch]) == pytest.approx(mean)
    assert bits_per_dim(model, [(images, labels, {"condition": condition})]) == pytest.approx(mean)
    only = GatedPixelCNN(1, 4, [1], condition_channels=2, levels=LEVELS)
    assert torch.equal(nll(only, images, None, condition), nll(only, images, condition=condition))
    assert bits_per_dim(only, [(images, {"condition": condition})]) > 0


def test_codes_of_one_channel():
    embedding = nn.Embedding(LEVELS, LEVELS)

    class Codes(nn.Module):
        def forward(self, codes):
            return embedding(codes).permute(0, 3, 1, 2)

    codes = torch.randint(0, LEVELS, (3, 4, 6))
    expected = nn.functional.cross_entropy(Codes()(codes), codes, reduction="none").sum((1, 2))
    assert torch.allclose(nll(Codes(), codes, levels=LEVELS, image_form="codes"), expected)


def test_an_ambiguous_output_is_refused():
    with pytest.raises(ValueError, match="several ways"):
        nll(Read(lambda x: x.flatten(1, 2)), torch.zeros(3, 2, 4, 6, dtype=torch.uint8), levels=LEVELS)
    with pytest.raises(ValueError, match="for 256 levels"):
        nll(Read(lambda x: x), torch.zeros(3, 2, 4, 6, dtype=torch.uint8))
    with pytest.raises(ValueError, match="leave levels out"):
        nll(Read(lambda x: x), torch.zeros(3, 2, 4, 6), head=Categorical(LEVELS), levels=3)


def test_a_model_that_takes_no_uint8_is_told_the_other_forms() -> None:
    model = nn.Conv2d(1, 256, (1, 3), padding=(0, 1))
    for call in (lambda x: nll(model, x), lambda x: bits_per_dim(model, [x])):
        with pytest.raises(
            ModelFailed, match=r"nll\(model, images, image_form='unit'\)  # floats .* 0\.\.\.1"
        ):
            call(torch.zeros(1, 1, 5, 5, dtype=torch.uint8))
    forms: list[ImageForm] = ["unit", "levels"]
    for form in forms:
        with pytest.raises(RuntimeError, match="channels") as failed:
            nll(model, torch.zeros(1, 2, 5, 5), image_form=form)
        assert not isinstance(failed.value, ModelFailed)


class Raises(nn.Module):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, images: Tensor) -> Tensor:
        raise self.error


UINT8 = torch.zeros(1, 1, 5, 5, dtype=torch.uint8)


@pytest.mark.parametrize("kind", [RuntimeError, TypeError, IndexError, ValueError])
def test_whatever_a_model_says_of_uint8_it_is_told_the_other_forms(kind: type[Exception]) -> None:
    model = Raises(kind("no uint8"))
    with pytest.raises(ModelFailed, match=rf"(?s)raised {kind.__name__}: no uint8.*image_form='codes'\)"):
        nll(model, UINT8)
    with pytest.raises(ModelFailed) as failed:
        nll(model, UINT8.expand(1, 3, 5, 5))
    assert "codes" not in str(failed.value)  # which have one channel


@pytest.mark.parametrize(
    "error",
    [Unsupported("conv: this is the library's own"), torch.cuda.OutOfMemoryError("tried to allocate 80 GiB")],
)
def test_errors_that_another_form_would_not_mend_keep_their_type(error: Exception) -> None:
    """The library's own, and that after which a caller halves the batch."""
    for call in (lambda: nll(Raises(error), UINT8), lambda: bits_per_dim(Raises(error), [UINT8])):
        with pytest.raises(type(error), match=f"^{error}$"):
            call()


def test_images_that_are_no_tensor_are_refused() -> None:
    with pytest.raises(ValueError, match="the images are a list, expected a torch.Tensor"):
        nll(Uniform(), [[[0]]])  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize("given", [(), (None,), (None, None)])
def test_what_is_not_given_is_not_handed_on(given: tuple[None, ...]) -> None:
    """As loaders of models with and without labels have it."""
    model, images = (
        converting(pixelcnn(), lambda x: x),
        torch.randint(0, 256, (2, 1, 3, 4), dtype=torch.uint8),
    )
    assert torch.equal(nll(model, images, *given), nll(model, images))


def test_a_condition_of_another_dtype_than_the_model() -> None:
    class Conditioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(1, 8, 1), nn.Conv2d(2, 8, 1)

        def forward(self, x: Tensor, condition: Tensor) -> Tensor:
            return self.one(x) + self.two(condition)

    images, condition = torch.randint(0, 8, (2, 1, 3, 3)) / 7, torch.randn(2, 2, 3, 3)
    score = partial(nll, Conditioned().bfloat16(), images, image_form="unit", levels=8)
    for found in (score(condition), score(condition=condition)):
        assert torch.equal(found, score(condition.bfloat16()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_of_another_dtype_than_its_images(dtype: torch.dtype) -> None:
    """It is given them in its own."""
    model = nn.Conv2d(1, 8, 1).to(dtype)
    levels = torch.randint(0, 8, (2, 1, 3, 3))
    found = nll(model, levels / 7, image_form="unit", levels=8)
    expected = torch.nn.functional.cross_entropy(
        model((levels / 7).to(dtype)), levels[:, 0], reduction="none"
    )
    torch.testing.assert_close(found, expected.sum((1, 2)).to(found.dtype), rtol=0.05, atol=0.05)
