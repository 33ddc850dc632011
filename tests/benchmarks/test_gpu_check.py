"""``make gpu-check`` rehearsed: its own commands, answered by a stub in place of Python, compute-sanitizer and ncu."""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gpu_check
import pytest
from gpu import report, smoke, stage
from gpu.check import Check, limit
from gpu.stage import Outcome, Stage, environment

from tests.tiers import few, thorough

ROOT = Path(__file__).parents[2]
# Answers the first key that its command line has: warns, waits, writes a file where an option says, prints, ends.
STUB = """#!{python} -S
import json, pathlib, re, sys, time
command = " ".join(sys.argv)
answers = json.loads(pathlib.Path(__file__).with_name("answers.json").read_text())
answer = next(answer for key, answer in answers.items() if key in command)
with pathlib.Path(__file__).with_name("commands").open("a") as log:
    log.write(command + "\\n")
print("UserWarning: beware {{", file=sys.stderr)
print(answer["prints"], flush=True)
for option, text in answer["writes"].items():
    pathlib.Path(re.search(option + r"[= ](\\S+)", command)[1]).write_text(text)
time.sleep(answer["waits"])
print("UserWarning: beware still", file=sys.stderr)
sys.exit(answer["status"])
"""
SKIPPED = '{"name": "b", "outcome": "skipped", "why": "no GPU"}\n'
JOURNAL = '{"tests": 2}\n{"name": "a", "outcome": "passed"}\n' + SKIPPED
CSV = '"ID","sm__cycles_elapsed.max"\n"","cycle"\n"0","123"\n'


@dataclass(frozen=True)
class Answer:
    prints: str = ""
    writes: Mapping[str, str] = field(default_factory=dict)  # option -> text
    status: int = 0
    waits: float = 0.0


ANSWERS = {
    "--tool": Answer(writes={"--log-file": "========= ERROR SUMMARY: 0 errors\n"}),
    "--page raw": Answer(writes={"--log-file": CSV}),
    "gpu.machine": Answer('{"torch": "2.11.0"}\n{"gpu": "NVIDIA H100 80GB HBM3"}'),
    "gpu.rates": Answer('{"assumed": {"L2 latency, cycles": 265}}\n{"L2 latency, cycles": 262.5}'),
    "cuda_budget.py": Answer(
        '{"budget": {"one image": {"unit": "ms", "must": 9, "reach": 2.5, "predicted": 8.1, "met": true}}}'
    ),
    "gpu.build": Answer('{"kernels": 12}'),
    "-m pytest": Answer(writes={"--journal": JOURNAL}),
    "gpu.kernels": Answer('{"bf16-1x1": "6.5 s"}'),
    "gpu.smoke": Answer('{"bf16": "right"}'),
    "gpu.sweep": Answer(
        '{"sweep": {"PixelCNN, 1 in 1": {"measured": 90, "predicted": 98}}}\n'
        '{"constants": {"record": {"now": 1050, "refitted": 990.5}}}\n{"targets": {"column step": "90 cycles"}}'
    ),
    "gpu.sampling ours": Answer(
        '{"pixelcnn_fast, bf16": {"1": 0.0083, "16": 0.0091}}\n{"targets": {"one image": "8.3 ms"}}'
    ),
    "gpu.sampling families": Answer('{"families": {"Diagonal BiLSTM": "not available"}}'),
    "gpu.sampling": Answer('{"naive, bf16": {"1": 1.5}}'),
    "gpu.layers": Answer('{"gated_activation": {"pixelcnn_fast": 0.1, "torch.compile": "failed: it"}}'),
    "targets.py": Answer(),
}


class Rehearsal:
    """What a run of stages with such answers leaves."""

    def __init__(
        self,
        folder: Path,
        answers: Mapping[str, Answer],
        groups: Sequence[Sequence[Stage]] = gpu_check.GROUPS,
        without: str = "",
    ) -> None:
        tools, results = folder / "tools", folder / "results"
        tools.mkdir()
        results.mkdir()
        (tools / "answers.json").write_text(
            json.dumps({k: vars(a) for k, a in {**answers, **ANSWERS, **answers}.items()})
        )
        for name in {"python", "compute-sanitizer", "ncu"} - {without}:
            (tools / name).write_text(STUB.format(python=sys.executable))
            (tools / name).chmod(0o755)
        seen = {**environment(ROOT, str(tools / "python")), "PATH": str(tools)}
        outcomes = Check(groups, seen, folder / "logs", gpu_check.keeping(results)).run()
        self.outcomes = {outcome.stage: outcome for outcome in outcomes}
        self.text = report.text(outcomes)
        self.failed = {name for name, outcome in self.outcomes.items() if outcome.has_failed}
        self.not_run = {name for name, o in self.outcomes.items() if o.verdict.startswith("not run")}
        self.commands = (tools / "commands").read_text().splitlines()
        (self.path,) = results.glob("*.json")

    def kept(self) -> dict[str, dict[str, Any]]:
        return {outcome["stage"]: outcome for outcome in json.loads(self.path.read_text())}


STAGES = [stage for group in gpu_check.GROUPS for stage in group]
ON_BUILD = {stage.name for stage in STAGES if stage.needs == "build"}


def test_all_goes_well(tmp_path):
    found = Rehearsal(tmp_path, {})
    assert not found.failed and not found.not_run
    assert found.outcomes.keys() == {stage.name for stage in STAGES} == found.kept().keys()
    assert found.path.name == "nvidia-h100-80gb-hbm3.json" and found.path.with_suffix(".md").exists()
    ran = [name for command in found.commands for name in re.findall(r"-m (gpu\.\w+|pytest)", command)]
    order = ["machine", "build", "kernels", "smoke", "rates", "sweep", "sampling"]
    assert list(dict.fromkeys(ran))[: len(order) + 1] == [*(f"gpu.{name}" for name in order), "pytest"]
    for row in (
        "| L2 latency, cycles | assumed 265, measured 262.5 |",
        "| one image | ms | 9 | 2.5 | 8.1 | 8.3 ms |",
        "| bf16 | right |",
        "| PixelCNN, 1 in 1 | measured 90, predicted 98 |",
        "| record | now 1050, refitted 990.5 |",
        "| column step | - | - | - | - | 90 cycles |",
        "| Diagonal BiLSTM | - | - | - | - | not available |",
        "| pixelcnn_fast, bf16 | 1 0.0083, 16 0.0091 |",
        "| naive, bf16 | 1 1.5 |",
        "| gated_activation | pixelcnn_fast 0.1, torch.compile failed: it |",
        "| sm__cycles_elapsed.max | 123 cycle |",
    ):
        assert row in found.text.splitlines(), row


@thorough
def test_a_build_that_fails(tmp_path):
    found = Rehearsal(tmp_path, {"gpu.build": Answer("error: no member named 'walk'", status=1)})
    assert found.failed == {"build"} and found.not_run == ON_BUILD
    assert "no member named 'walk'" in found.text and found.outcomes["layers"].is_ok


@thorough
def test_tests_that_are_all_skipped(tmp_path):
    found = Rehearsal(tmp_path, {"-m pytest": Answer(writes={"--journal": SKIPPED})})
    assert found.failed == {stage.name for stage in STAGES if "-m pytest" in stage.command}


@thorough
def test_what_failed_first_comes_first(tmp_path):
    """And what it failed by: later stages are run nevertheless, and sanitizers watch the cases that have failed."""
    wrong = Answer('{"cluster": "wrong: image 0"}', status=1)
    cases = {"gpu.smoke cluster": wrong, "gpu.smoke bf16": wrong}
    found = Rehearsal(tmp_path, {"--tool": ANSWERS["--tool"], **cases, "gpu.sweep": wrong})
    assert found.failed == {"smoke, bf16", "smoke, cluster", "sweep"} and not found.not_run
    assert found.text.startswith("smoke, bf16: failed: status 1") and "    {" in found.text.splitlines()[1]
    assert "| cluster | wrong: image 0 |" in found.text
    watched = [command for command in found.commands if "--tool" in command]
    assert len(watched) == 4 and all(command.endswith("gpu.smoke bf16,cluster") for command in watched)


def test_stages_of_a_group_run_at_once(tmp_path):
    """Each waits until the other one has begun. The next stage begins when both have ended."""
    program = tmp_path / "program.py"
    program.write_text("""
import pathlib, sys, time
own, other = (pathlib.Path(__file__).with_name(name) for name in sys.argv[1:])
own.touch()
while not other.exists():
    time.sleep(0.05)
""")
    alone, *pair = (
        Stage(f"{own}", f"{{python}} -S {program} {own} {other}", 30.0, on_gpu=False)
        for own, other in ("aa", "bc", "cb")
    )
    outcomes = Check(
        [[alone], pair], environment(ROOT, sys.executable), tmp_path / "logs", lambda _: None
    ).run()
    assert [(outcome.stage, outcome.verdict) for outcome in outcomes] == [(name, "ok") for name in "abc"]


@thorough
def test_tests_that_are_cut_off(tmp_path, monkeypatch):
    """What they have found is judged, and it is seen that not all were run."""
    monkeypatch.setattr(stage, "GRACE", 0.2)
    some = ("machine", "tests of the sampler", "tests of clusters")
    short = [[replace(stage, limit=2.0)] for stage in STAGES if stage.name in some]
    lines = '{"tests": 9}\n{"name": "a", "outcome": "passed"}\n'
    failed = lines + '{"name": "t.py::b", "outcome": "failed", "why": "CUDA error"}\n'
    answers = {
        "-k 'not": Answer(writes={"--journal": lines}, waits=60),
        "-m pytest": Answer(writes={"--journal": failed}, waits=60),
    }
    found = Rehearsal(tmp_path, {key.replace("'", ""): answer for key, answer in answers.items()}, short)
    assert found.failed == {"tests of clusters"}
    assert found.text.startswith(
        "tests of clusters: failed: 1 of 2 tests, 7 not run, the first: b: CUDA error"
    )
    assert "| tests of the sampler | ok so far: 1 passed, 0 skipped, 8 not run in" in found.text


@thorough
def test_a_stage_that_hangs(tmp_path, monkeypatch):
    """What it measured is kept, and the next stages have their own time."""
    monkeypatch.setattr(stage, "GRACE", 0.2)
    some = ("machine", "layers", "acceleration")
    short = [[replace(stage, limit=1.0)] for stage in STAGES if stage.name in some]
    found = Rehearsal(tmp_path, {"gpu.layers": Answer('{"a": {"pixelcnn_fast": 1.25}}', waits=60)}, short)
    assert found.failed == {"layers"} and "not finished" in found.outcomes["layers"].verdict
    assert "| a | pixelcnn_fast 1.25 |" in found.text and found.outcomes["acceleration"].is_ok


@thorough
def test_a_hazard(tmp_path):
    hazard = "========= Error: Race reported\n========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n"
    found = Rehearsal(tmp_path, {"--tool racecheck": Answer(writes={"--log-file": hazard}, status=99)})
    assert found.failed == {"racecheck"}


@thorough
@pytest.mark.parametrize("tool", few(["compute-sanitizer", "ncu"], 1))
def test_a_tool_that_is_missing(tmp_path, tool):
    found = Rehearsal(tmp_path, {}, without=tool)
    assert not found.failed
    assert f"not available: {tool} is not installed" in {o.verdict for o in found.outcomes.values()}


def test_no_gpu(tmp_path):
    found = Rehearsal(tmp_path, {"gpu.machine": Answer('{"torch": "2.11.0"}')})
    assert not found.failed and {o.stage for o in found.outcomes.values() if o.is_ok} == {
        "machine",
        "build",
        "budget",
    }
    assert "| one image | ms | 9 | 2.5 | 8.1 | - |" in found.text


@thorough
def test_stages_that_are_not_run_leave_their_time(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "GRACE", 0.2)
    short = [[replace(stage, limit=2.0 if stage.name == "acceleration" else 0.5)] for stage in STAGES]
    without = {"gpu.machine": Answer('{"torch": "2.11.0"}'), "gpu.build": Answer(waits=4.0)}
    assert not Rehearsal(tmp_path, without, short).failed


@thorough
def test_a_gpu_that_torch_does_not_see(tmp_path):
    found = Rehearsal(tmp_path, {"gpu.machine": Answer('{"torch": "2.11.0"}', status=1)})
    assert found.failed == {"machine"}


def test_a_run_that_is_cut_off_keeps_what_it_has(tmp_path, monkeypatch):
    """As by a signal while the sweep runs; no process is left."""
    ended: list[Outcome] = []
    whole = stage.Running.outcome

    def interrupted(self: stage.Running, seconds: float) -> Outcome:
        if self.stage.name == "sweep":
            raise KeyboardInterrupt
        ended.append(whole(self, seconds))
        return ended[-1]

    monkeypatch.setattr(stage.Running, "outcome", interrupted)
    found = Rehearsal(tmp_path, {"gpu.sweep": Answer(waits=60), "gpu.kernels all": Answer(waits=60)})
    assert list(found.kept()) == [*(outcome.stage for outcome in ended), "the rest"]
    assert found.failed == {"the rest"} and found.kept()["rates"]["figures"]["L2 latency, cycles"] == 262.5


@thorough
def test_what_is_printed_last_fits_a_short_terminal(tmp_path):
    """Of a failure the reason, at the end of its output, is there."""
    long = "\n".join(f"{'line ' * 60}{i}" for i in range(2000))
    layers = "\n".join(json.dumps({f"layer {i}": {"pixelcnn_fast": 1.0}}) for i in range(1000))
    found = Rehearsal(
        tmp_path, {"gpu.sampling": Answer(f"{long}\nthe reason", status=1), "gpu.layers": Answer(layers)}
    )
    assert len(found.text) < 12_000 and "    the reason" in found.text


# -- the commands themselves

# What the library and its tests ask for, and the machine may lack.
ABSENT = ("tqdm", "safetensors", "matplotlib", "hypothesis", "xdist")


@thorough
def test_stages_import_nothing_that_is_not_on_the_list():
    """The list of docs/gpu_check.md: each stage's module is imported, and its tests are collected, without the rest."""
    commands = [stage.command for stage in STAGES]
    modules = {
        name for command in commands for name in re.findall(r"-m (gpu\.\w+)|benchmarks/(\w+)\.py", command)
    }
    tests = [file for command in commands for file in re.findall(r"tests/\S+\.py", command)]
    assert len(modules) == 10 and len({*tests}) == 3
    code = f"""
import importlib, sys
sys.modules.update(dict.fromkeys({ABSENT}))  # None: an ImportError
for name in {sorted(map("".join, modules))}:
    importlib.import_module(name)
import pytest
sys.exit(pytest.main(["-q", "--collect-only", "-p", "no:cacheprovider", *{tests}]))
"""
    command = [sys.executable, "-c", code]
    seen = {**environment(ROOT, sys.executable), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=ROOT, env=seen, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_folder_that_can_t_be_made_is_said(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--out", str(tmp_path / "file")])
    with pytest.raises(SystemExit):
        gpu_check.main()
    assert "file: File exists" in capsys.readouterr().err


def test_the_limits_leave_time_to_spare():
    assert sum(map(limit, gpu_check.GROUPS)) <= 560


def test_the_smoke_tests_cases_are_all_begun():
    assert gpu_check.CASES == tuple(smoke.CASES)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_commands_name_what_exists(stage):
    files = re.findall(r"[\w/]+\.py\b", stage.command)
    assert all((ROOT / file).is_file() for file in files), files
    for module in re.findall(r"-[mp] (\w+\S+)", stage.command.replace("-p no:cacheprovider", "")):
        assert importlib.util.find_spec(module), module
    if "gpu.sampling" in stage.command:
        from gpu import sampling

        assert callable(getattr(sampling, stage.command.split()[-1]))
    assert not stage.needs or stage.needs in {other.name for other in STAGES}


def test_each_test_of_the_sampler_is_in_one_stage():
    """By the names: what is risky is neither left out nor run twice, and each part names some."""
    source = (ROOT / "tests/csrc/test_gpu.py").read_text() + (
        ROOT / "tests/csrc/test_gpu_devices.py"
    ).read_text()
    names = re.findall(r"^def (test_\w+)", source, re.M)
    groups = {part: [name for name in names if part in name] for part in gpu_check.RISKY.values()}
    assert all(groups.values()) and len({*sum(groups.values(), [])}) == sum(map(len, groups.values()))
