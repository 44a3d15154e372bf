"""What mkdocs asks while it builds the site: the navigation, and the pages that are made from the code.

    mkdocs build --strict
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
FIRST = {"Start": "index.md", "Tutorials": ["first-environment.md", "train.md", "evaluation.md"],
         "Look at a run": "look.md", "Concepts": "concepts.md", "The method": "method.md"}
LAST = {"Reference": ["reference/commands.md", "reference/configuration.md"],
        "Measured": ["results.md", "performance.md"], "Limitations": "limitations.md"}
Nav = list[dict[str, Any]]


def on_config(config: Any) -> Any:
    """The navigation: a page that is named nowhere stands under "How to"."""
    named = {page for pages in [*FIRST.values(), *LAST.values()]
             for page in (pages if isinstance(pages, list) else [pages])}
    others = sorted(file.name for file in Path(config["docs_dir"]).glob("*.md") if file.name not in named)
    decisions = sorted(f"decisions/{file.name}" for file in (Path(config["docs_dir"]) / "decisions").glob("*.md"))
    config["nav"] = [{title: pages} for title, pages in
                     {**FIRST, "How to": others, **LAST, "Decisions": decisions}.items()]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the references, made from the code."""
    from mkdocs.structure.files import File

    for name, text in (("commands", commands_page()), ("configuration", configuration_page())):
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """A link to a file of the repository that is no page becomes its name; one that leads nowhere stops the build."""
    here = (Path(config["docs_dir"]) / page.file.src_uri).parent

    def named(match: re.Match[str]) -> str:
        text, target = match.groups()
        file = (here / target.partition("#")[0]).resolve()
        if file.is_relative_to(Path(config["docs_dir"]).resolve()):
            return match.group()
        if not file.exists():
            raise ValueError(f"{page.file.src_uri}: the link to {target} leads nowhere")
        return f"{text} (`{file.relative_to(ROOT)}`)"

    markdown = re.sub(r"^<!-- code: (\S+) (\w+) -->$", lambda m: folded_code(*m.groups()), markdown, flags=re.MULTILINE)
    return re.sub(r"\[([^]]+)\]\((\.\./[^)\s]+)\)", named, markdown)


def folded_code(file: str, name: str) -> str:
    """A function as it stands in the repository, to be unfolded.

    Raises:
        ValueError: the file has none of that name.
    """
    source = (ROOT / file).read_text()
    for found in ast.parse(source).body:
        if isinstance(found, ast.FunctionDef) and found.name == name:
            code = textwrap.indent(ast.get_source_segment(source, found) or "", "    ")
            return f'??? quote "{file}, line {found.lineno}: {name}"\n\n    ```python\n{code}\n    ```\n'
    raise ValueError(f"{file} has no function {name!r}")


def commands_page() -> str:
    """Every command with its help, from the command line itself."""
    lines = ["# The command line", "", "Exit codes: 0 all is well; 1 something was examined and is not as it should be "
             "(`envs check`, `sandbox check`, `audit`, `replay`); 2 bad input, in one sentence; 130 interrupted, in "
             "one sentence that says how to go on. `turncredit --install-completion` sets up the shell's completion of "
             "commands, environments and suites. `--json` prints what a script reads.", ""]
    for path, text in commands():
        lines += [f"## {path}", "", "```text", text, "```", ""]
    return "\n".join(lines)


def commands() -> Iterator[tuple[str, str]]:
    """(what is typed, its help) of each command."""
    from typer.main import get_command

    from turncredit.cli import app

    def walk(command: Any, path: str, parent: Any) -> Iterator[tuple[str, str]]:
        context = command.context_class(command, info_name=path.rpartition(" ")[2], parent=parent,
                                        max_content_width=100)
        if not getattr(command, "commands", None):
            yield path, command.get_help(context).strip()
        for name, inner in sorted(getattr(command, "commands", {}).items()):
            yield from walk(inner, f"{path} {name}", context)

    yield from walk(get_command(app), "turncredit", None)


def configuration_page() -> str:
    """Every key of a configuration file, from the models that check it."""
    from turncredit.config import Config
    from turncredit.trainer.algorithms import ALGORITHMS

    lines = ["# Configuration", "", "A run is a YAML file with these keys; on the command line `trainer.lr=1e-5` sets "
             "one. What is not known, of a wrong type or impossible is refused before anything is loaded.", ""]
    lines += _table("A run", Config, "")
    lines += ["`algorithm.name` says which; the other keys of `algorithm` are its own:", ""]
    for name, algorithm in sorted(ALGORITHMS.items()):
        lines += _table(f"algorithm: {name}", algorithm, "algorithm.")
    return "\n".join(lines)


def _table(title: str, model: Any, prefix: str) -> list[str]:
    lines = [f"## {title}", "", "| key | type | default | what |", "|---|---|---|---|"]
    inner: list[tuple[str, Any]] = []
    for name, field in model.model_fields.items():
        below = _model_in(field.annotation)
        kind = re.sub(r"\b(turncredit\.[\w.]+|typing|pathlib|Annotated)\.", "", _type(field.annotation))
        default = "required" if field.is_required() else f"`{field.get_default(call_default_factory=True)!r}`"
        if below is not None:
            inner.append((f"{prefix}{name}", below))
            kind = f"see [{prefix}{name}](#{(prefix + name).replace('.', '')})"
            default = default if "(" not in default else "its own"
        cells = (f"`{prefix}{name}`", kind, default, field.description or "")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    lines.append("")
    for name, below in inner:
        lines += _table(name, below, f"{name}.")
    return lines


def _type(annotation: Any) -> str:
    plain = isinstance(annotation, type) and not hasattr(annotation, "__args__")
    return f"`{annotation.__name__ if plain else annotation}`"


def _model_in(annotation: Any) -> Any:
    from pydantic import BaseModel

    for kind in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None
