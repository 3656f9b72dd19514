import math
import subprocess
import sys

import pytest
import torch

import funcopt
from funcopt import backends, demo, files
from funcopt.__main__ import COMMANDS, main
from funcopt.info import info, versions

PNG = b"\x89PNG\r\n\x1a\n"


# ---- the command line -----------------------------------------------------------------------------------------------


def test_without_arguments_the_help_names_every_command(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: python -m funcopt")
    assert all(name in out and about in out for name, about in COMMANDS.items())


@pytest.mark.parametrize("arguments", [["nonsense"], ["--nonsense"], ["info", "--nonsense"], ["demo", "--nonsense"]])
def test_an_unknown_argument_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert "nonsense" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_own_help(command, capsys):
    with pytest.raises(SystemExit) as exit:
        main([command, "--help"])
    assert exit.value.code == 0
    assert f"usage: python -m funcopt {command}" in capsys.readouterr().out


# ---- info -----------------------------------------------------------------------------------------------------------


def test_info_has_a_row_for_every_backend_and_the_reason_of_each_that_does_not_work(capsys):
    rows = info()
    out = capsys.readouterr().out
    assert [row.backend for row in rows if row.device == "cpu"] == list(backends.BACKENDS)
    assert {row.device for row in rows} == ({"cpu", "cuda"} if torch.cuda.is_available() else {"cpu"})
    for row in rows:
        assert row.reason == backends.unavailable(row.backend, torch.device(row.device))
        assert (row.reason or "works") in out
    assert all(version in out for version in versions().values())


def test_info_without_the_interpreter_says_why_triton_does_not_run_on_the_cpu(monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    row = next(row for row in info() if (row.backend, row.device) == ("triton", "cpu"))
    assert row.reason is not None
    assert row.reason in capsys.readouterr().out


def test_info_lists_every_gpu_and_what_works_on_them(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Model {index}")
    rows = info()
    assert [row.backend for row in rows if row.device == "cuda"] == list(backends.BACKENDS)
    out = capsys.readouterr().out
    assert "cuda:0  Model 0" in out
    assert "cuda:1  Model 1" in out


def test_info_imports_neither_triton_nor_what_the_demo_needs():
    check = (
        "import sys; from funcopt.__main__ import main; status = main(['info'])\n"
        "assert not {'triton', 'sklearn', 'matplotlib'} & sys.modules.keys()\n"
        "sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert torch.__version__ in done.stdout


# ---- demo -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs():
    # Two and a half stretches of unrolled steps.
    return demo.run_all(steps=25, seed=3)[0]


def test_demo_as_users_run_it(tmp_path):
    output = tmp_path / "picture.png"
    output.write_bytes(b"an older file")
    command = [sys.executable, "-m", "funcopt", "demo", "--steps", "12", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("torch.optim.AdamW", "funcopt.optim.AdamW", "funcopt.adamw()", "1e-05 -> 1.2e-05"):
        assert name in done.stdout
    assert output.read_bytes().startswith(PNG)
    assert list(tmp_path.iterdir()) == [output]


def test_the_two_adamw_differ_by_rounding_only(runs):
    first, second, _ = runs
    # Adam moves a weight by up to lr a step. Rounding stays far below a hundredth of one step; another batch, another
    # equation or a missed step does not.
    assert demo.greatest_difference(first, second) < 0.01 * demo.LR
    start = demo.network(3).state_dict()
    assert max(float((p - start[name]).abs().max()) for name, p in first.params.items()) > 10 * demo.LR


def test_all_three_start_with_the_same_loss(runs):
    assert runs[0].losses[0] == runs[1].losses[0] == runs[2].losses[0]


def test_the_learning_rate_rises_from_too_small_a_start(runs):
    rates = runs[2].rates
    assert len(rates) == len(runs[2].losses) == len(runs[2].seconds) == 25
    assert rates[0] == pytest.approx(demo.START_LR)
    # Adam's first step has the size of its own learning rate. Of that eps = 1e-8 beside a slope of about 7e-4 takes
    # 1.4e-5, and rounding a logarithm of 11.5 to float32 4e-6; the meta-gradient has to be negative.
    assert math.log(rates[10] / rates[0]) == pytest.approx(demo.META_LR, rel=1e-4)
    assert rates[0] == rates[9] < rates[10] == rates[19] < rates[20] == rates[24]


def test_the_slope_is_that_of_the_validation_loss():
    generator = torch.Generator().manual_seed(0)
    digits = demo.load_digits(generator)
    model = demo.network(0).double()
    batches = [(x.double(), y) for x, y in demo.minibatches(digits.train, 4, generator)]
    params = {name: p.detach() for name, p in model.named_parameters()}
    state = funcopt.adamw().init(params)
    log_lr = torch.tensor(-5.0, dtype=torch.float64)

    def loss(log_lr):
        return demo.unroll(log_lr, params, state, model, batches[:3], batches[3])[0]

    h = 1e-6  # so small that no unit of the network crosses its kink
    expected = (loss(log_lr + h) - loss(log_lr - h)) / (2 * h)
    # The central difference is off by about eps / h = 2e-10 (rounding) and h² = 1e-12; a hundred times as much passes.
    torch.testing.assert_close(torch.func.grad(loss)(log_lr), expected, rtol=0, atol=2e-8)


def test_the_demo_repeats_itself_and_changes_with_the_seed(runs):
    again = demo.run_all(steps=25, seed=3)[0]
    other = demo.run_all(steps=25, seed=4)[0]
    for run, same, different in zip(runs, again, other, strict=True):
        assert run.losses == same.losses
        assert run.rates == same.rates
        assert all(torch.equal(p, same.params[name]) for name, p in run.params.items())
        assert run.losses != different.losses


def test_the_demo_leaves_threads_and_the_global_generator_as_they_were():
    before = torch.get_num_threads(), torch.get_rng_state()
    demo.run_all(steps=1, seed=5)
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_smooth_is_the_mean_of_what_there_is_around():
    assert demo.smooth([1.0, 2.0, 6.0, 3.0], window=3) == [1.5, 3.0, pytest.approx(11 / 3), 4.5]
    assert demo.smooth([7.0]) == [7.0]


@pytest.mark.parametrize("arguments", [["--steps", "0"], ["--seed", "-1"], ["--steps", "many"]])
def test_a_bad_number_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        demo.main(arguments)
    assert exit.value.code == 2
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.parametrize("where", [".", "missing/picture.png"])
def test_an_unwritable_output_is_reported_before_training(where, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "run_all", lambda *_: pytest.fail("the training has started"))
    with pytest.raises(SystemExit) as exit:
        demo.main(["--output", str(tmp_path / where)])
    assert exit.value.code == 2
    assert f"cannot write {tmp_path / where}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["matplotlib", "sklearn", "tqdm"])
def test_a_missing_package_is_named_with_what_to_install(package, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    assert demo.main(["--steps", "1"]) == 2
    assert capsys.readouterr().err == f"the demo needs {package}: pip install 'funcopt[demo]'\n"


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path):
    path = tmp_path / "picture.png"
    path.write_text("old")

    def fail_half_way():
        with files.replacing(path) as temporary:
            temporary.write_text("half of the n")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail_half_way()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
