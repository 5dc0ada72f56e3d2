"""Install the top-level folder `kernels/` as `igmask.kernels`; all else is in pyproject.toml."""

from setuptools import setup

setup(
    packages=["igmask", "igmask.kernels"],
    package_dir={"igmask": "igmask", "igmask.kernels": "kernels"},
    package_data={"igmask": ["*.json"]},
)
