"""HTTP on one side, the queue on the other: the OpenAI-compatible server."""
