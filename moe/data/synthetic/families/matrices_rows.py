"""Matrices of whole numbers, row by row and column by column."""

from __future__ import annotations

from collections.abc import Callable

from moe.data.synthetic.family import Blueprint, Part, ask, family
from moe.data.synthetic.inputs import MATRICES
from moe.data.synthetic.parts import AGGREGATES, INT_PREDICATES, MATRIX


@family("matrices", axis=("row", "column"), aggregate=("sum", "largest element", "smallest element"))
def aggregate_axis(axis: str, aggregate: str) -> Blueprint:
    function = {"sum": "sum", "largest element": "max", "smallest element": "min"}[aggregate]
    stream = "sum()" if function == "sum" else f"{function}().getAsInt()"
    reduce = "row.reduce((total, value) => total + value, 0)" if function == "sum" else f"Math.{function}(...row)"
    column = reduce.replace("row", "column")
    cpp_row = {
        "sum": "std::accumulate(row.begin(), row.end(), 0)",
        "max": "*std::max_element(row.begin(), row.end())",
        "min": "*std::min_element(row.begin(), row.end())",
    }[function]
    by_row = {
        "python": f"return [{function}(row) for row in @m]",
        "java": f"return Arrays.stream(@m).map(row -> Arrays.stream(row).{stream}).collect(Collectors.toList());",
        "javascript": f"return @m.map((row) => {reduce});",
        "cpp": f"""
            std::vector<int> result;
            for (const auto& row : @m) {{
                result.push_back({cpp_row});
            }}
            return result;
        """,
    }

    update = "result[j] += @m[i][j];" if function == "sum" else f"result[j] = std::{function}(result[j], @m[i][j]);"
    by_column = {
        "python": f"return [{function}(column) for column in zip(*@m)]",
        "java": f"""
            List<Integer> result = new ArrayList<>();
            for (int j = 0; j < @m[0].length; j++) {{
                int column = j;
                result.add(Arrays.stream(@m).mapToInt(row -> row[column]).{stream});
            }}
            return result;
        """,
        "javascript": f"""
            return @m[0].map((_, j) => {{
                const column = @m.map((row) => row[j]);
                return {column};
            }});
        """,
        "cpp": f"""
            std::vector<int> result = @m[0];
            for (std::size_t i = 1; i < @m.size(); ++i) {{
                for (std::size_t j = 0; j < result.size(); ++j) {{
                    {update}
                }}
            }}
            return result;
        """,
    }
    return Blueprint(
        texts=ask(f"a list of the {aggregate} of each {axis}~", place="of a @m", given="a @m", verb="Build"),
        name=f"{axis} {aggregate.split()[0]}s" if function == "sum" else f"{aggregate.split()[0]} in {axis}s",
        arguments={"@m": "matrix[int]"},
        returns="list[int]",
        nouns=MATRIX,
        code=by_row if axis == "row" else by_column,
        oracle=lambda m: [AGGREGATES[function](line) for line in (m if axis == "row" else zip(*m))],
        inputs=MATRICES,
    )


@family("matrices", predicate=INT_PREDICATES, axis=("row", "column"), goal=("sum", "count"))
def axis_totals(predicate: Part, axis: str, goal: str) -> Blueprint:
    chosen = predicate.of("elements")
    what = f"a list with the {'sum' if goal == 'sum' else 'number'} of the {chosen} in each {axis}~"
    value = "value" if goal == "sum" else "1"
    lines = "row in @m" if axis == "row" else "column in zip(*@m)"
    reduce = ".reduce((total, value) => total + value, 0)" if goal == "sum" else ".length"
    stream = ".sum()" if goal == "sum" else ".count()"
    update = "+= value" if goal == "sum" else "++"
    cast = "" if goal == "sum" else "(int) "
    by_row = {
        "java": f"""
            return Arrays.stream(@m)
                    .map(row -> {cast}Arrays.stream(row).filter(value -> @pred){stream})
                    .collect(Collectors.toList());
        """,
        "javascript": f"""
            return @m.map((row) => {{
                const chosen = row.filter((value) => @pred);
                return chosen{reduce};
            }});
        """,
        "cpp": f"""
            std::vector<int> result;
            for (const auto& row : @m) {{
                int total = 0;
                for (int value : row) {{
                    if (@pred) {{
                        {"total += value" if goal == "sum" else "++total"};
                    }}
                }}
                result.push_back(total);
            }}
            return result;
        """,
    }
    by_column = {
        "java": f"""
            Integer[] totals = new Integer[@m[0].length];
            Arrays.fill(totals, 0);
            for (int[] row : @m) {{
                for (int j = 0; j < row.length; j++) {{
                    int value = row[j];
                    if (@pred) {{
                        totals[j] {update};
                    }}
                }}
            }}
            return Arrays.asList(totals);
        """.replace(" ++;", "++;"),
        "javascript": f"""
            return @m[0].map((_, j) => {{
                const column = @m.map((row) => row[j]);
                return column.filter((value) => @pred){reduce};
            }});
        """,
        "cpp": f"""
            std::vector<int> totals(@m[0].size());
            for (const auto& row : @m) {{
                for (std::size_t j = 0; j < row.size(); ++j) {{
                    const int value = row[j];
                    if (@pred) {{
                        {"totals[j] += value" if goal == "sum" else "++totals[j]"};
                    }}
                }}
            }}
            return totals;
        """,
    }
    return Blueprint(
        texts=ask(what, place="of a @m", given="a @m", verb="Build"),
        name=f"{goal} {predicate.name} per {axis}",
        arguments={"@m": "matrix[int]"},
        returns="list[int]",
        nouns=MATRIX,
        parts={"pred": (predicate, "value")},
        code={
            "python": f"return [sum({value} for value in {axis} if @pred) for {lines}]",
            **(by_row if axis == "row" else by_column),
        },
        oracle=lambda m: [
            AGGREGATES[goal]([v for v in line if predicate.apply(v)])
            for line in (m if axis == "row" else [[row[j] for row in m] for j in range(len(m[0]))])
        ],
        inputs=MATRICES,
    )


@family("matrices", predicate=INT_PREDICATES, measure=("sum", "largest element", "first element", "last element"))
def filter_rows(predicate: Part, measure: str) -> Blueprint:
    python, java, javascript, cpp = {
        "sum": (
            "sum(row)",
            "Arrays.stream(row).sum()",
            "row.reduce((total, item) => total + item, 0)",
            "std::accumulate(row.begin(), row.end(), 0)",
        ),
        "largest element": (
            "max(row)",
            "Arrays.stream(row).max().getAsInt()",
            "Math.max(...row)",
            "*std::max_element(row.begin(), row.end())",
        ),
        "first element": ("row[0]", "row[0]", "row[0]", "row[0]"),
        "last element": ("row[-1]", "row[row.length - 1]", "row[row.length - 1]", "row.back()"),
    }[measure]
    measures: dict[str, Callable[..., int]] = {"sum": sum, "largest element": max}
    measured = measures.get(measure, lambda row: row[0 if measure[0] == "f" else len(row) - 1])
    return Blueprint(
        texts=(
            f"Return the rows of a @m whose {measure} {predicate.singular}.",
            f"Given a @m, keep only the rows whose {measure} {predicate.singular}.",
            f"Select the rows of a @m in which the {measure} {predicate.singular}.",
        ),
        name=f"rows with {predicate.name} {measure}" if predicate.before else f"rows with {measure} {predicate.name}",
        arguments={"@m": "matrix[int]"},
        returns="matrix[int]",
        nouns=MATRIX,
        parts={"pred": (predicate, "value"), "row_pred": (predicate, python)},
        code={
            "python": "return [row for row in @m if @row_pred]",
            "java": f"""
                return Arrays.stream(@m)
                        .filter(row -> {{
                            int value = {java};
                            return @pred;
                        }})
                        .toArray(int[][]::new);
            """,
            "javascript": f"""
                return @m.filter((row) => {{
                    const value = {javascript};
                    return @pred;
                }});
            """,
            "cpp": f"""
                std::vector<std::vector<int>> result;
                for (const auto& row : @m) {{
                    const int value = {cpp};
                    if (@pred) {{
                        result.push_back(row);
                    }}
                }}
                return result;
            """,
        },
        oracle=lambda m: [row for row in m if predicate.apply(measured(row))],
        inputs=(*MATRICES, ([[-5, -1], [40, 60], [-9, 3]],)),
    )


@family("matrices", predicate=INT_PREDICATES, quantifier=("all", "any"))
def count_rows(predicate: Part, quantifier: str) -> Blueprint:
    condition = (
        f"all elements {predicate.plural}" if quantifier == "all" else f"at least one element {predicate.singular}"
    )
    java, javascript, cpp = ("allMatch", "every", "all_of") if quantifier == "all" else ("anyMatch", "some", "any_of")
    return Blueprint(
        texts=(
            f"Count the rows of a @m in which {condition}.",
            f"Return the number of rows of a @m in which {condition}.",
            f"Given a @m, find in how many of its rows {condition}.",
        ),
        name=f"count rows {quantifier} {predicate.name}",
        arguments={"@m": "matrix[int]"},
        returns="int",
        nouns=MATRIX,
        parts={"pred": (predicate, "value")},
        code={
            "python": f"return sum({quantifier}(@pred for value in row) for row in @m)",
            "java": f"""
                return (int) Arrays.stream(@m)
                        .filter(row -> Arrays.stream(row).{java}(value -> @pred))
                        .count();
            """,
            "javascript": f"return @m.filter((row) => row.{javascript}((value) => @pred)).length;",
            "cpp": f"""
                int count = 0;
                for (const auto& row : @m) {{
                    if (std::{cpp}(row.begin(), row.end(), [](int value) {{ return @pred; }})) {{
                        ++count;
                    }}
                }}
                return count;
            """,
        },
        oracle=lambda m: len(
            [
                row
                for row in m
                if len([v for v in row if predicate.apply(v)]) >= (len(row) if quantifier == "all" else 1)
            ]
        ),
        inputs=(
            *MATRICES,
            ([[2, 4], [12, 60], [-3, -9], [7, 35], [9, 15], [1, 3], [8, 16], [51, 91], [20, 10], [11, 6], [14, 28]],),
        ),
    )
