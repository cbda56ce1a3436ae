"""The license of each file: its own header, Debian's list, the nearest LICENSE file, the package's metadata."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from email.parser import Parser
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path, PurePosixPath

# Licenses that ask for no more than their text and the authors' names to be kept.
PERMISSIVE = (
    "0BSD", "Apache-2.0", "BlueOak-1.0.0", "BSD-1-Clause", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0",
    "curl", "HPND", "ICU", "ISC", "LicenseRef-BSD", "LicenseRef-public-domain", "MIT", "MIT-0", "NCSA", "PostgreSQL",
    "PSF-2.0", "Python-2.0", "Unicode-3.0", "Unlicense", "X11", "Zlib",
)  # fmt: skip
ANY = "any"  # in place of names: all licenses, and files without one
HEAD = 4000  # characters of a file in which its license stands
LICENSE_FILES = r"(?:licen[sc]e|copying|copyright|unlicense|notice)(?:[-_.].*)?|.*[-_.]licen[sc]e"
_FILES = re.compile(LICENSE_FILES, re.IGNORECASE)
_CODE = (".py", ".js", ".java", ".go", ".rs", ".cpp", ".c", ".h", ".ts", ".html", ".json")  # are about licenses
_SPDX = re.compile(r"SPDX-License-Identifier:\s*(.+)")
# A license's text holds its title with the version; notices in files, and texts that speak of others, only name it.
_TITLES = (
    (r"gnu affero general public license\W{1,4}version (\d)", "AGPL-{}.0-only"),
    (r"gnu lesser general public license\W{1,4}version ([\d.]+\d)", "LGPL-{}-only"),
    (r"gnu library general public license\W{1,4}version (\d)", "LGPL-{}.0-only"),
    (r"gnu general public license\W{1,4}version (\d)", "GPL-{}.0-only"),
    (r"mozilla public license,?\W{0,3}version ([\d.]+\d)", "MPL-{}"),
    (r"eclipse public license\W{1,5}v(?:ersion)?\W{0,2}([\d.]+\d)", "EPL-{}"),
    (r"common development and distribution license", "CDDL-1.0"),
    (r"creative commons attribution-(?:noncommercial|sharealike|noderiv)", "LicenseRef-CC-restricted"),
    (r"server side public license", "SSPL-1.0"),
    (r"business source license", "BUSL-1.1"),
)
_NOTICES = (
    (r"gnu affero|\bagpl", "AGPL-3.0-only"),
    (r"gnu (?:lesser|library)|\blgpl", "LGPL-2.1-or-later"),
    (r"gnu general public|\bgpl(?:v?\d|\b)|gnu public license", "GPL-2.0-or-later"),
    (r"mozilla public license|\bmpl\b", "MPL-2.0"),
    (r"eclipse public license|\bepl\b", "EPL-1.0"),
    (r"common development and distribution|\bcddl\b", "CDDL-1.0"),
    (r"common public license", "CPL-1.0"),
    (
        r"all rights reserved\W+(?:this (?:software|file|code) is )?(?:confidential|proprietary)",
        "LicenseRef-proprietary",
    ),
)
_GRANT = r"permission to use, copy, modify,? (?:and/or|and) distribute this software"
_TEXTS = (
    (r"apache license,?\W{0,3}version 2|apache\.org/licenses/license-2\.0", "Apache-2.0"),
    (r"boost software license", "BSL-1.0"),
    (r"to any person obtaining a copy.{1,1500}?(?:shall|must) be included", "MIT"),
    (
        r"(?:licensed|released|available|distributed) under the (?:terms of the )?mit license|^\W*(?:the )?mit license",
        "MIT",
    ),
    (rf"{_GRANT} for any\W+purpose.{{1,20}}fee.{{1,200}}?provided that", "ISC"),
    (rf"{_GRANT} for any\W+purpose with or without fee is hereby granted\.", "0BSD"),
    (rf"{_GRANT} and its\W+documentation", "HPND"),
    (r"in binary form must reproduce.{1,1500}?(?:neither the name|names? of .{1,80}? may not be used)", "BSD-3-Clause"),
    (r"redistributions? in binary form must reproduce", "BSD-2-Clause"),
    (r"origin of this software must not be misrepresented", "Zlib"),
    (r"python software foundation license|psf license agreement", "PSF-2.0"),
    (r"this is free and unencumbered software released into the public domain", "Unlicense"),
    (r"cc0 1\.0 universal|creativecommons\.org/publicdomain/zero", "CC0-1.0"),
    (r"blue oak model license", "BlueOak-1.0.0"),
)
_INCLUDED = {"BSD-2-Clause": "BSD-3-Clause", "0BSD": "ISC"}  # whose phrases are in the other's text, too
# Names in metadata that are no SPDX names, in lower case, without "the", "license" and commas.
_NAMES = {
    "apache": "Apache-2.0", "apache 2": "Apache-2.0", "apache 2.0": "Apache-2.0", "apache-2": "Apache-2.0",
    "asl 2.0": "Apache-2.0", "apache version 2.0": "Apache-2.0", "apache software": "Apache-2.0",
    "apache software 2.0": "Apache-2.0", "apache software version 2.0": "Apache-2.0", "mozilla public 2.0": "MPL-2.0",
    "bsd": "LicenseRef-BSD", "bsd-like": "LicenseRef-BSD", "bsd 2-clause": "BSD-2-Clause", "expat": "MIT",
    "2-clause bsd": "BSD-2-Clause", "bsd 3-clause": "BSD-3-Clause", "3-clause bsd": "BSD-3-Clause",
    "new bsd": "BSD-3-Clause", "modified bsd": "BSD-3-Clause", "mit/x11": "MIT", "psf": "PSF-2.0", "psfl": "PSF-2.0",
    "python software foundation": "PSF-2.0", "public-domain": "LicenseRef-public-domain",
    "public domain": "LicenseRef-public-domain", "boost": "BSL-1.0", "zlib/libpng": "Zlib",
}  # fmt: skip
_KNOWN = {name.lower(): name for name in PERMISSIVE}


class Licenses:
    """The licenses of a package's files.

    Args:
        declared: what the package's metadata say, as they say it.
        files: all paths in the package, with forward slashes.
    """

    def __init__(self, root: Path, files: Sequence[str], declared: str | None):
        self.declared = None if declared is None else spdx(declared)
        self.folders: dict[str, str] = {}
        self.stanzas: list[tuple[str, str]] = []
        for path in files:
            folder, name = str(PurePosixPath(path).parent), PurePosixPath(path).name
            if not _FILES.fullmatch(name) or name.lower().endswith(_CODE):
                continue
            text = (root / path).read_bytes()[: 1 << 18].decode("utf-8", "replace")
            if name == "copyright" and re.search(r"^Files:", text, re.MULTILINE):
                self.stanzas += _debian_stanzas(text)
            elif found := of_text(text):
                folder = (
                    "." if folder.endswith((".dist-info", ".dist-info/licenses", "LICENSES", "licenses")) else folder
                )
                both = {self.folders[folder], found} if folder in self.folders else {found}
                self.folders[folder] = " AND ".join(sorted({part for x in both for part in x.split(" AND ")}))

    def of(self, path: str, head: str) -> str | None:
        """The license of a file as an SPDX expression; None where nothing says any.

        Args:
            head: the first :data:`HEAD` characters of the file.
        """
        return of_header(head) or self._of_place(path)

    @cache  # noqa: B019 (a Licenses lives as long as its package is mined)
    def _of_place(self, path: str) -> str | None:
        fitting = [name for pattern, name in self.stanzas if fnmatchcase(path, pattern)]
        if fitting:
            return fitting[-1]
        for folder in PurePosixPath(path).parents:
            found = self.folders.get(str(folder))
            if found is None:
                continue
            if str(folder) != "." or self.declared is None:
                return found
            if self.declared == "LicenseRef-BSD" and found.startswith("BSD-"):
                return found  # the text says which
            return self.declared if _named_in(self.declared, found) else _both(self.declared, found)
        return self.declared


def _named_in(declared: str, found: str) -> bool:
    """Whether the license files' texts are those that the metadata name."""
    names = {name.removesuffix("-only").removesuffix("-or-later") for name in re.findall(r"[\w.+-]+", declared)}
    return all(part.removesuffix("-only") in names for part in found.split(" AND "))


def _both(declared: str, found: str) -> str:
    if " OR " in declared:
        return f"({declared}) AND {found}"
    return " AND ".join(sorted({*declared.split(" AND "), *found.split(" AND ")}))


def of_header(head: str) -> str | None:
    """The license that a source file names itself."""
    if tag := _SPDX.search(head):
        return spdx(re.sub(r"\s*(?:\*/|-->|\"\"\"|#}).*", "", tag[1]).strip())
    text = _normalized(head)
    found = [name for phrase, name in _NOTICES if re.search(phrase, text)] + _texts(text)
    return " AND ".join(sorted(set(found))) or None


def of_text(text: str) -> str | None:
    """The licenses in a LICENSE file, joined with AND: who takes the package keeps to all of them."""
    if tag := _SPDX.search(text[:HEAD]):
        return spdx(tag[1].strip())
    normal = _normalized(text)
    found = []
    for title, name in _TITLES:
        if match := re.search(title, normal):
            found.append(name.format(*match.groups()))
    return " AND ".join(sorted({*found, *_texts(normal)})) or None


def _texts(text: str) -> list[str]:
    found = [name for phrase, name in _TEXTS if re.search(phrase, text)]
    return [name for name in found if _INCLUDED.get(name) not in found]


def _normalized(text: str) -> str:
    return " ".join(re.sub(r"(?m)^\W*(?:\*|//|#|;|--)+ ?", "", text).lower().split())


def _debian_stanzas(text: str) -> list[tuple[str, str]]:
    """Patterns and licenses of a machine-readable debian/copyright (DEP-5)."""
    found = []
    for block in re.split(r"\n\s*\n", text):
        fields = Parser().parsestr(block)
        name = (fields["License"] or "").strip().split("\n")[0]
        if fields["Files"] and name:
            found += [(pattern, spdx(name)) for pattern in fields["Files"].split()]
    return found


def spdx(text: str) -> str:
    """A license as metadata write it, as an SPDX expression; names that are not known stay."""
    text = " ".join(text.split())
    if _known(text) is None:
        text = re.sub(r"(?<=\w)\s*/\s*(?=[A-Z])", " OR ", text) if "://" not in text else text  # Cargo's old form
        text = re.sub(r",? (and|or|with) ", lambda x: f" {x[1].upper()} ", text)
    parts = re.split(r"([()]| AND | OR | WITH )", text) if _known(text) is None else [text]
    return "".join(x if x in ("(", ")", " AND ", " OR ", " WITH ", "") else _id(x) for x in parts)


def _id(text: str) -> str:
    return _known(text) or re.sub(r"\s+", "-", text.strip())


def _known(text: str) -> str | None:
    plain = text.strip().lower().removeprefix("license :: osi approved :: ")
    words = re.sub(r"\bthe\b|\blicen[sc]e\b|\([\w .]+\)|,", " ", plain).split()
    return _KNOWN.get(plain) or _NAMES.get(plain) or _NAMES.get(" ".join(words)) or _KNOWN.get(" ".join(words))


def permits(expression: str | None, allowed: Collection[str]) -> bool:
    """Whether an SPDX expression can be fulfilled by allowed licenses; exceptions (``WITH``) only permit more."""
    if ANY in allowed:
        return True
    if expression is None:
        return False
    names = {name.lower() for name in allowed}
    tokens = re.findall(r"[()]|[^\s()]+", re.sub(r"\s+WITH\s+[^\s()]+", "", expression))
    return _any(tokens, names) and not tokens


def _any(tokens: list[str], names: Collection[str]) -> bool:
    value = _all(tokens, names)
    while tokens and tokens[0] == "OR":
        tokens.pop(0)
        value = _all(tokens, names) or value
    return value


def _all(tokens: list[str], names: Collection[str]) -> bool:
    value = _one(tokens, names)
    while tokens and tokens[0] == "AND":
        tokens.pop(0)
        value = _one(tokens, names) and value
    return value


def _one(tokens: list[str], names: Collection[str]) -> bool:
    token = tokens.pop(0) if tokens else ""
    if token != "(":
        return token.lower() in names
    value = _any(tokens, names)
    return bool(tokens) and tokens.pop(0) == ")" and value
