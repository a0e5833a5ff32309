#!/bin/sh
# One photo, stored on its side: Pillow 13, OpenCV 5, libvips 8.18 and imageio 2.38 each decide by EXIF, by XMP or not at
# all whether it stands upright, so a mask that fits it in one program doesn't in the next.
# Needs python3. Installs into a temporary folder, which is removed at the end.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check \
  imageio==2.38.1 opencv-python-headless==5.0.0.93 pillow==13.0.0 pyvips==3.2.0 pyvips-binary==8.18.7
env/bin/python - <<'PY'
import io

import cv2
import imageio.v3 as iio
import numpy as np
import pyvips
from PIL import Image, ImageOps, PngImagePlugin

XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    "</rdf:RDF></x:xmpmeta>"
)


def photo(kind, told_in):
    """A picture stored 40x30 that is to be seen 30x40."""
    how, sink = {}, io.BytesIO()
    if told_in == "EXIF":
        how["exif"] = Image.Exif()
        how["exif"][0x0112] = 6
    elif kind == "PNG":
        how["pnginfo"] = PngImagePlugin.PngInfo()
        how["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP)
    else:
        how["xmp"] = XMP.encode()
    Image.new("RGB", (40, 30), "teal").save(sink, kind, **how)
    return sink.getvalue()


def vips(image):
    return image.width, image.height


READERS = {
    "Pillow, Image.open": lambda it: Image.open(io.BytesIO(it)).size,
    "Pillow, exif_transpose": lambda it: ImageOps.exif_transpose(Image.open(io.BytesIO(it))).size,
    "OpenCV, imdecode": lambda it: cv2.imdecode(np.frombuffer(it, np.uint8), cv2.IMREAD_COLOR).shape[1::-1],
    "imageio, imread": lambda it: iio.imread(it).shape[1::-1],
    "imageio, rotate=True": lambda it: iio.imread(it, rotate=True).shape[1::-1],
    "libvips, load": lambda it: vips(pyvips.Image.new_from_buffer(it, "")),
    "libvips, autorot": lambda it: vips(pyvips.Image.new_from_buffer(it, "").autorot()),
    "libvips, thumbnail": lambda it: vips(pyvips.Image.thumbnail_buffer(it, 40)),
}
COLUMNS = [(kind, told_in) for told_in in ("EXIF", "XMP") for kind in ("JPEG", "PNG", "WEBP")]
print(f"{'told in:':24}" + "".join(f"{f'{kind} {told_in}':>11}" for kind, told_in in COLUMNS))
for name, size_of in READERS.items():
    seen = ("lying" if width > height else "upright" for width, height in (size_of(photo(*one)) for one in COLUMNS))
    print(f"{name:24}" + "".join(f"{word:>11}" for word in seen))
PY
