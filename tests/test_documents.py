"""README and RESULTS name what exists."""

from __future__ import annotations

import re

import pytest


@pytest.mark.parametrize("name", ["README.md", "RESULTS.md", "CHANGELOG.md"])
def test_documents_are_finished(root, name):
    text = (root / name).read_text(encoding="utf-8")
    assert "@@" not in text and len(text) > 500


def test_the_readme_names_flags_and_presets_that_exist(root):
    import train

    text = (root / "README.md").read_text(encoding="utf-8")
    parser = train.make_parser()
    flags = {flag for action in parser._actions for flag in action.option_strings}
    for line in re.findall(r"^python train\.py.*$", text, re.MULTILINE):
        used = set(re.findall(r"--[a-z-]+", line))
        assert used <= flags, line
        for preset in re.findall(r"--preset (\S+)", line):
            assert (root / "moe" / "training" / "presets" / f"{preset}.toml").is_file()
