"""`turncredit envs new NAME`: a package with an environment that installs, registers itself and passes its tests."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from string import Template

from turncredit.errors import UserError

FILES = {"pyproject.toml": "pyproject.toml.tmpl", "README.md": "README.md.tmpl",
         "{package}/__init__.py": "init.py.tmpl", "{package}/env.py": "env.py.tmpl",
         "tests/test_env.py": "test_env.py.tmpl"}


def write_scaffold(name: str, into: Path) -> Path:
    """Write the package; "lights-out" becomes the module lights_out with the environment lights-out/LightsOut-v0.

    Raises:
        UserError: a name that cannot be a module's, or a folder that is there already.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise UserError(f"name {name!r}: use lower-case letters, digits and single hyphens, such as lights-out")
    folder = into / name
    if folder.exists():
        raise UserError(f"folder {str(folder)!r} is there already: choose another name, or --into another folder")
    package = name.replace("-", "_")
    values = {"project": name, "package": package, "title": "".join(part.capitalize() for part in name.split("-"))}
    for target, source in FILES.items():
        path = folder / target.format(package=package)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Template((files(__name__) / source).read_text()).substitute(values))
    return folder
