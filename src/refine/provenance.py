"""Which code a stage runs: a digest of its script and of every project module it reaches.

A workflow engine sees the script alone. With this digest among a stage's parameters, editing a
module reruns exactly the stages that import it, and a mere touch reruns nothing.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path


def code_digest(
    script: Path, src: Path, modules: Iterable[str] = (), without: Iterable[str] = ()
) -> str:
    """Digests a script and the modules below ``src`` that it imports, directly or not.

    Args:
        script: the Python file to start from.
        src: the folder that holds the project's packages.
        modules: dotted names of modules that the script loads by name, which its imports do not
            show.
        without: dotted names of modules that are passed over.

    Returns:
        A hexadecimal SHA-256 digest of the files' names and bytes.
    """
    src = src.resolve()
    digest = hashlib.sha256()
    for path in sorted(code_files(script, src, modules, without)):
        name = path.relative_to(src) if path.is_relative_to(src) else Path(path.name)
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{name.as_posix()} {content}\n".encode())
    return digest.hexdigest()


def code_files(
    script: Path, src: Path, modules: Iterable[str] = (), without: Iterable[str] = ()
) -> set[Path]:
    """The files of the project that a script runs; arguments as for ``code_digest``.

    Imports inside functions count, those under ``if TYPE_CHECKING`` do not. The packages'
    ``__init__`` files on the way count too, as importing runs them.
    """
    src = src.resolve()
    reached: set[Path] = set()
    passed_over = {src.joinpath(*name.split(".")).with_suffix(".py") for name in without}
    waiting = [script.resolve(), *(file for name in modules for file in _files_of(name, src))]
    while waiting:
        path = waiting.pop()
        if path not in reached and path not in passed_over:
            reached.add(path)
            waiting.extend(_imported_files(path, src))
    return reached


@cache
def _imported_files(path: Path, src: Path) -> frozenset[Path]:
    names = _imported_names(ast.parse(path.read_bytes(), str(path)), path, src)
    return frozenset(file for name in names for file in _files_of(name, src))


def _files_of(name: str, src: Path) -> Iterator[Path]:
    """The files that importing a dotted name runs; none where it is not the project's."""
    folder = src
    for part in name.split("."):
        module, folder = folder / f"{part}.py", folder / part
        yield from (file for file in (module, folder / "__init__.py") if file.is_file())


def _imported_names(tree: ast.AST, path: Path, src: Path) -> Iterator[str]:
    """Dotted names that may be modules: ``from a import b`` gives ``a.b`` as well as ``a``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = path.parents[node.level - 1].relative_to(src).parts
                base = ".".join([*package, *filter(None, [base])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and _is_type_checking(node.test):
            for branch in node.orelse:
                yield from _imported_names(ast.Module([branch], []), path, src)
        elif not isinstance(node, ast.expr):  # nothing is imported inside an expression
            yield from _imported_names(node, path, src)


def _is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )
