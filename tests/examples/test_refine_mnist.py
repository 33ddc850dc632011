"""The refining example: its critic, which strip gets credit for what, and that refining makes samples better."""

from pathlib import Path

import numpy as np
import pytest
import refine_mnist
import torch

from pixelcnn_fast import Sampler, checkpoint
from pixelcnn_fast.likelihood import bits_per_dim
from pixelcnn_fast.models import PixelCNN
from tests.examples import interrupted_at_its_second_call
from tests.tiers import thorough


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Black images, 7x5, with a white column whose position is the label's."""
    labels = torch.arange(70) % 3
    images = torch.zeros(70, 1, 7, 5, dtype=torch.uint8)
    images[torch.arange(70), 0, :, labels + 1] = 255
    return images, labels


@pytest.fixture
def options(data: tuple, tmp_path: Path) -> list[str]:
    """Options for a run of a few seconds, from a model that has learned nothing."""
    np.savez(tmp_path / "data.npz", images=data[0][:, 0].numpy(), labels=data[1].numpy())
    torch.manual_seed(0)
    checkpoint.save(PixelCNN(1, 8, 1, n_classes=3), tmp_path / "model.safetensors")
    files = dict(npz="data.npz", checkpoint="model.safetensors", out="refined.safetensors")
    given: dict[str, object] = {name: tmp_path / file for name, file in files.items()}
    given |= {"held-out": 10, "rounds": 2, "samples": 16, "critic-steps": 5, "batch": 8, "lr": 0.01}
    return [text for name, value in given.items() for text in (f"--{name}", str(value))]


def test_the_critic_recognises_samples_and_wrong_labels_and_ignores_unseen_rows(data: tuple) -> None:
    images, labels = data
    noise = torch.randint(0, 256, images.shape, dtype=torch.uint8)
    critic = refine_mnist.Critic(images.shape[1:], 3)
    critic.learn(images, labels, noise, steps=150)
    real, wrong, sampled = (
        critic.realness(x, y) for x, y in ((images, labels), (images, (labels + 1) % 3), (noise, labels))
    )
    assert real.shape == (70, 3)  # before, after 4 rows, after 7
    assert real[:, -1].min() > 2 and wrong[:, -1].max() < real[:, -1].min() and sampled[:, -1].max() < -2
    later = images.clone()
    later[:, :, 4:] = noise[:, :, 4:]
    mixed = critic.realness(later, labels)
    torch.testing.assert_close(mixed[:, :2], real[:, :2])
    assert (mixed[:, 2] < real[:, 2]).all()
    torch.testing.assert_close(real[:, 0], sampled[:, 0])


def test_a_strip_is_credited_with_its_own_gain_and_part_of_later_ones() -> None:
    realness = torch.tensor([[0.0, 1.0, 1.0, -1.0], [0.0, 0.0, 0.0, 0.0]])
    own = torch.tensor([1 - 2 * refine_mnist.FORESIGHT**2, -2 * refine_mnist.FORESIGHT, -2.0])
    torch.testing.assert_close(refine_mnist.merits(realness), torch.stack([own / 2, -own / 2]))


@thorough
def test_samples_become_more_real_and_the_average_is_saved(data, options, tmp_path):
    images, labels = data
    history = refine_mnist.main([*options, "--rounds", "6", "--average", "0.9"])
    assert len(history) == 6
    refined = checkpoint.load(tmp_path / "refined.safetensors")
    assert bits_per_dim(refined, [(images[-10:], labels[-10:])]) == pytest.approx(history[-1], rel=1e-4)
    notes = checkpoint.read_notes(tmp_path / "refined.safetensors")
    assert notes["rounds"] == "6" and notes["refined_from"].endswith("model.safetensors")

    def distance(model: checkpoint.Model) -> float:
        """Mean |level| between samples and the image of their label."""
        samples = Sampler(model, (1, 7, 5)).sample(
            60, labels[:60], generator=torch.Generator().manual_seed(1)
        )
        return (samples.float() - images[:60].float()).abs().mean().item()

    assert distance(refined) < 0.8 * distance(checkpoint.load(tmp_path / "model.safetensors"))


@thorough
def test_what_the_critic_praises_becomes_more_likely(options, tmp_path, monkeypatch):
    def brightness(sign: int) -> float:
        """Mean level of samples after refining for a critic that praises light (+1) or dark (-1) images."""

        def realness(critic: torch.nn.Module, samples: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            light = sign * samples.float().mean((1, 3)).cumsum(1) / 10
            return torch.stack([torch.zeros(len(samples)), light[:, 3], light[:, 6]], 1)

        monkeypatch.setattr(refine_mnist.Critic, "realness", realness)
        refine_mnist.main([*options, "--rounds", "3", "--average", "0.9"])
        refined = checkpoint.load(tmp_path / "refined.safetensors")
        labels = torch.arange(60) % 3
        return Sampler(refined, (1, 7, 5)).sample(60, labels).float().mean().item()

    monkeypatch.setattr(refine_mnist, "WARMUP_STEPS", 1)
    assert brightness(1) > brightness(-1) + 10


@thorough
def test_the_seed_decides(options: list[str]) -> None:
    runs = [refine_mnist.main([*options, "--rounds", "1", "--seed", seed]) for seed in ("1", "1", "2")]
    assert runs[0] == pytest.approx(runs[1], rel=1e-5)
    assert runs[0] != pytest.approx(runs[2], rel=1e-5)


@thorough
def test_ctrl_c_keeps_the_last_round(options, tmp_path, monkeypatch):
    monkeypatch.setattr(refine_mnist, "bits_per_dim", interrupted_at_its_second_call(bits_per_dim))
    assert len(refine_mnist.main(options)) == 1
    checkpoint.load(tmp_path / "refined.safetensors")


def test_wrong_files_and_options(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def error(*more: object) -> str:
        with pytest.raises(SystemExit):
            refine_mnist.main([*options, *map(str, more)])
        return capsys.readouterr().err

    assert "no such file" in error("--npz", tmp_path / "absent.npz")
    assert "no such file" in error("--checkpoint", tmp_path / "absent.safetensors")
    assert "none is left to train on" in error("--held-out", 70)
    assert "no folder" in error("--out", tmp_path / "absent" / "model.safetensors")
    for n_classes in (None, 2):
        checkpoint.save(PixelCNN(1, 8, 1, n_classes=n_classes), tmp_path / "model.safetensors")
        assert f"n_classes={n_classes}, but the labels reach 2" in error()
