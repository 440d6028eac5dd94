"""`python save_blob.py [options]` is `blobark save [options]`: store every file of the map under its GUID."""

import sys

from blobark.door import run

if __name__ == "__main__":
    sys.exit(run("save"))
