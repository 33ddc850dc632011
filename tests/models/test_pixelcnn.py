from typing import Any

import pytest
import torch

from pixelcnn_fast.likelihood import nll
from pixelcnn_fast.models import PixelCNN, reference
from pixelcnn_fast.nn.channel_order import ChannelOrder
from tests.models.training import assert_losses_agree
from tests.system.networks import pixelcnn
from tests.tolerances import assert_identical_up_to_rounding

SIZES: dict[str, Any] = dict(input_channels=3, hidden_channels=9, n_residual=2, n_classes=4, kernel_size=5)


def pair(seed: int = 0, channel_order: ChannelOrder | None = None) -> tuple[PixelCNN, reference.PixelCNN]:
    torch.manual_seed(seed)
    fast = PixelCNN(**SIZES, channel_order=channel_order)
    plain = reference.PixelCNN(**SIZES, channel_order=channel_order)
    for (key, a), b in zip(fast.state_dict().items(), plain.state_dict().values(), strict=True):
        assert not key.endswith("mask") or torch.equal(a, b), key
    plain.load_state_dict(fast.state_dict())
    fast.load_state_dict(plain.state_dict())
    return fast, plain


@pytest.mark.parametrize("channel_order", [None, "thirds", "interleaved"])
@pytest.mark.parametrize("training", [True, False])
def test_equals_the_reference(training, channel_order):
    fast, plain = (model.double().train(training) for model in pair(channel_order=channel_order))
    images, labels = torch.randint(0, 256, (3, 3, 7, 5), dtype=torch.uint8), torch.tensor([0, 3, 1])
    for x in (images, images.double() / 255, images.double()):
        assert_identical_up_to_rounding(fast(x, labels), plain(x, labels))
        with torch.no_grad():
            assert_identical_up_to_rounding(fast(x, labels), plain(x, labels))
    assert fast(images, labels).shape == (3, 3, 7, 5, 256)


def test_input_forms_agree():
    model, images = pixelcnn(), torch.randint(0, 256, (2, 1, 6, 6), dtype=torch.uint8)
    images[0, 0, 0, 0] = 255
    assert torch.equal(model(images), model(images.float()))
    assert torch.allclose(model(images), model(images.float() / 255), atol=1e-5)
    dark = torch.ones(1, 1, 2, 2, dtype=torch.uint8)  # levels all the same, however small
    assert torch.equal(model(dark), model(dark.float() / 255))


def test_training_follows_the_reference():
    fast, plain = (model.double() for model in pair())
    images, labels = torch.randint(0, 256, (4, 3, 6, 6), dtype=torch.uint8), torch.tensor([0, 1, 2, 3])
    assert_losses_agree(fast, plain, lambda model: nll(model, images, labels).mean(), 5)
    for (name, a), (_, b) in zip(fast.state_dict().items(), plain.state_dict().items(), strict=True):
        assert torch.allclose(a.float(), b.float(), atol=1e-3), name


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]), "shape"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.int64), torch.tensor([0, 1]), "int64"),
        (torch.zeros(2, 3, 4, 4), None, "class-conditional"),
        (torch.zeros(2, 3, 4, 4), torch.tensor([0, 4]), "labels span"),
        (torch.zeros(2, 3, 4, 4), torch.tensor([0]), "expected integers"),
        (torch.zeros(2, 3, 4, 4), torch.tensor([0.0, 1.0]), "expected integers"),
    ],
)
def test_bad_input_is_refused(images, labels, message):
    with pytest.raises(ValueError, match=message):
        PixelCNN(**SIZES)(images, labels)


def test_unexpected_labels_are_refused():
    with pytest.raises(ValueError, match="without classes"):
        pixelcnn()(torch.zeros(1, 1, 4, 4), torch.tensor([0]))
