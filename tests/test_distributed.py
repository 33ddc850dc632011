"""Jobs: the images do not depend on the processes, nothing is drawn twice, and what fails says why."""

import errno
import inspect
import io
import json
import os
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast import NonFiniteLogits, Sampler, distributed
from pixelcnn_fast.call import RunSettings
from pixelcnn_fast.distributed import ranks
from pixelcnn_fast.distributed.drawing import DrawingArguments, PerImage, told_apart
from pixelcnn_fast.distributed.shards import FORMATS, MANIFEST, FileFormat, Shards
from pixelcnn_fast.files import replacing
from pixelcnn_fast.heads import SamplingOptions
from pixelcnn_fast.native import native
from pixelcnn_fast.noise import noise_of
from tests.heads.test_logistic_mixture import UNROUNDED, sampler_of
from tests.processes import (
    CLASSES,
    FATEFUL,
    SHAPE,
    SHARD_SIZE,
    N,
    draw,
    draw_twice_in_a_group_of_the_user,
    draw_with_a_seed_of_its_own,
    labels,
    labels_that_kill,
    labels_that_raise,
    run,
    sampler,
)
from tests.sampler_life.common import silence
from tests.tiers import thorough

COUNT = 13  # of the shards


def arrays(
    folder: Path, n: int = N, size: int = SHARD_SIZE, file_format: Any = "npz"
) -> dict[str, np.ndarray]:
    """All shards of a folder, joined."""
    shards = Shards(folder, n, size, file_format)
    read = [shards.read(shard) for shard in range(shards.count)]
    return {name: np.concatenate([each[name] for each in read]) for name in read[0]}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npz")}


def draw_five(folder: Path, **changed: Any) -> None:
    distributed.sample(sampler(), 5, folder, labels, shard_size=2, **changed)


def five(folder: Path, file_format: FileFormat = "npz") -> Shards:
    """What ``draw_five`` draws."""
    return Shards(folder, 5, 2, file_format)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job that one process has done."""
    folder = tmp_path_factory.mktemp("jobs") / "whole"
    draw(folder)
    return folder


def test_images_and_log_probabilities_are_the_samplers(whole: Path) -> None:
    own = sampler()
    noise = noise_of(3, range(N), own.noise_shape)
    given = labels(torch.arange(N))
    images, log_probabilities = own.sample(N, given, noise=noise, log_probability=True, batch_size=SHARD_SIZE)
    found = arrays(whole)
    assert np.array_equal(found["images"], images.numpy()) and images.numpy().std() > 30
    assert np.array_equal(found["log_probabilities"], log_probabilities.numpy())
    assert np.array_equal(found["labels"], labels(torch.arange(N)).numpy())
    assert len(list(whole.iterdir())) == COUNT + 1


@pytest.mark.parametrize("file_format", FORMATS)
def test_real_numbers_and_levels_without_log_probabilities(file_format: FileFormat, tmp_path: Path) -> None:
    """Each head is another job, and a shard that is missing is drawn again."""
    dtypes = {"never": np.float32, "end": np.uint8}
    for name, dtype in dtypes.items():
        own, folder = sampler_of(UNROUNDED[name]), tmp_path / name
        distributed.sample(own, 3, folder, shard_size=2, file_format=file_format)
        images = own.sample(3, noise=noise_of(0, range(3), own.noise_shape)).numpy()
        found = arrays(folder, 3, 2, file_format)
        assert [*found] == ["images"] and found["images"].dtype == dtype
        assert np.array_equal(found["images"], images)
        Shards(folder, 3, 2, file_format).path(1).unlink()
        distributed.sample(own, 3, folder, shard_size=2, file_format=file_format)
        assert np.array_equal(arrays(folder, 3, 2, file_format)["images"], images)
    with pytest.raises(ValueError, match="holds another job: dtype is .*; model is"):
        distributed.sample(own, 3, tmp_path / "never", shard_size=2, file_format=file_format)


def test_the_manifest_says_what_the_job_is(whole: Path) -> None:
    manifest = json.loads((whole / MANIFEST).read_text())
    assert manifest.pop("model") == sampler().fingerprint() and len(manifest.pop("labels")) == 64
    assert manifest.pop("probe")["parameters"] == sampler().probe()
    assert manifest == {
        "version": 2,
        "n": N,
        "shard_size": SHARD_SIZE,
        "shards": COUNT,
        "file_format": "npz",
        "image_shape": list(SHAPE),
        "dtype": "uint8",
        "seed": 3,
        "temperature": 1.0,
        "top_k": None,
        "top_p": None,
        "condition": None,
    }


@thorough
@pytest.mark.parametrize("size", [2, 1, 4])
def test_files_do_not_depend_on_the_number_of_processes(size: int, whole: Path, tmp_path: Path) -> None:
    assert [end.error for end in run(size, draw, tmp_path)] == [None] * size
    assert files(tmp_path) == files(whole)


def test_a_job_that_was_killed_goes_on(whole: Path, tmp_path: Path) -> None:
    ends = run(3, draw, tmp_path, labels_that_kill)
    assert -9 in [end.status for end in ends] and all(end.status for end in ends)
    before = times(tmp_path)
    fateful = Shards(tmp_path, N, SHARD_SIZE, "npz").path(FATEFUL // SHARD_SIZE).name
    assert (
        fateful not in before and 4 <= len(before) < COUNT
    )  # both others may have been in the middle of one
    unfinished = tmp_path / "shard-000012.npz.elsewhere-123.unfinished"
    unfinished.write_bytes(b"half")
    os.utime(unfinished, (0, 0))

    assert [end.error for end in run(2, draw, tmp_path)] == [None, None]
    assert files(tmp_path) == files(whole)
    after = times(tmp_path)
    assert {name: after[name] for name in before} == before


@thorough
def test_processes_that_torchrun_restarts_go_on(whole: Path, tmp_path: Path) -> None:
    """Its store still holds the counters of those that were killed."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [*torchrun, "--max-restarts", "1", "-m", "tests.processes", tmp_path], check=True, timeout=120
    )
    assert files(tmp_path) == files(whole)


def test_a_name_is_new_and_common_to_all_ranks() -> None:
    store = dist.HashStore()
    found = []
    for _ in range(3):  # the store keeps what was written before
        with ThreadPoolExecutor(3) as threads:
            found.append(list(threads.map(lambda rank: ranks.common_name(rank, 3, store), range(3))))
    assert [len(set(names)) for names in found] == [1, 1, 1]
    assert len({names[0] for names in found}) == 3


def test_an_answer_from_before_a_restart_is_no_answer() -> None:
    store = dist.HashStore()
    for _ in range(2):
        with ThreadPoolExecutor(2) as threads:
            other = threads.submit(ranks.common_name, 1, 2, store)
            time.sleep(0.05)
            assert not other.done()  # rank 0 has not begun
            assert ranks.common_name(0, 2, store) == other.result()


def test_a_finished_job_is_left_alone(whole: Path) -> None:
    before = times(whole)
    draw(whole, runtime="eager", batch_size=1)  # these change no image
    assert times(whole) == before


def test_a_process_that_fails_ends_the_job_with_its_reason(tmp_path: Path) -> None:
    ends = run(2, draw, tmp_path, labels_that_raise)
    errors = [end.error or "" for end in ends]
    [failed] = [rank for rank, error in enumerate(errors) if error.startswith("LookupError: no label")]
    told = f"RuntimeError: rank {failed} failed: LookupError: no label for image {FATEFUL}"
    assert errors[1 - failed] == told


def test_an_unusable_folder_is_told_to_all(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    first, second = run(2, draw, tmp_path / "file")
    assert first.error and first.error.startswith("FileExistsError")
    assert second.error and second.error.startswith("RuntimeError: rank 0 failed: FileExistsError")


def test_processes_with_other_arguments_are_refused(tmp_path: Path) -> None:
    first, second = run(2, draw_with_a_seed_of_its_own, tmp_path)
    assert second.error == "ValueError: rank 1 has other arguments than rank 0: seed is 0 there, 1 here"
    assert first.error == f"RuntimeError: rank 1 failed: {second.error}"


def test_a_process_group_of_the_user_is_used_and_kept(whole: Path, tmp_path: Path) -> None:
    assert [end.error for end in run(2, draw_twice_in_a_group_of_the_user, tmp_path)] == [None, None]
    assert files(tmp_path / "first") == files(whole)
    first, second = arrays(whole), arrays(tmp_path / "second", file_format="safetensors")
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(seed=4), "seed is 3 there, 4 here"),
        (dict(shard_size=5), "shard_size is 2 there, 5 here; shards is 13 there, 5 here"),
        (dict(temperature=0.5), r"temperature is 1\.0 there, 0\.5 here"),
        (dict(top_k=3), "top_k is null there, 3 here"),
        (dict(labels=lambda images: images % 2), 'labels is "[0-9a-f]{15}... there'),
        (dict(labels=torch.zeros(N, dtype=torch.long)), "labels is"),
        (dict(of=1), 'model is "'),
    ],
)
def test_another_job_is_refused_in_the_same_folder(
    changed: dict[str, Any], message: str, whole: Path
) -> None:
    before = files(whole)
    with pytest.raises(ValueError, match=f"holds another job: {message}"):
        draw(whole, **changed)
    assert files(whole) == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(labels=None), "this model is conditional"),
        (dict(labels=torch.zeros(N - 1)), f"labels: 24 are given, expected {N}"),
        (dict(condition=torch.zeros(N)), "a condition was given"),
        (dict(condition=torch.zeros(N + 1)), f"condition: 26 are given, expected {N}"),
        (dict(seed=-1), "seed is -1"),
        (dict(shard_size=0), "shard_size is 0: expected an integer, 1 or more"),
        (dict(file_format="png"), "file_format"),
        (dict(top_k=0), "top_k is 0"),
        (dict(runtime="fast"), "runtime"),
    ],
)
def test_bad_arguments_leave_no_folder(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        draw(tmp_path / "new", **changed)
    assert not (tmp_path / "new").exists()


def ended_by(error: BaseException, images: list[int]) -> PerImage:
    """Labels that raise when the shard of these images is drawn."""

    def of(numbers: Tensor) -> Tensor:
        if numbers.tolist() == images:
            raise error
        return labels(numbers)

    return of


def test_a_wrong_job_without_shards_can_be_put_right(whole: Path, tmp_path: Path) -> None:
    for wrong in (lambda images: images % CLASSES + CLASSES, ended_by(LookupError("no labels"), [0, 1])):
        with pytest.raises((ValueError, LookupError), match="labels"):
            draw(tmp_path, wrong)
        assert not files(tmp_path)
    draw(tmp_path)
    assert files(tmp_path) == files(whole)


def test_a_job_that_fails_at_once_leaves_the_manifest_of_another_process(tmp_path: Path) -> None:
    """Which may be at work. Here, it was interrupted."""
    for error in (KeyboardInterrupt(), LookupError()):
        with pytest.raises(type(error)):
            draw(tmp_path, ended_by(error, [0, 1]))
        assert list(files(tmp_path)) == [MANIFEST]


def test_another_job_is_refused_before_there_are_shards(tmp_path: Path) -> None:
    """It may be running."""
    shards = five(tmp_path)
    shards.prepare({"seed": 1})
    shards.prepare({"seed": 1})
    for settings, message in (
        ({"seed": 2}, "seed is 1 there, 2 here"),
        ({}, "seed is 1 there, null here"),
        ({"seed": 1, "top_k": 3}, "top_k is null there, 3 here"),
    ):
        with pytest.raises(ValueError, match=f"holds another job: {message}"):
            shards.prepare(settings)


def test_what_another_process_is_writing_stays(tmp_path: Path) -> None:
    shards = five(tmp_path)
    with replacing(shards.path(0)) as file:
        file.write(b"half")
        shards.prepare({})
    assert shards.finished().tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("writer", "stays"), [("here", False), ("another user's", True), ("elsewhere", True)]
)
def test_what_a_killed_process_was_writing_goes(writer, stays, tmp_path, monkeypatch):
    """At once if it ran here; if it ran elsewhere it may be at work. And it is no shard of another job."""
    killed = subprocess.Popen(["true"])
    killed.wait()

    def forbidden(process: int, number: int) -> None:
        assert (process, number) == (killed.pid, 0)
        raise PermissionError

    if writer == "another user's":
        monkeypatch.setattr(os, "kill", forbidden)
    host = "elsewhere" if writer == "elsewhere" else socket.gethostname()
    unfinished = tmp_path / f"shard-000000.npz.{host}-{killed.pid}.unfinished"
    unfinished.write_bytes(b"half")
    five(tmp_path).prepare({})
    assert unfinished.exists() == stays and (tmp_path / MANIFEST).exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\xff", None])
def test_a_damaged_or_missing_manifest_is_named(text: str | None, tmp_path: Path) -> None:
    (tmp_path / "shard-000000.npz").touch()
    if text is not None:
        (tmp_path / MANIFEST).write_bytes(text.encode("latin-1"))
    message = "manifest.json is missing" if text is None else "manifest.json .*: take another folder"
    with pytest.raises(ValueError, match=message):
        five(tmp_path).prepare({})


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_damaged_shard_is_named(file_format: FileFormat, tmp_path: Path) -> None:
    shards = five(tmp_path, file_format)
    shards.write(0, {"images": np.arange(200, dtype=np.uint8).reshape(2, 1, 10, 10)})
    assert shards.read(0)["images"].sum() == 19900
    whole = shards.path(0).read_bytes()
    places = [len(whole) // 2] if file_format == "npz" else [-1, whole.index(b"crc32"), whole.index(b"U8")]
    flipped = [np.frombuffer(whole, np.uint8).copy() for _ in places]
    for content, place in zip(flipped, places, strict=True):
        content[place] ^= 1
    for damaged in (b"", b"PK\x03\x04half", b"text", *(content.tobytes() for content in flipped)):
        shards.path(0).write_bytes(damaged)
        with pytest.raises(ValueError, match="shard-000000.* is damaged .*: delete it"):
            shards.read(0)


def without_numbers(shards: Shards) -> None:
    """Its headers are all right."""
    path, whole = shards.path(1), shards.read(1)
    if shards.file_format == "safetensors":
        path.write_bytes(path.read_bytes()[:-1])
        return
    with zipfile.ZipFile(path, "w") as file:
        for name, x in whole.items():
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(x))
            file.writestr(f"{name}.npy", header.getvalue())


def linked_to(target: str) -> Callable[[Shards], None]:
    def damage(shards: Shards) -> None:
        shards.path(1).unlink()
        shards.path(1).symlink_to(shards.folder / target)

    return damage


def changed(change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Callable[[Shards], None]:
    return lambda shards: shards.write(1, change(shards.read(1)))


def a_pipe(shards: Shards) -> None:
    shards.path(1).unlink()
    os.mkfifo(shards.path(1))


DAMAGES: dict[str, Callable[[Shards], object]] = {
    "cut short": lambda shards: shards.path(1).write_bytes(shards.path(1).read_bytes()[:-20]),
    "empty": lambda shards: shards.path(1).write_bytes(b""),
    "without numbers": without_numbers,
    "linked to nothing": linked_to("nothing"),
    "linked to something": linked_to("precious"),  # which is not to be overwritten
    "another shard, of one image": lambda shards: shards.path(1).write_bytes(shards.path(2).read_bytes()),
    "another dtype": changed(lambda found: {**found, "images": found["images"].astype("int32")}),
    "no labels": changed(lambda found: {name: x for name, x in found.items() if name != "labels"}),
    "too few": changed(lambda found: {**found, "log_probabilities": found["log_probabilities"][:1]}),
    **({"a pipe": a_pipe} if hasattr(os, "mkfifo") else {}),
}


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_shard_is_drawn_again(name: str, file_format: FileFormat, tmp_path: Path) -> None:
    draw_five(tmp_path, file_format=file_format)
    shards, precious = five(tmp_path, file_format), tmp_path / "precious"
    before = shards.path(1).read_bytes()
    precious.write_text("precious")
    DAMAGES[name](shards)
    with pytest.warns(UserWarning, match=f"{shards.path(1).name} is damaged, and is drawn again"):
        draw_five(tmp_path, file_format=file_format)
    assert shards.path(1).read_bytes() == before and not shards.path(1).is_symlink()
    assert not (tmp_path / "nothing").exists() and precious.read_text() == "precious"
    with silence():
        draw_five(tmp_path, file_format=file_format)


@pytest.mark.parametrize(
    "error", [ImportError("no safetensors"), OSError(errno.EMFILE, "too many open files")]
)
def test_a_shard_that_can_t_be_looked_at_stays(error: Exception, tmp_path: Path, monkeypatch: Any) -> None:
    draw_five(tmp_path)
    before = five(tmp_path).path(1).read_bytes()

    def failing(*_: object) -> None:
        raise error

    monkeypatch.setattr(Shards, "_kinds", failing)
    with pytest.raises(type(error)):
        draw_five(tmp_path)
    assert five(tmp_path).path(1).read_bytes() == before


def test_labels_are_compared_whole_and_whatever_they_come_in(tmp_path: Path) -> None:
    many: Any = np.zeros(200, np.int32)
    n: Any = np.int64(200)
    distributed.sample(sampler(), n, tmp_path, many, shard_size=n)
    with silence():
        distributed.sample(sampler(), 200, tmp_path, torch.zeros(200, dtype=torch.long), shard_size=200)
    many[150] = 1
    with pytest.raises(ValueError, match="holds another job: labels is"):
        distributed.sample(sampler(), 200, tmp_path, many, shard_size=200)


def test_what_is_wrong_with_a_shard_is_told_and_a_folder_is_an_error(tmp_path: Path) -> None:
    draw_five(tmp_path)
    shards = five(tmp_path)
    shards.path(1).write_bytes(shards.path(2).read_bytes())
    with pytest.warns(UserWarning, match=r"images: uint8 \[1, .*\], expected uint8 \[2, "):
        draw_five(tmp_path)
    shards.path(1).unlink()
    shards.path(1).mkdir()
    with pytest.raises(ValueError, match="shard-000001.npz is a folder, where a file of images should be"):
        draw_five(tmp_path)


def probe(*parameters: float) -> dict[str, Any]:
    return {"probe": {"parameters": list(parameters), "within": 1e-4}}


@pytest.mark.parametrize(
    ("first", "other"),
    [
        (probe(1.0, -4.0), probe(1.0, -4.002)),
        (probe(1.0, 1.0), probe(1.0)),
        (
            probe(1.0, 2.0, -1e9),
            probe(1.0, 2.1, -1e9),
        ),  # one stands for what is impossible, and hides no other
        (probe(1.0), {"probe": {"parameters": [1.0], "within": None}}),  # as if it had been edited
        (probe(1.0), {"probe": {}}),
        (probe(1.0), {"probe": {"parameters": "x", "within": 1}}),
    ],
)
def test_a_probe_may_differ_by_rounding_and_no_more(first: Any, other: Any, tmp_path: Path) -> None:
    shards = five(tmp_path)
    shards.prepare(first)
    shards.prepare(probe(*(1.00001 * x for x in first["probe"]["parameters"])))
    shards.prepare({"probe": None})  # it was pickled without its module
    with pytest.raises(ValueError, match="another job: probe is"):
        shards.prepare(other)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_no_manifest(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / MANIFEST)
    with pytest.raises(ValueError, match="manifest.json is no file"):
        five(tmp_path).prepare({})


@pytest.mark.parametrize("has_links", [True, False])
def test_of_two_jobs_that_begin_at_once_one_has_the_folder(has_links, tmp_path, monkeypatch):
    link = os.link

    def too_late(unfinished: Path, path: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        five(tmp_path).prepare({"seed": 1})
        if not has_links:
            raise PermissionError("no links here")
        link(unfinished, path)

    monkeypatch.setattr(os, "link", too_late)
    with pytest.raises(ValueError, match="holds another job: seed is 1 there, 2 here"):
        five(tmp_path).prepare({"seed": 2})


def test_a_run_that_fails_takes_no_manifest_from_another(tmp_path: Path) -> None:
    one, other = five(tmp_path), five(tmp_path)
    one.prepare({"seed": 1})
    other.prepare({"seed": 1})
    one.withdraw()
    other.write(0, {"images": np.zeros(2)})
    five(tmp_path).prepare({"seed": 1})


def test_too_many_files_are_refused_at_once(tmp_path: Path) -> None:
    for n in (10**12, 10**12 - 1):
        with pytest.raises(ValueError, match="make shard_size 100000 or more"):
            Shards(tmp_path, n, 1000, "npz")
    assert Shards(tmp_path, 10**12 - 1, 100_000, "npz").count == 10**7


@pytest.mark.parametrize("value", [-1, 2.0, "3", True])
def test_counts_that_are_none_are_refused(value: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"n is {value!r}: expected an integer, 0 or more"):
        Shards(tmp_path, value, 2, "npz")
    with pytest.raises(ValueError, match=f"shard_size is {value!r}: expected an integer, 1 or more"):
        Shards(tmp_path, 5, value, "npz")


def test_labels_may_be_a_tensor_of_any_integers(whole: Path, tmp_path: Path) -> None:
    draw(tmp_path, labels(torch.arange(N, dtype=torch.int32)))
    assert arrays(tmp_path)["labels"].dtype == np.int64
    assert np.array_equal(arrays(tmp_path)["images"], arrays(whole)["images"])


class Conditioned(nn.Module):
    """Attends to the pixels before as the condition says, which it adds to its logits, too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 8, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        given = condition[:, :, None, None].expand(-1, -1, *x.shape[2:])
        own = self.conv(x / 7)
        query, key = ((h + given).flatten(2).mT for h in (F.pad(own, (1, -1)), own))
        earlier = torch.ones(key.shape[1], key.shape[1], dtype=torch.bool).tril(-1)
        found = F.scaled_dot_product_attention(query, key, key, attn_mask=earlier)
        return found.mT.reshape(given.shape) + given


def test_large_shards_are_drawn_in_parts(tmp_path: Path, monkeypatch) -> None:
    draw(tmp_path / "whole", shard_size=20)
    monkeypatch.setattr(distributed.drawing, "WORKSPACE", 2 * 8 * 20 * 3)  # of three images
    counts: list[int] = []
    sample = Sampler.sample

    def counted(self: Sampler, n: int, *arguments: Any, **keywords: Any) -> Any:
        counts.append(n)
        return sample(self, n, *arguments, **keywords)

    monkeypatch.setattr(Sampler, "sample", counted)
    draw(tmp_path / "parts", shard_size=20)
    assert counts == [0, *[3] * 6, 2, 3, 2]
    parts, whole = (arrays(tmp_path / name, size=20) for name in ("parts", "whole"))
    assert np.array_equal(parts["images"], whole["images"])
    if native() is not None:  # or else products depend on the number of images, in their last bits
        assert files(tmp_path / "parts") == files(tmp_path / "whole")


@pytest.mark.parametrize("workspace", [1, 1 << 20])
def test_conditions_are_those_of_their_images(workspace: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(distributed.drawing, "WORKSPACE", workspace)
    own = Sampler(Conditioned(), (1, 3, 3), levels=8, conditional=False, condition_shape=(8,))
    conditions = torch.randn(7, 8, generator=torch.Generator().manual_seed(0)) * 3
    distributed.sample(own, 7, tmp_path / "tensor", condition=conditions, shard_size=3)
    distributed.sample(own, 7, tmp_path / "function", condition=conditions.__getitem__, shard_size=3)
    expected = own.sample(7, noise=noise_of(0, range(7), own.noise_shape), condition=conditions)
    for name in ("tensor", "function"):
        found = arrays(tmp_path / name, 7, 3)
        assert np.array_equal(found["images"], expected.numpy()) and "labels" not in found

    with pytest.raises(ValueError, match='another job: condition is "'):
        distributed.sample(own, 7, tmp_path / "tensor", condition=conditions + 1, shard_size=3)

    conditions[5, 2] = float("nan")
    with pytest.raises(NonFiniteLogits) as failed:
        distributed.sample(own, 7, tmp_path / "nan", condition=conditions, shard_size=3)
    assert failed.value.location == (5, 0, 0, 0)
    assert sorted(files(tmp_path / "nan")) == [MANIFEST, "shard-000000.npz"]


def test_its_arguments_are_the_samplers() -> None:
    kinds = (SamplingOptions, RunSettings)
    expected = {field.name for kind in kinds for field in fields(kind)}
    assert {*DrawingArguments.__annotations__, "temperature", "condition", "progress"} == expected
    assert expected <= inspect.signature(distributed.sample).parameters.keys()


def test_an_interrupt_says_what_is_finished(whole: Path, tmp_path: Path, capsys) -> None:
    with pytest.raises(KeyboardInterrupt, match=f"^4 of {N} images are finished, in .*; start it again"):
        draw(tmp_path, ended_by(KeyboardInterrupt(), [4, 5]))
    draw(tmp_path, progress=True)
    assert files(tmp_path) == files(whole)
    bar = capsys.readouterr().err
    assert f" 4/{N} " in bar and f" {N}/{N} " in bar and f" 2/{N} " not in bar  # it goes on from 4


def test_it_works_without_torch_distributed(whole: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(ranks.dist, "is_available", lambda: False)
    monkeypatch.delattr(ranks.dist, "is_initialized")
    draw(tmp_path)
    assert files(tmp_path) == files(whole)


def joined_as(rank: int, size: int, monkeypatch: pytest.MonkeyPatch, store: ranks.OwnStore) -> ranks.Ranks:
    """From now on a job runs as this rank, of processes that are not there."""
    found = ranks.Ranks(rank, size, store)
    monkeypatch.setattr(distributed.job, "joined", lambda backend: nullcontext(found))
    return found


def test_the_first_process_alone_speaks(tmp_path: Path, monkeypatch, capsys) -> None:
    store = ranks.OwnStore()
    few = pytest.warns(UserWarning, match="2 shards are too few for 3 processes: a smaller shard_size")
    for rank in (0, 1):
        joined_as(rank, 3, monkeypatch, store).count("agree", 2 - 3 * rank)  # as the two others would
        with few if rank == 0 else silence():
            draw(tmp_path, shard_size=13, progress=True)
        assert (f" {N}/{N} " in capsys.readouterr().err) == (rank == 0)
    joined_as(0, 3, monkeypatch, ranks.OwnStore()).count("agree", 2)
    with silence():  # of no images, no shard is too few
        distributed.sample(sampler(), 0, tmp_path / "none", labels)
    assert list(files(tmp_path / "none")) == [MANIFEST]


def test_rank_0_is_not_done_before_all_agree(tmp_path: Path, monkeypatch) -> None:
    """Else it would not hear of a process that has other arguments, and is late to say so."""
    store = ranks.OwnStore()
    joined_as(0, 2, monkeypatch, store)
    late = ranks.Ranks(1, 2, store)
    monkeypatch.setattr(ranks.time, "sleep", lambda seconds: late.fail(ValueError("seed")))
    with pytest.raises(RuntimeError, match="^rank 1 failed: ValueError: seed$"):
        draw(tmp_path)
    assert len(times(tmp_path)) == COUNT


def test_a_store_that_is_gone_is_the_end_of_rank_0() -> None:
    class Gone(ranks.OwnStore):
        def check(self, keys: list[str], /) -> bool:
            raise dist.DistError("no connection")

    with pytest.raises(RuntimeError, match="rank 0, or what started the processes, has ended: no connection"):
        ranks.Ranks(1, 2, Gone()).check()
    ranks.Ranks(1, 2, Gone()).fail(ValueError())  # there is nobody to tell


def test_rank_0_leaves_last_but_does_not_wait_for_ever(monkeypatch) -> None:
    store = ranks.OwnStore()
    first, second, third = (ranks.Ranks(rank, 3, store) for rank in range(3))
    monkeypatch.setattr(ranks.time, "sleep", lambda seconds: pytest.fail("it waits"))
    third.leave()
    monkeypatch.setattr(ranks.time, "sleep", lambda seconds: second.leave())
    first.leave()
    assert store.add("left", 0) == 3
    monkeypatch.setattr(ranks, "PARTING", 0)
    ranks.Ranks(0, 3, ranks.OwnStore()).leave()


def test_who_failed_first_is_told() -> None:
    store = ranks.OwnStore()
    for rank, error in ((1, ValueError("the cause")), (0, RuntimeError("rank 1 failed"))):
        ranks.Ranks(rank, 2, store).fail(error)
    with pytest.raises(RuntimeError, match="^rank 1 failed: ValueError: the cause$"):
        ranks.Ranks(0, 2, store).check()


def test_a_folder_that_rank_0_does_not_see_filled_is_reported(tmp_path: Path, monkeypatch) -> None:
    """As when each machine has a folder of its own under this name."""
    monkeypatch.setattr(distributed.job, "SEEN_WITHIN", 0)
    write = Shards.write
    monkeypatch.setattr(Shards, "write", lambda self, shard, arrays: shard == 3 or write(self, shard, arrays))
    with pytest.raises(RuntimeError, match="1 of 13 shards were written, but rank 0 does not see them"):
        draw(tmp_path)


def test_functions_are_told_apart_by_their_first_images_and_by_some_later_ones() -> None:
    def step(at: int, number: Tensor) -> Tensor:
        return (number >= at).long()

    assert told_apart(partial(step, 110), 150) != told_apart(partial(step, 140), 150)
    found = [told_apart(partial(step, at), 1000) for at in (3, 4, 500, 900, 2000)]
    assert len(set(found)) == 5 and found[0] == told_apart(partial(step, 3), 1000)
    assert len({told_apart(torch.arange(n), n) for n in range(4)}) == 4 and told_apart(None, 9) is None
    asked: list[int] = []

    def label(number: Tensor) -> Tensor:
        asked.extend(number.tolist())
        return number

    told_apart(label, 10**5)
    assert len(asked) <= 200 and max(asked) > 9e4
