"""A configuration that a test writes: config.yaml in the current folder, which is the test's own (fixture `here`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from blobark.config import Config, load
from blobark.errors import ConfigError

KEY = "AccountName=acc;AccountKey=c2VjcmV0"
PING = "https://hc.example.com/1b2c-secret"
NO_ENVIRONMENT: Mapping[str, str] = {}


def given_text(text: str, environ: Mapping[str, str] = NO_ENVIRONMENT, **overrides: object) -> Config:
    Path("config.yaml").write_text(text)
    return load(None, environ=environ, overrides=overrides)


def mistakes(text: str, environ: Mapping[str, str] = NO_ENVIRONMENT, **overrides: object) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        given_text(text, environ, **overrides)
    return raised.value.message.splitlines()
