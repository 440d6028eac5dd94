"""`python build_index.py [options]` is `blobark index [options]`: give every file a GUID and write the map."""

import sys

from blobark.door import run

if __name__ == "__main__":
    sys.exit(run("index"))
