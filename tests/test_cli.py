"""The commands of the command line: what each prints, and that its numbers are the API's, to the last bit."""

from __future__ import annotations

import math
import re
import sys

import pytest
from cli import BROKEN, fine, refused, run, smallest, strict
from families import FAMILIES, cases

import dualpipe_rs as dp
from dualpipe_rs.cli import compare
from dualpipe_rs.cli.figures import to_json

COSTS = {
    **{"forward": 1.1, "backward_input": 0.7, "backward_weight": 0.9, "backward": 1.9},
    **{"overlap": 2.3, "p2p": 0.13, "gradient_exchange": 0.4, "optimizer": 0.3},
}
COST_OPTIONS = [
    *("--forward", "1.1", "--backward-input", "0.7", "--backward-weight", "0.9", "--backward", "1.9"),
    *("--overlap", "2.3", "--p2p-cost", "0.13", "--gradient-exchange", "0.4", "--optimizer", "0.3"),
]


# ---- simulate ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p2p", ["eager", "rendezvous", "batched"])
@pytest.mark.parametrize("family", ["dualpipe", "zb-v", "1f1b"])
def test_json_has_the_numbers_of_the_api_to_the_last_bit(family, p2p):
    timeline = dp.schedule(family, 4, 8).simulate(dp.Costs(**COSTS), p2p=p2p)
    found = strict(fine("simulate", family, "-p", "4", "-m", "8", *COST_OPTIONS, "--p2p", p2p, "--json"))
    for name in ("makespan", "span", "bubble_ratio", "bubble_over_ideal", "span_bubble_ratio"):
        assert found[name] == getattr(timeline, name)
    for name in ("busy", "idle", "peak_activations"):
        assert found[name] == getattr(timeline, name).tolist()
    assert found["idle_by_cause"] == {cause: idle.tolist() for cause, idle in timeline.idle_by_cause.items()}
    assert [tuple(row.values()) for row in found["critical_path"]] == timeline.critical_path().tolist()
    assert {name: found["costs"][name] for name in COSTS} == COSTS
    assert found["p2p"] == p2p


def test_json_has_null_for_what_is_no_number():
    assert strict(to_json({"a": [math.nan, -math.inf], "b": 0.1})) == {"a": [None, None], "b": 0.1}


def test_forwards_alone():
    found = strict(fine("simulate", "1f1b", "--forward-only", "--json"))
    assert found["makespan"] == dp.schedule("1f1b", 8, 20).forward_only().simulate().makespan == 27


def test_the_depth_reaches_the_simulator():
    assert "deadlock" in refused("simulate", "dualpipe", "--p2p", "rendezvous", "--depth", "1", code=1)
    assert strict(fine("simulate", "1f1b", "--p2p", "rendezvous", "--depth", "1", "--json"))["depth"] == 1


def test_the_formula_is_asked_with_the_familys_options_and_costs():
    found = strict(fine("simulate", "hanayo:waves=2", "-p", "4", "-m", "8", "--json", *COST_OPTIONS))
    expected = dp.formula("hanayo").makespan(4, 8, dp.Costs(**COSTS), waves=2)
    assert found["formula"]["value"] == expected.value
    assert found["formula"]["exact"] == expected.exact
    exact = fine("simulate", "dualpipe")
    assert re.search(r"formula +66  exact", exact)
    assert re.search(
        r"formula +-  the published forms are for eager", fine("simulate", "1f1b", "--p2p", "batched")
    )
    assert re.search(r"formula +-  none is published", fine("simulate", "v-half"))


def test_a_formula_is_for_the_published_order_alone(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text(dp.schedule("dualpipe", 8, 20).to_text())
    assert strict(fine("simulate", str(file), "--json"))["formula"] is None
    assert strict(fine("simulate", "1f1b", "--forward-only", "--json"))["formula"] is None


def test_a_page_of_figures():
    timeline = dp.schedule("dualpipe", 8, 20).simulate(dp.Costs(p2p=0.1))
    out = fine("simulate", "dualpipe", "--p2p-cost", "0.1", "--width", "100")
    assert f"makespan             {timeline.makespan:.6g}" in out
    causes = {cause: idle.sum() for cause, idle in timeline.idle_by_cause.items() if idle.sum() > 0}
    for cause, idle in causes.items():
        assert re.search(rf"{cause.replace('_', '-')} +{idle:.6g} ", out)
    path = timeline.critical_path()
    taken = {(row["rank"], row["slot"]): row["end"] - row["start"] for row in path}
    assert f"critical path: {len(taken)} slots" in out
    assert f"hops and waits {timeline.makespan - sum(taken.values()):.6g}" in out
    assert len(re.findall(r"^ +\d +60 ", out, flags=re.MULTILINE)) == 8


def test_costs_by_stage_reach_the_stages():
    found = strict(fine("simulate", "gpipe", "-p", "3", "-m", "2", "--forward", "1,2,4", "--json"))
    assert found["makespan"] == dp.schedule("gpipe", 3, 2).simulate(dp.Costs([1.0, 2.0, 4.0])).makespan
    assert found["costs"]["forward"] == [1.0, 2.0, 4.0]


# ---- compare -----------------------------------------------------------------------------------------------


def test_compare_is_the_apis_rows_sorted():
    options = ["-p", "4", "-m", "12", *COST_OPTIONS]
    found = strict(fine("compare", *options, "--json"))
    rows = dp.compare(dp.schedule_names(), 4, 12, dp.Costs(**COSTS))
    assert sorted(found["rows"], key=lambda row: row["schedule"]) == sorted(rows, key=lambda r: r["schedule"])
    spans = [row["makespan"] for row in found["rows"]]
    assert spans == sorted(spans)
    by_memory = strict(fine("compare", *options, "--json", "--sort", "peak_activations"))["rows"]
    peaks = [row["peak_activations"] for row in by_memory]
    assert peaks == sorted(peaks)
    assert [row["schedule"] for row in by_memory] != [row["schedule"] for row in found["rows"]]


def test_compare_takes_options_and_files_and_says_what_does_not_exist(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text(dp.schedule("1f1b", 3, 7).to_text().replace("name=1f1b", "name=mine"))
    out = fine("compare", str(file), "interleaved:stages_per_rank=3", "dualpipe", "--width", "200")
    head, _, columns, *rows = out.splitlines()
    assert head == "3 ranks, 7 microbatches, least makespan first"
    assert columns.split()[:3] == ["schedule", "makespan", "bubble"]
    assert rows[0].startswith("mine ")
    assert "interleaved (stages_per_rank=3): " in out  # 7 microbatches make no 2 equal rounds
    assert "dualpipe: dualpipe takes an even number" in out
    assert "nothing to compare" in refused("compare", "dualpipe", "-p", "3")
    file.write_text(BROKEN)
    assert "breaks a rule" in refused("compare", str(file), code=1)


def test_the_progress_bar_is_on_standard_error_if_that_is_a_terminal(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("tqdm.auto.tqdm", lambda choices, **options: asked.append(options) or choices)
    assert compare._watched(["1f1b", "zb-h1"]) == ["1f1b", "zb-h1"]
    assert not asked
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert compare._watched(["1f1b", "zb-h1"]) == ["1f1b", "zb-h1"]
    assert [(options["file"], options["delay"] > 0) for options in asked] == [(sys.stderr, True)]


def test_a_narrow_table_keeps_whole_columns():
    for width in [20, 30, 60, 100]:
        out = fine("compare", "1f1b", "zb-h1", "--width", str(width))
        lines = out.splitlines()[2:5]
        assert all(len(line) <= width for line in lines)
        assert len({len(line) for line in lines}) == 1


# ---- verify ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_all_families_are_proven(family):
    out = fine("verify", family, *smallest(family), "--p2p", "all")
    assert re.findall(r"^OK  (\w+):", out, flags=re.MULTILINE) == ["order", "eager", "rendezvous", "batched"]


def test_every_violation_with_its_row_and_cell():
    done = run("verify", "-", stdin=BROKEN.encode())
    assert done.code == 1
    with pytest.raises(dp.ScheduleError) as caught:
        dp.Schedule.from_text(BROKEN).verify()
    for violation in caught.value.violations:
        assert violation.message in done.out
    assert "FAILED: 5 violations" in done.out
    assert "rank 0, slot 3: 0F0 stands a second time" in done.out
    assert "  rank 0: 0F0 0B0 0F1 »0F0« 0B1" in done.out
    assert "rank 1: 1B1 is missing\n  rank 1: 1B0 1F0 1F1 0B1" in done.out
    assert "OK" not in done.out
    painted = run("verify", "-", "--color", "always", stdin=BROKEN.encode())
    assert "0F0 0B0 0F1 \x1b[7m0F0\x1b[0m 0B1" in painted.out


def test_of_a_long_row_the_part_around_the_cell():
    text = dp.schedule("1f1b", 4, 40).to_text()
    broken = text.replace(" 2F20 ", " 2F20 2F20 ")
    for width in [20, 40, 79]:
        done = run("verify", "-", "--width", str(width), stdin=broken.encode())
        row = next(line for line in done.out.splitlines() if "»" in line)
        assert re.search(r"  rank 2: … .*»2F20«.* …$|  rank 2: … »2F20« …$", row)
        assert len(row) <= max(width, 28)


def test_semantics_are_proven_one_by_one():
    done = run("verify", "dualpipe", "--p2p", "all", "--depth", "1")
    assert done.code == 1
    assert "FAILED under rendezvous" in done.out
    assert re.findall(r"^OK  (\w+):", done.out, flags=re.MULTILINE) == ["order", "eager", "batched"]
    found = strict(run("verify", "1f1b", "--p2p", "blocking", "--json").out)
    assert [(proof["p2p"], proof["ok"]) for proof in found["proofs"]] == [
        ("eager", True),
        ("blocking", False),
    ]
    assert {violation["kind"] for violation in found["violations"]} == {"deadlock"}
    assert run("verify", "1f1b", "--max-activations", "8").code == 0
    assert run("verify", "1f1b", "--max-activations", "7").code == 1


def test_verify_json_is_the_apis_violations():
    done = run("verify", "-", "--json", stdin=BROKEN.encode())
    found = strict(done.out)
    with pytest.raises(dp.ScheduleError) as caught:
        dp.Schedule.from_text(BROKEN).verify()
    expected = [{"p2p": "eager", **violation._asdict()} for violation in caught.value.violations]
    assert found["violations"] == expected
    assert found["ok"] is False
    assert strict(fine("verify", "1f1b", "--json"))["ok"] is True


def test_other_commands_name_the_first_violation(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text(BROKEN)
    for command in (["show"], ["simulate"], ["simulate", "--json"], ["export", "-o", "-"]):
        said = refused(command[0], str(file), *command[1:], code=1)
        assert "rank 0, slot 3: 0F0 stands a second time" in said
        assert "4 more" in said


# ---- export, and files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_shown_simulated_and_exported_at_its_smallest(family, tmp_path):
    size = smallest(family)
    schedule = cases(family)[0].make()
    file = tmp_path / "made.txt"
    option = FAMILIES[family].option
    own = [] if option is None else ["--option", f"{option}=1"]
    assert str(file) in fine("export", family, *size, *own, "-o", str(file))
    assert dp.Schedule.from_text(file.read_text()) == schedule
    assert fine("show", family, *size, *own) == fine("show", str(file))
    found, again = (
        strict(fine("simulate", *words, "--json")) for words in ([family, *size, *own], [str(file)])
    )
    assert {**found, "formula": None} == again
    table = tmp_path / "made.csv"
    if schedule.placement == "bidirectional":
        assert "torch keeps one rank a stage" in refused("export", str(file), "-o", str(table))
    else:
        fine("export", str(file), "-o", str(table))
        assert table.read_text() == schedule.to_torch_csv()
        assert (
            fine("show", str(table), "--placement", schedule.placement).splitlines()[1:]
            == (fine("show", str(file)).splitlines()[1:])
        )


def test_standard_output_feeds_standard_input():
    text = fine("export", "zb-v", "-p", "2", "-m", "3", "-o", "-")
    assert dp.Schedule.from_text(text) == dp.schedule("zb-v", 2, 3)
    assert "OK" in fine("verify", "-", stdin=text.encode())
    assert "OK" in fine("verify", "-", stdin=b"\xef\xbb\xbf" + text.encode())
    table = dp.schedule("zb-v", 2, 3).to_torch_csv()
    assert "OK" in fine("verify", "-", "--csv", stdin=table.encode())


@pytest.mark.parametrize("suffix", [".svg", ".html", ".png", ".pdf", ".json", ".pftrace", ".SVG"])
def test_pictures_and_traces_are_the_timelines(suffix, tmp_path):
    fine("export", "zb-h1", "-p", "3", "-m", "5", "--p2p-cost", "0.2", "-o", str(tmp_path / f"x{suffix}"))
    dp.schedule("zb-h1", 3, 5).simulate(dp.Costs(p2p=0.2)).save(tmp_path / f"y{suffix}")
    assert (tmp_path / f"x{suffix}").read_bytes() == (tmp_path / f"y{suffix}").read_bytes()


def test_a_size_that_nobody_gave_is_one_that_exists():
    assert "8 ranks, 8 stages, 16 microbatches" in fine("show", "chimera")
    assert "16 ranks, 16 stages, 32 microbatches" in fine("show", "dualpipe", "-p", "16")
    assert "The nearest legal size is 8 ranks and 24 microbatches" in refused("show", "chimera", "-m", "20")
