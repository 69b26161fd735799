"""Runs the code blocks of a Markdown file, as its reader would."""

import importlib
import pathlib
import re
import shlex
from typing import Any

_BLOCK = re.compile(r'^```(sh|python)\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def section(file: pathlib.Path, heading: str, stop: str | None = None) -> str:
  """The text from one heading to before another."""
  text = file.read_text()
  begin = text.index(f'\n{heading}\n')
  return text[begin : text.index(f'\n{stop}\n') if stop else None]


def run(text: str) -> dict[str, Any]:
  """Runs the blocks of a text in order, all Python in one namespace.

  Args:
    text: Markdown; commands are lines `python -m MODULE ARGUMENTS`.

  Returns:
    The variables at the end.
  """
  variables: dict[str, Any] = {'__name__': 'document'}
  for language, block in _BLOCK.findall(text):
    if language == 'python':
      exec(compile(block, 'document', 'exec'), variables)
      continue
    for line in block.splitlines():
      python, module_flag, module, *arguments = shlex.split(line)
      assert (python, module_flag) == ('python', '-m'), line
      importlib.import_module(module).main(arguments)
  return variables
