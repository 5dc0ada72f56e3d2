"""Install the top-level folder `kernels/` as `igmask.kernels`; all else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=find_packages(include=["igmask*"]),  # igmask/kernels is a link to kernels/
    package_dir={"igmask": "igmask", "igmask.kernels": "kernels"},
)
