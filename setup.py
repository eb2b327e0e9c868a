"""Packaging of recbole-kd."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
PROPERTIES = "recbole_kd.properties"

# `properties/` lies at the top level for people and inside the package for wheels.
setup(
    name="recbole-kd",
    version="0.1.0",
    description="Knowledge distillation for RecBole models: teacher, student, fair comparison",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    # RecBole 1.2.1 requires ray <= 2.6.3, which has no wheel for Python 3.12.
    python_requires=">=3.10,<3.12",
    packages=[*find_packages(include=["recbole_kd", "recbole_kd.*"]), PROPERTIES],
    package_dir={PROPERTIES: "properties"},
    package_data={PROPERTIES: ["**/*.yaml"], "recbole_kd": ["py.typed", "reporting/*.j2"]},
    # The same table as recbole_kd.compat.REQUIREMENTS; a test compares them.
    install_requires=[
        "recbole>=1.2.1,<1.3",
        "torch>=2.6,<2.14",
        "numpy>=1.24,<3",
        "pandas>=2.0,<3",
        "scipy>=1.10,<2",
        "filelock>=3.12",
        "pyyaml>=6",
        "tabulate>=0.9",
        "tensorboard>=2.11",
        "tqdm",
    ],
    extras_require={
        # No requirement: its current builds refuse numpy 1, and .csv and .npz do without.
        "parquet": ["pyarrow>=14"],
        "benchmark": ["pyarrow>=14", "rich>=13"],
        "report": ["jinja2>=3", "matplotlib>=3.7", "pyarrow>=14", "statsmodels>=0.14"],
        "tune": ["optuna>=4"],
        "test": [
            "jinja2>=3",
            "matplotlib>=3.7",
            "optuna>=4",
            "pyarrow>=14",
            "rich>=13",
            "statsmodels>=0.14",
            "pytest>=8",
            "pytest-xdist>=3.8",
            "ruff>=0.6",
            "mypy>=1.11",
            "types-PyYAML",
        ],
    },
    entry_points={"console_scripts": ["recbole-kd=recbole_kd.cli:main"]},
    classifiers=[
        "License :: OSI Approved :: MIT License",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
    ],
)
