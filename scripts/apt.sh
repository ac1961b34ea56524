# Packages of the distribution, for scripts/setup; to be sourced.
#
# APT_WAIT_S   how long to wait for another program that holds the package manager's lock (default: 300)

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; elif sudo -n true 2>/dev/null; then sudo -n "$@"; else
    echo "E: it takes root or sudo without a password" >&2
    return 1
  fi
}

# apt_install PACKAGE...: silent if all are installed; else a line for each that is not, with the reason.
apt_install() {
  command -v apt-get >/dev/null || { say "Not installed: $*: there is no apt-get here"; return 1; }
  local package failed=0
  _apt_get install "$@" && return
  _apt_get update || true # what it lacks shows below
  _apt_get install "$@" && return
  for package in "$@"; do
    _apt_get install "$package" || { say "Not installed: $package: $(_apt_reason)"; failed=1; }
  done
  return $failed
}

_apt_said=
_apt_get() {
  local deadline=$((SECONDS + ${APT_WAIT_S:-300})) told=
  until _apt_said=$(as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get -y -q -o APT::Install-Recommends=false "$@" 2>&1 </dev/null); do
    # apt waits by itself for some of its locks only, and only if asked.
    grep -qiE 'could not get lock|unable to (lock|acquire)' <<<"$_apt_said" || return 1
    [ "$SECONDS" -lt "$deadline" ] || return 1
    [ -n "$told" ] || say "Waiting for the package manager: $(_apt_reason)"
    told=1
    sleep 1
  done
}

# The first error that apt told, or its last line.
_apt_reason() {
  grep -m1 '^E:' <<<"$_apt_said" | sed 's/^E: *//' | grep . || tail -n 1 <<<"$_apt_said"
}
