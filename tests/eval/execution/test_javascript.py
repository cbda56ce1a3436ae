"""JavaScript answers: scripts and modules as they are written, in a realm of their own."""

from eval.execution import ProgramTests
from tests.eval.execution.kinds import TWICE, cases, check

RIGHT = "function twice(n) {\n  return 2 * n;\n}\n"
WRONG = "function twice(n) {\n  return 0;\n}\n"
TOTAL = cases("total", ["list[int]"], "int", ([1, 2], 3), ([], 0))


def test_what_an_answer_changes_reaches_nothing():
    broken = (
        "Math.abs = Math.max = Number.isInteger = Array.isArray = JSON.stringify = () => true;\n"
        "Array.prototype.push = Array.prototype.join = String.prototype.slice = () => 'T';\n"
        "Object.is = Object.getPrototypeOf = Function.prototype.call = () => true;\n"
        "Buffer.from = require('fs').writeSync = () => 1;\nconsole.log = console.error = undefined;\n"
    )
    module = broken.replace("require('fs').writeSync = ", "") + "export { twice };\n"
    check(
        "javascript",
        {
            "right script": (broken + RIGHT, TWICE, "passed"),
            "wrong script": (broken + WRONG, TWICE, "failed"),
            "right module": (module + RIGHT, TWICE, "passed"),
            "wrong module": (module + WRONG, TWICE, "failed"),
            "valueOf": ("function twice(n) {\n  return { valueOf: () => 2 * n };\n}\n", TWICE, "failed"),
            "proxy": ("const total = (xs) => new Proxy([], { get: () => 3 });\n", TOTAL, "failed"),
            "exit": ("function twice(n) { process.exit(0); }\n", TWICE, "runtime_error"),
            "exit at once": ("process.exit(0);\n" + RIGHT, TWICE, "runtime_error"),
            "prints our lines": ("console.log('V 0 j4\\nV 1 j-6\\nE');\n" + WRONG, TWICE, "failed"),
        },
    )


def test_ordinary_files():
    module = "import fs, { readFileSync } from 'fs';\nimport * as path from 'node:path';\n"
    check(
        "javascript",
        {
            "sloppy": (
                "function total(xs) {\n  s = 0;\n  for (i in xs) s += xs[i];\n  return s;\n}\n",
                TOTAL,
                "passed",
            ),
            "with": ("function twice(n) {\n  with ({ k: 2 }) return n * k;\n}\n", TWICE, "passed"),
            "strict": (
                "'use strict';\nfunction twice(n) {\n  undeclared = n;\n  return 2 * n;\n}\n",
                TWICE,
                "runtime_error",
            ),
            "module.exports": ("module.exports = { twice: (n) => 2 * n };\n", TWICE, "passed"),
            "module.exports of it": (
                "function doubled(n) {\n  return 2 * n;\n}\nmodule.exports = doubled;\n",
                TWICE,
                "passed",
            ),
            "exports.default": (
                "exports.__esModule = true;\nexports.default = function (n) {\n  return 2 * n;\n};\n",
                TWICE,
                "passed",
            ),
            "require": ("const fs = require('fs');\nconst assert = require('assert');\n" + RIGHT, TWICE, "passed"),
            "require.main": (RIGHT + "if (require.main === module) process.exit(1);\n", TWICE, "passed"),
            "export list": (RIGHT + "export { twice as default, twice as double };\n", TWICE, "passed"),
            "export const": ("export const twice = (n) => 2 * n;\n", TWICE, "passed"),
            "default without a name": ("export default (n) => 2 * n;\n", TWICE, "passed"),
            "default class": (
                "export default class Solution {\n  twice(n) {\n    return 2 * n;\n  }\n}\n",
                TWICE,
                "passed",
            ),
            "imports, nothing exported": (module + RIGHT, TWICE, "passed"),
            "hashbang and byte order mark": ("\ufeff#!/usr/bin/env node\n" + RIGHT, TWICE, "passed"),
            "ends in a comment": (RIGHT + "// done", TWICE, "passed"),
            "module ends in a comment": ("export " + RIGHT + "// done", TWICE, "passed"),
            "reads standard input": (RIGHT + "const text = require('fs').readFileSync(0, 'utf8');\n", TWICE, "passed"),
            "timer left running": ("setInterval(() => {}, 1000);\n" + RIGHT, TWICE, "passed"),
            "redeclares": ("const process = require('process');\nconst module_ = module;\n" + RIGHT, TWICE, "passed"),
            "syntax": ("function twice(n) {\n  return 2 *;\n}\n", TWICE, "compile_error"),
            "prose": ("Here is the function.", TWICE, "compile_error"),
            "throws": ("function twice(n) {\n  throw new Error('no');\n}\n", TWICE, "runtime_error"),
        },
    )


def test_the_wanted_function_is_called():
    escaped = cases("escape", ["str"], "str", ("a", "a"))
    helper = "function scale(n, k) {\n  return n * k;\n}\n"
    check(
        "javascript",
        {
            "default parameter": (helper + "const twice = (n, k = 2) => scale(n, k);\n", TWICE, "passed"),
            "destructured": (helper + "let twice = function (...[n]) { return scale(n, 2); };\n", TWICE, "passed"),
            "bound": (helper + "const twice = scale.bind(null, 2);\n", TWICE, "passed"),
            "static": ("class S {\n  static twice(n) {\n    return 2 * n;\n  }\n}\n" + helper, TWICE, "passed"),
            "method": ("class Solution {\n  twice(n) {\n    return 2 * n;\n  }\n}\n", TWICE, "passed"),
            "method of an object": ("const solution = {\n  k: 2,\n  twice(n) {\n    return this.k * n;\n  },\n};\n", TWICE, "passed"),
            "global": (helper + "globalThis.twice = (n) => scale(n, 2);\n", TWICE, "passed"),
            "assigned without a declaration": (helper + "twice = (n) => scale(n, 2);\n", TWICE, "passed"),
            "another name": (helper + "const doubled = (n) => scale(n, 2);\nfunction main() {}\n", TWICE, "passed"),
            "base that throws": (
                "class B { twice(n) { throw new Error(); } }\nclass S extends B { twice(n) { return 2 * n; } }\n", TWICE, "passed"),
            "inherited": (
                "class B { twice(n) { return this.k * n; } }\nclass S extends B { constructor() { super(); this.k = 2; } }\n",
                TWICE, "passed"),
            "field": ("class N { constructor(x) { x.y(); } }\nclass S { twice = (n) => 2 * n; }\n", TWICE, "passed"),
            "prototype": ("function S() {}\nS.prototype.twice = (n) => 2 * n;\n", TWICE, "passed"),
            "pattern": ("const { f: twice } = { f: (n) => 2 * n };\n" + helper, TWICE, "passed"),
            "name that all functions have": (
                "class S { apply(n) { return 2 * n; } }\n", cases("apply", ["int"], "int", (2, 4)), "passed"),
            "await without export": ("const k = await Promise.resolve(2);\nfunction twice(n) { return k * n; }\n", TWICE, "passed"),
            "import.meta without export": ("const u = import.meta.url;\nfunction twice(n) { return u ? 2 * n : 0; }\n", TWICE, "passed"),
            "await in a function": (
                "async function f() { await 0; }\nfunction twice(n) { if (!this) throw 0; return 2 * n; }\n", TWICE, "passed"),
            "another function": (helper + "function doubled(n) { return scale(n, 2); }\n", TWICE, "passed"),
            "name of a global": (
                "function escape(n) {\n  return 2 * n;\n}\n",
                cases("escape", ["int"], "int", (2, 4)),
                "passed",
            ),
            "global that is not defined": ("const x = 1;\n", escaped, "runtime_error"),
        },
    )  # fmt: skip


def test_values():
    count = cases("count", ["str"], "map[str, int]", ("aab", [["a", 2], ["b", 1]]))
    by_number = cases("group", ["list[int]"], "map[int, int]", ([1, 1, 2], [[1, 2], [2, 1]]))
    big = cases("big", ["int"], "int", (1, 9007199254740993))
    top = cases("top", ["float"], "float", (1.0, float("inf")))
    text = cases("same", ["str"], "str", ('é\n"🎉', 'é\n"🎉'), ("", ""))
    find = cases("find", ["list[int]"], "int", ([1], None))
    swap = cases("swap", ["map[str, int]"], "map[int, str]", ([["a", 1]], [[1, "a"]]))
    tally = "(xs) => {\n  const m = {};\n  for (const x of xs) m[x] = (m[x] || 0) + 1;\n  return m;\n}"
    check(
        "javascript",
        {
            "object for a map": (f"const count = {tally};\n", count, "passed"),
            "getter": ("const count = (s) => ({ a: 2, get b() { return 1; } });\n", count, "passed"),
            "hidden property": ("const count = (s) => Object.defineProperty({ a: 2, b: 1 }, 'c', { value: 1 });\n", count, "passed"),
            "hidden property for a value": ("const count = (s) => Object.defineProperty({ a: 2 }, 'b', { value: 1 });\n", count, "failed"),
            "getter that throws": ("const count = (s) => ({ a: 2, get b() { throw s; } });\n", count, "runtime_error"),
            "Map for a map": (f"const count = (s) => new Map(Object.entries(({tally})(s)));\n", count, "passed"),
            "object with numbers as names": (f"const group = {tally};\n", by_number, "passed"),
            "Map from a Map": ("const swap = (m) => new Map([...m].map(([k, v]) => [v, k]));\n", swap, "passed"),
            "BigInt": ("const big = (n) => 9007199254740993n;\n", big, "passed"),
            "nearest number": ("const big = (n) => 9007199254740992 + n;\n", big, "passed"),
            "another large number": ("const big = (n) => 9007199254740990 + n;\n", big, "failed"),
            "null": ("const find = (xs) => null;\n", find, "passed"),
            "undefined": ("const find = (xs) => undefined;\n", find, "failed"),
            "NaN": ("const twice = (n) => NaN;\n", TWICE, "failed"),
            "infinite": ("const top = (x) => Infinity;\n", top, "passed"),
            "infinite argument": ("const twice = (n) => 2 * n;\n",
                                  cases("twice", ["float"], "float", (float("-inf"), float("-inf"))), "passed"),
            "string for a number": ("const twice = (n) => `${2 * n}`;\n", TWICE, "failed"),
            "promise": ("async function twice(n) { return 2 * n; }\n", TWICE, "failed"),
            "array of its own class": ("class A extends Array {}\nconst same = (xs) => A.from(xs);\n",
                                       cases("same", ["list[int]"], "list[int]", ([1], [1])), "failed"),
            "text": ("const same = (s) => s;\n", text, "passed"),
        },
    )  # fmt: skip


def test_a_test_program_must_run_to_its_end():
    asserts = ProgramTests(
        "const test = () => {\n  console.assert(twice(2) === 4)\n  console.assert(twice(-3) === -6)\n}\ntest()\n"
    )
    throws = ProgramTests("if (twice(2) !== 4) throw 'Error at 1th assert statement.'\n")
    late = ProgramTests("setTimeout(() => { if (twice(2) !== 4) throw new Error('late'); }, 20);\n")
    check(
        "javascript",
        {
            "right": (RIGHT, asserts, "passed"),
            "wrong": (WRONG, asserts, "failed"),
            "const": ("const twice = (n) => 2 * n\n", asserts, "passed"),
            "replaces console.assert": ("console.assert = () => {};\n" + WRONG, asserts, "failed"),
            "throws": (WRONG, throws, "runtime_error"),
            "right, throws": (RIGHT, throws, "passed"),
            "exit": ("function twice(n) { process.exit(0); }\n", asserts, "runtime_error"),
            "later": (WRONG, late, "runtime_error"),
            "right, later": (RIGHT, late, "passed"),
            "rejected promise": (WRONG, ProgramTests("Promise.reject(new Error('no'));"), "runtime_error"),
            "assert module": (WRONG, ProgramTests("require('assert').strictEqual(twice(2), 4);"), "failed"),
            "deepEqual": ("const same = (xs) => [...xs];\n", ProgramTests(
                "require('assert').deepStrictEqual(same([1, [2]]), [1, [2]]);"), "passed"),
            "what Node makes": ("const same = (xs) => structuredClone(xs);\n", ProgramTests(
                "require('assert').deepStrictEqual(same([1, [2]]), [1, [2]]);\n"
                "if (!(Buffer.from('a') instanceof Uint8Array)) throw 'another realm';"), "passed"),
            "names of Node": (
                "const module = 1, require = 2;\nfunction Buffer() {}\nfunction setTimeout() {}\nvar console = {};\n"
                "function process(n) { return 2 * n; }\nvar String, Object, Array, Error;\n",
                ProgramTests("if (process(2) !== 4) throw 'no';"), "passed"),
            "module": ("export " + RIGHT, asserts, "passed"),
        },
    )  # fmt: skip


def test_what_a_test_program_waits_for_must_happen():
    never = "async function twice(n) { await new Promise(() => {}); }\n"
    right = "async function twice(n) { new Promise(() => {}).then(() => 0); return 2 * n; }\n"
    programs = {
        "async function": "(async () => { if (await twice(2) !== 4) throw new Error('no'); })();\n",
        "then": "function test() {\n  twice(2).then((v) => { if (v !== 4) throw new Error('no'); });\n}\ntest();\n",
        "chain": "Promise.resolve(0).then(() => twice(2)).then((v) => console.assert(v === 4)).catch(() => { throw 1; });\n",
        "all": "const all = Promise.all([twice(1), twice(2)]);\nall.then(([_, v]) => console.assert(v === 4));\n",
        "race": "(async () => {\n  const v = await Promise.race([twice(2), new Promise(() => {})]);\n"
        "  if (v !== 4) throw new Error('no');\n})();\n",
        "top level": "if (await twice(2) !== 4) throw new Error('no');\n",
    }
    check(
        "javascript",
        {
            f"{name}, {start or 'script'} {kind}": (start + answer, ProgramTests(program), status)
            for name, program in programs.items()
            for start in ("", "export ")
            for kind, answer, status in (
                ("right", right, "passed"),
                ("never", never, "runtime_error" if name == "top level" else "failed"),
            )
        },
    )  # fmt: skip


def test_a_folder_of_modules_is_found(tmp_path):
    package = tmp_path / "node_modules" / "doubler"
    package.mkdir(parents=True)
    (package / "index.js").write_text("module.exports = (n) => 2 * n;\n")
    (package / "package.json").write_text('{"name": "doubler", "main": "index.js"}')
    use = "if (twice(2) !== 4) throw new Error('no');\n"
    paths = (tmp_path / "node_modules",)
    check(
        "javascript",
        {
            "require": ("const twice = require('doubler');\n", ProgramTests(use, paths=paths), "passed"),
            "import": ("import twice from 'doubler';\n", ProgramTests(use, paths=paths), "passed"),
            "absent": ("const twice = require('doubler');\n", ProgramTests(use), "runtime_error"),
        },
    )
