"""Every Python block of the README runs, and prints what the README says it prints."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n((?:(?!```).)*)```\n\n```text\n(.*?)```", README, re.DOTALL)
FILES = re.findall(r"```python\n# (\w+\.py)\n(.*?)```\n\n```sh\n(.*?)\n```\n\n```text\n(.*?)```", README, re.DOTALL)


def test_every_python_block_has_its_output_below():
    assert BLOCKS
    assert FILES
    assert len(BLOCKS) + len(FILES) == README.count("```python")


@pytest.mark.parametrize(("code", "output"), BLOCKS, ids=range(len(BLOCKS)))
def test_block(code, output, tmp_path):
    script = tmp_path / "block.py"  # a file: Triton reads the source of a rule
    script.write_text(code)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip() == output.rstrip()


@pytest.mark.parametrize(("name", "code", "command", "output"), FILES, ids=[name for name, *_ in FILES])
def test_file_and_command(name, code, command, output, tmp_path):
    (tmp_path / name).write_text(code)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment["PYTHONPATH"] = str(ROOT)  # for a checkout that is not installed
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert not done.stderr
    assert done.stdout.rstrip() == output.rstrip()


def test_the_first_two_commands_are_one_line_each_and_ci_runs_the_second():
    commands = re.findall(r"```sh\n(.*?)\n```", README, re.DOTALL)[:2]
    assert all("\n" not in command and "-c constraints.txt" in command for command in commands)
    assert commands[0].endswith("python -m funcopt demo")
    assert re.fullmatch(r"python -m pip install .*&& python -m pytest", commands[1])


def test_every_file_the_documents_name_is_there():
    for document in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / document).read_text()):
            assert (ROOT / target).exists(), f"{document} names {target}"
