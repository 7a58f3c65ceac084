"""Questions whose answers a page checks by itself: a Sphinx directive, without a script or kernel.

::

    ```{quiz} Which concept is taken out first?
    - [x] The one of largest relevance.
      Deletion goes down the order.
    - [ ] The one in most photographs.
      How often a concept occurs is no effect.
    ```

An answer is its first line, the rest says why; ``[x]`` is right. A notebook shows this very text.
"""

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

_ANSWER = re.compile(r"- \[([ x])\] (.+)")


class Quiz(SphinxDirective):
    """A question, and two answers or more of which one is right."""

    has_content = True
    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """A group of radio buttons: the style sheet shows why beside the one that is chosen."""
        answers: list[tuple[str, str, list[str]]] = []
        for line in self.content:
            if first := _ANSWER.fullmatch(line):
                answers.append((first[1], first[2], []))
            elif answers and line.startswith("  "):
                answers[-1][2].append(line.strip())
            else:
                raise self.error(
                    f"neither an answer, - [ ] or - [x], nor a reason below one: {line}"
                )
        right = [mark for mark, *_ in answers].count("x")
        if right != 1 or len(answers) < 2 or not all(why for *_, why in answers):
            raise self.error("a quiz has two answers or more, one of them right, [x], and says why")
        name = f"quiz-{self.env.new_serialno('quiz')}"
        question = self.parse_text_to_nodes(self.arguments[0])
        parts = [_raw('<fieldset class="quiz"><legend>'), *_inline(question), _raw("</legend>")]
        for mark, answer, why in answers:
            kind, verdict = ("right", "Right.") if mark == "x" else ("wrong", "No.")
            parts += [
                _raw(f'<label class="{kind}"><input type="radio" name="{name}"> <span>'),
                *_inline(self.parse_text_to_nodes(answer)),
                _raw(f'</span><span class="why" aria-live="polite"><b>{verdict}</b> '),
                *_inline(self.parse_text_to_nodes(" ".join(why))),
                _raw("</span></label>"),
            ]
        return [*parts, _raw("</fieldset>")]


def _raw(text: str) -> nodes.raw:
    return nodes.raw("", text, format="html")


def _inline(parsed: list[nodes.Node]) -> list[nodes.Node]:
    """What stands in the paragraphs: a legend and a label may hold none."""
    return [part for paragraph in parsed for part in paragraph.children]


def setup(app: Sphinx) -> dict[str, Any]:
    """What Sphinx calls."""
    app.add_directive("quiz", Quiz)
    return {"parallel_read_safe": True}
