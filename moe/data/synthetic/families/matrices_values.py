"""Matrices of whole numbers: elements chosen by a predicate."""

from __future__ import annotations

import itertools

from moe.data.synthetic.family import Blueprint, Part, ask, c_like, family
from moe.data.synthetic.inputs import MATRICES
from moe.data.synthetic.parts import (
    ABSOLUTE,
    CHANGES,
    CUBE,
    DOUBLE,
    INT_PREDICATES,
    MATRIX,
    SAME,
    SQUARE,
    TRIPLE,
    transformed,
)


@family("matrices", predicate=INT_PREDICATES)
def count_in_matrix(predicate: Part) -> Blueprint:
    chosen = predicate.of("elements")
    loop = """
        int count = 0;
        for (int[] row : @m) {
            for (int value : row) {
                if (@pred) {
                    count++;
                }
            }
        }
        return count;
    """
    return Blueprint(
        texts=(
            f"Count the {chosen} in a @m.",
            f"Return the number of {chosen} in a @m.",
            f"Given a @m, return how many {chosen} it has.",
        ),
        name=f"count {predicate.naming('elements')}",
        arguments={"@m": "matrix[int]"},
        returns="int",
        nouns=MATRIX,
        parts={"pred": (predicate, "value")},
        code={
            "python": "return sum(1 for row in @m for value in row if @pred)",
            "java": loop,
            "javascript": "return @m.flat().filter((value) => @pred).length;",
            "cpp": loop.replace("int[] row", "const auto& row").replace("count++", "++count"),
        },
        oracle=lambda m: sum(1 for row in m for value in row if predicate.apply(value)),
        inputs=MATRICES,
    )


@family("matrices", predicate=INT_PREDICATES, transform=CHANGES)
def update_elements(predicate: Part, transform: Part) -> Blueprint:
    condition = predicate.text.removeprefix("of ")
    return Blueprint(
        texts=(
            f"Return a copy of a @m in which each element that is {condition} is {transform.text}.",
            f"Given a @m, return a new one where every element that is {condition} is {transform.text}.",
        ),
        name=f"update {predicate.naming('elements')}",
        arguments={"@m": "matrix[int]"},
        returns="matrix[int]",
        nouns=MATRIX,
        parts={"pred": (predicate, "value"), "out": (transform, "value")},
        code={
            "python": "return [[@out if @pred else value for value in row] for row in @m]",
            "java": """
                return Arrays.stream(@m)
                        .map(row -> Arrays.stream(row).map(value -> @pred ? @out : value).toArray())
                        .toArray(int[][]::new);
            """,
            "javascript": "return @m.map((row) => row.map((value) => (@pred ? @out : value)));",
            "cpp": """
                auto result = @m;
                for (auto& row : result) {
                    for (int& value : row) {
                        value = @pred ? @out : value;
                    }
                }
                return result;
            """,
        },
        oracle=lambda m: [[transform.apply(v) if predicate.apply(v) else v for v in row] for row in m],
        inputs=MATRICES,
    )


@family("matrices", predicate=INT_PREDICATES, transform=(SAME, SQUARE, CUBE, DOUBLE, TRIPLE, ABSOLUTE))
def sum_in_matrix(predicate: Part, transform: Part) -> Blueprint:
    goal = f"the sum of {transformed(transform, predicate.of('elements'))}"
    loop = """
        int total = 0;
        for (int[] row : @m) {
            for (int value : row) {
                if (@pred) {
                    total += @out;
                }
            }
        }
        return total;
    """
    return Blueprint(
        texts=ask(goal, place="in a @m", given="a @m"),
        name=f"sum {transform.name} {predicate.naming('elements')}",
        arguments={"@m": "matrix[int]"},
        returns="int",
        nouns=MATRIX,
        parts={"pred": (predicate, "value"), "out": (transform, "value")},
        code={
            "python": "return sum(@out for row in @m for value in row if @pred)",
            "java": loop,
            "javascript": """
                return @m
                    .flat()
                    .filter((value) => @pred)
                    .reduce((total, value) => total + @out, 0);
            """,
            "cpp": loop.replace("int[] row", "const auto& row"),
        },
        oracle=lambda m: sum(transform.apply(v) for v in itertools.chain(*m) if predicate.apply(v)),
        inputs=MATRICES,
    )


@family("matrices", predicate=INT_PREDICATES, extreme=("largest", "smallest"))
def extreme_in_matrix(predicate: Part, extreme: str) -> Blueprint:
    what = f"the {extreme} of the {predicate.of('elements')}~, or 0 if there are none"
    function = "max" if extreme == "largest" else "min"
    return Blueprint(
        texts=ask(what, place="in a @m", given="a @m", verb="Find"),
        name=f"{extreme} {predicate.naming('element')}",
        arguments={"@m": "matrix[int]"},
        returns="int",
        nouns=MATRIX,
        parts={"pred": (predicate, "value")},
        code={
            "python": f"return {function}((value for row in @m for value in row if @pred), default=0)",
            "java": f"""
                return Arrays.stream(@m)
                        .flatMapToInt(Arrays::stream)
                        .filter(value -> @pred)
                        .{function}()
                        .orElse(0);
            """,
            "javascript": f"""
                const chosen = @m.flat().filter((value) => @pred);
                return chosen.length > 0 ? Math.{function}(...chosen) : 0;
            """,
            "cpp": f"""
                std::optional<int> best;
                for (const auto& row : @m) {{
                    for (int value : row) {{
                        if (@pred) {{
                            best = std::{function}(best.value_or(value), value);
                        }}
                    }}
                }}
                return best.value_or(0);
            """,
        },
        oracle=lambda m: (
            sorted((v for row in m for v in row if predicate.apply(v)), reverse=extreme == "largest") + [0]
        )[0],
        inputs=MATRICES,
    )


@family("matrices", predicate=INT_PREDICATES, order=("row", "column"))
def flatten(predicate: Part, order: str) -> Blueprint:
    what = f"a list of the {predicate.of('elements')}~, {order} by {order}"
    outer, inner = ("i < ROWS", "j < COLS") if order == "row" else ("j < COLS", "i < ROWS")
    first, second = outer[0], inner[0]
    loop = f"""
        for (int {first} = 0; {outer}; {first}++) {{
            for (int {second} = 0; {inner}; {second}++) {{
                const int value = @m[i][j];
                if (@pred) {{
                    result.add(value);
                }}
            }}
        }}
        return result;
    """
    code = c_like(loop)
    code["java"] = "List<Integer> result = new ArrayList<>();" + code["java"]
    code["javascript"] = "const result = [];" + code["javascript"].replace(".add(", ".push(")
    code["cpp"] = "std::vector<int> result;" + code["cpp"].replace(".add(", ".push_back(").replace(
        "(int ", "(std::size_t "
    )
    sizes = {"java": "length", "javascript": "length", "cpp": "size()"}
    code = {
        key: "\n        " + body.replace("ROWS", f"@m.{sizes[key]}").replace("COLS", f"@m[0].{sizes[key]}")
        for key, body in code.items()
    }
    if order == "row":
        code["javascript"] = "return @m.flat().filter((value) => @pred);"
    lines = "for row in @m for value in row" if order == "row" else "for column in zip(*@m) for value in column"
    return Blueprint(
        texts=ask(what, place="of a @m", given="a @m", verb="Build"),
        name=f"flatten {predicate.name}" if order == "row" else f"flatten columns {predicate.name}",
        arguments={"@m": "matrix[int]"},
        returns="list[int]",
        nouns=MATRIX,
        parts={"pred": (predicate, "value")},
        code={"python": f"return [value {lines} if @pred]", **code},
        oracle=lambda m: [
            v
            for v in (
                [m[k // len(m[0])][k % len(m[0])] for k in range(len(m) * len(m[0]))]
                if order == "row"
                else [m[k % len(m)][k // len(m)] for k in range(len(m) * len(m[0]))]
            )
            if predicate.apply(v)
        ],
        inputs=MATRICES,
    )


@family("matrices", predicate=INT_PREDICATES)
def find_in_matrix(predicate: Part) -> Blueprint:
    chosen = predicate.of("elements")
    return Blueprint(
        texts=(
            f"Return a list of the [row, column] indices of the {chosen} in a @m.",
            f"Given a @m, list the row and column index of each of the {chosen}.",
            f"Find the positions of the {chosen} in a @m as a list of [row, column] lists.",
        ),
        name=f"positions of {predicate.naming('elements')}",
        arguments={"@m": "matrix[int]"},
        returns="list[list[int]]",
        nouns=MATRIX,
        parts={"pred": (predicate, "value"), "item_pred": (predicate, "@m[i][j]")},
        code={
            "python": "return [[i, j] for i, row in enumerate(@m) for j, value in enumerate(row) if @pred]",
            "java": """
                List<List<Integer>> result = new ArrayList<>();
                for (int i = 0; i < @m.length; i++) {
                    for (int j = 0; j < @m[i].length; j++) {
                        if (@item_pred) {
                            result.add(List.of(i, j));
                        }
                    }
                }
                return result;
            """,
            "javascript": """
                const result = [];
                @m.forEach((row, i) => {
                    row.forEach((value, j) => {
                        if (@pred) {
                            result.push([i, j]);
                        }
                    });
                });
                return result;
            """,
            "cpp": """
                std::vector<std::vector<int>> result;
                for (int i = 0; i < static_cast<int>(@m.size()); ++i) {
                    for (int j = 0; j < static_cast<int>(@m[i].size()); ++j) {
                        if (@item_pred) {
                            result.push_back({i, j});
                        }
                    }
                }
                return result;
            """,
        },
        oracle=lambda m: [
            [k // len(m[0]), k % len(m[0])]
            for k in range(len(m) * len(m[0]))
            if predicate.apply(m[k // len(m[0])][k % len(m[0])])
        ],
        inputs=MATRICES,
    )
