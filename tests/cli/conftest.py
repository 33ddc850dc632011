"""Checkpoints that the tests of the command line share."""

from pathlib import Path

import pytest

from pixelcnn_fast import checkpoint
from pixelcnn_fast.bench.workload import random_model
from tests.processes import CLASSES, TINY


@pytest.fixture(scope="package")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "plain.safetensors"
    checkpoint.save(random_model(**TINY), path)
    return path


@pytest.fixture(scope="package")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "conditional.safetensors"
    checkpoint.save(random_model(n_classes=CLASSES, **TINY), path)
    return path
