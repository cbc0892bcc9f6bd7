"""Puts the repository's conf/ into the package as expo_ray/conf. Everything else about the package is in setup.cfg."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["expo_ray*", "hydra_plugins*"]), "expo_ray.conf"],
    package_dir={"expo_ray.conf": "conf"},
)
