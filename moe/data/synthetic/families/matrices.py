"""Matrices of whole numbers."""

from __future__ import annotations

from moe.data.synthetic.family import Blueprint, Part, ask, family
from moe.data.synthetic.inputs import MATRICES
from moe.data.synthetic.parts import INT_PREDICATES, INT_TRANSFORMS, MATRIX


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


@family("matrices", predicate=INT_PREDICATES, transform=INT_TRANSFORMS)
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
        oracle=lambda m: [
            {"sum": sum, "max": max, "min": min}[function](line) for line in (m if axis == "row" else zip(*m))
        ],
        inputs=MATRICES,
    )
