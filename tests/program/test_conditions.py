"""Labels fed to a network in the ways people do it: other labels give other images, and the right ones."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast import Sampler
from pixelcnn_fast.errors import Unsupported
from tests.system.agreement import assert_runtimes_agree, noise
from tests.system.networks import ABOVE, HERE, LEFT, Masked

LEVELS, CLASSES, SHAPE = 5, 4, (1, 4, 5)


class Net(nn.Module):
    def __init__(self, body) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv_in = Masked(1, 6, [*ABOVE, *LEFT])
        self.middle, self.wider = (Masked(n, 6, [*ABOVE, *LEFT, *HERE]) for n in (6, 7))
        self.embedding, self.linear = nn.Embedding(CLASSES, 6), nn.Linear(CLASSES, 6)
        self.embedding.weight.data.mul_(6)
        self.conv_out = nn.Conv2d(6, LEVELS, 1)
        self.body = body

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return 8 * self.conv_out(torch.tanh(self.middle(self.body(self, self.conv_in(x), y))))


def added(h: Tensor, vector: Tensor) -> Tensor:
    return h + vector[:, :, None, None]


def scattered(net, h, y):
    one_hot = torch.zeros(y.shape[0], CLASSES, dtype=h.dtype)
    one_hot.scatter_(1, y[:, None], 1.0)
    return added(h, net.linear(one_hot))


def assigned(net, h, y):
    one_hot = torch.zeros(y.shape[0], CLASSES, dtype=h.dtype)
    one_hot[torch.arange(y.shape[0]), y] = 1
    return added(h, net.linear(one_hot))


def changed_between_uses(net, h, y):
    e = net.embedding(y)
    h = added(h, e)
    e += 1
    return h * e[:, :, None, None]


def changed_in_part(net, h, y):
    e = net.embedding(y)
    e[:, :3] *= 3
    return added(h, e)


def changed_through_a_view(net, h, y):
    e = net.embedding(y)
    e[:, :3].clamp_(max=2)
    return added(h, e)


def summed_up(net, h, y):
    total = torch.zeros_like(h)
    total += h
    total += net.embedding(y)[:, :, None, None]
    return total


def a_plane_of_its_own(net, h, y):
    plane = net.embedding(y)[:, :1, None, None].expand(-1, 1, *h.shape[2:])
    return net.wider(torch.cat([h, plane], 1))


def the_label_as_a_plane(net, h, y):
    return net.wider(torch.cat([h, y.view(-1, 1, 1, 1).repeat(1, 1, *h.shape[2:]).to(h)], 1))


def written_into_features(net, h, y):
    h = h.clone()
    h[:, 1:3] = net.embedding(y)[:, :2, None, None]
    h[:, 4] = 1
    h[:, 5:].fill_(-1)
    return h


BODIES = {
    "an embedding": lambda net, h, y: added(h, net.embedding(y)),
    "rows of a parameter": lambda net, h, y: added(h, net.embedding.weight[y]),
    "compared": lambda net, h, y: added(h, net.linear((y[:, None] == torch.arange(CLASSES)).to(h.dtype))),
    "expanded to the features": lambda net, h, y: h + net.embedding(y).view(-1, 6, 1, 1).expand_as(h),
    "scattered": scattered,
    "assigned": assigned,
    "changed between uses": changed_between_uses,
    "changed in part": changed_in_part,
    "summed up": summed_up,
    "a plane of its own": a_plane_of_its_own,
    "changed through a view": changed_through_a_view,
    "the label as a plane": the_label_as_a_plane,
    "written into features": written_into_features,
    "zeroed for a label": lambda net, h, y: added(h, net.embedding(y).masked_fill((y == 0)[:, None], 0.0)),
    "features chosen by label": lambda net, h, y: torch.where(
        (y == 0)[:, None, None, None], h, added(-h, net.embedding(y))
    ),
    "features filled for a label": lambda net, h, y: added(h, net.embedding(y)).masked_fill(
        (y == 1)[:, None, None, None], 0.3
    ),
    "added with a factor": lambda net, h, y: torch.add(h, y[:, None, None, None], alpha=0.5),
    "moved to the features' dtype": lambda net, h, y: added(
        h, F.one_hot(y, CLASSES).to(h) @ net.linear.weight.T
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_every_label_gives_the_naive_images(name):
    sampler = Sampler(Net(BODIES[name]).double(), SHAPE, levels=LEVELS, image_form="unit")
    u, labels = noise(1, SHAPE).expand(5, -1, -1, -1), torch.tensor([0, 3, 1, 2, 2])
    naive = assert_runtimes_agree(
        sampler, 5, u=u, labels=labels, batch_sizes=(2, 5)
    )  # recorded calls run again
    assert len(naive.unique(dim=0)) > 2


REFUSED = {
    "picked by label": (lambda net, h, y: h[y], "depends on the condition"),
    "assigned by label": (
        lambda net, h, y: (h.__setitem__(y, 0), h)[1],
        r"index_\w+: one of its arguments depends on the condition",
    ),
    "a branch": (
        lambda net, h, y: added(h, net.embedding(y)) * (2 if bool((y == 3).any()) else 1),
        "model: an if on what depends on the labels: it falls otherwise for label 3",
    ),
    "read by Python": (
        lambda net, h, y: added(h, torch.stack([net.embedding.weight[i] for i in y.tolist()])),
        r"tolist\(\) in model of a tensor that depends on the labels",
    ),
    "those of other images": (
        lambda net, h, y: added(h, net.embedding(y) - net.embedding(y).mean(0)),
        "depends on the other images of the batch",
    ),
    "one for the whole batch": (
        lambda net, h, y: h + net.embedding(y).mean(0)[:, None, None],
        "conditions of several images",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    body, message = REFUSED[name]
    with pytest.raises(Unsupported, match=message):
        Sampler(Net(body).double(), SHAPE, levels=LEVELS, image_form="unit")


def test_a_branch_that_falls_alike_for_all_labels_is_followed():
    def body(net, h, y):
        assert 0 <= y.min() and y.max() < CLASSES
        return added(h, net.embedding(y))

    Sampler(Net(body), SHAPE, levels=LEVELS, image_form="unit")
