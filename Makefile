# make demo: teacher, scratch student and RCE-KD on ml-100k, with the table (under 5 minutes).
# make results-quick: a benchmark of ml-100k and its report in results/ml-100k (under 15 minutes).
# make test: the whole test suite. Each makes its own environment in .venv first.

VENV ?= .venv
PYTHON = $(VENV)/bin/python
READY = $(VENV)/.ready

.PHONY: demo results-quick test lint env clean

demo: $(READY)
	$(PYTHON) run_recbole_kd.py --model=RCEKD --student=BPR --teacher=BPR --dataset=ml-100k --show_progress=False

results-quick: $(READY)
	$(PYTHON) -m recbole_kd benchmark benchmarks/bench/ml-100k.yaml --out=benchmark_runs/ml-100k
	$(PYTHON) -m recbole_kd report benchmark_runs/ml-100k --out=results/ml-100k

test: $(READY)
	$(PYTHON) -m pytest -n 2 --dist=loadfile --no-loadscope-reorder

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
