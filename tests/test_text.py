"""A schedule as text: what is read is written back; all else is refused with line and column, at once and in
few words, however large or hostile.
"""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
from conftest import attempt, legal_sizes, numbered, python, shape_of, steady, text_of
from hypothesis import example, given, settings
from hypothesis import strategies as st

import dualpipe_rs as dp

HEADER = "# name=dualpipev placement=v ranks=1 stages=2 microbatches=2"
ROW = "0F0 1F0 0F1 1B0 (1F1;0B0) 1B1 0I1 0W1"
TEXT = f"{HEADER}\n{ROW}\n"
FORWARD_ONLY = f"{HEADER} forward_only=true\n0F0 1F0 0F1 1F1\n"


# ---- Round trips -------------------------------------------------------------------------------------------


def test_every_family_round_trips() -> None:
    for family, p, m in legal_sizes(8, 20):
        for schedule in (dp.schedule(family, p, m), dp.schedule(family, p, m).forward_only()):
            text = schedule.to_text()
            again = dp.Schedule.from_text(text)
            assert again == schedule
            assert again.to_text() == text
            assert repr(again) == repr(schedule)


@pytest.mark.parametrize("seed", range(100))
def test_random_schedules_round_trip(seed: int) -> None:
    rows, shape = numbered(seed)
    text = text_of(rows, shape)
    schedule = dp.Schedule.from_text(text)
    assert schedule.to_text() == text
    assert shape_of(schedule) == shape
    assert dp.Schedule.from_text(schedule.forward_only().to_text()) == schedule.forward_only()


def test_a_schedule_need_not_be_right_to_be_read() -> None:
    text = "# name=x placement=linear ranks=2 stages=2 microbatches=1\n0W0 0W0\n(0F0;0B0) 1F0\n"
    assert dp.Schedule.from_text(text).to_text() == text


@pytest.mark.parametrize(
    "text",
    [
        TEXT.rstrip(),
        TEXT + "\n\n",
        TEXT + "  \n",
        TEXT.replace("\n", "\r\n"),
        TEXT.replace(" 1F0", "   1F0"),
        TEXT.replace(" ", "\t"),
        TEXT.replace("\n0F0", "\n  0F0"),
    ],
    ids=["no newline", "empty lines after", "a blank line after", "crlf", "spaces", "tabs", "indented"],
)
def test_space_is_free(text: str) -> None:
    assert dp.Schedule.from_text(text).to_text() == TEXT


@pytest.mark.parametrize("name", ["x", "", "a=b", "é×−", "#", "1", "\u00a0", "日本", "x" * 1000, '"'])
def test_names(name: str) -> None:
    text = TEXT.replace("dualpipev", name, 1)
    schedule = dp.Schedule.from_text(text)
    assert schedule.name == name
    assert schedule.to_text() == text


def test_the_fields_may_come_in_any_order() -> None:
    fields = HEADER.split()[1:]
    for seed in range(20):
        random.Random(seed).shuffle(fields)
        assert dp.Schedule.from_text(f"# {' '.join(fields)}\n{ROW}").to_text() == TEXT


def test_large_numbers_within_the_sizes() -> None:
    text = "# name=x placement=linear ranks=1 stages=1 microbatches=100000\n"
    text += " ".join(f"0F{m}" for m in range(100_000)) + "\n"
    schedule = dp.Schedule.from_text(text)
    assert schedule.rank(0)[-1] == "0F99999"
    assert schedule.to_text() == text


# ---- Strictness --------------------------------------------------------------------------------------------

LAST = 2, ROW.index("0W1") + 1
PAIR = 2, ROW.index("(1F1") + 1

# (what is replaced, by what, line, column, words of the message)
BAD: list[tuple[str, str, int, int, str]] = [
    # actions
    ("0W1", "0W1garbage", *LAST, "is not an action"),
    ("0W1", "0X1", *LAST, '"0X1" is not an action such as 2F0'),
    ("0W1", "0w1", *LAST, "is not an action"),
    ("0W1", "W1", *LAST, "is not an action"),
    ("0W1", "0W", *LAST, "is not an action"),
    ("0W1", "W", *LAST, "is not an action"),
    ("0W1", "0", *LAST, "is not an action"),
    ("0W1", "00W1", *LAST, "is not an action"),
    ("0W1", "0W01", *LAST, "is not an action"),
    ("0W1", "+0W1", *LAST, "is not an action"),
    ("0W1", "-0W1", *LAST, "is not an action"),
    ("0W1", "0W-1", *LAST, "is not an action"),
    ("0W1", "0W1.0", *LAST, "is not an action"),
    ("0W1", "0W1_0", *LAST, "is not an action"),
    ("0W1", "0W1,", *LAST, "is not an action"),
    ("0W1", "0F0W1", *LAST, "is not an action"),
    ("0W1", "٠W1", *LAST, "is not an action"),
    ("0W1", "0Ｗ1", *LAST, "is not an action"),
    ("0W1", "0W¹", *LAST, "is not an action"),
    ("0W1", "0W1\0", *LAST, "is not an action"),
    ("0W1", "0W1\u00a0", *LAST, "is not an action"),
    ("0W1", "0W1\u200b", *LAST, "is not an action"),
    ("0W1", "0W4294967296", *LAST, "is not an action"),
    ("0W1", "0W18446744073709551616", *LAST, "is not an action"),
    ("0W1", "65536W1", *LAST, "is not an action"),
    ("0W1", "4294967296W1", *LAST, "is not an action"),
    ("0W1", "0W2", *LAST, "0W2 is out of range: stages are 0 to 1 and microbatches 0 to 1"),
    ("0W1", "2W1", *LAST, "2W1 is out of range"),
    ("0W1", "65535W999999999", *LAST, "65535W999999999 is out of range"),
    ("0W1", "0W1 #", 2, LAST[1] + 4, "is not an action"),
    ("0W1", "# 0W1", *LAST, "is not an action"),
    # pairs
    ("(1F1;0B0)", "(1F1;0B0", *PAIR, "is not a pair"),
    ("(1F1;0B0)", "1F1;0B0)", *PAIR, "is not an action"),
    ("(1F1;0B0)", "1F1;0B0", *PAIR, "is not an action"),
    ("(1F1;0B0)", "(1F1,0B0)", *PAIR, "is not a pair"),
    ("(1F1;0B0)", "(1F1)", *PAIR, "is not a pair"),
    ("(1F1;0B0)", "()", *PAIR, "is not a pair"),
    ("(1F1;0B0)", "(", *PAIR, "is not a pair"),
    ("(1F1;0B0)", ")", *PAIR, "is not an action"),
    ("(1F1;0B0)", "(;)", 2, PAIR[1] + 1, "is not an action"),
    ("(1F1;0B0)", "(1F1;)", 2, PAIR[1] + 5, "is not an action"),
    ("(1F1;0B0)", "(;0B0)", 2, PAIR[1] + 1, "is not an action"),
    ("(1F1;0B0)", "(1F1;0B0;0B1)", 2, PAIR[1] + 5, "is not an action"),
    ("(1F1;0B0)", "((1F1;0B0))", 2, PAIR[1] + 1, "is not an action"),
    ("(1F1;0B0)", "(1F1;0B0)x", *PAIR, "is not a pair"),
    ("(1F1;0B0)", "(1F1;0B00)", 2, PAIR[1] + 5, "is not an action"),
    ("(1F1;0B0)", "(1F1; 0B0)", *PAIR, "is not a pair"),
    ("(1F1;0B0)", "(0B0;1F1)", *PAIR, "does not fuse a forward (first) with a full backward"),
    ("(1F1;0B0)", "(1F1;0F0)", *PAIR, "does not fuse"),
    ("(1F1;0B0)", "(1F1;0I0)", *PAIR, "does not fuse"),
    ("(1F1;0B0)", "(1F1;0W0)", *PAIR, "does not fuse"),
    ("(1F1;0B0)", "(0B0;0B1)", *PAIR, "does not fuse"),
    ("(1F1;0B0)", "(1F2;0B0)", *PAIR, "1F2 is out of range"),
    ("(1F1;0B0)", "(1F1;2B0)", *PAIR, "2B0 is out of range"),
    # rows
    (ROW, "", 1, 1, "the first line says ranks=1, and there are 0 rows"),
    (ROW, "\n" + ROW, 2, 1, "this row is empty"),
    (ROW, " \n" + ROW, 2, 1, "this row is empty"),
    (ROW, ROW + "\n" + ROW, 1, 1, "the first line says ranks=1, and there are 2 rows"),
    (ROW, ROW + "\n\n" + ROW, 3, 1, "this row is empty"),
    (ROW, "0F0 1F0 0B0", 1, 1, "these sizes take 4 forwards, and there are 3 actions"),
    (ROW, f"# {ROW}", 2, 1, "is not an action"),
    # the first line
    (HEADER, "", 1, 1, "a schedule begins with a line"),
    (TEXT, "", 1, 1, "a schedule begins with a line"),
    (TEXT, ROW, 1, 1, "a schedule begins with a line"),
    ("# ", "", 1, 1, "a schedule begins with a line"),
    ("# ", "#", 1, 1, "a schedule begins with a line"),
    ("# ", "## ", 1, 1, "a schedule begins with a line"),
    ("# ", "\ufeff# ", 1, 1, "a schedule begins with a line"),
    ("# ", "\n# ", 1, 1, "a schedule begins with a line"),
    ("# ", "# # ", 1, 3, "is not a field"),
    ("placement=v", "placement=V", 1, 28, 'there is no placement "V"; the placements are linear,'),
    ("placement=v", "placement=", 1, 28, 'there is no placement ""'),
    ("placement=v", "placement", 1, 18, '"placement" is not a field'),
    ("placement=v", "place=v", 1, 18, '"place=v" is not a field'),
    ("placement=v", "Placement=v", 1, 18, "is not a field"),
    ("placement=v", "placement=v colour=red", 1, 30, "is not a field"),
    ("placement=v", "placement=v extra", 1, 30, "is not a field"),
    ("placement=v", "placement= v", 1, 29, "is not a field"),
    ("placement=v", "placement=linear", 1, 1, "placement linear takes as many stages as ranks"),
    ("placement=v", "placement=bidirectional", 1, 1, "placement bidirectional takes as many stages as ranks"),
    ("ranks=1", "ranks=2", 1, 1, "placement v takes twice as many stages as ranks"),
    ("ranks=1", "ranks=-1", 1, 36, '"-1" is not a whole number'),
    ("ranks=1", "ranks=+1", 1, 36, "is not a whole number"),
    ("ranks=1", "ranks=01", 1, 36, "is not a whole number"),
    ("ranks=1", "ranks=1.0", 1, 36, "is not a whole number"),
    ("ranks=1", "ranks=", 1, 36, "is not a whole number"),
    ("ranks=1", "ranks=1e0", 1, 36, "is not a whole number"),
    ("ranks=1", "ranks=1=1", 1, 36, "is not a whole number"),
    ("ranks=1", "ranks=１", 1, 36, "is not a whole number"),
    ("ranks=1", "ranks=1000000000", 1, 36, "is not a whole number"),
    ("ranks=1", "ranks=18446744073709551617", 1, 36, "is not a whole number"),
    ("ranks=1", "ranks=0", 1, 1, "there must be at least one of each"),
    ("stages=2", "stages=0", 1, 1, "there must be at least one of each"),
    ("microbatches=2", "microbatches=0", 1, 1, "there must be at least one of each"),
    ("stages=2", "stages=3", 1, 1, "placement v takes twice"),
    ("stages=2", "stages=65536", 1, 1, "at most 65535 stages can be numbered"),
    ("microbatches=2", "microbatches=99999999", 1, 1, "more than 134217728 actions"),
    ("microbatches=2", "microbatches=5", 1, 1, "these sizes take 10 forwards, and there are 9 actions"),
    (
        "microbatches=2",
        "microbatches=1",
        2,
        9,
        "0F1 is out of range: stages are 0 to 1 and",
    ),
    ("ranks=1", "ranks=1 ranks=1", 1, 38, '"ranks=1" is given twice'),
    ("ranks=1 ", "", 1, 1, "ranks= is missing"),
    ("name=dualpipev ", "", 1, 1, "name= is missing"),
    (" placement=v", "", 1, 1, "placement= is missing"),
    (" stages=2", "", 1, 1, "stages= is missing"),
    (" microbatches=2", "", 1, 1, "microbatches= is missing"),
    ("hes=2", "hes=2 forward_only=false", 1, 75, 'forward_only="false" is not forward_only=true'),
    ("hes=2", "hes=2 forward_only=True", 1, 75, "is not forward_only=true"),
    ("hes=2", "hes=2 forward_only=", 1, 75, "is not forward_only=true"),
    ("hes=2", "hes=2 forward_only", 1, 62, "is not a field"),
]


@pytest.mark.parametrize(
    ("old", "new", "line", "column", "words"), BAD, ids=[repr(case[1])[:30] for case in BAD]
)
def test_bad_texts(old: str, new: str, line: int, column: int, words: str) -> None:
    assert old in TEXT
    with pytest.raises(dp.UsageError) as caught:
        dp.Schedule.from_text(TEXT.replace(old, new, 1))
    message = str(caught.value)
    assert message.startswith(f"line {line}, column {column}: ")
    assert words in message


@pytest.mark.parametrize("row", ["0F0 1F0 0F1 1F1 0B0", "0F0 1F0 0F1 (1F1;0B0)", "0F0 1F0 0F1 1F1 0I0 0W0"])
def test_a_backward_in_a_forward_only_text_is_not_dropped(row: str) -> None:
    schedule = attempt(f"{HEADER} forward_only=true\n{row}\n")
    assert isinstance(schedule, str) or schedule.rank(0) == row.split()


def test_the_column_counts_after_letters_of_several_bytes() -> None:
    """Columns are bytes or characters, but one of the two: here both are known."""
    message = attempt(TEXT.replace("name=dualpipev", "name=é").replace("ranks=1", "ranks=x"))
    assert isinstance(message, str)
    assert re.match(r"line 1, column (28|29): ", message)


@pytest.mark.parametrize("text", [None, 1, b"# name=x", ["#"]], ids=repr)
def test_text_of_other_types(text: Any) -> None:
    with pytest.raises((dp.Error, TypeError)):
        dp.Schedule.from_text(text)


def test_a_lone_surrogate_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"surrogate|line"):
        dp.Schedule.from_text(TEXT.replace("dualpipev", "\ud800"))


# ---- Hostile texts -----------------------------------------------------------------------------------------

HUGE_SIZES = [
    "placement=linear ranks=65535 stages=65535 microbatches=682",
    "placement=linear ranks=1 stages=1 microbatches=44739242",
    "placement=looped ranks=1 stages=65535 microbatches=682",
    "placement=v ranks=32767 stages=65534 microbatches=682",
    "placement=looped ranks=999999999 stages=999999999 microbatches=999999999",
    "placement=linear ranks=999999999 stages=999999999 microbatches=1",
    "placement=linear ranks=1 stages=1 microbatches=999999999",
]


@pytest.mark.parametrize("mode", ["", " forward_only=true"])
@pytest.mark.parametrize("sizes", HUGE_SIZES)
def test_huge_sizes_and_few_rows(sizes: str, mode: str) -> None:
    """Refused before any table of that size is made."""
    code = f"""
import dualpipe_rs as dp
try: dp.Schedule.from_text("# name=x {sizes}{mode}\\n0F0 0B0\\n").verify()
except dp.UsageError as error: print("refused", len(str(error)) < 300)
"""
    answer = python(code, gibibytes=0.25)
    assert answer.stdout == "refused True\n", answer.stderr


MEGABYTES = 50_000_000
LONG = {
    "letters": "A" * MEGABYTES,
    "digits": "0" * MEGABYTES,
    "an action": "0F" + "1" * MEGABYTES,
    "an open pair": "(" + "0" * MEGABYTES,
    "a pair": "(0F0;" + "B" * MEGABYTES + ")",
    "two bytes a letter": "é" * (MEGABYTES // 2),
    "parentheses": "(" * MEGABYTES,
}


@pytest.mark.parametrize("word", LONG)
def test_a_row_of_one_word_is_refused_in_few(word: str) -> None:
    message = attempt(f"{HEADER}\n{LONG[word]}\n")
    assert isinstance(message, str)
    assert message.startswith("line 2, column ")
    assert len(message) < 300


@pytest.mark.parametrize(
    "header",
    [
        "# {}",
        "# {}=1",
        "{}",
        HEADER.replace("=v ", "={} "),
        HEADER.replace("ranks=1", "ranks={}"),
        HEADER + " forward_only={}",
        HEADER + " name={}",
    ],
)
def test_a_first_line_of_one_word_is_refused_in_few(header: str) -> None:
    message = attempt(header.format("A" * 1_000_000) + f"\n{ROW}\n")
    assert isinstance(message, str)
    assert message.startswith("line 1, column ")
    assert len(message) < 500


def test_many_rows_are_counted() -> None:
    message = attempt(HEADER + "\n0F0" * 1_000_000)
    assert message == "line 1, column 1: the first line says ranks=1, and there are 1000000 rows"


# ---- Fuzz --------------------------------------------------------------------------------------------------

SEEDS = [
    TEXT,
    FORWARD_ONLY,
    dp.schedule("dualpipe", 2, 4).to_text(),
    dp.schedule("1f1b", 3, 2).to_text(),
    "# name=x placement=looped ranks=1 stages=3 microbatches=1\n0F0 1F0 2F0 2I0 2W0 1B0 0B0\n",
]
SIGNS = list("019FIWB();# \n\r\t=-é\0\x0b\x85\u2028٣")
WORDS = ["0F0", "1F1", "0B0", "1I1", "0W0", "(0F1;1B0)", "(1F1;1B1)", "2F0", "0F2", "#", "x", "\n"]
WORDS += ["name=y", "ranks=1", "ranks=2", "stages=4", "microbatches=1", "placement=linear", "placement=wave"]
WORDS += ["forward_only=true"]

edits = st.lists(
    st.tuples(st.integers(0, 400), st.integers(0, 4), st.sampled_from(SIGNS + WORDS)), min_size=1, max_size=5
)


def words(text: str) -> list[list[str]]:
    """The rows' words, as written."""
    lines = re.sub(r"\s+\Z", "", text).split("\n")[1:]
    return [re.findall(r"[^ \t\r\f]+", line) for line in lines]


def check_read(text: str) -> None:
    schedule = attempt(text)
    if isinstance(schedule, str):
        assert re.match(r"line \d+, column \d+: .", schedule)
        return
    written = schedule.to_text()
    assert words(written) == words(text)
    again = dp.Schedule.from_text(written)
    assert again == schedule
    assert again.to_text() == written


@settings(steady, max_examples=800)
@given(seed=st.sampled_from(SEEDS), edits=edits)
@example(seed=FORWARD_ONLY, edits=[(FORWARD_ONLY.rindex("F"), 1, "B")])
def test_changed_signs(seed: str, edits: list[tuple[int, int, str]]) -> None:
    for at, removed, inserted in edits:
        at %= len(seed) + 1
        seed = seed[:at] + inserted + seed[at + removed :]
    check_read(seed)


@pytest.mark.parametrize("seed", SEEDS, ids=range(len(SEEDS)))
def test_changed_words(seed: str) -> None:
    rng = random.Random(seed)
    for _ in range(2000):
        parts = re.split(r"( |\n)", seed)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(0, len(parts), 2)
            parts[at] = rng.choice(WORDS + parts[::2])
        check_read("".join(parts))


@settings(steady, max_examples=500)
@given(text=st.text(alphabet=st.sampled_from("0123456789FIWB();# \n=abcdefrnkstpl"), max_size=120))
def test_any_text(text: str) -> None:
    check_read(text)
    check_read(f"{HEADER}\n{text}")


@settings(steady, max_examples=300)
@given(text=st.text(max_size=60))
def test_any_unicode(text: str) -> None:
    check_read(text)
    check_read(f"# name={text}{HEADER[2:]}\n{ROW}")
    check_read(f"{HEADER}\n{ROW}{text}")


@pytest.mark.parametrize("read", ["from_text(HEADER + ROWS)", "from_torch_csv(ROWS)"])
def test_rows_beyond_the_ranks_are_counted_not_kept(read: str) -> None:
    """50 MB of short rows are refused within 1 GiB."""
    done = python(
        f"""
import dualpipe_rs as dp
HEADER = "# name=x placement=linear ranks=2 stages=2 microbatches=1\\n"
ROWS = "0F0\\n" * 13_000_000
try:
    dp.Schedule.{read}
except dp.UsageError as error:
    print(error)
""",
        gibibytes=1,
    )
    assert done.returncode == 0, done.stderr
    assert "there are 13000000 rows" in done.stdout or "more than 65535 rows" in done.stdout
