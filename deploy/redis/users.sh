#!/bin/sh
# Prints users.acl with the passwords of this environment, as hashes; a role without one is left out.
#
#   REDIS_ADMIN_PASSWORD=... REDIS_API_PASSWORD=... REDIS_WORKER_PASSWORD=... sh users.sh > users.acl
#
# The roles: admin, api, worker, dashboard, metrics, replica, sentinel.
set -eu

template="$(dirname "$0")/users.acl"

while read -r line; do
  role="$(printf '%s' "$line" | cut -d ' ' -f 2)"
  if [ "$role" != default ]; then
    name="REDIS_$(printf '%s' "$role" | tr '[:lower:]' '[:upper:]')_PASSWORD"
    password="$(printenv "$name" || true)"
    [ -n "$password" ] || continue
    hash="$(printf '%s' "$password" | sha256sum | cut -d ' ' -f 1)"
    line="$(printf '%s' "$line" | sed "s/#[A-Z]*_SHA256/#$hash/")"
  fi
  printf '%s\n' "$line"
done < "$template"
