#!/bin/sh
# Makes what docker-compose.yml and deploy/kubernetes read as secrets: one file each in ./secrets (or in the folder named). What is there
# already stays as it is, so it may be run again. POSTGRES_HOST and REDIS_HOST say where these servers are, other than in compose. Lost secret_keys make stored API keys unreadable: keep a copy of the folder.
set -eu
folder=${1:-secrets}
mkdir -p "$folder"
# The folder keeps others out. The files are readable, because Compose mounts them as they are and the containers run as users of their own.
chmod 700 "$folder"

random() { # so many bytes, in hex
    od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'
}

fail() {
    echo "secrets: $1" >&2
    exit 1
}

put() { # name, value
    if [ -s "$folder/$1" ]; then
        echo "kept   $folder/$1"
    elif [ -e "$folder/$1" ]; then
        fail "$folder/$1 is empty: put your copy of it back; if it was never used, remove it and run this again"
    elif [ -z "$2" ]; then
        fail "no random bytes for $1: is /dev/urandom there, and od and base64?"
    else
        printf '%s\n' "$2" >"$folder/$1.new" || fail "$folder/$1 cannot be written: is the disk full?"
        chmod 644 "$folder/$1.new"
        sync "$folder/$1.new" 2>/dev/null || sync
        mv "$folder/$1.new" "$folder/$1"
        echo "made   $folder/$1"
    fi
}

put postgres_password "$(random 24)"
put redis_password "$(random 24)"
put database_url "postgresql+psycopg://nowserving:$(cat "$folder/postgres_password")@${POSTGRES_HOST:-postgres}:5432/nowserving"
put redis_url "redis://:$(cat "$folder/redis_password")@${REDIS_HOST:-redis}:6379/0"
put secret_keys "$(head -c 32 /dev/urandom | base64)"
put ops_token "$(random 24)"
put flower_basic_auth "operator:$(random 12)"
