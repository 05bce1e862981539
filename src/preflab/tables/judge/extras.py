"""The libraries that judging tables and telling rows apart ask for beyond the core install."""

from __future__ import annotations

import importlib
from typing import Any

from preflab.errors import ConfigError

_INSTALLED_AS = {"imblearn": "imbalanced-learn"}


def extra(module: str, asks: str = "judging tables") -> Any:
    """Imports a module of the extra `tables`, when it is needed and not before.

    Args:
        module: its name.
        asks: what needs it, for the message.

    Raises:
        ConfigError: its library is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise ConfigError(
            f"{asks} needs {_INSTALLED_AS.get(library, library)} ({error}): pip install 'preflab[tables]'"
        ) from error


def need_extras() -> None:
    """Asks for all of them at once, before hours of work rather than after.

    Raises:
        ConfigError: one is not installed.
    """
    for module in ("sdmetrics.reports.single_table", "lightgbm", "imblearn"):
        extra(module)
