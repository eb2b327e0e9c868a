# make demo: teacher, scratch student and RCE-KD on ml-100k, with the table (under 5 minutes).
# make test: the whole test suite. Each makes its own environment in .venv first.

VENV ?= .venv
PYTHON = $(VENV)/bin/python
READY = $(VENV)/.ready

.PHONY: demo test lint env clean

demo: $(READY)
	$(PYTHON) run_recbole_kd.py --model=RCEKD --student=BPR --teacher=BPR --dataset=ml-100k --show_progress=False

test: $(READY)
	$(PYTHON) -m pytest -n 2 --dist=loadfile

lint: $(READY)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

env: $(READY)

$(READY): setup.py .ci/make-env
	sh .ci/make-env $(VENV)
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
