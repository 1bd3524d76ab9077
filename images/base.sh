#!/bin/sh
# Build a stand-in for the base image without a container registry: Debian with its own Python, by debootstrap. Needs root.
# Usage: base.sh DOCKER IMAGE
set -eu

docker=$1
image=$2
folder=$(mktemp -d)
trap 'rm -rf --one-file-system "$folder"' EXIT

debootstrap --variant=minbase --include=python3,python3-pip,ca-certificates bookworm "$folder" \
	"${DEBIAN_MIRROR:-http://deb.debian.org/debian}" >&2
# Without files that only the installation needs, and documentation.
tar -C "$folder" --one-file-system --exclude='./proc/*' --exclude='./sys/*' --exclude='./dev/*' \
	--exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' \
	--exclude='./usr/share/locale/*' --exclude='./var/log/*' -c . |
	"$docker" import --change 'ENV LANG=C.UTF-8' --change 'CMD ["python3"]' - "$image"
