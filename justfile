# Everything that is done often. `just` comes with the dev extra (rust-just).

# list the recipes
default:
    @just --list

# install with everything that development needs
setup:
    pip install -e ".[dev]"

# format and mend what ruff can mend
fmt:
    ruff format homeostat hydra_plugins tests scripts
    ruff check --fix homeostat hydra_plugins tests scripts

lint:
    ruff format --check homeostat hydra_plugins tests scripts
    ruff check homeostat hydra_plugins tests scripts

type:
    mypy

# the direction of imports
layers:
    lint-imports

# unit tests on a tiny model; the embedded model where it is marked. A file stays with one worker
test *ARGS:
    pytest -n logical --maxprocesses 4 --dist loadfile -m "not slow" --durations 10 {{ARGS}}

# what takes longer: kills and resumes at random moments, whole golden runs, many jobs in one process
test-slow *ARGS:
    pytest -n logical --maxprocesses 4 --dist loadfile -m slow {{ARGS}}

test-all:
    pytest

# one definition of green
check: lint type layers test

# the documentation as a site in site/; a broken link fails
docs:
    NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet

# the whole pipeline in seconds
smoke:
    homeostat scale=smoke

run *ARGS:
    homeostat {{ARGS}}

# which signals may be trusted on this model, before training on them
signals *ARGS:
    homeostat trainer=none {{ARGS}}

# a named experiment over three seeds
sweep NAME *ARGS:
    homeostat -m experiment={{NAME}} seed=0,1,2 {{ARGS}}

# full, intrinsic, relational reward and a control, three seeds each, with their comparison
ablate *ARGS:
    homeostat -m experiment=ablate_reward {{ARGS}}

# run folders, or all runs of a sweep's folder, side by side
compare *RUNS:
    homeostat 'compare=[{{replace(RUNS, " ", ",")}}]'

# draw a run folder's figures and report again
report DIR:
    python -c "from pathlib import Path; from homeostat.report.html import write_report; print(write_report(Path('{{DIR}}')))"
