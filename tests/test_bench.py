"""The benchmarks measure what they say: alternation, medians, limits, and that nothing fails in silence.

No test depends on how fast anything is.
"""

import argparse
import contextlib
import importlib
import itertools
import json
import math
import os
import pathlib
import sys
import time

import pytest
import torch

import funcopt
from bench import __main__, adamw, floor, gpu, peers, report, steps, timing, workloads
from bench.timing import Contender, Deadline

PEERS = ["torch-loop", "torch-fused", "funcopt-eager"]
TINY = ["--device", "cpu", "--workloads", "tiny", "--rounds", 2, "--contenders", *PEERS, "--no-plot"]


def bench(*argv):
    return __main__.main([str(arg) for arg in argv])


def ticks(*seconds):
    """A clock whose next intervals are these."""
    marks = itertools.chain.from_iterable(zip(itertools.repeat(0.0), seconds, strict=False))
    return timing.wall_clock(lambda: next(marks))


def failing(message):
    def run():
        raise RuntimeError(message)

    return run


# ---- the command line -----------------------------------------------------------------------------------------------


def test_without_arguments_the_suites_are_listed(capsys):
    assert bench() == 0
    listed = capsys.readouterr().out
    assert all(name in listed and about in listed for name, about in __main__.SUITES.items())


def test_an_unknown_suite_is_refused_with_the_known_ones(capsys):
    assert bench("adam") == 2
    assert "'adam'" in (said := capsys.readouterr().err)
    assert all(name in said for name in __main__.SUITES)


@pytest.mark.parametrize("suite", __main__.SUITES)
def test_each_suite_tells_its_options(suite, capsys):
    with pytest.raises(SystemExit, match="0"):
        bench(suite, "--help")
    assert "--output" in capsys.readouterr().out


def test_an_unknown_workload_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit, match="2"):
        bench("adamw", "--workloads", "huge")
    assert "gpt2" in capsys.readouterr().err


# ---- a table from end to end ----------------------------------------------------------------------------------------


def test_adamw_prints_and_keeps_every_sample(tmp_path, capsys):
    assert bench("adamw", *TINY, "--output", tmp_path) == 0
    (path,) = tmp_path.iterdir()
    assert path.name.startswith(f"adamw-cpu-torch{torch.__version__}".replace("+", "-"))
    printed, kept = capsys.readouterr().out, json.loads(path.read_text())
    assert str(path) in printed
    assert kept["suite"] == "adamw"
    assert kept["versions"]["torch"] == torch.__version__
    assert set(report.PACKAGES.values()) <= set(kept["versions"])
    assert {"cpu", "cores", "threads", "load_average"} <= set(kept["machine"])
    assert [case["dtype"] for case in kept["cases"]] == ["fp32", "bf16"]
    for case, size in zip(kept["cases"], (4, 2), strict=True):
        elements = workloads.WORKLOADS["tiny"].elements
        assert case["bytes"] == 7 * size * elements
        least = case["floor"]["seconds"]
        assert least == case["bytes"] / max(case["floor"]["bytes_per_second"].values())
        assert [row["name"] for row in case["contenders"]] == PEERS
        rows = {row["name"]: row for row in case["contenders"]}
        for name, row in rows.items():
            assert (row["status"], len(row["samples"])) == ("ok", 2)
            assert row["median"] == pytest.approx(sum(row["samples"]) / 2)
            assert row["ratio_to_floor"] == row["median"] / least
            assert row["ratio"] == row["median"] / rows["torch-fused"]["median"]
            assert row["first"] > 0
            assert name in printed


def test_a_contender_that_fails_is_in_the_table(tmp_path, capsys, monkeypatch):
    class Broken(torch.optim.AdamW):
        def step(self):
            raise RuntimeError("the first line\nthe second")

    monkeypatch.setattr(adamw.funcopt.optim, "AdamW", lambda params, backend, **kw: Broken(params, **kw))
    assert bench("adamw", *TINY, "--dtypes", "fp32", "--output", tmp_path) == 0
    assert "failed: RuntimeError: the first line\n" in capsys.readouterr().out
    rows = json.loads(next(tmp_path.iterdir()).read_text())["cases"][0]["contenders"]
    assert [row["status"] for row in rows] == ["ok", "ok", "failed"]


def test_a_contender_that_does_not_do_the_step_fails(tmp_path, capsys, monkeypatch):
    class Idle(torch.optim.AdamW):
        def step(self):
            pass

    monkeypatch.setattr(adamw.funcopt.optim, "AdamW", lambda params, backend, **kw: Idle(params, **kw))
    assert bench("adamw", *TINY, "--output", tmp_path) == 0
    assert capsys.readouterr().out.count("failed: wrong result: parameter 0") == 2


def test_a_parameter_that_is_left_out_fails(tmp_path, capsys, monkeypatch):
    class Partial(torch.optim.AdamW):
        def step(self):
            self.param_groups[0]["params"][1].grad = None
            super().step()

    monkeypatch.setattr(adamw.funcopt.optim, "AdamW", lambda params, backend, **kw: Partial(params, **kw))
    assert bench("adamw", *TINY, "--dtypes", "fp32", "--output", tmp_path) == 0
    assert "failed: wrong result: parameter 1" in capsys.readouterr().out


def test_what_is_left_out_says_why(tmp_path, capsys, monkeypatch):
    def reasons(skip_slow=True, tensors=300):
        return {peer.name: peer.left_out for peer in adamw.field(torch.device("cpu"), tensors, skip_slow)}

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "--no-skip-slow" in reasons()["torch-compiled"]
    assert reasons(skip_slow=False)["torch-compiled"] is reasons(tensors=3)["torch-compiled"] is None
    options = ["--device", "cpu", "--rounds", 1, "--workloads", "tiny", "--contenders", "funcopt-triton", "--no-plot"]
    assert bench("adamw", *options, "--dtypes", "fp32", "--output", tmp_path) == 0
    assert "funcopt-triton  left out: " in capsys.readouterr().out
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "TRITON_INTERPRET" in reasons()["funcopt-triton"]
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    assert reasons()["optimi"] == "not installed: pip install torch-optimi"


def test_contenders_share_their_state_and_find_what_the_first_one_found():
    model = workloads.problem(workloads.WORKLOADS["tiny"], torch.float32, torch.device("cpu"), 0)
    before, grads = steps.tails(model.params), steps.tails(model.grads)
    made = []

    def spoiling(params):
        made.append(torch.optim.AdamW(params, lr=0.1))
        made[-1].register_step_post_hook(lambda *_: [g.neg_() for g in model.grads])
        return made[-1]

    field = [steps.Peer("a", spoiling), steps.Peer("b", spoiling)]
    expected = [p - 0.1 * g.sign() for p, g in zip(before, grads, strict=True)]
    outcomes = timing.contest(steps.contenders(model, field, expected), lambda run, repeats: (run(), 1.0)[1], rounds=1)
    assert [o.status for o in outcomes] == ["ok", "ok"]
    for p in model.params:
        assert made[0].state[p]["exp_avg"] is made[1].state[p]["exp_avg"]
        assert made[0].state[p]["step"] is not made[1].state[p]["step"]


def test_a_workload_that_does_not_fit_is_left_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "free_bytes", lambda device: 1000)
    assert bench("adamw", *TINY, "--output", tmp_path) == 0
    assert capsys.readouterr().out.count("left out: needs") == 2


def test_when_the_time_is_up_the_rest_is_not_reached(tmp_path, capsys):
    assert bench("adamw", *TINY, "--seconds", 0, "--output", tmp_path) == 0
    assert capsys.readouterr().out.count("not reached") == 2


def test_gpt2_has_its_size():
    assert workloads.WORKLOADS["gpt2"].elements == 124_439_808
    assert len(workloads.WORKLOADS["gpt2"].shapes) == 148


# ---- timing ---------------------------------------------------------------------------------------------------------


def test_rounds_alternate_in_orders_of_their_own():
    calls = []
    names = ["a", "b", "c", "d"]
    field = [Contender(name, lambda name=name: lambda: calls.append(name)) for name in names]
    outcomes = timing.contest(field, lambda run, repeats: (run(), 1.0)[1], rounds=8, seed=3)
    rounds = [
        calls[i : i + 4] for i in range(3 * 4, len(calls), 4)
    ]  # the first steps are three calls of this clock each
    assert len(rounds) == 8
    assert all(sorted(order) == names for order in rounds)
    assert len(set(map(tuple, rounds))) > 4
    assert rounds == timing.orders(names, 8, 3)
    assert [o.name for o in outcomes] == names


def test_medians_on_a_clock_that_is_known():
    # First step 9 s, warm-up 2 s and twice 3 s, then samples of one call each, one of them in a noisy moment.
    (outcome,) = timing.contest([Contender("a", lambda: lambda: None)], ticks(9, 2, 6, 1, 5, 2, 4, 1000), rounds=5)
    assert outcome.first == 9
    assert outcome.warm_up == 8
    assert outcome.samples == [1, 5, 2, 4, 1000]
    assert outcome.median == 4
    assert outcome.quartiles == (2, 5)


def test_a_sample_of_a_short_call_has_many():
    calls = []
    clock = ticks(1, 1, timing.SAMPLE_SECONDS / 5, 30)
    (outcome,) = timing.contest([Contender("a", lambda: lambda: calls.append(1))], clock, rounds=1)
    assert outcome.repeats == 10
    assert outcome.samples == [3]
    assert len(calls) == 1 + 1 + 2 + 10


def test_what_comes_before_a_call_is_not_timed(monkeypatch):
    monkeypatch.setattr(timing, "SAMPLE_CALLS", 1)
    calls = []
    clock = ticks(9, 2, 3, 3, 1, 5)
    contender = Contender("a", lambda: lambda: calls.append("run"), before=lambda: calls.append("before"))
    (outcome,) = timing.contest([contender], clock, rounds=2)
    assert calls == ["before", "run"] * 6
    assert (outcome.first, outcome.warm_up, outcome.samples) == (9, 8, [1, 5])


def test_without_warming_up_samples_follow_the_first_call():
    calls = []
    field = [Contender("a", lambda: lambda: calls.append(1))]
    (outcome,) = timing.contest(field, ticks(9, 1, 2), rounds=2, warm=False)
    assert (outcome.first, outcome.warm_up, outcome.samples) == (9, None, [1, 2])


def test_fresh_caches_are_empty_and_leave_no_trace(tmp_path, monkeypatch):
    monkeypatch.setenv("FUNCOPT_CACHE_DIR", str(tmp_path))
    params = [torch.ones(3, requires_grad=True)]
    params[0].grad = torch.ones(3)
    step = lambda: funcopt.optim.SGD(params, backend="compile").step()
    with timing.fresh_caches():
        step()
        folder = pathlib.Path(os.environ["FUNCOPT_CACHE_DIR"])
        assert list(folder.glob("*.so"))
    assert not folder.exists()
    assert not list(tmp_path.iterdir())
    step()
    assert list(tmp_path.glob("*.so"))


def test_one_that_fails_late_keeps_its_place():
    left = iter([None] * 5)
    flaky = Contender("flaky", lambda: lambda: next(left))
    sound, flaky = timing.contest(
        [Contender("sound", lambda: lambda: None), flaky, Contender("absent", failing("no"), left_out="not here")],
        lambda run, repeats: (run(), 1.0)[1],
        rounds=4,
    )[:2]
    assert (sound.status, len(sound.samples)) == ("ok", 4)
    assert (flaky.status, flaky.note, len(flaky.samples)) == ("failed", "StopIteration", 2)


def test_a_time_limit_gets_through_handlers():
    def swallow():
        while True:
            with contextlib.suppress(Exception):
                time.sleep(1)

    with pytest.raises(timing.OutOfTime), timing.time_limit(0.01):
        swallow()
    with timing.time_limit(math.inf):
        pass


def test_a_contender_over_its_budget_leaves_the_others_theirs():
    slow = Contender("slow", lambda: lambda: time.sleep(60))
    outcomes = timing.contest([slow, Contender("a", lambda: lambda: None)], timing.wall_clock(), rounds=2, budget=1.0)
    assert [(o.status, len(o.samples)) for o in outcomes] == [("not reached", 0), ("ok", 2)]
    assert Deadline.after(-1).left() == 0


# ---- the report -----------------------------------------------------------------------------------------------------


def test_the_floor_is_that_of_the_fastest_probe():
    held = 800
    seconds = {"copy": 1.0, "scale": 1.0, "add": 10.0}
    outcomes = [timing.Outcome(name, "ok", samples=[3 * t, t, t, 4 * t, 5 * t]) for name, t in seconds.items()]
    found = floor.floor(outcomes, held, moved=3200)
    assert found.bytes_per_second == {"copy": 800, "scale": 1600, "add": 120}
    assert (found.probe, found.seconds) == ("scale", 2)
    assert floor.floor([], held, 1).seconds is None


def test_tables_are_aligned():
    shown = report.table(
        ["name", "ms", "n"], [["a", "10.5", "3"], ["longer", "failed: for this reason"], ["b", "1", "12"]]
    )
    assert shown.splitlines() == [
        "name      ms   n",
        "------  ----  --",
        "a       10.5   3",
        "longer  failed: for this reason",
        "b          1  12",
    ]


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "a.json"
    report.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        report.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(path.parent.iterdir()) == [path]


# ---- the GPU's suite ------------------------------------------------------------------------------------------------


def test_without_a_gpu_the_gpu_suite_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench("gpu", "--output", tmp_path) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_the_gpu_suite_reports_every_part(tmp_path, capsys, monkeypatch):
    row = {"name": "funcopt-auto", "status": "ok", "median": 1.0, "ratio_to_floor": 1.25}
    peer = {"name": "torch-fused", "status": "ok", "median": 2.0}
    about = {"ours": "funcopt-auto", "reference": "torch-fused"}
    cases = [
        {"name": "fp32", **about, "contenders": [row, peer]},
        {"name": "bf16", **about, "skipped": "left out: too large"},
        {"name": "slopes", "head": ["slope"], "rows": []},
    ]
    suite = f"import sys; print('table'); open(sys.argv[-1] + '/a.json', 'w').write({json.dumps({'cases': cases})!r})"
    jobs = (
        gpu.Job("tests", ("-c", "print('1 failed'); raise SystemExit(1)"), 1, suite=False),
        gpu.Job("suite", ("-c", suite), 1),
        gpu.Job("tiny share", ("-c", "print('never')"), 1e-6),
        gpu.Job("last", ("-c", "print('here')"), 1, suite=False),
    )
    facts = report.facts(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(report, "facts", lambda device: facts)
    monkeypatch.setattr(gpu, "JOBS", jobs)
    assert bench("gpu", "--output", tmp_path, "--seconds", 400, "--no-plot") == 1
    printed = capsys.readouterr().out
    assert "tests: failed, exit status 1: 1 failed\n" in printed
    assert "suite, fp32: funcopt-auto is 0.50 x torch-fused, 1.25 x floor\n" in printed
    assert "suite, bf16: left out: too large\n" in printed
    assert "tiny share: not reached\n" in printed
    assert "never" not in printed
    (path,) = tmp_path.iterdir()
    parts = json.loads(path.read_text())["parts"]
    assert [part["status"] for part in parts] == [1, 0, None, 0]
    assert parts[1]["results"] == [{"cases": cases}]


def test_a_part_over_its_time_is_stopped_with_what_it_began():
    # The grandchild holds the same pipe: the output ends only when it is gone, too.
    grandchild = "import time; print('begun', flush=True); time.sleep(600)"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    status, lines = gpu.supervise([sys.executable, "-c", child], 1.0)
    assert status is None
    assert set(lines) <= {"begun"}


def test_the_gpu_suite_has_room_for_every_part():
    shares = [job.share for job in gpu.JOBS]
    assert min(shares) / sum(shares) * 470 >= 2 * gpu.SLACK
    for job in gpu.JOBS:
        if job.suite:
            name, *rest = job.command[2:]
            suite, parser = importlib.import_module(f"bench.{name.replace('-', '_')}"), argparse.ArgumentParser()
            suite.arguments(parser)
            assert parser.parse_args(rest).device == "cuda"
