#!/bin/sh
# openpyxl 3.1.5 says that a workbook asks to be calculated when it is opened (fullCalcOnLoad) although it doesn't: where
# the attribute is absent, as Excel leaves it, openpyxl takes its own default, which is True. The attribute tells the 0 that
# XlsxWriter stores for a formula it can't calculate from a 0 that is the result, so it has to be read from the XML itself.
# Needs python3. Installs into a temporary folder, which is removed at the end.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check openpyxl==3.1.5 xlsxwriter==3.2.9
env/bin/python - <<'PY'
import re
import zipfile

import openpyxl
import xlsxwriter

book = xlsxwriter.Workbook("asks.xlsx")
book.add_worksheet().write_formula("A1", "=3+4")
book.close()
with zipfile.ZipFile("asks.xlsx") as asks, zipfile.ZipFile("asks_not.xlsx", "w") as asks_not:
    for name in asks.namelist():
        asks_not.writestr(name, asks.read(name).replace(b' fullCalcOnLoad="1"', b""))
for name in ("asks.xlsx", "asks_not.xlsx"):
    written = re.search(rb"<calcPr[^>]*>", zipfile.ZipFile(name).read("xl/workbook.xml"))[0].decode()
    read = openpyxl.load_workbook(name, data_only=True)
    print(f"{name}: {written}; A1 is {read.active['A1'].value}; openpyxl: fullCalcOnLoad={read.calculation.fullCalcOnLoad}")
PY
