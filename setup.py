"""What pyproject.toml cannot say: the configurations travel inside `shared`, and lie beside it in the repository."""

from setuptools import find_packages, setup

PACKAGES = find_packages(include=["shared*", "rollout_server*", "learner*", "compose*"])

setup(
    packages=[*PACKAGES, "shared.configs"],
    package_dir={"shared.configs": "configs"},
    package_data={"": ["py.typed"], "shared.configs": ["**/*.yaml"]},
)
