"""A model's chat template, and what trying it once has shown.

A template is a program that comes with a model. What is said is never handed to it: private-use
characters stand in its place, and the text between them is all that the template adds. So it cannot
trim, drop or repeat words, and no word can act as markup.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, time
from typing import Any

from jinja2 import TemplateError

from homeostat.config.model import TEMPLATE_DATE
from homeostat.errors import HomeostatError
from homeostat.types import Role, Turn

# No template trims a private-use character, and no tokenizer treats it as markup.
FIRST_PLACE, LAST_PLACE = 0xE000, 0xF8FF
PLACES = re.compile(f"[{chr(FIRST_PLACE)}-{chr(LAST_PLACE)}]")
BLANK_LINE = "\n\n"
CLOCK = "strftime_now"  # transformers gives templates a function of this name
TRIAL = (
    Turn("system", "You are kind to everybody."),
    Turn("user", "Good morning. How are you?"),
    Turn("assistant", "I am well, thank you!"),
    Turn("user", "What shall we do today?"),
)
ROLES: tuple[Role, ...] = ("user", "assistant", "user")
# What foreign code in a template raises when it is given what it does not expect.
REFUSALS = (
    *(TemplateError, TypeError, ValueError, LookupError, AttributeError),
    *(ArithmeticError, RecursionError, MemoryError),
)

Finding = tuple[str, str | None]


@dataclass(frozen=True)
class ChatTemplate:
    """How the turns of a conversation become text; the only place that renders a template.

    Attributes:
        tokenizer: Has the template.
        options: Handed to the template wherever it is rendered.
        day: What a template that asks for the date is told.
        takes_system: Whether it prints a system turn in its place. Otherwise a system turn stands
            in front of the next user turn, with a blank line between.
        in_parts: Whether it wants a content as a list of parts and not as a string.
        end_ids: The token that it puts right after a reply, if that is a single special one.
        notices: One sentence for everything about it that a user should know.
    """

    tokenizer: Any
    options: Mapping[str, Any]
    day: date
    takes_system: bool = True
    in_parts: bool = False
    end_ids: tuple[int, ...] = ()
    notices: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """The template as it came with the model."""
        source: str = self.tokenizer.get_chat_template()
        return source

    @property
    def asks_for_date(self) -> bool:
        """Whether what it prints depends on a date."""
        return CLOCK in self.source or "date_string" in self.source

    def pieces(self, roles: Sequence[Role]) -> list[str]:
        """The text around the contents of turns with these roles, up to the prompt for a reply.

        Returns:
            One piece before each content, and one after the last.

        Raises:
            HomeostatError: The template refuses the roles, or does not print every content exactly
                once and in order.
        """
        places = [chr(FIRST_PLACE + at) for at in range(len(roles))]
        text = self.render(list(zip(roles, places, strict=True)))
        printed = PLACES.findall(text)
        lost = [role for role, mark in zip(roles, places, strict=True) if printed.count(mark) != 1]
        if lost or printed != places or (self.in_parts and "'type'" in text):
            what = " and ".join(f"the {role}'s text" for role in dict.fromkeys(lost))
            raise HomeostatError(
                f"the chat template does not print {what or 'the texts'} once and in order in a "
                f"conversation of {', '.join(roles)}."
            )
        return PLACES.split(text)

    def content(self, turn: Turn) -> str:
        """What stands between two pieces for a turn."""
        moved = turn.role == "system" and not self.takes_system
        return turn.text + BLANK_LINE if moved else turn.text

    def render(self, said: Sequence[tuple[Role, str]]) -> str:
        """The text of a conversation, given as roles and contents, with the prompt for a reply.

        Raises:
            HomeostatError: The template refuses it.
        """
        try:
            text: str = self.tokenizer.apply_chat_template(
                self._messages(said),
                tokenize=False,
                add_generation_prompt=True,
                **self._dated(),
                **self.options,
            )
        except REFUSALS as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            roles = ", ".join(role for role, _ in said)
            raise HomeostatError(
                f"the chat template refuses a conversation of {roles}: {reason}"
            ) from error
        return text

    def template_ids(self, text: str) -> list[int]:
        """The ids of text that the template prints, control tokens among them."""
        return self._ids(text, split_special_tokens=False)

    def content_ids(self, text: str) -> list[int]:
        """The ids of what somebody says; no word of it becomes a control token."""
        return self._ids(text, split_special_tokens=True)

    def _ids(self, text: str, split_special_tokens: bool) -> list[int]:
        if not text:
            return []
        ids: list[int] = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=split_special_tokens
        )["input_ids"]
        return ids

    def _messages(self, said: Sequence[tuple[Role, str]]) -> list[dict[str, Any]]:
        messages, moved = [], ""
        for role, text in said:
            if role == "system" and not self.takes_system:
                moved += text
                continue
            text, moved = moved + text, ""
            content = [{"type": "text", "text": text}] if self.in_parts else text
            messages.append({"role": role, "content": content})
        return messages

    def _dated(self) -> dict[str, str]:
        """What makes a template that asks for the date print ``day`` instead of today."""
        given = {}
        if "date_string" in self.source and "date_string" not in self.options:
            given["date_string"] = self.day.strftime("%d %b %Y")
        if CLOCK in self.source:
            given["chat_template"] = _stopped_clock(self.day) + self.source
        return given


def chat_template(
    tokenizer: Any,
    name: str = "",
    options: Mapping[str, Any] | None = None,
    day: str = TEMPLATE_DATE,
) -> ChatTemplate:
    """The chat template of a tokenizer, with what trying it has shown.

    Args:
        tokenizer: Of the model.
        name: Of the model, for the errors.
        options: Handed to the template wherever it is rendered.
        day: ISO date that a template which asks for the date is told.

    Raises:
        HomeostatError: There is none, or it loses something of what is said.
    """
    if not tokenizer.chat_template:
        raise HomeostatError(
            f"model {name} has no chat template, so it cannot hold a conversation; choose an "
            "instruction-tuned variant."
        )
    plain = ChatTemplate(tokenizer, dict(options or {}), date.fromisoformat(day))
    template = _first_that_works(name, ROLES, plain, replace(plain, in_parts=True))
    with_system: tuple[Role, ...] = ("system", *ROLES)
    template = _first_that_works(name, with_system, template, replace(template, takes_system=False))
    template = replace(template, end_ids=_ids_after_reply(template))
    notices = [sentence for _, sentence in template_findings(template) if sentence is not None]
    return replace(template, notices=tuple(notices))


def template_findings(template: ChatTemplate) -> list[Finding]:
    """What was looked at, and for everything that a user should know one sentence; else None."""
    return [
        ("system turn", _about_system(template)),
        ("end of a reply", _about_end(template)),
        ("date", _about_date(template)),
        ("thinking", _about_thinking(template)),
        ("control tokens", _about_control_tokens(template)),
        ("older replies", _about_older_replies(template)),
        ("tokens of the pieces", _about_pieces(template)),
    ]


def _first_that_works(name: str, roles: Sequence[Role], *ways: ChatTemplate) -> ChatTemplate:
    """The first of several ways to use a template in which it prints all that is said."""
    reasons = []
    for way in ways:
        try:
            way.pieces(roles)
        except HomeostatError as error:
            reasons.append(str(error).rstrip("."))
        else:
            return way
    raise HomeostatError(
        f"model {name} cannot be talked to: {reasons[0]}; mend the template or choose another "
        "model."
    )


def _ids_after_reply(template: ChatTemplate) -> tuple[int, ...]:
    """The special token right after a reply; empty if it is none."""
    ids = template.template_ids(template.pieces(ROLES)[ROLES.index("assistant") + 1])
    return tuple(i for i in ids[:1] if i in _special_ids(template.tokenizer))


def _special_ids(tokenizer: Any) -> set[int]:
    """Ids of the control tokens; the id of what is unknown is none."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return (added | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id}


def _about_system(template: ChatTemplate) -> str | None:
    if template.takes_system:
        return None
    return (
        "The chat template takes no system turn: a system text stands in front of the first user "
        "turn, with a blank line between."
    )


def _about_end(template: ChatTemplate) -> str | None:
    if template.end_ids:
        return None
    return (
        "The chat template puts no single special token after a reply: a reply ends where the "
        "model's generation config and tokenizer say."
    )


def _about_date(template: ChatTemplate) -> str | None:
    if not template.asks_for_date:
        return None
    return (
        f"The chat template asks for the date and is told {template.day} (model.template_date), "
        "whatever the day of the run."
    )


def _about_thinking(template: ChatTemplate) -> str | None:
    name = "enable_thinking"
    without = replace(template, options={**template.options, name: False})
    if name in template.options or without.pieces(ROLES) == template.pieces(ROLES):
        return None
    return (
        "The chat template lets the model think before it answers, and a short reply may be all "
        f"thought: set +model.template_options.{name}=false, or true to say that this is meant."
    )


def _about_control_tokens(template: ChatTemplate) -> str | None:
    special = _special_ids(template.tokenizer)
    printed = template.template_ids("".join(template.pieces(ROLES)))
    for one in sorted(special.intersection(printed)):
        text = template.tokenizer.convert_ids_to_tokens(one)
        if special.intersection(template.content_ids(text)):
            return (
                f"The tokenizer reads {text} as a control token wherever it stands, also where a "
                "user says it."
            )
    return None


def _about_older_replies(template: ChatTemplate) -> str | None:
    prompted, shown = template.pieces(ROLES[:1])[-1], template.pieces(ROLES)[1]
    if prompted == shown:
        return None
    return (
        f"The chat template prompts for a reply with {prompted!r} and later shows it after "
        f"{shown!r}: the run keeps every reply after the prompt that it was sampled from."
    )


def _about_pieces(template: ChatTemplate) -> str | None:
    pieces = template.pieces([turn.role for turn in TRIAL])
    contents = [template.content(turn) for turn in TRIAL]
    whole = template.template_ids(
        template.render([(t.role, c) for t, c in zip(TRIAL, contents, strict=True)])
    )
    tokenised = [(text, template.template_ids(text)) for text in pieces]
    for at, text in enumerate(contents):
        tokenised.insert(2 * at + 1, (text, template.content_ids(text)))
    read = 0
    for text, ids in tokenised:
        if whole[read : read + len(ids)] != ids:
            return (
                f"Tokenised on its own, {text!r} has other tokens than within a whole "
                "conversation: the model reads it a little otherwise than it was taught."
            )
        read += len(ids)
    return None


def _stopped_clock(day: date) -> str:
    """A macro that stands before a template and takes the place of its clock: midnight of ``day``.

    It is told through the template, as no function can be handed to it.
    """
    midnight = datetime.combine(day, time())
    directives = [f"%{letter}" for letter in "aAbBcdefFHIjmMpSTuUVwWxXyY"]
    directives += [f"%-{letter}" for letter in "dHIjmMSy"]
    told = "".join(f" | replace('{d}', '{midnight.strftime(d)}')" for d in directives)
    return f"{{% macro {CLOCK}(format) %}}{{{{ format{told} }}}}{{% endmacro %}}\n"
