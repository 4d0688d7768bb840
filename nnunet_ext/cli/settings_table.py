"""Settings of a method as a table, derived from the settings class and nothing else."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import TypeAdapter
from rich.table import Table
from rich.text import Text

from nnunet_ext._common.console import lay_out

_LIMITS = {
    "minimum": ">= {}",
    "exclusiveMinimum": "> {}",
    "maximum": "<= {}",
    "exclusiveMaximum": "< {}",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "pattern": "matching {}",
}
_TYPES = {"string": "text", "boolean": "true | false"}
"""Where JSON's own name of a type would not be understood."""


class Setting(NamedTuple):
    """One setting as a user sees it."""

    name: str
    default: str
    allowed: str
    description: str


def settings_of(settings_class: type) -> list[Setting]:
    """List the settings of a pydantic settings class in the order of their declaration."""
    schema = TypeAdapter(settings_class).json_schema()
    return [
        Setting(
            name=name,
            default=json.dumps(entry["default"]) if "default" in entry else "required",
            allowed=_allowed(entry, schema.get("$defs", {})),
            description=entry.get("description", ""),
        )
        for name, entry in schema.get("properties", {}).items()
    ]


def settings_table(settings: list[Setting], prefix: str = "") -> Table:
    """Lay the settings out as a table in which no name is ever cut."""
    heading = ("setting", "default", "what it does, and what is allowed")
    rows = []
    for name, default, allowed, description in settings:
        meaning = Text(f"{description}\n" if description else "").append(allowed, style="dim")
        rows.append((Text(prefix + name, style="bold"), default, meaning))
    return lay_out(rows, {2}, heading)


def _allowed(entry: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "$ref" in entry:
        entry = definitions[entry["$ref"].rsplit("/", 1)[-1]] | dict(entry)
    if "enum" in entry or "const" in entry:
        return " | ".join(json.dumps(value) for value in entry.get("enum", [entry.get("const")]))
    if alternatives := entry.get("anyOf") or entry.get("oneOf"):
        return " | ".join(_allowed(part, definitions) for part in alternatives)
    if "prefixItems" in entry:  # its length is plain from the items
        return f"[{', '.join(_allowed(part, definitions) for part in entry['prefixItems'])}]"
    kind = entry.get("type", "any")
    if kind == "array":
        kind = f"list of {_allowed(entry.get('items', {}), definitions)}"
    limits = [words.format(entry[key]) for key, words in _LIMITS.items() if key in entry]
    return f"{_TYPES.get(kind, kind)} {', '.join(limits)}".strip()
