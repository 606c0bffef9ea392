"""Check the lock files: every requirement of pyproject.toml is locked, every pin has a hash, no registry is named.

Works offline: whether a pin satisfies its requirement is checked with `packaging`, not by resolving again.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCKS = {
    "scorer.txt": [],
    "monitor.txt": ["monitor"],
    "replay.txt": ["replay", "onnx", "skops"],
    "ray.txt": ["ray"],
    "train.txt": ["train", "replay", "report", "openlineage", "onnx", "skops"],
    "dev.txt": ["dev"],
}
# Environments that do not contain the project: lock file by the file of its requirements.
APART = {
    f"{name}.txt": f"{name}.in"
    for name in ("own-models", "peers", "peers-alibi", "workflows-airflow", "workflows-kfp", "workflows-prefect")
}


def required(project: dict, extras: list[str]) -> list[Requirement]:
    """The direct requirements of the project with `extras`, extras of itself followed."""
    out = [Requirement(text) for text in project["dependencies"]]
    waiting = list(extras)
    while waiting:
        for text in project["optional-dependencies"][waiting.pop()]:
            requirement = Requirement(text)
            if requirement.name == project["name"]:
                waiting += requirement.extras
            else:
                out.append(requirement)
    return out


def listed(source: str) -> list[Requirement]:
    """The requirements in a file of requirements."""
    lines = (ROOT / "requirements" / source).read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def main() -> int:
    """Print every fault and return how many there are, at most 1."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    faults = []
    wanted = {name: required(project, extras) for name, extras in LOCKS.items()}
    wanted |= {name: listed(source) for name, source in APART.items()}
    for name, requirements in wanted.items():
        text = (ROOT / "requirements" / name).read_text()
        if re.search(r"https?://|--(extra-)?index-url|--find-links", text):
            faults.append(f"{name}: names a package registry")
        blocks = re.split(r"\n(?=[A-Za-z0-9])", text)
        pins = {}
        for block in blocks:
            if found := re.match(r"([A-Za-z0-9_.-]+)(\[[^\]]*\])?==(\S+)", block):
                pins[canonicalize_name(found[1])] = found[3]
                if "--hash=sha256:" not in block:
                    faults.append(f"{name}: {found[1]} has no hash")
        for requirement in requirements:
            pin = pins.get(canonicalize_name(requirement.name))
            if pin is None:
                faults.append(f"{name}: {requirement.name} is not locked")
            elif not requirement.specifier.contains(pin, prereleases=True):
                faults.append(f"{name}: {requirement.name} {pin} does not satisfy {requirement.specifier}")
    forbidden = {"scorer.txt": ["mlflow", "scikit-learn", "faust-streaming"], "monitor.txt": ["scikit-learn"]}
    for name, names in forbidden.items():
        text = (ROOT / "requirements" / name).read_text()
        faults += [f"{name}: must not need {n}" for n in names if re.search(rf"^{re.escape(n)}==", text, re.M)]
    for fault in faults:
        print(fault)
    if faults:
        print("run 'make lock'")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
