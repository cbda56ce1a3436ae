"""What is mined: a source tree, an archive or an installed Python package, as a folder with files and metadata."""

from __future__ import annotations

import json
import os
import re
import shutil
import sysconfig
import tarfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email.parser import Parser
from importlib import metadata
from pathlib import Path, PurePosixPath

from moe.data.mining.functions import SUFFIXES
from moe.data.mining.licenses import LICENSE_FILES, Licenses, spdx
from moe.errors import UserError, did_you_mean

STDLIB = "stdlib"  # names the standard library of the Python that runs
MAX_FILE = 1 << 20  # bytes; larger source files are generated
ARCHIVES = (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar", ".zip", ".whl", ".jar", ".crate")
_ABOUT = re.compile(rf"{LICENSE_FILES}|package\.json|metadata|pkg-info|cargo\.toml|changelog|pom\.xml", re.IGNORECASE)
# Folders of tests, of copies of other packages, of examples and of what a compiler wrote.
_SKIPPED = (
    r"tests?|testing|__tests__|specs?|testdata|testlib|guava-(?:tests|testlib|gwt)|mocks?|fixtures?|bench(?:es|marks?)?",
    r"_?vendor(?:ed)?|third[-_]?party|3rdparty|extern(?:al)?s?|deps|contrib|node_modules|bower_components|site-packages",
    r"examples?|samples?|demos?|docs?|migrations|dist|build|umd|cjs|es5|browser|bundles?|min|generated|gen|android",
    r"idlelib|lib2to3|ensurepip|\..+",
)
_SKIPPED_FOLDER = re.compile("|".join(_SKIPPED))
_SKIPPED_FILE = re.compile(
    r"test_.*|.*_test|.*[tT]ests?|.*[-.](?:test|spec|min|bundle|stories|d)|.*_pb2?|.*\.pb|conftest|setup|cdn"
    r"|.*_generated|zz_.*|(?:.*_)?benchmark.*"
)


@dataclass(frozen=True)
class Tree:
    """A package to mine: where it lies, its code files per language (paths inside it) and what it says of itself."""

    name: str
    version: str
    root: Path
    files: dict[str, list[str]]
    licenses: Licenses


@contextmanager
def opened(source: str, work: Path, languages: Sequence[str]) -> Iterator[Tree]:
    """Opens a source: a folder, an archive, :data:`STDLIB` or the name of an installed Python package.

    Args:
        work: an own folder for what is unpacked; removed afterwards.

    Raises:
        UserError: there is nothing of that name, or an archive is broken.
    """
    path = Path(source)
    try:
        if path.is_file():
            _unpack(path, work, languages)
            yield _tree(_descended(work), languages, _name_of_file(path.name))
        elif path.is_dir():
            yield _tree(path, languages, (path.resolve().name, ""))
        elif path.exists():
            raise UserError(f"{source}: is neither a folder nor a file")
        elif source == STDLIB:
            root = Path(sysconfig.get_path("stdlib"))
            version = sysconfig.get_config_var("py_version") or ""
            found = _listed(root)
            files = _chosen(root, found, ("python",) if "python" in languages else ())
            yield Tree("cpython-stdlib", str(version), root, files, Licenses(root, (), "PSF-2.0"))
        else:
            yield _installed(source, languages)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def check_source(source: str) -> None:
    """Raises :class:`UserError` where there is nothing of that name; to be called before the work."""
    path = Path(source)
    if path.is_file() and not path.name.lower().endswith(ARCHIVES):
        raise UserError(f"{source}: is no archive that is known; expected a folder or {', '.join(ARCHIVES)}")
    if not path.exists() and source != STDLIB:
        _distribution(source)


def _distribution(name: str) -> metadata.Distribution:
    try:
        if not re.fullmatch(r"[\w.-]+", name):
            raise metadata.PackageNotFoundError
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        names = [found for x in metadata.distributions() if (found := x.metadata["Name"])]
        hint = did_you_mean(name, names)
        raise UserError(
            f"{name}: no such file or folder, nor an installed Python package{hint}; expected a source tree, an "
            f"archive, {STDLIB} or a package of this Python"
        ) from None


def _installed(name: str, languages: Sequence[str]) -> Tree:
    package = _distribution(name)
    root = Path(str(package.locate_file("")))
    files = [str(PurePosixPath(file)) for file in package.files or () if ".." not in PurePosixPath(file).parts]
    info = _python_license(package.metadata)
    return Tree(
        package.metadata["Name"], package.version, root, _chosen(root, files, languages), Licenses(root, files, info)
    )


def _python_license(found) -> str | None:
    """The license in Python's metadata: the expression, the classifiers, then the free text if it is short."""
    if text := found["License-Expression"]:
        return text
    classes = [x for x in found.get_all("Classifier") or () if x.startswith("License :: OSI Approved :: ")]
    text = (found["License"] or "").strip()
    short = bool(text) and len(text) < 100 and "\n" not in text and text != "UNKNOWN"
    return text if short else " AND ".join(map(spdx, classes)) or None


def _tree(root: Path, languages: Sequence[str], default: tuple[str, str]) -> Tree:
    files = _listed(root)
    name, version, license = _about(root, files)
    return Tree(
        name or default[0], version or default[1], root, _chosen(root, files, languages), Licenses(root, files, license)
    )


def _listed(root: Path) -> list[str]:
    """All regular files below a folder, in order; links are not followed."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(x for x in folders if x not in ("node_modules", "site-packages", ".git", "__pycache__"))
        found += [Path(folder, x) for x in sorted(names)]
    return [path.relative_to(root).as_posix() for path in found if path.is_file() and not path.is_symlink()]


def _about(root: Path, files: Sequence[str]) -> tuple[str | None, str | None, str | None]:
    """Name, version and license from the metadata nearest to the root."""
    for path in sorted(files, key=lambda x: (x.count("/"), x)):
        reader = next((read for end, read in _READERS.items() if f"/{path}".endswith(end)), None)
        if reader is None or path.count("/") > 5:
            continue
        try:
            found = reader((root / path).read_text(encoding="utf-8", errors="replace"))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        if found[0]:
            return found
    return None, None, None


def _of_npm(text: str) -> tuple[str | None, str | None, str | None]:
    found = json.loads(text)
    license = found.get("license") or found.get("licenses")
    if isinstance(license, list):
        license = " OR ".join(x["type"] if isinstance(x, dict) else x for x in license)
    license = license.get("type") if isinstance(license, dict) else license
    pointer = isinstance(license, str) and license.upper().startswith("SEE LICENSE")
    return found["name"], found.get("version"), None if pointer else license


def _of_python(text: str) -> tuple[str | None, str | None, str | None]:
    found = Parser().parsestr(text)
    return found["Name"], found["Version"], _python_license(found)


def _of_cargo(text: str) -> tuple[str | None, str | None, str | None]:
    found = tomllib.loads(text)["package"]
    return found["name"], found.get("version"), found.get("license")


def _of_debian(text: str) -> tuple[str | None, str | None, str | None]:
    found = re.match(r"(\S+) \(([^)]+)\)", text)
    return (found[1], found[2], None) if found else (None, None, None)


def _of_maven(text: str) -> tuple[str | None, str | None, str | None]:
    plain = re.sub(r"(?s)<(parent|dependencies|build|profiles|dependencyManagement)>.*?</\1>|<!--.*?-->", "", text)
    values = [re.search(rf"<{x}>\s*([^<]+?)\s*</", plain) for x in ("artifactId", "version")]
    license = re.search(r"(?s)<license>.*?<name>\s*([^<]+?)\s*</name>", plain)
    name, version, terms = ((x[1] if x else None) for x in (*values, license))
    return name, version, terms


_READERS: dict[str, Callable[[str], tuple[str | None, str | None, str | None]]] = {
    "/package.json": _of_npm,
    "/PKG-INFO": _of_python,
    ".dist-info/METADATA": _of_python,
    "/Cargo.toml": _of_cargo,
    "/debian/changelog": _of_debian,
    "/pom.xml": _of_maven,
}


def _chosen(root: Path, files: Sequence[str], languages: Sequence[str]) -> dict[str, list[str]]:
    """The files to read of each language.

    A header belongs to C where no file is C++. JavaScript with a declaration file beside it was compiled from
    TypeScript where the package has some, and ``f.cjs`` repeats ``f.js``.
    """
    there = set(files)
    cpp = any(path.endswith(SUFFIXES["cpp"][:-1]) for path in files)
    typed = any(path.endswith((".ts", ".tsx")) and not path.endswith(".d.ts") for path in files)
    chosen: dict[str, list[str]] = {}
    for language in languages:
        endings = tuple(x for x in SUFFIXES[language] if x != ".h" or cpp == (language == "cpp"))
        found = [path for path in files if path.endswith(endings) and not _skipped(path)]
        if language == "javascript":
            stems = {path: path.rpartition(".")[0] for path in found}
            found = [x for x in found if not (typed and f"{stems[x]}.d.ts" in there)]
            found = [x for x in found if x.endswith(".js") or f"{stems[x]}.js" not in there]
        if found:
            chosen[language] = found
    return chosen


def _skipped(path: str) -> bool:
    *folders, name = path.split("/")
    return any(_SKIPPED_FOLDER.fullmatch(x) for x in folders) or bool(_SKIPPED_FILE.fullmatch(name.rpartition(".")[0]))


def _wanted(name: str, languages: Sequence[str]) -> bool:
    file = name.rpartition("/")[2]
    return bool(_ABOUT.fullmatch(file)) or file.endswith(tuple(x for lang in languages for x in SUFFIXES[lang]))


def _unpack(path: Path, work: Path, languages: Sequence[str]) -> None:
    """Unpacks code and licenses; members that leave the folder, links and large files are left out."""
    work.mkdir(parents=True)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for item in archive.infolist():
                    if not item.is_dir() and item.file_size <= MAX_FILE and _wanted(item.filename, languages):
                        archive.extract(item, work)
            return
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile() and member.size <= MAX_FILE and _wanted(member.name, languages):
                    try:
                        archive.extract(member, work, filter="data")
                    except tarfile.FilterError:
                        continue
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        EOFError,
        OSError,
        RuntimeError,
        NotImplementedError,
        ValueError,
    ) as error:
        raise UserError(f"{path}: cannot be unpacked ({error}); expected one of {', '.join(ARCHIVES)}") from error
    except Exception as error:  # lzma and zlib have error classes of their own
        raise UserError(f"{path}: the packed data are broken ({error})") from error


def _descended(root: Path) -> Path:
    """The one folder that an archive puts everything in, where it has one."""
    entries = list(root.iterdir())
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else root


def _name_of_file(name: str) -> tuple[str, str]:
    stem = next((name[: -len(x)] for x in ARCHIVES if name.lower().endswith(x)), name)
    found = re.match(r"(.+?)[-_]v?(\d[\w.+~]*)", stem)
    return (found[1], found[2]) if found else (stem, "")
