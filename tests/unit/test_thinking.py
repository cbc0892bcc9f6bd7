"""A model that thinks before it answers, with the switch of its chat template on and off: from the rendered prompt to
what is graded, what counts as a leak, and which ids are trained on."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from algorithm_cases import config_with
from model_folder import SHAPE, tensors, write_safetensors

from expo_ray.algorithms import make_algorithm
from expo_ray.algorithms.properties import plan_properties
from expo_ray.config.compose import compose_config
from expo_ray.config.errors import ConfigError
from expo_ray.config.keys import as_settings, differences
from expo_ray.config.resources import Resources
from expo_ray.leaks import mentions_given_answer
from expo_ray.messages import Group, Problem, Rollout, Verdict
from expo_ray.preflight.model_files import template_problems
from expo_ray.preflight.values import check_config
from expo_ray.prompts import PromptBuilder
from expo_ray.prompts.loading import load_tokenizer, make_builder
from expo_ray.prompts.templates import settings_of
from expo_ray.rollout.engine import completions
from expo_ray.verifier.tasks import make_task

# Made alike Qwen3's published template: a closed, empty thought in the prompt if thinking is switched off.
QWEN3 = """\
{%- if tools %}{{- '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>\\n' }}{%- endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'assistant' and '</think>' in content and not loop.last %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
# As those of DeepSeek-R1, QwQ and Qwen3 Thinking: the prompt itself begins the thought.
BEGINS = QWEN3.replace("<think>\\n\\n</think>\\n\\n", "").replace("assistant\\n' }}", "assistant\\n<think>\\n' }}")
PROBLEM = Problem("p1", "What is 3 + 4?", ("7",), "Adding gives $\\boxed{7}$.", 1)
OFF = {"enable_thinking": False}


def thinking_tokenizer(template: str = QWEN3, special: bool = False, named: bool = True):
    """One token a character, and four marks; `special`: those of a thought are special tokens, too, which
    tokenizer_config.json names or (`named`) only tokenizer.json flags."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = ["<unk>", "\n", *map(chr, range(32, 127))]
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(characters)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken(mark, special=special, normalized=False) for mark in ("<think>", "</think>")])
    marks = ["<|im_start|>", *(["<think>", "</think>"] if special else [])]
    more = {"additional_special_tokens": marks} if named else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", unk_token="<unk>", chat_template=template, **more
    )


MODELS = {
    "on": (QWEN3, None),
    "said to be on": (QWEN3, {"enable_thinking": True}),
    "off": (QWEN3, OFF),
    "begun by the prompt": (BEGINS, None),
}
ENDS = {
    "on": "assistant\n",
    "said to be on": "assistant\n",
    "off": "assistant\n<think>\n\n</think>\n\n",
    "begun by the prompt": "assistant\n<think>\n",
}


def builder_of(name: str, special: bool = False) -> PromptBuilder:
    template, values = MODELS[name]
    return PromptBuilder(thinking_tokenizer(template, special), values=values)


def sampled(builder: PromptBuilder, text: str, reason: str = "stop"):
    """A completion as a rollout worker makes it from the engine's output."""
    ids = builder.tokenizer(text, add_special_tokens=False)["input_ids"]
    ids += [builder.tokenizer.eos_token_id] if reason == "stop" else []
    logprobs = SimpleNamespace(token_ids=ids, logprobs=[-0.5] * len(ids))
    output = SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids, logprobs=logprobs, finish_reason=reason)])
    ((found,),) = completions([output], builder.tokenizer, 0, [builder.thought])
    return found


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("special", [False, True])
def test_both_prompts_end_as_the_switch_says(name, special):
    builder = builder_of(name, special)
    (prompt,) = builder([PROBLEM])
    for ids in (prompt.free_ids, prompt.conditioned_ids):
        assert builder.tokenizer.decode(ids.tolist()).endswith(ENDS[name])
        assert ("The correct answer is 7" in builder.decode(ids.tolist())) == (ids is prompt.conditioned_ids)
    assert prompt.thought == builder.thought == ("<think>\n" if name.startswith("begun") else "")
    assert builder.findings == []


THOUGHT = "<think>\nIs it \\boxed{5}? No.\n</think>\n\n"
RESPONSES = [
    # what the model writes behind a prompt without a thought, and the answer that counts
    (f"{THOUGHT}Adding gives \\boxed{{7}}.", "7"),
    (f"{THOUGHT}The answer is 7.", "7"),
    (f"{THOUGHT}I cannot tell how many there are.", None),
    ("<think>\nSo it is \\boxed{7}.", None),
    ("<think>\nThe answer is 7.\n", None),
    ("Adding gives \\boxed{7}.", "7"),
    ("It is \\boxed{7}.\n<think>\nOr is it \\boxed{5}", "7"),
    ("<think>\n\n</think>\n\n\\boxed{7}", "7"),
    ("<think>a</think>\\boxed{5}<think>b</think>\\boxed{7}", "7"),
]


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize(("text", "answer"), RESPONSES)
def test_only_what_follows_the_thought_is_graded(text, answer, special):
    math = make_task("math", {})
    for name in MODELS:
        builder = builder_of(name, special)
        written = text.removeprefix("<think>\n") if builder.thought else text
        found = sampled(builder, written)
        if not builder.thought or text.startswith("<think>\n"):
            assert found.text == text and math.extract(found.text) == answer


def test_marks_that_only_tokenizer_json_calls_special_are_kept():
    builder = PromptBuilder(thinking_tokenizer(special=True, named=False))
    text = f"<|im_start|>{RESPONSES[0][0]}"
    assert sampled(builder, text).text == text.removeprefix("<|im_start|>")


def test_a_thought_that_the_prompt_begins_and_the_limit_cuts_off_has_no_answer():
    cut = sampled(builder_of("begun by the prompt"), "So it is \\boxed{7}. But wait", "length")
    assert cut.text == "<think>\nSo it is \\boxed{7}. But wait" and make_task("math", {}).extract(cut.text) is None
    assert make_task("gsm8k", {}).extract(cut.text) is make_task("choice", {}).extract(cut.text) is None


def trained(builder: PromptBuilder, text: str, outcome: str, reason: str = "stop", **algo):
    """The SFT targets that a group's one explanation gives, and what was counted."""
    (prompt,) = builder([PROBLEM])
    explanation = sampled(builder, text, reason)
    free = replace(explanation, token_ids=explanation.token_ids[:1], logprobs=explanation.logprobs[:1], text="no")
    group = Group(Rollout(prompt, [free], [explanation]), [Verdict("wrong")], [Verdict(outcome)])
    algorithm = make_algorithm(config_with(**algo))
    algorithm.attach(None, None, builder.restate)
    batch = algorithm.training_batch([group], 0)
    return explanation, prompt, [s for s in batch.samples if s.term == "sft"], batch.metrics


@pytest.mark.parametrize("name", MODELS)
def test_a_right_explanation_is_trained_on_as_sampled_with_its_thought_after_the_free_prompt(name):
    builder = builder_of(name)
    text = "3 + 4: count on.\n</think>\n\nAdding gives $\\boxed{7}$."
    text = text if builder.thought else f"<think>\n{text}"
    explanation, prompt, (target,), _ = trained(builder, text, "correct")
    np.testing.assert_array_equal(target.prompt_ids, prompt.free_ids)
    np.testing.assert_array_equal(target.completion_ids, explanation.token_ids)


@pytest.mark.parametrize("name", ["on", "begun by the prompt"])
def test_a_thought_that_mentions_the_given_answer_is_a_leak(name):
    builder = builder_of(name)
    text = "I was told that the answer is 7.\n</think>\n\nAdding gives $\\boxed{7}$."
    text = text if builder.thought else f"<think>\n{text}"
    assert mentions_given_answer(text.rpartition("</think>")[2]) is None
    _, _, targets, counted = trained(builder, text, "correct")
    assert targets == [] and counted["explanations/leaked"] == 1


@pytest.mark.parametrize("name", ["on", "begun by the prompt"])
def test_a_wrong_answer_is_replaced_behind_the_thought(name):
    builder = builder_of(name)
    thought = "Perhaps \\boxed{5}.\n</think>\n\n"
    thought = thought if builder.thought else f"<think>\n{thought}"
    explanation, _, (target,), _ = trained(builder, thought + "We add.\n\nSo it is \\boxed{8}.", "wrong")
    shown = builder.tokenizer.decode(target.completion_ids.tolist())
    assert shown == f"{thought}We add.\n\nThe final answer is $\\boxed{{7}}$.<|im_end|>"
    kept = builder.tokenizer(thought + "We add.", add_special_tokens=False)["input_ids"]
    np.testing.assert_array_equal(target.completion_ids[: len(kept)], explanation.token_ids[: len(kept)])


@pytest.mark.parametrize("name", ["on", "begun by the prompt"])
def test_a_thought_without_an_end_is_left_out_or_ended_before_the_answer(name):
    builder = builder_of(name)
    text = "Perhaps it is \\boxed{5}. But" if builder.thought else "<think>\nPerhaps it is \\boxed{5}. But"
    _, _, targets, counted = trained(builder, text, "no_answer", "length")
    assert targets == [] and counted["explanations/cut_off_dropped"] == 1
    _, prompt, (target,), _ = trained(builder, text, "no_answer", "length", explanation_cut_off="keep")
    shown = builder.tokenizer.decode(target.completion_ids.tolist())
    assert shown == f"{text}\n</think>\n\nThe final answer is $\\boxed{{7}}$.<|im_end|>"
    _, said = builder.restate(prompt, sampled(builder, text, "length").token_ids)
    assert make_task("math", {}).extract(said) == "7"


@pytest.mark.parametrize("name", MODELS)
def test_the_answer_is_scored_and_the_experts_solution_stands_outside_of_a_thought(name):
    builder = builder_of(name)
    (prompt,) = builder([PROBLEM])
    text = "So \\boxed{5}. But" if builder.thought else "<think>\nSo \\boxed{5}. But"
    free, explained = sampled(builder, text, "length"), sampled(builder, f"{text} no.\n</think>\n\nIt is \\boxed{{7}}.")
    plan = plan_properties(
        Group(Rollout(prompt, [free], [explained]), [Verdict("no_answer")], [Verdict("correct")]),
        builder.lead_tokens,
        builder.chain_of,
    )
    show = builder.tokenizer.decode
    contexts = [show(context.tolist()) for context, _ in [plan.sequences[0], *plan.sequences[2::2]]]
    end, lead = ("\n</think>" if builder.thought else ""), "\n\nThe final answer is $\\boxed{"
    # The answer alone, then after the explanation, the expert's solution and the free completion.
    wanted = [end, f"{text} no.\n</think>", end, f"{text}\n</think>"]
    assert contexts == [show(prompt.free_ids.tolist()) + chain + lead for chain in wanted]
    solution = f"{end}\n\n{PROBLEM.solution}" if end else PROBLEM.solution
    assert show(prompt.gold_ids.tolist()) == f"{solution}<|im_end|>"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"enable_thinkin": False}, "sets enable_thinkin, which the chat template does not read; did you mean"),
        ({"messages": []}, "sets messages, which the chat template does not read: leave it out (it reads enable_th"),
        ({"tokenize": False}, "sets tokenize, which"),
        ({**OFF, "add_generation_prompt": False}, "sets add_generation_prompt, which"),
    ],
)
def test_a_name_that_the_template_does_not_read_is_refused(values, words):
    with pytest.raises(ValueError) as refused:
        PromptBuilder(thinking_tokenizer(), values=values)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_what_templates_read():
    assert settings_of(QWEN3) == {"enable_thinking", "tools"}
    assert settings_of("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}") == set()
    assert settings_of("{% for m in messages %}{% if m.role == x %}{% break %}{% endif %}{% endfor %}") == {"x"}
    assert settings_of("{% for message in messages %}{{ message") is None
    with pytest.raises(ValueError, match="which use no chat template"):
        PromptBuilder(thinking_tokenizer(), "base", values=OFF)


@pytest.fixture
def folder(tmp_path):
    """A model folder with Qwen3's template, its tokenizer and its config.json."""
    thinking_tokenizer().save_pretrained(tmp_path)
    shape = {**SHAPE, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 16}
    (tmp_path / "config.json").write_text(json.dumps({**shape, "vocab_size": 128}))
    write_safetensors(tmp_path / "model.safetensors", tensors(tmp_path))
    return tmp_path


def checked(folder, *more: str, training: bool = True):
    wanted = ["profile=cpu", "data=toy", "verifier=math", f"model.path={folder}", "dry_run=true", *more]
    config = compose_config(wanted)
    check_config(config, Resources("here", 1, 64, 500, 0, 0), training)
    return config


@pytest.mark.parametrize("training", [True, False])
def test_the_switch_goes_from_the_command_line_into_every_prompt(folder, training):
    """A dry run checks its name; training and evaluations make their prompts with it."""
    config = checked(folder, "model.chat_template_kwargs={enable_thinking: false}", training=training)
    builder = make_builder(load_tokenizer(config), config)
    (prompt,) = builder([PROBLEM])
    for ids in (prompt.free_ids, prompt.conditioned_ids):
        assert builder.tokenizer.decode(ids.tolist()).endswith(ENDS["off"])
    with pytest.raises(ConfigError, match=rf"model.path={folder}: model.chat_template_kwargs sets thinking, which"):
        checked(folder, "model.chat_template_kwargs={thinking: false}", training=training)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="needs a chat template"):
        checked(folder, "model.chat_template_kwargs={enable_thinking: false}", training=training)


def test_the_template_is_found_in_every_place(folder):
    template = folder / "chat_template.jinja"
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    text = template.read_text()
    template.unlink()
    listed = [{"name": "tools", "template": "{{ thinking }}"}, {"name": "default", "template": text}]
    for name, value in (
        ("chat_template.json", text),
        ("tokenizer_config.json", text),
        ("tokenizer_config.json", listed),
    ):
        (folder / name).write_text(json.dumps(settings | {"chat_template": value}))
        assert list(template_problems(folder, OFF)) == []
        (problem,) = template_problems(folder, {"thinking": False})
        assert "sets thinking, which the chat template does not read" in problem
        (folder / "chat_template.json").unlink(missing_ok=True)


def test_the_switch_is_one_setting_of_a_run():
    """It is compared when a run resumes, as a whole, and a run from before it has none."""
    plain = compose_config(["model=toy", "data=toy"])
    off = compose_config(["model=toy", "data=toy", "model.chat_template_kwargs={enable_thinking: false}"])
    before = as_settings(plain)
    assert before["model.chat_template_kwargs"] == {}
    earlier = {key: value for key, value in before.items() if key != "model.chat_template_kwargs"}
    assert differences(earlier, before) == ([], [])
    assert differences(earlier, as_settings(off))[0] == differences(before, as_settings(off))[0] != []


def test_the_switch_by_its_own_name_is_the_same():
    config = compose_config(["model=toy", "data=toy", "model.chat_template_kwargs.enable_thinking=false"])
    assert config.model.chat_template_kwargs == {"enable_thinking": False}


def test_another_form_of_the_switch_is_refused():
    with pytest.raises(ConfigError) as refused:
        compose_config(["model=toy", "data=toy", "model.chat_template_kwargs=false"])
    assert "it takes names with values, as {name: value}" in str(refused.value)


def test_the_switch_in_an_idle_place_is_refused():
    with pytest.raises(ConfigError, match=r"does nothing with model\.prompt_style=base or toy"):
        check_config(compose_config(["model=toy", "data=toy", "model.chat_template_kwargs={enable_thinking: false}"]))
