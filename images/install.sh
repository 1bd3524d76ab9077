#!/bin/sh
# Installs into a virtual environment, with what the build was given: wheels of one's own, pip's configuration, a private
# certificate authority. The latter two are secrets of the build and in no layer.
# Usage: install.sh ENVIRONMENT ARGUMENTS-OF-PIP-INSTALL
set -eu

environment=$1
shift
if [ -f /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi
if [ -f /run/secrets/pip ]; then export PIP_CONFIG_FILE=/run/secrets/pip; fi
# shellcheck disable=SC2086  # several options
exec python3 -m pip --python "$environment/bin/python" install --quiet --disable-pip-version-check \
	--root-user-action ignore --prefer-binary --find-links /wheels ${PIP_OPTIONS:-} "$@"
