"""What `aprtui verify` says before any number: do engines read the prompt as the same tokens?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aprtui.compare.texts import TextFound, compare_tokens
from aprtui.engine.adapters.texts import Read, read_by
from aprtui.errors import EngineError, UsageError
from aprtui.model.open import Model
from aprtui.text import clean

__all__ = ["Texts", "read_texts", "show_texts"]


@dataclass(frozen=True)
class Texts:
    """What each engine makes of the prompt, and what is to be known of the chat template."""

    found: tuple[TextFound, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def differing(self) -> tuple[TextFound, ...]:
        return tuple(each for each in self.found if not each.same)


def read_texts(model: Model, engines: Sequence[str], prompt: str) -> Texts:
    """The prompt as each engine's own tokenizer reads it, against ours."""
    try:
        ours = model.tokenizer.encode(prompt)
    except UsageError:
        return Texts()
    found, notes = [], []
    for engine in engines:
        try:
            read = read_by(engine, model.path, prompt)
        except EngineError as error:
            notes.append(f"{error.message}: its tokens were not compared")
            continue
        found.append(_compared(model, engine, ours, read.ids, read))
        if read.chat is not None:
            chat = _compared(model, engine, model.tokenizer.encode(read.chat), read.chat_ids, read)
            if not chat.same:
                notes.append(
                    f"a rendered chat given as --prompt is not what the template means: "
                    f"{chat.sentence} (--tokens gives its own ids)"
                )
    return Texts(tuple(found), tuple(notes))


def _compared(
    model: Model, engine: str, ours: Sequence[int], theirs: Sequence[int], read: Read
) -> TextFound:
    tokenizer = model.tokenizer

    def special(token: int) -> bool:
        text = tokenizer.text_of(token)
        return tokenizer.encode(text) != tokenizer.encode(text, special=False)

    return compare_tokens(
        engine, ours, theirs, bos=read.bos, special=special, text_of=tokenizer.text_of
    )


def show_texts(texts: Texts) -> None:
    """A line for each engine, first of all."""
    for each in texts.found:
        head = "text" if each.same else f"text differs ({each.kind})"
        print(f"{head}: {each.engine} reads {each.sentence}" if each.same else
              f"{head}: {clean(each.sentence, 400)}")  # fmt: skip
    for note in texts.notes:
        print(f"note    {clean(note, 500)}")
