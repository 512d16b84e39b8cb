import os
from pathlib import Path

import pytest

from refine import provenance
from refine.provenance import code_digest

FILES = {
    "script.py": "from lib.a import f\nimport json\nfrom lib import c\n",
    "src/lib/__init__.py": "",
    "src/lib/a.py": "def f():\n    from lib.deep import b\n    return b\n",
    "src/lib/c.py": (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from lib import typed\nelse:\n    from lib import untyped\n"
    ),
    "src/lib/deep/__init__.py": "",
    "src/lib/deep/b.py": "from . import sibling\nfrom ..d import name\n",
    "src/lib/deep/sibling.py": "import lib.a\n",
    "src/lib/d.py": "name = 1\n",
    "src/lib/untyped.py": "",
    "src/lib/typed.py": "",
    "src/lib/unused.py": "",
    "src/lib/by_name.py": "from lib import helper\n",
    "src/lib/helper.py": "",
    "src/other/json.py": "",
}
REACHED = {
    *("script.py", "src/lib/__init__.py", "src/lib/a.py", "src/lib/c.py", "src/lib/d.py"),
    *("src/lib/deep/__init__.py", "src/lib/deep/b.py", "src/lib/deep/sibling.py"),
    "src/lib/untyped.py",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def digest(project: Path, modules: tuple[str, ...] = (), without: tuple[str, ...] = ()) -> str:
    provenance._imported_files.cache_clear()
    return code_digest(project / "script.py", project / "src", modules, without)


@pytest.mark.parametrize("name", FILES)
def test_an_edit_counts_where_the_script_reaches_it(project: Path, name: str) -> None:
    before = digest(project)
    (project / name).write_text(FILES[name] + "# Edited.\n")
    assert (digest(project) != before) == (name in REACHED)


@pytest.mark.parametrize("name", ["src/lib/by_name.py", "src/lib/helper.py"])
def test_modules_loaded_by_name_count_where_they_are_named(project: Path, name: str) -> None:
    before = digest(project, ("lib.by_name",))
    assert before != digest(project)
    (project / name).write_text("# Edited.\n")
    assert digest(project, ("lib.by_name",)) != before


def test_dates_do_not_count(project: Path) -> None:
    before = digest(project)
    for name in FILES:
        os.utime(project / name, (1, 1))
    assert digest(project) == before


def test_the_place_of_the_project_does_not_count(project: Path, tmp_path: Path) -> None:
    before = digest(project)
    moved = tmp_path.parent / "moved"
    tmp_path.rename(moved)
    assert digest(moved) == before


def test_moving_code_to_another_module_counts(project: Path) -> None:
    before = digest(project)
    (project / "src/lib/d.py").rename(project / "src/lib/e.py")
    (project / "src/lib/deep/b.py").write_text("from . import sibling\nfrom ..e import name\n")
    assert digest(project) != before


def test_a_new_import_counts(project: Path) -> None:
    before = digest(project)
    (project / "src/lib/d.py").write_text("from lib import unused\n")
    assert digest(project) != before


def test_modules_passed_over_do_not_count_nor_what_they_alone_import(project: Path) -> None:
    before = digest(project, without=("lib.deep.b",))
    assert before != digest(project)
    for name, counts in {"deep/b": False, "deep/sibling": False, "d": False, "a": True}.items():
        path = project / f"src/lib/{name}.py"
        path.write_text(path.read_text() + "# Edited.\n")
        assert (digest(project, without=("lib.deep.b",)) != before) == counts, name
