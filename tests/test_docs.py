"""Every code block of the README and the documentation runs, or is held against what would run it.

Python is executed, each block by itself, in an empty folder with a finished run in runs/mine. Of shell blocks, the
commands that take seconds are run, and the others parsed by the real command line, with the configurations and suites
that they name. YAML is checked by the models of configurations and suites. A block that needs what this machine has not
says so on the line above it: <!-- not run: needs a GPU -->, or <!-- needs: ray --> for a package.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OUTPUT = "text"  # what a program printed
QUICK = ("report", "replay", "audit", "watch", "credit", "envs list", "envs show", "envs new")
ASIDE = {"pip", "cd", "git", "docker", "ray", "export", "apt-get", "tensorboard"}  # not ours to check


@dataclass(frozen=True)
class Block:
    """A fenced block: where its first line stands, its language, its text, and the comment above it."""

    page: Path
    line: int
    language: str
    code: str
    mark: str

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in re.finditer(r"(?:<!-- ([^\n]*) -->\n)?^```([\w+-]*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        line = text[:found.start(3)].count("\n") + 1
        yield Block(page, line, found[2], found[3], found[1] or "")


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
[FIRST] = [b for b in BLOCKS if b.page.name == "first-environment.md" and "Evaluation(" in b.code]  # has its own test


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained_run: Path) -> Iterator[Path]:
    """A folder with the configurations and a finished run; what a block registers is forgotten."""
    from turncredit.trainer.algorithms import ALGORITHMS

    (tmp_path / "configs").symlink_to(ROOT / "configs")
    shutil.copytree(trained_run, tmp_path / "runs" / "mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    environments, algorithms = dict(gymnasium.registry), dict(ALGORITHMS)
    yield tmp_path
    for registry, before in ((gymnasium.registry, environments), (ALGORITHMS, algorithms)):
        registry.clear()
        registry.update(before)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b != FIRST], ids=lambda block: block.name)
def test_a_block_does_what_it_says(block: Block, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, _, why = block.mark.partition(": ")
    if kind == "not run":
        pytest.skip(why)
    if kind == "needs" and (missing := [name for name in why.split(", ") if importlib.util.find_spec(name) is None]):
        pytest.skip(f"needs {', '.join(missing)}")
    check = {"python": run_python, "sh": run_shell, "yaml": check_yaml, "toml": tomllib.loads, "json": json.loads,
             OUTPUT: lambda _: None}.get(block.language)
    assert check is not None, f"{block.name}: name the block's language; `{OUTPUT}` where it is what a program printed"
    if block.language == "yaml":  # it may name an algorithm that the page makes
        for earlier in BLOCKS:
            if earlier.page == block.page and earlier.line < block.line and "@register_algorithm" in earlier.code:
                run_python(earlier.code)
    if block.language == "sh":
        monkeypatch.setattr(sys, "stdin", None)
    check(block.code)


def run_python(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "block"}
    exec(compile(code, "block.py", "exec"), names)
    return names


def run_shell(code: str) -> None:
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z0-9_]+=.*", words[0]):
            words.pop(0)
        if not words:
            continue
        program = Path(words[0]).name
        if program == "turncredit":
            run_or_parse(words[1:])
        elif "turncredit.cli" in words:  # behind torchrun or python -m
            run_or_parse(words[words.index("turncredit.cli") + 1:])
        elif program == "make":
            for target in (word for word in words[1:] if "=" not in word):
                assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
        elif program.startswith("python") and words[1] == "-c":
            run_python(words[2])
        elif program.startswith("python"):
            assert (ROOT / words[1]).is_file(), line
        elif program == "pip":
            check_extras(line)
        else:
            assert program in ASIDE, f"{line!r}: nothing here checks {program!r}"


def check_extras(line: str) -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extras in re.findall(r"turncredit\[([\w,-]+)\]", line):
        assert set(extras.split(",")) <= set(known), line


def run_or_parse(words: list[str]) -> None:
    """Of a `turncredit` command line: what it names exists, and where it takes seconds it is run."""
    from typer import Exit
    from typer.main import get_command

    from turncredit.cli import app
    from turncredit.config import load_config
    from turncredit.evaluate.suites import load_suite

    command: Any = get_command(app)
    path: list[str] = []
    rest = [word for word in words if word != "--open"]
    for run in {Path(word) for word in rest if re.fullmatch(r"runs/[\w-]+", word)}:
        if not run.exists():
            run.symlink_to(Path("runs/mine").resolve())
    while rest and getattr(command, "commands", None) and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"turncredit {' '.join(words)}: there is no {rest[0]!r}"
        path.append(rest.pop(0))
        command = command.commands[path[-1]]
    if rest and rest[0] in ("--help", "--install-completion", "--show-completion"):
        return
    context = command.make_context(" ".join(path), rest)  # a usage error where it does not parse
    given = context.params
    if "overrides" in given:
        load_config(given["config"], given["overrides"] or [])
    if given.get("envs"):
        load_suite(given["envs"])
    if " ".join(path) in QUICK and not any(word.isupper() for word in rest):
        try:
            code = command.invoke(context)
        except Exit as ended:
            code = ended.exit_code
        assert not code, f"turncredit {' '.join(words)}: exit code {code}"


def check_yaml(code: str) -> None:
    """A configuration, a part of one laid over the quickstart's, or a suite."""
    from turncredit.config import parse_config, read_yaml
    from turncredit.evaluate.suites import Suite

    data = yaml.safe_load(code)
    if {"in_distribution", "ood"} & set(data):
        Suite.model_validate(data)
        return
    Path("block.yaml").write_text(code)
    read = read_yaml("block.yaml", "block")
    if "extends" in read:
        return
    whole = {"model", "envs"} <= set(read)
    below = {} if whole else read_yaml(ROOT / "configs" / "quickstart.yaml", "config")
    parse_config(below | {key: below.get(key, {}) | value if key != "algorithm" and isinstance(value, dict) else value
                          for key, value in read.items()})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_has_fenced_blocks_alone_and_names_commands_that_there_are(page: Path) -> None:
    from typer.main import get_command

    from turncredit.cli import app

    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    indented = re.search(r"\n\n {4,}(?![-*\d] )\S[^\n]*", text)
    assert indented is None, f"an indented block is run by no test: {indented[0].strip()!r}"
    for span in re.findall(r"`turncredit ([a-z][^`]*)`", text):
        command: Any = get_command(app)
        for word in span.split():
            if not getattr(command, "commands", None):
                break
            assert word in command.commands, f"`turncredit {span}`: there is no {word!r}"
            command = command.commands[word]


def test_the_code_beside_an_equation_is_there() -> None:
    pages = importlib.util.spec_from_file_location("docs_pages", ROOT / "scripts" / "docs_pages.py")
    assert pages is not None and pages.loader is not None
    made = importlib.util.module_from_spec(pages)
    pages.loader.exec_module(made)
    named = re.findall(r"^<!-- code: (\S+) (\w+) -->$", (ROOT / "docs" / "method.md").read_text(), re.MULTILINE)
    assert len(named) == 7
    for file, name in named:
        assert f"def {name}(" in made.folded_code(file, name)
    with pytest.raises(ValueError, match="has no function 'nothing'"):
        made.folded_code("turncredit/trainer/credit.py", "nothing")


def test_the_first_environment_is_trained_and_evaluated_out_of_distribution(place: Path, capsys: Any) -> None:
    names = run_python(FIRST.code)
    scores = {(s.agent, s.split): s.avg for s in names["evaluation"].scores}
    assert scores["expert", "test"] == scores["expert", "ood"] == 1.0
    assert scores["silent", "test"] == scores["silent", "ood"] == 0.0
    assert all(leak.clean for leak in names["evaluation"].leaks)
    assert "mean over environments" in capsys.readouterr().out
    written = [line for line in FIRST.code.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(written) <= 40
