#!/bin/sh
# Pins what the image is made of anew, with hashes: `deploy/lock.sh` (with --upgrade: the newest of everything). It needs
# uv. Only wheels are taken, so that nothing of it runs while the image is built.
set -eu
cd "$(dirname "$0")/.."
export UV_CUSTOM_COMPILE_COMMAND=deploy/lock.sh
pin() {
    uv pip compile --quiet --generate-hashes --no-emit-index-url --no-emit-find-links --only-binary :all: \
        --python-version 3.11 --python-platform linux "$@"
}
pin "$@" --output-file deploy/requirements.lock pyproject.toml
# What pyproject.toml says it is built with.
sed -n 's/^requires = \["\(setuptools[^"]*\)"\]$/\1/p' pyproject.toml | pin "$@" --output-file deploy/build.lock -
