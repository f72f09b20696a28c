"""What pyproject.toml cannot say: which data travel, and that the configurations lie beside `shared` in a clone."""

from setuptools import find_packages, setup

PACKAGES = find_packages(include=["shared*", "rollout_server*", "learner*", "compose*"])

setup(
    packages=[*PACKAGES, "shared.configs"],
    package_dir={"shared.configs": "configs"},
    package_data={
        "": ["py.typed"],
        "shared.configs": ["**/*.yaml"],
        "learner.reporting.fonts": ["unifont.pcf.gz", "LICENSE.txt"],
    },
)
