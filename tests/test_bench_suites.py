"""Every suite of benchmarks runs, on what takes no time, and says what failed; the README has what they found."""

import json
import re
from pathlib import Path

import pytest
import torch

import funcopt
from bench import (
    __main__,
    all_rules,
    compile_time,
    overhead,
    peers,
    pipeline,
    plots,
    process,
    report,
    scaling,
    steps,
    suite,
    summary,
    table,
    workloads,
)
from funcopt.ops import sign

ROOT = Path(__file__).parent.parent
TINY = ["--workloads", "tiny", "--device", "cpu"]


def bench(tmp_path, name, *argv, plot=False):
    """Run a suite with two rounds; its results."""
    options = [*argv, "--rounds", 2, "--output", tmp_path, *([] if plot else ["--no-plot"])]
    assert __main__.main([name, *map(str, options)]) == 0
    (path,) = tmp_path.glob("*.json")
    return json.loads(path.read_text())


def by_name(case):
    return {row["name"]: row for row in case.get("contenders", case.get("rows"))}


def statuses(result):
    return {row["name"]: row["status"] for case in result["cases"] for row in by_name(case).values()}


# ---- the suites -----------------------------------------------------------------------------------------------------


def test_all_rules(tmp_path, capsys):
    result = bench(tmp_path, "all-rules", *TINY, "--rules", "lion", "sgd", plot=True)
    printed = capsys.readouterr().out
    cases = {case["row"]: case for case in result["cases"]}
    assert cases.keys() >= {"lion", "sgd", "sgd momentum", "sgd momentum nesterov"}
    for name in ("sgd", "sgd momentum", "sgd momentum nesterov"):
        rows = by_name(cases[name])
        assert {row["status"] for row in rows.values()} == {"ok"}
        fastest = min((row for row in rows.values() if row["name"] != "funcopt"), key=lambda row: row["median"])
        assert cases[name]["reference"] == fastest["name"]
        assert rows["funcopt"]["ratio"] == rows["funcopt"]["median"] / fastest["median"]
    assert cases["sgd"]["bytes"] == 3 * 4 * 198
    assert cases["sgd momentum"]["bytes"] == 5 * 4 * 198
    unknown = by_name(cases["sgd momentum decoupled_weight_decay"])
    assert unknown["torch-fused"]["note"] == "torch.optim.SGD has no decoupled_weight_decay"
    assert unknown["funcopt"]["status"] == "ok"
    assert by_name(cases["lion"]).keys() == {"funcopt", "optimi", "pytorch-optimizer"}
    assert by_name(cases["lion"])["funcopt"]["status"] == "ok"
    assert {row["status"] for row in by_name(cases["lion"]).values()} <= {"ok", "left out"}
    assert "lion" in printed
    (picture,) = tmp_path.glob("*.png")
    assert f"PNG: {picture}" in printed


def test_a_new_rule_is_among_all_rules(monkeypatch):
    signs = funcopt.rule(
        "signs",
        hparams={"lr": funcopt.nonnegative(1e-3, "learning rate"), "momentum": funcopt.nonnegative(0.0, "momentum")},
        slots=(funcopt.Slot("buffer", when="momentum"),),
        flags={"maximize": False, "doubled": False},
        coefficients=lambda t, lr, momentum: {"lr": lr, "momentum": momentum},
        update=lambda p, g, b, c, maximize, doubled: (p - c.lr * sign(g), () if b is None else (b,)),
    )
    monkeypatch.setitem(all_rules.FACTORIES, "signs", signs)
    names = [variant.name for variant in all_rules.variants()]
    assert [name for name in names if name.startswith("signs")] == ["signs", "signs momentum", "signs momentum doubled"]
    assert {name.split()[0] for name in names} >= set(all_rules.RULES) - {"sparse_adam"}


def test_all_rules_find_torchs_class_by_its_name():
    assert all_rules.named(torch.optim, "sparse_adam") is torch.optim.SparseAdam
    assert all_rules.named(torch.optim, "rmsprop") is torch.optim.RMSprop
    assert all_rules.named(torch.optim, "lion") is None
    (peer,) = [peer for peer in peers.of_torch(torch.optim.NAdam) if peer.left_out]
    assert (peer.name, peer.left_out) == ("torch-fused", "torch.optim.NAdam has no fused form")


def test_small_tensors(tmp_path, capsys):
    options = ["--device", "cpu", "--tensors", 1, 3, "--elements", 2]
    result = bench(tmp_path, "small-tensors", *options)
    assert len(result["cases"]) == 2 * 2 * 2
    for case in result["cases"]:
        found = {name: row["status"] for name, row in by_name(case).items() if name != "optimi"}
        flat = "ok" if case["gradients"] == "kept gradients" else "left out"
        assert found == {"torch-foreach": "ok", "torch-fused": "ok", "funcopt": "ok", "funcopt-flat": flat}
    printed = capsys.readouterr().out
    assert "sgd, 2 elements each, new gradients" in printed
    assert "sgd, 2 elements each, kept gradients, funcopt-flat" in printed
    assert "sgd, 2 elements each, new gradients, funcopt-flat" not in printed


def test_new_gradients_are_new():
    model = workloads.problem(workloads.many(2, 4), torch.float32, torch.device("cpu"), 0)
    (contender,) = steps.contenders(model, [steps.Peer("a", torch.optim.SGD)], [], new_gradients=True)
    contender.before()
    for p, g in zip(model.params, model.grads, strict=True):
        assert p.grad is not g
        assert torch.equal(p.grad, g)


def test_pipeline(tmp_path):
    result = bench(tmp_path, "pipeline", *TINY)
    assert statuses(result) == dict.fromkeys(pipeline.CONTENDERS, "ok")
    (case,) = result["cases"]
    assert case["bytes"] == 44 * 198


@pytest.mark.parametrize(
    ("left_out", "wrong"),
    [
        ("clip_grad_norm_", "parameter 0"),
        ("get_ema_multi_avg_fn", "average 0"),
        ("zero_grad", "gradients are not zero"),
    ],
)
def test_a_pipeline_that_lacks_a_part_fails(tmp_path, monkeypatch, left_out, wrong):
    monkeypatch.setattr(pipeline, "EPS", 1.0)  # for AdamW to know the scale of a gradient
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", torch.nn.utils.clip_grad_norm_)
    replacements = {
        "clip_grad_norm_": (torch.nn.utils, lambda *args, **kwargs: None),
        "get_ema_multi_avg_fn": (pipeline, lambda decay: lambda *args: None),
        "zero_grad": (torch.optim.AdamW, lambda self, set_to_none: None),
    }
    owner, replacement = replacements[left_out]
    monkeypatch.setattr(owner, left_out, replacement)
    rows = by_name(bench(tmp_path, "pipeline", *TINY)["cases"][0])
    assert rows["torch-usual"]["status"] == "failed"
    assert rows["torch-usual"]["note"].startswith(f"wrong result: {wrong}")
    assert rows["funcopt"]["status"] == rows["torch-tuned"]["status"] == "ok"


def test_overhead(tmp_path, monkeypatch):
    monkeypatch.setattr(overhead, "CALLS", ((2, 4),))
    monkeypatch.setattr(overhead, "PARAMETERS", (2,))
    monkeypatch.setattr(process, "call", lambda measurement, **kw: float(kw["tensors"]))
    result = bench(tmp_path, "overhead", "--elements", 64)
    calls, memory, classes = result["cases"]
    for name, row in by_name(calls).items():
        assert row["status"] in (("ok", "left out") if name.startswith("torchopt") else ("ok",))
    assert by_name(calls)["tree-map"]["ratio"] == 1
    assert by_name(memory)["funcopt"]["values"] == [1.0, 8.0]
    assert set(by_name(classes)) >= {"funcopt, init", "funcopt, describe", "torch, load_state_dict"}
    assert {row["status"] for row in by_name(classes).values()} == {"ok"}


def test_compile_time(tmp_path, monkeypatch, capsys):
    def call(measurement, environment=None, **arguments):
        if measurement == "compilations":
            raise RuntimeError("no compiler")
        return 0.5 if arguments.get("module") == "funcopt" else 1.0

    monkeypatch.setattr(process, "call", call)
    result = bench(tmp_path, "compile-time", "--tensors", 1, 300)
    imports, one, many, compilations = result["cases"]
    assert by_name(imports)["funcopt"]["ratio"] == 0.5
    assert set(by_name(one)) == set(by_name(many)) == set(compile_time.KINDS)
    assert by_name(one)["torch-compiled, nothing on disk"]["status"] == "ok"
    assert "--no-skip-slow" in by_name(many)["torch-compiled, nothing on disk"]["note"]
    assert {row["note"] for row in compilations["rows"]} == {"RuntimeError: no compiler"}
    assert "failed: RuntimeError: no compiler" in capsys.readouterr().out


def test_measurements_in_a_process_of_their_own(tmp_path):
    environment = {"FUNCOPT_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    found = process.call("compilations", environment, kind="funcopt")
    assert found[0] > 0
    assert found[1:] == [0, 0, 0, 0]
    assert process.call("allocated", environment, kind="funcopt-donated", tensors=2, elements=2**16) < 0.1
    with pytest.raises(RuntimeError, match="no_such_module"):
        process.call("imports", module="no_such_module")


@pytest.mark.parametrize("kind", ["funcopt", "torch-fused"])
def test_first_steps_take_time(kind):
    assert process.first_steps(kind, tensors=1, elements=4) > 0


def test_scaling(tmp_path, capsys):
    result = bench(tmp_path, "scaling", "--device", "cpu", "--tensors", 1, 2, "--elements", 4, 8, plot=True)
    *sizes, slopes = result["cases"]
    assert [(case["against"], case["size"]) for case in sizes] == [
        ("tensors of 64 elements", 1),
        ("tensors of 64 elements", 2),
        ("elements of one tensor", 4),
        ("elements of one tensor", 8),
    ]
    assert {row["name"] for row in slopes["rows"]} == set(scaling.CONTENDERS)
    assert "slopes" in capsys.readouterr().out
    assert list(tmp_path.glob("*.png"))


def test_slopes_are_those_of_the_larger_half():
    assert scaling.slope([(1, 5.0), (2, 5.0), (4, 16.0), (8, 64.0)]) == pytest.approx(2)
    assert scaling.slope([(1, 5.0)]) is None


def test_small_tensors_say_what_failed(tmp_path, capsys, monkeypatch):
    class Idle(torch.optim.AdamW):
        def step(self):
            pass

    monkeypatch.setattr(funcopt.optim, "AdamW", Idle)
    options = ["--device", "cpu", "--tensors", 1, "--elements", 2, "--algorithms", "adamw"]
    result = bench(tmp_path, "small-tensors", *options)
    assert statuses(result)["funcopt"] == "failed"
    printed = capsys.readouterr().out
    assert printed.count("failed: wrong result: parameter 0") == 2
    assert re.search(r"kept gradients +failed\n", printed)


# ---- pictures -------------------------------------------------------------------------------------------------------


def test_a_picture_that_fails_does_not_take_the_results_along(tmp_path):
    def broken(results, path):
        raise ValueError("no room")

    assert plots.drawn(broken, {}, tmp_path / "a.json") == "no PNG: ValueError: no room"
    assert plots.drawn(plots.ratios, {"cases": [{"skipped": "left out"}]}, tmp_path / "a.json") is None


# ---- the README -----------------------------------------------------------------------------------------------------


def contest(name, ours=1.0, **more):
    """A table's results, of which ours takes so long."""
    rows = [suite._row(suite.Outcome(who, "ok", samples=[s]), 2.0, 0.5) for who, s in (("t", 2.0), ("funcopt", ours))]
    about = {"ours": "funcopt", "value": "ratio", "leaves": None, "references": ["t"], "reference": "t"}
    about |= {"group": "steps", "row": "", "column": name, "floor": {"seconds": 0.5}}
    return {"name": name, **about, **more, "contenders": rows}


def write(folder, name, suite_name, *cases, **more):
    facts = {**report.facts(torch.device("cpu")), "device": "cpu", "date": "2030-01-02T03:04:05", **more}
    report.write_json(folder / f"{name}.json", {"suite": suite_name, **facts, "cases": list(cases)})


def test_the_readme_has_the_newest_results_of_each_suite(tmp_path, capsys):
    results, readme = tmp_path / "bench" / "results", tmp_path / "README.md"
    write(results, "old", "adamw", contest("one", 4.0), date="2029-01-01T00:00:00")
    write(results, "new", "adamw", contest("one"), contest("two", 3.0))
    write(results, "other", "scaling", {"name": "s", "about": "", "group": "slopes", "head": ["n"], "rows": [
        {"name": "funcopt", "status": "ok", "note": "", "values": [1.0]},
        {"name": "t", "status": "failed", "note": "why", "values": []},
    ]})  # fmt: skip
    write(results, "older schema", "adamw", date="2031-01-01T00:00:00", schema=1)
    for page in (readme, results / "README.md"):
        page.write_text(f"before\n{table.BEGIN}\nanything\n{table.END}\nafter\n")
    command = ["table", "--readme", str(readme), "--results", str(results)]
    assert __main__.main([*command, "--check"]) == 1
    assert "-anything" in capsys.readouterr().out
    assert "anything" in readme.read_text()
    assert __main__.main(command) == 0
    first, text = readme.read_text(), (results / "README.md").read_text()
    for page in (first, text):
        assert page.startswith(f"before\n{table.BEGIN}\n")
        assert page.endswith(f"{table.END}\nafter\n")
        assert "`python -m bench adamw`" in page
    assert "2030-01-02; [JSON](bench/results/new.json)" in first
    assert "scaling" not in first
    for line in (
        "|  | one | two |",
        "| t | 1.00 | 1.00 |",
        "| funcopt | 0.50 | 1.50 |",
        "| funcopt, × the memory's limit | 2.00 | 6.00 |",
        "| funcopt | 1.00 |",
        "| t | failed: why |",
    ):
        assert line in text.splitlines()
    assert "2030-01-02; [JSON](new.json)" in text
    assert "old" not in text
    assert __main__.main([*command, "--check"]) == 0


def test_a_readme_without_marks_is_left_alone(tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text("nothing here")
    assert __main__.main(["table", "--readme", str(readme)]) == 2
    assert readme.read_text() == "nothing here"
    assert table.BEGIN in capsys.readouterr().err


def test_what_the_gpu_suite_ran_is_put_together(tmp_path):
    first, second = contest("one"), contest("one")
    second["contenders"] = [*second["contenders"], {**second["contenders"][0], "name": "compiled", "ratio": 7.0}]
    found = {"schema": report.SCHEMA, "suite": "adamw", "device": "A GPU", "date": "2030"}
    machine = {key: report.facts(torch.device("cpu"))[key] for key in ("machine", "versions")}
    parts = [{"results": [{**found, **machine, "cases": [case]}]} for case in (first, second)]
    report.write_json(tmp_path / "gpu.json", {**found, "suite": "gpu", "parts": [*parts, {"results": []}]})
    text = table.render(tmp_path, tmp_path)
    assert "| compiled | 7.00 |" in text
    assert text.count("| funcopt |") == 1
    assert "A GPU" in text
    assert "`python -m bench gpu`" in text


def test_rows_of_ours_name_what_they_are_compared_to():
    several = {"references": ["t", "u"]}
    cases = [contest("one", row="a", **several), contest("two", row="b", **several)]
    (group,) = summary.groups(cases)
    assert group.rows == [["a", "0.50 × t", ""], ["b", "", "0.50 × t"]]
    cases[1]["reference"] = None
    assert summary.groups(cases)[0].rows[1] == ["b", "", "2.00 × floor"]


@pytest.mark.parametrize(("page", "suites"), table.pages().items(), ids=["README", "results"])
def test_the_pages_agree_with_the_results(page, suites):
    text = page.read_text()
    assert table.replaced(text, table.render(report.RESULTS, page.parent, suites)) == text
