"""The package's own names: there when asked for, and free until then."""

import importlib
import subprocess
import sys

import pytest

import workingpapers


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys; before = set(sys.modules); import workingpapers; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert {name for name in imported if name.startswith("workingpapers")} == {"workingpapers"}
    assert not imported & {
        "numpy",
        "torch",
        "sklearn",
        "pandas",
        "scipy",
        "click",
        "rich",
        "sqlite3",
        "importlib.metadata",
    }


@pytest.mark.parametrize(
    ("name", "home"),
    [
        ("try_", "workingpapers.runs.execute"),
        ("Store", "workingpapers.runs.store"),
        ("load_dataset", "workingpapers.data.datasets"),
        ("load_model", "workingpapers.data.models"),
    ],
)
def test_names_come_from_their_modules(name, home):
    assert getattr(workingpapers, name) is getattr(importlib.import_module(home), name)
    assert name in workingpapers.__all__
    assert name in dir(workingpapers)
    assert "TYPE_CHECKING" not in dir(workingpapers)


def test_other_names_are_missing_as_usual():
    assert not hasattr(workingpapers, "no_such_name")
    with pytest.raises(AttributeError, match="module 'workingpapers' has no attribute 'no_such_name'"):
        workingpapers.no_such_name  # noqa: B018
