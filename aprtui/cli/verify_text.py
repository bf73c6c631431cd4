"""What `aprtui verify` says before any number: do engines read the prompt as the same tokens?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from aprtui.compare.texts import TextFound, compare_chats, compare_templates, compare_tokens
from aprtui.engine.adapters.texts import read_by
from aprtui.errors import EngineError, UsageError
from aprtui.model.chat_template import chat_template_of
from aprtui.model.open import Model
from aprtui.text import clean

__all__ = ["Texts", "read_files", "read_texts", "show_texts"]


@dataclass(frozen=True)
class Texts:
    """What each engine makes of the prompt, and what is to be known of the chat template."""

    found: tuple[TextFound, ...] = ()
    notes: tuple[str, ...] = ()
    chats: Mapping[str, str] = field(default_factory=dict)  # as each engine renders the prompt

    @property
    def differing(self) -> tuple[TextFound, ...]:
        return tuple(each for each in self.found if not each.same)


def read_texts(model: Model, engines: Sequence[str], prompt: str, where: str = "") -> Texts:
    """The prompt as each engine's own tokenizer reads it, against ours; ``where`` stands behind
    the engines' names."""
    try:
        ours = model.tokenizer.encode(prompt)
    except UsageError:
        return Texts()
    found, notes, chats = [], [], {}
    for engine in engines:
        try:
            read = read_by(engine, model.path, prompt)
        except EngineError as error:
            notes.append(f"{error.message}: its tokens were not compared")
            continue
        found.append(_told(model, f"{engine}{where}", ours, read.ids, read.bos))
        if read.chat is not None:
            first = "" if read.bos is None else model.tokenizer.text_of(read.bos)
            chats[f"{engine}{where}"] = read.chat.removeprefix(first)
            given = model.tokenizer.encode(read.chat)
            chat = _told(model, f"{engine}{where}", given, read.chat_ids, read.bos)
            if not chat.same:
                notes.append(
                    f"a rendered chat given as --prompt is not what the template means: "
                    f"{chat.sentence} (--tokens gives its own ids)"
                )
    return Texts(tuple(found), tuple(notes), chats)


def read_files(
    models: tuple[Model, Model], engines: Mapping[str, Sequence[str]], prompt: str | None
) -> Texts:
    """Two files' tokenizers and chat templates, B's against A's; then the prompt as each engine
    reads it on its own file, A or B. Without a prompt the templates alone."""
    first, second = models
    templates = chat_template_of(first), chat_template_of(second)
    found, notes = [compare_templates("B", "A", *templates)], []
    if None in templates:  # a file without one is no other model
        notes += [found[0].sentence] * (not found[0].same)
        found = []
    if prompt is None:
        return Texts(tuple(found), tuple(notes))
    try:
        ours, theirs = (model.tokenizer.encode(prompt) for model in models)
    except UsageError as error:
        notes.append(f"{error.message}: the files' tokens were not compared")
        return Texts(tuple(found), tuple(notes))
    begin = {*ours[:1], *theirs[:1]}
    bos = next((each for m in models if (each := m.tokenizer.bos_id) in begin), None)
    found.append(_told(first, "B", ours, theirs, bos, "A"))
    chats: dict[str, str] = {}
    for side, model in zip("AB", models, strict=True):
        own = read_texts(model, engines[side], prompt, f" on {side}")
        found += own.found
        notes += own.notes
        chats.update(own.chats)
    us = next(iter(chats), "")
    rendered = (compare_chats(who, us, chats[us], chat) for who, chat in chats.items())
    notes += filter(None, rendered)
    return Texts(tuple(found), tuple(notes))


def _told(
    model: Model,
    engine: str,
    ours: Sequence[int],
    theirs: Sequence[int],
    bos: int | None,
    us: str = "we",
) -> TextFound:
    tokenizer = model.tokenizer

    def special(token: int) -> bool:
        text = tokenizer.text_of(token)
        return tokenizer.encode(text) != tokenizer.encode(text, special=False)

    return compare_tokens(
        engine, ours, theirs, bos=bos, special=special, text_of=tokenizer.text_of, us=us
    )


def show_texts(texts: Texts) -> None:
    """A line for each engine, first of all."""
    for each in texts.found:
        head = "text" if each.same else f"text differs ({each.kind})"
        print(f"{head}: {clean(each.sentence, 400)}", flush=True)
    for note in texts.notes:
        print(f"note    {clean(note, 500)}")
