"""``nnunet-ext doctor``: whether everything is in place, and if not, what to do."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from nnunet_ext import registry
from nnunet_ext._common.console import lay_out, say, say_json, show
from nnunet_ext.cli import checks
from nnunet_ext.cli.options import AsJson

PROBE_SECONDS = 300
"""Patience with the fresh interpreter; importing torch from a network disk takes a while."""

STYLES = {"ok": "green", "warning": "yellow", "PROBLEM": "bold red"}


def command(as_json: AsJson = False) -> None:
    """Check versions, folders, devices and whether nnU-Net's commands find nnunet_ext.

    Exit code 1 means that something here keeps training from working.

    \b
    Example:
      nnunet-ext doctor
    """
    probe = _start_probe()  # works on while the other checks run
    sections = {
        "Versions": [*checks.check_versions()],
        "Folders": [*checks.check_folders(os.environ)],
    }
    # on stderr, so that what is read by programs stays alone
    with Console(stderr=True).status(
        "Asking nnU-Net for nnunet_ext's trainers in a fresh interpreter ..."
    ):
        facts = _finish_probe(probe)
    sections["Devices"] = [*checks.check_devices(facts, os.environ)]
    sections["Discovery"] = [*checks.check_discovery(facts, os.environ)]
    levels = [finding.level for findings in sections.values() for finding in findings]
    problems, warnings = levels.count("PROBLEM"), levels.count("warning")
    if as_json:
        found = {title: [*map(asdict, findings)] for title, findings in sections.items()}
        say_json({"problems": problems, "warnings": warnings, "sections": found})
    else:
        for title, findings in sections.items():
            _show(title, findings)
        say(f"\nProblems: {problems}, warnings: {warnings}.")
    if problems:
        raise typer.Exit(1)


def _start_probe() -> "subprocess.Popen[str]":
    source = Path(__file__).with_name("probe.py").read_text(encoding="utf-8")
    names = [list({**ours, **registry.others(kind)}) for kind, ours in registry.OURS.items()]
    return subprocess.Popen(
        [sys.executable, "-c", source, *map(json.dumps, names)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish_probe(probe: "subprocess.Popen[str]") -> dict[str, Any]:
    try:
        output, errors = probe.communicate(timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        probe.kill()
        return {"error": f"a fresh interpreter did not answer within {PROBE_SECONDS} s"}
    try:
        facts: dict[str, Any] = json.loads(output)
    except ValueError:
        last = (errors.strip().splitlines() or ["no message"])[-1]
        return {"error": f"a fresh interpreter failed (exit code {probe.returncode}): {last}"}
    return facts


def _show(title: str, findings: list[checks.Finding]) -> None:
    rows = []
    for finding in findings:
        detail = Text(finding.detail)
        if finding.cure:
            detail.append(f"\n-> {finding.cure}", style="bold")
        rows.append((Text(finding.level, style=STYLES[finding.level]), finding.subject, detail))
    say(f"\n{title}", "bold underline")
    show(lay_out(rows, {2}))
