"""How the CPU's kernels come to be compiled, kept and loaded, and what happens where they do not."""

import inspect
import json
import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch

import funcopt
from funcopt import backends
from funcopt.kernels import cpu, host
from funcopt.transforms import clip_by_global_norm

pytestmark = [
    pytest.mark.usefixtures("ieee_sqrt"),
    pytest.mark.skipif(backends.compiler() is None, reason="there is no C++ compiler"),
]


def train(backend, dtype=torch.float32):
    """Numbers, gradients of None, groups and states change; the sums of the parameters at the end."""
    torch.manual_seed(0)
    params = [torch.randn(n, dtype=torch.float64).to(dtype).requires_grad_() for n in (3, 70, 5)]
    optimizer = funcopt.optim.AdamW(params[:2], backend=backend)
    for t in range(12):
        for i, p in enumerate(params):
            p.grad = None if t % 3 == i else p.detach() + t
        if t == 4:
            optimizer.add_param_group({"params": [params[2]], "lr": 0.3})
        if t == 6:
            optimizer.load_state_dict(optimizer.state_dict())
            optimizer.param_groups[0]["weight_decay"] = 0.2
        optimizer.param_groups[0]["lr"] = torch.tensor(0.1) if t % 4 == 3 else 0.1 / (t + 1)
        optimizer.step()
    return [p.double().sum().item() for p in params]


def started(text, cache, **environment):
    """A process that runs a text, which may call `train`, with a folder for its kernels."""
    own = {"FUNCOPT_CACHE_DIR": str(cache), "PYTHONPATH": str(Path(__file__).parents[2])}
    kept = {name: value for name, value in os.environ.items() if name not in ("CXX", "XDG_CACHE_HOME")}
    return subprocess.Popen(
        [sys.executable, "-c", "import torch, funcopt\n\n" + inspect.getsource(train) + textwrap.dedent(text)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**kept, **own, **{name: str(value) for name, value in environment.items()}},
    )


def output(process):
    out, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    return out


class Compiler:
    """A compiler that is asked in the place of the one there is, and keeps a record of it."""

    def __init__(self, folder, before=""):
        self.path, self.record, self.cache = folder / "cxx", folder / "calls", folder / "cache"
        lines = ["#!/bin/sh", f"echo called >> {self.record}", before, f'exec {backends.compiler()} "$@"', ""]
        self.path.write_text("\n".join(lines))
        self.path.chmod(0o755)

    @property
    def calls(self):
        return len(self.record.read_text().split()) if self.record.exists() else 0

    @property
    def made(self):
        return sorted(self.cache.iterdir())


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Makes a compiler, for a process in which nothing has been compiled yet: this one is made such."""

    def forget():
        for module in (backends, cpu, host):
            for value in vars(module).values():
                if hasattr(value, "cache_clear"):
                    value.cache_clear()

    def make(before=""):
        made = Compiler(tmp_path, before)
        monkeypatch.setenv("FUNCOPT_CACHE_DIR", str(made.cache))
        monkeypatch.setenv("CXX", str(made.path))
        forget()
        return made

    yield make
    monkeypatch.undo()
    forget()


def test_compiled_once_and_by_one_process(compiler):
    """Two processes at once make what one would have made; a third one, this, makes nothing."""
    cxx = compiler()
    two = [started("print(train('compile'))", cxx.cache, CXX=cxx.path) for _ in range(2)]
    outputs = [json.loads(output(process)) for process in two]
    made = cxx.made
    assert [path.suffix for path in made] == [".so", ".so"]  # the step, and the counts
    assert 2 <= cxx.calls <= 4
    before = cxx.calls, [path.stat().st_mtime_ns for path in made]
    outputs.append(train("compile"))
    assert (cxx.calls, [path.stat().st_mtime_ns for path in made]) == before
    assert cxx.made == made
    assert outputs[0] == outputs[1] == outputs[2]
    # In float32, sums of tens of numbers of some hundreds.
    assert outputs[0] == pytest.approx(train("eager"), rel=1e-6, abs=1e-4)


def test_a_library_that_is_cut_short_is_made_anew(compiler):
    """As a disk that was full, or a machine that went down, may leave it; loading it may end the process."""
    cxx = compiler()
    want = train("compile")
    whole = [path.read_bytes() for path in cxx.made]
    for path, content, size in zip(cxx.made, whole, (0, 1000), strict=True):
        path.unlink()  # this process has it loaded
        path.write_bytes(content[:size])
    assert json.loads(output(started("print(train('compile'))", cxx.cache, CXX=cxx.path))) == want
    assert sorted(path.read_bytes() for path in cxx.made) == sorted(whole)


def test_without_a_compiler(tmp_path):
    text = """
        import warnings

        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            assert train("auto") == train("eager")
            assert train("auto", torch.float64) == train("eager", torch.float64)
        for warning in said:
            print(warning.category.__name__, warning.message)
        try:
            train("compile")
        except ValueError as error:
            print(error)
    """
    said, refused = output(started(text, tmp_path / "cache", PATH=tmp_path)).splitlines()
    assert said.startswith("RuntimeWarning parameters on the CPU are updated without compiled code: there is no C++")
    assert refused.startswith("backend='compile' cannot update parameters on cpu here: there is no C++ compiler")


def test_a_compiler_that_fails(compiler):
    """It is asked once for each kernel; "auto" says so once, and the rule is run by torch."""
    cxx = compiler("echo no such thing >&2; exit 1")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert train("auto") == train("eager")
        assert cxx.calls == len(cpu.MACHINES)
        assert train("auto") == train("eager")
    assert cxx.calls == len(cpu.MACHINES)
    (warning,) = said
    assert warning.category is RuntimeWarning
    assert "without compiled code" in str(warning.message)
    assert "cannot compile the kernel: no such thing" in str(warning.message)
    assert cxx.made == []


def check_refused(act, tensors):
    """That an action raises CompilationError, with these tensors as they were."""
    before = [t.detach().clone() for t in tensors()]
    for _ in range(2):
        with pytest.raises(backends.CompilationError, match="cannot compile the kernel"):
            act()
    assert len(before) == len(tensors())
    assert all(map(torch.equal, before, tensors()))


def with_gradients(*dtypes):
    params = [torch.ones(3, dtype=dtype).requires_grad_() for dtype in dtypes]
    for p in params:
        p.grad = torch.ones_like(p)
    return params


def tensors_of(optimizer):
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return lambda: [t for p in params for t in (p.detach(), p.grad, *optimizer.state.get(p, {}).values())]


def test_what_cannot_be_compiled_is_refused_with_nothing_changed(compiler):
    compiler("echo no such thing >&2; exit 1")
    optimizer = funcopt.optim.AdamW(with_gradients(torch.float32), backend="compile")
    check_refused(optimizer.step, tensors_of(optimizer))
    opt = funcopt.adamw(backend="compile")
    p = torch.ones(3)
    state = opt.init(p)
    check_refused(
        lambda: opt(p, p.clone(), state, opt.hparams(), donate=True),
        lambda: [p, *torch.utils._pytree.tree_leaves(state)],
    )
    clipping = clip_by_global_norm(funcopt.sgd(backend="compile"))
    check_refused(lambda: clipping(p, p, clipping.init(p), clipping.hparams(), donate=True), lambda: [p])


NO_HALF = 'for file; do case $file in *.cpp) grep -q _Float16 "$file" && echo no >&2 && exit 1;; esac; done'
NO_ZEROS = 'for file; do case $file in *.cpp) grep -q "g_.i. = " "$file" && echo no >&2 && exit 1;; esac; done'


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float16), (torch.float16, torch.float32)], ids=str)
@pytest.mark.parametrize("groups", [1, 2])
def test_one_kernel_of_several_that_cannot_be_compiled(dtypes, groups, compiler):
    """Nothing is half done: neither the dtypes before it nor the groups before it have been stepped."""
    compiler(NO_HALF)
    params = with_gradients(*dtypes)
    split = [{"params": [p]} for p in params] if groups == 2 else params
    optimizer = funcopt.optim.AdamW(split, backend="compile")
    check_refused(optimizer.step, tensors_of(optimizer))


@pytest.mark.parametrize("steps", [0, 1, 2])
@pytest.mark.parametrize("backend", ["auto", "compile"])
def test_zeroing_in_the_step_that_cannot_be_compiled(steps, backend, compiler):
    """The step has its kernel, and gradients are set to 0 after it."""
    compiler(NO_ZEROS)
    params = with_gradients(torch.float32, torch.float64)
    optimizer = funcopt.optim.SGD([{"params": [p]} for p in params], lr=0.25, momentum=0.5, backend=backend)
    for _ in range(steps):
        optimizer.step()
    optimizer.step(zero_grad=True)
    assert all(p.eq([0.75, 0.375, -0.0625][steps]).all() for p in params)
    assert all(p.grad.eq(0).all() for p in params)


def test_a_folder_that_cannot_be_written_to(compiler, tmp_path, monkeypatch):
    compiler()
    (tmp_path / "file").touch()
    monkeypatch.setenv("FUNCOPT_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert train("compile") == pytest.approx(train("eager"), rel=1e-6, abs=1e-4)
    assert (tmp_path / "file").is_file()


def test_a_slot_that_is_none():
    """As torch.optim.SGD's momentum_buffer may be."""
    (p,) = with_gradients(torch.float32)
    optimizer = funcopt.optim.SGD([p], lr=0.25, momentum=0.5, backend="compile")
    optimizer.state[p]["momentum_buffer"] = None
    optimizer.step()
    assert p.eq(0.75).all()
    assert optimizer.state[p]["momentum_buffer"].eq(1).all()
