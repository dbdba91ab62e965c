#!/bin/bash
# Installs the clients into environments of their own, starts a server, and runs them against it.
# SERVER: the dfastllm command; FOLDER: where the environments are kept; URL: a server that is there.
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
FOLDER=$(realpath -m "${FOLDER:-$HERE/.environments}")
URL=${URL:-}
mkdir -p "$FOLDER/node"

if [ ! -x "$FOLDER/python/bin/lm_eval" ]; then
    "${PYTHON:-python3}" -m venv "$FOLDER/python"
    "$FOLDER/python/bin/pip" install -q litellm 'lm-eval[api]'
fi
if [ ! -d "$FOLDER/node/node_modules/openai" ]; then
    (cd "$FOLDER/node" && npm init -y >/dev/null && npm install --silent openai)
fi

if [ -z "$URL" ]; then
    PORT=${PORT:-18081}
    URL=http://127.0.0.1:$PORT
    VDIFF_FILES_DIR=$FOLDER/files "${SERVER:-dfastllm}" serve --port "$PORT" 2>"$FOLDER/server.log" &
    trap 'kill $!; wait' EXIT
    for _ in $(seq 300); do curl -sf "$URL/ready" >/dev/null && break; sleep 0.5; done
    curl -sf "$URL/ready" >/dev/null || { cat "$FOLDER/server.log"; exit 1; }
fi

failed=0
cp "$HERE/openai_node.mjs" "$FOLDER/node/"  # node looks for packages beside the script
node "$FOLDER/node/openai_node.mjs" "$URL" || failed=1
LITELLM_LOCAL_MODEL_COST_MAP=True \
    "$FOLDER/python/bin/python" -W ignore "$HERE/litellm_python.py" "$URL" || failed=1
# The tasks name their data by a path that begins where lm-eval is started.
cd "$HERE/lm_eval_tasks"
MODEL=$(curl -s "$URL/v1/models" | sed 's/.*"id":"\([^"]*\)".*/\1/')
HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 "$FOLDER/python/bin/python" -m lm_eval run \
    --model local-completions \
    --model_args "model=$MODEL,base_url=$URL/v1/completions,tokenizer_backend=remote,num_concurrent=2" \
    --include_path . --tasks stories_choice,stories_perplexity,stories_continued 2>"$FOLDER/lm_eval.log" \
    || { cat "$FOLDER/lm_eval.log"; failed=1; }
exit $failed
