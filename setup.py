"""Install the top-level folder `kernels/` as `igmask.kernels`; all else is in pyproject.toml."""

from setuptools import setup

ROOMS = ("study", "inputs", "inputs.sources", "engine", "steps", "report", "tools", "bench", "cli")

setup(
    packages=["igmask", "igmask.kernels", *(f"igmask.{room}" for room in ROOMS)],
    package_dir={"igmask": "igmask", "igmask.kernels": "kernels"},
)
