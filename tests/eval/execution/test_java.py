"""Java answers: whole files as people write them, methods found by reflection, results of exact classes."""

from eval.execution import ProgramTests
from tests.eval.execution.kinds import TWICE, cases, check

RIGHT = "static int twice(int n) {\n    return 2 * n;\n}\n"
WRONG = "static int twice(int n) {\n    return 0;\n}\n"
TOTAL = cases("total", ["list[int]"], "int", ([1, 2], 3), ([], 0))


def test_ordinary_files():
    clazz = "public class Doubler {\n    public static int twice(int n) { return 2 * n; }\n}\n"
    check(
        "java",
        {
            "method": (RIGHT, TWICE, "passed"),
            "method, Javadoc, annotation": ("/** Doubles. */\n@SuppressWarnings(\"unused\")\n" + RIGHT, TWICE, "passed"),
            "methods and a constant": (
                "private static final int K = 2;\nstatic int scale(int n) { return K * n; }\n"
                "public static int twice(int n) { return scale(n); }\n",
                TWICE,
                "passed",
            ),
            "imports, methods, a class": (
                "import java.math.BigInteger;\nstatic int twice(int n) { return 2 * new Box(n).value; }\n"
                "class Box { final int value; Box(int value) { this.value = value; } }\n",
                TWICE,
                "passed",
            ),
            "methods, nested classes": (
                "private static class Box { int value; Box(int value) { this.value = value; } }\nprotected enum K { A }\n"
                "static int twice(int n) { return 2 * new Box(n).value; }\n", TWICE, "passed"),
            "methods, a class Answer": (
                "class Answer { int f(int n) { return 2 * n; } }\nstatic int twice(int n) { return new Answer().f(n); }\n",
                TWICE, "passed"),
            "package": ("package com.example.tasks;\n\n" + clazz, TWICE, "passed"),
            "byte order mark": ("\ufeff" + clazz, TWICE, "passed"),
            "two public classes": (clazz + "public class Other { public static int twice2(int n) { return n; } }\n", TWICE, "passed"),
            "interface, record, enum": (
                "interface Scale { int of(int n); }\nrecord By(int k) implements Scale { public int of(int n) { return k * n; } }\n"
                "enum Kind { TWO }\n@FunctionalInterface interface F { int f(int n); }\n"
                "final class Main { static int twice(int n) { return new By(2).of(n); } }\n",
                TWICE,
                "passed",
            ),
            "interface with a static method": ("interface I { static int twice(int n) { return 2 * n; } }\n", TWICE, "passed"),
            "nested class": ("class A { class B { int twice(int n) { return 2 * n; } } }\n", TWICE, "passed"),
            "private": ("class A { private A() {} private int twice(int n) { return 2 * n; } }\n", TWICE, "passed"),
            "clashing imports": ("import java.awt.*;\nclass A { static int total(java.util.List<Integer> xs) {"
                                 " List l = null; int s = 0; for (int x : xs) s += x; return s; } }\n", TOTAL, "passed"),
            "own main that exits": (
                "public class Main { static int twice(int n) { return 2 * n; }\n"
                "public static void main(String[] a) { System.exit(3); } }\n",
                TWICE,
                "passed",
            ),
            "own Worker": ("class Worker { static int twice(int n) { return 2 * n; } }\n", TWICE, "passed"),
            "does not compile": ("static int twice(int n) { return n * ; }\n", TWICE, "compile_error"),
            "no return": ("static int twice(int n) { int r = 2 * n; }\n", TWICE, "compile_error"),
            "prose": ("Here is the method.", TWICE, "compile_error"),
        },
    )  # fmt: skip


def test_the_wanted_method_is_called():
    helper = "static int scale(int n, int k) { return n * k; }\n"
    check(
        "java",
        {
            "helper after it": (RIGHT + helper, TWICE, "passed"),
            "overloads": ("static int twice(int n, int k) { return k; }\n" + RIGHT + "static int twice(String s) { return 0; }\n", TWICE, "passed"),
            "another name": (helper + "static int doubled(int n) { return scale(n, 2); }\n", TWICE, "passed"),
            "varargs": ("static int total(int... xs) { int s = 0; for (int x : xs) s += x; return s; }\n", TOTAL, "passed"),
            "array": ("static int total(int[] xs) { return java.util.Arrays.stream(xs).sum(); }\n", TOTAL, "passed"),
            "boxed array": ("static Integer total(Integer[] xs) { int s = 0; for (int x : xs) s += x; return s; }\n", TOTAL, "passed"),
            "collection of longs": (
                "static long total(Collection<Long> xs) { return xs.stream().mapToLong(x -> x).sum(); }\n",
                TOTAL,
                "passed",
            ),
            "deque": ("static int total(Deque<Integer> xs) { int s = 0; while (!xs.isEmpty()) s += xs.pop(); return s; }\n", TOTAL, "passed"),
            "generic": ("static <T extends Number> int total(List<T> xs) { int s = 0; for (T x : xs) s += x.intValue(); return s; }\n", TOTAL, "passed"),
            "objects": ("static Object total(Object xs) { int s = 0; for (Object x : (List<?>) xs) s += (Integer) x; return s; }\n", TOTAL, "passed"),
            "lambda in a field": ("class A { static Function<Integer, Integer> twice = n -> 2 * n; static int other(int n) { return n; } }\n", TWICE, "passed"),
            "default method": ("interface I { default int twice(int n) { return 2 * n; } }\nclass C implements I {}\n", TWICE, "passed"),
            "inherited": ("abstract class B { int twice(int n) { return 2 * n; } }\nclass C extends B {}\n", TWICE, "passed"),
            "base that throws": (
                "class B { int twice(int n) { throw new UnsupportedOperationException(); } }\n"
                "class S extends B { int twice(int n) { return 2 * n; } }\nclass T extends B { T(int k) {} }\n", TWICE, "passed"),
            "overload that later cases need": (
                "static int twice(int n) { return 2 * n; }\nstatic long twice(long n) { return 2 * n; }\n",
                cases("twice", ["int"], "int", (2, 4), (5_000_000_000, 10_000_000_000)), "passed"),
            "enum": ("enum E { ONE; int twice(int n) { return 2 * n; } }\n", TWICE, "passed"),
            "enum whose constants differ": (
                "enum E { ONE { int twice(int n) { return 2 * n; } }; abstract int twice(int n); }\n", TWICE, "passed"),
            "changes its argument": ("static int total(List<Integer> xs) { xs.add(0); return xs.stream().mapToInt(x -> x).sum(); }\n", TOTAL, "passed"),
        },
    )  # fmt: skip


def test_results_count_by_exact_class():
    words = cases("words", ["str"], "list[str]", ("a b", ["a", "b"]))
    count = cases("count", ["str"], "map[str, int]", ("aab", [["a", 2], ["b", 1]]))
    grid = cases("grid", ["int"], "matrix[int]", (2, [[1, 0], [0, 1]]))
    first = cases("first", ["str"], "str", ("ab", "a"))
    find = cases("find", ["list[int]"], "int", ([1], None))
    wide = cases(
        "wide", ["int"], "int", (9007199254740993, 9007199254740994), (-9223372036854775808, -9223372036854775807)
    )
    half = cases("half", ["float"], "float", (1.0, 0.5), (float("inf"), float("inf")))
    check(
        "java",
        {
            "equals of its own": (
                "static Object twice(int n) { return new Object() { public boolean equals(Object o) { return true; } }; }\n",
                TWICE,
                "failed",
            ),
            "list of its own": (
                "static List<String> words(String s) { return new AbstractList<>() { public String get(int i) { return \"a\"; }"
                " public int size() { return 2; } public boolean equals(Object o) { return true; } }; }\n",
                words,
                "failed",
            ),
            "array": ("static String[] words(String s) { return s.split(\" \"); }\n", words, "passed"),
            "unmodifiable list": ("static List<String> words(String s) { return List.of(s.split(\" \")); }\n", words, "passed"),
            "tree map": ("static Map<String, Integer> count(String s) { Map<String, Integer> m = new TreeMap<>();"
                         " for (String c : s.split(\"\")) m.merge(c, 1, Integer::sum); return m; }\n", count, "passed"),
            "map of characters": ("static Map<Character, Long> count(String s) { return s.chars().mapToObj(c -> (char) c)"
                                  ".collect(Collectors.groupingBy(c -> c, Collectors.counting())); }\n", count, "passed"),
            "int[][]": ("static int[][] grid(int n) { int[][] g = new int[n][n]; for (int i = 0; i < n; i++) g[i][i] = 1; return g; }\n", grid, "passed"),
            "char": ("static char first(String s) { return s.charAt(0); }\n", first, "passed"),
            "StringBuilder": ("static StringBuilder first(String s) { return new StringBuilder(s.substring(0, 1)); }\n", first, "failed"),
            "double for int": ("static double twice(int n) { return 2.0 * n; }\n", TWICE, "failed"),
            "string for int": ("static String twice(int n) { return \"\" + 2 * n; }\n", TWICE, "failed"),
            "null": ("static Integer find(List<Integer> xs) { return null; }\n", find, "passed"),
            "empty OptionalInt": ("static OptionalInt find(List<Integer> xs) { return OptionalInt.empty(); }\n", find, "passed"),
            "OptionalInt": ("static OptionalInt twice(int n) { return OptionalInt.of(2 * n); }\n", TWICE, "passed"),
            "OptionalDouble for int": ("static OptionalDouble twice(int n) { return OptionalDouble.of(2 * n); }\n", TWICE, "failed"),
            "empty Optional": ("static Optional<Integer> find(List<Integer> xs) { return Optional.empty(); }\n", find, "passed"),
            "zero for null": ("static int find(List<Integer> xs) { return 0; }\n", find, "failed"),
            "long": ("static long wide(long n) { return n + 1; }\n", wide, "passed"),
            "int, too narrow": ("static int wide(int n) { return n + 1; }\n", wide, "runtime_error"),
            "BigInteger": ("static java.math.BigInteger wide(java.math.BigInteger n) { return n.add(java.math.BigInteger.ONE); }\n", wide, "passed"),
            "infinite": ("static double half(double x) { return x / 2; }\n", half, "passed"),
            "void": ("static void twice(int n) { n *= 2; }\n", TWICE, "failed"),
        },
    )  # fmt: skip


def test_what_an_answer_does_to_its_process_is_no_verdict():
    check(
        "java",
        {
            "exit": ("static int twice(int n) { System.exit(0); return 0; }\n", TWICE, "runtime_error"),
            "halt": ("static int twice(int n) { Runtime.getRuntime().halt(0); return 0; }\n", TWICE, "runtime_error"),
            "exit while loading": ("class A { static { System.exit(0); } static int twice(int n) { return 2 * n; } }\n", TWICE, "runtime_error"),
            "output replaced": ("static int twice(int n) { System.setOut(null); System.setErr(null); return 2 * n; }\n", TWICE, "passed"),
            "output without an end of line": ("static int twice(int n) { System.out.print(\"x\"); return 2 * n; }\n", TWICE, "passed"),
            "lines like ours": ("static int twice(int n) { System.out.println(\"V 0 i4\\nV 1 i-6\\nE\"); return 0; }\n", TWICE, "failed"),
            "throws": ("static int twice(int n) { throw new IllegalStateException(\"no\"); }\n", TWICE, "runtime_error"),
            "endless recursion": ("static int twice(int n) { return twice(n); }\n", TWICE, "runtime_error"),
            "thread left running": ("static int twice(int n) { new Thread(() -> { while (true); }).start(); return 2 * n; }\n", TWICE, "passed"),
        },
    )  # fmt: skip


def test_a_test_program_must_run_to_its_end():
    throws = ProgramTests(
        "public class Main {\n  public static void main(String[] args) throws Exception {\n"
        "    if (new Solution().twice(2) != 4) throw new AssertionError();\n    System.exit(0 * Solution.K);\n  }\n}\n"
    )
    ends = ProgramTests(throws.after.replace("    System.exit(0 * Solution.K);\n", ""))
    asserts = ProgramTests(
        "class Main {\n  public static void main(String[] args) {\n    assert new Solution().twice(2) == 4;\n  }\n}\n"
    )
    answer = "import java.util.*;\nclass Solution {\n  static final int K = 2;\n  public int twice(int n) { return BODY; }\n}\n"
    right, wrong = answer.replace("BODY", "K * n"), answer.replace("BODY", "n")
    own_main = right.replace("static final", "public static void main(String[] a) { throw new Error(); } static final")
    check(
        "java",
        {
            "right": (right, ends, "passed"),
            "wrong": (wrong, ends, "failed"),
            "right, assert": (right, asserts, "passed"),
            "wrong, assert": (wrong, asserts, "failed"),
            "tests that exit": (right, throws, "runtime_error"),
            "exit": (answer.replace("BODY", "exit()").replace("static final", "int exit() { System.exit(0); return 4; } static final"), ends, "runtime_error"),
            "public class": ("public " + right.replace("import java.util.*;\n", ""), ends, "passed"),
            "main of its own": (own_main, ends, "passed"),
            "does not compile": (answer.replace("BODY", ""), ends, "compile_error"),
        },
    )  # fmt: skip
