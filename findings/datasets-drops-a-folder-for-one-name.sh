#!/bin/sh
# datasets 5.2.0 loads one picture of four, and no metadata, if one file's name has the word "train" in it.
# Needs python3. Installs into a temporary folder, which is removed at the end.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check datasets==5.2.0 pillow==12.0.0
HF_HOME="$place/home" HF_HUB_OFFLINE=1 env/bin/python - <<'PY'
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

datasets.disable_progress_bars()
for fourth in ("steam-boat-01.png", "steam-train-01.png", "steam-Train-01.png"):
    names = ["harbour-01.png", "harbour-02.png", "meadow-01.png", fourth]
    folder = Path(fourth).with_suffix("")
    folder.mkdir()
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / name)
    pq.write_table(pa.table({"file_name": names, "prompt": ["a", "b", "c", "d"]}), folder / "metadata.parquet")
    loaded = datasets.load_dataset("imagefolder", data_dir=str(folder))
    print(f"{fourth}:", {split: rows.num_rows for split, rows in loaded.items()}, loaded["train"].column_names)
PY
