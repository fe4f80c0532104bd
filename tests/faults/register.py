"""Which tests answer for which fault, read from the source of the suite: ``python tests/faults/register.py`` prints it.

A test answers for the numbers in its ``@pytest.mark.fault(...)``, in those of its class, in the ``pytestmark`` of its
module and in the ``marks=`` of its parameters. Read, not collected: what a machine skips is in the register too.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from catalogue import FAULTS, NOT_RUN

TESTS = Path(__file__).parents[1]


def marked(folder: Path = TESTS) -> dict[int, list[str]]:
    """Return the tests of each number, as ``path::name``; raise where a marker's argument is no plain number."""
    found: dict[int, list[str]] = {}
    for path in sorted(folder.rglob("test_*.py")):
        where = path.relative_to(folder.parent).as_posix()
        for name, number in _of_body(ast.parse(path.read_text(encoding="utf-8")).body, where, []):
            found.setdefault(number, []).append(f"{where}::{name}")
    return found


def _of_body(body: list[ast.stmt], where: str, outer: list[int]) -> Iterator[tuple[str, int]]:
    """Yield ``(name, number)`` for the tests of a module or a class, which share the numbers ``outer``."""
    shared = list(outer)
    for node in body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "pytestmark" for t in node.targets):
            shared += _numbers(node.value, where)
    for node in body:
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            own = shared + [n for decorator in node.decorator_list for n in _numbers(decorator, where)]
            yield from ((f"{node.name}::{name}", number) for name, number in _of_body(node.body, where, own))
        elif isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
            own = shared + [n for decorator in node.decorator_list for n in _numbers(decorator, where)]
            yield from ((node.name, number) for number in dict.fromkeys(own))


def _numbers(tree: ast.expr, where: str) -> list[int]:
    """Return the arguments of every ``pytest.mark.fault(...)`` in an expression."""
    numbers = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
            for argument in node.args:
                if not (isinstance(argument, ast.Constant) and type(argument.value) is int):
                    raise ValueError(f"{where}:{node.lineno}: fault({ast.unparse(argument)}), expected a plain number")
                numbers.append(argument.value)
    return numbers


def table() -> str:
    """Return the register as text, one fault a line with its tests below."""
    answers = marked()
    lines = []
    for number, sentence in FAULTS.items():
        lines.append(f"{number:4} {sentence}")
        lines += [f"       {test}" for test in answers.get(number, [f"not run: {NOT_RUN.get(number, '???')}"])]
    tests = {test for names in answers.values() for test in names}
    lines.append(
        f"{len(answers)} of {len(FAULTS)} faults have tests, {len(tests)} of them; {len(NOT_RUN)} are not run."
    )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
