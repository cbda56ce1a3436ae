"""Mining: which text and code come out of each language, licenses, archives, and runs that stop."""

from __future__ import annotations

import gzip
import importlib
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from moe.data.__main__ import main
from moe.data.grammars import parses
from moe.data.mining import mine as mining
from moe.data.mining.doctext import summary
from moe.data.mining.functions import find_functions
from moe.data.mining.quality import text_flaw
from moe.data.pairs import read_pairs
from moe.errors import UserError
from tests.pair_files import MIT

# Per language: the name of a file, its source, and the text and code of its one pair.
SAMPLES = {
    "python": (
        "a.py",
        '''
class A:
    @deprecated_alias(x="y")
    @staticmethod
    def total(values, limit=None):
        """Sums the values of a list, see :meth:`~a.A.f`, up to ``limit``.

        :param values: numbers
        """
        result = 0
        for value in values:
            if limit is not None and result + value > limit:
                break
            result += value
        return result
''',
        "Sums the values of a list, see f, up to limit.",
        "@staticmethod\ndef total(values, limit=None):\n    result = 0\n",
    ),
    "java": (
        "A.java",
        """
class A {
    /**
     * Counts the {@code words} of a {@link java.lang.String line} &amp; its <em>gaps</em>.
     * <p>More.
     * @param line x
     */
    @Nullable @Override
    public int countWords(String line) {
        int words = 0;
        for (String word : line.split(" ")) {
            if (!word.isEmpty()) words++;
        }
        return words;
    }
}
""",
        "Counts the words of a line & its gaps.",
        "@Override\npublic int countWords(String line) {\n    int words = 0;\n",
    ),
    "javascript": (
        "a.js",
        """
(function () {
  /**
   * @method clampValue
   * @param {number} low
   * @description Limits a value to the range from low to high.
   */
  exports.clampValue = function (value, low, high) {
    if (value < low) { return low; }
    return value > high ? high : value;
  };
})();
""",
        "Limits a value to the range from low to high.",
        "function clampValue(value, low, high) {\n  if (value < low) { return low; }\n",
    ),
    "typescript": (
        "a.tsx",
        """
/** Counts the [keys](http://x.y) of a list, each for itself. */
export const countKeys = (keys: string[]): Map<string, number> => {
  const counts = new Map<string, number>()
  for (const key of keys) counts.set(key, (counts.get(key) ?? 0) + 1)
  return counts
}
export const View = () => <b>text</b>
""",
        "Counts the keys of a list, each for itself.",
        "const countKeys = (keys: string[]): Map<string, number> => {\n  const counts",
    ),
    "cpp": (
        "a.hpp",
        """
#define LIB_EXPORT
class LIB_EXPORT A {
  /// \\brief Finds the largest of the \\a values in the list.
  ///
  /// \\param values x
  template <typename T>
  LIB_EXPORT static T largest(const std::vector<T>& values) {
    T found = values[0];
    for (const T& value : values)
      if (value > found) found = value;
    return found;
  }
};
""",
        "Finds the largest of the values in the list.",
        "template <typename T>\nstatic T largest(const std::vector<T>& values) {\n  T found",
    ),
    "go": (
        "a.go",
        """package a

// Largest returns the largest of the values, or zero
// where there are none.
func Largest(values []int) int {
	found := 0
	for _, value := range values {
		if value > found { found = value }
	}
	return found
}
""",
        "Returns the largest of the values, or zero where there are none.",
        "func Largest(values []int) int {\n    found := 0\n",
    ),
    "rust": (
        "a.rs",
        """
/// Sums all values of a slice that are even, as [`i64`].
///
/// # Examples
#[inline]
pub fn sum_even(values: &[i64]) -> i64 {
    let mut sum = 0;
    for value in values {
        if value % 2 == 0 { sum += value; }
    }
    sum
}

/// Sums all values of a slice that are even, as a test.
#[test]
fn sum_even_again() { let values = [1, 2, 3]; assert!(sum_even(&values) == 2 && values.len() == 3); }
""",
        "Sums all values of a slice that are even, as i64.",
        "pub fn sum_even(values: &[i64]) -> i64 {\n    let mut sum = 0;\n",
    ),
    "c": (
        "a.c",
        """
int other; /* Counts the spaces of a text in other ways. */
/*
 * Counts the spaces of a text that ends in zero.
 */
static int count_spaces(const char *text)
{
    int count = 0;
    for (; *text; text++)
        if (*text == ' ') count++;
    return count;
}
""",
        "Counts the spaces of a text that ends in zero.",
        "static int count_spaces(const char *text)\n{\n    int count = 0;\n",
    ),
}


def tree(folder: Path, **files: str) -> Path:
    """A folder with the samples that are named, and other files."""
    for name, content in files.items():
        path, content = (SAMPLES[name][0], SAMPLES[name][1]) if name in SAMPLES else (name, content)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)
    return folder


def mined(*arguments: object) -> list[dict]:
    """The rows of a run of the command."""
    output = str(arguments[arguments.index("--output") + 1])
    assert main(["mine", *map(str, arguments)]) == 0
    files = sorted(Path(output, "train").iterdir())
    pairs = [pair for path in files for pair in read_pairs(path)]
    assert pairs  # they are what the other commands read
    return [json.loads(line) for path in files for line in gzip.open(path, "rt")]


@pytest.mark.parametrize("language", SAMPLES)
def test_pairs_of_each_language(tmp_path, language):
    name, _, text, code = SAMPLES[language]
    source = tree(tmp_path / "package-1.2", **{language: "", "LICENSE": MIT})
    (row,) = mined(source, "--output", tmp_path / "out", "--languages", language, "--jobs", 1)
    assert row["text"] == text
    assert row["reference"].startswith(code)
    assert parses(row["reference"], language)
    where = (row["package"], row["path"], row["license"], row["language"])
    assert where == ("package-1.2", name, "MIT", language)
    assert row["id"].endswith(f"{name}:{row['line']}")


def test_cpp_is_joined_from_header_and_source(tmp_path):
    header = """
namespace n {
class Queue {
 public:
  // Removes up to count items from the queue, and returns how many.
  int Drop(int count, const std::string& why = "none");
  // Removes all items from the queue that are of that kind.
  int Drop(Kind kind, bool quietly);
};
}
"""
    body = "{\n  int removed = 0;\n  while (removed < %s && !items_.empty()) { items_.pop(); removed++; }\n"
    body += "  return removed;\n}\n"
    source = "namespace n {\nint Queue::Drop(int n, const string& reason) " + body % "n" + "}\n"
    source += "int n::Queue::Drop(Kind kind, bool quietly) " + body % "Count(kind, quietly)"
    source += "int Other::Drop(int count, const std::string& why) " + body % "count + 1"
    files = {"queue.h": header, "queue.cc": source, "LICENSE": MIT}
    rows = mined(tree(tmp_path / "p", **files), "--output", tmp_path / "out", "--jobs", 1)
    assert {row["text"][:30]: row["reference"].split("(")[0] for row in rows} == {
        "Removes up to count items from": "int Queue::Drop",
        "Removes all items from the que": "int n::Queue::Drop",
    }


def test_two_comments_of_one_declaration_are_none():
    sources = [f"// Removes the {x} of all the items in it.\nvoid drop(int n);" for x in ("first", "last")]
    first, second = (find_functions(source.encode(), "c").declared for source in sources)
    assert first.keys() == second.keys() == {"drop(int)"}
    assert first != second


@pytest.mark.parametrize(
    ("language", "comment", "text"),
    [
        ("python", "f(a, b) -> c\n\nReturns `x` of :class:`list`.\n\nMore.", "Returns x of list."),
        ("python", "Joins |a| to a `page <http://x.y>`_ [1]_.\n\nArgs:\n  a: b", "Joins a to a page."),
        ("java", "/** {@code a{b}} of {@link #run(int, T)} and {@link Map#of map}. */", "A{b} of run and map."),
        ("java", "/**\n * <p>Reads it.</p>\n * <pre>x</pre>\n */", "Reads it."),
        ("java", "/** Adds &lt;a&gt; to {@link List}. For example:\n * <pre>{@code x}</pre> */", "Adds <a> to List."),
        ("cpp", '/*! \\brief Gets \\c x, \\ref A::b "the b".\n * \\return y */', "Gets x, the b."),
        ("cpp", "// -----------\n// Reads  it\n// fast.\n//\n// More.", "Reads it fast."),
        ("c", "/**\n * run - starts it\n * @a: b\n */", "Starts it"),
        ("javascript", "/**\n * @param {a} b\n * @return c\n */", ""),
        ("javascript", "/** Draws `it`, e.g. Here **now**. Then\n * @private */", "Draws it, e.g. Here now."),
        ("go", "// Run starts it.\n//\n// More.", "Starts it."),
        ("go", "// Run is started.", "Run is started."),
        ("go", "// run starts it.", "Starts it."),
        ("go", "// Run this at the end.", "Run this at the end."),
        ("go", "// Run a program.", "Run a program."),
        ("rust", "/// Starts [`it`](x) and [that].\n///\n/// # Panics\n/// No.", "Starts it and that."),
        ("rust", "/// ```\n/// x\n/// ```", ""),
    ],
)
def test_comments_become_text(language, comment, text):
    assert summary(comment, language, "Run" if language == "go" else "run") == text


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("Returns the sum of all values.", True),
        ("Returns it.", False),
        ("TODO return the sum of all values.", False),
        ("See the sum of all values.", False),
        ("Returns the values {@code x of it", False),
        ("Returns the sum of all values, and", False),
        ("Gibt die Summe der Werte und das Ende aus", False),
        ("Returns a list that holds the", False),
        ("Is this the sum of all values?", False),
    ],
)
def test_texts_that_say_something(text, good):
    assert (text_flaw(text) is None) == good


def test_what_is_dropped_is_counted(tmp_path, capsys):
    other = SAMPLES["python"][1].replace("total", "total_of_all")
    files = {
        "again.py": SAMPLES["python"][1],
        "test_a.py": other,
        "vendor/b.py": other,
        "long.py": "x = [" + "1, " * 400 + "]\n",
        "made.py": "# Generated by a program. DO NOT EDIT.\n" + other,
        "free.py": "# SPDX-License-Identifier: GPL-3.0-or-later\n" + other,
        "bad.py": "",
    }
    source = tree(tmp_path / "p", python="", LICENSE=MIT, **files)
    (source / "bad.py").write_bytes(b"# \xff\n")
    os.symlink(source, source / "loop")
    os.symlink(source / "a.py", source / "link.py")
    assert len(mined(source, "--output", tmp_path / "out")) == 1
    out = capsys.readouterr().out
    for line in ("1 pairs of 2 functions", "1 that repeat another", "1 in generated files (files)"):
        assert line in out
    for line in ("1 under GPL-3.0-or-later (files)", "1 in minified files (files)", "1 in files that are not UTF-8"):
        assert line in out


def test_processes_and_archives_give_the_same_pairs(tmp_path):
    names = [language for language in SAMPLES if language != "c"]
    source = tree(tmp_path / "p-1.0", **dict.fromkeys(names, ""), LICENSE=MIT)
    with tarfile.open(tmp_path / "p-1.0.tar.gz", "w:gz") as archive:
        archive.add(source, "p-1.0")
        link, bad = tarfile.TarInfo("p-1.0/link.py"), tarfile.TarInfo("../outside.py")
        link.type, link.linkname, bad.size = tarfile.SYMTYPE, "/etc/passwd", 3
        archive.addfile(link)
        archive.addfile(bad, io.BytesIO(b"x=1"))
    with zipfile.ZipFile(tmp_path / "p-1.0.zip", "w") as archive:
        for path in source.iterdir():
            archive.write(path, path.name)
        archive.writestr("../outside.py", "x = 1")
    found = []
    for number, (name, jobs) in enumerate((("p-1.0", 1), ("p-1.0", 2), ("p-1.0.tar.gz", 2), ("p-1.0.zip", 1))):
        rows = mined(tmp_path / name, "--output", tmp_path / f"out{number}", "--jobs", jobs)
        found.append(sorted((row["text"], row["reference"], row["license"], row["path"]) for row in rows))
        assert len(rows) == len(names)
    assert all(rows == found[0] for rows in found)
    assert not list(tmp_path.rglob("outside.py"))
    assert not list(tmp_path.glob(".*"))


def test_installed_packages_and_the_standard_library_are_known(tmp_path):
    rows = mined("iniconfig", "--output", tmp_path / "out", "--jobs", 1)
    assert {(row["package"], row["license"]) for row in rows} == {("iniconfig", "MIT")}


def test_a_stopped_run_goes_on(tmp_path, monkeypatch):
    sources = [tree(tmp_path / name, python="", LICENSE=MIT) for name in ("a", "b")]
    (sources[1] / "a.py").write_text(SAMPLES["python"][1].replace("result", "found"))
    command = ["mine", *map(str, sources), "--output", str(tmp_path / "out"), "--jobs", "1"]
    read, opened = [], mining_module().trees.opened
    monkeypatch.setattr(mining_module().trees, "opened", lambda s, *x: (read.append(Path(s).name), opened(s, *x))[1])
    rest = mining_module()._merge
    monkeypatch.setattr(mining_module(), "_merge", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(SystemExit):
        main(command)
    assert not (tmp_path / "out").exists()
    (sources[1] / "new.py").write_text("")  # the folder is another one now
    monkeypatch.setattr(mining_module(), "_merge", rest)
    assert main(command) == 0
    assert read == ["a", "b", "b"]
    assert len(read_pairs(tmp_path / "out" / "train" / "python.jsonl.gz")) == 2
    assert not list(tmp_path.glob(".*"))


def mining_module():
    return importlib.import_module("moe.data.mining.mine")


def test_mistakes(tmp_path, capsys):
    source = tree(tmp_path / "p", python="", LICENSE=MIT)
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 no")
    (tmp_path / "cut.tar.gz").write_bytes(b"\x1f\x8b\x08 no")
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    cases = {
        (str(source), "--output", str(source)): "exists; give the name of a new directory",
        ("nothing-there", "--output", "x"): "nothing-there: no such file or folder, nor an installed Python package",
        ("pytset", "--output", "x"): "did you mean 'pytest'?",
        (str(tmp_path / "broken.zip"), "--output", str(tmp_path / "x")): "broken.zip: cannot be unpacked",
        (str(tmp_path / "cut.tar.gz"), "--output", str(tmp_path / "x")): "cut.tar.gz: cannot be unpacked",
        (str(tmp_path / "a.txt"), "--output", "x"): "a.txt: is no archive that is known",
        (str(tmp_path / "empty"), "--output", str(tmp_path / "x")): "no pair was found",
        (str(source), "--output", "x", "--languages", "pyton"): "cannot mine 'pyton' (did you mean 'python'?)",
        (str(source), "--output", str(tmp_path / "y"), "--allow-licenses", "ISC"): "no pair was found",
    }
    for arguments, message in cases.items():
        with pytest.raises(SystemExit) as stopped:
            main(["mine", *arguments, "--jobs", "1"])
        assert stopped.value.code == 2
        error = capsys.readouterr().err.splitlines()
        assert message in error[-1] and len([x for x in error if x.startswith("error")]) == 1


def test_an_existing_output_is_kept(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists"):
        mining(["stdlib"], tmp_path / "out", None, None)
