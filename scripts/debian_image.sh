#!/bin/bash
# What the scripts that build disk images from Debian's packages have in common. They source it, say
#
#   image_name=guest                  what messages call it, and its directory in the cache
#   image_takes='half a minute'       for who waits
#   image_whole=disk.raw              the file that every image of this kind has
#   image_sources=(dirty-memory.c)    files of this directory that it is made of, beside the script and this file
#
# define build_image BUILD, which leaves in BUILD/out what is kept, and show_image DIRECTORY, which prints the key='value'
# lines, and call image_main "$@".
#
# The cache is ${BERTH_CACHE:-$HOME/.cache/berth}/NAME/KEY, KEY being a hash of those files: it changes when the image
# does, not when a mirror does (packages.txt beside the image says what is in it). A build happens in a directory beside
# it and is renamed into place, so KEY is whole or absent. Builds wait for each other. No mounts, no loop devices.
#
# Needs Debian 12, apt sources, the packages mmdebstrap and e2fsprogs; and root, or the packages uidmap and fakeroot.
# shellcheck disable=SC2154 # set by who sources this

readonly suite=bookworm
scripts=$(dirname "$0")
readonly scripts

die() {
  echo "$image_name-image: $*" >&2
  exit 1
}

say() {
  echo "$image_name-image: $*" >&2
}

need_tools() {
  local tool
  for tool in "$@"; do
    command -v "$tool" >/dev/null || die "$tool is missing: make setup"
  done
}

# The host's way to its mirrors (proxies, dates that are not checked), for the apt that fills the guest's root.
write_apt_options() {
  apt-config dump | grep -E \
    '^Acquire::((http|https|ftp|Retries|ForceIPv[46])(::| )|Check-(Valid-Until|Date) |AllowInsecureRepositories )' |
    grep -v ' "";$' || true
  echo 'Acquire::Languages "none";'
}

# Every source of the host that offers the suite.
list_apt_sources() {
  local file
  for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
    if [[ -e $file ]] && grep -Eq "^[^#]*\b$suite\b" "$file"; then
      echo "$file"
    fi
  done
}

# make_root BUILD VARIANT PACKAGES OPTIONS...: leaves BUILD/root.tar, a Debian without manuals in which PACKAGES have been
# installed; OPTIONS are further ones of mmdebstrap.
make_root() {
  local build=$1 variant=$2 include=$3
  shift 3
  local sources
  mapfile -t sources < <(list_apt_sources)
  ((${#sources[@]} > 0)) || die "no apt source for $suite in /etc/apt: add one (this builds a Debian 12 guest)"
  write_apt_options >"$build/apt.conf"
  TMPDIR=$build mmdebstrap --variant="$variant" --format=tar --include="$include" \
    --aptopt="$build/apt.conf" \
    --dpkgopt=force-unsafe-io \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/i18n/*' \
    --dpkgopt='path-exclude=/usr/share/info/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    "$@" "$suite" "$build/root.tar" "${sources[@]}"
}

# make_file_system BUILD IMAGE SIZE OPTIONS...: an ext4 in the file IMAGE, with what BUILD/root.tar has; OPTIONS are
# further ones of mke2fs. The host's mirrors and name servers are none of the guest's business.
make_file_system() {
  # shellcheck disable=SC2016 # expanded by the bash below
  local pack='build=$1 image=$2 size=$3
    shift 3
    mkdir "$build/root"
    tar -xf "$build/root.tar" -C "$build/root" --numeric-owner --exclude="./dev/*" \
      --exclude=./etc/resolv.conf --exclude=./etc/apt/sources.list --exclude="./etc/apt/sources.list.d/*" \
      --exclude=./etc/apt/apt.conf.d/99mmdebstrap
    PATH=/usr/sbin:/sbin:$PATH
    mke2fs -q -t ext4 -m 0 "$@" -d "$build/root" "$image" "$size" >/dev/null'
  if ((EUID == 0)); then
    bash -euc "$pack" pack "$@"
  else
    fakeroot bash -euc "$pack" pack "$@"
  fi
  PATH=/usr/sbin:/sbin:$PATH e2fsck -fn "$2" >/dev/null 2>&1 || die "mke2fs made a file system that e2fsck refuses"
}

# A build that fails says why, and leaves nothing.
clean_up() {
  local status=$?
  if ((status != 0)) && [[ -e $build/log ]]; then
    tail -n 60 "$build/log" >&2
    say "not built: see above"
  fi
  rm -rf --one-file-system "$build"
}

build_into() {
  local cache=$1 key=$2
  need_tools mmdebstrap apt-get dpkg-deb flock
  ((EUID == 0)) || command -v newuidmap fakeroot >/dev/null || die "run as root, or install uidmap and fakeroot"

  # What a build that was killed has left; the lock says that it is not running.
  rm -rf --one-file-system "$cache"/building.*
  build=$(mktemp -d "$cache/building.XXXXXX")
  trap clean_up EXIT
  chmod 755 "$build"
  mkdir "$build/out"

  say "building the $image_name image (about $image_takes; once)"
  local started=$SECONDS
  build_image "$build"
  # On the disk before it is in the cache.
  sync -f "$build/out"
  rm -rf "${cache:?}/$key"
  mv -T "$build/out" "$cache/$key"
  say "built in $((SECONDS - started)) s"
}

image_main() {
  local rebuild=no usage="usage: $image_name-image [--rebuild]"
  (($# <= 1)) || { echo "$usage" >&2 && exit 2; }
  case ${1-} in
    '') ;;
    --rebuild) rebuild=yes ;;
    -h | --help)
      sed -n '2,/^set -e/{/^#/!d;s/^# \{0,1\}//;p}' "$0"
      exit 0
      ;;
    *)
      echo "$usage" >&2
      exit 2
      ;;
  esac

  local cache=${BERTH_CACHE:-${HOME:-/root}/.cache/berth}/$image_name
  local key
  key=$(cat "$0" "$scripts/debian_image.sh" "${image_sources[@]/#/$scripts/}" | sha256sum | cut -c1-16)
  mkdir -p "$cache"
  cache=$(realpath "$cache")
  if [[ $rebuild = yes || ! -e $cache/$key/$image_whole ]]; then
    exec 9>"$cache/lock"
    flock 9
    if [[ $rebuild = yes || ! -e $cache/$key/$image_whole ]]; then
      build_into "$cache" "$key"
    fi
    exec 9>&-
  fi
  local quote="'\\''"
  show_image "${cache//\'/$quote}/$key"
}
