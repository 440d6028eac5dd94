"""Blobark: GUID-indexed backup and restore for blob stores. See docs/design.md."""

__version__ = "0.1.0"
