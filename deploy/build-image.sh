#!/usr/bin/env bash
# Builds deploy/Dockerfile, and runs what came out of it: as its own user, on a read-only root file system, without a
# network, in front of a real Redis; its --version has to name the commit, and `coalesce check` to find that Redis. For
# machines where nothing can be pulled, and inside of containers: by buildah, in a chroot, on a base that debootstrap
# makes. As root, on Debian, with
#
#   apt-get install --no-install-recommends buildah debootstrap redis-server
#
#   deploy/build-image.sh [--base IMAGE] [--output FILE] [FLAG OF buildah bud]...
#
# --base IMAGE    instead of what debootstrap makes: python:3.11-slim-bookworm, if it can be pulled
# --output FILE   the image as an OCI archive, for `podman load`, `skopeo copy oci-archive:FILE docker://...`
# What is behind goes to buildah, as in `--volume /etc/ssl/certs:/etc/ssl/certs:ro --env PIP_INDEX_URL=...`.
#
# WORK (/var/tmp/coalesce-image) keeps the base and the images; remove it when done.
set -euo pipefail

base= output=
while [ $# -gt 0 ]; do
    case "$1" in
        --base) base=$2; shift 2 ;;
        --output) output=$(realpath -m "$2"); shift 2 ;;
        *) break ;;
    esac
done
cd "$(dirname "$0")/.."
work=${WORK:-/var/tmp/coalesce-image}
mkdir -p "$work"
# A chroot and vfs need no rights that a container lacks.
export BUILDAH_ISOLATION=chroot
buildah() { command buildah --root "$work/storage" --runroot "$work/run" --storage-driver vfs "$@"; }

if [ -z "$base" ]; then
    base=localhost/coalesce-base
    if ! buildah inspect --type image "$base" >/dev/null 2>&1; then
        rm -rf "$work/base"
        debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$work/base"
        rm -rf "$work"/base/var/{cache/apt,lib/apt/lists,log}/* "$work"/base/usr/share/{doc,info,locale,man}/*
        made=$(buildah from scratch)
        buildah copy --quiet "$made" "$work/base" / >/dev/null
        buildah commit --quiet --rm "$made" "$base" >/dev/null
        rm -rf "$work/base"
    fi
fi

commit=$(git rev-parse HEAD 2>/dev/null || true)
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
image=localhost/coalesce:$version
buildah bud --file deploy/Dockerfile --ignorefile deploy/Dockerfile.dockerignore --pull=false --tag "$image" \
    --build-arg BASE="$base" --build-arg COMMIT="$commit" --build-arg VERSION="$version" "$@" .
if [ -n "$output" ]; then
    buildah push --quiet "$image" "oci-archive:$output:coalesce:$version"
fi

# The run. Not by podman, whose run-time wants cgroups of its own: the image's files in a chroot, mounted read-only, with
# the image's own user, environment and entrypoint, no shell, no rights and no network but loopback. Its Redis and its
# sockets are in $place.
place=$(mktemp -d)
started=$(buildah from --pull-never "$image")
finish() {
    for pid in ${coalesce:-} ${redis:-}; do
        kill "$pid" 2>/dev/null && wait "$pid" || true
    done
    buildah rm "$started" >/dev/null
    rm -rf "$place"
}
trap finish EXIT
until_it_answers() {
    for _ in $(seq 100); do
        if [ "$(redis-cli -s "$1" ping 2>/dev/null)" = PONG ]; then return; fi
        sleep 0.1
    done
    echo "nothing answers at $1" >&2
    exit 1
}

redis-server --port 0 --unixsocket "$place/redis.sock" --unixsocketperm 777 --save '' --dir "$place" >/dev/null &
redis=$!
until_it_answers "$place/redis.sock"

of_image() { buildah inspect --type image --format "{{$1}}" "$image"; }
user=$(of_image .OCIv1.Config.User)
mapfile -t environment < <(of_image 'range .OCIv1.Config.Env}}{{println .}}{{end')
mapfile -t entrypoint < <(of_image 'range .OCIv1.Config.Entrypoint}}{{println .}}{{end')
mkdir "$place/run"
chown "$user" "$place/run"
chmod 755 "$place"
root=$(buildah mount "$started")
# Becomes what the image runs, with these arguments. (What it mounts is its own, and goes with it.)
run_image() {
    exec unshare --mount --net sh -ec "$mounted" sh "$root" "$place" \
        "${environment[@]}" COALESCE_UPSTREAM=unix:///mnt/redis.sock COALESCE_SOCKET_MODE=0666 \
        COALESCE_LISTEN="127.0.0.1:6380 unix:///mnt/run/coalesce.sock" \
        "$(command -v setpriv)" --no-new-privs --bounding-set=-all,+sys_chroot,+setuid,+setgid \
        "$(command -v chroot)" --userspec="$user" --groups= "$root" "${entrypoint[@]}" "$@"
}
mounted='
    root=$1 place=$2; shift 2
    ip link set lo up
    mount --bind "$root" "$root"
    mount -t proc proc "$root/proc"
    mount --bind "$place" "$root/mnt"
    mount -o remount,bind,ro "$root"
    exec env -i "$@"
'
said=$(run_image --version)
echo "$said"
grep -qF "coalesce $version (commit ${commit:-unknown})" <<<"$said"
(entrypoint=(coalesce); run_image check)  # by its name, as `kubectl exec POD -c coalesce -- coalesce check` does
run_image &
coalesce=$!
until_it_answers "$place/run/coalesce.sock"
grep -q "^Uid:[[:space:]]${user%:*}[[:space:]]" "/proc/$coalesce/status"
grep -q "^CapEff:[[:space:]]0*$" "/proc/$coalesce/status"
grep -q "^[^ ]* / [^ ]* ro,\|^[^ ]* / [^ ]* ro " "/proc/$coalesce/mounts"
kill "$coalesce"
wait "$coalesce"
coalesce=
echo "built and run as $user on a read-only root: $image, in $work/storage (vfs), $(buildah images --format '{{.Size}}' "$image")"
