"""C++ answers: functions found by the parser, macros that stay the answer's, undefined behavior."""

import pytest

from eval.execution import Limits, ProgramTests, judge
from tests.eval.execution.kinds import LIMITS, TWICE, cases, check, needs

RIGHT = "int twice(int n) {\n    return 2 * n;\n}\n"
WRONG = "int twice(int n) {\n    return 0;\n}\n"
TOTAL = cases("total", ["list[int]"], "int", ([1, 2], 3), ([], 0))
FAST = Limits(seconds=30, unsafe=True, sanitize=False)


def test_macros_and_names_of_an_answer_are_its_own():
    contest = (
        "#include <bits/stdc++.h>\nusing namespace std;\n#define int long long\n#define ll long long\n"
        "#define rep(i, n) for (int i = 0; i < n; i++)\n#define string vector<char>\n#define return return\n"
        "#define static\n#define Entry 7\n#define judged 8\n#define read(x) cin >> x\n#define std std\n"
    )
    names = "#include <iostream>\nusing namespace std;\n"
    own = "int count = 0;\nint distance = 1;\nint max(int a, int b) { return a > b ? a : b; }\n"
    check(
        "cpp",
        {
            "contest macros": (contest + RIGHT + "signed main() { int n; cin >> n; cout << twice(n); }\n", TWICE, "passed"),
            "contest macros, wrong": (contest + WRONG, TWICE, "failed"),
            "names of std": (names + own + "int twice(int n) { count++; return max(2 * n, 2 * n); }\n", TWICE, "passed"),
            "own main": (RIGHT + "int main() {\n    while (true) {}\n}\n", TWICE, "passed"),
            "own namespace": ("namespace judged { int f(int n) { return n; } }\nint twice(int n) { return 2 * judged::f(n); }\n", TWICE, "passed"),
            "no headers": ("std::vector<int> v;\n" + RIGHT, TWICE, "passed"),
            "byte order mark": ("\ufeff" + RIGHT, TWICE, "passed"),
            "guarded": ("#ifndef A\n#define A\n" + RIGHT + "#endif\n", TWICE, "passed"),
            "prose": ("Here is the function.", TWICE, "compile_error"),
            "no such function": ("int x = 1;\n", TWICE, "compile_error"),
            "names of the C library": (
                "#include <iostream>\nusing namespace std;\nint y1;\n"
                "char* index(const char* s, int n) { return nullptr; }\n"
                "int twice(int n) { y1 = n; return y1 + n + !!index(\"\", n); }\n", TWICE, "passed"),
            "macro for its name": ("#define solve twice\nint solve(int n) { return 2 * n; }\n", TWICE, "passed"),
            "macro around its name": ("#define FN(name) int name(int n)\nFN(other) { return n; }\nFN(twice) { return 2 * n; }\n", TWICE, "passed"),
            "headers left out": (
                "int twice(int n) { std::regex r(\"a+\"); auto now = std::chrono::steady_clock::now(); return 2 * n; }\n",
                TWICE, "passed"),
            "name of a header of its own": ("#include <math.h>\nint y1;\n" + RIGHT, TWICE, "compile_error"),
        },
        FAST,
    )  # fmt: skip


def test_the_wanted_function_is_called():
    helper = "int scale(int n, int k) { return n * k; }\n"
    sum_of = "{ int s = 0; for (auto x : xs) s += x; return s; }\n"
    check(
        "cpp",
        {
            "one line": (helper + "int twice(int n) { return scale(n, 2); }\n", TWICE, "passed"),
            "comment with a semicolon": (helper + "int twice(int n) {  // a; b\n    return scale(n, 2);\n}\n", TWICE, "passed"),
            "trailing type": ("auto twice(int n) -> int { return 2 * n; }\n" + helper, TWICE, "passed"),
            "declared before": ("int twice(int);\nint other(int n) { return n; }\n" + RIGHT, TWICE, "passed"),
            "template": ("template <typename T>\nT twice(T n) { return 2 * n; }\n" + helper, TWICE, "passed"),
            "auto parameter": ("std::integral auto twice(std::integral auto n) { return 2 * n; }\n", TWICE, "passed"),
            "overloads": ("double twice(double x) { return 0; }\n" + RIGHT + "int twice(int a, int b) { return b; }\n", TWICE, "passed"),
            "default argument": ("int twice(int n, int k = 2) { return n * k; }\n" + helper, TWICE, "passed"),
            "pointer to a function": (helper + "int doubled(int n) { return 2 * n; }\nint (*twice)(int) = doubled;\n", TWICE, "passed"),
            "lambda": (helper + "auto twice = [](int n) { return scale(n, 2); };\n", TWICE, "passed"),
            "std::function": ("std::function<int(int)> twice = [](int n) { return 2 * n; };\n", TWICE, "passed"),
            "namespace": ("namespace tasks {\n" + RIGHT + "}\n", TWICE, "passed"),
            "namespace of the same name": (RIGHT + "namespace other { int twice(int n) { return 0; } }\n", TWICE, "passed"),
            "method for lvalues": ("struct S { int k = 2; int twice(int n) & { return k * n; } };\n", TWICE, "passed"),
            "variable arguments": ("int twice(int n, ...) { return 2 * n; }\n", TWICE, "passed"),
            "method": ("class Solution {\npublic:\n    int twice(int n) { return 2 * n; }\n};\n" + helper, TWICE, "passed"),
            "private method": ("class Solution {\n    int twice(int n) const { return 2 * n; }\n};\n", TWICE, "passed"),
            "static method": ("struct S { static int twice(int n) { return 2 * n; } };\n", TWICE, "passed"),
            "method defined below": ("struct S { int twice(int n); };\nint S::twice(int n) { return 2 * n; }\n", TWICE, "passed"),
            "extern C": ('extern "C" {\n' + RIGHT + "}\n", TWICE, "passed"),
            "another name, own main": (helper + "int doubled(int n) { return scale(n, 2); }\nint main() {}\n", TWICE, "passed"),
            "by reference": ("int total(std::vector<int>& xs) " + sum_of, TOTAL, "passed"),
            "by const reference": ("int total(const std::vector<long long>& xs) " + sum_of, TOTAL, "passed"),
            "span": ("int total(std::span<const int> xs) " + sum_of, TOTAL, "passed"),
            "pointer": ("int total(const std::vector<int>* p) { auto& xs = *p; " + sum_of[1:], TOTAL, "passed"),
            "list": ("int total(std::list<int> xs) " + sum_of, TOTAL, "passed"),
            "deque": ("int total(std::deque<short>&& xs) " + sum_of, TOTAL, "passed"),
            "name of the C library": (
                "double read(long n) { return n + 0.5; }\n", cases("read", ["int"], "float", (2, 2.5)), "passed"),
            "long, declared before": (
                "int total(std::vector<long>&);\nint total(std::vector<long>& xs) " + sum_of, TOTAL, "passed"),
            "long, overload of a helper": (
                "int total(std::vector<long>& xs, size_t i) { return i < xs.size() ? xs[i] + total(xs, i + 1) : 0; }\n"
                "int total(std::vector<long>& xs) { return total(xs, 0); }\n", TOTAL, "passed"),
            "long, overload of a method": (
                "struct S {\nint total(const std::vector<long>& xs) { return total(xs, 0); }\nprivate:\n"
                "int total(const std::vector<long>& xs, size_t i) { return i < xs.size() ? xs[i] + total(xs, i + 1) : 0; }"
                "\n};\n", TOTAL, "passed"),
            "long, default argument": (
                "int total(std::vector<long>& xs, int s = 0) { for (auto x : xs) s += x; return s; }\n", TOTAL, "passed"),
            "class template": (
                "template <typename T> class S { T s; public: S() : s() {} T total(std::vector<T> xs); };\n"
                "template <typename T> T S<T>::total(std::vector<T> xs) { for (T x : xs) s += x; return s; }\n",
                TOTAL, "passed"),
            "class template of two types": (
                "namespace n { template <class K, class V> struct S { std::map<V, K> turn(std::map<K, V>& m) {\n"
                "std::map<V, K> r; for (auto& [k, v] : m) r[v] = k; return r; } }; }\n",
                cases("turn", ["map[str, int]"], "map[int, str]", ([["a", 1]], [[1, "a"]])), "passed"),
            "class template, overloads": (
                "template <class T, int N = 2> struct S { T twice(T n) { return N * n; } T twice(T n, int k) { return k; } };\n",
                TWICE, "passed"),
            "default argument of a method": (
                "struct S { int twice(int n, int k = 2) { return k * n; } auto other(auto n) { return n; } };\n", TWICE, "passed"),
            "virtual method": (
                "struct B { virtual int twice(int) = 0; };\nstruct S : B { int twice(int n) override { return 2 * n; } };\n",
                TWICE, "passed"),
        },
        FAST,
    )  # fmt: skip


def test_values():
    words = cases("words", ["str"], "list[str]", ("a b", ["a", "b"]))
    count = cases("count", ["str"], "map[str, int]", ("aab", [["a", 2], ["b", 1]]))
    grid = cases("grid", ["matrix[int]"], "matrix[int]", ([[1, 2]], [[1], [2]]))
    first = cases("first", ["str"], "str", ("ab", "a"))
    find = cases("find", ["list[int]"], "int", ([1], None))
    wide = cases(
        "wide", ["int"], "int", (9007199254740993, 9007199254740994), (-9223372036854775808, -9223372036854775807)
    )
    half = cases("half", ["float"], "float", (1.0, 0.5), (float("inf"), float("inf")))
    flags = cases("flags", ["list[bool]"], "list[bool]", ([True, False], [False, True]))
    check(
        "cpp",
        {
            "vector": ("std::vector<std::string> words(const std::string& s) { return {\"a\", \"b\"}; }\n", words, "passed"),
            "pair": ("std::pair<std::string, std::string> words(std::string_view s) { return {\"a\", \"b\"}; }\n", words, "passed"),
            "characters": ("std::vector<char> words(const char* s) { return {'a', 'b'}; }\n", words, "passed"),
            "set": ("std::set<std::string> words(std::string s) { return {\"a\", \"b\"}; }\n", words, "failed"),
            "initializer list": (
                "auto words(std::string s) { static std::initializer_list<const char*> w{\"a\", \"b\"}; return w; }\n", words, "passed"),
            "forward list": ("std::forward_list<std::string> words(std::string s) { return {\"a\", \"b\"}; }\n", words, "passed"),
            "view": (
                "auto words(std::string s) { static std::vector<std::string> w{\"a\", \"\", \"b\"};\n"
                "return w | std::views::filter([](auto& t) { return !t.empty(); }); }\n", words, "passed"),
            "unordered map": ("std::unordered_map<char, int> count(std::string s) { std::unordered_map<char, int> m;"
                              " for (char c : s) m[c]++; return m; }\n", count, "passed"),
            "vectors": ("std::vector<std::vector<int>> grid(std::vector<std::vector<int>> g) { return {{1}, {2}}; }\n", grid, "passed"),
            "char": ("char first(std::string s) { return s[0]; }\n", first, "passed"),
            "char*": ("const char* first(std::string s) { return \"a\"; }\n", first, "passed"),
            "double for int": ("double twice(int n) { return 2.0 * n; }\n", TWICE, "failed"),
            "bool for int": ("bool twice(int n) { return n; }\n", TWICE, "failed"),
            "nullopt": ("std::optional<int> find(std::vector<int> xs) { return std::nullopt; }\n", find, "passed"),
            "null unique_ptr": ("std::unique_ptr<int> find(std::vector<int> xs) { return nullptr; }\n", find, "passed"),
            "null pointer": ("int* find(std::vector<int> xs) { return nullptr; }\n", find, "passed"),
            "zero for null": ("int find(std::vector<int> xs) { return 0; }\n", find, "failed"),
            "long long": ("long long wide(long long n) { return n + 1; }\n", wide, "passed"),
            "generic, wide": ("template <class T> T wide(T n) { return n + 1; }\n", wide, "passed"),
            "int, too narrow": ("int wide(int n) { return n + 1; }\n", wide, "runtime_error"),
            "infinite": ("double half(double x) { return x / 2; }\n", half, "passed"),
            "float": ("float half(float x) { return x / 2; }\n", half, "passed"),
            "vector<bool>": ("std::vector<bool> flags(std::vector<bool> b) { b.flip(); return b; }\n", flags, "passed"),
            "void": ("void twice(int& n) { n *= 2; }\n", TWICE, "failed"),
            "operator== of its own": ("struct A { template <class T> bool operator==(const T&) const { return true; } };\n"
                                      "A twice(int n) { return {}; }\n", TWICE, "failed"),
        },
        FAST,
    )  # fmt: skip


def test_what_an_answer_does_to_its_process_is_no_verdict():
    check(
        "cpp",
        {
            "exit": ("int twice(int n) { std::exit(0); }\n", TWICE, "runtime_error"),
            "_Exit while loading": ("struct A { A() { std::_Exit(0); } } a;\n" + RIGHT, TWICE, "runtime_error"),
            "abort": ("int twice(int n) { std::abort(); }\n", TWICE, "runtime_error"),
            "throws": ("int twice(int n) { throw std::runtime_error(\"no\"); }\n", TWICE, "runtime_error"),
            "throws a number": ("int twice(int n) { throw 1; }\n", TWICE, "runtime_error"),
            "prints": ("int twice(int n) { std::cout << \"V 0 i4\" << n; return 2 * n; }\n", TWICE, "passed"),
            "prints, wrong": ("int twice(int n) { puts(\"V 0 i4\\nV 1 i-6\\nE\"); return 0; }\n", TWICE, "failed"),
            "closes its output": ("int twice(int n) { fclose(stdout); fclose(stderr); return 2 * n; }\n", TWICE, "passed"),
        },
        FAST,
    )  # fmt: skip


UNDEFINED = {
    "no return": "int twice(int n) { int r = 2 * n; }\n",
    "no return on one path": "int twice(int n) { if (n > 0) return 2 * n; }\n",
    "signed overflow": "int twice(int n) { volatile int big = 2147483647; volatile int more = big + n + 9; return 2 * n; }\n",
    "out of bounds": "int twice(int n) { std::vector<int> v{1, 2}; volatile int x = v.data()[2]; return 2 * n; }\n",
    "use after free": "int twice(int n) { int* p = new int(n); delete p; volatile int x = *p; return 2 * n; }\n",
    "stack overflow of an array": "int twice(int n) { int a[2] = {n, n}; int i = n + 6; a[i] = 0; return 2 * n; }\n",
    "shift": "int twice(int n) { volatile int by = 40; volatile int x = 1 << by; return 2 * n; }\n",
    "division": "int twice(int n) { volatile int zero = 0; volatile int x = n / zero; return 2 * n; }\n",
    "null": "int twice(int n) { int* volatile p = nullptr; return *p; }\n",
}


@pytest.mark.slow
def test_undefined_behavior_is_a_failure():
    needs("cpp")
    if judge("cpp", UNDEFINED["use after free"], TWICE, LIMITS).passed:
        pytest.skip("the compiler has no sanitizers")
    answers = {name: (answer, TWICE, "runtime_error") for name, answer in UNDEFINED.items()}
    for name in ("no return", "no return on one path"):
        answers[name] = (UNDEFINED[name], TWICE, "compile_error")
    got = check("cpp", {**answers, "right": (RIGHT, TWICE, "passed"), "leak": (
        "int twice(int n) { return *new int(2 * n); }\n", TWICE, "passed"
    )})  # fmt: skip
    assert "signed integer overflow" in got["signed overflow"].detail
    assert "AddressSanitizer" in got["use after free"].detail
    assert judge("cpp", UNDEFINED["signed overflow"], TWICE, FAST).passed


def test_a_test_program_must_run_to_its_end():
    asserts = ProgramTests("#undef NDEBUG\n#include <assert.h>\nint main(){\n    assert (twice(2) == 4);\n}\n")
    throws = ProgramTests(
        'int main(int c, char* v[]) {\n  if (twice(2) != 4) throw std::runtime_error("no");\n  return 0;\n}\n'
    )
    code = ProgramTests("int main() { return twice(2) != 4; }\n")
    plain = ProgramTests("int main() {\n    assert(twice(2) == 4);\n}\n", before="#include <cassert>\n")
    boost = ProgramTests(
        asserts.after + "// linked\n", before="#include <cmath>\nusing namespace std;\n", flags=("-lm",)
    )
    check(
        "cpp",
        {
            "right": (RIGHT, asserts, "passed"),
            "wrong": (WRONG, asserts, "failed"),
            "right, throws": (RIGHT, throws, "passed"),
            "wrong, throws": (WRONG, throws, "runtime_error"),
            "wrong, exit code": (WRONG, code, "runtime_error"),
            "flags": (RIGHT, boost, "passed"),
            "own main": (RIGHT + "int main() {\n    return 1;\n}\n", asserts, "passed"),
            "own main, wrong": (WRONG + "int main() { return 0; }\n", asserts, "failed"),
            "exit": ("int twice(int n) { exit(0); }\n", asserts, "runtime_error"),
            "exit while loading": ("int quit() { exit(0); }\nint x = quit();\n" + RIGHT, asserts, "runtime_error"),
            "does not compile": ("int twice(int n) { return }\n", asserts, "compile_error"),
            "header left out": ("int twice(int n) { return std::accumulate(&n, &n + 1, n); }\n", code, "passed"),
            "asserts off": ("#define NDEBUG\n#include <cassert>\n" + WRONG, plain, "failed"),
            "own assert": ("#undef assert\n#define assert(x)\n" + WRONG, plain, "failed"),
            "own assert, right": ("#define assert(x)\n" + RIGHT, plain, "passed"),
        },
        FAST,
    )  # fmt: skip
