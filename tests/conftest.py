"""What tests share: a tiny real language model, a small configuration, one Ray."""

import os
import signal
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Of Ray's nodes that a test starts itself (expo_ray.runtime.ray_node does it for a run).
os.environ.setdefault("RAY_agent_register_timeout_ms", "90000")
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that runs pytest behind a script ignores it, and so would every command that a test sends a Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> dict[str, Path]:
    """Folders of two random two-layer Qwen2 models with the toy task's tokenizer: "tied" and "untied"."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from expo_ray.world.tokenizer import EOS_ID, PAD_ID, VOCABULARY, save_tokenizer

    folders = {}
    for name in ("tied", "untied"):
        torch.manual_seed(3)
        shape = Qwen2Config(
            vocab_size=len(VOCABULARY),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=128,
            tie_word_embeddings=name == "tied",
            eos_token_id=EOS_ID,
            pad_token_id=PAD_ID,
            bos_token_id=None,
            initializer_range=0.3,
        )
        folder = tmp_path_factory.mktemp(f"tiny_{name}")
        Qwen2ForCausalLM(shape).save_pretrained(folder)
        save_tokenizer(folder)
        folders[name] = folder
    return folders


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data sets; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("EXPO_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no shared data sets at {folder}; set EXPO_SHARED to their folder")
    return folder


@pytest.fixture(scope="module")
def local_ray():
    """Ray on this machine, stopped with the module."""
    import logging

    import ray

    from expo_ray.runtime.ray_node import start_ray, stop_ray

    start_ray(num_cpus=8, log_to_driver=False, logging_level=logging.ERROR)
    yield ray
    stop_ray()
