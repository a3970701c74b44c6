# Everything a newcomer needs: `make demo` and `make test`. Both set up .venv on the first run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: setup demo test check bench demo-model clean

setup: $(INSTALLED)

# torch comes first: the constraints pin the build that the tests ran with on this Python.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("strata needs Python 3.11 or newer; set PYTHON=…" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[extract,report,dev]'
	touch $@

demo: $(INSTALLED)
	rm -rf out/demo
	$(BIN)/strata extract --model data/demo/model \
	    --source coco --annotations data/demo/captions.json --images data/demo/images \
	    --prompts normal --prompts question --prompts noisy:3 --prompts empty \
	    --capture residual,pooled,attention --dtype float32 --thumbnails --out out/demo/store
	$(BIN)/strata analyze all out/demo/store --out out/demo/results
	$(BIN)/strata report out/demo/results --store out/demo/store --out out/demo/report.html
	$(BIN)/strata verify out/demo/store
	@echo
	@echo "out/demo/store                             the activations (Zarr v3, Parquet): strata inspect out/demo/store"
	@echo "out/demo/results/contextualization.png     image-text, image-image and text-text cosine per layer"
	@echo "out/demo/results/phases.png                the phases of the image-text curve, or that they are not supported"
	@echo "out/demo/results/norm-attention*.png       where the last text and image tokens look: roles, positions, patches, sinks"
	@echo "out/demo/results/logit-lens*.png           what image tokens say in words, layer by layer, and on the patches of an image"
	@echo "out/demo/results/*.parquet, *.zarr, *.svg  the numbers as tidy tables and datasets, the figures for a paper"
	@echo "out/demo/report.html                       all of it on one page: open it in a browser"

test: $(INSTALLED)
	$(BIN)/python -m pytest -n auto --dist loadfile

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(INSTALLED)
	$(BIN)/python -m tests.bench

demo-model: $(INSTALLED)
	$(BIN)/python -m data.train

clean:
	rm -rf out $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
