#!/usr/bin/env bash
# packlight's first run on a Hopper GPU: are the numbers right, how fast is it, where does the time go.
#
#   bash tools/first_light.sh [STEP ...]      from the project's root; without STEPs all of them, in order of value
#   REHEARSE=1 bash tools/first_light.sh facts values text tiny profile      a CPU stands for the GPU
#
# The project need not be installed: src/ is put on the path. It takes Python >= 3.11 with jax, its CUDA 13 plugin and
# packlight's other dependencies, `ptxas` on the PATH or from nvidia-cuda-nvcc, and a driver for CUDA 13. Wheels in
# .whl/ are installed beside the environment, not into it. No step changes the card's clocks or modes.
#
# Each step has a time limit (four times as long in a rehearsal), and one that does not fit in what is left of BUDGET is left out and named; run it alone
# then. A step that fails does not stop the others. The steps, their limits in seconds, what they leave in OUT:
#
#   facts     60   card, driver, versions, measured copy bandwidth and bfloat16 product        log.txt
#   values   170   products against float64, attention against its twin, equal bits in 4 runs  values.json
#   text     110   whole models against the CPU's reference kernels; a second start compiles 0 log.txt
#   products 150   one product at a time: device time of each kernel, shares of copy and GEMM  products.json
#   tiny     200   `bench` of a 1.1B model that it writes (668 MB)                             bench.json
#   profile   90   a decode step of it: busy time, kernels and host calls a token              profile.json
#   ncu       90   counters of seven products                                                  ncu.txt
#   llama8b  420   `bench` of an 8B model that it writes (4.9 GB)                              bench.json
#   tests    240   compiled for this chip and run on it; needs the extra `cuda` and pytest     log.txt
#
# How to read it: `values` first. WRONG is arithmetic or layout, CHANGES FROM RUN TO RUN is a race, FAILED is a limit
# that the cross-compiler does not check; no speed counts before all are right. Then `profile`: ms a token minus busy ms
# is what launches and waits cost. Then `products`: `kernel` against `wall` is what stands around the kernel.
#
# Environment: OUT     folder of the results (default first-light)          BUDGET  seconds for everything (570)
#              MODELS  folder of synthetic models (default $TMPDIR/models)  WHEELS  folder of wheels to install (.whl)
#              PYTHON  default python3                                      REHEARSE=1: a CPU stands for the GPU
set -u -o pipefail
PYTHON=${PYTHON:-python3}; OUT=${OUT:-first-light}; MODELS=${MODELS:-${TMPDIR:-/tmp}/models}; WHEELS=${WHEELS:-.whl}
REHEARSE=${REHEARSE:-0}; START=$SECONDS
SLOWER=1; [ "$REHEARSE" = 1 ] && SLOWER=4 # a CPU builds the native kernels first
BUDGET=${BUDGET:-$((570 * SLOWER))}
[ -d src/packlight ] && [ -f tools/first_light.sh ] || { echo "error: run this from the project's root" >&2; exit 2; }
mkdir -p "$OUT" "$MODELS" || exit 1
OUT=$(cd "$OUT" && pwd)
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}
if compgen -G "$WHEELS/*.whl" > /dev/null; then
    site=${TMPDIR:-/tmp}/first-light-site
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$site" "$WHEELS"/*.whl || exit 1
    export PYTHONPATH="$PYTHONPATH:$site"
fi
PLATFORM=gpu; [ "$REHEARSE" = 1 ] && { PLATFORM=cpu; export JAX_PLATFORMS=cpu; }
export OUT

# Few executables: a decode step of a real model takes a minute or more to compile.
CONFIG=${TMPDIR:-/tmp}/first-light-$PLATFORM.toml
{
    echo "platform = \"$PLATFORM\""
    echo 'prefill_buckets = [512]'
    echo 'decode_batch = [1]'
    if [ "$PLATFORM" = gpu ]; then
        printf '%s\n' 'tokens_per_launch = 8' 'kv_dtype = "bfloat16"' 'activation_dtype = "bfloat16"' 'head_rows = 64'
    fi
} > "$CONFIG"

step() { # step NAME SECONDS: runs it within its limit and what is left, and notes how it ended
    local name=$1 limit=$2 left=$((BUDGET - SECONDS + START - 5)) began=$SECONDS rc
    if [ "$left" -lt 30 ] || [ "$left" -lt $((limit / 3)) ]; then
        echo "$name: left out, $left s left" | tee -a "$OUT/steps.txt"; return
    fi
    [ "$left" -lt "$limit" ] && limit=$left
    echo "== $name (at most $limit s)"
    echo "== $name, $(date -u +%FT%TZ)" >> "$OUT/log.txt"
    DEADLINE=$((SECONDS + limit)) "$name" 2>&1 | tee -a "$OUT/log.txt" | tail -n 80
    rc=${PIPESTATUS[0]}
    echo "$name: exit $rc after $((SECONDS - began)) s" | tee -a "$OUT/steps.txt"
}
within() { # a command, until the step's deadline
    local left=$((DEADLINE - SECONDS))
    [ "$left" -gt 0 ] || { echo "no time left for: ${*:1:3}"; return 124; }
    timeout -k 5 "$left" "$@"
}
packlight() { within "$PYTHON" -m packlight "$@"; }
program() { within "$PYTHON" -m "tools.first_light.$1" "${@:2}"; }
synthetic() { within "$PYTHON" -m packlight.bench.synthetic "$@"; }

facts() {
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem --format=csv
    "$PYTHON" --version; type -P ptxas nvcc ncu; nvcc --version | tail -n 2
    git log -1 --format='%h %cs %s' 2> /dev/null
    program facts
}

values() {
    XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_autotune_level=0" program values
}

text() { # whole models, through the command line, against the slow reference kernels on the CPU
    local demo=demo/packlight-demo-Q4_K_M.gguf base=${TMPDIR:-/tmp}/first-light-base.kld small=$MODELS/small-Q4_K_M.gguf model said
    synthetic --shape=llama-3-8b --layers=2 --vocab=1024 --ffn=2048 --embed=1024 --heads=8 --kv_heads=2 --mix=Q4_K_M --out="$small" || return 1
    for model in $demo "$small"; do
        JAX_PLATFORMS=cpu packlight perplexity --model="$model" --file=demo/held-out.txt --context=256 --chunks=4 --config=debug --save_logits="$base" --json > /dev/null || return 1
        echo "$model: divergence from the reference kernels on the CPU"
        packlight perplexity --model="$model" --config="$CONFIG" --kl_divergence="$base" --json || return 1
    done
    said="--model=$demo --prompt=def --max_tokens=48 --temperature=0 --json"
    echo "greedy ids: CPU, then twice here; the second time everything comes from the store (compiled: 0)"
    # shellcheck disable=SC2086  # said is a list of flags
    JAX_PLATFORMS=cpu packlight generate $said --config=debug | shown && packlight generate $said --config="$CONFIG" | shown && packlight generate $said --config="$CONFIG" | shown
}
shown() { # of a report: the first ids, what was compiled, times
    "$PYTHON" -c 'import json,sys; r=json.load(sys.stdin); print(r["token_ids"][:24], r["compile"], r["timings"])'
}

products() {
    program products
}

bench_of() { # bench_of SHAPE FLAGS...
    local shape=$1 model=$MODELS/$1-Q4_K_M.gguf; shift
    [ -f "$model" ] || synthetic --shape="$shape" --mix=Q4_K_M --out="$model" || return 1
    packlight bench --model="$model" --config="$CONFIG" --results="$OUT/bench.json" "$@"
}
if [ "$REHEARSE" = 1 ]; then # the words, not the numbers
    tiny() { bench_of tinyllama-1.1b --prompt_tokens=32 --gen_tokens=4 --reps=1 --batch=1; }
else
    tiny() { bench_of tinyllama-1.1b --prompt_tokens=512 --gen_tokens=64 --reps=3 --batch=1,8; }
fi
llama8b() { bench_of llama-3-8b --prompt_tokens=512 --gen_tokens=64 --reps=3 --batch=1,8; }

profile() {
    program step "$MODELS/tinyllama-1.1b-Q4_K_M.gguf" "$CONFIG"
}

ncu() { # counters of each product's kernels, one launch each
    local tool
    tool=$(type -P ncu) || { echo "no ncu here"; return 1; }
    XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_autotune_level=0" within "$tool" --clock-control none --kernel-name regex:mosaic --launch-count 14 \
        --section SpeedOfLight --section MemoryWorkloadAnalysis --section ComputeWorkloadAnalysis --section InstructionStats \
        --section WarpStateStats --section SchedulerStats --section LaunchStats --section Occupancy \
        --log-file "$OUT/ncu.txt" "$PYTHON" -m tools.first_light.counters
    grep -E "^  [a-z_]*kernel|Duration|DRAM Throughput|Compute \(SM\) Throughput|Executed Ipc Active|No Eligible" "$OUT/ncu.txt" | head -n 80
}

TESTS_COMPILED=(tests/compile/targets/test_targets.py)
TESTS_INTERPRETED=(tests/quant/kernels/test_mosaic.py tests/model/network/test_mosaic_attention.py tests/compile/test_kernels.py)
tests() { # compiled for this chip here and run here; needs the wheel nvidia-cuda-nvcc or a CUDA toolkit
    within "$PYTHON" -m pytest -q -p no:cacheprovider -m targets "${TESTS_COMPILED[@]}" -k "one_process_compiles or (h100 and not tpu)" -rs
    within "$PYTHON" -m pytest -q -p no:cacheprovider "${TESTS_INTERPRETED[@]}" -k "not tpu"
}

ALL=(facts values text products tiny profile ncu llama8b tests)
declare -A SECONDS_OF=([facts]=60 [values]=170 [text]=110 [products]=150 [tiny]=200 [profile]=90 [ncu]=90 [llama8b]=420 [tests]=240)
for name in "${@:-${ALL[@]}}"; do
    [ -n "${SECONDS_OF[$name]:-}" ] || { echo "error: no step $name; there are: ${ALL[*]}" >&2; exit 2; }
    step "$name" $((SECONDS_OF[$name] * SLOWER))
done
cat "$OUT/steps.txt"
