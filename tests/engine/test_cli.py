"""The command line: instant help, exit codes, and what programs read on stdout."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfm_engine import cli
from dfm_engine.errors import CheckFailed, EnvironmentUnfit, ShortfallError, UsageError
from dfm_engine.interrupts import Interrupted

HEAVY = ("torch", "torchvision", "av", "scipy", "pyarrow", "PIL", "numpy", "onnxruntime", "yaml")


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """A command that was interrupted ignores signals from then on."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def call(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["dfm-engine", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
    out, err = capfd.readouterr()
    code = end.value.code
    return code if isinstance(code, int) else int(code is not None), out, err


def one_object(out: str) -> dict:
    """The last line of stdout, which is all of it."""
    assert out.count("\n") == 1
    value = json.loads(out)
    assert isinstance(value, dict)
    return value


def test_help_imports_nothing_that_is_heavy():
    code = (
        "import sys; sys.argv = ['dfm-engine', '--help']\n"
        "from dfm_engine.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"
    for verb in ("doctor", "probe", "build-dataset", "screen", "dataset", "train"):
        assert verb in done.stdout


def test_a_usage_error_exits_2_and_says_what_to_do(capfd, tmp_path: Path):
    build = ["build-dataset", "--real", str(tmp_path), "--driving", str(tmp_path)]
    build += ["--out", str(tmp_path / "out"), "--weights", "random"]
    for arguments, said in [
        (["probe"], "Missing argument"),
        (["prob"], "No such command"),
        (["probe", "--jsn", "x"], "No such option"),
        (["doctor", "--require", "tpu"], "takes 'gpu', found 'tpu'"),
        (["build-dataset"], "Missing option"),
        ([*build, "--limit", "0"], "--limit must be at least 1, found 0"),
        ([*build, "--recipe", "papr"], "shipped are demo, paper, smoke"),
        ([*build, "--recipe", "smoke", "--dry-run"], "no clip in"),
        (["dataset", "verify", str(tmp_path)], "holds no data set of ours"),
    ]:
        code, out, err = call(capfd, *arguments)
        assert (code, out) == (2, ""), arguments
        assert said in err, arguments
        assert "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("so"), 2),
        (ShortfallError("so"), 3),
        (EnvironmentUnfit("so"), 4),
        (CheckFailed("so"), 5),
        (Interrupted(2), 130),
        (Interrupted(15), 143),
        (RuntimeError("so"), 1),
        (BrokenPipeError(), 1),
    ],
)
def test_every_error_ends_in_its_code_and_one_line(capfd, monkeypatch, error, code):
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.delenv("DFM_DEBUG", raising=False)
    found, out, err = call(capfd)
    assert (found, out) == (code, "")
    if isinstance(error, Interrupted):  # a second signal must not change the exit code
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if not isinstance(error, BrokenPipeError):
        assert err.count("\n") == 1
        assert err.startswith("dfm-engine: ")


def test_an_unexpected_error_says_how_to_see_more(capfd, monkeypatch):
    monkeypatch.setattr(cli, "app", lambda: 1 / 0)
    monkeypatch.delenv("DFM_DEBUG", raising=False)
    code, _, err = call(capfd)
    assert code == 1
    assert "unexpected ZeroDivisionError: division by zero (DFM_DEBUG=1 shows where)" in err


def test_a_name_with_a_leading_dash_is_a_file_after_two_dashes(capfd, monkeypatch, tmp_path, clips):
    clip = next((clips / "real").rglob("*.mkv"))
    shutil.copy(clip, tmp_path / "-leading-dash.mkv")
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capfd, "probe", "--no-faces", "--json", "--", "-leading-dash.mkv")
    assert code == 0, err
    (file,) = one_object(out)["files"]
    assert (file["path"], file["verdict"], file["frames"]) == ("-leading-dash.mkv", "accept", 18)


def test_a_file_that_is_not_accepted_exits_3(capfd, tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    code, out, err = call(capfd, "probe", "--no-faces", "--json", str(tmp_path / "empty.mp4"))
    assert code == 3
    assert one_object(out)["files"][0]["error"] == "empty-file"
    assert "empty-file" in err


def test_doctor_gives_one_object(capfd):
    code, out, _ = call(capfd, "doctor", "--json")
    assert code == 0
    assert "checks" in one_object(out)


def test_a_dry_run_gives_one_object_and_writes_nothing(capfd, clips, test_recipe, tmp_path):
    arguments = ["build-dataset", "--dry-run", "--json", "--recipe", str(test_recipe)]
    arguments += ["--real", str(clips / "real"), "--driving", str(clips / "driving")]
    arguments += ["--weights", "random", "--out", str(tmp_path / "out")]
    code, out, _ = call(capfd, *arguments)
    assert code == 0
    assert one_object(out)["fakes_at_most"] == {"open_mouth": 3, "nod": 3}
    assert not (tmp_path / "out").exists()


def test_verify_gives_one_object_and_exits_5_for_damage(capfd, whole: Path, tmp_path: Path):
    code, out, _ = call(capfd, "dataset", "verify", "--json", str(whole))
    assert (code, one_object(out)["ok"]) == (0, True)
    shutil.copytree(whole, tmp_path / "set")
    victim = min((tmp_path / "set" / "data").rglob("*.c40.mp4"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"\0")
    code, out, _ = call(capfd, "dataset", "verify", "--json", str(tmp_path / "set"))
    assert code == 5
    (failure,) = one_object(out)["failures"]
    assert failure["path"] == str(victim.relative_to(tmp_path / "set"))
    code, out, err = call(capfd, "dataset", "verify", str(tmp_path / "set"))
    assert (code, out) == (5, "")
    assert victim.name in err


@pytest.mark.parametrize(
    ("command", "kept"), [(("score",), True), (("bench", "throughput"), False)]
)
def test_commands_keep_freed_memory_but_benchmarks_decide_themselves(
    monkeypatch, capfd, command: tuple[str, ...], kept: bool
):
    calls = []
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: calls.append(command))
    code, _, _ = call(capfd, *command, "--help")
    assert code == 0
    assert calls == ([command] if kept else [])
