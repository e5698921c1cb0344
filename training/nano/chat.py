"""Makes conversations from docstrings, so that LongCat-nano answers in the chat format.

Owns: how a documented function becomes a question and an answer. Each file gives conversations of
one to three turns. data.py writes them as text, in which EOS ends every assistant turn.
"""

from __future__ import annotations

import ast
import hashlib
import warnings
from collections.abc import Iterator

_QUESTIONS = (
    "{summary}",
    "{summary}",
    "Write a Python function: {summary}",
    "Write a Python function named {name}. {summary}",
    "Write the function {name}.",
    "How do I write this in Python? {summary}",
)
_EXPLAIN = ("What does {name} do?", "Explain {name}.", "What is {name}?")
_MAX_ANSWER = 1200  # characters; a conversation then fits a training window
_MAX_TURNS = 3

Turn = tuple[str, str]


def conversations(text: str) -> Iterator[list[Turn]]:
    """Conversations of (question, answer) turns from one Python file; none if it does not parse."""
    turns: list[Turn] = []
    for turn in _turns(text):
        turns.append(turn)
        if len(turns) > _pick(turn[1], _MAX_TURNS):
            yield turns
            turns = []
    if turns:
        yield turns


def _turns(text: str) -> Iterator[Turn]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(text)
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield from _about(node)


def _about(node: ast.FunctionDef | ast.ClassDef) -> Iterator[Turn]:
    paragraphs = (ast.get_docstring(node) or "").split("\n\n")
    summary = " ".join(paragraphs[0].split())
    if not 15 <= len(summary) <= 200:
        return
    if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
        answer = _short_source(node, summary=summary)
        if answer is not None:
            question = _QUESTIONS[_pick(answer, len(_QUESTIONS))]
            yield question.format(summary=summary, name=node.name), answer
    prose = "\n\n".join([summary, *(p for p in paragraphs[1:3] if _is_prose(p))])
    if len(prose) > 80 and not node.name.startswith("_"):
        yield _EXPLAIN[_pick(prose, len(_EXPLAIN))].format(name=node.name), prose


def _short_source(node: ast.FunctionDef, *, summary: str) -> str | None:
    """The function with its docstring cut to `summary`; None if it is too short or too long."""
    body = node.body[1:]
    if not body or all(isinstance(part, ast.Pass | ast.Raise) for part in body):
        return None
    node.body[0] = ast.Expr(ast.Constant(summary))
    node.decorator_list = []
    source = ast.unparse(node)
    return f"```python\n{source}\n```" if len(source) <= _MAX_ANSWER else None


def _is_prose(paragraph: str) -> bool:
    return not any(mark in paragraph for mark in (">>>", "---", "===", "..", "::", ":param"))


def _pick(text: str, choices: int) -> int:
    """A number below `choices` that depends on `text` only, so it is the same on every machine."""
    return hashlib.sha256(text.encode()).digest()[0] % choices
