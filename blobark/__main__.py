"""`python -m blobark` is the same as the installed command `blobark`."""

from blobark.door import console

console()
