"""Tells a story on a terminal or into a file: steps, sentences, facts that were checked, what commands print.

Rule: a fact is printed only after it was found to hold; the first that does not ends the story.
"""

from typing import Final

from rich.console import Console
from rich.text import Text

LINE_WIDTH: Final = 100
INDENT: Final = "   "


class FactFailed(Exception):
    """Something that the story was about to say does not hold; its text is that sentence."""


class Narrator:
    """Says what happens, and what was found to hold. `facts`: how many held so far."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.facts = 0
        self._steps = 0

    def step(self, title: str, *sentences: str) -> None:
        """Begin a numbered step."""
        self._steps += 1
        self.console.print(Text(f"\n{self._steps:>2} {title}", style="bold"))
        self.say(*sentences)

    def say(self, *sentences: str) -> None:
        """Tell what is going to happen."""
        self._print(INDENT, INDENT, " ".join(sentences))

    def fact(self, sentence: str, *, holds: bool) -> None:
        """Say what holds; FactFailed if it does not."""
        if not holds:
            raise FactFailed(sentence)
        self.facts += 1
        self._print(f"{INDENT}✓ ", f"{INDENT}  ", sentence, sign_style="bold green")

    def failure(self, sentence: str) -> None:
        """Say what did not hold."""
        self._print(f"{INDENT}✗ ", f"{INDENT}  ", f"This does not hold: {sentence}", sign_style="bold red")

    def command(self, text: str) -> None:
        """Show a command as a user types it."""
        self.console.print(Text(f"{INDENT}{text}", style="cyan"), soft_wrap=True)

    def verbatim(self, text: str) -> None:
        """Show what a command printed."""
        for line in text.rstrip().splitlines():
            self.console.print(Text(INDENT + line), soft_wrap=True)

    def _print(self, first: str, others: str, sentence: str, sign_style: str = "") -> None:
        lines = list(Text(sentence).wrap(self.console, LINE_WIDTH)) if sentence else []
        for number, line in enumerate(lines):
            line.rstrip()
            self.console.print(
                Text.assemble((others if number else first, sign_style), line.plain), soft_wrap=True
            )
