"""What crosses Redis: messages, keys, scripts and codec; the only part of `worker` the API sees."""
