"""What is written is whole or not there, and what was left behind is collected."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aprtui import child
from aprtui.cli.main import main
from aprtui.engine.job import default_directory
from aprtui.errors import EngineError
from aprtui.formats import atomic
from aprtui.formats.atomic import sweep, whole_file
from aprtui.tui import logs
from aprtui.tui.client import COMMAND_LINE, WORKER
from aprtui.tui.lens import LENS
from tests.support import SMALL

MODEL = SMALL / "models" / "qwen2-q4_k_m.gguf"
CAPTURE = SMALL / "captures" / "qwen2-q4_k_m" / "float64"
PART = ".aprtui-0123456789abcdef.part"


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


# -- temporary files -------------------------------------------------------------------------------


def test_what_a_killed_process_left_is_removed_by_the_next_that_writes_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "_swept", set())
    (tmp_path / PART).write_bytes(b"half")
    (tmp_path / ".download.part").write_bytes(b"somebody else's")
    with whole_file(tmp_path / "out.npy") as file:
        file.write(b"whole")
    assert names(tmp_path) == [".download.part", "out.npy"]


def test_what_a_living_process_writes_stays(tmp_path: Path) -> None:
    with whole_file(tmp_path / "out.npy") as file:
        file.write(b"half")
        sweep(tmp_path)  # another process would
        assert len(names(tmp_path)) == 1
    assert names(tmp_path) == ["out.npy"]


def test_a_link_with_such_a_name_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / PART).symlink_to(tmp_path / "mine")
    sweep(tmp_path)
    assert (tmp_path / "mine").read_text() == "mine"


def test_names_may_have_as_many_bytes_as_the_system_takes(tmp_path: Path) -> None:
    for name in ("x" * 255, "ä" * 127):
        with whole_file(tmp_path / name) as file:
            file.write(b"whole")
    assert len(names(tmp_path)) == 2
    with pytest.raises(EngineError, match="too long"), whole_file(tmp_path / ("x" * 256)):
        raise AssertionError("entered")


def test_a_trace_beside_a_model_with_the_longest_name_has_a_name_too(tmp_path: Path) -> None:
    for stem in ("m" * 250, "ä" * 125):
        folder = default_directory(tmp_path / f"{stem}.gguf", "llamacpp")
        assert len(os.fsencode(folder.name)) <= 255 and folder.name.endswith("-llamacpp-trace")
        folder.mkdir()
    assert default_directory(tmp_path / "m.gguf").name == "m-trace"


def test_a_new_file_never_replaces_one_that_came_meanwhile(tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    with pytest.raises(EngineError, match="File exists"), whole_file(target, new=True) as file:
        file.write(b"ours")
        target.write_text("theirs")
    assert target.read_text() == "theirs" and names(tmp_path) == ["out.csv"]


def test_where_there_are_no_links_a_new_file_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*names: object, **folders: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with whole_file(tmp_path / "out.csv", new=True) as file:
        file.write(b"ours")
    assert names(tmp_path) == ["out.csv"]


# -- signals ---------------------------------------------------------------------------------------

BUSY = """
import sys, time
from pathlib import Path
from aprtui.cli import main
from aprtui.formats.atomic import whole_file

def busy(args):
    with whole_file(Path(sys.argv[-1])):
        print("busy", flush=True)
        time.sleep(60)

import aprtui.cli.inspect
aprtui.cli.inspect.run = busy
main.entry()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_every_command_ends_clean_by_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", BUSY, "inspect", str(tmp_path / "out")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "busy\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (128 + number, "aprtui: stopped\n")
    assert names(tmp_path) == []


def test_a_signal_that_nohup_ignores_is_ignored(tmp_path: Path) -> None:
    script = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); {BUSY}".replace(
        "; \n", "\n", 1
    )
    command = [sys.executable, "-c", script, "inspect", str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "busy\n"
        process.send_signal(signal.SIGHUP)
        process.terminate()
    assert process.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_trace_ends_clean_by_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    words = ["trace", str(MODEL), "--tokens", "1," * 1200 + "1", "-o", str(tmp_path / "t")]
    with subprocess.Popen(
        [*COMMAND_LINE, *words, "--events"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if b'"stage"' in line:
                break
        process.send_signal(number)
        rest, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number, said
    assert b"aprtui: stopped" in said and b'"stopped"' in rest.splitlines()[-1]
    assert not [*(tmp_path / "t").rglob("*.part")]


# -- code of the current folder --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (WORKER, ["--plan", '{"model": "m.gguf"}']),
        (LENS, ["--model", "m.gguf", "none.bin"]),
        (COMMAND_LINE, ["inspect", "m.gguf", "--json"]),
        ((sys.executable, "-m", "aprtui"), ["inspect", "m.gguf", "--json"]),
    ],
)
def test_nothing_of_the_current_folder_is_run(
    tmp_path: Path, command: tuple[str, ...], words: list[str]
) -> None:
    """A folder of a stranger's model with modules in it."""
    stranger = "open('run', 'w'); raise SystemExit(99)"
    for name in ("numpy", "torch", "json", "gguf", "signal", "queue", "yaml", "runpy"):
        (tmp_path / f"{name}.py").write_text(stranger)
    if "-m" not in command:  # there Python itself looks for it, before we are asked
        (tmp_path / "aprtui").mkdir()
        (tmp_path / "aprtui" / "__init__.py").write_text(stranger)
    else:
        (tmp_path / "runpy.py").unlink()
    (tmp_path / "m.gguf").symlink_to(MODEL)
    root = str(Path(child.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root}
    ended = subprocess.run(
        [*command, *words], cwd=tmp_path, env=environment, capture_output=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert b"qwen2" in ended.stdout or b'"error"' in ended.stdout
    assert not (tmp_path / "run").exists()


def test_the_child_runs_the_package_that_runs_already(tmp_path: Path) -> None:
    """Not another one that is installed, nor one that only the current folder had."""
    package = tmp_path / "checkout" / "aprtui"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "child.py").write_text(Path(child.__file__).read_text())
    (package / "told.py").write_text("import sys; print(__file__, *sys.argv[1:])")
    command = "from aprtui.child import command_of; print('\\n'.join(command_of('aprtui.told')))"
    line = subprocess.run(
        [sys.executable, "-c", command], cwd=package.parent, capture_output=True, text=True,
        check=True,
    ).stdout.splitlines()  # fmt: skip
    ended = subprocess.run([*line, "a"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stdout == f"{package / 'told.py'} a\n"


# -- logs of children ------------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "aprtui"


def test_logs_have_a_place_and_the_oldest_go(state: Path) -> None:
    fd, living = logs.new_log()
    for _ in range(logs.KEPT + 5):
        os.close(logs.new_log()[0])
    kept = sorted((state / "logs").iterdir())
    assert len(kept) == logs.KEPT + 2 and living in kept  # the living one, and the newest
    os.close(fd)


def test_without_a_place_the_log_is_a_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    fd, path = logs.new_log()
    os.close(fd)
    assert path.parent == tmp_path


def test_of_a_log_that_grows_the_end_is_kept(tmp_path: Path) -> None:
    package = tmp_path / "aprtui"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "child.py").write_text(
        Path(child.__file__).read_text().replace("_LOOK_S = 0.5", "_LOOK_S = 0.01")
    )
    (package / "loud.py").write_text(
        "import os, sys\n"
        "for number in range(40):\n    os.write(2, b'%063d\\n' % number * 1024)\n"
        "while os.fstat(2).st_size > 1 << 20 or os.pread(2, 5, 0) != b'[...]': pass\n"
        "os.write(2, b'the end')\n"
    )
    log = tmp_path / "log"
    fd = os.open(log, os.O_CREAT | os.O_RDWR | os.O_APPEND)
    _, _, code, start, _, _ = child.command_of("aprtui.loud")
    subprocess.run(
        [sys.executable, "-P", code, start, str(tmp_path), "aprtui.loud"],
        stderr=fd, check=True, timeout=60,
    )  # fmt: skip
    os.close(fd)
    text = log.read_bytes()
    assert text.startswith(b"[...]\n") and text.endswith(b"39\nthe end")
    assert len(text) <= child.LOG_BYTES


# -- the demo --------------------------------------------------------------------------------------


def test_a_demo_that_was_killed_is_finished_by_the_next(tmp_path: Path) -> None:
    assert main(["demo", "-o", str(tmp_path / "d"), "--no-open"]) == 0
    (tmp_path / "d" / "model-damaged.gguf").unlink()
    (tmp_path / "d" / "bad" / "trace.json").unlink()
    assert main(["demo", "-o", str(tmp_path / "d"), "--no-open"]) == 0
    assert (tmp_path / "d" / "bad" / "trace.json").is_file()
    assert not [*tmp_path.rglob("*.part")]
