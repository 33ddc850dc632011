"""Models on the Hugging Face Hub: a folder of config.json, model.safetensors and a model card, README.md.

The format and the methods are those of huggingface_hub.PyTorchModelHubMixin. That is no base class here, as its import
takes a quarter of a second, and as it loads what fits and leaves out what does not: here, what is read is checked.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from torch import nn
from typing_extensions import Self

from pixelcnn_fast.models import stored

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
CLASS = "architectures"  # the key of config.json that is no argument of a constructor, in a list as others have it
TAGS = ("pixelcnn", "autoregressive", "image-generation", "pytorch")


class OnHub(nn.Module):
    """A model of ``models``, which can be put on the Hub and fetched from there."""

    config: dict[str, Any]
    input_channels: int
    n_classes: int | None
    condition_channels: int | None = None
    condition_levels: int | None = None
    many_levels = "levels"  # the form of images of more levels than uint8 has

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, repo_id: str = "", license: str = "unknown",
        size: tuple[int, int] = (32, 32), **notes: str,
    ) -> None:  # fmt: skip
        """Writes config.json, model.safetensors and, unless there is one, a model card into a folder.

        The card shows how to sample the model. repo_id: its name on the Hub, "user/name";
        license: its identifier there; size: the height and width of its images; notes: free
        text, as in ``checkpoint.save``. Raises ValueError as that does.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        stored.write(self, folder / WEIGHTS, notes)
        config = {CLASS: [type(self).__name__], **self.config}
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if not (folder / CARD).exists():
            source = f"hf://{repo_id}" if repo_id else str(folder)
            (folder / CARD).write_text(card(self, source, license, size, notes), encoding="utf-8")

    def push_to_hub(
        self, repo_id: str, *, license: str = "unknown", size: tuple[int, int] = (32, 32),
        private: bool | None = None, token: str | None = None, branch: str | None = None,
        create_pr: bool | None = None, commit_message: str = "Add the model", **notes: str,
    ) -> str:  # fmt: skip
        """Puts what ``save_pretrained`` writes into a repository "user/name" on the Hub, in one commit, whose
        address it returns. The repository is created if need be.

        private: of a new one; branch, create_pr: where the commit goes. Raises ImportError
        without huggingface_hub, and its errors.
        """
        api = _huggingface_hub().HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, repo_id=repo_id, license=license, size=size, **notes)
            where = dict(revision=branch, create_pr=create_pr, commit_message=commit_message)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, **where))

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], **download: Any) -> Self:
        """The model of a folder, or of a repository "user/name" on the Hub, in eval mode, on the CPU.

        download: revision, token, cache_dir, force_download and local_files_only, as
        huggingface_hub.snapshot_download takes them. Raises ValueError if it is of another
        class, or as ``checkpoint.load`` does; ImportError for a repository, without huggingface_hub.
        """
        tensors, metadata = read(name if is_folder(name) else fetched(str(name), **download))
        if (found := metadata.get("model", cls.__name__)) != cls.__name__:
            raise ValueError(
                f"{name}: it is a {found}: load it with {found}.from_pretrained, or checkpoint.load"
            )
        return stored.rebuilt(name, cls, metadata.get("config", "{}"), tensors)


def is_folder(path: str | os.PathLike[str]) -> bool:
    return (Path(path) / CONFIG).is_file()


def fetched(repo_id: str, **download: Any) -> Path:
    """The folder in which huggingface_hub keeps the config and weights of a repository on the Hub."""
    return Path(_huggingface_hub().snapshot_download(repo_id, allow_patterns=[CONFIG, WEIGHTS], **download))


def read(folder: str | os.PathLike[str]) -> tuple[stored.Tensors, dict[str, str]]:
    """The tensors of a folder, and the metadata that a single file of them would have.

    Raises FileNotFoundError if a file is missing; ValueError if one can't be read.
    """
    file = Path(folder) / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        names = config.pop(CLASS, None)
        name = {} if names is None else {"model": str(names[0])}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{file}: it is no config of a model ({str(error)[:300]}); fetch it again"
        ) from error
    if not (file.parent / WEIGHTS).is_file():
        raise FileNotFoundError(f"{file.parent}: there is no {WEIGHTS} beside {CONFIG}")
    tensors, metadata = stored.read(file.parent / WEIGHTS)
    return tensors, {**metadata, "config": json.dumps(config), **name}


def card(model: OnHub, source: str, license: str, size: tuple[int, int], notes: dict[str, str]) -> str:
    """The model card: what the Hub shows and searches, what the model is, and how it is sampled."""
    kind, given, arguments, settings = type(model).__name__, [], "", ""
    if model.n_classes is not None:
        given.append(f"labels = torch.arange(16) % {model.n_classes}")
        arguments += ", labels"
    if model.condition_channels is not None:
        given.append(f"condition = torch.rand{(16, model.condition_channels, *size)}  # yours")
        arguments += ", condition=condition"
    if model.condition_levels is not None:
        shape = tuple(side // 2 if side % 2 == 0 else side for side in size)
        given.append(f"condition = torch.randint({model.condition_levels}, {(16, *shape)})  # yours")
        arguments, settings = f"{arguments}, condition=condition", f", condition_shape={shape}"
    shown = 'pictures.save_grid(images, 4, "samples.png")'
    if (levels := getattr(model, "levels", 256)) > 256:
        settings, shown = f'{settings}, image_form="{model.many_levels}"', f"# codes, 0...{levels - 1}"
    snippet = "\n".join(
        [
            "import torch",
            "from pixelcnn_fast import Sampler, checkpoint, pictures",
            "",
            f"model = checkpoint.load({json.dumps(source)})",
            f"sampler = Sampler(model, {(model.input_channels, *size)}{settings})  # channels, height, width",
            *given,
            f"images = sampler.sample(16{arguments})",
            shown,
        ]
    )
    tags = "".join(f"\n- {tag}" for tag in dict.fromkeys((*TAGS, kind.lower())))
    # One line each: a line of a note is no heading, and no end of a list.
    facts = "\n".join(
        f"- {name}: {' '.join(str(x).split())}" for name, x in {**model.config, **notes}.items()
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return f"""---
library_name: pixelcnn_fast
license: {json.dumps(license)}
pipeline_tag: unconditional-image-generation
tags:{tags}
---
# {kind}
An autoregressive model of images, {parameters:,} parameters, which pixelcnn_fast samples:

```python
{snippet}
```

{facts}
"""


def _huggingface_hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            f"the Hub needs huggingface_hub ({error}): pip install 'pixelcnn_fast[hub]'; a folder needs nothing"
        ) from error
    return huggingface_hub
