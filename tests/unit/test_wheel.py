"""A wheel built from this checkout, installed where neither SGLang nor the checkout is visible."""

import shutil
import subprocess
import sys
import venv
import zipfile

import pytest

from tests import ROOT

SOURCES = {"sglang_longcat": ROOT, "longcat_kernels": ROOT / "kernels"}
NOT_SHIPPED = {"__pycache__"}


def pip(*args):
    """Offline: --no-index asks no registry, --isolated reads no configuration of this machine."""
    command = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", *args]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy: setuptools would otherwise reuse and leave build/ in the checkout."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("sglang_longcat", "kernels"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns(*NOT_SHIPPED))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(out), str(copy))
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def clean_python(wheel, tmp_path_factory):
    """The interpreter of an environment that holds the wheel and nothing else."""
    env = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(env, with_pip=False, symlinks=True)
    python = env / "bin" / "python"
    pip("--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    return python


def run_clean(python, code):
    done = subprocess.run(
        [str(python), "-I", "-c", code], check=True, capture_output=True, text=True, cwd="/"
    )
    return done.stdout.split()


def shipped_files():
    """Every file of the two source trees, by its path in the wheel."""
    return {
        path.relative_to(root).as_posix()
        for package, root in SOURCES.items()
        for path in (root / package).rglob("*")
        if path.is_file() and not NOT_SHIPPED & set(path.parts)
    }


def test_wheel_holds_every_file_of_both_packages(wheel):
    """A .cuh, template or py.typed that package-data misses, and anything that should not ship."""
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert names == shipped_files() | {"common_ops.py"}


def test_source_root_of_the_kernels_is_no_package(wheel):
    """SGLang depends on a distribution whose package is called `kernels`; ours would shadow it."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not any(name.startswith("kernels/") for name in zipfile.ZipFile(wheel).namelist())


def test_installed_wheel_announces_the_plugin(clean_python):
    """SGLang finds the plugins by these entry points only; their absence is silent."""
    code = (
        "from importlib.metadata import entry_points\n"
        "print(*(e.name + '=' + e.value for e in entry_points(group='sglang.srt.plugins')))"
    )
    assert sorted(run_clean(clean_python, code)) == [
        "longcat=sglang_longcat.plugin:register",
        "longcat_dummy_routing=sglang_longcat.testing.dummy_routing:register",
        "longcat_smaller_gpu=sglang_longcat.testing.smaller_gpu:register",
    ]


def test_plugin_package_imports_without_sglang_and_torch(clean_python):
    """The top level stays light, both packages are found, and the version is told once."""
    code = (
        "import importlib.metadata as m, importlib.util as u, sglang_longcat\n"
        "assert u.find_spec('longcat_kernels') and not u.find_spec('torch')\n"
        "print(sglang_longcat.__version__, m.version('sglang-longcat'))"
    )
    module, distribution = run_clean(clean_python, code)
    assert module == distribution


def test_installed_wheel_has_the_recipes(clean_python):
    """Whoever installs the wheel has no checkout: catalogue, flags and switches come with it."""
    code = (
        "import pathlib, tomllib, sglang_longcat\n"
        "folder = pathlib.Path(sglang_longcat.__file__).parent / 'recipes'\n"
        "names = tomllib.loads((folder / 'catalogue.toml').read_text())\n"
        "assert all((folder / f'{name}.yaml').is_file() for name in names)\n"
        "print(*sorted(names), *sorted(file.name for file in folder.glob('*.env')))"
    )
    words = run_clean(clean_python, code)
    folder = ROOT / "sglang_longcat" / "recipes"
    names = sorted(file.stem for file in folder.glob("*.yaml"))
    assert words == [*names, *sorted(file.name for file in folder.glob("*.env"))]
    assert len(names) >= 20
