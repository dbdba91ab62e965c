"""Every `VDIFF_*` name there is, with its help, so that each part can refuse all others."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import NamedTuple

PREFIX = "VDIFF_"

API = "api"
WORKER = "worker"
SERVE = "serve"


class KnownSetting(NamedTuple):
    """One environment variable; the command-line flag is the same name, written `--like-this`."""

    name: str
    parts: tuple[str, ...]  # which commands read it, beside `serve`, which passes everything on
    default: str  # as words, for the help text; the settings modules hold the values
    help: str

    @property
    def flag(self) -> str:
        return "--" + self.name.removeprefix(PREFIX).lower().replace("_", "-")


def _setting(name: str, parts: tuple[str, ...], default: str, text: str) -> KnownSetting:
    return KnownSetting(PREFIX + name, parts, default, text)


_BOTH = (API, WORKER)
_ALL = (
    _setting("HOST", (API,), "127.0.0.1", "address the HTTP server listens on"),
    _setting("PORT", (API,), "8080", "port the HTTP server listens on"),
    _setting("API_KEY", (API,), "none: open", "keys that clients must send, comma-separated"),
    _setting("KEYS_FILE", (API,), "none", "TOML file of hashed keys and their limits"),
    _setting(
        "CORS_ORIGINS", (API,), "none", "comma-separated origins whose web pages may ask; * for all"
    ),
    _setting("MAX_QUEUE_SIZE", (API,), "1000", "requests that may wait before the API answers 429"),
    _setting(
        "MAX_RUNNING_PER_KEY", (API,), "0: any", "requests of one key that may run, on all workers"
    ),
    _setting("MAX_QUEUED_PER_KEY", (API,), "0: any", "requests of one key that may wait, or 429"),
    _setting(
        "WORKER_PATIENCE",
        (API,),
        "60",
        "seconds that a model's requests may still wait once its last worker has gone; then 503",
    ),
    _setting("REQUEST_TIMEOUT", (API,), "300", "seconds until a request is given up"),
    _setting(
        "SHUTDOWN_GRACE",
        (API,),
        "3",
        "seconds that open requests may go on after a stop is asked for",
    ),
    _setting("RATE_LIMIT_REQUESTS", (API,), "0: off", "requests a key may send in one window"),
    _setting("RATE_LIMIT_TOKENS", (API,), "0: off", "tokens a key may ask for in one window"),
    _setting("RATE_LIMIT_WINDOW", (API,), "60", "length of that window in seconds"),
    _setting("JOB_TIMEOUT", (API,), "86400", "seconds until a job of /v1/jobs is given up"),
    _setting("MAX_QUEUE_TIME", (API,), "0: off", "seconds a request may wait for a worker"),
    _setting("WEBHOOK_SECRET", (API,), "none", "signs the webhooks of jobs that bring no secret"),
    _setting(
        "WEBHOOK_NETWORKS",
        (API,),
        "none",
        "comma-separated networks beside the public internet that webhooks may go to, also by http",
    ),
    _setting(
        "FILES_DIR",
        (API,),
        "~/.local/share/dfastllm/files; serve: in its data directory",
        "folder of uploaded files and of batches' answers; one for all API processes",
    ),
    _setting(
        "REDIS_URL",
        _BOTH,
        "redis://127.0.0.1:6379/0; serve: its own",
        "Redis >= 7.0 or Valkey that holds the queue: redis://, rediss://, unix://, redis+sentinel://",
    ),
    _setting("RESULT_TTL", _BOTH, "3600", "seconds a finished job can be read again"),
    _setting("FAILURE_TTL", _BOTH, "86400", "seconds a failed job can be looked at"),
    _setting("LOG_LEVEL", _BOTH, "info", "debug, info, warning or error"),
    _setting("LOG_FORMAT", _BOTH, "text", "text, or json: one object a line"),
    _setting(
        "VLLM_METRICS", (API,), "true", "show metrics under vLLM's names, too, for its dashboards"
    ),
    _setting("WORKERS", (SERVE,), "1", "worker processes that `serve` starts"),
    _setting(
        "DATA_DIR", (SERVE,), "~/.local/share/dfastllm", "where the embedded queue keeps its data"
    ),
    _setting(
        "QUEUE_PORT", (SERVE,), "0: none", "loopback port of the embedded queue, for rq-dashboard"
    ),
    _setting(
        "MODEL",
        (WORKER,),
        "embedded",
        "folder of the diffusion model or drafter, or of a model that stands alone",
    ),
    _setting("AR_VERIFIER_MODEL", (WORKER,), "embedded", "folder of the autoregressive verifier"),
    _setting("TOKENIZER", (WORKER,), "the verifier's", "folder of the tokenizer"),
    _setting(
        "MODEL_NAME", (WORKER,), "from the model", "name under which clients ask for the model"
    ),
    _setting("MAX_MODEL_LEN", (WORKER,), "from the model", "longest prompt + answer, in tokens"),
    _setting("DTYPE", (WORKER,), "auto", "auto, float32, bfloat16 or float16"),
    _setting("DEVICE", (WORKER,), "auto", "auto, cpu, cuda or cuda:N"),
    _setting("CPU_THREADS", (WORKER,), "cores / workers", "threads of the forwards on a CPU"),
    _setting(
        "HYBRID_ENABLED",
        (WORKER,),
        "true",
        "HYBRID_MODE is the mode of requests that name none; false: ar is",
    ),
    _setting(
        "HYBRID_MODE",
        (WORKER,),
        "deer, or what the models allow",
        "mode of requests that name none: deer, spec_diff, semi_ar, diffusion, apd or ar",
    ),
    _setting(
        "HYBRID_DRAFT_SIZE",
        (WORKER,),
        "auto",
        "draft length of requests that name none; auto: the planner decides each step",
    ),
    _setting(
        "HYBRID_MAX_DRAFT",
        (WORKER,),
        "15, or less where the drafter's blocks are shorter",
        "longest draft the planner may choose",
    ),
    _setting(
        "CPU_KERNELS",
        (WORKER,),
        "true",
        "on a CPU, run Llama-like models as one kernel a forward (not with COMPILE or USE_8BIT)",
    ),
    _setting("COMPILE", (WORKER,), "false", "compile the models at the start, with torch.compile"),
    _setting(
        "FLASH_ATTENTION",
        (WORKER,),
        "auto",
        "flash attention: auto, true (or do not start) or false",
    ),
    _setting("USE_8BIT", (WORKER,), "false", "multiply in 8 bits (int8)"),
    _setting(
        "ENABLE_BATCHING", (WORKER,), "true", "run several requests at once; false: one by one"
    ),
    _setting("MAX_BATCH_SIZE", (WORKER,), "16", "sequences that run at once"),
    _setting("MAX_STEP_TOKENS", (WORKER,), "auto", "token budget of one engine step"),
    _setting("KV_CACHE_MB", (WORKER,), "auto", "memory for the KV cache, in MiB"),
    _setting("PREFIX_CACHE", (WORKER,), "true", "share the KV of equal prompt beginnings"),
    _setting(
        "PREFIX_CACHE_HOST_MB",
        (WORKER,),
        "0",
        "host memory for KV that the device has forgotten, in MiB; 0: off",
    ),
    _setting(
        "PREFIX_CACHE_REDIS_MB",
        (WORKER,),
        "0",
        "memory of Redis for KV that all workers share, in MiB (docs/prefix-cache.md); 0: off",
    ),
    _setting(
        "PREFIX_CACHE_REDIS_URL",
        (WORKER,),
        "that of the queue",
        "Redis >= 7.0 or Valkey for this KV alone",
    ),
    _setting("PREFIX_CACHE_TTL", (WORKER,), "3600", "seconds that unread KV stays in Redis"),
    _setting(
        "PREFIX_CACHE_SECRET",
        (WORKER,),
        "none",
        "seals KV in Redis: without it nobody can plant any; none: corruption alone is noticed",
    ),
    _setting("ADAPTIVE_ENTROPY", (WORKER,), "false", "cut and pace drafts by their own entropy"),
    _setting(
        "ENTROPY_HIGH",
        (WORKER,),
        "2.5",
        "nats from which a draft token counts as uncertain, until that is learnt",
    ),
    _setting(
        "ENTROPY_LOW",
        (WORKER,),
        "0.5",
        "nats up to which a draft token counts as certain, until that is learnt",
    ),
    _setting(
        "DIFFUSION_STEPS",
        (WORKER,),
        "from the strategy",
        "denoising_steps of requests that name none: forwards a block, canvas or draft takes",
    ),
    _setting(
        "BLOCK_SIZE",
        (WORKER,),
        "from model and strategy",
        "block_length of requests that name none: tokens denoised together",
    ),
    _setting(
        "ENABLE_APD", (WORKER,), "true", "offer the lossy mode apd where its models are there"
    ),
    _setting(
        "APD_MAX_PARALLEL",
        (WORKER,),
        "from the strategy",
        "apd by confidence: most tokens that may stand at once",
    ),
    _setting(
        "APD_THRESHOLD",
        (WORKER,),
        "from the strategy",
        "apd by confidence: tokens stand while the model is this sure",
    ),
    _setting(
        "OVERDUE_AFTER",
        (WORKER,),
        "30",
        "seconds that more urgent requests may keep less urgent ones waiting; 0: for ever",
    ),
    _setting("OVERDUE_SHARE", (WORKER,), "0.125", "share of the places that they get from then on"),
    _setting("BURST", (WORKER,), "false", "end once the queue is empty and all is done"),
    _setting("LEASE", (WORKER,), "30", "seconds after which a silent worker's jobs go to another"),
    _setting("DRAIN_TIMEOUT", (WORKER,), "20", "seconds a stopping worker lets its jobs run on"),
    _setting(
        "OUTAGE_BUFFER_MB",
        (WORKER,),
        "64",
        "output kept while Redis is away; then the engine waits",
    ),
    _setting(
        "STREAM_INTERVAL",
        (WORKER,),
        "10",
        "milliseconds for which a stream's tokens are gathered (not its first and last); 0: none",
    ),
)

KNOWN: dict[str, KnownSetting] = {setting.name: setting for setting in _ALL}


def settings_of(part: str) -> list[KnownSetting]:
    """Return what a command reads: `serve` passes settings on to its parts, so all of them."""
    return [setting for setting in _ALL if part == SERVE or part in setting.parts]


def check_names(names: Iterable[str]) -> None:
    """Raise ValueError naming the first `VDIFF_*` name that nobody reads."""
    for name in names:
        if not name.startswith(PREFIX) or name in KNOWN:
            continue
        near = difflib.get_close_matches(name, KNOWN, n=1)
        hint = f"; did you mean {near[0]}?" if near else "; `dfastllm serve --help` lists all"
        raise ValueError(f"unknown setting {name}{hint}")
