"""`python restore_blob.py [options]` is `blobark restore [options]`: rebuild the tree from the store."""

import sys

from blobark.door import run

if __name__ == "__main__":
    sys.exit(run("restore"))
