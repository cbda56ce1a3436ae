"""Matrices built, rearranged, combined; diagonals, edges and triangles."""

from __future__ import annotations

import re

from moe.data.synthetic.family import Blueprint, Part, family, grid_like
from moe.data.synthetic.inputs import MATRICES, SQUARE_MATRICES
from moe.data.synthetic.parts import ABSOLUTE, AGGREGATES, CUBE, DOUBLE, INT_PREDICATES, MATRIX, PAIRWISE, SAME, SQUARE


@family(
    "matrices",
    which=("main", "other"),
    goal=("sum", "largest", "smallest", "list"),
    transform=(SAME, SQUARE, DOUBLE, ABSOLUTE, CUBE),
)
def diagonal(which: str, goal: str, transform: Part) -> Blueprint:
    name = "main diagonal" if which == "main" else "diagonal from the upper right to the lower left"
    elements = f"elements on the {name} of a square @m"
    of = f"the {transform.noun} of the {elements}" if transform.noun else f"the {elements}"
    how = f", each {transform.text}" if transform.text and not transform.noun else ""
    what = f"{'a list' if goal == 'list' else f'the {goal}'} of {of}{how}"
    item = "@m[i][i]" if which == "main" else "@m[i][@m.LENGTH - 1 - i]"
    python_item = "@m[i][i]" if which == "main" else "@m[i][-1 - i]"
    function = {"sum": "sum", "largest": "max", "smallest": "min", "list": ""}[goal]
    inner = "@python_out for i in range(len(@m))"
    declare, update = {
        "sum": ("int total = 0", "total += @out"),
        "list": ("List<Integer> result = new ArrayList<>()", "result.add(@out)"),
        "largest": ("int largest = Integer.MIN_VALUE", "largest = Math.max(largest, @out)"),
        "smallest": ("int smallest = Integer.MAX_VALUE", "smallest = Math.min(smallest, @out)"),
    }[goal]
    code = grid_like(f"""
        {declare};
        for (int i = 0; i < ROWS; i++) {{
            const int value = {item};
            {update};
        }}
        return {declare.split()[1]};
    """)
    code["javascript"] = code["javascript"].replace("List<Integer> result = new ArrayList<>()", "const result = []")
    code["javascript"] = code["javascript"].replace("Integer.MIN_VALUE", "-Infinity").replace("add(", "push(")
    code["javascript"] = code["javascript"].replace("Integer.MAX_VALUE", "Infinity")
    code["cpp"] = code["cpp"].replace("List<Integer> result = new ArrayList<>()", "std::vector<int> result")
    code["cpp"] = code["cpp"].replace("Integer.MIN_VALUE", "INT_MIN").replace("Integer.MAX_VALUE", "INT_MAX")
    code["cpp"] = code["cpp"].replace("add(", "push_back(").replace("LENGTH", "size()")
    code = {key: body.replace("LENGTH", "length") for key, body in code.items()}
    return Blueprint(
        texts=(
            f"Return {what}.",
            f"Given a square @m, return {what.replace('a square @m', 'it')}.",
            f"Compute {what}.",
        ),
        name=f"{goal} of {'diagonal' if which == 'main' else 'other diagonal'}".replace("list of ", ""),
        arguments={"@m": "matrix[int]"},
        returns="list[int]" if goal == "list" else "int",
        nouns=MATRIX,
        parts={"out": (transform, "value"), "python_out": (transform, python_item)},
        code={"python": f"return [{inner}]" if goal == "list" else f"return {function}({inner})", **code},
        oracle=lambda m: AGGREGATES[goal](
            [transform.apply(row[i] if which == "main" else row[len(m) - 1 - i]) for i, row in enumerate(m)]
        ),
        inputs=SQUARE_MATRICES,
    )


@family("matrices", on=(0, 1, 2, 3, 5, 9), off=(0, 1, -1, 7), allowed=lambda on, off: on != off)
def diagonal_matrix(on: int, off: int) -> Blueprint:
    rule = f"{on} on the main diagonal and {off} everywhere else"
    return Blueprint(
        texts=(
            f"Build a square matrix with @n rows that has {rule}.",
            f"Given @n, return a square matrix with @n rows and {rule}.",
            f"Return a square matrix of size @n with {rule}.",
        ),
        name="diagonal matrix",
        arguments={"@n": "int"},
        returns="matrix[int]",
        nouns=({"n": "n"}, {"n": "size"}),
        code={
            "python": f"return [[{on} if i == j else {off} for j in range(@n)] for i in range(@n)]",
            **grid_like(f"""
                int[][] result = new int[@n][@n];
                for (int i = 0; i < @n; i++) {{
                    for (int j = 0; j < @n; j++) {{
                        result[i][j] = i == j ? {on} : {off};
                    }}
                }}
                return result;
            """),
        },
        oracle=lambda n: [[off] * i + [on] + [off] * (n - 1 - i) for i in range(n)],
        inputs=((1,), (2,), (3,), (5,)),
    )


_FORMULAS = {
    "sum": ("i + j", lambda i, j: j + i),
    "product": ("i * j", lambda i, j: sum([i] * j)),
    "difference": ("i - j", lambda i, j: -(j - i)),
    "larger": ("max(i, j)", lambda i, j: i if i > j else j),
    "smaller": ("min(i, j)", lambda i, j: j if i > j else i),
}


@family("matrices", value=tuple(_FORMULAS), offset=(0, 1, 2, 5), times=(1, 2, 3))
def table(value: str, offset: int, times: int) -> Blueprint:
    expression, apply = _FORMULAS[value]
    of = {"difference": "the row index minus the column index"}.get(value, f"the {value} of row and column index")
    words = {1: of, 2: f"twice {of}", 3: f"three times {of}"}[times] + (f" plus {offset}" if offset else "")
    inner = (
        expression
        if times == 1
        else f"{times} * ({expression})"
        if "(" not in expression
        else f"{times} * {expression}"
    )
    inner += f" + {offset}" if offset else ""
    return Blueprint(
        texts=(
            f"Build a matrix with the given rows and columns in which each element is {words}.",
            f"Given rows and columns, return a matrix of that size whose elements are {words}, counting from 0.",
        ),
        name=f"{value} table",
        arguments={"rows": "int", "columns": "int"},
        returns="matrix[int]",
        nouns=({},),
        code={
            "python": f"return [[{inner} for j in range(columns)] for i in range(rows)]",
            **grid_like(f"""
                int[][] result = new int[rows][columns];
                for (int i = 0; i < rows; i++) {{
                    for (int j = 0; j < columns; j++) {{
                        result[i][j] = {inner.replace("max(", "Math.max(").replace("min(", "Math.min(")};
                    }}
                }}
                return result;
            """),
        },
        oracle=lambda rows, columns: [[times * apply(i, j) + offset for j in range(columns)] for i in range(rows)],
        inputs=((1, 1), (2, 3), (4, 2), (5, 5)),
    )


_ELEMENTWISE = {
    "sum": "a[i][j] + b[i][j]",
    "difference": "a[i][j] - b[i][j]",
    "product": "a[i][j] * b[i][j]",
    "larger": "max(a[i][j], b[i][j])",
    "smaller": "min(a[i][j], b[i][j])",
}


@family("matrices", operation=tuple(_ELEMENTWISE), transform=(SAME, SQUARE, DOUBLE, ABSOLUTE))
def combine_matrices(operation: str, transform: Part) -> Blueprint:
    expression = _ELEMENTWISE[operation]
    python = re.sub(r"\b([ab])\[i\]\[j\]", lambda match: {"a": "x", "b": "y"}[match[1]], expression)
    python = python if transform in (SAME, ABSOLUTE) or "(" in python else f"({python})"
    how = f", {transform.text}" if transform.text else ""
    of = {"larger": "the larger element", "smaller": "the smaller element"}.get(
        operation, f"the {operation} of the elements"
    )
    other = expression.replace("max(", "Math.max(").replace("min(", "Math.min(")
    body = f"""
        int[][] result = new int[a.length][a[0].length];
        for (int i = 0; i < a.length; i++) {{
            for (int j = 0; j < a[0].length; j++) {{
                const int value = {other};
                result[i][j] = @out;
            }}
        }}
        return result;
    """
    if transform is SAME:
        body = re.sub(r" *const int value.*\n", "", body).replace("@out", other)
    code = grid_like(body)
    apply = PAIRWISE[operation]
    return Blueprint(
        texts=(
            f"Given two matrices a and b of equal size, return a matrix with {of} at each place{how}.",
            f"Return the matrix that has {of} of a and b at each place{how}.".replace(
                "elements of a", "elements of matrices a"
            ),
        ),
        name=f"elementwise {transform.name} {operation}",
        arguments={"a": "matrix[int]", "b": "matrix[int]"},
        returns="matrix[int]",
        nouns=({},),
        parts={"out": (transform, "value")},
        code={
            "python": f"return [[{transform.render('python', python)} for x, y in zip(p, q)] for p, q in zip(a, b)]",
            **code,
        },
        oracle=lambda a, b: [
            [transform.apply(apply(a[i][j], b[i][j])) for j in range(len(a[0]))] for i in range(len(a))
        ],
        inputs=(
            ([[1]], [[4]]),
            ([[1, 2, 3], [-4, 5, 6]], [[7, -8, 9], [0, 1, -2]]),
            ([[3, 9], [5, 5]], [[4, 2], [6, 5]]),
        ),
    )


_EDGES = {
    "first row": ("@m[0]", "for (int value : @m[0])"),
    "last row": ("@m[-1]", "for (int value : @m[ROWS - 1])"),
    "first column": ("[row[0] for row in @m]", "row[0]"),
    "last column": ("[row[-1] for row in @m]", "row[row.length - 1]"),
}


@family("matrices", edge=tuple(_EDGES), predicate=INT_PREDICATES, goal=("sum", "count"))
def edge_total(edge: str, predicate: Part, goal: str) -> Blueprint:
    row_wise = edge.endswith("row")
    python, loop = _EDGES[edge]
    what = f"the {goal if goal == 'sum' else 'number'} of the {predicate.of('elements')} in the {edge} of a @m"
    declare, update = ("int total = 0", "total += value") if goal == "sum" else ("int count = 0", "count++")
    items = {"python": python if row_wise else f"({python[1:-1]})"}
    head = f"{loop} {{" if row_wise else f"for (int[] row : @m) {{\n            const int value = {loop};"
    code = grid_like(f"""
        {declare};
        {head}
            if (@pred) {{
                {update};
            }}
        }}
        return {declare.split()[1]};
    """)
    code["javascript"] = code["javascript"].replace("int[] row :", "const row of")
    code["cpp"] = code["cpp"].replace("int[] row", "const auto& row").replace("row[row.length - 1]", "row.back()")
    value = "value" if goal == "sum" else "1"
    if row_wise:
        python_body = f"return sum({value} for value in {items['python']} if @pred)"
    else:
        column = "0" if edge.startswith("first") else "-1"
        python_body = f"return sum({value if goal == 'count' else f'row[{column}]'} for row in @m if @row_pred)"
    return Blueprint(
        texts=(f"Return {what}.", f"Given a @m, return {what.replace('a @m', 'it')}.", f"Compute {what}."),
        name=f"{goal} {predicate.name} in {edge}",
        arguments={"@m": "matrix[int]"},
        returns="int",
        nouns=MATRIX,
        parts={
            "pred": (predicate, "value"),
            "row_pred": (predicate, f"row[{'0' if edge.startswith('first') else '-1'}]"),
        },
        code={"python": python_body, **code},
        oracle=lambda m: AGGREGATES[goal](
            [
                m[i][j]
                for i in range(len(m))
                for j in range(len(m[0]))
                if {"first row": i == 0, "last row": i == len(m) - 1, "first column": j == 0}.get(
                    edge, j == len(m[0]) - 1
                )
                and predicate.apply(m[i][j])
            ]
        ),
        inputs=(*MATRICES, ([[-5, -1], [40, 60], [-9, 3]],)),
    )


@family("matrices", side=("above", "below"), diagonal=(True, False), predicate=INT_PREDICATES)
def triangle_sum(side: str, diagonal: bool, predicate: Part) -> Blueprint:
    place = f"on or {side} the main diagonal" if diagonal else f"{side} the main diagonal"
    what = f"the sum of the {predicate.of('elements')} {place} of a square @m"
    start, end = {
        ("above", True): ("i", "ROWS"),
        ("above", False): ("i + 1", "ROWS"),
        ("below", True): ("0", "i + 1"),
        ("below", False): ("0", "i"),
    }[side, diagonal]
    bounds = f"{start}, len(@m)" if end == "ROWS" else end
    test = "j <= i" if end == "i + 1" else f"j < {end}"
    return Blueprint(
        texts=(
            f"Return {what}.",
            f"Given a square @m, return {what.replace('a square @m', 'it')}.",
            f"Compute {what}.",
        ),
        name=f"sum {predicate.name} {side} diagonal",
        arguments={"@m": "matrix[int]"},
        returns="int",
        nouns=MATRIX,
        parts={"pred": (predicate, "@m[i][j]")},
        code={
            "python": f"return sum(@m[i][j] for i in range(len(@m)) for j in range({bounds}) if @pred)",
            **grid_like(f"""
                int total = 0;
                for (int i = 0; i < ROWS; i++) {{
                    for (int j = {start}; {test}; j++) {{
                        if (@pred) {{
                            total += @m[i][j];
                        }}
                    }}
                }}
                return total;
            """),
        },
        oracle=lambda m: sum(
            v
            for i, row in enumerate(m)
            for j, v in enumerate(row)
            if ((j > i if side == "above" else j < i) or (diagonal and i == j)) and predicate.apply(v)
        ),
        inputs=SQUARE_MATRICES,
    )


@family("matrices", how=("transpose", "mirror", "flip", "clockwise", "counterclockwise", "half turn"))
def rearrange(how: str) -> Blueprint:
    said, python, (size, item), oracle = {
        "transpose": (
            "transposed, rows becoming columns",
            "[list(column) for column in zip(*@m)]",
            ("COLS ROWS", "@m[j][i]"),
            lambda m: [[row[i] for row in m] for i in range(len(m[0]))],
        ),
        "mirror": (
            "mirrored from left to right",
            "[row[::-1] for row in @m]",
            ("ROWS COLS", "@m[i][COLS - 1 - j]"),
            lambda m: [list(reversed(row)) for row in m],
        ),
        "flip": (
            "flipped upside down",
            "[row[:] for row in @m[::-1]]",
            ("ROWS COLS", "@m[ROWS - 1 - i][j]"),
            lambda m: list(reversed(m)),
        ),
        "clockwise": (
            "turned clockwise by a quarter",
            "[list(column) for column in zip(*@m[::-1])]",
            ("COLS ROWS", "@m[ROWS - 1 - j][i]"),
            lambda m: [[row[i] for row in reversed(m)] for i in range(len(m[0]))],
        ),
        "counterclockwise": (
            "turned counterclockwise by a quarter",
            "[list(column) for column in zip(*@m)][::-1]",
            ("COLS ROWS", "@m[j][COLS - 1 - i]"),
            lambda m: [[row[-1 - i] for row in m] for i in range(len(m[0]))],
        ),
        "half turn": (
            "turned by a half",
            "[row[::-1] for row in @m[::-1]]",
            ("ROWS COLS", "@m[ROWS - 1 - i][COLS - 1 - j]"),
            lambda m: [list(reversed(row)) for row in reversed(m)],
        ),
    }[how]
    rows, columns = size.split()
    return Blueprint(
        texts=(f"Return a @m {said}.", f"Given a @m, return a copy of it {said}.", f"Make a new @m from a @m, {said}."),
        name=f"{how} @m",
        arguments={"@m": "matrix[int]"},
        returns="matrix[int]",
        nouns=MATRIX,
        code={
            "python": f"return {python}",
            **grid_like(f"""
                int[][] result = new int[{rows}][{columns}];
                for (int i = 0; i < {rows}; i++) {{
                    for (int j = 0; j < {columns}; j++) {{
                        result[i][j] = {item};
                    }}
                }}
                return result;
            """),
        },
        oracle=oracle,
        inputs=MATRICES,
    )
