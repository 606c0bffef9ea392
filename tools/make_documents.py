"""Write the JSON schemas of files that users write, and the notebook of docs/own-models.md; `--check` compares them.

The notebook `examples/own_models/own_models.ipynb` has the cells of `train_models.py`, which `# %%` separates.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import msgspec

from stream_scorer.serde.schemas import DRAFT, portable, render
from stream_scorer.spec.model import PipelineSpec
from stream_scorer.train.own.document import ComposeDocument

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "examples" / "own_models" / "train_models.py"
# By name of the schema's file.
DOCUMENTS: dict[str, type] = {"ensemble-compose": ComposeDocument, "pipeline-spec": PipelineSpec}


def make_document_schemas() -> dict[str, str]:
    """The text of the schema of each file that users write, by file name."""
    return {
        f"{name}.schema.json": render(portable({"$schema": DRAFT, "title": name} | msgspec.json.schema(kind)))
        for name, kind in DOCUMENTS.items()
    }


def make_notebook(script: str) -> str:
    """The notebook with the cells of `script`; a cell marked `[markdown]` consists of comments."""
    cells = []
    for index, part in enumerate(re.split(r"^# %%", script, flags=re.MULTILINE)[1:]):
        mark, _, body = part.partition("\n")
        cell: dict[str, object] = {"id": f"cell-{index}", "metadata": {}}
        if "[markdown]" in mark:
            body = re.sub(r"^# ?", "", body, flags=re.MULTILINE)
            cell["cell_type"] = "markdown"
        else:
            cell |= {"cell_type": "code", "execution_count": None, "outputs": []}
        cells.append(cell | {"source": body.strip("\n").splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(notebook, indent=1, sort_keys=True) + "\n"


def main(arguments: list[str]) -> int:
    """Write the files, or with ``--check`` print those that differ and return 3."""
    wanted = {ROOT / "schemas" / name: text for name, text in make_document_schemas().items()}
    wanted[SCRIPT.with_name("own_models.ipynb")] = make_notebook(SCRIPT.read_text(encoding="utf-8"))
    if "--check" not in arguments:
        for path, text in wanted.items():
            path.write_text(text, encoding="utf-8")
        return 0
    stale = [p for p, text in wanted.items() if not p.exists() or p.read_text(encoding="utf-8") != text]
    for path in stale:
        sys.stderr.write(f"{path.relative_to(ROOT)} differs from the code: run 'make schemas'\n")
    return 3 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
