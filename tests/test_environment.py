"""What a process is told before torch is imported."""

import io
import logging
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aura import environment

ROOT = Path(__file__).parents[1]
SCRIPTS = [*ROOT.glob("*.py"), *(ROOT / "scripts").glob("*.py"), ROOT / "aura/chat/web.py"]


@pytest.mark.parametrize(("driver", "visible", "kept"), [(False, None, 1), (True, None, 0), (True, "-1", 1)])
def test_freed_memory_is_kept_where_no_gpu_computes(monkeypatch, tmp_path, driver, visible, kept):
    calls = []
    monkeypatch.setattr(environment, "_keep_freed_memory", lambda: calls.append(1))
    monkeypatch.setattr(environment, "NVIDIA", tmp_path if driver else tmp_path / "none")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    environment.prepare()
    assert len(calls) == kept


@pytest.mark.parametrize(
    "script",
    ["train_ds.py", "eval.py", "chat.py", "aura/chat/web.py", "aura/train/engine.py", "aura/bench/command.py"]
    + [f"scripts/{name}.py" for name in ("bench_speed", "check_full_size", "check_gpu", "pretrain_mini")]
    + ["scripts/reference_lines.py"],
)
def test_what_computes_with_the_network_has_the_allocator(script):
    assert "environment.prepare()" in (ROOT / script).read_text()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_every_script_says_what_ctrl_c_does_before_it_imports(script):
    lines = script.read_text().splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("from aura"))
    assert lines[first : first + 3] == ["from aura import environment", "", "environment.command_line(__name__)"]
    light = ("argparse", "sys", "collections.abc", "pathlib", "contextlib", "hashlib", "os", "platform", "random")
    light += ("__future__", "signal", "socket", "time", "typing", "collections", "psutil", "yaml")
    before = [line.split()[1] for line in lines[:first] if line.startswith(("import ", "from "))]
    assert set(before) <= set(light)


SCRIPT = """
from aura import environment
environment.command_line(__name__)
import sys, time
from multiprocessing import get_context
from aura.files import write_parts

def parts():
    yield "half"
    stop("within")

def stop(here):
    if here == sys.argv[1]:
        print(flush=True, end="ready")
        time.sleep(60)

class Late:
    def __del__(self):
        stop("callback")

def turned():
    try:
        stop("turned")
    except BaseException as error:
        raise ImportError("of a library") from error

def child():
    try:
        stop("fork")
    except BaseException:
        print("the fork went on", flush=True)

print("caf\u00e9", file=sys.stderr, flush=True)
import slow
turned()
Late()
if sys.argv[1] == "fork":
    process = get_context("fork").Process(target=child)
    process.start()
    process.join()
write_parts("whole.txt", parts())
"""


@pytest.mark.parametrize("moment", ["import", "within", "callback", "turned", "fork"])
def test_ctrl_c_is_one_line_and_leaves_nothing(tmp_path, moment):
    (tmp_path / "script.py").write_text(SCRIPT)
    slow = "import sys, time\nif sys.argv[1] == 'import':\n    try:\n        print(end='ready', flush=True); "
    slow += "time.sleep(60)\n    except BaseException:\n        pass\n"
    (tmp_path / "slow.py").write_text(slow)
    command = ["env", f"PYTHONPATH={ROOT}", "PYTHONIOENCODING=ascii", sys.executable, "script.py", moment]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout.read(5) == b"ready"
    environment.os.killpg(process.pid, signal.SIGINT)  # as the terminal does
    out, said = process.communicate(timeout=60)
    assert (out, said) == (b"", b"caf\\xe9\n\nscript.py: stopped by Ctrl-C\n")
    assert process.returncode == -signal.SIGINT
    assert {path.name for path in tmp_path.iterdir()} <= {"script.py", "slow.py", "__pycache__"}


@pytest.fixture
def command_line(monkeypatch):
    """The function, in this process, which is itself again when the test ends."""
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ("excepthook", "unraisablehook"):
        monkeypatch.setattr(sys, name, getattr(sys, name))

    def call(name, out=None):
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", out)
        environment.command_line(name)

    yield call
    signal.signal(signal.SIGINT, before)


def test_a_letter_that_the_encoding_lacks_is_written_as_its_number(command_line):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    command_line("__main__", stream)
    print("\N{HANGUL SYLLABLE KEOB} \N{LATIN SMALL LETTER E WITH ACUTE}", file=stream, flush=True)
    assert stream.buffer.getvalue() == b"\\ucef5 \\xe9\n"


def test_every_script_keeps_the_noise_of_libraries_back(command_line, monkeypatch):
    for name in ("bitsandbytes", "transformers.distributed.tensor_parallel"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.NOTSET)
        assert logging.getLogger(name).isEnabledFor(logging.WARNING)
    command_line("__main__")
    for name in ("bitsandbytes", "transformers.distributed.tensor_parallel"):
        assert not logging.getLogger(name).isEnabledFor(logging.WARNING)


def test_closed_streams_and_ignored_signals_stay_so(command_line):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    command_line("__main__", None)
    assert sys.stdout is None and signal.getsignal(signal.SIGINT) == signal.SIG_IGN


@pytest.mark.parametrize(
    ("name", "handler"),
    [("script", signal.default_int_handler), ("__mp_main__", signal.SIG_DFL)],
    ids=["import", "worker"],
)
def test_an_imported_script_changes_nothing_and_a_worker_dies_without_a_word(command_line, name, handler):
    hooks = sys.excepthook, sys.unraisablehook
    command_line(name)
    assert signal.getsignal(signal.SIGINT) == handler and hooks == (sys.excepthook, sys.unraisablehook)


def test_an_end_that_waits_is_cut_short(command_line, monkeypatch, capfd):
    killed = []
    monkeypatch.setattr(environment, "GRACE", 0.0)
    monkeypatch.setattr(environment.os, "kill", lambda *call: killed.append(call))
    command_line("__main__")
    with pytest.raises(KeyboardInterrupt) as stopped:
        signal.raise_signal(signal.SIGINT)
    sys.excepthook(stopped.type, stopped.value, stopped.tb)
    while not killed:
        time.sleep(0.001)
    assert killed == [(environment.os.getpid(), signal.SIGINT)]
    assert capfd.readouterr().err.endswith("stopped by Ctrl-C\n")


def test_other_errors_are_told_as_ever(command_line, monkeypatch):
    told = []
    monkeypatch.setattr(sys, "excepthook", lambda *error: told.append(error))
    command_line("__main__")
    sys.excepthook(ValueError, error := ValueError("plain"), None)
    assert told == [(ValueError, error, None)]
