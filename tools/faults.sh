#!/usr/bin/env bash
# Faults under load: training of every system is killed at random moments (kill -9) and its disk fills at random writes;
# gone on with, each run must give bit for bit the losses of one that nothing disturbed.
#
#   tools/faults.sh [--kills N] [--fulls N] [--seed N] [--program FILE]      (50 and 20 by default; minutes)
#
# Filling a disk needs a private mount of a small one: `unshare` from util-linux, with user namespaces allowed.
set -euo pipefail
cd "$(dirname "$0")/.."
kills=50 fulls=20 program=target/release/crossweave RANDOM=1
while [ $# -gt 0 ]; do
    case $1 in
        --kills) kills=$2 ;;
        --fulls) fulls=$2 ;;
        --seed) RANDOM=$2 ;;
        --program) program=$2 ;;
        *) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2 ;;
    esac
    shift 2
done
program=$(realpath "$program")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

data="--data_path tests/data --data_name emojitiny_precomp --dev-limit 20 --batch_size 4 --learning_rate 1e-3"
data="$data --log_step 1 --val_step 5 --max-steps 24"
bert="--bert-init random --bert-layers 1 --bert-hidden 16 --bert-heads 2 --bert-intermediate 32 --vocab-size 120"
dime="--embed_size 8 --direction t2i --extra_img 1 --lambda_softmax 9 --max_words 12 --num_head_IMRC 2 --hid_IMRC 8 --hid_router 8 $bert"
hrem="--embed_size 8 --nhead 2 --warmup 2 $bert"
gsmn="--embed_size 8 --num_block 4 --feat_dim 4 --vocab_path tests/data/emojitiny_precomp --word_dim 8 --hid_dim 8 --bi_gru --max_violation"
hat="--swin-init random --swin-embed 8 --swin-depths 1,1,1,1 --swin-heads 1,2,2,4 --image_size 32 --hidden_size 8"
hat="$hat --max_text_len 12 --frozen-epochs 0 ${bert/layers 1/layers 10}"
systems="dime hrem gsmn hat"

# What a run computed: every line of metrics but those of wall time.
losses() { grep -v '"seconds"' "$1/metrics.jsonl"; }
same() { cmp -s <(losses "$work/$1") <(losses "$2") || { echo "$1: $3 changed the losses" >&2; exit 1; }; }
begin() { "$program" train --system "$1" $data ${!1} --logger_name "$2" 2>"$work/said"; }
finish() {
    if [ -e "$2/last.safetensors" ]; then
        "$program" train --resume "$2" --max-steps 24 2>"$work/said" || { cat "$work/said" >&2; exit 1; }
    else
        rm -rf "$2"; begin "$1" "$2"
    fi
}

declare -A took
for system in $systems; do
    begin "$system" "$work/warm-$system" || { cat "$work/said" >&2; exit 1; }
    started=$(date +%s%N)
    begin "$system" "$work/$system"
    took[$system]=$(( ($(date +%s%N) - started) / 1000000 ))
done

list=($systems)
for ((i = 0; i < kills; i++)); do
    system=${list[i % ${#list[@]}]}
    "$program" train --system "$system" $data ${!system} --logger_name "$work/killed" 2>/dev/null & child=$!
    after=$(( RANDOM % took[$system] ))
    sleep "$((after / 1000)).$(printf %03d $((after % 1000)))"
    kill -9 "$child" 2>/dev/null || true
    wait "$child" 2>/dev/null || true
    finish "$system" "$work/killed"
    same "$system" "$work/killed" "kill -9 after $after ms"
    [ -z "$(find "$work/killed" -name '*.part')" ]
    rm -rf "$work/killed"
done
echo "killed $kills times: the losses are those of an undisturbed run"

full=0
for ((i = 0; i < fulls; i++)); do
    system=${list[i % ${#list[@]}]}
    room=$(( $(du -sk "$work/$system" | cut -f1) * 2 ))
    size=$(( 4 + RANDOM % room ))
    mkdir "$work/disk"
    unshare -rm bash -c '
        mount -t tmpfs -o size=$1k disk "$2/disk"; shift 2
        if "$@" 2>"'"$work"'/said"; then status=0; else status=$?; fi
        [ ! -d "'"$work"'/disk/run" ] || cp -r "'"$work"'/disk/run" "'"$work"'/full"
        exit $status' disk "$size" "$work" \
        "$program" train --system "$system" $data ${!system} --logger_name "$work/disk/run" && status=0 || status=$?
    rmdir "$work/disk"
    if [ "$status" != 0 ]; then
        full=$((full + 1))
        grep -q "free some space" "$work/said" || { echo "a full disk of $size KB:" >&2; cat "$work/said" >&2; exit 1; }
    fi
    finish "$system" "$work/full"
    same "$system" "$work/full" "a full disk of $size KB"
    rm -rf "$work/full"
done
echo "$fulls small disks, $full of them full: the losses are those of an undisturbed run"
