# make quickstart: lyrics from a model of your own, in minutes.    make test: the tests.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

quickstart: $(VENV)/installed
	@$(BIN)/python data/lyric_char/prepare.py
	@if [ -f out-quickstart/train_state.pt ]; then from=resume; else from=scratch; fi; \
	$(BIN)/python train.py config/quickstart.py --init_from=$$from
	@echo; $(BIN)/python calculate_ppl.py --out_dir=out-quickstart
	@echo; $(BIN)/python completion.py --out_dir=out-quickstart
	@echo; echo "Next:"; \
	echo "  $(BIN)/python completion.py --start=\"your line\" --num_samples=3"; \
	echo "  $(BIN)/python data/lyric_char/prepare.py --source=folder_of_your_songs"; \
	echo "  $(BIN)/python train.py config/train_lyric_char.py"

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -q tests

fuzz: $(VENV)/installed-dev  # some 13,000 new cases of bad input, two minutes
	FUZZ_CASES=10000 $(BIN)/python -m pytest -q tests/test_fuzz.py

stress: $(VENV)/installed-dev  # 100 kills of a training run, four minutes on an idle machine
	$(BIN)/python dev/stress.py

test-oldest: requirements.txt requirements-dev.txt  # the suite with each library at its lower bound
	$(PYTHON) -m venv .venv-oldest
	sed -n 's/^\([A-Za-z_0-9-]*\)>=\([0-9.]*\).*/\1==\2/p' requirements.txt requirements-dev.txt > .venv-oldest/oldest.txt
	.venv-oldest/bin/pip install -q -r .venv-oldest/oldest.txt
	.venv-oldest/bin/python -m pytest -q tests

$(VENV)/installed: requirements.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'Python 3.10 or newer is needed: make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -r requirements.txt
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	$(BIN)/pip install -q -r requirements-dev.txt
	@touch $@

.PHONY: quickstart test fuzz stress test-oldest
