"""Models on the Hugging Face Hub: what is put there comes back, without a network; theirs and ours read each other."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pixelcnn_fast import checkpoint
from pixelcnn_fast.models import GatedPixelCNN, Model, PixelCNN, PixelCNNpp, PixelRNN, PixelSNAIL
from tests.tiers import few

FAMILIES: dict[str, Callable[[], Model]] = {
    "gated, all settings": lambda: GatedPixelCNN(3, 6, [1, 2], 3, 2, 3, "interleaved", levels=5),
    "snail, all settings": lambda: PixelSNAIL(
        300, 4, 3, 1, 1, 1, 0.0, True, 1, condition_levels=6, n_cond_res_blocks=1, n_classes=3
    ),
    "residual": lambda: PixelCNN(1, 4, 1, n_classes=3, kernel_size=3),
    "plus plus": lambda: PixelCNNpp(1, 4, 1, 2),
    "rnn": lambda: PixelRNN("row_lstm", 1, 4, 1, levels=4, kernel_size=3),
}
SMALL: dict[str, Any] = dict(input_channels=1, hidden_channels=4, n_residual=1, n_classes=3, kernel_size=3)


def assert_same(found: Model, model: Model) -> None:
    assert type(found) is type(model) and found.config == model.config and not found.training
    torch.testing.assert_close(found.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", few(FAMILIES, 2))
def test_a_folder_comes_back_and_its_card_samples_it(name: str, tmp_path: Path, monkeypatch) -> None:
    model = FAMILIES[name]()
    model.save_pretrained(tmp_path / "saved", license="cc0-1.0", size=(3, 4), data="noise, mostly")
    assert_same(type(model).from_pretrained(tmp_path / "saved"), model)
    assert_same(checkpoint.load(tmp_path / "saved"), model)
    assert checkpoint.read_notes(tmp_path / "saved") == {"data": "noise, mostly"}
    assert_same(checkpoint.load(tmp_path / "saved" / "model.safetensors"), model)
    card = (tmp_path / "saved" / "README.md").read_text()
    header, text = card.removeprefix("---\n").split("\n---\n")
    assert 'license: "cc0-1.0"' in header and f"- {type(model).__name__.lower()}" in header
    assert "- data: noise, mostly" in text
    (snippet,) = re.findall("```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    variables: dict[str, Any] = {}
    exec(snippet, variables)
    assert variables["images"].shape == (16, model.input_channels, 3, 4)
    assert getattr(model, "levels", 2) > 256 or (tmp_path / "samples.png").stat().st_size


def test_bfloat16_stays_and_a_card_of_one_s_own_does(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    PixelCNN(**SMALL).bfloat16().save_pretrained(tmp_path)
    assert PixelCNN.from_pretrained(tmp_path).conv_in.weight.dtype == torch.bfloat16
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_card_stays_one_whatever_is_written_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = 'a "quoted" \\name'
    license = 'other: "mine"\n---\ntags: none'
    PixelCNN(**SMALL).save_pretrained(folder, license=license, data="rows\n\n# A heading\n---\n- and more")
    card = (tmp_path / folder / "README.md").read_text()
    _, header, text = re.split("^---\n", card, flags=re.MULTILINE)
    found = pytest.importorskip("yaml", reason="PyYAML comes with huggingface_hub").safe_load(header)
    assert found["license"] == license and len(set(found["tags"])) == len(found["tags"])
    assert text.endswith("- data: rows # A heading --- - and more\n")
    (line,) = re.findall("model = (.*)", text)
    assert type(eval(line, {"checkpoint": checkpoint})) is PixelCNN


def test_what_is_pushed_is_what_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    asked: list[dict[str, Any]] = []

    def create_repo(self: Any, repo_id: str, **how: Any) -> Any:
        asked.append(dict(token=self.token, **how))
        return huggingface_hub.RepoUrl(f"https://huggingface.co/someone/{repo_id}")

    def upload_folder(self: Any, *, repo_id: str, folder_path: str, **how: Any) -> str:
        shutil.copytree(folder_path, tmp_path / repo_id)
        asked.append(how)
        return "https://huggingface.co/someone/digits/commit/1"

    def snapshot_download(repo_id: str, *, allow_patterns: list[str], **how: Any) -> str:
        asked.append(how)
        folder = shutil.copytree(tmp_path / repo_id, tmp_path / f"fetched{len(asked)}")
        for path in folder.iterdir():
            if path.name not in allow_patterns:
                path.unlink()
        return str(folder)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    model = PixelCNN(**SMALL)
    address = model.push_to_hub("digits", private=True, token="secret", branch="v1", license="mit")
    assert address == "https://huggingface.co/someone/digits/commit/1"
    card = huggingface_hub.ModelCard.load(tmp_path / "someone" / "digits" / "README.md")
    assert card.data.license == "mit" and card.data.library_name == "pixelcnn_fast"
    assert {"pixelcnn", "pytorch"} <= {*card.data.tags}
    assert 'checkpoint.load("hf://someone/digits")' in card.text
    assert_same(PixelCNN.from_pretrained("someone/digits", revision="v1"), model)
    assert_same(checkpoint.load("hf://someone/digits"), model)
    assert asked == [
        dict(token="secret", private=True, exist_ok=True),
        dict(revision="v1", create_pr=None, commit_message="Add the model"),
        dict(revision="v1"),
        {},
    ]


def test_theirs_and_ours_read_each_other(tmp_path: Path) -> None:
    mixin = pytest.importorskip("huggingface_hub").PyTorchModelHubMixin
    theirs: Any = type("PixelCNN", (mixin, PixelCNN), {})
    model = PixelCNN(**SMALL).eval()
    model.save_pretrained(tmp_path / "ours")
    found = theirs.from_pretrained(tmp_path / "ours")
    torch.testing.assert_close(found.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert found.config == model.config
    theirs(**SMALL).save_pretrained(tmp_path / "theirs")
    loaded = [PixelCNN.from_pretrained(tmp_path / "theirs"), checkpoint.load(tmp_path / "theirs")]
    stored = load_file(tmp_path / "theirs" / "model.safetensors")
    for each in loaded:
        assert each.config == model.config
        torch.testing.assert_close(dict(each.state_dict()), stored, rtol=0, atol=0)


def test_a_class_of_one_s_own(tmp_path: Path) -> None:
    class Own(PixelCNN):
        pass

    Own(**SMALL).save_pretrained(tmp_path)
    assert type(Own.from_pretrained(tmp_path)) is Own
    with pytest.raises(ValueError, match="its model is 'Own', but this version knows PixelCNN"):
        checkpoint.load(tmp_path)


def test_what_is_broken_is_refused(tmp_path: Path) -> None:
    PixelCNN(**SMALL).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="it is a PixelCNN: load it with PixelCNN.from_pretrained"):
        GatedPixelCNN.from_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    tensors, kept = load_file(weights), config.read_text()
    save_file({**tensors, "conv_in.mask": torch.ones_like(tensors["conv_in.mask"])}, weights)
    for load in (PixelCNN.from_pretrained, checkpoint.load):
        with pytest.raises(ValueError, match="conv_in.mask differs from the model's own mask"):
            load(tmp_path)
    config.write_text(json.dumps(json.loads(kept) | {"hidden_channels": 10**9}))
    with pytest.raises(
        ValueError, match="hidden_channels is 1000000000: the file's tensors are not as large"
    ):
        PixelCNN.from_pretrained(tmp_path)
    for text in ("not json", "[]", '{"architectures": []}', "[" * 100_000):
        config.write_text(text)
        with pytest.raises(ValueError, match="config.json: it is no config of a model"):
            PixelCNN.from_pretrained(tmp_path)
    config.write_text(kept)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no model.safetensors beside config.json"):
        checkpoint.load(tmp_path)


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # an ImportError
    for call in (
        lambda: PixelCNN(**SMALL).push_to_hub("digits"),
        lambda: PixelCNN.from_pretrained("someone/digits"),
        lambda: checkpoint.load("hf://someone/digits"),
    ):
        with pytest.raises(ImportError, match=r"pip install 'pixelcnn_fast\[hub\]'"):
            call()
