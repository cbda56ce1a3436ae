"""Divisors and primes."""

from __future__ import annotations

from typing import Any

from moe.data.synthetic.family import Blueprint, c_like, family
from moe.data.synthetic.parts import AGGREGATES


@family("numbers", kind=("", "proper", "even", "odd"), goal=("sum", "number", "list", "product"))
def divisors(kind: str, goal: str) -> Blueprint:
    limit = "@n" if kind == "proper" else "@n + 1"
    bound = "i < @n" if kind == "proper" else "i <= @n"
    parity = {"even": " && i % 2 == 0", "odd": " && i % 2 != 0"}.get(kind, "")
    test = f"@n % i == 0{parity}"
    chosen = f"{kind} divisors".strip()
    ask = {
        "sum": f"the sum of the {chosen}",
        "number": f"the number of {chosen}",
        "list": f"a list of the {chosen}",
        "product": f"the product of the {chosen}",
    }[goal]
    note = ", that is all divisors except the number itself" if kind == "proper" else ""
    found = f"for i in range(1, {limit}) if {test.replace('&&', 'and')}"
    python = {
        "sum": f"sum(i {found})",
        "number": f"sum(1 {found})",
        "list": f"[i {found}]",
        "product": f"math.prod(i {found})",
    }[goal]
    start, update = {
        "sum": ("int total = 0", "total += i"),
        "number": ("int count = 0", "count++"),
        "product": ("int product = 1", "product *= i"),
        "list": ("List<Integer> result = new ArrayList<>()", "result.add(i)"),
    }[goal]
    code = c_like(f"""
        {start};
        for (int i = 1; {bound}; i++) {{
            if ({test}) {{
                {update};
            }}
        }}
        return {start.split()[1]};
    """)
    if goal == "list":
        code["javascript"] = code["javascript"].replace(start, "const result = []").replace(".add", ".push")
        code["cpp"] = code["cpp"].replace(start, "std::vector<int> result").replace(".add", ".push_back")

    def oracle(n: int) -> int | list[int]:
        all_of = [i for i in range(1, n + 1) if n % i == 0]
        some = {"": all_of, "proper": all_of[:-1]}.get(kind, [i for i in all_of if i % 2 == (kind == "odd")])
        return AGGREGATES[goal](some)

    return Blueprint(
        texts=(
            f"Return {ask} of a positive number called @n{note}.",
            f"Given a positive number called @n, return {ask} of it{note}.",
        ),
        name=f"{goal if goal != 'number' else 'count'} {kind} divisors",
        arguments={"@n": "int"},
        returns="list[int]" if goal == "list" else "int",
        nouns=({"n": "n"}, {"n": "value"}),
        code={"python": f"return {python}", **code},
        oracle=oracle,
        inputs=((1,), (2,), (7,), (12,), (15,), (16,), (30,), (42,)),
    )


@family("numbers", goal=("check", "count", "list", "next"))
def primes(goal: str) -> Blueprint:
    texts = {
        "check": ("Check whether a number n is prime.", "Return true if n is a prime number, otherwise false."),
        "count": ("Count the prime numbers up to n.", "Return how many prime numbers are at most n."),
        "list": ("Return a list of the prime numbers up to n.", "Given n, list all primes that are at most n."),
        "next": ("Return the smallest prime number greater than n.", "Given n, find the next prime after n."),
    }[goal]
    check = """
        if (n < 2) {
            return false;
        }
        for (int i = 2; i * i <= n; i++) {
            if (n % i == 0) {
                return false;
            }
        }
        return true;
    """
    sieve = """
        boolean[] composite = new boolean[Math.max(n, 0) + 1];
        START
        for (int i = 2; i <= n; i++) {
            if (!composite[i]) {
                UPDATE
                for (int j = i * i; j <= n; j += i) {
                    composite[j] = true;
                }
            }
        }
        return RESULT;
    """
    count = sieve.replace("START", "int count = 0;").replace("UPDATE", "count++;").replace("RESULT", "count")
    listed = sieve.replace("START", "List<Integer> primes = new ArrayList<>();").replace("RESULT", "primes")
    listed = listed.replace("UPDATE", "primes.add(i);")
    search = """
        int candidate = Math.max(n, 1) + 1;
        int divisor = 2;
        while (divisor * divisor <= candidate) {
            if (candidate % divisor == 0) {
                candidate++;
                divisor = 2;
            } else {
                divisor++;
            }
        }
        return candidate;
    """
    code = c_like({"check": check, "count": count, "list": listed, "next": search}[goal])
    declared = "boolean[] composite = new boolean[Math.max(n, 0) + 1]"
    code["javascript"] = (
        code["javascript"]
        .replace(declared, "const composite = new Array(Math.max(n, 0) + 1).fill(false)")
        .replace("List<Integer> primes = new ArrayList<>()", "const primes = []")
        .replace(".add(", ".push(")
    )
    code["cpp"] = (
        code["cpp"]
        .replace(declared.replace("Math.", "std::"), "std::vector<bool> composite(std::max(n, 0) + 1)")
        .replace("List<Integer> primes = new ArrayList<>()", "std::vector<int> primes")
        .replace(".add(", ".push_back(")
    )
    python = {
        "check": """
            if n < 2:
                return False
            return all(n % i != 0 for i in range(2, int(n ** 0.5) + 1))
        """,
        "count": """
            composite = set()
            count = 0
            for i in range(2, n + 1):
                if i not in composite:
                    count += 1
                    composite.update(range(i * i, n + 1, i))
            return count
        """,
        "list": """
            composite = set()
            primes = []
            for i in range(2, n + 1):
                if i not in composite:
                    primes.append(i)
                    composite.update(range(i * i, n + 1, i))
            return primes
        """,
        "next": """
            candidate = max(n, 1) + 1
            while any(candidate % i == 0 for i in range(2, int(candidate ** 0.5) + 1)):
                candidate += 1
            return candidate
        """,
    }[goal]

    def oracle(n: int) -> Any:
        known = [p for p in range(2, 200) if all(p % d for d in range(2, p))]
        small = [p for p in known if p <= n]
        return {"check": n in known, "count": len(small), "list": small, "next": min(set(known) - set(small))}[goal]

    return Blueprint(
        texts=texts,
        name={"check": "is prime", "count": "count primes", "list": "list primes", "next": "next prime"}[goal],
        arguments={"n": "int"},
        returns={"check": "bool", "list": "list[int]"}.get(goal, "int"),
        nouns=({},),
        code={"python": python, **code},
        oracle=oracle,
        inputs=((0,), (1,), (2,), (9,), (13,), (25,), (49,), (97,)),
    )
