#!/usr/bin/env bash
# The device checks and measurements of aprtui, under 8 minutes on one card, one table at the end.
#
#   tests/gpu/run.sh [--out DIR] [--device cuda:0] [--wheels DIR] [--tiny] [--only STEP,STEP]
#
# Needs this repository, a Python (PYTHON, default python3) with torch and triton, and no network.
# Wheels that such a Python may lack, put into --wheels DIR (default .whl), as `pip download` saves:
#   gguf textual mdit_py_plugins linkify_it_py uc_micro_py platformdirs
#   jsonschema jsonschema_specifications referencing rpds_py
# What is missing is said, and what can run without it runs. --tiny and --device cpu try the script.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

out=gpu-results device=cuda:0 wheels=.whl tiny= only=
while (($#)); do
    case $1 in
        --out) out=$2; shift 2 ;;
        --device) device=$2; shift 2 ;;
        --wheels) wheels=$2; shift 2 ;;
        --tiny) tiny=1; shift ;;
        --only) only=$2; shift 2 ;;
        *) sed -n '2,10p' "$0" >&2; exit 2 ;;
    esac
done
python=${PYTHON:-python3}
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
scratch=$(mktemp -d "${TMPDIR:-/tmp}/aprtui-gpu.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
export PYTHONUNBUFFERED=1 PYTHONPATH="$scratch/site:$PWD${PYTHONPATH:+:$PYTHONPATH}"
export TMPDIR=$scratch
: >"$out/steps.tsv"

# NAME LIMIT COMMAND...: one step in a time limit; its end never stops the next.
step() {
    local name=$1 limit=$2 start=$EPOCHREALTIME code
    shift 2
    [[ -z $only || ",$only," == *",$name,"* ]] || return 0
    timeout --kill-after=5 "$limit" "$@" >"$out/$name.log" 2>&1
    code=$?
    printf '%s\t%s\t%s\n' "$name" "$code" \
        "$("$python" -c "print(f'{$EPOCHREALTIME - $start:.1f}')")" >>"$out/steps.tsv"
}

if compgen -G "$wheels/*.whl" >/dev/null; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir \
        --target "$scratch/site" "$wheels"/*.whl >"$out/wheels.log" 2>&1
fi
model=$scratch/model.gguf
if [[ $tiny ]]; then
    make=(cp tests/fixtures/models/qwen2-q4_k_m.gguf "$model")
    repeats=1 long=20 shape=tiny steps=2 bits=16,20 most=(--most 1)
else
    make=("$python" -m tests.benchmarks.make_model 7b q4_k_m "$model")
    repeats=5 long=512 shape=7b steps=12 bits=25,26 most=()
fi

# The extension modules where there is a compiler; without them torch decodes on the host.
step build 60 "$python" setup.py -q build_ext --inplace --build-temp "$scratch/build"
step about 60 "$python" -m tests.gpu.about
if [[ $device == cuda* ]] && command -v nvidia-smi >/dev/null; then
    step card 20 nvidia-smi \
        --query-gpu=index,name,driver_version,memory.total,memory.used,power.limit,compute_mode \
        --format=csv
fi
# Made beside the tests, which measure nothing.
"${make[@]}" >"$out/make.log" 2>&1 &
making=$!
tests=(tests/engine/test_cuda.py tests/engine/test_triton_decoders.py tests/engine/test_unchanged.py)
[[ $tiny ]] && tests=(tests/engine/test_cuda.py)
step tests 150 "$python" -m pytest -q -rsf --tb=short -p no:cacheprovider --durations=5 "${tests[@]}"
step fidelity 90 "$python" -m tests.gpu.fidelity --device "$device" "${most[@]}"
wait "$making" || echo "no model was made: see make.log" >&2

gpu=("$python" -m tests.benchmarks.gpu "$model" --device "$device")
step speed 90 "${gpu[@]}" --repeats "$repeats" --json "$out/speed.json"
step tokens1 40 "${gpu[@]}" --repeats "$repeats" --tokens 1 --no-compare --json "$out/tokens1.json"
# A whole process, as people start it; what the card did meanwhile.
aprtui=("$python" -c "from aprtui.cli.main import entry; entry()")
step plan 30 "${aprtui[@]}" trace "$model" --device "$device" --dry-run
step process 60 "${aprtui[@]}" trace "$model" --device "$device" -o "$scratch/trace"
[[ $device == cuda* ]] && step cards 5 grep '"event":"card"' "$scratch/trace/events.jsonl"
step hooks 90 "$python" -m tests.gpu.hooks_cost --shape "$shape" --device "$device" --steps "$steps"
# Of a long prompt every stage is 7 GB: those of layer 0, and one stage a layer.
step long 60 "${gpu[@]}" --repeats 2 --tokens "$long" --no-compare --json "$out/long.json" \
    --without "the same by torch's .to()|all traced|again, all traced|the writer alone"
step bfloat16 40 "${gpu[@]}" --repeats 2 --dtype bfloat16 --no-compare --json "$out/bfloat16.json"
step float16 40 "${gpu[@]}" --repeats 2 --dtype float16 --no-compare --json "$out/float16.json"
if [[ ! $tiny ]]; then  # a quarter of its layers: the tables and what is around them are measured above
    step make-fp8 60 "$python" -m tests.benchmarks.make_model 7b fp8 "$scratch/fp8" --layers 7
    step fp8 60 "$python" -m tests.benchmarks.gpu "$scratch/fp8" --device "$device" \
        --repeats 3 --json "$out/fp8.json"
    rm -rf "$scratch/fp8"
fi
step profile 60 "$python" -m tests.gpu.profile "$model" --device "$device"
step sweep 60 "$python" -m tests.gpu.sweep "$model" --device "$device" --bits "$bits"
"$python" -m tests.gpu.table "$out" | tee "$out/table.txt"
exit "${PIPESTATUS[0]}"
