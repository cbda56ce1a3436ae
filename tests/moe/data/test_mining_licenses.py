"""Licenses of mined code: names, texts, notices, and which of them holds for a file."""

from __future__ import annotations

import pytest

from moe.data.mining.licenses import PERMISSIVE, Licenses, of_header, of_text, permits, spdx
from tests.pair_files import MIT


@pytest.mark.parametrize(
    ("written", "expression", "permitted"),
    [
        ("MIT/Apache-2.0", "MIT OR Apache-2.0", True),
        ("Apache License, Version 2.0", "Apache-2.0", True),
        ("(MIT AND Zlib) OR GPL-3.0-only", "(MIT AND Zlib) OR GPL-3.0-only", True),
        ("MIT and GPL-2", "MIT AND GPL-2", False),
        ("Apache-2.0 WITH LLVM-exception", "Apache-2.0 WITH LLVM-exception", True),
        ("License :: OSI Approved :: ISC License (ISCL)", "ISC", True),
        ("Mozilla Public License 2.0 (MPL 2.0)", "MPL-2.0", False),
        ("Commercial license", "Commercial-license", False),
        ("(MIT", "(MIT", False),
        ("", "", False),
    ],
)
def test_license_names(written, expression, permitted):
    assert spdx(written) == expression
    assert permits(expression, PERMISSIVE) == permitted
    assert permits(expression, ("any",))


def test_license_texts():
    gpl = (
        "GNU GENERAL PUBLIC LICENSE\n  Version 3, 29 June 2007\n ... use the GNU Lesser General Public License instead"
    )
    two = "Redistribution and use in source and binary forms ...\nRedistributions in binary form must reproduce"
    assert of_text(MIT) == "MIT"
    assert of_text(gpl) == "GPL-3.0-only"
    assert of_text(two) == "BSD-2-Clause"
    assert of_text(f"{two}\nNeither the name of it") == "BSD-3-Clause"
    assert of_text(f"{MIT}\n{gpl}") == "GPL-3.0-only AND MIT"
    assert of_header("// SPDX-License-Identifier: MIT OR GPL-2.0 */\n") == "MIT OR GPL-2.0"
    assert of_header("# under the terms of the GNU General\n# Public License") == "GPL-2.0-or-later"
    assert of_header("import os") is None


def test_the_nearest_license_holds(tmp_path):
    debian = "Format: x\n\nFiles: *\nLicense: Expat\n\nFiles: src/a/*.c other/*\nLicense: GPL-2+\n text\n"
    files = {"LICENSE": MIT, "sub/COPYING": "GNU GENERAL PUBLIC LICENSE\nVersion 2", "LICENSE.py": "x = 1"}
    for name, content in {**files, "debian/copyright": debian}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    found = Licenses(tmp_path, sorted(files), "Apache-2.0")
    assert found.of("a.py", "") == "Apache-2.0 AND MIT"
    assert found.of("sub/deep/a.py", "") == "GPL-2.0-only"
    assert found.of("sub/a.py", "# SPDX-License-Identifier: ISC") == "ISC"
    found = Licenses(tmp_path, ["debian/copyright"], None)
    assert (found.of("src/a/b.c", ""), found.of("src/b.c", "")) == ("GPL-2+", "MIT")
