#!/bin/sh
# Install into a virtual environment, with the wheels, pip configuration and CA certificates of the build. The latter two
# are build secrets, which are in no layer.
# Usage: install.sh ENVIRONMENT ARGUMENTS-OF-PIP-INSTALL
set -eu

environment=$1
shift
if [ -f /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi
if [ -f /run/secrets/pip ]; then export PIP_CONFIG_FILE=/run/secrets/pip; fi
# shellcheck disable=SC2086  # several words
exec python3 -m pip --python "$environment/bin/python" install --quiet --disable-pip-version-check \
	--root-user-action ignore --prefer-binary --find-links /wheels ${PIP_OPTIONS:-} "$@"
