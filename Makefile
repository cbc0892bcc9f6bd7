# Every target makes .venv if it is missing; a second call installs nothing. Any Python from 3.8 on is enough to start.
# PROFILE=cpu|gpu chooses the packages (default: GPU if one is visible). ARGS="key=value ..." are Hydra overrides.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PY := .venv/bin/python
UV := .venv/bin/uv
PROFILE ?= auto
ARGS ?=
N ?= 12
SEED ?= 0
# Several processes with two OpenMP threads each are ten times slower than with one.
export OMP_NUM_THREADS ?= 1
export PROFILE

.PHONY: help setup house demo train-math-l5 submit ladder ablations base-model test test-all test-unit bench-trl chaos lint format lock wheel clean

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-16s %s\n", $$1, $$2}'

setup: ## make .venv with the locked packages
	@launch/setup.sh

house: setup ## figures of the code: files, lines, functions, imports
	@$(PY) -m tests.house $(ARGS)

demo: setup ## the whole pipeline in minutes: GRPO and ExP-GRPO on the toy task
	@$(PY) -m expo_ray.demo $(ARGS)

train-math-l5: setup ## ExP-GRPO on MATH level 5; ARGS="model.path=... data.path=... trainer.steps=2"
	@$(PY) -m expo_ray.train experiment=math_l5_qwen2.5_3b $(ARGS)

# ADDRESS: a Ray cluster's dashboard (docs/cluster.md). RUNS: a folder that all its nodes share.
ADDRESS ?=
EXPERIMENT ?=
RUNS ?=
submit: setup ## train on a Ray cluster; ADDRESS=http://HOST:8265 EXPERIMENT=demo RUNS=/SHARED/FOLDER ARGS="key=value ..."
	@$(PY) -m expo_ray.submit $(if $(ADDRESS),--address $(ADDRESS)) $(if $(RUNS),--runs '$(RUNS)') \
	    $(if $(EXPERIMENT),experiment=$(EXPERIMENT)) $(ARGS)

# The same command continues where it stopped. COMPARISON=words is that of a small language model, METHODS="luffy pope" runs a
# part (names: bench/ladder/methods.py), and PAGE shows what is finished. ARGS are overrides for every job.
COMPARISON ?= toy
LADDER ?= runs/ladder_$(COMPARISON)
PAGE ?= docs/results/$(if $(filter toy,$(COMPARISON)),families,$(COMPARISON)).md
METHODS ?=
ladder: setup ## 14 methods in families, a rate searched for each, three seeds, as tables with curves in PAGE (hours, in parts)
	@$(PY) -m bench.ladder.run $(LADDER) --comparison $(COMPARISON) $(if $(METHODS),--methods $(METHODS)) -- $(ARGS); code=$$?; \
	$(PY) -m bench.ladder.page $(LADDER) --comparison $(COMPARISON) --page $(PAGE) && exit $$code

# SAY announces a stage on standard error.
ABLATIONS ?= runs/ablations
SWEEP = $(PY) -m expo_ray.train -m experiment=ladder seed=0,1,2
SAY = echo "$@: $(1)" >&2;
# A beta of 0 without the KL on conditioned prompts is plain GRPO: nothing is explained.
ablations: setup ## ExP-GRPO with other beta, filter, answer, refresh and scope, three seeds each (python -m bench.ladder.ablations shows them)
	@failed=0; \
	$(call SAY,1 of 5: 9 runs with another beta) \
	$(SWEEP) algo.beta=0.04,0.004,0.5 run_dir=$(ABLATIONS)/beta $(ARGS) || failed=1; \
	$(call SAY,2 of 5: 3 runs of plain GRPO) \
	$(SWEEP) algo.beta=0 algo.kl_conditioned_coef=0 run_dir=$(ABLATIONS)/grpo $(ARGS) || failed=1; \
	$(call SAY,3 of 5: 6 runs without the filter; with the gold answer and with their own) \
	$(SWEEP) algo.explanation_filter=false algo.explanation_answer=gold,own run_dir=$(ABLATIONS)/answer $(ARGS) || failed=1; \
	$(call SAY,4 of 5: 6 runs with another refresh) \
	$(SWEEP) algo.explanation_refresh_steps=8,0 run_dir=$(ABLATIONS)/refresh $(ARGS) || failed=1; \
	$(call SAY,5 of 5: 3 runs with another scope) \
	$(SWEEP) algo.explanation_scope=all_wrong run_dir=$(ABLATIONS)/scope $(ARGS) || failed=1; \
	exit $$failed

base-model: setup ## train the toy task's base model again
	@$(PY) -m bench.base_model $(ARGS)

# Two files at a time: one uses the cores while the other waits for a start or a bound.
INTEGRATION = $(PY) -m pytest -q -n logical --maxprocesses 2 --dist loadfile --no-loadscope-reorder tests/integration
test: test-unit ## in minutes: the unit tests, and a short pass through each real component (docs/tests.md)
	@$(INTEGRATION) -m "not slow" $(ARGS)

test-all: test-unit ## every test
	@$(INTEGRATION) $(ARGS)

test-unit: setup ## the tests that start no engine
	@$(PY) -m pytest -q -n logical --maxprocesses 8 --dist loadscope tests/unit $(ARGS)

bench-trl: setup ## compare with TRL's GRPOTrainer; ARGS="fixed", "mixed" or "smollm2 --model FOLDER"
	@bench/trl/setup.sh && $(PY) -m bench.trl $(ARGS)

chaos: setup ## kill N processes of a run (SEED=0), which must end as an undisturbed one
	@$(PY) -m tests.chaos --kills $(N) --seed $(SEED)

SCRIPTS = launch/*.sh launch/slurm.sbatch bench/trl/setup.sh .ci/run
lint: setup ## ruff, mypy, and the checkers of shell scripts and container files
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy expo_ray hydra_plugins bench
	@.venv/bin/shellcheck $(SCRIPTS)
	@.venv/bin/hadolint docker/Dockerfile.cpu docker/Dockerfile.gpu
	@.venv/bin/check-jsonschema --quiet --builtin-schema vendor.compose-spec docker/compose.yaml

format: setup ## let ruff fix what it can
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

# WHEELS: a folder with PyTorch's CPU wheel for Python 3.11, if PyTorch's CPU index is out of reach. The lock is compiled
# for 3.11; tests/unit/test_config_locks.py checks that it serves 3.12 too.
WHEELS ?=
TORCH_SOURCE = $(if $(WHEELS),--find-links $(WHEELS),--index https://download.pytorch.org/whl/cpu --index-strategy unsafe-best-match)
COMPILE = UV_CUSTOM_COMPILE_COMMAND="make lock" $(UV) pip compile setup.cfg --quiet --no-annotate --python-version 3.11 --python-platform x86_64-manylinux_2_28
lock: setup ## compile requirements/*.lock from setup.cfg (UPGRADE=1: newest versions)
	$(COMPILE) $(if $(UPGRADE),--upgrade) --extra cpu --extra sweep --extra dev $(TORCH_SOURCE) --override requirements/overrides-cpu.txt -o requirements/cpu.lock
	$(COMPILE) $(if $(UPGRADE),--upgrade) --extra gpu --extra sweep --extra dev -o requirements/gpu.lock

wheel: setup ## build dist/expo_ray-VERSION.whl, which holds conf/ too
	@$(UV) build --quiet --wheel --python $(PY) -o dist && ls dist/*.whl

clean: ## remove .venv, builds and the checkers' caches; runs/ stays
	rm -rf .venv .venv-trl build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
