"""A project for ViRelAy (https://github.com/virelay/virelay) around what `lrpfunc dataset` wrote.

`python examples/virelay_project.py run.h5 --out project` takes one file, or all shards of a run. ViRelAy looks samples
up by their position in the data set, so they are copied to those positions; what could not be read stays blank.
"""

import argparse
import json
import os
from pathlib import Path

import h5py
import numpy as np

from lrpfunc.pictures import hdf5

STEP = 256  # rows copied at once


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="files of `lrpfunc dataset`")
    parser.add_argument("--out", type=Path, default=Path("virelay-project"), help="a folder, made if it does not exist")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    with hdf5.opened(options.runs[0]) as run:
        details, categories, classes = run.details, run.categories, run.schema.classes
    copy_samples(options.runs, options.out / "samples.h5", details["samples"])
    names = categories or [str(number) for number in range(classes)]
    labels = [{"index": hdf5.UNKNOWN, "word_net_id": "", "name": "unknown"}]
    labels += [{"index": number, "word_net_id": "", "name": name} for number, name in enumerate(names)]
    (options.out / "labels.json").write_text(json.dumps(labels, indent=1))
    project = {
        "name": f"{details['model']}, {details['composite']}",
        "model": details["model"],
        "label_map": "labels.json",
        "dataset": {"name": details["source"], "type": "hdf5", "path": "samples.h5"},
        "attributions": {
            "attribution_method": details["composite"],
            "attribution_strategy": "true_label" if details["targets"] == ["label"] else "predicted_label",
            "sources": [os.path.relpath(run.resolve(), options.out.resolve()) for run in options.runs],
        },
    }
    path = options.out / "project.yaml"
    path.write_text(json.dumps({"project": project}, indent=1))  # YAML takes JSON as it is
    print(f"virelay {path}")
    return path


def copy_samples(runs, path, count):
    """The input and the label of every sample, at its position in the data set."""
    with h5py.File(path, "w") as file:
        for number, source in enumerate(runs):
            with hdf5.opened(source) as run:
                if number == 0:
                    file.create_dataset("data", (count, *run.schema.image), np.uint8)
                    file.create_dataset("label", (count,), np.int64, fillvalue=hdf5.UNKNOWN)
                for start in range(0, run.rows, STEP):
                    indices = run.column("index")[start : start + STEP]
                    positions, rows = np.unique(indices, return_index=True)  # several rows may explain one sample
                    for name in ("data", "label"):
                        file[name][positions] = run.column(name)[start : start + STEP][rows]


if __name__ == "__main__":
    main()
