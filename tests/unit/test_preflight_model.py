"""Weight files and tokenizers of fake model folders: whole ones pass, each damage is told with its remedy."""

import json
import struct
from dataclasses import replace
from functools import cache
from importlib import util

import pytest
from model_folder import EMBEDDING, SHAPE, TOKENS, tensors, write_model, write_safetensors, write_tokenizer

from expo_ray.config.compose import compose_config
from expo_ray.config.errors import ConfigError, DataError
from expo_ray.config.resources import Resources
from expo_ray.messages import Problem
from expo_ray.preflight.checks import check_start
from expo_ray.preflight.inputs import check_longest
from expo_ray.preflight.model_files import tokenizer_problems, weight_problems
from expo_ray.preflight.model_folder import generation_ends, model_shape
from expo_ray.preflight.plan import make_plan
from expo_ray.preflight.values import _model_path, _model_problems, check_config

INDEX = "model.safetensors.index.json"
VOCABULARY = SHAPE["vocab_size"]


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "model")


@pytest.fixture
def shards(model):
    """The same model in two shards."""
    (model / "model.safetensors").unlink()
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    rest = tensors(model)
    write_safetensors(model / second, {"model.norm.weight": rest.pop("model.norm.weight")})
    write_safetensors(model / first, rest)
    names = dict.fromkeys(rest, first) | {"model.norm.weight": second}
    (model / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return model


def told(folder):
    found = [*weight_problems(folder, model_shape(str(folder))), *tokenizer_problems(folder, VOCABULARY)]
    assert all(f"model.path={folder}" in sentence and "\n" not in sentence for sentence in found)
    return found


def told_one(folder, *words):
    found = told(folder)
    assert len(found) == 1 and all(word in found[0] for word in words), found


def test_whole_folders_pass(model, shards):
    assert told(shards) == []
    assert told(write_model(model)) == []


def test_real_folders_pass(tiny_models):
    for folder in tiny_models.values():
        assert list(weight_problems(folder, model_shape(str(folder)))) == list(tokenizer_problems(folder, 25)) == []


def test_a_check_reads_them_and_says_so_before_the_resources(model):
    rewrite(model, quantization_config={"quant_method": "awq"})
    with pytest.raises(ConfigError, match=r"is quantised \(awq\)"):
        check_config(compose_config(["profile=cpu", f"model.path={model}"]), Resources("here", 1, 0, 0, 0, 0))
    rewrite(model)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ConfigError, match="cut short"):
        check_config(compose_config(["profile=cpu", f"model.path={model}"]), Resources("here", 1, 0, 0, 0, 0))


@pytest.mark.parametrize("kept", [0, 7, 8, 100, -64, -1])
def test_every_cut_of_a_file_is_found(model, kept):
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    told_one(model, "model.safetensors is cut short", "copy it again")


def test_what_is_no_safetensors_file_is_told(model):
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole + b"x")
    told_one(model, "is too long", f"{len(whole) + 1} bytes", f"header says {len(whole)}")
    weights.write_bytes(b"<!DOCTYPE html><html>not found</html>")
    told_one(model, "is not a safetensors file")
    weights.write_bytes(struct.pack("<Q", 6) + b"{]]]]}")
    told_one(model, "broken header")
    weights.write_bytes(struct.pack("<Q", 9) + b'{"a": {}}')
    told_one(model, "broken header")
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n")
    told_one(model, "Git LFS pointer", "git lfs pull")


def test_weights_that_cannot_be_read_are_told(model, monkeypatch):
    monkeypatch.setattr("pathlib.Path.open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    assert any("cannot be read (Permission denied)" in sentence for sentence in weight_problems(model, None))


def test_shards_must_all_be_there_and_hold_what_the_index_says(shards):
    second = shards / "model-00002-of-00002.safetensors"
    whole = second.read_bytes()
    write_safetensors(second, {"model.other.weight": (64,)})
    told_one(shards, "model-00002-of-00002.safetensors lacks model.norm.weight", "copy both again")
    second.write_bytes(whole[:-8])
    told_one(shards, "model-00002-of-00002.safetensors is cut short")
    second.unlink()
    told_one(shards, "names 2 files", "1 of them cannot be found (model-00002-of-00002.safetensors)")
    (shards / INDEX).write_text("{")
    told_one(shards, f"{INDEX} cannot be read")
    (shards / INDEX).write_text("[]")
    told_one(shards, f"{INDEX} cannot be read")
    (shards / INDEX).unlink()
    told_one(shards, f"neither model.safetensors nor {INDEX}")


def test_older_weight_files_are_left_to_their_library(model):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert told(model) == []


def test_weights_of_another_vocabulary_are_told(model):
    write_safetensors(model / "model.safetensors", tensors(model) | {EMBEDDING: (VOCABULARY + 1, 64)})
    told_one(model, f"vocab_size={VOCABULARY}", f"{VOCABULARY + 1} rows")


def rewrite(folder, **settings):
    """Changes config.json and leaves the weights."""
    (folder / "config.json").write_text(json.dumps(SHAPE | settings))


def weights(folder, change, dtype="F32"):
    """Writes the weights again, each name through `change` (None: left out)."""
    kept = {change(name): size for name, size in tensors(folder).items() if change(name)}
    write_safetensors(folder / "model.safetensors", kept, dtype)


@pytest.mark.parametrize(
    ("settings", "tied"),
    [
        ({"model_type": "gemma3_text"}, True),
        ({"model_type": "gemma3_text", "tie_word_embeddings": False}, False),
        ({"model_type": "qwen2"}, False),
        ({"model_type": "gemma3", "text_config": SHAPE | {"model_type": "gemma3_text"}}, True),
        ({"model_type": "x", "text_config": SHAPE | {"model_type": "y"}, "tie_word_embeddings": True}, True),
    ],
)
def test_an_output_layer_is_tied_as_the_type_is_unless_the_file_says(tmp_path, settings, tied):
    """transformers writes no key where a type's own default holds, as for Gemma 3, which ties it."""
    bare = {key: value for key, value in SHAPE.items() if key != "tie_word_embeddings"}
    text = settings.get("text_config", {})
    text = {"text_config": {k: v for k, v in text.items() if k != "tie_word_embeddings"}} if text else {}
    (tmp_path / "config.json").write_text(json.dumps(bare | settings | text))
    assert model_shape(str(tmp_path)).tied == tied


LORA = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def adapter(folder, base=None, whole=False, tokenizer=True, names=(LORA,), **settings):
    """A folder as peft saves it, on a base beside it unless `base` is given."""
    if base is None:
        base = write_model(folder.parent / "base")
    given = {"base_model_name_or_path": str(base), "peft_type": "LORA", "task_type": "CAUSAL_LM"} | settings
    (folder / "adapter_config.json").write_text(json.dumps({k: v for k, v in given.items() if v is not None}))
    write_safetensors(folder / "adapter_model.safetensors", dict.fromkeys(names, (4, 64)))
    for file in () if whole else ("config.json", "model.safetensors", "generation_config.json"):
        (folder / file).unlink()
    for file in () if tokenizer else folder.glob("*token*"):
        file.unlink()


def on_a_bad_base(folder, change):
    adapter(folder)
    change(folder.parent / "base")


def multimodal(folder, kind, name, **more):
    shape = {
        "model_type": kind,
        "architectures": [name],
        "text_config": SHAPE | {"final_logit_softcapping": None},
    } | more
    (folder / "config.json").write_text(json.dumps(shape))


ATTENTION = "model.layers.1.self_attn.q_proj.weight"
FOLDERS = {
    "as saved": (lambda folder: None, None),
    "untied, with its output layer": (lambda folder: write_model(folder, tie_word_embeddings=False), None),
    "base model without the prefix": (lambda f: weights(f, lambda name: name.removeprefix("model.")), None),
    "an unknown type with other names": (
        lambda f: (
            rewrite(f, model_type="mine", tie_word_embeddings=True),
            weights(f, lambda n: n.replace("self_attn", "mix")),
        ),
        None,
    ),
    "an unknown type with another name for its output layer": (
        lambda f: (
            rewrite(f, model_type="chatglm", tie_word_embeddings=False),
            weights(f, lambda n: n.replace("lm_head.", "transformer.output_layer.")),
        ),
        None,
    ),
    "an unknown type without an output layer": (
        lambda f: rewrite(f, model_type="chatglm", tie_word_embeddings=False),
        "no lm_head.weight, so it would be drawn at random",
    ),
    "Gemma 3 with its vision tower": (lambda f: multimodal(f, "gemma3", "Gemma3ForConditionalGeneration"), None),
    "a multimodal model that transformers cannot train": (
        lambda f: multimodal(f, "qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration"),
        "says model_type=qwen2_5_vl, of which the installed transformers has no causal language model",
    ),
    "a multimodal model whose text is a model of its own": (
        lambda f: multimodal(f, "llama4", "Llama4ForConditionalGeneration"),
        "engines load Llama4ForConditionalGeneration, and learners only its text (Llama4ForCausalLM)",
    ),
    "Gemma 2": (
        lambda f: rewrite(f, model_type="gemma2", architectures=["Gemma2ForCausalLM"], final_logit_softcapping=30.0),
        "says final_logit_softcapping=30.0, which changes the output layer's logits",
    ),
    "custom code that generates": (
        lambda f: rewrite(f, architectures=["MineModel"], auto_map={"AutoModelForCausalLM": "mine.Mine"}),
        None,
    ),
    "an encoder": (
        lambda f: rewrite(f, architectures=["BertForMaskedLM"]),
        "architectures=BertForMaskedLM, which does not",
    ),
    "a classifier": (lambda f: rewrite(f, architectures=["Qwen2ForSequenceClassification"]), "does not generate text"),
    "embeddings only": (lambda f: rewrite(f, architectures=["Qwen2Model"]), "architectures=Qwen2Model, which does not"),
    "an encoder and decoder": (
        lambda f: rewrite(f, architectures=["T5ForConditionalGeneration"], is_encoder_decoder=True),
        "is_encoder_decoder=true (T5ForConditionalGeneration)",
    ),
    "GPTQ": (lambda f: rewrite(f, quantization_config={"quant_method": "gptq", "bits": 4}), "is quantised (gptq)"),
    "GPTQ of old": (lambda f: (f / "quantize_config.json").write_text('{"bits": 4}'), "is quantised (4 bits)"),
    "quantised by a bare word": (lambda f: rewrite(f, quantization_config="awq"), "is quantised (? bits)"),
    "an architecture without a list": (lambda f: rewrite(f, architectures="Qwen2ForCausalLM"), None),
    "an encoder without a list": (lambda f: rewrite(f, architectures="BertForMaskedLM"), "says architectures=BertFor"),
    "a text model that is a word": (lambda f: rewrite(f, text_config="qwen2"), None),
    "no attention heads": (lambda f: rewrite(f, num_attention_heads=0), None),
    "integers without a word": (lambda f: weights(f, str, "I32"), "is I32), and quantised weights cannot be trained"),
    "fewer layers than said": (
        lambda f: rewrite(f, num_hidden_layers=3),
        "num_hidden_layers=3, but the weights have 2 layers",
    ),
    "more layers than said": (
        lambda f: rewrite(f, num_hidden_layers=1),
        "num_hidden_layers=1, but the weights have 2 layers",
    ),
    "no output layer": (
        lambda f: rewrite(f, tie_word_embeddings=False),
        "no lm_head.weight, so it would be drawn at random",
    ),
    "no output layer, by default": (
        lambda f: (f / "config.json").write_text(
            json.dumps({k: v for k, v in SHAPE.items() if not k.startswith("tie")})
        ),
        "no lm_head.weight",
    ),
    "saved inside a wrapper": (
        lambda f: weights(f, lambda n: f"module.{n}"),
        "names such as module.model.embed_tokens.weight, where qwen2 needs",
    ),
    "saved compiled": (lambda f: weights(f, lambda n: f"_orig_mod.{n}"), "rename the tensors"),
    "names of another library": (
        lambda f: weights(f, lambda n: n.replace("embed_tokens", "tok")),
        "have names such as",
    ),
    "tied, with the output layer only": (
        lambda f: weights(f, lambda n: "lm_head.weight" if n == EMBEDDING else n),
        "where qwen2 needs model.embed_tokens.weight",
    ),
    "a tensor missing": (
        lambda f: weights(f, lambda n: n if n != ATTENTION else None),
        f"the weights lack {ATTENTION} (1 of",
    ),
    "another width": (
        lambda f: rewrite(f, intermediate_size=256),
        "a shape of [256, 64] for model.layers.0.mlp.gate_proj",
    ),
    "an adapter": (lambda f: adapter(f), None),
    "an adapter without a tokenizer": (lambda f: adapter(f, tokenizer=False), None),
    "an adapter of a model on the hub": (lambda f: adapter(f, "org/base"), None),
    "an adapter whose base is gone": (
        lambda f: adapter(f, "/gone/base"),
        "is an adapter of /gone/base, which is neither a folder nor a hub id",
    ),
    "an adapter without a base": (lambda f: adapter(f, base_model_name_or_path=None), "that names no base model"),
    "an adapter of an adapter": (
        lambda f: on_a_bad_base(f, lambda b: adapter(b, "org/base")),
        "which is an adapter as well",
    ),
    "an adapter of a quantised model": (
        lambda f: on_a_bad_base(f, lambda b: rewrite(b, quantization_config={"quant_method": "bitsandbytes"})),
        "base is quantised (bitsandbytes)",
    ),
    "an adapter of a model without its output layer": (
        lambda f: on_a_bad_base(f, lambda b: rewrite(b, tie_word_embeddings=False)),
        "no lm_head.weight",
    ),
    "prompt tuning": (lambda f: adapter(f, peft_type="PROMPT_TUNING"), "by PROMPT_TUNING, which cannot be merged"),
    "an adapter of a classifier": (lambda f: adapter(f, task_type="SEQ_CLS"), "for SEQ_CLS, which does not generate"),
    "an adapter without weights": (
        lambda f: (adapter(f), (f / "adapter_model.safetensors").unlink()),
        "without weights: copy its adapter_model.safetensors",
    ),
    "an adapter that is cut short": (
        lambda f: (adapter(f), (f / "adapter_model.safetensors").write_bytes(b"1234")),
        "adapter_model.safetensors is cut short",
    ),
    "an adapter of a tied output layer": (
        lambda f: adapter(f, names=(LORA, "base_model.model.lm_head.lora_A.weight")),
        "changes base_model.model.lm_head.lora_A.weight, and its base ties",
    ),
    "an adapter with a larger tokenizer": (
        lambda f: (adapter(f), write_tokenizer(f, added=[f"<{i}>" for i in range(VOCABULARY)])),
        "the model's vocab_size is",
    ),
    "an adapter in the model's folder": (lambda f: adapter(f, whole=True), "beside a whole model"),
}


@cache
def any_run():
    return compose_config(["profile=cpu", "model.path=a/b"])


def refusal(folder, training=True):
    """The first sentence of the checks that check_config makes on a folder."""
    config = replace(any_run(), model=replace(any_run().model, path=str(folder)))
    try:
        problems = [*_model_path(config), *_model_problems(config, model_shape(str(folder)), training)]
    except ConfigError as error:
        return str(error)
    return next(iter(problems), None)


@pytest.mark.parametrize("name", FOLDERS)
def test_model_folders_as_people_have_them(tmp_path, name):
    """Each is refused in one sentence before anything starts, or passes."""
    folder = write_model(tmp_path / "model")
    change, words = FOLDERS[name]
    change(folder)
    sentence = refusal(folder)
    if words is None or sentence is None:
        assert words is sentence
        return
    assert words in sentence and sentence.startswith(f"model.path={folder.parent}") and "\n" not in sentence


@pytest.mark.parametrize("training", [True, False])
def test_a_model_that_reads_images_needs_torchvision(tmp_path, monkeypatch, training):
    folder = write_model(tmp_path / "model")
    multimodal(folder, "gemma3", "Gemma3ForConditionalGeneration", vision_config={})
    find = util.find_spec
    for found, words in ((None, "vLLM imports torchvision even if prompts are text"), (util, None)):
        monkeypatch.setattr(util, "find_spec", lambda name, f=found: f if name == "torchvision" else find(name))
        sentence = refusal(folder, training)
        assert sentence is None if words is None else words in sentence
    monkeypatch.undo()


@pytest.mark.parametrize("name", ["GPTQ", "GPTQ of old", "integers without a word", "Gemma 2"])
def test_what_only_learners_cannot_do_can_be_evaluated(tmp_path, name):
    folder = write_model(tmp_path / "model")
    FOLDERS[name][0](folder)
    assert refusal(folder, training=False) is None


def test_a_tokenizer_larger_than_the_model_is_told(model):
    room = VOCABULARY - len(TOKENS)
    write_tokenizer(model, added=[f"<{i}>" for i in range(room)])
    assert told(model) == []
    write_tokenizer(model, added=[f"<{i}>" for i in range(room + 1)])
    told_one(model, f"{VOCABULARY + 1} tokens", f"ids up to {VOCABULARY}", f"'<{room}>'", f"vocab_size is {VOCABULARY}")


def test_a_special_token_that_the_tokenizer_lacks_is_told(model):
    write_tokenizer(model, eos_token="<|im_end|>")
    told_one(model, "names eos_token '<|im_end|>'", "tokenizer.json does not have")
    write_tokenizer(model, eos_token="<|im_end|>", added_tokens_decoder={"50": {"content": "<|im_end|>"}})
    assert told(model) == []


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (len(TOKENS), [f"eos_token_id={len(TOKENS)}", f"0 to {len(TOKENS) - 1}"]),
        ([1, -1], ["eos_token_id=-1"]),
        ("</s>", ["eos_token_id='</s>'", "whole number"]),
        ([1, True], ["eos_token_id=True"]),
    ],
)
def test_an_unknown_end_of_sequence_id_is_told(model, value, words):
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    told_one(model, *words)


@pytest.mark.parametrize(("value", "ids"), [(None, ()), (1, (1,)), ([2, 1, 2], (1, 2)), ([], ())])
def test_end_of_sequence_ids_in_every_form(model, value, ids):
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    assert generation_ends(str(model)) == ids and told(model) == []


def test_without_generation_settings_there_are_no_ends(model):
    (model / "generation_config.json").unlink()
    assert generation_ends(str(model)) == () and told(model) == []


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize(("text", "words"), [("{", "cannot be read as JSON"), ("[1]", "is not a JSON object")])
def test_broken_settings_are_told(model, name, text, words):
    (model / name).write_text(text)
    told_one(model, name, words)


def test_a_broken_tokenizer_is_told(model):
    (model / "tokenizer.json").write_text('{"version": "1.0"}')
    told_one(model, "tokenizer.json cannot be read as a tokenizer")


def test_a_mended_tokenizer_is_read_again(model):
    write_tokenizer(model, eos_token="<|im_end|>")
    assert told(model)
    write_tokenizer(model, added=["<|im_end|>"], eos_token="<|im_end|>")
    assert told(model) == []


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("chat_template.jinja", "{{ messages }}"),
        ("tokenizer_config.json", '{"eos_token": "<eos>", "chat_template": "{{ messages }}"}'),
        ("additional_chat_templates/tools.jinja", "{{ messages }}"),
    ],
)
def test_the_chat_style_needs_a_template(model, tmp_path, file, text):
    def config(style):
        wanted = ["profile=cpu", f"model.path={model}", f"model.prompt_style={style}", f"run_dir={tmp_path}/run"]
        return compose_config(wanted)

    check_start(make_plan(config("base")))
    with pytest.raises(
        ConfigError, match=r"model.prompt_style=chat, but .* no chat template.*use model.prompt_style=base"
    ):
        check_start(make_plan(config("chat")))
    (model / file).parent.mkdir(exist_ok=True)
    (model / file).write_text(text)
    check_start(make_plan(config("chat")))


def test_text_that_a_small_tokenizer_does_not_know_is_told(model):
    config = compose_config(["profile=cpu", f"model.path={model}"])
    check_longest([Problem("sum", "1+2=?", ("3",))], make_plan(config))
    with pytest.raises(DataError, match=r"does not know 58% of problem words"):
        check_longest([Problem("sum", "1+2=?", ("3",)), Problem("words", "How many? 12", ("3",))], make_plan(config))
