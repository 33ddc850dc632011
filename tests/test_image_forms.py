"""Levels become what a model takes as an image, and come back."""

import pytest
import torch

from pixelcnn_fast.image_forms import IMAGE_FORMS, check_levels, from_levels, to_levels, with_channels

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
