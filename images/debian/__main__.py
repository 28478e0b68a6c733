"""`python3 -m images.debian`: build the OS image when it is missing."""

from __future__ import annotations

import sys

from images.debian.build import image
from images.steps import Failure

if __name__ == "__main__":
    try:
        image()
    except Failure as failure:
        sys.exit(f"image: {failure}")
