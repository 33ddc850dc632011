"""Models that take several conditions, in a tuple or a dict: how they are called, and what is refused."""

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pixelcnn_fast import ModelFailed, Sampler, check_causal, distributed
from pixelcnn_fast.likelihood import bits_per_dim, nll
from pixelcnn_fast.noise import noise_of
from tests.system.agreement import assert_runtimes_agree
from tests.system.networks import ABOVE, LEFT, Masked
from tests.tiers import tiered

LEVELS, SHAPE, N = 5, (1, 4, 5), 4
TEXT, PLACES = torch.tensor([[0, 1, 2], [6, 6, 6], [3, 1, 0], [4, 2, 5]]), torch.randn(N, 2, 4, 5) * 2
LABELS = torch.tensor([0, 3, 1, 2])
SHAPES: dict[str, tuple[int, ...]] = {"places": (2, 4, 5), "text": (3,)}
IN_TURN = (SHAPES["places"], SHAPES["text"])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv_in, self.map = Masked(1, 6, [*ABOVE, *LEFT]), nn.Conv2d(2, 6, 1)
        self.words, self.classes = nn.Embedding(7, 6), nn.Embedding(4, 6)
        self.conv_out = nn.Conv2d(6, LEVELS, 1)

    def logits(self, x: Tensor, places: Tensor, text: Tensor, y: Tensor | None = None) -> Tensor:
        h = self.conv_in(x) + self.map(places) + self.words(text).mean(1)[..., None, None]
        if y is not None:
            h = h + self.classes(y)[..., None, None]
        return 6 * self.conv_out(torch.tanh(h))


class InTurn(Net):
    def forward(self, x, places, text):
        return self.logits(x, places, text)


class AfterLabels(Net):
    def forward(self, x, y, c1, c2):
        return self.logits(x, c1, c2, y)


class OneTuple(Net):
    def forward(self, x, y, condition):
        places, text = condition
        return self.logits(x, places, text, y)


class Keywords(Net):
    def forward(self, x, text, y, *, places):
        return self.logits(x, places, text, y)


class AnyKeywords(Net):
    def forward(self, x, **given):
        return self.logits(x, given["places"], given["text"])


class OneDict(Net):
    def forward(self, x, given):
        return self.logits(x, given["places"], given["text"])


class OneDictByName(Net):
    def forward(self, x, condition, labels):
        assert {*condition} == {"places", "text"}
        return self.logits(x, condition["places"], condition["text"], labels)


KINDS: dict[str, tuple[Callable[[], Net], Any]] = {
    "in turn": (InTurn, IN_TURN),
    "in turn after labels": (AfterLabels, list(IN_TURN)),
    "one tuple": (OneTuple, IN_TURN),
    "keywords": (Keywords, SHAPES),
    "any keywords": (AnyKeywords, SHAPES),
    "one dict": (OneDict, SHAPES),
    "one dict by name": (OneDictByName, SHAPES),
}


def given(shapes: Any, places: Tensor = PLACES, text: Any = TEXT) -> Any:
    return {"text": text, "places": places} if isinstance(shapes, dict) else (places, text)


def settings(kind: Callable[[], Net], shapes: Any) -> dict[str, Any]:
    return dict(levels=LEVELS, image_form="unit", condition_shape=shapes)


@pytest.mark.parametrize(
    "name", tiered(KINDS, {"in turn after labels", "keywords", "one dict by name"}.__contains__)
)
def test_each_is_given_what_it_takes(name: str) -> None:
    kind, shapes = KINDS[name]
    model = kind().double()
    sampler = Sampler(model, SHAPE, **settings(kind, shapes))
    takes_labels = sampler._engine.model.conditional
    assert takes_labels == (kind in (AfterLabels, OneTuple, Keywords, OneDictByName))
    labels, several = LABELS if takes_labels else None, given(shapes)
    drawn = assert_runtimes_agree(sampler, N, labels=labels, condition=several)
    with torch.no_grad():
        logits = model.logits(drawn.double() / 4, PLACES.double(), TEXT, labels)
    expected = -nn.functional.cross_entropy(logits, drawn[:, 0].long(), reduction="none").sum((1, 2))
    torch.testing.assert_close(sampler.log_prob(drawn, labels, several), expected)
    u = noise_of(0, range(N), sampler.noise_shape)
    whole = sampler.sample(N, labels, noise=u, condition=several)
    assert torch.equal(sampler.sample(N, labels, noise=u, condition=several, batch_size=3), whole)
    for other in (given(shapes, -PLACES), given(shapes, text=6 - TEXT)):
        assert not torch.equal(sampler.sample(N, labels, noise=u, condition=other), whole)
    slow = Sampler(model, SHAPE, runtime="reference", **settings(kind, shapes))
    for same in (copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler)), sampler.refresh(), slow):
        assert torch.equal(same.sample(N, labels, noise=u, condition=several), whole)
    check_causal(model, SHAPE, **settings(kind, shapes))
    assert "condition 'text' [3]" in repr(sampler) or "condition 1 [3]" in repr(sampler)


def test_their_dtypes_are_found_or_said() -> None:
    for dtypes in (None, {"text": torch.int32}, {"text": torch.int32, "places": torch.float32}):
        sampler = Sampler(OneDict(), SHAPE, condition_dtype=dtypes, **settings(OneDict, SHAPES))
        found = {name: x.dtype for name, x in sampler._engine.model.conditions.items()}
        assert found == {"places": torch.float32, "text": torch.int64 if dtypes is None else torch.int32}
        codes = sampler._engine.model.conditions["text"].codes
        assert codes is not None and codes.classes == 7
    with pytest.raises(ValueError, match="condition_dtype has 'words', which condition_shape has not"):
        Sampler(OneDict(), SHAPE, condition_dtype={"words": torch.long}, **settings(OneDict, SHAPES))
    with pytest.raises(
        ModelFailed, match=r"the condition 'places' of .* \[2, 2, 4, 5\], the condition 'text'"
    ):
        Sampler(OneDict(), SHAPE, condition_dtype=torch.float32, **settings(OneDict, SHAPES))
    sampler = Sampler(InTurn(), SHAPE, condition_dtype=(None, torch.long), **settings(InTurn, IN_TURN))
    assert [x.dtype for x in sampler._engine.model.conditions.values()] == [torch.float32, torch.int64]


WRONG: dict[str, tuple[Any, str]] = {
    "none": (None, "the condition is missing, expected a dict (condition 'places': numbers [4, 2, 4, 5], condition"),
    "one": (PLACES, "the condition is Tensor, expected a dict"),
    "a tuple": ((PLACES, TEXT), "the condition is tuple of 0, 1, expected a dict"),
    "a missing one": ({"text": TEXT}, "the condition is dict of 'text', expected a dict (condition 'places': num"),
    "one more": (given(SHAPES) | {"pose": TEXT}, "is dict of 'text', 'places', 'pose', expected a dict"),
    "fewer images": (given(SHAPES, text=TEXT[:3]), "the condition 'text' is torch.int64 [3, 3], expected integers [4"),
    "reals for integers": (given(SHAPES, text=TEXT.float()), "the condition 'text' is torch.float32 [4, 3], exp"),
    "too large a code": (given(SHAPES, text=TEXT + 1), "the integers of the condition 'text' span 1...7, expected 0"),
    "None among them": (given(SHAPES) | {"text": None}, "the condition 'text' is missing, expected integers [4, 3]"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused(name: str) -> None:
    condition, message = WRONG[name]
    sampler = Sampler(OneDict(), SHAPE, **settings(OneDict, SHAPES))
    with pytest.raises(ValueError, match=re.escape(message)):
        sampler.sample(N, condition=condition)


@pytest.mark.parametrize("wrong", [(PLACES,), (PLACES, TEXT, TEXT), given(SHAPES), PLACES])
def test_a_tuple_must_have_as_many(wrong: Any) -> None:
    sampler = Sampler(InTurn(), SHAPE, **settings(InTurn, IN_TURN))
    with pytest.raises(
        ValueError, match=r"the condition is .*, expected a tuple of 2 \(condition 0: numbers"
    ):
        sampler.sample(N, condition=wrong)


def test_one_that_changes_nothing_is_named() -> None:
    class Deaf(OneDict):
        def forward(self, x, given):
            return super().forward(x, {**given, "text": given["text"] * 0})

    with pytest.warns(UserWarning, match="the condition 'text' changes nothing in the model's output"):
        Sampler(Deaf(), SHAPE, **settings(Deaf, SHAPES))


def test_shapes_and_names_that_do_not_do_are_refused() -> None:
    for wrong in (5, {}, {"a": 5}, (2, (3,)), "ab", (2.0, 3)):
        with pytest.raises(
            ValueError, match="^condition_shape is .*: .*|^condition_shape is .*, expected a shape"
        ):
            Sampler(OneDict(), SHAPE, **settings(OneDict, wrong))
    with pytest.raises(
        ValueError, match="forward takes text, y, places, but not pose, which condition_shape has"
    ):
        Sampler(Keywords(), SHAPE, **settings(Keywords, {"text": (3,), "pose": (2,)}))


def test_likelihoods_take_them() -> None:
    images = torch.randint(LEVELS, (N, *SHAPE)).float() / 4
    expected = nll(InTurn(), images, PLACES, TEXT, levels=LEVELS, image_form="unit")
    by_dict = nll(
        OneDict(), images.double(), given(SHAPES, PLACES.double()), levels=LEVELS, image_form="unit"
    )
    assert torch.equal(by_dict, expected)
    arguments: dict[str, Any] = dict(levels=LEVELS, image_form="unit")
    bits = bits_per_dim(InTurn(), [(images, PLACES, TEXT)], **arguments)
    keywords = {"labels": LABELS, "condition": given(SHAPES)}
    found = bits_per_dim(OneDictByName(), [(images, keywords)], **arguments)
    own = nll(OneDictByName(), images, **keywords, **arguments)
    assert found == pytest.approx(
        float(own.sum()) / images.numel() / torch.tensor(2.0).log().item(), rel=1e-5
    )
    assert (
        bits == pytest.approx(float(expected.sum()) / images.numel() / 0.693147, rel=1e-5) and found != bits
    )
    with pytest.raises(ValueError, match="yielded Tensor, str, Tensor"):
        bits_per_dim(OneDict(), [(images, given(SHAPES, text="words"), {})], **arguments)


def test_jobs_take_them(tmp_path: Path) -> None:
    sampler = Sampler(OneDict(), SHAPE, **settings(OneDict, SHAPES))
    expected = sampler.sample(N, noise=noise_of(0, range(N), sampler.noise_shape), condition=given(SHAPES))
    conditions: dict[str, Any] = {
        "tensors": given(SHAPES),
        "functions": {name: x.__getitem__ for name, x in given(SHAPES).items()},
        "one function": lambda images: given(SHAPES, PLACES[images], TEXT[images]),
    }
    for name, condition in conditions.items():
        for _ in range(2):  # the second time, it is the same job
            distributed.sample(sampler, N, tmp_path / name, condition=condition, shard_size=3)
        parts = [np.load(path)["images"] for path in sorted((tmp_path / name).glob("shard-*.npz"))]
        assert np.array_equal(np.concatenate(parts), expected.numpy())
    with pytest.raises(ValueError, match="another job: condition"):
        distributed.sample(sampler, N, tmp_path / "tensors", condition=given(SHAPES, -PLACES), shard_size=3)
    with pytest.raises(ValueError, match="condition 'text': 3 are given, expected 4"):
        distributed.sample(sampler, N, tmp_path / "new", condition=given(SHAPES, text=TEXT[:3]))
