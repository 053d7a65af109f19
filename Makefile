# Every target sets up what it needs; nothing has to be installed by hand but Python 3.11+ and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check lint types format build site bench bench-long fuzz zoo lowest lock clean

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

demo: $(READY)  ## the main job: the ImageNet-trained AlexNet trunk on real photographs
	$(BIN)/lipscope analyze alexnet-trunk --data demo --output runs/demo

test: $(READY)  ## the test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

check: lint types

lint: $(READY)
	$(BIN)/ruff format --check src tests benchmarks examples docs/hooks.py
	$(BIN)/ruff check src tests benchmarks examples docs/hooks.py

types: $(READY)
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format src tests benchmarks examples docs/hooks.py
	$(BIN)/ruff check --fix src tests benchmarks examples docs/hooks.py

build: $(READY)  ## wheel and source archive in dist/
	rm -rf dist
	$(BIN)/python -m build

site: $(READY)  ## the documentation site in dist/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

bench: $(READY)  ## the measurements quoted in the README and the documentation
	$(BIN)/python benchmarks/lanczos_step.py
	$(BIN)/python benchmarks/certified_norms.py
	$(BIN)/python benchmarks/effective.py --images 4000 --pairs 2000 --full 200 --many 6

fuzz: $(READY)  ## 1,000 bad inputs through the command line
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/fuzz.py --inputs 1000

bench-long: $(READY)  ## certificates against other tools, on large networks, and a soak (hours in all)
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python benchmarks/lipsdp.py
	$(BIN)/python benchmarks/eclipse.py
	$(BIN)/python benchmarks/convolutional.py
	$(BIN)/python benchmarks/all_pairs.py
	$(BIN)/python benchmarks/effective.py --full 1000 --many 6
	$(BIN)/python benchmarks/kill.py --kills 100
	$(BIN)/python benchmarks/predict.py
	$(BIN)/python benchmarks/tools.py
	$(BIN)/python benchmarks/penalty.py
	$(BIN)/python benchmarks/monitor.py
	$(BIN)/python benchmarks/regularisation.py --data digits --runs runs/regularisation-digits.jsonl
	$(BIN)/python benchmarks/mean_field.py --data demo
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/soak.py

ZOO_VENV := .venv-zoo
ZOO_DATA := demo

$(ZOO_VENV)/.ready:
	$(PYTHON) -m venv $(ZOO_VENV)
	$(ZOO_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(ZOO_VENV)/bin/python -m pip install --quiet torch==2.14.1 torchvision==0.29.1
	$(ZOO_VENV)/bin/python -m pip install --quiet --editable '.[demo]'
	touch $@

zoo: $(ZOO_VENV)/.ready  ## torchvision's classification networks at full size (an hour or two), and docs/coverage.md
	$(ZOO_VENV)/bin/python benchmarks/zoo.py --data $(ZOO_DATA)
	$(ZOO_VENV)/bin/python benchmarks/zoo.py --table

LOWEST_VENV := .venv-lowest
CORE_TESTS := $(addprefix tests/test_,cli.py data.py import.py exported.py jacobian.py spectral.py models.py report.py \
  brackets.py inspect.py faults.py)

$(LOWEST_VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(LOWEST_VENV)
	$(LOWEST_VENV)/bin/python .ci/lowest.py > $(LOWEST_VENV)/requirements.txt
	$(LOWEST_VENV)/bin/python -m pip install --quiet --requirement $(LOWEST_VENV)/requirements.txt hypothesis pytest
	$(LOWEST_VENV)/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

lowest: $(LOWEST_VENV)/.ready  ## core tests with the lowest version of every dependency (7 GB: that torch comes with CUDA)
	OMP_NUM_THREADS=1 $(LOWEST_VENV)/bin/python -m pytest $(CORE_TESTS)

lock: $(READY)  ## renew requirements.lock; torch is pinned to a build that installs on its own
	$(BIN)/python -m pip install --quiet pip-tools
	echo "torch==2.13.0" > $(VENV)/constraints.txt
	$(BIN)/pip-compile --quiet --upgrade --extra dev --strip-extras --no-annotate --no-header --allow-unsafe \
	  --no-emit-index-url --no-emit-trusted-host --no-emit-find-links \
	  --constraint $(VENV)/constraints.txt --output-file requirements.lock pyproject.toml
	sed -i 's/^\(torch==[0-9.]*\)+cpu$$/\1/' requirements.lock

clean:
	rm -rf $(VENV) $(ZOO_VENV) $(LOWEST_VENV) dist runs
