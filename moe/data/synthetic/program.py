"""Complete programs that call solutions on test cases and print PASS or FAIL for each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from moe.data.synthetic.family import uses_float
from moe.data.synthetic.types import cpp_type, literal

_PYTHON_HARNESS = """
def _same(actual, expected, tolerant):
    if isinstance(expected, dict):
        return (isinstance(actual, dict) and actual.keys() == expected.keys()
                and all(_same(actual[key], expected[key], tolerant) for key in expected))
    if isinstance(expected, list):
        return (isinstance(actual, (list, tuple)) and len(actual) == len(expected)
                and all(_same(a, e, tolerant) for a, e in zip(actual, expected)))
    if isinstance(expected, bool) or isinstance(expected, str):
        return type(actual) is type(expected) and actual == expected
    if isinstance(actual, bool) or not isinstance(actual, (int, float)):
        return False
    return abs(actual - expected) <= 1e-6 * max(1, abs(expected)) if tolerant else actual == expected


def _check(label, call, expected, tolerant):
    try:
        actual = call()
        passed, shown = _same(actual, expected, tolerant), f"got {actual!r}"
    except Exception as error:
        passed, shown = False, f"raised {type(error).__name__}: {error}"
    shown = "" if passed else " " + " ".join(shown[:200].split())
    print(f"__MARKER__ {'PASS' if passed else 'FAIL'} {label}{shown}", flush=True)
"""

_JAVA_HARNESS = """
class Harness {
    interface Call { Object get() throws Throwable; }

    @SuppressWarnings("unchecked")
    static <K, V> Map<K, V> mapOf(Object... entries) {
        Map<K, V> map = new LinkedHashMap<>();
        for (int i = 0; i < entries.length; i += 2) map.put((K) entries[i], (V) entries[i + 1]);
        return map;
    }

    static Object plain(Object value) {
        if (value == null || !value.getClass().isArray()) return value;
        List<Object> list = new ArrayList<>();
        int length = java.lang.reflect.Array.getLength(value);
        for (int i = 0; i < length; i++) list.add(java.lang.reflect.Array.get(value, i));
        return list;
    }

    static boolean same(Object a, Object e, boolean tolerant) {
        a = plain(a);
        e = plain(e);
        if (e instanceof Map<?, ?> expected) {
            if (!(a instanceof Map<?, ?> actual) || !actual.keySet().equals(expected.keySet())) return false;
            for (Object key : expected.keySet()) if (!same(actual.get(key), expected.get(key), tolerant)) return false;
            return true;
        }
        if (e instanceof List<?> expected) {
            if (!(a instanceof List<?> actual) || actual.size() != expected.size()) return false;
            for (int i = 0; i < expected.size(); i++) if (!same(actual.get(i), expected.get(i), tolerant)) return false;
            return true;
        }
        if (e instanceof Number expected && a instanceof Number actual) {
            double difference = Math.abs(actual.doubleValue() - expected.doubleValue());
            return difference <= (tolerant ? 1e-6 * Math.max(1, Math.abs(expected.doubleValue())) : 0);
        }
        return a == null ? e == null : a.getClass() == Character.class ? a.toString().equals(e) : a.equals(e);
    }

    static void check(String label, Call call, Object expected, boolean tolerant) {
        boolean passed = false;
        String shown;
        try {
            Object actual = call.get();
            passed = same(actual, expected, tolerant);
            shown = "got " + plain(actual);
        } catch (Throwable error) {
            shown = "raised " + error;
        }
        shown = shown.replace('\\n', ' ');
        System.out.println("__MARKER__ " + (passed ? "PASS " + label
            : "FAIL " + label + " " + shown.substring(0, Math.min(200, shown.length()))));
        System.out.flush();
    }
}
"""

_JAVASCRIPT_HARNESS = """
function _same(actual, expected, tolerant) {
  if (expected instanceof Map) {
    if (actual !== null && typeof actual === "object" && !(actual instanceof Map) && !Array.isArray(actual)) {
      const numeric = typeof [...expected.keys()][0] === "number";
      actual = new Map(Object.entries(actual).map(([key, value]) => [numeric ? +key : key, value]));
    }
    return actual instanceof Map && actual.size === expected.size
      && [...expected].every(([key, value]) => actual.has(key) && _same(actual.get(key), value, tolerant));
  }
  if (Array.isArray(expected)) {
    return Array.isArray(actual) && actual.length === expected.length
      && expected.every((value, i) => _same(actual[i], value, tolerant));
  }
  if (typeof expected === "number" && typeof actual === "number") {
    return Math.abs(actual - expected) <= (tolerant ? 1e-6 * Math.max(1, Math.abs(expected)) : 0);
  }
  return actual === expected;
}

function _check(label, call, expected, tolerant) {
  let passed = false;
  let shown;
  try {
    const actual = call();
    passed = _same(actual, expected, tolerant);
    shown = `got ${JSON.stringify(actual instanceof Map ? [...actual] : actual)}`;
  } catch (error) {
    shown = `raised ${error}`.replaceAll("\\n", " ");
  }
  console.log(`__MARKER__ ${passed ? "PASS" : "FAIL"} ${label}` + (passed ? "" : ` ${shown.slice(0, 200)}`));
}
"""

_CPP_HARNESS = """
#include <algorithm>
#include <array>
#include <cctype>
#include <climits>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <numeric>
#include <optional>
#include <queue>
#include <set>
#include <sstream>
#include <stack>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

namespace harness {
template <typename A, typename E>
bool same(const A& actual, const E& expected) {
    if constexpr (std::is_arithmetic_v<A> && std::is_floating_point_v<E>) {
        return std::fabs(actual - expected) <= 1e-6 * std::max(1.0, std::fabs(expected));
    } else if constexpr (std::is_arithmetic_v<A> && std::is_arithmetic_v<E>) {
        return static_cast<long double>(actual) == static_cast<long double>(expected);
    } else if constexpr (std::is_same_v<A, char>) {
        return expected == std::string(1, actual);
    } else {
        return actual == expected;
    }
}

template <typename A, typename E>
bool same(const std::vector<A>& actual, const std::vector<E>& expected) {
    if (actual.size() != expected.size()) return false;
    for (std::size_t i = 0; i < expected.size(); ++i) {
        const A left = actual[i];
        const E right = expected[i];
        if (!same(left, right)) return false;
    }
    return true;
}

template <typename M, typename K, typename V>
bool same(const M& actual, const std::map<K, V>& expected) {
    if (actual.size() != expected.size()) return false;
    for (const auto& [key, value] : expected) {
        const auto found = actual.find(key);
        if (found == actual.end() || !same(found->second, value)) return false;
    }
    return true;
}

// The arguments are variables here: an answer may take them by non-const reference.
template <typename Call, typename E, typename... Arguments>
void check(const char* label, Call call, const E& expected, Arguments... arguments) {
    bool passed = false;
    std::string shown = "got another value";
    try {
        passed = same(call(arguments...), expected);
    } catch (const std::exception& error) {
        shown = std::string("raised ") + error.what();
    }
    if (passed) {
        std::printf("__MARKER__ PASS %s\\n", label);
    } else {
        std::printf("__MARKER__ FAIL %s %s\\n", label, shown.c_str());
    }
    std::fflush(stdout);
}
}  // namespace harness
"""

_DEFINITIONS = {
    "python": r"^(?:async )?def (\w+)\(",
    "java": r"^\s*(?:public |private |protected |final )*static [^=;(]*?(\w+)\s*\(",
    "javascript": (
        r"^(?:async )?function\s*\*?\s*(\w+)\s*\("
        r"|^(?:const|let|var) (\w+) = (?:async )?(?:function\b|\(?[\w, ]*\)? ?=>)"
    ),
    "cpp": r"^(?!return\b|else\b|using\b|#)[\w:<>,&\* ]*[\w>&\*] +[&\*]?(\w+)\([^;]*$",
}


def entry_point(language: str, code: str, wanted: str) -> str:
    """The function to call: ``wanted`` where the code defines it, else the last function defined at the top level.

    A description does not say what the function is to be called, so a correct answer may choose another name.
    """
    definitions = re.finditer(_DEFINITIONS[language], code, re.M)
    defined = [next(name for name in match.groups() if name) for match in definitions]
    return wanted if wanted in defined or not defined else defined[-1]


def render_program(language: str, code: str, tests: Mapping[str, Any], marker: str = "case") -> str:
    """A complete program: solution and harness; it prints per case ``MARKER PASS 0.i`` or ``MARKER FAIL 0.i WHY``."""
    return render_suite(language, [(code, tests)], marker)


def render_suite(language: str, solutions: Sequence[tuple[str, Mapping[str, Any]]], marker: str = "case") -> str:
    """As :func:`render_program` for many solutions at once, each in a scope of its own; the labels are ``s.i``.

    tests: ``{"function", "parameters": [[name, type], ...], "returns", "cases": [{"arguments", "expected"}, ...]}``.
    """
    render = {"python": _python, "java": _java, "javascript": _javascript, "cpp": _cpp}[language]
    return render(solutions).replace("__MARKER__", marker)


def _calls(language: str, tests: Mapping[str, Any]) -> list[tuple[list[str], str]]:
    types = [type_ for _, type_ in tests["parameters"]]
    return [
        (
            [literal(language, argument, type_) for argument, type_ in zip(case["arguments"], types, strict=True)],
            literal(language, case["expected"], tests["returns"]),
        )
        for case in tests["cases"]
    ]


def _python(solutions: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    parts = ["import collections", "import itertools", "import math", "import re", _PYTHON_HARNESS]
    for index, (code, tests) in enumerate(solutions):
        name = entry_point("python", code, tests["function"])
        tolerant = uses_float(tests["returns"])
        parts.append(code)
        for number, (arguments, expected) in enumerate(_calls("python", tests)):
            call = f"lambda: {name}({', '.join(arguments)})"
            parts.append(f'_check("{index}.{number}", {call}, {expected}, {tolerant})')
    return "\n".join(parts) + "\n"


def _java(solutions: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    imports, parts, main = ["import java.util.*;", "import java.util.function.*;", "import java.util.stream.*;"], [], []
    for index, (code, tests) in enumerate(solutions):
        imports += re.findall(r"^\s*import [\w.*]+;|^\s*import static [\w.*]+;", code, re.M)
        code = re.sub(r"^\s*(?:import|package) [^;]+;", "", code, flags=re.M)
        path = f"S{index}"
        if outer := re.match(r"\s*(?:public |final )*class (\w+)", code):
            code = re.sub(r"^\s*(?:public |final )*class", "static class", code, count=1)
            path += f".{outer[1]}"
        name = entry_point("java", code, tests["function"])
        tolerant = str(uses_float(tests["returns"])).lower()
        lines = [
            f'Harness.check("{index}.{number}", () -> {path}.{name}({", ".join(arguments)}), {expected}, {tolerant});'
            for number, (arguments, expected) in enumerate(_calls("java", tests))
        ]
        calls = "\n".join(f"    {line}" for line in lines)
        parts.append(f"class S{index} {{\n{code}\n}}\nclass R{index} {{\n  static void run() {{\n{calls}\n  }}\n}}")
        main.append(f"    R{index}.run();")
    head = "public class Main {\n  public static void main(String[] arguments) {\n" + "\n".join(main) + "\n  }\n}"
    return "\n".join([*dict.fromkeys(line.strip() for line in imports), head, _JAVA_HARNESS, *parts]) + "\n"


def _javascript(solutions: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    parts = ['"use strict";', _JAVASCRIPT_HARNESS]
    for index, (code, tests) in enumerate(solutions):
        name = entry_point("javascript", code, tests["function"])
        tolerant = str(uses_float(tests["returns"])).lower()
        checks = "\n".join(
            f'_check("{index}.{number}", () => {name}({", ".join(arguments)}), {expected}, {tolerant});'
            for number, (arguments, expected) in enumerate(_calls("javascript", tests))
        )
        parts.append(f"(() => {{\n{code}\n{checks}\n}})();")
    return "\n".join(parts) + "\n"


def _cpp(solutions: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    includes, parts, main = [], [], []
    for index, (code, tests) in enumerate(solutions):
        includes += re.findall(r"^\s*#include.*$", code, re.M)
        code = re.sub(r"^\s*#include.*$", "", code, flags=re.M)
        name = entry_point("cpp", code, tests["function"])
        # One generic call per solution, not one per case: it is the templates that cost compile time.
        lines = [f"    const auto call = [](auto&... arguments) {{ return s{index}::{name}(arguments...); }};"]
        for number, (arguments, expected) in enumerate(_calls("cpp", tests)):
            types = [cpp_type(type_) for _, type_ in tests["parameters"]]
            values = "".join(f", {t}({v})" for t, v in zip(types, arguments, strict=True))
            expects = f"{cpp_type(tests['returns'])}({expected})"
            lines.append(f'    harness::check("{index}.{number}", call, {expects}{values});')
        parts.append(f"namespace s{index} {{\n{code}\n}}\nstatic void run{index}() {{\n" + "\n".join(lines) + "\n}")
        main.append(f"    run{index}();")
    body = "int main() {\n" + "\n".join(main) + "\n}"
    return "\n".join([*dict.fromkeys(line.strip() for line in includes), _CPP_HARNESS, *parts, body]) + "\n"
