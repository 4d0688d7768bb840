"""What the start-up file adds to every start of Python, in milliseconds.

Makes two fresh virtual environments that differ only in our package and its start-up file,
starts their interpreters in turn, and compares the medians::

    python -m studies.startup_cost
"""

import argparse
import compileall
import os
import platform
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import nnunet_ext
from nnunet_ext.benchmark.environment import processor
from studies import record

PACKAGE = Path(nnunet_ext.__file__).parent
STARTUP = Path(__file__).parents[1] / "startup"
BUDGET_MS = 3.0


def make_environment(folder: Path, *, with_package: bool) -> str:
    """Create a virtual environment, with or without our package; return its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    variables = {"base": str(folder), "platbase": str(folder)}
    site_packages = Path(sysconfig.get_path("purelib", "venv", vars=variables))
    if with_package:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PACKAGE, site_packages / PACKAGE.name, ignore=ignore)
        shutil.copy(STARTUP / "nnunet_ext.pth", site_packages)
        compileall.compile_dir(site_packages, quiet=1)  # as pip does
    scripts = Path(sysconfig.get_path("scripts", "venv", vars=variables))
    return str(scripts / ("python.exe" if os.name == "nt" else "python"))


def start(python: str, environment: dict[str, str]) -> float:
    """Start an interpreter that does nothing; return how long it took, in milliseconds."""
    begin = time.perf_counter()
    subprocess.run([python, "-c", "pass"], check=True, env=environment)
    return (time.perf_counter() - begin) * 1000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=200, help="starts of each interpreter")
    parser.add_argument("--record", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    runs = arguments.runs
    switched_on = {k: v for k, v in os.environ.items() if k != "NNUNET_EXT_AUTOLOAD"}
    switched_off = switched_on | {"NNUNET_EXT_AUTOLOAD": "0"}
    with tempfile.TemporaryDirectory() as folder:
        without = make_environment(Path(folder, "without"), with_package=False)
        with_package = make_environment(Path(folder, "with"), with_package=True)
        cases = {
            "without nnunet_ext": (without, switched_on),
            "with nnunet_ext": (with_package, switched_on),
            "with NNUNET_EXT_AUTOLOAD=0": (with_package, switched_off),
        }
        times: dict[str, list[float]] = {name: [] for name in cases}
        for run in range(runs + 3):
            for name, case in cases.items():
                elapsed = start(*case)
                if run >= 3:  # the first starts fill caches
                    times[name].append(elapsed)
    medians = {name: statistics.median(values) for name, values in times.items()}
    baseline = medians["without nnunet_ext"]
    print(f"nnunet_ext {nnunet_ext.__version__}, Python {platform.python_version()}")
    print(f"{platform.platform()}, {processor()}, {runs} starts each")
    for name, median in medians.items():
        print(f"{name:28} median {median:6.2f} ms  difference {median - baseline:+5.2f} ms")
    added = medians["with nnunet_ext"] - baseline
    if arguments.record:
        record.save(arguments.record, {"starts": runs, "median_ms": medians})
    print(f"{'within' if added <= BUDGET_MS else 'OVER'} the budget of {BUDGET_MS:g} ms")


if __name__ == "__main__":
    main()
