#!/bin/sh
# A new folder -> the secrets that compose.yaml wants in it, made up here. Run it once, as root:
#
#   docker/secrets.sh secrets [UID]     UID runs the containers, 10001 where none is named
#
# What is there already is left as it is: with another key every patient would get another pseudonym.
set -eu
folder=$1 owner=${2:-10001}
umask 077
mkdir -p "$folder"
[ -s "$folder/database" ] || openssl rand -hex 24 >"$folder/database"
[ -s "$folder/server" ] || printf 'chiron:%s\n' "$(openssl rand -hex 24)" >"$folder/server"
[ -s "$folder/pseudonym.key" ] || openssl rand 32 >"$folder/pseudonym.key"
chmod 700 "$folder"                              # nobody else comes as far as the files, ...
chmod 444 "$folder/database" "$folder/server"    # ... which two users read, each in a container
chmod 400 "$folder/pseudonym.key"
chown "$owner" "$folder/pseudonym.key"
