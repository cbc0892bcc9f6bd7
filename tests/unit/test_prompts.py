"""Prompts of each style, the explained target id for id, chains cut from their answers, and the preview."""

import json
import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from algorithm_cases import config_with

from expo_ray.algorithms import make_algorithm
from expo_ray.config.errors import DataError
from expo_ray.messages import Completion, Group, Problem, Prompt, Rollout, Verdict
from expo_ray.prompts import PromptBuilder
from expo_ray.prompts.__main__ import main
from expo_ray.prompts.loading import stop_ids
from expo_ray.prompts.templates import statement_start

PROBLEM = Problem("p1", "What is {3 + 4} in base ten?", ("7731",), "Adding gives $\\boxed{7731}$.", 1)
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHAT_TEMPLATE


def character_tokenizer(chat_template: str | None = None):
    """One token a printable ASCII character and newline, with an end token."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = ["<eos>", "<unk>", "\n", *map(chr, range(32, 127))]
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(characters)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>", chat_template=chat_template
    )


def toy_tokenizer():
    from expo_ray.world.tokenizer import build_tokenizer

    return build_tokenizer()


@cache
def real_tokenizer(name: str):
    folder = Path(os.environ.get("EXPO_MODELS", "")) / name
    if "EXPO_MODELS" not in os.environ or not folder.is_dir():
        pytest.skip(f"no {name} here; set EXPO_MODELS to a folder that holds it")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(params=["character", "character-chat", "smollm2-135m", "qwen-0.5b"])
def tokenizer(request):
    if request.param.startswith("character"):
        return character_tokenizer(CHAT_TEMPLATE if request.param.endswith("chat") else None)
    return real_tokenizer(request.param)


def explained(prompt: Prompt, explanation_ids: list[int], text: str) -> Group:
    ids = np.array(explanation_ids, dtype=np.int32)
    told = Completion(ids, np.zeros(len(ids), np.float32), text, "stop", 0)
    own = Completion(ids[:1], np.zeros(1, np.float32), "no", "stop", 0)
    return Group(Rollout(prompt, [own], [told]), [Verdict("wrong")], [Verdict("correct")])


def test_explained_target_is_prompt_and_explanation_id_for_id(tokenizer):
    """The odd ids at the end are no canonical tokenisation of their text: they must come through unchanged."""
    builder = PromptBuilder(tokenizer)
    (prompt,) = builder([PROBLEM])
    text = "Three and four make seven."
    sampled = [*tokenizer(text, add_special_tokens=False)["input_ids"], 5, 5, 3, tokenizer.eos_token_id]
    batch = make_algorithm(config_with()).training_batch([explained(prompt, sampled, text)], 0)
    (target,) = [s for s in batch.samples if s.term == "sft"]
    assert target.prompt_ids.tolist() == prompt.free_ids.tolist()
    assert target.completion_ids.tolist() == sampled


def test_only_the_conditioned_prompt_shows_the_answer(tokenizer):
    builder = PromptBuilder(tokenizer)
    (prompt,) = builder([PROBLEM])
    free, conditioned = builder.decode(prompt.free_ids.tolist()), builder.decode(prompt.conditioned_ids.tolist())
    assert "7731" not in free and "7731" in conditioned
    assert PROBLEM.question in free and PROBLEM.question in conditioned
    assert "\\boxed{}" in free and "\\boxed{}" in conditioned
    assert prompt.free_ids.dtype == prompt.conditioned_ids.dtype == np.int32


def test_conditioned_prompt_asks_for_a_derivation_that_stands_alone():
    (_, system), (_, user) = PromptBuilder(character_tokenizer(CHAT_TEMPLATE)).messages(PROBLEM)[1]
    assert "\\boxed{}" in system
    assert "derivation" in user and "stand on its own" in user and "do not write that an answer was given" in user


DROPS_SYSTEM = CHAT_TEMPLATE.replace(
    "for message in messages", "for message in messages if message['role'] != 'system'"
)
NO_START = CHAT_TEMPLATE.partition("{% if add_gen")[0]


def test_a_template_that_drops_the_system_message_gets_it_in_the_users():
    builder = PromptBuilder(character_tokenizer(DROPS_SYSTEM))
    (prompt,) = builder([PROBLEM])
    assert "boxed" in builder.decode(prompt.free_ids.tolist()) and "7731" in builder.decode(
        prompt.conditioned_ids.tolist()
    )
    (finding,) = builder.findings
    assert "drops the system message" in finding and "<user>Put the answer in a box.\\n\\nHow many days" in finding
    assert finding.endswith("<end><assistant>'")


def test_a_template_without_a_generation_prompt_is_reported_with_a_rendered_prompt():
    (finding,) = PromptBuilder(character_tokenizer(NO_START)).findings
    assert "no generation prompt" in finding and finding.endswith("'<user>How many days has a week?<end>'")


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, NO_SYSTEM])
def test_usual_templates_are_not_remarked_on(template):
    assert PromptBuilder(character_tokenizer(template)).findings == []


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for message in messages %}{{ message", "cannot be rendered (unexpected end of template"),
        ("{{ messages[5]['content'] + 'x' }}", "cannot be rendered ("),
        (
            "{{ raise_exception('tools only') }}",
            "cannot be rendered (tools only): mend it, or use model.prompt_style=base",
        ),
        ("<user>{% if add_generation_prompt %}<assistant>{% endif %}", "loses the user's message"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(template, words):
    with pytest.raises(ValueError) as refused:
        PromptBuilder(character_tokenizer(template))
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_chat_prompt_is_what_the_chat_template_renders():
    tokenizer = character_tokenizer(CHAT_TEMPLATE)
    builder = PromptBuilder(tokenizer)
    rendered = tokenizer.decode(builder([PROBLEM])[0].free_ids.tolist())
    assert rendered == f"<system>{builder.instruction}<end><user>{PROBLEM.question}<end><assistant>"


def test_a_template_that_refuses_a_system_message_gets_it_in_the_users():
    tokenizer = character_tokenizer(NO_SYSTEM)
    builder = PromptBuilder(tokenizer)
    rendered = tokenizer.decode(builder([PROBLEM])[0].free_ids.tolist())
    assert rendered == f"<user>{builder.instruction}\n\n{PROBLEM.question}<end><assistant>"


CHATS = [
    # a record's messages -> what stands before the question, with the template that knows system messages
    ([("system", "Be terse."), ("user", "3+4?")], "<system>Be terse.<end>"),
    ([("user", "3+4?")], "<system>{ours}<end>"),
    ([("user", "2+2?"), ("assistant", "4"), ("user", "3+4?")], "<system>{ours}<end><user>2+2?<end><assistant>4<end>"),
    ([("user", r"3+4? Answer in \boxed{}.")], ""),
    ([("user", "3+4? Answer after ####.")], ""),
]


@pytest.mark.parametrize(("turns", "before"), CHATS)
def test_a_records_messages_go_through_the_chat_template_as_they_are(turns, before):
    tokenizer = character_tokenizer(CHAT_TEMPLATE)
    builder = PromptBuilder(tokenizer)
    problem = replace(PROBLEM, question=turns[-1][1], turns=tuple(turns))
    (prompt,) = builder([problem])
    start = before.format(ours=builder.instruction) if before.count("{") == 1 else before
    assert tokenizer.decode(prompt.free_ids.tolist()) == f"{start}<user>{turns[-1][1]}<end><assistant>"
    conditioned = tokenizer.decode(prompt.conditioned_ids.tolist())
    assert conditioned.startswith(f"{start}<user>{turns[-1][1]}\n\nThe correct answer is {PROBLEM.answers[0]}.")


def test_messages_without_a_chat_template_are_one_text_and_an_assistants_is_refused():
    builder = PromptBuilder(character_tokenizer(None))
    chat = replace(PROBLEM, question="3+4?", turns=(("system", "Be terse."), ("user", "3+4?")))
    assert "Problem:\nBe terse.\n\n3+4?\n\n" in builder.decode(builder([chat])[0].free_ids.tolist())
    with pytest.raises(DataError, match=r"messages of the assistant.*chat template"):
        builder([replace(chat, turns=(("user", "2+2?"), ("assistant", "4"), ("user", "3+4?")))])


def test_a_template_without_a_system_role_gets_a_records_own_in_its_first_message():
    tokenizer = character_tokenizer(NO_SYSTEM)
    turns = (("system", "Be terse."), ("user", "2+2?"), ("assistant", "4"), ("user", "3+4?"))
    (prompt,) = PromptBuilder(tokenizer)([replace(PROBLEM, question="3+4?", turns=turns)])
    expected = "<user>Be terse.\n\n2+2?<end><assistant>4<end><user>3+4?<end><assistant>"
    assert tokenizer.decode(prompt.free_ids.tolist()) == expected


def test_gold_solution_is_a_completion_with_its_stop_token(tokenizer):
    (prompt,) = PromptBuilder(tokenizer)([PROBLEM])
    assert prompt.gold_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(prompt.gold_ids[:-1].tolist()) == PROBLEM.solution
    assert PromptBuilder(tokenizer)([replace(PROBLEM, solution=None)])[0].gold_ids is None


def test_a_batch_is_its_problems_one_by_one(tokenizer):
    """And chat prompts have the ids that the tokenizer itself gives a conversation."""
    builder = PromptBuilder(tokenizer)
    problems = [PROBLEM, Problem("p2", "Name a prime.", ("2", "3")), replace(PROBLEM, uid="p3", question="1+1 ?")]
    prompts = builder(problems)
    assert [prompt.problem for prompt in prompts] == problems
    for prompt, problem in zip(prompts, problems, strict=True):
        assert_same_prompt(prompt, *builder([problem]))
        assert (prompt.gold_ids is None) == (problem.solution is None)
        if builder.style == "chat":
            turns = [{"role": role, "content": text} for role, text in builder.messages(problem)[0]]
            itself = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
            assert prompt.free_ids.tolist() == itself
    assert builder([]) == []


def assert_same_prompt(one: Prompt, other: Prompt) -> None:
    for name in ("free_ids", "conditioned_ids", "gold_ids", "answer_span"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_answer_span_is_lead_and_answer(tokenizer):
    builder = PromptBuilder(tokenizer)
    span = builder([PROBLEM])[0].answer_span.tolist()
    assert tokenizer.decode(span[: builder.lead_tokens]).endswith("The final answer is $\\boxed{")
    assert tokenizer.decode(span[builder.lead_tokens :]) == "7731}"


def test_toy_prompts_are_the_worlds():
    builder = PromptBuilder(toy_tokenizer(), "auto", "toy")
    (prompt,) = builder([Problem("t", "3+4+8", ("75",), "348>5,A:75.")])
    decode = builder.tokenizer.decode
    assert decode(prompt.free_ids.tolist()) == "Q:3+4+8?E:"
    assert decode(prompt.conditioned_ids.tolist()) == "H:75?Q:3+4+8?E:"
    assert decode(prompt.gold_ids.tolist()) == "348>5,A:75.<eos>"
    assert decode(prompt.answer_span.tolist()) == "A:75." and builder.lead_tokens == 2


@pytest.mark.parametrize(
    ("text", "chain"),
    [
        ("Add both. So $x=7$.\n\nThe final answer is $\\boxed{7}$.", "Add both. So $x=7$."),
        ("Add both. Thus $3+4=\\boxed{7}$.", "Add both."),
        ("First \\boxed{1}. No, wait. It is \\boxed{7}.", "First \\boxed{1}. No, wait."),
        ("It is 3.5 units. Therefore the answer is 7.", "It is 3.5 units."),
        ("3+4=7\n#### 7", "3+4=7"),
        ("\\boxed{7}", ""),
        ("Add both, which gives 7", "Add both, which gives 7"),
        ("", ""),
    ],
)
def test_chain_ends_before_the_answer_statement(text, chain):
    assert text[: statement_start(text)].rstrip() == chain
    builder = PromptBuilder(character_tokenizer())
    ids = np.array([*builder.tokenizer(text)["input_ids"], builder.tokenizer.eos_token_id], dtype=np.int32)
    cut = builder.chain_of(ids)
    assert builder.decode(cut.tolist()) == chain
    np.testing.assert_array_equal(cut, ids[: len(cut)])


def test_chain_of_real_tokens_is_a_prefix_of_the_ids(tokenizer):
    builder = PromptBuilder(tokenizer)
    text = "We add 3 and 4.\n\nThis gives 7.\n\nThe final answer is $\\boxed{7}$."
    ids = np.array([*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id], dtype=np.int32)
    cut = builder.chain_of(ids)
    np.testing.assert_array_equal(cut, ids[: len(cut)])
    assert builder.decode(cut.tolist()).rstrip() == "We add 3 and 4.\n\nThis gives 7."


@pytest.mark.parametrize(
    ("text", "restated"),
    [
        ("3+4=7;7+8=6;A:76.", "3+4=7;7+8=6;A:75."),
        ("3+4=7;7+8=5;A:75.", "3+4=7;7+8=5;A:75."),
        ("3+4=7;7+", "3+4=7;7+A:75."),
        ("A:9.", "A:75."),
    ],
)
def test_a_restated_toy_completion_has_its_chain_and_the_gold_answer(text, restated):
    builder = PromptBuilder(toy_tokenizer(), "auto", "toy")
    (prompt,) = builder([Problem("t", "3+4+8", ("75",), "3+4=7+8;A:75.")])
    end = builder.tokenizer.eos_token_id
    sampled = np.array([*builder.tokenizer(text)["input_ids"], end], dtype=np.int32)
    ids, said = builder.restate(prompt, sampled)
    assert (said, ids.tolist(), ids.dtype) == (restated, [*builder.tokenizer(restated)["input_ids"], end], np.int32)


def test_a_restated_completion_keeps_its_ids_and_states_the_gold_answer(tokenizer):
    builder = PromptBuilder(tokenizer)
    (prompt,) = builder([PROBLEM])
    text = "We add 3 and 4.\n\nThis gives 8.\n\nThe final answer is $\\boxed{8}$."
    sampled = np.array([*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id], np.int32)
    ids, said = builder.restate(prompt, sampled)
    chain = builder.chain_of(sampled)
    np.testing.assert_array_equal(ids[: len(chain)], chain)
    statement = "\n\nThe final answer is $\\boxed{7731}$."
    assert ids[len(chain) :].tolist() == [
        *tokenizer(statement, add_special_tokens=False)["input_ids"],
        tokenizer.eos_token_id,
    ]
    assert said == builder.decode(chain.tolist()) + statement


@pytest.mark.parametrize("kind", ["hint", "beginning"])
def test_a_guided_prompt_is_the_free_one_with_the_text_after_the_question(tokenizer, kind):
    """Braces in the text have no effect, and nothing else of the prompt changes."""
    builder = PromptBuilder(tokenizer)
    text = "use {answer} and {text}, then 3 + 4"
    free = builder.decode(builder([PROBLEM])[0].free_ids.tolist())
    guided = builder.decode(builder.guided(PROBLEM, kind, text).tolist())
    before, _, after = free.partition(PROBLEM.question)
    assert guided.startswith(before + PROBLEM.question) and guided.endswith(after)
    assert text in guided and builder.asks_for_hints


def test_the_request_for_a_hint_wants_no_answer(tokenizer):
    builder = PromptBuilder(tokenizer)
    asked = builder.decode(builder.guided(PROBLEM, "ask_hint", "Adding gives {text}.").tolist())
    assert PROBLEM.question in asked and "Adding gives {text}." in asked
    assert "final answer" not in asked and "boxed" not in asked
    assert builder.style == "chat" or asked.endswith("do not solve the problem.\n\nHint:\n")


def test_guidance_changes_neither_the_question_nor_the_request_for_a_box():
    builder = PromptBuilder(character_tokenizer(CHAT_TEMPLATE))
    asked = replace(PROBLEM, question="Sum in \\text{text}?", turns=(("user", "Sum in \\text{text}?"),))
    guided = builder.decode(builder.guided(asked, "hint", "use \\boxed{3}").tolist())
    assert guided.startswith("<system>Reason step by step, and put your final answer within \\boxed{}.")
    assert "<user>Sum in \\text{text}?\n\nHint: use \\boxed{3}<end>" in guided


@pytest.mark.parametrize(
    ("kind", "text", "shown"),
    [
        ("hint", "3+4=7;7+8=5;5+1=6;A:756.", "?5?"),
        ("beginning", "3+4=7+8", "7??"),
        ("beginning", "3+4=7+8=5+", "75?"),
        ("beginning", "3+", "???"),
    ],
)
def test_a_guided_toy_prompt_shows_part_of_the_digits(kind, text, shown):
    builder = PromptBuilder(toy_tokenizer(), task="toy")
    problem = Problem("t", "3+4+8+1", ("756",))
    assert builder.decode(builder.guided(problem, kind, text).tolist()) == f"H:{shown}?Q:3+4+8+1?E:"
    assert not builder.asks_for_hints


@pytest.mark.parametrize(("text", "states"), [("so $\\boxed{7}$", True), ("so it is seven", False)])
def test_whether_a_completion_states_an_answer(text, states):
    assert PromptBuilder(character_tokenizer()).states_answer(text) is states
    assert PromptBuilder(toy_tokenizer(), task="toy").states_answer("1+1=2;A:2." if states else "1+1=2;") is states


def test_choice_asks_for_a_letter():
    assert "letter" in PromptBuilder(character_tokenizer(), "base", "choice").instruction


@pytest.mark.parametrize(("style", "message"), [("chat", "no chat template"), ("fancy", "prompt_style=fancy")])
def test_bad_styles_are_refused(style, message):
    with pytest.raises(ValueError, match=message):
        PromptBuilder(character_tokenizer(), style)


def test_a_tokenizer_without_end_token_is_refused():
    tokenizer = character_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="end-of-sequence"):
        PromptBuilder(tokenizer)


def test_preview_shows_prompts_and_ids(tmp_path, capsys):
    character_tokenizer(CHAT_TEMPLATE).save_pretrained(tmp_path)
    data = tmp_path / "data.jsonl"
    data.write_text('{"question": "Find x.", "answer": "4321", "solution": "It is 4321."}\n' * 20)
    overrides = [f"model.path={tmp_path}", "data=jsonl", f"data.path={data}"]
    assert main(["--preview", "--count", "3", *overrides]) == 0
    shown = capsys.readouterr().out
    assert shown.count("--- free prompt") == shown.count("--- conditioned prompt") == 3
    assert "<user>Find x." in shown and "The correct answer is 4321." in shown


def test_preview_without_overrides_shows_the_toy_task(capsys):
    assert main(["--preview", "--count", "1"]) == 0
    assert "Q:" in capsys.readouterr().out


def test_preview_names_the_bad_line(tmp_path, capsys):
    data = tmp_path / "bad.jsonl"
    data.write_text("nonsense\n")
    assert main(["--preview", "model=toy", "data=jsonl", f"data.path={data}"]) == 2
    assert f"{data} line 1" in capsys.readouterr().err


def test_the_preview_of_an_adapter_without_a_tokenizer_takes_its_base(tmp_path, tiny_models, capsys):
    settings = {"base_model_name_or_path": str(tiny_models["tied"])}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    assert main(["--preview", "model=toy", "data=toy", "verifier=toy", f"model.path={tmp_path}"]) == 0
    assert "free prompt" in capsys.readouterr().out


GEMMA_TEMPLATE = """\
{{- bos_token }}{% for m in messages %}{{ '<turn>' + m.role + '\n' + m.content | trim + '<end>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"""
"""Made alike Gemma 3's: a turn ends with a token that is not the tokenizer's end token."""
DATED = (
    "{{- 'Today: ' + (date_string if date_string is defined else strftime_now('%d %b %Y')) + '\n' }}" + CHAT_TEMPLATE
)


def test_a_completion_ends_as_the_chat_template_ends_a_turn():
    tokenizer = character_tokenizer(GEMMA_TEMPLATE)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>", "<end>"]})
    builder, end = PromptBuilder(tokenizer), tokenizer.convert_tokens_to_ids("<end>")
    (prompt,) = builder([PROBLEM])
    restated, _ = builder.restate(prompt, prompt.gold_ids)
    assert prompt.gold_ids[-1] == restated[-1] == builder.end_id == end != tokenizer.eos_token_id
    assert stop_ids(builder, [end]) == (tokenizer.eos_token_id, end)
    for other in (PromptBuilder(tokenizer, "base"), PromptBuilder(character_tokenizer(CHAT_TEMPLATE))):
        assert other.end_id == tokenizer.eos_token_id


def test_a_template_that_writes_the_date_writes_one_date_only():
    """A run of Llama 3.2 could else not go on after midnight: its prompts would be others."""
    builder = PromptBuilder(character_tokenizer(DATED))
    assert "Today: 26 Jul 2024\n" in builder.decode(builder([PROBLEM])[0].free_ids.tolist())
    assert len(builder.findings) == 1 and "writes the day's date, and 26 Jul 2024 is written" in builder.findings[0]
    told = PromptBuilder(character_tokenizer(DATED), values={"date_string": "1 May 2025"})
    assert "Today: 1 May 2025\n" in told.decode(told([PROBLEM])[0].free_ids.tolist()) and told.findings == []
