# make book · make atlas · make test · make bench · make results · make gpu · make lint · make address
# make clean
# Each sets itself up: virtual environment, packages, weights.
# PYTHON=python3.12 chooses the interpreter (3.10 or newer), PROFILE=quick|colab|paper the sizes.
PYTHON ?= python3
PROFILE ?= $(or $(GIG_PROFILE),quick)
# PICTURES=imagenette takes 30 photographs of each class of Imagenette in place of the sample.
# TORCH_INDEX=ADDRESS takes PyTorch from there first, such as the CPU build's that its own page names.
# CONSTRAINTS=constraints-colab.txt installs Colab's versions.
WANTED := -r requirements.txt -e . $(addprefix -c ,$(CONSTRAINTS))
VENV := .venv
PY := $(VENV)/bin/python
export GIG_PROFILE := $(PROFILE)
ifdef PICTURES
export GIG_IMAGES ?= $(PICTURES:imagenette=imagenette-30)
endif
# A container's habit, which has every process compile torch anew: 9 s each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: book atlas test bench results gpu lint address setup clean

book: setup
	$(PY) -m bookbuild.pages

# Pages to browse all concepts of the profile's pictures: GIG_IMAGES names others. A run that was killed
# goes on where it was.
atlas: setup
	GIG_ARTIFACTS=$(or $(GIG_ARTIFACTS),book/artifacts) $(PY) -m gig_helpers.report _build/atlas

# First the chapters, one at a time with all cores, then tests side by side with one core each. A
# chapter that fails is told by its test.
test: setup lint
	-$(PY) -m bookbuild.execute
	OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal

bench: setup
	-$(PY) -m bookbuild.execute --table
	set -e; for script in tests/benchmarks/*.py; do echo "== $$script"; $(PY) $$script; done

# The larger runs in book/results that the chapters show: PROFILE=workstation takes hours, and goes on
# where it was killed. GIG_IMAGES names other pictures.
results: setup
	$(PY) -m experiments $(PARTS)

# On a machine with a GPU: every test and chapter at Colab's sizes, the benchmarks, and seconds and
# memory of every stage at the paper's settings, left in book/results/scale.json.
gpu: setup
	$(PY) -c "import sys, torch; torch.cuda.is_available() or sys.exit('torch sees no GPU here')"
	$(MAKE) test bench PROFILE=colab
	$(MAKE) results PROFILE=paper PARTS=scale

lint: $(VENV)/.ready
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

# Carries pyproject.toml's repository address and the one set-up cell into every place that shows them.
address: $(VENV)/.ready
	$(PY) -m bookbuild.setup_cell

setup: $(VENV)/.ready
	$(PY) -c "from gig_helpers import load_network; from gig_helpers.data import profiles; p = profiles.get(); load_network(p.network, p.weights); load_network('efficientnet_lite0')"

$(VENV)/.ready: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "Python 3.10 or newer is needed; name one: make PYTHON=python3.12 …"; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check uv || true
	test -z '$(TORCH_INDEX)' || \
	    $(PY) -m pip install --disable-pip-version-check torch torchvision --index-url $(TORCH_INDEX)
	$(PY) -m uv pip install --python $(PY) $(WANTED) || \
	    $(PY) -m pip install --disable-pip-version-check $(WANTED)
	touch $@

clean:
	rm -rf _build book/artifacts
