"""Reads the files beside this one that tools/ generates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read(file: str, kind: type[Any]) -> Any:
    """The contents of ``file``: nested dictionaries, each innermost one made a ``kind``, with tuples for lists."""

    def build(node: dict[str, Any]) -> Any:
        if all(isinstance(value, dict) for value in node.values()):
            return {key: build(value) for key, value in node.items()}
        return kind(**{field: _freeze(value) for field, value in node.items()})

    return build(json.loads(Path(__file__).with_name(file).read_text()))


def _freeze(value: Any) -> Any:
    return tuple(map(_freeze, value)) if isinstance(value, list) else value
