"""Images for the Docker sandbox: made of the running Python, or of another image.

The first is for machines that reach no registry, and gives candidates the very Python that runs here: the
interpreter with its standard library, the distributions asked for, a shell with the usual small programs,
and the shared libraries that these need. All of it keeps the path that it has on this machine, so that
nothing has to be relocated. About 115 MB, and six seconds, without further distributions.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import os
import shutil
import site
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement

from turncredit.errors import UserError
from turncredit.sandboxes.zygote import root

if TYPE_CHECKING:
    from docker import DockerClient

REPOSITORY = "turncredit-python"
PREPARED = "turncredit-prepared"
PREPARATION = f"""
python3 -c 'import sys, ctypes; sys.exit(sys.version_info < (3, 10))'
rm -rf /tmp /var/tmp; mkdir -p /var; ln -s {root.TEMPORARY} /tmp; ln -s {root.TEMPORARY} /var/tmp
"""
RECIPE = 1  # counted up when what goes into the image changes
PROGRAMS = (
    "awk", "base64", "basename", "bash", "cat", "chmod", "cp", "cut", "date", "dd", "diff", "dirname",
    "echo", "env", "expr", "false", "find", "grep", "gzip", "head", "id", "kill", "ln", "ls", "mkdir",
    "mktemp", "mv", "nl", "printf", "ps", "pwd", "rm", "rmdir", "sed", "seq", "sh", "sha256sum", "sleep",
    "sort", "stat", "tail", "tar", "tee", "test", "touch", "tr", "true", "uname", "uniq", "wc", "xargs",
    "yes",
)
# Parts of the standard library that candidates can't use there, or should not miss.
LEFT_OUT = {
    "site-packages", "dist-packages", "test", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3",
}
LOADER_CACHE = Path("/etc/ld.so.cache")
ETC = {
    "passwd": "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
    "group": "root:x:0:\nnogroup:x:65534:\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}


def build_image(client: DockerClient, packages: Sequence[str] = (), *, rebuild: bool = False) -> str:
    """Make the image of this Python unless the engine has it, and return its name.

    Args:
        packages: distributions installed here that candidates may import; what they require comes along.
        rebuild: make it even if the engine has it.
    Raises:
        UserError: a distribution is not installed.
    """
    from docker.errors import ImageNotFound

    wanted = closure(packages)
    name = image_name(wanted)
    if not rebuild:
        try:
            client.images.get(name)
            return name
        except ImageNotFound:
            pass
    repository, tag = name.split(":")
    changes = [f"ENV PATH={interpreter().parent}:/usr/local/bin:/usr/bin:/bin"]
    with tempfile.TemporaryDirectory(prefix="turncredit-image-") as folder:
        archive = Path(folder) / "root.tar"
        write_archive(archive, wanted)
        client.api.import_image_from_file(str(archive), repository=repository, tag=tag, changes=changes)
    return name


def prepare_image(client: DockerClient, name: str) -> str:
    """Return the name of an image like `name` whose /tmp leads to the scratch folder, making it where needed.

    Raises:
        UserError: there is no such image, or no Python 3.10 or later in it.
    """
    from docker.errors import APIError, ImageNotFound

    try:
        wanted = _find(client, name)
    except APIError as error:
        raise UserError(f"image {name!r} is not on the Docker engine and can't be pulled "
                        f"({error.explanation}): name another, or none to have one made of this Python"
                        ) from error
    recipe = hashlib.sha256(f"{wanted.id} {PREPARATION}".encode()).hexdigest()
    tag = f"{PREPARED}:{recipe[:24]}"
    try:
        client.images.get(tag)
        return tag
    except ImageNotFound:
        pass
    built = client.containers.create(
        wanted, entrypoint=["/bin/sh", "-ec", PREPARATION], user="0:0", network_mode="none")
    try:
        built.start()
        if built.wait()["StatusCode"]:
            raise UserError(f"image {name!r} has no Python 3.10 or later with ctypes as python3: name another")
        built.commit(*tag.split(":"))
    except APIError as error:
        raise UserError(f"image {name!r} has no shell ({error.explanation}): name another") from error
    finally:
        built.remove(force=True)
    return tag


def _find(client: DockerClient, name: str) -> Any:
    from docker.errors import ImageNotFound

    try:
        return client.images.get(name)
    except ImageNotFound:
        # Without a tag the SDK would pull all of them.
        return client.images.pull(name if ":" in name.rpartition("/")[2] or "@" in name else f"{name}:latest")


def interpreter() -> Path:
    """Return the path of the running Python's own executable, outside any virtual environment."""
    return Path(getattr(sys, "_base_executable", sys.executable)).resolve()


def image_name(wanted: Sequence[importlib.metadata.Distribution] = ()) -> str:
    """Return a name that changes whenever the image would."""
    versions = sorted(f"{each.name}=={each.version}" for each in wanted)
    parts = [RECIPE, root.TEMPORARY, sys.version, str(interpreter()), *versions]
    version = ".".join(map(str, sys.version_info[:3]))
    return f"{REPOSITORY}:{version}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:12]}"


def closure(packages: Iterable[str]) -> list[importlib.metadata.Distribution]:
    """Return the named distributions and all that they require here.

    Raises:
        UserError: one that was named is not installed.
    """
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = [Requirement(name) for name in packages]
    while waiting:
        wanted = waiting.pop()
        if wanted.name.lower() in found or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
            continue
        try:
            distribution = importlib.metadata.distribution(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            raise UserError(f"packages names {wanted.name!r}, which is not installed here: "
                            f"pip install {wanted.name}") from None
        found[wanted.name.lower()] = distribution
        waiting += map(Requirement, distribution.requires or ())
    return list(found.values())


def write_archive(path: Path, wanted: Sequence[importlib.metadata.Distribution] = ()) -> None:
    """Write the image's root file system as a tar archive."""
    files = {**_standard_library(), **_distributions(wanted), **_programs()}
    files |= _libraries(list(files.values()))
    links = _root_links()
    placed = {_resolved(place, links): source for place, source in files.items()}
    temporary = Path(root.TEMPORARY)
    links |= {Path("/tmp"): temporary, Path("/var/tmp"): temporary, Path("/usr/bin/python3"): interpreter()}
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for folder in ("proc", "sys", "dev", "var"):
            archive.addfile(_entry(Path("/", folder), tarfile.DIRTYPE, mode=0o755))
        for place, source in sorted(placed.items()):
            # Everyone may read it, and run it where its owner may, whatever its mode is here.
            about = source.stat()
            entry = _entry(place, mode=0o755 if about.st_mode & 0o100 else 0o644, size=about.st_size)
            entry.mtime = int(about.st_mtime)  # which the bytecode beside a source names
            with source.open("rb") as file:
                archive.addfile(entry, file)
        for name, text in ETC.items():
            archive.addfile(_entry(Path("/etc", name), mode=0o644, size=len(text)), io.BytesIO(text.encode()))
        for place, target in links.items():
            if place not in placed:
                entry = _entry(place, tarfile.SYMTYPE, mode=0o777)
                entry.linkname = str(target)
                archive.addfile(entry)


def _entry(place: Path, kind: bytes = tarfile.REGTYPE, *, mode: int, size: int = 0) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(str(place.relative_to("/")))
    entry.type, entry.mode, entry.size = kind, mode, size
    return entry


def _standard_library() -> dict[Path, Path]:
    """Map a place in the image to a file here: the executable and the standard library."""
    executable = interpreter()
    files = {executable.with_name(name): executable for name in (executable.name, "python", "python3")}
    for folder in {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}:
        for above, below, names in os.walk(folder):
            below[:] = [name for name in below if name not in LEFT_OUT and not name.startswith("config-")]
            files |= {Path(above, name): Path(above, name) for name in names}
    return files


def _distributions(wanted: Sequence[importlib.metadata.Distribution]) -> dict[Path, Path]:
    home = Path(site.getsitepackages([sys.base_prefix])[0])
    files = {}
    for distribution in wanted:
        for file in distribution.files or ():
            source = Path(str(distribution.locate_file(file)))
            if ".." not in file.parts and source.is_file():
                files[home / file] = source
    return files


def _programs() -> dict[Path, Path]:
    found = ((name, shutil.which(name, path="/usr/bin:/bin:/usr/local/bin")) for name in PROGRAMS)
    return {Path("/usr/bin", name): Path(path) for name, path in found if path}


def _libraries(files: Sequence[Path]) -> dict[Path, Path]:
    """Return the shared libraries that the dynamic loader would load for these files here."""
    known = {file.resolve() for file in files}  # a wheel's own libraries lie beside its modules
    programs = sorted(str(file) for file in known if _is_elf(file))
    libraries = {LOADER_CACHE} if LOADER_CACHE.exists() else set()
    for start in range(0, len(programs), 200):  # within the length of a command line
        listed = subprocess.run(["ldd", *programs[start:start + 200]], capture_output=True, text=True).stdout
        for line in listed.splitlines():
            name = line.split("=>")[-1].split("(")[0].strip()
            if name.startswith("/") and not name.endswith(":") and Path(name).resolve() not in known:
                libraries.add(Path(os.path.normpath(name)))
    return {library: library for library in libraries}


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _root_links() -> dict[Path, Path]:
    """Return the links by which distributions join /bin and /lib to /usr, as they are here."""
    names = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
    links = {Path("/", name): Path("/", name).readlink() for name in names if Path("/", name).is_symlink()}
    return {Path("/bin"): Path("usr/bin"), **links}


def _resolved(place: Path, links: dict[Path, Path]) -> Path:
    first = Path("/", place.parts[1])
    return Path("/") / links[first] / place.relative_to(first) if first in links else place
