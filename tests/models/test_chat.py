from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from templates import TEMPLATES, tokenizer_with

from homeostat.models.adapters import Policy
from homeostat.models.chat import encode, pad, until_last_response
from homeostat.models.template import chat_template
from homeostat.models.tiny import byte_tokenizer
from homeostat.types import Conversation, TokenStream, Turn

# Like the templates of reasoning models: older replies lose what comes before </think>, and the
# prompt for a reply opens a thought that is not shown again later.
FORGETFUL = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}{{ message['content'].split('</think>')[-1] }}"
    "{% else %}{{ message['content'] }}{% endif %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}"
)


def written(*said: tuple[str, str]) -> Conversation:
    """A conversation in which nothing was sampled."""
    return Conversation(tuple(Turn(role, text) for role, text in said))  # type: ignore[arg-type]


def rendered_ids(tokenizer: Any, conversation: Conversation) -> list[int]:
    messages = [{"role": turn.role, "content": turn.text} for turn in conversation.turns]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def marked(tokenizer: Any, stream: TokenStream, turn: int) -> str:
    """The text of the tokens that carry a turn's index."""
    return str(
        tokenizer.decode([i for i, t in zip(stream.ids, stream.turn, strict=True) if t == turn])
    )


@pytest.mark.parametrize(
    "conversation",
    [
        written(("user", "hello")),
        written(("system", "Be brief.\nBe kind."), ("user", "hello")),
        written(("user", "a\n\nb"), ("assistant", " yes, ünï 🙂 "), ("user", "  so?\n")),
        written(("user", "\ue000 and \ue001"), ("assistant", "\ue001\ue000"), ("user", "\ue002")),
        written(
            ("system", "s"),
            ("user", "one"),
            ("assistant", "two"),
            ("user", "three"),
            ("assistant", "four"),
            ("user", "five"),
        ),
    ],
)
def test_plain_turns_give_the_stream_of_the_template(conversation: Conversation) -> None:
    tokenizer = byte_tokenizer()
    stream = encode(conversation, chat_template(tokenizer), (tokenizer.eos_token_id,))
    assert stream.ids == rendered_ids(tokenizer, conversation)
    assert len(stream.turn) == len(stream.response) == len(stream.ids)
    assert not any(stream.response)


def test_sampled_turns_give_the_same_ids_as_the_template(talk: Callable[..., Conversation]) -> None:
    tokenizer = byte_tokenizer()
    conversation = talk("hello", "hi there", "so?", "nothing", "bye")
    stream = encode(conversation, chat_template(tokenizer), (tokenizer.eos_token_id,))
    assert stream.ids == rendered_ids(tokenizer, conversation)


def test_sampled_ids_are_kept_though_tokenising_the_text_gives_others() -> None:
    tokenizer = byte_tokenizer()
    half = tokenizer("é", add_special_tokens=False)["input_ids"][0]
    sampled = (*tokenizer(" ok", add_special_tokens=False)["input_ids"], half)
    text = tokenizer.decode(sampled).strip()
    assert tokenizer(text, add_special_tokens=False)["input_ids"] != list(sampled)
    said = (Turn("user", "q"), Turn("assistant", text, token_ids=sampled), Turn("user", "r"))
    stream = encode(Conversation(said), chat_template(tokenizer), (tokenizer.eos_token_id,))
    responses = [i for i, own in zip(stream.ids, stream.response, strict=True) if own]
    assert responses == list(sampled)


def test_sampled_end_of_turn_appears_once_and_counts(talk: Callable[..., Conversation]) -> None:
    tokenizer = byte_tokenizer()
    end = tokenizer.eos_token_id
    stream = encode(talk("q", "yo", "r"), chat_template(tokenizer), (end,))
    ends = [at for at, i in enumerate(stream.ids) if i == end]
    assert len(ends) == 3  # after each of the three turns
    assert [stream.response[at] for at in ends] == [False, True, False]
    assert [stream.turn[at] for at in ends] == [-1, 1, -1]
    assert sum(stream.response) == len("yo") + 1


def test_unsampled_end_of_turn_is_template(talk: Callable[..., Conversation]) -> None:
    tokenizer = byte_tokenizer()
    end = tokenizer.eos_token_id
    cut = encode(talk("q", "yo", "r", ended=False), chat_template(tokenizer), (end,))
    whole = encode(talk("q", "yo", "r"), chat_template(tokenizer), (end,))
    assert cut.ids == whole.ids
    ends = [at for at, i in enumerate(cut.ids) if i == end]
    assert [cut.response[at] for at in ends] == [False, False, False]
    assert [cut.turn[at] for at in ends] == [-1, -1, -1]
    assert sum(cut.response) == len("yo")


@pytest.mark.parametrize("ended", [True, False])
def test_stream_that_ends_with_a_reply_ends_with_its_last_sampled_token(
    talk: Callable[..., Conversation], ended: bool
) -> None:
    tokenizer = byte_tokenizer()
    conversation = talk("q", "yo", ended=ended)
    stream = encode(conversation, chat_template(tokenizer), (tokenizer.eos_token_id,))
    sampled = list(conversation.turns[1].token_ids or ())
    assert stream.ids[-len(sampled) :] == sampled
    assert stream.response[-len(sampled) :] == [True] * len(sampled)
    assert not any(stream.response[: -len(sampled)])


def test_another_end_token_than_the_templates_does_not_replace_it() -> None:
    tokenizer = byte_tokenizer()
    end, other = tokenizer.eos_token_id, 7
    said = (Turn("user", "q"), Turn("assistant", "", token_ids=(8, other)), Turn("user", "r"))
    stream = encode(Conversation(said), chat_template(tokenizer), (other, end))
    at = stream.response.index(True)
    assert stream.ids[at : at + 3] == [8, other, end]
    assert stream.response[at : at + 3] == [True, True, False]


@pytest.mark.parametrize("forgetful", [False, True])
@pytest.mark.parametrize("ended", [False, True])
def test_longer_conversation_begins_with_the_stream_of_the_shorter(
    talk: Callable[..., Conversation], ended: bool, forgetful: bool
) -> None:
    tokenizer = byte_tokenizer()
    if forgetful:
        tokenizer.chat_template = FORGETFUL
    turns = talk("q", "hm</think>yes", "so?", "er</think>no", "bye", ended=ended).turns
    template = chat_template(tokenizer)
    streams = [
        encode(Conversation(turns[:n]), template, (tokenizer.eos_token_id,)) for n in range(1, 6)
    ]
    for shorter, longer in pairwise(streams):
        n = len(shorter.ids)
        assert n < len(longer.ids)
        assert longer.ids[:n] == shorter.ids
        assert longer.turn[:n] == shorter.turn
        assert longer.response[:n] == shorter.response


def test_what_the_template_strips_from_older_turns_stays_in_the_stream(
    talk: Callable[..., Conversation],
) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = FORGETFUL
    conversation = talk("q", "hm</think>yes", "so?")
    assert "hm" not in tokenizer.decode(rendered_ids(tokenizer, conversation))
    stream = encode(conversation, chat_template(tokenizer), (tokenizer.eos_token_id,))
    assert tokenizer.decode(stream.ids) == (
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<think>"
        "hm</think>yes<|im_end|>\n<|im_start|>user\nso?<|im_end|>\n<|im_start|>assistant\n<think>"
    )


@pytest.mark.parametrize(
    ("name", "alone", "told"),
    [
        (
            "own system",
            "<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n",
            "<|im_start|>system\nBe calm.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n",
        ),
        (
            "no system",
            "<|im_start|>user\nhi<|im_end|>\n",
            "<|im_start|>user\nBe calm.\n\nhi<|im_end|>\n",
        ),
    ],
)
def test_a_system_turn_takes_the_place_of_the_templates_own(
    name: str, alone: str, told: str
) -> None:
    """Or stands in front of the first message where a template has none."""
    template = chat_template(tokenizer_with(TEMPLATES[name]))
    talk = written(("system", "Be calm."), ("user", "hi"))
    for conversation, begins in ((talk.unprompted, alone), (talk, told)):
        text = template.tokenizer.decode(encode(conversation, template, template.end_ids).ids)
        assert text.rpartition("<|im_start|>")[0] == begins


def test_turn_index_marks_exactly_the_content(talk: Callable[..., Conversation]) -> None:
    tokenizer = byte_tokenizer()
    said = talk("one\n", "two", " three", "four").turns
    conversation = Conversation((Turn("system", "brief"), *said))
    stream = encode(conversation, chat_template(tokenizer), (tokenizer.eos_token_id,))
    assert marked(tokenizer, stream, 0) == ""
    assert marked(tokenizer, stream, 1) == "one\n"
    assert marked(tokenizer, stream, 2) == "two<|im_end|>"
    assert marked(tokenizer, stream, 3) == " three"
    assert marked(tokenizer, stream, 4) == "four<|im_end|>"
    assert marked(tokenizer, stream, -1) == (
        "<|im_start|>system\nbrief<|im_end|>\n<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n"
        "\n<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n"
    )
    assert [t in (2, 4) for t in stream.turn] == stream.response


def test_reply_that_somebody_else_wrote_has_its_turn_but_is_no_response(
    make_policy: Callable[..., Policy],
) -> None:
    policy = make_policy()
    stream = policy.encode(written(("user", "q"), ("assistant", "yo"), ("user", "r")))
    assert marked(policy.tokenizer, stream, 1) == "yo"
    assert not any(stream.response)


def test_what_follows_the_last_response_is_cut_off() -> None:
    turn, response = [0, -1, 1, -1, 3, -1, 4], [False, False, True, False, True, False, False]
    found = until_last_response(TokenStream([5, 6, 7, 8, 9, 10, 11], turn, response))
    assert found == TokenStream([5, 6, 7, 8, 9], turn[:5], response[:5])


def test_pad_fills_on_the_right() -> None:
    streams = [
        TokenStream([5, 6, 7], [0, -1, 1], [False, False, True]),
        TokenStream([8], [0], [False]),
    ]
    batch = pad(streams, 9, torch.device("cpu"))
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch.attention_mask.tolist() == [[True, True, True], [True, False, False]]
    assert batch.response_mask.tolist() == [[False, False, True], [False, False, False]]
    assert batch.turn.tolist() == [[0, -1, 1], [0, -1, -1]]
    assert batch.attention_mask.dtype == batch.response_mask.dtype == torch.bool
    assert batch.prefix == ()


def test_pad_fills_on_the_left() -> None:
    streams = [
        TokenStream([5, 6, 7], [0, -1, 1], [False, False, True]),
        TokenStream([8, 4], [0, 1], [False, True]),
    ]
    batch = pad(streams, 9, torch.device("cpu"), side="left")
    assert batch.input_ids.tolist() == [[5, 6, 7], [9, 8, 4]]
    assert batch.attention_mask.tolist() == [[True, True, True], [False, True, True]]
    assert batch.response_mask.tolist() == [[False, False, True], [False, False, True]]
    assert batch.turn.tolist() == [[0, -1, 1], [-1, 0, 1]]
    assert batch.prefix == ()


@pytest.mark.parametrize(
    ("side", "ids", "there", "sampled", "turn"),
    [
        ("right", [[6, 7], [8, 9]], [[1, 1], [1, 0]], [[0, 1], [0, 0]], [[0, 1], [0, -1]]),
        ("left", [[6, 7], [9, 8]], [[1, 1], [0, 1]], [[0, 1], [0, 0]], [[0, 1], [-1, 0]]),
    ],
)
def test_pad_takes_what_is_shared_out_of_the_rows(
    side: str,
    ids: list[list[int]],
    there: list[list[int]],
    sampled: list[list[int]],
    turn: list[list[int]],
) -> None:
    streams = [
        TokenStream([3, 5, 6, 7], [-1, -1, 0, 1], [False, False, False, True]),
        TokenStream([3, 5, 8], [-1, -1, 0], [False, False, False]),
    ]
    batch = pad(streams, 9, torch.device("cpu"), side=side, shared=2)
    assert batch.prefix == (3, 5)
    assert batch.input_ids.tolist() == ids
    assert batch.attention_mask.int().tolist() == there
    assert batch.response_mask.int().tolist() == sampled
    assert batch.turn.tolist() == turn


def rendered_by(monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> list[int]:
    """The numbers of messages that the template is asked to render from now on."""
    render, asked = tokenizer.apply_chat_template, []

    def note(messages: Any, **options: Any) -> Any:
        asked.append(len(messages))
        return render(messages, **options)

    monkeypatch.setattr(tokenizer, "apply_chat_template", note)
    return asked


@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_going_on_from_a_begun_stream_equals_encoding_the_whole_at_every_turn(
    talk: Callable[..., Conversation], name: str, ended: bool, system: bool
) -> None:
    template = chat_template(tokenizer_with(TEMPLATES[name]))
    ends = (template.tokenizer.eos_token_id,)
    said = talk("q", "<think>hm</think>\n\nyes", "so?", "no", "bye", ended=ended).turns
    turns = (Turn("system", "Be kind."), *said) if system else said
    begun = None
    for n in range(1, len(turns) + 1):
        before = copy.deepcopy(begun)
        going_on = encode(Conversation(turns[:n]), template, ends, begun)
        assert begun == before, "what was begun is not changed"
        assert going_on == encode(Conversation(turns[:n]), template, ends)
        assert going_on.turns == n
        begun = going_on
    for n in range(len(turns)):
        start = encode(Conversation(turns[:n]), template, ends)
        assert encode(Conversation(turns), template, ends, start) == begun


def test_going_on_renders_once_for_every_new_user_turn(
    talk: Callable[..., Conversation],
    make_policy: Callable[..., Policy],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy, turns = make_policy(), talk("a", "b", "c", "d", "e").turns
    asked = rendered_by(monkeypatch, policy.tokenizer)
    begun = policy.encode(Conversation(turns[:1]))
    begun = policy.encode(Conversation(turns[:2]), begun)
    assert asked == [1]
    begun = policy.encode(Conversation(turns[:3]), begun)
    assert asked == [1, 3]
    assert policy.encode(Conversation(turns[:3]), begun) == begun
    assert asked == [1, 3]
    policy.encode(Conversation(turns), begun)
    assert asked == [1, 3, 5]


def test_what_was_sampled_is_what_is_trained_on_though_older_replies_lose_their_thoughts(
    talk: Callable[..., Conversation],
) -> None:
    template = chat_template(tokenizer_with(TEMPLATES["thinking"]))
    tokenizer, end = template.tokenizer, template.end_ids
    conversation = talk("q", "<think>hm</think>\n\nyes", "so?", "<think>er</think>\n\nno", "bye")
    assert "hm" not in tokenizer.decode(rendered_ids(tokenizer, conversation))
    stream = encode(conversation, template, end)
    for index in conversation.assistant_turns:
        own = zip(stream.ids, stream.turn, stream.response, strict=True)
        kept = tuple(i for i, turn, response in own if turn == index and response)
        assert kept == conversation.turns[index].token_ids
        prompt = encode(Conversation(conversation.turns[:index]), template, end).ids
        assert stream.ids[: len(prompt)] == prompt
