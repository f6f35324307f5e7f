"""The command line around its commands: wrong usage, hostile input, help, and what belongs to a process.

No input gives a traceback: each error is one sentence on standard error.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli import BROKEN, fine, on_a_terminal, process, refused, run
from conftest import steady
from hypothesis import given, settings
from hypothesis import strategies as st

import dualpipe_rs as dp
from dualpipe_rs.cli import show

# ---- Wrong usage -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "dualpip"], "no schedule and no file named 'dualpip'; did you mean dualpipe"),
        (["show", "DualPipeV"], "did you mean dualpipev"),
        (["show", "qqqq"], "the names are gpipe, 1f1b"),
        (["show", "dualpipe", "-p", "3"], "nearest legal size is"),
        (["show", "1f1b", "-p", "-1"], "num_ranks is -1"),
        (["show", "1f1b", "-p", "9" * 30], "num_ranks is 999"),
        (["show", "1f1b", "-p", "9" * 5000], "invalid int value"),
        (["show", "1f1b", "-p", "60000", "-m", "60000"], "more than 134217728 actions"),
        (["show", "1f1b", "--forward", "nan"], "forward is NaN"),
        (["show", "1f1b", "--forward", "-inf"], "argument --forward: expected one argument"),
        (["show", "1f1b", "--forward=-inf"], "forward is -"),
        (["simulate", "1f1b", "--p2p-cost=-1"], "p2p is -1"),
        (["simulate", "1f1b", "--forward", "1,2"], "forward has 2 entries and the schedule 8 stages"),
        (["simulate", "1f1b", "--forward", "1,,2"], "'' is not a number"),
        (["simulate", "1f1b", "--forward", "1e308"], "more than a float can hold"),
        (["simulate", "1f1b", "--overlap", "x"], "'x' is not a number"),
        (["simulate", "1f1b", "--depth", "3"], "depth belongs to"),
        (["simulate", "interleaved:stages_per_rank"], "not an option such as stages_per_rank=4"),
        (["simulate", "1f1b:stages_per_rank=2"], 'takes no option "stages_per_rank"'),
        (["simulate", "1f1b", "--option", "num_ranks=2"], "not an option of a family"),
        (["show", "/no/such/file"], "cannot be read: No such file"),
        (["show", "nosuch.txt"], "cannot be read: No such file"),
        (["show", "/"], "cannot be read: Is a directory"),
        (["show", os.devnull], "this one is empty"),
        (["show", sys.executable], "is no text"),
        (["verify", "-"], "standard input: line 1"),
        (["verify", "-", "--csv"], "holds no row"),
        (["verify", "1f1b", "--max-activations", "-1"], "max_activations"),
        (["show", __file__, "-p", "3"], "line 1"),
        (["export", "1f1b"], "required: -o/--output"),
        (["export", "1f1b", "-o", "x.gif"], "ends in none of .txt, .csv, .svg"),
        (["export", "1f1b", "-o", "/no/such/x.txt"], "/no/such/x.txt: No such file"),
        (["compare", "1f1b", "zigzag"], "no schedule and no file"),
        (["compare", "--sort", "beauty"], "invalid choice"),
        (["show", "1f1b", "--width", "0"], "not a number of columns"),
        (["show", "1f1b", "--width", "1\n2"], "1 2 is not a number of columns"),
        (["show", "1f1b", "--width", "\x1b[31m"], "?[31m is not a number of columns"),
        (["show", "1f1b", "--color", "pink"], "invalid choice"),
        (["show"], "the following arguments are required"),
        (["paint", "1f1b"], "invalid choice: 'paint'"),
        (["show", "a\0b"], "no file's name"),
        (["show", "1f1b\ud800"], "no schedule and no file"),
    ],
)
def test_wrong_usage_is_one_sentence(arguments, says):
    assert says in refused(*arguments)


def test_a_files_sizes_are_its_own(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text(dp.schedule("1f1b", 2, 2).to_text())
    for option in (["-p", "2"], ["-m", "2"], ["--option", "waves=1"]):
        assert "belongs to a family" in refused("show", str(file), *option)


def test_a_name_cannot_steer_the_terminal(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text(dp.schedule("1f1b", 2, 2).to_text().replace("name=1f1b", "name=\x1b]0;owned\x07"))
    for command in ("show", "simulate", "verify", "compare"):
        done = run(command, str(file))
        assert "\x1b" not in done.out + done.err


WORDS = st.one_of(
    st.sampled_from(
        ["show", "simulate", "compare", "verify", "export", "1f1b", "dualpipe", "hanayo:waves=2", "-"]
    ),
    st.sampled_from(
        ["-p", "-m", "--forward", "--p2p", "--depth", "--width", "--json", "--color", "--csv", "-o"]
    ),
    st.sampled_from(["2", "4", "nan", "1e308", "-1", "1,2,3,4", "all", "batched", "rendezvous", "never"]),
    st.text(max_size=8).filter(
        lambda word: word not in ("demo", "doctor") and "/" not in word and word != "."
    ),
)


@settings(steady, max_examples=60)
@given(
    st.sampled_from(["show", "simulate", "compare", "verify"]),
    st.lists(WORDS, max_size=6),
    st.binary(max_size=60),
)
def test_no_words_give_a_traceback(command, words, stdin):
    done = run(command, *words, stdin=stdin)
    assert done.code in (0, 1, 2)
    assert done.err.count("dualpipe_rs: error: ") == (1 if done.code == 2 else len(done.err) > 0)
    assert done.code == 1 or bool(done.out) != bool(done.err)


TEXT = dp.schedule("dualpipev", 2, 4).to_text()


@settings(steady, max_examples=60)
@given(
    st.integers(0, len(TEXT) - 1),
    st.integers(0, 12),
    st.sampled_from(["", "0", "F", "9" * 9, "(", "\n", "\x1b", "é"]),
)
def test_no_text_gives_a_traceback(start, length, instead):
    text = TEXT[:start] + instead + TEXT[start + length :]
    for command in ("show", "simulate", "verify"):
        for more in ([], ["--csv"]):
            done = run(command, "-", *more, stdin=text.encode())
            assert done.code in (0, 1, 2)
            assert "\x1b" not in done.out + done.err


# ---- Help --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["show", "simulate", "compare", "verify", "export", "demo", "doctor"])
def test_help_has_examples_and_exit_codes(command):
    out = fine(command, "--help")
    assert f"usage: python -m dualpipe_rs {command}" in out
    assert "\nexamples:\n" in out
    assert "\nexit codes:\n  0  fine\n  1  " in out


def test_alone_it_gives_an_overview():
    out = fine()
    assert out == fine("--help")
    assert out.count("  python -m dualpipe_rs ") >= 5
    assert re.fullmatch(r"dualpipe_rs \S+\n", fine("--version"))


def examples(text: str) -> list[list[str]]:
    """The lines of a help's examples that need neither a file nor another program."""
    lines = re.findall(r"^  python -m dualpipe_rs (.*)$", text, flags=re.MULTILINE)
    words = [re.split(r"\s{3,}|\s*\|", line)[0].split() for line in lines]
    return [
        line
        for line in words
        if line[0] not in ("demo", "doctor") and not {"mine.txt", "table.csv"} & {*line}
    ]


def test_the_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = [
        line
        for command in ("show", "simulate", "compare", "verify")
        for line in examples(fine(command, "--help"))
    ]
    shown += [line for line in examples(fine()) if line[0] != "export"]
    assert len(shown) > 12
    for line in shown:
        assert run(*line).code == (1 if "--depth" in line else 0), line


# ---- As a process ------------------------------------------------------------------------------------------


def test_no_colour_in_a_pipe_and_colour_where_asked_for():
    assert "\x1b" not in process("show", "1f1b", "-p", "2", "-m", "2").stdout
    assert "\x1b" in process("show", "1f1b", "-p", "2", "-m", "2", "--color", "always").stdout


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(
    ("settings", "colored"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colour_on_a_terminal(settings, colored):
    out = on_a_terminal(["show", "1f1b", "-p", "2", "-m", "2"], settings)
    assert "makespan 9" in out
    assert ("\x1b" in out) == colored


@pytest.mark.parametrize(
    "arguments", [["show", "gpipe", "-p", "8"], ["--help"], ["simulate", "1f1b", "--json"]]
)
def test_a_closed_pipe_ends_it_quietly(arguments):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "dualpipe_rs", *arguments]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_closed_pipe_does_not_hide_a_verdict(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text(BROKEN)
    command = f"{sys.executable} -m dualpipe_rs verify {file} | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines() == ["mine: linear, 2 ranks, 2 stages, 2 microbatches", "1"]
    assert done.stderr == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_an_error():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "dualpipe_rs", "show", "1f1b"]
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert done.returncode == 2
    assert done.stderr == "dualpipe_rs: error: standard output: No space left on device\n"


def test_ctrl_c_is_130(monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(show, "load", interrupted)
    done = run("show", "1f1b")
    assert (done.code, done.out, done.err) == (130, "", "dualpipe_rs: interrupted\n")


def test_ctrl_c_of_a_process_that_waits_for_its_input():
    command = [sys.executable, "-m", "dualpipe_rs", "verify", "-"]
    pipe = subprocess.PIPE
    child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    wait_until_it_reads(child.pid)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out, err) == (130, "", "dualpipe_rs: interrupted\n")


def wait_until_it_reads(pid: int) -> None:
    """Until the process sleeps in a read of its standard input."""
    where = Path(f"/proc/{pid}/syscall")
    if not where.exists():
        pytest.skip("needs /proc")
    limit = time.monotonic() + 30
    while time.monotonic() < limit:
        words = where.read_text().split()
        if words[0] in ("0", "63") and words[1] == "0x0":  # read(0, ...), on x86-64 and on ARM
            return
    raise AssertionError("it never read its standard input")


def test_show_loads_no_torch():
    code = (
        "import sys; from dualpipe_rs.cli import main; main(['show', '1f1b']); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.splitlines()[-1] == "False"


def test_no_progress_bar_for_what_takes_no_time():
    out = on_a_terminal(["compare", "1f1b", "zb-h1"], {})
    assert "makespan" in out
    assert "comparing" not in out


PAGE = (Path(__file__).parent.parent / "docs" / "terminal.md").read_text(encoding="utf-8")


def test_the_page_shows_what_is_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    blocks = re.findall(r"^```console\n\$ (.*?)\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 7
    for command, shown in blocks:
        words = command.split()
        if words[0] == "cat":
            Path(words[1]).write_text(shown)
            continue
        done = run(*words[3:])
        assert [line.rstrip() for line in (done.out + done.err).splitlines()] == shown.splitlines(), command
